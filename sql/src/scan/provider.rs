//! One table at one moment, as DataFusion sees it.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Constraint, Constraints, ScalarValue, Statistics};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use storage::{ScanSpec, SystemColumns, TableView};

use super::exec::{Access, ScanExec};
use super::filter;
use crate::catalog::TableEntry;
use crate::progress::Progress;
use crate::transaction::Reader;
use crate::{Error, Result};

/// An index is asked when it leaves at most one row in this many.
const INDEX_SELECTIVITY: usize = 20;

/// What a column of the provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScanColumn {
    /// A column of the table, by storage position.
    Stored(usize),
    TxFrom,
    TxTo,
    Op,
    File,
    Offset,
}

/// Names of the hidden columns that statements may select.
pub(crate) const HIDDEN: &[&str] = &["_tx_from", "_tx_to", "_op", "_file", "_offset", "_row_ts", "_row_no"];

/// A table as statements see it, at no particular moment.
#[derive(Debug)]
pub(crate) struct Shape {
    entry: Arc<TableEntry>,
    schema: SchemaRef,
    columns: Vec<ScanColumn>,
    constraints: Option<Constraints>,
}

/// One table at one moment.
pub(crate) struct LatticeTable {
    shape: Arc<Shape>,
    view: TableView,
    reader: Reader,
}

/// A table of a plan that is kept for later executions: it cannot be read, and holds nothing in storage.
#[derive(Debug)]
pub(crate) struct Unread {
    shape: Arc<Shape>,
}

impl Unread {
    /// The place of a table.
    pub(crate) fn new(shape: Arc<Shape>) -> Self {
        Self { shape }
    }

    pub(crate) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }
}

impl TableSource for Unread {
    fn schema(&self) -> SchemaRef {
        self.shape.schema.clone()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.shape.constraints.as_ref()
    }
}

impl fmt::Debug for LatticeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LatticeTable({} at {})", self.shape.entry.def.name, self.reader.ts())
    }
}

impl LatticeTable {
    /// Opens a table. With `hidden`, the system columns follow the visible ones. With `only`, no other visible columns are there.
    pub(crate) fn new(entry: Arc<TableEntry>, reader: Reader, hidden: bool, only: Option<&[String]>) -> Result<Self> {
        Self::open(Arc::new(Shape::new(entry, hidden, only)), reader)
    }

    /// Opens a table of a kept plan.
    pub(crate) fn open(shape: Arc<Shape>, reader: Reader) -> Result<Self> {
        let view = reader.view(&shape.entry.stored)?;
        Ok(Self { shape, view, reader })
    }

    pub(crate) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    fn statistics_of(&self, columns: &[ScanColumn]) -> Statistics {
        let count = self.view.row_count();
        let precise =
            |value: usize, exact: bool| if exact { Precision::Exact(value) } else { Precision::Inexact(value) };
        let column_statistics: Vec<ColumnStatistics> = columns
            .iter()
            .map(|column| {
                let ScanColumn::Stored(position) = column else {
                    return ColumnStatistics::new_unknown();
                };
                let known = self.view.column_statistics(*position);
                let scalar = |array: &Option<arrow::array::ArrayRef>| {
                    array.as_ref().and_then(|array| ScalarValue::try_from_array(array, 0).ok()).map_or(
                        Precision::Absent,
                        |value| {
                            if known.exact { Precision::Exact(value) } else { Precision::Inexact(value) }
                        },
                    )
                };
                let mut statistics = ColumnStatistics::new_unknown();
                statistics.min_value = scalar(&known.min);
                statistics.max_value = scalar(&known.max);
                if is_whole_range(&statistics) {
                    // DataFusion counts the values of a range in 64 bits, where all of them do not fit.
                    statistics.min_value = Precision::Absent;
                    statistics.max_value = Precision::Absent;
                }
                statistics.null_count = known.null_count.map_or(Precision::Absent, |nulls| precise(nulls, known.exact));
                statistics.distinct_count = known.distinct.map_or(Precision::Absent, Precision::Inexact);
                statistics
            })
            .collect();
        let width: usize = columns.iter().map(|column| self.width(*column)).sum();
        Statistics {
            num_rows: precise(count.rows, count.exact),
            total_byte_size: Precision::Inexact(count.rows.saturating_mul(width)),
            column_statistics,
        }
    }

    fn width(&self, column: ScanColumn) -> usize {
        match column {
            ScanColumn::Stored(position) => {
                self.shape.entry.types[position].data_type().primitive_width().unwrap_or(24)
            }
            _ => 8,
        }
    }

    /// How to reach the rows that can pass the filters, when those do not name them.
    fn access(&self, tests: &[filter::Test], target: usize) -> DataFusionResult<Access> {
        if let Some(choice) = filter::index(&self.shape.entry, tests) {
            let rows = self.view.row_count().rows;
            let whole = choice.index.def.unique && choice.columns == choice.index.positions.len();
            let distinct = choice.index.positions[..choice.columns]
                .iter()
                .filter_map(|&at| self.view.column_statistics(at).distinct)
                .max();
            let selective = whole || distinct.is_none_or(|distinct| distinct >= INDEX_SELECTIVITY.min(rows / 4));
            if selective {
                let view = self.reader.view(&choice.index.stored)?;
                return Ok(Access::Index { index: choice.index, view, prefixes: choice.prefixes });
            }
        }
        Ok(Access::Partitions(self.view.partitions(target.max(1))))
    }
}

impl Shape {
    fn new(entry: Arc<TableEntry>, hidden: bool, only: Option<&[String]>) -> Self {
        let shown: Vec<(usize, &Arc<Field>)> = entry
            .visible
            .iter()
            .copied()
            .zip(entry.arrow.fields())
            .filter(|(_, field)| only.is_none_or(|only| only.contains(field.name())))
            .collect();
        let mut fields: Vec<Arc<Field>> = shown.iter().map(|(_, field)| Arc::clone(field)).collect();
        let mut columns: Vec<ScanColumn> = shown.iter().map(|(at, _)| ScanColumn::Stored(*at)).collect();
        // The key makes rows unique to the planner (functional dependencies of GROUP BY).
        let key: Option<Vec<usize>> = match &entry.def.primary_key {
            Some(_) => entry.stored.key.iter().map(|at| shown.iter().position(|(place, _)| place == at)).collect(),
            None => None,
        };
        let constraints = key.map(|key| Constraints::new_unverified(vec![Constraint::PrimaryKey(key)]));
        if hidden {
            let time = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
            for (column, field) in [
                // A transaction's own rows have none.
                (ScanColumn::TxFrom, Field::new("_tx_from", time.clone(), true)),
                (ScanColumn::TxTo, Field::new("_tx_to", time, true)),
                (ScanColumn::Op, Field::new("_op", DataType::Utf8, false)),
                (ScanColumn::File, Field::new("_file", DataType::UInt64, false)),
                (ScanColumn::Offset, Field::new("_offset", DataType::UInt32, false)),
            ] {
                columns.push(column);
                fields.push(Arc::new(field));
            }
            for (at, column) in entry.def.columns.iter().enumerate().filter(|(_, column)| column.is_hidden()) {
                columns.push(ScanColumn::Stored(at));
                fields.push(Arc::new(Field::new(&column.name, DataType::Int64, false)));
            }
        }
        let schema = Arc::new(Schema::new(fields));
        Self { entry, schema, columns, constraints }
    }

    fn locate(&self, name: &str) -> Option<(usize, DataType)> {
        let at = self.schema.fields().iter().position(|field| field.name() == name)?;
        match self.columns[at] {
            ScanColumn::Stored(position) => Some((position, self.schema.field(at).data_type().clone())),
            _ => None,
        }
    }
}

/// Whether a column's values span everything 64 bits can hold.
fn is_whole_range(statistics: &ColumnStatistics) -> bool {
    let ends = (statistics.min_value.get_value(), statistics.max_value.get_value());
    match ends {
        (Some(ScalarValue::Int64(Some(min))), Some(ScalarValue::Int64(Some(max))))
        | (
            Some(ScalarValue::TimestampMicrosecond(Some(min), _)),
            Some(ScalarValue::TimestampMicrosecond(Some(max), _)),
        ) => max.checked_sub(*min).is_none(),
        (Some(ScalarValue::Float64(Some(min))), Some(ScalarValue::Float64(Some(max)))) => {
            !min.is_finite() || !max.is_finite()
        }
        (Some(ScalarValue::Float32(Some(min))), Some(ScalarValue::Float32(Some(max)))) => {
            !min.is_finite() || !max.is_finite()
        }
        _ => false,
    }
}

#[async_trait]
impl TableProvider for LatticeTable {
    fn schema(&self) -> SchemaRef {
        self.shape.schema.clone()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.shape.constraints.as_ref()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.statistics_of(&self.shape.columns))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        let locate = |name: &str| self.shape.locate(name);
        Ok(filters
            .iter()
            .map(|filter| {
                if filter::is_simple(filter, &locate) {
                    TableProviderFilterPushDown::Inexact
                } else {
                    TableProviderFilterPushDown::Unsupported
                }
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.shape.columns.len()).collect();
        let projection = projection.unwrap_or(&all);
        let columns: Vec<ScanColumn> = projection.iter().map(|&at| self.shape.columns[at]).collect();
        let schema = Arc::new(self.shape.schema.project(projection)?);
        let tests = filter::tests(filters, &|name| self.shape.locate(name));
        let access = match filter::primary_keys(&self.shape.entry, &tests) {
            Some(keys) => Access::Keys(keys),
            None => {
                // Before this, statistics know of no column.
                self.view.load_statistics().await.map_err(Error::classified)?;
                self.access(&tests, state.config().target_partitions())?
            }
        };

        let mut spec = ScanSpec::new(
            columns
                .iter()
                .filter_map(|column| match column {
                    ScanColumn::Stored(position) => Some(*position),
                    _ => None,
                })
                .collect(),
        );
        if columns.is_empty() {
            // A batch without columns has no length of its own.
            spec.columns.push(self.shape.entry.stored.key[0]);
        }
        spec.system = SystemColumns {
            tx_from: columns.contains(&ScanColumn::TxFrom),
            tx_to: columns.contains(&ScanColumn::TxTo),
            op: columns.contains(&ScanColumn::Op),
            locator: columns.contains(&ScanColumn::File) || columns.contains(&ScanColumn::Offset),
        };
        spec.zones = filter::zones(&tests);
        spec.batch_rows = state.config().batch_size();
        spec.limit = limit.filter(|_| filters.is_empty());
        let statistics = self.statistics_of(&columns);
        let statistics = if filters.is_empty() { statistics } else { statistics.to_inexact() };
        let scan =
            ScanExec::new(self.shape.entry.clone(), self.view.clone(), access, columns, schema, spec, statistics);
        if let Some(progress) = state.config().get_extension::<Progress>() {
            progress.expect(scan.rows() as u64);
        }
        Ok(Arc::new(scan))
    }
}
