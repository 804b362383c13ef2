//! What can go wrong while encoding or decoding, and what the caller can do about it.

use base::{Classify, ErrorKind, SqlState};

/// What can go wrong while encoding or decoding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A type storage has no form for.
    #[error("type {0} cannot be stored")]
    UnsupportedType(String),
    /// Bytes that no encoder of ours wrote.
    #[error("damaged bytes: {0}")]
    Corrupt(String),
    /// The caller handed columns that are not those of the schema.
    #[error("columns do not fit the stored schema: {0}")]
    Mismatch(String),
    /// A value outside its declared type, such as a decimal with more digits than its precision.
    #[error("value out of range: {0}")]
    OutOfRange(String),
    /// A row or a batch beyond what offsets of 32 bits can address.
    #[error("too large: {0}")]
    TooLarge(String),
    /// Arrow refused.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Error::Corrupt(what.into())
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::UnsupportedType(_) => ErrorKind::Unsupported,
            Error::Corrupt(_) => ErrorKind::Corrupt,
            Error::OutOfRange(_) => ErrorKind::InvalidInput,
            Error::TooLarge(_) => ErrorKind::Exhausted,
            Error::Mismatch(_) | Error::Arrow(_) => ErrorKind::Internal,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::OutOfRange(_) => SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            Error::TooLarge(_) => SqlState::PROGRAM_LIMIT,
            other => other.kind().default_sqlstate(),
        }
    }
}
