//! What storage reports, by what the caller can do about it.

use base::{BoxError, Classify, CommitTs, ErrorKind, SqlState, TableId};

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Storage errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that must be unique is there already.
    #[error("duplicate key in table {table}")]
    DuplicateKey {
        /// The table.
        table: TableId,
        /// The row of the batch handed in that collides, from 0; with bulk writes the key may come from any batch.
        row: usize,
        /// The key columns of the colliding row, one row.
        key: Option<arrow::array::RecordBatch>,
    },
    /// Another transaction wrote the same row first.
    #[error("could not serialize access due to concurrent update")]
    WriteConflict {
        /// The table.
        table: TableId,
    },
    /// What moved since the transaction began is not remembered any more.
    #[error(
        "snapshot too old: so much of table {table} was rewritten since the transaction began that its changes cannot be \
         checked any more; run it again"
    )]
    SnapshotTooOld {
        /// The table.
        table: TableId,
    },
    /// A row lock did not come in time.
    #[error("canceling statement due to lock timeout")]
    LockTimeout {
        /// The table.
        table: TableId,
    },
    /// Transactions wait for each other, and this is the youngest of them.
    #[error("deadlock detected")]
    Deadlock {
        /// The table.
        table: TableId,
    },
    /// `AS OF` a moment that has not come.
    #[error("system time {requested} lies in the future")]
    FutureTime {
        /// The moment asked for.
        requested: CommitTs,
    },
    /// `AS OF` a moment whose history is gone.
    #[error("system time {requested} lies before the history kept, which begins at {oldest}")]
    ExpiredTime {
        /// The moment asked for.
        requested: CommitTs,
        /// The oldest moment that can be answered.
        oldest: CommitTs,
    },
    /// The transaction has ended.
    #[error("the transaction has ended")]
    TransactionEnded,
    /// The transaction is on its way to its end.
    #[error("the transaction is being committed: begin another one")]
    TransactionCommitting,
    /// A write in a read-only transaction.
    #[error("cannot write in a read-only transaction")]
    ReadOnly,
    /// No such savepoint.
    #[error("no such savepoint")]
    UnknownSavepoint,
    /// The table does not exist at this snapshot.
    #[error("table {0} does not exist")]
    UnknownTable(TableId),
    /// A named limit was reached.
    #[error("{what}: the limit {limit} is reached")]
    LimitReached {
        /// What ran out.
        what: &'static str,
        /// The setting that bounds it.
        limit: String,
    },
    /// A writer waited in vain for room in the row tier.
    #[error(
        "the row tier is full (storage.row_tier = {limit_bytes} bytes) and no room came in {waited_ms} ms: {cause}"
    )]
    Stalled {
        /// The limit of the row tier.
        limit_bytes: usize,
        /// How long the writer waited.
        waited_ms: u64,
        /// Why rows do not move on.
        cause: String,
    },
    /// A transaction does not fit into one log entry, and has been rolled back.
    #[error(
        "a transaction of {bytes} bytes is above the limit of {limit} for one log entry: split it, or raise storage.journal_segment"
    )]
    TooLarge {
        /// Its size in the log.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full: writes are refused, reads go on.
    #[error("the disk of the data folder is almost full: writes are refused until space is freed, reads go on")]
    DiskFull,
    /// The outcome of a commit is unknown.
    #[error("the outcome of the commit is unknown: retry with the same request id")]
    Indeterminate,
    /// The store is closing or not the leader.
    #[error("storage is not available: {0}")]
    Unavailable(String),
    /// The data folder is not ours, or in use.
    #[error("{0}")]
    Folder(String),
    /// A place of a backup cannot be used.
    #[error("{0}")]
    Place(String),
    /// Stored bytes are damaged.
    #[error("damaged data: {0}")]
    Corrupt(String),
    /// A row does not fit its table.
    #[error("{0}")]
    Invalid(String),
    /// A part below failed.
    #[error("{message}")]
    Part {
        /// What failed.
        message: String,
        /// Its kind.
        kind: ErrorKind,
        /// Its code.
        sqlstate: SqlState,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl Error {
    /// Wraps an error of a part, keeping its kind and code.
    pub fn part<E: Classify + std::error::Error + Send + Sync + 'static>(error: E) -> Self {
        Error::Part {
            message: error.to_string(),
            kind: error.kind(),
            sqlstate: error.sqlstate(),
            source: Box::new(error),
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::DuplicateKey { .. } => ErrorKind::AlreadyExists,
            Error::WriteConflict { .. }
            | Error::SnapshotTooOld { .. }
            | Error::LockTimeout { .. }
            | Error::Deadlock { .. } => ErrorKind::Conflict,
            Error::FutureTime { .. }
            | Error::ExpiredTime { .. }
            | Error::TransactionEnded
            | Error::TransactionCommitting
            | Error::ReadOnly
            | Error::UnknownSavepoint
            | Error::Folder(_)
            | Error::Place(_)
            | Error::Invalid(_) => ErrorKind::InvalidInput,
            Error::UnknownTable(_) => ErrorKind::NotFound,
            Error::LimitReached { .. } | Error::Stalled { .. } | Error::TooLarge { .. } | Error::DiskFull => {
                ErrorKind::Exhausted
            }
            Error::Indeterminate => ErrorKind::Indeterminate,
            Error::Unavailable(_) => ErrorKind::Unavailable,
            Error::Corrupt(_) => ErrorKind::Corrupt,
            Error::Part { kind, .. } => *kind,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::DuplicateKey { .. } => SqlState::UNIQUE_VIOLATION,
            Error::LockTimeout { .. } => SqlState::LOCK_NOT_AVAILABLE,
            Error::Deadlock { .. } => SqlState::DEADLOCK_DETECTED,
            Error::FutureTime { .. } | Error::Invalid(_) => SqlState::INVALID_PARAMETER_VALUE,
            Error::ExpiredTime { .. } => SqlState::SNAPSHOT_TOO_OLD,
            Error::TransactionEnded | Error::TransactionCommitting => SqlState::NO_ACTIVE_TRANSACTION,
            Error::ReadOnly => SqlState::READ_ONLY_TRANSACTION,
            Error::UnknownSavepoint => SqlState::INVALID_SAVEPOINT,
            Error::LimitReached { .. } | Error::Stalled { .. } => SqlState::CONFIGURATION_LIMIT,
            Error::DiskFull => SqlState::DISK_FULL,
            Error::TooLarge { .. } => SqlState::PROGRAM_LIMIT,
            Error::Folder(_) | Error::Place(_) => SqlState::OBJECT_NOT_IN_STATE,
            Error::Part { sqlstate, .. } => *sqlstate,
            Error::WriteConflict { .. }
            | Error::SnapshotTooOld { .. }
            | Error::UnknownTable(_)
            | Error::Indeterminate
            | Error::Unavailable(_)
            | Error::Corrupt(_) => self.kind().default_sqlstate(),
        }
    }
}

impl From<codec::Error> for Error {
    fn from(error: codec::Error) -> Self {
        Error::part(error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::part(codec::Error::from(error))
    }
}
