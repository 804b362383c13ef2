//! Agreement on one order of commands: the journal below, openraft in the middle, a state machine above.

mod adapter;
mod codec;
mod error;
mod log;
mod machine;
mod network;
mod node;
mod types;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use machine::{CheckpointRef, StateMachine};
pub use network::{Loopback, Peer, Rpc, Transport, TransportError};
pub use node::{FatalHook, Metrics, Proposed, Raft, RaftOptions, Role};
