//! `lattice sql`: a shell over Flight SQL.
//!
//! Statements may span lines and end with a semicolon; lines that start with a backslash are commands to the shell.
//! With `-c`, `-f` or input from a pipe it runs what it is given and stops at the first error with exit code 1; errors of
//! a file carry its name and the line where the statement begins.

mod describe;
mod print;
mod split;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

pub use print::{Format, Printer};
pub use split::{is_blank, split};

use self::describe::Listing;

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
  \\d NAME          columns, keys, indexes of a table  \\x               one column per line
  \\dt  \\dv  \\di    tables, views, indexes            \\format FORMAT   table, csv or json
  \\ds  \\dn  \\l     sequences, schemas, catalogs      \\i FILE          run a file
  \\dt+             tables with rows and sizes         \\r               forget what was typed of a statement
  \\conninfo        where this shell is connected      \\q               leave; so do exit and quit
  \\?               this help

A pattern may follow \\d, \\dt, \\dv, \\di and \\ds: \\dt ord*. SHOW CREATE TABLE NAME; writes a table's definition.
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
        place: None,
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
    /// The file that runs, and the line of the statement in it.
    place: Option<(String, usize)>,
}

/// What a line at the prompt led to.
enum Flow {
    Next,
    Leave,
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
        let mut editor = match DefaultEditor::new() {
            Ok(editor) => editor,
            Err(error) => {
                complain(&format!("the terminal cannot be read: {error}"));
                return ExitCode::FAILURE;
            }
        };
        let history = history_path();
        if let Some(path) = &history {
            // A missing file is a shell that was never used.
            let _missing = editor.load_history(path);
        }
        let (mut pending, mut typed) = (String::new(), String::new());
        'lines: loop {
            match editor.readline(&split::prompt(&pending)) {
                Ok(text) => {
                    typed.push_str(&text);
                    typed.push('\n');
                    // A paste may hold several lines.
                    for line in text.split('\n') {
                        if matches!(self.typed(line, &mut pending).await, Flow::Leave) {
                            break 'lines;
                        }
                    }
                    if is_blank(&pending) {
                        if !typed.trim().is_empty() {
                            // A history that cannot grow is no reason to stop.
                            let _unsaved = editor.add_history_entry(typed.trim());
                        }
                        typed.clear();
                    }
                }
                Err(ReadlineError::Interrupted) if !is_blank(&pending) => {
                    pending.clear();
                    typed.clear();
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

    /// Takes a line from the prompt; `pending` is the unfinished statement before it, and after it.
    async fn typed(&mut self, line: &str, pending: &mut String) -> Flow {
        let word = line.trim().trim_end_matches(';').trim_end().to_lowercase();
        let fresh = is_blank(pending);
        match word.as_str() {
            "" if fresh => return Flow::Next,
            "exit" | "quit" if fresh => return Flow::Leave,
            "help" if fresh => {
                say(HELP);
                return Flow::Next;
            }
            "exit" | "quit" => say("A statement is unfinished: \\q leaves, \\r forgets the statement.\n"),
            "\\r" | "\\reset" => {
                pending.clear();
                return Flow::Next;
            }
            _ => {}
        }
        if line.trim_start().starts_with('\\') && !split::is_inside(pending) {
            return match self.meta(line.trim()).await {
                Meta::Quit => Flow::Leave,
                Meta::Done(_) => Flow::Next,
            };
        }
        pending.push_str(line);
        pending.push('\n');
        let (statements, rest) = split(pending);
        *pending = rest;
        for statement in statements {
            if !self.statement(&statement).await {
                pending.clear();
                break;
            }
        }
        Flow::Next
    }

    async fn file(&mut self, path: &Path) -> bool {
        let (name, text) = if path == Path::new("-") {
            let mut text = String::new();
            ("<stdin>".to_owned(), std::io::stdin().read_to_string(&mut text).map(|_| text))
        } else {
            (path.display().to_string(), std::fs::read_to_string(path))
        };
        match text {
            Ok(text) => {
                let outer = self.place.replace((name, 0));
                let ok = Box::pin(self.script(&text)).await;
                self.place = outer;
                ok
            }
            Err(error) => {
                self.complain(&format!("cannot read {name}: {error}"));
                false
            }
        }
    }

    /// Runs statements (and, at line starts, shell commands) until one fails.
    async fn script(&mut self, text: &str) -> bool {
        let mut pending = String::new();
        for (at, line) in text.split_inclusive('\n').enumerate() {
            if is_blank(&pending) {
                self.at_line(at + 1);
                if line.trim_start().starts_with('\\') {
                    pending.clear();
                    match self.meta(line.trim()).await {
                        Meta::Quit => return true,
                        Meta::Done(true) => {}
                        Meta::Done(false) => return false,
                    }
                    continue;
                }
            }
            pending.push_str(line);
            let (statements, rest) = split(&pending);
            for statement in statements {
                if !self.statement(&statement).await {
                    return false;
                }
                self.at_line(at + 1);
            }
            pending = rest;
        }
        is_blank(&pending) || self.statement(pending.trim()).await
    }

    fn at_line(&mut self, line: usize) {
        if let Some((_, at)) = &mut self.place {
            *at = line;
        }
    }

    /// `file.sql:3: ` while a file runs.
    fn prefix(&self) -> String {
        self.place.as_ref().map(|(name, line)| format!("{name}:{line}: ")).unwrap_or_default()
    }

    fn complain(&self, text: &str) {
        complain(&format!("{}{text}", self.prefix()));
    }

    fn report(&self, error: &ClientError) {
        eprint_line(&format!("{}ERROR: {error}", self.prefix()));
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
                self.report(&error);
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
                    written(printer.write(&batch))?;
                }
                waiting.hide();
                let rows = written(printer.finish())?;
                if self.format == Format::Table {
                    let noun = if rows == 1 { "row" } else { "rows" };
                    written(writeln!(buffer, "{rows} {noun}"))?;
                }
                written(buffer.flush())?;
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
                    self.complain("\\format wants table, csv or json");
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
            "\\d" if !argument.is_empty() && !argument.contains(['*', '?']) => self.describe(argument).await,
            "\\d" => self.list(Listing::Relations, argument).await,
            "\\dt" => self.list(Listing::Tables, argument).await,
            "\\dt+" => self.list(Listing::Sizes, argument).await,
            "\\dv" => self.list(Listing::Views, argument).await,
            "\\di" => self.list(Listing::Indexes, argument).await,
            "\\ds" => self.list(Listing::Sequences, argument).await,
            "\\r" | "\\reset" => true,
            other => {
                self.complain(&format!("unknown command {other}; \\? lists the commands"));
                false
            }
        };
        Meta::Done(ok)
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

fn history_path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LATTICE_HISTORY") {
        return (!path.is_empty()).then(|| PathBuf::from(path));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or(home).map(|folder| folder.join("lattice/history"))
}

/// Ends the process when the reader of our output has gone, as `| head` does; any other failure to write is an error of
/// the statement.
fn written<T>(outcome: std::io::Result<T>) -> Result<T, ClientError> {
    outcome.map_err(|error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        ClientError { message: format!("the result cannot be written: {error}"), sqlstate: None }
    })
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
    }
}
