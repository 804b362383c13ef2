//! Which columnar rows are superseded, and since when.
//!
//! A mask entry says: the row at this offset of this file was superseded at that commit. Entries are only ever added;
//! a flush that turns entries into deletion vectors publishes a *new* mask without them, so that a view that was created
//! before keeps what it saw (invariant STORE-4).

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base::{CommitTs, FileId};
use parking_lot::RwLock;
use roaring::RoaringBitmap;

/// The masks of a table, by file. Shared by views; a commit that masks the first row of a file copies the map, not the
/// masks.
pub(crate) type Masks = HashMap<FileId, Arc<FileMask>>;

/// The superseded rows of one file.
#[derive(Debug, Default)]
pub(crate) struct FileMask {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default, Clone)]
struct Inner {
    /// Single rows, from ordinary transactions.
    points: HashMap<u32, CommitTs>,
    /// Sets of rows, from large transactions.
    layers: Vec<(CommitTs, Arc<RoaringBitmap>)>,
    /// All of `points` as a bitmap, kept up with every entry.
    all: RoaringBitmap,
    newest: CommitTs,
}

impl Inner {
    /// A point is there only if no layer is earlier.
    fn closed_at(&self, offset: u32) -> Option<CommitTs> {
        self.points
            .get(&offset)
            .copied()
            .or_else(|| self.layers.iter().filter(|(_, rows)| rows.contains(offset)).map(|&(ts, _)| ts).min())
    }
}

impl FileMask {
    /// Adds one row. What superseded it first counts: after a start, a row may be looked up that a later truncation covers
    /// already.
    pub(crate) fn add(&self, offset: u32, ts: CommitTs) {
        let mut inner = self.inner.write();
        if inner.all.insert(offset) || inner.closed_at(offset).is_none_or(|known| ts < known) {
            inner.points.insert(offset, ts);
        }
        inner.newest = inner.newest.max(ts);
    }

    /// Adds a set of rows that were superseded together.
    pub(crate) fn add_layer(&self, rows: Arc<RoaringBitmap>, ts: CommitTs) {
        let mut inner = self.inner.write();
        inner.all |= rows.as_ref();
        inner.layers.push((ts, rows));
        inner.newest = inner.newest.max(ts);
    }

    /// The rows superseded at or before `at`.
    pub(crate) fn rows_at(&self, at: CommitTs) -> RoaringBitmap {
        let inner = self.inner.read();
        if inner.newest <= at {
            return inner.all.clone();
        }
        let mut rows: RoaringBitmap =
            inner.points.iter().filter(|&(_, &ts)| ts <= at).map(|(&offset, _)| offset).collect();
        for (ts, layer) in &inner.layers {
            if *ts <= at {
                rows |= layer.as_ref();
            }
        }
        rows
    }

    /// When the row was superseded, if it was.
    pub(crate) fn closed_at(&self, offset: u32) -> Option<CommitTs> {
        let inner = self.inner.read();
        if inner.all.contains(offset) { inner.closed_at(offset) } else { None }
    }

    /// How many rows are superseded.
    pub(crate) fn len(&self) -> u64 {
        self.inner.read().all.len()
    }

    /// The entries inside a range of time, row by row in row order.
    pub(crate) fn entries(&self, range: RangeInclusive<CommitTs>) -> Vec<(u32, CommitTs)> {
        let inner = self.inner.read();
        inner
            .all
            .iter()
            .filter_map(|offset| {
                let ts = inner.closed_at(offset)?;
                range.contains(&ts).then_some((offset, ts))
            })
            .collect()
    }

    /// The mask with only what came after `cut`; `None` when nothing did.
    pub(crate) fn after(&self, cut: CommitTs) -> Option<FileMask> {
        let inner = self.inner.read();
        if inner.newest <= cut {
            return None;
        }
        let points: HashMap<u32, CommitTs> =
            inner.points.iter().filter(|&(_, &ts)| ts > cut).map(|(&offset, &ts)| (offset, ts)).collect();
        let layers: Vec<_> = inner.layers.iter().filter(|(ts, _)| *ts > cut).cloned().collect();
        let mut all: RoaringBitmap = points.keys().copied().collect();
        for (_, rows) in &layers {
            all |= rows.as_ref();
        }
        let newest = inner.newest;
        Some(FileMask { inner: RwLock::new(Inner { points, layers, all, newest }) })
    }

    /// Layers after `cut`, which a rewrite of the file cannot carry over.
    pub(crate) fn has_layers_after(&self, cut: CommitTs) -> bool {
        self.inner.read().layers.iter().any(|(ts, _)| *ts > cut)
    }

    /// Everything, for the checkpoint.
    pub(crate) fn export(&self, upto: CommitTs) -> (Vec<(u32, CommitTs)>, Vec<(CommitTs, Arc<RoaringBitmap>)>) {
        let inner = self.inner.read();
        let mut points: Vec<_> =
            inner.points.iter().filter(|&(_, &ts)| ts <= upto).map(|(&offset, &ts)| (offset, ts)).collect();
        points.sort_unstable();
        (points, inner.layers.iter().filter(|(ts, _)| *ts <= upto).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_masked_from_its_commit_on() {
        let mask = FileMask::default();
        mask.add(7, CommitTs(10));
        mask.add(9, CommitTs(20));
        assert!(mask.rows_at(CommitTs(9)).is_empty());
        assert_eq!(mask.rows_at(CommitTs(10)).iter().collect::<Vec<_>>(), vec![7]);
        assert_eq!(mask.rows_at(CommitTs(20)).iter().collect::<Vec<_>>(), vec![7, 9]);
        assert_eq!(mask.closed_at(9), Some(CommitTs(20)));
        assert_eq!(mask.closed_at(8), None);
    }

    #[test]
    fn the_first_to_supersede_a_row_counts_in_whatever_order_they_come() {
        let mask = FileMask::default();
        mask.add_layer(Arc::new([2, 3].into_iter().collect()), CommitTs(30));
        mask.add(2, CommitTs(10));
        mask.add(3, CommitTs(40));
        assert_eq!((mask.closed_at(2), mask.closed_at(3)), (Some(CommitTs(10)), Some(CommitTs(30))));
        assert_eq!(mask.rows_at(CommitTs(10)).iter().collect::<Vec<_>>(), vec![2]);
        assert_eq!(mask.entries(CommitTs(0)..=CommitTs(30)), vec![(2, CommitTs(10)), (3, CommitTs(30))]);
    }

    #[test]
    fn a_cut_keeps_only_later_entries() {
        let mask = FileMask::default();
        mask.add(1, CommitTs(10));
        mask.add_layer(Arc::new([2, 3].into_iter().collect()), CommitTs(30));
        let rest = mask.after(CommitTs(10)).expect("the layer remains");
        assert_eq!(rest.entries(CommitTs(0)..=CommitTs::MAX), vec![(2, CommitTs(30)), (3, CommitTs(30))]);
        assert!(rest.has_layers_after(CommitTs(10)));
        assert!(mask.after(CommitTs(30)).is_none());
    }
}
