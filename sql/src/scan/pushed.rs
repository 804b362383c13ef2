//! Filters that a scan tests itself: conditions of the statement, and what joins and sorts learn while they run.
//!
//! The scan tests rows before it brings them into form, so a selective filter saves most of the work. It takes only filters
//! that cannot fail: comparisons, patterns, lists and their combinations, without arithmetic and conversions. Everything
//! else stays with DataFusion's own filter above the scan.
//!
//! A dynamic filter is a hint of the operator that made it, which tests again. It is left out where it lets nearly
//! everything pass.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use base::BoxError;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result as DataFusionResult, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, Column, DynamicFilterPhysicalExpr, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
};
use datafusion::physical_expr_common::physical_expr::snapshot_generation;
use storage::RowFilter;

use super::provider::ScanColumn;
use crate::types::is_comparison;

/// Rows after which a dynamic filter is judged.
const TRIAL_ROWS: u64 = 64 * 1024;

/// Whether a filter changes while the statement runs.
pub(super) fn is_dynamic(filter: &Arc<dyn PhysicalExpr>) -> bool {
    filter.exists(|part| Ok(part.downcast_ref::<DynamicFilterPhysicalExpr>().is_some())).unwrap_or(true)
}

/// Whether a scan of these columns can test a filter.
pub(super) fn is_testable(filter: &Arc<dyn PhysicalExpr>, columns: &[ScanColumn]) -> bool {
    let mut testable = true;
    let mut reads = false;
    let walked = filter.apply(|part| {
        if part.downcast_ref::<DynamicFilterPhysicalExpr>().is_some() {
            // What it will hold is made of its columns, and compares them.
            for child in part.children() {
                let column = child.downcast_ref::<Column>().and_then(|column| columns.get(column.index()));
                testable &= matches!(column, Some(ScanColumn::Stored(_)));
                reads = true;
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        testable &= if let Some(column) = part.downcast_ref::<Column>() {
            reads = true;
            matches!(columns.get(column.index()), Some(ScanColumn::Stored(_)))
        } else if let Some(binary) = part.downcast_ref::<BinaryExpr>() {
            is_comparison(*binary.op()) || matches!(binary.op(), Operator::And | Operator::Or)
        } else {
            part.downcast_ref::<Literal>().is_some()
                || part.downcast_ref::<InListExpr>().is_some()
                || part.downcast_ref::<LikeExpr>().is_some()
                || part.downcast_ref::<NotExpr>().is_some()
                || part.downcast_ref::<IsNullExpr>().is_some()
                || part.downcast_ref::<IsNotNullExpr>().is_some()
        };
        Ok(if testable { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && testable && reads
}

/// A filter in the form that storage tests.
pub(super) fn row_filter(
    filter: &Arc<dyn PhysicalExpr>,
    columns: &[ScanColumn],
    schema: &SchemaRef,
) -> DataFusionResult<Arc<dyn RowFilter>> {
    let mut read: Vec<usize> = Vec::new();
    let expr = Arc::clone(filter).transform_down(|part| {
        let Some(column) = part.downcast_ref::<Column>() else { return Ok(Transformed::no(part)) };
        let at = read.iter().position(|&known| known == column.index()).unwrap_or_else(|| {
            read.push(column.index());
            read.len() - 1
        });
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), at)) as Arc<dyn PhysicalExpr>))
    })?;
    let fields: Vec<_> = read.iter().map(|&at| Arc::clone(&schema.fields()[at])).collect();
    // Storage returns the stored columns without the others between them.
    let stored = |at: usize| columns[..at].iter().filter(|column| matches!(column, ScanColumn::Stored(_))).count();
    Ok(Arc::new(ScanFilter {
        expr: expr.data,
        columns: read.into_iter().map(stored).collect(),
        schema: Arc::new(Schema::new(fields)),
        trial: is_dynamic(filter).then(Trial::default),
    }))
}

/// How a dynamic filter has done.
#[derive(Debug, Default)]
struct Trial {
    generation: AtomicU64,
    tested: AtomicU64,
    passed: AtomicU64,
}

impl Trial {
    /// Whether the filter, as it is now, lets nearly everything pass.
    fn is_useless(&self, generation: u64) -> bool {
        if self.generation.swap(generation, Ordering::Relaxed) != generation {
            self.tested.store(0, Ordering::Relaxed);
            self.passed.store(0, Ordering::Relaxed);
            return false;
        }
        let (tested, passed) = (self.tested.load(Ordering::Relaxed), self.passed.load(Ordering::Relaxed));
        tested >= TRIAL_ROWS && passed >= tested - tested / 8
    }

    fn record(&self, tested: usize, passed: usize) {
        self.tested.fetch_add(tested as u64, Ordering::Relaxed);
        self.passed.fetch_add(passed as u64, Ordering::Relaxed);
    }
}

struct ScanFilter {
    expr: Arc<dyn PhysicalExpr>,
    columns: Vec<usize>,
    /// Of the columns it reads.
    schema: SchemaRef,
    trial: Option<Trial>,
}

impl fmt::Debug for ScanFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScanFilter({})", self.expr)
    }
}

impl RowFilter for ScanFilter {
    fn columns(&self) -> &[usize] {
        &self.columns
    }

    fn test(&self, columns: &[ArrayRef], rows: usize) -> Result<Option<BooleanArray>, BoxError> {
        if let Some(trial) = &self.trial
            && trial.is_useless(snapshot_generation(&self.expr))
        {
            return Ok(None);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns.to_vec(), &options)?;
        let passed = match self.expr.evaluate(&batch)? {
            ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => None,
            ColumnarValue::Scalar(ScalarValue::Boolean(_)) => Some(BooleanArray::from(vec![false; rows])),
            ColumnarValue::Scalar(other) => return Err(format!("a filter answered {other}").into()),
            ColumnarValue::Array(passed) => Some(datafusion::common::cast::as_boolean_array(&passed)?.clone()),
        };
        if let Some(trial) = &self.trial {
            trial.record(rows, passed.as_ref().map_or(rows, BooleanArray::true_count));
        }
        Ok(passed)
    }
}
