//! Commit timestamps.

use std::fmt;

/// The moment a transaction became part of the log: microseconds since the Unix epoch, strictly increasing in log
/// order and unique per transaction, so that it also *is* the transaction id (storage rule 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitTs(pub i64);

impl CommitTs {
    /// Before every commit.
    pub const ZERO: CommitTs = CommitTs(0);
    /// After every commit; also the open end of a period.
    pub const MAX: CommitTs = CommitTs(i64::MAX);

    /// The next possible timestamp.
    pub fn next(self) -> CommitTs {
        CommitTs(self.0.saturating_add(1))
    }

    /// The timestamp just before this one.
    pub fn prev(self) -> CommitTs {
        CommitTs(self.0.saturating_sub(1))
    }
}

impl fmt::Display for CommitTs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
