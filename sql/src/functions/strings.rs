//! Texts, patterns, hashes and identifiers.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, FixedSizeBinaryBuilder, ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, FieldRef, Int32Type};
use base::SqlState;
use datafusion::logical_expr::{ReturnFieldArgs, Volatility};
use regex::{Regex, RegexBuilder};

use super::call::{Call, Definition, Param, Returns, on, pure, variadic};
use super::format::value_text;
use crate::error::{Error, Result};
use crate::types::TypeSpec;

static QUOTE_IDENT: Definition = pure(&["quote_ident"], &[on(&[Param::Text], Returns::Text, quote_ident)]);
static QUOTE_LITERAL: Definition = pure(&["quote_literal"], &[on(&[Param::Any], Returns::Text, quote_literal)]);
static QUOTE_NULLABLE: Definition = pure(&["quote_nullable"], &[on(&[Param::Any], Returns::Text, quote_nullable)]);
static FORMAT: Definition = pure(&["format"], &[variadic(&[Param::Text], Param::Any, Returns::Text, format)]);
static SUBSTRING_REGEX: Definition = pure(
    &["substring_regex"],
    &[
        on(&[Param::Text, Param::Text], Returns::Text, substring_regex),
        on(&[Param::Text, Param::Text, Param::Text], Returns::Text, substring_similar),
    ],
);
static SIMILAR_TO: Definition = pure(
    &["similar_to"],
    &[
        on(&[Param::Text, Param::Text], Returns::Bool, similar_to),
        on(&[Param::Text, Param::Text, Param::Text], Returns::Bool, similar_to),
    ],
);
static REGEXP_SPLIT: Definition = pure(
    &["regexp_split_to_array"],
    &[
        on(&[Param::Text, Param::Text], Returns::TextList, regexp_split),
        on(&[Param::Text, Param::Text, Param::Text], Returns::TextList, regexp_split),
    ],
);
static REGEXP_MATCHES: Definition = pure(
    &["regexp_matches"],
    &[
        on(&[Param::Text, Param::Text], Returns::Compute(list_of_text_lists), regexp_matches),
        on(&[Param::Text, Param::Text, Param::Text], Returns::Compute(list_of_text_lists), regexp_matches),
    ],
);
static REGEXP_SUBSTR: Definition = pure(
    &["regexp_substr"],
    &[
        on(&[Param::Text, Param::Text], Returns::Text, regexp_substr),
        on(&[Param::Text, Param::Text, Param::Int], Returns::Text, regexp_substr),
        on(&[Param::Text, Param::Text, Param::Int, Param::Int], Returns::Text, regexp_substr),
        on(&[Param::Text, Param::Text, Param::Int, Param::Int, Param::Text], Returns::Text, regexp_substr),
        on(&[Param::Text, Param::Text, Param::Int, Param::Int, Param::Text, Param::Int], Returns::Text, regexp_substr),
    ],
);
static SHA2: Definition = pure(
    &["sha2"],
    &[
        on(&[Param::Text], Returns::Text, sha2),
        on(&[Param::Bytea], Returns::Text, sha2),
        on(&[Param::Text, Param::Int], Returns::Text, sha2),
        on(&[Param::Bytea, Param::Int], Returns::Text, sha2),
    ],
);
static TO_BIN: Definition = pure(&["to_bin"], &[on(&[Param::Int], Returns::Text, to_bin)]);
static TO_OCT: Definition = pure(&["to_oct"], &[on(&[Param::Int], Returns::Text, to_oct)]);
static CONVERT_FROM: Definition =
    pure(&["convert_from"], &[on(&[Param::Bytea, Param::Text], Returns::Text, convert_from)]);
static CONVERT_TO: Definition = pure(&["convert_to"], &[on(&[Param::Text, Param::Text], Returns::Bytea, convert_to)]);
static NUM_NULLS: Definition = pure(&["num_nulls"], &[variadic(&[], Param::Any, Returns::Int4, num_nulls)]);
static NUM_NONNULLS: Definition = pure(&["num_nonnulls"], &[variadic(&[], Param::Any, Returns::Int4, num_nonnulls)]);
static PG_TYPEOF: Definition = pure(&["pg_typeof"], &[on(&[Param::Any], Returns::Text, pg_typeof)]);
static RANDOM_UUID: Definition = Definition {
    names: &["gen_random_uuid", "uuidv4"],
    volatility: Volatility::Volatile,
    overloads: &[on(&[], Returns::Uuid, uuid_v4)],
};
static UUID_V7: Definition =
    Definition { names: &["uuidv7"], volatility: Volatility::Volatile, overloads: &[on(&[], Returns::Uuid, uuid_v7)] };

/// Every function of this module.
pub(crate) static ALL: [&Definition; 19] = [
    &QUOTE_IDENT,
    &QUOTE_LITERAL,
    &QUOTE_NULLABLE,
    &FORMAT,
    &SUBSTRING_REGEX,
    &SIMILAR_TO,
    &REGEXP_SPLIT,
    &REGEXP_MATCHES,
    &REGEXP_SUBSTR,
    &SHA2,
    &TO_BIN,
    &TO_OCT,
    &CONVERT_FROM,
    &CONVERT_TO,
    &NUM_NULLS,
    &NUM_NONNULLS,
    &PG_TYPEOF,
    &RANDOM_UUID,
    &UUID_V7,
];

/// A name as it must be written to be read back.
pub(crate) fn identifier(name: &str) -> String {
    let plain = name.starts_with(|ch: char| ch.is_ascii_lowercase() || ch == '_')
        && name.chars().all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || ch == '_')
        && crate::parse::check_name(&sqlparser::ast::Ident::new(name)).is_ok();
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A text as a literal.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn quote_ident(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| Ok(Some(identifier(call.text(0).value(row)))))
}

fn quote_literal(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| Ok(value_text(&call.arrays[0], &call.fields[0], row)?.map(|text| literal(&text))))
}

fn quote_nullable(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(0, |row| {
        Ok(Some(
            value_text(&call.arrays[0], &call.fields[0], row)?.map_or_else(|| "NULL".to_owned(), |text| literal(&text)),
        ))
    })
}

/// `format('%-10s|%I|%2$L', …)`.
fn format(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| {
        let template = call.text(0).value(row);
        let mut out = String::with_capacity(template.len());
        let mut next = 1;
        let mut chars = template.chars().peekable();
        while let Some(ch) = chars.next() {
            if ch != '%' {
                out.push(ch);
                continue;
            }
            if chars.next_if_eq(&'%').is_some() {
                out.push('%');
                continue;
            }
            let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                let mut digits = String::new();
                while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                    digits.push(digit);
                }
                digits.parse::<usize>().ok()
            };
            let mut position = None;
            let mut width = number(&mut chars);
            if width.is_some() && chars.next_if_eq(&'$').is_some() {
                position = width.take();
            }
            let mut left = false;
            if width.is_none() {
                left = chars.next_if_eq(&'-').is_some();
                width = if chars.next_if_eq(&'*').is_some() {
                    let at = next;
                    next += 1;
                    let text = argument(call, at, row)?.unwrap_or_else(|| "0".to_owned());
                    let value: i64 =
                        text.parse().map_err(|_| Error::invalid(format!("\"{text}\" is not a width for format")))?;
                    left |= value < 0;
                    usize::try_from(value.unsigned_abs()).ok()
                } else {
                    number(&mut chars)
                };
            }
            let kind = chars.next().ok_or_else(|| Error::invalid("format ends inside a specifier"))?;
            let at = position.unwrap_or(next);
            next = at + 1;
            let value = argument(call, at, row)?;
            let text = match kind {
                's' => value.unwrap_or_default(),
                'I' => identifier(
                    &value.ok_or_else(|| Error::invalid("null values cannot be formatted as an SQL identifier"))?,
                ),
                'L' => value.map_or_else(|| "NULL".to_owned(), |text| literal(&text)),
                other => {
                    return Err(Error::invalid(format!("format specifier \"{other}\" is not one of s, I, L"))
                        .with_hint("for a single % write %%"));
                }
            };
            let missing = width.unwrap_or(0).saturating_sub(text.chars().count());
            if left {
                out.push_str(&text);
                out.push_str(&" ".repeat(missing));
            } else {
                out.push_str(&" ".repeat(missing));
                out.push_str(&text);
            }
        }
        Ok(Some(out))
    })
}

fn argument(call: &Call<'_>, at: usize, row: usize) -> Result<Option<String>> {
    if at == 0 || !call.has(at) {
        return Err(Error::invalid("too few arguments for format"));
    }
    value_text(&call.arrays[at], &call.fields[at], row)
}

// ------------------------------------------------------------------------------------------------------------- patterns

/// Compiled patterns of one call; a column mostly holds one.
#[derive(Default)]
struct Patterns(HashMap<(String, String), Regex>);

impl Patterns {
    /// The pattern with PostgreSQL's flags; `g` is left to the caller.
    fn get(&mut self, pattern: &str, flags: &str) -> Result<&Regex> {
        let key = (pattern.to_owned(), flags.to_owned());
        if self.0.len() > 256 {
            self.0.clear();
        }
        match self.0.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => Ok(entry.insert(compile(pattern, flags)?)),
        }
    }
}

fn compile(pattern: &str, flags: &str) -> Result<Regex> {
    let mut builder = RegexBuilder::new(pattern);
    // In PostgreSQL a dot matches line ends unless told otherwise.
    builder.dot_matches_new_line(true).size_limit(1 << 20);
    for flag in flags.chars() {
        match flag {
            'g' => {}
            'i' => {
                builder.case_insensitive(true);
            }
            'c' => {
                builder.case_insensitive(false);
            }
            'n' | 'm' => {
                builder.multi_line(true).dot_matches_new_line(false);
            }
            'p' => {
                builder.dot_matches_new_line(false);
            }
            'w' => {
                builder.multi_line(true);
            }
            's' => {
                builder.dot_matches_new_line(true).multi_line(false);
            }
            'x' => {
                builder.ignore_whitespace(true);
            }
            other => return Err(Error::invalid(format!("invalid regular expression option: \"{other}\""))),
        }
    }
    builder
        .build()
        .map_err(|error| Error::state(SqlState(*b"2201B"), "invalid regular expression").with_detail(error.to_string()))
}

fn flags_at<'a>(call: &'a Call<'_>, at: usize, row: usize) -> &'a str {
    if call.has(at) { call.text(at).value(row) } else { "" }
}

/// The first group of the first match, or the whole match without groups.
fn substring_regex(call: &Call<'_>) -> Result<ArrayRef> {
    let mut patterns = Patterns::default();
    call.texts(2, |row| {
        let pattern = patterns.get(call.text(1).value(row), "")?;
        let Some(captures) = pattern.captures(call.text(0).value(row)) else { return Ok(None) };
        let group = usize::from(pattern.captures_len() > 1);
        Ok(captures.get(group).map(|found| found.as_str().to_owned()))
    })
}

/// `substring(text from pattern for escape)`: the part between two escaped quotes of a SIMILAR TO pattern.
fn substring_similar(call: &Call<'_>) -> Result<ArrayRef> {
    let mut patterns = Patterns::default();
    call.texts(3, |row| {
        let similar = similar_pattern(call.text(1).value(row), call.text(2).value(row))?;
        let pattern = patterns.get(&similar, "")?;
        let Some(captures) = pattern.captures(call.text(0).value(row)) else { return Ok(None) };
        let group = usize::from(pattern.captures_len() > 1);
        Ok(captures.get(group).map(|found| found.as_str().to_owned()))
    })
}

fn similar_to(call: &Call<'_>) -> Result<ArrayRef> {
    let mut patterns = Patterns::default();
    call.booleans(call.arrays.len(), |row| {
        let escape = if call.has(2) { call.text(2).value(row) } else { "\\" };
        let similar = similar_pattern(call.text(1).value(row), escape)?;
        Ok(Some(patterns.get(&similar, "")?.is_match(call.text(0).value(row))))
    })
}

/// A SIMILAR TO pattern as a regular expression over the whole text, with the marked part as a group.
fn similar_pattern(pattern: &str, escape: &str) -> Result<String> {
    let mut marks = escape.chars();
    let escape = marks.next();
    if marks.next().is_some() {
        return Err(Error::invalid("the escape of a pattern must be one character"));
    }
    let mut out = String::from("^(?:");
    let mut quotes = 0;
    let mut chars = pattern.chars();
    let mut class = false;
    while let Some(ch) = chars.next() {
        if Some(ch) == escape {
            match chars.next() {
                Some('"') => {
                    quotes += 1;
                    out.push_str(match quotes {
                        1 => ")(",
                        2 => ")(?:",
                        _ => return Err(Error::invalid("a pattern can mark only one part")),
                    });
                }
                Some(next) => out.push_str(&regex::escape(next.encode_utf8(&mut [0; 4]))),
                None => return Err(Error::invalid("a pattern ends with its escape")),
            }
            continue;
        }
        match ch {
            '[' => {
                class = true;
                out.push(ch);
            }
            ']' => {
                class = false;
                out.push(ch);
            }
            _ if class => out.push(ch),
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '(' => out.push_str("(?:"),
            '|' | '*' | '+' | '?' | '{' | '}' | ')' => out.push(ch),
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    out.push_str(")$");
    Ok(out)
}

fn regexp_split(call: &Call<'_>) -> Result<ArrayRef> {
    let mut patterns = Patterns::default();
    call.text_lists(call.arrays.len(), |row| {
        let flags = flags_at(call, 2, row);
        if flags.contains('g') {
            return Err(Error::invalid("regexp_split_to_array does not support the \"global\" option"));
        }
        let text = call.text(0).value(row);
        let pattern = patterns.get(call.text(1).value(row), flags)?;
        let mut parts = Vec::new();
        let mut start = 0;
        for found in pattern.find_iter(text) {
            // An empty match at the start or behind another match splits nothing off.
            if found.is_empty()
                && (found.start() == start && (start == 0 || found.start() == text.len())
                    || found.start() == text.len())
            {
                continue;
            }
            parts.push(Some(text[start..found.start()].to_owned()));
            start = found.end();
        }
        parts.push(Some(text[start..].to_owned()));
        Ok(Some(parts))
    })
}

fn list_of_text_lists(_: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let inner = TypeSpec::Array(Box::new(TypeSpec::Text));
    Ok(TypeSpec::Array(Box::new(inner)).field_ref("regexp_matches"))
}

/// Every match (with `g`) or the first, each as the array of its groups.
fn regexp_matches(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(outer) = call.returns.data_type() else {
        return Err(Error::internal("regexp_matches returns no array"));
    };
    let DataType::List(inner) = outer.data_type() else {
        return Err(Error::internal("regexp_matches returns no array of arrays"));
    };
    let mut patterns = Patterns::default();
    let mut builder = ListBuilder::new(ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(inner)))
        .with_field(Arc::clone(outer));
    for row in 0..call.rows {
        if call.arrays.iter().any(|array| array.is_null(row)) {
            builder.append_null();
            continue;
        }
        let flags = flags_at(call, 2, row);
        let pattern = patterns.get(call.text(1).value(row), flags)?;
        let limit = if flags.contains('g') { usize::MAX } else { 1 };
        for captures in pattern.captures_iter(call.text(0).value(row)).take(limit) {
            let groups = if pattern.captures_len() > 1 { 1..pattern.captures_len() } else { 0..1 };
            for group in groups {
                builder.values().values().append_option(captures.get(group).map(|found| found.as_str()));
            }
            builder.values().append(true);
        }
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

/// `regexp_substr(text, pattern [, start [, n [, flags [, group]]]])`.
fn regexp_substr(call: &Call<'_>) -> Result<ArrayRef> {
    let mut patterns = Patterns::default();
    call.texts(call.arrays.len(), |row| {
        let whole = |at: usize, least: i64, name: &str| {
            let value = if call.has(at) { call.int(at).value(row) } else { least };
            usize::try_from(value)
                .ok()
                .filter(|_| value >= least)
                .ok_or_else(|| Error::invalid(format!("the {name} of regexp_substr is {value}")))
        };
        let (start, nth) = (whole(2, 1, "start")?, whole(3, 1, "number")?);
        let group = if call.has(5) { whole(5, 0, "group")? } else { 0 };
        let text = call.text(0).value(row);
        let Some((from, _)) = text.char_indices().nth(start - 1).or((start == 1).then_some((0, ' '))) else {
            return Ok(None);
        };
        let pattern = patterns.get(call.text(1).value(row), flags_at(call, 4, row))?;
        let found = pattern
            .captures_iter(&text[from..])
            .nth(nth - 1)
            .and_then(|captures| captures.get(group).map(|found| found.as_str().to_owned()));
        Ok(found)
    })
}

// ------------------------------------------------------------------------------------------------------------- bytes

/// The hexadecimal SHA-2 hash, of 256 bits unless told otherwise.
fn sha2(call: &Call<'_>) -> Result<ArrayRef> {
    use datafusion::functions::crypto;
    use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};
    let hash = |function: Arc<datafusion::logical_expr::ScalarUDF>| -> Result<ArrayRef> {
        let arguments = ScalarFunctionArgs {
            args: vec![ColumnarValue::Array(Arc::clone(&call.arrays[0]))],
            arg_fields: vec![Arc::clone(&call.fields[0])],
            number_rows: call.rows,
            return_field: TypeSpec::Bytea.field_ref("sha2"),
            config_options: Arc::new(datafusion::common::config::ConfigOptions::default()),
        };
        Ok(function.invoke_with_args(arguments)?.into_array(call.rows)?)
    };
    let mut hashes: HashMap<i64, ArrayRef> = HashMap::new();
    let mut rows = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        if call.arrays.iter().any(|array| array.is_null(row)) {
            rows.push(None);
            continue;
        }
        let bits = if call.has(1) { call.int(1).value(row) } else { 256 };
        let array = match hashes.get(&bits) {
            Some(array) => Arc::clone(array),
            None => {
                let function = match bits {
                    224 => crypto::sha224(),
                    0 | 256 => crypto::sha256(),
                    384 => crypto::sha384(),
                    512 => crypto::sha512(),
                    other => return Err(Error::invalid(format!("sha2 has 224, 256, 384 or 512 bits, not {other}"))),
                };
                let array = hash(function)?;
                hashes.insert(bits, Arc::clone(&array));
                array
            }
        };
        let bytes = arrow::compute::cast(&array, &DataType::Binary)?;
        rows.push(Some(
            bytes.as_binary::<i32>().value(row).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        ));
    }
    call.texts(0, |row| Ok(rows[row].take()))
}

fn to_bin(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| Ok(Some(format!("{:b}", call.int(0).value(row)))))
}

fn to_oct(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| Ok(Some(format!("{:o}", call.int(0).value(row)))))
}

fn check_encoding(name: &str) -> Result<()> {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    if plain == "utf8" {
        return Ok(());
    }
    Err(Error::unsupported(format!("the encoding {name}")).with_hint("texts are UTF-8"))
}

fn convert_from(call: &Call<'_>) -> Result<ArrayRef> {
    let bytes = call.arrays[0].as_binary::<i32>();
    call.texts(2, |row| {
        check_encoding(call.text(1).value(row))?;
        String::from_utf8(bytes.value(row).to_vec())
            .map(Some)
            .map_err(|_| Error::state(SqlState(*b"22021"), "invalid byte sequence for encoding \"UTF8\""))
    })
}

fn convert_to(call: &Call<'_>) -> Result<ArrayRef> {
    let mut builder = BinaryBuilder::with_capacity(call.rows, 0);
    for row in 0..call.rows {
        if call.arrays.iter().any(|array| array.is_null(row)) {
            builder.append_null();
        } else {
            check_encoding(call.text(1).value(row))?;
            builder.append_value(call.text(0).value(row));
        }
    }
    Ok(Arc::new(builder.finish()))
}

// ------------------------------------------------------------------------------------------------------------- others

fn num_nulls(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int32Type>(0, |row| {
        Ok(i32::try_from(call.arrays.iter().filter(|array| array.is_null(row) || array.data_type().is_null()).count())
            .ok())
    })
}

fn num_nonnulls(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int32Type>(0, |row| {
        Ok(i32::try_from(
            call.arrays.iter().filter(|array| array.is_valid(row) && !array.data_type().is_null()).count(),
        )
        .ok())
    })
}

fn pg_typeof(call: &Call<'_>) -> Result<ArrayRef> {
    let name = if call.fields[0].data_type().is_null() {
        "unknown".to_owned()
    } else {
        TypeSpec::from_field(&call.fields[0])
            .map_or_else(|_| call.fields[0].data_type().to_string(), |spec| spec.base_name())
    };
    call.texts(0, |_| Ok(Some(name.clone())))
}

fn uuids(rows: usize, mut make: impl FnMut() -> uuid::Uuid) -> Result<ArrayRef> {
    let mut builder = FixedSizeBinaryBuilder::with_capacity(rows, 16);
    for _ in 0..rows {
        builder.append_value(make().as_bytes())?;
    }
    Ok(Arc::new(builder.finish()))
}

fn uuid_v4(call: &Call<'_>) -> Result<ArrayRef> {
    uuids(call.rows, uuid::Uuid::new_v4)
}

fn uuid_v7(call: &Call<'_>) -> Result<ArrayRef> {
    uuids(call.rows, uuid::Uuid::now_v7)
}
