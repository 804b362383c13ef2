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
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;

use super::cache::{ReadyPlan, Stage};
use crate::door::BatchStream;
use crate::{Error, Result};

/// A plan that its principal may run.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizedPlan {
    plan: LogicalPlan,
    stage: Stage,
}

/// Checks that a principal may run a plan.
pub(crate) fn authorize(plan: impl Into<ReadyPlan>, principal: &Principal) -> Result<AuthorizedPlan> {
    let ReadyPlan { plan, stage } = plan.into();
    if !principal.is_admin() {
        plan.apply_with_subqueries(|node| {
            if matches!(node, LogicalPlan::Copy(_) | LogicalPlan::Ddl(_) | LogicalPlan::Dml(_)) {
                return Err(Error::state(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied").into_datafusion());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(AuthorizedPlan { plan, stage })
}

impl AuthorizedPlan {
    /// Makes the physical plan, after whatever analysis and optimization is still to be done.
    pub(crate) async fn physical(&self, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        let optimized = match self.stage {
            Stage::Planned => state.optimize(&self.plan)?,
            Stage::Analyzed => state.optimizer().optimize(self.plan.clone(), state, |_, _| {})?,
            Stage::Optimized => self.plan.clone(),
        };
        Ok(state.query_planner().create_physical_plan(&optimized, state).await?)
    }

    /// Runs it, on a task of its own.
    pub(crate) async fn stream(&self, state: &SessionState) -> Result<(Arc<dyn ExecutionPlan>, BatchStream)> {
        let runnable = self.runnable(state).await?;
        let stream = runnable.stream()?;
        Ok((runnable.plan, stream))
    }

    /// Makes it ready to run, now or later.
    pub(crate) async fn runnable(&self, state: &SessionState) -> Result<RunnablePlan> {
        Ok(RunnablePlan {
            plan: self.physical(state).await?,
            config: state.config().clone(),
            runtime: state.runtime_env().clone(),
        })
    }
}

/// An authorized plan with all it needs to run. It holds what it reads until it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct RunnablePlan {
    plan: Arc<dyn ExecutionPlan>,
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
}

impl RunnablePlan {
    /// The operators, for their schema and statistics.
    pub(crate) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The same rows in several partitions that can be read one by one, if the plan allows it.
    pub(crate) fn shared(&self, shares_max: usize, rows_min: usize) -> Result<Option<RunnablePlan>> {
        let shared = crate::scan::share(&self.plan, shares_max, rows_min)?;
        Ok(shared.map(|plan| RunnablePlan { plan, ..self.clone() }))
    }

    /// Runs it, on a task of its own. Operators keep state, so that this is done once.
    pub(crate) fn stream(&self) -> Result<BatchStream> {
        super::interrupt::run(&self.plan, None, &self.config, &self.runtime)
    }

    /// Runs one partition of a plan that [`RunnablePlan::shared`] made, as often as anybody asks.
    pub(crate) fn stream_of(&self, partition: usize) -> Result<BatchStream> {
        super::interrupt::run(&self.plan, Some(partition), &self.config, &self.runtime)
    }
}
