//! Row locks: leader-local, unreplicated, first come first served.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{RowKey, TableId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Error, Result};

const SHARDS: usize = 64;

type LockName = (TableId, RowKey);

#[derive(Debug)]
struct Lock {
    owner: u64,
    waiters: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// All row locks.
#[derive(Debug)]
pub(crate) struct Locks {
    shards: Vec<Mutex<HashMap<LockName, Lock>>>,
    hasher: RandomState,
    pub(crate) waits: AtomicU64,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            waits: AtomicU64::new(0),
        }
    }
}

impl Locks {
    fn shard(&self, name: &LockName) -> &Mutex<HashMap<LockName, Lock>> {
        let at = self.hasher.hash_one(name) as usize % SHARDS;
        &self.shards[at]
    }

    /// Takes one lock, waiting at most `timeout`. Returns whether it is new to `owner`.
    pub(crate) async fn lock(&self, owner: u64, table: TableId, key: &RowKey, timeout: Duration) -> Result<bool> {
        let name = (table, key.clone());
        let mut granted = {
            let mut shard = self.shard(&name).lock();
            match shard.entry(name) {
                Entry::Vacant(slot) => {
                    slot.insert(Lock { owner, waiters: VecDeque::new() });
                    return Ok(true);
                }
                Entry::Occupied(mut lock) => {
                    if lock.get().owner == owner {
                        return Ok(false);
                    }
                    let (sender, receiver) = oneshot::channel();
                    lock.get_mut().waiters.push_back((owner, sender));
                    receiver
                }
            }
        };
        self.waits.fetch_add(1, Ordering::Relaxed);
        // A waiter that is dropped while it waits closes its channel, and `unlock` passes it over. If the grant raced
        // with the drop, the guard gives the lock on.
        let mut guard = Waiting { locks: self, owner, table, key, receiver: Some(&mut granted) };
        let Some(receiver) = guard.receiver.as_mut() else { return Ok(true) };
        let outcome = tokio::time::timeout(timeout, &mut **receiver).await;
        match outcome {
            Ok(Ok(())) => {
                guard.receiver = None;
                Ok(true)
            }
            Ok(Err(_)) | Err(_) => Err(Error::LockTimeout { table }),
        }
    }

    /// Gives a lock to the next waiter.
    pub(crate) fn unlock(&self, owner: u64, table: TableId, key: &RowKey) {
        let name = (table, key.clone());
        let mut shard = self.shard(&name).lock();
        if let Entry::Occupied(mut entry) = shard.entry(name) {
            if entry.get().owner != owner {
                return;
            }
            while let Some((next, sender)) = entry.get_mut().waiters.pop_front() {
                if sender.is_closed() {
                    continue;
                }
                // The owner is set before the waiter learns of it, so that its own unlock finds it.
                entry.get_mut().owner = next;
                if sender.send(()).is_ok() {
                    return;
                }
            }
            entry.remove();
        }
    }
}

struct Waiting<'a> {
    locks: &'a Locks,
    owner: u64,
    table: TableId,
    key: &'a RowKey,
    receiver: Option<&'a mut oneshot::Receiver<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.close();
            if receiver.try_recv().is_ok() {
                self.locks.unlock(self.owner, self.table, self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn key(name: &'static str) -> RowKey {
        RowKey(Bytes::from_static(name.as_bytes()))
    }

    #[tokio::test]
    async fn waiters_are_served_in_order() {
        let locks = Arc::new(Locks::default());
        let table = TableId(1);
        let timeout = Duration::from_secs(5);
        assert!(locks.lock(1, table, &key("a"), timeout).await.expect("free"));
        assert!(!locks.lock(1, table, &key("a"), timeout).await.expect("held by us"));
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for owner in [2_u64, 3] {
            let (locks, sender) = (Arc::clone(&locks), sender.clone());
            tokio::spawn(async move {
                locks.lock(owner, table, &key("a"), timeout).await.expect("comes free");
                sender.send(owner).expect("test listens");
                locks.unlock(owner, table, &key("a"));
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        locks.unlock(1, table, &key("a"));
        assert_eq!(order.recv().await, Some(2));
        assert_eq!(order.recv().await, Some(3));
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_does_not_keep_the_lock() {
        let locks = Locks::default();
        let table = TableId(1);
        locks.lock(1, table, &key("a"), Duration::ZERO).await.expect("free");
        let refused = locks.lock(2, table, &key("a"), Duration::from_millis(5)).await;
        assert!(matches!(refused, Err(Error::LockTimeout { .. })));
        locks.unlock(1, table, &key("a"));
        assert!(locks.lock(3, table, &key("a"), Duration::ZERO).await.expect("free again"));
    }
}
