//! Row locks for foreign keys: whoever refers to a row holds it shared, whoever removes it holds it exclusively, both until the
//! transaction ends. Storage has exclusive row locks only, and those would make all children of one parent wait for each other.
//!
//! # Invariants
//! - LOCK-1 a row cannot be removed while an open transaction refers to it anew, nor referred to while it is being removed.
//!   Test: `a_parent_waits_for_its_child`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{RowKey, SqlState, TableId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Error, Result};

type Row = (TableId, RowKey);

#[derive(Debug, Default)]
struct Holders {
    shared: HashSet<u64>,
    exclusive: Option<u64>,
}

/// All held locks.
#[derive(Debug, Default)]
pub(crate) struct LockTable {
    held: Mutex<HashMap<Row, Holders>>,
    freed: Notify,
    next: AtomicU64,
}

/// The locks of one transaction.
#[derive(Debug)]
pub(crate) struct RowLocks {
    table: Arc<LockTable>,
    owner: u64,
    mine: Mutex<HashSet<Row>>,
}

impl RowLocks {
    pub(crate) fn new(table: &Arc<LockTable>) -> Self {
        let owner = table.next.fetch_add(1, Ordering::Relaxed) + 1;
        Self { table: table.clone(), owner, mine: Mutex::default() }
    }

    fn try_lock(&self, row: &Row, exclusive: bool) -> bool {
        let mut held = self.table.held.lock();
        let holders = held.entry(row.clone()).or_default();
        let others = holders.shared.iter().any(|&owner| owner != self.owner);
        if holders.exclusive.is_some_and(|owner| owner != self.owner) || (exclusive && others) {
            return false;
        }
        if exclusive {
            holders.exclusive = Some(self.owner);
        } else {
            holders.shared.insert(self.owner);
        }
        drop(held);
        self.mine.lock().insert(row.clone());
        true
    }

    /// Takes the locks, in key order, waiting at most `patience` for each.
    pub(crate) async fn lock(
        &self,
        table: TableId,
        keys: &[RowKey],
        exclusive: bool,
        patience: Duration,
    ) -> Result<()> {
        let mut keys: Vec<&RowKey> = keys.iter().collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let row = (table, key.clone());
            let wait = async {
                loop {
                    let freed = self.table.freed.notified();
                    tokio::pin!(freed);
                    freed.as_mut().enable();
                    if self.try_lock(&row, exclusive) {
                        return;
                    }
                    freed.await;
                }
            };
            if tokio::time::timeout(patience, wait).await.is_err() {
                return Err(Error::state(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout")
                    .with_detail("another transaction refers to the row or removes it"));
            }
        }
        Ok(())
    }

    pub(crate) fn release(&self) {
        let mine = std::mem::take(&mut *self.mine.lock());
        if mine.is_empty() {
            return;
        }
        let mut held = self.table.held.lock();
        for row in mine {
            if let Some(holders) = held.get_mut(&row) {
                holders.shared.remove(&self.owner);
                if holders.exclusive == Some(self.owner) {
                    holders.exclusive = None;
                }
                if holders.shared.is_empty() && holders.exclusive.is_none() {
                    held.remove(&row);
                }
            }
        }
        drop(held);
        self.table.freed.notify_waiters();
    }
}

impl Drop for RowLocks {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_parent_waits_for_its_child() {
        let table = Arc::new(LockTable::default());
        let (child, sibling, parent) = (RowLocks::new(&table), RowLocks::new(&table), RowLocks::new(&table));
        let key = [RowKey::default()];
        let short = Duration::from_millis(20);
        child.lock(TableId(1), &key, false, short).await.unwrap();
        sibling.lock(TableId(1), &key, false, short).await.unwrap();
        assert!(parent.lock(TableId(1), &key, true, short).await.is_err());
        child.release();
        drop(sibling);
        parent.lock(TableId(1), &key, true, short).await.unwrap();
        assert!(child.lock(TableId(1), &key, false, short).await.is_err());
    }
}
