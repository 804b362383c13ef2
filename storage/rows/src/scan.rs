//! Cursors over a table's rows. They hold a [`Pin`] and no lock: each chunk finds its place again by key.

use std::ops::Bound;

use base::{CommitTs, RowKey};

use crate::table::VISIT_KEYS;
use crate::{Pin, Version};

/// How many rows the iterators put into a chunk.
const CHUNK_ROWS: usize = 8192;
/// A chunk ends when its rows have this many bytes together, so that few large rows do not make a chunk that nobody can decode.
const CHUNK_BYTES: usize = 16 << 20;

/// A range of keys that is visited chunk by chunk.
#[derive(Debug)]
struct Walk {
    pin: Pin,
    start: Bound<RowKey>,
    end: Bound<RowKey>,
    done: bool,
}

impl Walk {
    fn new(pin: Pin, (start, end): (Bound<RowKey>, Bound<RowKey>)) -> Self {
        let done = is_empty(&start, &end);
        Self { pin, start, end, done }
    }

    /// Visits the next keys under one lock, at most [`VISIT_KEYS`], until `visit` says that it has enough.
    fn step(&mut self, mut visit: impl FnMut(&RowKey, &crate::chain::Chain) -> bool) {
        let mut last = None;
        let mut count = 0;
        self.pin.table().with_state(|state| {
            state.chains.visit(self.start.as_ref(), self.end.as_ref(), |key, chain| {
                count += 1;
                let enough = visit(key, chain) || count == VISIT_KEYS;
                if enough {
                    last = Some(key.clone());
                }
                enough
            })
        });
        match last {
            Some(key) => self.start = Bound::Excluded(key),
            None => self.done = true,
        }
    }
}

/// Whether a range can hold no key.
fn is_empty(start: &Bound<RowKey>, end: &Bound<RowKey>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
    }
}

/// The newest versions at a timestamp, in key order. As an iterator it yields chunks of a size that suits column decoding.
#[derive(Debug)]
pub struct Scan {
    walk: Walk,
    at: CommitTs,
    live_only: bool,
}

impl Scan {
    pub(crate) fn new(pin: Pin, range: (Bound<RowKey>, Bound<RowKey>), at: CommitTs) -> Self {
        Self { walk: Walk::new(pin, range), at, live_only: false }
    }

    /// Leaves out the versions that remove a row.
    pub fn live_only(mut self) -> Self {
        self.live_only = true;
        self
    }

    /// The next rows, up to `rows_max` of them and at least one; fewer than that if they are large. `None` at the end.
    pub fn next_chunk(&mut self, rows_max: usize) -> Option<Vec<(RowKey, Version)>> {
        let rows_max = rows_max.max(1);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let (at, above, live_only) = (self.at, self.walk.pin.above(), self.live_only);
        while chunk.len() < rows_max && bytes < CHUNK_BYTES && !self.walk.done {
            self.walk.step(|key, chain| {
                if let Some(version) =
                    chain.at(at).filter(|version| version.ts > above && !(live_only && version.is_delete()))
                {
                    bytes += version.row_bytes();
                    chunk.push((key.clone(), version.clone()));
                }
                chunk.len() == rows_max || bytes >= CHUNK_BYTES
            });
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}

impl Iterator for Scan {
    type Item = Vec<(RowKey, Version)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk(CHUNK_ROWS)
    }
}

/// All versions up to a cut, row by row in key order. As an iterator it yields chunks.
#[derive(Debug)]
pub struct Drain {
    walk: Walk,
    upto: CommitTs,
}

/// A chunk of rows with their versions, in flat lists.
#[derive(Clone, Debug, Default)]
pub struct Chains {
    keys: Vec<RowKey>,
    /// Per key: where its versions end.
    ends: Vec<usize>,
    versions: Vec<Version>,
}

impl Chains {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys, ascending.
    pub fn keys(&self) -> &[RowKey] {
        &self.keys
    }

    /// The versions of the row number `at`, oldest first.
    pub fn versions(&self, at: usize) -> &[Version] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.versions[start..self.ends[at]]
    }

    /// Each row with its versions, oldest first, never none.
    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, &[Version])> {
        self.keys.iter().enumerate().map(|(at, key)| (key, self.versions(at)))
    }

    /// All versions of all rows, one row after the other.
    pub fn all_versions(&self) -> &[Version] {
        &self.versions
    }
}

impl Drain {
    pub(crate) fn new(pin: Pin, upto: CommitTs) -> Self {
        Self { walk: Walk::new(pin, (Bound::Unbounded, Bound::Unbounded)), upto }
    }

    /// The next rows, with `versions_max` versions or, if the last row has many, a few more; fewer if they are large. `None` at the
    /// end.
    pub fn next_chunk(&mut self, versions_max: usize) -> Option<Chains> {
        let mut chunk = Chains::default();
        let (upto, above) = (self.upto, self.walk.pin.above());
        let mut bytes = 0;
        while chunk.versions.len() < versions_max.max(1) && bytes < CHUNK_BYTES && !self.walk.done {
            self.walk.step(|key, chain| {
                let before = chunk.versions.len();
                chunk
                    .versions
                    .extend(chain.versions().filter(|version| version.ts > above && version.ts <= upto).cloned());
                if chunk.versions.len() > before {
                    chunk.keys.push(key.clone());
                    chunk.ends.push(chunk.versions.len());
                    bytes += chunk.versions[before..].iter().map(Version::row_bytes).sum::<usize>();
                }
                chunk.versions.len() >= versions_max || bytes >= CHUNK_BYTES
            });
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}

impl Iterator for Drain {
    type Item = Chains;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk(CHUNK_ROWS)
    }
}
