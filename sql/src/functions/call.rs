//! How our functions are declared: overloads with parameter classes, resolved as PostgreSQL resolves them, over whole Arrow arrays.
//!
//! A function is a `static` [`Definition`]: names, and for each [`Overload`] what it takes, what it returns and what computes it. The body
//! sees arrays that already have the types of the overload, one value per row.
//!
//! # Invariants
//! - CAL-1 the overload with the least conversion wins; without one the error is 42883. Test: `the_nearest_overload_wins`.
//! - CAL-2 a call with only constants is computed once. Held by [`Function::invoke_with_args`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::error::{Error, Result};
use crate::types::{EXTENSION, TYPE, TypeSpec, utc};

/// A class of argument types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Param {
    /// A string; arrives as `StringArray`.
    Text,
    /// JSON; arrives as `StringArray`. Written text counts as JSON.
    Json,
    /// An integer of any size; arrives as 64 bits.
    Int,
    /// A number; arrives as double.
    Double,
    /// A decimal, or an integer as one; arrives as `Decimal128` of some precision and scale.
    Numeric,
    /// A boolean.
    Bool,
    /// Bytes; arrives as `BinaryArray`.
    Bytea,
    /// A date.
    Date,
    /// A time of day.
    Time,
    /// A time stamp without zone; arrives in microseconds.
    Timestamp,
    /// A time stamp with zone; arrives in microseconds UTC.
    TimestampTz,
    /// An interval.
    Interval,
    /// A UUID.
    Uuid,
    /// An array of anything, as `ListArray`.
    List,
    /// An array of strings.
    TextList,
    /// Anything, as it is.
    Any,
}

/// What an overload returns.
#[derive(Clone, Copy)]
pub(crate) enum Returns {
    Text,
    Json,
    Jsonb,
    Int4,
    Int8,
    Double,
    Bool,
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    TextList,
    JsonList,
    /// The type of this argument, after conversion.
    Same(usize),
    /// Anything else.
    Compute(fn(&ReturnFieldArgs<'_>) -> Result<FieldRef>),
}

/// Computes a call.
pub(crate) type Body = fn(&Call<'_>) -> Result<ArrayRef>;

/// One way to call a function.
pub(crate) struct Overload {
    /// The arguments.
    pub(crate) takes: &'static [Param],
    /// Further arguments of this class, any number.
    pub(crate) more: Option<Param>,
    /// The result.
    pub(crate) returns: Returns,
    /// The computation.
    pub(crate) body: Body,
}

/// A function.
pub(crate) struct Definition {
    /// Its name, then its other names.
    pub(crate) names: &'static [&'static str],
    /// Whether the same arguments give the same result.
    pub(crate) volatility: Volatility,
    /// The ways to call it.
    pub(crate) overloads: &'static [Overload],
}

/// Shorthand for one overload.
pub(crate) const fn on(takes: &'static [Param], returns: Returns, body: Body) -> Overload {
    Overload { takes, more: None, returns, body }
}

/// Shorthand for one overload with any number of further arguments.
pub(crate) const fn variadic(takes: &'static [Param], more: Param, returns: Returns, body: Body) -> Overload {
    Overload { takes, more: Some(more), returns, body }
}

/// Shorthand for an immutable function.
pub(crate) const fn pure(names: &'static [&'static str], overloads: &'static [Overload]) -> Definition {
    Definition { names, volatility: Volatility::Immutable, overloads }
}

/// A call under way.
pub(crate) struct Call<'a> {
    /// The arguments, one value per row each.
    pub(crate) arrays: Vec<ArrayRef>,
    /// How many rows.
    pub(crate) rows: usize,
    /// The declared result.
    pub(crate) returns: &'a FieldRef,
    /// The declared arguments.
    pub(crate) fields: &'a [FieldRef],
}

impl Call<'_> {
    /// The texts of an argument.
    pub(crate) fn text(&self, at: usize) -> &StringArray {
        self.arrays[at].as_string::<i32>()
    }

    /// The integers of an argument.
    pub(crate) fn int(&self, at: usize) -> &arrow::array::Int64Array {
        self.arrays[at].as_primitive::<Int64Type>()
    }

    /// The doubles of an argument.
    pub(crate) fn double(&self, at: usize) -> &arrow::array::Float64Array {
        self.arrays[at].as_primitive()
    }

    /// The booleans of an argument.
    pub(crate) fn bool(&self, at: usize) -> &BooleanArray {
        self.arrays[at].as_boolean()
    }

    /// The intervals of an argument.
    pub(crate) fn interval(&self, at: usize) -> &arrow::array::PrimitiveArray<IntervalMonthDayNanoType> {
        self.arrays[at].as_primitive()
    }

    /// The microseconds of a time stamp argument.
    pub(crate) fn micros(&self, at: usize) -> &arrow::array::TimestampMicrosecondArray {
        self.arrays[at].as_primitive()
    }

    /// The dates of an argument, in days.
    pub(crate) fn date(&self, at: usize) -> &arrow::array::Date32Array {
        self.arrays[at].as_primitive()
    }

    /// The lists of an argument.
    pub(crate) fn list(&self, at: usize) -> &arrow::array::ListArray {
        self.arrays[at].as_list()
    }

    /// Whether an argument was given.
    pub(crate) fn has(&self, at: usize) -> bool {
        at < self.arrays.len()
    }

    /// Texts row by row; a null argument among the first `strict` gives null.
    pub(crate) fn texts(
        &self,
        strict: usize,
        mut body: impl FnMut(usize) -> Result<Option<String>>,
    ) -> Result<ArrayRef> {
        let mut values: Vec<Option<String>> = Vec::with_capacity(self.rows);
        for row in 0..self.rows {
            values.push(if self.any_null(row, strict) { None } else { body(row)? });
        }
        Ok(Arc::new(StringArray::from(values)))
    }

    /// Values of a primitive type row by row; a null argument among the first `strict` gives null.
    pub(crate) fn values<T: arrow::datatypes::ArrowPrimitiveType>(
        &self,
        strict: usize,
        mut body: impl FnMut(usize) -> Result<Option<T::Native>>,
    ) -> Result<ArrayRef> {
        let mut builder = arrow::array::PrimitiveBuilder::<T>::with_capacity(self.rows);
        for row in 0..self.rows {
            builder.append_option(if self.any_null(row, strict) { None } else { body(row)? });
        }
        let array = builder.finish();
        // Decimals and zones are parameters of the type that the builder does not know.
        let array = if array.data_type() == self.returns.data_type() {
            array
        } else {
            array.with_data_type(self.returns.data_type().clone())
        };
        Ok(Arc::new(array))
    }

    /// Booleans row by row; a null argument among the first `strict` gives null.
    pub(crate) fn booleans(
        &self,
        strict: usize,
        mut body: impl FnMut(usize) -> Result<Option<bool>>,
    ) -> Result<ArrayRef> {
        let mut values: Vec<Option<bool>> = Vec::with_capacity(self.rows);
        for row in 0..self.rows {
            values.push(if self.any_null(row, strict) { None } else { body(row)? });
        }
        Ok(Arc::new(BooleanArray::from(values)))
    }

    /// Arrays of texts row by row; a null argument among the first `strict` gives null.
    pub(crate) fn text_lists(
        &self,
        strict: usize,
        mut body: impl FnMut(usize) -> Result<Option<Vec<Option<String>>>>,
    ) -> Result<ArrayRef> {
        let DataType::List(item) = self.returns.data_type() else {
            return Err(Error::internal(format!("{} does not return an array", self.returns.name())));
        };
        let mut builder =
            arrow::array::ListBuilder::new(arrow::array::StringBuilder::new()).with_field(Arc::clone(item));
        for row in 0..self.rows {
            match if self.any_null(row, strict) { None } else { body(row)? } {
                Some(list) => builder.append_value(list),
                None => builder.append_null(),
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn any_null(&self, row: usize, strict: usize) -> bool {
        self.arrays.iter().take(strict).any(|array| array.is_null(row))
    }
}

/// A [`Definition`] as DataFusion calls it.
pub(crate) struct Function {
    definition: &'static Definition,
    aliases: Vec<String>,
    signature: Signature,
}

impl Function {
    /// The function behind a definition.
    pub(crate) fn udf(definition: &'static Definition) -> ScalarUDF {
        let nullary = definition.overloads.iter().any(|overload| overload.takes.is_empty());
        let signature = if nullary {
            TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::UserDefined])
        } else {
            TypeSignature::UserDefined
        };
        ScalarUDF::from(Function {
            definition,
            aliases: definition.names[1..].iter().map(|&name| name.to_owned()).collect(),
            signature: Signature::new(signature, definition.volatility),
        })
    }

    /// The overload for these types, with the types it wants.
    fn resolve(&self, types: &[DataType]) -> Result<(&'static Overload, Vec<DataType>)> {
        let mut best: Option<(u32, &'static Overload, Vec<DataType>)> = None;
        'overloads: for overload in self.definition.overloads {
            let enough = match overload.more {
                None => types.len() == overload.takes.len(),
                Some(_) => types.len() >= overload.takes.len(),
            };
            if !enough {
                continue;
            }
            let mut cost = 0;
            let mut wanted = Vec::with_capacity(types.len());
            let params = overload
                .takes
                .iter()
                .copied()
                .chain(std::iter::repeat_n(overload.more.unwrap_or(Param::Any), types.len() - overload.takes.len()));
            for (param, given) in params.zip(types) {
                match convert(param, given) {
                    Some((steps, target)) => {
                        cost += steps;
                        wanted.push(target);
                    }
                    None => continue 'overloads,
                }
            }
            if best.as_ref().is_none_or(|(least, _, _)| cost < *least) {
                best = Some((cost, overload, wanted));
            }
        }
        match best {
            Some((_, overload, wanted)) => Ok((overload, wanted)),
            None => {
                let given: Vec<String> = types
                    .iter()
                    .map(|given| {
                        TypeSpec::from_arrow(given).map_or_else(|_| given.to_string(), |spec| spec.base_name())
                    })
                    .collect();
                Err(Error::state(
                    SqlState::UNDEFINED_FUNCTION,
                    format!("function {}({}) does not exist", self.definition.names[0], given.join(", ")),
                )
                .with_hint("no function of this name takes these types; an explicit cast may help"))
            }
        }
    }
}

/// The conversion of an argument for a parameter: its cost and the type after it.
fn convert(param: Param, given: &DataType) -> Option<(u32, DataType)> {
    use DataType as T;
    let text = matches!(given, T::Utf8 | T::LargeUtf8 | T::Utf8View);
    let micros = |zone: Option<Arc<str>>| T::Timestamp(TimeUnit::Microsecond, zone);
    let months = T::Interval(IntervalUnit::MonthDayNano);
    // A text may be a literal whose type is still open, as PostgreSQL's "unknown": it converts, but only if nothing else fits.
    const LITERAL: u32 = 100;
    let null = matches!(given, T::Null);
    Some(match param {
        Param::Any => (2, if matches!(given, T::Utf8View | T::LargeUtf8) { T::Utf8 } else { given.clone() }),
        Param::Text if text => (0, T::Utf8),
        Param::Text if null => (1, T::Utf8),
        Param::Json if text => (0, T::Utf8),
        Param::Json if null => (1, T::Utf8),
        Param::Int if given.is_integer() => (0, T::Int64),
        Param::Int if null => (1, T::Int64),
        Param::Int if text => (LITERAL, T::Int64),
        Param::Double if matches!(given, T::Float64) => (0, T::Float64),
        Param::Double if given.is_floating() => (1, T::Float64),
        Param::Double
            if matches!(given, T::Decimal128(..) | T::Decimal64(..) | T::Decimal32(..) | T::Decimal256(..)) =>
        {
            (2, T::Float64)
        }
        Param::Double if given.is_integer() => (3, T::Float64),
        Param::Double if null => (1, T::Float64),
        Param::Double if text => (LITERAL, T::Float64),
        Param::Numeric => match given {
            T::Decimal128(..) => (0, given.clone()),
            T::Decimal32(precision, scale) | T::Decimal64(precision, scale) => (0, T::Decimal128(*precision, *scale)),
            given if given.is_integer() => (1, T::Decimal128(20, 0)),
            T::Null => (1, T::Decimal128(38, 10)),
            _ => return None,
        },
        Param::Bool if matches!(given, T::Boolean) => (0, T::Boolean),
        Param::Bool if null => (1, T::Boolean),
        Param::Bool if text => (LITERAL, T::Boolean),
        Param::Bytea if matches!(given, T::Binary | T::LargeBinary | T::BinaryView) => (0, T::Binary),
        Param::Bytea if null => (1, T::Binary),
        Param::Date if matches!(given, T::Date32 | T::Date64) => (0, T::Date32),
        Param::Date if null => (1, T::Date32),
        Param::Date if text => (LITERAL + 2, T::Date32),
        Param::Time if matches!(given, T::Time32(_) | T::Time64(_)) => (0, T::Time64(TimeUnit::Microsecond)),
        Param::Time if null => (1, T::Time64(TimeUnit::Microsecond)),
        Param::Time if text => (LITERAL + 4, T::Time64(TimeUnit::Microsecond)),
        Param::Timestamp if matches!(given, T::Timestamp(_, None)) => (0, micros(None)),
        Param::Timestamp if matches!(given, T::Date32 | T::Date64) => (1, micros(None)),
        Param::Timestamp if null => (1, micros(None)),
        Param::Timestamp if text => (LITERAL + 1, micros(None)),
        Param::TimestampTz if matches!(given, T::Timestamp(_, Some(_))) => (0, micros(Some(utc()))),
        Param::TimestampTz if matches!(given, T::Date32 | T::Date64 | T::Timestamp(_, None)) => {
            (2, micros(Some(utc())))
        }
        Param::TimestampTz if null => (1, micros(Some(utc()))),
        Param::TimestampTz if text => (LITERAL, micros(Some(utc()))),
        Param::Interval if matches!(given, T::Interval(_) | T::Duration(_)) => (0, months),
        Param::Interval if null => (1, months),
        Param::Interval if text => (LITERAL + 3, months),
        Param::Uuid if matches!(given, T::FixedSizeBinary(16)) => (0, given.clone()),
        Param::Uuid if null => (1, T::FixedSizeBinary(16)),
        Param::List => match given {
            T::List(_) => (0, given.clone()),
            T::LargeList(item) | T::FixedSizeList(item, _) | T::ListView(item) => (0, T::List(Arc::clone(item))),
            T::Null => (1, T::List(Arc::new(Field::new("item", T::Utf8, true)))),
            _ => return None,
        },
        Param::TextList => match given {
            T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _)
                if matches!(item.data_type(), T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Null) =>
            {
                (0, text_list())
            }
            T::Null => (1, text_list()),
            _ => return None,
        },
        _ => return None,
    })
}

/// `text[]` as an argument.
fn text_list() -> DataType {
    TypeSpec::Array(Box::new(TypeSpec::Text)).data_type()
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.definition.names[0]).finish_non_exhaustive()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.definition, other.definition)
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition.names[0].hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.definition.names[0]
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> DataFusionResult<Vec<DataType>> {
        Ok(self.resolve(types)?.1)
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        let fields: Vec<FieldRef> = types.iter().map(|given| Arc::new(Field::new("a", given.clone(), true))).collect();
        let scalars = vec![None; fields.len()];
        let arguments = ReturnFieldArgs { arg_fields: &fields, scalar_arguments: &scalars };
        Ok(self.return_field_from_args(arguments)?.data_type().clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> DataFusionResult<FieldRef> {
        let types: Vec<DataType> = arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let (overload, wanted) = self.resolve(&types)?;
        let name = self.definition.names[0];
        let spec = match overload.returns {
            Returns::Text => TypeSpec::Text,
            Returns::Json => TypeSpec::Json,
            Returns::Jsonb => TypeSpec::Jsonb,
            Returns::Int4 => TypeSpec::Integer,
            Returns::Int8 => TypeSpec::BigInt,
            Returns::Double => TypeSpec::Double,
            Returns::Bool => TypeSpec::Boolean,
            Returns::Bytea => TypeSpec::Bytea,
            Returns::Date => TypeSpec::Date,
            Returns::Time => TypeSpec::Time,
            Returns::Timestamp => TypeSpec::Timestamp,
            Returns::TimestampTz => TypeSpec::TimestampTz,
            Returns::Interval => TypeSpec::Interval,
            Returns::Uuid => TypeSpec::Uuid,
            Returns::TextList => TypeSpec::Array(Box::new(TypeSpec::Text)),
            Returns::JsonList => TypeSpec::Array(Box::new(TypeSpec::Json)),
            Returns::Same(at) => {
                let mut metadata = arguments.arg_fields[at].metadata().clone();
                metadata.retain(|key, _| key == EXTENSION || key == TYPE);
                return Ok(Arc::new(Field::new(name, wanted[at].clone(), true).with_metadata(metadata)));
            }
            Returns::Compute(compute) => return Ok(compute(&arguments)?),
        };
        Ok(Arc::new(spec.field(name, true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let ScalarFunctionArgs { args, arg_fields, number_rows, return_field, config_options: _ } = arguments;
        let types: Vec<DataType> = args.iter().map(ColumnarValue::data_type).collect();
        let (overload, _) = self.resolve(&types)?;
        let constant = self.definition.volatility != Volatility::Volatile
            && args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { number_rows };
        let arrays =
            args.into_iter().map(|argument| argument.into_array(rows)).collect::<DataFusionResult<Vec<_>>>()?;
        let call = Call { arrays, rows, returns: &return_field, fields: &arg_fields };
        let result = (overload.body)(&call)?;
        if constant {
            // A list is taken as it is, because a scalar made from its row would lose the metadata of its items.
            Ok(ColumnarValue::Scalar(match result.as_list_opt::<i32>() {
                Some(list) => ScalarValue::List(Arc::new(list.clone())),
                None => ScalarValue::try_from_array(&result, 0)?,
            }))
        } else {
            Ok(ColumnarValue::Array(result))
        }
    }
}
