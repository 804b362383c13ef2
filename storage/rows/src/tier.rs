//! All tables, and the memory they share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base::{CommitTs, TableId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{Error, Result, TableRows};

/// The limits of a [`RowTier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTierOptions {
    /// Writers wait when the row tier would hold more than this.
    pub limit_bytes: usize,
    /// A flush is wanted when the row tier holds this much.
    pub flush_at_bytes: usize,
}

impl Default for RowTierOptions {
    fn default() -> Self {
        Self::with_limit(1 << 30)
    }
}

impl RowTierOptions {
    /// A limit, and flushes at half of it.
    pub fn with_limit(limit_bytes: usize) -> Self {
        Self { limit_bytes, flush_at_bytes: limit_bytes / 2 }
    }
}

/// Memory held by tables and promised to writers.
#[derive(Debug)]
pub(crate) struct Budget {
    options: RowTierOptions,
    held: AtomicUsize,
    /// Changed only inside its lock, so that admission is one decision.
    promised: Mutex<usize>,
    waiting: AtomicUsize,
    /// A pin has gone that held truncation back.
    deferred: AtomicBool,
    /// Room may have been made.
    freed: Notify,
    /// A flush may be wanted.
    pressed: Notify,
}

impl Budget {
    /// A table grew, or shrank because a version was replaced.
    pub(crate) fn charge(&self, before: usize, after: usize) {
        if after < before {
            self.release(before - after);
            return;
        }
        let held = self.held.fetch_add(after - before, Ordering::AcqRel);
        let limit = self.options.flush_at_bytes;
        if held < limit && held + (after - before) >= limit {
            self.pressed.notify_waiters();
        }
    }

    pub(crate) fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.held.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }

    pub(crate) fn defer(&self) {
        self.deferred.store(true, Ordering::Release);
        self.freed.notify_waiters();
    }

    fn try_promise(&self, bytes: usize) -> Result<()> {
        let limit_bytes = self.options.limit_bytes;
        if bytes > limit_bytes {
            return Err(Error::TooLarge { wanted_bytes: bytes, limit_bytes });
        }
        let mut promised = self.promised.lock();
        let used_bytes = self.held.load(Ordering::Acquire) + *promised;
        if used_bytes + bytes > limit_bytes {
            return Err(Error::Full { wanted_bytes: bytes, used_bytes, limit_bytes });
        }
        *promised += bytes;
        Ok(())
    }
}

/// Room promised to a writer. Dropped when its commit has been applied (then the tables are charged) or has failed.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// How much was promised.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.budget.promised.lock() -= self.bytes;
        self.budget.freed.notify_waiters();
    }
}

/// Counts a writer that waits, so that the flush knows.
struct Waiting<'a>(&'a Budget);

impl<'a> Waiting<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.waiting.fetch_add(1, Ordering::AcqRel);
        budget.pressed.notify_waiters();
        Self(budget)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The row tier of a node.
#[derive(Debug)]
pub struct RowTier {
    tables: RwLock<BTreeMap<TableId, Arc<TableRows>>>,
    budget: Arc<Budget>,
    /// Writers that wait stand in this queue, so that a large one is not overtaken for ever.
    queue: tokio::sync::Mutex<()>,
}

impl RowTier {
    /// An empty row tier.
    pub fn new(options: RowTierOptions) -> Self {
        let budget = Budget {
            options,
            held: AtomicUsize::new(0),
            promised: Mutex::new(0),
            waiting: AtomicUsize::new(0),
            deferred: AtomicBool::new(false),
            freed: Notify::new(),
            pressed: Notify::new(),
        };
        Self { tables: RwLock::default(), budget: Arc::new(budget), queue: tokio::sync::Mutex::new(()) }
    }

    /// The rows of a table that has some.
    pub fn table(&self, table: TableId) -> Option<Arc<TableRows>> {
        self.tables.read().get(&table).cloned()
    }

    /// The rows of a table; if it is new here, its versions up to `published` are in the column tier.
    pub fn open(&self, table: TableId, published: CommitTs) -> Arc<TableRows> {
        if let Some(rows) = self.table(table) {
            return rows;
        }
        let mut tables = self.tables.write();
        tables.entry(table).or_insert_with(|| Arc::new(TableRows::new(published, self.budget.clone()))).clone()
    }

    /// Forgets a table. Its memory is free when its last reader is done.
    pub fn remove(&self, table: TableId) -> Option<Arc<TableRows>> {
        self.tables.write().remove(&table)
    }

    /// All tables, by id.
    pub fn tables(&self) -> Vec<(TableId, Arc<TableRows>)> {
        self.tables.read().iter().map(|(table, rows)| (*table, rows.clone())).collect()
    }

    /// How much memory all tables take.
    pub fn bytes(&self) -> usize {
        self.budget.held.load(Ordering::Acquire)
    }

    /// How much memory is promised to writers.
    pub fn reserved_bytes(&self) -> usize {
        *self.budget.promised.lock()
    }

    /// How many writers wait for room.
    pub fn waiting(&self) -> usize {
        self.budget.waiting.load(Ordering::Acquire)
    }

    /// The limits.
    pub fn options(&self) -> RowTierOptions {
        self.budget.options
    }

    /// Promises room, or says what is in the way.
    pub fn try_reserve(&self, bytes: usize) -> Result<Reservation> {
        self.truncate_deferred();
        if self.waiting() > 0 {
            // Those who wait come first.
            return Err(Error::Full {
                wanted_bytes: bytes,
                used_bytes: self.bytes() + self.reserved_bytes(),
                limit_bytes: self.budget.options.limit_bytes,
            });
        }
        self.promise(bytes)
    }

    /// Promises room; waits for it in turn. Fails only if there can never be enough. Dropping the future leaves the queue.
    pub async fn reserve(&self, bytes: usize) -> Result<Reservation> {
        match self.try_reserve(bytes) {
            Err(Error::Full { .. }) => {}
            decided => return decided,
        }
        let _waiting = Waiting::new(&self.budget);
        let _turn = self.queue.lock().await;
        loop {
            let mut freed = std::pin::pin!(self.budget.freed.notified());
            // From here on no notification is missed.
            freed.as_mut().enable();
            self.truncate_deferred();
            match self.promise(bytes) {
                Err(Error::Full { .. }) => freed.await,
                decided => return decided,
            }
        }
    }

    /// Waits until something fits, without taking it.
    pub async fn wait_for_room(&self) {
        // One byte cannot be too large, unless the limit is zero, which admits nobody.
        let _ = self.reserve(1).await;
    }

    /// Waits until a flush is due: the row tier has grown to its mark, or a writer waits.
    pub async fn flush_wanted(&self) {
        loop {
            let mut pressed = std::pin::pin!(self.budget.pressed.notified());
            pressed.as_mut().enable();
            if self.bytes() >= self.budget.options.flush_at_bytes || self.waiting() > 0 {
                return;
            }
            pressed.await;
        }
    }

    /// Removes the versions that a reader needed when [`TableRows::truncate`] was called, and no longer needs. Writers that wait for
    /// room do this themselves.
    pub fn truncate_deferred(&self) {
        if self.budget.deferred.swap(false, Ordering::AcqRel) {
            for (_, table) in self.tables() {
                table.truncate_deferred();
            }
        }
    }

    fn promise(&self, bytes: usize) -> Result<Reservation> {
        self.budget.try_promise(bytes)?;
        Ok(Reservation { budget: self.budget.clone(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::RowKey;
    use bytes::Bytes;

    use super::*;
    use crate::Version;

    fn fill(table: &TableRows, ts: i64, bytes: usize) {
        let key = RowKey(Bytes::copy_from_slice(&ts.to_be_bytes()));
        table.apply(key, Version::put(CommitTs(ts), Bytes::from(vec![0; bytes]), false));
    }

    #[tokio::test]
    async fn writers_wait_for_room_in_order() {
        let tier = Arc::new(RowTier::new(RowTierOptions::with_limit(10_000)));
        let table = tier.open(TableId(1), CommitTs::ZERO);
        fill(&table, 1, 5_000);
        let large = tokio::spawn({
            let tier = tier.clone();
            async move { tier.reserve(9_000).await }
        });
        while tier.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        // The small one would fit, but it came later.
        assert!(matches!(tier.try_reserve(10), Err(Error::Full { .. })));
        let small = tokio::spawn({
            let tier = tier.clone();
            async move { tier.reserve(10).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!large.is_finished() && !small.is_finished());
        // A waiting writer is a reason to flush, however little there is.
        tokio::time::timeout(Duration::from_secs(5), tier.flush_wanted()).await.unwrap();
        table.truncate(CommitTs(1));
        let large = tokio::time::timeout(Duration::from_secs(5), large).await.unwrap().unwrap().unwrap();
        let small = tokio::time::timeout(Duration::from_secs(5), small).await.unwrap().unwrap().unwrap();
        assert_eq!((tier.reserved_bytes(), large.bytes(), small.bytes()), (9_010, 9_000, 10));
        drop((large, small));
        assert_eq!((tier.reserved_bytes(), tier.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn limits_are_named() {
        let tier = RowTier::new(RowTierOptions::with_limit(100));
        let error = tier.reserve(101).await.unwrap_err();
        assert_eq!(error, Error::TooLarge { wanted_bytes: 101, limit_bytes: 100 });
        let held = tier.try_reserve(60).unwrap();
        assert_eq!(
            tier.try_reserve(50).unwrap_err(),
            Error::Full { wanted_bytes: 50, used_bytes: 60, limit_bytes: 100 }
        );
        drop(held);
        tier.wait_for_room().await;
        assert_eq!(tier.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_leaves_the_queue() {
        let tier = RowTier::new(RowTierOptions::with_limit(100));
        let held = tier.try_reserve(100).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(10), tier.reserve(1)).await;
        assert!(waited.is_err());
        assert_eq!(tier.waiting(), 0);
        drop(held);
        assert!(tier.try_reserve(100).is_ok());
    }

    #[tokio::test]
    async fn writers_remove_what_a_pin_held_back() {
        let tier = Arc::new(RowTier::new(RowTierOptions::with_limit(10_000)));
        let table = tier.open(TableId(1), CommitTs::ZERO);
        fill(&table, 1, 9_000);
        let pin = table.pin(CommitTs::ZERO).unwrap();
        assert_eq!(table.truncate(CommitTs(1)).versions, 0);
        let writer = tokio::spawn({
            let tier = tier.clone();
            async move { tier.reserve(5_000).await }
        });
        while tier.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        drop(pin);
        tokio::time::timeout(Duration::from_secs(5), writer).await.unwrap().unwrap().unwrap();
        assert!(table.is_empty());
    }

    #[tokio::test]
    async fn flushes_are_wanted_at_the_mark() {
        let tier = Arc::new(RowTier::new(RowTierOptions { limit_bytes: 10_000, flush_at_bytes: 4_000 }));
        let table = tier.open(TableId(1), CommitTs::ZERO);
        let flush = tokio::spawn({
            let tier = tier.clone();
            async move { tier.flush_wanted().await }
        });
        fill(&table, 1, 1_000);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!flush.is_finished());
        fill(&table, 2, 4_000);
        tokio::time::timeout(Duration::from_secs(5), flush).await.unwrap().unwrap();
    }
}
