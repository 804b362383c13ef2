//! PostgreSQL's templates: `to_char`, `to_date`, `to_timestamp` and `to_number`.
//!
//! A template is read once into [`Node`]s; a column with one template reads it once ([`Cache`]).
//!
//! # Deliberately absent
//! Localised names (`TM` is accepted and means English), `Y,YYY` on input, Roman numerals on input.

use base::SqlState;
use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, Timelike};

use super::input::Zone;
use crate::error::{Error, Result};

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// Text that stands for itself; `true` if it was quoted.
    Text(String, bool),
    /// A field of a date or time.
    Field { field: Field, fill: bool, ordinal: Ordinal },
}

/// The `TH` behind a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ordinal {
    None,
    Upper,
    Lower,
}

/// How letters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Upper,
    Title,
    Lower,
}

/// A field of a date or time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Hour12,
    Hour24,
    Minute,
    Second,
    Millisecond,
    Microsecond,
    /// `FF1` to `FF6`: this many digits.
    Fraction(u8),
    SecondOfDay,
    /// `AM` or `A.M.`.
    Half {
        upper: bool,
        dots: bool,
    },
    /// Digits of the year, 1 to 4; with the comma of `Y,YYY`.
    Year {
        digits: u8,
        comma: bool,
    },
    IsoYear(u8),
    Era {
        upper: bool,
        dots: bool,
    },
    MonthName(Case),
    MonthShort(Case),
    Month,
    DayName(Case),
    DayShort(Case),
    DayOfYear,
    IsoDayOfYear,
    Day,
    DayOfWeek,
    IsoDayOfWeek,
    WeekOfMonth,
    WeekOfYear,
    IsoWeek,
    Century,
    Julian,
    Quarter,
    Roman {
        upper: bool,
    },
    Zone {
        upper: bool,
    },
    ZoneHours,
    ZoneMinutes,
    ZoneOffset,
}

/// The words of templates, longer before shorter; the case of a word matters only for names.
const WORDS: &[(&str, Field)] = &[
    ("SSSSS", Field::SecondOfDay),
    ("SSSS", Field::SecondOfDay),
    ("Y,YYY", Field::Year { digits: 4, comma: true }),
    ("IYYY", Field::IsoYear(4)),
    ("IDDD", Field::IsoDayOfYear),
    ("YYYY", Field::Year { digits: 4, comma: false }),
    ("HH24", Field::Hour24),
    ("HH12", Field::Hour12),
    ("MONTH", Field::MonthName(Case::Upper)),
    ("Month", Field::MonthName(Case::Title)),
    ("month", Field::MonthName(Case::Lower)),
    ("A.M.", Field::Half { upper: true, dots: true }),
    ("P.M.", Field::Half { upper: true, dots: true }),
    ("a.m.", Field::Half { upper: false, dots: true }),
    ("p.m.", Field::Half { upper: false, dots: true }),
    ("A.D.", Field::Era { upper: true, dots: true }),
    ("B.C.", Field::Era { upper: true, dots: true }),
    ("a.d.", Field::Era { upper: false, dots: true }),
    ("b.c.", Field::Era { upper: false, dots: true }),
    ("FF1", Field::Fraction(1)),
    ("FF2", Field::Fraction(2)),
    ("FF3", Field::Fraction(3)),
    ("FF4", Field::Fraction(4)),
    ("FF5", Field::Fraction(5)),
    ("FF6", Field::Fraction(6)),
    ("IYY", Field::IsoYear(3)),
    ("YYY", Field::Year { digits: 3, comma: false }),
    ("DAY", Field::DayName(Case::Upper)),
    ("Day", Field::DayName(Case::Title)),
    ("day", Field::DayName(Case::Lower)),
    ("DDD", Field::DayOfYear),
    ("MON", Field::MonthShort(Case::Upper)),
    ("Mon", Field::MonthShort(Case::Title)),
    ("mon", Field::MonthShort(Case::Lower)),
    ("TZH", Field::ZoneHours),
    ("TZM", Field::ZoneMinutes),
    ("AD", Field::Era { upper: true, dots: false }),
    ("BC", Field::Era { upper: true, dots: false }),
    ("ad", Field::Era { upper: false, dots: false }),
    ("bc", Field::Era { upper: false, dots: false }),
    ("AM", Field::Half { upper: true, dots: false }),
    ("PM", Field::Half { upper: true, dots: false }),
    ("am", Field::Half { upper: false, dots: false }),
    ("pm", Field::Half { upper: false, dots: false }),
    ("CC", Field::Century),
    ("DD", Field::Day),
    ("DY", Field::DayShort(Case::Upper)),
    ("Dy", Field::DayShort(Case::Title)),
    ("dy", Field::DayShort(Case::Lower)),
    ("HH", Field::Hour12),
    ("ID", Field::IsoDayOfWeek),
    ("IW", Field::IsoWeek),
    ("IY", Field::IsoYear(2)),
    ("MI", Field::Minute),
    ("MM", Field::Month),
    ("MS", Field::Millisecond),
    ("OF", Field::ZoneOffset),
    ("RM", Field::Roman { upper: true }),
    ("rm", Field::Roman { upper: false }),
    ("SS", Field::Second),
    ("TZ", Field::Zone { upper: true }),
    ("tz", Field::Zone { upper: false }),
    ("US", Field::Microsecond),
    ("WW", Field::WeekOfYear),
    ("YY", Field::Year { digits: 2, comma: false }),
    ("D", Field::DayOfWeek),
    ("I", Field::IsoYear(1)),
    ("J", Field::Julian),
    ("Q", Field::Quarter),
    ("W", Field::WeekOfMonth),
    ("Y", Field::Year { digits: 1, comma: false }),
];

/// Whether the case of a word is part of what it says.
fn case_matters(field: Field) -> bool {
    matches!(
        field,
        Field::Half { .. }
            | Field::Era { .. }
            | Field::MonthName(_)
            | Field::MonthShort(_)
            | Field::DayName(_)
            | Field::DayShort(_)
            | Field::Roman { .. }
            | Field::Zone { .. }
    )
}

/// Reads a template for dates and times.
pub(crate) fn parse(template: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    let mut fill = true;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            flush(&mut nodes, &mut text, false);
            let mut quoted = String::new();
            let mut chars = rest[1..].char_indices();
            let mut end = rest.len();
            while let Some((at, ch)) = chars.next() {
                match ch {
                    '"' => {
                        end = at + 2;
                        break;
                    }
                    '\\' => quoted.extend(chars.next().map(|(_, ch)| ch)),
                    ch => quoted.push(ch),
                }
            }
            nodes.push(Node::Text(quoted, true));
            rest = &rest[end.min(rest.len())..];
            continue;
        }
        let prefix = rest.get(..2).unwrap_or_default();
        if prefix.eq_ignore_ascii_case("FM") {
            fill = false;
            rest = &rest[2..];
            continue;
        }
        if prefix.eq_ignore_ascii_case("FX") || prefix.eq_ignore_ascii_case("TM") {
            rest = &rest[2..];
            continue;
        }
        // The word as written first, so that `Mon` is not read as `MON`.
        let found = WORDS.iter().find(|(word, _)| rest.starts_with(word)).or_else(|| {
            WORDS.iter().find(|(word, field)| {
                rest.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
                    && (!case_matters(*field) || word.chars().all(|ch| !ch.is_ascii_lowercase()))
            })
        });
        if let Some((word, field)) = found {
            flush(&mut nodes, &mut text, false);
            rest = &rest[word.len()..];
            let ordinal = match rest.get(..2) {
                Some("TH") => Ordinal::Upper,
                Some("th") => Ordinal::Lower,
                _ => Ordinal::None,
            };
            if ordinal != Ordinal::None {
                rest = &rest[2..];
            }
            nodes.push(Node::Field { field: *field, fill, ordinal });
            fill = true;
        } else {
            text.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    flush(&mut nodes, &mut text, false);
    nodes
}

fn flush(nodes: &mut Vec<Node>, text: &mut String, quoted: bool) {
    if !text.is_empty() {
        nodes.push(Node::Text(std::mem::take(text), quoted));
    }
}

/// The last template that was read, with its nodes.
#[derive(Default)]
pub(crate) struct Cache(Option<(String, Vec<Node>)>);

impl Cache {
    /// The nodes of a template.
    pub(crate) fn nodes(&mut self, template: &str) -> &[Node] {
        if self.0.as_ref().is_none_or(|(last, _)| last != template) {
            self.0 = Some((template.to_owned(), parse(template)));
        }
        self.0.as_ref().map_or(&[], |(_, nodes)| nodes)
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const ROMAN: [&str; 12] = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"];

fn cased(text: &str, case: Case) -> String {
    match case {
        Case::Upper => text.to_uppercase(),
        Case::Title => text.to_owned(),
        Case::Lower => text.to_lowercase(),
    }
}

/// What a template can ask of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The date and time that a clock shows.
    pub(crate) time: NaiveDateTime,
    /// Seconds east of UTC and the zone's name, for time stamps with zone.
    pub(crate) zone: Option<(i32, &'static str)>,
    /// For intervals: the hours may exceed a day, the other parts are lengths.
    pub(crate) hours: Option<i64>,
}

/// Writes a date and time by a template.
pub(crate) fn format(nodes: &[Node], moment: Moment) -> Result<String> {
    let mut out = String::new();
    for node in nodes {
        match node {
            Node::Text(text, _) => out.push_str(text),
            Node::Field { field, fill, ordinal } => {
                let start = out.len();
                write_field(&mut out, *field, *fill, moment);
                if *ordinal != Ordinal::None {
                    let digits: String = out[start..].chars().filter(char::is_ascii_digit).collect();
                    out.push_str(ordinal_suffix(digits.parse().unwrap_or(0), *ordinal));
                }
            }
        }
    }
    Ok(out)
}

fn ordinal_suffix(number: i64, ordinal: Ordinal) -> &'static str {
    let (upper, lower) = match (number.rem_euclid(100), number.rem_euclid(10)) {
        (11..=13, _) => ("TH", "th"),
        (_, 1) => ("ST", "st"),
        (_, 2) => ("ND", "nd"),
        (_, 3) => ("RD", "rd"),
        _ => ("TH", "th"),
    };
    if ordinal == Ordinal::Upper { upper } else { lower }
}

fn write_field(out: &mut String, field: Field, fill: bool, moment: Moment) {
    let time = moment.time;
    let number = |out: &mut String, value: i64, width: usize| {
        let width = if fill { width } else { 0 };
        if value < 0 {
            out.push_str(&format!("-{:0width$}", value.unsigned_abs()));
        } else {
            out.push_str(&format!("{value:0width$}"));
        }
    };
    let name = |out: &mut String, text: String, width: usize| {
        if fill {
            out.push_str(&format!("{text:<width$}"));
        } else {
            out.push_str(&text);
        }
    };
    let micros = i64::from(time.nanosecond() / 1000);
    let hour = moment.hours.unwrap_or_else(|| i64::from(time.hour()));
    let year = i64::from(time.year());
    // There is no year 0; years before it are written with the era.
    let shown_year = if year > 0 || moment.hours.is_some() { year } else { 1 - year };
    let iso = time.iso_week();
    match field {
        Field::Hour12 => number(out, if hour % 12 == 0 { 12 } else { hour % 12 }, 2),
        Field::Hour24 => number(out, hour, 2),
        Field::Minute => number(out, i64::from(time.minute()), 2),
        Field::Second => number(out, i64::from(time.second()), 2),
        Field::Millisecond => number(out, micros / 1000, 3),
        Field::Microsecond => number(out, micros, 6),
        Field::Fraction(digits) => {
            let text = format!("{micros:06}");
            out.push_str(&text[..usize::from(digits.min(6))]);
        }
        Field::SecondOfDay => number(out, i64::from(time.num_seconds_from_midnight()), 0),
        Field::Half { upper, dots } => {
            let half = match (hour % 24 >= 12, dots) {
                (false, false) => "AM",
                (false, true) => "A.M.",
                (true, false) => "PM",
                (true, true) => "P.M.",
            };
            out.push_str(&if upper { half.to_owned() } else { half.to_lowercase() });
        }
        Field::Year { digits: 4, comma: true } => {
            out.push_str(&format!("{},{:03}", shown_year / 1000, shown_year % 1000))
        }
        Field::Year { digits: 4, .. } => number(out, shown_year, 4),
        Field::Year { digits, .. } => number(out, shown_year % 10i64.pow(u32::from(digits)), usize::from(digits)),
        Field::IsoYear(4) => number(out, i64::from(iso.year()), 4),
        Field::IsoYear(digits) => {
            number(out, i64::from(iso.year()) % 10i64.pow(u32::from(digits)), usize::from(digits))
        }
        Field::Era { upper, dots } => {
            let era = match (year > 0, dots) {
                (true, false) => "AD",
                (true, true) => "A.D.",
                (false, false) => "BC",
                (false, true) => "B.C.",
            };
            out.push_str(&if upper { era.to_owned() } else { era.to_lowercase() });
        }
        Field::MonthName(case) => name(out, cased(MONTHS[time.month0() as usize], case), 9),
        Field::MonthShort(case) => out.push_str(&cased(&MONTHS[time.month0() as usize][..3], case)),
        Field::Month => number(out, i64::from(time.month()), 2),
        Field::DayName(case) => name(out, cased(DAYS[time.weekday().num_days_from_sunday() as usize], case), 9),
        Field::DayShort(case) => out.push_str(&cased(&DAYS[time.weekday().num_days_from_sunday() as usize][..3], case)),
        Field::DayOfYear => number(out, i64::from(time.ordinal()), 3),
        Field::IsoDayOfYear => {
            number(out, i64::from(iso.week0()) * 7 + i64::from(time.weekday().number_from_monday()), 3)
        }
        Field::Day => number(out, i64::from(time.day()), 2),
        Field::DayOfWeek => number(out, i64::from(time.weekday().number_from_sunday()), 0),
        Field::IsoDayOfWeek => number(out, i64::from(time.weekday().number_from_monday()), 0),
        Field::WeekOfMonth => number(out, i64::from(time.day0() / 7 + 1), 0),
        Field::WeekOfYear => number(out, i64::from(time.ordinal0() / 7 + 1), 2),
        Field::IsoWeek => number(out, i64::from(iso.week()), 2),
        Field::Century => number(out, (shown_year + 99) / 100, 2),
        Field::Julian => number(out, i64::from(time.date().num_days_from_ce()) + 1_721_425, 0),
        Field::Quarter => number(out, i64::from(time.month0() / 3 + 1), 0),
        Field::Roman { upper } => {
            let text = ROMAN[time.month0() as usize];
            name(out, if upper { text.to_owned() } else { text.to_lowercase() }, 4);
        }
        Field::Zone { upper } => {
            if let Some((_, zone)) = moment.zone {
                out.push_str(&if upper { zone.to_owned() } else { zone.to_lowercase() });
            }
        }
        Field::ZoneHours => {
            if let Some((offset, _)) = moment.zone {
                out.push_str(&format!("{}{:02}", if offset < 0 { '-' } else { '+' }, offset.abs() / 3600));
            }
        }
        Field::ZoneMinutes => {
            if let Some((offset, _)) = moment.zone {
                out.push_str(&format!("{:02}", offset.abs() / 60 % 60));
            }
        }
        Field::ZoneOffset => {
            if let Some((offset, _)) = moment.zone {
                out.push_str(&format!("{}{:02}", if offset < 0 { '-' } else { '+' }, offset.abs() / 3600));
                if offset % 3600 != 0 {
                    out.push_str(&format!(":{:02}", offset.abs() / 60 % 60));
                }
            }
        }
    }
}

/// What a text said, by a template.
#[derive(Clone, Debug, Default)]
struct Parts {
    year: Option<i32>,
    century: Option<i32>,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    iso_year: Option<i32>,
    iso_week: Option<u32>,
    iso_day: Option<u32>,
    week_of_year: Option<u32>,
    julian: Option<i64>,
    hour24: Option<u32>,
    hour12: Option<u32>,
    afternoon: Option<bool>,
    minute: u32,
    second: u32,
    micros: u32,
    second_of_day: Option<u32>,
    bc: bool,
    zone_hours: Option<i32>,
    zone_minutes: i32,
    zone: Option<Zone>,
}

/// Reads a text by a template: the local time, and a zone if the text had one.
pub(crate) fn read(nodes: &[Node], text: &str) -> Result<(NaiveDateTime, Option<Zone>)> {
    let mut parts = Parts::default();
    let mut rest = text.trim_start();
    for (at, node) in nodes.iter().enumerate() {
        match node {
            Node::Text(template, true) => {
                // Quoted text passes over as many characters.
                for _ in template.chars() {
                    rest = rest.char_indices().nth(1).map_or("", |(at, _)| &rest[at..]);
                }
            }
            Node::Text(template, false) => {
                for ch in template.chars() {
                    if ch.is_alphanumeric() {
                        rest = rest
                            .strip_prefix(ch)
                            .unwrap_or_else(|| rest.char_indices().nth(1).map_or("", |(at, _)| &rest[at..]));
                    } else {
                        // A separator matches any separator, or none.
                        rest = rest.trim_start_matches(char::is_whitespace);
                        if rest.starts_with(|ch: char| !ch.is_alphanumeric() && ch != '-' && ch != '+')
                            || (rest.starts_with(ch) && !ch.is_whitespace())
                        {
                            rest = rest.char_indices().nth(1).map_or("", |(at, _)| &rest[at..]);
                        } else if !ch.is_whitespace() && rest.starts_with('-') && !next_is_signed(nodes, at) {
                            rest = &rest[1..];
                        }
                    }
                }
                rest = rest.trim_start();
            }
            Node::Field { field, ordinal, .. } => {
                let adjacent = matches!(nodes.get(at + 1), Some(Node::Field { .. }));
                rest = read_field(&mut parts, *field, adjacent, rest.trim_start())
                    .ok_or_else(|| wrong(text, "a value does not fit the template"))?;
                if *ordinal != Ordinal::None {
                    rest = rest.get(2..).unwrap_or("");
                }
            }
        }
    }
    let time = parts.finish().ok_or_else(|| {
        Error::state(SqlState::DATETIME_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
    })?;
    let zone = parts.zone.or_else(|| {
        parts.zone_hours.map(|hours| {
            Zone::Fixed(hours * 3600 + if hours < 0 { -parts.zone_minutes } else { parts.zone_minutes } * 60)
        })
    });
    Ok((time, zone))
}

fn next_is_signed(nodes: &[Node], at: usize) -> bool {
    matches!(
        nodes.get(at + 1),
        Some(Node::Field { field: Field::ZoneHours | Field::ZoneOffset | Field::Year { digits: 4, .. }, .. })
    )
}

fn wrong(text: &str, detail: &str) -> Error {
    Error::state(SqlState::INVALID_DATETIME, format!("invalid value \"{text}\" for the template")).with_detail(detail)
}

/// Reads an unsigned number of at most `width` digits (more if nothing adjoins).
fn digits(text: &str, width: usize, adjacent: bool) -> Option<(u32, usize, &str)> {
    let most = if adjacent { width } else { width.max(9) };
    let length = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return None;
    }
    Some((text[..length].parse().ok()?, length, &text[length..]))
}

fn read_field<'a>(parts: &mut Parts, field: Field, adjacent: bool, text: &'a str) -> Option<&'a str> {
    let number = |width: usize| digits(text, width, true).map(|(value, _, rest)| (value, rest));
    Some(match field {
        Field::Hour12 => {
            let (value, rest) = number(2)?;
            parts.hour12 = Some(value);
            rest
        }
        Field::Hour24 => {
            let (value, rest) = number(2)?;
            parts.hour24 = Some(value);
            rest
        }
        Field::Minute => {
            let (value, rest) = number(2)?;
            parts.minute = value;
            rest
        }
        Field::Second => {
            let (value, rest) = number(2)?;
            parts.second = value;
            rest
        }
        Field::Millisecond => {
            let (value, length, rest) = digits(text, 3, true)?;
            parts.micros = value * 10u32.pow(6 - u32::try_from(length).ok()?);
            rest
        }
        Field::Microsecond | Field::Fraction(_) => {
            let (value, length, rest) = digits(text, 6, true)?;
            parts.micros = value * 10u32.pow(6 - u32::try_from(length).ok()?);
            rest
        }
        Field::SecondOfDay => {
            let (value, rest) = number(5)?;
            parts.second_of_day = Some(value);
            rest
        }
        Field::Half { .. } => {
            let lower = text.get(..4).unwrap_or(text).to_lowercase();
            let (afternoon, length) = match lower.as_str() {
                word if word.starts_with("a.m.") => (false, 4),
                word if word.starts_with("p.m.") => (true, 4),
                word if word.starts_with("am") => (false, 2),
                word if word.starts_with("pm") => (true, 2),
                _ => return None,
            };
            parts.afternoon = Some(afternoon);
            &text[length..]
        }
        Field::Year { digits: width, .. } => {
            let (negative, unsigned) = match text.strip_prefix('-') {
                Some(rest) if width == 4 => (true, rest),
                _ => (false, text),
            };
            let (value, length, rest) = digits(unsigned, usize::from(width), adjacent)?;
            let value = i32::try_from(value).ok()?;
            // Short years are those nearest to 2020.
            let value = match (width, length) {
                (1..=3, 1 | 2) => {
                    if value < 70 {
                        value + 2000
                    } else {
                        value + 1900
                    }
                }
                (3, 3) => {
                    if value >= 520 {
                        value + 1000
                    } else {
                        value + 2000
                    }
                }
                _ => value,
            };
            parts.year = Some(if negative { 1 - value } else { value });
            rest
        }
        Field::IsoYear(width) => {
            let (value, _, rest) = digits(text, usize::from(width), adjacent)?;
            parts.iso_year = Some(i32::try_from(value).ok()?);
            rest
        }
        Field::Era { .. } => {
            let lower = text.get(..4).unwrap_or(text).to_lowercase();
            let (bc, length) = match lower.as_str() {
                word if word.starts_with("a.d.") => (false, 4),
                word if word.starts_with("b.c.") => (true, 4),
                word if word.starts_with("ad") => (false, 2),
                word if word.starts_with("bc") => (true, 2),
                _ => return None,
            };
            parts.bc = bc;
            &text[length..]
        }
        Field::MonthName(_) | Field::MonthShort(_) => {
            let (at, length) = name_at(&MONTHS, text)?;
            parts.month = Some(u32::try_from(at).ok()? + 1);
            &text[length..]
        }
        Field::Month => {
            let (value, rest) = number(2)?;
            parts.month = Some(value);
            rest
        }
        // The day of the week is read and ignored, as in PostgreSQL.
        Field::DayName(_) | Field::DayShort(_) => &text[name_at(&DAYS, text)?.1..],
        Field::DayOfWeek | Field::WeekOfMonth | Field::Quarter => number(1)?.1,
        Field::DayOfYear => {
            let (value, rest) = number(3)?;
            parts.day_of_year = Some(value);
            rest
        }
        Field::IsoDayOfYear => number(3)?.1,
        Field::Day => {
            let (value, rest) = number(2)?;
            parts.day = Some(value);
            rest
        }
        Field::IsoDayOfWeek => {
            let (value, rest) = number(1)?;
            parts.iso_day = Some(value);
            rest
        }
        Field::WeekOfYear => {
            let (value, rest) = number(2)?;
            parts.week_of_year = Some(value);
            rest
        }
        Field::IsoWeek => {
            let (value, rest) = number(2)?;
            parts.iso_week = Some(value);
            rest
        }
        Field::Century => {
            let (value, rest) = number(2)?;
            parts.century = Some(i32::try_from(value).ok()?);
            rest
        }
        Field::Julian => {
            let (value, _, rest) = digits(text, 9, false)?;
            parts.julian = Some(i64::from(value));
            rest
        }
        Field::Roman { .. } => {
            let upper = text.to_uppercase();
            let (at, roman) = ROMAN
                .iter()
                .enumerate()
                .filter(|(_, roman)| upper.starts_with(**roman))
                .max_by_key(|(_, roman)| roman.len())?;
            parts.month = Some(u32::try_from(at).ok()? + 1);
            &text[roman.len()..]
        }
        Field::Zone { .. } => {
            let length = text
                .find(|ch: char| !(ch.is_alphanumeric() || matches!(ch, '/' | '_' | '+' | '-' | ':')))
                .unwrap_or(text.len());
            parts.zone = Some(Zone::parse(&text[..length])?);
            &text[length..]
        }
        Field::ZoneHours | Field::ZoneOffset => {
            let (sign, unsigned) = match text.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, text.strip_prefix('+').unwrap_or(text)),
            };
            let (value, _, mut rest) = digits(unsigned, 2, true)?;
            parts.zone_hours = Some(sign * i32::try_from(value).ok()?);
            if matches!(field, Field::ZoneOffset)
                && let Some(minutes) = rest.strip_prefix(':')
            {
                let (value, _, after) = digits(minutes, 2, true)?;
                parts.zone_minutes = i32::try_from(value).ok()?;
                rest = after;
            }
            rest
        }
        Field::ZoneMinutes => {
            let (value, rest) = number(2)?;
            parts.zone_minutes = i32::try_from(value).ok()?;
            rest
        }
    })
}

/// A full or short name at the start of a text: which, and how long.
fn name_at(names: &[&str], text: &str) -> Option<(usize, usize)> {
    let starts = |name: &str| text.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
    names
        .iter()
        .position(|name| starts(name))
        .map(|at| (at, names[at].len()))
        .or_else(|| names.iter().position(|name| starts(&name[..3])).map(|at| (at, 3)))
}

impl Parts {
    fn finish(&self) -> Option<NaiveDateTime> {
        let date = self.date()?;
        let time = match self.second_of_day {
            Some(second) => NaiveTime::from_num_seconds_from_midnight_opt(second, self.micros * 1000)?,
            None => {
                let hour = match (self.hour24, self.hour12) {
                    (Some(hour), _) => hour,
                    (None, Some(hour)) => {
                        if !(1..=12).contains(&hour) {
                            return None;
                        }
                        match self.afternoon {
                            Some(true) => hour % 12 + 12,
                            Some(false) => hour % 12,
                            None => hour % 12,
                        }
                    }
                    (None, None) => 0,
                };
                NaiveTime::from_hms_micro_opt(hour, self.minute, self.second, self.micros)?
            }
        };
        Some(date.and_time(time))
    }

    fn date(&self) -> Option<NaiveDate> {
        if let Some(julian) = self.julian {
            return NaiveDate::from_num_days_from_ce_opt(i32::try_from(julian - 1_721_425).ok()?);
        }
        if let Some(week) = self.iso_week {
            let day = chrono::Weekday::try_from(u8::try_from(self.iso_day.unwrap_or(1).checked_sub(1)?).ok()?).ok()?;
            return NaiveDate::from_isoywd_opt(self.iso_year.or(self.year)?, week, day);
        }
        let mut year = match (self.year, self.century) {
            (Some(year), _) => year,
            (None, Some(century)) => (century - 1) * 100 + 1,
            (None, None) => 1,
        };
        if self.bc {
            year = 1 - year;
        }
        // Without a year the first of the era stands in, as in PostgreSQL, which calls it 1 BC.
        let year = if self.year.is_none() && self.century.is_none() { 0 } else { year };
        if let Some(day) = self.day_of_year {
            return NaiveDate::from_yo_opt(year, day);
        }
        if let (Some(week), None) = (self.week_of_year, self.month) {
            return NaiveDate::from_yo_opt(year, (week.checked_sub(1)?) * 7 + 1);
        }
        NaiveDate::from_ymd_opt(year, self.month.unwrap_or(1), self.day.unwrap_or(1))
    }
}

// ---------------------------------------------------------------------------------------------------------------------- numbers

/// A template for numbers, taken apart.
#[derive(Clone, Debug, Default)]
struct NumberTemplate {
    /// Digit places and group separators before the point, in order: `9`, `0`, `,`.
    whole: Vec<char>,
    /// Digit places behind the point.
    fraction: Vec<char>,
    point: bool,
    fill: bool,
    sign: Sign,
    currency: bool,
    exponent: bool,
    roman: Option<bool>,
    ordinal: Option<Ordinal>,
    /// `V`: multiply by ten this often.
    shift: usize,
    /// Text around the number.
    before: String,
    after: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sign {
    /// A minus before negative numbers, a blank before others.
    #[default]
    Plain,
    /// `S`: plus or minus at the number, in front or behind.
    AnchoredFront,
    AnchoredBack,
    /// `MI` behind or in front: minus or blank.
    MinusBack,
    MinusFront,
    /// `PL`, `SG`.
    PlusFront,
    AlwaysFront,
    AlwaysBack,
    /// `PR`: angle brackets.
    Brackets,
}

fn number_template(template: &str) -> NumberTemplate {
    let mut it = NumberTemplate { fill: true, ..NumberTemplate::default() };
    let mut rest = template;
    let mut shifted = false;
    while let Some(first) = rest.chars().next() {
        let seen = !it.whole.is_empty() || it.point;
        let word = |length: usize| rest.get(..length).map(str::to_ascii_uppercase).unwrap_or_default();
        let mut eaten = first.len_utf8();
        if word(4) == "EEEE" {
            it.exponent = true;
            eaten = 4;
        } else {
            match word(2).as_str() {
                "FM" => {
                    it.fill = false;
                    eaten = 2;
                }
                "MI" => {
                    it.sign = if seen { Sign::MinusBack } else { Sign::MinusFront };
                    eaten = 2;
                }
                "PL" => {
                    it.sign = Sign::PlusFront;
                    eaten = 2;
                }
                "SG" => {
                    it.sign = if seen { Sign::AlwaysBack } else { Sign::AlwaysFront };
                    eaten = 2;
                }
                "PR" => {
                    it.sign = Sign::Brackets;
                    eaten = 2;
                }
                "RN" => {
                    it.roman = Some(rest.starts_with('R'));
                    eaten = 2;
                }
                "TH" if seen => {
                    it.ordinal = Some(if rest.starts_with('T') { Ordinal::Upper } else { Ordinal::Lower });
                    eaten = 2;
                }
                _ => match first {
                    '9' | '0' if shifted => it.shift += 1,
                    '9' | '0' if it.point => it.fraction.push(first),
                    '9' | '0' => it.whole.push(first),
                    ',' | 'G' | 'g' if !it.point => it.whole.push(','),
                    '.' | 'D' | 'd' => it.point = true,
                    'S' | 's' => it.sign = if seen { Sign::AnchoredBack } else { Sign::AnchoredFront },
                    'L' | 'l' => it.currency = true,
                    'V' | 'v' => shifted = true,
                    '"' => {
                        let end = rest[1..].find('"').map_or(rest.len(), |at| at + 2);
                        let quoted = rest[1..end].trim_end_matches('"');
                        if seen {
                            it.after.push_str(quoted)
                        } else {
                            it.before.push_str(quoted)
                        }
                        eaten = end;
                    }
                    other => {
                        if seen {
                            it.after.push(other)
                        } else {
                            it.before.push(other)
                        }
                    }
                },
            }
        }
        rest = &rest[eaten..];
    }
    it
}

/// Writes a number by a template. `digits` is the number in plain decimal form, as long as it is finite.
pub(crate) fn format_number(template: &str, digits: &str) -> String {
    let it = number_template(template);
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if let Some(upper) = it.roman {
        return roman(whole.parse().unwrap_or(0), negative, upper, it.fill);
    }
    if it.exponent {
        return scientific(&it, negative, whole, fraction);
    }
    let (whole, fraction) = if it.shift > 0 {
        let moved: String = fraction.chars().chain(std::iter::repeat('0')).take(it.shift).collect();
        (format!("{whole}{moved}"), fraction.get(it.shift..).unwrap_or("").to_owned())
    } else {
        (whole.to_owned(), fraction.to_owned())
    };
    let (whole, fraction) = round_digits(&whole, &fraction, it.fraction.len());
    let whole = whole.trim_start_matches('0').to_owned();
    let zero = whole.is_empty() && fraction.bytes().all(|byte| byte == b'0');
    let negative = negative && !zero;
    let places = it.whole.iter().filter(|ch| **ch != ',').count() + it.shift;
    let body = if whole.len() > places {
        // It does not fit: every place shows #.
        let mut body: String = it.whole.iter().map(|ch| if *ch == ',' { ',' } else { '#' }).collect();
        body.push_str(&"#".repeat(it.shift));
        if it.point {
            body.push('.');
            body.push_str(&"#".repeat(it.fraction.len()));
        }
        body
    } else {
        let mut pattern = it.whole.clone();
        pattern.extend(std::iter::repeat_n('0', it.shift));
        plain(&it, &pattern, &whole, &fraction, places)
    };
    let trimmed = body.trim_start_matches(' ');
    let blanks = " ".repeat(body.len() - trimmed.len());
    let currency = if it.currency { "$" } else { "" };
    let mut out = it.before.clone();
    let fill = it.fill;
    match it.sign {
        Sign::Plain => {
            let sign = if negative {
                "-"
            } else if fill {
                " "
            } else {
                ""
            };
            out.push_str(&if fill {
                format!("{blanks}{sign}{currency}{trimmed}")
            } else {
                format!("{sign}{currency}{trimmed}")
            });
        }
        Sign::AnchoredFront => {
            let sign = if negative { "-" } else { "+" };
            out.push_str(&if fill {
                format!("{blanks}{sign}{currency}{trimmed}")
            } else {
                format!("{sign}{currency}{trimmed}")
            });
        }
        Sign::AnchoredBack | Sign::AlwaysBack => {
            let sign = if negative { "-" } else { "+" };
            out.push_str(&if fill { format!("{currency}{body}{sign}") } else { format!("{currency}{trimmed}{sign}") });
        }
        Sign::MinusBack => {
            let sign = if negative {
                "-"
            } else if fill {
                " "
            } else {
                ""
            };
            out.push_str(&if fill { format!("{currency}{body}{sign}") } else { format!("{currency}{trimmed}{sign}") });
        }
        Sign::MinusFront => {
            let sign = if negative {
                "-"
            } else if fill {
                " "
            } else {
                ""
            };
            out.push_str(&if fill { format!("{sign}{currency}{body}") } else { format!("{sign}{currency}{trimmed}") });
        }
        Sign::AlwaysFront => {
            let sign = if negative { "-" } else { "+" };
            out.push_str(&if fill { format!("{sign}{currency}{body}") } else { format!("{sign}{currency}{trimmed}") });
        }
        Sign::PlusFront => {
            let (plus, minus) =
                if negative { (if fill { " " } else { "" }, "-") } else { ("+", if fill { " " } else { "" }) };
            out.push_str(&if fill {
                format!("{plus}{blanks}{minus}{currency}{trimmed}")
            } else {
                format!("{plus}{minus}{currency}{trimmed}")
            });
        }
        Sign::Brackets => {
            let (open, close) = if negative {
                ("<", ">")
            } else if fill {
                (" ", " ")
            } else {
                ("", "")
            };
            out.push_str(&if fill {
                format!("{blanks}{open}{currency}{trimmed}{close}")
            } else {
                format!("{open}{currency}{trimmed}{close}")
            });
        }
    }
    if let Some(ordinal) = it.ordinal
        && !negative
        && !it.point
    {
        let number = whole.get(whole.len().saturating_sub(4)..).unwrap_or("0");
        out.push_str(ordinal_suffix(number.parse().unwrap_or(0), ordinal));
    }
    out.push_str(&it.after);
    out
}

/// The digits in their places: blanks before the first one unless a `0` asks for zeros.
fn plain(it: &NumberTemplate, pattern: &[char], whole: &str, fraction: &str, places: usize) -> String {
    let padded = format!("{whole:>places$}");
    let mut digits = padded.chars();
    let mut out = String::new();
    let mut started = false;
    let mut place = 0;
    for &ch in pattern {
        if ch == ',' {
            out.push(if started { ',' } else { ' ' });
            continue;
        }
        place += 1;
        let digit = digits.next().unwrap_or(' ');
        let last = place == places;
        if digit != ' ' {
            started = true;
            out.push(digit);
        } else if ch == '0' || started {
            started = true;
            out.push('0');
        } else if last && !it.point {
            // A number below one still shows its zero.
            out.push('0');
        } else if last && it.fraction.is_empty() {
            out.push('0');
        } else {
            out.push(' ');
        }
    }
    if !it.fill {
        out = out.trim_start().to_owned();
    }
    if it.point {
        let mut shown: String = fraction.to_owned();
        if !it.fill {
            // Without filling, zeros at the end stay only where a `0` asks for them.
            let keep = it.fraction.iter().rposition(|ch| *ch == '0').map_or(0, |at| at + 1);
            while shown.len() > keep && shown.ends_with('0') {
                shown.pop();
            }
        }
        out.push('.');
        out.push_str(&shown);
    }
    out
}

/// Decimal digits with this many behind the point, ties away from zero.
fn round_digits(whole: &str, fraction: &str, places: usize) -> (String, String) {
    if fraction.len() <= places {
        return (whole.to_owned(), format!("{fraction:0<places$}"));
    }
    let up = fraction.as_bytes()[places] >= b'5';
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes().take(places)).collect();
    if up {
        let mut at = digits.len();
        loop {
            if at == 0 {
                digits.insert(0, b'1');
                break;
            }
            at -= 1;
            if digits[at] == b'9' {
                digits[at] = b'0';
            } else {
                digits[at] += 1;
                break;
            }
        }
    }
    let text = String::from_utf8(digits).unwrap_or_default();
    let split = text.len() - places;
    (text[..split].to_owned(), text[split..].to_owned())
}

fn scientific(it: &NumberTemplate, negative: bool, whole: &str, fraction: &str) -> String {
    let digits = format!("{whole}{fraction}");
    let first = digits.bytes().position(|byte| byte != b'0');
    let (mantissa, mut exponent) = match first {
        Some(first) => (
            digits[first..].to_owned(),
            i64::try_from(whole.len()).unwrap_or(0) - 1 - i64::try_from(first).unwrap_or(0),
        ),
        None => ("0".to_owned(), 0),
    };
    let (mut head, mut tail) = round_digits(&mantissa[..1], &mantissa[1..], it.fraction.len());
    if head.len() > 1 {
        tail = format!("{}{}", &head[1..], tail);
        tail.truncate(it.fraction.len());
        head.truncate(1);
        exponent += 1;
    }
    let sign = if negative {
        "-"
    } else if it.fill {
        " "
    } else {
        ""
    };
    let point = if it.point { format!(".{tail}") } else { String::new() };
    let mark = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{head}{point}e{mark}{:02}", exponent.unsigned_abs())
}

fn roman(number: u32, negative: bool, upper: bool, fill: bool) -> String {
    if negative || number == 0 || number > 3999 {
        return "#".repeat(15);
    }
    const PIECES: [(u32, &str); 13] = [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ];
    let mut rest = number;
    let mut out = String::new();
    for (value, piece) in PIECES {
        while rest >= value {
            out.push_str(piece);
            rest -= value;
        }
    }
    let out = if upper { out } else { out.to_lowercase() };
    if fill { format!("{out:>15}") } else { out }
}

/// Reads a number by a template: the digits, in plain decimal form.
pub(crate) fn read_number(template: &str, text: &str) -> Result<String> {
    let it = number_template(template);
    let wrong = || {
        Error::state(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type numeric: \"{text}\""),
        )
    };
    let mut negative = false;
    let mut whole = String::new();
    let mut fraction = String::new();
    let mut point = false;
    for ch in text.trim().chars() {
        match ch {
            '-' | '<' => negative = true,
            '0'..='9' if point => {
                if fraction.len() < it.fraction.len() || !it.point {
                    fraction.push(ch);
                }
            }
            '0'..='9' => whole.push(ch),
            '.' if it.point => point = true,
            // Group separators, currency signs and blanks stand where the template puts them.
            _ => {}
        }
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(wrong());
    }
    let places = it.whole.iter().filter(|ch| **ch != ',').count();
    if places > 0 && whole.len() > places {
        whole.truncate(places);
    }
    if it.shift > 0 {
        let split = whole.len().saturating_sub(it.shift);
        fraction = format!("{:0>width$}{fraction}", &whole[split..], width = it.shift);
        whole.truncate(split);
    }
    let whole = if whole.is_empty() { "0" } else { &whole };
    let sign = if negative { "-" } else { "" };
    Ok(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Moment {
        let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").unwrap();
        Moment { time, zone: Some((0, "UTC")), hours: None }
    }

    #[test]
    fn dates_are_written_by_template() {
        let moment = at("2024-05-01 15:04:05.678901");
        let cases = [
            ("YYYY-MM-DD HH24:MI:SS", "2024-05-01 15:04:05"),
            ("DD Mon YYYY", "01 May 2024"),
            ("FMDay, FMDDth FMMonth YYYY", "Wednesday, 1st May 2024"),
            ("Day|Month|", "Wednesday|May      |"),
            ("HH12:MI AM", "03:04 PM"),
            ("hh:mi a.m.", "03:04 p.m."),
            ("MS US FF3 SSSS", "678 678901 678 54245"),
            ("IYYY-IW-ID", "2024-18-3"),
            ("Q DDD WW W D J", "2 122 18 1 4 2460432"),
            ("\"Year:\" YYYY", "Year: 2024"),
            ("YY Y YYY Y,YYY", "24 4 024 2,024"),
            ("CC BC", "21 AD"),
            ("RM rm", "V    v   "),
            ("TZ OF TZH:TZM", "UTC +00 +00:00"),
            ("DY dy Dy", "WED wed Wed"),
            ("yyyymmdd", "20240501"),
        ];
        for (template, expected) in cases {
            assert_eq!(format(&parse(template), moment).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn dates_are_read_by_template() {
        let cases = [
            ("2024-05-01", "YYYY-MM-DD", "2024-05-01 00:00:00"),
            ("01/05/2024 03:04 PM", "DD/MM/YYYY HH12:MI AM", "2024-05-01 15:04:00"),
            ("20240501150405", "YYYYMMDDHH24MISS", "2024-05-01 15:04:05"),
            ("05 Dec 2000", "DD Mon YYYY", "2000-12-05 00:00:00"),
            ("1st of May, 2024", "FMDDth \"of\" Month, YYYY", "2024-05-01 00:00:00"),
            ("2024 18 3", "IYYY IW ID", "2024-05-01 00:00:00"),
            ("2024-122", "YYYY-DDD", "2024-05-01 00:00:00"),
            ("99-01-02", "YY-MM-DD", "1999-01-02 00:00:00"),
            ("2024.05.01 12:00:00.5", "YYYY-MM-DD HH24:MI:SS.US", "2024-05-01 12:00:00.500"),
            ("2460432", "J", "2024-05-01 00:00:00"),
        ];
        for (text, template, expected) in cases {
            let (time, _) = read(&parse(template), text).unwrap();
            assert_eq!(time.to_string(), expected, "{text} by {template}");
        }
        assert!(read(&parse("YYYY-MM-DD"), "2024-13-01").is_err());
        assert!(read(&parse("YYYY-MM-DD"), "x").is_err());
    }

    #[test]
    fn numbers_are_written_by_template() {
        let cases = [
            ("999", "12", "  12"),
            ("FM999", "12", "12"),
            ("999", "-12", " -12"),
            ("0999", "12", " 0012"),
            ("99.99", "1.5", "  1.50"),
            ("FM99.99", "1.5", "1.5"),
            ("FM90.09", "0.1", "0.1"),
            ("9,999,999", "1234567", " 1,234,567"),
            ("9,999,999", "12", "        12"),
            ("999", "1234", " ###"),
            ("S999", "12", " +12"),
            ("999S", "-12", " 12-"),
            ("999MI", "-12", " 12-"),
            ("999PR", "-12", " <12>"),
            ("FM999PR", "-12", "<12>"),
            ("L999", "12", "  $12"),
            ("99V9", "1.25", "  13"),
            ("9.99EEEE", "12345", " 1.23e+04"),
            ("RN", "485", "        CDLXXXV"),
            ("FMRN", "4", "IV"),
            ("FM999th", "482", "482nd"),
            ("FM\"Good number:\"999", "485", "Good number:485"),
            (".99", "0.555", " .56"),
            ("0.9", "0.05", " 0.1"),
        ];
        for (template, number, expected) in cases {
            assert_eq!(format_number(template, number), expected, "{number} by {template}");
        }
    }

    #[test]
    fn numbers_are_read_by_template() {
        let cases = [
            ("12,454.8-", "99G999D9S", "-12454.8"),
            ("$1,234.50", "L9,999.99", "1234.50"),
            ("<7>", "9PR", "-7"),
            ("12.3", "99.9", "12.3"),
        ];
        for (text, template, expected) in cases {
            assert_eq!(read_number(template, text).unwrap(), expected, "{text} by {template}");
        }
        assert!(read_number("999", "abc").is_err());
    }
}
