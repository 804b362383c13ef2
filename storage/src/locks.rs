//! Row locks: leader-local, unreplicated, first come first served.
//!
//! A lock is an entry in one of [`SHARDS`] maps: its owner, and who waits. An owner is a transaction's number; later
//! transactions have larger ones.
//!
//! # Many locks
//! A transaction that holds many locks has them packed ([`Locks::pack`]): sorted runs of 8-byte digests take the place of
//! entries. Whoever wants one of those rows finds its digest in the runs, makes the entry in the name of the owner, and
//! waits there. Two rows with one digest, of which there is one pair in 2^64, make somebody wait without need.
//!
//! # Deadlocks
//! A transaction waits for at most one lock at a time, so that the wait-for graph is a set of chains: from a waiter to the
//! owner of what it waits for, and on from there. A waiter that is not served within [`DEADLOCK_CHECK`] follows its chain,
//! and does so again after each further such time. If the chain comes back to it, and it is the youngest on it, it gives up
//! with [`Error::Deadlock`] (SQLSTATE 40P01); the others wait on and are served when it rolls back.
//!
//! # Invariants
//! - LOCK-1 waiters are served in the order in which they came: `tests::waiters_are_served_in_order`.
//! - LOCK-2 of a cycle exactly the youngest gives up: `tests::the_youngest_of_a_cycle_gives_up`.
//! - LOCK-3 nobody gives up without a cycle. A chain is read link by link while others move, so it is read twice; waits are
//!   numbered, and a link that is the same both times was there in between, so the whole cycle was:
//!   `tests::load_without_cycles_sees_no_deadlock`.
//! - LOCK-4 a packed lock keeps others out like any other: `tests::packed_locks_are_locks`.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use base::{RowKey, TableId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::{Error, Result};

const SHARDS: usize = 64;
/// How long a lock is waited for before the waiter looks for a deadlock, and again after each such time.
const DEADLOCK_CHECK: Duration = Duration::from_millis(100);

pub(crate) type LockName = (TableId, RowKey);

#[derive(Debug)]
struct Lock {
    owner: u64,
    waiters: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// What somebody waits for.
#[derive(Debug)]
struct Wait {
    number: u64,
    name: LockName,
}

/// The packed locks of one owner in one table.
#[derive(Debug)]
struct Packed {
    owner: u64,
    /// Sorted, shorter ones later.
    runs: Vec<Vec<u64>>,
    /// Entries that others made to wait at.
    entries: Mutex<Vec<LockName>>,
}

impl Packed {
    fn contains(&self, digest: u64) -> bool {
        self.runs.iter().any(|run| run.binary_search(&digest).is_ok())
    }

    /// Adds a sorted run, merging it with those that are not longer, so that there are few.
    fn add(&mut self, mut run: Vec<u64>) {
        while self.runs.last().is_some_and(|last| last.len() <= run.len()) {
            let last = self.runs.pop().unwrap_or_default();
            run.extend_from_slice(&last);
            // Two sorted halves: the standard sort finds and merges them.
            run.sort();
        }
        run.shrink_to_fit();
        self.runs.push(run);
    }
}

/// All row locks.
#[derive(Debug)]
pub(crate) struct Locks {
    shards: Vec<Mutex<HashMap<LockName, Lock>>>,
    hasher: RandomState,
    /// Who waits. Inside a shard's lock or alone.
    waiting: Mutex<HashMap<u64, Wait>>,
    /// Inside a shard's lock or alone.
    packed: RwLock<HashMap<TableId, Vec<Packed>>>,
    /// How many [`Packed`] there are, so that nobody looks when there are none.
    packed_count: AtomicUsize,
    next_wait: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) deadlocks: AtomicU64,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            waiting: Mutex::default(),
            packed: RwLock::default(),
            packed_count: AtomicUsize::new(0),
            next_wait: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            deadlocks: AtomicU64::new(0),
        }
    }
}

impl Locks {
    fn shard(&self, name: &LockName) -> &Mutex<HashMap<LockName, Lock>> {
        let at = self.hasher.hash_one(name) as usize % SHARDS;
        &self.shards[at]
    }

    fn digest(&self, key: &RowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Takes one lock, waiting at most `timeout`. Returns whether it is new to `owner`.
    pub(crate) async fn lock(&self, owner: u64, table: TableId, key: &RowKey, timeout: Duration) -> Result<bool> {
        let name = (table, key.clone());
        let mut granted = {
            let mut shard = self.shard(&name).lock();
            let lock = match shard.entry(name.clone()) {
                Entry::Vacant(slot) => match self.packer_of(owner, &name) {
                    None => {
                        slot.insert(Lock { owner, waiters: VecDeque::new() });
                        return Ok(true);
                    }
                    Some(packer) if packer == owner => return Ok(false),
                    Some(packer) => slot.insert(Lock { owner: packer, waiters: VecDeque::new() }),
                },
                Entry::Occupied(lock) => {
                    if lock.get().owner == owner {
                        return Ok(false);
                    }
                    lock.into_mut()
                }
            };
            let (sender, receiver) = oneshot::channel();
            lock.waiters.push_back((owner, sender));
            let number = self.next_wait.fetch_add(1, Ordering::Relaxed);
            self.waiting.lock().insert(owner, Wait { number, name });
            receiver
        };
        self.waits.fetch_add(1, Ordering::Relaxed);
        // A waiter that is dropped while it waits closes its channel, and `unlock` passes it over. If the grant raced
        // with the drop, the guard gives the lock on.
        let mut guard = Waiting { locks: self, owner, table, key, receiver: Some(&mut granted) };
        let end = Instant::now() + timeout;
        loop {
            let Some(receiver) = guard.receiver.as_mut() else { return Ok(true) };
            let check = (Instant::now() + DEADLOCK_CHECK).min(end);
            match tokio::time::timeout_at(check, &mut **receiver).await {
                Ok(Ok(())) => {
                    guard.receiver = None;
                    return Ok(true);
                }
                // The lock went without its waiter being told, which nothing does.
                Ok(Err(_)) => return Err(Error::LockTimeout { table }),
                Err(_) if self.must_give_up(owner) => {
                    self.deadlocks.fetch_add(1, Ordering::Relaxed);
                    return Err(Error::Deadlock { table });
                }
                Err(_) if Instant::now() >= end => return Err(Error::LockTimeout { table }),
                Err(_) => {}
            }
        }
    }

    /// Whether this waiter is the youngest of a cycle of waits.
    fn must_give_up(&self, owner: u64) -> bool {
        let Some(cycle) = self.cycle(owner) else { return false };
        cycle.iter().all(|(other, _)| *other <= owner) && self.cycle(owner).as_ref() == Some(&cycle)
    }

    /// The chain of waits from `owner` back to itself, each with its number.
    fn cycle(&self, owner: u64) -> Option<Vec<(u64, u64)>> {
        let mut chain = Vec::new();
        let mut seen = HashSet::new();
        let mut at = owner;
        // Somebody else's cycle is theirs to break.
        while seen.insert(at) {
            let (number, name) = self.waiting.lock().get(&at).map(|wait| (wait.number, wait.name.clone()))?;
            chain.push((at, number));
            let holder = self.shard(&name).lock().get(&name)?.owner;
            if holder == at {
                // It has been served and only has not woken up yet.
                return None;
            }
            if holder == owner {
                return Some(chain);
            }
            at = holder;
        }
        None
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

    /// Who holds a row's lock in packed form, the asking owner first. With the shard locked; if it is somebody else, the
    /// caller makes the entry.
    fn packer_of(&self, asking: u64, name: &LockName) -> Option<u64> {
        if self.packed_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let packed = self.packed.read();
        let of_table = packed.get(&name.0)?;
        let digest = self.digest(&name.1);
        let holds = |packed: &&Packed| packed.contains(digest);
        if of_table.iter().filter(|packed| packed.owner == asking).any(|packed| holds(&packed)) {
            return Some(asking);
        }
        let other = of_table.iter().find(holds)?;
        other.entries.lock().push(name.clone());
        Some(other.owner)
    }

    /// Packs locks of an owner. Returns those that stay as they are because somebody waits for them.
    pub(crate) fn pack(&self, owner: u64, names: Vec<LockName>) -> Vec<LockName> {
        let mut digests: BTreeMap<TableId, Vec<u64>> = BTreeMap::new();
        for (table, key) in &names {
            digests.entry(*table).or_default().push(self.digest(key));
        }
        {
            let mut packed = self.packed.write();
            for (table, mut run) in digests {
                run.sort_unstable();
                let of_table = packed.entry(table).or_default();
                match of_table.iter_mut().find(|packed| packed.owner == owner) {
                    Some(mine) => mine.add(run),
                    None => {
                        self.packed_count.fetch_add(1, Ordering::AcqRel);
                        of_table.push(Packed { owner, runs: vec![run], entries: Mutex::default() });
                    }
                }
            }
        }
        // From here on both forms hold the rows; those with waiters keep both.
        let mut kept = Vec::new();
        for name in names {
            let mut shard = self.shard(&name).lock();
            let waited =
                shard.get(&name).is_some_and(|lock| lock.waiters.iter().any(|(_, sender)| !sender.is_closed()));
            if waited {
                kept.push(name.clone());
            } else {
                shard.remove(&name);
            }
        }
        kept
    }

    /// Releases what [`Locks::pack`] packed.
    pub(crate) fn unpack(&self, owner: u64) {
        if self.packed_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut gone = Vec::new();
        {
            let mut packed = self.packed.write();
            for of_table in packed.values_mut() {
                gone.extend(of_table.extract_if(.., |packed| packed.owner == owner));
            }
            packed.retain(|_, of_table| !of_table.is_empty());
            self.packed_count.fetch_sub(gone.len(), Ordering::AcqRel);
        }
        for packed in gone {
            for (table, key) in packed.entries.into_inner() {
                self.unlock(owner, table, &key);
            }
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
        self.locks.waiting.lock().remove(&self.owner);
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
    use runtime::SimRng;

    use super::*;

    const TABLE: TableId = TableId(1);
    const LONG: Duration = Duration::from_secs(20);

    fn key(name: &str) -> RowKey {
        RowKey(Bytes::copy_from_slice(name.as_bytes()))
    }

    #[tokio::test]
    async fn waiters_are_served_in_order() {
        let locks = Arc::new(Locks::default());
        assert!(locks.lock(1, TABLE, &key("a"), LONG).await.expect("free"));
        assert!(!locks.lock(1, TABLE, &key("a"), LONG).await.expect("held by us"));
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for owner in [2_u64, 3] {
            let (locks, sender) = (Arc::clone(&locks), sender.clone());
            tokio::spawn(async move {
                locks.lock(owner, TABLE, &key("a"), LONG).await.expect("comes free");
                sender.send(owner).expect("test listens");
                locks.unlock(owner, TABLE, &key("a"));
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        locks.unlock(1, TABLE, &key("a"));
        assert_eq!(order.recv().await, Some(2));
        assert_eq!(order.recv().await, Some(3));
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_does_not_keep_the_lock() {
        let locks = Locks::default();
        locks.lock(1, TABLE, &key("a"), Duration::ZERO).await.expect("free");
        let refused = locks.lock(2, TABLE, &key("a"), Duration::from_millis(5)).await;
        assert!(matches!(refused, Err(Error::LockTimeout { .. })));
        locks.unlock(1, TABLE, &key("a"));
        assert!(locks.lock(3, TABLE, &key("a"), Duration::ZERO).await.expect("free again"));
    }

    /// Each of the owners holds a row and waits for the next one's; they start in the given order.
    async fn ring(owners: &[u64]) {
        let locks = Arc::new(Locks::default());
        for (at, owner) in owners.iter().enumerate() {
            locks.lock(*owner, TABLE, &key(&at.to_string()), LONG).await.expect("free");
        }
        let youngest = owners.iter().copied().max().expect("some");
        let waiting: Vec<_> = owners
            .iter()
            .enumerate()
            .map(|(at, &owner)| {
                let locks = Arc::clone(&locks);
                let next = (at + 1) % owners.len();
                tokio::spawn(async move {
                    // The last to come closes the cycle; it need not be the one that gives up.
                    tokio::time::sleep(Duration::from_millis(30 * at as u64)).await;
                    let outcome = locks.lock(owner, TABLE, &key(&next.to_string()), LONG).await;
                    // As a transaction does when it ends, in either way.
                    locks.unlock(owner, TABLE, &key(&next.to_string()));
                    locks.unlock(owner, TABLE, &key(&at.to_string()));
                    (owner, outcome)
                })
            })
            .collect();
        for task in waiting {
            let (owner, outcome) = task.await.expect("ends");
            if owner == youngest {
                assert!(matches!(outcome, Err(Error::Deadlock { .. })), "{owner} of {owners:?}: {outcome:?}");
            } else {
                assert!(matches!(outcome, Ok(true)), "{owner} of {owners:?}: {outcome:?}");
            }
        }
        assert_eq!(locks.deadlocks.load(Ordering::Relaxed), 1, "{owners:?}");
        assert!(locks.waiting.lock().is_empty());
        assert!(locks.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[tokio::test]
    async fn the_youngest_of_a_cycle_gives_up() {
        for owners in [&[1_u64, 2][..], &[2, 1], &[1, 2, 3], &[3, 1, 2], &[2, 3, 1], &[4, 9, 5, 7]] {
            ring(owners).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn load_without_cycles_sees_no_deadlock() {
        // Everybody takes its rows in one order, so that there are long queues and no cycles, for much longer than it
        // takes until waiters look.
        let locks = Arc::new(Locks::default());
        let number = Arc::new(AtomicU64::new(1));
        let tasks: Vec<_> = (0..24_u64)
            .map(|task| {
                let (locks, number) = (Arc::clone(&locks), Arc::clone(&number));
                tokio::spawn(async move {
                    let mut rng = SimRng::new(task);
                    for _ in 0..6 {
                        let owner = number.fetch_add(1, Ordering::Relaxed);
                        let rows: Vec<String> = (0..6).filter(|_| rng.chance(60)).map(|row| row.to_string()).collect();
                        for row in &rows {
                            locks.lock(owner, TABLE, &key(row), LONG).await?;
                        }
                        tokio::time::sleep(Duration::from_millis(rng.below(12))).await;
                        for row in &rows {
                            locks.unlock(owner, TABLE, &key(row));
                        }
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("ends").expect("no deadlock and no timeout");
        }
        assert!(locks.waits.load(Ordering::Relaxed) > 50, "there was contention");
        assert_eq!(locks.deadlocks.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn packed_locks_are_locks() {
        let locks = Arc::new(Locks::default());
        let name = |row: u64| (TABLE, key(&row.to_string()));
        for run in 0..5_u64 {
            let names: Vec<LockName> = (run * 100..run * 100 + 100).map(name).collect();
            for (table, key) in &names {
                assert!(locks.lock(1, *table, key, LONG).await.expect("free"));
            }
            assert!(locks.pack(1, names).is_empty(), "nobody waits");
        }
        assert!(locks.shards.iter().all(|shard| shard.lock().is_empty()), "packed locks have no entries");
        assert!(locks.packed.read()[&TABLE][0].runs.len() <= 3, "runs are merged");
        // Ours, other rows and other tables.
        assert!(!locks.lock(1, TABLE, &key("7"), LONG).await.expect("ours"));
        assert!(locks.lock(2, TABLE, &key("500"), Duration::ZERO).await.expect("nobody's"));
        assert!(locks.lock(2, TableId(2), &key("7"), Duration::ZERO).await.expect("nobody's"));
        let refused = locks.lock(2, TABLE, &key("444"), Duration::from_millis(5)).await;
        assert!(matches!(refused, Err(Error::LockTimeout { .. })), "{refused:?}");
        let waiter = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.lock(3, TABLE, &key("123"), LONG).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        // A cycle through a packed lock is seen too: 1 waits for what 2 holds, 2 for what 1 holds.
        let victim = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.lock(2, TABLE, &key("77"), LONG).await }
        });
        let older = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.lock(1, TABLE, &key("500"), LONG).await }
        });
        let refused = victim.await.expect("ends");
        assert!(matches!(refused, Err(Error::Deadlock { .. })), "{refused:?}");
        locks.unlock(2, TABLE, &key("500"));
        assert!(older.await.expect("ends").expect("served"));
        locks.unpack(1);
        assert!(waiter.await.expect("ends").expect("served when the packer ends"));
        assert!(locks.lock(4, TABLE, &key("8"), Duration::ZERO).await.expect("free"));
    }

    #[tokio::test]
    async fn a_lock_that_is_waited_for_is_not_packed() {
        let locks = Arc::new(Locks::default());
        locks.lock(1, TABLE, &key("a"), LONG).await.expect("free");
        let waiter = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.lock(2, TABLE, &key("a"), LONG).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let kept = locks.pack(1, vec![(TABLE, key("a"))]);
        assert_eq!(kept, vec![(TABLE, key("a"))]);
        locks.unpack(1);
        for (table, key) in kept {
            locks.unlock(1, table, &key);
        }
        assert!(waiter.await.expect("ends").expect("served"));
        assert!(!locks.lock(2, TABLE, &key("a"), LONG).await.expect("held"));
    }
}
