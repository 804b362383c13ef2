//! `EXISTS`, `IN` and `ANY` over a query where they are values, not conditions: DataFusion makes joins of them only in filters, and
//! of `IN` only where NULL and false are the same.
//!
//! | value | becomes |
//! |---|---|
//! | `EXISTS (q)` | `(SELECT count(*) > 0 FROM q)`, of one row of `q` unless it refers to the outer query |
//! | `x = ANY (q)`, `x IN (q)` | `CASE WHEN EXISTS (q WHERE x = y) THEN true WHEN … THEN NULL ELSE false END` |
//! | `x > ANY (q)`, `x < ANY (q)` | the same with `x > (SELECT min(y) FROM q)`, `x < (SELECT max(y) FROM q)` |
//! | `x < ALL (q)` | `NOT (x >= ANY (q))` |
//!
//! The answer is NULL where nothing decided it and either `x` is NULL and `q` has rows, or `q` has a NULL. All of these subqueries
//! are ones that DataFusion makes joins of: correlated by equality, or not at all.
//!
//! Subqueries that are values already are settled after that: [`scalar`].
//!
//! The rule runs after type coercion, so both sides of a comparison have one type already.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ExprSchema, Result, ScalarValue, Spans, not_impl_err};
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::expr::{Case, Exists, InSubquery, SetComparison, SetQuantifier};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::logical_plan::{FetchType, SkipType};
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, lit};
use datafusion::optimizer::AnalyzerRule;

use super::scalar;

/// The rule.
#[derive(Debug)]
pub(crate) struct SubqueryValues;

impl AnalyzerRule for SubqueryValues {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = plan.transform_up_with_subqueries(rewrite)?.data;
        if !scalar::any(&plan)? {
            return Ok(plan);
        }
        Ok(plan.transform_up_with_subqueries(|node| Ok(Transformed::yes(scalar::settle(node)?)))?.data)
    }

    fn name(&self) -> &str {
        "subquery_values"
    }
}

fn is_predicate(expr: &Expr) -> bool {
    matches!(expr, Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_))
}

fn rewrite(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if let LogicalPlan::Filter(filter) = plan {
        let outer = Arc::clone(filter.input.schema());
        return LogicalPlan::Filter(filter).map_expressions(|expr| condition(expr, &outer, true));
    }
    if matches!(plan, LogicalPlan::Join(_)) {
        return Ok(Transformed::no(plan));
    }
    let mut found = false;
    plan.apply_expressions(|expr| {
        found = found || expr.exists(|inner| Ok(is_predicate(inner)))?;
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    })?;
    if !found {
        return Ok(Transformed::no(plan));
    }
    let outer = match plan.inputs().as_slice() {
        [input] => Arc::clone(input.schema()),
        _ => Arc::new(DFSchema::empty()),
    };
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        Ok(expr.transform_up(|inner| value(inner, &outer))?.update_data(|expr| name.restore(expr)))
    })
}

/// Where a condition asks more of `IN` than whether it is true. DataFusion's join tells NULL from false only for a `NOT IN` that is
/// a condition by itself; elsewhere it needs a place where both mean that the row is out.
fn condition(expr: Expr, outer: &DFSchema, whole: bool) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let whole = whole && op == Operator::And;
            let (left, right) = (condition(*left, outer, whole)?, condition(*right, outer, whole)?);
            let changed = left.transformed || right.transformed;
            let both = binary(left.data, op, right.data);
            Ok(if changed { Transformed::yes(both) } else { Transformed::no(both) })
        }
        Expr::Not(inner) if whole && matches!(*inner, Expr::InSubquery(_)) => Ok(Transformed::no(Expr::Not(inner))),
        Expr::InSubquery(InSubquery { negated, .. }) if whole || !negated => Ok(Transformed::no(expr)),
        other => other.transform_up(|inner| match inner {
            Expr::InSubquery(_) => value(inner, outer),
            inner => Ok(Transformed::no(inner)),
        }),
    }
}

fn value(expr: Expr, outer: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::Exists(Exists { subquery, negated }) => {
            Transformed::yes(exists(subquery.subquery.as_ref().clone(), negated)?)
        }
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
            let found = compared(*expr, Operator::Eq, &SetQuantifier::Any, &subquery, outer)?;
            Transformed::yes(if negated { Expr::Not(Box::new(found)) } else { found })
        }
        Expr::SetComparison(SetComparison { expr, subquery, op, quantifier }) => {
            Transformed::yes(compared(*expr, op, &quantifier, &subquery, outer)?)
        }
        other => Transformed::no(other),
    })
}

/// Whether a query has rows.
fn exists(mut plan: LogicalPlan, negated: bool) -> Result<Expr> {
    // A limit that leaves a row changes nothing, and correlation does not reach through it.
    while let LogicalPlan::Limit(limit) = &plan {
        let (SkipType::Literal(0), FetchType::Literal(Some(1..))) = (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            break;
        };
        plan = limit.input.as_ref().clone();
    }
    let mut query = LogicalPlanBuilder::from(plan);
    if query.plan().all_out_ref_exprs().is_empty() {
        query = query.limit(0, Some(1))?;
    }
    let rows = "rows";
    let query = query.aggregate(Vec::<Expr>::new(), vec![count(lit(1i64)).alias(rows)])?;
    let op = if negated { Operator::Eq } else { Operator::Gt };
    let test =
        Expr::BinaryExpr(BinaryExpr::new(Box::new(Expr::Column(Column::from_name(rows))), op, Box::new(lit(0i64))));
    let plan = query.project(vec![test])?.build()?;
    Ok(Expr::ScalarSubquery(subquery(plan)))
}

fn subquery(plan: LogicalPlan) -> Subquery {
    let outer_ref_columns = plan.all_out_ref_exprs();
    Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: Spans::new() }
}

/// A value compared with all rows of a query.
fn compared(left: Expr, op: Operator, quantifier: &SetQuantifier, query: &Subquery, outer: &DFSchema) -> Result<Expr> {
    if matches!(quantifier, SetQuantifier::All) {
        let Some(opposite) = op.negate() else { return not_impl_err!("{op} ALL over a query as a value") };
        return Ok(Expr::Not(Box::new(compared(left, opposite, &SetQuantifier::Any, query, outer)?)));
    }
    let rows = query.subquery.as_ref();
    let right = Expr::Column(Column::from(rows.schema().qualified_field(0)));
    let holds = match op {
        Operator::Eq => {
            let filter = binary(seen_from_inside(left.clone(), outer)?, op, right.clone());
            exists(LogicalPlanBuilder::from(rows.clone()).filter(filter)?.build()?, false)?
        }
        Operator::Gt | Operator::GtEq => binary(left.clone(), op, extreme(rows, min(right.clone()))?),
        Operator::Lt | Operator::LtEq => binary(left.clone(), op, extreme(rows, max(right.clone()))?),
        Operator::NotEq => {
            let least = binary(left.clone(), op, extreme(rows, min(right.clone()))?);
            least.or(binary(left.clone(), op, extreme(rows, max(right.clone()))?))
        }
        _ => return not_impl_err!("{op} ANY over a query as a value"),
    };
    let nulls = LogicalPlanBuilder::from(rows.clone()).filter(right.is_null())?.build()?;
    let unknown = left.is_null().and(exists(rows.clone(), false)?).or(exists(nulls, false)?);
    Ok(Expr::Case(Case {
        expr: None,
        when_then_expr: vec![
            (Box::new(holds), Box::new(lit(true))),
            (Box::new(unknown), Box::new(Expr::Literal(ScalarValue::Boolean(None), None))),
        ],
        else_expr: Some(Box::new(lit(false))),
    }))
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// The least or greatest value of a query.
fn extreme(rows: &LogicalPlan, aggregate: Expr) -> Result<Expr> {
    let query = LogicalPlanBuilder::from(rows.clone()).aggregate(Vec::<Expr>::new(), vec![aggregate])?;
    Ok(Expr::ScalarSubquery(subquery(query.build()?)))
}

/// An expression of the outer query as a subquery refers to it.
fn seen_from_inside(expr: Expr, outer: &DFSchema) -> Result<Expr> {
    expr.transform_up(|expr| match expr {
        Expr::Column(column) => {
            let field = Arc::clone(outer.field_from_column(&column)?);
            Ok(Transformed::yes(Expr::OuterReferenceColumn(field, column)))
        }
        other => Ok(Transformed::no(other)),
    })
    .map(|transformed| transformed.data)
}
