//! The state machine that commands are applied to, and its checkpoints.

use std::path::PathBuf;

use async_trait::async_trait;
use base::{BoxError, LogIndex, Term};
use bytes::Bytes;
use futures::future::BoxFuture;

/// Names one checkpoint file of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRef {
    /// Where in the log the checkpoint was taken, and who the members were: bytes made by this crate and stored
    /// *inside* the checkpoint file, to be handed back unchanged at the next start.
    pub marker: Bytes,
    /// The file. This crate passes the path around and never opens it.
    pub path: PathBuf,
}

/// What the log drives. One task calls [`apply`](StateMachine::apply) for every command, in log order, on every member.
///
/// At [`Raft::open`](crate::Raft::open) the machine's state must be exactly that of its
/// [`current_checkpoint`](StateMachine::current_checkpoint), or empty when there is none; the log after it is replayed
/// by `open`.
#[async_trait]
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one command and returns the reply for its proposer.
    ///
    /// Deterministic: no clock, no random source, no I/O, no hash order, since every member must end in the same state.
    /// A panic stops the node.
    fn apply(&self, index: LogIndex, term: Term, command: Bytes) -> Bytes;

    /// Starts a checkpoint of the present state.
    ///
    /// The call itself happens between two [`apply`](StateMachine::apply) calls and must be short: it pins the state to
    /// write (a snapshot timestamp, shared handles). The returned future then writes the file, marker inside, while
    /// commands go on being applied, and returns once the file is durable and *is* the current checkpoint.
    fn checkpoint(&self, marker: Bytes) -> BoxFuture<'static, Result<CheckpointRef, BoxError>>;

    /// The newest durable checkpoint.
    fn current_checkpoint(&self) -> Option<CheckpointRef>;

    /// Reads a checkpoint to send it to a member that lags behind the start of the log.
    async fn read_checkpoint(&self, checkpoint: &CheckpointRef) -> Result<Bytes, BoxError>;

    /// Replaces the whole state by a checkpoint received from the leader: makes it durable and current first.
    async fn install(&self, marker: Bytes, contents: Bytes) -> Result<CheckpointRef, BoxError>;
}
