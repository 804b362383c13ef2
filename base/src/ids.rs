//! Identifiers. Each is a newtype, ordered and hashable, printed as its bare number.

use std::fmt;

use bytes::Bytes;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A table, for ever: a dropped and re-created table has another id.
    TableId(u32)
}
number_id! {
    /// A column of a table, for ever: renaming keeps it, changing the type makes a new one.
    ColumnId(u32)
}
number_id! {
    /// Counts the definitions of one table.
    SchemaVersion(u32)
}
number_id! {
    /// One immutable columnar data file of a table. Unique within the table, never reused, kept when a staged file is
    /// adopted by a dataset; a rewrite makes a new one.
    FileId(u64)
}
number_id! {
    /// The version number of one Lance dataset.
    DatasetVersion(u64)
}
number_id! {
    /// A position in the Raft log.
    LogIndex(u64)
}
number_id! {
    /// A Raft term.
    Term(u64)
}
number_id! {
    /// A client session, unique in the life of a cluster.
    SessionId(u64)
}

/// Names one request of one session, so that a retried commit returns the first outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The session that asks.
    pub session: SessionId,
    /// Counts the requests of that session from 1.
    pub sequence: u64,
}

/// Where one row version lies in the column tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowAddress {
    /// The data file.
    pub file: FileId,
    /// The physical row number in that file, from 0.
    pub offset: u32,
}

/// A primary key in its order-preserving encoding: comparing bytes compares keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RowKey(pub Bytes);

impl RowKey {
    /// The encoded key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("k:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
