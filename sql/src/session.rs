//! A client's session: settings, transactions, prepared statements, and the one place where a statement's kind decides what runs.
//!
//! A statement outside a transaction runs in one of its own. Reads outside a transaction take a snapshot and no transaction. An
//! autocommit write that loses against another transaction (40001) is tried again, keeping the row locks it has won, so that
//! it cannot starve; an interactive transaction is the client's to retry.
//!
//! # Invariants
//! - SES-1 after an error, an interactive transaction does nothing but end or go back to a savepoint (25P02). Test:
//!   `a_failed_transaction_waits_for_rollback`.
//! - SES-2 an autocommit statement commits everything or nothing. Test: `a_failing_statement_leaves_nothing`.
//! - SES-3 a commit that has begun goes on to its end, whoever goes away, and is never reported as cancelled. Test:
//!   `tests/transactions.rs`, `a_commit_is_not_cancelled`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use base::{Principal, SessionId, SqlState};
use datafusion::common::ScalarValue;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use parking_lot::{Mutex, RwLock};
use sqlparser::ast;
use storage::{BeginOptions, TransactionHeader};
use tracing::Instrument as _;

use crate::catalog::{Catalog, ObjectId, SqlType};
use crate::dml::Written;
use crate::door::{
    IngestRequest, OptionValue, Outcome, Params, PrepareOptions, Rows, SavepointHandle, SessionOptions, StatementKind,
    TransactionId,
};
use crate::engine::EngineInner;
use crate::locks::RowLocks;
use crate::parse::statement::{self as st, Statement, StatementAst};
use crate::parse::{ParseOptions, parse_script};

use crate::plan::Stage as PlanStage;
use crate::plan::{Binder, LazyState, Overrides, Scope, Slot, client_schema, ready};
use crate::progress::Progress;
use crate::queries::{Stage, Ticket};
use crate::settings::Settings;
use crate::transaction::{Changed, Reader, Status, Txn, Which, Work, expired};
use crate::{Error, Result};

mod cursor;
mod script;

pub use cursor::{Moment, OpenOptions, Opened};
pub use script::{Parsed, Script};

/// How often an autocommit statement is tried.
const TRIES: usize = 64;

/// A client's session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) inner: Arc<SessionInner>,
}

pub(crate) struct SessionInner {
    pub(crate) engine: Arc<EngineInner>,
    pub(crate) id: SessionId,
    pub(crate) principal: Principal,
    pub(crate) settings: RwLock<Settings>,
    /// The transaction that BEGIN opened.
    current: Mutex<Option<Arc<Txn>>>,
    /// Transactions by handle.
    handles: Mutex<BTreeMap<TransactionId, Arc<Txn>>>,
    prepared: Mutex<HashMap<String, Arc<Named>>>,
    sequences: Mutex<(HashMap<ObjectId, i64>, Option<i64>)>,
    closed: AtomicBool,
    /// Modes for transactions of SET SESSION CHARACTERISTICS and SET TRANSACTION before the first statement.
    used_temporary: AtomicBool,
}

impl std::fmt::Debug for SessionInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// A statement that PREPARE named.
struct Named {
    statement: Arc<Statement>,
    /// The types of its first parameters, as PREPARE names them.
    declared: Vec<FieldRef>,
    /// Made by the first execution, and again when definitions or settings have changed.
    slot: Mutex<Option<Arc<Slot>>>,
}

/// What an execution brings to a statement.
#[derive(Clone, Default)]
struct Given {
    params: Vec<ScalarValue>,
    slot: Option<Arc<Slot>>,
}

impl Given {
    fn to(prepared: &Prepared, params: Vec<ScalarValue>) -> Self {
        Self { slot: slot_for(&prepared.slot, &params), params }
    }
}

/// The kept plan is for values of the announced types; a value that does not fit its type has the statement planned for it.
fn slot_for(slot: &Arc<Slot>, values: &[ScalarValue]) -> Option<Arc<Slot>> {
    let fields = slot.parameters().fields();
    values.iter().zip(fields).all(|(value, field)| value.data_type() == *field.data_type()).then(|| slot.clone())
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
    statement: Arc<Statement>,
    slot: Arc<Slot>,
}

/// What a statement produced, before it is wrapped for the client.
pub(crate) enum Produced {
    Rows(Rows),
    Written(Written),
    Tag(String),
}

impl Produced {
    /// Rows that are there already.
    pub(crate) fn batches(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        Produced::Rows(Rows {
            schema,
            stream: futures::stream::iter(batches.into_iter().map(Ok)).boxed(),
            rows_hint: Some(rows),
        })
    }
}

impl SessionInner {
    pub(crate) fn new(engine: Arc<EngineInner>, id: SessionId, principal: Principal, options: SessionOptions) -> Self {
        let mut settings = Settings::new(&engine.options.version, engine.options.statement_timeout);
        // Wrong values of connection options are reported when they are used, not by refusing the session.
        if let Some(schema) = &options.schema {
            let _ = settings.set_default("search_path", &format!("\"{}\"", schema.replace('"', "\"\"")));
        }
        if let Some(application) = &options.application {
            let _ = settings.set_default("application_name", application);
        }
        for (name, value) in &options.settings {
            let _ = settings.set_default(name, value);
        }
        Self {
            engine,
            id,
            principal,
            settings: RwLock::new(settings),
            current: Mutex::default(),
            handles: Mutex::default(),
            prepared: Mutex::default(),
            sequences: Mutex::default(),
            closed: AtomicBool::new(false),
            used_temporary: AtomicBool::new(false),
        }
    }

    pub(crate) fn note_sequence(&self, sequence: ObjectId, value: i64) {
        let mut sequences = self.sequences.lock();
        sequences.0.insert(sequence, value);
        sequences.1 = Some(value);
    }

    pub(crate) fn current_sequence(&self, sequence: ObjectId) -> Option<i64> {
        self.sequences.lock().0.get(&sequence).copied()
    }

    pub(crate) fn last_sequence(&self) -> Option<i64> {
        self.sequences.lock().1
    }

    pub(crate) fn note_temporary(&self) {
        self.used_temporary.store(true, Ordering::Relaxed);
    }

    /// How long row locks of foreign keys are waited for.
    pub(crate) fn lock_patience(&self) -> Duration {
        self.settings.read().lock_timeout().unwrap_or(crate::engine::LOCK_PATIENCE)
    }

    fn ticket(&self, sql: &Arc<str>) -> Ticket {
        self.ticket_of(sql, Arc::default())
    }

    fn ticket_of(&self, sql: &Arc<str>, progress: Arc<Progress>) -> Ticket {
        let timeout = self.settings.read().statement_timeout();
        let engine = &self.engine;
        engine.queries.start(
            self.id,
            self.principal.name(),
            sql,
            timeout,
            engine.options.slow_statement,
            &engine.closing,
            progress,
        )
    }

    /// The transaction a statement belongs to.
    fn transaction(&self, handle: Option<TransactionId>) -> Result<Option<Arc<Txn>>> {
        match handle {
            Some(id) => match self.handles.lock().get(&id) {
                Some(txn) => Ok(Some(txn.clone())),
                None => Err(Error::state(SqlState::NO_ACTIVE_TRANSACTION, format!("transaction {id} does not exist"))),
            },
            None => Ok(self.current.lock().clone()),
        }
    }

    async fn open_transaction(&self, interactive: bool, read_only: bool, sql: Option<&str>) -> Result<Arc<Txn>> {
        let (source, pipeline, lock_timeout) = {
            let settings = self.settings.read();
            (settings.text("lattice.source"), settings.text("lattice.pipeline"), settings.lock_timeout())
        };
        let header = TransactionHeader {
            principal: self.principal.name().to_owned(),
            source,
            pipeline,
            statement: sql.map(|sql| sql.chars().take(200).collect()),
        };
        let options = BeginOptions {
            read_only,
            header,
            lock_timeout_ms: lock_timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..BeginOptions::default()
        };
        let storage = self.engine.store.begin(options).await.map_err(Error::classified)?;
        let id = TransactionId(self.engine.next_transaction());
        Ok(Txn::new(id, storage, read_only, interactive, RowLocks::new(&self.engine.locks)))
    }

    /// What a statement sees.
    async fn scope(self: &Arc<Self>, txn: Option<&Arc<Txn>>, given: Option<Given>) -> Result<Scope> {
        let store = &self.engine.store;
        let (reader, catalog, now) = match txn {
            Some(txn) => {
                let catalog = match txn.own_catalog() {
                    Some(catalog) => catalog,
                    None => self.engine.catalog.at(store, txn.storage.snapshot_ts()).await?,
                };
                (Reader::Transaction(txn.clone()), catalog, txn.started)
            }
            None => {
                let snapshot = store.snapshot();
                let catalog = self.engine.catalog.of(store, &snapshot).await?;
                (Reader::Snapshot(snapshot), catalog, chrono::Utc::now())
            }
        };
        Ok(self.scope_over(reader, txn.cloned(), catalog, now, given))
    }

    fn scope_over(
        self: &Arc<Self>,
        reader: Reader,
        txn: Option<Arc<Txn>>,
        catalog: Arc<Catalog>,
        now: chrono::DateTime<chrono::Utc>,
        given: Option<Given>,
    ) -> Scope {
        let path = self.settings.read().search_path();
        let (params, slot) = match given {
            Some(Given { params, slot }) => (Some(Arc::new(params)), slot),
            None => (None, None),
        };
        Scope {
            session: self.clone(),
            catalog,
            reader,
            txn,
            path,
            lazy: Arc::new(LazyState::default()),
            now,
            params,
            param_types: Arc::default(),
            progress: Arc::default(),
            slot,
            notes: Arc::default(),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::state(SqlState::INVALID_AUTHORIZATION, "the session is closed"));
        }
        Ok(())
    }

    /// Runs one statement.
    async fn execute(
        self: &Arc<Self>,
        statement: &Arc<Statement>,
        given: Given,
        handle: Option<TransactionId>,
        announced: Option<SchemaRef>,
        progress: Arc<Progress>,
    ) -> Result<Outcome> {
        self.check_open()?;
        let ticket = self.ticket_of(&statement.text, progress);
        let work = Box::pin(self.dispatch(statement, given, handle, announced, &ticket));
        match ticket.run(work).await {
            Ok(produced) => Ok(self.wrap(produced, ticket)),
            Err(error) => {
                // Also when the statement was cancelled in the middle of its writes.
                if !matches!(statement.kind, StatementAst::Begin(_)) {
                    if let Ok(Some(txn)) = self.transaction(handle) {
                        txn.fail();
                    }
                }
                Err(place(error, statement))
            }
        }
    }

    fn wrap(&self, produced: Produced, ticket: Ticket) -> Outcome {
        match produced {
            Produced::Rows(rows) => Outcome::Rows(Rows {
                schema: rows.schema,
                stream: ticket.stream(rows.stream),
                rows_hint: rows.rows_hint,
            }),
            Produced::Written(written) => {
                self.engine.queries.counters.rows_written.fetch_add(written.rows, Ordering::Relaxed);
                match written.returned {
                    Some((schema, batches)) => match Produced::batches(schema, batches) {
                        Produced::Rows(rows) => Outcome::Rows(Rows { stream: ticket.stream(rows.stream), ..rows }),
                        _ => Outcome::Affected { tag: written.tag, rows: written.rows },
                    },
                    None => Outcome::Affected { tag: written.tag, rows: written.rows },
                }
            }
            Produced::Tag(tag) => Outcome::Done { tag },
        }
    }

    async fn dispatch(
        self: &Arc<Self>,
        statement: &Arc<Statement>,
        given: Given,
        handle: Option<TransactionId>,
        announced: Option<SchemaRef>,
        ticket: &Ticket,
    ) -> Result<Produced> {
        check_params(statement, &given.params)?;
        match &statement.kind {
            StatementAst::Begin(modes) => return self.begin_text(modes).await,
            StatementAst::Commit { chain } => return self.end_text(true, *chain, ticket).await,
            StatementAst::Rollback { chain } => return self.end_text(false, *chain, ticket).await,
            StatementAst::RollbackTo(name) => {
                let undone = self
                    .in_transaction("ROLLBACK TO SAVEPOINT", handle)?
                    .rollback_to(Which::Name(&crate::plan::fold(name)))?;
                self.put_back(undone);
                return Ok(Produced::Tag("ROLLBACK".to_owned()));
            }
            _ => {}
        }
        let txn = self.transaction(handle)?;
        let Some(txn) = txn else {
            return self.autocommit(statement, given, announced, ticket).await;
        };
        let mut work = self.work(&txn)?;
        let produced = self.inside(statement, given, announced, &txn, ticket).await?;
        work.done();
        ticket.keep(work);
        Ok(produced)
    }

    /// Begins a statement in a transaction that was not idle for too long.
    fn work(&self, txn: &Arc<Txn>) -> Result<Work> {
        if let Some(limit) = self.idle_limit() {
            txn.expire(limit);
        }
        txn.work()
    }

    /// Lets go of what transactions hold that nobody has used for too long.
    fn expire_idle(&self) {
        let Some(limit) = self.idle_limit() else { return };
        let mut open: Vec<Arc<Txn>> = self.handles.lock().values().cloned().collect();
        open.extend(self.current.lock().clone());
        for txn in open {
            if txn.expire(limit) {
                tracing::info!(session = %self.id, transaction = %txn.id, "rolled back a transaction that was idle for too long");
            }
        }
    }

    fn idle_limit(&self) -> Option<Duration> {
        let engine = self.engine.options.idle_transaction_timeout;
        self.settings.read().idle_timeout().or_else(|| (!engine.is_zero()).then_some(engine))
    }

    fn abandon(&self, txn: &Arc<Txn>) {
        txn.storage.rollback();
        txn.end();
        self.put_back(txn.settings_to_restore(false));
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, txn)) {
            *current = None;
        }
        drop(current);
        self.handles.lock().remove(&txn.id);
        self.engine.queries.counters.rollbacks.fetch_add(1, Ordering::Relaxed);
    }

    fn in_transaction(&self, what: &str, handle: Option<TransactionId>) -> Result<Arc<Txn>> {
        self.transaction(handle)?.ok_or_else(|| {
            Error::state(SqlState::NO_ACTIVE_TRANSACTION, format!("{what} can only be used in transaction blocks"))
        })
    }

    /// A statement inside an open transaction.
    async fn inside(
        self: &Arc<Self>,
        statement: &Arc<Statement>,
        given: Given,
        announced: Option<SchemaRef>,
        txn: &Arc<Txn>,
        ticket: &Ticket,
    ) -> Result<Produced> {
        match &statement.kind {
            StatementAst::Savepoint(name) => {
                txn.savepoint(&crate::plan::fold(name))?;
                return Ok(Produced::Tag("SAVEPOINT".to_owned()));
            }
            StatementAst::Release(name) => {
                txn.release(Which::Name(&crate::plan::fold(name)))?;
                return Ok(Produced::Tag("RELEASE".to_owned()));
            }
            StatementAst::Set(st::Set::Transaction(modes)) => {
                apply_modes(txn, modes)?;
                return Ok(Produced::Tag("SET".to_owned()));
            }
            _ => {}
        }
        let _gate = if writes(&statement.kind) { Some(txn.gate.lock().await) } else { None };
        let scope = Scope { progress: ticket.progress(), ..self.scope(Some(txn), Some(given)).await? };
        ticket.stage(Stage::Running);
        self.perform(&scope, statement, announced).await
    }

    /// A statement with a transaction of its own.
    async fn autocommit(
        self: &Arc<Self>,
        statement: &Arc<Statement>,
        given: Given,
        announced: Option<SchemaRef>,
        ticket: &Ticket,
    ) -> Result<Produced> {
        match &statement.kind {
            StatementAst::Savepoint(_) | StatementAst::Release(_) => {
                return Err(Error::state(
                    SqlState::NO_ACTIVE_TRANSACTION,
                    format!("{} can only be used in transaction blocks", statement.kind.name()),
                ));
            }
            _ => {}
        }
        if !writes(&statement.kind) {
            let scope = Scope { progress: ticket.progress(), ..self.scope(None, Some(given)).await? };
            ticket.stage(Stage::Running);
            return self.perform(&scope, statement, announced).await;
        }
        let read_only = self.settings.read().default_read_only();
        let mut tries = 0;
        let mut txn = self.open_transaction(false, read_only, Some(&statement.text)).await?;
        loop {
            tries += 1;
            // While it committed, nothing could stop it.
            ticket.still_wanted()?;
            let scope = Scope { progress: ticket.progress(), ..self.scope(Some(&txn), Some(given.clone())).await? };
            ticket.stage(Stage::Running);
            let result = match self.perform(&scope, statement, announced.clone()).await {
                Ok(produced) => {
                    ticket.stage(Stage::Committing);
                    self.commit(&txn).await.map(|()| produced)
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(produced) => return Ok(produced),
                Err(error) if error.sqlstate == SqlState::SERIALIZATION_FAILURE && tries < TRIES => {
                    // Keep the locks that were won, as long as nothing was written under the old snapshot.
                    if txn.status() == Status::Ended
                        || txn.storage.has_writes()
                        || txn.storage.refresh_snapshot().is_err()
                    {
                        txn.storage.rollback();
                        txn.end();
                        txn = self.open_transaction(false, read_only, Some(&statement.text)).await?;
                    }
                }
                Err(error) => {
                    txn.storage.rollback();
                    txn.end();
                    return Err(error);
                }
            }
        }
    }

    /// Commits, whatever the transaction did. In a task of its own: what was sent to the log is not called back when the
    /// caller goes away, and whoever knows of it (locks, the cache of definitions, settings) must hear how it ended.
    async fn commit(self: &Arc<Self>, txn: &Arc<Txn>) -> Result<()> {
        let (session, txn) = (self.clone(), txn.clone());
        let task = async move { session.commit_to_the_end(&txn).await };
        tokio::spawn(task.in_current_span()).await.unwrap_or_else(|lost| {
            let unknown = Error::state(SqlState(*b"40003"), "the outcome of the commit is not known");
            Err(unknown.with_detail(lost.to_string()).with_hint("look for its rows before running it again"))
        })
    }

    async fn commit_to_the_end(&self, txn: &Arc<Txn>) -> Result<()> {
        let result = self.commit_storage(txn).await;
        txn.end();
        self.put_back(txn.settings_to_restore(result.is_ok()));
        let counters = &self.engine.queries.counters;
        match &result {
            Ok(()) => counters.commits.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                txn.storage.rollback();
                counters.rollbacks.fetch_add(1, Ordering::Relaxed)
            }
        };
        result
    }

    async fn commit_storage(&self, txn: &Arc<Txn>) -> Result<()> {
        let empty = txn.tables_to_empty();
        if !empty.is_empty() {
            let catalog = match txn.own_catalog() {
                Some(catalog) => catalog,
                None => self.engine.catalog.at(&self.engine.store, txn.storage.snapshot_ts()).await?,
            };
            for table in empty {
                if let Ok(table) = catalog.table_by_id(table) {
                    crate::dml::truncate_table(txn, table).await?;
                }
            }
        }
        if txn.own_catalog().is_some() {
            self.engine.catalog.commit(&txn.storage).await?;
        } else {
            txn.storage.commit().await.map_err(Error::classified)?;
        }
        Ok(())
    }

    fn put_back(&self, changed: Vec<Changed>) {
        if changed.is_empty() {
            return;
        }
        let mut settings = self.settings.write();
        for Changed { name, before, .. } in changed {
            // The value was valid when it was remembered.
            let _ = settings.set(&name, &before);
        }
    }

    async fn begin_text(self: &Arc<Self>, modes: &st::TransactionModes) -> Result<Produced> {
        if self.current.lock().is_some() {
            return Err(Error::state(SqlState::ACTIVE_TRANSACTION, "there is already a transaction in progress"));
        }
        let read_only = modes.read_only.unwrap_or_else(|| self.settings.read().default_read_only());
        check_isolation(modes)?;
        let txn = self.open_transaction(true, read_only, None).await?;
        *self.current.lock() = Some(txn);
        Ok(Produced::Tag("BEGIN".to_owned()))
    }

    async fn end_text(self: &Arc<Self>, commit: bool, chain: bool, ticket: &Ticket) -> Result<Produced> {
        let current = self.current.lock().clone();
        let Some(txn) = current else {
            // PostgreSQL warns and goes on.
            return Ok(Produced::Tag(if commit { "COMMIT" } else { "ROLLBACK" }.to_owned()));
        };
        let _gate = txn.gate.lock().await;
        ticket.stage(Stage::Committing);
        self.current.lock().take_if(|current| Arc::ptr_eq(current, &txn));
        let read_only = txn.is_read_only();
        let (work, status) = (self.work(&txn), txn.status());
        let tag = if let (true, Ok(mut work)) = (commit, work) {
            let committed = self.commit(&txn).await;
            work.done();
            committed?;
            "COMMIT"
        } else {
            self.abandon(&txn);
            if commit && status == Status::Expired {
                return Err(expired());
            }
            "ROLLBACK"
        };
        if chain {
            let next = self.open_transaction(true, read_only, None).await?;
            *self.current.lock() = Some(next);
        }
        Ok(Produced::Tag(tag.to_owned()))
    }

    /// What a statement does, in a scope. Boxed because EXPLAIN and EXECUTE come back here.
    fn perform<'a>(
        self: &'a Arc<Self>,
        scope: &'a Scope,
        statement: &'a Arc<Statement>,
        announced: Option<SchemaRef>,
    ) -> BoxFuture<'a, Result<Produced>> {
        Box::pin(async move {
            match &statement.kind {
                StatementAst::Query(query) => Ok(Produced::Rows(self.query(scope, query, announced).await?)),
                StatementAst::Insert(insert) => Ok(Produced::Written(crate::dml::insert::run(scope, insert).await?)),
                StatementAst::Update(update) => Ok(Produced::Written(crate::dml::update::run(scope, update).await?)),
                StatementAst::Delete(delete) => Ok(Produced::Written(crate::dml::delete::run(scope, delete).await?)),
                StatementAst::Merge(merge) => Ok(Produced::Written(crate::dml::merge::run(scope, merge).await?)),
                StatementAst::Truncate(truncate) => crate::dml::truncate(scope, truncate).await,
                StatementAst::Copy(copy) => crate::copy::run(scope, copy).await,
                StatementAst::Set(set) => self.set(scope, set),
                StatementAst::Reset(name) => {
                    self.remember(scope, name.as_deref(), false)?;
                    self.settings.write().reset(name.as_deref())?;
                    Ok(Produced::Tag("RESET".to_owned()))
                }
                StatementAst::Show(show) => crate::show::run(scope, show).await,
                StatementAst::Explain(explain) => crate::explain::run(scope, explain).await,
                StatementAst::Analyze(analyze) => {
                    if let Some(table) = &analyze.table {
                        scope.table(table)?;
                    }
                    // Statistics are kept beside the data files and are always current.
                    Ok(Produced::Tag("ANALYZE".to_owned()))
                }
                StatementAst::Vacuum(vacuum) => {
                    let table = vacuum.table.as_ref().map(|name| scope.table(name)).transpose()?;
                    self.engine.store.flush(table.map(|table| table.id())).await.map_err(Error::classified)?;
                    Ok(Produced::Tag("VACUUM".to_owned()))
                }
                StatementAst::Discard(what) => self.discard(scope, *what).await,
                StatementAst::Prepare(prepare) => {
                    let name = crate::plan::fold(&prepare.name);
                    let declared = prepare
                        .types
                        .iter()
                        .map(|it| Ok(SqlType::from_ast(it)?.field_ref("")))
                        .collect::<Result<Vec<_>>>()?;
                    let mut prepared = self.prepared.lock();
                    if prepared.contains_key(&name) {
                        return Err(Error::state(
                            SqlState([b'4', b'2', b'P', b'0', b'5']),
                            format!("prepared statement \"{name}\" already exists"),
                        ));
                    }
                    let statement = Arc::new(prepare.inner.as_ref().clone());
                    prepared.insert(name, Arc::new(Named { statement, declared, slot: Mutex::default() }));
                    Ok(Produced::Tag("PREPARE".to_owned()))
                }
                StatementAst::Execute(execute) => {
                    let name = crate::plan::fold(&execute.name);
                    let named = self.prepared.lock().get(&name).cloned().ok_or_else(|| {
                        Error::state(
                            SqlState::INVALID_STATEMENT_NAME,
                            format!("prepared statement \"{name}\" does not exist"),
                        )
                    })?;
                    let inner = &named.statement;
                    let binder = Binder::plain(scope);
                    let values = execute
                        .values
                        .iter()
                        .map(|value| binder.constant(value.clone()))
                        .collect::<Result<Vec<_>>>()?;
                    check_params(inner, &values)?;
                    let slot = self.slot_of(scope, &named).await?;
                    let values = conform(values, slot.parameters())?;
                    let slot = slot_for(&slot, &values);
                    let scope = Scope { params: Some(Arc::new(values)), slot, notes: Arc::default(), ..scope.clone() };
                    self.perform(&scope, inner, None).await
                }
                StatementAst::Deallocate(name) => {
                    match name {
                        Some(name) => {
                            let name = crate::plan::fold(name);
                            if self.prepared.lock().remove(&name).is_none() {
                                return Err(Error::state(
                                    SqlState::INVALID_STATEMENT_NAME,
                                    format!("prepared statement \"{name}\" does not exist"),
                                ));
                            }
                        }
                        None => self.prepared.lock().clear(),
                    }
                    Ok(Produced::Tag("DEALLOCATE".to_owned()))
                }
                StatementAst::Backup { url } => crate::backup::run(scope, url).await,
                StatementAst::Cancel { query } => {
                    let own = self.principal.name();
                    let found =
                        self.engine.queries.cancel(*query, |principal| self.principal.is_admin() || principal == own);
                    if !found {
                        return Err(Error::state(SqlState::UNDEFINED_OBJECT, format!("query {query} does not run")));
                    }
                    Ok(Produced::Tag("KILL".to_owned()))
                }
                StatementAst::Extension(extension) => Err(Error::unsupported(extension.name())),
                StatementAst::Begin(_)
                | StatementAst::Commit { .. }
                | StatementAst::Rollback { .. }
                | StatementAst::RollbackTo(_)
                | StatementAst::Savepoint(_)
                | StatementAst::Release(_) => {
                    Err(Error::unsupported(format!("{} in this place", statement.kind.name())))
                }
                _ => crate::ddl::run(scope, &statement.kind).await,
            }
        })
    }

    async fn query(&self, scope: &Scope, query: &ast::Query, announced: Option<SchemaRef>) -> Result<Rows> {
        if let Some(rows) = crate::fast::query(scope, query, announced.as_ref()).await? {
            return Ok(rows);
        }
        let (plan, form) = self.plan_query(scope, query, announced).await?;
        let rows_hint = cursor::exact_rows(&plan)?;
        Ok(Rows { schema: form.schema().clone(), stream: form.stream(plan.stream()?), rows_hint })
    }

    fn set(&self, scope: &Scope, set: &st::Set) -> Result<Produced> {
        match set {
            st::Set::Variable { name, values, local } => {
                if *local && !scope.txn.as_ref().is_some_and(|txn| txn.interactive) {
                    return Ok(Produced::Tag("SET".to_owned()));
                }
                self.remember(scope, Some(name), *local)?;
                let mut settings = self.settings.write();
                if values.is_empty() {
                    settings.reset(Some(name))?;
                } else {
                    let text: Vec<String> = values.iter().map(st::OptionValue::text).collect();
                    settings.set(name, &text.join(", "))?;
                }
            }
            st::Set::Transaction(modes) => check_isolation(modes)?,
            st::Set::SessionTransaction(modes) => {
                check_isolation(modes)?;
                if let Some(read_only) = modes.read_only {
                    self.settings.write().set("default_transaction_read_only", if read_only { "on" } else { "off" })?;
                }
                if let Some(isolation) = modes.isolation {
                    self.settings.write().set("default_transaction_isolation", isolation.word())?;
                }
            }
        }
        Ok(Produced::Tag("SET".to_owned()))
    }

    /// Remembers a setting, or all of them, so that a rollback puts them back.
    fn remember(&self, scope: &Scope, name: Option<&str>, local: bool) -> Result<()> {
        let Some(txn) = scope.txn.as_ref().filter(|txn| txn.interactive) else { return Ok(()) };
        let settings = self.settings.read();
        let changed = |name: &str, value: &str| Changed { name: name.to_owned(), before: value.to_owned(), local };
        match name {
            Some(name) => txn.remember_setting(changed(name, settings.get(name)?)),
            None => settings.changed().for_each(|(name, value)| txn.remember_setting(changed(name, value))),
        }
        Ok(())
    }

    async fn discard(self: &Arc<Self>, scope: &Scope, what: st::Discard) -> Result<Produced> {
        let tag = match what {
            st::Discard::All => "DISCARD ALL",
            st::Discard::Plans => "DISCARD PLANS",
            st::Discard::Sequences => "DISCARD SEQUENCES",
            st::Discard::Temporary => "DISCARD TEMP",
        };
        if what == st::Discard::All {
            if scope.txn.as_ref().is_some_and(|txn| txn.interactive) {
                return Err(Error::state(
                    SqlState::ACTIVE_TRANSACTION,
                    "DISCARD ALL cannot run inside a transaction block",
                ));
            }
            self.settings.write().reset(None)?;
            self.prepared.lock().clear();
        }
        if matches!(what, st::Discard::All | st::Discard::Sequences) {
            *self.sequences.lock() = (HashMap::new(), None);
        }
        if matches!(what, st::Discard::All | st::Discard::Temporary) {
            crate::ddl::schema::drop_temporary(scope).await?;
        }
        Ok(Produced::Tag(tag.to_owned()))
    }

    /// The slot of a named statement, with the types of its parameters.
    async fn slot_of(self: &Arc<Self>, scope: &Scope, named: &Named) -> Result<Arc<Slot>> {
        if let Some(slot) = named.slot.lock().clone().filter(|slot| slot.fits(scope)) {
            return Ok(slot);
        }
        let scope = Scope { notes: Arc::default(), slot: None, ..scope.clone() };
        let types = self.types(&scope, &named.statement, &named.declared).await?;
        let slot = Arc::new(Slot::new(&scope, types.parameters)?);
        *named.slot.lock() = Some(slot.clone());
        Ok(slot)
    }

    /// The parameter types and result of a statement; the types of its first parameters may be declared.
    fn types<'a>(
        self: &'a Arc<Self>,
        scope: &'a Scope,
        statement: &'a Arc<Statement>,
        declared: &'a [FieldRef],
    ) -> BoxFuture<'a, Result<Types>> {
        Box::pin(async move {
            if let (StatementAst::Query(query), true) = (&statement.kind, declared.is_empty()) {
                if let Some((parameters, result)) = crate::fast::types(scope, query, needed(statement)) {
                    return Ok(Types { parameters, result: Some(result) });
                }
            }
            self.planned_types(scope, statement, declared).await
        })
    }

    /// [`Self::types`] by planning.
    fn planned_types<'a>(
        self: &'a Arc<Self>,
        scope: &'a Scope,
        statement: &'a Arc<Statement>,
        declared: &'a [FieldRef],
    ) -> BoxFuture<'a, Result<Types>> {
        Box::pin(async move {
            let count = needed(statement);
            let mut known: Vec<Option<FieldRef>> = declared.iter().cloned().map(Some).collect();
            known.resize(count, None);
            if let StatementAst::Query(query) = &statement.kind {
                counts(query, &mut known);
            }
            // The first pass learns what it can; the second knows every type, text where nothing says otherwise.
            let mut last: Result<Option<SchemaRef>> = Ok(None);
            for pass in 0..2 {
                let scope = Scope { params: None, param_types: Arc::new(known.clone()), ..scope.clone() };
                last = self.shape(&scope, statement, &mut known).await;
                for (at, field) in scope.notes.learned() {
                    if let Some(slot) = known.get_mut(at) {
                        slot.get_or_insert(field);
                    }
                }
                if count == 0 {
                    break;
                }
                if pass == 0 {
                    for (at, field) in known.iter_mut().enumerate() {
                        field.get_or_insert_with(|| Arc::new(Field::new(format!("${}", at + 1), DataType::Utf8, true)));
                    }
                }
            }
            let result = last?;
            let parameters = known
                .into_iter()
                .enumerate()
                .map(|(at, field)| {
                    let field =
                        field.map_or_else(|| Field::new("", DataType::Utf8, true), |field| field.as_ref().clone());
                    field.with_name(format!("${}", at + 1)).with_nullable(true)
                })
                .collect::<Vec<_>>();
            Ok(Types { parameters: client_schema(&Schema::new(parameters)), result })
        })
    }

    /// One pass of [`Self::types`].
    async fn shape(
        self: &Arc<Self>,
        scope: &Scope,
        statement: &Arc<Statement>,
        known: &mut [Option<FieldRef>],
    ) -> Result<Option<SchemaRef>> {
        Ok(match &statement.kind {
            StatementAst::Query(query) => {
                let mut query = query.as_ref().clone();
                let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
                let plan = binder.query(query)?;
                learn(&plan, known)?;
                if known.iter().any(Option::is_none) {
                    return Ok(None);
                }
                let kept = ready(scope, plan, known.is_empty())?;
                learn(&kept.plan, known)?;
                // The optimized plan, because folding constants can settle a type (the scale of round(x, 2)).
                let state = scope.state();
                let schema = match kept.stage {
                    PlanStage::Optimized => client_schema(kept.plan.schema().as_arrow()),
                    _ => client_schema(
                        state.optimizer().optimize(kept.plan.clone(), state, |_, _| {})?.schema().as_arrow(),
                    ),
                };
                scope.notes.leave(kept);
                Some(schema)
            }
            StatementAst::Insert(insert) => crate::dml::insert::types(scope, insert, known).await?,
            StatementAst::Update(update) => crate::dml::update::types(scope, update, known).await?,
            StatementAst::Delete(delete) => crate::dml::delete::types(scope, delete, known).await?,
            StatementAst::Merge(merge) => crate::dml::merge::types(scope, merge, known).await?,
            StatementAst::Explain(explain) => {
                // The parameters are those of the statement inside.
                Box::pin(self.shape(scope, &Arc::new(explain.inner.as_ref().clone()), known)).await?;
                Some(crate::explain::schema())
            }
            StatementAst::Show(show) => Some(crate::show::schema(show)),
            StatementAst::Backup { .. } => Some(crate::backup::schema()),
            StatementAst::Execute(execute) => {
                let named = self.prepared.lock().get(&crate::plan::fold(&execute.name)).cloned();
                match named {
                    Some(named) => self.types(scope, &named.statement, &named.declared).await?.result,
                    None => None,
                }
            }
            _ => None,
        })
    }
}

/// Parameters of LIMIT and OFFSET count rows.
fn counts(query: &ast::Query, known: &mut [Option<FieldRef>]) {
    use sqlparser::ast::Visit;
    struct Counts<'a>(&'a mut [Option<FieldRef>]);
    impl Counts<'_> {
        fn note(&mut self, expr: &ast::Expr) {
            if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Placeholder(name), .. }) = expr
                && let Some(at) = name.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1))
                && let Some(slot) = self.0.get_mut(at)
            {
                slot.get_or_insert_with(|| Arc::new(Field::new(name, DataType::Int64, true)));
            }
        }
    }
    impl ast::Visitor for Counts<'_> {
        type Break = ();

        fn pre_visit_query(&mut self, query: &ast::Query) -> std::ops::ControlFlow<()> {
            if let Some(ast::LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
                limit.iter().chain(offset.iter().map(|offset| &offset.value)).for_each(|expr| self.note(expr));
            }
            if let Some(quantity) = query.fetch.as_ref().and_then(|fetch| fetch.quantity.as_ref()) {
                self.note(quantity);
            }
            std::ops::ControlFlow::Continue(())
        }
    }
    let _ = query.visit(&mut Counts(known));
}

/// Learns parameter types from a plan.
pub(crate) fn learn(plan: &datafusion::logical_expr::LogicalPlan, known: &mut [Option<FieldRef>]) -> Result<()> {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
    // DataFusion does not say that LIMIT and OFFSET count.
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            for count in [&limit.skip, &limit.fetch].into_iter().flatten() {
                if let Expr::Placeholder(placeholder) = count.as_ref()
                    && let Some(at) =
                        placeholder.id.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1))
                    && let Some(slot) = known.get_mut(at)
                {
                    slot.get_or_insert_with(|| Arc::new(Field::new(&placeholder.id, DataType::Int64, true)));
                }
            }
        }
        // Nor that what `x = ANY (…)` looks through is an array of what `x` is.
        let inputs = node.inputs();
        if let [input] = inputs.as_slice() {
            node.apply_expressions(|expr| {
                expr.apply(|inner| {
                    if let Expr::ScalarFunction(function) = inner
                        && function.func.name() == "array_has"
                        && let [Expr::Placeholder(placeholder), item] = function.args.as_slice()
                        && let Some(at) = placeholder
                            .id
                            .trim_start_matches('$')
                            .parse::<usize>()
                            .ok()
                            .and_then(|at| at.checked_sub(1))
                        && let Some(slot) = known.get_mut(at)
                        && let Ok(item) = item.get_type(input.schema())
                    {
                        let list = DataType::List(Arc::new(Field::new_list_field(item, true)));
                        slot.get_or_insert_with(|| Arc::new(Field::new(&placeholder.id, list, true)));
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for (name, field) in plan.get_parameter_fields()? {
        let Some(at) = name.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1)) else {
            return Err(Error::unsupported(format!("the named parameter {name}")));
        };
        if let (Some(slot), Some(field)) = (known.get_mut(at), field) {
            if slot.is_none() && field.data_type() != &DataType::Null {
                *slot = Some(field);
            }
        }
    }
    Ok(())
}

/// What [`SessionInner::types`] finds.
pub(crate) struct Types {
    pub(crate) parameters: SchemaRef,
    pub(crate) result: Option<SchemaRef>,
}

/// Whether a statement needs a transaction that can write.
fn writes(kind: &StatementAst) -> bool {
    match kind {
        StatementAst::Query(query) => {
            // setval writes a row of the catalog, but outside transactions.
            let _ = query;
            false
        }
        StatementAst::Set(_)
        | StatementAst::Reset(_)
        | StatementAst::Show(_)
        | StatementAst::Analyze(_)
        | StatementAst::Vacuum(_)
        | StatementAst::Prepare(_)
        | StatementAst::Deallocate(_)
        | StatementAst::Backup { .. }
        | StatementAst::Cancel { .. }
        | StatementAst::Extension(_) => false,
        StatementAst::Explain(explain) => explain.analyze && writes(&explain.inner.kind),
        StatementAst::Copy(copy) => copy.direction == st::CopyDirection::From,
        _ => true,
    }
}

/// How many parameters executing a statement needs: those inside PREPARE wait for EXECUTE.
fn needed(statement: &Statement) -> usize {
    match statement.kind {
        StatementAst::Prepare(_) => 0,
        _ => statement.parameters,
    }
}

fn check_params(statement: &Statement, params: &[ScalarValue]) -> Result<()> {
    if params.len() < needed(statement) {
        return Err(Error::state(
            SqlState::PROTOCOL_VIOLATION,
            format!("the statement needs {} parameters, {} were given", needed(statement), params.len()),
        ));
    }
    Ok(())
}

/// One value per parameter.
fn positional(params: Params) -> Result<Vec<ScalarValue>> {
    let arrays = match params {
        Params::None => return Ok(Vec::new()),
        Params::Positional(arrays) => arrays,
        Params::Batch(_) => return Err(Error::internal("several sets of values where one is expected")),
    };
    let value = |array: &ArrayRef| {
        if array.is_empty() {
            return Err(Error::state(SqlState::PROTOCOL_VIOLATION, "a parameter has no value"));
        }
        crate::plan::scalar_of(array, 0)
    };
    arrays.iter().map(value).collect()
}

/// Brings values to the types that were announced, where that changes nothing about them.
fn conform(values: Vec<ScalarValue>, types: &Schema) -> Result<Vec<ScalarValue>> {
    values
        .into_iter()
        .enumerate()
        .map(|(at, value)| match types.fields().get(at) {
            Some(field) => conform_value(value, field, at),
            None => Ok(value),
        })
        .collect()
}

fn conform_value(value: ScalarValue, field: &Field, at: usize) -> Result<ScalarValue> {
    let wanted = field.data_type();
    // -0.0 equals 0.0, but comparisons go by bits.
    let value = match value {
        ScalarValue::Float64(Some(number)) => ScalarValue::Float64(Some(number + 0.0)),
        ScalarValue::Float32(Some(number)) => ScalarValue::Float32(Some(number + 0.0)),
        other => other,
    };
    if value.data_type() == *wanted {
        return Ok(value);
    }
    if value.is_null() {
        return Ok(ScalarValue::try_from(wanted)?);
    }
    if *wanted == DataType::FixedSizeBinary(16) {
        if let Some(Some(text)) = value.try_as_str() {
            let parsed = uuid::Uuid::parse_str(text).map_err(|_| {
                Error::state(
                    SqlState::INVALID_TEXT_REPRESENTATION,
                    format!("invalid input syntax for type uuid: \"{text}\""),
                )
            })?;
            return Ok(ScalarValue::FixedSizeBinary(16, Some(parsed.as_bytes().to_vec())));
        }
        if let ScalarValue::Binary(Some(bytes)) = &value {
            if bytes.len() == 16 {
                return Ok(ScalarValue::FixedSizeBinary(16, Some(bytes.clone())));
            }
        }
    }
    if is_measured(&value.data_type()) && is_measured(wanted) {
        return Ok(exactly(&value, wanted).unwrap_or(value));
    }
    value.cast_to(wanted).map_err(|error| {
        Error::state(
            SqlState::DATATYPE_MISMATCH,
            format!("parameter ${} of type {} does not fit {wanted}", at + 1, value.data_type()),
        )
        .with_source(Error::from(error))
    })
}

/// Numbers, dates and moments, which a cast can round or cut.
fn is_measured(data_type: &DataType) -> bool {
    data_type.is_numeric()
        || matches!(data_type, DataType::Boolean | DataType::Date32 | DataType::Date64 | DataType::Timestamp(..))
}

/// A value in another type, if it is the same value there. Doubles become reals in any case: both are nearest values.
fn exactly(value: &ScalarValue, wanted: &DataType) -> Option<ScalarValue> {
    let given = value.data_type();
    if (given == DataType::Boolean) != (*wanted == DataType::Boolean) || given.is_numeric() != wanted.is_numeric() {
        return None;
    }
    let cast = value.cast_to(wanted).ok()?;
    let same = (given.is_floating() && wanted.is_floating()) || cast.cast_to(&given).is_ok_and(|back| back == *value);
    same.then_some(cast)
}

fn check_isolation(modes: &st::TransactionModes) -> Result<()> {
    match modes.isolation {
        Some(st::Isolation::Serializable) => Err(no_serializable()),
        _ => Ok(()),
    }
}

pub(crate) fn no_serializable() -> Error {
    Error::unsupported("isolation level SERIALIZABLE").with_hint("the default, REPEATABLE READ, is snapshot isolation")
}

fn apply_modes(txn: &Txn, modes: &st::TransactionModes) -> Result<()> {
    check_isolation(modes)?;
    match modes.read_only {
        Some(true) => txn.read_only.store(true, Ordering::Relaxed),
        Some(false) if txn.storage.is_read_only() => {
            return Err(Error::state(
                SqlState::ACTIVE_TRANSACTION,
                "cannot set transaction read-write mode inside a read-only transaction",
            ));
        }
        Some(false) => txn.read_only.store(false, Ordering::Relaxed),
        None => {}
    }
    Ok(())
}

/// Finds the place an error is about, and puts it into the script the statement came from.
fn place(error: Error, statement: &Statement) -> Error {
    let mut error = crate::parse::locate(error, &statement.text);
    if let Some(position) = error.position {
        if statement.position > 1 {
            error.position = Some(position + statement.position - 1);
        }
    }
    error
}

fn kind_of(statement: &StatementAst) -> StatementKind {
    match statement {
        StatementAst::Query(_) => StatementKind::Query,
        StatementAst::Insert(_)
        | StatementAst::Update(_)
        | StatementAst::Delete(_)
        | StatementAst::Merge(_)
        | StatementAst::Truncate(_) => StatementKind::Dml,
        StatementAst::Begin(_)
        | StatementAst::Commit { .. }
        | StatementAst::Rollback { .. }
        | StatementAst::RollbackTo(_)
        | StatementAst::Savepoint(_)
        | StatementAst::Release(_) => StatementKind::Transaction,
        StatementAst::CreateTable(_)
        | StatementAst::CreateTableAs(_)
        | StatementAst::AlterTable(_)
        | StatementAst::CreateSchema(_)
        | StatementAst::CreateView(_)
        | StatementAst::CreateIndex(_)
        | StatementAst::CreateSequence(_)
        | StatementAst::AlterSequence(_)
        | StatementAst::Rename(_)
        | StatementAst::Drop(_)
        | StatementAst::CommentOn(_) => StatementKind::Ddl,
        _ => StatementKind::Utility,
    }
}

impl Session {
    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    /// Who it belongs to.
    pub fn principal(&self) -> &Principal {
        &self.inner.principal
    }

    /// Parses and types one statement.
    pub async fn prepare(&self, sql: &str, options: PrepareOptions) -> Result<Prepared> {
        match self.parse(sql, options).await? {
            Parsed::Statement(prepared) => Ok(prepared),
            Parsed::Script(script) => {
                self.doom(options.transaction);
                Err(Error::syntax("cannot insert multiple commands into a prepared statement")
                    .at(script.second())
                    .with_hint("prepare the statements one by one, or run the script without preparing it"))
            }
        }
    }

    async fn parse_inner(&self, sql: &str, options: PrepareOptions) -> Result<Parsed> {
        self.inner.check_open()?;
        let mut statements = parse_script(sql, ParseOptions { question_marks: options.question_marks })?;
        let statement = match statements.len() {
            1 => Arc::new(statements.remove(0)),
            0 => return Err(Error::syntax("the statement is empty")),
            _ => return Ok(Parsed::Script(Script::new(sql, statements))),
        };
        let txn = self.inner.transaction(options.transaction)?;
        if let Some(txn) = txn.as_ref().filter(|txn| txn.status() != Status::Ended) {
            if kind_of(&statement.kind) != StatementKind::Transaction {
                txn.check()?;
                txn.see_newest()?;
            }
        }
        let ticket = self.inner.ticket(&statement.text);
        let (types, slot) = ticket
            .run(Box::pin(async {
                let scope = self.inner.scope(txn.as_ref(), None).await?;
                let types = self.inner.types(&scope, &statement, &[]).await?;
                let slot = Slot::new(&scope, types.parameters.clone())?;
                Ok((types, Arc::new(slot)))
            }))
            .await
            .map_err(|error| place(error, &statement))?;
        Ok(Parsed::Statement(Prepared {
            kind: kind_of(&statement.kind),
            is_update: types.result.is_none(),
            result_schema: types.result,
            parameters: types.parameters,
            sql: statement.text.clone(),
            statement,
            slot,
        }))
    }

    /// Runs a prepared statement.
    pub async fn execute(
        &self,
        prepared: &Prepared,
        params: Params,
        transaction: Option<TransactionId>,
    ) -> Result<Outcome> {
        self.execute_watched(prepared, params, transaction, Arc::default()).await
    }

    /// Runs a prepared statement, whose scans report to `progress`.
    pub async fn execute_watched(
        &self,
        prepared: &Prepared,
        params: Params,
        transaction: Option<TransactionId>,
        progress: Arc<Progress>,
    ) -> Result<Outcome> {
        let params = match params {
            Params::Batch(batch) if batch.num_rows() == 1 => Params::Positional(batch.columns().to_vec()),
            params => params,
        };
        if let Params::Batch(batch) = &params {
            return self.execute_batch(prepared, batch, transaction, progress).await;
        }
        let values = conform(positional(params)?, &prepared.parameters)?;
        self.inner
            .execute(
                &prepared.statement,
                Given::to(prepared, values),
                transaction,
                prepared.result_schema.clone(),
                progress,
            )
            .await
    }

    /// One execution per row, all in one transaction.
    async fn execute_batch(
        &self,
        prepared: &Prepared,
        batch: &RecordBatch,
        transaction: Option<TransactionId>,
        progress: Arc<Progress>,
    ) -> Result<Outcome> {
        if prepared.result_schema.is_some() && prepared.kind == StatementKind::Query {
            return Err(Error::unsupported("a query with several sets of parameters"));
        }
        let session = &self.inner;
        session.check_open()?;
        let ticket = session.ticket_of(&prepared.sql, progress);
        let own = session.transaction(transaction)?;
        let mut working = own.as_ref().map(|txn| session.work(txn)).transpose()?;
        let txn = match &own {
            Some(txn) => txn.clone(),
            None => {
                let read_only = session.settings.read().default_read_only();
                session.open_transaction(false, read_only, Some(&prepared.sql)).await?
            }
        };
        let work = Box::pin(async {
            let _gate = txn.gate.lock().await;
            if let StatementAst::Insert(insert) = &prepared.statement.kind {
                let columns = conform_columns(batch, &prepared.parameters)?;
                let scope = session.scope(Some(&txn), Some(Given::default())).await?;
                if let Some(written) = crate::dml::insert::run_batch(&scope, insert, &columns).await? {
                    return Ok(written);
                }
            }
            let mut total = Written::nothing(tag_of(&prepared.statement.kind));
            for row in 0..batch.num_rows() {
                let values = batch
                    .columns()
                    .iter()
                    .map(|array| crate::plan::scalar_of(array, row))
                    .collect::<Result<Vec<_>>>()?;
                let values = conform(values, &prepared.parameters)?;
                check_params(&prepared.statement, &values)?;
                let given = Given::to(prepared, values);
                let scope = Scope { progress: ticket.progress(), ..session.scope(Some(&txn), Some(given)).await? };
                if let Produced::Written(written) = session.perform(&scope, &prepared.statement, None).await? {
                    total.add(written);
                }
            }
            Ok(total)
        });
        let result = ticket.run(work).await.map_err(|error| place(error, &prepared.statement));
        match (result, own.is_some()) {
            (Ok(total), true) => {
                working.iter_mut().for_each(Work::done);
                Ok(session.wrap(Produced::Written(total), ticket))
            }
            (Ok(total), false) => {
                ticket.stage(Stage::Committing);
                session.commit(&txn).await.inspect_err(|error| session.engine.queries.counters.told(error))?;
                Ok(session.wrap(Produced::Written(total), ticket))
            }
            (Err(error), interactive) => {
                if !interactive {
                    txn.storage.rollback();
                    txn.end();
                }
                Err(error)
            }
        }
    }

    /// Runs a script of one or more statements. Statements outside a transaction block commit one by one.
    pub async fn run(&self, sql: &str) -> Result<Vec<Outcome>> {
        self.inner.check_open()?;
        let statements = match parse_script(sql, ParseOptions { question_marks: false }) {
            Ok(statements) => statements,
            Err(error) => {
                if let Some(txn) = self.inner.current.lock().as_ref() {
                    txn.fail();
                }
                return Err(error);
            }
        };
        let mut outcomes = Vec::with_capacity(statements.len());
        for statement in statements {
            outcomes
                .push(self.inner.execute(&Arc::new(statement), Given::default(), None, None, Arc::default()).await?);
        }
        Ok(outcomes)
    }

    /// Opens a transaction by handle.
    pub async fn begin(&self) -> Result<TransactionId> {
        self.inner.check_open()?;
        let read_only = self.inner.settings.read().default_read_only();
        let txn = self.inner.open_transaction(true, read_only, None).await?;
        let id = txn.id;
        self.inner.handles.lock().insert(id, txn);
        Ok(id)
    }

    fn by_handle(&self, id: TransactionId) -> Result<Arc<Txn>> {
        self.inner.transaction(Some(id))?.ok_or_else(|| Error::internal("a transaction handle without a transaction"))
    }

    /// Commits. A transaction that failed is rolled back and reported as such.
    pub async fn commit(&self, id: TransactionId) -> Result<()> {
        let txn = self.by_handle(id)?;
        let _gate = txn.gate.lock().await;
        self.inner.handles.lock().remove(&id);
        match (self.inner.work(&txn), txn.status()) {
            (Ok(mut work), _) => {
                let committed =
                    self.inner.commit(&txn).await.inspect_err(|error| self.inner.engine.queries.counters.told(error));
                work.done();
                committed
            }
            (Err(_), Status::Failed) => {
                self.inner.abandon(&txn);
                Err(Error::state(SqlState::IN_FAILED_TRANSACTION, "the transaction had failed and was rolled back"))
            }
            (Err(error), _) => {
                self.inner.abandon(&txn);
                Err(error)
            }
        }
    }

    /// Lets go of what transactions hold that nobody has used for too long. Who asks now and then bounds how long idle
    /// clients hold up others; their next statement fails with 25P03.
    pub fn expire_idle_transactions(&self) {
        self.inner.expire_idle();
    }

    /// Rolls back.
    pub async fn rollback(&self, id: TransactionId) -> Result<()> {
        let txn = self.by_handle(id)?;
        let _gate = txn.gate.lock().await;
        self.inner.abandon(&txn);
        Ok(())
    }

    /// Marks a place to return to.
    pub async fn savepoint(&self, id: TransactionId, name: &str) -> Result<SavepointHandle> {
        let txn = self.by_handle(id)?;
        let _gate = txn.gate.lock().await;
        txn.savepoint(name)
    }

    /// Forgets a savepoint, keeping the work.
    pub async fn release_savepoint(&self, id: TransactionId, savepoint: SavepointHandle) -> Result<()> {
        let txn = self.by_handle(id)?;
        let _gate = txn.gate.lock().await;
        txn.release(Which::Handle(savepoint))
    }

    /// Undoes everything after a savepoint.
    pub async fn rollback_to_savepoint(&self, id: TransactionId, savepoint: SavepointHandle) -> Result<()> {
        let txn = self.by_handle(id)?;
        let _gate = txn.gate.lock().await;
        self.inner.put_back(txn.rollback_to(Which::Handle(savepoint))?);
        Ok(())
    }

    /// Loads rows in bulk. Returns how many.
    pub async fn ingest(
        &self,
        request: IngestRequest,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> Result<u64> {
        let session = &self.inner;
        session.check_open()?;
        let text: Arc<str> = Arc::from(format!("INGEST INTO {}", request.table));
        let ticket = session.ticket(&text);
        let own = session.transaction(request.transaction)?;
        let mut working = own.as_ref().map(|txn| session.work(txn)).transpose()?;
        let txn = match &own {
            Some(txn) => txn.clone(),
            None => session.open_transaction(false, false, Some(&text)).await?,
        };
        let work = Box::pin(async {
            let _gate = txn.gate.lock().await;
            let scope = session.scope(Some(&txn), Some(Given::default())).await?;
            crate::ingest::run(&scope, &request, &schema, batches.boxed()).await
        });
        match (ticket.run(work).await, own.is_some()) {
            (Ok(rows), interactive) => {
                if !interactive {
                    ticket.stage(Stage::Committing);
                    session.commit(&txn).await.inspect_err(|error| session.engine.queries.counters.told(error))?;
                }
                working.iter_mut().for_each(Work::done);
                session.engine.queries.counters.rows_written.fetch_add(rows, Ordering::Relaxed);
                Ok(rows)
            }
            (Err(error), interactive) => {
                if !interactive {
                    txn.storage.rollback();
                    txn.end();
                }
                Err(error)
            }
        }
    }

    /// Sets a session option. `catalog` and `schema` are understood besides the settings of SHOW ALL.
    pub fn set_option(&self, key: &str, value: &OptionValue) -> Result<()> {
        match key {
            "catalog" => match value {
                OptionValue::Text(name) if name == crate::catalog::CATALOG_NAME || name.is_empty() => Ok(()),
                other => {
                    Err(Error::state(SqlState::INVALID_CATALOG_NAME, format!("database \"{other}\" does not exist")))
                }
            },
            "schema" => self
                .inner
                .settings
                .write()
                .set("search_path", &format!("\"{}\"", value.to_string().replace('"', "\"\""))),
            _ => self.inner.settings.write().set(key, &value.to_string()),
        }
    }

    /// All session options.
    pub fn options(&self) -> Vec<(String, OptionValue)> {
        let settings = self.inner.settings.read();
        let mut options = settings.options();
        options.push(("catalog".to_owned(), OptionValue::Text(crate::catalog::CATALOG_NAME.to_owned())));
        options.push((
            "schema".to_owned(),
            OptionValue::Text(settings.search_path().first().cloned().unwrap_or_default()),
        ));
        options
    }

    /// Ends the session: open transactions are rolled back, temporary tables dropped.
    pub async fn close(&self) {
        let session = &self.inner;
        if session.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        session.engine.queries.counters.sessions.fetch_sub(1, Ordering::Relaxed);
        let mut open: Vec<Arc<Txn>> = std::mem::take(&mut *session.handles.lock()).into_values().collect();
        open.extend(session.current.lock().take());
        for txn in open {
            session.abandon(&txn);
        }
        if session.used_temporary.load(Ordering::Relaxed) {
            let result = async {
                let txn = session.open_transaction(false, false, None).await?;
                let scope = session.scope(Some(&txn), None).await?;
                crate::ddl::schema::drop_temporary(&scope).await?;
                session.commit(&txn).await
            };
            if let Err(error) = result.await {
                tracing::warn!(session = %session.id, %error, "temporary tables of a closed session stay until the next start");
            }
        }
    }

    /// A scope for metadata calls.
    pub(crate) async fn metadata_scope(&self) -> Result<Scope> {
        self.inner.check_open()?;
        let txn = self.inner.transaction(None)?.filter(|txn| txn.status() == Status::Active);
        self.inner.scope(txn.as_ref(), None).await
    }
}

/// Casts the columns of a batch of parameters.
fn conform_columns(batch: &RecordBatch, types: &Schema) -> Result<Vec<(FieldRef, ArrayRef)>> {
    types
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| {
            let array = batch.columns().get(at).ok_or_else(|| {
                Error::state(
                    SqlState::PROTOCOL_VIOLATION,
                    format!("the statement needs {} parameters", types.fields().len()),
                )
            })?;
            if array.data_type() == field.data_type() {
                return Ok((field.clone(), array.clone()));
            }
            if *field.data_type() == DataType::FixedSizeBinary(16) {
                let values = (0..array.len())
                    .map(|row| conform_value(crate::plan::scalar_of(array, row)?, field, at))
                    .collect::<Result<Vec<_>>>()?;
                return Ok((field.clone(), ScalarValue::iter_to_array(values)?));
            }
            let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
            let cast = |array: &ArrayRef, wanted: &DataType| arrow::compute::cast_with_options(array, wanted, &options);
            if is_measured(array.data_type()) && is_measured(field.data_type()) {
                // The statement converts what the announced type does not hold exactly, as it converts a literal.
                let whole = array.data_type() != &DataType::Boolean
                    && array.data_type().is_numeric() == field.data_type().is_numeric();
                let exact = cast(array, field.data_type())
                    .ok()
                    .filter(|it| whole && cast(it, array.data_type()).is_ok_and(|back| &back == array));
                return Ok(match exact {
                    Some(exact) => (field.clone(), exact),
                    None => (Arc::new(Field::new(field.name(), array.data_type().clone(), true)), array.clone()),
                });
            }
            Ok((field.clone(), cast(array, field.data_type())?))
        })
        .collect()
}

fn tag_of(kind: &StatementAst) -> &'static str {
    kind.name()
}
