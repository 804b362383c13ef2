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
use datafusion::execution::{SessionState, TaskContext};
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
        let ready = self.ready(state).await?;
        let stream = ready.stream()?;
        Ok((ready.plan, stream))
    }

    /// Makes it ready to run, now or later.
    pub(crate) async fn ready(&self, state: &SessionState) -> Result<ReadyPlan> {
        Ok(ReadyPlan { plan: self.physical(state).await?, context: state.task_ctx() })
    }
}

/// An authorized plan with all it needs to run. It holds what it reads until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct ReadyPlan {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl ReadyPlan {
    /// The operators, for their schema and statistics.
    pub(crate) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The same rows in several partitions that can be read one by one, if the plan allows it.
    pub(crate) fn shared(&self, shares_max: usize, rows_min: usize) -> Result<Option<ReadyPlan>> {
        let shared = crate::scan::share(&self.plan, shares_max, rows_min)?;
        Ok(shared.map(|plan| ReadyPlan { plan, context: Arc::clone(&self.context) }))
    }

    /// Runs it. Operators keep state, so that this is done once.
    pub(crate) fn stream(&self) -> Result<BatchStream> {
        let stream = execute_stream(Arc::clone(&self.plan), Arc::clone(&self.context))?;
        Ok(stream.map_err(Error::from).boxed())
    }

    /// Runs one partition of a plan that [`ReadyPlan::shared`] made, as often as anybody asks.
    pub(crate) fn stream_of(&self, partition: usize) -> Result<BatchStream> {
        let stream = self.plan.execute(partition, Arc::clone(&self.context))?;
        Ok(stream.map_err(Error::from).boxed())
    }
}
