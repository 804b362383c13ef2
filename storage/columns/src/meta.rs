//! What the rest of storage knows of one data file.

use std::fmt;

use base::{CommitTs, FileId, RowKey, SchemaVersion};
use bytes::Bytes;
use codec::{KeyCodec, ROW_TS_COLUMN, StoredSchema};

use crate::wire::{In, Out};
use crate::{Error, Result};

/// Which of a table's two datasets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Versions that are open in transaction time; large transactions stage their files here too.
    Current,
    /// Versions that are closed in transaction time.
    History,
}

impl Role {
    /// Both, in the order in which a flush commits them.
    pub const ALL: [Role; 2] = [Role::History, Role::Current];

    pub(crate) fn folder(self) -> &'static str {
        match self {
            Role::Current => "current",
            Role::History => "history",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// Where a file's `_tx_from` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxFrom {
    /// A column of the file.
    Stored,
    /// The same for every row and not stored. It is also the value of the hidden key column `_row_ts` when the file
    /// leaves that column out.
    Constant(CommitTs),
    /// As [`TxFrom::Constant`], but the transaction has not committed yet; [`FileMeta::bind`] settles it. Such a file
    /// cannot be scanned for `_tx_from`, nor can its hidden keys be decoded, before that.
    AtCommit,
}

/// Whether a dataset version names the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Written and durable, named by no manifest; readable by its path.
    Staged,
    /// A fragment of the dataset.
    Committed {
        /// The fragment's number.
        fragment: u32,
        /// Rows that the dataset version's deletion vector hides.
        deleted: u32,
    },
}

/// One immutable data file: what a scan, a lookup or a commit needs to know before it opens anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Permanent id.
    pub file: FileId,
    /// The dataset whose folder holds it.
    pub role: Role,
    /// The name of the data file within the dataset's `data` folder. Unique for ever.
    pub path: String,
    /// Staged or committed.
    pub state: FileState,
    /// Physical rows, deleted ones included.
    pub rows: u32,
    /// Size of the data file.
    pub bytes: u64,
    /// Where `_tx_from` comes from.
    pub tx_from: TxFrom,
    /// The value of `_op` when the file leaves that column out.
    pub constant_op: Option<u8>,
    /// Whether keys ascend strictly, which [`ColumnStore::lookup`](crate::ColumnStore::lookup) needs.
    pub key_sorted: bool,
    /// The least key.
    pub min_key: RowKey,
    /// The greatest key.
    pub max_key: RowKey,
    /// The least `_tx_from`.
    pub min_ts: CommitTs,
    /// The greatest `_tx_from`.
    pub max_ts: CommitTs,
    /// The least `_tx_to`; [`CommitTs::MAX`] in `current`.
    pub min_closed: CommitTs,
    /// The greatest `_tx_to`; [`CommitTs::MAX`] in `current`.
    pub max_closed: CommitTs,
    /// The definition the rows were written under.
    pub schema_version: SchemaVersion,
    /// Whether the hidden key column `_row_ts` is left out; its value is then the constant `_tx_from`.
    pub row_ts_left_out: bool,
}

/// The version byte of the encoding below.
const FILE_META_VERSION: u8 = 1;

impl FileMeta {
    /// Rows that the dataset version shows.
    pub fn live_rows(&self) -> u32 {
        match self.state {
            FileState::Staged => self.rows,
            FileState::Committed { deleted, .. } => self.rows.saturating_sub(deleted),
        }
    }

    /// The constant `_tx_from`, if there is one and it is known.
    pub fn constant_tx_from(&self) -> Option<CommitTs> {
        match self.tx_from {
            TxFrom::Constant(ts) => Some(ts),
            TxFrom::Stored | TxFrom::AtCommit => None,
        }
    }

    /// Whether some row of the file may be visible at `at`, judged by its time range alone.
    pub fn may_be_visible(&self, at: CommitTs) -> bool {
        self.min_ts <= at && at < self.max_closed
    }

    /// Settles a file written with [`TxFrom::AtCommit`] once its transaction has a timestamp: constants, time range and
    /// hidden keys follow. Pure and cheap, so that applying a log entry can do it.
    pub fn bind(&mut self, schema: &StoredSchema, commit_ts: CommitTs) -> Result<()> {
        if self.tx_from != TxFrom::AtCommit {
            return Err(Error::InvalidInput(format!("file {} has a commit timestamp already", self.path)));
        }
        self.tx_from = TxFrom::Constant(commit_ts);
        self.min_ts = commit_ts;
        self.max_ts = commit_ts;
        if self.row_ts_left_out {
            let keys = [self.min_key.clone(), self.max_key.clone()];
            let bound = replace_row_ts(schema, &keys, commit_ts)?;
            if let [min, max] = bound.as_slice() {
                self.min_key = min.clone();
                self.max_key = max.clone();
            }
        }
        Ok(())
    }

    /// The encoded form, for the log and the checkpoint.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out::default();
        out.u8(FILE_META_VERSION);
        out.u64(self.file.0);
        out.u8(match self.role {
            Role::Current => 0,
            Role::History => 1,
        });
        out.slice(self.path.as_bytes());
        match self.state {
            FileState::Staged => out.u8(0),
            FileState::Committed { fragment, deleted } => {
                out.u8(1);
                out.u64(u64::from(fragment));
                out.u64(u64::from(deleted));
            }
        }
        out.u64(u64::from(self.rows));
        out.u64(self.bytes);
        match self.tx_from {
            TxFrom::Stored => out.u8(0),
            TxFrom::Constant(ts) => {
                out.u8(1);
                out.i64(ts.0);
            }
            TxFrom::AtCommit => out.u8(2),
        }
        match self.constant_op {
            None => out.u8(u8::MAX),
            Some(op) => out.u8(op),
        }
        out.u8(u8::from(self.key_sorted) | u8::from(self.row_ts_left_out) << 1);
        out.slice(self.min_key.as_bytes());
        out.slice(self.max_key.as_bytes());
        for ts in [self.min_ts, self.max_ts, self.min_closed, self.max_closed] {
            out.i64(ts.0);
        }
        out.u64(u64::from(self.schema_version.0));
        out.bytes
    }

    /// Reads [`FileMeta::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(Bytes::copy_from_slice(bytes))
            .ok_or_else(|| Error::corrupt("file description", "not in a form this version writes"))
    }

    fn read(bytes: Bytes) -> Option<Self> {
        let mut input = In::new(bytes);
        if input.u8()? != FILE_META_VERSION {
            return None;
        }
        let file = FileId(input.u64()?);
        let role = match input.u8()? {
            0 => Role::Current,
            1 => Role::History,
            _ => return None,
        };
        let path = input.string()?;
        let state = match input.u8()? {
            0 => FileState::Staged,
            1 => FileState::Committed { fragment: input.u32()?, deleted: input.u32()? },
            _ => return None,
        };
        let rows = input.u32()?;
        let bytes = input.u64()?;
        let tx_from = match input.u8()? {
            0 => TxFrom::Stored,
            1 => TxFrom::Constant(CommitTs(input.i64()?)),
            2 => TxFrom::AtCommit,
            _ => return None,
        };
        let constant_op = match input.u8()? {
            u8::MAX => None,
            op => Some(op),
        };
        let flags = input.u8()?;
        let min_key = RowKey(input.slice()?);
        let max_key = RowKey(input.slice()?);
        let min_ts = CommitTs(input.i64()?);
        let max_ts = CommitTs(input.i64()?);
        let min_closed = CommitTs(input.i64()?);
        let max_closed = CommitTs(input.i64()?);
        let schema_version = SchemaVersion(input.u32()?);
        input.bytes.is_empty().then_some(Self {
            file,
            role,
            path,
            state,
            rows,
            bytes,
            tx_from,
            constant_op,
            key_sorted: flags & 1 != 0,
            min_key,
            max_key,
            min_ts,
            max_ts,
            min_closed,
            max_closed,
            schema_version,
            row_ts_left_out: flags & 2 != 0,
        })
    }
}

/// Rewrites hidden keys so that their `_row_ts` reads `ts`.
pub(crate) fn replace_row_ts(schema: &StoredSchema, keys: &[RowKey], ts: CommitTs) -> Result<Vec<RowKey>> {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    let codec = KeyCodec::new(schema)?;
    let mut columns = codec.decode(keys)?;
    for (column, &position) in columns.iter_mut().zip(&schema.key) {
        if schema.columns[position].id == ROW_TS_COLUMN {
            *column = Arc::new(Int64Array::from(vec![ts.0; keys.len()])) as ArrayRef;
        }
    }
    Ok(codec.keys_of_columns(&columns)?)
}
