//! INSERT.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use base::SqlState;
use datafusion::common::DFSchema;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use futures::StreamExt;
use sqlparser::ast;

use super::conflict::Conflict;
use super::{
    Conversion, Returning, TableWriter, Target, Written, assignable, check_assignable, default_of, hint, run_plan,
};
use crate::catalog::TableEntry;
use crate::parse::statement as st;
use crate::plan::{Binder, Overrides, Planning, Scope, identifier, qualified, select, table_factor};
use crate::session::learn;
use crate::{Error, Result};

/// Which columns the statement gives, as places in the visible order.
fn given(table: &TableEntry, insert: &st::Insert, width: Option<usize>) -> Result<Vec<usize>> {
    let place = |at: usize| table.visible.iter().position(|&visible| visible == at).unwrap_or(0);
    if insert.columns.is_empty() {
        let width = width.unwrap_or(table.visible.len());
        if width > table.visible.len() {
            return Err(Error::syntax("INSERT has more expressions than target columns"));
        }
        return Ok((0..width).collect());
    }
    let mut places = Vec::with_capacity(insert.columns.len());
    for name in &insert.columns {
        let at = place(assignable(table, name)?);
        if places.contains(&at) {
            return Err(Error::state(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", table.arrow.field(at).name()),
            ));
        }
        places.push(at);
    }
    match width {
        Some(width) if width > places.len() => Err(Error::syntax("INSERT has more expressions than target columns")),
        Some(width) if width < places.len() => Err(Error::syntax("INSERT has more target columns than expressions")),
        _ => Ok(places),
    }
}

fn generated_always(table: &TableEntry, place: usize) -> Error {
    let name = table.arrow.field(place).name();
    Error::state(
        SqlState([b'4', b'2', b'8', b'C', b'9']),
        format!("cannot insert a non-DEFAULT value into column \"{name}\""),
    )
    .with_detail(format!("Column \"{name}\" is an identity column defined as GENERATED ALWAYS or a generated column."))
    .with_hint("use OVERRIDING SYSTEM VALUE to override")
}

/// What becomes of a value given for a column.
fn accept(table: &TableEntry, insert: &st::Insert, place: usize) -> Result<bool> {
    let column = &table.def.columns[table.visible[place]];
    if column.generated.is_some() {
        return Err(generated_always(table, place));
    }
    if let Some(identity) = &column.identity {
        if insert.overriding == Some(st::Overriding::User) {
            return Ok(false);
        }
        if identity.always && insert.overriding != Some(st::Overriding::System) {
            return Err(generated_always(table, place));
        }
    }
    Ok(true)
}

/// The rows of `VALUES`, if that is all the source is.
pub(super) fn rows_of(source: &st::InsertSource) -> Option<Vec<&Vec<ast::Expr>>> {
    let st::InsertSource::Query(query) = source else {
        return None;
    };
    match query.body.as_ref() {
        ast::SetExpr::Values(values)
            if query.with.is_none()
                && query.order_by.is_none()
                && query.limit_clause.is_none()
                && query.fetch.is_none() =>
        {
            Some(values.rows.iter().map(|row| &row.content).collect())
        }
        _ => None,
    }
}

/// `VALUES` with every cell of its column's type, one column per visible column, DEFAULT written out.
fn typed_values(
    table: &TableEntry,
    insert: &st::Insert,
    rows: &[&Vec<ast::Expr>],
    known: &mut [Option<FieldRef>],
) -> Result<ast::Query> {
    let width = rows.first().map_or(0, |row| row.len());
    if rows.iter().any(|row| row.len() != width) {
        return Err(Error::syntax("VALUES lists must all be the same length"));
    }
    let places = given(table, insert, Some(width))?;
    let conversions = table.visible.iter().map(|&at| Conversion::of(&table.types[at])).collect::<Result<Vec<_>>>()?;
    let defaults = table.visible.iter().map(|&at| default_of(&table.def.columns[at])).collect::<Result<Vec<_>>>()?;
    let mut typed = Vec::with_capacity(rows.len());
    for row in rows {
        let mut cells = defaults.clone();
        for (cell, &place) in row.iter().zip(&places) {
            if crate::parse::is_default(cell) || !accept(table, insert, place)? {
                continue;
            }
            let at = table.visible[place];
            hint(known, cell, &table.types[at].field_ref(table.arrow.field(place).name()));
            cells[place] = cell.clone();
        }
        let cells = cells
            .into_iter()
            .zip(&conversions)
            .map(|(cell, conversion)| conversion.apply(cell))
            .collect::<Result<Vec<_>>>()?;
        typed.push(cells);
    }
    let mut query = crate::plan::parse_query("VALUES (1)")?;
    if let ast::SetExpr::Values(values) = query.body.as_mut() {
        let template = values.rows.remove(0);
        values.rows = typed
            .into_iter()
            .map(|content| {
                let mut row = template.clone();
                row.content = content;
                row
            })
            .collect();
    }
    Ok(query)
}

/// The new rows as a plan: one column per visible column, of its type, in order.
async fn source(
    scope: &Scope,
    insert: &st::Insert,
    table: &TableEntry,
    overrides: Overrides,
    known: &mut [Option<FieldRef>],
) -> Result<LogicalPlan> {
    let one_row: Vec<ast::Expr> = Vec::new();
    let rows = match &insert.source {
        st::InsertSource::DefaultValues => Some(vec![&one_row]),
        _ => rows_of(&insert.source),
    };
    if let Some(rows) = rows {
        let query = typed_values(table, insert, &rows, known)?;
        let scope = with_known(scope, known);
        let mut query = query;
        query.with = insert.with.clone();
        let binder = Binder::for_query(&scope, &mut query, overrides, false).await?;
        let plan = binder.query(query)?;
        learn(&plan, known)?;
        check_cells(table, &plan)?;
        return Ok(plan);
    }
    let st::InsertSource::Query(query) = &insert.source else {
        return Err(Error::internal("an INSERT without source"));
    };
    let mut query = query.as_ref().clone();
    if query.with.is_none() {
        query.with = insert.with.clone();
    }
    let scope = with_known(scope, known);
    let binder = Binder::for_query(&scope, &mut query, overrides, false).await?;
    let plan = binder.query(query)?;
    learn(&plan, known)?;
    project(&binder, insert, table, plan)
}

/// Checks the types of the cells of VALUES, which are inside their casts: rows of literals, or one row of expressions over a table of
/// parameters.
fn check_cells(table: &TableEntry, plan: &LogicalPlan) -> Result<()> {
    let (rows, schema) = match plan {
        LogicalPlan::Values(values) => (values.values.as_slice(), Arc::new(DFSchema::empty())),
        LogicalPlan::Projection(projection) => {
            (std::slice::from_ref(&projection.expr), projection.input.schema().clone())
        }
        _ => return Ok(()),
    };
    for row in rows {
        for (cell, &at) in row.iter().zip(&table.visible) {
            let cell = if let Expr::Alias(alias) = cell { alias.expr.as_ref() } else { cell };
            if let Expr::Cast(cast) = cell {
                if let Ok(data_type) = cast.expr.get_type(&schema) {
                    check_assignable(table, at, &data_type)?;
                }
            }
        }
    }
    Ok(())
}

/// Casts a query's columns to the columns they are for and adds defaults.
fn project(binder: &Binder, insert: &st::Insert, table: &TableEntry, plan: LogicalPlan) -> Result<LogicalPlan> {
    let columns = plan.schema().columns();
    let places = given(table, insert, Some(columns.len()))?;
    let empty = DFSchema::empty();
    let mut exprs = Vec::with_capacity(table.visible.len());
    for (place, &at) in table.visible.iter().enumerate() {
        let column = &table.def.columns[at];
        let from = places.iter().position(|&given| given == place);
        let from = match from {
            Some(from) if accept(table, insert, place)? => Some(from),
            _ => None,
        };
        let value = match from {
            Some(from) => {
                check_assignable(table, at, plan.schema().field(from).data_type())?;
                Expr::Column(columns[from].clone())
            }
            None => binder.expr(default_of(column)?, &empty)?,
        };
        let field = table.types[at].field_ref(&column.name);
        exprs.push(Expr::Cast(Cast::new_from_field(Box::new(value), field)).alias(&column.name));
    }
    Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
}

fn with_known(scope: &Scope, known: &[Option<FieldRef>]) -> Scope {
    if scope.params.is_some() || known.is_empty() {
        return scope.clone();
    }
    Scope { param_types: Arc::new(known.to_vec()), ..scope.clone() }
}

/// Parameter types, and the schema of RETURNING.
pub(crate) async fn types(
    scope: &Scope,
    insert: &st::Insert,
    known: &mut [Option<FieldRef>],
) -> Result<Option<SchemaRef>> {
    let target = Target::named(scope, &insert.table, insert.alias.clone())?;
    source(scope, insert, &target.table, Overrides::default(), known).await?;
    if let Some(on_conflict) = &insert.on_conflict {
        super::conflict::types(scope, &target, on_conflict, known)?;
    }
    Returning::new(&insert.returning, &target).types(&with_known(scope, known), known).await
}

/// Runs it.
pub(crate) async fn run(scope: &Scope, insert: &st::Insert) -> Result<Written> {
    scope.writing()?;
    let target = Target::named(scope, &insert.table, insert.alias.clone())?;
    prefill(scope, insert, &target.table).await?;
    if let Some(columns) = super::literals::columns(scope, insert, &target.table, &given).await? {
        let rows = columns.first().map_or(0, |array| array.len());
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = nullable(&target.table.arrow);
        let batch = RecordBatch::try_new_with_options(schema, columns, &options)?;
        return write(scope, insert, &target, futures::stream::iter([Ok(batch)]).boxed()).await;
    }
    let mut planning = Planning::of(scope)?;
    while let Some(inner) = planning.wants() {
        planning.give(source(&inner, insert, &target.table, Overrides::default(), &mut []).await?)?;
    }
    let stream = run_plan(scope, planning.done()?).await?;
    write(scope, insert, &target, stream).await
}

fn nullable(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(
        schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    ))
}

/// Identity values are reserved before the plan runs: functions inside a plan cannot always wait.
async fn prefill(scope: &Scope, insert: &st::Insert, table: &TableEntry) -> Result<()> {
    let count = rows_of(&insert.source).map_or(1, |rows| rows.len()) as u64;
    for (_, column) in table.def.live() {
        if let Some(identity) = &column.identity {
            if let Some(crate::catalog::Relation::Sequence(sequence)) = scope.catalog.relation_by_id(identity.sequence)
            {
                scope.engine().sequences.prefill(&scope.engine().store, sequence, count).await?;
            }
        }
    }
    Ok(())
}

/// One statement for many sets of parameters: the parameters become a table. `None` when the statement's shape needs the
/// executions one by one.
pub(crate) async fn run_batch(
    scope: &Scope,
    insert: &st::Insert,
    params: &[(FieldRef, ArrayRef)],
) -> Result<Option<Written>> {
    let Some(rows) = rows_of(&insert.source) else {
        return Ok(None);
    };
    if rows.len() != 1 || insert.on_conflict.is_some() || insert.with.is_some() || params.is_empty() {
        return Ok(None);
    }
    scope.writing()?;
    let target = Target::named(scope, &insert.table, insert.alias.clone())?;
    let count = params[0].1.len();
    for (_, column) in target.table.def.live() {
        if let Some(identity) = &column.identity {
            if let Some(crate::catalog::Relation::Sequence(sequence)) = scope.catalog.relation_by_id(identity.sequence)
            {
                scope.engine().sequences.prefill(&scope.engine().store, sequence, count as u64).await?;
            }
        }
    }
    let fields: Vec<FieldRef> = params.iter().map(|(field, _)| field.clone()).collect();
    let batch =
        RecordBatch::try_new(Arc::new(Schema::new(fields)), params.iter().map(|(_, array)| array.clone()).collect())?;
    let table = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
    let name = identifier("__parameters");
    let typed = typed_values(&target.table, insert, &rows, &mut [])?;
    let ast::SetExpr::Values(values) = typed.body.as_ref() else {
        return Ok(None);
    };
    let items = values.rows[0]
        .content
        .iter()
        .zip(target.table.arrow.fields())
        .map(|(cell, field)| {
            let mut cell = cell.clone();
            let _ = ast::visit_expressions_mut(&mut cell, |expr| {
                if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Placeholder(parameter), .. }) = expr {
                    *expr = qualified(&name, parameter);
                }
                std::ops::ControlFlow::<()>::Continue(())
            });
            crate::plan::item(cell, field.name())
        })
        .collect();
    let from =
        ast::TableWithJoins { relation: table_factor(ast::ObjectName::from(vec![name]), None), joins: Vec::new() };
    let mut query = select(None, items, vec![from], None);
    let overrides = Overrides::from([("__parameters".to_owned(), Arc::new(table) as Arc<_>)]);
    let binder = Binder::for_query(scope, &mut query, overrides, false).await?;
    let plan = binder.query(query)?;
    check_cells(&target.table, &plan)?;
    let stream = run_plan(scope, plan).await?;
    Ok(Some(write(scope, insert, &target, stream).await?))
}

async fn write(
    scope: &Scope,
    insert: &st::Insert,
    target: &Target,
    mut stream: crate::door::BatchStream,
) -> Result<Written> {
    let mut returning = Returning::new(&insert.returning, target);
    returning.plan(scope).await?;
    let mut conflict = match &insert.on_conflict {
        Some(on_conflict) => Some(Conflict::new(scope, target, on_conflict)?),
        None => None,
    };
    let mut writer = TableWriter::new(scope, &target.table, conflict.is_some()).await?;
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        match &mut conflict {
            Some(conflict) => {
                for stored in conflict.insert(&mut writer, batch.columns()).await? {
                    count += stored.first().map_or(0, |array| array.len()) as u64;
                    returning.keep(&stored, Vec::new())?;
                }
            }
            None => {
                let stored = writer.insert(batch.columns()).await?;
                count += batch.num_rows() as u64;
                returning.keep(&stored, Vec::new())?;
            }
        }
    }
    writer.finish().await?;
    Ok(Written { tag: "INSERT", rows: count, returned: returning.rows(scope).await? })
}

/// Inserts the rows of a plan into a table, for CREATE TABLE AS. The plan's columns fit the visible ones.
pub(crate) async fn insert_plan(scope: &Scope, table: &Arc<TableEntry>, plan: LogicalPlan) -> Result<u64> {
    let mut stream = run_plan(scope, plan).await?;
    let mut writer = TableWriter::new(scope, table, false).await?;
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        count += batch.num_rows() as u64;
        let columns = batch
            .columns()
            .iter()
            .zip(table.arrow.fields())
            .map(|(array, field)| {
                if array.data_type() == field.data_type() {
                    Ok(array.clone())
                } else {
                    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
                    Ok(arrow::compute::cast_with_options(array, field.data_type(), &options)?)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        writer.insert(&columns).await?;
    }
    writer.finish().await?;
    Ok(count)
}

/// The plan of the source, for EXPLAIN.
pub(crate) async fn explain(scope: &Scope, insert: &st::Insert) -> Result<LogicalPlan> {
    let target = Target::named(scope, &insert.table, insert.alias.clone())?;
    source(scope, insert, &target.table, Overrides::default(), &mut []).await
}
