//! Plans and outcomes that wait to be fetched, and results that are being fetched.
//!
//! `GetFlightInfo` leaves something here: the plan of a query, the rows of a statement that had effects, or a query that
//! `PollFlightInfo` has started. `DoGet` picks it up. Everything expires, and the store is bounded in entries and bytes; a query that
//! was evicted is planned again from its ticket, at the moment the ticket names.
//!
//! A plan holds the row versions it will read. So there is a bound on how many plans are held, and a plan that nobody fetches is let
//! go after a short time, long before its ticket expires. Only plans with several shares are held on, because nothing else knows where
//! one share ends and the next begins: until each share has been read and nobody has asked again for that short time, or until the
//! tickets expire. When writers need the memory of old versions, nothing that is idle is held longer than the short time.
//!
//! # Invariants
//! - RESULT-1 the store never holds more than its limits. Test: `the_store_is_bounded`.
//! - RESULT-4 a client that never fetches holds versions only for [`Bounds::pin`], or until others need the room.
//!   Test: `tests::tickets::pins_end`.
//! - RESULT-2 what was cancelled stays cancelled. Test: `tests::cancelled_is_cancelled`.
//! - RESULT-3 only the same principal finds an entry. Test: `entries_are_private`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use base::Principal;
use parking_lot::Mutex;
use sql::{Moment, Opened, Params, Rows, TransactionId};
use tokio::time::Instant;
use uuid::Uuid;

use crate::encode::Stop;
use crate::plan::Plan;
use crate::sessions::Client;

/// Something to fetch.
pub(crate) enum Content {
    /// A query that is planned, not started.
    Planned(Planned),
    /// A query that has begun; its rows can be had once.
    Started(Started),
    /// Rows of a statement that has run.
    Rows { schema: SchemaRef, batches: Arc<Vec<RecordBatch>> },
    /// Somebody cancelled it.
    Cancelled,
}

/// A planned query.
#[derive(Clone)]
pub(crate) struct Planned {
    pub(crate) owner: Arc<Client>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) params: Params,
    pub(crate) transaction: Option<TransactionId>,
    /// What it reads, outside transactions.
    pub(crate) moment: Option<Moment>,
    /// Ready to run, unless it was let go.
    pub(crate) opened: Option<Arc<Opened>>,
    /// The ticket cannot stand for it, so it stays until it expires.
    pub(crate) kept: bool,
}

impl Planned {
    /// Whether what it reads has a name that outlives the plan. A block that BEGIN opened has none.
    pub(crate) fn is_named(&self) -> bool {
        self.moment.is_some() || self.transaction.is_some()
    }

    fn shares(&self) -> usize {
        self.opened.as_ref().map_or(1, |opened| opened.shares())
    }
}

/// A query in flight, with its first batch.
pub(crate) struct Started {
    pub(crate) rows: Rows,
    pub(crate) first: Option<RecordBatch>,
    pub(crate) statement: Arc<str>,
}

/// What [`Results::take`] found.
pub(crate) enum Taken {
    Planned(Planned),
    Started(Started),
    Rows { schema: SchemaRef, batches: Arc<Vec<RecordBatch>> },
    Cancelled,
}

struct Entry {
    principal: Principal,
    client: u64,
    /// When it was made or last read.
    used: Instant,
    expires: Instant,
    /// Shares that have been read.
    read: HashSet<u32>,
    bytes: usize,
    content: Content,
}

impl Entry {
    /// Whether it holds row versions.
    fn is_pinned(&self) -> bool {
        match &self.content {
            Content::Planned(planned) => planned.opened.as_ref().is_some_and(|opened| opened.holds_versions()),
            Content::Started(_) => true,
            Content::Rows { .. } | Content::Cancelled => false,
        }
    }

    /// Whether its ticket alone can bring it back, so that the plan can be let go.
    fn can_let_go(&self) -> bool {
        match &self.content {
            Content::Planned(planned) => planned.opened.is_some() && planned.shares() == 1 && planned.is_named(),
            _ => false,
        }
    }

    /// Whether every share of it has been read.
    fn is_read(&self) -> bool {
        matches!(&self.content, Content::Planned(planned) if planned.shares() > 1 && self.read.len() >= planned.shares())
    }

    fn let_go(&mut self) -> Option<Arc<Opened>> {
        match &mut self.content {
            Content::Planned(planned) => planned.opened.take(),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Store {
    entries: HashMap<Uuid, Entry>,
    order: VecDeque<Uuid>,
    /// Entries that held versions when they came, oldest first; some may be gone.
    pinned: VecDeque<Uuid>,
    bytes: usize,
    running: HashMap<Uuid, (Principal, Vec<Stop>)>,
}

impl Store {
    fn remove(&mut self, id: Uuid) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    fn count_pinned(&mut self) -> usize {
        let Store { entries, pinned, .. } = self;
        pinned.retain(|id| entries.get(id).is_some_and(Entry::is_pinned));
        pinned.len()
    }
}

/// How much is held, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// How long an entry waits.
    pub(crate) ttl: Duration,
    /// How long a plan that its ticket can bring back holds its versions.
    pub(crate) pin: Duration,
    pub(crate) entries_max: usize,
    pub(crate) bytes_max: usize,
    /// Entries that hold versions.
    pub(crate) pins_max: usize,
}

/// The store.
pub(crate) struct Results {
    bounds: Bounds,
    store: Arc<Mutex<Store>>,
}

/// Marks a result as running while it lives.
pub(crate) struct Running {
    id: Uuid,
    stop: Stop,
    store: Arc<Mutex<Store>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut store = self.store.lock();
        if let Some((_, stops)) = store.running.get_mut(&self.id) {
            stops.retain(|stop| !stop.is(&self.stop));
            if stops.is_empty() {
                store.running.remove(&self.id);
            }
        }
    }
}

impl Results {
    pub(crate) fn new(bounds: Bounds) -> Results {
        Results { bounds, store: Arc::default() }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.bounds.ttl
    }

    /// How many entries hold versions.
    pub(crate) fn pinned(&self) -> usize {
        self.store.lock().count_pinned()
    }

    pub(crate) fn put(&self, id: Uuid, client: &Client, content: Content) {
        let bytes = match &content {
            Content::Rows { batches, .. } => batches.iter().map(RecordBatch::get_array_memory_size).sum(),
            Content::Planned(planned) => planned.opened.as_ref().map_or(0, |opened| opened.held_bytes()),
            Content::Started(_) | Content::Cancelled => 0,
        };
        self.insert(id, client.principal.clone(), client.number, bytes, content);
    }

    fn insert(&self, id: Uuid, principal: Principal, client: u64, bytes: usize, content: Content) {
        // Whatever is evicted is dropped after the lock: dropping a plan can take a while.
        let mut evicted = Vec::new();
        let mut store = self.store.lock();
        store.remove(id);
        store.bytes += bytes;
        store.order.push_back(id);
        let now = Instant::now();
        let expires = now + self.bounds.ttl;
        let entry = Entry { principal, client, used: now, expires, read: HashSet::new(), bytes, content };
        if entry.is_pinned() {
            store.pinned.push_back(id);
        }
        store.entries.insert(id, entry);
        let Bounds { entries_max, bytes_max, pins_max, .. } = self.bounds;
        while store.entries.len() > entries_max || (store.bytes > bytes_max && store.entries.len() > 1) {
            match store.order.pop_front() {
                Some(oldest) => evicted.extend(store.remove(oldest)),
                None => break,
            }
        }
        let mut let_go = Vec::new();
        if store.pinned.len() > pins_max && store.count_pinned() > pins_max {
            while store.pinned.len() > pins_max
                && let Some(oldest) = store.pinned.pop_front()
            {
                match store.entries.get_mut(&oldest) {
                    Some(entry) if entry.can_let_go() => let_go.extend(entry.let_go()),
                    _ => evicted.extend(store.remove(oldest)),
                }
            }
        }
        // Ids of entries that were taken long ago.
        if store.order.len() > 2 * entries_max.max(16) {
            let Store { entries, order, .. } = &mut *store;
            order.retain(|id| entries.contains_key(id));
        }
        drop(store);
        drop((evicted, let_go));
    }

    /// What a ticket stands for, if it is still here and the caller's.
    pub(crate) fn take(&self, id: Uuid, caller: &Principal, share: u32) -> Option<Taken> {
        let mut store = self.store.lock();
        let entry = store.entries.get_mut(&id)?;
        let now = Instant::now();
        if entry.principal != *caller || entry.expires < now {
            return None;
        }
        entry.used = now;
        match &entry.content {
            Content::Rows { schema, batches } => {
                return Some(Taken::Rows { schema: Arc::clone(schema), batches: Arc::clone(batches) });
            }
            Content::Cancelled => return Some(Taken::Cancelled),
            Content::Planned(planned) if planned.kept || planned.shares() > 1 => {
                if usize::try_from(share).is_ok_and(|share| share < planned.shares()) {
                    entry.read.insert(share);
                }
                return Some(Taken::Planned(planned.clone()));
            }
            Content::Planned(_) | Content::Started(_) => {}
        }
        match store.remove(id)?.content {
            Content::Planned(planned) => Some(Taken::Planned(planned)),
            Content::Started(started) => Some(Taken::Started(started)),
            Content::Rows { schema, batches } => Some(Taken::Rows { schema, batches }),
            Content::Cancelled => Some(Taken::Cancelled),
        }
    }

    /// Lets an entry live on; says whether there is one.
    pub(crate) fn renew(&self, id: Uuid, caller: &Principal) -> bool {
        let mut store = self.store.lock();
        match store.entries.get_mut(&id) {
            Some(entry) if entry.principal == *caller && entry.expires >= Instant::now() => {
                entry.expires = Instant::now() + self.bounds.ttl;
                true
            }
            _ => false,
        }
    }

    /// Registers a result that is being fetched.
    pub(crate) fn running(&self, id: Uuid, caller: &Principal, stop: &Stop) -> Running {
        let mut store = self.store.lock();
        store.running.entry(id).or_insert_with(|| (caller.clone(), Vec::new())).1.push(stop.clone());
        Running { id, stop: stop.clone(), store: Arc::clone(&self.store) }
    }

    /// Stops and forgets a result; says whether there was something to stop.
    pub(crate) fn cancel(&self, id: Uuid, caller: &Client) -> bool {
        let mut found = false;
        let mut dropped = None;
        {
            let mut store = self.store.lock();
            if let Some((principal, stops)) = store.running.get(&id)
                && *principal == caller.principal
            {
                stops.iter().for_each(Stop::stop);
                found = true;
            }
            let waiting = store.entries.get(&id).is_some_and(|entry| {
                entry.principal == caller.principal
                    && !matches!(entry.content, Content::Rows { .. } | Content::Cancelled)
            });
            if waiting {
                dropped = store.remove(id);
                found = true;
            }
        }
        drop(dropped);
        if found {
            // RESULT-2: the ticket would otherwise be planned again.
            self.put(id, caller, Content::Cancelled);
        }
        found
    }

    /// Drops what has expired, and lets go of plans that nobody fetches, or, when memory is short, of whatever is idle.
    pub(crate) fn expire(&self, is_pressed: bool) {
        let now = Instant::now();
        let mut running: HashSet<Uuid> = HashSet::new();
        let let_go: Vec<Arc<Opened>> = {
            let mut store = self.store.lock();
            running.extend(store.running.keys());
            let stale = |entry: &&mut Entry| entry.can_let_go() && entry.used + self.bounds.pin < now;
            store.entries.values_mut().filter(stale).filter_map(Entry::let_go).collect()
        };
        drop(let_go);
        self.drop_where(|id, entry| {
            let idle = entry.used + self.bounds.pin < now && !running.contains(id);
            entry.expires < now || (idle && (entry.is_read() || (is_pressed && entry.is_pinned())))
        });
    }

    /// Drops what belongs to sessions that have ended.
    pub(crate) fn forget(&self, clients: &[u64]) {
        if !clients.is_empty() {
            self.drop_where(|_, entry| clients.contains(&entry.client));
        }
    }

    fn drop_where(&self, gone: impl Fn(&Uuid, &Entry) -> bool) {
        let mut store = self.store.lock();
        let ids: Vec<Uuid> = store.entries.iter().filter(|(id, entry)| gone(id, entry)).map(|(id, _)| *id).collect();
        let dropped: Vec<Option<Entry>> = ids.into_iter().map(|id| store.remove(id)).collect();
        drop(store);
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn bounds(entries_max: usize, bytes_max: usize) -> Bounds {
        let ttl = Duration::from_secs(60);
        Bounds { ttl, pin: ttl, entries_max, bytes_max, pins_max: 10 }
    }

    fn rows(count: i64) -> Content {
        let batch =
            RecordBatch::try_from_iter(vec![("n", Arc::new(Int64Array::from_iter_values(0..count)) as ArrayRef)])
                .unwrap();
        Content::Rows { schema: batch.schema(), batches: Arc::new(vec![batch]) }
    }

    fn insert(results: &Results, who: &str, bytes: usize) -> Uuid {
        let id = Uuid::new_v4();
        results.insert(id, Principal::user(who), 1, bytes, rows(3));
        id
    }

    #[tokio::test]
    async fn the_store_is_bounded() {
        let results = Results::new(bounds(3, 1000));
        let me = Principal::user("me");
        let ids: Vec<Uuid> = (0..5).map(|_| insert(&results, "me", 10)).collect();
        let there: Vec<bool> = ids.iter().map(|id| results.take(*id, &me, 0).is_some()).collect();
        assert_eq!(there, [false, false, true, true, true]);
        let big = insert(&results, "me", 999);
        assert!(results.take(big, &me, 0).is_some());
        assert!(results.take(ids[4], &me, 0).is_none(), "too many bytes together");
        assert_eq!(results.store.lock().bytes, 999);
        for _ in 0..200 {
            insert(&results, "me", 1);
        }
        assert!(results.store.lock().order.len() <= 40);
    }

    #[tokio::test]
    async fn entries_are_private() {
        let results = Results::new(bounds(3, 1000));
        let id = insert(&results, "me", 10);
        assert!(results.take(id, &Principal::user("other"), 0).is_none());
        assert!(!results.renew(id, &Principal::user("other")));
        assert!(matches!(results.take(id, &Principal::user("me"), 0), Some(Taken::Rows { .. })));

        let expire = || {
            let mut store = results.store.lock();
            store.entries.get_mut(&id).unwrap().expires = Instant::now() - Duration::from_millis(1);
        };
        assert!(results.renew(id, &Principal::user("me")));
        assert!(results.store.lock().entries[&id].expires > Instant::now() + Duration::from_secs(50));
        expire();
        assert!(results.take(id, &Principal::user("me"), 0).is_none(), "expired");
        assert!(!results.renew(id, &Principal::user("me")), "too late");
        results.expire(false);
        assert_eq!(results.store.lock().entries.len(), 0);
    }

    #[test]
    fn running_results_are_known_while_they_run() {
        let results = Results::new(bounds(3, 1000));
        let (one, two) = (Stop::new(), Stop::new());
        let id = Uuid::new_v4();
        let me = Principal::user("me");
        let first = results.running(id, &me, &one);
        let second = results.running(id, &me, &two);
        drop(first);
        assert_eq!(results.store.lock().running[&id].1.len(), 1);
        drop(second);
        assert!(results.store.lock().running.is_empty());
    }
}
