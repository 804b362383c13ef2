//! What a transaction has written so far: the layer that its own reads see on top of the snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use base::{FileId, RowKey, TableId};
use codec::StoredSchema;
use columns::FileMeta;
use roaring::RoaringBitmap;
use rows::RowOp;
use rpds::RedBlackTreeMapSync;

use crate::sequencer::Predecessor;
use crate::state::Prepared;

/// The encoded row of an operation.
pub(crate) fn encoded(op: &RowOp) -> Option<&bytes::Bytes> {
    match op {
        RowOp::Put { row, .. } => Some(row),
        RowOp::Delete => None,
    }
}

/// One written row.
#[derive(Clone, Debug)]
pub(crate) struct OwnWrite {
    pub(crate) op: RowOp,
    pub(crate) predecessor: Predecessor,
}

/// The writes to one table. Cloning is cheap: views and savepoints hold clones.
#[derive(Clone, Debug)]
pub(crate) struct TableWrites {
    pub(crate) schema: Arc<StoredSchema>,
    /// Everything committed before is gone.
    pub(crate) truncated: bool,
    pub(crate) rows: RedBlackTreeMapSync<RowKey, OwnWrite>,
    pub(crate) bytes: usize,
    /// Spilled or bulk-written files, readable by this transaction alone.
    pub(crate) staged: Arc<Vec<Arc<FileMeta>>>,
    /// Columnar rows that spilled writes supersede, own staged files included.
    pub(crate) masks: Arc<HashMap<FileId, RoaringBitmap>>,
    /// Row-tier rows that spilled writes supersede.
    pub(crate) hidden: Arc<HashSet<RowKey>>,
    /// The next `_row_no` of staged rows.
    pub(crate) next_row_no: i64,
}

impl TableWrites {
    pub(crate) fn new(schema: Arc<StoredSchema>) -> Self {
        Self {
            schema,
            truncated: false,
            rows: RedBlackTreeMapSync::new_sync(),
            bytes: 0,
            staged: Arc::default(),
            masks: Arc::default(),
            hidden: Arc::default(),
            next_row_no: 0,
        }
    }

    fn weight(key: &RowKey, write: &OwnWrite) -> usize {
        const ENTRY_BYTES: usize = 96;
        ENTRY_BYTES + key.as_bytes().len() + encoded(&write.op).map_or(0, bytes::Bytes::len)
    }

    pub(crate) fn put(&mut self, key: RowKey, write: OwnWrite) {
        if let Some(old) = self.rows.get(&key) {
            self.bytes -= Self::weight(&key, old);
        }
        self.bytes += Self::weight(&key, &write);
        self.rows.insert_mut(key, write);
    }

    pub(crate) fn remove(&mut self, key: &RowKey) {
        if let Some(old) = self.rows.get(key) {
            self.bytes -= Self::weight(key, old);
            self.rows.remove_mut(key);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.truncated
            && self.rows.is_empty()
            && self.staged.is_empty()
            && self.masks.is_empty()
            && self.hidden.is_empty()
    }

    /// Columnar rows that this transaction has superseded, by file, where they lie after the publications since it began:
    /// merges have moved some, and flushes have made some of rows that lay in the row tier.
    pub(crate) fn all_masked(&self, recent: &[Arc<Prepared>]) -> HashMap<FileId, RoaringBitmap> {
        let mut all = HashMap::clone(&self.masks);
        let mut in_rows: Vec<&RowKey> = Vec::new();
        for (key, write) in self.rows.iter() {
            match write.predecessor {
                Predecessor::Columns(address) => {
                    all.entry(address.file).or_default().insert(address.offset);
                }
                Predecessor::RowTier if !recent.is_empty() => in_rows.push(key),
                Predecessor::RowTier | Predecessor::Nothing => {}
            }
        }
        if !recent.is_empty() {
            in_rows.extend(self.hidden.iter());
        }
        for prepared in recent {
            for (file, relocation) in &prepared.moved {
                let Some(rows) = all.remove(file) else { continue };
                for offset in rows {
                    if let Some(Some(address)) = relocation.rows.get(offset as usize) {
                        all.entry(address.file).or_default().insert(address.offset);
                    }
                }
            }
            for address in in_rows.iter().filter_map(|key| prepared.address(key)) {
                all.entry(address.file).or_default().insert(address.offset);
            }
        }
        all
    }
}

/// All writes of a transaction, by table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) tables: BTreeMap<TableId, TableWrites>,
    pub(crate) defines: Vec<Arc<StoredSchema>>,
    pub(crate) drops: Vec<TableId>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.defines.is_empty() && self.drops.is_empty() && self.tables.values().all(TableWrites::is_empty)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.tables.values().map(|table| table.bytes).sum()
    }
}
