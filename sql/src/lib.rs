//! The SQL engine: sessions, the parser, the catalog, planning over DataFusion and the write path into storage.
//!
//! A statement travels `text → Statement → bound plan → AuthorizedPlan → rows or a write set`. The door is [`Engine`] and
//! [`Session`]; nothing of DataFusion or sqlparser crosses it.

mod door;
mod error;
mod functions;
mod parse;
mod types;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use base::{Principal, SessionId};
use futures::Stream;

pub use door::*;
pub use error::{Error, Result};

/// The engine over one store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {}

/// A client's session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session {
    principal: Principal,
}

/// A statement that is parsed and typed.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What it is.
    pub kind: StatementKind,
    /// Present for everything that returns rows.
    pub result_schema: Option<SchemaRef>,
    /// One nullable field per parameter, named `$1` and so on.
    pub parameters: SchemaRef,
    /// Whether it counts rows instead of returning them.
    pub is_update: bool,
    /// The statement's text.
    pub sql: Arc<str>,
}

fn missing<T>() -> Result<T> {
    Err(Error::unsupported("not built yet"))
}

#[allow(unused_variables, clippy::unused_async, reason = "signatures only")]
impl Engine {
    pub async fn open(store: (), options: EngineOptions) -> Result<Engine> {
        missing()
    }
    pub fn session(&self, principal: Principal, options: SessionOptions) -> Session {
        Session { principal }
    }
    pub fn queries(&self) -> Vec<RunningQuery> {
        Vec::new()
    }
    pub fn cancel(&self, query: u64) -> bool {
        false
    }
    pub fn metrics(&self) -> EngineMetrics {
        EngineMetrics::default()
    }
    pub async fn shutdown(&self) {}
}

#[allow(unused_variables, clippy::unused_async, reason = "signatures only")]
impl Session {
    pub fn id(&self) -> SessionId {
        SessionId(0)
    }
    pub fn principal(&self) -> &Principal {
        &self.principal
    }
    pub async fn prepare(&self, sql: &str, options: PrepareOptions) -> Result<Prepared> {
        missing()
    }
    pub async fn execute(&self, prepared: &Prepared, params: Params, transaction: Option<TransactionId>) -> Result<Outcome> {
        missing()
    }
    pub async fn run(&self, sql: &str) -> Result<Vec<Outcome>> {
        missing()
    }
    pub async fn begin(&self) -> Result<TransactionId> {
        missing()
    }
    pub async fn commit(&self, transaction: TransactionId) -> Result<()> {
        missing()
    }
    pub async fn rollback(&self, transaction: TransactionId) -> Result<()> {
        missing()
    }
    pub async fn savepoint(&self, transaction: TransactionId, name: &str) -> Result<SavepointHandle> {
        missing()
    }
    pub async fn release_savepoint(&self, transaction: TransactionId, savepoint: SavepointHandle) -> Result<()> {
        missing()
    }
    pub async fn rollback_to_savepoint(&self, transaction: TransactionId, savepoint: SavepointHandle) -> Result<()> {
        missing()
    }
    pub async fn ingest(
        &self,
        request: IngestRequest,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<u64> {
        missing()
    }
    pub fn set_option(&self, key: &str, value: &OptionValue) -> Result<()> {
        missing()
    }
    pub fn options(&self) -> Vec<(String, OptionValue)> {
        Vec::new()
    }
    pub async fn close(&self) {}
    pub async fn catalogs(&self) -> Result<Vec<String>> {
        missing()
    }
    pub async fn schemas(&self, catalog: Option<&str>, pattern: Option<&str>) -> Result<Vec<(String, String)>> {
        missing()
    }
    pub async fn tables(&self, filter: TableFilter) -> Result<Vec<TableMeta>> {
        missing()
    }
    pub async fn primary_keys(&self, catalog: Option<&str>, schema: Option<&str>, table: &str) -> Result<Vec<KeyColumn>> {
        missing()
    }
    pub async fn imported_keys(&self, catalog: Option<&str>, schema: Option<&str>, table: &str) -> Result<Vec<ForeignKeyColumn>> {
        missing()
    }
    pub async fn exported_keys(&self, catalog: Option<&str>, schema: Option<&str>, table: &str) -> Result<Vec<ForeignKeyColumn>> {
        missing()
    }
    pub async fn cross_reference(
        &self,
        primary: (Option<&str>, Option<&str>, &str),
        foreign: (Option<&str>, Option<&str>, &str),
    ) -> Result<Vec<ForeignKeyColumn>> {
        missing()
    }
}
