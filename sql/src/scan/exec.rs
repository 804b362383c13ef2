//! The operator that reads a table.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, UInt8Array};
use arrow::datatypes::SchemaRef;
use base::RowKey;
use bytes::Bytes;
use codec::KeyCodec;
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation, PushedDown,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use storage::{Partition, RowFilter, ScanSpec, TableView};

use super::provider::ScanColumn;
use super::pushed;
use crate::catalog::{IndexEntry, TableEntry};
use crate::progress::Progress;
use crate::{Error, Result};

/// How many keys an index hands on at once.
const INDEX_CHUNK: usize = 1024;

/// How rows are reached.
#[derive(Clone)]
pub(super) enum Access {
    /// By reading everything that zones do not rule out.
    Partitions(Vec<Partition>),
    /// By primary key.
    Keys(Vec<RowKey>),
    /// Through an index.
    Index { index: Arc<IndexEntry>, view: TableView, prefixes: Vec<RowKey> },
}

/// Reads a table.
pub(crate) struct ScanExec {
    entry: Arc<TableEntry>,
    view: TableView,
    access: Access,
    columns: Vec<ScanColumn>,
    schema: SchemaRef,
    spec: ScanSpec,
    /// What rows must pass, in terms of the output.
    filters: Vec<Arc<dyn PhysicalExpr>>,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScanExec {
    pub(super) fn new(
        entry: Arc<TableEntry>,
        view: TableView,
        access: Access,
        columns: Vec<ScanColumn>,
        schema: SchemaRef,
        spec: ScanSpec,
        statistics: Statistics,
    ) -> Self {
        let partitions = match &access {
            Access::Partitions(partitions) => partitions.len().max(1),
            Access::Keys(_) | Access::Index { .. } => 1,
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let statistics = match &access {
            Access::Keys(keys) => {
                let mut few = statistics.to_inexact();
                few.num_rows = datafusion::common::stats::Precision::Inexact(keys.len());
                few
            }
            _ => statistics,
        };
        Self {
            entry,
            view,
            access,
            columns,
            schema,
            spec,
            filters: Vec::new(),
            statistics: Arc::new(statistics),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The same scan with these filters.
    fn with_filters(&self, filters: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        let statistics = if filters.is_empty() {
            self.statistics.as_ref().clone()
        } else {
            self.statistics.as_ref().clone().to_inexact()
        };
        Self {
            entry: self.entry.clone(),
            view: self.view.clone(),
            access: self.access.clone(),
            columns: self.columns.clone(),
            schema: self.schema.clone(),
            spec: self.spec.clone(),
            filters,
            statistics: Arc::new(statistics),
            properties: self.properties.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// About how many rows it reads; 0 where that is not known beforehand.
    pub(super) fn rows(&self) -> usize {
        match &self.access {
            Access::Partitions(partitions) => partitions.iter().map(Partition::rows).sum(),
            Access::Keys(keys) => keys.len(),
            Access::Index { .. } => 0,
        }
    }

    /// The same scan in about `target` partitions; `None` when that is not several.
    pub(super) fn split(&self, target: usize) -> Option<Self> {
        if self.spec.limit.is_some() || !matches!(self.access, Access::Partitions(_)) {
            return None;
        }
        let partitions = self.view.partitions(target);
        (partitions.len() > 1).then(|| {
            Self::new(
                self.entry.clone(),
                self.view.clone(),
                Access::Partitions(partitions),
                self.columns.clone(),
                self.schema.clone(),
                self.spec.clone(),
                self.statistics.as_ref().clone(),
            )
            .with_filters(self.filters.clone())
        })
    }

    /// Rows of one partition, as [`Self::rows`] counts them.
    fn rows_of(&self, partition: usize) -> usize {
        match &self.access {
            Access::Partitions(partitions) => partitions.get(partition).map_or(0, Partition::rows),
            Access::Keys(_) | Access::Index { .. } => self.rows(),
        }
    }

    fn read(
        &self,
        partition: usize,
        filters: Vec<Arc<dyn RowFilter>>,
    ) -> DataFusionResult<BoxStream<'static, Result<RecordBatch>>> {
        let foreign = |error: storage::Error| Error::classified(error);
        let tests = filters.clone();
        let pass = move |batch: RecordBatch| storage::passing(batch, &tests).map_err(Error::classified);
        Ok(match &self.access {
            Access::Partitions(partitions) => match partitions.get(partition) {
                Some(partition) => {
                    let spec = ScanSpec { filters, ..self.spec.clone() };
                    self.view.scan(partition, &spec).map_err(foreign).boxed()
                }
                None => futures::stream::empty().boxed(),
            },
            Access::Keys(keys) => {
                let (view, keys, spec) = (self.view.clone(), keys.clone(), self.spec.clone());
                futures::stream::once(async move { view.get(&keys, &spec).await.map_err(foreign).and_then(pass) })
                    .boxed()
            }
            Access::Index { index, view, prefixes } => {
                let (rows, spec, stored) = (self.view.clone(), self.spec.clone(), self.entry.stored.clone());
                let first = index.stored.columns.len() - index.key.len();
                let index_spec = ScanSpec {
                    batch_rows: INDEX_CHUNK,
                    ..ScanSpec::new((first..index.stored.columns.len()).collect())
                };
                let view = view.clone();
                futures::stream::iter(prefixes.clone())
                    .flat_map(move |prefix| {
                        let end = after_prefix(&prefix);
                        view.scan_range((Bound::Included(prefix), end), &index_spec)
                    })
                    .map_err(foreign)
                    .and_then(move |found| {
                        let (rows, spec, stored) = (rows.clone(), spec.clone(), stored.clone());
                        async move {
                            let codec = KeyCodec::new(&stored).map_err(Error::classified)?;
                            let keys = codec.keys_of_columns(found.columns()).map_err(Error::classified)?;
                            rows.get(&keys, &spec).await.map_err(foreign)
                        }
                    })
                    .map(move |batch| batch.and_then(&pass))
                    .boxed()
            }
        })
    }
}

/// The end of the keys that start with a prefix.
pub(super) fn after_prefix(prefix: &RowKey) -> Bound<RowKey> {
    let mut bytes = prefix.as_bytes().to_vec();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return Bound::Excluded(RowKey(Bytes::from(bytes)));
        }
    }
    Bound::Unbounded
}

/// Gives a batch from storage the provider's names and forms.
fn shape(batch: &RecordBatch, columns: &[ScanColumn], schema: &SchemaRef, spec: &ScanSpec) -> Result<RecordBatch> {
    let mut system = spec.columns.len();
    let mut place = |wanted: bool| {
        let at = system;
        if wanted {
            system += 1;
        }
        at
    };
    let tx_from = place(spec.system.tx_from);
    let tx_to = place(spec.system.tx_to);
    let op = place(spec.system.op);
    let file = place(spec.system.locator);
    let offset = place(spec.system.locator);
    let mut stored = 0;
    let mut arrays = Vec::with_capacity(columns.len());
    for (column, field) in columns.iter().zip(schema.fields()) {
        let array: ArrayRef = match column {
            ScanColumn::Stored(_) => {
                stored += 1;
                batch.column(stored - 1).clone()
            }
            ScanColumn::TxFrom => batch.column(tx_from).clone(),
            ScanColumn::TxTo => batch.column(tx_to).clone(),
            ScanColumn::Op => operations(batch.column(op))?,
            ScanColumn::File => batch.column(file).clone(),
            ScanColumn::Offset => batch.column(offset).clone(),
        };
        let array = if array.data_type() == field.data_type() {
            array
        } else {
            arrow::compute::cast(&array, field.data_type())?
        };
        arrays.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?)
}

fn operations(codes: &ArrayRef) -> Result<ArrayRef> {
    let codes = codes
        .as_any()
        .downcast_ref::<UInt8Array>()
        .ok_or_else(|| Error::internal("operation codes are of the wrong type"))?;
    Ok(Arc::new(
        codes.iter().map(|code| code.map(|code| if code == 0 { "INSERT" } else { "UPDATE" })).collect::<StringArray>(),
    ))
}

impl fmt::Debug for ScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScanExec").field("table", &self.entry.def.name).finish_non_exhaustive()
    }
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        match &self.access {
            Access::Partitions(partitions) => {
                write!(f, "Scan {}: partitions={}", self.entry.def.name, partitions.len())?
            }
            Access::Keys(keys) => write!(f, "Key Lookup {}: keys={}", self.entry.def.name, keys.len())?,
            Access::Index { index, prefixes, .. } => {
                write!(f, "Index Lookup {} using {}: values={}", self.entry.def.name, index.def.name, prefixes.len())?;
            }
        }
        write!(f, ", columns=[{}]", columns.join(", "))?;
        if let Some(zones) = &self.spec.zones {
            let tests: Vec<String> = zones
                .conditions
                .iter()
                .map(|condition| format!("{} {:?}", self.entry.def.columns[condition.column].name, condition.op))
                .collect();
            write!(f, ", zones=[{}]", tests.join(", "))?;
        }
        if !self.filters.is_empty() {
            let filters: Vec<String> = self.filters.iter().map(|filter| filter.to_string()).collect();
            write!(f, ", filters=[{}]", filters.join(" AND "))?;
        }
        if let Some(limit) = self.spec.limit {
            write!(f, ", limit={limit}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &'static str {
        "ScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        offered: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> DataFusionResult<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let mut filters = self.filters.clone();
        let mut answers = Vec::with_capacity(offered.parent_filters.len());
        for offer in offered.parent_filters {
            // A limit counts the rows before any filter that comes later.
            let taken = self.spec.limit.is_none() && pushed::is_testable(&offer.filter, &self.columns);
            if taken {
                filters.push(offer.filter);
            }
            answers.push(if taken { PushedDown::Yes } else { PushedDown::No });
        }
        let updated = filters.len() > self.filters.len();
        let updated_node = updated.then(|| Arc::new(self.with_filters(filters)) as Arc<dyn ExecutionPlan>);
        Ok(FilterPushdownPropagation { filters: answers, updated_node })
    }

    /// What joins and sorts learnt in one run says nothing of the next.
    fn reset_state(self: Arc<Self>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let lasting = self.filters.iter().filter(|filter| !pushed::is_dynamic(filter)).cloned().collect();
        Ok(Arc::new(self.with_filters(lasting)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let progress = context.session_config().get_extension::<Progress>();
        let expected = Arc::new(AtomicU64::new(self.rows_of(partition) as u64));
        let (passing, rest) = ((progress.clone(), Arc::clone(&expected)), (progress, expected));
        let (columns, schema, spec) = (self.columns.clone(), self.schema.clone(), self.spec.clone());
        let filters = self
            .filters
            .iter()
            .map(|filter| pushed::row_filter(filter, &self.columns, &self.schema))
            .collect::<DataFusionResult<Vec<_>>>()?;
        let stream = self
            .read(partition, filters)?
            .and_then({
                let schema = schema.clone();
                move |batch| futures::future::ready(shape(&batch, &columns, &schema, &spec))
            })
            .map(move |batch| {
                if let Ok(batch) = &batch {
                    metrics.record_output(batch.num_rows());
                    if let (Some(progress), expected) = &passing {
                        let rows = (batch.num_rows() as u64).min(expected.load(Ordering::Relaxed));
                        expected.fetch_sub(rows, Ordering::Relaxed);
                        progress.pass(rows);
                    }
                }
                batch.map_err(DataFusionError::from)
            })
            // What zones let it skip has been passed too, at the end.
            .chain(futures::stream::poll_fn(move |_| {
                if let (Some(progress), expected) = &rest {
                    progress.pass(expected.swap(0, Ordering::Relaxed));
                }
                Poll::Ready(None)
            }));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DataFusionResult<Arc<Statistics>> {
        Ok(match partition {
            None => self.statistics.clone(),
            Some(_) if self.properties.output_partitioning().partition_count() == 1 => self.statistics.clone(),
            Some(_) => Arc::new(Statistics::new_unknown(&self.schema)),
        })
    }
}
