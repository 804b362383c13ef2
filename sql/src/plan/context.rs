//! What a statement sees, and the name resolution over it.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, SchemaRef};
use base::{CommitTs, SqlState};
use chrono::{DateTime, Utc};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{TableFunctionArgs, TableProvider};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Column, DFSchema, ParamValues, ScalarValue, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner};
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, Expr, ExprSchemable, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource,
    Volatility, WindowUDF,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::planner::{NullOrdering, ParserOptions, PlannerContext, SqlToRel};
use sqlparser::ast::{self, Visit, VisitMut, Visitor, VisitorMut};

use super::cache::{Notes, Slot};
use super::functions::{FunctionScope, session_functions};
use super::relation::{TimeTravel, system_time};
use super::{fold, views};
use crate::catalog::{
    Catalog, FIRST_SESSION_SCHEMA, Object, ObjectId, PG_CATALOG, Relation, TableEntry, View, ViewRead,
    information_schema, is_virtual_schema,
};
use crate::engine::EngineInner;
use crate::progress::Progress;
use crate::scan::{HIDDEN, LatticeTable};
use crate::session::SessionInner;
use crate::transaction::{Reader, Txn};
use crate::{Error, Result};

/// Views inside views, at most.
const VIEW_DEPTH_MAX: usize = 32;

/// Tables that stand in for names, such as the rows a statement just wrote.
pub(crate) type Overrides = HashMap<String, Arc<dyn TableProvider>>;

/// What one statement works with.
#[derive(Clone)]
pub(crate) struct Scope {
    pub(crate) session: Arc<SessionInner>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) reader: Reader,
    /// The transaction that may be written to.
    pub(crate) txn: Option<Arc<Txn>>,
    /// Where names without a schema are looked up, in order.
    pub(crate) path: Vec<String>,
    /// DataFusion's state for this statement, made when something is planned.
    pub(crate) lazy: Arc<LazyState>,
    pub(crate) now: DateTime<Utc>,
    /// Values of `$1 …`, absent while preparing.
    pub(crate) params: Option<Arc<Vec<ScalarValue>>>,
    /// Types of `$1 …` as far as they are known.
    pub(crate) param_types: Arc<Vec<Option<FieldRef>>>,
    /// What the scans of the statement report to.
    pub(crate) progress: Arc<Progress>,
    /// Where a prepared statement keeps its plan.
    pub(crate) slot: Option<Arc<Slot>>,
    /// What planning finds out.
    pub(crate) notes: Arc<Notes>,
}

/// DataFusion's state for one statement: cloning it costs more than a point statement takes, so it waits until it is needed.
#[derive(Default)]
pub(crate) struct LazyState {
    cell: std::sync::OnceLock<SessionState>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl Scope {
    pub(crate) fn engine(&self) -> &Arc<EngineInner> {
        &self.session.engine
    }

    /// The transaction, for statements that write.
    pub(crate) fn writing(&self) -> Result<&Arc<Txn>> {
        let txn = self.txn.as_ref().ok_or_else(|| Error::internal("a writing statement has no transaction"))?;
        if txn.is_read_only() {
            return Err(Error::state(
                SqlState::READ_ONLY_TRANSACTION,
                "cannot execute a writing statement in a read-only transaction",
            ));
        }
        Ok(txn)
    }

    /// DataFusion's state for this statement.
    pub(crate) fn state(&self) -> &SessionState {
        self.lazy.cell.get_or_init(|| {
            let functions = FunctionScope {
                session: self.session.clone(),
                catalog: self.catalog.clone(),
                path: self.full_path(),
                snapshot: self.reader.ts().0,
            };
            let mut state = self.session.engine.base.clone();
            state.mark_start_execution();
            state.execution_props_mut().query_execution_start_time = Some(self.now);
            state.config_mut().set_extension(self.progress.clone());
            for function in session_functions(&functions) {
                if let Err(error) = state.register_udf(Arc::new(function)) {
                    tracing::error!(%error, "a session function cannot be registered");
                }
            }
            state
        })
    }

    /// The same scope after definitions changed in the transaction.
    pub(crate) fn with_catalog(&self, catalog: Arc<Catalog>) -> Self {
        Self { catalog, lazy: Arc::default(), ..self.clone() }
    }

    /// Whether a relation is temporary, whichever session's.
    pub(crate) fn is_temporary(&self, id: ObjectId) -> bool {
        let schema = self.catalog.relation_by_id(id).and_then(|relation| self.catalog.object(relation.schema()));
        matches!(schema.map(AsRef::as_ref), Some(Object::Schema(schema)) if schema.session.is_some())
    }

    /// Splits a name into schema and object, checking the catalog part.
    pub(crate) fn split_name(&self, name: &ast::ObjectName) -> Result<(Option<String>, String)> {
        let parts: Vec<String> = name
            .0
            .iter()
            .map(|part| part.as_ident().map(fold).ok_or_else(|| Error::syntax(format!("{name} is not a name"))))
            .collect::<Result<_>>()?;
        match parts.as_slice() {
            [name] => Ok((None, name.clone())),
            [schema, name] => Ok((Some(schema.clone()), name.clone())),
            [catalog, schema, name] if catalog == crate::catalog::CATALOG_NAME => {
                Ok((Some(schema.clone()), name.clone()))
            }
            [catalog, _, _] => {
                Err(Error::state(SqlState::INVALID_CATALOG_NAME, format!("database \"{catalog}\" does not exist")))
            }
            _ => Err(Error::syntax(format!("improper qualified name: {name}"))),
        }
    }

    fn temporary_schema(&self) -> String {
        format!("{FIRST_SESSION_SCHEMA}{}", self.session.id)
    }

    /// The path with the session's temporary schema in front.
    pub(crate) fn full_path(&self) -> Vec<String> {
        let mut path = vec![self.temporary_schema()];
        path.extend(self.path.iter().cloned());
        path
    }

    /// Finds a relation; `pg_temp` is the session's own schema.
    pub(crate) fn lookup(&self, schema: Option<&str>, name: &str) -> Option<&Relation> {
        self.lookup_in(&self.catalog, schema, name)
    }

    /// The same in the catalog of another moment.
    fn lookup_in<'a>(&self, catalog: &'a Catalog, schema: Option<&str>, name: &str) -> Option<&'a Relation> {
        let temporary = self.temporary_schema();
        let schema = schema.map(|schema| if schema == "pg_temp" { temporary.as_str() } else { schema });
        catalog.find(schema, name, &self.full_path())
    }

    /// Finds a relation of any kind, or fails as PostgreSQL does.
    pub(crate) fn relation(&self, name: &ast::ObjectName) -> Result<&Relation> {
        let (schema, relation) = self.split_name(name)?;
        if let Some(schema) = schema.as_deref() {
            if is_virtual_schema(schema) {
                return Err(Error::state(
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    format!("permission denied: \"{schema}.{relation}\" is a system view"),
                ));
            }
            if self.catalog.schema(schema).is_none() && schema != "pg_temp" {
                return Err(Error::state(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{schema}\" does not exist")));
            }
        }
        self.lookup(schema.as_deref(), &relation).ok_or_else(|| {
            let shown = schema.map_or_else(|| relation.clone(), |schema| format!("{schema}.{relation}"));
            crate::error::undefined_table(&shown, self.catalog.relations().map(Relation::name))
        })
    }

    /// Finds a table to write to.
    pub(crate) fn table(&self, name: &ast::ObjectName) -> Result<Arc<TableEntry>> {
        match self.relation(name)? {
            Relation::Table(table) => Ok(table.clone()),
            other => Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", other.name()))
                .with_detail(format!("It is a {}.", other.word()))),
        }
    }

    /// The schema new objects go to: (name, id).
    pub(crate) fn creation_schema(&self, schema: Option<&str>) -> Result<u32> {
        let name = match schema {
            Some("pg_temp") => self.temporary_schema(),
            Some(schema) => schema.to_owned(),
            None => {
                self.path.iter().find(|schema| self.catalog.schema(schema).is_some()).cloned().ok_or_else(|| {
                    Error::state(SqlState::INVALID_SCHEMA_NAME, "no schema has been selected to create in")
                })?
            }
        };
        if is_virtual_schema(&name) {
            return Err(Error::state(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied to create in system schema \"{name}\""),
            ));
        }
        self.catalog
            .schema(&name)
            .map(|schema| schema.id)
            .ok_or_else(|| Error::state(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist")))
    }
}

/// Resolves names for DataFusion's planner. One per statement.
#[derive(Clone)]
pub(crate) struct Binder {
    core: Arc<Core>,
    planners: Vec<Arc<dyn RelationPlanner>>,
}

pub(super) struct Core {
    pub(super) scope: Scope,
    /// Moments named by AT, evaluated and pinned before planning: expression text → scope there.
    pub(super) moments: Arc<HashMap<String, (Arc<Catalog>, Reader)>>,
    overrides: Overrides,
    /// What [`ROWS`] stands for.
    pub(super) rows: Option<LogicalPlan>,
    /// System columns can be named.
    hidden: bool,
    /// The view whose query is planned: it says what names mean.
    view: Option<Arc<View>>,
    /// The text of the AS OF that names are looked up under.
    moment: Option<String>,
    depth: usize,
}

/// The name of the rows that RETURNING is about.
pub(crate) const ROWS: &str = "__returning";

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Binder {
    fn from_core(core: Core) -> Self {
        let core = Arc::new(core);
        Self { planners: vec![Arc::new(TimeTravel { core: core.clone() })], core }
    }

    /// A binder for expressions and statements without AT.
    pub(crate) fn plain(scope: &Scope) -> Self {
        Self::with(scope, Overrides::default(), false)
    }

    /// A binder where some names mean given rows.
    pub(crate) fn with(scope: &Scope, overrides: Overrides, hidden: bool) -> Self {
        Self::from_core(Core {
            scope: scope.clone(),
            moments: Arc::default(),
            overrides,
            rows: None,
            hidden,
            view: None,
            moment: None,
            depth: 0,
        })
    }

    /// A binder for a query over given rows, which it calls [`ROWS`].
    pub(crate) async fn for_rows(scope: &Scope, query: &mut ast::Query, rows: LogicalPlan) -> Result<Self> {
        Self::bind(scope, query, Overrides::default(), Some(rows), false).await
    }

    /// A binder for a query: pins the moments it names. `hidden` exposes system columns in any case.
    pub(crate) async fn for_query(
        scope: &Scope,
        query: &mut ast::Query,
        overrides: Overrides,
        hidden: bool,
    ) -> Result<Self> {
        Self::bind(scope, query, overrides, None, hidden).await
    }

    async fn bind(
        scope: &Scope,
        query: &mut ast::Query,
        overrides: Overrides,
        rows: Option<LogicalPlan>,
        hidden: bool,
    ) -> Result<Self> {
        let mut seen = Seen::default();
        seen.query(scope, query)?;
        let hidden = hidden || seen.hidden;
        if !seen.moments.is_empty() {
            scope.notes.single();
        }
        let mut moments = HashMap::new();
        for (text, expr) in seen.moments {
            let ts = moment(scope, expr)?;
            let store = &scope.engine().store;
            let snapshot = match ts {
                Some(ts) => store.snapshot_at(ts).await.map_err(unreadable)?,
                None => store.snapshot(),
            };
            let catalog = scope.engine().catalog.of(store, &snapshot).await?;
            moments.insert(text, (catalog, Reader::Snapshot(snapshot)));
        }
        let binder = Self::from_core(Core {
            scope: scope.clone(),
            moments: Arc::new(moments),
            overrides,
            rows,
            hidden,
            view: None,
            moment: None,
            depth: 0,
        });
        binder.prepare(query)?;
        Ok(binder)
    }

    /// Brings a query into the form that DataFusion plans as PostgreSQL would.
    fn prepare(&self, query: &mut ast::Query) -> Result<()> {
        super::merged::prepare(query, &|name| self.visible(name))?;
        if self.core.hidden {
            expand_wildcards(self, query)?;
        }
        super::names::prepare(query, &|name| self.visible(name));
        Ok(())
    }

    /// The visible columns of a table by name; `None` for anything else.
    fn visible(&self, name: &ast::ObjectName) -> Option<Vec<String>> {
        let (schema, table) = self.core.scope.split_name(name).ok()?;
        match self.core.find(schema.as_deref(), &table, None)? {
            (Relation::Table(_) | Relation::View(_), Some(columns)) => Some(columns.to_vec()),
            (relation @ (Relation::Table(_) | Relation::View(_)), None) => Some(views::columns(relation)),
            _ => None,
        }
    }

    /// What the names of a query mean here, for a view to keep.
    pub(crate) fn reads(&self, query: &ast::Query) -> Vec<ViewRead> {
        views::reads(&self.core, query)
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.core.scope
    }

    /// DataFusion's planner over this binder.
    pub(crate) fn planner(&self) -> SqlToRel<'_, Self> {
        SqlToRel::new_with_options(self, parser_options())
    }

    /// A planner context that knows the parameter types.
    pub(crate) fn planner_context(&self) -> PlannerContext {
        let types =
            self.core.scope.param_types.iter().map(|field| field.as_ref().map(super::cache::unproven)).collect();
        PlannerContext::new().with_prepare_param_data_types(types)
    }

    /// Plans a query. Parameters stay placeholders unless the scope has their values.
    pub(crate) fn query(&self, query: ast::Query) -> Result<LogicalPlan> {
        let plan = self
            .planner()
            .sql_statement_to_plan_with_context(ast::Statement::Query(Box::new(query)), &mut self.planner_context())?;
        match &self.core.scope.params {
            Some(params) if !params.is_empty() => {
                Ok(plan.with_param_values(ParamValues::from(params.as_ref().clone()))?)
            }
            _ => Ok(plan),
        }
    }

    /// Plans one expression over a row.
    pub(crate) fn expr(&self, expr: ast::Expr, schema: &DFSchema) -> Result<Expr> {
        let planned = self.planner().sql_to_expr(expr, schema, &mut self.planner_context())?;
        match &self.core.scope.params {
            Some(params) => Ok(fill(planned, params)?),
            None => Ok(planned),
        }
    }

    /// Evaluates an expression that reads nothing.
    pub(crate) fn constant(&self, expr: ast::Expr) -> Result<ScalarValue> {
        let schema = DFSchema::empty();
        let planned = self.expr(expr, &schema)?;
        let state = self.core.scope.state();
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(state.config_options()))
            .with_query_execution_start_time(Some(self.core.scope.now))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let simple = simplifier.simplify(simplifier.coerce(planned, &schema)?)?;
        if let Expr::Literal(value, _) = simple {
            return Ok(value);
        }
        let physical = state.create_physical_expr(simple, &schema)?;
        let one = arrow::array::RecordBatch::try_new_with_options(
            Arc::new(arrow::datatypes::Schema::empty()),
            vec![],
            &arrow::array::RecordBatchOptions::new().with_row_count(Some(1)),
        )?;
        Ok(match physical.evaluate(&one)? {
            datafusion::logical_expr::ColumnarValue::Scalar(value) => value,
            datafusion::logical_expr::ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0)?,
        })
    }
}

/// A moment as PostgreSQL prints it.
fn shown(at: CommitTs) -> String {
    DateTime::from_timestamp_micros(at.0)
        .map_or_else(|| at.to_string(), |moment| moment.format("%Y-%m-%d %H:%M:%S%.f+00").to_string())
}

/// Why a moment cannot be read.
fn unreadable(error: storage::Error) -> Error {
    let message = match &error {
        storage::Error::FutureTime { requested } => format!("system time {} lies in the future", shown(*requested)),
        storage::Error::ExpiredTime { requested, oldest } => {
            format!(
                "system time {} lies before the history kept, which begins at {}",
                shown(*requested),
                shown(*oldest)
            )
        }
        _ => return Error::classified(error),
    };
    Error { message, ..Error::classified(error) }
}

/// Replaces placeholders by values.
fn fill(expr: Expr, params: &[ScalarValue]) -> DataFusionResult<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    expr.transform_up(|expr| match &expr {
        Expr::Placeholder(placeholder) => {
            let value =
                placeholder.id[1..].parse::<usize>().ok().and_then(|at| params.get(at.checked_sub(1)?)).ok_or_else(
                    || {
                        DataFusionError::from(Error::state(
                            SqlState::UNDEFINED_PARAMETER,
                            format!("there is no parameter {}", placeholder.id),
                        ))
                    },
                )?;
            Ok(Transformed::yes(Expr::Literal(value.clone(), None)))
        }
        _ => Ok(Transformed::no(expr)),
    })
    .map(|transformed| transformed.data)
}

/// Whether an argument has the same value in every execution.
fn is_lasting(arg: &Expr) -> DataFusionResult<bool> {
    use datafusion::common::tree_node::TreeNode;
    let passing = arg.exists(|expr| {
        Ok(match expr {
            Expr::Placeholder(_) => true,
            Expr::ScalarFunction(function) => function.func.signature().volatility != Volatility::Immutable,
            _ => false,
        })
    })?;
    Ok(!passing)
}

/// What a series wants at a place where a parameter stands, given the types of its other arguments.
fn expected(at: usize, types: &[Option<DataType>]) -> DataType {
    let end = types.iter().take(2).flatten().next();
    let moments = end.is_some_and(DataType::is_temporal);
    match end {
        Some(end) if at < 2 => end.clone(),
        Some(_) if moments => DataType::Interval(IntervalUnit::MonthDayNano),
        _ => DataType::Int64,
    }
}

/// While preparing, a table function's parameter is NULL of its type, which is noted because the plan does not show it.
fn stand_in(expr: Expr, data_type: &DataType, scope: &Scope) -> DataFusionResult<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    expr.transform_up(|expr| match &expr {
        Expr::Placeholder(placeholder) => {
            let field = match &placeholder.field {
                Some(field) => field.clone(),
                None => Arc::new(Field::new(&placeholder.id, data_type.clone(), true)),
            };
            if let Some(at) = placeholder.id[1..].parse::<usize>().ok().and_then(|at| at.checked_sub(1)) {
                scope.notes.learn(at, field.clone());
            }
            Ok(Transformed::yes(Expr::Literal(ScalarValue::try_from(field.data_type())?, None)))
        }
        _ => Ok(Transformed::no(expr)),
    })
    .map(|transformed| transformed.data)
}

pub(super) fn parser_options() -> ParserOptions {
    ParserOptions::new()
        .with_parse_float_as_decimal(true)
        .with_enable_ident_normalization(true)
        .with_support_varchar_with_length(true)
        .with_map_string_types_to_utf8view(false)
        .with_default_null_ordering(NullOrdering::NullsMax)
}

/// Evaluates the moment of an AT; `None` while its parameters are unknown.
fn moment(scope: &Scope, expr: ast::Expr) -> Result<Option<CommitTs>> {
    if scope.params.is_none() && has_placeholder(&expr) {
        if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Placeholder(name), .. }) = &expr
            && let Some(at) = name.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1))
        {
            let utc = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some(Arc::from("UTC")));
            scope.notes.learn(at, Arc::new(Field::new(name, utc, true)));
        }
        return Ok(None);
    }
    let value = Binder::plain(scope).constant(expr)?;
    let wrong = || Error::state(SqlState::INVALID_DATETIME, format!("{value} is not a moment in time"));
    if value.is_null() {
        return Err(wrong());
    }
    let micros = match &value {
        ScalarValue::Int64(Some(ts)) => *ts,
        _ => {
            let utc = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some(Arc::from("UTC")));
            match value.cast_to(&utc).map_err(|_| wrong())? {
                ScalarValue::TimestampMicrosecond(Some(micros), _) => micros,
                _ => return Err(wrong()),
            }
        }
    };
    Ok(Some(CommitTs(micros)))
}

fn has_placeholder(expr: &ast::Expr) -> bool {
    ast::visit_expressions(expr, |expr| match expr {
        ast::Expr::Value(value) if matches!(value.value, ast::Value::Placeholder(_)) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

/// What a query mentions that must be known before planning.
#[derive(Default)]
struct Seen {
    moments: Vec<(String, ast::Expr)>,
    /// Names of tables, with the text of their AS OF.
    names: Vec<(ast::ObjectName, Option<String>)>,
    hidden: bool,
    error: Option<Error>,
    views: Vec<u32>,
}

impl Visitor for Seen {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &ast::TableFactor) -> ControlFlow<()> {
        if let ast::TableFactor::Table { name, version, .. } = factor {
            let mut moment = None;
            match version.as_ref().map(system_time) {
                Some(Ok(expr)) => {
                    moment = Some(expr.to_string());
                    self.moments.push((expr.to_string(), expr));
                }
                Some(Err(error)) => {
                    self.error.get_or_insert(error);
                }
                None => {}
            }
            self.names.push((name.clone(), moment));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
        let last = match expr {
            ast::Expr::Identifier(ident) => Some(ident),
            ast::Expr::CompoundIdentifier(idents) => idents.last(),
            _ => None,
        };
        if last.is_some_and(|ident| HIDDEN.contains(&fold(ident).as_str())) {
            self.hidden = true;
        }
        ControlFlow::Continue(())
    }
}

impl Seen {
    /// Visits a query and the views it names.
    fn query(&mut self, scope: &Scope, query: &ast::Query) -> Result<()> {
        self.inside(scope, None, query)
    }

    /// Visits the query of a view, or one that is none.
    fn inside(&mut self, scope: &Scope, view: Option<&View>, query: &ast::Query) -> Result<()> {
        let _ = query.visit(self);
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        for (name, moment) in std::mem::take(&mut self.names) {
            let Ok((schema, name)) = scope.split_name(&name) else { continue };
            let found = match view {
                Some(view) => views::named(view, &scope.catalog, (schema.as_deref(), &name), moment.as_deref())
                    .map(|(relation, _)| relation),
                None => scope.lookup(schema.as_deref(), &name),
            };
            if let Some(Relation::View(view)) = found {
                if !self.views.contains(&view.id) {
                    self.views.push(view.id);
                    // A view's own use of system columns does not expose them to the query.
                    let hidden = self.hidden;
                    let body = scope.catalog.view_query(view)?;
                    self.inside(scope, Some(view), &body)?;
                    self.hidden = hidden;
                }
            }
        }
        Ok(())
    }
}

impl Core {
    /// The same at another moment.
    pub(super) fn at(&self, moment: String, catalog: Arc<Catalog>, reader: Reader) -> Core {
        Core {
            scope: Scope { catalog, reader, ..self.scope.clone() },
            moments: self.moments.clone(),
            overrides: Overrides::default(),
            rows: None,
            hidden: self.hidden,
            view: self.view.clone(),
            moment: Some(moment),
            depth: self.depth,
        }
    }

    /// Finds a relation by name, at the moment with this text or at the query's own. The columns are given when a view says that
    /// there are no others.
    pub(super) fn find(
        &self,
        schema: Option<&str>,
        name: &str,
        moment: Option<&str>,
    ) -> Option<(&Relation, Option<&[String]>)> {
        let catalog = match moment {
            // A core at a moment has the catalog of that moment.
            Some(text) if self.moment.as_deref() != Some(text) => &self.moments.get(text)?.0,
            _ => &self.scope.catalog,
        };
        match &self.view {
            Some(view) => views::named(view, catalog, (schema, name), moment),
            None => self.scope.lookup_in(catalog, schema, name).map(|relation| (relation, None)),
        }
    }

    /// Finds what a name means.
    pub(super) fn source(&self, reference: &TableReference) -> Result<Arc<dyn TableSource>> {
        let name = reference.table();
        if reference.schema().is_none() {
            if let Some(table) = self.overrides.get(name) {
                return Ok(provider_as_source(table.clone()));
            }
        }
        if let Some(catalog) = reference.catalog() {
            if catalog != crate::catalog::CATALOG_NAME {
                return Err(Error::state(
                    SqlState::INVALID_CATALOG_NAME,
                    format!("database \"{catalog}\" does not exist"),
                ));
            }
        }
        if let Some(schema) = reference.schema() {
            if is_virtual_schema(schema) {
                let table = information_schema::provider(&self.scope, schema, name)?.ok_or_else(|| {
                    crate::error::undefined_table(&format!("{schema}.{name}"), information_schema::names(schema))
                })?;
                self.scope.notes.single();
                return Ok(provider_as_source(table));
            }
        }
        match self.find(reference.schema(), name, self.moment.as_deref()) {
            Some((Relation::Table(table), only)) => {
                let table = LatticeTable::new(table.clone(), self.scope.reader.clone(), self.hidden, only)?;
                Ok(provider_as_source(Arc::new(table)))
            }
            Some((Relation::View(view), only)) => {
                let plan = self.view(view, only.unwrap_or(view.columns.as_slice()))?;
                Ok(provider_as_source(Arc::new(ViewTable::new(plan, Some(view.query.clone())))))
            }
            Some((Relation::Sequence(sequence), _)) => {
                self.scope.notes.single();
                Ok(provider_as_source(information_schema::sequence(&self.scope, sequence)?))
            }
            Some((Relation::Index(index), _)) => {
                Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is an index", index.def.name)))
            }
            None => {
                if reference.schema().is_none() {
                    self.scope.notes.single();
                    // Names of the system catalog need no schema, as in PostgreSQL.
                    if let Some(table) = information_schema::provider(&self.scope, PG_CATALOG, name)? {
                        return Ok(provider_as_source(table));
                    }
                    for schema in self.scope.path.iter().filter(|schema| is_virtual_schema(schema)) {
                        if let Some(table) = information_schema::provider(&self.scope, schema, name)? {
                            return Ok(provider_as_source(table));
                        }
                    }
                }
                if self.moment.is_some() {
                    let at = shown(self.scope.reader.ts());
                    return Err(Error::state(
                        SqlState::UNDEFINED_TABLE,
                        format!("table \"{reference}\" did not exist at {at}"),
                    ));
                }
                let candidates: Vec<&str> = self.scope.catalog.relations().map(Relation::name).collect();
                Err(crate::error::undefined_table(&reference.to_string(), candidates))
            }
        }
    }

    /// A view's plan with its column names, those of `only`.
    fn view(&self, view: &Arc<View>, only: &[String]) -> Result<LogicalPlan> {
        if self.depth >= VIEW_DEPTH_MAX {
            return Err(Error::state(
                SqlState::STATEMENT_TOO_COMPLEX,
                format!("views nest deeper than {VIEW_DEPTH_MAX} at \"{}\"", view.name),
            ));
        }
        let mut query = self.scope.catalog.view_query(view)?.as_ref().clone();
        let scope = Scope { path: view.path.clone(), params: None, param_types: Arc::default(), ..self.scope.clone() };
        let mut seen = Seen::default();
        let _ = query.visit(&mut seen);
        let binder = Binder::from_core(Core {
            scope,
            moments: self.moments.clone(),
            overrides: Overrides::default(),
            rows: None,
            hidden: seen.hidden,
            view: Some(view.clone()),
            moment: None,
            depth: self.depth + 1,
        });
        binder.prepare(&mut query)?;
        let plan = binder.query(query)?;
        let output = output_of(view, &plan)?;
        let renamed = output
            .into_iter()
            .zip(&view.columns)
            .filter(|(_, name)| only.contains(name))
            .map(|(column, name)| Expr::Column(column).alias(name));
        Ok(LogicalPlanBuilder::from(plan).project(renamed.collect::<Vec<_>>())?.build()?)
    }
}

/// The columns of a view's query that are the view's, in the view's order.
fn output_of(view: &View, plan: &LogicalPlan) -> Result<Vec<Column>> {
    let columns = plan.schema().columns();
    if columns.len() == view.columns.len() {
        return Ok(columns);
    }
    // Only a view that does not know which columns its tables had can be here: a `*` in its query stands for more by now. The
    // columns are those of the names the view has, if it gave none of its own.
    let mut by_name: HashMap<&str, Vec<&Column>> = HashMap::new();
    for column in &columns {
        by_name.entry(super::names::strip(&column.name)).or_default().push(column);
    }
    view.columns
        .iter()
        .map(|name| match by_name.get(name.as_str()).map(Vec::as_slice) {
            Some([column]) => Some((*column).clone()),
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            Error::state(
                SqlState::OBJECT_NOT_IN_STATE,
                format!("view \"{}\" no longer fits the tables it reads", view.name),
            )
            .with_hint("create it again with CREATE OR REPLACE VIEW, with the columns it is to have written out")
        })
}

/// Writes `*` out where system columns are visible, so that it never returns them.
fn expand_wildcards(binder: &Binder, query: &mut ast::Query) -> Result<()> {
    struct Expand<'a> {
        core: &'a Core,
        /// Names that WITH defines anywhere in the query.
        defined: Vec<String>,
        error: Option<Error>,
    }

    impl VisitorMut for Expand<'_> {
        type Break = ();

        fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<()> {
            if let Some(with) = &query.with {
                self.defined.extend(with.cte_tables.iter().map(|cte| fold(&cte.alias.name)));
            }
            ControlFlow::Continue(())
        }

        fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
            if let Err(error) = self.select(select) {
                self.error = Some(error);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }

    impl Expand<'_> {
        fn select(&self, select: &mut ast::Select) -> Result<()> {
            let starred = |item: &ast::SelectItem| {
                matches!(item, ast::SelectItem::Wildcard(_) | ast::SelectItem::QualifiedWildcard(..))
            };
            if !select.projection.iter().any(starred) {
                return Ok(());
            }
            let factors = select.from.iter().flat_map(|from| {
                std::iter::once((&from.relation, None))
                    .chain(from.joins.iter().map(|join| (&join.relation, Some(&join.join_operator))))
            });
            // (qualifier, visible columns or none for derived tables, columns merged by USING)
            let mut relations: Vec<(ast::Ident, Option<Vec<String>>, Vec<String>)> = Vec::new();
            for (factor, join) in factors {
                let merged = match join.and_then(constraint) {
                    Some(ast::JoinConstraint::Using(names)) => names
                        .iter()
                        .filter_map(|name| name.0.last().and_then(|part| part.as_ident()).map(fold))
                        .collect(),
                    Some(ast::JoinConstraint::Natural) => {
                        return Err(Error::unsupported("NATURAL JOIN together with system columns"));
                    }
                    _ => Vec::new(),
                };
                let (name, columns) = match factor {
                    ast::TableFactor::Table { name, alias, args: None, version, .. } => {
                        let last = name.0.last().and_then(|part| part.as_ident()).cloned();
                        let visible = self.visible(name, version.as_ref());
                        (alias.as_ref().map(|alias| alias.name.clone()).or(last), visible)
                    }
                    ast::TableFactor::Table { alias, .. }
                    | ast::TableFactor::Derived { alias, .. }
                    | ast::TableFactor::Function { alias, .. }
                    | ast::TableFactor::UNNEST { alias, .. } => (alias.as_ref().map(|alias| alias.name.clone()), None),
                    _ => (None, None),
                };
                let Some(name) = name else {
                    return Err(Error::unsupported("* over a relation without a name together with system columns"));
                };
                relations.push((name, columns, merged));
            }
            let mut items = Vec::with_capacity(select.projection.len());
            for item in std::mem::take(&mut select.projection) {
                match &item {
                    ast::SelectItem::Wildcard(options) if plain(options) => {
                        for (name, columns, merged) in &relations {
                            push(&mut items, name, columns.as_deref(), merged);
                        }
                    }
                    ast::SelectItem::QualifiedWildcard(
                        ast::SelectItemQualifiedWildcardKind::ObjectName(wanted),
                        options,
                    ) if plain(options) => {
                        let last = wanted.0.last().and_then(|part| part.as_ident()).map(fold);
                        match relations.iter().find(|(name, _, _)| Some(fold(name)) == last) {
                            Some((name, columns, _)) => push(&mut items, name, columns.as_deref(), &[]),
                            None => items.push(item),
                        }
                    }
                    ast::SelectItem::Wildcard(_) | ast::SelectItem::QualifiedWildcard(..) => {
                        return Err(Error::unsupported("* with options together with system columns"));
                    }
                    _ => items.push(item),
                }
            }
            select.projection = items;
            Ok(())
        }

        fn visible(&self, name: &ast::ObjectName, version: Option<&ast::TableVersion>) -> Option<Vec<String>> {
            let (schema, table) = self.core.scope.split_name(name).ok()?;
            if schema.is_none() && (self.defined.contains(&table) || self.core.overrides.contains_key(&table)) {
                return None;
            }
            let moment = version.and_then(|version| system_time(version).ok()).map(|moment| moment.to_string());
            match self.core.find(schema.as_deref(), &table, moment.as_deref())? {
                (Relation::Table(_), Some(columns)) => Some(columns.to_vec()),
                (relation @ Relation::Table(_), None) => Some(views::columns(relation)),
                _ => None,
            }
        }
    }

    fn constraint(join: &ast::JoinOperator) -> Option<&ast::JoinConstraint> {
        use ast::JoinOperator as J;
        match join {
            J::Join(it)
            | J::Inner(it)
            | J::Left(it)
            | J::LeftOuter(it)
            | J::Right(it)
            | J::RightOuter(it)
            | J::FullOuter(it) => Some(it),
            _ => None,
        }
    }

    fn plain(options: &ast::WildcardAdditionalOptions) -> bool {
        options.opt_exclude.is_none()
            && options.opt_except.is_none()
            && options.opt_replace.is_none()
            && options.opt_rename.is_none()
            && options.opt_ilike.is_none()
    }

    fn push(items: &mut Vec<ast::SelectItem>, name: &ast::Ident, columns: Option<&[String]>, merged: &[String]) {
        match columns {
            Some(columns) => items.extend(columns.iter().filter(|column| !merged.contains(column)).map(|column| {
                ast::SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(vec![
                    name.clone(),
                    super::identifier(column),
                ]))
            })),
            None => items.push(ast::SelectItem::QualifiedWildcard(
                ast::SelectItemQualifiedWildcardKind::ObjectName(ast::ObjectName::from(vec![name.clone()])),
                ast::WildcardAdditionalOptions::default(),
            )),
        }
    }

    let mut expand = Expand { core: &binder.core, defined: Vec::new(), error: None };
    let _ = query.visit(&mut expand);
    expand.error.map_or(Ok(()), Err)
}

impl ContextProvider for Binder {
    fn get_table_source(&self, name: TableReference) -> DataFusionResult<Arc<dyn TableSource>> {
        Ok(self.core.source(&name)?)
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> DataFusionResult<Arc<dyn TableSource>> {
        let state = self.core.scope.state();
        let function = state.table_functions().get(&name.to_lowercase()).cloned().ok_or_else(|| {
            DataFusionError::from(crate::error::undefined_function(
                name,
                state.table_functions().keys().map(String::as_str),
            ))
        })?;
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(state.config_options()))
            .with_query_execution_start_time(Some(self.core.scope.now))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let types: Vec<Option<DataType>> = args
            .iter()
            .map(|arg| if matches!(arg, Expr::Placeholder(_)) { None } else { arg.get_type(&schema).ok() })
            .collect();
        let args = args
            .into_iter()
            .enumerate()
            .map(|(at, arg)| {
                // The table is made here, from values: a plan with it is good for this execution.
                if !is_lasting(&arg)? {
                    self.core.scope.notes.single();
                }
                let arg = match &self.core.scope.params {
                    Some(params) => fill(arg, params)?,
                    None => stand_in(arg, &expected(at, &types), &self.core.scope)?,
                };
                simplifier.simplify(simplifier.coerce(arg, &schema)?)
            })
            .collect::<DataFusionResult<Vec<_>>>()?;
        Ok(provider_as_source(function.create_table_provider_with_args(TableFunctionArgs::new(&args, state))?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> DataFusionResult<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(datafusion::datasource::cte_worktable::CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.core.scope.state().expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        super::state::type_planner()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.core.scope.state().scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.core.scope.state().higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.core.scope.state().aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.core.scope.state().window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.core.scope.state().config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.core.scope.state().scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.core.scope.state().higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.core.scope.state().aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.core.scope.state().window_functions().keys().cloned().collect()
    }
}
