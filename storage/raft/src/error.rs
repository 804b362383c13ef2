//! What can go wrong between a proposal and its reply.

use std::time::Duration;

use base::{BoxError, Classify, ErrorKind, SqlState};

/// Shorthand used by this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node does not lead (or no longer in the term asked for). The command is *not* in the log.
    #[error("{}", not_leader(.leader, .address))]
    NotLeader {
        /// The leader, when this node knows one.
        leader: Option<u64>,
        /// The leader's address, when this node knows it.
        address: Option<String>,
    },
    /// The command may or may not become part of the log: ask for its outcome by request id.
    #[error("the outcome of the command is unknown: {reason}; ask again with the same request id")]
    Indeterminate {
        /// Why the answer got lost.
        reason: String,
    },
    /// The node was stopped on request. The command is *not* in the log.
    #[error("the raft node has been shut down")]
    Shutdown,
    /// The node stopped by itself and stays stopped. The command is *not* in the log.
    #[error("the raft node stopped after a fatal error: {reason}; restart the server")]
    Fatal {
        /// The first failure.
        reason: String,
    },
    /// The command does not fit into a log entry. It is *not* in the log.
    #[error("a command of {bytes} bytes is above the limit of {limit}; split the transaction")]
    TooLarge {
        /// The size of the command.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The state machine could not write its checkpoint. The node goes on; the log keeps growing.
    #[error("the checkpoint could not be written: {0}")]
    Checkpoint(#[source] BoxError),
    /// Stored or received bytes do not decode.
    #[error("{what} does not decode: {detail}")]
    Corrupt {
        /// What was being decoded.
        what: &'static str,
        /// Where it went wrong.
        detail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The options contradict themselves or the stored state.
    #[error("raft options are not usable: {0}")]
    Options(String),
    /// A change of members was refused.
    #[error("the members could not be changed: {0}")]
    Members(String),
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::NotLeader { .. } | Error::Shutdown | Error::Fatal { .. } | Error::Timeout { .. } => {
                ErrorKind::Unavailable
            }
            Error::Indeterminate { .. } => ErrorKind::Indeterminate,
            Error::TooLarge { .. } => ErrorKind::Exhausted,
            Error::Checkpoint(_) => ErrorKind::Internal,
            Error::Corrupt { .. } => ErrorKind::Corrupt,
            Error::Options(_) | Error::Members(_) => ErrorKind::InvalidInput,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Error::Shutdown => SqlState::ADMIN_SHUTDOWN,
            Error::Fatal { .. } | Error::Checkpoint(_) => SqlState::IO_ERROR,
            Error::TooLarge { .. } => SqlState::PROGRAM_LIMIT,
            Error::Members(_) => SqlState::OBJECT_NOT_IN_STATE,
            Error::NotLeader { .. }
            | Error::Indeterminate { .. }
            | Error::Corrupt { .. }
            | Error::Timeout { .. }
            | Error::Options(_) => self.kind().default_sqlstate(),
        }
    }
}

fn not_leader(leader: &Option<u64>, address: &Option<String>) -> String {
    match (leader, address) {
        (Some(id), Some(address)) if !address.is_empty() => {
            format!("this node is not the leader; send the request to node {id} at {address}")
        }
        (Some(id), _) => format!("this node is not the leader; send the request to node {id}"),
        (None, _) => "this node is not the leader and knows none; try again shortly".to_string(),
    }
}
