//! Small tools: building syntax trees by hand, and evaluating expressions over batches of rows.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue, TableReference};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use sqlparser::ast;

use super::context::Binder;
use crate::{Error, Result};

static SELECT_ONE: LazyLock<ast::Query> = LazyLock::new(|| super::parse_query("SELECT 1").expect("SELECT 1 parses"));

/// `SELECT items FROM … WHERE …`.
pub(crate) fn select(
    with: Option<ast::With>,
    projection: Vec<ast::SelectItem>,
    from: Vec<ast::TableWithJoins>,
    selection: Option<ast::Expr>,
) -> ast::Query {
    let mut query = SELECT_ONE.clone();
    query.with = with;
    if let ast::SetExpr::Select(select) = query.body.as_mut() {
        select.projection = projection;
        select.from = from;
        select.selection = selection;
    }
    query
}

/// An identifier that means exactly this name.
pub(crate) fn identifier(name: &str) -> ast::Ident {
    ast::Ident::with_quote('"', name)
}

/// `qualifier.name`.
pub(crate) fn qualified(qualifier: &ast::Ident, name: &str) -> ast::Expr {
    ast::Expr::CompoundIdentifier(vec![qualifier.clone(), identifier(name)])
}

/// `expr AS alias`.
pub(crate) fn item(expr: ast::Expr, alias: &str) -> ast::SelectItem {
    ast::SelectItem::ExprWithAlias { expr, alias: identifier(alias) }
}

/// `expr AS alias`, for a column that a statement adds to a query for itself: no column of a user has such a name.
pub(crate) fn internal_item(expr: ast::Expr, name: &str) -> ast::SelectItem {
    item(expr, &format!("{}{name}", crate::parse::MARK))
}

/// A table in FROM.
pub(crate) fn table_factor(name: ast::ObjectName, alias: Option<ast::Ident>) -> ast::TableFactor {
    ast::TableFactor::Table {
        name,
        alias: alias.map(|name| ast::TableAlias { explicit: true, name, columns: Vec::new(), at: None }),
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

/// Whether an expression may have another value for every row.
pub(crate) fn is_volatile(expr: &Expr) -> Result<bool> {
    Ok(expr.exists(|expr| {
        Ok(matches!(expr, Expr::ScalarFunction(function) if function.func.signature().volatility == Volatility::Volatile))
    })?)
}

/// The first row of a parameter's array.
pub(crate) fn scalar_of(array: &ArrayRef, row: usize) -> Result<ScalarValue> {
    Ok(ScalarValue::try_from_array(array, row)?)
}

/// A value as a one-row array of a field's type, text forms of uuid and the like understood.
pub(crate) fn cast_to_array(scope: &super::Scope, value: ScalarValue, field: &FieldRef) -> Result<ArrayRef> {
    let expr = Expr::Cast(Cast::new_from_field(Box::new(Expr::Literal(value, None)), field.clone()));
    let plan = LogicalPlanBuilder::empty(true).project(vec![expr.alias("v")])?.build()?;
    let state = scope.state();
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let LogicalPlan::Projection(projection) = plan else {
        return Err(Error::internal("a constant is not a projection"));
    };
    let physical = state.create_physical_expr(projection.expr[0].clone().unalias(), &DFSchema::empty())?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
    let one = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
    Ok(physical.evaluate(&one)?.into_array(1)?)
}

/// Refuses the type of one of several expressions, by number.
pub(crate) type TypeCheck<'a> = dyn Fn(usize, &DataType) -> Result<()> + 'a;

/// Expressions over rows of known columns, compiled once.
#[derive(Clone, Debug)]
pub(crate) struct RowExpr {
    exprs: Vec<Arc<dyn PhysicalExpr>>,
}

impl RowExpr {
    /// Compiles expressions over columns grouped by qualifier. Each is cast to its field's type when one is given.
    pub(crate) fn compile(
        binder: &Binder,
        relations: &[(&str, &Schema)],
        exprs: Vec<(ast::Expr, Option<FieldRef>)>,
    ) -> Result<Self> {
        Self::compile_checked(binder, relations, exprs, None)
    }

    /// The same, where `check` may refuse the type that an expression has by itself.
    pub(crate) fn compile_checked(
        binder: &Binder,
        relations: &[(&str, &Schema)],
        exprs: Vec<(ast::Expr, Option<FieldRef>)>,
        check: Option<&TypeCheck<'_>>,
    ) -> Result<Self> {
        if exprs.is_empty() {
            return Ok(Self { exprs: Vec::new() });
        }
        let schema = relations.iter().try_fold(DFSchema::empty(), |joined, (qualifier, schema)| {
            joined.join(&DFSchema::try_from_qualified_schema(TableReference::bare(*qualifier), schema)?)
        })?;
        let state = binder.scope().state();
        let planned = exprs
            .into_iter()
            .enumerate()
            .map(|(at, (expr, field))| {
                let expr = binder.expr(expr, &schema)?;
                // What has no type yet, the analyzer judges.
                if let (Some(check), Ok(data_type)) = (check, expr.get_type(&schema)) {
                    check(at, &data_type)?;
                }
                let expr = match field {
                    Some(field) => Expr::Cast(Cast::new_from_field(Box::new(expr), field)),
                    None => expr,
                };
                Ok(expr.alias(format!("e{at}")))
            })
            .collect::<Result<Vec<_>>>()?;
        // The analyzer's work (coercion, rewrites of text to uuid and json) needs a plan around the expressions.
        let schema = Arc::new(schema);
        let empty = LogicalPlan::EmptyRelation(datafusion::logical_expr::EmptyRelation {
            produce_one_row: false,
            schema: schema.clone(),
        });
        let plan = LogicalPlanBuilder::from(empty).project(planned)?.build()?;
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
        let LogicalPlan::Projection(projection) = plan else {
            return Err(Error::unsupported("a subquery in this place"));
        };
        let exprs = projection
            .expr
            .iter()
            .map(|expr| {
                let expr = expr.clone().unalias();
                Ok(state.create_physical_expr(expr, &schema)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { exprs })
    }

    /// Evaluates all of them over a batch whose columns are those given to `compile`, in order.
    pub(crate) fn evaluate(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.exprs.iter().map(|expr| Ok(expr.evaluate(rows)?.into_array(rows.num_rows())?)).collect()
    }

    /// Evaluates one of them as a condition.
    pub(crate) fn condition(&self, at: usize, rows: &RecordBatch) -> Result<BooleanArray> {
        let array = self.exprs[at].evaluate(rows)?.into_array(rows.num_rows())?;
        if array.data_type() == &DataType::Null {
            return Ok(BooleanArray::new_null(array.len()));
        }
        array
            .as_any()
            .downcast_ref::<BooleanArray>()
            .cloned()
            .ok_or_else(|| Error::state(base::SqlState::DATATYPE_MISMATCH, "the condition is not of type boolean"))
    }

    pub(crate) fn len(&self) -> usize {
        self.exprs.len()
    }
}
