//! Scalar subqueries as PostgreSQL has them: NULL without a row, an error with two, the first row of an order with `LIMIT 1`.
//!
//! DataFusion takes a subquery's value to be NULL only if its column may be, and decides `IS NULL`, `COALESCE` and the columns of a
//! result by that while it plans. It makes joins only of subqueries whose outermost operation is an aggregate or that name a key.
//!
//! | subquery | becomes |
//! |---|---|
//! | without FROM, whose expression refers to the outer query alone | the expression |
//! | of one row in any case: an aggregate without GROUP BY, a SELECT without FROM | stays as it is |
//! | that does not refer to the outer query | `subquery_value((q))` |
//! | `SELECT e … ORDER BY k LIMIT 1` that does | `subquery_value((SELECT first_value(e ORDER BY k) …))` |
//! | any other that does | `subquery_value((SELECT sole_row(e) …))` |
//!
//! `VALUES` with a subquery becomes a union of SELECTs, because its rows are computed before any subquery runs.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result, Spans};
use datafusion::functions_aggregate::first_last::first_value;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction, Sort};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::{EmptyRelation, FetchType, SkipType, Values};
use datafusion::logical_expr::{AggregateUDF, Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF, Subquery};

use crate::functions::single::{SoleRow, Value};

/// The column of a subquery that is brought into form. Becoming a join, the subquery gets columns of its tables beside it, and none of
/// them has this name.
const VALUE: &str = "\u{200b}value";

/// Whether a node itself computes with a scalar subquery.
fn has_scalar(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_expressions(|expr| {
        found = found || expr.exists(|inner| Ok(matches!(inner, Expr::ScalarSubquery(_))))?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Whether a plan computes with a scalar subquery anywhere.
pub(super) fn any(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        found = found || has_scalar(node)?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Brings the subqueries of one node into a form that says what they give. To be called for every node of a plan that has any,
/// inputs and subqueries first: what may be NULL there is found out here.
pub(super) fn settle(plan: LogicalPlan) -> Result<LogicalPlan> {
    let plan = match plan {
        LogicalPlan::Values(values) if values_have_scalar(&values)? => rows(values)?,
        other => other,
    };
    let outer = match plan.inputs().as_slice() {
        [input] => Arc::clone(input.schema()),
        _ => Arc::new(DFSchema::empty()),
    };
    let names = NamePreserver::new(&plan);
    let plan = plan
        .map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|inner| settled(inner, &outer))?.update_data(|expr| name.restore(expr)))
        })?
        .data;
    plan.recompute_schema()
}

fn values_have_scalar(values: &Values) -> Result<bool> {
    for expr in values.values.iter().flatten() {
        if expr.exists(|inner| Ok(matches!(inner, Expr::ScalarSubquery(_))))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `VALUES` as a union of one SELECT per row.
fn rows(values: Values) -> Result<LogicalPlan> {
    let mut all: Option<LogicalPlanBuilder> = None;
    for row in values.values {
        let named = row.into_iter().zip(values.schema.fields()).map(|(expr, field)| expr.alias(field.name()));
        let row = settle(LogicalPlanBuilder::empty(true).project(named.collect::<Vec<_>>())?.build()?)?;
        all = Some(match all {
            None => LogicalPlanBuilder::from(row),
            Some(rows) => rows.union(row)?,
        });
    }
    match all {
        Some(rows) => rows.build(),
        None => datafusion::common::internal_err!("VALUES without a row"),
    }
}

fn settled(expr: Expr, outer: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        // A column of the outer query may be a subquery's value: what was thought of it before does not hold.
        Expr::OuterReferenceColumn(field, column) if !field.is_nullable() => Ok(Transformed::yes(
            Expr::OuterReferenceColumn(Arc::new(field.as_ref().clone().with_nullable(true)), column),
        )),
        Expr::ScalarSubquery(subquery) => value(subquery, outer),
        other => Ok(Transformed::no(other)),
    }
}

fn value(subquery: Subquery, outer: &DFSchema) -> Result<Transformed<Expr>> {
    let plan = subquery.subquery.as_ref();
    if let Some(expr) = without_from(plan, outer)? {
        return Ok(Transformed::yes(expr));
    }
    if plan.schema().fields().len() != 1 || has_one_row(plan) {
        return Ok(Transformed::no(Expr::ScalarSubquery(subquery)));
    }
    let field = Arc::clone(&plan.schema().fields()[0]);
    if plan.all_out_ref_exprs().is_empty() {
        return Ok(Transformed::yes(called(Value::new(&field, false), Expr::ScalarSubquery(subquery))));
    }
    let (rows, aggregate, checked) = match first_of_order(plan)? {
        Some((rows, expr, order)) => (rows, first_value(expr, order), false),
        None => {
            let (rows, expr) = rows_and_value(plan);
            let function = Arc::new(AggregateUDF::from(SoleRow::default()));
            let aggregate = AggregateFunction::new_udf(function, vec![expr], false, None, Vec::new(), None);
            (rows.clone(), Expr::AggregateFunction(aggregate), true)
        }
    };
    let name = aggregate.schema_name().to_string();
    let plan = LogicalPlanBuilder::from(rows)
        .aggregate(Vec::<Expr>::new(), vec![aggregate])?
        .project(vec![Expr::Column(Column::from_name(name)).alias(VALUE)])?
        .build()?;
    let outer_ref_columns = plan.all_out_ref_exprs();
    let subquery = Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: Spans::new() };
    Ok(Transformed::yes(called(Value::new(&field, checked), Expr::ScalarSubquery(subquery))))
}

fn called(function: Value, argument: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::from(function)), vec![argument]))
}

/// The expression of a SELECT without FROM that refers to the outer query and to nothing else, as the outer query has it.
fn without_from(plan: &LogicalPlan, outer: &DFSchema) -> Result<Option<Expr>> {
    let LogicalPlan::Projection(projection) = plan else { return Ok(None) };
    let (LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: true, .. }), [expr]) =
        (projection.input.as_ref(), projection.expr.as_slice())
    else {
        return Ok(None);
    };
    let foreign = expr.exists(|inner| {
        Ok(match inner {
            Expr::OuterReferenceColumn(_, column) => !outer.has_column(column),
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) => true,
            _ => false,
        })
    })?;
    if foreign || !expr.contains_outer() {
        return Ok(None);
    }
    let own = expr.clone().unalias().transform_up(|inner| match inner {
        Expr::OuterReferenceColumn(_, column) => Ok(Transformed::yes(Expr::Column(column))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(Some(own.data))
}

/// Whether a query has one row, whatever the tables hold.
fn has_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(it) => has_one_row(&it.input),
        LogicalPlan::SubqueryAlias(it) => has_one_row(&it.input),
        LogicalPlan::Sort(it) => it.fetch != Some(0) && has_one_row(&it.input),
        LogicalPlan::Aggregate(it) => it.group_expr.is_empty(),
        LogicalPlan::EmptyRelation(it) => it.produce_one_row,
        _ => false,
    }
}

/// The rows of a query of one column, and its column over them.
fn rows_and_value(plan: &LogicalPlan) -> (&LogicalPlan, Expr) {
    if let LogicalPlan::Projection(projection) = plan
        && let [expr] = projection.expr.as_slice()
    {
        return (projection.input.as_ref(), expr.clone().unalias());
    }
    (plan, Expr::Column(Column::from(plan.schema().qualified_field(0))))
}

/// What `SELECT e … ORDER BY k LIMIT 1` takes the first of: the rows, `e` and `k`.
fn first_of_order(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Expr, Vec<Sort>)>> {
    let LogicalPlan::Limit(limit) = plan else { return Ok(None) };
    let (SkipType::Literal(0), FetchType::Literal(Some(1))) = (limit.get_skip_type()?, limit.get_fetch_type()?) else {
        return Ok(None);
    };
    let (input, expr) = rows_and_value(&limit.input);
    Ok(Some(match input {
        LogicalPlan::Sort(sort) => (sort.input.as_ref().clone(), expr, sort.expr.clone()),
        rows => (rows.clone(), expr, Vec::new()),
    }))
}
