//! The process: configuration, wiring, lifecycle, metrics, the HTTP pages, and the commands of the binary `lattice`.
//!
//! # How it works
//! [`config`] reads settings; [`serve`] opens the store, the engine over it and the listeners over that, in this order,
//! and takes them down in the opposite one; [`http`] and [`metrics`] look at them from the side. The client commands
//! ([`shell`], [`load`]) know the server only through [`client`], that is, over Flight SQL.
//!
//! # Invariants
//! - SERVER-1 nothing is open to the network before the store has recovered, except health and readiness.
//! - SERVER-2 after SIGTERM: no new statements, running ones finish or are cancelled after `drain_timeout`, the row tier
//!   is flushed, the process exits with 0 (`tests/server/test_lifecycle.py`).
//! - SERVER-3 a setting that is not understood stops the start (`config` tests).
//!
//! # Failure
//! A start that cannot succeed ends with one sentence on standard error and exit code 1. A failed synchronisation of the
//! log ends the process at once: what was acknowledged is on disk, what was not is not.
//!
//! # Not here
//! Planning, storage and the wire; this crate only connects them.

pub mod backup;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod load;
pub mod logs;
pub mod measure;
pub mod metrics;
mod names;
mod password;
pub mod serve;
pub mod shell;
mod words;

pub use cli::run;
