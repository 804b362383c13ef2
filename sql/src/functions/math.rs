//! Numbers: checked arithmetic, and functions DataFusion lacks.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::compute::kernels::numeric::{add, mul, sub};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int32Type, Int64Type};
use base::SqlState;
use datafusion::logical_expr::{ReturnFieldArgs, Volatility};

use super::call::{Call, Definition, Param, Returns, on, pure};
use crate::error::{Error, Result};
use crate::types::TypeSpec;

/// integer + integer, which fails where DataFusion's operator wraps around.
pub(crate) static INT_ADD: Definition = pure(&["int_add"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_add)]);
/// integer - integer.
pub(crate) static INT_SUBTRACT: Definition =
    pure(&["int_subtract"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_subtract)]);
/// integer * integer.
pub(crate) static INT_MULTIPLY: Definition =
    pure(&["int_multiply"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_multiply)]);

static DIV: Definition = pure(
    &["div"],
    &[
        on(&[Param::Int, Param::Int], Returns::Int8, div_int),
        on(&[Param::Numeric, Param::Numeric], Returns::Compute(whole_numeric), div_numeric),
        on(&[Param::Double, Param::Double], Returns::Double, div_double),
    ],
);
static MOD: Definition = pure(
    &["mod"],
    &[on(&[Param::Int, Param::Int], Returns::Int8, mod_int), on(&[Param::Numeric, Param::Numeric], Returns::Compute(remainder), mod_numeric)],
);
static SIGN: Definition = pure(
    &["sign", "signum"],
    &[
        on(&[Param::Int], Returns::Double, sign_int),
        on(&[Param::Double], Returns::Double, sign_double),
        on(&[Param::Numeric], Returns::Compute(one_digit), sign_numeric),
    ],
);
static WIDTH_BUCKET: Definition = pure(
    &["width_bucket"],
    &[
        on(&[Param::Double, Param::Double, Param::Double, Param::Int], Returns::Int4, width_bucket),
        on(&[Param::Double, Param::List], Returns::Int4, width_bucket_list),
    ],
);
static SCALE: Definition = pure(&["scale"], &[on(&[Param::Numeric], Returns::Int4, scale)]);
static MIN_SCALE: Definition = pure(&["min_scale"], &[on(&[Param::Numeric], Returns::Int4, min_scale)]);
static SETSEED: Definition = Definition {
    names: &["setseed"],
    volatility: Volatility::Volatile,
    overloads: &[on(&[Param::Double], Returns::Text, setseed)],
};

/// Every function of this module.
pub(crate) static ALL: [&Definition; 10] = [
    &INT_ADD,
    &INT_SUBTRACT,
    &INT_MULTIPLY,
    &DIV,
    &MOD,
    &SIGN,
    &WIDTH_BUCKET,
    &SCALE,
    &MIN_SCALE,
    &SETSEED,
];

/// The wider of two integer types; unsigned ones count as the next signed one.
pub(crate) fn wider_type(left: &DataType, right: &DataType) -> DataType {
    let bits = |data_type: &DataType| match data_type {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => 16,
        DataType::Int32 | DataType::UInt16 => 32,
        _ => 64,
    };
    match bits(left).max(bits(right)) {
        16 => DataType::Int16,
        32 => DataType::Int32,
        _ => DataType::Int64,
    }
}

fn wider(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let [left, right] = arguments.arg_fields else { return Err(Error::internal("two integers are expected")) };
    Ok(Arc::new(Field::new("int", wider_type(left.data_type(), right.data_type()), true)))
}

type Kernel = fn(&dyn arrow::array::Datum, &dyn arrow::array::Datum) -> std::result::Result<ArrayRef, arrow::error::ArrowError>;

fn checked(call: &Call<'_>, kernel: Kernel) -> Result<ArrayRef> {
    let target = call.returns.data_type();
    let left = cast(&call.arrays[0], target)?;
    let right = cast(&call.arrays[1], target)?;
    kernel(&left, &right).map_err(|error| match error {
        arrow::error::ArrowError::ArithmeticOverflow(_) => {
            let name = TypeSpec::from_arrow(target).map_or_else(|_| target.to_string(), |spec| spec.display());
            Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{name} out of range"))
        }
        other => other.into(),
    })
}

fn int_add(call: &Call<'_>) -> Result<ArrayRef> {
    checked(call, add)
}

fn int_subtract(call: &Call<'_>) -> Result<ArrayRef> {
    checked(call, sub)
}

fn int_multiply(call: &Call<'_>) -> Result<ArrayRef> {
    checked(call, mul)
}

fn division_by_zero() -> Error {
    Error::state(SqlState::DIVISION_BY_ZERO, "division by zero")
}

fn out_of_range() -> Error {
    Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range")
}

fn div_int(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int64Type>(2, |row| {
        let (dividend, divisor) = (call.int(0).value(row), call.int(1).value(row));
        if divisor == 0 {
            return Err(division_by_zero());
        }
        dividend.checked_div(divisor).map(Some).ok_or_else(out_of_range)
    })
}

fn div_double(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Float64Type>(2, |row| {
        let divisor = call.double(1).value(row);
        if divisor == 0.0 { Err(division_by_zero()) } else { Ok(Some((call.double(0).value(row) / divisor).trunc())) }
    })
}

fn mod_int(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int64Type>(2, |row| {
        let divisor = call.int(1).value(row);
        if divisor == 0 { Err(division_by_zero()) } else { Ok(Some(call.int(0).value(row).wrapping_rem(divisor))) }
    })
}

fn digits_of(field: &FieldRef) -> (u8, i8) {
    match field.data_type() {
        DataType::Decimal128(precision, scale) => (*precision, *scale),
        _ => (20, 0),
    }
}

fn whole_numeric(_: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    Ok(Arc::new(Field::new("div", DataType::Decimal128(38, 0), true)))
}

fn remainder(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let ((left_precision, left_scale), (right_precision, right_scale)) =
        (digits_of(&arguments.arg_fields[0]), digits_of(&arguments.arg_fields[1]));
    let scale = left_scale.max(right_scale);
    let whole = (i16::from(left_precision) - i16::from(left_scale)).max(i16::from(right_precision) - i16::from(right_scale));
    let precision = u8::try_from((whole + i16::from(scale)).clamp(1, 38)).unwrap_or(38);
    Ok(Arc::new(Field::new("mod", DataType::Decimal128(precision, scale), true)))
}

/// Both decimals as integers of one scale.
fn same_scale(call: &Call<'_>) -> Result<Vec<Option<(i128, i128)>>> {
    let (left, right) = (call.arrays[0].as_primitive::<Decimal128Type>(), call.arrays[1].as_primitive::<Decimal128Type>());
    let scale = left.scale().max(right.scale());
    let raise = |value: i128, from: i8| {
        let power = u32::try_from(scale - from).unwrap_or(0);
        10i128.checked_pow(power).and_then(|factor| value.checked_mul(factor)).ok_or_else(out_of_range)
    };
    (0..call.rows)
        .map(|row| {
            if left.is_null(row) || right.is_null(row) {
                return Ok(None);
            }
            Ok(Some((raise(left.value(row), left.scale())?, raise(right.value(row), right.scale())?)))
        })
        .collect()
}

fn div_numeric(call: &Call<'_>) -> Result<ArrayRef> {
    let pairs = same_scale(call)?;
    call.values::<Decimal128Type>(0, |row| match pairs[row] {
        None => Ok(None),
        Some((_, 0)) => Err(division_by_zero()),
        Some((dividend, divisor)) => Ok(Some(dividend / divisor)),
    })
}

fn mod_numeric(call: &Call<'_>) -> Result<ArrayRef> {
    let pairs = same_scale(call)?;
    call.values::<Decimal128Type>(0, |row| match pairs[row] {
        None => Ok(None),
        Some((_, 0)) => Err(division_by_zero()),
        Some((dividend, divisor)) => Ok(Some(dividend % divisor)),
    })
}

fn one_digit(_: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    Ok(Arc::new(Field::new("sign", DataType::Decimal128(1, 0), true)))
}

fn sign_int(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Float64Type>(1, |row| Ok(Some(call.int(0).value(row).signum() as f64)))
}

fn sign_double(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Float64Type>(1, |row| {
        let value = call.double(0).value(row);
        Ok(Some(if value == 0.0 || value.is_nan() { value.abs() } else { value.signum() }))
    })
}

fn sign_numeric(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.arrays[0].as_primitive::<Decimal128Type>();
    call.values::<Decimal128Type>(1, |row| Ok(Some(values.value(row).signum())))
}

/// The bucket of a histogram with equal widths: 0 below it, one more than its buckets above it.
fn width_bucket(call: &Call<'_>) -> Result<ArrayRef> {
    let bad = |what: &str| Error::state(SqlState(*b"2201G"), what.to_owned());
    call.values::<Int32Type>(4, |row| {
        let (value, low, high) = (call.double(0).value(row), call.double(1).value(row), call.double(2).value(row));
        let count = call.int(3).value(row);
        let buckets = i32::try_from(count).ok().filter(|count| *count > 0 && *count < i32::MAX).ok_or_else(|| bad("count must be greater than zero"))?;
        if !low.is_finite() || !high.is_finite() || value.is_nan() {
            return Err(bad("operand, lower bound, and upper bound cannot be NaN or infinite"));
        }
        if low == high {
            return Err(bad("lower bound cannot equal upper bound"));
        }
        let (before, behind) = if low < high { (value < low, value >= high) } else { (value > low, value <= high) };
        Ok(Some(if before {
            0
        } else if behind {
            buckets + 1
        } else {
            let share = (value - low) / (high - low) * f64::from(buckets);
            // Rounding must not push a value over the last bucket.
            (share.floor() as i32 + 1).min(buckets)
        }))
    })
}

/// The bucket between ascending thresholds.
fn width_bucket_list(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(1);
    call.values::<Int32Type>(2, |row| {
        let thresholds = cast(&list.value(row), &DataType::Float64)?;
        let thresholds = thresholds.as_primitive::<Float64Type>();
        let value = call.double(0).value(row);
        Ok(i32::try_from(thresholds.values().iter().take_while(|threshold| value >= **threshold).count()).ok())
    })
}

fn scale(call: &Call<'_>) -> Result<ArrayRef> {
    let scale = i32::from(call.arrays[0].as_primitive::<Decimal128Type>().scale());
    call.values::<Int32Type>(1, |_| Ok(Some(scale)))
}

fn min_scale(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.arrays[0].as_primitive::<Decimal128Type>();
    call.values::<Int32Type>(1, |row| {
        let mut value = values.value(row);
        let mut scale = i32::from(values.scale());
        while scale > 0 && value % 10 == 0 {
            value /= 10;
            scale -= 1;
        }
        Ok(Some(scale))
    })
}

/// A seed would be one session's, and `random()` is drawn by many threads.
fn setseed(_: &Call<'_>) -> Result<ArrayRef> {
    Err(Error::unsupported("setseed").with_hint("random() cannot be repeated"))
}
