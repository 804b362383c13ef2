//! The versions of one row.

use base::CommitTs;
use bytes::Bytes;

/// What a commit did to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOp {
    /// The row has this value now.
    Put {
        /// The encoded row, shared with the log entry it came in.
        row: Bytes,
        /// Whether a row with this key existed before.
        update: bool,
    },
    /// The row is gone.
    Delete,
}

/// One version of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The commit that made it.
    pub ts: CommitTs,
    /// What it did.
    pub op: RowOp,
}

impl Version {
    /// A version that gives the row a value.
    pub fn put(ts: CommitTs, row: Bytes, update: bool) -> Self {
        Self { ts, op: RowOp::Put { row, update } }
    }

    /// A version that removes the row.
    pub fn delete(ts: CommitTs) -> Self {
        Self { ts, op: RowOp::Delete }
    }

    /// The encoded row, unless the version removes it.
    pub fn row(&self) -> Option<&Bytes> {
        match &self.op {
            RowOp::Put { row, .. } => Some(row),
            RowOp::Delete => None,
        }
    }

    /// Whether the version removes the row.
    pub fn is_delete(&self) -> bool {
        matches!(self.op, RowOp::Delete)
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row().map_or(0, Bytes::len)
    }
}

/// All versions of one row, by time. Almost every row has one, which lies inline.
#[derive(Debug)]
pub(crate) struct Chain {
    newest: Version,
    /// The versions before the newest. Behind a box of their own, because few rows have any and the chain should be small.
    older: Option<Box<Older>>,
    /// Whether the map's key has an allocation of its own, rather than a slice of the batch that its first version came in.
    pub(crate) owns_key: bool,
}

/// Versions, oldest first; never none.
#[derive(Debug)]
struct Older(Vec<Version>);

/// What [`Chain::trim`] did.
pub(crate) enum Trimmed {
    /// Nothing was old enough.
    Nothing,
    /// Some versions are left.
    Some(Vec<Version>),
    /// All versions are old enough: the chain can go.
    All,
}

impl Chain {
    pub(crate) fn new(version: Version) -> Self {
        Self { newest: version, older: None, owns_key: false }
    }

    fn older(&self) -> &[Version] {
        self.older.as_ref().map_or(&[], |older| &older.0)
    }

    /// Adds a version; gives back the one of the same commit that it replaces.
    pub(crate) fn add(&mut self, version: Version) -> Option<Version> {
        if version.ts == self.newest.ts {
            return Some(std::mem::replace(&mut self.newest, version));
        }
        let older = &mut self.older.get_or_insert_with(|| Box::new(Older(Vec::new()))).0;
        if version.ts > self.newest.ts {
            older.push(std::mem::replace(&mut self.newest, version));
            return None;
        }
        // Commits come in log order, so this is only reached by callers that load versions in another one.
        let at = older.partition_point(|older| older.ts < version.ts);
        match older.get_mut(at) {
            Some(older) if older.ts == version.ts => Some(std::mem::replace(older, version)),
            _ => {
                older.insert(at, version);
                None
            }
        }
    }

    pub(crate) fn newest(&self) -> &Version {
        &self.newest
    }

    /// The newest version of `at` or before.
    pub(crate) fn at(&self, at: CommitTs) -> Option<&Version> {
        if self.newest.ts <= at {
            return Some(&self.newest);
        }
        let older = self.older();
        match older.partition_point(|older| older.ts <= at) {
            0 => None,
            count => Some(&older[count - 1]),
        }
    }

    /// All versions, oldest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.older().iter().chain(std::iter::once(&self.newest))
    }

    pub(crate) fn oldest_ts(&self) -> CommitTs {
        self.older().first().unwrap_or(&self.newest).ts
    }

    /// Takes out the versions of `upto` or before. A chain of which none is left is to be thrown away.
    pub(crate) fn trim(&mut self, upto: CommitTs) -> Trimmed {
        if self.newest.ts <= upto {
            return Trimmed::All;
        }
        let Some(older) = &mut self.older else {
            return Trimmed::Nothing;
        };
        match older.0.partition_point(|older| older.ts <= upto) {
            0 => Trimmed::Nothing,
            count if count == older.0.len() => Trimmed::Some(self.older.take().map_or_else(Vec::new, |older| older.0)),
            count => {
                let kept = older.0.split_off(count);
                Trimmed::Some(std::mem::replace(&mut older.0, kept))
            }
        }
    }
}
