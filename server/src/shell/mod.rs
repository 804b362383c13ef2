//! `lattice sql`: a shell over Flight SQL.
//!
//! Statements may span lines and end with a semicolon; lines that start with a backslash are commands to the shell.
//! With `-c`, `-f` or input from a pipe it runs what it is given and stops at the first error with exit code 1.

mod print;
mod split;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use futures::TryStreamExt;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};

pub use print::{Format, Printer};
pub use split::{is_blank, split};

use crate::client::{Client, ClientError, ConnectArgs, Reply};

/// `lattice sql`
#[derive(Clone, Debug, clap::Args)]
pub struct SqlArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Run these statements and stop; may be given several times
    #[arg(long, short)]
    command: Vec<String>,
    /// Run the statements of this file and stop; `-` reads standard input
    #[arg(long, short)]
    file: Vec<PathBuf>,
    /// How rows are written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Show how long each statement took
    #[arg(long)]
    timing: bool,
}

const HELP: &str = "\
Statements end with a semicolon and may span lines. Ctrl-C cancels a running statement, Ctrl-D leaves.

  \\d               tables, views and sequences        \\timing          show how long statements take
  \\d NAME          columns and keys of a table        \\x               one column per line
  \\dt  \\dv  \\dn    tables, views, schemas             \\format FORMAT   table, csv or json
  \\l               catalogs                           \\i FILE          run a file
  \\conninfo        where this shell is connected      \\q               leave
  \\?               this help
";

/// After this long a waiting user is told that the statement still runs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the shell.
pub async fn run(args: SqlArgs) -> ExitCode {
    let client = match Client::connect(&args.connect).await {
        Ok(client) => client,
        Err(error) => {
            report(&error);
            return ExitCode::from(2);
        }
    };
    let batch = !args.command.is_empty() || !args.file.is_empty() || !std::io::stdin().is_terminal();
    let mut shell = Shell {
        client,
        connect: args.connect,
        format: args.format,
        expanded: false,
        timing: args.timing || !batch,
        interactive: !batch,
    };
    let code = if batch { shell.batch(&args.command, &args.file).await } else { shell.converse().await };
    shell.client.close().await;
    code
}

#[derive(Debug)]
struct Shell {
    client: Client,
    connect: ConnectArgs,
    format: Format,
    expanded: bool,
    timing: bool,
    interactive: bool,
}

impl Shell {
    /// Runs commands and files, or what stands in standard input, until one fails.
    async fn batch(&mut self, commands: &[String], files: &[PathBuf]) -> ExitCode {
        for text in commands {
            if !self.script(text).await {
                return ExitCode::FAILURE;
            }
        }
        for path in files {
            if !self.file(path).await {
                return ExitCode::FAILURE;
            }
        }
        if commands.is_empty() && files.is_empty() && !self.file(Path::new("-")).await {
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    async fn converse(&mut self) -> ExitCode {
        say(&format!(
            "LatticeDB {} at {}. Type \\? for help, \\q to leave.\n",
            env!("CARGO_PKG_VERSION"),
            self.client.uri()
        ));
        let mut editor = match Editor::<Assist, _>::new() {
            Ok(editor) => editor,
            Err(error) => {
                complain(&format!("the terminal cannot be read: {error}"));
                return ExitCode::FAILURE;
            }
        };
        editor.set_helper(Some(Assist {}));
        let history = history_path();
        if let Some(path) = &history {
            // A missing file is a shell that was never used.
            let _missing = editor.load_history(path);
        }
        loop {
            match editor.readline("lattice=> ") {
                Ok(text) => {
                    let text = text.trim();
                    if text.is_empty() {
                        continue;
                    }
                    // A history that cannot grow is no reason to stop.
                    let _unsaved = editor.add_history_entry(text);
                    if text.starts_with('\\') {
                        match self.meta(text).await {
                            Meta::Quit => break,
                            Meta::Done(_) => {}
                        }
                    } else {
                        self.script(text).await;
                    }
                }
                Err(ReadlineError::Interrupted) => say("Type \\q or press Ctrl-D to leave.\n"),
                Err(ReadlineError::Eof) => break,
                Err(error) => {
                    complain(&format!("the terminal cannot be read: {error}"));
                    return ExitCode::FAILURE;
                }
            }
        }
        if let Some(path) = &history {
            if let Some(folder) = path.parent() {
                let _exists = std::fs::create_dir_all(folder);
            }
            if let Err(error) = editor.save_history(path) {
                complain(&format!("the history was not saved to {}: {error}", path.display()));
            }
        }
        ExitCode::SUCCESS
    }

    async fn file(&mut self, path: &Path) -> bool {
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        match text {
            Ok(text) => Box::pin(self.script(&text)).await,
            Err(error) => {
                complain(&format!("cannot read {}: {error}", path.display()));
                false
            }
        }
    }

    /// Runs statements (and, at line starts, shell commands) until one fails.
    async fn script(&mut self, text: &str) -> bool {
        let mut pending = String::new();
        for line in text.split_inclusive('\n') {
            if is_blank(&pending) && line.trim_start().starts_with('\\') {
                pending.clear();
                match self.meta(line.trim()).await {
                    Meta::Quit => return true,
                    Meta::Done(true) => {}
                    Meta::Done(false) => return false,
                }
                continue;
            }
            pending.push_str(line);
            let (statements, rest) = split(&pending);
            for statement in statements {
                if !self.statement(&statement).await {
                    return false;
                }
            }
            pending = rest;
        }
        is_blank(&pending) || self.statement(pending.trim()).await
    }

    /// Runs one statement and shows what it gave. `false` when it failed.
    async fn statement(&mut self, sql: &str) -> bool {
        let started = Instant::now();
        let waiting = Waiting::start(std::io::stderr().is_terminal());
        let outcome = tokio::select! {
            outcome = self.exchange(sql, &waiting) => outcome,
            _ = tokio::signal::ctrl_c() => {
                drop(waiting);
                complain("cancelled");
                return false;
            }
        };
        drop(waiting);
        match outcome {
            Ok(()) => {
                if self.timing {
                    eprint_line(&format!("Time: {}", human(started.elapsed())));
                }
                true
            }
            Err(error) => {
                report(&error);
                if error.is_disconnect()
                    && self.interactive
                    && let Ok(client) = Client::connect(&self.connect).await
                {
                    self.client = client;
                    complain("connected again; settings and open transactions of the old session are gone");
                }
                false
            }
        }
    }

    async fn exchange(&mut self, sql: &str, waiting: &Waiting) -> Result<(), ClientError> {
        match self.client.run(sql).await? {
            Reply::Rows { schema, mut batches } => {
                let mut buffer = std::io::BufWriter::new(std::io::stdout().lock());
                let mut printer = Printer::new(&mut buffer, schema, self.format, self.expanded);
                while let Some(batch) = batches.try_next().await? {
                    waiting.saw(batch.num_rows());
                    if printer.write(&batch).is_err() {
                        // The reader of our output has gone, as `| head` does.
                        std::process::exit(0);
                    }
                }
                waiting.hide();
                let Ok(rows) = printer.finish() else { std::process::exit(0) };
                if self.format == Format::Table {
                    let noun = if rows == 1 { "row" } else { "rows" };
                    let _closed = writeln!(buffer, "{rows} {noun}");
                }
                let _closed = buffer.flush();
            }
            Reply::Done { affected } => {
                waiting.hide();
                if self.format == Format::Table {
                    say(&format!("{}\n", tag(sql, affected)));
                }
            }
        }
        Ok(())
    }

    async fn meta(&mut self, line: &str) -> Meta {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let argument = words.collect::<Vec<_>>().join(" ");
        let argument = argument.trim_end_matches(';');
        let ok = match command {
            "\\q" | "\\quit" => return Meta::Quit,
            "\\?" | "\\h" | "\\help" => {
                say(HELP);
                true
            }
            "\\timing" => {
                self.timing = !self.timing;
                say(if self.timing { "Timing is on.\n" } else { "Timing is off.\n" });
                true
            }
            "\\x" => {
                self.expanded = !self.expanded;
                say(if self.expanded { "Expanded display is on.\n" } else { "Expanded display is off.\n" });
                true
            }
            "\\format" => match <Format as clap::ValueEnum>::from_str(argument, true) {
                Ok(format) => {
                    self.format = format;
                    true
                }
                Err(_) => {
                    complain("\\format wants table, csv or json");
                    false
                }
            },
            "\\conninfo" => {
                say(&format!("Connected to {} as {}.\n", self.client.uri(), self.connect.user));
                true
            }
            "\\i" => Box::pin(self.file(Path::new(argument))).await,
            "\\l" => {
                self.quietly("SELECT DISTINCT catalog_name AS catalog FROM information_schema.schemata ORDER BY 1")
                    .await
            }
            "\\dn" => self.quietly("SELECT schema_name AS schema FROM information_schema.schemata ORDER BY 1").await,
            "\\d" if !argument.is_empty() => self.describe(argument).await,
            "\\d" => self.tables(None).await,
            "\\dt" => self.tables(Some("BASE TABLE")).await,
            "\\dv" => self.tables(Some("VIEW")).await,
            other => {
                complain(&format!("unknown command {other}; \\? lists the commands"));
                false
            }
        };
        Meta::Done(ok)
    }

    async fn tables(&mut self, kind: Option<&str>) -> bool {
        let filter = kind.map(|kind| format!(" AND table_type = '{kind}'")).unwrap_or_default();
        self.quietly(&format!(
            "SELECT table_schema AS schema, table_name AS name, lower(table_type) AS type FROM information_schema.tables \
             WHERE table_schema NOT IN ('information_schema', 'lattice', 'pg_catalog'){filter} ORDER BY 1, 2"
        ))
        .await
    }

    async fn describe(&mut self, name: &str) -> bool {
        let parts: Vec<String> = name.split('.').map(fold).collect();
        let (schema, table) = match parts.as_slice() {
            [table] => (None, table),
            [schema, table] | [_, schema, table] => (Some(schema), table),
            _ => {
                complain(&format!("`{name}` is not a table name"));
                return false;
            }
        };
        let place = match schema {
            Some(schema) => format!("table_schema = {} AND table_name = {}", literal(schema), literal(table)),
            None => format!("table_name = {}", literal(table)),
        };
        let exists = self
            .client
            .rows(&format!("SELECT table_schema FROM information_schema.tables WHERE {place} LIMIT 1"))
            .await;
        match exists {
            Err(error) => {
                report(&error);
                return false;
            }
            Ok((_, batches)) if batches.iter().all(|batch| batch.num_rows() == 0) => {
                complain(&format!("there is no table or view named `{name}`; \\d lists them"));
                return false;
            }
            Ok(_) => {}
        }
        let shown = self
            .quietly(&format!(
                "SELECT column_name AS column, data_type AS type, CASE is_nullable WHEN 'NO' THEN 'not null' ELSE '' END AS nullable, \
                 coalesce(column_default, '') AS default FROM information_schema.columns WHERE {place} ORDER BY ordinal_position"
            ))
            .await;
        let keys = self
            .client
            .rows(&format!(
                "SELECT c.constraint_name, c.constraint_type, string_agg(k.column_name, ', ' ORDER BY k.ordinal_position) \
                 FROM information_schema.table_constraints c LEFT JOIN information_schema.key_column_usage k \
                 ON k.constraint_name = c.constraint_name AND k.table_name = c.table_name AND k.table_schema = c.table_schema \
                 WHERE c.{} GROUP BY 1, 2 ORDER BY 2, 1",
                place.replace(" AND table_name", " AND c.table_name")
            ))
            .await;
        if let Ok((_, batches)) = keys {
            for batch in batches {
                let text = |column: usize, row: usize| {
                    let column = arrow::compute::cast(batch.column(column), &arrow::datatypes::DataType::Utf8).ok();
                    column.map(|column| column.as_string::<i32>().value(row).to_owned()).unwrap_or_default()
                };
                for row in 0..batch.num_rows() {
                    let columns = text(2, row);
                    let columns = if columns.is_empty() { String::new() } else { format!(" ({columns})") };
                    say(&format!("{} {}{columns}\n", text(1, row).to_lowercase(), text(0, row)));
                }
            }
        }
        shown
    }

    /// Runs a statement of the shell's own, without timing.
    async fn quietly(&mut self, sql: &str) -> bool {
        let timing = std::mem::replace(&mut self.timing, false);
        let ok = self.statement(sql).await;
        self.timing = timing;
        ok
    }
}

enum Meta {
    Done(bool),
    Quit,
}

/// Shows on standard error, after [`PATIENCE`], that a statement still runs.
#[derive(Debug)]
struct Waiting {
    bar: indicatif::ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Waiting {
    fn start(visible: bool) -> Self {
        let bar = indicatif::ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::hidden());
        let task = visible.then(|| {
            let bar = bar.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                if let Ok(style) = indicatif::ProgressStyle::with_template(
                    "{spinner} running {elapsed}, {human_pos} rows received; Ctrl-C cancels",
                ) {
                    bar.set_style(style);
                }
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                bar.enable_steady_tick(Duration::from_millis(120));
            })
        });
        Self { bar, task }
    }

    fn saw(&self, rows: usize) {
        self.bar.inc(u64::try_from(rows).unwrap_or_default());
    }

    fn hide(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.hide();
    }
}

/// Keeps reading lines until the statement is complete.
struct Assist {}

impl Completer for Assist {
    type Candidate = String;
}

impl Hinter for Assist {
    type Hint = String;
}

impl Highlighter for Assist {}

impl Helper for Assist {}

impl Validator for Assist {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let complete = text.trim_start().starts_with('\\') || is_blank(&split(text).1);
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

fn history_path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LATTICE_HISTORY") {
        return (!path.is_empty()).then(|| PathBuf::from(path));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or(home).map(|folder| folder.join("lattice/history"))
}

/// Unquoted names fold to lower case, as the server does.
fn fold(name: &str) -> String {
    let name = name.trim();
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What a statement without rows did, in its own first words.
fn tag(sql: &str, affected: Option<u64>) -> String {
    let mut words = sql.split_whitespace().map(|word| word.trim_end_matches(';').to_uppercase());
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    match first.as_str() {
        "CREATE" | "DROP" | "ALTER" | "COMMENT" => format!("{first} {second}"),
        "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "COPY" | "WITH" => match affected {
            Some(1) => format!("{first}: 1 row"),
            Some(rows) => format!("{first}: {rows} rows"),
            None => first,
        },
        _ => first,
    }
}

/// An error as the server words it: code, message, place in the statement, detail and hint.
fn report(error: &ClientError) {
    eprint_line(&format!("ERROR: {error}"));
}

fn human(elapsed: Duration) -> String {
    let millis = elapsed.as_secs_f64() * 1e3;
    if millis < 1_000.0 { format!("{millis:.1} ms") } else { format!("{:.2} s", millis / 1e3) }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(text: &str) {
    eprint_line(&format!("lattice: {text}"));
}

fn eprint_line(text: &str) {
    let _closed = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_name_what_ran() {
        assert_eq!(tag("create table t (a int)", None), "CREATE TABLE");
        assert_eq!(tag("INSERT INTO t VALUES (1)", Some(1)), "INSERT: 1 row");
        assert_eq!(tag("begin;", None), "BEGIN");
        assert_eq!(fold("\"My\"\"Table\""), "My\"Table");
        assert_eq!(fold("Orders"), "orders");
    }
}
