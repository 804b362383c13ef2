//! Agreement on one order of commands: the journal below, openraft in the middle, a state machine above.
//!
//! A command is opaque bytes. [`Raft::propose`] gives it the next place in the log; when a majority of the voters has it
//! on disk it is committed, every member applies it to its [`StateMachine`], and the proposer gets the machine's reply.
//! A single voter is a majority of one and takes the same path as three or five.
//!
//! # How it works
//!
//! ```text
//! propose ─► queue ─► openraft ─► LogStore ─► Journal      one fsync for all that waits
//!                        │  ▲         ▲
//!              Transport │  │ synced  │ entries to apply
//!                        ▼  │         │
//!                     members      Adapter ─► StateMachine ─► reply to the proposer
//! ```
//!
//! - `node` is the handle and its life: opening, proposing, checkpointing, stopping. Proposals go through a queue of our
//!   own, because openraft's is entered by awaiting and would order commands by when their futures are polled.
//! - `log` keeps the log in the [`Journal`](journal::Journal). An append returns when the entries can be read; openraft
//!   hears of the fsync by a callback and has sent the entries to followers, and queued the next ones, meanwhile.
//! - `adapter` puts our state machine behind openraft's trait. The machine is in memory and never written on the commit
//!   path; a restart loads its checkpoint and applies the log after it.
//! - A checkpoint is openraft's snapshot. It is pinned between two commands, written while others are applied, and only
//!   when it is durable does openraft hear of it and cut the log. The marker inside it (last entry, members) is made
//!   here and opaque to the machine.
//! - `network` carries messages as bytes over a [`Transport`]; [`Loopback`] is one inside a process.
//! - `codec` is what entries, votes, markers and messages look like. Nothing stored or sent is a serialization of
//!   openraft's types.
//!
//! One leader per term ([`leader_id_std`](openraft::impls::leader_id_std)), so a term fences: what was built on the
//! knowledge of one leadership is proposed with [`Raft::propose_in`] and refused in any other. Pre-votes are on, the
//! restored lead of a restarted leader is off, checkpoints happen only when asked for.
//!
//! # Invariants
//!
//! - RAFT-1 commands stand in the log in the order of the calls of `propose`, whatever becomes of the futures:
//!   `tests::commands_keep_the_order_of_the_calls`.
//! - RAFT-2 a command is acknowledged and applied only when it is durable, and then survives a power cut after any disk
//!   operation: `tests::commands_in_flight_share_a_sync`, `tests::what_was_acknowledged_survives_every_power_cut`.
//! - RAFT-3 after a start the state is that of the checkpoint plus the log after it; nothing is applied twice:
//!   `tests::a_restart_rebuilds_the_state_from_checkpoint_and_log`.
//! - RAFT-4 only [`Error::Indeterminate`] leaves open whether a command is in the log: `tests::a_stale_term_is_refused`,
//!   `tests::a_shutdown_finishes_what_was_accepted`, `tests::a_deposed_leader_says_that_it_does_not_know`.
//! - RAFT-5 a checkpoint holds the state at its marker although commands go on, and the log is cut behind it, not
//!   further: `tests::a_checkpoint_pins_the_state_while_commands_go_on`.
//! - RAFT-6 a failed fsync and a panic in the machine stop the node, and the owner is told once; a failed checkpoint
//!   does not: `tests::a_failed_sync_stops_the_node`, `tests::a_panic_while_applying_stops_the_node`,
//!   `tests::a_failed_checkpoint_leaves_the_node_running`.
//! - RAFT-7 commands in flight share an fsync: `tests::commands_in_flight_share_a_sync`.
//! - RAFT-8 bytes on disk and on the wire round-trip, and their layout is fixed: `codec::tests`.
//! - RAFT-9 opening a single voter waits for no timeout: `tests::a_single_voter_leads_without_waiting`.
//! - RAFT-10 the members agree after a leader died, after one fell behind the start of the log, and after the cluster
//!   grew: `tests::three_members_survive_their_leader`,
//!   `tests::a_member_behind_the_start_of_the_log_gets_the_checkpoint`, `tests::a_single_voter_grows_to_three`.
//! - RAFT-11 a member that was cut off does not raise the term:
//!   `tests::a_member_that_was_cut_off_does_not_unseat_the_leader`.
//! - RAFT-12 the log and the state machine keep openraft's contracts: `tests::openraft_suite_passes`.
//!
//! # Failure
//!
//! A journal that fails stops openraft for good: commands in flight end as [`Error::Indeterminate`], later ones as
//! [`Error::Fatal`], and [`RaftOptions::on_fatal`] is called; the process is expected to end. A full disk must not get
//! that far: writers ask [`Journal::free_space_low`](journal::Journal::free_space_low) before they propose. A lost
//! leader shows as [`Error::NotLeader`] with the address of the new one, when it is known.
//!
//! # Not here
//!
//! - Limits on what is in flight: the sequencer has them. The queue of proposals is bounded by its callers.
//! - Recognising a command that is proposed again: the state machine remembers requests.
//! - Lease reads. [`Raft::read_barrier`] asks a quorum; a restarted member may vote at once, so a lease proves nothing.
//! - A transport between processes, pipelined appends and checkpoints sent in pieces: they come with the cluster.

mod adapter;
mod codec;
mod error;
mod log;
mod machine;
mod network;
mod node;
mod seed;
mod types;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use machine::{CheckpointRef, StateMachine};
pub use network::{Loopback, Peer, Rpc, Transport, TransportError};
pub use node::{FatalHook, Metrics, Proposed, Raft, RaftOptions, Role};
pub use seed::begin_behind;
