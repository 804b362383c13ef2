//! Where PostgreSQL's rules for types and operators differ from DataFusion's.
//!
//! Two hooks share the rules. [`Operators`] is an expression planner: it sees each operator while a query is planned, when an operand
//! may still be a literal of open type. [`Coercion`] is a function rewrite: it runs before DataFusion's own coercion over every
//! expression of a plan, whoever built it, and sees casts, `IN`, `BETWEEN` and `CASE`.
//!
//! | written | becomes |
//! |---|---|
//! | `uuid_column = '…'`, `IN ('…')`, `BETWEEN`, `CASE` | the text read as a UUID |
//! | `timestamp_column > '…'`, `integer_column = '5'` | the literal read as the other side's type |
//! | `json -> key`, `->>`, `#>`, `#>>`, `@>`, `<@`, `?`, `?\|`, `?&`, `\|\|`, `-`, `#-` | JSON functions |
//! | `array && array` | `array_has_any` |
//! | `a ^ b`, `a ^@ b` | `power`, `starts_with` |
//! | `timestamp - timestamp` | an interval (DataFusion: a duration) |
//! | `interval * number`, `interval / number` | interval functions |
//! | `'a' \|\| 1.5` | the number as PostgreSQL prints it |
//! | casts between text and uuid, json, bytea, times, intervals, arrays | functions that read and print PostgreSQL's forms |
//! | `CAST(2.5 AS integer)` | rounded, not cut |
//! | `ceil`, `floor` of a numeric | a numeric without fraction |
//! | `round` of a double | ties to even (DataFusion: away from zero) |
//! | `CAST(x AS varchar(3))` | cut to three characters |
//! | `integer + integer`, `-`, `*` | checked arithmetic (DataFusion wraps around) |
//! | `numeric / numeric` | a quotient with 16 digits behind the point at least, rounded (DataFusion: four more, cut) |
//! | `row_number()`, `rank()`, `dense_rank()` | `bigint` (DataFusion: unsigned) |

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::expr::{
    Between, Case, Cast, InList, Placeholder, ScalarFunction, TryCast, WindowFunction, WindowFunctionParams,
};
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr, RawBinaryExpr, RawWindowExpr};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator, ScalarUDF, WindowFunctionDefinition, lit};
use sqlparser::ast::BinaryOperator as Sql;

use super::TypeSpec;
use crate::functions::call::{Definition, Function};
use crate::functions::{aggregates, arrays, convert, datetime, json, math};

/// The call of one of our functions.
fn call(definition: &'static Definition, arguments: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(Function::udf(definition)), arguments))
}

fn call_udf(function: Arc<ScalarUDF>, arguments: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(function, arguments))
}

/// The field of an expression, if its type can be told. (DataFusion says that a cast keeps the metadata of what it casts.)
fn field(expr: &Expr, schema: &DFSchema) -> Option<FieldRef> {
    match expr {
        Expr::Cast(Cast { expr: _, field }) | Expr::TryCast(TryCast { expr: _, field }) => Some(Arc::clone(field)),
        Expr::Alias(alias) => field(&alias.expr, schema),
        other => other.to_field(schema).ok().map(|(_, field)| field),
    }
}

fn spec(field: &FieldRef) -> Option<TypeSpec> {
    TypeSpec::from_field(field).ok()
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A literal text, which may stand for a value of another type.
fn is_text_literal(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Literal(ScalarValue::Utf8(Some(_)) | ScalarValue::Utf8View(Some(_)) | ScalarValue::LargeUtf8(Some(_)), _)
    )
}

/// Whether a division is one of numerics: one side is, the other is or is an integer.
fn divides_numerics(left: &DataType, right: &DataType) -> bool {
    let numeric = |data_type: &DataType| matches!(data_type, DataType::Decimal128(..));
    (numeric(left) && (numeric(right) || right.is_integer())) || (left.is_integer() && numeric(right))
}

/// A parameter of which nothing is known, as a number.
fn untyped(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Placeholder(placeholder) if placeholder.field.is_none() => {
            let field = Arc::new(Field::new(&placeholder.id, DataType::Float64, true));
            Some(Expr::Placeholder(Placeholder::new_with_field(placeholder.id.clone(), Some(field))))
        }
        _ => None,
    }
}

/// A text read as this type.
fn read(text: Expr, spec: &TypeSpec) -> Expr {
    match spec {
        TypeSpec::Uuid => call(&convert::UUID_IN, vec![text]),
        TypeSpec::Json => call(&convert::JSON_IN, vec![text]),
        TypeSpec::Jsonb => call(&convert::JSONB_IN, vec![text]),
        TypeSpec::Bytea => call(&convert::BYTEA_IN, vec![text]),
        TypeSpec::Date => call(&convert::DATE_IN, vec![text]),
        TypeSpec::Time => call(&convert::TIME_IN, vec![text]),
        TypeSpec::Timestamp => call(&convert::TIMESTAMP_IN, vec![text]),
        TypeSpec::TimestampTz => call(&convert::TIMESTAMPTZ_IN, vec![text]),
        TypeSpec::Interval => call(&convert::INTERVAL_IN, vec![text]),
        TypeSpec::Array(_) => call_udf(Arc::new(convert::array_in(spec)), vec![text]),
        other => Expr::Cast(Cast::new_from_field(Box::new(text), other.field_ref(""))),
    }
}

/// Whether reading needs a function of ours, because Arrow's cast reads other forms or none.
fn needs_reader(spec: &TypeSpec) -> bool {
    matches!(
        spec,
        TypeSpec::Uuid
            | TypeSpec::Json
            | TypeSpec::Jsonb
            | TypeSpec::Bytea
            | TypeSpec::Date
            | TypeSpec::Time
            | TypeSpec::Timestamp
            | TypeSpec::TimestampTz
            | TypeSpec::Interval
            | TypeSpec::Array(_)
    )
}

/// Whether printing needs a function of ours, because Arrow's cast prints another form or none.
fn needs_printer(data_type: &DataType) -> bool {
    data_type.is_floating()
        || matches!(
            data_type,
            DataType::Timestamp(..)
                | DataType::Time64(_)
                | DataType::Time32(_)
                | DataType::Date32
                | DataType::Interval(_)
                | DataType::Duration(_)
                | DataType::FixedSizeBinary(_)
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::List(_)
                | DataType::LargeList(_)
                | DataType::FixedSizeList(..)
                | DataType::Struct(_)
        )
}

/// The two sides of a comparison brought to one type, if DataFusion would not do it, or not as PostgreSQL does.
fn unify(left: &Expr, right: &Expr, schema: &DFSchema) -> Option<(Expr, Expr)> {
    let (left_field, right_field) = (field(left, schema)?, field(right, schema)?);
    if let Some(left) = reads_as(left, &left_field, &right_field) {
        return Some((left, right.clone()));
    }
    reads_as(right, &right_field, &left_field).map(|right| (left.clone(), right))
}

/// `expr` read as the type of `other`, if it is a text and `other` is not.
fn reads_as(expr: &Expr, own: &FieldRef, other: &FieldRef) -> Option<Expr> {
    if !is_text(own.data_type()) || is_text(other.data_type()) || other.data_type().is_null() {
        return None;
    }
    let spec = spec(other)?;
    // A text column against a number or time is DataFusion's to coerce; a UUID is not.
    (is_text_literal(expr) || spec == TypeSpec::Uuid).then(|| read(expr.clone(), &spec))
}

/// PostgreSQL's operators for DataFusion's planner.
#[derive(Debug)]
pub(crate) struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> DataFusionResult<PlannerResult<RawBinaryExpr>> {
        match operator(&raw, schema) {
            Some(planned) => Ok(PlannerResult::Planned(planned)),
            None => Ok(PlannerResult::Original(raw)),
        }
    }

    fn plan_aggregate(&self, raw: RawAggregateExpr) -> DataFusionResult<PlannerResult<RawAggregateExpr>> {
        Ok(aggregates::plan(raw)?)
    }

    fn plan_window(&self, raw: RawWindowExpr) -> DataFusionResult<PlannerResult<RawWindowExpr>> {
        let target = match &raw.func_def {
            WindowFunctionDefinition::WindowUDF(function) => match function.name() {
                "row_number" | "rank" | "dense_rank" => DataType::Int64,
                "ntile" => DataType::Int32,
                _ => return Ok(PlannerResult::Original(raw)),
            },
            WindowFunctionDefinition::AggregateUDF(_) => return Ok(PlannerResult::Original(raw)),
        };
        let RawWindowExpr { func_def, args, partition_by, order_by, window_frame, filter, null_treatment, distinct } =
            raw;
        let window = WindowFunction {
            fun: func_def,
            params: WindowFunctionParams {
                args,
                partition_by,
                order_by,
                window_frame,
                filter,
                null_treatment,
                distinct,
            },
        };
        let name = Expr::WindowFunction(Box::new(window.clone())).schema_name().to_string();
        let cast = Expr::Cast(Cast::new(Box::new(Expr::WindowFunction(Box::new(window))), target));
        Ok(PlannerResult::Planned(cast.alias(name)))
    }
}

fn operator(raw: &RawBinaryExpr, schema: &DFSchema) -> Option<Expr> {
    let RawBinaryExpr { op, left, right } = raw;
    let both = || vec![left.clone(), right.clone()];
    // These need no types.
    match op {
        Sql::Arrow => return Some(call(&json::GET, both())),
        Sql::LongArrow => return Some(call(&json::GET_TEXT, both())),
        Sql::HashArrow => return Some(call(&json::PATH, both())),
        Sql::HashLongArrow => return Some(call(&json::PATH_TEXT, both())),
        Sql::HashMinus => return Some(call(&json::DELETE_PATH, both())),
        Sql::Question => return Some(call(&json::EXISTS, both())),
        Sql::QuestionPipe => return Some(call(&json::EXISTS_ANY, both())),
        Sql::QuestionAnd => return Some(call(&json::EXISTS_ALL, both())),
        Sql::PGStartsWith => return Some(call_udf(datafusion::functions::string::starts_with(), both())),
        Sql::PGExp => {
            let double = |expr: &Expr| Expr::Cast(Cast::new(Box::new(expr.clone()), DataType::Float64));
            return Some(call_udf(datafusion::functions::math::power(), vec![double(left), double(right)]));
        }
        _ => {}
    }
    // A parameter beside an interval is a number.
    if matches!(op, Sql::Multiply | Sql::Divide) {
        let is_interval =
            |expr: &Expr| field(expr, schema).is_some_and(|field| matches!(field.data_type(), DataType::Interval(_)));
        if let (Some(number), true) = (untyped(left), is_interval(right) && matches!(op, Sql::Multiply)) {
            return Some(call(&datetime::INTERVAL_MULTIPLY, vec![right.clone(), number]));
        }
        if let (true, Some(number)) = (is_interval(left), untyped(right)) {
            let function =
                if matches!(op, Sql::Multiply) { &datetime::INTERVAL_MULTIPLY } else { &datetime::INTERVAL_DIVIDE };
            return Some(call(function, vec![left.clone(), number]));
        }
    }
    let (left_field, right_field) = (field(left, schema)?, field(right, schema)?);
    let (left_type, right_type) = (left_field.data_type(), right_field.data_type());
    let is_json = |field: &FieldRef| spec(field).is_some_and(|spec| spec.is_json());
    let is_list = |data_type: &DataType| {
        matches!(data_type, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
    };
    match op {
        Sql::Eq | Sql::NotEq | Sql::Lt | Sql::LtEq | Sql::Gt | Sql::GtEq => {
            let (left, right) = unify(left, right, schema)?;
            Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), comparison(op)?, Box::new(right))))
        }
        Sql::Divide if divides_numerics(left_type, right_type) => Some(call(&math::NUMERIC_DIVIDE, both())),
        Sql::PGOverlap if is_list(left_type) || is_list(right_type) => Some(call(&arrays::OVERLAP, both())),
        Sql::AtArrow
            if is_json(&left_field) || is_json(&right_field) || (is_text(left_type) && is_text(right_type)) =>
        {
            Some(call(&json::CONTAINS, both()))
        }
        Sql::ArrowAt
            if is_json(&left_field) || is_json(&right_field) || (is_text(left_type) && is_text(right_type)) =>
        {
            Some(call(&json::CONTAINS, vec![right.clone(), left.clone()]))
        }
        Sql::StringConcat if is_json(&left_field) && (is_json(&right_field) || is_text_literal(right)) => {
            Some(call(&json::CONCAT, both()))
        }
        Sql::StringConcat if is_json(&right_field) && is_text_literal(left) => Some(call(&json::CONCAT, both())),
        Sql::StringConcat if !is_list(left_type) && !is_list(right_type) => {
            let (printed_left, printed_right) = (printed(left, left_type), printed(right, right_type));
            if printed_left.is_none() && printed_right.is_none() {
                return None;
            }
            Some(Expr::BinaryExpr(BinaryExpr::new(
                Box::new(printed_left.unwrap_or_else(|| left.clone())),
                Operator::StringConcat,
                Box::new(printed_right.unwrap_or_else(|| right.clone())),
            )))
        }
        Sql::Minus if is_json(&left_field) => Some(call(&json::DELETE, both())),
        Sql::Minus if is_time(left_type) && is_time(right_type) => Some(call(&datetime::TIMESTAMP_DIFFERENCE, both())),
        Sql::Plus | Sql::Minus if is_moment(left_type) && is_text_literal(right) => {
            let right = read(right.clone(), &TypeSpec::Interval);
            let op = if matches!(op, Sql::Plus) { Operator::Plus } else { Operator::Minus };
            Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left.clone()), op, Box::new(right))))
        }
        // A date moves by days.
        Sql::Plus if matches!(left_type, DataType::Date32) && right_type.is_integer() => {
            Some(call(&datetime::DATE_ADD, both()))
        }
        Sql::Plus if left_type.is_integer() && matches!(right_type, DataType::Date32) => {
            Some(call(&datetime::DATE_ADD, vec![right.clone(), left.clone()]))
        }
        Sql::Minus if matches!(left_type, DataType::Date32) && right_type.is_integer() => {
            Some(call(&datetime::DATE_SUBTRACT, both()))
        }
        Sql::Minus if matches!((left_type, right_type), (DataType::Date32, DataType::Date32)) => {
            Some(call(&datetime::DATE_DIFFERENCE, both()))
        }
        // A date and an interval are a timestamp.
        Sql::Plus | Sql::Minus if matches!((left_type, right_type), (DataType::Date32, DataType::Interval(_))) => {
            let left = Expr::Cast(Cast::new_from_field(Box::new(left.clone()), TypeSpec::Timestamp.field_ref("")));
            let op = if matches!(op, Sql::Plus) { Operator::Plus } else { Operator::Minus };
            Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right.clone()))))
        }
        Sql::Plus if matches!((left_type, right_type), (DataType::Interval(_), DataType::Date32)) => {
            let right = Expr::Cast(Cast::new_from_field(Box::new(right.clone()), TypeSpec::Timestamp.field_ref("")));
            Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(right), Operator::Plus, Box::new(left.clone()))))
        }
        Sql::Plus if matches!((left_type, right_type), (DataType::Date32, DataType::Time64(_))) => {
            Some(call(&datetime::DATE_TIME, both()))
        }
        Sql::Multiply if is_interval(left_type) && is_number(right_type) => {
            Some(call(&datetime::INTERVAL_MULTIPLY, both()))
        }
        Sql::Multiply if is_number(left_type) && is_interval(right_type) => {
            Some(call(&datetime::INTERVAL_MULTIPLY, vec![right.clone(), left.clone()]))
        }
        Sql::Divide if is_interval(left_type) && is_number(right_type) => {
            Some(call(&datetime::INTERVAL_DIVIDE, both()))
        }
        _ => None,
    }
}

fn comparison(op: &Sql) -> Option<Operator> {
    Some(match op {
        Sql::Eq => Operator::Eq,
        Sql::NotEq => Operator::NotEq,
        Sql::Lt => Operator::Lt,
        Sql::LtEq => Operator::LtEq,
        Sql::Gt => Operator::Gt,
        Sql::GtEq => Operator::GtEq,
        _ => return None,
    })
}

fn is_interval(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Interval(IntervalUnit::MonthDayNano) | DataType::Duration(_))
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

fn is_moment(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..) | DataType::Date32)
}

/// A value as text, if Arrow would print it differently.
fn printed(expr: &Expr, data_type: &DataType) -> Option<Expr> {
    needs_printer(data_type).then(|| call(&convert::TEXT_OUT, vec![expr.clone()]))
}

/// PostgreSQL's conversions, over every expression of a plan.
#[derive(Debug)]
pub(crate) struct Coercion;

impl FunctionRewrite for Coercion {
    fn name(&self) -> &str {
        "lattice_coercion"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> DataFusionResult<Transformed<Expr>> {
        Ok(match coerce(&expr, schema) {
            Some(coerced) => Transformed::yes(coerced),
            None => Transformed::no(expr),
        })
    }
}

/// Whether an operator compares two values of one type.
pub(crate) fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

fn coerce(expr: &Expr, schema: &DFSchema) -> Option<Expr> {
    match expr {
        Expr::Cast(Cast { expr: inner, field: target }) => cast(inner, target, schema),
        Expr::TryCast(TryCast { expr: inner, field: target }) => try_cast(inner, target, schema),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            op if is_comparison(*op) => {
                let (left, right) = unify(left, right, schema)?;
                Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), *op, Box::new(right))))
            }
            Operator::StringConcat => {
                let (left_field, right_field) = (field(left, schema)?, field(right, schema)?);
                let (printed_left, printed_right) =
                    (printed(left, left_field.data_type()), printed(right, right_field.data_type()));
                let list = |field: &FieldRef| matches!(field.data_type(), DataType::List(_) | DataType::LargeList(_));
                if (printed_left.is_none() && printed_right.is_none()) || list(&left_field) || list(&right_field) {
                    return None;
                }
                Some(Expr::BinaryExpr(BinaryExpr::new(
                    Box::new(printed_left.unwrap_or_else(|| (**left).clone())),
                    *op,
                    Box::new(printed_right.unwrap_or_else(|| (**right).clone())),
                )))
            }
            // Where a parameter stood while the operator was planned.
            Operator::Divide => {
                let (left_type, right_type) = (left.get_type(schema).ok()?, right.get_type(schema).ok()?);
                let ours = divides_numerics(&left_type, &right_type);
                ours.then(|| call(&math::NUMERIC_DIVIDE, vec![(**left).clone(), (**right).clone()]))
            }
            Operator::Plus | Operator::Minus | Operator::Multiply => {
                let (left_type, right_type) = (left.get_type(schema).ok()?, right.get_type(schema).ok()?);
                if !left_type.is_integer() || !right_type.is_integer() {
                    return None;
                }
                // What fits 32 bits cannot overflow 64, and DataFusion knows plain operators better.
                let wide = math::wider_type(&left_type, &right_type) == DataType::Int64;
                if wide && is_small(left, &left_type) && is_small(right, &right_type) {
                    return None;
                }
                let function = match op {
                    Operator::Plus => &math::INT_ADD,
                    Operator::Minus => &math::INT_SUBTRACT,
                    _ => &math::INT_MULTIPLY,
                };
                Some(call(function, vec![(**left).clone(), (**right).clone()]))
            }
            _ => None,
        },
        Expr::InList(InList { expr: needle, list, negated }) => {
            let own = field(needle, schema)?;
            let mut changed = false;
            let list = list
                .iter()
                .map(|item| match field(item, schema).and_then(|item_field| reads_as(item, &item_field, &own)) {
                    Some(read) => {
                        changed = true;
                        read
                    }
                    None => item.clone(),
                })
                .collect();
            changed.then(|| Expr::InList(InList::new(needle.clone(), list, *negated)))
        }
        Expr::Between(Between { expr: value, negated, low, high }) => {
            let own = field(value, schema)?;
            let bound = |bound: &Expr| field(bound, schema).and_then(|bound_field| reads_as(bound, &bound_field, &own));
            let (new_low, new_high) = (bound(low), bound(high));
            if new_low.is_none() && new_high.is_none() {
                return None;
            }
            Some(Expr::Between(Between::new(
                value.clone(),
                *negated,
                new_low.map_or_else(|| low.clone(), Box::new),
                new_high.map_or_else(|| high.clone(), Box::new),
            )))
        }
        Expr::Case(Case { expr: Some(operand), when_then_expr, else_expr }) => {
            let own = field(operand, schema)?;
            let mut changed = false;
            let when_then_expr = when_then_expr
                .iter()
                .map(|(when, then)| {
                    match field(when, schema).and_then(|when_field| reads_as(when, &when_field, &own)) {
                        Some(read) => {
                            changed = true;
                            (Box::new(read), then.clone())
                        }
                        None => (when.clone(), then.clone()),
                    }
                })
                .collect();
            changed
                .then(|| Expr::Case(Case { expr: Some(operand.clone()), when_then_expr, else_expr: else_expr.clone() }))
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) if matches!(func.name(), "concat" | "concat_ws") => {
            let mut changed = false;
            let args = args
                .iter()
                .map(|argument| match field(argument, schema).and_then(|field| printed(argument, field.data_type())) {
                    Some(printed) => {
                        changed = true;
                        printed
                    }
                    None => argument.clone(),
                })
                .collect();
            changed.then(|| call_udf(Arc::clone(func), args))
        }
        Expr::ScalarFunction(ScalarFunction { func, args })
            if matches!(func.name(), "ceil" | "floor") && args.len() == 1 =>
        {
            let DataType::Decimal128(..) = args[0].get_type(schema).ok()? else { return None };
            Some(call(
                if func.name() == "ceil" { &convert::CEIL_DECIMAL } else { &convert::FLOOR_DECIMAL },
                args.clone(),
            ))
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == "round" && args.len() == 1 => {
            args[0].get_type(schema).ok()?.is_floating().then(|| call(&convert::ROUND_EVEN, args.clone()))
        }
        _ => None,
    }
}

/// An integer of at most 32 bits, by its type or because it is such a constant.
fn is_small(expr: &Expr, data_type: &DataType) -> bool {
    match expr {
        Expr::Literal(ScalarValue::Int64(Some(value)), _) => i32::try_from(*value).is_ok(),
        _ => {
            matches!(data_type, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16)
        }
    }
}

/// A cast that Arrow would do differently, or not at all.
fn cast(inner: &Expr, target: &FieldRef, schema: &DFSchema) -> Option<Expr> {
    let source = field(inner, schema)?;
    let (from, to) = (source.data_type(), target.data_type());
    if from.is_null() {
        return None;
    }
    let wanted = spec(target)?;
    if is_text(from) {
        let own = spec(&source);
        if own.as_ref() == Some(&wanted) {
            return None;
        }
        if own.is_some_and(|own| own.is_json()) && wanted.is_text() {
            let text = call(&convert::TEXT_OUT, vec![inner.clone()]);
            return Some(match wanted.length() {
                Some(length) => shortened(text, length),
                None => text,
            });
        }
        if needs_reader(&wanted) {
            return Some(read(inner.clone(), &wanted));
        }
        if let Some(length) = wanted.length() {
            return Some(shortened(inner.clone(), length));
        }
        if to == &DataType::Boolean {
            return Some(call(&convert::BOOL_IN, vec![inner.clone()]));
        }
        if to.is_numeric() {
            // Spaces around a number do not matter. What is trimmed already is left alone: the rewrite sees its own result again.
            let trim = datafusion::functions::string::btrim();
            let trimmed = matches!(inner, Expr::ScalarFunction(function) if function.func.name() == trim.name());
            let text = || call_udf(trim, vec![inner.clone()]);
            return (!trimmed).then(|| Expr::Cast(Cast::new_from_field(Box::new(text()), Arc::clone(target))));
        }
        return None;
    }
    if wanted.is_text() {
        return match (printed(inner, from), wanted.length()) {
            (Some(text), Some(length)) => Some(shortened(text, length)),
            (None, Some(length)) => {
                Some(shortened(Expr::Cast(Cast::new(Box::new(inner.clone()), DataType::Utf8)), length))
            }
            (text, None) => text,
        };
    }
    if wanted.is_json() {
        // PostgreSQL has no cast from other types to JSON either; to_json is the function for it.
        return None;
    }
    if to.is_integer() && from.is_floating() {
        let rounded = call(&convert::ROUND_EVEN, vec![inner.clone()]);
        return Some(Expr::Cast(Cast::new_from_field(Box::new(rounded), Arc::clone(target))));
    }
    if to.is_integer()
        && let DataType::Decimal128(_, scale) = from
        && *scale > 0
    {
        let rounded = call(&convert::ROUND_DECIMAL, vec![inner.clone()]);
        return Some(Expr::Cast(Cast::new_from_field(Box::new(rounded), Arc::clone(target))));
    }
    None
}

/// `varchar(n)` in a cast cuts.
fn shortened(text: Expr, length: usize) -> Expr {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    call(&convert::TEXT_LIMIT, vec![text, lit(length)])
}

/// `TRY_CAST` of a text gives null where it does not read.
fn try_cast(inner: &Expr, target: &FieldRef, schema: &DFSchema) -> Option<Expr> {
    let source = field(inner, schema)?;
    let wanted = spec(target)?;
    if is_text(source.data_type()) && needs_reader(&wanted) {
        return Some(call_udf(Arc::new(convert::try_in(&wanted)), vec![inner.clone()]));
    }
    None
}
