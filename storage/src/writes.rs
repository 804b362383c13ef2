//! What a transaction has written so far: the layer that its own reads see on top of the snapshot.
//!
//! # Where superseded rows lie
//! A view of a transaction hides the columnar rows that it has superseded. Merges move such rows, and flushes make columnar
//! ones of rows that lay in the row tier, so their places are kept up with the publications ([`TableWrites::follow`]): every
//! written row is placed once, and looked at again only for a publication that came after.
//!
//! # Invariants
//! - WRITES-1 the places are those that following every row through all publications gives
//!   (`following_step_by_step_is_following_from_the_start`).
//! - WRITES-2 a view costs what was written since the one before, not everything written
//!   (`statements_cost_what_they_write`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use base::{FileId, RowAddress, RowKey, TableId};
use codec::StoredSchema;
use columns::FileMeta;
use roaring::RoaringBitmap;
use rows::RowOp;
use rpds::RedBlackTreeMapSync;

use crate::sequencer::Predecessor;
use crate::state::{Prepared, TableInner};

/// Rows by file.
pub(crate) type RowsOfFiles = RedBlackTreeMapSync<FileId, Arc<RoaringBitmap>>;

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
    /// Columnar rows that all of these writes supersede, where they lie after the publication numbered `followed`.
    superseded: RowsOfFiles,
    /// Rows of `rows` that are not in `superseded` yet.
    unplaced: Vec<RowKey>,
    followed: u64,
    /// Whether any row is superseded, in whichever tier.
    replaces: bool,
}

/// Publications with their epochs, oldest first.
pub(crate) type Publications = Vec<(u64, Arc<Prepared>)>;

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
            superseded: RowsOfFiles::new_sync(),
            unplaced: Vec::new(),
            followed: 0,
            replaces: false,
        }
    }

    fn weight(key: &RowKey, write: &OwnWrite) -> usize {
        const ENTRY_BYTES: usize = 96;
        ENTRY_BYTES + key.as_bytes().len() + encoded(&write.op).map_or(0, bytes::Bytes::len)
    }

    pub(crate) fn put(&mut self, key: RowKey, write: OwnWrite) {
        match self.rows.get(&key) {
            Some(old) => self.bytes -= Self::weight(&key, old),
            // A row that is written again keeps its predecessor.
            None if write.predecessor != Predecessor::Nothing => {
                self.unplaced.push(key.clone());
                self.replaces = true;
            }
            None => {}
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

    /// Whether rows are superseded whose places must be known.
    pub(crate) fn replaces(&self) -> bool {
        self.replaces
    }

    /// Columnar rows that this transaction has superseded, where they lie after the publications that were followed.
    pub(crate) fn superseded(&self) -> &RowsOfFiles {
        &self.superseded
    }

    /// The publications to be followed, if something has changed: merges have moved rows, flushes have made columnar
    /// ones of rows that lay in the row tier, or rows were written.
    pub(crate) fn to_follow(&self, table: &TableInner) -> Option<Publications> {
        let newest = table.recent.back().map_or(0, |(epoch, ..)| *epoch);
        let behind = newest > self.followed || !self.unplaced.is_empty();
        behind.then(|| table.recent.iter().map(|(epoch, _, prepared)| (*epoch, Arc::clone(prepared))).collect())
    }

    /// Finds the places of rows that publications have moved, and of those written lately. Takes all publications since
    /// the transaction began. Returns how many written rows were looked at.
    pub(crate) fn follow(&mut self, publications: &[(u64, Arc<Prepared>)]) -> usize {
        let mut visited = 0;
        let unplaced = std::mem::take(&mut self.unplaced);
        let followed = self.followed;
        for (epoch, prepared) in publications.iter().filter(|(epoch, _)| *epoch > followed) {
            for (file, relocation) in &prepared.moved {
                let Some(rows) = self.superseded.get(file).cloned() else { continue };
                self.superseded.remove_mut(file);
                for offset in rows.iter() {
                    if let Some(Some(address)) = relocation.rows.get(offset as usize) {
                        supersede(&mut self.superseded, *address);
                    }
                }
            }
            if !prepared.keys.is_empty() {
                visited += self.rows.size() + self.hidden.len();
                let in_rows = self.rows.iter().filter(|(_, write)| write.predecessor == Predecessor::RowTier);
                for key in in_rows.map(|(key, _)| key).chain(self.hidden.iter()) {
                    if let Some(address) = prepared.address(key) {
                        supersede(&mut self.superseded, address);
                    }
                }
            }
            self.followed = *epoch;
        }
        // Rows that were written lately may have been read before publications that others have followed already.
        for key in unplaced {
            visited += 1;
            let Some(write) = self.rows.get(&key) else { continue };
            let mut places: Vec<RowAddress> = match write.predecessor {
                Predecessor::Columns(address) => vec![address],
                Predecessor::RowTier | Predecessor::Nothing => Vec::new(),
            };
            for (_, prepared) in publications {
                places.retain_mut(|place| match prepared.moved.get(&place.file) {
                    Some(relocation) => match relocation.rows.get(place.offset as usize) {
                        Some(Some(address)) => {
                            *place = *address;
                            true
                        }
                        _ => false,
                    },
                    None => true,
                });
                if write.predecessor == Predecessor::RowTier {
                    places.extend(prepared.address(&key));
                }
            }
            for place in places {
                supersede(&mut self.superseded, place);
            }
        }
        visited
    }
}

fn supersede(rows: &mut RowsOfFiles, row: RowAddress) {
    match rows.get_mut(&row.file) {
        Some(rows) => {
            Arc::make_mut(rows).insert(row.offset);
        }
        None => rows.insert_mut(row.file, Arc::new([row.offset].into_iter().collect())),
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

#[cfg(test)]
mod tests {
    use base::{ColumnId, SchemaVersion};
    use codec::StoredColumn;
    use runtime::SimRng;

    use super::*;
    use crate::state::Relocation;

    fn writes() -> TableWrites {
        let column = StoredColumn {
            id: ColumnId(1),
            name: "id".into(),
            data_type: arrow::datatypes::DataType::Int64,
            nullable: false,
            dropped: false,
            missing: None,
        };
        TableWrites::new(Arc::new(StoredSchema::new(TableId(1000), SchemaVersion(1), vec![column], vec![0])))
    }

    fn key(id: u64) -> RowKey {
        RowKey(bytes::Bytes::copy_from_slice(&id.to_be_bytes()))
    }

    fn put(writes: &mut TableWrites, id: u64, predecessor: Predecessor) {
        let row = bytes::Bytes::from_static(b"row");
        writes.put(key(id), OwnWrite { op: RowOp::Put { row, update: true }, predecessor });
    }

    /// What a view does.
    fn view(writes: &mut TableWrites, table: &TableInner) -> usize {
        writes.to_follow(table).map_or(0, |publications| writes.follow(&publications))
    }

    /// Every row through all publications.
    fn from_the_start(writes: &TableWrites, table: &TableInner) -> BTreeMap<FileId, RoaringBitmap> {
        let mut all: BTreeMap<FileId, RoaringBitmap> = BTreeMap::new();
        for write in writes.rows.values() {
            if let Predecessor::Columns(address) = write.predecessor {
                all.entry(address.file).or_default().insert(address.offset);
            }
        }
        for (_, _, prepared) in &table.recent {
            for (file, relocation) in &prepared.moved {
                for offset in all.remove(file).unwrap_or_default() {
                    if let Some(Some(address)) = relocation.rows.get(offset as usize) {
                        all.entry(address.file).or_default().insert(address.offset);
                    }
                }
            }
            for (key, write) in writes.rows.iter() {
                if write.predecessor == Predecessor::RowTier
                    && let Some(address) = prepared.address(key)
                {
                    all.entry(address.file).or_default().insert(address.offset);
                }
            }
        }
        all.retain(|_, rows| !rows.is_empty());
        all
    }

    #[test]
    fn following_step_by_step_is_following_from_the_start() {
        const ROWS: u64 = 60;
        for seed in 0..300 {
            let mut rng = SimRng::new(seed);
            let mut table = TableInner::default();
            let (mut epoch, mut next_file) = (0, 10);
            // Where each row lies; a transaction may have read it where it lay some publications ago.
            let mut places: Vec<Vec<Predecessor>> = vec![vec![Predecessor::RowTier]; ROWS as usize];
            let mut own = writes();
            let mut saved: Option<TableWrites> = None;
            for _ in 0..60 {
                match rng.below(8) {
                    0..=3 => {
                        let id = rng.below(ROWS);
                        let seen = &places[id as usize];
                        let back = rng.below(2).min(seen.len() as u64 - 1) as usize;
                        let read = seen[seen.len() - 1 - back];
                        let predecessor = own.rows.get(&key(id)).map_or(read, |own| own.predecessor);
                        put(&mut own, id, predecessor);
                    }
                    4 => {
                        // A flush of some rows, or a merge of some files.
                        epoch += 1;
                        let file = FileId(next_file);
                        next_file += 1;
                        let mut prepared = Prepared::default();
                        let mut taken = Vec::new();
                        let merged = FileId(10 + rng.below(next_file - 10));
                        let flush = rng.chance(50);
                        for (id, seen) in (0..ROWS).zip(&mut places) {
                            let now = seen[seen.len() - 1];
                            let moves = match now {
                                Predecessor::Columns(address) => !flush && address.file == merged,
                                _ => flush && rng.chance(30),
                            };
                            if !moves {
                                continue;
                            }
                            let to = RowAddress { file, offset: taken.len() as u32 };
                            taken.push(key(id));
                            if let Predecessor::Columns(from) = now {
                                let moved = prepared.moved.entry(from.file).or_default();
                                moved.rows.resize(moved.rows.len().max(from.offset as usize + 1), None);
                                moved.rows[from.offset as usize] = Some(to);
                            }
                            seen.push(Predecessor::Columns(to));
                        }
                        if flush {
                            prepared.keys.push((file, taken));
                        }
                        table.recent.push_back((epoch, epoch, Arc::new(prepared)));
                    }
                    5 => saved = Some(own.clone()),
                    6 if saved.is_some() => own = saved.clone().expect("there is one"),
                    _ => {
                        view(&mut own, &table);
                        let places: BTreeMap<FileId, RoaringBitmap> = own
                            .superseded()
                            .iter()
                            .filter(|(_, rows)| !rows.is_empty())
                            .map(|(file, rows)| (*file, RoaringBitmap::clone(rows)))
                            .collect();
                        assert_eq!(places, from_the_start(&own, &table), "seed {seed}");
                    }
                }
            }
        }
    }

    /// Rows looked at by so many statements of one row each, with some publications in between.
    fn visited(statements: u64, predecessor: impl Fn(u64) -> Predecessor) -> usize {
        let mut table = TableInner::default();
        let mut own = writes();
        let mut visited = 0;
        for id in 0..statements {
            visited += view(&mut own, &table);
            put(&mut own, id, predecessor(id));
            if id % (statements / 4) == 7 {
                let mut prepared = Prepared::default();
                prepared.keys.push((FileId(id + 1_000_000), vec![key(id)]));
                prepared.moved.insert(FileId(1), Relocation::default());
                table.recent.push_back((id, id, Arc::new(prepared)));
            }
        }
        visited
    }

    #[test]
    fn statements_cost_what_they_write() {
        let kinds: [(&str, fn(u64) -> Predecessor); 3] = [
            ("inserts", |_| Predecessor::Nothing),
            ("updates of new rows", |_| Predecessor::RowTier),
            ("updates of old rows", |id| {
                Predecessor::Columns(RowAddress { file: FileId(2 + id / 512), offset: id as u32 })
            }),
        ];
        for (kind, predecessor) in kinds {
            let (few, many) = (visited(1_000, predecessor), visited(10_000, predecessor));
            assert!(few > 0 && many < 11 * few, "{kind}: {few} rows by 1000 statements, {many} by 10000");
        }
    }
}
