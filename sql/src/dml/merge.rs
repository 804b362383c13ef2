//! MERGE: one join, one action per joined row.
//!
//! The join is a SELECT from the source to the target (a full join when target rows without source matter). Its columns are
//! the target row with its locator, the number of the WHEN clause that applies, and for each clause its new values, computed
//! only where the clause applies.

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{FieldRef, SchemaRef};
use base::SqlState;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, LogicalPlanBuilder};
use futures::StreamExt;
use sqlparser::ast;

use super::foreign_keys::spread;
use super::writer::{Met, pick};
use super::{
    Returning, TableWriter, Target, Written, assignable, assignments, check_assignable, default_of, hint, locators,
    plan, run_plan,
};
use crate::parse::statement::{self as st, MergeAction, MergeWhen};
use crate::plan::{Overrides, Planning, Scope, internal_item, parse_expr, qualified, select};
use crate::session::learn;
use crate::{Error, Result};

/// The column that marks the source's rows.
const MARK: &str = "\u{200b}source";

/// What a clause does, bound.
enum Act {
    /// Values for the visible columns, from this output column on.
    Insert {
        first: usize,
    },
    /// Stored positions set, values from this output column on.
    Update {
        set: Vec<usize>,
        first: usize,
    },
    Delete,
    Nothing,
}

/// The statement as a SELECT, and what its columns are.
struct Bound {
    query: ast::Query,
    acts: Vec<Act>,
    positions: Vec<usize>,
    /// Output columns that take the type of a stored column.
    casts: Vec<(usize, usize)>,
    /// Types of parameters that stand for a column's value.
    hints: Vec<(ast::Expr, FieldRef)>,
    /// Where the source's columns begin, for RETURNING.
    first_other: usize,
}

fn and(left: ast::Expr, right: Option<ast::Expr>) -> ast::Expr {
    match right {
        Some(right) => ast::Expr::BinaryOp {
            left: Box::new(left),
            op: ast::BinaryOperator::And,
            right: Box::new(ast::Expr::Nested(Box::new(right))),
        },
        None => left,
    }
}

fn case(branches: Vec<(ast::Expr, ast::Expr)>) -> Result<ast::Expr> {
    match parse_expr("CASE WHEN true THEN 1 END")? {
        ast::Expr::Case { case_token, end_token, operand, else_result, .. } => Ok(ast::Expr::Case {
            case_token,
            end_token,
            operand,
            conditions: branches.into_iter().map(|(condition, result)| ast::CaseWhen { condition, result }).collect(),
            else_result,
        }),
        _ => Err(Error::internal("CASE does not parse")),
    }
}

fn bind(merge: &st::Merge, target: &Target, returning: &Returning<'_>) -> Result<Bound> {
    let table = &target.table;
    let positions = target.all_positions();
    // The source carries a mark, so that its absence shows.
    let source_name = match &merge.source {
        ast::TableFactor::Table { name, alias, .. } => alias
            .as_ref()
            .map(|alias| alias.name.clone())
            .or_else(|| name.0.last().and_then(|part| part.as_ident()).cloned()),
        ast::TableFactor::Derived { alias, .. } => alias.as_ref().map(|alias| alias.name.clone()),
        _ => None,
    }
    .ok_or_else(|| Error::syntax("the source of MERGE needs a name"))?;
    let mut marked = crate::plan::parse_query(&format!("SELECT *, true AS \"{MARK}\" FROM t"))?;
    if let ast::SetExpr::Select(body) = marked.body.as_mut() {
        body.from[0].relation = merge.source.clone();
        if let Some(first) = body.projection.first_mut() {
            *first = ast::SelectItem::QualifiedWildcard(
                ast::SelectItemQualifiedWildcardKind::ObjectName(ast::ObjectName::from(vec![source_name.clone()])),
                ast::WildcardAdditionalOptions::default(),
            );
        }
    }
    let source = ast::TableFactor::Derived {
        lateral: false,
        subquery: Box::new(marked),
        alias: Some(ast::TableAlias { explicit: true, name: source_name.clone(), columns: Vec::new(), at: None }),
        sample: None,
    };
    let outer = merge.clauses.iter().any(|clause| clause.when == MergeWhen::NotMatchedBySource);
    let on = ast::JoinConstraint::On(merge.on.clone());
    let join = ast::Join {
        relation: target.factor(),
        global: false,
        join_operator: if outer { ast::JoinOperator::FullOuter(on) } else { ast::JoinOperator::Left(on) },
    };
    let from = ast::TableWithJoins { relation: source, joins: vec![join] };

    // Every row is in some file or in memory; a transaction's own rows have no `_tx_from` yet.
    let has_target = ast::Expr::IsNotNull(Box::new(qualified(&target.alias, "_file")));
    let no_target = ast::Expr::IsNull(Box::new(qualified(&target.alias, "_file")));
    let has_source = ast::Expr::IsNotNull(Box::new(qualified(&source_name, MARK)));
    let no_source = ast::Expr::IsNull(Box::new(qualified(&source_name, MARK)));
    let conditions: Vec<ast::Expr> = merge
        .clauses
        .iter()
        .map(|clause| {
            let when = match clause.when {
                MergeWhen::Matched => and(has_target.clone(), Some(has_source.clone())),
                MergeWhen::NotMatched => no_target.clone(),
                MergeWhen::NotMatchedBySource => no_source.clone(),
            };
            and(when, clause.condition.clone())
        })
        .collect();
    let number = |at: usize| parse_expr(&at.to_string());
    let branches = conditions
        .iter()
        .enumerate()
        .map(|(at, condition)| Ok((condition.clone(), number(at)?)))
        .collect::<Result<Vec<_>>>()?;
    let mut items = target.row_items(&positions);
    items.push(internal_item(case(branches)?, "act"));
    // A value is computed for the rows its clause takes: those that no earlier clause took.
    let guarded = |clause: usize, value: ast::Expr| -> Result<ast::Expr> {
        let mut branches: Vec<(ast::Expr, ast::Expr)> = conditions[..clause]
            .iter()
            .map(|condition| Ok((condition.clone(), parse_expr("NULL")?)))
            .collect::<Result<_>>()?;
        branches.push((conditions[clause].clone(), value));
        case(branches)
    };
    let mut acts = Vec::new();
    let mut casts: Vec<(usize, usize)> = Vec::new();
    let mut hints: Vec<(ast::Expr, FieldRef)> = Vec::new();
    for (at, clause) in merge.clauses.iter().enumerate() {
        let first = items.len();
        match &clause.action {
            MergeAction::Insert { columns, overriding, values } => {
                if clause.when != MergeWhen::NotMatched {
                    return Err(Error::syntax("INSERT is only for rows that are NOT MATCHED"));
                }
                let given: Vec<usize> = if columns.is_empty() {
                    table.visible.clone()
                } else {
                    columns.iter().map(|name| assignable(table, name)).collect::<Result<_>>()?
                };
                let none = Vec::new();
                let values = values.as_ref().unwrap_or(&none);
                if !values.is_empty() && values.len() > given.len() {
                    return Err(Error::syntax("INSERT has more expressions than target columns"));
                }
                if !columns.is_empty() && !values.is_empty() && values.len() < given.len() {
                    return Err(Error::syntax("INSERT has more target columns than expressions"));
                }
                for &position in &table.visible {
                    let column = &table.def.columns[position];
                    let value = given.iter().position(|&other| other == position).and_then(|place| values.get(place));
                    let value = match value {
                        Some(value)
                            if !crate::parse::is_default(value) && *overriding != Some(st::Overriding::User) =>
                        {
                            let fixed = column.identity.as_ref().is_some_and(|identity| identity.always);
                            if column.generated.is_some() || (fixed && *overriding != Some(st::Overriding::System)) {
                                return Err(Error::state(
                                    SqlState([b'4', b'2', b'8', b'C', b'9']),
                                    format!("cannot insert a non-DEFAULT value into column \"{}\"", column.name),
                                ));
                            }
                            hints.push((value.clone(), table.types[position].field_ref("v")));
                            value.clone()
                        }
                        _ => default_of(column)?,
                    };
                    casts.push((items.len(), position));
                    items.push(internal_item(guarded(at, value)?, &format!("v{at}_{position}")));
                }
                acts.push(Act::Insert { first });
            }
            MergeAction::Update(list) => {
                if clause.when == MergeWhen::NotMatched {
                    return Err(Error::syntax("UPDATE is not for rows that are NOT MATCHED"));
                }
                let set = assignments(table, list)?;
                for (position, value) in &set {
                    hints.push((value.clone(), table.types[*position].field_ref("v")));
                    casts.push((items.len(), *position));
                    items.push(internal_item(guarded(at, value.clone())?, &format!("v{at}_{position}")));
                }
                acts.push(Act::Update { set: set.into_iter().map(|(position, _)| position).collect(), first });
            }
            MergeAction::Delete => {
                if clause.when == MergeWhen::NotMatched {
                    return Err(Error::syntax("DELETE is not for rows that are NOT MATCHED"));
                }
                acts.push(Act::Delete);
            }
            MergeAction::Nothing => acts.push(Act::Nothing),
        }
    }
    let first_other = items.len();
    let source = ast::TableWithJoins { relation: from.relation.clone(), joins: Vec::new() };
    items.extend(returning.other_items(&[source])?);
    let query = select(merge.with.clone(), items, vec![from], None);
    Ok(Bound { query, acts, positions, casts, hints, first_other })
}

/// Plans the SELECT: values take their columns' types, and the source's mark stays inside.
async fn plan_of(scope: &Scope, bound: &Bound, target: &Target, known: &mut [Option<FieldRef>]) -> Result<LogicalPlan> {
    for (value, field) in &bound.hints {
        hint(known, value, field);
    }
    let scope = if scope.params.is_none() && !known.is_empty() {
        Scope { param_types: std::sync::Arc::new(known.to_vec()), ..scope.clone() }
    } else {
        scope.clone()
    };
    let plan = plan(&scope, bound.query.clone(), Overrides::default()).await?;
    learn(&plan, known)?;
    for (at, position) in &bound.casts {
        check_assignable(&target.table, *position, plan.schema().field(*at).data_type())?;
    }
    let exprs: Vec<Expr> = plan
        .schema()
        .columns()
        .into_iter()
        .enumerate()
        .filter(|(_, column)| column.name != MARK)
        .map(|(place, column)| match bound.casts.iter().find(|(at, _)| *at == place) {
            Some((_, position)) => {
                let name = column.name.clone();
                let field = target.table.types[*position].field_ref(&name);
                Expr::Cast(Cast::new_from_field(Box::new(Expr::Column(column)), field)).alias(name)
            }
            None => Expr::Column(column),
        })
        .collect();
    Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
}

/// Parameter types, and the schema of RETURNING.
pub(crate) async fn types(
    scope: &Scope,
    merge: &st::Merge,
    known: &mut [Option<FieldRef>],
) -> Result<Option<SchemaRef>> {
    let target = Target::of_factor(scope, &merge.table)?;
    let mut returning = Returning::new(&merge.returning, &target).of_merge();
    let bound = bind(merge, &target, &returning)?;
    let plan = plan_of(scope, &bound, &target, known).await?;
    returning.beside(plan.schema(), bound.first_other);
    returning.types(scope, known).await
}

/// Runs it.
pub(crate) async fn run(scope: &Scope, merge: &st::Merge) -> Result<Written> {
    scope.writing()?;
    let target = Target::of_factor(scope, &merge.table)?;
    let mut planning = Planning::of(scope)?;
    let mut returning = Returning::new(&merge.returning, &target).of_merge();
    let bound = bind(merge, &target, &returning)?;
    while let Some(inner) = planning.wants() {
        planning.give(plan_of(&inner, &bound, &target, &mut []).await?)?;
    }
    let plan = planning.done()?;
    returning.beside(plan.plan.schema(), bound.first_other);
    returning.plan(scope).await?;
    let table = target.table.clone();
    let mut stream = run_plan(scope, plan).await?;
    let mut writer = TableWriter::new(scope, &table, true).await?;
    let act_column = bound.positions.len() + 2;
    let mut met = Met::default();
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let numbers = arrow::compute::cast(batch.column(act_column), &arrow::datatypes::DataType::Int64)?;
        let numbers =
            numbers.as_any().downcast_ref::<Int64Array>().ok_or_else(|| Error::internal("clauses are numbered"))?;
        for (number, act) in bound.acts.iter().enumerate() {
            let rows: Vec<usize> = (0..batch.num_rows())
                .filter(|&row| numbers.is_valid(row) && usize::try_from(numbers.value(row)) == Ok(number))
                .collect();
            if rows.is_empty() || matches!(act, Act::Nothing) {
                continue;
            }
            let chosen = RecordBatch::try_new(batch.schema(), pick(batch.columns(), &rows)?)?;
            count += rows.len() as u64;
            let values = |first: usize, width: usize| -> Vec<ArrayRef> {
                (first..first + width).map(|at| chosen.column(at).clone()).collect()
            };
            let others = returning.others_of(&chosen);
            match act {
                Act::Insert { first } => {
                    let stored = writer.insert(&values(*first, table.visible.len())).await?;
                    returning.keep_action(&stored, others, "INSERT")?;
                }
                Act::Update { set, first } => {
                    let (old, at) = old_rows(&writer, &table, &bound.positions, &chosen, &mut met)?;
                    let mut new = old.clone();
                    for (&position, value) in set.iter().zip(values(*first, set.len())) {
                        new[position] = value;
                    }
                    let new = writer.update(&old, new, &at, set).await?;
                    returning.keep_action(&new, others, "UPDATE")?;
                }
                Act::Delete => {
                    let (old, at) = old_rows(&writer, &table, &bound.positions, &chosen, &mut met)?;
                    writer.delete(&old, &at).await?;
                    returning.keep_action(&old, others, "DELETE")?;
                }
                Act::Nothing => {}
            }
        }
    }
    writer.finish().await?;
    Ok(Written { tag: "MERGE", rows: count, returned: returning.rows(scope).await? })
}

fn old_rows(
    writer: &TableWriter,
    table: &crate::catalog::TableEntry,
    positions: &[usize],
    batch: &RecordBatch,
    met: &mut Met,
) -> Result<(Vec<ArrayRef>, Vec<storage::Locator>)> {
    let old = spread(table, positions, batch);
    let keys = writer.keys(&old)?;
    if met.fresh(&keys).len() < keys.len() {
        return Err(Error::state(SqlState::CARDINALITY_VIOLATION, "MERGE command cannot affect row a second time")
            .with_hint("Ensure that not more than one source row matches any one target row."));
    }
    Ok((old, locators(batch, positions.len())?))
}

/// The plan of the join, for EXPLAIN.
pub(crate) async fn explain(scope: &Scope, merge: &st::Merge) -> Result<LogicalPlan> {
    let target = Target::of_factor(scope, &merge.table)?;
    let bound = bind(merge, &target, &Returning::new(&[], &target))?;
    plan_of(scope, &bound, &target, &mut []).await
}
