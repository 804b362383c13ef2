//! Runs SQL golden files: the same file in several configurations, with the same answers in all of them.
//!
//! # How it works
//! A file is parsed by `sqllogictest`; the walk over its records is ours, because a configuration acts between them:
//!
//! | configuration | after each statement |
//! |---|---|
//! | `rows_only` | nothing: every row stays in the row tier |
//! | `columns_only` | everything is flushed to the column tier |
//! | `mixed` | a flush, or none, by a seed made from the file's name |
//! | `restart` | the database is closed and opened again, unless a session holds state that only a session can |
//! | `over_flight` | nothing; statements travel over Flight SQL instead of a function call |
//!
//! Each file has a database of its own. `connection NAME` opens a second session. `let x` keeps a value, `${x}` uses it.
//! An error expectation is a SQLSTATE in parentheses, or a pattern that must be found in `SQLSTATE: message`.
//!
//! # Not here
//! Hashes of results, system commands and includes: no file of ours needs them.

mod database;
mod text;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use database::{Configuration, Database, Failure, Output};
use sqllogictest::{
    Condition, Connection, Control, DefaultColumnType, ExpectedError, QueryExpect, Record, SortMode, StatementExpect,
};

/// Files that run at once.
const PARALLEL_MAX: usize = 2;
/// No statement of a golden file takes longer.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Parser)]
struct Args {
    /// Files or folders; the whole suite when none is given
    paths: Vec<PathBuf>,
    /// Run only this configuration; may be given several times
    #[arg(long, value_enum)]
    config: Vec<Configuration>,
    /// Write the answers that were found into the files, instead of comparing
    #[arg(long)]
    bless: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Not the path it was compiled under: clones of the repository may share a target folder.
    let suite = PathBuf::from("tests/slt/suite");
    if !suite.is_dir() {
        eprintln!("{} is not here: run slt in the root of the repository", suite.display());
        return ExitCode::FAILURE;
    }
    let mut files = Vec::new();
    for path in if args.paths.is_empty() { vec![suite.clone()] } else { args.paths.clone() } {
        collect(&path, &mut files);
    }
    files.sort();
    if files.is_empty() {
        eprintln!("no .slt files found");
        return ExitCode::FAILURE;
    }
    let configurations = match (args.config.as_slice(), args.bless) {
        // The answers of one configuration are written; the others must agree with them afterwards.
        ([], true) => vec![Configuration::RowsOnly],
        ([], false) => Configuration::ALL.to_vec(),
        (chosen, _) => chosen.to_vec(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build();
    match runtime {
        Ok(runtime) => runtime.block_on(run_all(files, configurations, args.bless, &suite)),
        Err(error) => {
            eprintln!("threads cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            collect(&entry.path(), files);
        }
    } else if path.extension().is_some_and(|extension| extension == "slt") {
        files.push(path.to_owned());
    }
}

async fn run_all(files: Vec<PathBuf>, configurations: Vec<Configuration>, bless: bool, suite: &Path) -> ExitCode {
    let started = Instant::now();
    let permits = Arc::new(tokio::sync::Semaphore::new(PARALLEL_MAX));
    let mut tasks = Vec::new();
    for file in files {
        for configuration in &configurations {
            let (file, configuration, permits) = (file.clone(), *configuration, Arc::clone(&permits));
            tasks.push(tokio::spawn(async move {
                // The semaphore is never closed.
                let _permit = permits.acquire_owned().await;
                let began = Instant::now();
                let outcome = run_file(&file, configuration, bless).await;
                (file, configuration, outcome, began.elapsed())
            }));
        }
    }
    let (mut passed, mut failed, mut records) = (0, 0, 0);
    for task in tasks {
        let (file, configuration, outcome, took) = match task.await {
            Ok(done) => done,
            Err(error) => {
                println!("FAILED a task: {error}");
                failed += 1;
                continue;
            }
        };
        let shown = file.strip_prefix(suite).unwrap_or(&file).display();
        match outcome {
            Ok(count) => {
                passed += 1;
                records += count;
                if took > Duration::from_secs(20) {
                    println!("slow: {shown} [{configuration}] took {:.0} s", took.as_secs_f64());
                }
            }
            Err(faults) => {
                failed += 1;
                println!("FAILED {shown} [{configuration}]");
                for fault in faults {
                    println!("{}\n", fault.trim_end());
                }
            }
        }
    }
    println!("{records} records in {:.0} s", started.elapsed().as_secs_f64());
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Faults shown of one file; after a wrong answer the rest usually follows from it.
const FAULTS_MAX: usize = 5;

type Parsed = Record<DefaultColumnType>;

/// Runs one file in one configuration; the number of records, or what was wrong.
async fn run_file(path: &Path, configuration: Configuration, bless: bool) -> Result<usize, Vec<String>> {
    let mut records: Vec<Parsed> =
        sqllogictest::parse_file(path).map_err(|error| vec![format!("the file cannot be parsed: {error}")])?;
    let mut database = Database::open(configuration, seed(path)).await.map_err(|error| vec![format!("{error:#}")])?;
    let mut variables: HashMap<String, String> = HashMap::new();
    let mut sort = SortMode::NoSort;
    let mut faults = Vec::new();
    let mut count = 0;
    let mut blessed: Vec<(usize, Parsed)> = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let outcome = match record {
            Record::Statement { conditions, connection, sql, expected, .. } => {
                if skipped(conditions, configuration) {
                    continue;
                }
                let (name, sql) = (name_of(connection), substitute(sql, &variables));
                let found = run(&mut database, name, &sql).await;
                if bless && let (StatementExpect::Count(_), Ok(output)) = (expected, &found) {
                    let mut new = record.clone();
                    if let Record::Statement { expected, .. } = &mut new {
                        *expected = StatementExpect::Count(output.affected);
                    }
                    blessed.push((index, new));
                    continue;
                }
                check_statement(expected, found)
            }
            Record::Query { conditions, connection, sql, expected, .. } => {
                if skipped(conditions, configuration) {
                    continue;
                }
                let (name, sql) = (name_of(connection), substitute(sql, &variables));
                let found = run(&mut database, name, &sql).await;
                if bless && let (QueryExpect::Results { sort_mode, .. }, Ok(output)) = (expected, &found) {
                    let lines = lines(output, sort_mode.unwrap_or(sort));
                    let mut new = record.clone();
                    if let Record::Query { expected: QueryExpect::Results { results, .. }, .. } = &mut new {
                        *results = lines;
                    }
                    blessed.push((index, new));
                    continue;
                }
                check_query(expected, found, sort)
            }
            Record::Let { conditions, connection, variables: names, sql, .. } => {
                if skipped(conditions, configuration) {
                    continue;
                }
                let sql = substitute(sql, &variables);
                match run(&mut database, name_of(connection), &sql).await {
                    Ok(output) if output.rows.len() == 1 && output.rows[0].len() == names.len() => {
                        variables.extend(names.iter().cloned().zip(output.rows[0].iter().cloned()));
                        Ok(())
                    }
                    Ok(output) => Err(format!("let wants one row of {} values, found {:?}", names.len(), output.rows)),
                    Err(failure) => Err(format!("let failed: {failure}")),
                }
            }
            Record::Sleep { duration, .. } => {
                tokio::time::sleep(*duration).await;
                Ok(())
            }
            Record::Control(Control::SortMode(mode)) => {
                sort = *mode;
                Ok(())
            }
            Record::Halt { .. } => break,
            _ => continue,
        };
        count += 1;
        if let Err(fault) = outcome {
            faults.push(format!("  {}\n{}", place(record), indent(&fault)));
            if faults.len() >= FAULTS_MAX {
                break;
            }
        }
    }
    if let Err(error) = database.close().await {
        faults.push(format!("  at the end: {error:#}"));
    }
    if bless && faults.is_empty() && !blessed.is_empty() {
        for (index, record) in blessed {
            records[index] = record;
        }
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        let text = format!("{}\n", text.trim_end());
        std::fs::write(path, text).map_err(|error| vec![format!("{}: {error}", path.display())])?;
    }
    if faults.is_empty() { Ok(count) } else { Err(faults) }
}

async fn run(database: &mut Database, name: &str, sql: &str) -> Result<Output, Failure> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, database.run(name, sql)).await {
        Ok(found) => found,
        Err(_) => Err(Failure::new("57014", format!("no answer within {} s", STATEMENT_TIMEOUT.as_secs()))),
    }
}

fn check_statement(expected: &StatementExpect, found: Result<Output, Failure>) -> Result<(), String> {
    match (expected, found) {
        (StatementExpect::Ok, Ok(_)) => Ok(()),
        (StatementExpect::Count(count), Ok(output)) if output.affected == *count => Ok(()),
        (StatementExpect::Count(count), Ok(output)) => {
            Err(format!("expected {count} changed rows, found {}", output.affected))
        }
        (StatementExpect::Ok | StatementExpect::Count(_), Err(failure)) => Err(format!("failed: {failure}")),
        (StatementExpect::Error(expected), found) => check_error(expected, found),
    }
}

fn check_query(
    expected: &QueryExpect<DefaultColumnType>,
    found: Result<Output, Failure>,
    sort: SortMode,
) -> Result<(), String> {
    match expected {
        QueryExpect::Error(expected) => check_error(expected, found),
        QueryExpect::Results { types, sort_mode, results, .. } => {
            let output = found.map_err(|failure| format!("failed: {failure}"))?;
            if !types.is_empty() && output.columns != types.len() {
                return Err(format!("expected {} columns, found {}", types.len(), output.columns));
            }
            let actual = lines(&output, sort_mode.unwrap_or(sort));
            let mut wanted: Vec<String> = results.iter().map(|line| squeeze(line)).collect();
            if sort_mode.unwrap_or(sort) == SortMode::RowSort {
                wanted.sort();
            }
            let same = actual.len() == wanted.len()
                && actual.iter().zip(&wanted).all(|(actual, wanted)| matches(&squeeze(actual), wanted));
            if same {
                return Ok(());
            }
            Err(format!("expected:\n{}\nfound:\n{}", indent(&wanted.join("\n")), indent(&actual.join("\n"))))
        }
    }
}

/// `<slt:ignore>` stands for any text within a line.
fn matches(actual: &str, wanted: &str) -> bool {
    let mut parts = wanted.split("<slt:ignore>");
    let Some(rest) = actual.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn check_error(expected: &ExpectedError, found: Result<Output, Failure>) -> Result<(), String> {
    match found {
        Ok(_) => Err(format!("expected an error {expected}, but it succeeded")),
        Err(failure) => {
            if expected.is_match(&failure.to_string(), Some(&failure.sqlstate)) {
                Ok(())
            } else {
                Err(format!("expected an error {expected}, found {failure}"))
            }
        }
    }
}

fn lines(output: &Output, sort: SortMode) -> Vec<String> {
    let mut lines: Vec<String> = output.rows.iter().map(|row| squeeze(&row.join(" "))).collect();
    match sort {
        SortMode::NoSort => {}
        SortMode::RowSort => lines.sort(),
        SortMode::ValueSort => {
            lines = output.rows.iter().flatten().cloned().collect();
            lines.sort();
        }
    }
    lines
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn substitute(sql: &str, variables: &HashMap<String, String>) -> String {
    variables.iter().fold(sql.to_owned(), |sql, (name, value)| sql.replace(&format!("${{{name}}}"), value))
}

fn skipped(conditions: &[Condition], configuration: Configuration) -> bool {
    let label = configuration.to_string();
    conditions.iter().any(|condition| match condition {
        Condition::OnlyIf { label: only } => *only != label,
        Condition::SkipIf { label: skip } => *skip == label,
    })
}

fn name_of(connection: &Connection) -> &str {
    match connection {
        Connection::Default => "default",
        Connection::Named(name) => name,
    }
}

fn place(record: &Parsed) -> String {
    match record {
        Record::Statement { loc, sql, .. } | Record::Query { loc, sql, .. } | Record::Let { loc, sql, .. } => {
            format!("line {}: {}", loc.line(), sql.trim())
        }
        _ => String::new(),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// The same file always runs with the same flushes.
fn seed(path: &Path) -> u64 {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignore_mark_stands_for_any_text() {
        assert!(matches("a 17 b", "a <slt:ignore> b"));
        assert!(matches("a b", "a b"));
        assert!(!matches("a b c", "a b"));
        assert!(!matches("x 17 b", "a <slt:ignore> b"));
        assert!(matches("x=1 y=2 z", "x=<slt:ignore> y=<slt:ignore> z"));
    }

    #[test]
    fn every_file_of_the_suite_parses() {
        let mut files = Vec::new();
        // Cargo runs tests in the folder of their package.
        collect(Path::new("suite"), &mut files);
        assert!(files.len() > 10);
        for file in files {
            let parsed: Result<Vec<Parsed>, _> = sqllogictest::parse_file(&file);
            assert!(parsed.is_ok(), "{}: {:?}", file.display(), parsed.err());
        }
    }
}
