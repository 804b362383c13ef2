//! One member: opening, proposing, checkpointing, stopping.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base::{LogIndex, Term};
use bytes::Bytes;
use journal::{Journal, Recovered};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{BasicNode, Config, LogIdOptionExt, RaftMetrics, ReadPolicy, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::log::LogStore;
use crate::machine::{CheckpointRef, StateMachine};
use crate::network::{self, Network, Rpc, Transport};
use crate::types::{Command, Fatal, LogId, TypeConfig};

/// How long a shutdown waits for proposals already accepted.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a checkpoint waits for the log to be cut; a follower still reading old entries may delay it further.
const PURGE: Duration = Duration::from_secs(5);

/// Called once, with the reason, when the node stops by itself.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// How a member is opened.
#[derive(Clone)]
pub struct RaftOptions {
    /// This member's id; never changed or given to another node.
    pub node_id: u64,
    /// The first members with their addresses, used only when the log is empty. Every first member must be opened with
    /// the same ones. Empty: wait to be added by a leader.
    pub members: BTreeMap<u64, String>,
    /// Carries messages to the other members. A single voter needs none.
    pub transport: Option<Arc<dyn Transport>>,
    /// A follower that hears nothing for a random time in this range stands for election.
    pub election_timeout: Range<Duration>,
    /// How often a leader shows itself when it has nothing to send.
    pub heartbeat: Duration,
    /// How many entries before a checkpoint stay in the log, for followers that lag a little.
    pub keep_entries: u64,
    /// How long opening a single voter may take after the log has been replayed.
    pub open_timeout: Duration,
    /// Called once when the node stops by itself.
    pub on_fatal: Option<FatalHook>,
}

impl RaftOptions {
    /// A cluster of this node alone.
    pub fn single(node_id: u64) -> RaftOptions {
        RaftOptions {
            node_id,
            members: BTreeMap::from([(node_id, String::new())]),
            transport: None,
            // Wide enough for the fsync pauses of shared disks; fail-over then takes about a second.
            election_timeout: Duration::from_millis(300)..Duration::from_millis(600),
            heartbeat: Duration::from_millis(60),
            keep_entries: 0,
            open_timeout: Duration::from_secs(30),
            on_fatal: None,
        }
    }

    /// One of several first members.
    pub fn cluster(node_id: u64, members: BTreeMap<u64, String>, transport: Arc<dyn Transport>) -> RaftOptions {
        RaftOptions { members, transport: Some(transport), ..RaftOptions::single(node_id) }
    }

    fn config(&self) -> Result<Config> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "lattice".into(),
            election_timeout_min: millis(self.election_timeout.start),
            election_timeout_max: millis(self.election_timeout.end),
            heartbeat_interval: millis(self.heartbeat),
            // A follower that has just acknowledged entries needs no heartbeat.
            heartbeat_min_interval: Some(millis(self.heartbeat)),
            // A vote is asked for in earnest only when it would be given, so a member that was cut off does not unseat
            // a working leader on its return.
            enable_pre_vote: Some(true),
            // A restarted leader may lag behind what it acknowledged until it has replayed: it must be elected again.
            enable_leader_restore: Some(false),
            // Checkpoints follow the flush, not the number of entries; the log is then cut right behind them.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: 1,
            install_snapshot_timeout: 600_000,
            max_payload_entries: 4096,
            max_append_entries: Some(4096),
            ..Config::default()
        };
        config.validate().map_err(|error| Error::Options(error.to_string()))
    }
}

impl fmt::Debug for RaftOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftOptions")
            .field("node_id", &self.node_id)
            .field("members", &self.members)
            .field("election_timeout", &self.election_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("keep_entries", &self.keep_entries)
            .finish_non_exhaustive()
    }
}

/// A command that is durable on a quorum and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its place in the log.
    pub index: LogIndex,
    /// The term it was proposed in.
    pub term: Term,
    /// What [`StateMachine::apply`] returned.
    pub reply: Bytes,
}

/// What a member takes part as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives the log without a vote.
    Learner,
    /// Receives the log and votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Orders commands.
    Leader,
    /// Has stopped.
    Stopped,
}

/// Figures of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// What the member is.
    pub role: Role,
    /// The newest term it knows.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// The last entry in its log.
    pub last: Option<LogIndex>,
    /// The last entry it knows to be committed.
    pub committed: Option<LogIndex>,
    /// The last entry it applied.
    pub applied: Option<LogIndex>,
    /// The last entry covered by its checkpoint.
    pub checkpoint: Option<LogIndex>,
    /// The last entry cut from its log.
    pub purged: Option<LogIndex>,
    /// The voters.
    pub voters: Vec<u64>,
}

/// A member of the cluster that agrees on the log. Cheap to clone.
///
/// Stop it with [`shutdown`](Raft::shutdown). Dropping all clones stops it too, in the background, so that the journal's
/// folder may stay locked a moment longer.
#[derive(Clone)]
pub struct Raft {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    node_id: u64,
    pub(crate) raft: Node,
    log: LogStore,
    machine: Arc<dyn StateMachine>,
    proposals: mpsc::UnboundedSender<Message>,
    leading: watch::Receiver<Option<Term>>,
    ending: Arc<Ending>,
    /// One checkpoint at a time.
    checkpointing: tokio::sync::Mutex<()>,
}

/// Why the node takes nothing any more.
#[derive(Default)]
struct Ending {
    /// A shutdown was asked for.
    asked: AtomicBool,
    /// The node stopped by itself.
    fatal: OnceLock<String>,
}

impl Ending {
    /// What a new request is told, if the node has ended.
    fn error(&self) -> Option<Error> {
        if let Some(reason) = self.fatal.get() {
            return Some(Error::Fatal { reason: reason.clone() });
        }
        self.asked.load(Ordering::Acquire).then_some(Error::Shutdown)
    }
}

type Node = openraft::Raft<TypeConfig, Adapter>;
type Answer =
    <openraft_rt_tokio::TokioOneshot as openraft::async_runtime::Oneshot>::Receiver<ClientWriteResult<TypeConfig>>;

/// What waits to be handed to openraft.
enum Message {
    /// A command; the sender gets the channel on which openraft will answer, or learns that it never got there.
    Propose { command: Command, term: Option<Term>, handed: oneshot::Sender<Result<Answer>> },
    /// Answered when everything before it has been handed over.
    Barrier(oneshot::Sender<()>),
}

impl Raft {
    /// Opens a member on its journal.
    ///
    /// `machine` holds the state of its current checkpoint (or nothing); the committed part of the log after it is
    /// applied before this returns. A single voter is also elected and has applied its whole log when this returns.
    /// With several voters, [`wait_ready`](Raft::wait_ready) tells when there is a leader.
    ///
    /// The journal is closed by [`shutdown`](Raft::shutdown). Keep a clone of it for its counters and for
    /// [`Journal::free_space_low`], which writers ask before they propose.
    pub async fn open(
        journal: Journal,
        recovered: Recovered,
        machine: Arc<dyn StateMachine>,
        options: RaftOptions,
    ) -> Result<Raft> {
        let config = Arc::new(options.config()?);
        let log = LogStore::new(journal, recovered)?;
        let adapter = Adapter::new(machine.clone())?;
        let network =
            Network { node_id: options.node_id, transport: options.transport.clone(), machine: machine.clone() };
        // Replays the committed part of the log behind the checkpoint.
        let raft = Node::new(options.node_id, config, network, log.clone(), adapter).await.map_err(fatal)?;

        let ending = Arc::new(Ending::default());
        let (proposals, queue) = mpsc::unbounded_channel();
        let (lead, leading) = watch::channel(None);
        tokio::spawn(hand_over(raft.clone(), queue));
        tokio::spawn(watch_over(raft.metrics(), lead, ending.clone(), options.on_fatal.clone()));
        let raft = Raft {
            inner: Arc::new(Inner {
                node_id: options.node_id,
                raft,
                log,
                machine,
                proposals,
                leading,
                ending,
                checkpointing: tokio::sync::Mutex::new(()),
            }),
        };
        if let Err(error) = raft.start(&options).await {
            // The journal must be free again when the caller sees the error.
            raft.stop().await;
            return Err(error);
        }
        Ok(raft)
    }

    /// Forms the cluster at the very first start, and makes a single voter the leader without waiting for a timeout.
    async fn start(&self, options: &RaftOptions) -> Result<()> {
        let node = &self.inner.raft;
        let formed = node.is_initialized().await.map_err(fatal)?;
        let single = match formed {
            true => {
                let voters: Vec<u64> = node
                    .with_raft_state(|state| state.membership_state.effective().voter_ids().collect())
                    .await
                    .map_err(fatal)?;
                let single = voters == [options.node_id];
                if !single && options.transport.is_none() {
                    let id = options.node_id;
                    return Err(Error::Options(format!(
                        "node {id} is opened alone, but its log names the voters {voters:?}; open the node they mean, or \
                         give it a transport"
                    )));
                }
                if single {
                    node.trigger().elect(false).await.map_err(fatal)?;
                }
                single
            }
            false if options.members.is_empty() => false,
            false => {
                if !options.members.contains_key(&options.node_id) {
                    return Err(Error::Options(format!("the first members do not contain node {}", options.node_id)));
                }
                let members: BTreeMap<u64, BasicNode> =
                    options.members.iter().map(|(id, address)| (*id, BasicNode { addr: address.clone() })).collect();
                match node.initialize(members).await {
                    Ok(()) => {}
                    // Another first member was quicker and this node has already heard from it.
                    Err(RaftError::APIError(error)) => {
                        tracing::debug!(%error, "the cluster was formed by another member")
                    }
                    Err(RaftError::Fatal(error)) => return Err(fatal(error)),
                }
                options.members.len() == 1
            }
        };
        if single {
            self.wait_ready(options.open_timeout).await?;
        }
        Ok(())
    }

    /// Proposes a command.
    ///
    /// The command takes its place in the queue *during* the call: commands proposed one after the other reach the log
    /// in that order, whatever becomes of the futures, so a caller can keep several in flight. The future resolves when
    /// the command is durable on a quorum and applied here. Dropping the future does not withdraw the command.
    ///
    /// [`Error::Indeterminate`] means that the command may be in the log or become so; after every other error it is
    /// not and will not be.
    pub fn propose(&self, command: Bytes) -> impl Future<Output = Result<Proposed>> + Send + 'static + use<> {
        self.enqueue(command, None)
    }

    /// The longest command that can be proposed. A longer one is refused with [`Error::TooLarge`].
    pub fn max_command_bytes(&self) -> usize {
        self.inner.log.max_command_bytes()
    }

    /// Like [`propose`](Raft::propose), but only while this node leads in `term`: a command that was built on what an
    /// earlier leadership knew is refused with [`Error::NotLeader`].
    pub fn propose_in(
        &self,
        term: Term,
        command: Bytes,
    ) -> impl Future<Output = Result<Proposed>> + Send + 'static + use<> {
        self.enqueue(command, Some(term))
    }

    fn enqueue(
        &self,
        command: Bytes,
        term: Option<Term>,
    ) -> impl Future<Output = Result<Proposed>> + Send + 'static + use<> {
        let (handed, receive) = oneshot::channel();
        let (bytes, limit) = (command.len(), self.inner.log.max_command_bytes());
        let refused = if bytes > limit {
            // Checked here, because an entry that openraft has taken in and the journal refuses stops the node.
            Some(Error::TooLarge { bytes, limit })
        } else if let Some(error) = self.inner.ending.error() {
            Some(error)
        } else {
            // The queue lives as long as this node.
            let _ = self.inner.proposals.send(Message::Propose { command: Command(command), term, handed });
            None
        };
        async move {
            if let Some(error) = refused {
                return Err(error);
            }
            let answer = receive.await.map_err(|_| Error::Shutdown)??;
            match answer.await {
                Ok(Ok(done)) => Ok(Proposed {
                    index: LogIndex(done.log_id.index),
                    term: Term(*done.log_id.leader_id),
                    reply: done.data.0,
                }),
                Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(forward)),
                Ok(Err(ClientWriteError::LogEntryDiscarded(_))) => {
                    Err(Error::Indeterminate { reason: "another node became the leader".into() })
                }
                // Reasons to refuse a change of members. A command is not one, so what became of it is not known.
                Ok(Err(
                    error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
                )) => Err(Error::Indeterminate { reason: error.to_string() }),
                Err(_) => {
                    Err(Error::Indeterminate { reason: "the node stopped before the command was applied".into() })
                }
            }
        }
    }

    /// Writes a checkpoint of what has been applied so far and cuts the log behind it.
    ///
    /// A checkpoint that cannot be written ([`Error::Checkpoint`]) leaves the node running and the log uncut.
    pub async fn checkpoint(&self) -> Result<CheckpointRef> {
        let _one = self.inner.checkpointing.lock().await;
        let node = &self.inner.raft;
        // Between two applies the state is pinned; the file is written while commands go on being applied. It is
        // written outside of openraft, for which a failed snapshot would be fatal.
        let write = node
            .with_state_machine(|adapter| {
                let write = adapter.start_checkpoint();
                Box::pin(std::future::ready(write))
            })
            .await
            .map_err(|error| self.inner.stopped(error))?;
        let checkpoint = write.await.map_err(Error::Checkpoint)?;
        let (at, _) = crate::codec::decode_marker(checkpoint.marker.clone())?;
        let Some(at) = at else { return Ok(checkpoint) };

        let offered = checkpoint.clone();
        node.with_state_machine(move |adapter| {
            adapter.offer(offered);
            Box::pin(std::future::ready(()))
        })
        .await
        .map_err(|error| self.inner.stopped(error))?;
        node.trigger().snapshot().await.map_err(|error| self.inner.stopped(error))?;
        self.wait("the checkpoint to be taken over", Some(PURGE), move |m| m.snapshot >= Some(at)).await?;
        // Not an error: the leader cuts later when a follower is still being sent the entries.
        let cut = at.index.checked_sub(node.config().max_in_snapshot_log_to_keep);
        if let Some(cut) = cut
            && let Err(error) =
                self.wait("the log to be cut", Some(PURGE), move |m| m.purged.index() >= Some(cut)).await
        {
            tracing::debug!(%error, "the log will be cut later");
        }
        self.inner.log.flush().await.map_err(|error| Error::Fatal { reason: error.to_string() })?;
        Ok(checkpoint)
    }

    /// Waits until this node can serve: it follows a leader, or leads and has applied everything of earlier terms.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        self.wait("the node to be ready", Some(timeout), |m| {
            if m.state.is_leader() {
                leading(m).is_some() && m.last_applied.index() >= m.last_log_index
            } else {
                m.current_leader.is_some_and(|leader| leader != m.id) && m.last_applied >= m.local_committed
            }
        })
        .await?;
        if self.is_leader() {
            // The watchers of the lead hear of it a moment later; who waited for readiness finds them told.
            let mut lead = self.watch_leading();
            let _ = tokio::time::timeout(timeout, lead.wait_for(|term| term.is_some())).await;
        }
        Ok(())
    }

    /// Makes sure that a read of the state machine, after this returns, sees everything acknowledged before the call,
    /// by whichever leader: asks a quorum whether this node still leads, and waits until its commits are applied.
    pub async fn read_barrier(&self) -> Result<LogIndex> {
        match self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(at) => Ok(LogIndex(at.index())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Error::NotLeader { leader: None, address: None })
            }
            Err(RaftError::Fatal(error)) => Err(self.inner.stopped(error)),
        }
    }

    /// The term this node leads in, once it has applied everything of earlier terms; `None` while it does not lead.
    pub fn leading(&self) -> Option<Term> {
        leading(&self.inner.raft.metrics().borrow_watched())
    }

    /// Follows [`leading`](Raft::leading).
    pub fn watch_leading(&self) -> watch::Receiver<Option<Term>> {
        self.inner.leading.clone()
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.inner.raft.is_leader()
    }

    /// The newest term this node knows.
    pub fn term(&self) -> Term {
        Term(self.inner.raft.metrics().borrow_watched().current_term)
    }

    /// This node's id.
    pub fn node_id(&self) -> u64 {
        self.inner.node_id
    }

    /// Figures of this node.
    pub fn metrics(&self) -> Metrics {
        let metrics = self.inner.raft.metrics();
        let m = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.map(|id| LogIndex(id.index));
        Metrics {
            role: match m.state {
                openraft::ServerState::Learner => Role::Learner,
                openraft::ServerState::Follower => Role::Follower,
                openraft::ServerState::Candidate => Role::Candidate,
                openraft::ServerState::Leader => Role::Leader,
                openraft::ServerState::Shutdown => Role::Stopped,
            },
            term: Term(m.current_term),
            leader: m.current_leader,
            last: m.last_log_index.map(LogIndex),
            committed: index(&m.local_committed),
            applied: index(&m.last_applied),
            checkpoint: index(&m.snapshot),
            purged: index(&m.purged),
            voters: m.membership_config.voter_ids().collect(),
        }
    }

    /// The state machine.
    pub fn machine(&self) -> &Arc<dyn StateMachine> {
        &self.inner.machine
    }

    /// Makes exactly these nodes the voters, with their addresses, and returns when they are.
    ///
    /// New nodes must be running, opened with no first members; they get the whole log first and vote afterwards. Nodes
    /// left out are removed for ever: their ids must not be used again. An address that is known already is kept.
    pub async fn change_members(&self, members: BTreeMap<u64, String>) -> Result<()> {
        let node = &self.inner.raft;
        let refused = |error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => not_leader(forward),
            RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => {
                Error::Indeterminate { reason: error.to_string() }
            }
            RaftError::APIError(error) => Error::Members(error.to_string()),
            RaftError::Fatal(error) => self.inner.stopped(error),
        };
        if members.is_empty() {
            return Err(Error::Members("a cluster needs at least one voter".into()));
        }
        let known = node
            .with_raft_state(|state| state.membership_state.effective().nodes().map(|(id, _)| *id).collect::<Vec<_>>())
            .await
            .map_err(|error| self.inner.stopped(error))?;
        for (id, address) in members.iter().filter(|(id, _)| !known.contains(id)) {
            node.add_learner(*id, BasicNode { addr: address.clone() }, true).await.map_err(refused)?;
        }
        let voters: BTreeSet<u64> = members.into_keys().collect();
        node.change_membership(voters, false).await.map_err(refused)?;
        Ok(())
    }

    /// Starts an election at once instead of waiting for the timeout.
    pub async fn campaign(&self) -> Result<()> {
        self.inner.raft.trigger().elect(true).await.map_err(|error| self.inner.stopped(error))
    }

    /// Asks another voter to take over the lead.
    pub async fn transfer_leadership(&self, to: u64) -> Result<()> {
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|error| self.inner.stopped(error))
    }

    /// Handles a message of another member and returns the answer to send back.
    pub async fn receive(&self, rpc: Rpc, message: Bytes) -> Result<Bytes> {
        network::receive(&self.inner, rpc, message).await
    }

    /// Stops this node: takes no more proposals, finishes those accepted while it leads, then writes and closes the
    /// journal. All clones are stopped. Stopping twice does nothing.
    pub async fn shutdown(&self) -> Result<()> {
        if self.inner.ending.asked.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (reached, barrier) = oneshot::channel();
        if self.inner.proposals.send(Message::Barrier(reached)).is_ok() && barrier.await.is_ok() {
            // Everything accepted is in openraft's hands; its state is asked for behind them.
            let last = self.inner.raft.with_raft_state(|state| state.log_ids.last().copied()).await;
            if let Ok(last) = last
                && self.is_leader()
            {
                let drained = self
                    .wait("accepted commands to be applied", Some(DRAIN), move |m| {
                        m.last_applied >= last || !m.state.is_leader()
                    })
                    .await;
                if let Err(error) = drained {
                    tracing::warn!(%error, "stopping with commands in flight");
                }
            }
        }
        self.stop().await;
        Ok(())
    }

    async fn stop(&self) {
        self.inner.ending.asked.store(true, Ordering::Release);
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "the raft task did not end cleanly");
        }
        let log = self.inner.log.clone();
        // Waits for the journal's threads.
        let closed = tokio::task::spawn_blocking(move || log.close()).await;
        if let Err(error) = closed.map_err(std::io::Error::other).and_then(|closed| Ok(closed?)) {
            tracing::warn!(%error, "the journal did not close cleanly");
        }
    }

    async fn wait(
        &self,
        what: &str,
        timeout: Option<Duration>,
        reached: impl Fn(&RaftMetrics<TypeConfig>) -> bool + Send + Sync,
    ) -> Result<()> {
        use openraft::metrics::WaitError;
        let stopped = |m: &RaftMetrics<TypeConfig>| m.running_state.is_err();
        match self.inner.raft.wait(timeout).metrics(|m| stopped(m) || reached(m), what).await {
            Ok(m) => match m.running_state {
                Ok(()) => Ok(()),
                Err(error) => Err(self.inner.stopped(error)),
            },
            Err(WaitError::Timeout(after, _)) => Err(Error::Timeout { what: what.into(), after }),
            Err(WaitError::ShuttingDown) => Err(self.inner.stopped(Fatal::Stopped)),
        }
    }
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("node_id", &self.inner.node_id).finish_non_exhaustive()
    }
}

impl Inner {
    /// What to tell a caller whose request found the node stopped.
    pub(crate) fn stopped(&self, error: impl Into<Stopped>) -> Error {
        match error.into().0 {
            Fatal::Stopped => self.ending.error().unwrap_or(Error::Shutdown),
            error => fatal(error),
        }
    }
}

/// The ways in which openraft reports that its core has stopped.
pub(crate) struct Stopped(Fatal);

impl From<Fatal> for Stopped {
    fn from(error: Fatal) -> Stopped {
        Stopped(error)
    }
}

impl From<RaftError<TypeConfig>> for Stopped {
    fn from(error: RaftError<TypeConfig>) -> Stopped {
        Stopped(error.unwrap_fatal())
    }
}

/// Hands proposals to openraft one by one, in order.
///
/// A queue of its own, because openraft's can only be entered by awaiting: with it, the place of a command in the log
/// would depend on when its future is polled.
async fn hand_over(raft: Node, mut queue: mpsc::UnboundedReceiver<Message>) {
    while let Some(message) = queue.recv().await {
        match message {
            Message::Propose { command, term, handed } => {
                let (responder, answer) = ProgressResponder::complete_only();
                let mut write = raft.write(command).responder(responder);
                if let Some(term) = term {
                    write = write.with_leader(term.0);
                }
                let outcome = write.await.map(|()| answer).map_err(|error| match error {
                    Fatal::Stopped => Error::Shutdown,
                    error => fatal(error),
                });
                // The proposer may have dropped its future; the command is in the log all the same.
                let _ = handed.send(outcome);
            }
            Message::Barrier(reached) => {
                let _ = reached.send(());
            }
        }
    }
}

/// Publishes whether this node leads, and notices when it stops by itself.
async fn watch_over(
    mut metrics: openraft_rt_tokio::TokioWatchReceiver<RaftMetrics<TypeConfig>>,
    lead: watch::Sender<Option<Term>>,
    ending: Arc<Ending>,
    on_fatal: Option<FatalHook>,
) {
    let reason = loop {
        {
            let m = metrics.borrow_watched();
            match &m.running_state {
                Ok(()) => {
                    let now = leading(&m);
                    lead.send_if_modified(|before| std::mem::replace(before, now) != now);
                }
                Err(Fatal::Stopped) => break None,
                Err(error) => break Some(error.to_string()),
            }
        }
        if metrics.changed().await.is_err() {
            // Without a word: the core panicked.
            break Some("the raft task panicked".to_string());
        }
    };
    lead.send_replace(None);
    // A shutdown also ends in a stopped core; only what nobody asked for is told.
    let Some(reason) = reason.filter(|_| !ending.asked.load(Ordering::Acquire)) else { return };
    tracing::error!(%reason, "the raft node stopped");
    let _ = ending.fatal.set(reason.clone());
    if let Some(hook) = on_fatal {
        hook(&reason);
    }
}

/// The term led in, once the first entry of that term is applied here (and with it all before).
fn leading(m: &RaftMetrics<TypeConfig>) -> Option<Term> {
    let applied = m.last_applied.map(|id| *id.leader_id);
    (m.running_state.is_ok() && m.state.is_leader() && applied == Some(m.current_term)).then_some(Term(m.current_term))
}

fn not_leader(forward: ForwardToLeader<TypeConfig>) -> Error {
    Error::NotLeader { leader: forward.leader_id, address: forward.leader_node.map(|node| node.addr) }
}

fn fatal(error: Fatal) -> Error {
    Error::Fatal { reason: error.to_string() }
}
