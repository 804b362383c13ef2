//! `lattice measure`: statements for the benchmarks in `benches/`, from a client that costs little itself.
//!
//! Opens a database in this process, or with `--at` connects to a server, and answers commands from standard input, one a
//! line, on standard output:
//!
//! | command | answer |
//! |---|---|
//! | `run SQL` | seconds, rows |
//! | `read CLIENTS SECONDS KEYS SQL` | reads in all, seconds of the median and of the 95th percentile; `$1` is a random key below KEYS |
//! | `write CLIENTS SECONDS SQL` | the same of writes; `$1` is the client, `$2` a number it has not used, `$3` a text of sixty characters |
//!
//! Statements of `read` and `write` are prepared once per client, which has a session, and over the wire a connection, of
//! its own. A statement that fails ends the process: a measurement with an error in it is none.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use base::Principal;
use futures::TryStreamExt;
use sql::{Engine, Outcome, Params, PrepareOptions, Session, SessionOptions};
use storage::Store;

use crate::cli::ServeArgs;
use crate::client::{self, Client, ConnectArgs, Reply};
use crate::serve;

/// Flags of `lattice measure`.
#[derive(Debug, clap::Args)]
pub struct MeasureArgs {
    /// Measure a server over the wire instead of a database in this process
    #[arg(long)]
    at: Option<String>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Runs the command.
pub async fn run(args: &MeasureArgs) -> ExitCode {
    match measure(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("lattice measure: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured.
enum Subject {
    Engine(Engine, Store),
    Wire(ConnectArgs),
}

/// One client of it.
enum One {
    Engine(Session),
    Wire(Client),
}

/// A statement that a client has prepared.
enum Prepared {
    Engine(sql::Prepared),
    Wire(client::Prepared),
}

async fn measure(args: &MeasureArgs) -> Result<(), String> {
    let subject = match &args.at {
        Some(host) => Subject::Wire(ConnectArgs {
            host: host.clone(),
            user: "admin".to_owned(),
            password: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        }),
        None => {
            let config = args.serve.load().map_err(|error| error.to_string())?;
            let store = serve::open_store(&config).await?;
            let engine =
                Engine::open(store.clone(), serve::engine_options(&config)).await.map_err(|error| told(&error))?;
            Subject::Engine(engine, store)
        }
    };
    let mut main = subject.client().await?;
    println!("ready");
    for (round, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.map_err(|error| format!("standard input: {error}"))?;
        let answer = command(&subject, &mut main, line.trim(), round as i64).await?;
        println!("{answer}");
        std::io::stdout().flush().map_err(|error| format!("standard output: {error}"))?;
    }
    if let Subject::Engine(engine, store) = subject {
        engine.shutdown().await;
        store.shutdown().await.map_err(|error| told(&error))?;
    }
    Ok(())
}

fn told(error: &dyn std::error::Error) -> String {
    serve::describe(error)
}

async fn command(subject: &Subject, main: &mut One, line: &str, round: i64) -> Result<String, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = |text: &str| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
    match word {
        "run" => {
            let begun = Instant::now();
            let rows = main.run(rest).await.map_err(|error| format!("{rest}: {error}"))?;
            Ok(format!("{} {rows}", begun.elapsed().as_secs_f64()))
        }
        "read" => {
            let parts: Vec<&str> = rest.splitn(4, ' ').collect();
            let [clients, seconds, keys, sql] = parts.as_slice() else {
                return Err("write: read CLIENTS SECONDS KEYS SQL".to_owned());
            };
            let work = Work::Read { keys: number(keys)? as u64 };
            drive(subject, number(clients)? as u64, number(seconds)?, work, sql).await
        }
        "write" => {
            let parts: Vec<&str> = rest.splitn(3, ' ').collect();
            let [clients, seconds, sql] = parts.as_slice() else {
                return Err("write: write CLIENTS SECONDS SQL".to_owned());
            };
            drive(subject, number(clients)? as u64, number(seconds)?, Work::Write { round }, sql).await
        }
        other => Err(format!("unknown command {other:?}: run, read or write")),
    }
}

/// What every client does.
#[derive(Clone, Copy)]
enum Work {
    Read { keys: u64 },
    Write { round: i64 },
}

impl Subject {
    async fn client(&self) -> Result<One, String> {
        match self {
            Subject::Engine(engine, _) => {
                Ok(One::Engine(engine.session(Principal::admin(), SessionOptions::default())))
            }
            Subject::Wire(args) => Client::connect(args).await.map(One::Wire).map_err(|error| error.to_string()),
        }
    }
}

impl One {
    async fn run(&mut self, sql: &str) -> Result<usize, String> {
        match self {
            One::Engine(session) => {
                let mut count = 0;
                for outcome in session.run(sql).await.map_err(|error| told(&error))? {
                    count += rows_of(outcome).await?;
                }
                Ok(count)
            }
            One::Wire(client) => count(client.run(sql).await.map_err(|error| error.to_string())?).await,
        }
    }

    async fn prepare(&mut self, sql: &str) -> Result<Prepared, String> {
        match self {
            One::Engine(session) => {
                let prepared = session.prepare(sql, PrepareOptions::default()).await;
                prepared.map(Prepared::Engine).map_err(|error| told(&error))
            }
            One::Wire(client) => client.prepare(sql).await.map(Prepared::Wire).map_err(|error| error.to_string()),
        }
    }

    /// Runs a prepared statement; the number of rows it returned or changed.
    async fn execute(
        &mut self,
        prepared: &mut Prepared,
        values: Vec<(&str, ArrayRef)>,
        writes: bool,
    ) -> Result<usize, String> {
        match (self, prepared) {
            (One::Engine(session), Prepared::Engine(prepared)) => {
                let values = values.into_iter().map(|(_, value)| value).collect();
                let outcome = session.execute(prepared, Params::Positional(values), None).await;
                rows_of(outcome.map_err(|error| told(&error))?).await
            }
            (One::Wire(client), Prepared::Wire(prepared)) => {
                let values = RecordBatch::try_from_iter(values).map_err(|error| error.to_string())?;
                if writes {
                    let changed = client.update(prepared, values).await.map_err(|error| error.to_string())?;
                    return Ok(usize::try_from(changed).unwrap_or(usize::MAX));
                }
                count(client.query(prepared, values).await.map_err(|error| error.to_string())?).await
            }
            _ => Err("a statement of another client".to_owned()),
        }
    }
}

async fn rows_of(outcome: Outcome) -> Result<usize, String> {
    match outcome {
        Outcome::Rows(rows) => {
            let batches = rows.collect().await.map_err(|error| told(&error))?;
            Ok(batches.iter().map(RecordBatch::num_rows).sum())
        }
        Outcome::Affected { rows, .. } => Ok(usize::try_from(rows).unwrap_or(usize::MAX)),
        Outcome::Done { .. } => Ok(0),
    }
}

async fn count(reply: Reply) -> Result<usize, String> {
    match reply {
        Reply::Rows { mut batches, .. } => {
            let mut rows = 0;
            while let Some(batch) = batches.try_next().await.map_err(|error| error.to_string())? {
                rows += batch.num_rows();
            }
            Ok(rows)
        }
        Reply::Done { affected } => Ok(usize::try_from(affected.unwrap_or(0)).unwrap_or(usize::MAX)),
    }
}

async fn drive(subject: &Subject, clients: u64, seconds: f64, work: Work, sql: &str) -> Result<String, String> {
    let sql: Arc<str> = sql.into();
    let mut ready = Vec::new();
    for _ in 0..clients.max(1) {
        let mut client = subject.client().await?;
        let prepared = client.prepare(&sql).await.map_err(|error| format!("{sql}: {error}"))?;
        ready.push((client, prepared));
    }
    let span = Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..)
        .zip(ready)
        .map(|(number, (client, prepared))| tokio::spawn(one(client, prepared, number, span, work)))
        .collect();
    let mut latencies: Vec<f64> = Vec::new();
    for task in tasks {
        let own = task.await.map_err(|error| error.to_string())?;
        latencies.extend(own.map_err(|error| format!("{sql}: {error}"))?);
    }
    latencies.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    Ok(format!("{} {} {}", latencies.len(), at(0.5), at(0.95)))
}

async fn one(
    mut client: One,
    mut prepared: Prepared,
    number: i64,
    span: Duration,
    work: Work,
) -> Result<Vec<f64>, String> {
    let (mut latencies, mut state, mut written) = (Vec::new(), number as u64, 0);
    let text: ArrayRef =
        Arc::new(StringArray::from(vec!["a row of ordinary length, about sixty characters of text here"]));
    let whole = |value: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let started = Instant::now();
    while started.elapsed() < span {
        let (values, writes) = match work {
            Work::Read { keys } => {
                // SplitMix64 (Steele, Lea and Flood, 2014): the same keys in every run.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (vec![("$1", whole(((mixed ^ (mixed >> 31)) % keys.max(1)) as i64))], false)
            }
            Work::Write { round } => {
                written += 1;
                let unused = (round << 32) | written;
                (vec![("$1", whole(number)), ("$2", whole(unused)), ("$3", Arc::clone(&text))], true)
            }
        };
        let begun = Instant::now();
        let rows = client.execute(&mut prepared, values, writes).await?;
        latencies.push(begun.elapsed().as_secs_f64());
        if rows != 1 {
            return Err(format!("{rows} rows where one is expected"));
        }
    }
    Ok(latencies)
}
