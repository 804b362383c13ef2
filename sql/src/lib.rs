//! The SQL engine: sessions, the parser, the catalog, planning over DataFusion and the write path into storage.
//!
//! # How it works
//! A statement travels `text → Statement → bound plan → AuthorizedPlan → rows or a write set`. [`Engine`] is what all sessions
//! share; a [`Session`] decides what a statement runs in; the catalog is rows of system tables; a plan reads tables through
//! our own scan; writes are planned as SELECTs whose batches feed our own write loop.
//!
//! The door is [`Engine`] and [`Session`]; nothing of DataFusion or sqlparser crosses it.
//!
//! # Invariants
//! Each part states its own: CAT (catalog), SES (session), DML, DDL, AUTH, SEQ, LOCK, COPY, ERR.
//!
//! # Not here
//! The wire (flight), policies, valid time, streams, mergeable tables.

mod backup;
mod catalog;
mod copy;
mod ddl;
mod dml;
mod door;
mod engine;
mod error;
mod explain;
mod fast;
mod functions;
mod ingest;
mod locks;
mod metadata;
mod parse;
mod plan;
mod progress;
mod queries;
mod scan;
mod sequences;
mod session;
mod settings;
mod show;
mod transaction;
mod types;
mod verify;

pub use door::*;
pub use engine::Engine;
pub use error::{Error, Result};
pub use progress::Progress;
pub use session::{Moment, OpenOptions, Opened, Parsed, Prepared, Script, Session};
pub use verify::IndexFault;
