//! Texts as PostgreSQL reads them: dates, times, time stamps, bytes, arrays.

use arrow::array::{ArrayRef, StringArray};
use base::SqlState;
use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Result};

/// Refuses a text. One that has the form of a date or a time, with numbers that no calendar or clock has, is out of range.
fn wrong(kind: &str, text: &str) -> Error {
    let first = text.trim().split([' ', 'T']).next().unwrap_or_default();
    let numbers = |separator: char| {
        let fields: Vec<&str> = first.split(separator).collect();
        fields.len() == 3
            && fields.iter().all(|field| !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if numbers('-') || numbers(':') {
        return Error::state(SqlState::DATETIME_OVERFLOW, format!("date/time field value out of range: \"{text}\""));
    }
    Error::state(SqlState::INVALID_DATETIME, format!("invalid input syntax for type {kind}: \"{text}\""))
}

fn out_of_range(kind: &str, text: &str) -> Error {
    Error::state(SqlState::DATETIME_OVERFLOW, format!("{kind} out of range: \"{text}\""))
}

/// A zone behind a time: seconds east, or a region whose offset depends on the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Zone {
    Fixed(i32),
    Region(Tz),
}

impl Zone {
    /// Reads `+02`, `-03:30`, `Z`, `UTC`, `Europe/Berlin`, and a few abbreviations.
    pub(crate) fn parse(text: &str) -> Option<Zone> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix(['+', '-']) {
            let sign = if text.starts_with('-') { -1 } else { 1 };
            let digits: String = rest.chars().filter(|ch| *ch != ':').collect();
            if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let (hours, minutes, seconds) = match digits.len() {
                1 | 2 => (digits.parse::<i32>().ok()?, 0, 0),
                3 => (digits[..1].parse().ok()?, digits[1..].parse().ok()?, 0),
                4 => (digits[..2].parse().ok()?, digits[2..].parse().ok()?, 0),
                6 => (digits[..2].parse().ok()?, digits[2..4].parse().ok()?, digits[4..].parse().ok()?),
                _ => return None,
            };
            if hours > 15 || minutes > 59 || seconds > 59 {
                return None;
            }
            return Some(Zone::Fixed(sign * (hours * 3600 + minutes * 60 + seconds)));
        }
        match text.to_ascii_uppercase().as_str() {
            "Z" | "UTC" | "GMT" | "ZULU" | "UT" => return Some(Zone::Fixed(0)),
            "EST" => return Some(Zone::Fixed(-5 * 3600)),
            "EDT" => return Some(Zone::Fixed(-4 * 3600)),
            "CST" => return Some(Zone::Fixed(-6 * 3600)),
            "CDT" => return Some(Zone::Fixed(-5 * 3600)),
            "MST" => return Some(Zone::Fixed(-7 * 3600)),
            "MDT" => return Some(Zone::Fixed(-6 * 3600)),
            "PST" => return Some(Zone::Fixed(-8 * 3600)),
            "PDT" => return Some(Zone::Fixed(-7 * 3600)),
            "CET" => return Some(Zone::Fixed(3600)),
            "CEST" => return Some(Zone::Fixed(2 * 3600)),
            _ => {}
        }
        // Names are spelled exactly most of the time; the search is for the others.
        let region = text
            .parse()
            .ok()
            .or_else(|| chrono_tz::TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(text)).copied());
        region.map(Zone::Region)
    }

    /// The moment at which a clock in this zone shows this time. In a gap the clock is read with the offset before it, when a
    /// time occurs twice the later (standard time) is meant, as in PostgreSQL.
    pub(crate) fn to_utc(self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        match self {
            Zone::Fixed(seconds) => local.checked_sub_signed(chrono::TimeDelta::seconds(i64::from(seconds))),
            Zone::Region(region) => match region.from_local_datetime(&local) {
                chrono::LocalResult::Single(time) => Some(time.naive_utc()),
                chrono::LocalResult::Ambiguous(_, later) => Some(later.naive_utc()),
                chrono::LocalResult::None => {
                    let before = local.checked_sub_signed(chrono::TimeDelta::hours(3))?;
                    let offset = region.offset_from_local_datetime(&before).latest()?.fix().local_minus_utc();
                    local.checked_sub_signed(chrono::TimeDelta::seconds(i64::from(offset)))
                }
            },
        }
    }

    /// What a clock in this zone shows at a moment.
    pub(crate) fn to_local(self, utc: NaiveDateTime) -> Option<NaiveDateTime> {
        utc.checked_add_signed(chrono::TimeDelta::seconds(i64::from(self.offset_at(utc))))
    }

    /// Seconds east at a moment.
    pub(crate) fn offset_at(self, utc: NaiveDateTime) -> i32 {
        match self {
            Zone::Fixed(seconds) => seconds,
            Zone::Region(region) => region.offset_from_utc_datetime(&utc).fix().local_minus_utc(),
        }
    }
}

/// What was read of a date and time.
struct Moment {
    date: NaiveDate,
    time: NaiveTime,
    /// `24:00:00` is the start of the next day.
    next_day: bool,
    zone: Option<Zone>,
}

/// Reads a date with an optional time and zone, in ISO order or with a month's name.
fn moment(text: &str) -> Option<Moment> {
    let text = text.trim();
    let today = || Utc::now().date_naive();
    let midnight = NaiveTime::MIN;
    let plain = |date| Some(Moment { date, time: midnight, next_day: false, zone: None });
    match text.to_ascii_lowercase().as_str() {
        "now" => {
            let now = Utc::now().naive_utc();
            return Some(Moment { date: now.date(), time: now.time(), next_day: false, zone: Some(Zone::Fixed(0)) });
        }
        "today" => return plain(today()),
        "tomorrow" => return plain(today().checked_add_days(Days::new(1))?),
        "yesterday" => return plain(today().checked_sub_days(Days::new(1))?),
        "epoch" => return plain(NaiveDate::from_ymd_opt(1970, 1, 1)?),
        _ => {}
    }
    let (text, bc) = match text.len().checked_sub(3).and_then(|at| text.get(at..)) {
        Some(era) if era.eq_ignore_ascii_case(" bc") => (text[..text.len() - 3].trim_end(), true),
        Some(era) if era.eq_ignore_ascii_case(" ad") => (text[..text.len() - 3].trim_end(), false),
        _ => (text, false),
    };
    let (date, rest) = date_part(text)?;
    let date = if bc { NaiveDate::from_ymd_opt(1 - date.year(), date.month(), date.day())? } else { date };
    let rest = rest.trim_start_matches(['T', 't', ' ']).trim_end();
    if rest.is_empty() {
        return plain(date);
    }
    if let Some(zone) = (!rest.starts_with(|ch: char| ch.is_ascii_digit())).then(|| Zone::parse(rest)).flatten() {
        return Some(Moment { date, time: midnight, next_day: false, zone: Some(zone) });
    }
    let (time, next_day, zone) = time_part(rest)?;
    Some(Moment { date, time, next_day, zone })
}

/// The date at the start of a text, and what follows it.
fn date_part(text: &str) -> Option<(NaiveDate, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 8 && !text[8..].starts_with(['-', '/', '.', ':']) {
        // YYYYMMDD
        let date =
            NaiveDate::from_ymd_opt(text[..4].parse().ok()?, text[4..6].parse().ok()?, text[6..8].parse().ok()?)?;
        return Some((date, &text[8..]));
    }
    if digits >= 4 && text[digits..].starts_with(['-', '/', '.']) {
        // YYYY-MM-DD or YYYY-Mon-DD
        let year: i32 = text[..digits].parse().ok()?;
        let rest = &text[digits + 1..];
        let end = rest.find(['-', '/', '.'])?;
        let month = month_number(&rest[..end])?;
        let rest = &rest[end + 1..];
        let day = rest.bytes().take_while(u8::is_ascii_digit).count();
        let date = NaiveDate::from_ymd_opt(year, month, rest.get(..day)?.parse().ok()?)?;
        return Some((date, &rest[day..]));
    }
    if (1..=2).contains(&digits) && text[digits..].starts_with(['-', '/', '.']) {
        // MM/DD/YYYY, or DD-Mon-YYYY
        let first: u32 = text[..digits].parse().ok()?;
        let rest = &text[digits + 1..];
        let end = rest.find(['-', '/', '.'])?;
        let named = rest.starts_with(|ch: char| ch.is_alphabetic());
        let second = if named { month_number(&rest[..end])? } else { rest[..end].parse().ok()? };
        let rest = &rest[end + 1..];
        let year = rest.bytes().take_while(u8::is_ascii_digit).count();
        if year < 4 {
            return None;
        }
        let (month, day) = if named { (second, first) } else { (first, second) };
        return Some((NaiveDate::from_ymd_opt(rest[..year].parse().ok()?, month, day)?, &rest[year..]));
    }
    // January 8, 1999; 8 January 1999; Jan-08-1999
    let mut rest = text;
    let mut month = None;
    let mut numbers: Vec<u32> = Vec::new();
    while month.is_none() || numbers.len() < 2 {
        rest = rest.trim_start_matches([' ', ',', '-']);
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if letters > 0 && month.is_none() {
            month = Some(month_number(&rest[..letters])?);
            rest = &rest[letters..];
        } else if digits > 0 {
            numbers.push(rest[..digits].parse().ok()?);
            rest = &rest[digits..];
        } else {
            return None;
        }
    }
    let (day, year) = if numbers[0] > 31 { (numbers[1], numbers[0]) } else { (numbers[0], numbers[1]) };
    Some((NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month?, day)?, rest))
}

/// A month by number or name.
fn month_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let lower = text.get(..3)?.to_ascii_lowercase();
    let at = MONTHS.iter().position(|month| *month == lower)?;
    u32::try_from(at + 1).ok()
}

/// A time of day with an optional `AM` or `PM` and zone; the flag says `24:00`.
fn time_part(text: &str) -> Option<(NaiveTime, bool, Option<Zone>)> {
    let end = text.bytes().take_while(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.')).count();
    let (clock, mut rest) = text.split_at(end);
    let mut parts = clock.split(':');
    let first = parts.next()?;
    let (mut hour, minute, seconds): (u32, u32, &str) = match (parts.next(), parts.next()) {
        (Some(minute), seconds) => (first.parse().ok()?, minute.parse().ok()?, seconds.unwrap_or("0")),
        // HHMMSS or HHMM
        (None, _) => match first.split_once('.').map_or(first.len(), |(whole, _)| whole.len()) {
            4 => (first[..2].parse().ok()?, first[2..].parse().ok()?, "0"),
            6 => (first[..2].parse().ok()?, first[2..4].parse().ok()?, &first[4..]),
            _ => return None,
        },
    };
    if parts.next().is_some() {
        return None;
    }
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let second: u32 = if whole.is_empty() { return None } else { whole.parse().ok()? };
    let mut micros: u32 = 0;
    if !fraction.is_empty() {
        // Further digits round.
        let digits: String = fraction.chars().chain(std::iter::repeat_n('0', 7)).take(7).collect();
        let sevenths: u32 = digits.parse().ok()?;
        micros = sevenths.div_ceil(10).min((sevenths + 5) / 10);
    }
    rest = rest.trim_start();
    let half = rest.get(..2).map(str::to_ascii_lowercase);
    if let Some(half @ ("am" | "pm")) = half.as_deref()
        && !rest[2..].starts_with(|ch: char| ch.is_alphabetic())
    {
        if hour == 0 || hour > 12 {
            return None;
        }
        hour = hour % 12 + if half == "pm" { 12 } else { 0 };
        rest = rest[2..].trim_start();
    }
    let zone = if rest.is_empty() { None } else { Some(Zone::parse(rest)?) };
    if hour == 24 && minute == 0 && second == 0 && micros == 0 {
        return Some((NaiveTime::MIN, true, zone));
    }
    // A leap second counts as the next second.
    let carry = second == 60;
    let time = NaiveTime::from_hms_opt(hour, minute, if carry { 59 } else { second })?;
    let extra = i64::from(micros) + if carry { 1_000_000 } else { 0 };
    let (time, over) = time.overflowing_add_signed(chrono::TimeDelta::microseconds(extra));
    Some((time, over != 0, zone))
}

/// A date, in days since 1970.
pub(crate) fn date(text: &str) -> Result<i32> {
    if is_infinite(text) {
        return Err(out_of_range("date", text));
    }
    let moment = moment(text).ok_or_else(|| wrong("date", text))?;
    days(moment.date).ok_or_else(|| out_of_range("date", text))
}

fn days(date: NaiveDate) -> Option<i32> {
    date.num_days_from_ce().checked_sub(719_163)
}

fn is_infinite(text: &str) -> bool {
    let text = text.trim().trim_start_matches(['+', '-']);
    text.eq_ignore_ascii_case("infinity") || text.eq_ignore_ascii_case("inf")
}

/// A time of day, in microseconds.
pub(crate) fn time(text: &str) -> Result<i64> {
    let trimmed = text.trim();
    if let Some((time, next_day, _)) = time_part(trimmed) {
        return Ok(if next_day { 86_400_000_000 } else { micros_of_day(time) });
    }
    match moment(trimmed) {
        Some(moment) => Ok(micros_of_day(moment.time)),
        None => Err(wrong("time", text)),
    }
}

fn micros_of_day(time: NaiveTime) -> i64 {
    i64::from(time.num_seconds_from_midnight()) * 1_000_000 + i64::from(time.nanosecond() / 1000)
}

/// A time stamp without zone, in microseconds since 1970; a zone in the text is ignored, as in PostgreSQL.
pub(crate) fn timestamp(text: &str) -> Result<i64> {
    let local = local(text, "timestamp")?.0;
    Ok(local.and_utc().timestamp_micros())
}

/// A time stamp with zone, in microseconds since 1970 UTC; without a zone in the text it is UTC.
pub(crate) fn timestamptz(text: &str) -> Result<i64> {
    let (local, zone) = local(text, "timestamp with time zone")?;
    let utc = zone.unwrap_or(Zone::Fixed(0)).to_utc(local).ok_or_else(|| out_of_range("timestamp", text))?;
    Ok(utc.and_utc().timestamp_micros())
}

fn local(text: &str, kind: &str) -> Result<(NaiveDateTime, Option<Zone>)> {
    if is_infinite(text) {
        return Err(out_of_range(kind, text));
    }
    let moment = moment(text).ok_or_else(|| wrong(kind, text))?;
    let mut date = moment.date;
    if moment.next_day {
        date = date.checked_add_days(Days::new(1)).ok_or_else(|| out_of_range(kind, text))?;
    }
    let time = date.and_time(moment.time);
    // What microseconds cannot hold is out of range.
    if DateTime::from_timestamp_micros(time.and_utc().timestamp_micros()).is_none() {
        return Err(out_of_range(kind, text));
    }
    Ok((time, moment.zone))
}

/// Bytes: `\x` and hexadecimal digits, or text where `\\` and `\ooo` are escapes.
pub(crate) fn bytea(text: &str) -> Result<Vec<u8>> {
    let bad = |what: &str| {
        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type bytea: {what}"))
    };
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        if digits.len() % 2 != 0 {
            return Err(bad("an odd number of hexadecimal digits"));
        }
        return digits
            .chunks(2)
            .map(|pair| {
                let text = std::str::from_utf8(pair).map_err(|_| bad("a byte that is no hexadecimal digit"))?;
                u8::from_str_radix(text, 16).map_err(|_| bad(&format!("\"{text}\" is not hexadecimal")))
            })
            .collect();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            bytes.push(byte);
            rest = tail;
        } else if tail.first() == Some(&b'\\') {
            bytes.push(b'\\');
            rest = &tail[1..];
        } else {
            let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
            let value =
                octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).ok_or_else(|| bad("a wrong escape"))?;
            bytes.push(value);
            rest = &tail[3..];
        }
    }
    Ok(bytes)
}

/// A boolean: any unambiguous beginning of `true`, `false`, `yes`, `no`, `on`, `off`, or 1 and 0.
pub(crate) fn boolean(text: &str) -> Result<bool> {
    let word = text.trim().to_ascii_lowercase();
    let begins = |full: &str, least: usize| word.len() >= least && full.starts_with(&word);
    if word == "1" || begins("true", 1) || begins("yes", 1) || word == "on" {
        Ok(true)
    } else if word == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Ok(false)
    } else {
        Err(Error::state(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type boolean: \"{text}\""),
        ))
    }
}

/// The items of an array in PostgreSQL's form: `{1,NULL,"a b"}`. One dimension.
pub(crate) fn array_items(text: &str) -> Result<Vec<Option<String>>> {
    let malformed = |detail: &str| {
        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, format!("malformed array literal: \"{text}\""))
            .with_detail(detail)
    };
    let body = text.trim();
    let body = body
        .strip_prefix('{')
        .and_then(|body| body.strip_suffix('}'))
        .ok_or_else(|| malformed("an array starts with { and ends with }"))?;
    let mut items = Vec::new();
    if body.trim().is_empty() {
        return Ok(items);
    }
    let mut chars = body.chars().peekable();
    loop {
        while chars.next_if(|ch| ch.is_whitespace()).is_some() {}
        let mut item = String::new();
        let mut quoted = false;
        // What the item ends with, behind the last character that is not white space.
        let mut solid = 0;
        loop {
            match chars.peek() {
                None | Some(',') => break,
                Some('"') if item.is_empty() && !quoted => {
                    quoted = true;
                    chars.next();
                    loop {
                        match chars.next() {
                            Some('"') => break,
                            Some('\\') => item.push(chars.next().ok_or_else(|| malformed("it ends inside quotes"))?),
                            Some(ch) => item.push(ch),
                            None => return Err(malformed("it ends inside quotes")),
                        }
                    }
                    solid = item.len();
                }
                Some('{' | '}') => return Err(malformed("only arrays of one dimension are supported")),
                Some(ch) if quoted && !ch.is_whitespace() => return Err(malformed("something follows a quoted item")),
                Some('\\') => {
                    chars.next();
                    item.push(chars.next().ok_or_else(|| malformed("it ends with a backslash"))?);
                    solid = item.len();
                }
                Some(_) => {
                    if let Some(ch) = chars.next()
                        && !quoted
                    {
                        item.push(ch);
                        if !ch.is_whitespace() {
                            solid = item.len();
                        }
                    }
                }
            }
        }
        item.truncate(solid);
        if !quoted && item.is_empty() {
            return Err(malformed("an item is missing"));
        }
        items.push(if !quoted && item.eq_ignore_ascii_case("null") { None } else { Some(item) });
        match chars.next() {
            Some(_) => {}
            None => return Ok(items),
        }
    }
}

/// Texts as an array.
pub(crate) fn texts(items: Vec<Option<String>>) -> ArrayRef {
    std::sync::Arc::new(StringArray::from(items))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(micros: i64) -> String {
        DateTime::from_timestamp_micros(micros).unwrap().naive_utc().format("%Y-%m-%d %H:%M:%S%.f").to_string()
    }

    #[test]
    fn moments_are_read() {
        let cases = [
            ("2024-05-01", "2024-05-01 00:00:00"),
            ("2024-05-01 12:30", "2024-05-01 12:30:00"),
            ("2024-05-01T12:30:15.123456", "2024-05-01 12:30:15.123456"),
            ("2024-05-01 12:30:15.1234567", "2024-05-01 12:30:15.123457"),
            ("  2024-05-01 24:00:00 ", "2024-05-02 00:00:00"),
            ("20240501 123015", "2024-05-01 12:30:15"),
            ("2024/05/01", "2024-05-01 00:00:00"),
            ("05/01/2024 1:05 pm", "2024-05-01 13:05:00"),
            ("January 8, 1999", "1999-01-08 00:00:00"),
            ("8 Jan 1999 04:05:06", "1999-01-08 04:05:06"),
            ("08-Jan-1999", "1999-01-08 00:00:00"),
            ("1999-Jan-08", "1999-01-08 00:00:00"),
            ("epoch", "1970-01-01 00:00:00"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(timestamp(text).unwrap()), expected, "{text}");
        }
        let zoned = [
            ("2024-05-01 12:00:00+02", "2024-05-01 10:00:00"),
            ("2024-05-01 12:00:00 -03:30", "2024-05-01 15:30:00"),
            ("2024-05-01T12:00:00Z", "2024-05-01 12:00:00"),
            ("2024-05-01 12:00 Europe/Berlin", "2024-05-01 10:00:00"),
            ("2024-01-01 12:00 PST", "2024-01-01 20:00:00"),
            ("2024-05-01 12:00", "2024-05-01 12:00:00"),
        ];
        for (text, expected) in zoned {
            assert_eq!(shown(timestamptz(text).unwrap()), expected, "{text}");
        }
        // Without a zone in the type, one in the text is ignored.
        assert_eq!(shown(timestamp("2024-05-01 12:00:00+02").unwrap()), "2024-05-01 12:00:00");
        for text in
            ["", "x", "2024-13-01", "2024-02-30", "2024-05-01 25:00", "2024-05-01 12:00:00 Mars/Base", "infinity"]
        {
            assert!(timestamptz(text).is_err(), "{text}");
        }
        assert_eq!(time("04:05").unwrap(), 14_700_000_000);
        assert_eq!(time("12:00 am").unwrap(), 0);
        assert_eq!(date("1970-01-02").unwrap(), 1);
        assert_eq!(date("0044-03-15 BC").unwrap(), -735_160);
    }

    #[test]
    fn other_texts_are_read() {
        assert_eq!(bytea("\\x68 69").unwrap(), b"hi");
        assert_eq!(bytea("a\\\\b\\001").unwrap(), b"a\\b\x01");
        assert!(bytea("\\xabc").is_err());
        assert!(boolean("t").unwrap() && boolean("ON").unwrap() && !boolean("of").unwrap());
        assert!(boolean("o").is_err());
        let items = |text: &str| array_items(text).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            items("{1, NULL,\"a b\", \"NULL\" , x\\,y}"),
            [some("1"), None, some("a b"), some("NULL"), some("x,y")]
        );
        assert_eq!(items("{}"), []);
        assert_eq!(items("{\"\"}"), [some("")]);
        for text in ["1", "{1", "{1,,2}", "{{1}}", "{\"a}"] {
            assert!(array_items(text).is_err(), "{text}");
        }
    }
}
