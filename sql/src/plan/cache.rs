//! What a prepared statement keeps between executions: its analyzed plan.
//!
//! Planning a statement costs more than running a small one. A [`Slot`] belongs to one prepared statement and keeps the plan that
//! was made last, with parameters as typed placeholders and tables without a state ([`crate::scan::Unread`], so that nothing in
//! storage is held by a statement that waits). An execution opens the tables at its own moment and puts its values in; a plan
//! without parameters and without functions of the moment is kept even optimized.
//!
//! [`Planning`] leads whoever plans a statement through it: it asks for a plan only when the slot has none that fits.
//!
//! # Invariants
//! - CACHE-1 a kept plan is used only under the very catalog and search path it was made under. Test:
//!   `a_kept_plan_follows_definitions_and_settings`.
//! - CACHE-2 a kept plan reads what a new one would read. Test: `a_kept_plan_reads_its_own_moment`.
//!
//! # Not here
//! Statements that name a moment in time, read a system view, or pass parameters to a table function: their plans hold for one
//! execution ([`Notes::single`]). Plans that read rows of the statement itself (RETURNING).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::metadata::{FieldMetadata, ScalarAndMetadata};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScan, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;

use super::Scope;
use super::functions::is_session_function;
use crate::catalog::Catalog;
use crate::catalog::typing::is_json;
use crate::scan::{LatticeTable, Unread};
use crate::{Error, Result};

/// What planning found out about a statement.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    single: AtomicBool,
    learned: Mutex<Vec<(usize, FieldRef)>>,
    planned: Mutex<Option<ReadyPlan>>,
    /// For EXPLAIN ANALYZE: the first plan that runs, once it does.
    watched: Option<Mutex<Option<Arc<dyn ExecutionPlan>>>>,
}

impl Notes {
    /// New notes that keep the plan that runs.
    pub(crate) fn watching() -> Arc<Self> {
        Arc::new(Self { watched: Some(Mutex::default()), ..Self::default() })
    }

    /// Whether somebody wants to see the plan: then there must be one.
    pub(crate) fn is_watching(&self) -> bool {
        self.watched.is_some()
    }

    /// Notes a plan that runs.
    pub(crate) fn ran(&self, plan: &Arc<dyn ExecutionPlan>) {
        if let Some(watched) = &self.watched {
            watched.lock().get_or_insert_with(|| plan.clone());
        }
    }

    /// The plan that ran.
    pub(crate) fn watched(&self) -> Option<Arc<dyn ExecutionPlan>> {
        self.watched.as_ref()?.lock().clone()
    }

    /// The plan holds for one execution.
    pub(crate) fn single(&self) {
        self.single.store(true, Ordering::Relaxed);
    }

    /// Notes the type of a parameter that is not in the plan, by its number from 0.
    pub(crate) fn learn(&self, parameter: usize, field: FieldRef) {
        self.learned.lock().push((parameter, field));
    }

    /// The types noted so far.
    pub(crate) fn learned(&self) -> Vec<(usize, FieldRef)> {
        self.learned.lock().clone()
    }

    /// Leaves a plan that preparing made for the statement's slot.
    pub(crate) fn leave(&self, plan: ReadyPlan) {
        *self.planned.lock() = Some(plan);
    }

    fn is_single(&self) -> bool {
        self.single.load(Ordering::Relaxed)
    }
}

/// How far a plan has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Planned,
    Analyzed,
    Optimized,
}

/// A plan and how far it has come.
#[derive(Clone, Debug)]
pub(crate) struct ReadyPlan {
    pub(crate) plan: LogicalPlan,
    pub(crate) stage: Stage,
}

impl From<LogicalPlan> for ReadyPlan {
    fn from(plan: LogicalPlan) -> Self {
        Self { plan, stage: Stage::Planned }
    }
}

/// Where a prepared statement keeps its plan.
#[derive(Debug)]
pub(crate) struct Slot {
    /// What its parameters are announced as.
    parameters: SchemaRef,
    /// The definitions and the search path that say so.
    catalog: Arc<Catalog>,
    path: Vec<String>,
    kept: Mutex<Option<Arc<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    catalog: Arc<Catalog>,
    path: Vec<String>,
    /// `None` for a statement that is planned every time.
    plan: Option<ReadyPlan>,
    /// It calls functions that are made per execution.
    calls_session: bool,
}

impl Slot {
    /// The slot of a statement that was prepared in this scope, with the plan that preparing left.
    pub(crate) fn new(scope: &Scope, parameters: SchemaRef) -> Result<Self> {
        let slot =
            Self { parameters, catalog: scope.catalog.clone(), path: scope.path.clone(), kept: Mutex::default() };
        if let Some(left) = scope.notes.planned.lock().take() {
            // Values will come in the announced types, which can be plainer than those that planning found.
            let fields = left.plan.get_parameter_fields()?;
            let as_announced =
                fields.iter().all(|(name, field)| match (slot.parameters.field_with_name(name), field) {
                    (Ok(announced), Some(field)) => announced.data_type() == field.data_type(),
                    _ => false,
                });
            if as_announced && !scope.notes.is_single() {
                slot.keep(scope, Some(left))?;
            }
        }
        Ok(slot)
    }

    /// The types that parameters are announced as.
    pub(crate) fn parameters(&self) -> &SchemaRef {
        &self.parameters
    }

    /// Whether the statement would be announced alike in this scope.
    pub(crate) fn fits(&self, scope: &Scope) -> bool {
        Arc::ptr_eq(&self.catalog, &scope.catalog) && self.path == scope.path
    }

    fn kept_for(&self, scope: &Scope) -> Option<Arc<Kept>> {
        let kept = self.kept.lock().clone()?;
        (Arc::ptr_eq(&kept.catalog, &scope.catalog) && kept.path == scope.path).then_some(kept)
    }

    fn keep(&self, scope: &Scope, plan: Option<ReadyPlan>) -> Result<()> {
        let mut calls_session = false;
        let plan = match plan {
            Some(ReadyPlan { plan, stage }) => {
                each_function(&plan, &mut |function| calls_session |= is_session_function(function.func.name()))?;
                detach(plan)?.map(|plan| ReadyPlan { plan, stage })
            }
            None => None,
        };
        let kept = Kept { catalog: scope.catalog.clone(), path: scope.path.clone(), plan, calls_session };
        *self.kept.lock() = Some(Arc::new(kept));
        Ok(())
    }
}

/// One statement on its way to a plan.
pub(crate) struct Planning<'a> {
    scope: &'a Scope,
    step: Step,
}

enum Step {
    /// A plan with placeholders, to be kept.
    ToKeep(Scope),
    /// A plan for this execution.
    Once(Scope),
    Done(ReadyPlan),
}

impl<'a> Planning<'a> {
    /// Starts: with the kept plan, if one fits.
    pub(crate) fn of(scope: &'a Scope) -> Result<Self> {
        let counters = &scope.engine().queries.counters;
        let step = match &scope.slot {
            Some(slot) if scope.params.is_some() => match slot.kept_for(scope).as_deref() {
                Some(Kept { plan: Some(plan), calls_session, .. }) => {
                    counters.plans_reused.fetch_add(1, Ordering::Relaxed);
                    Step::Done(open(scope, slot, plan.clone(), *calls_session)?)
                }
                Some(Kept { plan: None, .. }) => Step::Once(scope.clone()),
                None => {
                    let param_types = slot.parameters.fields().iter().map(|field| Some(field.clone())).collect();
                    Step::ToKeep(Scope {
                        params: None,
                        param_types: Arc::new(param_types),
                        notes: Arc::default(),
                        ..scope.clone()
                    })
                }
            },
            _ => Step::Once(scope.clone()),
        };
        Ok(Self { scope, step })
    }

    /// The scope to plan in, as long as a plan is needed.
    pub(crate) fn wants(&self) -> Option<Scope> {
        match &self.step {
            Step::ToKeep(scope) | Step::Once(scope) => Some(scope.clone()),
            Step::Done(_) => None,
        }
    }

    /// Takes the plan that was made in the scope of [`Planning::wants`].
    pub(crate) fn give(&mut self, plan: LogicalPlan) -> Result<()> {
        let counters = &self.scope.engine().queries.counters;
        counters.plans_made.fetch_add(1, Ordering::Relaxed);
        self.step = match (&self.step, &self.scope.slot) {
            (Step::ToKeep(inner), Some(slot)) if inner.notes.is_single() => {
                slot.keep(self.scope, None)?;
                Step::Once(self.scope.clone())
            }
            (Step::ToKeep(_), Some(slot)) => {
                let plan = ready(self.scope, plan, slot.parameters.fields().is_empty())?;
                slot.keep(self.scope, Some(plan.clone()))?;
                let values = values(self.scope, slot);
                Step::Done(ReadyPlan { plan: fill(plan.plan, values)?, stage: plan.stage })
            }
            _ => Step::Done(plan.into()),
        };
        Ok(())
    }

    /// The plan.
    pub(crate) fn done(self) -> Result<ReadyPlan> {
        match self.step {
            Step::Done(plan) => Ok(plan),
            _ => Err(Error::internal("a statement was not planned")),
        }
    }
}

/// Brings a plan as far as every execution can use it.
pub(crate) fn ready(scope: &Scope, plan: LogicalPlan, complete: bool) -> Result<ReadyPlan> {
    let state = scope.state();
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let mut lasting = complete;
    each_function(&plan, &mut |function| lasting &= function.func.signature().volatility == Volatility::Immutable)?;
    if !lasting {
        return Ok(ReadyPlan { plan, stage: Stage::Analyzed });
    }
    let plan = state.optimizer().optimize(plan, state, |_, _| {})?;
    Ok(ReadyPlan { plan, stage: Stage::Optimized })
}

fn each_function(plan: &LogicalPlan, visit: &mut dyn FnMut(&ScalarFunction)) -> DataFusionResult<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(function) = expr {
                    visit(function);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

/// A plan without the state of its tables; `None` when it holds something that cannot be opened again.
fn detach(plan: LogicalPlan) -> Result<Option<LogicalPlan>> {
    let mut lasting = true;
    let plan = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
        let provider = source_as_provider(&scan.source)?;
        if let Some(table) = provider.downcast_ref::<LatticeTable>() {
            let source = Arc::new(Unread::new(table.shape().clone()));
            return Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan })));
        }
        lasting &= crate::functions::is_series(provider.as_ref())
            || provider.is::<datafusion::datasource::cte_worktable::CteWorkTable>();
        Ok(Transformed::no(LogicalPlan::TableScan(scan)))
    })?;
    Ok(lasting.then_some(plan.data))
}

/// Opens a kept plan's tables where the scope reads, and puts the values in.
fn open(scope: &Scope, slot: &Slot, kept: ReadyPlan, calls_session: bool) -> Result<ReadyPlan> {
    let opened = kept.plan.transform_up_with_subqueries(|node| {
        let node = match node {
            LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<Unread>() {
                Some(unread) => {
                    let table = LatticeTable::open(unread.shape().clone(), scope.reader.clone())?;
                    Transformed::yes(LogicalPlan::TableScan(TableScan {
                        source: provider_as_source(Arc::new(table)),
                        ..scan
                    }))
                }
                None => Transformed::no(LogicalPlan::TableScan(scan)),
            },
            other => Transformed::no(other),
        };
        if !calls_session {
            return Ok(node);
        }
        node.transform_data(|node| node.map_expressions(|expr| expr.transform_up(|expr| current(scope, expr))))
    })?;
    Ok(ReadyPlan { plan: fill(opened.data, values(scope, slot))?, stage: kept.stage })
}

/// A call of a session function as a call of this execution's.
fn current(scope: &Scope, expr: Expr) -> DataFusionResult<Transformed<Expr>> {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, args }) if is_session_function(func.name()) => {
            let func = scope.state().scalar_functions().get(func.name()).cloned().unwrap_or(func);
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args })))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// The field of a parameter as plans know it. A text that is announced as JSON is a text until it has been read: a plan that took it
/// for JSON would not look at it.
pub(super) fn unproven(field: &FieldRef) -> FieldRef {
    if !is_json(field) {
        return field.clone();
    }
    Arc::new(field.as_ref().clone().with_metadata(HashMap::new()))
}

/// The execution's values with what their announced types say beyond Arrow's.
fn values(scope: &Scope, slot: &Slot) -> Vec<ScalarAndMetadata> {
    let none: Vec<ScalarValue> = Vec::new();
    let values = scope.params.as_deref().unwrap_or(&none);
    values
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let metadata =
                slot.parameters.fields().get(at).map(|field| FieldMetadata::from(unproven(field).metadata().clone()));
            ScalarAndMetadata::new(value.clone(), metadata.filter(|metadata| !metadata.is_empty()))
        })
        .collect()
}

fn fill(plan: LogicalPlan, values: Vec<ScalarAndMetadata>) -> Result<LogicalPlan> {
    if values.is_empty() {
        return Ok(plan);
    }
    Ok(plan.with_param_values(ParamValues::List(values))?)
}
