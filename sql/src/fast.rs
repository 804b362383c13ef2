//! Point statements without a plan: `SELECT columns FROM t WHERE key = …`, and UPDATE and DELETE of such a row.
//!
//! The shape is matched on the syntax tree. Whatever does not match exactly (another operator, a literal of another kind, an
//! expression in the select list, a view) goes the long way; both ways must answer alike, in their types too. Tests:
//! `the_fast_path_agrees`, `point_queries_are_typed_as_planning_would`.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::RowKey;
use codec::KeyCodec;
use datafusion::common::ScalarValue;
use sqlparser::ast;
use storage::{Locator, ScanSpec};

use crate::catalog::{Relation, TableEntry};
use crate::door::Rows;
use crate::plan::{Binder, RowExpr, Scope, client_schema, fold};
use crate::scan::one_row;
use crate::{Error, Result};

/// A value that stands alone, as a one-row array of a column's type.
fn value(expr: &ast::Expr, params: &[ScalarValue], data_type: &DataType, json: bool) -> Option<ArrayRef> {
    if json {
        return None;
    }
    match expr {
        ast::Expr::Nested(inner) => value(inner, params, data_type, json),
        ast::Expr::Value(literal) => {
            let scalar = match &literal.value {
                ast::Value::Placeholder(name) => {
                    let at = name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?;
                    let value = params.get(at)?;
                    if value.is_null() || value.data_type() != *data_type {
                        return None;
                    }
                    value.clone()
                }
                ast::Value::Number(number, _) => match data_type {
                    DataType::Int16 => ScalarValue::Int16(Some(number.parse().ok()?)),
                    DataType::Int32 => ScalarValue::Int32(Some(number.parse().ok()?)),
                    DataType::Int64 => ScalarValue::Int64(Some(number.parse().ok()?)),
                    _ => return None,
                },
                ast::Value::SingleQuotedString(text) => match data_type {
                    DataType::Utf8 => ScalarValue::Utf8(Some(text.clone())),
                    DataType::FixedSizeBinary(16) => {
                        ScalarValue::FixedSizeBinary(16, Some(uuid::Uuid::parse_str(text).ok()?.as_bytes().to_vec()))
                    }
                    _ => return None,
                },
                _ => return None,
            };
            one_row(&scalar, data_type)
        }
        _ => None,
    }
}

/// The parts of `a AND b AND …`.
fn conjuncts<'a>(expr: &'a ast::Expr, into: &mut Vec<&'a ast::Expr>) {
    match expr {
        ast::Expr::BinaryOp { left, op: ast::BinaryOperator::And, right } => {
            conjuncts(left, into);
            conjuncts(right, into);
        }
        ast::Expr::Nested(inner) => conjuncts(inner, into),
        other => into.push(other),
    }
}

/// The column an expression names, given the table's name in the statement.
fn column(expr: &ast::Expr, table: &TableEntry, alias: &str) -> Option<usize> {
    match expr {
        ast::Expr::Identifier(name) => table.def.position(&fold(name)),
        ast::Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [qualifier, name] if fold(qualifier) == alias => table.def.position(&fold(name)),
            _ => None,
        },
        _ => None,
    }
}

/// The expression that a condition compares each key column with, if it says `key = value` for every key column and nothing
/// else: (position of the column, expression), in key order.
fn compared<'a>(table: &TableEntry, alias: &str, selection: &'a ast::Expr) -> Option<Vec<(usize, &'a ast::Expr)>> {
    table.def.primary_key.as_ref()?;
    let mut parts = Vec::new();
    conjuncts(selection, &mut parts);
    if parts.len() != table.stored.key.len() {
        return None;
    }
    let mut found: Vec<Option<&ast::Expr>> = vec![None; table.stored.key.len()];
    for part in parts {
        let ast::Expr::BinaryOp { left, op: ast::BinaryOperator::Eq, right } = part else {
            return None;
        };
        let (at, other) = match (column(left, table, alias), column(right, table, alias)) {
            (Some(at), None) => (at, right),
            (None, Some(at)) => (at, left),
            _ => return None,
        };
        let place = table.stored.key.iter().position(|&key| key == at)?;
        if found[place].replace(other).is_some() {
            return None;
        }
    }
    table.stored.key.iter().zip(found).map(|(&at, expr)| Some((at, expr?))).collect()
}

fn is_json(table: &TableEntry, at: usize) -> Option<bool> {
    let field = table.arrow.field_with_name(&table.def.columns[at].name).ok()?;
    Some(field.metadata().get(crate::catalog::typing::EXTENSION).is_some_and(|name| name == "arrow.json"))
}

/// The one key that a condition fixes.
pub(crate) fn key(scope: &Scope, table: &TableEntry, alias: &str, selection: &ast::Expr) -> Option<RowKey> {
    let none = Vec::new();
    let params = scope.params.as_deref().unwrap_or(&none);
    let arrays = compared(table, alias, selection)?
        .into_iter()
        .map(|(at, expr)| value(expr, params, table.types[at].data_type(), is_json(table, at)?))
        .collect::<Option<Vec<_>>>()?;
    KeyCodec::new(&table.stored).ok()?.keys_of_columns(&arrays).ok()?.pop()
}

/// The table a factor names, if it is plainly a table.
pub(crate) fn plain_table(scope: &Scope, factor: &ast::TableFactor) -> Option<(Arc<TableEntry>, String)> {
    let ast::TableFactor::Table { name, alias, args: None, version: None, sample: None, .. } = factor else {
        return None;
    };
    if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
        return None;
    }
    let (schema, table) = scope.split_name(name).ok()?;
    match scope.lookup(schema.as_deref(), &table) {
        Some(Relation::Table(entry)) => {
            let alias = alias.as_ref().map_or_else(|| table.clone(), |alias| fold(&alias.name));
            Some((entry.clone(), alias))
        }
        _ => None,
    }
}

/// Runs a point query, or says that it is none.
pub(crate) async fn query(scope: &Scope, query: &ast::Query, announced: Option<&SchemaRef>) -> Result<Option<Rows>> {
    let Some(Point { table, alias, selection, columns }) = matched(scope, query) else {
        return Ok(None);
    };
    let Some(key) = key(scope, &table, &alias, selection) else {
        return Ok(None);
    };
    let schema = result_schema(&table, &columns);
    if announced.is_some_and(|announced| announced != &schema) {
        return Ok(None);
    }
    let view = scope.reader.view(&table.stored)?;
    let mut spec = ScanSpec::new(columns.iter().map(|(at, _)| *at).collect());
    spec.batch_rows = 1;
    let found = view.get(std::slice::from_ref(&key), &spec).await.map_err(Error::classified)?;
    let options = RecordBatchOptions::new().with_row_count(Some(found.num_rows()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), found.columns().to_vec(), &options)?;
    let rows = batch.num_rows();
    Ok(Some(Rows { schema, stream: Box::pin(futures::stream::iter([Ok(batch)])), rows_hint: Some(rows) }))
}

/// The parameters and the result of a point query with `count` parameters, or nothing when it is none. What planning would say.
pub(crate) fn types(scope: &Scope, query: &ast::Query, count: usize) -> Option<(SchemaRef, SchemaRef)> {
    let Point { table, alias, selection, columns } = matched(scope, query)?;
    let mut parameters: Vec<Option<Field>> = vec![None; count];
    for (at, expr) in compared(&table, &alias, selection)? {
        let mut expr = expr;
        while let ast::Expr::Nested(inner) = expr {
            expr = inner;
        }
        let placeholder = match expr {
            ast::Expr::Value(literal) => match &literal.value {
                ast::Value::Placeholder(name) => Some(name),
                _ => None,
            },
            _ => None,
        };
        match placeholder {
            Some(name) => {
                if is_json(&table, at)? {
                    return None;
                }
                let slot = parameters.get_mut(name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?)?;
                // A parameter in two places may have two types, which only planning reconciles.
                if slot.replace(table.types[at].field(name, true)).is_some() {
                    return None;
                }
            }
            None => {
                value(expr, &[], table.types[at].data_type(), is_json(&table, at)?)?;
            }
        }
    }
    let parameters = parameters.into_iter().collect::<Option<Vec<Field>>>()?;
    Some((client_schema(&Schema::new(parameters)), result_schema(&table, &columns)))
}

fn result_schema(table: &TableEntry, columns: &[(usize, String)]) -> SchemaRef {
    let fields: Vec<Field> =
        columns.iter().map(|(at, name)| table.types[*at].field(name, table.def.columns[*at].nullable)).collect();
    client_schema(&Schema::new(fields))
}

/// A query of the right shape: what its condition says is still to be looked at.
struct Point<'a> {
    table: Arc<TableEntry>,
    alias: String,
    selection: &'a ast::Expr,
    columns: Vec<(usize, String)>,
}

fn matched<'a>(scope: &Scope, query: &'a ast::Query) -> Option<Point<'a>> {
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
        && query.pipe_operators.is_empty();
    let ast::SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let bare = select.distinct.is_none()
        && select.top.is_none()
        && select.having.is_none()
        && select.qualify.is_none()
        && select.into.is_none()
        && select.lateral_views.is_empty()
        && select.named_window.is_empty()
        && matches!(&select.group_by, ast::GroupByExpr::Expressions(exprs, modifiers) if exprs.is_empty() && modifiers.is_empty());
    let [from] = select.from.as_slice() else {
        return None;
    };
    if !plain || !bare || !from.joins.is_empty() {
        return None;
    }
    let (table, alias) = plain_table(scope, &from.relation)?;
    let selection = select.selection.as_ref()?;
    // Cheap to look at, and most queries end here.
    compared(&table, &alias, selection)?;
    let mut columns = Vec::new();
    for item in &select.projection {
        match item {
            ast::SelectItem::Wildcard(options)
                if options.opt_exclude.is_none()
                    && options.opt_except.is_none()
                    && options.opt_replace.is_none()
                    && options.opt_rename.is_none()
                    && options.opt_ilike.is_none() =>
            {
                columns.extend(table.visible.iter().map(|&at| (at, table.def.columns[at].name.clone())));
            }
            ast::SelectItem::UnnamedExpr(expr) => {
                let at = column(expr, &table, &alias)?;
                columns.push((at, table.def.columns[at].name.clone()));
            }
            ast::SelectItem::ExprWithAlias { expr, alias: name } => {
                columns.push((column(expr, &table, &alias)?, fold(name)))
            }
            _ => return None,
        }
    }
    // The planner refuses a name twice; so that both ways agree, that goes the long way.
    let twice = columns.iter().enumerate().any(|(at, (_, name))| columns[..at].iter().any(|(_, other)| other == name));
    (!columns.is_empty() && !twice).then_some(Point { table, alias, selection, columns })
}

/// Whether an expression contains a query, which only a plan can run.
pub(crate) fn has_query(expr: &ast::Expr) -> bool {
    ast::visit_expressions(expr, |expr| match expr {
        ast::Expr::Subquery(_) | ast::Expr::Exists { .. } | ast::Expr::InSubquery { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

/// A row by key: its stored columns at `positions`, the others NULL, and where it is.
pub(crate) async fn row(
    scope: &Scope,
    table: &TableEntry,
    key: &RowKey,
    positions: &[usize],
) -> Result<Option<(Vec<ArrayRef>, Locator)>> {
    let view = scope.reader.view(&table.stored)?;
    let keys = std::slice::from_ref(key);
    let Some(Some(found)) = view.find(keys).await.map_err(Error::classified)?.pop() else {
        return Ok(None);
    };
    let batch = view.get(keys, &ScanSpec::new(positions.to_vec())).await.map_err(Error::classified)?;
    if batch.num_rows() != 1 {
        return Err(Error::internal("a row is not where its key says"));
    }
    Ok(Some((crate::dml::spread(table, positions, &batch), found.locator)))
}

/// New values over one old row, of their columns' types.
pub(crate) fn values(
    scope: &Scope,
    table: &TableEntry,
    alias: &str,
    set: &[(usize, ast::Expr)],
    old: &[ArrayRef],
) -> Result<Vec<ArrayRef>> {
    let none = Vec::new();
    let params = scope.params.as_deref().unwrap_or(&none);
    let plain: Option<Vec<ArrayRef>> = set
        .iter()
        .map(|(at, expr)| {
            let field = table.types[*at].field("v", true);
            let json = field.metadata().get(crate::catalog::typing::EXTENSION).is_some_and(|name| name == "arrow.json");
            value(expr, params, field.data_type(), json)
        })
        .collect();
    if let Some(plain) = plain {
        return Ok(plain);
    }
    let fields: Vec<Field> =
        table.arrow.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let rows = RecordBatch::try_new(schema.clone(), table.visible.iter().map(|&at| old[at].clone()).collect())?;
    let exprs = set.iter().map(|(at, expr)| (expr.clone(), Some(table.types[*at].field_ref("v")))).collect();
    let check = |number: usize, from: &DataType| crate::dml::check_assignable(table, set[number].0, from);
    let compiled = RowExpr::compile_checked(&Binder::plain(scope), &[(alias, &schema)], exprs, Some(&check))?;
    compiled.evaluate(&rows)
}
