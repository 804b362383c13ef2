//! The gate between a plan and its execution.
//!
//! # Invariants
//! - AUTH-1 only an [`AuthorizedPlan`] executes: its field is private and [`authorize`] is the only way to make one.
//!
//! Rights are minimal so far: everybody reads and writes tables, files and other sessions are for administrators. Policies
//! will decide here.

use std::sync::Arc;

use base::{Principal, SqlState};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{StreamExt, TryStreamExt};

use crate::door::BatchStream;
use crate::{Error, Result};

/// A plan that its principal may run.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizedPlan {
    plan: LogicalPlan,
}

/// Checks that a principal may run a plan.
pub(crate) fn authorize(plan: LogicalPlan, principal: &Principal) -> Result<AuthorizedPlan> {
    if !principal.is_admin() {
        plan.apply_with_subqueries(|node| {
            if matches!(node, LogicalPlan::Copy(_) | LogicalPlan::Ddl(_) | LogicalPlan::Dml(_)) {
                return Err(Error::state(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied").into_datafusion());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(AuthorizedPlan { plan })
}

impl AuthorizedPlan {
    /// The logical plan, for its schema.
    pub(crate) fn logical(&self) -> &LogicalPlan {
        &self.plan
    }

    /// Optimizes and makes the physical plan.
    pub(crate) async fn physical(&self, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(state.create_physical_plan(&self.plan).await?)
    }

    /// Runs it.
    pub(crate) async fn stream(&self, state: &SessionState) -> Result<(Arc<dyn ExecutionPlan>, BatchStream)> {
        let physical = self.physical(state).await?;
        let stream = execute_stream(physical.clone(), state.task_ctx())?;
        Ok((physical, stream.map_err(Error::from).boxed()))
    }
}
