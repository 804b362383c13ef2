//! What can go wrong in the column tier, and what the caller can do about it.

use base::{BoxError, Classify, DatasetVersion, ErrorKind, SqlState, TableId};

use crate::Role;

/// What can go wrong in the column tier.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another writer published a version first, so nothing of this commit landed.
    #[error("commit to {role} of table {table} refused: expected version {expected}, but another writer has moved it")]
    Fenced {
        /// The table.
        table: TableId,
        /// Which of its datasets.
        role: Role,
        /// The version the commit was built on.
        expected: DatasetVersion,
    },
    /// The commit may or may not have landed; read the latest version and its properties to find out.
    #[error(
        "commit to {role} of table {table} on version {expected} has an unknown outcome; read the latest version to settle it"
    )]
    Indeterminate {
        /// The table.
        table: TableId,
        /// Which of its datasets.
        role: Role,
        /// The version the commit was built on.
        expected: DatasetVersion,
        /// What the store said.
        #[source]
        source: BoxError,
    },
    /// The folder or bucket belongs to another cluster, or to a later epoch of this one.
    #[error(
        "column store {url} belongs to cluster {found_cluster} epoch {found_epoch}, not to cluster {cluster} epoch {epoch}; use an empty location or the owner's configuration"
    )]
    Foreign {
        /// Where.
        url: String,
        /// The owner found there.
        found_cluster: String,
        /// Its epoch.
        found_epoch: u64,
        /// Who asked.
        cluster: String,
        /// With which epoch.
        epoch: u64,
    },
    /// Another process has the local folder open.
    #[error("column store {url} is in use by another process; stop that one first")]
    Locked {
        /// Where.
        url: String,
    },
    /// A file or version that is named somewhere does not exist.
    #[error("{0} does not exist in the column store")]
    Missing(String),
    /// Stored bytes are damaged.
    #[error("damaged column file {path}: {what}")]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The caller broke a rule of this crate.
    #[error("{0}")]
    InvalidInput(String),
    /// The rows that were to be written could not be produced.
    #[error("the source of rows failed")]
    Rows(#[source] BoxError),
    /// A condition on rows could not be tested.
    #[error("a condition on rows could not be tested")]
    Filter(#[source] BoxError),
    /// The object store refused or is away.
    #[error("object store: {0}")]
    Store(#[from] object_store::Error),
    /// Lance refused.
    #[error("lance: {0}")]
    Lance(#[from] lance_core::Error),
    /// Arrow refused.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// Keys could not be encoded.
    #[error(transparent)]
    Codec(#[from] codec::Error),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn corrupt(path: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Corrupt { path: path.into(), what: what.into() }
    }

    /// Whether an error further down the chain is the operating system's "no space left".
    fn is_disk_full(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::StorageFull
            {
                return true;
            }
            next = error.source();
        }
        false
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        if self.is_disk_full() {
            return ErrorKind::Exhausted;
        }
        match self {
            Error::Fenced { .. } => ErrorKind::Unavailable,
            Error::Indeterminate { .. } => ErrorKind::Indeterminate,
            Error::Foreign { .. } => ErrorKind::InvalidInput,
            Error::Locked { .. } => ErrorKind::Unavailable,
            Error::Missing(_) => ErrorKind::Corrupt,
            Error::Corrupt { .. } => ErrorKind::Corrupt,
            Error::InvalidInput(_) => ErrorKind::Internal,
            Error::Rows(_) | Error::Filter(_) => ErrorKind::Internal,
            Error::Store(object_store::Error::NotFound { .. }) => ErrorKind::Corrupt,
            Error::Store(_) => ErrorKind::Unavailable,
            Error::Lance(error) => match error {
                lance_core::Error::IO { .. } | lance_core::Error::Timeout { .. } => ErrorKind::Unavailable,
                lance_core::Error::CorruptFile { .. } | lance_core::Error::NotFound { .. } => ErrorKind::Corrupt,
                _ => ErrorKind::Internal,
            },
            Error::Arrow(_) => ErrorKind::Internal,
            Error::Codec(error) => error.kind(),
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            error if error.is_disk_full() => SqlState::DISK_FULL,
            Error::Store(_) | Error::Lance(_) if self.kind() == ErrorKind::Unavailable => SqlState::IO_ERROR,
            Error::Codec(error) => error.sqlstate(),
            error => error.kind().default_sqlstate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_and_an_absent_store_have_states_of_their_own() {
        let store =
            |kind: io::ErrorKind| object_store::Error::Generic { store: "local", source: io::Error::from(kind).into() };
        let full =
            [Error::Store(store(io::ErrorKind::StorageFull)), Error::Lance(store(io::ErrorKind::StorageFull).into())];
        for error in full {
            assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Exhausted, SqlState::DISK_FULL), "{error}");
        }
        let away = [Error::Store(store(io::ErrorKind::TimedOut)), Error::Lance(store(io::ErrorKind::TimedOut).into())];
        for error in away {
            assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Unavailable, SqlState::IO_ERROR), "{error}");
        }
    }
}
