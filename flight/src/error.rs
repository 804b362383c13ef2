//! What can go wrong on the wire, before and after the engine.

use std::sync::Arc;

use arrow::error::ArrowError;
use base::{Classify, ErrorKind, SqlState};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the wire, or of the engine on its way to the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine refused or failed.
    #[error("{error}")]
    Sql {
        /// What it said.
        error: Box<sql::Error>,
        /// The statement, for the excerpt in the message.
        statement: Option<Arc<str>>,
    },
    /// A request that breaks the protocol.
    #[error("malformed request: {0}")]
    Protocol(String),
    /// Arrow data that cannot be read.
    #[error("malformed Arrow data: {0}")]
    Malformed(String),
    /// A value in a request that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A handle, ticket or token of ours that we no longer know.
    #[error("the {what} is unknown, was closed or has expired")]
    UnknownHandle {
        /// `prepared statement`, `result`, `transaction` …
        what: &'static str,
        /// Its code.
        state: SqlState,
    },
    /// No or wrong credentials.
    #[error("{0}")]
    Unauthenticated(String),
    /// The password is wrong.
    #[error("wrong user name or password")]
    WrongPassword,
    /// Too many wrong passwords before.
    #[error("too many failed log-ins of this user from this address; try again in {0} seconds")]
    Throttled(u64),
    /// Not this user's object.
    #[error("{0}")]
    Denied(String),
    /// Valid, but not something we do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// All sessions are taken.
    #[error("all {0} sessions are in use; close some or retry later")]
    TooManySessions(usize),
    /// A named limit.
    #[error("{0}")]
    TooLarge(String),
    /// Stopped by `CancelFlightInfo` or by the client.
    #[error("the query was cancelled")]
    Cancelled,
    /// The client's `grpc-timeout` passed.
    #[error("the deadline of the request has passed")]
    DeadlineExceeded,
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A status that was made earlier, for an error of a job.
    #[error("{}", .0.message())]
    Relayed(Box<tonic::Status>),
    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(String),
    /// A batch that cannot be sent.
    #[error("the result cannot be encoded: {0}")]
    Encode(#[from] ArrowError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as configured.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates or keys that cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The transport failed as a whole.
    #[error("the gRPC transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl Error {
    /// A lost handle.
    pub(crate) fn unknown(what: &'static str, state: SqlState) -> Error {
        Error::UnknownHandle { what, state }
    }

    /// The engine's error with the statement it speaks of.
    pub(crate) fn of_statement(error: sql::Error, statement: &Arc<str>) -> Error {
        Error::Sql { error: Box::new(error), statement: Some(Arc::clone(statement)) }
    }
}

impl From<sql::Error> for Error {
    fn from(error: sql::Error) -> Error {
        Error::Sql { error: Box::new(error), statement: None }
    }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Error {
        Error::Protocol(error.to_string())
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Sql { error, .. } => error.kind(),
            Error::Protocol(_) | Error::Malformed(_) | Error::Invalid(_) | Error::Tls(_) => ErrorKind::InvalidInput,
            Error::UnknownHandle { .. } => ErrorKind::NotFound,
            Error::Unauthenticated(_) | Error::WrongPassword => ErrorKind::Unauthenticated,
            Error::Denied(_) => ErrorKind::Denied,
            Error::Unsupported(_) => ErrorKind::Unsupported,
            Error::TooManySessions(_) | Error::ShuttingDown | Error::Listen { .. } | Error::Transport(_) => {
                ErrorKind::Unavailable
            }
            Error::TooLarge(_) | Error::Throttled(_) => ErrorKind::Exhausted,
            Error::Cancelled | Error::DeadlineExceeded => ErrorKind::Cancelled,
            // Relayed statuses were logged and counted when they were made, and are sent as they are.
            Error::Relayed(_) => ErrorKind::Unavailable,
            Error::Internal(_) | Error::Encode(_) => ErrorKind::Internal,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::Sql { error, .. } => error.sqlstate(),
            Error::Protocol(_) | Error::Malformed(_) => SqlState::PROTOCOL_VIOLATION,
            Error::UnknownHandle { state, .. } => *state,
            Error::WrongPassword => SqlState::INVALID_PASSWORD,
            Error::Throttled(_) => SqlState::INVALID_AUTHORIZATION,
            Error::TooManySessions(_) => SqlState::TOO_MANY_CONNECTIONS,
            Error::TooLarge(_) => SqlState::PROGRAM_LIMIT,
            Error::ShuttingDown => SqlState::ADMIN_SHUTDOWN,
            Error::Listen { .. } => SqlState::IO_ERROR,
            Error::Invalid(_)
            | Error::Unauthenticated(_)
            | Error::Denied(_)
            | Error::Unsupported(_)
            | Error::Cancelled
            | Error::DeadlineExceeded
            | Error::Relayed(_)
            | Error::Internal(_)
            | Error::Encode(_)
            | Error::Tls(_)
            | Error::Transport(_) => self.kind().default_sqlstate(),
        }
    }
}
