//! Finds the place of an error in a text file.
//!
//! The readers decode thousands of rows at once and, when one cannot be read, often do not say which. The part of the
//! file that failed is read again here, row by row: slowly, but only once, and the user gets a line and a column.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Bytes, Read};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

/// Where a file is wrong.
pub(super) struct Place {
    /// ` line 2, column price: "abc" is not numeric`
    pub(super) text: String,
    /// Whether a value does not have the type of its column.
    pub(super) by_value: bool,
}

impl Place {
    fn line(line: u64, what: impl AsRef<str>) -> Option<Place> {
        Some(Place { text: format!(" line {line}: {}", what.as_ref()), by_value: false })
    }

    fn column(line: u64, column: &str, what: impl AsRef<str>, by_value: bool) -> Option<Place> {
        Some(Place { text: format!(" line {line}, column {column}: {}", what.as_ref()), by_value })
    }
}

/// An error of a reader, without the name of the reader.
pub(super) fn reason(error: &ArrowError) -> String {
    let text = error.to_string();
    ["Csv error: ", "Json error: ", "Parser error: ", "Cast error: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(&text)
        .to_owned()
}

/// The first wrong row of a CSV file behind `rows` good ones. Without a schema only the form of the file is judged.
pub(super) fn csv(path: &Path, delimiter: u8, rows: usize, schema: Option<&Schema>) -> io::Result<Option<Place>> {
    let mut records = Records::new(BufReader::new(File::open(path)?), delimiter);
    let Some(header) = records.next()? else { return Ok(None) };
    let mut names = Vec::new();
    for name in &header.values {
        match std::str::from_utf8(name) {
            Ok(name) => names.push(name.to_owned()),
            Err(error) => return Ok(Place::line(header.line, not_utf8(name, &error))),
        }
    }
    for _ in 0..rows {
        records.next()?;
    }
    while let Some(record) = records.next()? {
        let line = record.line;
        let count = record.values.len();
        if record.unclosed || count != names.len() {
            let noun = if count == 1 { "value" } else { "values" };
            let open = if record.unclosed { "; a quote is opened and never closed" } else { "" };
            return Ok(Place::line(line, format!("{count} {noun} where the header has {}{open}", names.len())));
        }
        for (at, (value, name)) in record.values.iter().zip(&names).enumerate() {
            let text = match std::str::from_utf8(value) {
                Ok(text) => text,
                Err(error) => return Ok(Place::column(line, name, not_utf8(value, &error), false)),
            };
            let Some(field) = schema.and_then(|schema| schema.fields().get(at)) else { continue };
            if field.data_type() != &DataType::Utf8 && !reads_as(text, field) {
                let what = format!("{} is not {}", shown(text), type_name(field.data_type()));
                return Ok(Place::column(line, name, what, true));
            }
        }
    }
    Ok(None)
}

/// The line of the row that has a quote which is never closed, if there is one.
pub(super) fn unclosed(path: &Path, delimiter: u8) -> io::Result<Option<u64>> {
    let mut records = Records::new(BufReader::new(File::open(path)?), delimiter);
    while let Some(record) = records.next()? {
        if record.unclosed {
            return Ok(Some(record.line));
        }
    }
    Ok(None)
}

/// Asks the reader that will read the file whether it can make the value.
fn reads_as(text: &str, field: &Arc<Field>) -> bool {
    let line = format!("\"{}\"\n", text.replace('"', "\"\""));
    let schema = Arc::new(Schema::new(vec![Arc::clone(field)]));
    let mut decoder = arrow::csv::ReaderBuilder::new(schema).with_batch_size(1).build_decoder();
    decoder.decode(line.as_bytes()).is_ok() && decoder.flush().is_ok()
}

/// The first wrong line of a JSON file behind `rows` good ones.
pub(super) fn json(path: &Path, rows: usize, schema: Option<SchemaRef>) -> io::Result<Option<Place>> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut line, mut seen) = (0, 0);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        line += 1;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        seen += 1;
        if seen <= rows {
            continue;
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.trim(),
            Err(error) => return Ok(Place::line(line, not_utf8(&bytes, &error))),
        };
        if !text.starts_with('{') {
            let what = format!("{} is no JSON object: the file must hold one object per line", shown(text));
            return Ok(Place::line(line, what));
        }
        let alone = arrow::json::reader::infer_json_schema(bytes.as_slice(), Some(1));
        if let Err(error) = &alone {
            return Ok(Place::line(line, format!("{}: the file must hold one object per line", reason(error))));
        }
        let Some(schema) = &schema else { continue };
        let builder = arrow::json::ReaderBuilder::new(Arc::clone(schema)).with_batch_size(1);
        let decoded = builder.build_decoder().and_then(|mut decoder| {
            decoder.decode(&bytes)?;
            decoder.flush()
        });
        if let Err(error) = decoded {
            let text = reason(&error);
            let named = text.strip_prefix("whilst decoding field '").and_then(|text| text.split_once("': "));
            return Ok(match named {
                Some((column, what)) => Place::column(line, column, what, true),
                None => Place::line(line, text),
            });
        }
    }
}

/// A value as messages show it: in quotes, and not all of a long one.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

fn not_utf8(bytes: &[u8], error: &std::str::Utf8Error) -> String {
    let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
    format!(
        "not UTF-8 (byte 0x{byte:02X}): convert the file first, as `iconv -f LATIN1 -t UTF-8 FILE` does if it is Latin-1"
    )
}

/// SQL's name of a type.
fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint".to_owned(),
        DataType::Int32 | DataType::UInt16 => "integer".to_owned(),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "bigint".to_owned(),
        DataType::Float16 | DataType::Float32 => "real".to_owned(),
        DataType::Float64 => "double precision".to_owned(),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            format!("numeric({precision},{scale})")
        }
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "time".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        other => other.to_string(),
    }
}

/// A row of a CSV file.
struct Record {
    /// The line it begins in, from 1.
    line: u64,
    values: Vec<Vec<u8>>,
    /// The file ended inside of quotes.
    unclosed: bool,
}

/// Cuts a CSV file into rows and values, by the rules of the reader: quotes count at the start of a value only, a
/// doubled quote inside is a quote, empty lines are no rows.
struct Records<R> {
    bytes: Bytes<R>,
    delimiter: u8,
    line: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    /// At the start of a value.
    Start,
    Plain,
    Quoted,
    /// Behind a quote inside of quotes: the end, or half of a doubled one.
    Quote,
}

impl<R: Read> Records<R> {
    fn new(reader: R, delimiter: u8) -> Self {
        Self { bytes: reader.bytes(), delimiter, line: 1 }
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        let mut record = Record { line: self.line, values: Vec::new(), unclosed: false };
        let (mut value, mut at) = (Vec::new(), At::Start);
        while let Some(byte) = self.bytes.next().transpose()? {
            if byte == b'\n' {
                self.line += 1;
            }
            match (at, byte) {
                (At::Start, b'"') => at = At::Quoted,
                (At::Quoted, b'"') => at = At::Quote,
                (At::Quote, b'"') => {
                    value.push(b'"');
                    at = At::Quoted;
                }
                (At::Quoted, byte) => value.push(byte),
                (_, b'\n' | b'\r') => {
                    if at == At::Start && record.values.is_empty() {
                        record.line = self.line;
                        continue;
                    }
                    record.values.push(value);
                    return Ok(Some(record));
                }
                (_, byte) if byte == self.delimiter => {
                    record.values.push(std::mem::take(&mut value));
                    at = At::Start;
                }
                (_, byte) => {
                    value.push(byte);
                    at = At::Plain;
                }
            }
        }
        if at == At::Start && record.values.is_empty() {
            return Ok(None);
        }
        record.unclosed = at == At::Quoted;
        record.values.push(value);
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_values() {
        let text = "a,b\r\n\r\n\"x\ny\",\"q\"\"q\"\n5\" pipe,\n";
        let mut records = Records::new(text.as_bytes(), b',');
        let mut read = || {
            records.next().unwrap().map(|record| {
                let values = record.values.into_iter().map(|value| String::from_utf8(value).unwrap());
                (record.line, values.collect::<Vec<_>>())
            })
        };
        let row = |line: u64, values: [&str; 2]| Some((line, values.map(str::to_owned).to_vec()));
        assert_eq!(read(), row(1, ["a", "b"]));
        assert_eq!(read(), row(3, ["x\ny", "q\"q"]));
        assert_eq!(read(), row(5, ["5\" pipe", ""]));
        assert_eq!(read(), None);
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(shown("abc"), "\"abc\"");
        assert!(shown(&"ä".repeat(100)).chars().count() < 70);
    }
}
