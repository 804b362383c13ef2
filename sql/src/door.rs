//! The values that cross the door of this crate.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::stream::BoxStream;

use crate::Result;

/// Result rows, batch by batch; dropping it stops the plan.
pub type BatchStream = BoxStream<'static, Result<RecordBatch>>;

/// How an engine runs.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Memory that running queries share before they spill, in bytes.
    pub memory_limit: usize,
    /// Where queries spill; the system's temporary folder when absent.
    pub spill_folder: Option<PathBuf>,
    /// How much a query may spill, in bytes.
    pub spill_limit: u64,
    /// Parallelism of one query; the number of cores when absent.
    pub target_partitions: Option<usize>,
    /// Rows per batch inside queries.
    pub batch_size: usize,
    /// Folders that `COPY` may read and write; none means `COPY` is off.
    pub copy_folders: Vec<PathBuf>,
    /// The data folder, which `COPY` never touches.
    pub data_folder: Option<PathBuf>,
    /// The default of `statement_timeout`; zero means none.
    pub statement_timeout: Duration,
    /// Statements that take longer are logged; zero logs none.
    pub slow_statement: Duration,
    /// An open transaction idle for longer is aborted; zero means never.
    pub idle_transaction_timeout: Duration,
    /// `INSERT … SELECT` and ingest above this many rows go to staged columnar files.
    pub bulk_rows: usize,
    /// Bytes that the values of one row may take.
    pub row_bytes_max: usize,
    /// The version that `version()` and `SHOW server_version` report.
    pub version: String,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            memory_limit: 1 << 30,
            spill_folder: None,
            spill_limit: 100 << 30,
            target_partitions: None,
            batch_size: 8192,
            copy_folders: Vec::new(),
            data_folder: None,
            statement_timeout: Duration::ZERO,
            slow_statement: Duration::from_secs(5),
            idle_transaction_timeout: Duration::ZERO,
            bulk_rows: 20_000,
            row_bytes_max: 64 << 20,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// How a session starts.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// The schema unqualified names are looked up in first; `public` when absent.
    pub schema: Option<String>,
    /// The client's name, for `lattice.queries`.
    pub application: Option<String>,
    /// Where the client is, for `lattice.queries`.
    pub client_address: Option<String>,
    /// Settings to apply, by name.
    pub settings: Vec<(String, String)>,
}

/// An interactive transaction of one session, by handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u64);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A savepoint of one transaction, by handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SavepointHandle(pub u64);

impl fmt::Display for SavepointHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How to prepare.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrepareOptions {
    /// Read `?` as the next `$n` (Flight SQL and JDBC clients), not as the JSON operator.
    pub question_marks: bool,
    /// Bind names as this transaction sees them.
    pub transaction: Option<TransactionId>,
}

/// What a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Reads.
    Query,
    /// Writes rows.
    Dml,
    /// Changes definitions.
    Ddl,
    /// BEGIN, COMMIT, ROLLBACK, savepoints.
    Transaction,
    /// Everything else: SET, SHOW, EXPLAIN, COPY, ANALYZE …
    Utility,
}

/// Values for `$1 …`.
#[derive(Clone, Debug, Default)]
pub enum Params {
    /// No values.
    #[default]
    None,
    /// One array of one row per parameter.
    Positional(Vec<ArrayRef>),
    /// One execution per row, one column per parameter.
    Batch(RecordBatch),
}

/// What a statement did.
pub enum Outcome {
    /// Rows to read.
    Rows(Rows),
    /// Rows written.
    Affected {
        /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`, `COPY`, `SELECT` …
        tag: &'static str,
        /// How many.
        rows: u64,
    },
    /// Nothing to count.
    Done {
        /// The command tag, such as `CREATE TABLE`.
        tag: String,
    },
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Rows(rows) => f.debug_tuple("Rows").field(&rows.schema).finish(),
            Outcome::Affected { tag, rows } => write!(f, "{tag} {rows}"),
            Outcome::Done { tag } => f.write_str(tag),
        }
    }
}

/// A result that is being computed.
pub struct Rows {
    /// The schema of every batch, in client form.
    pub schema: SchemaRef,
    /// The batches; dropping it stops the plan.
    pub stream: BatchStream,
    /// How many rows will come, if it is known beforehand.
    pub rows_hint: Option<usize>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("schema", &self.schema).field("rows_hint", &self.rows_hint).finish_non_exhaustive()
    }
}

impl Rows {
    /// Reads everything.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        use futures::TryStreamExt;
        self.stream.try_collect().await
    }
}

/// A statement that runs now.
#[derive(Clone, Debug)]
pub struct RunningQuery {
    /// Names it for [`crate::Engine::cancel`].
    pub id: u64,
    /// The session.
    pub session: base::SessionId,
    /// Who runs it.
    pub principal: String,
    /// Its text, without parameter values.
    pub sql: Arc<str>,
    /// `planning`, `running`, `streaming`, `committing`.
    pub state: &'static str,
    /// When it started.
    pub started_at: SystemTime,
    /// Rows sent so far.
    pub rows: u64,
    /// Rows that its scans have passed, over all that they will pass, from 0 to 1; `None` when it reads no table.
    pub progress: Option<f64>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineMetrics {
    /// Statements begun.
    pub statements: u64,
    /// Statements that failed.
    pub failed: u64,
    /// Statements cancelled or timed out.
    pub cancelled: u64,
    /// Rows sent.
    pub rows_sent: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions rolled back.
    pub rollbacks: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Executions of SELECT, INSERT, UPDATE, DELETE and MERGE that were planned.
    pub plans_made: u64,
    /// Executions that used the plan of an earlier one, or of their preparation.
    pub plans_reused: u64,
    /// Statements and commits that failed with 40001.
    pub conflicts: u64,
    /// Statements running now.
    pub running: u64,
    /// Bytes reserved by running queries.
    pub memory_used: u64,
}

/// A session setting as a typed value.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionValue {
    /// Text.
    Text(String),
    /// A switch.
    Flag(bool),
    /// A number.
    Number(i64),
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionValue::Text(text) => f.write_str(text),
            OptionValue::Flag(flag) => f.write_str(if *flag { "on" } else { "off" }),
            OptionValue::Number(number) => number.fmt(f),
        }
    }
}

/// What ingest does when the table is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Make it from the Arrow schema.
    Create,
    /// Refuse.
    Fail,
}

/// What ingest does when the table exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// Add rows.
    Append,
    /// Drop it and make it anew.
    Replace,
    /// Refuse.
    Fail,
}

/// A bulk load.
#[derive(Clone, Debug)]
pub struct IngestRequest {
    /// The catalog; `lattice` when absent.
    pub catalog: Option<String>,
    /// The schema; the session's when absent.
    pub schema: Option<String>,
    /// The table.
    pub table: String,
    /// Make a temporary table.
    pub temporary: bool,
    /// What to do when the table is missing.
    pub if_missing: IfMissing,
    /// What to do when the table exists.
    pub if_exists: IfExists,
    /// The transaction; its own when absent.
    pub transaction: Option<TransactionId>,
}

/// Which tables to list. Patterns are SQL LIKE patterns.
#[derive(Clone, Debug, Default)]
pub struct TableFilter {
    /// Exact catalog.
    pub catalog: Option<String>,
    /// LIKE pattern.
    pub schema_pattern: Option<String>,
    /// LIKE pattern.
    pub table_pattern: Option<String>,
    /// Any of these kinds; all when empty.
    pub types: Vec<String>,
}

/// A table or view, for clients.
#[derive(Clone, Debug)]
pub struct TableMeta {
    /// The catalog.
    pub catalog: String,
    /// The schema.
    pub schema: String,
    /// The name.
    pub name: String,
    /// `TABLE`, `VIEW`, `SYSTEM TABLE`, `LOCAL TEMPORARY`.
    pub kind: &'static str,
    /// The columns in client form.
    pub arrow: SchemaRef,
    /// What Arrow cannot say about the columns, in the same order.
    pub columns: Vec<ColumnMeta>,
    /// From `COMMENT ON TABLE`.
    pub remarks: Option<String>,
}

/// A column, for clients.
#[derive(Clone, Debug, Default)]
pub struct ColumnMeta {
    /// The SQL type, such as `numeric(18,2)`.
    pub type_name: String,
    /// Digits of a number, characters of a text.
    pub precision: Option<i32>,
    /// Digits after the point.
    pub scale: Option<i32>,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// An identity column.
    pub auto_increment: bool,
    /// From `COMMENT ON COLUMN`.
    pub remarks: Option<String>,
    /// The default expression's text.
    pub default: Option<String>,
}

/// One column of a primary key.
#[derive(Clone, Debug)]
pub struct KeyColumn {
    /// The catalog.
    pub catalog: String,
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// Its place in the key, from 1.
    pub sequence: i32,
    /// The constraint's name.
    pub key_name: String,
}

/// One column pair of a foreign key. The rules are the JDBC numbers: 0 cascade, 1 restrict, 2 set null, 3 no action, 4 set default.
#[derive(Clone, Debug)]
pub struct ForeignKeyColumn {
    /// The referenced catalog.
    pub pk_catalog: String,
    /// The referenced schema.
    pub pk_schema: String,
    /// The referenced table.
    pub pk_table: String,
    /// The referenced column.
    pub pk_column: String,
    /// The referencing catalog.
    pub fk_catalog: String,
    /// The referencing schema.
    pub fk_schema: String,
    /// The referencing table.
    pub fk_table: String,
    /// The referencing column.
    pub fk_column: String,
    /// Its place in the key, from 1.
    pub sequence: i32,
    /// The foreign key's name.
    pub fk_name: String,
    /// The referenced key's name.
    pub pk_name: String,
    /// ON UPDATE.
    pub update_rule: u8,
    /// ON DELETE.
    pub delete_rule: u8,
}
