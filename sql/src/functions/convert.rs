//! Reading and printing values: what casts between text and other types become. See [`crate::types::Coercion`] for when.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, FixedSizeBinaryBuilder, ListArray, StringArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, FieldRef, Float64Type, IntervalMonthDayNanoType,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::call::{Call, Definition, Param, Returns, on, pure};
use super::interval::Interval;
use super::{format, input, json};
use crate::error::{Error, Result};
use crate::types::TypeSpec;

/// text → uuid.
pub(crate) static UUID_IN: Definition = pure(
    &["uuid_in"],
    &[
        on(&[Param::Text], Returns::Uuid, uuid_in),
        on(&[Param::Uuid], Returns::Uuid, same),
        on(&[Param::Bytea], Returns::Uuid, uuid_of_bytes),
    ],
);
/// text → json, checked.
pub(crate) static JSON_IN: Definition = pure(&["json_in"], &[on(&[Param::Json], Returns::Json, json_in)]);
/// text → jsonb, checked and in canonical form.
pub(crate) static JSONB_IN: Definition = pure(&["jsonb_in"], &[on(&[Param::Json], Returns::Jsonb, jsonb_in)]);
/// text → bytea.
pub(crate) static BYTEA_IN: Definition = pure(&["byteain"], &[on(&[Param::Text], Returns::Bytea, bytea_in)]);
/// text → boolean.
pub(crate) static BOOL_IN: Definition = pure(&["boolin"], &[on(&[Param::Text], Returns::Bool, bool_in)]);
/// text → date. Stable, because of `today`.
pub(crate) static DATE_IN: Definition = Definition {
    names: &["date_in"],
    volatility: Volatility::Stable,
    overloads: &[on(&[Param::Text], Returns::Date, date_in)],
};
/// text → time.
pub(crate) static TIME_IN: Definition = Definition {
    names: &["time_in"],
    volatility: Volatility::Stable,
    overloads: &[on(&[Param::Text], Returns::Time, time_in)],
};
/// text → timestamp.
pub(crate) static TIMESTAMP_IN: Definition = Definition {
    names: &["timestamp_in"],
    volatility: Volatility::Stable,
    overloads: &[on(&[Param::Text], Returns::Timestamp, timestamp_in)],
};
/// text → timestamptz.
pub(crate) static TIMESTAMPTZ_IN: Definition = Definition {
    names: &["timestamptz_in"],
    volatility: Volatility::Stable,
    overloads: &[on(&[Param::Text], Returns::TimestampTz, timestamptz_in)],
};
/// text → interval.
pub(crate) static INTERVAL_IN: Definition =
    pure(&["interval_in"], &[on(&[Param::Text], Returns::Interval, interval_in)]);
/// anything → text, as PostgreSQL prints it.
pub(crate) static TEXT_OUT: Definition = pure(&["text_out"], &[on(&[Param::Any], Returns::Text, text_out)]);
/// text cut to a number of characters.
pub(crate) static TEXT_LIMIT: Definition =
    pure(&["text_limit"], &[on(&[Param::Text, Param::Int], Returns::Text, text_limit)]);
/// double → double without fraction, ties to even.
pub(crate) static ROUND_EVEN: Definition = pure(&["rint"], &[on(&[Param::Double], Returns::Double, round_even)]);
/// numeric → numeric without fraction, ties away from zero.
pub(crate) static ROUND_DECIMAL: Definition =
    pure(&["round_numeric"], &[on(&[Param::Numeric], Returns::Compute(whole_decimal), round_decimal)]);
/// numeric → the smallest whole numeric that is not less.
pub(crate) static CEIL_DECIMAL: Definition =
    pure(&["ceil_numeric"], &[on(&[Param::Numeric], Returns::Compute(whole_decimal), ceil_decimal)]);
/// numeric → the greatest whole numeric that is not more.
pub(crate) static FLOOR_DECIMAL: Definition =
    pure(&["floor_numeric"], &[on(&[Param::Numeric], Returns::Compute(whole_decimal), floor_decimal)]);

/// Those that have a name worth calling.
pub(crate) static ALL: [&Definition; 16] = [
    &UUID_IN,
    &JSON_IN,
    &JSONB_IN,
    &BYTEA_IN,
    &BOOL_IN,
    &DATE_IN,
    &TIME_IN,
    &TIMESTAMP_IN,
    &TIMESTAMPTZ_IN,
    &INTERVAL_IN,
    &TEXT_OUT,
    &TEXT_LIMIT,
    &ROUND_EVEN,
    &ROUND_DECIMAL,
    &CEIL_DECIMAL,
    &FLOOR_DECIMAL,
];

/// The bytes of a UUID in any of the forms PostgreSQL reads.
pub(crate) fn uuid(text: &str) -> Result<[u8; 16]> {
    let wrong = || {
        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type uuid: \"{text}\""))
    };
    let trimmed = text.trim();
    let inner = match trimmed.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').ok_or_else(wrong)?,
        None => trimmed,
    };
    let digits: String = inner.chars().filter(|ch| *ch != '-').collect();
    if digits.len() != 32 || inner.starts_with('-') || inner.ends_with('-') {
        return Err(wrong());
    }
    uuid::Uuid::parse_str(&digits).map(uuid::Uuid::into_bytes).map_err(|_| wrong())
}

fn uuid_in(call: &Call<'_>) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(call.rows, 16);
    for text in call.text(0) {
        match text {
            Some(text) => builder.append_value(uuid(text)?)?,
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn same(call: &Call<'_>) -> Result<ArrayRef> {
    Ok(Arc::clone(&call.arrays[0]))
}

fn uuid_of_bytes(call: &Call<'_>) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(call.rows, 16);
    for bytes in call.arrays[0].as_binary::<i32>() {
        match bytes {
            Some(bytes) if bytes.len() == 16 => builder.append_value(bytes)?,
            Some(bytes) => {
                return Err(Error::state(SqlState::CANNOT_COERCE, format!("{} bytes are not a uuid", bytes.len())));
            }
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn json_in(call: &Call<'_>) -> Result<ArrayRef> {
    for text in call.text(0).iter().flatten() {
        json::text::check(text)?;
    }
    Ok(Arc::clone(&call.arrays[0]))
}

fn jsonb_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| json::text::canonical(call.text(0).value(row)).map(Some))
}

fn bytea_in(call: &Call<'_>) -> Result<ArrayRef> {
    let mut builder = BinaryBuilder::with_capacity(call.rows, 0);
    for text in call.text(0) {
        match text {
            Some(text) => builder.append_value(input::bytea(text)?),
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn bool_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(1, |row| input::boolean(call.text(0).value(row)).map(Some))
}

fn date_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Date32Type>(1, |row| input::date(call.text(0).value(row)).map(Some))
}

fn time_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Time64MicrosecondType>(1, |row| input::time(call.text(0).value(row)).map(Some))
}

fn timestamp_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(1, |row| input::timestamp(call.text(0).value(row)).map(Some))
}

fn timestamptz_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(1, |row| input::timestamptz(call.text(0).value(row)).map(Some))
}

fn interval_in(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<IntervalMonthDayNanoType>(1, |row| Ok(Some(Interval::parse(call.text(0).value(row))?.into())))
}

fn text_out(call: &Call<'_>) -> Result<ArrayRef> {
    let mut values = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        values.push(format::value_text(&call.arrays[0], &call.fields[0], row)?);
    }
    Ok(Arc::new(StringArray::from(values)))
}

fn text_limit(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let limit = usize::try_from(call.int(1).value(row)).unwrap_or(0);
        Ok(Some(call.text(0).value(row).chars().take(limit).collect()))
    })
}

fn round_even(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Float64Type>(1, |row| Ok(Some(call.double(0).value(row).round_ties_even())))
}

/// The same digits before the point and one more, because rounding may carry.
fn whole_decimal(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let data_type = match arguments.arg_fields[0].data_type() {
        DataType::Decimal128(precision, scale) => {
            let whole = i16::from(*precision) - i16::from(*scale) + 1;
            DataType::Decimal128(u8::try_from(whole.clamp(1, 38)).unwrap_or(38), 0)
        }
        _ => DataType::Decimal128(21, 0),
    };
    Ok(Arc::new(Field::new("round", data_type, true)))
}

fn round_decimal(call: &Call<'_>) -> Result<ArrayRef> {
    whole_decimals(call, round_away)
}

fn ceil_decimal(call: &Call<'_>) -> Result<ArrayRef> {
    whole_decimals(call, |value, unit| value.div_euclid(unit) + i128::from(value.rem_euclid(unit) != 0))
}

fn floor_decimal(call: &Call<'_>) -> Result<ArrayRef> {
    whole_decimals(call, i128::div_euclid)
}

/// Each value without its fraction, by a function of the value and of what stands for one.
fn whole_decimals(call: &Call<'_>, whole: fn(i128, i128) -> i128) -> Result<ArrayRef> {
    let values = call.arrays[0].as_primitive::<Decimal128Type>();
    let unit = 10i128.checked_pow(u32::try_from(values.scale()).unwrap_or(0)).unwrap_or(i128::MAX);
    call.values::<Decimal128Type>(1, |row| Ok(Some(whole(values.value(row), unit))))
}

/// Division that rounds to the nearest, ties away from zero.
pub(crate) fn round_away(value: i128, unit: i128) -> i128 {
    let (quotient, rest) = (value / unit, value % unit);
    // Doubling could overflow; the difference cannot.
    let up = rest.abs() >= unit - rest.abs();
    if !up {
        quotient
    } else if value < 0 {
        quotient - 1
    } else {
        quotient + 1
    }
}

// ----------------------------------------------------------------------------------------------------- readers of a given type

/// text → an array type, in PostgreSQL's form `{1,2}`.
pub(crate) fn array_in(target: &TypeSpec) -> ScalarUDF {
    ScalarUDF::from(Reader { target: target.clone(), lenient: false, signature: text_signature() })
}

/// text → a type, with null for what does not read.
pub(crate) fn try_in(target: &TypeSpec) -> ScalarUDF {
    ScalarUDF::from(Reader { target: target.clone(), lenient: true, signature: text_signature() })
}

fn text_signature() -> Signature {
    Signature::exact(vec![DataType::Utf8], Volatility::Stable)
}

/// A function that reads texts as one type.
struct Reader {
    target: TypeSpec,
    lenient: bool,
    signature: Signature,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("target", &self.target).field("lenient", &self.lenient).finish_non_exhaustive()
    }
}

impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        self.target == other.target && self.lenient == other.lenient
    }
}

impl Eq for Reader {}

impl Hash for Reader {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.target.hash(state);
        self.lenient.hash(state);
    }
}

impl ScalarUDFImpl for Reader {
    fn name(&self) -> &str {
        if self.lenient { "try_read" } else { "read" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.target.data_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> DataFusionResult<FieldRef> {
        Ok(Arc::new(self.target.field(self.name(), true)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let ScalarFunctionArgs { args, number_rows, .. } = arguments;
        let constant = args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { number_rows };
        let Some(argument) = args.into_iter().next() else {
            return Err(Error::internal("a reader was called without an argument").into());
        };
        let texts = argument.into_array(rows)?;
        let read = self.read(texts.as_string::<i32>())?;
        if constant {
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&read, 0)?))
        } else {
            Ok(ColumnarValue::Array(read))
        }
    }
}

impl Reader {
    fn read(&self, texts: &StringArray) -> Result<ArrayRef> {
        if let TypeSpec::Array(item) = &self.target
            && !self.lenient
        {
            return self.read_lists(texts, item);
        }
        if !self.lenient {
            return read_texts(texts, &self.target);
        }
        // Row by row, so that one bad text costs only its own value.
        let rows: Vec<ArrayRef> = (0..texts.len())
            .map(|row| {
                let one = texts.slice(row, 1);
                let strict = Reader { target: self.target.clone(), lenient: false, signature: text_signature() };
                strict.read(&one).unwrap_or_else(|_| arrow::array::new_null_array(&self.target.data_type(), 1))
            })
            .collect();
        if rows.is_empty() {
            return Ok(arrow::array::new_empty_array(&self.target.data_type()));
        }
        let parts: Vec<&dyn Array> = rows.iter().map(AsRef::as_ref).collect();
        Ok(arrow::compute::concat(&parts)?)
    }

    fn read_lists(&self, texts: &StringArray, item: &TypeSpec) -> Result<ArrayRef> {
        let DataType::List(field) = self.target.data_type() else {
            return Err(Error::internal("an array type is not a list"));
        };
        let mut items = Vec::new();
        let mut lengths = Vec::with_capacity(texts.len());
        for text in texts {
            let before = items.len();
            if let Some(text) = text {
                items.extend(input::array_items(text)?);
            }
            lengths.push(items.len() - before);
        }
        let texts_of_items = input::texts(items);
        let values = read_texts(texts_of_items.as_string::<i32>(), item)?;
        let nulls = texts.nulls().cloned().map(|nulls| NullBuffer::new(nulls.into_inner()));
        Ok(Arc::new(ListArray::try_new(field, OffsetBuffer::from_lengths(lengths), values, nulls)?))
    }
}

/// Texts as values of one type.
pub(crate) fn read_texts(texts: &StringArray, target: &TypeSpec) -> Result<ArrayRef> {
    let definition = match target {
        TypeSpec::Uuid => &UUID_IN,
        TypeSpec::Json => &JSON_IN,
        TypeSpec::Jsonb => &JSONB_IN,
        TypeSpec::Bytea => &BYTEA_IN,
        TypeSpec::Boolean => &BOOL_IN,
        TypeSpec::Date => &DATE_IN,
        TypeSpec::Time => &TIME_IN,
        TypeSpec::Timestamp => &TIMESTAMP_IN,
        TypeSpec::TimestampTz => &TIMESTAMPTZ_IN,
        TypeSpec::Interval => &INTERVAL_IN,
        TypeSpec::Array(_) => {
            let reader = Reader { target: target.clone(), lenient: false, signature: text_signature() };
            return reader.read(texts);
        }
        other => {
            let trimmed: StringArray =
                if other.is_text() { texts.clone() } else { texts.iter().map(|text| text.map(str::trim)).collect() };
            let options = CastOptions { safe: false, ..CastOptions::default() };
            return Ok(cast_with_options(&trimmed, &other.data_type(), &options)?);
        }
    };
    let returns: FieldRef = target.field_ref("");
    let fields: Vec<FieldRef> = vec![TypeSpec::Text.field_ref("")];
    let arrays: Vec<ArrayRef> = vec![Arc::new(texts.clone())];
    let call = Call { arrays, rows: texts.len(), returns: &returns, fields: &fields };
    (definition.overloads[0].body)(&call)
}
