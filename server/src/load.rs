//! `lattice load`: reads files here and streams them to the server as one bulk ingest per file.
//!
//! The files never have to be visible to the server. One thread reads and decodes; the connection sends; a bounded
//! channel between them keeps memory flat.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::client::{Client, ConnectArgs};
use crate::words::counted;

/// Rows per message.
const BATCH_ROWS: usize = 32 * 1024;
/// Decoded batches that may wait for the network.
const QUEUED_BATCHES_MAX: usize = 4;
/// Lines read to guess the types of CSV and JSON columns.
const GUESSED_ROWS: usize = 10_000;

/// `lattice load`
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Parquet, CSV (with a header line) or JSON lines files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Table to load into, `name` or `schema.name`; made from the first file when it does not exist
    #[arg(long, short)]
    table: String,
    /// Kind of file, when the name does not tell
    #[arg(long, value_enum)]
    format: Option<FileKind>,
    /// Fail when the table does not exist
    #[arg(long)]
    no_create: bool,
    /// Character between CSV values
    #[arg(long, default_value = ",")]
    delimiter: char,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FileKind {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values with a header line.
    Csv,
    /// One JSON object per line.
    Json,
}

/// Runs the command.
pub async fn run(args: LoadArgs) -> ExitCode {
    match load(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("lattice load: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn load(args: LoadArgs) -> Result<(), String> {
    let mut sources = Vec::new();
    for path in &args.files {
        let kind = args
            .format
            .or_else(|| kind_of(path))
            .ok_or_else(|| format!("cannot tell what {} holds: give --format parquet, csv or json", path.display()))?;
        let size = std::fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
        sources.push((path.clone(), kind, size));
    }
    let delimiter = u8::try_from(args.delimiter).map_err(|_| "--delimiter must be an ASCII character".to_owned())?;
    let (schema, table) = match args.table.split_once('.') {
        Some((schema, table)) => (Some(schema.to_lowercase()), table.to_lowercase()),
        None => (None, args.table.to_lowercase()),
    };
    let mut client = Client::connect(&args.connect).await.map_err(|error| error.to_string())?;
    let mut target = existing(&mut client, schema.as_deref(), &table).await?;
    let total: u64 = sources.iter().map(|(_, _, size)| size).sum();
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
    ) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let started = Instant::now();
    let mut rows = 0;
    for (path, kind, _) in sources {
        bar.set_message(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUED_BATCHES_MAX);
        let shown = path.display().to_string();
        let progress = bar.clone();
        let wanted = target.clone();
        let reader = tokio::task::spawn_blocking(move || {
            let failed = sender.clone();
            let send = |batch: Result<RecordBatch, ArrowError>| sender.blocking_send(batch).is_ok();
            if let Err(error) = read(&path, kind, delimiter, wanted.as_ref(), &progress, send) {
                // A closed channel means the server refused; its error says more than ours.
                let _closed = failed.blocking_send(Err(error));
            }
        });
        let batches = tokio_stream(receiver).map(|batch| batch.map_err(FlightError::Arrow));
        let outcome = client.ingest(schema.clone(), table.clone(), !args.no_create, batches).await;
        // The reader ends when its channel closes; it never fails on its own.
        let _ended = reader.await;
        match outcome {
            Ok(more) => rows += more,
            Err(error) => {
                bar.abandon();
                client.close().await;
                return Err(format!("{shown}: {error}"));
            }
        }
        if target.is_none() {
            target = existing(&mut client, schema.as_deref(), &table).await?;
        }
    }
    client.close().await;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64().max(1e-3);
    #[allow(clippy::cast_precision_loss, reason = "shown to people")]
    let rate = rows as f64 / seconds;
    println!("{} loaded into {} in {seconds:.2} s ({rate:.0} rows/s)", counted(rows, "row"), args.table);
    Ok(())
}

fn tokio_stream(
    mut receiver: tokio::sync::mpsc::Receiver<Result<RecordBatch, ArrowError>>,
) -> impl futures::Stream<Item = Result<RecordBatch, ArrowError>> {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

fn kind_of(path: &Path) -> Option<FileKind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "parquet" | "pq" => Some(FileKind::Parquet),
        "csv" | "tsv" | "tbl" => Some(FileKind::Csv),
        "json" | "jsonl" | "ndjson" => Some(FileKind::Json),
        _ => None,
    }
}

/// The columns of the table, when it exists.
async fn existing(client: &mut Client, schema: Option<&str>, table: &str) -> Result<Option<SchemaRef>, String> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let name = match schema {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(table)),
        None => quoted(table),
    };
    match client.rows(&format!("SELECT * FROM {name} LIMIT 0")).await {
        Ok((schema, _)) => Ok(Some(schema)),
        Err(error) if matches!(error.sqlstate.as_deref(), Some("42P01" | "3F000")) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn read(
    path: &Path,
    kind: FileKind,
    delimiter: u8,
    target: Option<&SchemaRef>,
    progress: &ProgressBar,
    mut send: impl FnMut(Result<RecordBatch, ArrowError>) -> bool,
) -> Result<(), ArrowError> {
    let mut file = File::open(path)?;
    match kind {
        FileKind::Parquet => {
            let size = file.metadata()?.len();
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|error| ArrowError::ParquetError(error.to_string()))?;
            let total = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default().max(1);
            let reader = builder
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|error| ArrowError::ParquetError(error.to_string()))?;
            let (base, mut rows) = (progress.position(), 0);
            for batch in reader {
                let batch = batch?;
                rows += u64::try_from(batch.num_rows()).unwrap_or_default();
                let done = u64::try_from(u128::from(size) * u128::from(rows) / u128::from(total)).unwrap_or(size);
                if !send(Ok(batch)) {
                    return Ok(());
                }
                progress.set_position(base + done);
            }
        }
        FileKind::Csv => {
            let delimiter =
                if delimiter == b',' && path.extension().is_some_and(|ext| ext == "tsv") { b'\t' } else { delimiter };
            let format = arrow::csv::reader::Format::default().with_header(true).with_delimiter(delimiter);
            let (guessed, _) = format.infer_schema(BufReader::new(&file), Some(GUESSED_ROWS))?;
            file.rewind()?;
            let schema = Arc::new(match_columns(&guessed, target));
            let counted = Counted { inner: file, progress: progress.clone() };
            let reader = arrow::csv::ReaderBuilder::new(schema)
                .with_format(format)
                .with_batch_size(BATCH_ROWS)
                .build(BufReader::with_capacity(1 << 20, counted))?;
            for batch in reader {
                if !send(Ok(batch?)) {
                    return Ok(());
                }
            }
        }
        FileKind::Json => {
            let (guessed, _) = arrow::json::reader::infer_json_schema(BufReader::new(&file), Some(GUESSED_ROWS))?;
            file.rewind()?;
            let schema = Arc::new(match_columns(&guessed, target));
            let counted = Counted { inner: file, progress: progress.clone() };
            let reader = arrow::json::ReaderBuilder::new(schema)
                .with_batch_size(BATCH_ROWS)
                .build(BufReader::with_capacity(1 << 20, counted))?;
            for batch in reader {
                if !send(Ok(batch?)) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
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

/// A file whose reads move the progress bar.
struct Counted {
    inner: File,
    progress: ProgressBar,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.inc(u64::try_from(count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(name: &str, text: &str, target: Option<&SchemaRef>) -> Result<Vec<RecordBatch>, ArrowError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let mut batches = Vec::new();
        let kind = kind_of(&path).unwrap();
        read(&path, kind, b',', target, &ProgressBar::hidden(), |batch| {
            batches.push(batch.unwrap());
            true
        })?;
        Ok(batches)
    }

    #[test]
    fn text_files_take_the_types_of_the_table() {
        let target: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("note", DataType::Utf8, true),
        ]));
        let batches = read_all("a.csv", "ID,price,note\n1,2.50,7\n2,,x\n", Some(&target)).unwrap();
        assert_eq!(batches[0].schema().field(0).data_type(), &DataType::Int64);
        assert_eq!(batches[0].schema().field(1).data_type(), &DataType::Decimal128(10, 2));
        assert_eq!(batches[0].schema().field(2).data_type(), &DataType::Utf8);
        let batches = read_all("a.jsonl", "{\"id\": 1, \"note\": \"x\"}\n{\"id\": 2}\n", Some(&target)).unwrap();
        assert_eq!(batches[0].num_rows(), 2);
        assert_eq!(batches[0].schema().field(0).data_type(), &DataType::Int64);
    }

    #[test]
    fn a_broken_line_is_an_error_that_names_it() {
        let error = read_all("a.csv", "a,b\n1,2\n3\n", None).unwrap_err().to_string();
        assert!(error.contains("line") || error.contains("fields"), "{error}");
        assert!(kind_of(Path::new("x.bin")).is_none());
    }
}
