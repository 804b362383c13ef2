//! Dates, times and intervals.
//!
//! Fields that are whole numbers are `integer`, the others `double precision` (PostgreSQL's `EXTRACT` gives `numeric` for all).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::types::IntervalMonthDayNano;
use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, FieldRef, Float64Type, Int32Type, IntervalMonthDayNanoType,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use base::SqlState;
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike, Utc};
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::call::{Call, Definition, Param, Returns, on, pure};
use super::format::{date_of, timestamp_of, write_decimal, write_double};
use super::input::Zone;
use super::interval::Interval;
use super::template::{self, Moment};
use crate::error::{Error, Result};
use crate::types::TypeSpec;

const DAY: i64 = 86_400_000_000;

/// timestamp - timestamp → interval.
pub(crate) static TIMESTAMP_DIFFERENCE: Definition = pure(
    &["timestamp_mi"],
    &[
        on(&[Param::Timestamp, Param::Timestamp], Returns::Interval, timestamp_difference),
        on(&[Param::TimestampTz, Param::TimestampTz], Returns::Interval, timestamp_difference),
    ],
);
/// date + integer → date.
pub(crate) static DATE_ADD: Definition =
    pure(&["date_pli"], &[on(&[Param::Date, Param::Int], Returns::Date, date_add)]);
/// date - integer → date.
pub(crate) static DATE_SUBTRACT: Definition =
    pure(&["date_mii"], &[on(&[Param::Date, Param::Int], Returns::Date, date_subtract)]);
/// date - date → integer.
pub(crate) static DATE_DIFFERENCE: Definition =
    pure(&["date_mi"], &[on(&[Param::Date, Param::Date], Returns::Int4, date_difference)]);
/// date + time → timestamp.
pub(crate) static DATE_TIME: Definition =
    pure(&["datetime_pl"], &[on(&[Param::Date, Param::Time], Returns::Timestamp, date_time)]);
/// interval * number.
pub(crate) static INTERVAL_MULTIPLY: Definition =
    pure(&["interval_mul"], &[on(&[Param::Interval, Param::Double], Returns::Interval, interval_multiply)]);
/// interval / number.
pub(crate) static INTERVAL_DIVIDE: Definition =
    pure(&["interval_div"], &[on(&[Param::Interval, Param::Double], Returns::Interval, interval_divide)]);

static DATE_PART: Definition = pure(
    &["date_part", "datepart", "extract"],
    &[
        on(&[Param::Text, Param::Timestamp], Returns::Compute(part_field), part_timestamp),
        on(&[Param::Text, Param::TimestampTz], Returns::Compute(part_field), part_timestamp),
        on(&[Param::Text, Param::Date], Returns::Compute(part_field), part_date),
        on(&[Param::Text, Param::Time], Returns::Compute(part_field), part_time),
        on(&[Param::Text, Param::Interval], Returns::Compute(part_field), part_interval),
    ],
);
static DATE_TRUNC: Definition = pure(
    &["date_trunc"],
    &[
        on(&[Param::Text, Param::Timestamp], Returns::Timestamp, trunc_timestamp),
        on(&[Param::Text, Param::TimestampTz], Returns::TimestampTz, trunc_timestamp),
        on(&[Param::Text, Param::TimestampTz, Param::Text], Returns::TimestampTz, trunc_zone),
        on(&[Param::Text, Param::Interval], Returns::Interval, trunc_interval),
    ],
);
static AGE: Definition = pure(
    &["age"],
    &[
        on(&[Param::Timestamp, Param::Timestamp], Returns::Interval, age),
        on(&[Param::TimestampTz, Param::TimestampTz], Returns::Interval, age),
    ],
);
static JUSTIFY_DAYS: Definition = pure(&["justify_days"], &[on(&[Param::Interval], Returns::Interval, justify_days)]);
static JUSTIFY_HOURS: Definition =
    pure(&["justify_hours"], &[on(&[Param::Interval], Returns::Interval, justify_hours)]);
static JUSTIFY_INTERVAL: Definition =
    pure(&["justify_interval"], &[on(&[Param::Interval], Returns::Interval, justify_interval)]);
static MAKE_DATE: Definition =
    pure(&["make_date"], &[on(&[Param::Int, Param::Int, Param::Int], Returns::Date, make_date)]);
static MAKE_TIME: Definition =
    pure(&["make_time"], &[on(&[Param::Int, Param::Int, Param::Double], Returns::Time, make_time)]);
static MAKE_TIMESTAMP: Definition = pure(
    &["make_timestamp"],
    &[on(
        &[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Double],
        Returns::Timestamp,
        make_timestamp,
    )],
);
static MAKE_TIMESTAMPTZ: Definition = pure(
    &["make_timestamptz"],
    &[
        on(
            &[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Double],
            Returns::TimestampTz,
            make_timestamp,
        ),
        on(
            &[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Double, Param::Text],
            Returns::TimestampTz,
            make_timestamp,
        ),
    ],
);
/// Years, months, weeks, days, hours, minutes, seconds; each may be left out from the right.
static MAKE_INTERVAL: Definition = pure(
    &["make_interval"],
    &[
        on(&[Param::Int], Returns::Interval, make_interval),
        on(&[Param::Int, Param::Int], Returns::Interval, make_interval),
        on(&[Param::Int, Param::Int, Param::Int], Returns::Interval, make_interval),
        on(&[Param::Int, Param::Int, Param::Int, Param::Int], Returns::Interval, make_interval),
        on(&[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int], Returns::Interval, make_interval),
        on(&[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Int], Returns::Interval, make_interval),
        on(
            &[Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Int, Param::Double],
            Returns::Interval,
            make_interval,
        ),
    ],
);
static TIMEZONE: Definition = pure(
    &["timezone"],
    &[
        on(&[Param::Text, Param::Timestamp], Returns::TimestampTz, from_zone),
        on(&[Param::Text, Param::TimestampTz], Returns::Timestamp, to_zone),
        on(&[Param::Interval, Param::Timestamp], Returns::TimestampTz, from_offset),
        on(&[Param::Interval, Param::TimestampTz], Returns::Timestamp, to_offset),
    ],
);
static ISFINITE: Definition = pure(
    &["isfinite"],
    &[
        on(&[Param::Timestamp], Returns::Bool, isfinite),
        on(&[Param::TimestampTz], Returns::Bool, isfinite),
        on(&[Param::Date], Returns::Bool, isfinite),
        on(&[Param::Interval], Returns::Bool, isfinite),
    ],
);
static OVERLAPS: Definition = pure(
    &["overlaps"],
    &[
        on(&[Param::Timestamp, Param::Timestamp, Param::Timestamp, Param::Timestamp], Returns::Bool, overlaps),
        on(&[Param::TimestampTz, Param::TimestampTz, Param::TimestampTz, Param::TimestampTz], Returns::Bool, overlaps),
    ],
);
static TO_CHAR: Definition = pure(
    &["to_char"],
    &[
        on(&[Param::Timestamp, Param::Text], Returns::Text, char_timestamp),
        on(&[Param::TimestampTz, Param::Text], Returns::Text, char_timestamp),
        on(&[Param::Interval, Param::Text], Returns::Text, char_interval),
        on(&[Param::Int, Param::Text], Returns::Text, char_int),
        on(&[Param::Numeric, Param::Text], Returns::Text, char_numeric),
        on(&[Param::Double, Param::Text], Returns::Text, char_double),
    ],
);
static TO_DATE: Definition = pure(&["to_date"], &[on(&[Param::Text, Param::Text], Returns::Date, to_date)]);
static TO_TIMESTAMP: Definition = pure(
    &["to_timestamp"],
    &[
        on(&[Param::Double], Returns::TimestampTz, timestamp_of_epoch),
        on(&[Param::Text, Param::Text], Returns::TimestampTz, to_timestamp),
    ],
);
static TO_NUMBER: Definition =
    pure(&["to_number"], &[on(&[Param::Text, Param::Text], Returns::Compute(number_field), to_number)]);
static CLOCK_TIMESTAMP: Definition = Definition {
    names: &["clock_timestamp"],
    volatility: Volatility::Volatile,
    overloads: &[on(&[], Returns::TimestampTz, clock)],
};
static TIMEOFDAY: Definition = Definition {
    names: &["timeofday"],
    volatility: Volatility::Volatile,
    overloads: &[on(&[], Returns::Text, timeofday)],
};

/// Every function of this module.
pub(crate) static ALL: [&Definition; 27] = [
    &TIMESTAMP_DIFFERENCE,
    &DATE_ADD,
    &DATE_SUBTRACT,
    &DATE_DIFFERENCE,
    &DATE_TIME,
    &INTERVAL_MULTIPLY,
    &INTERVAL_DIVIDE,
    &DATE_PART,
    &DATE_TRUNC,
    &AGE,
    &JUSTIFY_DAYS,
    &JUSTIFY_HOURS,
    &JUSTIFY_INTERVAL,
    &MAKE_DATE,
    &MAKE_TIME,
    &MAKE_TIMESTAMP,
    &MAKE_TIMESTAMPTZ,
    &MAKE_INTERVAL,
    &TIMEZONE,
    &ISFINITE,
    &OVERLAPS,
    &TO_CHAR,
    &TO_DATE,
    &TO_TIMESTAMP,
    &TO_NUMBER,
    &CLOCK_TIMESTAMP,
    &TIMEOFDAY,
];

fn out_of_range(what: &str) -> Error {
    Error::state(SqlState::DATETIME_OVERFLOW, format!("{what} out of range"))
}

fn micros_of(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

fn interval_at(call: &Call<'_>, at: usize, row: usize) -> Interval {
    Interval::from(call.interval(at).value(row))
}

fn intervals(call: &Call<'_>, body: impl Fn(usize) -> Result<Interval>) -> Result<ArrayRef> {
    call.values::<IntervalMonthDayNanoType>(call.arrays.len(), |row| Ok(Some(IntervalMonthDayNano::from(body(row)?))))
}

// ------------------------------------------------------------------------------------------------------------- arithmetic

fn timestamp_difference(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| {
        let micros = i128::from(call.micros(0).value(row)) - i128::from(call.micros(1).value(row));
        Interval::from_nanos(micros * 1000)
    })
}

fn moved(call: &Call<'_>, sign: i64) -> Result<ArrayRef> {
    call.values::<Date32Type>(2, |row| {
        call.int(1)
            .value(row)
            .checked_mul(sign)
            .and_then(|days| i64::from(call.date(0).value(row)).checked_add(days))
            .and_then(|days| i32::try_from(days).ok())
            .map(Some)
            .ok_or_else(|| out_of_range("date"))
    })
}

fn date_add(call: &Call<'_>) -> Result<ArrayRef> {
    moved(call, 1)
}

fn date_subtract(call: &Call<'_>) -> Result<ArrayRef> {
    moved(call, -1)
}

fn date_difference(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int32Type>(2, |row| {
        call.date(0).value(row).checked_sub(call.date(1).value(row)).map(Some).ok_or_else(|| out_of_range("date"))
    })
}

fn date_time(call: &Call<'_>) -> Result<ArrayRef> {
    let times = call.arrays[1].as_primitive::<Time64MicrosecondType>();
    call.values::<TimestampMicrosecondType>(2, |row| {
        i64::from(call.date(0).value(row))
            .checked_mul(DAY)
            .and_then(|micros| micros.checked_add(times.value(row)))
            .map(Some)
            .ok_or_else(|| out_of_range("timestamp"))
    })
}

fn interval_multiply(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| interval_at(call, 0, row).multiply(call.double(1).value(row)))
}

fn interval_divide(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| {
        let divisor = call.double(1).value(row);
        if divisor == 0.0 {
            return Err(Error::state(SqlState::DIVISION_BY_ZERO, "division by zero"));
        }
        interval_at(call, 0, row).multiply(1.0 / divisor)
    })
}

fn justify_days(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| interval_at(call, 0, row).justify_days())
}

fn justify_hours(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| interval_at(call, 0, row).justify_hours())
}

fn justify_interval(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| interval_at(call, 0, row).justify())
}

/// Years, months and days between two moments, counted as a calendar does.
fn age(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| {
        let (left, right) = (timestamp_of(call.micros(0).value(row))?, timestamp_of(call.micros(1).value(row))?);
        let negative = left < right;
        let (later, earlier) = if negative { (right, left) } else { (left, right) };
        let mut months = (later.year() - earlier.year()) * 12 + i32::try_from(later.month0()).unwrap_or(0)
            - i32::try_from(earlier.month0()).unwrap_or(0);
        let time =
            |at: NaiveDateTime| i64::from(at.num_seconds_from_midnight()) * 1_000_000_000 + i64::from(at.nanosecond());
        let mut nanos = time(later) - time(earlier);
        let mut days = i32::try_from(later.day()).unwrap_or(0) - i32::try_from(earlier.day()).unwrap_or(0);
        if nanos < 0 {
            nanos += 86_400_000_000_000;
            days -= 1;
        }
        if days < 0 {
            months -= 1;
            // The missing days are those of the month in which the earlier moment lies.
            days += days_in_month(earlier.year(), earlier.month());
        }
        let age = Interval { months, days, nanos };
        if negative { age.negate() } else { Ok(age) }
    })
}

fn days_in_month(year: i32, month: u32) -> i32 {
    let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    match (NaiveDate::from_ymd_opt(next_year, next, 1), NaiveDate::from_ymd_opt(year, month, 1)) {
        (Some(next), Some(this)) => i32::try_from((next - this).num_days()).unwrap_or(30),
        _ => 30,
    }
}

fn isfinite(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(1, |_| Ok(Some(true)))
}

fn overlaps(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(4, |row| {
        let pair = |at: usize| {
            let (a, b) = (call.micros(at).value(row), call.micros(at + 1).value(row));
            (a.min(b), a.max(b))
        };
        let ((a, b), (c, d)) = (pair(0), pair(2));
        // A period without length is a moment, which lies in a period that starts at it.
        Ok(Some(if a == c {
            true
        } else {
            a.max(c) < b.min(d) || (a == b && c <= a && a < d) || (c == d && a <= c && c < b)
        }))
    })
}

// ------------------------------------------------------------------------------------------------------------- fields

/// A field of a date or time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Century,
    Day,
    Decade,
    DayOfWeek,
    DayOfYear,
    Epoch,
    Hour,
    IsoDayOfWeek,
    IsoYear,
    Julian,
    Microseconds,
    Millennium,
    Milliseconds,
    Minute,
    Month,
    Quarter,
    Second,
    Timezone,
    TimezoneHour,
    TimezoneMinute,
    Week,
    Year,
}

impl Part {
    fn parse(text: &str) -> Result<Part> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "century" | "centuries" | "cent" | "c" => Part::Century,
            "day" | "days" | "d" => Part::Day,
            "decade" | "decades" | "dec" | "decs" => Part::Decade,
            "dow" => Part::DayOfWeek,
            "doy" => Part::DayOfYear,
            "epoch" => Part::Epoch,
            "hour" | "hours" | "hr" | "hrs" | "h" => Part::Hour,
            "isodow" => Part::IsoDayOfWeek,
            "isoyear" => Part::IsoYear,
            "julian" => Part::Julian,
            "microsecond" | "microseconds" | "us" | "usec" | "usecs" => Part::Microseconds,
            "millennium" | "millennia" | "mil" | "mils" => Part::Millennium,
            "millisecond" | "milliseconds" | "ms" | "msec" | "msecs" => Part::Milliseconds,
            "minute" | "minutes" | "min" | "mins" | "m" => Part::Minute,
            "month" | "months" | "mon" | "mons" => Part::Month,
            "quarter" | "qtr" => Part::Quarter,
            "second" | "seconds" | "sec" | "secs" | "s" => Part::Second,
            "timezone" => Part::Timezone,
            "timezone_hour" => Part::TimezoneHour,
            "timezone_minute" => Part::TimezoneMinute,
            "week" | "weeks" | "w" => Part::Week,
            "year" | "years" | "yr" | "yrs" | "y" => Part::Year,
            _ => return Err(Error::invalid(format!("unit \"{text}\" is not a field of dates and times"))),
        })
    }

    /// Whether its values are whole numbers.
    fn is_whole(self) -> bool {
        !matches!(self, Part::Epoch | Part::Second | Part::Milliseconds | Part::Julian)
    }
}

/// `integer` for fields that are whole numbers, else `double precision`.
fn part_field(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let whole = match arguments.scalar_arguments.first() {
        Some(Some(
            ScalarValue::Utf8(Some(name)) | ScalarValue::Utf8View(Some(name)) | ScalarValue::LargeUtf8(Some(name)),
        )) => Part::parse(name)?.is_whole(),
        _ => false,
    };
    let spec = if whole { TypeSpec::Integer } else { TypeSpec::Double };
    Ok(spec.field_ref("date_part"))
}

/// Values of one field, in the declared type.
fn parts(call: &Call<'_>, mut value: impl FnMut(Part, usize) -> Result<f64>) -> Result<ArrayRef> {
    let names = call.text(0);
    let mut last: Option<(String, Part)> = None;
    let mut part_at = |row: usize| -> Result<Part> {
        let name = names.value(row);
        match &last {
            Some((known, part)) if known == name => Ok(*part),
            _ => {
                let part = Part::parse(name)?;
                last = Some((name.to_owned(), part));
                Ok(part)
            }
        }
    };
    if call.returns.data_type() == &DataType::Int32 {
        // Fields that are whole numbers are far within 32 bits.
        return call.values::<Int32Type>(2, |row| Ok(Some(value(part_at(row)?, row)? as i32)));
    }
    call.values::<Float64Type>(2, |row| Ok(Some(value(part_at(row)?, row)?)))
}

fn not_a_field(part: Part, of: &str) -> Error {
    Error::state(SqlState::FEATURE_NOT_SUPPORTED, format!("a value of type {of} has no field {part:?}").to_lowercase())
}

fn part_of_time(part: Part, time: NaiveDateTime) -> f64 {
    let micros = f64::from(time.nanosecond() / 1000);
    let seconds = f64::from(time.second());
    let year = time.year();
    let shown_year = if year > 0 { year } else { year - 1 };
    match part {
        Part::Century => f64::from(if year > 0 { (year + 99) / 100 } else { -((99 - (year - 1)) / 100) }),
        Part::Millennium => f64::from(if year > 0 { (year + 999) / 1000 } else { -((999 - (year - 1)) / 1000) }),
        Part::Decade => f64::from(year.div_euclid(10)),
        Part::Day => f64::from(time.day()),
        Part::DayOfWeek => f64::from(time.weekday().num_days_from_sunday()),
        Part::IsoDayOfWeek => f64::from(time.weekday().number_from_monday()),
        Part::DayOfYear => f64::from(time.ordinal()),
        Part::Epoch => micros_of(time) as f64 / 1e6,
        Part::Hour => f64::from(time.hour()),
        Part::IsoYear => f64::from(time.iso_week().year()),
        Part::Julian => {
            f64::from(time.num_days_from_ce()) + 1_721_425.0 + f64::from(time.num_seconds_from_midnight()) / 86_400.0
        }
        Part::Microseconds => seconds * 1e6 + micros,
        Part::Milliseconds => (seconds * 1e6 + micros) / 1e3,
        Part::Second => (seconds * 1e6 + micros) / 1e6,
        Part::Minute => f64::from(time.minute()),
        Part::Month => f64::from(time.month()),
        Part::Quarter => f64::from(time.month0() / 3 + 1),
        // Time stamps with zone are in UTC here.
        Part::Timezone | Part::TimezoneHour | Part::TimezoneMinute => 0.0,
        Part::Week => f64::from(time.iso_week().week()),
        Part::Year => f64::from(shown_year),
    }
}

fn part_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    let zoned = matches!(call.arrays[1].data_type(), DataType::Timestamp(_, Some(_)));
    parts(call, |part, row| {
        if !zoned && matches!(part, Part::Timezone | Part::TimezoneHour | Part::TimezoneMinute) {
            return Err(not_a_field(part, "timestamp without time zone"));
        }
        Ok(part_of_time(part, timestamp_of(call.micros(1).value(row))?))
    })
}

fn part_date(call: &Call<'_>) -> Result<ArrayRef> {
    parts(call, |part, row| {
        if matches!(
            part,
            Part::Hour
                | Part::Minute
                | Part::Second
                | Part::Milliseconds
                | Part::Microseconds
                | Part::Timezone
                | Part::TimezoneHour
                | Part::TimezoneMinute
        ) {
            return Err(not_a_field(part, "date"));
        }
        Ok(part_of_time(part, date_of(call.date(1).value(row))?.and_time(NaiveTime::MIN)))
    })
}

fn part_time(call: &Call<'_>) -> Result<ArrayRef> {
    let times = call.arrays[1].as_primitive::<Time64MicrosecondType>();
    parts(call, |part, row| {
        let micros = times.value(row);
        let in_minute = (micros % 60_000_000) as f64;
        Ok(match part {
            Part::Hour => (micros / 3_600_000_000) as f64,
            Part::Minute => (micros / 60_000_000 % 60) as f64,
            Part::Second => in_minute / 1e6,
            Part::Milliseconds => in_minute / 1e3,
            Part::Microseconds => in_minute,
            Part::Epoch => micros as f64 / 1e6,
            other => return Err(not_a_field(other, "time")),
        })
    })
}

fn part_interval(call: &Call<'_>) -> Result<ArrayRef> {
    parts(call, |part, row| {
        let it = interval_at(call, 1, row);
        let in_minute = (it.nanos % 60_000_000_000) as f64;
        Ok(match part {
            Part::Millennium => f64::from(it.months / 12_000),
            Part::Century => f64::from(it.months / 1_200),
            Part::Decade => f64::from(it.months / 120),
            Part::Year => f64::from(it.months / 12),
            Part::Quarter => f64::from(it.months % 12 / 3 + 1),
            Part::Month => f64::from(it.months % 12),
            Part::Week => f64::from(it.days / 7),
            Part::Day => f64::from(it.days),
            Part::Hour => (it.nanos / 3_600_000_000_000) as f64,
            Part::Minute => (it.nanos / 60_000_000_000 % 60) as f64,
            Part::Second => in_minute / 1e9,
            Part::Milliseconds => in_minute / 1e6,
            Part::Microseconds => in_minute / 1e3,
            Part::Epoch => it.epoch(),
            other => return Err(not_a_field(other, "interval")),
        })
    })
}

// ------------------------------------------------------------------------------------------------------------- truncation

/// The start of the unit in which a local time lies.
fn truncated(part: Part, time: NaiveDateTime) -> Result<NaiveDateTime> {
    let date = time.date();
    let start = |year: i32, month: u32| {
        NaiveDate::from_ymd_opt(year, month, 1)
            .map(|date| date.and_time(NaiveTime::MIN))
            .ok_or_else(|| out_of_range("timestamp"))
    };
    let year = time.year();
    Ok(match part {
        Part::Microseconds => time,
        Part::Milliseconds => time - chrono::TimeDelta::nanoseconds(i64::from(time.nanosecond() % 1_000_000)),
        Part::Second => time - chrono::TimeDelta::nanoseconds(i64::from(time.nanosecond())),
        Part::Minute => date.and_time(NaiveTime::from_hms_opt(time.hour(), time.minute(), 0).unwrap_or(NaiveTime::MIN)),
        Part::Hour => date.and_time(NaiveTime::from_hms_opt(time.hour(), 0, 0).unwrap_or(NaiveTime::MIN)),
        Part::Day => date.and_time(NaiveTime::MIN),
        Part::Week => {
            let back = chrono::Days::new(u64::from(date.weekday().num_days_from_monday()));
            date.checked_sub_days(back).ok_or_else(|| out_of_range("timestamp"))?.and_time(NaiveTime::MIN)
        }
        Part::Month => start(year, time.month())?,
        Part::Quarter => start(year, time.month0() / 3 * 3 + 1)?,
        Part::Year => start(year, 1)?,
        Part::Decade => start(year.div_euclid(10) * 10, 1)?,
        Part::Century => start((year - 1).div_euclid(100) * 100 + 1, 1)?,
        Part::Millennium => start((year - 1).div_euclid(1000) * 1000 + 1, 1)?,
        other => return Err(Error::invalid(format!("unit \"{other:?}\" cannot be truncated to").to_lowercase())),
    })
}

fn trunc_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    let names = call.text(0);
    let mut last: Option<(String, Part)> = None;
    call.values::<TimestampMicrosecondType>(2, |row| {
        let name = names.value(row);
        let part = match &last {
            Some((known, part)) if known == name => *part,
            _ => {
                let part = Part::parse(name)?;
                last = Some((name.to_owned(), part));
                part
            }
        };
        let micros = call.micros(1).value(row);
        // Units of fixed length need no calendar.
        let unit = match part {
            Part::Second => 1_000_000,
            Part::Minute => 60_000_000,
            Part::Hour => 3_600_000_000,
            Part::Day => DAY,
            _ => return Ok(Some(micros_of(truncated(part, timestamp_of(micros)?)?))),
        };
        Ok(Some(micros - micros.rem_euclid(unit)))
    })
}

fn zone_named(name: &str) -> Result<Zone> {
    Zone::parse(name).ok_or_else(|| Error::invalid(format!("time zone \"{name}\" is not known")))
}

fn trunc_zone(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(3, |row| {
        let part = Part::parse(call.text(0).value(row))?;
        let zone = zone_named(call.text(2).value(row))?;
        let local = zone.to_local(timestamp_of(call.micros(1).value(row))?).ok_or_else(|| out_of_range("timestamp"))?;
        let utc = zone.to_utc(truncated(part, local)?).ok_or_else(|| out_of_range("timestamp"))?;
        Ok(Some(micros_of(utc)))
    })
}

fn trunc_interval(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<IntervalMonthDayNanoType>(2, |row| {
        let it = interval_at(call, 1, row);
        let months = |unit: i32| Interval { months: it.months - it.months % unit, days: 0, nanos: 0 };
        let nanos = |unit: i64| Interval { nanos: it.nanos - it.nanos % unit, ..it };
        let cut = match Part::parse(call.text(0).value(row))? {
            Part::Microseconds => nanos(1_000),
            Part::Milliseconds => nanos(1_000_000),
            Part::Second => nanos(1_000_000_000),
            Part::Minute => nanos(60_000_000_000),
            Part::Hour => nanos(3_600_000_000_000),
            Part::Day => Interval { nanos: 0, ..it },
            Part::Month => months(1),
            Part::Quarter => months(3),
            Part::Year => months(12),
            Part::Decade => months(120),
            Part::Century => months(1_200),
            Part::Millennium => months(12_000),
            other => return Err(not_a_field(other, "interval")),
        };
        Ok(Some(cut.into()))
    })
}

// ------------------------------------------------------------------------------------------------------------- making

fn civil(year: i64, month: i64, day: i64) -> Result<NaiveDate> {
    let field = || {
        Error::state(SqlState::DATETIME_OVERFLOW, format!("date field value out of range: {year}-{month:02}-{day:02}"))
    };
    let (shown, month, day) = match (i32::try_from(year), u32::try_from(month), u32::try_from(day)) {
        (Ok(year), Ok(month), Ok(day)) if year != 0 => (year, month, day),
        _ => return Err(field()),
    };
    // Year -1 is 1 BC, which chrono calls 0.
    let year = if shown < 0 { shown + 1 } else { shown };
    NaiveDate::from_ymd_opt(year, month, day).ok_or_else(field)
}

fn clock_time(hour: i64, minute: i64, seconds: f64) -> Result<i64> {
    let valid = (0..=24).contains(&hour) && (0..60).contains(&minute) && (0.0..=60.0).contains(&seconds);
    let micros = hour * 3_600_000_000 + minute * 60_000_000 + (seconds * 1e6).round() as i64;
    if valid && micros <= DAY {
        return Ok(micros);
    }
    Err(Error::state(
        SqlState::DATETIME_OVERFLOW,
        format!("time field value out of range: {hour}:{minute:02}:{seconds}"),
    ))
}

fn make_date(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Date32Type>(3, |row| {
        let date = civil(call.int(0).value(row), call.int(1).value(row), call.int(2).value(row))?;
        Ok(Some(date.num_days_from_ce() - 719_163))
    })
}

fn make_time(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Time64MicrosecondType>(3, |row| {
        clock_time(call.int(0).value(row), call.int(1).value(row), call.double(2).value(row)).map(Some)
    })
}

fn make_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(call.arrays.len(), |row| {
        let date = civil(call.int(0).value(row), call.int(1).value(row), call.int(2).value(row))?;
        let of_day = clock_time(call.int(3).value(row), call.int(4).value(row), call.double(5).value(row))?;
        let micros =
            micros_of(date.and_time(NaiveTime::MIN)).checked_add(of_day).ok_or_else(|| out_of_range("timestamp"))?;
        if !call.has(6) {
            return Ok(Some(micros));
        }
        let zone = zone_named(call.text(6).value(row))?;
        Ok(Some(micros_of(zone.to_utc(timestamp_of(micros)?).ok_or_else(|| out_of_range("timestamp"))?)))
    })
}

fn make_interval(call: &Call<'_>) -> Result<ArrayRef> {
    intervals(call, |row| {
        let part = |at: usize| if call.has(at) { call.int(at).value(row) } else { 0 };
        let narrow = |value: Option<i64>| {
            value.and_then(|value| i32::try_from(value).ok()).ok_or_else(|| out_of_range("interval"))
        };
        let months = narrow(part(0).checked_mul(12).and_then(|months| months.checked_add(part(1))))?;
        let days = narrow(part(2).checked_mul(7).and_then(|days| days.checked_add(part(3))))?;
        let seconds = if call.has(6) { call.double(6).value(row) } else { 0.0 };
        let nanos = part(4)
            .checked_mul(3_600_000_000_000)
            .and_then(|nanos| nanos.checked_add(part(5).checked_mul(60_000_000_000)?))
            .and_then(|nanos| nanos.checked_add((seconds * 1e6).round() as i64 * 1000))
            .ok_or_else(|| out_of_range("interval"))?;
        Ok(Interval { months, days, nanos })
    })
}

// ------------------------------------------------------------------------------------------------------------- zones

/// `timestamp AT TIME ZONE z`: the moment at which a clock there shows this time.
fn from_zone(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(2, |row| {
        let zone = zone_named(call.text(0).value(row))?;
        let utc = zone.to_utc(timestamp_of(call.micros(1).value(row))?).ok_or_else(|| out_of_range("timestamp"))?;
        Ok(Some(micros_of(utc)))
    })
}

/// `timestamptz AT TIME ZONE z`: what a clock there shows at this moment.
fn to_zone(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(2, |row| {
        let zone = zone_named(call.text(0).value(row))?;
        let local = zone.to_local(timestamp_of(call.micros(1).value(row))?).ok_or_else(|| out_of_range("timestamp"))?;
        Ok(Some(micros_of(local)))
    })
}

fn shifted(call: &Call<'_>, sign: i64) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(2, |row| {
        let offset = interval_at(call, 0, row);
        if offset.months != 0 || offset.days != 0 {
            return Err(Error::invalid("a time zone as an interval must not have months or days"));
        }
        call.micros(1)
            .value(row)
            .checked_add(sign * offset.nanos / 1000)
            .map(Some)
            .ok_or_else(|| out_of_range("timestamp"))
    })
}

fn from_offset(call: &Call<'_>) -> Result<ArrayRef> {
    shifted(call, -1)
}

fn to_offset(call: &Call<'_>) -> Result<ArrayRef> {
    shifted(call, 1)
}

// ------------------------------------------------------------------------------------------------------------- templates

fn char_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    let zoned = matches!(call.arrays[0].data_type(), DataType::Timestamp(_, Some(_)));
    let mut cache = template::Cache::default();
    call.texts(2, |row| {
        let time = timestamp_of(call.micros(0).value(row))?;
        let moment = Moment { time, zone: zoned.then_some((0, "UTC")), hours: None };
        template::format(cache.nodes(call.text(1).value(row)), moment).map(Some)
    })
}

fn char_interval(call: &Call<'_>) -> Result<ArrayRef> {
    let mut cache = template::Cache::default();
    call.texts(2, |row| {
        let it = interval_at(call, 0, row);
        // The calendar parts of an interval, laid out as if they were a date.
        let (years, months) = (it.months / 12, it.months % 12);
        let day = u32::try_from(it.days.clamp(0, 27)).unwrap_or(0);
        let date = NaiveDate::from_ymd_opt(years.max(0), u32::try_from(months.max(0)).unwrap_or(0) + 1, day + 1)
            .ok_or_else(|| out_of_range("interval"))?;
        let nanos = it.nanos.rem_euclid(3_600_000_000_000);
        let time = NaiveTime::from_hms_nano_opt(
            0,
            u32::try_from(nanos / 60_000_000_000).unwrap_or(0),
            u32::try_from(nanos / 1_000_000_000 % 60).unwrap_or(0),
            u32::try_from(nanos % 1_000_000_000).unwrap_or(0),
        )
        .ok_or_else(|| out_of_range("interval"))?;
        let nodes: Vec<template::Node> = cache
            .nodes(call.text(1).value(row))
            .iter()
            .map(|node| match node {
                template::Node::Field { field: template::Field::Day, fill, .. } => {
                    template::Node::Text(if *fill { format!("{:02}", it.days) } else { it.days.to_string() }, true)
                }
                template::Node::Field { field: template::Field::Month, fill, .. } => {
                    template::Node::Text(if *fill { format!("{months:02}") } else { months.to_string() }, true)
                }
                template::Node::Field { field: template::Field::Year { digits: 4, .. }, fill, .. } => {
                    template::Node::Text(if *fill { format!("{years:04}") } else { years.to_string() }, true)
                }
                other => other.clone(),
            })
            .collect();
        let moment = Moment { time: date.and_time(time), zone: None, hours: Some(it.nanos / 3_600_000_000_000) };
        template::format(&nodes, moment).map(Some)
    })
}

fn char_int(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| Ok(Some(template::format_number(call.text(1).value(row), &call.int(0).value(row).to_string()))))
}

fn char_numeric(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.arrays[0].as_primitive::<Decimal128Type>();
    let scale = values.scale();
    call.texts(2, |row| {
        let mut digits = String::new();
        write_decimal(&mut digits, values.value(row), scale);
        Ok(Some(template::format_number(call.text(1).value(row), &digits)))
    })
}

fn char_double(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let value = call.double(0).value(row);
        if !value.is_finite() {
            let mut word = String::new();
            write_double(&mut word, value);
            return Ok(Some(word));
        }
        Ok(Some(template::format_number(call.text(1).value(row), &format!("{value}"))))
    })
}

fn to_date(call: &Call<'_>) -> Result<ArrayRef> {
    let mut cache = template::Cache::default();
    call.values::<Date32Type>(2, |row| {
        let (time, _) = template::read(cache.nodes(call.text(1).value(row)), call.text(0).value(row))?;
        Ok(Some(time.num_days_from_ce() - 719_163))
    })
}

fn to_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    let mut cache = template::Cache::default();
    call.values::<TimestampMicrosecondType>(2, |row| {
        let (local, zone) = template::read(cache.nodes(call.text(1).value(row)), call.text(0).value(row))?;
        let utc = zone.unwrap_or(Zone::Fixed(0)).to_utc(local).ok_or_else(|| out_of_range("timestamp"))?;
        Ok(Some(micros_of(utc)))
    })
}

fn timestamp_of_epoch(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(1, |row| {
        let micros = (call.double(0).value(row) * 1e6).round();
        if !micros.is_finite() || micros.abs() > 9e18 || DateTime::from_timestamp_micros(micros as i64).is_none() {
            return Err(out_of_range("timestamp"));
        }
        Ok(Some(micros as i64))
    })
}

/// `numeric` with as many digits behind the point as a constant template has.
fn number_field(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let scale = match arguments.scalar_arguments.get(1) {
        Some(Some(ScalarValue::Utf8(Some(template)))) => {
            let behind = template.to_ascii_uppercase().replace('D', ".");
            behind.split_once('.').map_or(0, |(_, places)| places.chars().filter(|ch| matches!(ch, '9' | '0')).count())
        }
        _ => 10,
    };
    let shifted = matches!(arguments.scalar_arguments.get(1), Some(Some(ScalarValue::Utf8(Some(template)))) if template.to_ascii_uppercase().contains('V'));
    let scale = if shifted { 10 } else { scale };
    let spec = TypeSpec::Numeric { precision: 38, scale: i8::try_from(scale.min(38)).unwrap_or(10) };
    Ok(spec.field_ref("to_number"))
}

fn to_number(call: &Call<'_>) -> Result<ArrayRef> {
    let texts =
        call.texts(2, |row| template::read_number(call.text(1).value(row), call.text(0).value(row)).map(Some))?;
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    Ok(arrow::compute::cast_with_options(&texts, call.returns.data_type(), &options)?)
}

// ------------------------------------------------------------------------------------------------------------- clocks

fn clock(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<TimestampMicrosecondType>(0, |_| Ok(Some(Utc::now().timestamp_micros())))
}

fn timeofday(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(0, |_| Ok(Some(Utc::now().format("%a %b %d %H:%M:%S%.6f %Y UTC").to_string())))
}

/// What a function of the statement's clock returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reading {
    TimestampTz,
    Timestamp,
    Date,
    Time,
}

/// `now()` and its relatives: one moment for a whole statement, which the planner puts in as a constant.
struct Now {
    reading: Reading,
    name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
}

impl Now {
    fn value(&self, now: DateTime<Utc>) -> ScalarValue {
        let micros = now.timestamp_micros();
        match self.reading {
            Reading::TimestampTz => ScalarValue::TimestampMicrosecond(Some(micros), Some(crate::types::utc())),
            Reading::Timestamp => ScalarValue::TimestampMicrosecond(Some(micros), None),
            Reading::Date => ScalarValue::Date32(i32::try_from(micros.div_euclid(DAY)).ok()),
            Reading::Time => ScalarValue::Time64Microsecond(Some(micros.rem_euclid(DAY))),
        }
    }

    fn data_type(&self) -> DataType {
        match self.reading {
            Reading::TimestampTz => TypeSpec::TimestampTz.data_type(),
            Reading::Timestamp => TypeSpec::Timestamp.data_type(),
            Reading::Date => DataType::Date32,
            Reading::Time => DataType::Time64(TimeUnit::Microsecond),
        }
    }
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Now").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Now {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Now {}

impl Hash for Now {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.data_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> DataFusionResult<FieldRef> {
        Ok(Arc::new(Field::new(self.name, self.data_type(), false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        // An answer here would be folded into the plan before `simplify` puts in the statement's own moment.
        Err(Error::internal(format!("{} was not replaced by the statement's time", self.name)).into())
    }

    fn simplify(&self, arguments: Vec<Expr>, context: &SimplifyContext) -> DataFusionResult<ExprSimplifyResult> {
        match context.query_execution_start_time() {
            Some(now) => Ok(ExprSimplifyResult::Simplified(Expr::Literal(self.value(now), None))),
            None => Ok(ExprSimplifyResult::Original(arguments)),
        }
    }
}

/// The functions of the statement's clock.
pub(crate) fn clocks() -> Vec<ScalarUDF> {
    let clock = |reading: Reading, names: &[&'static str]| {
        ScalarUDF::from(Now {
            reading,
            name: names[0],
            aliases: names[1..].iter().map(|&name| name.to_owned()).collect(),
            signature: Signature::nullary(Volatility::Stable),
        })
    };
    vec![
        clock(Reading::TimestampTz, &["now", "current_timestamp", "transaction_timestamp", "statement_timestamp"]),
        clock(Reading::Timestamp, &["localtimestamp"]),
        clock(Reading::Date, &["current_date", "today"]),
        clock(Reading::Time, &["localtime", "current_time"]),
    ]
}
