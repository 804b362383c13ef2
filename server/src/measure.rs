//! `lattice measure`: the engine without the wire, for the benchmarks in `benches/`.
//!
//! Opens a database in this process and answers commands from standard input, one a line, on standard output:
//!
//! | command | answer |
//! |---|---|
//! | `run SQL` | seconds, rows |
//! | `read CLIENTS SECONDS KEYS SQL` | reads in all, seconds of the median and of the 95th percentile; `$1` is a random key below KEYS |
//!
//! A statement that fails ends the process: a measurement with an error in it is none.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array};
use base::Principal;
use futures::TryStreamExt;
use sql::{Engine, Outcome, Params, PrepareOptions, Session, SessionOptions};

use crate::cli::ServeArgs;
use crate::serve;

/// Runs the command.
pub async fn run(args: &ServeArgs) -> ExitCode {
    match measure(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("lattice measure: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &ServeArgs) -> Result<(), String> {
    let config = args.load().map_err(|error| error.to_string())?;
    let store = serve::open_store(&config).await?;
    let engine =
        Engine::open(store.clone(), serve::engine_options(&config)).await.map_err(|error| serve::describe(&error))?;
    let session = engine.session(Principal::admin(), SessionOptions::default());
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| format!("standard input: {error}"))?;
        let answer = command(&engine, &session, line.trim()).await?;
        println!("{answer}");
        std::io::stdout().flush().map_err(|error| format!("standard output: {error}"))?;
    }
    engine.shutdown().await;
    store.shutdown().await.map_err(|error| serve::describe(&error))
}

async fn command(engine: &Engine, session: &Session, line: &str) -> Result<String, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "run" => {
            let begun = Instant::now();
            let rows = run_all(session, rest).await.map_err(|error| format!("{rest}: {}", serve::describe(&error)))?;
            Ok(format!("{} {rows}", begun.elapsed().as_secs_f64()))
        }
        "read" => {
            let parts: Vec<&str> = rest.splitn(4, ' ').collect();
            let [clients, seconds, keys, sql] = parts.as_slice() else {
                return Err("write: read CLIENTS SECONDS KEYS SQL".to_owned());
            };
            let number = |text: &str| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
            let (clients, seconds, keys) = (number(clients)? as u64, number(seconds)?, number(keys)? as u64);
            read(engine, clients.max(1), Duration::from_secs_f64(seconds), keys.max(1), sql).await
        }
        other => Err(format!("unknown command {other:?}: run or read")),
    }
}

async fn run_all(session: &Session, sql: &str) -> Result<usize, sql::Error> {
    let mut count = 0;
    for outcome in session.run(sql).await? {
        if let Outcome::Rows(mut rows) = outcome {
            while let Some(batch) = rows.stream.try_next().await? {
                count += batch.num_rows();
            }
        }
    }
    Ok(count)
}

async fn read(engine: &Engine, clients: u64, span: Duration, keys: u64, sql: &str) -> Result<String, String> {
    let sql: Arc<str> = sql.into();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let session = engine.session(Principal::admin(), SessionOptions::default());
            tokio::spawn(one_reader(session, client, span, keys, Arc::clone(&sql)))
        })
        .collect();
    let mut latencies: Vec<f64> = Vec::new();
    for task in tasks {
        let own = task.await.map_err(|error| error.to_string())?;
        latencies.extend(own.map_err(|error| format!("{sql}: {}", serve::describe(&error)))?);
    }
    latencies.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
    Ok(format!("{} {} {}", latencies.len(), at(0.5), at(0.95)))
}

async fn one_reader(session: Session, client: u64, span: Duration, keys: u64, sql: Arc<str>) -> Result<Vec<f64>, sql::Error> {
    let prepared = session.prepare(&sql, PrepareOptions::default()).await?;
    let (mut latencies, mut state) = (Vec::new(), client);
    let started = Instant::now();
    while started.elapsed() < span {
        // SplitMix64 (Steele, Lea and Flood, 2014): the same keys in every run.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let key = ((mixed ^ (mixed >> 31)) % keys) as i64;
        let begun = Instant::now();
        let key: ArrayRef = Arc::new(Int64Array::from(vec![key]));
        if let Outcome::Rows(rows) = session.execute(&prepared, Params::Positional(vec![key]), None).await? {
            let found: usize = rows.collect().await?.iter().map(|batch| batch.num_rows()).sum();
            if found != 1 {
                return Err(sql::Error::internal(format!("{found} rows for a key")));
            }
        }
        latencies.push(begun.elapsed().as_secs_f64());
    }
    Ok(latencies)
}
