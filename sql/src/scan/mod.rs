//! Reading a table: the provider DataFusion plans against, the operator that runs, and what a filter lets it skip.

mod exec;
mod filter;
mod provider;
mod pushed;
mod share;

pub(crate) use filter::one_row;
pub(crate) use provider::{HIDDEN, LatticeTable, Unread};
pub(crate) use share::share;
