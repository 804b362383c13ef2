//! Messages between members, over whatever carries bytes.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RPCTypes};
use parking_lot::Mutex;

use crate::adapter::{Snapshot, SnapshotData};
use crate::codec;
use crate::error::Result;
use crate::machine::StateMachine;
use crate::node::Raft;
use crate::types::{TypeConfig, Vote};

/// The kinds of messages. A transport routes by it: a heartbeat must not queue behind a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rpc {
    /// Log entries for a follower.
    Append = 1,
    /// An empty append that keeps a leader in office.
    Heartbeat = 2,
    /// A request for a vote.
    Vote = 3,
    /// A question whether a vote would be given, before the term is raised.
    PreVote = 4,
    /// A whole checkpoint for a member that lags behind the start of the log.
    Checkpoint = 5,
    /// A leader hands over.
    TransferLeader = 6,
}

/// The other end of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The member's id.
    pub id: u64,
    /// The member's address, as the membership in the log has it.
    pub address: String,
}

/// Why a message got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The peer cannot be reached, or answered with an error. Tried again after a pause.
    #[error("the peer is unreachable: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the peer did not answer in time")]
    TimedOut,
}

/// Carries messages to other members and brings the answer back.
///
/// The receiving side hands the bytes to [`Raft::receive`] of the addressed node. Messages may get lost, be delayed or
/// arrive twice; they must not be altered.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one message and waits for its answer.
    async fn send(&self, to: &Peer, rpc: Rpc, message: Bytes, timeout: Duration) -> Result<Bytes, TransportError>;
}

/// Handles messages that arrive from other members.
pub(crate) async fn receive(raft: &crate::node::Inner, rpc: Rpc, message: Bytes) -> Result<Bytes> {
    let node = &raft.raft;
    match rpc {
        Rpc::Append | Rpc::Heartbeat => {
            let reply =
                node.append_entries(codec::decode_append(message)?).await.map_err(|error| raft.stopped(error))?;
            Ok(codec::encode_append_reply(&reply))
        }
        Rpc::Vote => {
            let reply = node.vote(codec::decode_vote_request(message)?).await.map_err(|error| raft.stopped(error))?;
            Ok(codec::encode_vote_reply(&reply))
        }
        Rpc::PreVote => {
            let reply =
                node.pre_vote(codec::decode_vote_request(message)?).await.map_err(|error| raft.stopped(error))?;
            Ok(codec::encode_vote_reply(&reply))
        }
        Rpc::Checkpoint => {
            let (vote, marker, contents) = codec::decode_snapshot(message)?;
            let (last_log_id, last_membership) = codec::decode_marker(marker)?;
            let meta = openraft::SnapshotMeta { last_log_id, last_membership };
            let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(contents) };
            let reply = node.install_full_snapshot(vote, snapshot).await.map_err(|error| raft.stopped(error))?;
            Ok(codec::encode_snapshot_reply(&reply))
        }
        Rpc::TransferLeader => {
            let request = codec::decode_transfer(message)?;
            let reply = node.handle_transfer_leader(request).await.map_err(|error| raft.stopped(error))?;
            Ok(codec::encode_transfer_reply(&reply))
        }
    }
}

/// Makes a client per member, purpose and leadership.
pub(crate) struct Network {
    pub(crate) node_id: u64,
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) machine: Arc<dyn StateMachine>,
}

impl Network {
    fn client(&self, target: u64, node: &BasicNode, append: Rpc) -> Client {
        Client {
            node_id: self.node_id,
            to: Peer { id: target, address: node.addr.clone() },
            append,
            transport: self.transport.clone(),
            machine: self.machine.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Rpc::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Client {
        self.client(target, node, Rpc::Heartbeat)
    }
}

/// Talks to one member.
pub(crate) struct Client {
    node_id: u64,
    to: Peer,
    append: Rpc,
    transport: Option<Arc<dyn Transport>>,
    machine: Arc<dyn StateMachine>,
}

impl Client {
    async fn send<T>(
        &self,
        rpc: Rpc,
        message: Bytes,
        option: &RPCOption,
        decode: impl FnOnce(Bytes) -> Result<T>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl();
        let outcome = match &self.transport {
            Some(transport) => tokio::time::timeout(timeout, transport.send(&self.to, rpc, message, timeout))
                .await
                .unwrap_or(Err(TransportError::TimedOut)),
            None => Err(TransportError::Unreachable("this node was opened without a transport".into())),
        };
        match outcome {
            // A peer that answers nonsense is as good as gone: pause and try again.
            Ok(reply) => decode(reply).map_err(|error| Unreachable::new(&error).into()),
            Err(TransportError::Unreachable(why)) => Err(Unreachable::from_string(why).into()),
            Err(TransportError::TimedOut) => Err(RPCError::Timeout(Timeout {
                action: match rpc {
                    Rpc::Append | Rpc::Heartbeat => RPCTypes::AppendEntries,
                    Rpc::Vote | Rpc::PreVote => RPCTypes::Vote,
                    Rpc::Checkpoint => RPCTypes::InstallSnapshot,
                    Rpc::TransferLeader => RPCTypes::TransferLeader,
                },
                id: self.node_id,
                target: self.to.id,
                timeout,
            })),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.send(self.append, codec::encode_append(&rpc), &option, codec::decode_append_reply).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.send(Rpc::Vote, codec::encode_vote_request(&rpc), &option, codec::decode_vote_reply).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        // The default implementation grants without asking, which would switch pre-votes off.
        self.send(Rpc::PreVote, codec::encode_vote_request(&rpc), &option, codec::decode_vote_reply).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let marker = codec::encode_marker(&snapshot.meta.last_log_id, &snapshot.meta.last_membership);
        let transmission = async {
            let contents = match snapshot.snapshot {
                SnapshotData::Received(contents) => contents,
                // A checkpoint replaced by a newer one between its choice and here is not an error of the node: the
                // next attempt sends the newer one.
                SnapshotData::Local(checkpoint) => self
                    .machine
                    .read_checkpoint(&checkpoint)
                    .await
                    .map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))?,
            };
            let message = codec::encode_snapshot(&vote, &marker, &contents);
            drop(contents);
            Ok(self.send(Rpc::Checkpoint, message, &option, codec::decode_snapshot_reply).await?)
        };
        futures::pin_mut!(transmission, cancel);
        match futures::future::select(transmission, cancel).await {
            futures::future::Either::Left((outcome, _)) => outcome,
            futures::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.send(Rpc::TransferLeader, codec::encode_transfer(&request), &option, codec::decode_transfer_reply).await
    }
}

/// A transport inside one process: for tests of several members, with links that can be cut.
///
/// Clones share the same network. Each member gets a clone made by [`Loopback::from`], so that cut links work in both
/// directions.
#[derive(Clone, Default)]
pub struct Loopback {
    own: u64,
    wires: Arc<Mutex<Wires>>,
}

#[derive(Default)]
struct Wires {
    members: HashMap<u64, Raft>,
    cut: std::collections::HashSet<u64>,
    sent: HashMap<Rpc, u64>,
}

impl fmt::Debug for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loopback").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Loopback {
    /// The transport that member `id` sends with.
    pub fn member(&self, id: u64) -> Arc<dyn Transport> {
        Arc::new(Loopback { own: id, wires: self.wires.clone() })
    }

    /// Lets messages reach a member.
    pub fn attach(&self, id: u64, raft: Raft) {
        self.wires.lock().members.insert(id, raft);
    }

    /// Takes a member off the network. Do it before dropping the member: an attached one stays alive.
    pub fn detach(&self, id: u64) -> Option<Raft> {
        self.wires.lock().members.remove(&id)
    }

    /// Cuts or mends all links of a member.
    pub fn isolate(&self, id: u64, isolated: bool) {
        let cut = &mut self.wires.lock().cut;
        if isolated {
            cut.insert(id);
        } else {
            cut.remove(&id);
        }
    }

    /// How many messages of a kind have been delivered.
    pub fn delivered(&self, rpc: Rpc) -> u64 {
        self.wires.lock().sent.get(&rpc).copied().unwrap_or(0)
    }

    fn target(&self, to: u64, rpc: Rpc) -> Result<Raft, TransportError> {
        let mut wires = self.wires.lock();
        if wires.cut.contains(&self.own) || wires.cut.contains(&to) {
            return Err(TransportError::Unreachable(format!("the link {} → {to} is cut", self.own)));
        }
        let Some(raft) = wires.members.get(&to).cloned() else {
            return Err(TransportError::Unreachable(format!("member {to} is not attached")));
        };
        *wires.sent.entry(rpc).or_default() += 1;
        Ok(raft)
    }
}

#[async_trait]
impl Transport for Loopback {
    async fn send(&self, to: &Peer, rpc: Rpc, message: Bytes, _timeout: Duration) -> Result<Bytes, TransportError> {
        let raft = self.target(to.id, rpc)?;
        let reply = raft.receive(rpc, message).await.map_err(|error| TransportError::Unreachable(error.to_string()))?;
        // A cut also loses answers that are on their way.
        self.target(to.id, rpc).map(|_| reply)
    }
}
