//! `lattice backup` and `lattice restore`.
//!
//! A backup is taken by the process that has the database open: a running server is asked with `BACKUP TO 'url'` over
//! the wire, like any client does; the folder of a stopped server (`--data`) is opened here. A restore is done here
//! always.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use indicatif::{ProgressBar, ProgressStyle};
use storage::{BackupReport, OnProgress, Store};

use crate::cli::ServeArgs;
use crate::client::{Client, ConnectArgs};
use crate::words::{counted, size};
use crate::{config, serve};

/// `lattice backup`
#[derive(Clone, Debug, clap::Args)]
pub struct BackupArgs {
    /// Where to: a folder on the server's machine, or s3://bucket/prefix (with the AWS_* variables of the server)
    url: String,
    /// Folder of the database of a stopped server; without it, a running server is asked
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Configuration file of that database (TOML)
    #[arg(long, env = "LATTICE_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// With --data: any key of the configuration, such as storage.columns=s3://bucket/prefix; may be given several
    /// times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// `lattice restore`
#[derive(Clone, Debug, clap::Args)]
pub struct RestoreArgs {
    /// Where the backup lies: a folder, or s3://bucket/prefix (with the usual AWS_* variables)
    url: String,
    /// Folder of the new database; it must be empty or not exist
    #[arg(long, value_name = "DIR", required_unless_present = "verify")]
    data: Option<String>,
    /// Read all of the backup and compare it with its checksums, and restore nothing
    #[arg(long, conflicts_with = "data")]
    verify: bool,
    /// Configuration file of the new database (TOML)
    #[arg(long, env = "LATTICE_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// Any key of the configuration, such as storage.columns=s3://bucket/prefix for an empty location there
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs `lattice backup`.
pub async fn backup(args: BackupArgs) -> ExitCode {
    let done = match &args.data {
        Some(data) => offline(&args, data).await,
        None => online(&args).await,
    };
    finish("backup", done)
}

/// Runs `lattice restore`.
pub async fn restore(args: RestoreArgs) -> ExitCode {
    finish("restore", restored(&args).await)
}

fn finish(command: &str, done: Result<String, String>) -> ExitCode {
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("lattice {command}: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Asks the running server.
async fn online(args: &BackupArgs) -> Result<String, String> {
    let url = absolute(&args.url)?;
    let started = Instant::now();
    let mut client = Client::connect(&args.connect).await.map_err(|error| error.to_string())?;
    let bar = spinner(format!("{} backs up to {url}", client.uri()));
    let answer = client.rows(&format!("BACKUP TO '{}'", url.replace('\'', "''"))).await;
    bar.finish_and_clear();
    client.close().await;
    let (_, batches) = answer.map_err(|error| error.to_string())?;
    let batch = batches
        .iter()
        .find(|batch| batch.num_rows() == 1 && batch.num_columns() >= 5)
        .ok_or("the server did not say what it did")?;
    let number = |at: usize| {
        batch.column(at).as_primitive_opt::<Int64Type>().and_then(|values| u64::try_from(values.value(0)).ok())
    };
    let at = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>().map(|values| values.value(0));
    let report = || {
        Some(BackupReport {
            at: base::CommitTs(at?),
            objects: number(1)?,
            bytes: number(2)?,
            copied_objects: number(3)?,
            copied_bytes: number(4)?,
        })
    };
    let report = report().ok_or("the server's answer has another form: is it of another version?")?;
    Ok(backed_up(&url, &report, started.elapsed()))
}

/// Opens the folder of a stopped server.
async fn offline(args: &BackupArgs, data: &str) -> Result<String, String> {
    let url = absolute(&args.url)?;
    let config = settings(data, args.config.clone(), args.set.clone())?;
    if !Path::new(data).is_dir() {
        return Err(format!("{data} is not a folder: name the database with --data"));
    }
    let started = Instant::now();
    let store = serve::open_store(&config)
        .await
        .map_err(|error| format!("{error}\nHINT: leave --data out to ask the server that has it open"))?;
    let (bar, progress) = bar();
    let report = store.backup(&url, progress).await;
    bar.finish_and_clear();
    let closed = store.shutdown().await;
    let report = report.map_err(|error| serve::describe(&error))?;
    closed.map_err(|error| serve::describe(&error))?;
    Ok(backed_up(&url, &report, started.elapsed()))
}

async fn restored(args: &RestoreArgs) -> Result<String, String> {
    let url = absolute(&args.url)?;
    let started = Instant::now();
    let runtime = runtime::Runtime::real();
    let (bar, progress) = bar();
    let seconds = || started.elapsed().as_secs_f64();
    match &args.data {
        None => {
            let report = Store::verify_backup(&runtime, &url, progress).await;
            bar.finish_and_clear();
            let report = report.map_err(|error| serve::describe(&error))?;
            Ok(format!(
                "The backup at {url} is sound: everything up to {}, {} in {}, read in {:.1} s.",
                moment(report.at),
                size(report.bytes),
                counted(report.objects, "file"),
                seconds()
            ))
        }
        Some(data) => {
            let config = settings(data, args.config.clone(), args.set.clone())?;
            let report = Store::restore(&runtime, &url, &serve::store_options(&config), progress).await;
            bar.finish_and_clear();
            let report = report.map_err(|error| serve::describe(&error))?;
            Ok(format!(
                "Restored {data}: everything up to {}, {} in {}, in {:.1} s.\nStart it with: lattice serve --data {data}",
                moment(report.at),
                size(report.bytes),
                counted(report.objects, "file"),
                seconds()
            ))
        }
    }
}

fn settings(data: &str, config: Option<std::path::PathBuf>, set: Vec<String>) -> Result<config::Config, String> {
    let args = ServeArgs { config, data: Some(data.to_owned()), set, ..ServeArgs::default() };
    args.load().map_err(|error| error.to_string())
}

fn backed_up(url: &str, report: &BackupReport, took: Duration) -> String {
    format!(
        "Backed up to {url}: everything up to {}, {} in {} (new: {} in {}), in {:.1} s.",
        moment(report.at),
        size(report.bytes),
        counted(report.objects, "file"),
        size(report.copied_bytes),
        counted(report.copied_objects, "file"),
        took.as_secs_f64()
    )
}

/// A folder with its whole path, since the server runs elsewhere; a URL as it is.
fn absolute(url: &str) -> Result<String, String> {
    if url.contains("://") {
        return Ok(url.to_owned());
    }
    let path = std::path::absolute(url).map_err(|error| format!("`{url}` is not a place: {error}"))?;
    path.into_os_string().into_string().map_err(|_| format!("`{url}` is not UTF-8"))
}

fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows files and bytes; where nobody watches, a line now and then.
fn bar() -> (ProgressBar, OnProgress) {
    const LINE_EVERY: Duration = Duration::from_secs(2);
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} files  {msg}  {elapsed}") {
        bar.set_style(style);
    }
    let (shown, watched) = (bar.clone(), std::io::stderr().is_terminal());
    let told = parking_lot::Mutex::new(Instant::now());
    let progress: OnProgress = Arc::new(move |progress| {
        shown.set_length(progress.objects_total);
        shown.set_position(progress.objects);
        shown.set_message(size(progress.bytes));
        let mut told = told.lock();
        if !watched && told.elapsed() >= LINE_EVERY {
            *told = Instant::now();
            eprintln!("{} of {}, {}", progress.objects, counted(progress.objects_total, "file"), size(progress.bytes));
        }
    });
    (bar, progress)
}

/// A commit's moment as `AS OF` takes it.
fn moment(at: base::CommitTs) -> String {
    arrow::temporal_conversions::timestamp_us_to_datetime(at.0)
        .map_or_else(|| at.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string())
}
