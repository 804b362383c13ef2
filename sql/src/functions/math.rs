//! Numbers: checked arithmetic, and functions DataFusion lacks.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::compute::kernels::numeric::{add, mul, sub};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int32Type, Int64Type, i256};
use base::SqlState;
use datafusion::logical_expr::{ReturnFieldArgs, Volatility};

use super::call::{Call, Definition, Param, Returns, on, pure};
use crate::error::{Error, Result};
use crate::types::TypeSpec;

/// integer + integer, which fails where DataFusion's operator wraps around.
pub(crate) static INT_ADD: Definition =
    pure(&["int_add"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_add)]);
/// integer - integer.
pub(crate) static INT_SUBTRACT: Definition =
    pure(&["int_subtract"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_subtract)]);
/// integer * integer.
pub(crate) static INT_MULTIPLY: Definition =
    pure(&["int_multiply"], &[on(&[Param::Any, Param::Any], Returns::Compute(wider), int_multiply)]);

/// numeric / numeric, with PostgreSQL's digits where DataFusion's operator keeps four more than the dividend has.
pub(crate) static NUMERIC_DIVIDE: Definition =
    pure(&["numeric_divide"], &[on(&[Param::Numeric, Param::Numeric], Returns::Compute(quotient), numeric_divide)]);

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
    &[
        on(&[Param::Int, Param::Int], Returns::Int8, mod_int),
        on(&[Param::Numeric, Param::Numeric], Returns::Compute(remainder), mod_numeric),
    ],
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
pub(crate) static ALL: [&Definition; 11] = [
    &NUMERIC_DIVIDE,
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

/// Digits behind the point that a quotient or a mean has at least, where 38 digits leave room for what stands before it.
const QUOTIENT_DIGITS: i32 = 16;

/// The type of a quotient whose whole part has up to so many digits. Four digits more than `scale` are kept in any case.
fn quotient_type(whole: i32, scale: i32, wanted: i32) -> DataType {
    let scale = (scale + 4).min(38).max(wanted.min(38 - whole)).clamp(0, 38);
    let precision = (whole + scale).clamp(1, 38);
    DataType::Decimal128(u8::try_from(precision).unwrap_or(38), i8::try_from(scale).unwrap_or(38))
}

/// The type of a mean of decimals.
pub(crate) fn mean_type(precision: u8, scale: i8) -> DataType {
    quotient_type(i32::from(precision) - i32::from(scale), scale.into(), QUOTIENT_DIGITS.max(scale.into()))
}

fn quotient(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let [DataType::Decimal128(precision, scale), DataType::Decimal128(_, by)] =
        [0, 1].map(|at: usize| arguments.arg_fields.get(at).map_or(&DataType::Null, |field| field.data_type()))
    else {
        return Err(Error::internal("two decimals are expected"));
    };
    let (precision, scale, by) = (i32::from(*precision), i32::from(*scale), i32::from(*by));
    let data_type = quotient_type(precision - scale + by, scale, QUOTIENT_DIGITS.max(scale).max(by));
    Ok(Arc::new(Field::new("quotient", data_type, true)))
}

/// 10 to the power of up to 38.
pub(crate) fn power_of_ten(digits: u8) -> i128 {
    10i128.pow(u32::from(digits.min(38)))
}

/// `dividend * 10^shift / divisor`, rounded half away from zero, of up to `precision` digits.
pub(crate) fn divided(dividend: i128, divisor: i128, shift: i32, precision: u8) -> Result<i128> {
    let out_of_range = || {
        Error::state(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("numeric out of range: a quotient has more than {precision} digits"),
        )
    };
    let digits = u8::try_from(shift.unsigned_abs()).ok().filter(|digits| *digits <= 38).ok_or_else(out_of_range)?;
    let factor = power_of_ten(digits);
    let (above, below) = if shift >= 0 { (factor, 1) } else { (1, factor) };
    let quotient = match (dividend.checked_mul(above), divisor.checked_mul(below)) {
        (Some(dividend), Some(divisor)) => {
            let (quotient, rest) =
                (dividend.checked_div(divisor).ok_or_else(out_of_range)?, (dividend % divisor).unsigned_abs());
            let up = rest >= divisor.unsigned_abs() - rest;
            if up { quotient + if (dividend < 0) == (divisor < 0) { 1 } else { -1 } } else { quotient }
        }
        // 256 bits hold any product of two.
        _ => {
            let wide = |value: i128, by: i128| i256::from_i128(value).wrapping_mul(i256::from_i128(by));
            let (dividend, divisor) = (wide(dividend, above), wide(divisor, below));
            let (quotient, rest) = (dividend.wrapping_div(divisor), dividend.wrapping_rem(divisor).wrapping_abs());
            let up = rest >= divisor.wrapping_abs().wrapping_sub(rest);
            let same = dividend.is_negative() == divisor.is_negative();
            let quotient = match (up, same) {
                (false, _) => quotient,
                (true, true) => quotient.wrapping_add(i256::ONE),
                (true, false) => quotient.wrapping_sub(i256::ONE),
            };
            quotient.to_i128().ok_or_else(out_of_range)?
        }
    };
    if quotient.unsigned_abs() >= power_of_ten(precision).unsigned_abs() { Err(out_of_range()) } else { Ok(quotient) }
}

fn numeric_divide(call: &Call<'_>) -> Result<ArrayRef> {
    let scale = |data_type: &DataType| match data_type {
        DataType::Decimal128(precision, scale) => (*precision, i32::from(*scale)),
        _ => (38, 0),
    };
    let ((_, from), (_, by)) = (scale(call.arrays[0].data_type()), scale(call.arrays[1].data_type()));
    let (precision, to) = scale(call.returns.data_type());
    let (dividends, divisors) =
        (call.arrays[0].as_primitive::<Decimal128Type>(), call.arrays[1].as_primitive::<Decimal128Type>());
    call.values::<Decimal128Type>(2, |row| match divisors.value(row) {
        0 => Err(division_by_zero()),
        divisor => divided(dividends.value(row), divisor, to + by - from, precision).map(Some),
    })
}

type Kernel =
    fn(&dyn arrow::array::Datum, &dyn arrow::array::Datum) -> std::result::Result<ArrayRef, arrow::error::ArrowError>;

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
    let whole =
        (i16::from(left_precision) - i16::from(left_scale)).max(i16::from(right_precision) - i16::from(right_scale));
    let precision = u8::try_from((whole + i16::from(scale)).clamp(1, 38)).unwrap_or(38);
    Ok(Arc::new(Field::new("mod", DataType::Decimal128(precision, scale), true)))
}

/// Both decimals as integers of one scale.
fn same_scale(call: &Call<'_>) -> Result<Vec<Option<(i128, i128)>>> {
    let (left, right) =
        (call.arrays[0].as_primitive::<Decimal128Type>(), call.arrays[1].as_primitive::<Decimal128Type>());
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
        let buckets = i32::try_from(count)
            .ok()
            .filter(|count| *count > 0 && *count < i32::MAX)
            .ok_or_else(|| bad("count must be greater than zero"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_rounded_half_away_from_zero() {
        let cases = [
            (2, 3, 16, 6_666_666_666_666_667),
            (-2, 3, 16, -6_666_666_666_666_667),
            (5, 2, 0, 3),
            (-5, 2, 0, -3),
            (5, -2, 0, -3),
            (4, 3, 0, 1),
            (15, 1, -1, 2),
            // Beyond 128 bits on the way.
            (10i128.pow(37), 4 * 10i128.pow(30), 20, 250_000_000_000_000_000_000_000_000),
            (-10i128.pow(37), 3 * 10i128.pow(37), 38, -33_333_333_333_333_333_333_333_333_333_333_333_333),
            (2 * 10i128.pow(36), 3 * 10i128.pow(37), 37, 666_666_666_666_666_666_666_666_666_666_666_667),
        ];
        for (dividend, divisor, shift, expected) in cases {
            assert_eq!(divided(dividend, divisor, shift, 38).unwrap(), expected, "{dividend} / {divisor}");
        }
        let large = divided(10i128.pow(37), 1, 2, 38).unwrap_err();
        assert_eq!(large.sqlstate, SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
        assert_eq!(mean_type(3, 1), DataType::Decimal128(18, 16));
        assert_eq!(mean_type(38, 0), DataType::Decimal128(38, 4));
        assert_eq!(mean_type(30, 20), DataType::Decimal128(34, 24));
    }
}
