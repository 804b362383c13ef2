//! What can go wrong with the log on disk, and whether the process may go on.

use std::io;
use std::path::PathBuf;

use base::{Classify, ErrorKind, LogIndex, SqlState};

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that were durable are damaged or missing. Nothing was changed; restore the folder from a replica or a
    /// backup.
    #[error("journal file {} is damaged at offset {offset}: {detail}; restore it from a replica or a backup", file.display())]
    Corrupt {
        /// The damaged or missing file.
        file: PathBuf,
        /// Where the damage starts.
        offset: u64,
        /// What was found.
        detail: String,
    },
    /// The folder was written by a program of another generation.
    #[error("journal file {} has format version {version}, this program reads version {}; use the program that wrote it", file.display(), crate::segment::FORMAT_VERSION)]
    Version {
        /// The file that says so.
        file: PathBuf,
        /// Its format version.
        version: u32,
    },
    /// Another process, or another journal of this process, has the folder open.
    #[error("journal folder {} is in use by another process", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The disk failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// Entries must follow each other without holes.
    #[error("log entry {got} cannot follow: the next index is {expected}")]
    Gap {
        /// The index that must come next.
        expected: LogIndex,
        /// The index that came.
        got: LogIndex,
    },
    /// A request names an index below the purged part.
    #[error("log index {index} is purged already, up to {purged}")]
    Purged {
        /// The index asked for.
        index: LogIndex,
        /// The last purged index.
        purged: LogIndex,
    },
    /// A record is larger than a segment can hold.
    #[error("a journal record of {bytes} bytes is above the limit of {limit}; split it or raise the segment size")]
    TooLarge {
        /// The size of the record.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The journal failed before and takes nothing any more. The process must end and start again.
    #[error("the journal has failed and stopped: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } if is_full(source))
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// The same failure for one of several callbacks.
    pub(crate) fn to_io(&self) -> io::Error {
        let kind = match self {
            Error::Io { source, .. } => source.kind(),
            Error::Corrupt { .. } | Error::Version { .. } => io::ErrorKind::InvalidData,
            Error::Gap { .. } | Error::Purged { .. } | Error::TooLarge { .. } => io::ErrorKind::InvalidInput,
            Error::Locked { .. } | Error::Poisoned { .. } | Error::Closed => io::ErrorKind::Other,
        };
        io::Error::new(kind, self.with_cause())
    }

    /// The message with the messages of its sources.
    pub(crate) fn with_cause(&self) -> String {
        match self {
            Error::Io { source, .. } | Error::Locked { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        error.to_io()
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Corrupt { .. } => ErrorKind::Corrupt,
            Error::Version { .. } => ErrorKind::Unsupported,
            Error::Locked { .. } | Error::Poisoned { .. } | Error::Closed => ErrorKind::Unavailable,
            Error::Io { source, .. } if is_full(source) => ErrorKind::Exhausted,
            Error::Io { .. } | Error::Gap { .. } | Error::Purged { .. } => ErrorKind::Internal,
            Error::TooLarge { .. } => ErrorKind::Exhausted,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::Io { source, .. } if is_full(source) => SqlState::DISK_FULL,
            Error::Io { .. } | Error::Poisoned { .. } => SqlState::IO_ERROR,
            Error::TooLarge { .. } => SqlState::PROGRAM_LIMIT,
            Error::Closed => SqlState::ADMIN_SHUTDOWN,
            _ => self.kind().default_sqlstate(),
        }
    }
}
