//! Files as record batches.
//!
//! Parquet has types; CSV and JSON are read as the types of the table's columns, or, for a table that does not exist yet,
//! as those that the first lines suggest. A reader that fails knows little of the place: [`super::blame`] then reads
//! the part of the file once more to find it.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use indicatif::ProgressBar;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{FileKind, blame};

/// Rows per message.
const BATCH_ROWS: usize = 32 * 1024;
/// Lines read to guess the types of CSV and JSON columns.
pub(super) const GUESSED_ROWS: usize = 10_000;

/// One file to load.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Where it is read.
    pub(super) path: PathBuf,
    /// What messages call it.
    pub(super) shown: String,
    pub(super) kind: FileKind,
    /// What was asked for between CSV values.
    pub(super) delimiter: Option<u8>,
}

/// Reads a file and hands its batches on, until `send` says that nobody wants more. The error names the file and, as far
/// as it is known, the line and the column.
pub(super) fn read(
    source: &Source,
    target: Option<&SchemaRef>,
    progress: &ProgressBar,
    send: impl FnMut(RecordBatch) -> bool,
) -> Result<(), String> {
    let shown = &source.shown;
    let unreadable = |error: std::io::Error| format!("cannot read {shown}: {error}");
    let file = File::open(&source.path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Err(format!("{shown} is empty: there is nothing to load"));
    }
    match source.kind {
        FileKind::Parquet => parquet(source, file, progress, send),
        FileKind::Csv => csv(source, file, target, progress, send),
        FileKind::Json => json(source, file, target, progress, send),
    }
}

fn parquet(
    source: &Source,
    file: File,
    progress: &ProgressBar,
    mut send: impl FnMut(RecordBatch) -> bool,
) -> Result<(), String> {
    let shown = &source.shown;
    let damaged = |place: &str, error: &dyn std::fmt::Display| {
        format!("{shown}{place} cannot be read as Parquet: {error}. Is the file whole, and is it Parquet?")
    };
    let size = file.metadata().map_err(|error| damaged("", &error))?.len();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged("", &error))?;
    let total = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default().max(1);
    let schema = Arc::clone(builder.schema());
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|error| damaged("", &error))?;
    let (base, mut rows) = (progress.position(), 0);
    for batch in reader {
        let batch = batch.map_err(|error| damaged(&format!(", after row {rows},"), &error))?;
        rows += u64::try_from(batch.num_rows()).unwrap_or_default();
        let done = u64::try_from(u128::from(size) * u128::from(rows) / u128::from(total)).unwrap_or(size);
        if !send(batch) {
            return Ok(());
        }
        progress.set_position(base + done);
    }
    if rows == 0 {
        // The columns are known all the same: a missing table can be made.
        send(RecordBatch::new_empty(schema));
    }
    Ok(())
}

fn csv(
    source: &Source,
    mut file: File,
    target: Option<&SchemaRef>,
    progress: &ProgressBar,
    mut send: impl FnMut(RecordBatch) -> bool,
) -> Result<(), String> {
    let shown = &source.shown;
    let by_name = if source.path.extension().is_some_and(|ext| ext == "tsv") { b'\t' } else { b',' };
    let delimiter = source.delimiter.unwrap_or(by_name);
    let blame = |rows: usize, schema: Option<&Schema>, error: &ArrowError| {
        let found = blame::csv(&source.path, delimiter, rows, schema).map_err(|error| error.to_string());
        let (place, guess) = match found {
            Ok(Some(place)) => (place.text, place.by_value && target.is_none()),
            Ok(None) | Err(_) => (format!(": {}", blame::reason(error)), false),
        };
        format!("{shown}{place}{}", if guess { GUESS } else { "" })
    };
    let format = arrow::csv::reader::Format::default().with_header(true).with_delimiter(delimiter);
    let inferred = format.infer_schema(BufReader::new(&file), Some(GUESSED_ROWS));
    let (guessed, _) = inferred.map_err(|error| blame(0, None, &error))?;
    if let Some(other) = other_delimiter(&guessed, delimiter) {
        let known = target.is_some_and(|target| target.fields().iter().any(|it| it.name() == guessed.field(0).name()));
        if source.delimiter.is_none() && !known {
            return Err(format!(
                "{shown} line 1: the header is a single column, `{}`: what separates the values? \
                 Say --delimiter '{other}' (or --delimiter ',' if it is one column)",
                guessed.field(0).name()
            ));
        }
    }
    let schema = Arc::new(match_columns(&guessed, target));
    file.rewind().map_err(|error| format!("cannot read {shown} again: {error}"))?;
    let quotes = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: file, progress: progress.clone(), quotes: Some(Arc::clone(&quotes)) };
    let reader = arrow::csv::ReaderBuilder::new(Arc::clone(&schema))
        .with_format(format)
        .with_batch_size(BATCH_ROWS)
        .build(BufReader::with_capacity(1 << 20, counted))
        .map_err(|error| blame(0, Some(&schema), &error))?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch.map_err(|error| blame(rows, Some(&schema), &error))?;
        rows += batch.num_rows();
        if !send(batch) {
            return Ok(());
        }
    }
    // The reader takes the end of the file for the end of a quoted value, and with it the rest of the file for the value.
    if quotes.load(Ordering::Relaxed) % 2 == 1 {
        let found = blame::unclosed(&source.path, delimiter);
        if let Some(line) = found.map_err(|error| format!("cannot read {shown} again: {error}"))? {
            return Err(format!("{shown} line {line}: a quote is opened and never closed"));
        }
    }
    if rows == 0 { no_rows(shown, target) } else { Ok(()) }
}

fn json(
    source: &Source,
    mut file: File,
    target: Option<&SchemaRef>,
    progress: &ProgressBar,
    mut send: impl FnMut(RecordBatch) -> bool,
) -> Result<(), String> {
    let shown = &source.shown;
    let blame = |rows: usize, schema: Option<SchemaRef>, error: &ArrowError| {
        let found = blame::json(&source.path, rows, schema).map_err(|error| error.to_string());
        let (place, guess) = match found {
            Ok(Some(place)) => (place.text, place.by_value && target.is_none()),
            Ok(None) | Err(_) => (format!(": {}", blame::reason(error)), false),
        };
        format!("{shown}{place}{}", if guess { GUESS } else { "" })
    };
    let inferred = arrow::json::reader::infer_json_schema(BufReader::new(&file), Some(GUESSED_ROWS));
    let (guessed, _) = inferred.map_err(|error| blame(0, None, &error))?;
    file.rewind().map_err(|error| format!("cannot read {shown} again: {error}"))?;
    let schema = Arc::new(match_columns(&guessed, target));
    let counted = Counted { inner: file, progress: progress.clone(), quotes: None };
    let reader = arrow::json::ReaderBuilder::new(Arc::clone(&schema))
        .with_batch_size(BATCH_ROWS)
        .build(BufReader::with_capacity(1 << 20, counted))
        .map_err(|error| blame(0, Some(Arc::clone(&schema)), &error))?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch.map_err(|error| blame(rows, Some(Arc::clone(&schema)), &error))?;
        rows += batch.num_rows();
        if !send(batch) {
            return Ok(());
        }
    }
    if rows == 0 { no_rows(shown, target) } else { Ok(()) }
}

const GUESS: &str =
    "\nHINT: the types were guessed from the first 10,000 lines: create the table with the types it should have";

fn no_rows(shown: &str, target: Option<&SchemaRef>) -> Result<(), String> {
    match target {
        Some(_) => Ok(()),
        None => Err(format!("{shown} has no rows, which leaves the types of its columns open: create the table first")),
    }
}

/// What stands in a header that was read as one column, where another delimiter would.
fn other_delimiter(schema: &Schema, delimiter: u8) -> Option<&'static str> {
    let [only] = schema.fields().as_ref() else { return None };
    [(b';', ";"), (b'\t', "\\t"), (b'|', "|"), (b',', ",")]
        .into_iter()
        .find(|(byte, _)| *byte != delimiter && only.name().contains(char::from(*byte)))
        .map(|(_, shown)| shown)
}

/// Text formats are read as the types of the table's columns; what the reader cannot make stays text for the server to
/// convert. Columns are matched by name without regard to case.
fn match_columns(guessed: &Schema, target: Option<&SchemaRef>) -> Schema {
    let fields = guessed.fields().iter().map(|field| {
        let known = target
            .and_then(|target| target.fields().iter().find(|known| known.name().eq_ignore_ascii_case(field.name())));
        match known {
            None => field.as_ref().clone(),
            Some(known) => {
                let kind = match known.data_type() {
                    kind if kind.is_numeric() => kind.clone(),
                    kind @ (DataType::Boolean | DataType::Utf8 | DataType::Date32 | DataType::Timestamp(..)) => {
                        kind.clone()
                    }
                    kind @ DataType::List(_) if matches!(field.data_type(), DataType::List(_)) => kind.clone(),
                    _ => DataType::Utf8,
                };
                Field::new(known.name(), kind, true)
            }
        }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// A file whose reads move the progress bar, and are searched for quotes.
struct Counted {
    inner: File,
    progress: ProgressBar,
    quotes: Option<Arc<AtomicU64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.inc(u64::try_from(count).unwrap_or_default());
        if let Some(quotes) = &self.quotes {
            let found = buffer[..count].iter().filter(|byte| **byte == b'"').count();
            quotes.fetch_add(u64::try_from(found).unwrap_or_default(), Ordering::Relaxed);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(
        name: &str,
        bytes: &[u8],
        delimiter: Option<u8>,
        target: Option<&SchemaRef>,
    ) -> Result<Vec<RecordBatch>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let kind = super::super::kind_of(&path).unwrap();
        let source = Source { path, shown: name.to_owned(), kind, delimiter };
        let mut batches = Vec::new();
        read(&source, target, &ProgressBar::hidden(), |batch| {
            batches.push(batch);
            true
        })?;
        Ok(batches)
    }

    fn refused(name: &str, text: impl AsRef<[u8]>, target: Option<&SchemaRef>) -> String {
        read_bytes(name, text.as_ref(), None, target).expect_err(name)
    }

    fn goods() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("note", DataType::Utf8, true),
        ]))
    }

    #[test]
    fn text_files_take_the_types_of_the_table() {
        let target = goods();
        let batches = read_bytes("a.csv", b"ID,price,note\n1,2.50,7\n2,,x\n", None, Some(&target)).unwrap();
        assert_eq!(batches[0].schema().field(0).data_type(), &DataType::Int64);
        assert_eq!(batches[0].schema().field(1).data_type(), &DataType::Decimal128(10, 2));
        assert_eq!(batches[0].schema().field(2).data_type(), &DataType::Utf8);
        let text = b"{\"id\": 1, \"note\": \"x\"}\n{\"id\": 2}\n";
        let batches = read_bytes("a.jsonl", text, None, Some(&target)).unwrap();
        assert_eq!(batches[0].num_rows(), 2);
        assert_eq!(batches[0].schema().field(0).data_type(), &DataType::Int64);
    }

    #[test]
    fn an_error_names_file_line_and_column() {
        let target = goods();
        let known = Some(&target);
        assert_eq!(
            refused("a.csv", "id,price,note\n1,abc,x\n", known),
            "a.csv line 2, column price: \"abc\" is not numeric(10,2)"
        );
        assert_eq!(refused("a.csv", "id,price\n1,2\n\n3\n", known), "a.csv line 4: 1 value where the header has 2");
        assert_eq!(refused("a.csv", "id,price\n1,2,3\n", None), "a.csv line 2: 3 values where the header has 2");
        // A quoted line break is no end of a row.
        assert_eq!(
            refused("a.csv", "note,id\n\"two\nlines\",1\ny,\"x\"\n", known),
            "a.csv line 4, column id: \"x\" is not bigint"
        );
        let latin = refused("a.csv", b"id,note\n1,caf\xe9\n", known);
        assert!(latin.starts_with("a.csv line 2, column note: not UTF-8 (byte 0xE9)"), "{latin}");
        assert!(latin.contains("iconv"), "{latin}");
        let open = refused("a.csv", "id,note\n1,x\n\"2,y\n3,z\n", known);
        assert_eq!(open, "a.csv line 3: 1 value where the header has 2; a quote is opened and never closed");
        let swallowed = refused("a.csv", "id,note\n1,x\n2,\"y\n3,z\n", known);
        assert_eq!(swallowed, "a.csv line 3: a quote is opened and never closed");
        // Quotes inside of plain values are no quotes.
        assert_eq!(read_bytes("a.csv", b"id,note\n1,5\" pipe\n", None, known).unwrap()[0].num_rows(), 1);
        let broken = refused("a.jsonl", "{\"id\": 1}\n{\"id\": \n", known);
        assert!(broken.starts_with("a.jsonl line 2: "), "{broken}");
        let value = refused("a.jsonl", "{\"id\": 1}\n\n{\"id\": \"x\"}\n", known);
        assert!(value.starts_with("a.jsonl line 3, column id: ") && value.contains("\"x\""), "{value}");
        let list = refused("a.json", "[{\"id\": 1}]\n", known);
        assert!(list.starts_with("a.json line 1: ") && list.contains("one object per line"), "{list}");
        let parquet = refused("a.parquet", "PAR1 and no more", known);
        assert!(parquet.starts_with("a.parquet cannot be read as Parquet: "), "{parquet}");
    }

    #[test]
    fn a_late_error_is_found_behind_the_batches_that_were_sent() {
        let mut text = "id,note\n".to_owned();
        for id in 0..50_000 {
            text.push_str(&format!("{id},x\n"));
        }
        text.push_str("one,x\n");
        let error = refused("a.csv", &text, None);
        assert!(error.starts_with("a.csv line 50002, column id: \"one\" is not bigint"), "{error}");
        assert!(error.contains("HINT: the types were guessed"), "{error}");
    }

    #[test]
    fn files_without_rows() {
        let target = goods();
        for name in ["a.csv", "a.jsonl", "a.parquet"] {
            assert_eq!(refused(name, "", Some(&target)), format!("{name} is empty: there is nothing to load"));
        }
        assert!(read_bytes("a.csv", b"id,note\n", None, Some(&target)).unwrap().is_empty());
        assert!(refused("a.csv", "id,note\n", None).contains("create the table first"));
    }

    #[test]
    fn another_delimiter_in_the_header_is_noticed() {
        for (text, said) in [("id;note\n1;x\n", "';'"), ("id\tnote\n1\tx\n", "'\\t'"), ("id|note\n1|x\n", "'|'")] {
            let error = refused("a.csv", text, None);
            assert!(error.contains(&format!("--delimiter {said}")), "{error}");
        }
        assert_eq!(read_bytes("a.csv", b"id;note\n1;x\n", Some(b';'), None).unwrap()[0].num_columns(), 2);
        assert_eq!(read_bytes("a.csv", b"id;note\n1;x\n", Some(b','), None).unwrap()[0].num_columns(), 1);
        assert_eq!(read_bytes("a.tsv", b"id\tnote\n1\tx\n", None, None).unwrap()[0].num_columns(), 2);
        assert_eq!(read_bytes("a.csv", b"id\n1\n", None, None).unwrap()[0].num_columns(), 1);
    }
}
