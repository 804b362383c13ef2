//! Splitting a result into shares that different readers fetch on their own.
//!
//! A plan can be shared when nothing between its one scan and its result moves rows from one partition to another: then each
//! partition is a share. The scan is split anew for that, by files and row ranges, because the number of readers has
//! nothing to do with the number of cores that one reader would be served with.
//!
//! # Invariants
//! - SHARE-1 the shares of a plan have all its rows, each once: they are disjoint row ranges of one [`storage::TableView`].
//!   Test: `shares_have_every_row_once`.
//! - SHARE-2 an order that was asked for, a limit, and whatever else needs all rows in one place is never shared: only the
//!   operators named here pass. Test: `only_plain_scans_are_shared`.

use std::sync::Arc;

use datafusion::error::Result as DataFusionResult;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{ExecutionPlan, Partitioning};

use super::exec::ScanExec;

/// The plan with one partition per share: at most `shares_max`, none much smaller than `rows_min`. `None` when it cannot be
/// shared or is too small.
pub(crate) fn share(
    plan: &Arc<dyn ExecutionPlan>,
    shares_max: usize,
    rows_min: usize,
) -> DataFusionResult<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let shares = (scan.rows() / rows_min.max(1)).min(shares_max);
        return Ok(scan.split(shares).map(|scan| Arc::new(scan) as Arc<dyn ExecutionPlan>));
    }
    if plan.fetch().is_some() {
        return Ok(None);
    }
    let children = plan.children();
    let [child] = children.as_slice() else {
        return Ok(None);
    };
    // Operators that only gather or spread rows have no say in which row comes out.
    let spreads = plan
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|it| matches!(it.partitioning(), Partitioning::RoundRobinBatch(_)) && !it.preserve_order());
    if spreads || plan.is::<CoalescePartitionsExec>() {
        return share(child, shares_max, rows_min);
    }
    if !plan.is::<FilterExec>() && !plan.is::<ProjectionExec>() && !plan.is::<CooperativeExec>() {
        return Ok(None);
    }
    match share(child, shares_max, rows_min)? {
        Some(child) => Arc::clone(plan).with_new_children(vec![child]).map(Some),
        None => Ok(None),
    }
}
