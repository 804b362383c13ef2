//! Results on paper: tables, records, CSV and JSON.
//!
//! CSV is as PostgreSQL writes it: NULL is nothing, an empty text is `""`, arrays are `{1,NULL,"two words"}`. A value that
//! cannot be written is an error of the result, never a missing row.

use std::io::{self, Write};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns with a frame.
    #[default]
    Table,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON array of objects.
    Json,
}

/// Rows measured before the widths of a table are fixed.
const MEASURED_ROWS_MAX: usize = 10_000;

/// Writes one result, batch by batch.
pub struct Printer<'a> {
    out: &'a mut dyn Write,
    schema: SchemaRef,
    style: Style,
    rows: usize,
}

impl std::fmt::Debug for Printer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").field("schema", &self.schema).field("rows", &self.rows).finish_non_exhaustive()
    }
}

enum Style {
    Table { held: Vec<Vec<Option<String>>>, widths: Option<Vec<usize>> },
    Expanded,
    Csv { header: bool },
    Json { any: bool },
}

impl<'a> Printer<'a> {
    /// Starts a result.
    pub fn new(out: &'a mut dyn Write, schema: SchemaRef, format: Format, expanded: bool) -> Self {
        let style = match format {
            Format::Table if expanded => Style::Expanded,
            Format::Table => Style::Table { held: Vec::new(), widths: None },
            Format::Csv => Style::Csv { header: true },
            Format::Json => Style::Json { any: false },
        };
        Self { out, schema, style, rows: 0 }
    }

    /// Adds a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match &mut self.style {
            Style::Table { held, widths } => {
                let cells = cells(batch)?;
                if let Some(widths) = widths {
                    for row in &cells {
                        table_row(self.out, row, widths, &self.schema)?;
                    }
                } else {
                    held.extend(cells);
                    if held.len() >= MEASURED_ROWS_MAX {
                        let fixed = table_head(self.out, &self.schema, held)?;
                        *widths = Some(fixed);
                    }
                }
            }
            Style::Expanded => {
                let width = self.schema.fields().iter().map(|field| field.name().width()).max().unwrap_or(0);
                for (index, row) in cells(batch)?.into_iter().enumerate() {
                    writeln!(self.out, "-[ row {} ]{}", self.rows + index + 1, "-".repeat(width.max(8)))?;
                    for (field, value) in self.schema.fields().iter().zip(row) {
                        let pad = width.saturating_sub(field.name().width());
                        writeln!(
                            self.out,
                            "{}{} | {}",
                            field.name(),
                            " ".repeat(pad),
                            value.as_deref().unwrap_or("NULL")
                        )?;
                    }
                }
            }
            Style::Csv { header } => {
                if std::mem::take(header) {
                    csv_header(self.out, &self.schema)?;
                }
                csv_rows(self.out, &readable(&arrays_as_text(batch)?)?)?;
            }
            Style::Json { any } => {
                check_times(batch)?;
                let mut lines = Vec::new();
                {
                    let mut writer = arrow::json::writer::WriterBuilder::new()
                        .with_explicit_nulls(true)
                        .build::<_, arrow::json::writer::LineDelimited>(&mut lines);
                    writer.write(&readable(batch)?).map_err(io::Error::other)?;
                    writer.finish().map_err(io::Error::other)?;
                }
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    self.out.write_all(if *any { b",\n " } else { b"[" })?;
                    self.out.write_all(line)?;
                    *any = true;
                }
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Ends the result and returns the number of rows.
    pub fn finish(mut self) -> io::Result<usize> {
        match &mut self.style {
            Style::Table { held, widths } => {
                let fixed = match widths.take() {
                    Some(fixed) => fixed,
                    None => table_head(self.out, &self.schema, held)?,
                };
                rule(self.out, &fixed)?;
            }
            Style::Csv { header: true } => {
                csv_header(self.out, &self.schema)?;
            }
            Style::Json { any } => self.out.write_all(if *any { b"]\n" } else { b"[]\n" })?,
            Style::Expanded | Style::Csv { .. } => {}
        }
        self.out.flush()?;
        Ok(self.rows)
    }
}

fn table_head(out: &mut dyn Write, schema: &Schema, rows: &mut Vec<Vec<Option<String>>>) -> io::Result<Vec<usize>> {
    let mut widths: Vec<usize> = schema.fields().iter().map(|field| field.name().width()).collect();
    for row in rows.iter() {
        for (width, value) in widths.iter_mut().zip(row) {
            *width = (*width)
                .max(value.as_deref().map_or(4, |text| text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0)));
        }
    }
    rule(out, &widths)?;
    let names: Vec<Option<String>> = schema.fields().iter().map(|field| Some(field.name().clone())).collect();
    let heading = Schema::new(
        schema.fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true)).collect::<Vec<_>>(),
    );
    table_row(out, &names, &widths, &heading)?;
    rule(out, &widths)?;
    for row in std::mem::take(rows) {
        table_row(out, &row, &widths, schema)?;
    }
    Ok(widths)
}

fn rule(out: &mut dyn Write, widths: &[usize]) -> io::Result<()> {
    let parts: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    writeln!(out, "+{}+", parts.join("+"))
}

/// One row; a value with line breaks takes several lines.
fn table_row(out: &mut dyn Write, row: &[Option<String>], widths: &[usize], schema: &Schema) -> io::Result<()> {
    let lines: Vec<Vec<&str>> =
        row.iter().map(|value| value.as_deref().unwrap_or("NULL").split('\n').collect()).collect();
    let height = lines.iter().map(Vec::len).max().unwrap_or(1);
    for line in 0..height {
        for ((value, width), field) in lines.iter().zip(widths).zip(schema.fields()) {
            let text = value.get(line).copied().unwrap_or("");
            let pad = " ".repeat(width.saturating_sub(text.width()));
            if field.data_type().is_numeric() { write!(out, "| {pad}{text} ")? } else { write!(out, "| {text}{pad} ")? }
        }
        writeln!(out, "|")?;
    }
    Ok(())
}

fn csv_header(out: &mut dyn Write, schema: &Schema) -> io::Result<()> {
    for (at, field) in schema.fields().iter().enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        csv_value(out, field.name())?;
    }
    out.write_all(b"\n")
}

fn csv_rows(out: &mut dyn Write, batch: &RecordBatch) -> io::Result<()> {
    let options = FormatOptions::default().with_display_error(false);
    let formatters = formatters(batch, &options)?;
    let mut text = String::new();
    for row in 0..batch.num_rows() {
        for (at, (formatter, column)) in formatters.iter().zip(batch.columns()).enumerate() {
            if at > 0 {
                out.write_all(b",")?;
            }
            if !column.is_null(row) {
                text.clear();
                formatter.value(row).write(&mut text).map_err(io::Error::other)?;
                csv_value(out, &text)?;
            }
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// A value in quotes if it must be; an empty one too, since nothing at all is NULL.
fn csv_value(out: &mut dyn Write, text: &str) -> io::Result<()> {
    let plain = !text.is_empty() && !text.contains([',', '"', '\n', '\r']) && text != "\\.";
    if plain { out.write_all(text.as_bytes()) } else { write!(out, "\"{}\"", text.replace('"', "\"\"")) }
}

/// Fails when a moment lies beyond the calendar: the writer of JSON would write the error as if it were the value.
fn check_times(batch: &RecordBatch) -> io::Result<()> {
    let options = options();
    let mut text = String::new();
    for column in batch.columns().iter().filter(|column| column.data_type().is_temporal()) {
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options).map_err(io::Error::other)?;
        for row in 0..column.len() {
            text.clear();
            formatter.value(row).write(&mut text).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Arrays become the texts that SQL reads: `{1,NULL,"two words"}`.
fn arrays_as_text(batch: &RecordBatch) -> io::Result<RecordBatch> {
    let is_list = |kind: &DataType| matches!(kind, DataType::List(_) | DataType::LargeList(_));
    if !batch.columns().iter().any(|column| is_list(column.data_type())) {
        return Ok(batch.clone());
    }
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if is_list(field.data_type()) {
            fields.push(Field::new(field.name(), DataType::Utf8, true));
            columns.push(std::sync::Arc::new(list_texts(column)?) as _);
        } else {
            fields.push(field.as_ref().clone());
            columns.push(std::sync::Arc::clone(column));
        }
    }
    RecordBatch::try_new(std::sync::Arc::new(Schema::new(fields)), columns).map_err(io::Error::other)
}

fn list_texts(column: &ArrayRef) -> io::Result<StringArray> {
    let mut texts = Vec::with_capacity(column.len());
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.push(None);
            continue;
        }
        let elements = match column.data_type() {
            DataType::LargeList(_) => column.as_list::<i64>().value(row),
            _ => column.as_list::<i32>().value(row),
        };
        texts.push(Some(list_text(&elements)?));
    }
    Ok(texts.into_iter().collect())
}

fn list_text(elements: &ArrayRef) -> io::Result<String> {
    let nested = matches!(elements.data_type(), DataType::List(_) | DataType::LargeList(_));
    let texts: Vec<Option<String>> = if nested {
        list_texts(elements)?.iter().map(|text| text.map(str::to_owned)).collect()
    } else {
        let field = Field::new("element", elements.data_type().clone(), true);
        let batch =
            RecordBatch::try_new(std::sync::Arc::new(Schema::new(vec![field])), vec![std::sync::Arc::clone(elements)]);
        cells(&batch.map_err(io::Error::other)?)?.into_iter().filter_map(|mut row| row.pop()).collect()
    };
    let shown = texts.into_iter().map(|text| match text {
        None => "NULL".to_owned(),
        Some(text) if nested => text,
        Some(text) => {
            let special = |c: char| c.is_whitespace() || matches!(c, ',' | '{' | '}' | '"' | '\\');
            if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                text
            }
        }
    });
    Ok(format!("{{{}}}", shown.collect::<Vec<_>>().join(",")))
}

fn formatters<'a>(batch: &'a RecordBatch, options: &'a FormatOptions<'a>) -> io::Result<Vec<ArrayFormatter<'a>>> {
    let columns = batch.columns().iter();
    let made = columns.map(|column| ArrayFormatter::try_new(column.as_ref(), options));
    made.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default()
        .with_display_error(false)
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"))
        .with_datetime_format(Some("%Y-%m-%d %H:%M:%S%.f"))
}

/// Every value as text, row by row; `None` is NULL.
pub(super) fn cells(batch: &RecordBatch) -> io::Result<Vec<Vec<Option<String>>>> {
    let options = options();
    let batch = readable(&arrays_as_text(batch)?)?;
    let formatters = formatters(&batch, &options)?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let mut values = Vec::with_capacity(formatters.len());
        for (formatter, column) in formatters.iter().zip(batch.columns()) {
            values.push(match column.is_null(row) {
                true => None,
                false => Some(formatter.value(row).try_to_string().map_err(io::Error::other)?),
            });
        }
        rows.push(values);
    }
    Ok(rows)
}

/// UUIDs and byte strings become the texts that SQL reads.
fn readable(batch: &RecordBatch) -> io::Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let texts: Option<StringArray> = match column.data_type() {
            DataType::FixedSizeBinary(16) => {
                Some(column.as_fixed_size_binary().iter().map(|bytes| bytes.map(uuid_text)).collect())
            }
            DataType::Binary => Some(column.as_binary::<i32>().iter().map(|bytes| bytes.map(hex_text)).collect()),
            DataType::LargeBinary => Some(column.as_binary::<i64>().iter().map(|bytes| bytes.map(hex_text)).collect()),
            _ => None,
        };
        match texts {
            Some(texts) => {
                fields.push(Field::new(field.name(), DataType::Utf8, true));
                columns.push(std::sync::Arc::new(texts) as _);
            }
            None => {
                fields.push(field.as_ref().clone());
                columns.push(std::sync::Arc::clone(column));
            }
        }
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(std::sync::Arc::new(Schema::new(fields)), columns, &options)
        .map_err(io::Error::other)
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

fn uuid_text(bytes: &[u8]) -> String {
    let hex = hex_text(bytes);
    let hex = &hex[2..];
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Decimal128Array, FixedSizeBinaryArray, Int64Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    fn sample() -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(vec![Some(1), None])) as _, true),
            ("naïve", Arc::new(StringArray::from(vec![Some("x,y"), Some("two\nlines")])) as _, true),
            (
                "price",
                Arc::new(Decimal128Array::from(vec![150, -25]).with_precision_and_scale(10, 2).unwrap()) as _,
                true,
            ),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000]).with_timezone("+00:00")) as _, true),
            (
                "uid",
                Arc::new(FixedSizeBinaryArray::try_from_iter([[1u8; 16], [255; 16]].into_iter()).unwrap()) as _,
                true,
            ),
        ])
        .unwrap()
    }

    fn print(format: Format, expanded: bool) -> String {
        let batch = sample();
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, batch.schema(), format, expanded);
        printer.write(&batch).unwrap();
        printer.write(&batch.slice(0, 1)).unwrap();
        assert_eq!(printer.finish().unwrap(), 3);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_align() {
        let text = print(Format::Table, false);
        let widths: Vec<usize> = text.lines().map(UnicodeWidthStr::width).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains("|   1.50 |") || text.contains("|  1.50 |"), "{text}");
        assert!(text.contains("NULL") && text.contains("01010101-0101-0101-0101-010101010101"), "{text}");
        assert!(text.contains("1970-01-01 00:00:01.500+00:00"), "{text}");
        assert!(print(Format::Table, true).contains("-[ row 3 ]"));
    }

    fn written(format: Format, columns: Vec<(&str, ArrayRef)>) -> String {
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, batch.schema(), format, false);
        printer.write(&batch).unwrap();
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn arrays_are_written_as_sql_reads_them() {
        let mut texts = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
        texts.append_value([Some("x"), None, Some("two words"), Some("null"), Some(""), Some("q\"\\")]);
        texts.append_null();
        let texts: ArrayRef = Arc::new(texts.finish());
        let mut numbers =
            arrow::array::ListBuilder::new(arrow::array::ListBuilder::new(arrow::array::Int64Builder::new()));
        numbers.values().append_value([Some(1), None]);
        numbers.values().append_value([Some(3)]);
        numbers.append(true);
        numbers.append(true);
        let numbers: ArrayRef = Arc::new(numbers.finish());
        let csv = written(Format::Csv, vec![("t", Arc::clone(&texts)), ("n", Arc::clone(&numbers))]);
        assert_eq!(
            csv,
            "t,n\n\"{x,NULL,\"\"two words\"\",\"\"null\"\",\"\"\"\",\"\"q\\\"\"\\\\\"\"}\",\"{{1,NULL},{3}}\"\n,{}\n"
        );
        let table = written(Format::Table, vec![("n", numbers)]);
        assert!(table.contains("| {{1,NULL},{3}} |"), "{table}");
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, vec![("t", texts)])).unwrap();
        assert_eq!(json[0]["t"][2], "two words");
    }

    #[test]
    fn csv_tells_null_from_an_empty_text() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![None, Some(""), Some("a\"b")]));
        assert_eq!(written(Format::Csv, vec![("a", Arc::clone(&texts))]), "a\n\n\"\"\n\"a\"\"b\"\n");
        assert_eq!(written(Format::Csv, vec![("a,b", Arc::clone(&texts)), ("c", texts)]).lines().nth(1), Some(","));
    }

    #[test]
    fn a_value_that_cannot_be_written_is_an_error() {
        // A timestamp beyond what a calendar can show.
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX]));
        let batch = RecordBatch::try_from_iter([("t", times)]).unwrap();
        for format in [Format::Table, Format::Csv, Format::Json] {
            let mut out = Vec::new();
            assert!(Printer::new(&mut out, batch.schema(), format, false).write(&batch).is_err(), "{format:?}");
        }
    }

    #[test]
    fn csv_and_json_are_machine_readable() {
        let csv = print(Format::Csv, false);
        assert!(csv.starts_with("id,naïve,price,at,uid\n1,\"x,y\",1.50,"), "{csv}");
        let rows: serde_json::Value = serde_json::from_str(&print(Format::Json, false)).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 3);
        assert_eq!(rows[1]["id"], serde_json::Value::Null);
        let empty = sample().slice(0, 0);
        let mut out = Vec::new();
        Printer::new(&mut out, empty.schema(), Format::Json, false).finish().unwrap();
        assert_eq!(out, b"[]\n");
    }
}
