//! Our state machine, seen through openraft's trait.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use base::{BoxError, LogIndex, Term};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, SnapshotMeta};
use openraft::type_config::alias;
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;

use crate::codec;
use crate::error::Result;
use crate::machine::{CheckpointRef, StateMachine};
use crate::types::{LogId, Reply, StoredMembership, TypeConfig};

/// What openraft passes around as a snapshot.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotData {
    /// A checkpoint file of this node.
    Local(CheckpointRef),
    /// A checkpoint that the leader sent.
    Received(Bytes),
}

pub(crate) type Meta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Keeps the two facts that openraft wants remembered with the state: the last applied entry and the membership. They
/// live here in memory and reach the disk as the marker inside a checkpoint.
pub(crate) struct Adapter {
    machine: Arc<dyn StateMachine>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// A checkpoint that was just written and that openraft should take for the snapshot it "builds" next.
    ready: Option<CheckpointRef>,
}

impl Adapter {
    /// Takes over a machine whose state is that of its current checkpoint.
    pub(crate) fn new(machine: Arc<dyn StateMachine>) -> Result<Adapter> {
        let (applied, membership) = match machine.current_checkpoint() {
            Some(checkpoint) => codec::decode_marker(checkpoint.marker)?,
            None => Default::default(),
        };
        Ok(Adapter { machine, applied, membership, ready: None })
    }

    /// Starts a checkpoint of what has been applied so far. The future must be driven outside of the apply loop.
    pub(crate) fn start_checkpoint(&self) -> BoxFuture<'static, Result<CheckpointRef, BoxError>> {
        self.machine.checkpoint(codec::encode_marker(&self.applied, &self.membership))
    }

    /// Hands over a written checkpoint as the next snapshot.
    pub(crate) fn offer(&mut self, checkpoint: CheckpointRef) {
        self.ready = Some(checkpoint);
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let reply = match entry.payload {
                EntryPayload::Blank => Bytes::new(),
                EntryPayload::Normal(command) => {
                    let (index, term) = (LogIndex(id.index), Term(*id.leader_id));
                    // A panic must stop the node loudly: as a storage error it reaches the fatal hook, whereas a
                    // dead apply task would only leave every later commit without an answer.
                    catch_unwind(AssertUnwindSafe(|| self.machine.apply(index, term, command.0)))
                        .map_err(|panic| io::Error::other(format!("applying entry {id} panicked: {}", text(&*panic))))?
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(id), membership);
                    Bytes::new()
                }
            };
            self.applied = Some(id);
            if let Some(responder) = responder {
                responder.send(Reply(reply));
            }
            // Applying never waits, so a long replay must give way to other tasks by itself.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(Builder::new(match self.ready.take() {
            Some(checkpoint) => Box::pin(async move { Ok(checkpoint) }),
            None => self.start_checkpoint(),
        }))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder::new(self.start_checkpoint())
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: SnapshotData) -> io::Result<()> {
        let contents = match snapshot {
            SnapshotData::Received(contents) => contents,
            SnapshotData::Local(checkpoint) => self.machine.read_checkpoint(&checkpoint).await.map_err(failed)?,
        };
        let marker = codec::encode_marker(&meta.last_log_id, &meta.last_membership);
        self.machine.install(marker, contents).await.map_err(failed)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.machine.current_checkpoint().map(snapshot_of).transpose()
    }
}

/// A checkpoint under way.
pub(crate) struct Builder {
    // In a mutex only because openraft wants a builder to be `Sync`, which a future need not be.
    work: Mutex<Option<BoxFuture<'static, Result<CheckpointRef, BoxError>>>>,
}

impl Builder {
    fn new(work: BoxFuture<'static, Result<CheckpointRef, BoxError>>) -> Builder {
        Builder { work: Mutex::new(Some(work)) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let work = self.work.get_mut().take().ok_or_else(|| io::Error::other("a snapshot builder builds once"))?;
        snapshot_of(work.await.map_err(failed)?)
    }
}

/// A checkpoint as openraft's snapshot.
fn snapshot_of(checkpoint: CheckpointRef) -> io::Result<Snapshot> {
    let (last_log_id, last_membership) =
        codec::decode_marker(checkpoint.marker.clone()).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Snapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot: SnapshotData::Local(checkpoint) })
}

fn failed(error: BoxError) -> io::Error {
    io::Error::other(error)
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
