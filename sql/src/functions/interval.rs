//! Intervals: months, days and nanoseconds, which stay apart because months and days vary in length.

use arrow::array::types::IntervalMonthDayNano;
use base::SqlState;

use super::format::write_fraction;
use crate::error::{Error, Result};

const NANOS_PER_DAY: i64 = 86_400_000_000_000;
const NANOS_PER_HOUR: i64 = 3_600_000_000_000;

/// An interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) months: i32,
    pub(crate) days: i32,
    pub(crate) nanos: i64,
}

impl From<IntervalMonthDayNano> for Interval {
    fn from(value: IntervalMonthDayNano) -> Interval {
        Interval { months: value.months, days: value.days, nanos: value.nanoseconds }
    }
}

impl From<Interval> for IntervalMonthDayNano {
    fn from(value: Interval) -> IntervalMonthDayNano {
        IntervalMonthDayNano { months: value.months, days: value.days, nanoseconds: value.nanos }
    }
}

fn out_of_range() -> Error {
    Error::state(SqlState::DATETIME_OVERFLOW, "interval out of range")
}

impl Interval {
    /// Days and a rest, as PostgreSQL gives for the difference of two time stamps.
    pub(crate) fn from_nanos(nanos: i128) -> Result<Interval> {
        let days = i32::try_from(nanos / i128::from(NANOS_PER_DAY)).map_err(|_| out_of_range())?;
        let nanos = i64::try_from(nanos % i128::from(NANOS_PER_DAY)).map_err(|_| out_of_range())?;
        Ok(Interval { months: 0, days, nanos })
    }

    /// The nanoseconds of all of it, a month counting 30 days; this is the order of intervals.
    pub(crate) fn total_nanos(self) -> i128 {
        (i128::from(self.months) * 30 + i128::from(self.days)) * i128::from(NANOS_PER_DAY) + i128::from(self.nanos)
    }

    /// Seconds, a year counting 365.25 days, as `EXTRACT(EPOCH …)` has it.
    pub(crate) fn epoch(self) -> f64 {
        let years = f64::from(self.months / 12) * 365.25;
        let months = f64::from(self.months % 12) * 30.0;
        (years + months + f64::from(self.days)) * 86_400.0 + self.nanos as f64 / 1e9
    }

    pub(crate) fn negate(self) -> Result<Interval> {
        Ok(Interval {
            months: self.months.checked_neg().ok_or_else(out_of_range)?,
            days: self.days.checked_neg().ok_or_else(out_of_range)?,
            nanos: self.nanos.checked_neg().ok_or_else(out_of_range)?,
        })
    }

    /// Times a factor: fractions of months become days, fractions of days become time.
    pub(crate) fn multiply(self, factor: f64) -> Result<Interval> {
        let whole = |value: f64| {
            let value = value.trunc();
            if value.abs() <= f64::from(i32::MAX) { Ok(value as i32) } else { Err(out_of_range()) }
        };
        if !factor.is_finite() {
            return Err(out_of_range());
        }
        let months = f64::from(self.months) * factor;
        let month_days = (months - months.trunc()) * 30.0;
        // Rounding to microseconds hides the error of the multiplication, as PostgreSQL does.
        let month_days = (month_days * 1e6).round() / 1e6;
        let days = f64::from(self.days) * factor;
        let rest = (days - days.trunc() + month_days - month_days.trunc()) * NANOS_PER_DAY as f64;
        let nanos = (self.nanos as f64 * factor + rest) / 1000.0;
        let nanos = nanos.round() * 1000.0;
        if nanos.abs() >= i64::MAX as f64 {
            return Err(out_of_range());
        }
        let days = whole(days)?.checked_add(whole(month_days)?).ok_or_else(out_of_range)?;
        Ok(Interval { months: whole(months)?, days, nanos: nanos as i64 })
    }

    /// Every 24 hours become a day.
    pub(crate) fn justify_hours(self) -> Result<Interval> {
        let mut days = i64::from(self.days) + self.nanos / NANOS_PER_DAY;
        let mut nanos = self.nanos % NANOS_PER_DAY;
        if days > 0 && nanos < 0 {
            nanos += NANOS_PER_DAY;
            days -= 1;
        } else if days < 0 && nanos > 0 {
            nanos -= NANOS_PER_DAY;
            days += 1;
        }
        Ok(Interval { months: self.months, days: i32::try_from(days).map_err(|_| out_of_range())?, nanos })
    }

    /// Every 30 days become a month.
    pub(crate) fn justify_days(self) -> Result<Interval> {
        let mut months = self.months.checked_add(self.days / 30).ok_or_else(out_of_range)?;
        let mut days = self.days % 30;
        if months > 0 && days < 0 {
            days += 30;
            months -= 1;
        } else if months < 0 && days > 0 {
            days -= 30;
            months += 1;
        }
        Ok(Interval { months, days, nanos: self.nanos })
    }

    /// Both, with one sign.
    pub(crate) fn justify(self) -> Result<Interval> {
        let mut it = self.justify_hours()?.justify_days()?;
        if it.months > 0 && (it.days < 0 || (it.days == 0 && it.nanos < 0)) {
            it.days += 30;
            it.months -= 1;
        } else if it.months < 0 && (it.days > 0 || (it.days == 0 && it.nanos > 0)) {
            it.days -= 30;
            it.months += 1;
        }
        if it.days > 0 && it.nanos < 0 {
            it.nanos += NANOS_PER_DAY;
            it.days -= 1;
        } else if it.days < 0 && it.nanos > 0 {
            it.nanos -= NANOS_PER_DAY;
            it.days += 1;
        }
        Ok(it)
    }

    /// PostgreSQL's default style: `1 year 2 mons -3 days +04:05:06.7`.
    pub(crate) fn write(self, out: &mut String) {
        use std::fmt::Write;
        let mut any = false;
        let mut before_negative = false;
        let mut part = |out: &mut String, value: i32, unit: &str| {
            if value == 0 {
                return;
            }
            if any {
                out.push(' ');
            }
            let plus = if before_negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            // Writing to a string cannot fail.
            let _ = write!(out, "{plus}{value} {unit}{plural}");
            any = true;
            before_negative = value < 0;
        };
        part(out, self.months / 12, "year");
        part(out, self.months % 12, "mon");
        part(out, self.days, "day");
        if self.nanos != 0 || !any {
            if any {
                out.push(' ');
            }
            if self.nanos < 0 {
                out.push('-');
            } else if before_negative {
                out.push('+');
            }
            let nanos = self.nanos.unsigned_abs();
            let seconds = nanos / 1_000_000_000;
            let _ = write!(
                out,
                "{:02}:{:02}:{:02}",
                nanos / NANOS_PER_HOUR.unsigned_abs(),
                seconds / 60 % 60,
                seconds % 60
            );
            write_fraction(out, i64::try_from(nanos % 1_000_000_000 / 1000).unwrap_or(0));
        }
    }

    /// Reads PostgreSQL's forms: `1 year 2 mons 3 days 04:05:06`, `1-2`, `P1Y2M3DT4H5M6S`, `1.5 hours ago`.
    pub(crate) fn parse(text: &str) -> Result<Interval> {
        let wrong =
            || Error::state(SqlState::INVALID_DATETIME, format!("invalid input syntax for type interval: \"{text}\""));
        let trimmed = text.trim();
        if let Some(iso) = trimmed.strip_prefix(['P', 'p']) {
            return parse_iso(iso).ok_or_else(wrong);
        }
        let mut total = Sum::default();
        let mut words: Vec<String> = Vec::new();
        for word in trimmed.split([' ', '\t', ',']).filter(|word| !word.is_empty() && *word != "@") {
            // `1day` is two words.
            let split = word.find(|ch: char| ch.is_alphabetic()).filter(|&at| at > 0 && !word.contains(':'));
            match split {
                Some(at) => words.extend([word[..at].to_owned(), word[at..].to_lowercase()]),
                None => words.push(word.to_lowercase()),
            }
        }
        if words.is_empty() {
            return Err(wrong());
        }
        let ago = words.last().is_some_and(|word| word == "ago");
        if ago {
            words.pop();
        }
        let mut at = 0;
        while at < words.len() {
            let word = &words[at];
            if word.contains(':') {
                total.time(word).ok_or_else(wrong)?;
                at += 1;
                continue;
            }
            if let Some((years, months)) = word.trim_start_matches(['+', '-']).split_once('-') {
                let sign = if word.starts_with('-') { -1.0 } else { 1.0 };
                let (years, months): (f64, f64) =
                    (years.parse().map_err(|_| wrong())?, months.parse().map_err(|_| wrong())?);
                total.months += sign * (years * 12.0 + months);
                at += 1;
                continue;
            }
            let number: f64 = word.parse().map_err(|_| wrong())?;
            match words.get(at + 1) {
                Some(unit) if unit.starts_with(char::is_alphabetic) => {
                    total.add(number, unit).ok_or_else(wrong)?;
                    at += 2;
                }
                // A number without a unit counts seconds.
                None => {
                    total.nanos += number * 1e9;
                    at += 1;
                }
                Some(next) if next.contains(':') => {
                    total.days += number;
                    at += 1;
                }
                Some(_) => return Err(wrong()),
            }
        }
        let interval = total.finish()?;
        if ago { interval.negate() } else { Ok(interval) }
    }
}

/// Parts of an interval while it is read.
#[derive(Default)]
struct Sum {
    months: f64,
    days: f64,
    nanos: f64,
}

impl Sum {
    fn add(&mut self, number: f64, unit: &str) -> Option<()> {
        match unit {
            "millennium" | "millennia" | "mil" | "mils" => self.months += number * 12_000.0,
            "century" | "centuries" | "cent" | "c" => self.months += number * 1_200.0,
            "decade" | "decades" | "dec" | "decs" => self.months += number * 120.0,
            "year" | "years" | "yr" | "yrs" | "y" => self.months += number * 12.0,
            "quarter" | "quarters" | "qtr" => self.months += number * 3.0,
            "month" | "months" | "mon" | "mons" => self.months += number,
            "week" | "weeks" | "w" => self.days += number * 7.0,
            "day" | "days" | "d" => self.days += number,
            "hour" | "hours" | "hr" | "hrs" | "h" => self.nanos += number * 3.6e12,
            "minute" | "minutes" | "min" | "mins" | "m" => self.nanos += number * 6e10,
            "second" | "seconds" | "sec" | "secs" | "s" => self.nanos += number * 1e9,
            "millisecond" | "milliseconds" | "msec" | "msecs" | "ms" => self.nanos += number * 1e6,
            "microsecond" | "microseconds" | "usec" | "usecs" | "us" => self.nanos += number * 1e3,
            _ => return None,
        }
        Some(())
    }

    /// `[-]HH:MM[:SS[.f]]`.
    fn time(&mut self, word: &str) -> Option<()> {
        let (sign, word) = match word.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, word.strip_prefix('+').unwrap_or(word)),
        };
        let mut parts = word.split(':');
        let hours: f64 = parts.next()?.parse().ok()?;
        let minutes: f64 = parts.next()?.parse().ok()?;
        let seconds: f64 = parts.next().map_or(Some(0.0), |part| part.parse().ok())?;
        if parts.next().is_some() {
            return None;
        }
        self.nanos += sign * (hours * 3.6e12 + minutes * 6e10 + (seconds * 1e6).round() * 1e3);
        Some(())
    }

    fn finish(self) -> Result<Interval> {
        let months = self.months.round_ties_even();
        // A fraction of a month is days, a fraction of a day is time.
        let whole_months = if (self.months - months).abs() < 1e-9 { months } else { self.months.trunc() };
        let days = self.days + (self.months - whole_months) * 30.0;
        let days = (days * 1e6).round() / 1e6;
        let nanos = self.nanos + (days - days.trunc()) * NANOS_PER_DAY as f64;
        let nanos = (nanos / 1000.0).round() * 1000.0;
        if whole_months.abs() > f64::from(i32::MAX)
            || days.abs() > f64::from(i32::MAX)
            || nanos.abs() >= i64::MAX as f64
        {
            return Err(out_of_range());
        }
        Ok(Interval { months: whole_months as i32, days: days.trunc() as i32, nanos: nanos as i64 })
    }
}

/// `1Y2M3DT4H5M6.5S`, behind the P.
fn parse_iso(text: &str) -> Option<Interval> {
    let mut total = Sum::default();
    let mut time = false;
    let mut number = String::new();
    for ch in text.chars() {
        match ch.to_ascii_uppercase() {
            'T' if number.is_empty() => time = true,
            '0'..='9' | '.' | '-' | '+' => number.push(ch),
            unit => {
                let value: f64 = number.parse().ok()?;
                number.clear();
                match (unit, time) {
                    ('Y', false) => total.add(value, "year")?,
                    ('M', false) => total.add(value, "month")?,
                    ('W', false) => total.add(value, "week")?,
                    ('D', false) => total.add(value, "day")?,
                    ('H', true) => total.add(value, "hour")?,
                    ('M', true) => total.add(value, "minute")?,
                    ('S', true) => total.add(value, "second")?,
                    _ => return None,
                }
            }
        }
    }
    if !number.is_empty() || text.is_empty() {
        return None;
    }
    total.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(interval: Interval) -> String {
        let mut out = String::new();
        interval.write(&mut out);
        out
    }

    #[test]
    fn intervals_read_and_print() {
        let cases = [
            ("1 day", "1 day"),
            ("2 days", "2 days"),
            ("1 year 2 months 3 days 04:05:06.789", "1 year 2 mons 3 days 04:05:06.789"),
            ("90 minutes", "01:30:00"),
            ("-1 day", "-1 days"),
            ("1 day -00:00:01", "1 day -00:00:01"),
            ("-1 days +02:03:00", "-1 days +02:03:00"),
            ("1.5 hours", "01:30:00"),
            ("1.5 days", "1 day 12:00:00"),
            ("1.5 months", "1 mon 15 days"),
            ("1-2", "1 year 2 mons"),
            ("P1Y2M3DT4H5M6S", "1 year 2 mons 3 days 04:05:06"),
            ("PT36H", "36:00:00"),
            ("1 week", "7 days"),
            ("2 hours ago", "-02:00:00"),
            ("1day 2h", "1 day 02:00:00"),
            ("3 04:00", "3 days 04:00:00"),
            ("@ 1 minute", "00:01:00"),
            ("0", "00:00:00"),
            ("1 decade", "10 years"),
            ("100 milliseconds", "00:00:00.1"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(Interval::parse(text).unwrap()), expected, "{text}");
        }
        for text in ["", "x", "1 parsec", "1:2:3:4", "P", "1 2 days"] {
            assert!(Interval::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals_are_justified() {
        let parse = |text| Interval::parse(text).unwrap();
        assert_eq!(shown(parse("27:00:00").justify_hours().unwrap()), "1 day 03:00:00");
        assert_eq!(shown(parse("35 days").justify_days().unwrap()), "1 mon 5 days");
        assert_eq!(shown(parse("1 mon -1 hour").justify().unwrap()), "29 days 23:00:00");
        assert_eq!(shown(parse("1 day").multiply(1.5).unwrap()), "1 day 12:00:00");
        assert_eq!(shown(parse("1 month").multiply(0.5).unwrap()), "15 days");
        assert_eq!(shown(parse("01:00:00").multiply(1.0 / 3.0).unwrap()), "00:20:00");
    }
}
