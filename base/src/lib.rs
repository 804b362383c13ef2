//! The words that every part of LatticeDB shares: identifiers, time, principals and the closed set of error kinds.
//!
//! Admission rule: a word lives here when three folders use it. No I/O, no async, no policy.
//!
//! # Invariants
//! - BASE-1 every number that travels between parts has a type of its own (no bare `u64` in a public signature).
//! - BASE-2 [`ErrorKind`] is closed; each boundary (SQLSTATE, gRPC) matches it without a wildcard.

mod error;
mod ids;
mod principal;
mod time;

pub use error::{BoxError, Classify, ErrorKind, SqlState};
pub use ids::{
    ColumnId, DatasetVersion, FileId, LogIndex, RequestId, RowAddress, RowKey, SchemaVersion, SessionId, TableId, Term,
};
pub use principal::Principal;
pub use time::CommitTs;
