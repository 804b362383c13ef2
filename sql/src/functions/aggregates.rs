//! Aggregates that DataFusion lacks, built from those it has while a query is planned.
//!
//! | written | becomes |
//! |---|---|
//! | `json_agg(x ORDER BY y)` | `json_of_list(array_agg(to_json(x) ORDER BY y))` |
//! | `json_object_agg(k, v)` | `json_of_pairs(array_agg(struct(text(k), to_json(v))))` |
//! | `mode() WITHIN GROUP (ORDER BY x)` | `array_mode(array_agg(x))` |
//! | `percentile_disc(p) WITHIN GROUP (ORDER BY x)` | `array_percentile(array_agg(x), p)` |
//! | `any_value(x)` | `first_value(x) FILTER (WHERE x IS NOT NULL)` |
//!
//! The names must be known as aggregates before the planner asks what to do with them: [`Marker`]s stand for them and never run.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt32Array};
use arrow::compute::{SortOptions, sort_to_indices, take};
use arrow::datatypes::{DataType, FieldRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result as DataFusionResult;
use datafusion::functions_aggregate::{array_agg, bool_and_or, first_last, variance};
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::planner::{PlannerResult, RawAggregateExpr};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, ReturnFieldArgs, Signature, SortExpr, Volatility, lit,
};

use super::call::{Call, Definition, Function, Param, Returns, on, pure};
use super::{convert, json};
use crate::error::{Error, Result};

static JSON_OF_LIST: Definition = pure(&["json_of_list"], &[on(&[Param::List], Returns::Json, json_of_list)]);
static JSONB_OF_LIST: Definition = pure(&["jsonb_of_list"], &[on(&[Param::List], Returns::Jsonb, jsonb_of_list)]);
static JSON_OF_PAIRS: Definition = pure(&["json_of_pairs"], &[on(&[Param::List], Returns::Json, json_of_pairs)]);
static JSONB_OF_PAIRS: Definition = pure(&["jsonb_of_pairs"], &[on(&[Param::List], Returns::Jsonb, jsonb_of_pairs)]);
static ARRAY_MODE: Definition =
    pure(&["array_mode"], &[on(&[Param::List, Param::Bool], Returns::Compute(item), array_mode)]);
static ARRAY_PERCENTILE: Definition = pure(
    &["array_percentile"],
    &[on(&[Param::List, Param::Double, Param::Bool], Returns::Compute(item), array_percentile)],
);

/// Every scalar function of this module.
pub(crate) static ALL: [&Definition; 6] =
    [&JSON_OF_LIST, &JSONB_OF_LIST, &JSON_OF_PAIRS, &JSONB_OF_PAIRS, &ARRAY_MODE, &ARRAY_PERCENTILE];

/// The aggregates to register: markers, and other names for DataFusion's.
pub(crate) fn udafs() -> Vec<AggregateUDF> {
    let renamed = |function: Arc<AggregateUDF>, names: &[&'static str]| {
        function.as_ref().clone().with_aliases(names.iter().copied())
    };
    let mut all: Vec<AggregateUDF> = MARKERS
        .iter()
        .map(|&(name, within_group)| {
            AggregateUDF::from(Marker { name, within_group, signature: Signature::variadic_any(Volatility::Immutable) })
        })
        .collect();
    all.push(renamed(bool_and_or::bool_and_udaf(), &["every"]));
    all.push(renamed(variance::var_samp_udaf(), &["variance"]));
    all.push(AggregateUDF::from(super::sum::CheckedSum::default()));
    all.push(AggregateUDF::from(super::sum::RoundedAvg::default()));
    all
}

/// The marked names, and whether they take `WITHIN GROUP`.
const MARKERS: [(&str, bool); 7] = [
    ("json_agg", false),
    ("jsonb_agg", false),
    ("json_object_agg", false),
    ("jsonb_object_agg", false),
    ("any_value", false),
    ("mode", true),
    ("percentile_disc", true),
];

/// The name of an aggregate that is planned as something else.
struct Marker {
    name: &'static str,
    within_group: bool,
    signature: Signature,
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Marker {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Marker {}

impl Hash for Marker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl AggregateUDFImpl for Marker {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Null))
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        Err(Error::unsupported(format!("{} as a window function", self.name)).into())
    }

    fn state_fields(&self, _: StateFieldsArgs<'_>) -> DataFusionResult<Vec<FieldRef>> {
        Ok(Vec::new())
    }

    fn supports_within_group_clause(&self) -> bool {
        self.within_group
    }
}

fn call(definition: &'static Definition, arguments: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(Function::udf(definition)), arguments))
}

fn aggregate(function: Arc<AggregateUDF>, arguments: Vec<Expr>, raw: &RawAggregateExpr) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(
        function,
        arguments,
        raw.distinct,
        raw.filter.clone(),
        raw.order_by.clone(),
        raw.null_treatment,
    ))
}

/// The name the user would see.
fn shown(raw: &RawAggregateExpr) -> String {
    let arguments: Vec<String> = raw.args.iter().map(|argument| argument.schema_name().to_string()).collect();
    format!("{}({})", raw.func.name(), arguments.join(","))
}

/// Plans the aggregates of this module; others stay as they are.
pub(crate) fn plan(raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
    let count = |wanted: usize| {
        if raw.args.len() == wanted {
            Ok(())
        } else {
            Err(Error::state(
                base::SqlState::UNDEFINED_FUNCTION,
                format!("{} takes {wanted} arguments, not {}", raw.func.name(), raw.args.len()),
            ))
        }
    };
    let planned = match raw.func.name() {
        "json_agg" | "jsonb_agg" => {
            count(1)?;
            let items = call(json::to_json_definition(), raw.args.clone());
            let list = aggregate(array_agg::array_agg_udaf(), vec![items], &raw);
            call(if raw.func.name() == "json_agg" { &JSON_OF_LIST } else { &JSONB_OF_LIST }, vec![list])
        }
        "json_object_agg" | "jsonb_object_agg" => {
            count(2)?;
            let name = call(&convert::TEXT_OUT, vec![raw.args[0].clone()]);
            let value = call(json::to_json_definition(), vec![raw.args[1].clone()]);
            let pair = Expr::ScalarFunction(ScalarFunction::new_udf(
                datafusion::functions::core::named_struct(),
                vec![lit("name"), name, lit("value"), value],
            ));
            let list = aggregate(array_agg::array_agg_udaf(), vec![pair], &raw);
            call(if raw.func.name() == "json_object_agg" { &JSON_OF_PAIRS } else { &JSONB_OF_PAIRS }, vec![list])
        }
        "any_value" => {
            count(1)?;
            let valid = raw.args[0].clone().is_not_null();
            let filter = match &raw.filter {
                Some(filter) => filter.as_ref().clone().and(valid),
                None => valid,
            };
            Expr::AggregateFunction(AggregateFunction::new_udf(
                first_last::first_value_udaf(),
                raw.args.clone(),
                false,
                Some(Box::new(filter)),
                Vec::new(),
                None,
            ))
        }
        "mode" => {
            count(1)?;
            let descending = descending(&raw.order_by);
            call(&ARRAY_MODE, vec![unordered_list(&raw), lit(descending)])
        }
        "percentile_disc" => {
            count(2)?;
            let descending = descending(&raw.order_by);
            call(&ARRAY_PERCENTILE, vec![unordered_list(&raw), raw.args[1].clone(), lit(descending)])
        }
        _ => return Ok(PlannerResult::Original(raw)),
    };
    Ok(PlannerResult::Planned(planned.alias(shown(&raw))))
}

fn descending(order: &[SortExpr]) -> bool {
    order.first().is_some_and(|order| !order.asc)
}

/// All values of the ordered argument; the order is made by the function that looks at the list.
fn unordered_list(raw: &RawAggregateExpr) -> Expr {
    Expr::AggregateFunction(AggregateFunction::new_udf(
        array_agg::array_agg_udaf(),
        vec![raw.args[0].clone()],
        false,
        raw.filter.clone(),
        Vec::new(),
        None,
    ))
}

fn item(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    match arguments.arg_fields[0].data_type() {
        DataType::List(item) => Ok(Arc::clone(item)),
        _ => Err(Error::internal("a list is expected")),
    }
}

/// JSON texts as one array.
fn json_of_list(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.texts(1, |row| {
        let items = list.value(row);
        let items = items.as_string::<i32>();
        let texts: Vec<&str> = items.iter().map(|item| item.unwrap_or("null")).collect();
        Ok(Some(format!("[{}]", texts.join(", "))))
    })
}

fn canonical(texts: &ArrayRef) -> Result<ArrayRef> {
    let texts = texts.as_string::<i32>();
    let values = texts.iter().map(|text| text.map(json::text::canonical).transpose()).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(arrow::array::StringArray::from(values)))
}

fn jsonb_of_list(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&json_of_list(call)?)
}

/// Names with JSON texts as one object.
fn json_of_pairs(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.texts(1, |row| {
        let pairs = list.value(row);
        let pairs = pairs.as_struct();
        let (names, values) = (pairs.column(0).as_string::<i32>(), pairs.column(1).as_string::<i32>());
        let mut out = String::from("{ ");
        for at in 0..pairs.len() {
            if at > 0 {
                out.push_str(", ");
            }
            if names.is_null(at) {
                return Err(Error::invalid("a name in json_object_agg is null"));
            }
            json::text::write_string(&mut out, names.value(at));
            out.push_str(" : ");
            out.push_str(if values.is_valid(at) { values.value(at) } else { "null" });
        }
        out.push_str(" }");
        Ok(Some(out))
    })
}

fn jsonb_of_pairs(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&json_of_pairs(call)?)
}

/// The items that are not null, sorted.
fn sorted(list: &ListArray, row: usize, descending: bool) -> Result<ArrayRef> {
    let items = list.value(row);
    let valid: UInt32Array =
        (0..items.len()).filter(|at| items.is_valid(*at)).map(|at| u32::try_from(at).ok()).collect();
    let items = take(&items, &valid, None)?;
    let order = sort_to_indices(&items, Some(SortOptions { descending, nulls_first: false }), None)?;
    Ok(take(&items, &order, None)?)
}

/// One item per row, or null.
fn picked(list: &ListArray, picks: Vec<Option<ArrayRef>>) -> Result<ArrayRef> {
    let null = arrow::array::new_null_array(&list.value_type(), 1);
    let parts: Vec<&dyn Array> = picks.iter().map(|pick| pick.as_ref().unwrap_or(&null).as_ref()).collect();
    if parts.is_empty() {
        return Ok(arrow::array::new_empty_array(&list.value_type()));
    }
    Ok(arrow::compute::concat(&parts)?)
}

/// The most frequent item; the first in order of several.
fn array_mode(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let converter = RowConverter::new(vec![SortField::new(list.value_type())])?;
    let mut picks = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        if list.is_null(row) {
            picks.push(None);
            continue;
        }
        let items = sorted(list, row, call.bool(1).value(row))?;
        let rows = converter.convert_columns(std::slice::from_ref(&items))?;
        let mut best: Option<(usize, usize)> = None;
        let mut start = 0;
        for at in 0..items.len() {
            if rows.row(at) != rows.row(start) {
                start = at;
            }
            let length = at - start + 1;
            if best.is_none_or(|(most, _)| length > most) {
                best = Some((length, start));
            }
        }
        picks.push(best.map(|(_, at)| items.slice(at, 1)));
    }
    picked(list, picks)
}

/// The first item whose share of the order reaches the fraction.
fn array_percentile(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let mut picks = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        if list.is_null(row) || call.double(1).is_null(row) {
            picks.push(None);
            continue;
        }
        let fraction = call.double(1).value(row);
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::state(
                base::SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                format!("percentile value {fraction} is not between 0 and 1"),
            ));
        }
        let items = sorted(list, row, call.bool(2).value(row))?;
        picks.push((!items.is_empty()).then(|| {
            let place = (fraction * items.len() as f64).ceil() as usize;
            items.slice(place.clamp(1, items.len()) - 1, 1)
        }));
    }
    picked(list, picks)
}
