//! The sequencer: one thread that orders commits.
//!
//! Sessions hand over finished write sets; the sequencer checks each against what was committed since its snapshot, stamps
//! it, and proposes groups of them as single log entries, with several entries in flight. What arrives while the log is
//! busy shares the next entry: no timer, no global lock.
//!
//! # Invariants
//! - SEQ-1 commit timestamps ascend strictly in log order (`timestamps_ascend_in_log_order`).
//! - SEQ-2 of two transactions that wrote one row, the one with the older snapshot fails, and one that wrote other rows does
//!   not (`first_committer_wins`, `a_flush_between_read_and_commit_keeps_the_conflict`,
//!   `a_bulk_load_and_small_writers_on_other_keys_do_not_conflict`). One whose predecessors cannot be checked any more
//!   fails too (`a_transaction_older_than_what_is_remembered_is_refused`).
//! - SEQ-3 a commit is acknowledged, and its locks are released, after its entry is durable and applied, whether its
//!   session still waits for it or not (`a_commit_whose_caller_goes_keeps_its_locks_until_it_is_decided`).
//! - SEQ-4 publications pass through here too, so that a commit ordered after one has current row addresses.
//! - SEQ-5 several entries are on their way at once, and share an fsync (`entries_in_flight_share_an_fsync`).
//! - SEQ-6 what was checked under one leadership is proposed in no other ([`raft::Raft::propose_in`]).
//!
//! # Large transactions
//! The keys of a large transaction lie in files, which this thread does not read. [`crate::validate`] compares them with
//! what others committed, in the session, up to some moment. Here it is only seen whether something came after that moment
//! that the files' key ranges and Bloom filters cannot rule out; then the write set goes back to be validated again.
//!
//! # Failure
//! When a proposal fails, its outcome is unknown: its transactions get `Indeterminate` and the sequencer refuses work
//! until the store is opened again. What is refused before it is in the log leaves nothing behind
//! (`tests::a_refused_publication_leaves_nothing`). A group that does not fit into one entry is not proposed: its
//! transactions are refused, and the work goes on
//! (`a_transaction_too_large_for_the_log_is_refused_and_the_store_goes_on`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::{Classify, CommitTs, FileId, RequestId, RowAddress, RowKey, SqlState, TableId, Term};
use bytes::Bytes;
use codec::StoredSchema;
use columns::{FileMeta, FileStats};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use roaring::RoaringBitmap;
use rows::RowOp;
use tokio::sync::oneshot;

use crate::command::{Command, Commit, Publish, TableEffects};
use crate::state::{Prepared, State, Table};
use crate::timekeeper::Timekeeper;
use crate::transaction::Ending;
use crate::{Error, Result, TransactionHeader};

/// Log entries that may be on their way at once.
const ENTRIES_IN_FLIGHT: usize = 4;
/// Transactions in one entry.
const GROUP_TRANSACTIONS: usize = 1024;
/// Bytes of row effects in one entry, unless a single transaction is larger.
const GROUP_BYTES: usize = 1 << 20;

/// What a written row replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Predecessor {
    /// Nothing: an insert.
    Nothing,
    /// A version in the row tier.
    RowTier,
    /// A row in the column tier.
    Columns(RowAddress),
}

/// The write set of one table.
#[derive(Debug)]
pub(crate) struct TableCommit {
    pub(crate) table: Arc<Table>,
    pub(crate) schema: Arc<StoredSchema>,
    pub(crate) truncate: bool,
    pub(crate) rows: Vec<(RowKey, RowOp, Predecessor)>,
    pub(crate) staged: Vec<FileMeta>,
    /// The statistics of `staged`, once validation has read them.
    pub(crate) staged_stats: Vec<Arc<FileStats>>,
    pub(crate) masks: Vec<(FileId, RoaringBitmap)>,
}

impl TableCommit {
    /// Whether what moved since the transaction began must be known: where rows lie that it replaces, and which keys were
    /// written that its files may hold. Single rows that it inserts were checked, and locked, when they were written.
    fn needs_memory(&self) -> bool {
        let replaces = self.rows.iter().any(|(_, _, predecessor)| *predecessor != Predecessor::Nothing);
        replaces || !self.masks.is_empty() || !self.staged.is_empty() && !self.truncate && !self.schema.has_hidden_key()
    }
}

/// A finished transaction.
#[derive(Debug)]
pub(crate) struct CommitOrder {
    /// When the transaction began, in [`State::order`].
    pub(crate) began: u64,
    pub(crate) snapshot: CommitTs,
    /// Up to here no large transaction wrote what this one writes, nor the other way round.
    pub(crate) validated: CommitTs,
    pub(crate) request: Option<RequestId>,
    pub(crate) header: TransactionHeader,
    pub(crate) defines: Vec<Arc<StoredSchema>>,
    pub(crate) drops: Vec<TableId>,
    pub(crate) tables: Vec<TableCommit>,
    pub(crate) bytes: usize,
    /// Ends the transaction, wherever its write set ends.
    pub(crate) ending: Ending,
}

/// What became of a [`CommitOrder`].
#[derive(Debug)]
pub(crate) enum Reply {
    /// It committed, or failed.
    Decided(Result<CommitTs>),
    /// It must be validated up to a later moment first.
    Validate(Box<CommitOrder>),
}

impl CommitOrder {
    /// Effects that are checked against whole tables rather than key by key; they are ordered alone.
    fn is_bulk(&self) -> bool {
        self.tables.iter().any(|table| table.truncate || !table.staged.is_empty() || !table.masks.is_empty())
    }
}

/// Work for the sequencer.
#[derive(Debug)]
pub(crate) enum Order {
    Commit { order: Box<CommitOrder>, reply: oneshot::Sender<Reply> },
    Publish { publish: Box<Publish>, prepared: Arc<Prepared>, reply: oneshot::Sender<Result<()>> },
    Tick { ts: CommitTs, reply: oneshot::Sender<Result<()>> },
    Allocate { counter: String, count: u64, reply: oneshot::Sender<Result<u64>> },
    Forget { table: TableId, reply: oneshot::Sender<Result<()>> },
    Stop,
}

/// Counters of the sequencer.
#[derive(Debug, Default)]
pub(crate) struct SequencerStats {
    pub(crate) groups: AtomicU64,
    pub(crate) conflicts: AtomicU64,
}

/// The handle sessions hold.
#[derive(Debug)]
pub(crate) struct Sequencer {
    orders: Sender<Order>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Arc<State>,
    /// Keys that are ordered but not applied.
    pending: Mutex<HashMap<(TableId, RowKey), CommitTs>>,
    failed: AtomicBool,
    stats: SequencerStats,
}

impl Sequencer {
    pub(crate) fn start(state: Arc<State>, raft: raft::Raft, clock: Timekeeper) -> Result<Self> {
        let (orders, receiver) = unbounded();
        let shared = Arc::new(Shared {
            state,
            pending: Mutex::default(),
            failed: AtomicBool::new(false),
            stats: SequencerStats::default(),
        });
        let (permit, permits) = bounded(ENTRIES_IN_FLIGHT);
        let term = raft.leading().ok_or_else(|| Error::Unavailable("this node does not lead".into()))?;
        let mut work = Worker {
            last: shared.state.last(),
            shared: Arc::clone(&shared),
            raft,
            term,
            clock,
            runtime: tokio::runtime::Handle::current(),
            permit,
            permits,
        };
        #[allow(clippy::disallowed_methods, reason = "the sequencer is the one thread of its own in storage")]
        let thread = std::thread::Builder::new()
            .name("lattice-sequencer".into())
            .spawn(move || work.run(&receiver))
            .map_err(|error| Error::Unavailable(format!("cannot start the sequencer thread: {error}")))?;
        Ok(Self { orders, thread: Mutex::new(Some(thread)), shared })
    }

    pub(crate) fn send(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| Error::Unavailable("the store is closed".into()))
    }

    pub(crate) fn stats(&self) -> &SequencerStats {
        &self.shared.stats
    }

    /// When the key was last written, as far as memory knows: ordered, in the row tier, or flushed lately.
    pub(crate) fn newest(&self, table: &Table, key: &RowKey) -> Option<CommitTs> {
        let pending = self.shared.pending.lock().get(&(table.id, key.clone())).copied();
        pending.or_else(|| newest_applied(table, key))
    }

    pub(crate) fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn newest_applied(table: &Table, key: &RowKey) -> Option<CommitTs> {
    table.rows.newest(key).or_else(|| {
        let inner = table.inner.read();
        inner.recent.iter().rev().find_map(|(_, _, prepared)| {
            let at = prepared.flushed.binary_search_by(|(flushed, _)| flushed.cmp(key)).ok()?;
            Some(prepared.flushed[at].1)
        })
    })
}

/// Whether a failed proposal will certainly never be applied.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::TooLarge { .. }) || error.sqlstate() == SqlState::DISK_FULL
}

/// Why a write set cannot commit.
fn conflict(table: &Table) -> Error {
    Error::WriteConflict { table: table.id }
}

/// Where the row that a write replaces lies now. The caller has checked that nothing newer than the snapshot exists for the
/// key, so the newest version is the one that the transaction read.
fn current_address(writes: &TableCommit, key: &RowKey, predecessor: Predecessor) -> Result<Option<RowAddress>> {
    let table = &writes.table;
    let inner = table.inner.read();
    let follow = |mut address: RowAddress, from: usize| -> Result<RowAddress> {
        for (_, _, prepared) in inner.recent.iter().skip(from) {
            if let Some(relocation) = prepared.moved.get(&address.file) {
                address =
                    relocation.rows.get(address.offset as usize).copied().flatten().ok_or_else(|| conflict(table))?;
            }
        }
        Ok(address)
    };
    let address = match predecessor {
        Predecessor::Nothing => return Ok(None),
        Predecessor::RowTier => {
            if table.rows.newest(key).is_some_and(|ts| ts > inner.published.cut) {
                return Ok(None);
            }
            // A flush moved the row since it was read.
            let found = inner
                .recent
                .iter()
                .enumerate()
                .rev()
                .find_map(|(at, (_, _, prepared))| prepared.address(key).map(|address| (at, address)));
            let (at, address) = found.ok_or_else(|| conflict(table))?;
            follow(address, at + 1)?
        }
        Predecessor::Columns(address) if writes.staged.iter().any(|meta| meta.file == address.file) => {
            return Ok(Some(address));
        }
        Predecessor::Columns(address) => follow(address, 0)?,
    };
    // A row of a file that is no longer current was seen in history: it has been superseded since the snapshot.
    let live = inner.published.file(address.file).is_some();
    let closed = inner.masks.get(&address.file).and_then(|mask| mask.closed_at(address.offset));
    if !live || closed.is_some() {
        return Err(conflict(table));
    }
    Ok(Some(address))
}

struct Worker {
    shared: Arc<Shared>,
    raft: raft::Raft,
    /// The leadership under which commits are checked.
    term: Term,
    clock: Timekeeper,
    runtime: tokio::runtime::Handle,
    last: CommitTs,
    permit: Sender<()>,
    permits: Receiver<()>,
}

/// Who is to learn of an outcome.
struct Decision {
    ending: Ending,
    reply: oneshot::Sender<Reply>,
}

impl Decision {
    /// Ends the transaction and tells its session, if that still waits.
    fn tell(self, outcome: Result<CommitTs>) {
        self.ending.decided(&outcome);
        let _ = self.reply.send(Reply::Decided(outcome));
    }
}

/// Commits that share one entry.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    replies: Vec<(CommitTs, Decision)>,
    keys: Vec<(TableId, RowKey)>,
    bytes: usize,
}

impl Worker {
    fn run(&mut self, orders: &Receiver<Order>) {
        let mut next: Option<Order> = None;
        loop {
            let Some(order) = next.take().or_else(|| orders.recv().ok()) else { break };
            match order {
                Order::Stop => break,
                Order::Commit { order, reply } if order.is_bulk() => {
                    self.drain();
                    let mut group = Group::default();
                    self.admit(order, reply, &mut group);
                    self.propose_group(group);
                    self.drain();
                }
                Order::Commit { order, reply } => {
                    // Waiting for a place in flight before collecting lets the group grow while the log is busy.
                    self.wait_for_place();
                    let mut group = Group::default();
                    self.admit(order, reply, &mut group);
                    let most = GROUP_BYTES.min(self.raft.max_command_bytes() / 2);
                    while group.commits.len() < GROUP_TRANSACTIONS && group.bytes < most {
                        match orders.try_recv() {
                            // A large one goes alone, so that it has the whole entry.
                            Ok(Order::Commit { order, reply })
                                if !order.is_bulk() && group.bytes + order.bytes <= most =>
                            {
                                self.admit(order, reply, &mut group);
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.propose_group(group);
                }
                Order::Publish { publish, prepared, reply } => {
                    self.drain();
                    self.publish(*publish, prepared, reply);
                    self.drain();
                }
                Order::Tick { ts, reply } => {
                    self.last = self.last.max(ts);
                    self.propose(&Command::Tick(ts), move |outcome| {
                        let _ = reply.send(outcome.map(|_| ()));
                    });
                }
                Order::Forget { table, reply } => {
                    self.propose(&Command::Forget(table), move |outcome| {
                        let _ = reply.send(outcome.map(|_| ()));
                    });
                }
                Order::Allocate { counter, count, reply } => {
                    self.propose(&Command::Allocate { counter, count }, move |outcome| {
                        let _ = reply.send(outcome.and_then(|bytes| {
                            let first: [u8; 8] = bytes
                                .as_ref()
                                .try_into()
                                .map_err(|_| Error::Corrupt("reply of a counter is not 8 bytes".into()))?;
                            Ok(u64::from_le_bytes(first))
                        }));
                    });
                }
            }
        }
        self.drain();
    }

    fn wait_for_place(&self) {
        // A place is a token in the bounded channel; sending blocks while all are taken.
        if self.permit.send(()).is_ok() {
            let _ = self.permits.try_recv();
        }
    }

    /// Waits until nothing is in flight.
    fn drain(&self) {
        for _ in 0..ENTRIES_IN_FLIGHT {
            let _ = self.permit.send(());
        }
        for _ in 0..ENTRIES_IN_FLIGHT {
            let _ = self.permits.try_recv();
        }
    }

    fn stamp(&mut self) -> Result<CommitTs> {
        self.last = self.last.next().max(self.clock.now()?);
        Ok(self.last)
    }

    fn admit(&mut self, mut order: Box<CommitOrder>, reply: oneshot::Sender<Reply>, group: &mut Group) {
        if let Some(ts) = order.request.and_then(|request| self.shared.state.outcome(request)) {
            return Decision { ending: order.ending, reply }.tell(Ok(ts));
        }
        if self.shared.failed.load(Ordering::Acquire) {
            let failed = Error::Unavailable("an earlier commit failed: restart the server".into());
            return Decision { ending: order.ending, reply }.tell(Err(failed));
        }
        match self.check(&mut order) {
            Err(Refusal::Failed(error)) => {
                if matches!(error, Error::WriteConflict { .. }) {
                    self.shared.stats.conflicts.fetch_add(1, Ordering::Relaxed);
                }
                Decision { ending: order.ending, reply }.tell(Err(error));
            }
            Err(Refusal::Unvalidated) => {
                // If nobody waits any more, the order ends here, and with it the transaction.
                let _ = reply.send(Reply::Validate(order));
            }
            Ok(addresses) => match self.stamp() {
                Ok(ts) => self.enlist(*order, reply, addresses, ts, group),
                Err(error) => Decision { ending: order.ending, reply }.tell(Err(error)),
            },
        }
    }

    /// First committer wins: no row that the transaction wrote may have been written since its snapshot.
    fn check(&self, order: &mut CommitOrder) -> Result<Vec<Vec<Option<RowAddress>>>, Refusal> {
        for writes in &mut order.tables {
            if writes.needs_memory() {
                writes.table.remembers(order.began)?;
            }
            follow_masks(writes)?;
        }
        let order = &*order;
        let pending = self.shared.pending.lock();
        let mut addresses = Vec::with_capacity(order.tables.len());
        for writes in &order.tables {
            let table = &writes.table;
            {
                let inner = table.inner.read();
                let defined = !inner.schemas.is_empty() || order.defines.iter().any(|schema| schema.table == table.id);
                if inner.dropped.is_some() || !defined {
                    return Err(Error::UnknownTable(table.id).into());
                }
                if let Some((_, newest)) = inner.schemas.last()
                    && newest.version > writes.schema.version
                {
                    return Err(conflict(table).into());
                }
            }
            let mut of_table = Vec::with_capacity(writes.rows.len());
            for (key, _, predecessor) in &writes.rows {
                if pending.contains_key(&(table.id, key.clone()))
                    || newest_applied(table, key).is_some_and(|ts| ts > order.snapshot)
                {
                    return Err(conflict(table).into());
                }
                of_table.push(current_address(writes, key, *predecessor)?);
            }
            check_masks(writes)?;
            check_validated(order, writes)?;
            // Again, because what was asked above may have been forgotten meanwhile.
            if writes.needs_memory() {
                table.remembers(order.began)?;
            }
            addresses.push(of_table);
        }
        Ok(addresses)
    }

    fn enlist(
        &mut self,
        mut order: CommitOrder,
        reply: oneshot::Sender<Reply>,
        addresses: Vec<Vec<Option<RowAddress>>>,
        ts: CommitTs,
        group: &mut Group,
    ) {
        let mut aside = Vec::new();
        let mut tables = Vec::with_capacity(order.tables.len());
        for (mut writes, addresses) in order.tables.into_iter().zip(addresses) {
            let id = writes.table.id;
            let mut effects = TableEffects { table: id, truncate: writes.truncate, ..TableEffects::default() };
            for ((key, op, _), address) in writes.rows.into_iter().zip(addresses) {
                aside.extend(address.map(|address| (id, key.clone(), address)));
                group.keys.push((id, key.clone()));
                effects.rows.push((key, op));
            }
            for meta in &mut writes.staged {
                if let Err(error) = meta.bind(&writes.schema, ts) {
                    return Decision { ending: order.ending, reply }.tell(Err(Error::part(error)));
                }
            }
            effects.staged = writes.staged;
            effects.masks = writes.masks.into_iter().map(|(file, rows)| (file, Arc::new(rows))).collect();
            tables.push(effects);
        }
        {
            let mut pending = self.shared.pending.lock();
            for effects in &tables {
                pending.extend(effects.rows.iter().map(|(key, _)| ((effects.table, key.clone()), ts)));
            }
        }
        if !aside.is_empty() {
            self.shared.state.aside.addresses.lock().insert(ts, aside);
        }
        group.bytes += order.bytes;
        order.ending.ordered();
        group.replies.push((ts, Decision { ending: order.ending, reply }));
        group.commits.push(Commit {
            ts,
            request: order.request,
            header: order.header,
            defines: order.defines,
            drops: order.drops,
            tables,
        });
    }

    fn propose_group(&mut self, group: Group) {
        if group.commits.is_empty() {
            return;
        }
        self.shared.stats.groups.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        let Group { commits, replies, keys, .. } = group;
        self.propose(&Command::Group(commits), move |outcome| {
            {
                let mut pending = shared.pending.lock();
                for key in keys {
                    pending.remove(&key);
                }
            }
            match outcome {
                Ok(_) => {
                    for (ts, decision) in replies {
                        decision.tell(Ok(ts));
                    }
                }
                Err(error) => {
                    for (ts, decision) in replies {
                        let error = match error {
                            Error::TooLarge { bytes, limit } => Error::TooLarge { bytes, limit },
                            ref error if is_refusal(error) => Error::DiskFull,
                            _ => Error::Indeterminate,
                        };
                        if !matches!(error, Error::Indeterminate) {
                            shared.state.aside.addresses.lock().remove(&ts);
                        }
                        decision.tell(Err(error));
                    }
                }
            }
        });
    }

    fn publish(&mut self, publish: Publish, prepared: Arc<Prepared>, reply: oneshot::Sender<Result<()>>) {
        let table = self.shared.state.table_or_new(publish.table);
        {
            // A set of rows masked by a large transaction after the cut cannot be carried over to the rewritten files. Files
            // that go because all their rows went before the cut have nothing to carry over.
            let inner = table.inner.read();
            let lost = prepared
                .moved
                .keys()
                .any(|file| inner.masks.get(file).is_some_and(|mask| mask.has_layers_after(publish.cut)));
            let forgotten = inner.dropped.is_some() && inner.schemas.is_empty();
            if lost || forgotten {
                drop(inner);
                table.forget_cut();
                let _ = reply.send(Err(conflict(&table)));
                return;
            }
        }
        let place = (publish.table, publish.cut);
        let shared = Arc::clone(&self.shared);
        shared.state.aside.prepared.lock().insert(place, prepared);
        self.propose(&Command::Publish(publish), move |outcome| {
            if outcome.as_ref().is_err_and(is_refusal) {
                table.forget_cut();
                shared.state.aside.prepared.lock().remove(&place);
            }
            let _ = reply.send(outcome.map(|_| ()));
        });
    }

    /// Sends one entry on its way; `done` runs once it is durable and applied, or has failed.
    fn propose(&mut self, command: &Command, done: impl FnOnce(Result<Bytes>) + Send + 'static) {
        let bytes = match command.encode() {
            Ok(bytes) => bytes,
            Err(error) => return done(Err(error)),
        };
        let limit = self.raft.max_command_bytes();
        if bytes.len() > limit {
            // Not in the log, and nothing else is affected.
            return done(Err(Error::TooLarge { bytes: bytes.len(), limit }));
        }
        let _ = self.permit.send(());
        let proposal = {
            let _context = self.runtime.enter();
            self.raft.propose_in(self.term, bytes)
        };
        let shared = Arc::clone(&self.shared);
        let permits = self.permits.clone();
        self.runtime.spawn(async move {
            let outcome = proposal.await.map(|proposed| proposed.reply).map_err(|error| {
                shared.failed.store(true, Ordering::Release);
                tracing::error!(%error, "a proposal failed: no further commit is accepted");
                Error::part(error)
            });
            let outcome = outcome.and_then(|reply| shared.state.check().map(|()| reply));
            done(outcome);
            let _ = permits.try_recv();
        });
    }
}

/// Why a commit is not ordered.
enum Refusal {
    Failed(Error),
    Unvalidated,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(error)
    }
}

/// Brings the sets of rows that a large transaction supersedes up to date with the merges since it read them.
fn follow_masks(writes: &mut TableCommit) -> Result<()> {
    if writes.masks.is_empty() {
        return Ok(());
    }
    let inner = writes.table.inner.read();
    for (_, _, prepared) in inner.recent.iter().filter(|(_, _, prepared)| !prepared.moved.is_empty()) {
        let (moved, mut masks): (Vec<_>, Vec<_>) =
            std::mem::take(&mut writes.masks).into_iter().partition(|(file, _)| prepared.moved.contains_key(file));
        let mut followed: BTreeMap<FileId, RoaringBitmap> = BTreeMap::new();
        for (file, rows) in &moved {
            let Some(relocation) = prepared.moved.get(file) else { continue };
            for offset in rows {
                // A row that was not carried over had been superseded before.
                let address =
                    relocation.rows.get(offset as usize).copied().flatten().ok_or_else(|| conflict(&writes.table))?;
                followed.entry(address.file).or_default().insert(address.offset);
            }
        }
        for (file, rows) in followed {
            match masks.iter_mut().find(|(known, _)| *known == file) {
                Some((_, known)) => *known |= rows,
                None => masks.push((file, rows)),
            }
        }
        writes.masks = masks;
    }
    Ok(())
}

/// No row that a large transaction supersedes may have been superseded by another one.
fn check_masks(writes: &TableCommit) -> Result<()> {
    let table = &writes.table;
    let (published, masks) = table.pin();
    for (file, rows) in &writes.masks {
        if published.file(*file).is_none() && !writes.staged.iter().any(|meta| meta.file == *file) {
            return Err(conflict(table));
        }
        if let Some(mask) = masks.get(file)
            && !mask.rows_at(CommitTs::MAX).is_disjoint(rows)
        {
            return Err(conflict(table));
        }
    }
    Ok(())
}

/// Whether validation covers everything that large transactions wrote before this one, and the other way round.
fn check_validated(order: &CommitOrder, writes: &TableCommit) -> Result<(), Refusal> {
    let table = &writes.table;
    let since = order.validated;
    // Hidden keys are handed out once, and after a truncation nothing is left to meet.
    if writes.truncate || writes.schema.has_hidden_key() || table.newest() <= since {
        return Ok(());
    }
    let published = table.published();
    let covers = |meta: &FileMeta, key: &RowKey| meta.min_key <= *key && *key <= meta.max_key;
    if table.newest_large() > since {
        let later = published.live_files().filter(|meta| meta.max_ts > since);
        for meta in later {
            let inserted = writes.rows.iter().any(|(key, _, at)| *at == Predecessor::Nothing && covers(meta, key));
            let overlaps =
                writes.staged.iter().any(|staged| staged.min_key <= meta.max_key && meta.min_key <= staged.max_key);
            if inserted || overlaps {
                return Err(Refusal::Unvalidated);
            }
        }
    }
    if writes.staged.is_empty() {
        return Ok(());
    }
    let may_hold =
        |key: &RowKey| {
            writes.staged.iter().enumerate().any(|(at, meta)| {
                covers(meta, key) && writes.staged_stats.get(at).is_none_or(|stats| stats.may_hold(key))
            })
        };
    // Versions that were flushed since are in the lists below.
    let scan = table.rows.scan(.., CommitTs::MAX, since.max(published.cut)).map_err(Error::part)?;
    for chunk in scan {
        if chunk.iter().any(|(key, _)| may_hold(key)) {
            return Err(Refusal::Unvalidated);
        }
    }
    let inner = table.inner.read();
    for (_, _, prepared) in &inner.recent {
        if prepared.flushed.iter().any(|(key, ts)| *ts > since && may_hold(key)) {
            return Err(Refusal::Unvalidated);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use runtime::{ManualClock, Runtime, SimDisk};

    use super::*;
    use crate::{Store, StoreOptions};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_refused_publication_leaves_nothing() {
        let mut options = StoreOptions::new("/data".into());
        options.flush_interval_ms = 0;
        options.segment_bytes = 64 << 10;
        let runtime = Runtime::simulated(ManualClock::new(CommitTs(1_000_000)), SimDisk::new());
        let store = Store::open(runtime, options).await.expect("opens");
        let core = &store.core;
        let table = core.state.table_or_new(TableId(1000));
        let publication = |files: u64| Publish {
            table: table.id,
            cut: CommitTs(7),
            removed: (0..files).map(|file| FileId(file + (1 << 40))).collect(),
            ..Publish::default()
        };
        let send = |files| {
            table.inner.write().since_cut = Some(Vec::new());
            let (reply, done) = oneshot::channel();
            let publish = Box::new(publication(files));
            core.sequencer.send(Order::Publish { publish, prepared: Arc::default(), reply }).expect("sent");
            done
        };
        let left = || (core.state.aside.prepared.lock().len(), table.inner.read().since_cut.is_some());
        let refused = send(100_000).await.expect("an answer");
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
        assert_eq!(left(), (0, false));
        // It does no harm: the next one is published, and leaves nothing either.
        send(10).await.expect("an answer").expect("published");
        assert_eq!(left(), (0, false));
        assert_eq!(table.published().cut, CommitTs(7));
        store.shutdown().await.expect("shutdown");
    }
}
