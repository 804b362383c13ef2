//! The versions of one table's rows.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::Arc;

use base::{CommitTs, RowKey};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use tokio::time::Instant;

use crate::chain::Chain;
use crate::map::{ChainMap, ENTRY_BYTES, Trim};
use crate::scan::{Drain, Scan};
use crate::tier::Budget;
use crate::{Error, Result, RowOp, Version};

/// How many keys are visited under one lock. Tests use few, so that small tables have chunks too; measurements do not.
pub(crate) const VISIT_KEYS: usize = if cfg!(all(test, debug_assertions)) { 3 } else { 1024 };

/// What every version but the newest costs beside its row's bytes.
const VERSION_BYTES: usize = size_of::<Version>();

/// What a table holds in the row tier. The numbers are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct keys.
    pub keys: usize,
    /// Versions of all keys.
    pub versions: usize,
    /// Versions that made a new row.
    pub inserts: usize,
    /// Versions that replaced a row.
    pub updates: usize,
    /// Versions that removed a row.
    pub deletes: usize,
    /// Memory: keys, rows and what it takes to order them.
    pub bytes: usize,
}

impl Counts {
    /// How many rows the table has more (or fewer) than the column tier shows at the published cut.
    pub fn rows_gained(&self) -> i64 {
        self.inserts as i64 - self.deletes as i64
    }

    fn add(&mut self, version: &Version, bytes: usize) {
        self.versions += 1;
        *self.of(version) += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, version: &Version, bytes: usize) {
        self.versions -= 1;
        *self.of(version) -= 1;
        self.bytes -= bytes;
    }

    fn of(&mut self, version: &Version) -> &mut usize {
        match &version.op {
            RowOp::Put { update: false, .. } => &mut self.inserts,
            RowOp::Put { update: true, .. } => &mut self.updates,
            RowOp::Delete => &mut self.deletes,
        }
    }
}

/// What a call of [`TableRows::truncate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Versions up to here are gone. Earlier than asked for if a pin is open; the rest goes when the pin has gone.
    pub upto: CommitTs,
    /// How many versions this call removed.
    pub versions: usize,
    /// How many bytes this call freed.
    pub bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) chains: ChainMap,
    counts: Counts,
    newest: Option<CommitTs>,
    oldest: Option<CommitTs>,
    /// The earliest version that was applied since the running truncation started.
    applied_since: Option<CommitTs>,
}

#[derive(Debug)]
struct Horizon {
    /// Versions up to here are gone, or are going.
    truncated: CommitTs,
    /// What [`TableRows::truncate`] was asked for.
    wanted: CommitTs,
    /// Cuts that readers hold.
    pins: BTreeMap<CommitTs, Pins>,
}

/// The readers of one cut.
#[derive(Debug)]
struct Pins {
    count: usize,
    /// Since when there has been one.
    since: Instant,
}

impl Horizon {
    fn hold(&mut self, above: CommitTs) {
        let now = Instant::now();
        self.pins.entry(above).or_insert(Pins { count: 0, since: now }).count += 1;
    }

    fn allowed(&self) -> CommitTs {
        self.pins.first_key_value().map_or(self.wanted, |(&pin, _)| pin.min(self.wanted))
    }
}

/// The row versions of one table above its published cut.
#[derive(Debug)]
pub struct TableRows {
    state: RwLock<State>,
    horizon: Mutex<Horizon>,
    /// Held while versions are removed: one truncation at a time.
    truncating: Mutex<()>,
    budget: Arc<Budget>,
}

/// Keeps the versions above a cut in place while a reader uses them. Never wait for room in the row tier while holding one: the
/// room may be what it keeps.
#[derive(Debug)]
pub struct Pin {
    table: Arc<TableRows>,
    above: CommitTs,
}

impl Pin {
    /// Versions above this one stay.
    pub fn above(&self) -> CommitTs {
        self.above
    }

    /// The table that is pinned.
    pub fn table(&self) -> &Arc<TableRows> {
        &self.table
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        // The cut is pinned already, so it cannot be outdated.
        self.table.horizon.lock().hold(self.above);
        Self { table: self.table.clone(), above: self.above }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut horizon = self.table.horizon.lock();
        if let Some(pins) = horizon.pins.get_mut(&self.above) {
            pins.count -= 1;
            if pins.count == 0 {
                horizon.pins.remove(&self.above);
                if horizon.allowed() > horizon.truncated {
                    // Removing takes a while and this may run anywhere: whoever waits for room will do it.
                    self.table.budget.defer();
                }
            }
        }
    }
}

impl TableRows {
    /// A table whose versions up to `published` are in the column tier.
    pub(crate) fn new(published: CommitTs, budget: Arc<Budget>) -> Self {
        Self {
            state: RwLock::default(),
            horizon: Mutex::new(Horizon { truncated: published, wanted: published, pins: BTreeMap::new() }),
            truncating: Mutex::new(()),
            budget,
        }
    }

    /// Adds a version. Commits are applied in log order; a second version of the same commit replaces the first. A version of the
    /// truncated past is ignored: the column tier has it.
    pub fn apply(&self, key: RowKey, version: Version) {
        self.apply_all([(key, version)]);
    }

    /// Adds many versions, without keeping readers out for longer than a chunk of them takes.
    pub fn apply_all(&self, versions: impl IntoIterator<Item = (RowKey, Version)>) {
        let mut versions = versions.into_iter().peekable();
        while versions.peek().is_some() {
            let truncated = self.truncated();
            let mut state = self.state.write();
            let before = state.counts.bytes;
            let mut replaced = Vec::new();
            for (key, version) in versions.by_ref().take(VISIT_KEYS) {
                if version.ts > truncated {
                    replaced.extend(state.apply(key, version));
                }
            }
            let after = state.counts.bytes;
            // Inside the lock, so that a truncation cannot take back what has not been charged.
            self.budget.charge(before, after);
            drop(state);
        }
    }

    /// The version of a row that is valid at a timestamp; it may be one that removes the row. `None` if the row tier has none: then
    /// the column tier has the answer, if it was published before [`TableRows::truncated`] as seen *after* this call.
    pub fn get(&self, key: &RowKey, at: CommitTs) -> Option<Version> {
        self.state.read().chains.get(key).and_then(|chain| chain.at(at)).cloned()
    }

    /// Like [`TableRows::get`], for a reader whose columns are of the cut `above`: fails if versions after it are gone, because then
    /// those columns do not have them.
    pub fn get_above(&self, key: &RowKey, at: CommitTs, above: CommitTs) -> Result<Option<Version>> {
        let version = self.get(key, at).filter(|version| version.ts > above);
        self.check_above(above)?;
        Ok(version)
    }

    /// Like [`TableRows::get`] for many keys, best sorted ones.
    pub fn get_many(&self, keys: &[RowKey], at: CommitTs) -> Vec<Option<Version>> {
        self.look_up(keys, |chain| chain.at(at).cloned())
    }

    /// The commit of the newest version of a row.
    pub fn newest(&self, key: &RowKey) -> Option<CommitTs> {
        self.state.read().chains.get(key).map(|chain| chain.newest().ts)
    }

    /// Like [`TableRows::newest`] for many keys, best sorted ones.
    pub fn newest_many(&self, keys: &[RowKey]) -> Vec<Option<CommitTs>> {
        self.look_up(keys, |chain| Some(chain.newest().ts))
    }

    /// All versions of a row, oldest first.
    pub fn versions(&self, key: &RowKey) -> Vec<Version> {
        self.state.read().chains.get(key).map_or_else(Vec::new, |chain| chain.versions().cloned().collect())
    }

    fn look_up<T>(&self, keys: &[RowKey], found: impl Fn(&Chain) -> Option<T>) -> Vec<Option<T>> {
        let mut results = Vec::with_capacity(keys.len());
        for keys in keys.chunks(VISIT_KEYS) {
            let state = self.state.read();
            results.extend(keys.iter().map(|key| state.chains.get(key).and_then(&found)));
        }
        results
    }

    /// The newest version of `at` or before of each row in a range of keys, if it is newer than `above`; also the versions that
    /// remove a row, unless [`Scan::live_only`] is asked for. `at` must be applied completely. Fails if versions above `above` are
    /// gone already, and keeps them until it is dropped.
    pub fn scan(self: &Arc<Self>, range: impl RangeBounds<RowKey>, at: CommitTs, above: CommitTs) -> Result<Scan> {
        Ok(Scan::new(self.pin(above)?, (range.start_bound().cloned(), range.end_bound().cloned()), at))
    }

    /// Every row with versions of `upto` or before, and those versions, in key order: what a flush at this cut has to write.
    pub fn drain_view(self: &Arc<Self>, upto: CommitTs) -> Drain {
        Drain::new(self.pin_all(), upto)
    }

    /// Keeps the versions above `above` until the pin is dropped. Fails if some are gone already.
    pub fn pin(self: &Arc<Self>, above: CommitTs) -> Result<Pin> {
        let mut horizon = self.horizon.lock();
        if horizon.truncated > above {
            return Err(Error::Truncated { above, truncated: horizon.truncated });
        }
        horizon.hold(above);
        Ok(Pin { table: self.clone(), above })
    }

    /// Keeps all versions there are until the pin is dropped.
    pub fn pin_all(self: &Arc<Self>) -> Pin {
        let mut horizon = self.horizon.lock();
        let above = horizon.truncated;
        horizon.hold(above);
        Pin { table: self.clone(), above }
    }

    /// If readers keep versions that could go: since when the oldest of them has.
    pub fn held_back(&self) -> Option<Instant> {
        let horizon = self.horizon.lock();
        let (&above, oldest) = horizon.pins.first_key_value()?;
        (above < horizon.wanted).then_some(oldest.since)
    }

    /// Versions up to here may be gone.
    pub fn truncated(&self) -> CommitTs {
        self.horizon.lock().truncated
    }

    /// Fails if versions above `above` may be gone.
    pub fn check_above(&self, above: CommitTs) -> Result<()> {
        let truncated = self.truncated();
        if truncated > above { Err(Error::Truncated { above, truncated }) } else { Ok(()) }
    }

    /// Removes the versions of `upto` or before, chunk by chunk. Versions that an open [`Pin`] needs are left for later.
    pub fn truncate(&self, upto: CommitTs) -> Truncation {
        let _one = self.truncating.lock();
        let limit = {
            let mut horizon = self.horizon.lock();
            horizon.wanted = horizon.wanted.max(upto);
            let limit = horizon.allowed();
            if limit <= horizon.truncated {
                return Truncation { upto: horizon.truncated, versions: 0, bytes: 0 };
            }
            // Before anything is removed: a reader that looks at this after reading knows whether to trust what it read.
            horizon.truncated = limit;
            limit
        };
        let (versions, bytes) = self.remove(limit);
        Truncation { upto: limit, versions, bytes }
    }

    /// Makes up for truncation that a pin held back.
    pub(crate) fn truncate_deferred(&self) {
        self.truncate(CommitTs(i64::MIN));
    }

    fn remove(&self, limit: CommitTs) -> (usize, usize) {
        let mut state = self.state.write();
        if state.newest.is_none_or(|newest| newest <= limit) {
            // Everything goes, at no cost inside the lock.
            let all = std::mem::take(&mut *state);
            drop(state);
            self.budget.release(all.counts.bytes);
            return (all.counts.versions, all.counts.bytes);
        }
        state.applied_since = None;
        let (mut versions, mut bytes) = (0, 0);
        let mut oldest: Option<CommitTs> = None;
        let mut next = None;
        loop {
            let before = state.counts;
            let trim = state.trim(next.as_ref(), limit);
            oldest = min(oldest, trim.oldest);
            versions += before.versions - state.counts.versions;
            bytes += before.bytes - state.counts.bytes;
            self.budget.release(before.bytes - state.counts.bytes);
            next = trim.next.clone();
            if next.is_none() {
                state.oldest = min(oldest, state.applied_since);
                if state.counts.keys == 0 {
                    state.newest = None;
                }
            }
            // Lets those in who wait; memory is freed outside too.
            RwLockWriteGuard::unlock_fair(state);
            drop(trim);
            if next.is_none() {
                return (versions, bytes);
            }
            state = self.state.write();
        }
    }

    /// What the table holds.
    pub fn counts(&self) -> Counts {
        self.state.read().counts
    }

    /// How much memory the table takes.
    pub fn bytes(&self) -> usize {
        self.counts().bytes
    }

    /// How many rows have versions here.
    pub fn len(&self) -> usize {
        self.counts().keys
    }

    /// Whether there is no version at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The commit of the oldest version.
    pub fn oldest(&self) -> Option<CommitTs> {
        self.state.read().oldest
    }

    /// The commit of the newest version.
    pub fn newest_ts(&self) -> Option<CommitTs> {
        self.state.read().newest
    }

    pub(crate) fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read())
    }
}

impl Drop for TableRows {
    fn drop(&mut self) {
        self.budget.release(self.state.get_mut().counts.bytes);
    }
}

fn min(left: Option<CommitTs>, right: Option<CommitTs>) -> Option<CommitTs> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (one, other) => one.or(other),
    }
}

impl State {
    fn apply(&mut self, key: RowKey, version: Version) -> Option<Version> {
        let ts = version.ts;
        self.newest = self.newest.max(Some(ts));
        self.oldest = min(self.oldest, Some(ts));
        self.applied_since = min(self.applied_since, Some(ts));
        let row_bytes = version.row_bytes();
        let key_bytes = key.as_bytes().len();
        // Whoever comes first pays for the key, later ones for the version that moves to the older ones.
        self.counts.add(&version, row_bytes + VERSION_BYTES);
        let Some((chain, version)) = self.chains.get_or_insert(key, version) else {
            self.counts.keys += 1;
            self.counts.bytes += ENTRY_BYTES + key_bytes - VERSION_BYTES;
            return None;
        };
        let replaced = chain.add(version)?;
        self.counts.remove(&replaced, replaced.row_bytes() + VERSION_BYTES);
        Some(replaced)
    }

    /// Removes old versions of the next keys, and gives them back to be freed outside the lock.
    fn trim(&mut self, from: Option<&RowKey>, limit: CommitTs) -> Trim {
        let trim = self.chains.trim(from, limit);
        for version in &trim.versions {
            self.counts.remove(version, version.row_bytes() + VERSION_BYTES);
        }
        for (key, chain) in &trim.chains {
            for version in chain.versions() {
                self.counts.remove(version, version.row_bytes() + VERSION_BYTES);
            }
            self.counts.keys -= 1;
            self.counts.bytes -= ENTRY_BYTES + key.as_bytes().len() - VERSION_BYTES;
        }
        trim
    }
}
