//! From a bound statement to rows: names against a catalog snapshot, DataFusion's logical and physical plans, and the stream.
//!
//! `Query → Binder → LogicalPlan → AuthorizedPlan → stream`. The [`Binder`] is our own `ContextProvider`, made for one
//! statement: it pins what the statement reads. Nothing is registered anywhere, so nothing can be stale. A prepared statement
//! keeps its plan ([`cache`]) and opens its tables anew.

mod authorize;
mod barrier;
mod cache;
mod client;
mod context;
mod expression;
mod functions;
mod interrupt;
mod merged;
mod names;
mod relation;
mod scalar;
mod state;
mod subqueries;
mod views;

use sqlparser::ast;

pub(crate) use authorize::{RunnablePlan, authorize};
pub(crate) use cache::{Notes, Planning, ReadyPlan, Slot, Stage, ready};
pub(crate) use client::{ClientForm, client_schema};
pub(crate) use context::{Binder, LazyState, Overrides, ROWS, Scope};
pub(crate) use expression::{
    RowExpr, cast_to_array, identifier, internal_item, is_volatile, item, qualified, scalar_of, select, table_factor,
};
pub(crate) use functions::NEXT_IDENTITY;
pub(crate) use state::base_state;
pub(crate) use subqueries::SubqueryValues;
pub(crate) use views::depends;

use crate::Result;
pub(crate) use crate::parse::fold;

/// Parses a query that the catalog keeps as text.
pub(crate) fn parse_query(text: &str) -> Result<ast::Query> {
    match crate::parse::parse_one(text, crate::parse::ParseOptions::default())?.kind {
        crate::parse::StatementAst::Query(query) => Ok(*query),
        other => Err(crate::Error::internal(format!("a stored query is a {}", other.name()))),
    }
}

/// Parses an expression that the catalog keeps as text.
pub(crate) fn parse_expr(text: &str) -> Result<ast::Expr> {
    crate::parse::parse_expr(text)
}
