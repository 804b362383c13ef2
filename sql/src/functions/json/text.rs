//! JSON in its own text: checked, walked and cut without building a tree, so that numbers keep every digit and `json` keeps its spaces.
//!
//! # Invariants
//! - JSN-1 what [`check`] accepts is what RFC 8259 allows. Test: `only_json_is_json`.
//! - JSN-2 [`canonical`] is stable: applied twice it changes nothing, and equal documents give equal texts. Test: `canonical_texts_are_stable`.
//!
//! # Failure
//! Text that is not JSON is 22P02, with the place in the text; nesting deeper than [`DEPTH`] is 54001.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write;

use base::SqlState;

use crate::error::{Error, Result};

/// How deep values may nest.
const DEPTH: usize = 256;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    /// The name as `json_typeof` says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Boolean => "boolean",
            Kind::Number => "number",
            Kind::String => "string",
            Kind::Array => "array",
            Kind::Object => "object",
        }
    }
}

/// A value as a tree, for what needs one.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Boolean(bool),
    /// The digits as written.
    Number(Cow<'a, str>),
    String(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    /// In order of writing; names may repeat, and then the last counts.
    Object(Vec<(Cow<'a, str>, Value<'a>)>),
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, at: 0, depth: 0 }
    }

    fn wrong(&self, what: &str) -> Error {
        let place = self.text.get(..self.at).map_or(0, |text| text.chars().count()) + 1;
        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json")
            .with_detail(format!("{what} at character {place}"))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.wrong(&format!("expected {}", char::from(byte))))
    }

    /// The end, after white space.
    fn end(&mut self) -> Result<()> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.wrong("something follows the value")) }
    }

    fn kind(&self) -> Result<Kind> {
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b't' | b'f') => Ok(Kind::Boolean),
            Some(b'n') => Ok(Kind::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(_) => Err(self.wrong("expected a value")),
            None => Err(self.wrong("the text ends where a value is expected")),
        }
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Error::state(
                SqlState::STATEMENT_TOO_COMPLEX,
                format!("a JSON value nests deeper than {DEPTH} levels"),
            ));
        }
        Ok(())
    }

    /// Passes over one value and returns its text.
    fn skip(&mut self) -> Result<&'a str> {
        self.space();
        let start = self.at;
        match self.kind()? {
            Kind::Object => self.members(|_, _| Ok(()))?,
            Kind::Array => self.elements(|_| Ok(()))?,
            Kind::String => {
                self.string()?;
            }
            Kind::Boolean | Kind::Null => self.word()?,
            Kind::Number => self.number()?,
        }
        Ok(&self.text[start..self.at])
    }

    fn word(&mut self) -> Result<()> {
        for word in ["true", "false", "null"] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                if self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    break;
                }
                return Ok(());
            }
        }
        Err(self.wrong("expected a value"))
    }

    fn digits(&mut self) -> Result<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(self.wrong("expected a digit")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        if self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
            return Err(self.wrong("a wrong number"));
        }
        Ok(())
    }

    /// Passes over a string and returns what is between the quotes.
    fn string(&mut self) -> Result<&'a str> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let inner = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(inner);
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                                    return Err(self.wrong("expected four hexadecimal digits"));
                                }
                                self.at += 1;
                            }
                        }
                        _ => return Err(self.wrong("a wrong escape")),
                    }
                }
                Some(byte) if byte < 0x20 => return Err(self.wrong("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.wrong("the text ends inside a string")),
            }
        }
    }

    fn members(&mut self, mut each: impl FnMut(&'a str, &'a str) -> Result<()>) -> Result<()> {
        self.deeper()?;
        self.expect(b'{')?;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.expect(b':')?;
            let value = self.skip()?;
            each(name, value)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err(self.wrong("expected , or }")),
            }
        }
    }

    fn elements(&mut self, mut each: impl FnMut(&'a str) -> Result<()>) -> Result<()> {
        self.deeper()?;
        self.expect(b'[')?;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            let value = self.skip()?;
            each(value)?;
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err(self.wrong("expected , or ]")),
            }
        }
    }

    fn value(&mut self) -> Result<Value<'a>> {
        self.space();
        let start = self.at;
        Ok(match self.kind()? {
            Kind::Null => {
                self.word()?;
                Value::Null
            }
            Kind::Boolean => {
                self.word()?;
                Value::Boolean(self.text[start..].starts_with('t'))
            }
            Kind::Number => {
                self.number()?;
                Value::Number(Cow::Borrowed(&self.text[start..self.at]))
            }
            Kind::String => Value::String(unescape(self.string()?)?),
            Kind::Array => {
                self.deeper()?;
                self.at += 1;
                let mut items = Vec::new();
                self.space();
                if self.peek() == Some(b']') {
                    self.at += 1;
                } else {
                    loop {
                        items.push(self.value()?);
                        self.space();
                        match self.peek() {
                            Some(b',') => self.at += 1,
                            Some(b']') => {
                                self.at += 1;
                                break;
                            }
                            _ => return Err(self.wrong("expected , or ]")),
                        }
                    }
                }
                self.depth -= 1;
                Value::Array(items)
            }
            Kind::Object => {
                self.deeper()?;
                self.at += 1;
                let mut members = Vec::new();
                self.space();
                if self.peek() == Some(b'}') {
                    self.at += 1;
                } else {
                    loop {
                        self.space();
                        let name = unescape(self.string()?)?;
                        self.space();
                        self.expect(b':')?;
                        members.push((name, self.value()?));
                        self.space();
                        match self.peek() {
                            Some(b',') => self.at += 1,
                            Some(b'}') => {
                                self.at += 1;
                                break;
                            }
                            _ => return Err(self.wrong("expected , or }")),
                        }
                    }
                }
                self.depth -= 1;
                Value::Object(members)
            }
        })
    }
}

/// Checks that a text is one JSON value.
pub(crate) fn check(text: &str) -> Result<()> {
    let mut scanner = Scanner::new(text);
    scanner.skip()?;
    scanner.end()
}

/// The text as a tree.
pub(crate) fn parse(text: &str) -> Result<Value<'_>> {
    let mut scanner = Scanner::new(text);
    let value = scanner.value()?;
    scanner.end()?;
    Ok(value)
}

/// What the value of a text is.
pub(crate) fn kind(text: &str) -> Result<Kind> {
    let mut scanner = Scanner::new(text);
    scanner.space();
    scanner.kind()
}

/// The member of an object, as it is written there; the last of several.
pub(crate) fn member<'a>(text: &'a str, name: &str) -> Result<Option<&'a str>> {
    let mut scanner = Scanner::new(text);
    scanner.space();
    if scanner.kind()? != Kind::Object {
        return Ok(None);
    }
    let mut found = None;
    scanner.members(|key, value| {
        if key == name || (key.contains('\\') && unescape(key)? == name) {
            found = Some(value);
        }
        Ok(())
    })?;
    Ok(found)
}

/// The element of an array, from 0; negative counts from the end.
pub(crate) fn element(text: &str, at: i64) -> Result<Option<&str>> {
    let mut scanner = Scanner::new(text);
    scanner.space();
    if scanner.kind()? != Kind::Array {
        return Ok(None);
    }
    let elements = elements(text)?;
    let at = if at < 0 { i64::try_from(elements.len()).unwrap_or(i64::MAX).checked_add(at) } else { Some(at) };
    Ok(at.and_then(|at| usize::try_from(at).ok()).and_then(|at| elements.get(at).copied()))
}

/// The elements of an array as they are written; an error for anything else.
pub(crate) fn elements(text: &str) -> Result<Vec<&str>> {
    let mut scanner = Scanner::new(text);
    scanner.space();
    match scanner.kind()? {
        Kind::Array => {}
        other => {
            return Err(Error::invalid(format!(
                "the elements of a JSON {} were asked for; only an array has elements",
                other.name()
            )));
        }
    }
    let mut elements = Vec::new();
    scanner.elements(|value| {
        elements.push(value);
        Ok(())
    })?;
    Ok(elements)
}

/// The members of an object; an error for anything else.
pub(crate) fn members(text: &str) -> Result<Vec<(Cow<'_, str>, &str)>> {
    let mut scanner = Scanner::new(text);
    scanner.space();
    match scanner.kind()? {
        Kind::Object => {}
        other => {
            return Err(Error::invalid(format!(
                "the members of a JSON {} were asked for; only an object has members",
                other.name()
            )));
        }
    }
    let mut members = Vec::new();
    scanner.members(|name, value| {
        members.push((unescape(name)?, value));
        Ok(())
    })?;
    Ok(members)
}

/// A value as SQL text: strings without quotes, null as null, the rest as written.
pub(crate) fn as_text(value: &str) -> Result<Option<String>> {
    let value = value.trim();
    match kind(value)? {
        Kind::Null => Ok(None),
        Kind::String => Ok(Some(
            unescape(
                value.trim_matches(|ch: char| ch.is_ascii_whitespace()).get(1..value.len() - 1).unwrap_or_default(),
            )?
            .into_owned(),
        )),
        _ => Ok(Some(value.to_owned())),
    }
}

/// The text between the quotes of a string, without escapes.
fn unescape(text: &str) -> Result<Cow<'_, str>> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let wrong = |what: &str| {
        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, format!("unsupported Unicode escape in JSON: {what}"))
    };
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    let hex = |chars: &mut std::str::Chars<'_>| {
        let digits: String = chars.take(4).collect();
        u32::from_str_radix(&digits, 16).map_err(|_| wrong("four hexadecimal digits are expected"))
    };
    while let Some(ch) = chars.next() {
        if ch != '\\' {
            out.push(ch);
            continue;
        }
        match chars.next() {
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => {
                let first = hex(&mut chars)?;
                let code = if (0xD800..0xDC00).contains(&first) {
                    if chars.next() != Some('\\') || chars.next() != Some('u') {
                        return Err(wrong("half of a surrogate pair"));
                    }
                    let second = hex(&mut chars)?;
                    if !(0xDC00..0xE000).contains(&second) {
                        return Err(wrong("half of a surrogate pair"));
                    }
                    0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
                } else {
                    first
                };
                match char::from_u32(code) {
                    Some('\0') => return Err(wrong("\\u0000 cannot be a text")),
                    Some(ch) => out.push(ch),
                    None => return Err(wrong("half of a surrogate pair")),
                }
            }
            Some(other) => out.push(other),
            None => return Err(wrong("the text ends")),
        }
    }
    Ok(Cow::Owned(out))
}

/// Appends a text as a JSON string.
pub(crate) fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for ch in text.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ch if u32::from(ch) < 0x20 => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(ch));
            }
            ch => out.push(ch),
        }
    }
    out.push('"');
}

/// The canonical form, which is how `jsonb` is kept and printed: one space after `,` and `:`, names in order of length and then bytes,
/// each once, numbers without exponent.
pub(crate) fn canonical(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    write_canonical(&mut out, &normal(parse(text)?));
    Ok(out)
}

/// A tree with sorted, unique names.
pub(crate) fn normal(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(normal).collect()),
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(name, value)| (name, normal(value))).collect();
            // A stable sort keeps the order of writing among equals; the last of them counts.
            members.sort_by(|a, b| name_order(&a.0, &b.0));
            let mut unique: Vec<(Cow<'_, str>, Value<'_>)> = Vec::with_capacity(members.len());
            for member in members {
                match unique.last_mut() {
                    Some(last) if last.0 == member.0 => *last = member,
                    _ => unique.push(member),
                }
            }
            Value::Object(unique)
        }
        Value::Number(digits) => Value::Number(plain_number(digits)),
        other => other,
    }
}

fn name_order(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.as_bytes().cmp(b.as_bytes()))
}

/// Appends a tree in canonical spacing.
pub(crate) fn write_canonical(out: &mut String, value: &Value<'_>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Boolean(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(digits) => out.push_str(digits),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_canonical(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_string(out, name);
                out.push_str(": ");
                write_canonical(out, value);
            }
            out.push('}');
        }
    }
}

/// Appends a tree with one member per line, four spaces per level.
pub(crate) fn write_pretty(out: &mut String, value: &Value<'_>, level: usize) {
    let line = |out: &mut String, level: usize| {
        out.push('\n');
        out.push_str(&" ".repeat(level * 4));
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                line(out, level + 1);
                write_pretty(out, item, level + 1);
            }
            line(out, level);
            out.push(']');
        }
        Value::Object(members) if !members.is_empty() => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                line(out, level + 1);
                write_string(out, name);
                out.push_str(": ");
                write_pretty(out, value, level + 1);
            }
            line(out, level);
            out.push('}');
        }
        other => write_canonical(out, other),
    }
}

/// The parts of a number: sign, digits without zeros at either end, and the power of ten of the last digit.
fn parts(number: &str) -> (bool, String, i64) {
    let (negative, rest) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    // An exponent beyond 64 bits is as good as the largest.
    let mut exponent: i64 =
        exponent.parse().unwrap_or(if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 });
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    exponent = exponent.saturating_sub(i64::try_from(fraction.len()).unwrap_or(i64::MAX));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let trimmed = digits.trim_end_matches('0');
    exponent = exponent.saturating_add(i64::try_from(digits.len() - trimmed.len()).unwrap_or(0));
    if trimmed.is_empty() { (false, String::new(), 0) } else { (negative, trimmed.to_owned(), exponent) }
}

/// Whether two numbers are equal.
fn same_number(a: &str, b: &str) -> bool {
    a == b || parts(a) == parts(b)
}

/// A number without exponent, where that is short enough to write; zeros behind the point stay.
fn plain_number(number: Cow<'_, str>) -> Cow<'_, str> {
    if number == "-0" {
        return Cow::Borrowed("0");
    }
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else { return number };
    let Ok(exponent) = exponent.parse::<i64>() else { return number };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if exponent.abs() > 400 {
        return number;
    }
    let digits = format!("{whole}{fraction}");
    let point = i64::try_from(whole.len()).unwrap_or(0) + exponent;
    let length = i64::try_from(digits.len()).unwrap_or(0);
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let text = if point <= 0 {
        format!("{sign}0.{}{digits}", zeros(-point))
    } else if point >= length {
        let whole = format!("{digits}{}", zeros(point - length));
        let trimmed = whole.trim_start_matches('0');
        format!("{sign}{}", if trimmed.is_empty() { "0" } else { trimmed })
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        let whole = whole.trim_start_matches('0');
        format!("{sign}{}.{fraction}", if whole.is_empty() { "0" } else { whole })
    };
    Cow::Owned(text)
}

/// Whether two values are equal, as `jsonb` compares them.
fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Boolean(a), Value::Boolean(b)) => a == b,
        (Value::Number(a), Value::Number(b)) => same_number(a, b),
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((a_name, a), (b_name, b))| a_name == b_name && same(a, b))
        }
        _ => false,
    }
}

/// `whole @> part`: members and elements of `part` are found in `whole`. Both are [`normal`].
pub(crate) fn contains(whole: &Value<'_>, part: &Value<'_>) -> bool {
    // An array contains a plain value that is one of its elements; only at the top.
    if let (Value::Array(items), part) = (whole, part)
        && !matches!(part, Value::Array(_) | Value::Object(_))
    {
        return items.iter().any(|item| same(item, part));
    }
    contains_inner(whole, part)
}

fn contains_inner(whole: &Value<'_>, part: &Value<'_>) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(name, wanted)| whole.iter().any(|(other, value)| other == name && contains_inner(value, wanted))),
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|wanted| whole.iter().any(|value| contains_inner(value, wanted)))
        }
        (whole, part) => same(whole, part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        for text in
            ["1", " -0.5e+10 ", "\"a\\u00e9\\n\"", "[]", "[1, [2], {}]", "{\"a\": {\"b\": null}}", "true", "null"]
        {
            check(text).unwrap();
            parse(text).unwrap();
        }
        for text in [
            "",
            "01",
            "1.",
            ".5",
            "+1",
            "nul",
            "nulls",
            "'a'",
            "[1,]",
            "[1 2]",
            "{a: 1}",
            "{\"a\" 1}",
            "{\"a\": 1,}",
            "\"a",
            "\"\\x\"",
            "\"\\u12\"",
            "1 2",
            "\"\u{1}\"",
            "[",
            "{",
            "NaN",
        ] {
            assert_eq!(check(text).unwrap_err().sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{text}");
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(check(&"[".repeat(100_000)).unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
        assert_eq!(parse(&"{\"a\":".repeat(100_000)).unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
    }

    #[test]
    fn canonical_texts_are_stable() {
        let cases = [
            ("{\"bb\":1,\"a\":2,\"bb\":3}", "{\"a\": 2, \"bb\": 3}"),
            ("[1,2 , {\"z\":[]}]", "[1, 2, {\"z\": []}]"),
            ("1e3", "1000"),
            ("1.50e-2", "0.0150"),
            ("-12.5e1", "-125"),
            ("1.10", "1.10"),
            ("\"\\u0041\\/\\t\"", "\"A/\\t\""),
            ("1e-3", "0.001"),
        ];
        for (text, expected) in cases {
            let once = canonical(text).unwrap();
            assert_eq!(once, expected);
            assert_eq!(canonical(&once).unwrap(), expected);
        }
    }

    #[test]
    fn values_are_found() {
        let text = "{\"a\": [1, {\"b\" : \"x\\ny\"}, null], \"a\\u0062\": 2}";
        assert_eq!(member(text, "ab").unwrap(), Some("2"));
        assert_eq!(member(text, "zz").unwrap(), None);
        let list = member(text, "a").unwrap().unwrap();
        assert_eq!(element(list, -2).unwrap(), Some("{\"b\" : \"x\\ny\"}"));
        assert_eq!(element(list, 9).unwrap(), None);
        assert_eq!(
            as_text(member(element(list, 1).unwrap().unwrap(), "b").unwrap().unwrap()).unwrap().as_deref(),
            Some("x\ny")
        );
        assert_eq!(as_text("null").unwrap(), None);
        assert_eq!(as_text("\"\\ud83d\\ude00\"").unwrap().as_deref(), Some("😀"));
        assert!(as_text("\"\\ud83d\"").is_err());
    }

    #[test]
    fn containment_follows_jsonb() {
        let yes = [
            ("{\"a\":1,\"b\":2}", "{\"b\":2.0}"),
            ("[1,2,[3,4]]", "[[4]]"),
            ("[\"foo\",\"bar\"]", "\"bar\""),
            ("[1,2,3]", "[3,1,1]"),
            ("{\"a\":{\"b\":[1,2]}}", "{\"a\":{\"b\":[2]}}"),
            ("{}", "{}"),
        ];
        let no = [
            ("\"bar\"", "[\"bar\"]"),
            ("{\"a\":1}", "{\"a\":2}"),
            ("[[1,2]]", "[1]"),
            ("{\"a\":{\"b\":1}}", "{\"b\":1}"),
        ];
        let contains =
            |(whole, part): (&str, &str)| contains(&normal(parse(whole).unwrap()), &normal(parse(part).unwrap()));
        assert!(yes.into_iter().all(contains));
        assert!(!no.into_iter().any(contains));
    }
}
