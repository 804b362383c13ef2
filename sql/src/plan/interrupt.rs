//! Plans that can be stopped, and that leave their thread to others.
//!
//! DataFusion gives way where a source is polled, and stops where a stream is dropped. A join can compute for minutes between
//! two polls of its sources, and between two rows it returns: a nested loop whose condition never holds, a cross join under a
//! filter. So:
//!
//! 1. A plan runs on a task of its own ([`run`]). Whoever waits for its batches stays free to see a cancellation or a timeout,
//!    and dropping the stream ends the task and raises the plan's [`Stop`].
//! 2. [`GiveWay`], a rule, puts an [`InterruptibleExec`] over every join: its batches count against the task's budget, as those
//!    of a source do.
//! 3. The same rule wraps the condition of a join in [`Watched`], which is evaluated every few thousand pairs of rows: it ends
//!    the join when the plan was stopped, and after [`TURN`] it lets the other tasks of its thread move to another thread.
//!
//! # Invariants
//! - STOP-1 a statement ends soon after it was cancelled, its time was up or its stream was dropped, and others go on
//!   meanwhile. Tests: `endless_joins_can_be_stopped`, `a_dropped_stream_stops_its_plan`.
//!
//! # Not here
//! Who asks for a statement to end: [`crate::queries`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use base::SqlState;
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, RecordBatchStream, SendableRecordBatchStream,
    execute_stream,
};
use datafusion::prelude::SessionConfig;
use futures::{Stream, StreamExt};

use crate::door::BatchStream;
use crate::{Error, Result};

/// How long a join may keep a thread that others wait for.
const TURN: Duration = Duration::from_millis(20);

/// Batches that a plan computes ahead of its reader.
const AHEAD: usize = 2;

/// The name of DataFusion's rule that must see the joins before they are wrapped, and links filters to sources afterwards.
const BEFORE: &str = "FilterPushdown(Post)";

/// Raised when nobody wants a plan's rows any more.
#[derive(Debug, Default)]
struct Stop(AtomicBool);

/// Runs a plan, or one partition of it, on a task of its own.
pub(super) fn run(
    plan: &Arc<dyn ExecutionPlan>,
    partition: Option<usize>,
    config: &SessionConfig,
    runtime: &Arc<RuntimeEnv>,
) -> Result<BatchStream> {
    let stop = Arc::new(Stop::default());
    let config = config.clone().with_extension(stop.clone());
    // Functions are bound in the plan: operators look none up by name.
    let none = (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
    let session = String::from("lattice");
    let context =
        Arc::new(TaskContext::new(None, session, config, none.0, none.1, none.2, none.3, Arc::clone(runtime)));
    let mut stream = match partition {
        Some(partition) => plan.execute(partition, context)?,
        None => execute_stream(Arc::clone(plan), context)?,
    };
    let mut receiver = RecordBatchReceiverStream::builder(stream.schema(), AHEAD);
    let sender = receiver.tx();
    receiver.spawn(async move {
        while let Some(batch) = stream.next().await {
            let failed = batch.is_err();
            // Without a reader there is nothing to compute; after an error there is nothing to read.
            if sender.send(batch).await.is_err() || failed {
                break;
            }
        }
        Ok(())
    });
    let raise = RaiseOnDrop(stop);
    let batches = receiver.build().map(move |batch| {
        let _owned = &raise;
        batch.map_err(Error::from)
    });
    Ok(batches.boxed())
}

struct RaiseOnDrop(Arc<Stop>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// DataFusion's physical rules with [`GiveWay`] among them.
pub(super) fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = super::barrier::physical_rules();
    let at = rules.iter().position(|rule| rule.name() == BEFORE).unwrap_or(rules.len());
    rules.insert(at, Arc::new(GiveWay));
    rules
}

/// Makes joins interruptible.
#[derive(Debug)]
struct GiveWay;

impl PhysicalOptimizerRule for GiveWay {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let watched: Arc<dyn ExecutionPlan> = if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
                match join.filter() {
                    Some(filter) => {
                        Arc::new(NestedLoopJoinExecBuilder::from(join).with_filter(Some(watch(filter))).build()?)
                    }
                    None => node,
                }
            } else if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                match join.filter() {
                    Some(filter) => join.builder().with_filter(Some(watch(filter))).build_exec()?,
                    None => node,
                }
            } else if node.is::<CrossJoinExec>() || node.is::<SortMergeJoinExec>() {
                node
            } else {
                return Ok(Transformed::no(node));
            };
            Ok(Transformed::yes(Arc::new(InterruptibleExec::new(watched)) as Arc<dyn ExecutionPlan>))
        })
        .map(|transformed| transformed.data)
    }

    fn name(&self) -> &'static str {
        "give_way"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn watch(filter: &JoinFilter) -> JoinFilter {
    let watched = Arc::new(Watched { inner: Arc::clone(filter.expression()) });
    JoinFilter::new(watched, filter.column_indices().to_vec(), Arc::clone(filter.schema()))
}

// ------------------------------------------------------------------------------------------------------------- turns

thread_local! {
    /// The join that this thread is computing.
    static COMPUTING: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

struct Turn {
    stop: Arc<Stop>,
    since: Instant,
}

/// Marks that a join is being polled. Inside another join's poll it changes nothing: the turn is that join's.
struct Mark {
    outermost: bool,
}

impl Mark {
    fn new(stop: &Arc<Stop>) -> Self {
        COMPUTING.with_borrow_mut(|turn| {
            let outermost = turn.is_none();
            if outermost {
                *turn = Some(Turn { stop: stop.clone(), since: Instant::now() });
            }
            Self { outermost }
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.outermost {
            COMPUTING.with_borrow_mut(|turn| *turn = None);
        }
    }
}

fn stopped() -> DataFusionError {
    Error::state(SqlState::QUERY_CANCELED, "the query was stopped").into_datafusion()
}

/// Fails when the plan was stopped; otherwise says whether the thread has been kept for long.
fn overstayed() -> DataFusionResult<bool> {
    COMPUTING.with_borrow_mut(|turn| match turn {
        Some(turn) if turn.stop.0.load(Ordering::Relaxed) => Err(stopped()),
        Some(turn) if turn.since.elapsed() > TURN => {
            turn.since = Instant::now();
            Ok(true)
        }
        _ => Ok(false),
    })
}

/// Whether the tasks of this thread can move to another one.
fn can_hand_over() -> bool {
    tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread)
}

/// A join's condition that is also the place where the join notices the world.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn PhysicalExpr>,
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl PhysicalExpr for Watched {
    fn data_type(&self, schema: &Schema) -> DataFusionResult<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> DataFusionResult<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> DataFusionResult<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> DataFusionResult<ColumnarValue> {
        if overstayed()? && can_hand_over() {
            return tokio::task::block_in_place(|| self.inner.evaluate(batch));
        }
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        match (children.pop(), children.is_empty()) {
            (Some(inner), true) => Ok(Arc::new(Watched { inner })),
            _ => Err(Error::internal("a watched condition has one part").into_datafusion()),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

// ------------------------------------------------------------------------------------------------------------- the operator

/// Gives way between the batches of a join, and marks its turns.
#[derive(Debug)]
struct InterruptibleExec {
    input: Arc<dyn ExecutionPlan>,
}

impl InterruptibleExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { input }
    }
}

impl DisplayAs for InterruptibleExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interruptible")
    }
}

impl ExecutionPlan for InterruptibleExec {
    fn name(&self) -> &'static str {
        "InterruptibleExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(InterruptibleExec::new(input))),
            _ => Err(Error::internal("an interruptible operator has one input").into_datafusion()),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let stop = context.session_config().get_extension::<Stop>().unwrap_or_default();
        Ok(Box::pin(Interruptible { inner: self.input.execute(partition, context)?, stop }))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DataFusionResult<Arc<Statistics>> {
        self.input.partition_statistics(partition)
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> DataFusionResult<FilterDescription> {
        FilterDescription::from_children(parent_filters, &self.children())
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        child_pushdown_result: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> DataFusionResult<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(child_pushdown_result))
    }
}

struct Interruptible {
    inner: SendableRecordBatchStream,
    stop: Arc<Stop>,
}

impl Stream for Interruptible {
    type Item = DataFusionResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stop.0.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(stopped())));
        }
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let _mark = Mark::new(&self.stop);
        let polled = self.inner.poll_next_unpin(cx);
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }
}

impl RecordBatchStream for Interruptible {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_finds_its_place() {
        let names: Vec<String> = physical_rules().iter().map(|rule| rule.name().to_owned()).collect();
        let place = |name: &str| names.iter().position(|other| other == name);
        assert!(place("EnsureCooperative") < place("give_way"), "{names:?}");
        assert!(place("give_way") < place(BEFORE) && place(BEFORE).is_some(), "{names:?}");
    }
}
