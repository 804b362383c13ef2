//! Joins that must see every row of their probe side, NULLs and all.
//!
//! DataFusion's hash joins hand what they learn of the build side down to the scan of the probe side: bounds of the keys, or
//! the keys themselves. That drops rows whose key is NULL, and it can leave nothing at all. Both change the answer of
//! `NOT IN`, where one NULL decides everything and an empty list nothing, and of joins that hold NULL equal to NULL
//! (`INTERSECT`, `EXCEPT`, `IS NOT DISTINCT FROM`). The rule puts a barrier below such joins, through which no filter passes.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{NullEquality, Result, Statistics};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};

/// DataFusion's physical rules, with barriers set before filters are handed down.
pub(super) fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    let at = rules.iter().position(|rule| rule.name() == "FilterPushdown").unwrap_or(0);
    rules.insert(at, Arc::new(NullSensitiveJoins));
    rules
}

#[derive(Debug)]
struct NullSensitiveJoins;

impl PhysicalOptimizerRule for NullSensitiveJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let done = plan.transform_up(|node| {
            let Some(join) = node.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(node)) };
            if !join.null_aware && join.null_equality() == NullEquality::NullEqualsNothing {
                return Ok(Transformed::no(node));
            }
            let probe: Arc<dyn ExecutionPlan> = Arc::new(FilterBarrierExec { input: Arc::clone(join.right()) });
            let build = Arc::clone(join.left());
            Ok(Transformed::yes(node.with_new_children(vec![build, probe])?))
        })?;
        Ok(done.data)
    }

    fn name(&self) -> &str {
        "NullSensitiveJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Hands its input on, and no filter down.
#[derive(Debug)]
struct FilterBarrierExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for FilterBarrierExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter Barrier")
    }
}

impl ExecutionPlan for FilterBarrierExec {
    fn name(&self) -> &'static str {
        "FilterBarrierExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self { input })),
            Err(other) => Err(DataFusionError::Internal(format!("a barrier has one input, not {}", other.len()))),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        self.input.partition_statistics(partition)
    }
}
