//! Values as PostgreSQL prints them: what a cast to text gives.
//!
//! | type | looks like |
//! |---|---|
//! | double, real | the shortest digits that read back; `1e+20` from 15 (real: 6) digits on, `NaN`, `Infinity` |
//! | timestamp, timestamptz | `2024-05-01 12:30:00.5`, with `+00` for a zone |
//! | interval | `1 year 2 mons 3 days 04:05:06.789` |
//! | bytea | `\x6869` |
//! | array | `{1,NULL,"a b"}` |

use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType,
    DurationSecondType, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, Time64MicrosecondType,
    TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Timelike};

use super::interval::Interval;
use crate::error::{Error, Result};
use crate::types::EXTENSION;

/// Whether a field holds UUIDs.
fn is_uuid(field: &Field) -> bool {
    matches!(field.data_type(), DataType::FixedSizeBinary(16))
        && field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.uuid")
}

/// Appends the text of one value, which is not null.
pub(crate) fn write_value(out: &mut String, array: &dyn Array, field: &Field, row: usize) -> Result<()> {
    match array.data_type() {
        DataType::Null => {}
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Int8 => push(out, array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => push(out, array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => push(out, array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => push(out, array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => push(out, array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => push(out, array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => push(out, array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => push(out, array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => write_real(out, array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => write_double(out, array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, scale) => write_decimal(out, array.as_primitive::<Decimal128Type>().value(row), *scale),
        DataType::Utf8 => out.push_str(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => out.push_str(array.as_string::<i64>().value(row)),
        DataType::Utf8View => out.push_str(array.as_string_view().value(row)),
        DataType::Binary => write_bytes(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => write_bytes(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => write_bytes(out, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => {
            let bytes = array.as_fixed_size_binary().value(row);
            match uuid::Uuid::from_slice(bytes) {
                Ok(uuid) if is_uuid(field) => push(out, uuid.hyphenated()),
                _ => write_bytes(out, bytes),
            }
        }
        DataType::Date32 => write_date(out, date_of(array.as_primitive::<Date32Type>().value(row))?),
        DataType::Time64(TimeUnit::Microsecond) => {
            write_time(out, array.as_primitive::<Time64MicrosecondType>().value(row))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            write_timestamp(out, array.as_primitive::<TimestampMicrosecondType>().value(row), zone.is_some())?;
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Interval::from(array.as_primitive::<IntervalMonthDayNanoType>().value(row)).write(out);
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            let months = array.as_primitive::<IntervalYearMonthType>().value(row);
            Interval { months, days: 0, nanos: 0 }.write(out);
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let value = array.as_primitive::<IntervalDayTimeType>().value(row);
            Interval { months: 0, days: value.days, nanos: i64::from(value.milliseconds) * 1_000_000 }.write(out);
        }
        DataType::Duration(unit) => {
            let nanos = match unit {
                TimeUnit::Second => i128::from(array.as_primitive::<DurationSecondType>().value(row)) * 1_000_000_000,
                TimeUnit::Millisecond => {
                    i128::from(array.as_primitive::<DurationMillisecondType>().value(row)) * 1_000_000
                }
                TimeUnit::Microsecond => i128::from(array.as_primitive::<DurationMicrosecondType>().value(row)) * 1_000,
                TimeUnit::Nanosecond => i128::from(array.as_primitive::<DurationNanosecondType>().value(row)),
            };
            Interval::from_nanos(nanos)?.write(out);
        }
        DataType::List(item) => write_list(out, &array.as_list::<i32>().value(row), item)?,
        DataType::LargeList(item) => write_list(out, &array.as_list::<i64>().value(row), item)?,
        DataType::FixedSizeList(item, _) => write_list(out, &array.as_fixed_size_list().value(row), item)?,
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            out.push('(');
            for (at, field) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                let column = parts.column(at);
                if column.is_valid(row) {
                    let mut text = String::new();
                    write_value(&mut text, column, field, row)?;
                    write_quoted(out, &text, |text| {
                        text.is_empty() || text.contains(['(', ')', ',', '"', '\\', ' ', '\t', '\n', '\r'])
                    });
                }
            }
            out.push(')');
        }
        // What the engine stores and computes is above; the rest is printed as Arrow prints it.
        _ => {
            let options = arrow::util::display::FormatOptions::default();
            let formatter = arrow::util::display::ArrayFormatter::try_new(array, &options)?;
            push(out, formatter.value(row));
        }
    }
    Ok(())
}

/// The text of one value, or `None` for null.
pub(crate) fn value_text(array: &dyn Array, field: &Field, row: usize) -> Result<Option<String>> {
    if array.is_null(row) || array.data_type().is_null() {
        return Ok(None);
    }
    let mut out = String::new();
    write_value(&mut out, array, field, row)?;
    Ok(Some(out))
}

fn push(out: &mut String, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{value}");
}

/// `{1,NULL,"a b"}`.
fn write_list(out: &mut String, items: &ArrayRef, field: &Field) -> Result<()> {
    out.push('{');
    for row in 0..items.len() {
        if row > 0 {
            out.push(',');
        }
        if items.is_null(row) {
            out.push_str("NULL");
            continue;
        }
        let mut text = String::new();
        write_value(&mut text, items, field, row)?;
        if matches!(items.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..)) {
            out.push_str(&text);
        } else {
            write_quoted(out, &text, |text| {
                text.is_empty()
                    || text.eq_ignore_ascii_case("null")
                    || text.contains(['{', '}', ',', '"', '\\', ' ', '\t', '\n', '\r', '\u{b}', '\u{c}'])
            });
        }
    }
    out.push('}');
    Ok(())
}

/// A text in double quotes where it needs them.
fn write_quoted(out: &mut String, text: &str, needs: impl Fn(&str) -> bool) {
    if !needs(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for ch in text.chars() {
        if matches!(ch, '"' | '\\') {
            out.push('\\');
        }
        out.push(ch);
    }
    out.push('"');
}

fn write_bytes(out: &mut String, bytes: &[u8]) {
    out.push_str("\\x");
    for byte in bytes {
        push(out, format_args!("{byte:02x}"));
    }
}

/// A decimal with all digits of its scale.
pub(crate) fn write_decimal(out: &mut String, value: i128, scale: i8) {
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push('-');
    }
    match usize::try_from(scale) {
        Ok(0) => out.push_str(&digits),
        Ok(scale) => {
            let padded = format!("{digits:0>width$}", width = scale + 1);
            let (whole, fraction) = padded.split_at(padded.len() - scale);
            out.push_str(whole);
            out.push('.');
            out.push_str(fraction);
        }
        Err(_) => {
            out.push_str(&digits);
            if value != 0 {
                out.push_str(&"0".repeat(usize::from(scale.unsigned_abs())));
            }
        }
    }
}

/// A double as PostgreSQL prints it.
pub(crate) fn write_double(out: &mut String, value: f64) {
    write_float(out, value, format!("{value:e}"), 15);
}

fn write_real(out: &mut String, value: f32) {
    write_float(out, f64::from(value), format!("{value:e}"), 6);
}

/// `scientific` holds the shortest digits, as `d.ddde±n`.
fn write_float(out: &mut String, value: f64, scientific: String, plain_digits: i32) {
    if value.is_nan() {
        out.push_str("NaN");
        return;
    }
    if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
        return;
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    out.push_str(sign);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    if exponent < -4 || exponent >= plain_digits {
        out.push_str(mantissa);
        let mark = if exponent < 0 { '-' } else { '+' };
        push(out, format_args!("e{mark}{:02}", exponent.unsigned_abs()));
    } else if exponent < 0 {
        out.push_str("0.");
        out.push_str(&"0".repeat(usize::try_from(-exponent - 1).unwrap_or(0)));
        out.push_str(&digits);
    } else {
        let whole = usize::try_from(exponent).unwrap_or(0) + 1;
        if digits.len() <= whole {
            out.push_str(&digits);
            out.push_str(&"0".repeat(whole - digits.len()));
        } else {
            out.push_str(&digits[..whole]);
            out.push('.');
            out.push_str(&digits[whole..]);
        }
    }
}

/// Days since 1970 as a date.
pub(crate) fn date_of(days: i32) -> Result<NaiveDate> {
    days.checked_add(719_163)
        .and_then(NaiveDate::from_num_days_from_ce_opt)
        .ok_or_else(|| Error::state(base::SqlState::DATETIME_OVERFLOW, "date out of range"))
}

/// Microseconds since 1970 as a date and time.
pub(crate) fn timestamp_of(micros: i64) -> Result<NaiveDateTime> {
    DateTime::from_timestamp_micros(micros)
        .map(|time| time.naive_utc())
        .ok_or_else(|| Error::state(base::SqlState::DATETIME_OVERFLOW, "timestamp out of range"))
}

fn write_date(out: &mut String, date: NaiveDate) {
    let year = date.year();
    // There is no year 0 before Christ.
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    push(out, format_args!("{shown:04}-{:02}-{:02}{era}", date.month(), date.day()));
}

/// Microseconds of a day as `HH:MM:SS[.ffffff]`.
pub(crate) fn write_time(out: &mut String, micros: i64) {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    push(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    write_fraction(out, fraction);
}

/// `.5` for 500000 microseconds; nothing for 0.
pub(crate) fn write_fraction(out: &mut String, micros: i64) {
    if micros != 0 {
        let text = format!("{micros:06}");
        out.push('.');
        out.push_str(text.trim_end_matches('0'));
    }
}

fn write_timestamp(out: &mut String, micros: i64, zone: bool) -> Result<()> {
    let time = timestamp_of(micros)?;
    let year = time.year();
    let shown = if year > 0 { year } else { 1 - year };
    push(out, format_args!("{shown:04}-{:02}-{:02} ", time.month(), time.day()));
    let of_day = i64::from(time.num_seconds_from_midnight()) * 1_000_000 + i64::from(time.nanosecond() / 1000);
    write_time(out, of_day);
    if zone {
        out.push_str("+00");
    }
    if year <= 0 {
        out.push_str(" BC");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_short() {
        let cases = [
            (1.0, "1"),
            (-0.5, "-0.5"),
            (0.1, "0.1"),
            (100_000.0, "100000"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (3.141_592_653_589_793, "3.141592653589793"),
            (12.5, "12.5"),
        ];
        for (value, text) in cases {
            let mut out = String::new();
            write_double(&mut out, value);
            assert_eq!(out, text);
        }
        let mut out = String::new();
        write_real(&mut out, 0.1);
        out.push(' ');
        write_real(&mut out, 1_000_000.0);
        assert_eq!(out, "0.1 1e+06");
    }

    #[test]
    fn decimals_keep_their_scale() {
        for (value, scale, text) in
            [(12345, 2, "123.45"), (-5, 2, "-0.05"), (0, 3, "0.000"), (7, 0, "7"), (7, -2, "700")]
        {
            let mut out = String::new();
            write_decimal(&mut out, value, scale);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn times_read_as_in_postgresql() {
        let mut out = String::new();
        write_timestamp(&mut out, 1_714_566_600_500_000, true).unwrap();
        assert_eq!(out, "2024-05-01 12:30:00.5+00");
        out.clear();
        write_date(&mut out, NaiveDate::from_ymd_opt(-43, 3, 15).unwrap());
        assert_eq!(out, "0044-03-15 BC");
    }
}
