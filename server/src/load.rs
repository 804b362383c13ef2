//! `lattice load`: reads files here and streams them to the server as one bulk ingest per file.
//!
//! The files never have to be visible to the server. One thread reads and decodes; the connection sends; a bounded
//! channel between them keeps memory flat.
//!
//! A file is loaded as a whole or not at all. The end of the stream of a load is what the server takes for its success, so
//! a stream whose file turns out to be wrong must not end: it is broken off, and the server rolls back what has come.
//! Test: `tests/server/test_tools.py::test_a_wrong_file_loads_nothing`.

mod blame;
mod read;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{mpsc, oneshot};

use self::read::Source;
use crate::client::{Client, ConnectArgs};
use crate::names;
use crate::words::counted;

/// Decoded batches that may wait for the network.
const QUEUED_BATCHES_MAX: usize = 4;

/// `lattice load`
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Parquet, CSV (with a header line) or JSON lines files; `-` reads standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Table to load into, `name` or `schema.name`, with quotes as in SQL: '"My Table"'; made from the first file when
    /// it does not exist
    #[arg(long, short)]
    table: String,
    /// Kind of file, when the name does not tell
    #[arg(long, value_enum)]
    format: Option<FileKind>,
    /// Fail when the table does not exist
    #[arg(long)]
    no_create: bool,
    /// Character between CSV values; `tab` or `\t` for a tab [default: a comma, a tab for .tsv]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    delimiter: Option<u8>,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" | "tab" | "TAB" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
            _ => Err("write one ASCII character, such as ; or |, or the word tab".to_owned()),
        },
    }
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
    let mut parts = names::path(&args.table)?;
    if parts.len() > 2 {
        return Err(format!("`{}`: write name or schema.name", args.table));
    }
    let table = parts.pop().unwrap_or_default();
    let schema = parts.pop();
    let mut spooled = None;
    let mut sources = Vec::new();
    for path in &args.files {
        let from_stdin = path == Path::new("-");
        let shown = if from_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let kind = args
            .format
            .or_else(|| kind_of(path))
            .ok_or_else(|| format!("cannot tell what {shown} holds: give --format parquet, csv or json"))?;
        let unreadable = |error: std::io::Error| format!("cannot read {shown}: {error}");
        let path = if from_stdin {
            if spooled.is_some() {
                return Err("standard input can be loaded once: give `-` once".to_owned());
            }
            spooled.insert(Spooled::new().map_err(unreadable)?).path.clone()
        } else {
            path.clone()
        };
        let size = std::fs::metadata(&path).map_err(unreadable)?.len();
        sources.push((Source { path, shown, kind, delimiter: args.delimiter }, size));
    }
    let mut client = Client::connect(&args.connect).await.map_err(|error| error.to_string())?;
    let total: u64 = sources.iter().map(|(_, size)| size).sum();
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
    ) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let started = Instant::now();
    let sources = sources.into_iter().map(|(source, _)| source).collect();
    let loaded = all(&mut client, sources, schema, &table, !args.no_create, &bar).await;
    client.close().await;
    let rows = loaded.inspect_err(|_| bar.abandon())?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64().max(1e-3);
    #[allow(clippy::cast_precision_loss, reason = "shown to people")]
    let rate = rows as f64 / seconds;
    println!("{} loaded into {} in {seconds:.2} s ({rate:.0} rows/s)", counted(rows, "row"), args.table);
    Ok(())
}

/// Loads the files one after the other; the number of rows.
async fn all(
    client: &mut Client,
    sources: Vec<Source>,
    schema: Option<String>,
    table: &str,
    create: bool,
    bar: &ProgressBar,
) -> Result<u64, String> {
    let mut target = existing(client, schema.as_deref(), table).await?;
    let mut rows = 0;
    for (at, source) in sources.into_iter().enumerate() {
        bar.set_message(source.path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let shown = source.shown.clone();
        let done = one(client, source, schema.clone(), table.to_owned(), create, target.as_ref(), bar).await;
        let loaded = done.map_err(|message| match at {
            0 => message,
            _ => format!("{message}\nThe files before it are loaded: {}.", counted(rows, "row")),
        })?;
        match loaded {
            Some(loaded) => rows += loaded,
            None => bar.suspend(|| eprintln!("lattice load: {shown} has no rows")),
        }
        if target.is_none() {
            target = existing(client, schema.as_deref(), table).await?;
        }
    }
    Ok(rows)
}

/// Loads one file; `None` when it has no rows.
async fn one(
    client: &mut Client,
    source: Source,
    schema: Option<String>,
    table: String,
    create: bool,
    target: Option<&SchemaRef>,
    bar: &ProgressBar,
) -> Result<Option<u64>, String> {
    let (sender, mut receiver) = mpsc::channel(QUEUED_BATCHES_MAX);
    let shown = source.shown.clone();
    let (progress, target) = (bar.clone(), target.cloned());
    let reader = tokio::task::spawn_blocking(move || {
        // A closed channel means that the server refused; its error says more than ours.
        read::read(&source, target.as_ref(), &progress, |batch| sender.blocking_send(batch).is_ok())
    });
    let ended = async move {
        match reader.await {
            Ok(outcome) => outcome,
            Err(panic) => Err(format!("reading stopped: {panic}")),
        }
    };
    let Some(first) = receiver.recv().await else { return ended.await.map(|()| None) };
    let (fail, failed) = oneshot::channel();
    let state = Sending { first: Some(first), receiver, ended: Box::pin(ended), fail: Some(fail) };
    let batches = stream::unfold(state, |mut state| async move {
        if let Some(first) = state.first.take() {
            return Some((Ok(first), state));
        }
        match state.receiver.recv().await {
            Some(batch) => Some((Ok(batch), state)),
            None => match state.ended.as_mut().await {
                Ok(()) => None,
                Err(message) => {
                    if let Some(fail) = state.fail.take() {
                        // Nobody listens any more when the server has refused the load already.
                        let _refused = fail.send(message);
                    }
                    std::future::pending().await
                }
            },
        }
    });
    tokio::select! {
        outcome = client.ingest(schema, table, create, batches) => {
            outcome.map(Some).map_err(|error| format!("{shown}: {error}"))
        }
        Ok(message) = failed => Err(message),
    }
}

/// The batches of a file on their way to the server.
struct Sending {
    first: Option<RecordBatch>,
    receiver: mpsc::Receiver<RecordBatch>,
    /// How the reader ended, once the channel is empty.
    ended: std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
    fail: Option<oneshot::Sender<String>>,
}

/// What came from standard input, as a file: types are guessed from its beginning, and Parquet is read from its end.
struct Spooled {
    path: PathBuf,
}

impl Spooled {
    fn new() -> std::io::Result<Self> {
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("lattice-load-{}-{}", std::process::id(), started.as_nanos());
        let path = std::env::temp_dir().join(name);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let spooled = Self { path };
        std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
        Ok(spooled)
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // A temporary file that stays is the business of whoever clears the folder.
        let _gone = std::fs::remove_file(&self.path);
    }
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
    let quoted = names::always_quoted;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood() {
        for (text, byte) in [(";", b';'), ("\\t", b'\t'), ("tab", b'\t'), ("\t", b'\t'), ("|", b'|')] {
            assert_eq!(delimiter(text), Ok(byte), "{text}");
        }
        for wrong in ["", ";;", "ä", "\""] {
            assert!(delimiter(wrong).is_err(), "{wrong}");
        }
        assert!(kind_of(Path::new("x.bin")).is_none() && kind_of(Path::new("-")).is_none());
        assert_eq!(kind_of(Path::new("a.TSV")), Some(FileKind::Csv));
    }
}
