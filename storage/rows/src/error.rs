//! What can go wrong in the row tier, and what the caller can do about it.

use base::{Classify, CommitTs, ErrorKind, SqlState};

/// What can go wrong in the row tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The rows between the reader's cut and a newer one have moved to the column tier.
    #[error("row versions up to {truncated} have moved to columns, the read started above {above}: take a new view")]
    Truncated {
        /// Where the reader starts.
        above: CommitTs,
        /// Up to where versions are gone.
        truncated: CommitTs,
    },
    /// No room now.
    #[error(
        "row tier is full: {used_bytes} of {limit_bytes} bytes are in use and {wanted_bytes} more were wanted; retry when the flush has caught up"
    )]
    Full {
        /// What was asked for.
        wanted_bytes: usize,
        /// What is held or promised.
        used_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Never any room.
    #[error(
        "{wanted_bytes} bytes exceed the row tier's limit of {limit_bytes}; write them as staged files or raise the limit"
    )]
    TooLarge {
        /// What was asked for.
        wanted_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Truncated { .. } => ErrorKind::Unavailable,
            Error::Full { .. } | Error::TooLarge { .. } => ErrorKind::Exhausted,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::Truncated { .. } => self.kind().default_sqlstate(),
            Error::Full { .. } => SqlState::OUT_OF_MEMORY,
            Error::TooLarge { .. } => SqlState::CONFIGURATION_LIMIT,
        }
    }
}
