//! The Flight service: which request means what.
//!
//! [`Service`] implements gRPC's `FlightService` itself instead of Arrow's blanket implementation, which answers `GetSchema`,
//! `PollFlightInfo` and `ListFlights` with "unimplemented", drops the results of some actions and knows nothing of sessions. Commands,
//! messages and metadata builders are Arrow's.
//!
//! # How a statement runs
//! `GetFlightInfo` plans. A query is only planned, at the moment it will read: its plan waits in [`Results`], its ticket says
//! everything needed to plan it again, that moment included, and `DoGet` runs it. A large result whose rows come straight from a
//! table has several endpoints, each with a ticket for one share. Everything else (DML, DDL, `SET`, …) runs right there, exactly once, and its ticket names the outcome: Python's
//! `cursor.execute("INSERT …")` arrives as `GetFlightInfo` + `DoGet`, and must not insert twice. `DoPut` runs updates with their
//! parameters, one execution per bound row. A text of several statements runs as one script, where a text is allowed to have effects
//! and is not prepared: `GetFlightInfo` and `DoPut` with a statement.
//!
//! # Invariants
//! - SERVICE-1 the schema of a `FlightInfo`, of `GetSchema`, of the prepared statement and of the stream are the same.
//!   Test: `tests::one_schema_everywhere`.
//! - SERVICE-2 a statement with effects runs once, at `GetFlightInfo` or `DoPut`. Test: `tests::dml_runs_once`.
//! - SERVICE-4 all who redeem a ticket read the moment that `GetFlightInfo` chose, and the endpoints of a result have all its rows,
//!   each once. Test: `tests::tickets::tickets_read_their_moment`, `tests::tickets::endpoints_have_every_row_once`.
//! - SERVICE-3 every answer to a request that made a session carries its cookie. Test: `tests::cookies_name_sessions`.
//!
//! # Deliberately absent
//! Substrait plans and `DoExchange` are refused by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{Any, Command, CommandGetTables, CommandStatementQuery};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket as FlightTicket,
};
use async_trait::async_trait;
use base::SqlState;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use sql::{
    OpenOptions, Opened, Outcome, Params, Parsed, PrepareOptions, Prepared, Progress, Rows, Script, StatementKind,
    TableFilter, TransactionId,
};
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::actions;
use crate::auth::Credentials;
use crate::catalog;
use crate::decode::{DecodeLimits, broken_off};
use crate::encode::{MessageStream, Outgoing, Ready, Shape, Stop, messages, ready, schema_bytes, small};
use crate::error::{Error, Result};
use crate::metrics::{Counted, Counters, Method, Metrics};
use crate::options::{FlightOptions, Limits};
use crate::plan::Plan;
use crate::poll::Jobs;
use crate::put;
use crate::request::{Call, origin, put_cookie};
use crate::results::{Bounds, Content, Planned, Results, Started, Taken};
use crate::sessions::{Client, Handle, Origin, Registry, Statement};
use crate::sql_info::ServerInfo;
use crate::ticket::{Kind, Ticket, decode_parameters, encode_parameters};

/// The Flight SQL service over one engine. Cheap to clone.
#[derive(Clone)]
pub struct Service(pub(crate) Arc<Inner>);

/// What all requests share.
pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) results: Results,
    pub(crate) jobs: Jobs,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    info: ServerInfo,
    stopping: AtomicBool,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("metrics", &self.metrics()).finish()
    }
}

impl Service {
    /// A service with these limits; the options' listeners do not matter here.
    pub fn new(engine: sql::Engine, options: &FlightOptions) -> Result<Service> {
        let milliseconds = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        let limits = options.limits;
        let counters = Arc::<Counters>::default();
        let (auth, idle) = (Arc::clone(&options.auth), options.session_idle);
        let bounds = Bounds {
            ttl: options.result_ttl,
            pin: options.result_pin,
            entries_max: limits.results_max,
            bytes_max: limits.results_bytes_max,
            pins_max: limits.pins_max,
        };
        Ok(Service(Arc::new(Inner {
            registry: Registry::new(engine, auth, Arc::clone(&counters), limits.sessions_max, idle),
            results: Results::new(bounds),
            jobs: Jobs::new(options.result_ttl, limits.jobs_max),
            limits,
            counters,
            info: ServerInfo::new(
                &options.version,
                (milliseconds(options.statement_timeout), milliseconds(options.transaction_timeout)),
            )?,
            stopping: AtomicBool::new(false),
        })))
    }

    /// The service as tonic serves it, with the message limits of the options.
    pub fn into_server(self, options: &FlightOptions) -> FlightServiceServer<Service> {
        FlightServiceServer::new(self)
            .max_decoding_message_size(options.limits.message_bytes_max)
            .max_encoding_message_size(usize::MAX)
    }

    /// The wire's counters.
    pub fn metrics(&self) -> Metrics {
        self.0.counters.read(self.0.registry.len(), self.0.results.pinned())
    }

    /// Ends idle sessions and drops results that nobody fetched. The server calls it every few seconds.
    pub async fn expire(&self) {
        let gone = self.0.registry.expire().await;
        self.0.results.forget(&gone);
        self.0.results.expire(self.0.registry.is_pressed());
        self.0.jobs.expire();
    }

    pub(crate) async fn disconnected(&self, connection: u64) {
        let gone = self.0.registry.disconnected(connection).await;
        self.0.results.forget(&gone);
    }

    pub(crate) fn count_connection(&self) {
        self.0.counters.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// New sessions are refused from now on.
    pub(crate) fn begin_shutdown(&self) {
        self.0.stopping.store(true, Ordering::Release);
    }

    pub(crate) async fn close_all(&self) {
        self.0.jobs.stop_all();
        self.0.registry.close_all().await;
    }
}

/// What a descriptor asks for.
enum Asked {
    Command(Command),
    /// A table, by its path.
    Path(Vec<String>),
    /// A job of `PollFlightInfo`.
    Job(Uuid),
}

impl Asked {
    fn read(descriptor: &FlightDescriptor) -> Result<Asked> {
        match descriptor.r#type() {
            DescriptorType::Path => Ok(Asked::Path(descriptor.path.clone())),
            DescriptorType::Cmd => {
                let any = Any::decode(&*descriptor.cmd)
                    .map_err(|_| Error::Protocol("the descriptor's command is not a Flight SQL command".to_owned()))?;
                if any.type_url == crate::poll::TOKEN_URL {
                    let id = Uuid::from_slice(&any.value)
                        .map_err(|_| Error::Protocol("the poll token is malformed".to_owned()))?;
                    return Ok(Asked::Job(id));
                }
                Ok(Asked::Command(read_command(any)?))
            }
            DescriptorType::Unknown => Err(Error::Protocol("the descriptor has no type".to_owned())),
        }
    }
}

pub(crate) fn read_command(any: Any) -> Result<Command> {
    Command::try_from(any).map_err(|error| Error::Protocol(error.to_string()))
}

fn unknown_command(command: &Command) -> Error {
    Error::Unsupported(format!("the command {}", command.type_url()))
}

/// What a request wants to run.
#[derive(Clone)]
pub(crate) enum What {
    Statement(Arc<Plan>),
    /// Several statements in one text.
    Script(Arc<Script>),
}

impl What {
    pub(crate) fn sql(&self) -> &Arc<str> {
        match self {
            What::Statement(plan) => &plan.sql,
            What::Script(script) => &script.sql,
        }
    }
}

/// A statement with everything it needs to run.
pub(crate) struct Bound {
    /// The session it runs in: the caller's, or the one that owns the transaction or the prepared statement.
    pub(crate) owner: Arc<Client>,
    pub(crate) what: What,
    pub(crate) params: Params,
    /// As the ticket names it.
    pub(crate) transaction_handle: Option<Handle>,
    pub(crate) transaction: Option<TransactionId>,
    pub(crate) question_marks: bool,
}

impl Bound {
    /// The plan, if running it has no effects, so that it can wait for `DoGet`.
    pub(crate) fn query(&self) -> Option<&Arc<Plan>> {
        match &self.what {
            What::Statement(plan) => {
                let pure = plan.kind == StatementKind::Query && !plan.is_update && plan.result_schema.is_some();
                pure.then_some(plan)
            }
            What::Script(_) => None,
        }
    }

    /// The schema that is announced before it runs. What a script answers is only known afterwards.
    pub(crate) fn announced(&self) -> Result<Bytes> {
        match &self.what {
            What::Statement(plan) => plan.announced(),
            What::Script(_) => schema_bytes(&Schema::empty()),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &self.what {
            What::Statement(plan) => check_bound(plan, &self.params),
            What::Script(_) => Ok(()),
        }
    }

    /// Runs what has effects.
    pub(crate) async fn execute(&self, progress: Arc<Progress>) -> Result<Outcome> {
        let session = &self.owner.session;
        let outcome = match &self.what {
            What::Statement(plan) => {
                session.execute_watched(plan, self.params.clone(), self.transaction, progress).await
            }
            What::Script(script) => session.run_script(script, self.transaction, progress).await,
        };
        outcome.map_err(|error| Error::of_statement(error, self.what.sql()))
    }

    /// Opens a query at the newest moment. One with several sets of values is opened value by value, when it is read.
    pub(crate) async fn open(&self, plan: &Arc<Plan>, limits: &Limits, progress: Arc<Progress>) -> Result<Planned> {
        let mut planned = Planned {
            owner: Arc::clone(&self.owner),
            plan: Arc::clone(plan),
            params: self.params.clone(),
            transaction: self.transaction,
            moment: None,
            opened: None,
            kept: false,
        };
        if matches!(planned.params, Params::Batch(_)) {
            planned.moment = if self.transaction.is_some() { None } else { self.owner.session.moment() };
            return Ok(planned);
        }
        let options = OpenOptions {
            at: None,
            shares_max: limits.endpoints_max,
            share_rows_min: limits.endpoint_rows_min,
            progress: Some(progress),
        };
        let opened = open(&planned, options).await?;
        planned.moment = opened.moment();
        planned.opened = Some(Arc::new(opened));
        Ok(planned)
    }
}

async fn open(planned: &Planned, options: OpenOptions) -> Result<Opened> {
    let Planned { owner, plan, params, transaction, .. } = planned;
    let opened = owner.session.open(plan, params.clone(), *transaction, options).await;
    opened.map_err(|error| Error::of_statement(error, &plan.sql))
}

/// The rows of a planned query: of what is open, or of the same query opened again at the same moment.
pub(crate) async fn read(planned: &Planned, share: usize) -> Result<Rows> {
    let lost = || Error::unknown("result", SqlState::INVALID_CURSOR_NAME);
    let of_statement = |error| Error::of_statement(error, &planned.plan.sql);
    if let Params::Batch(batch) = &planned.params {
        let schema = planned.plan.result_schema.clone().ok_or_else(lost)?;
        let stream = each(planned.clone(), batch.clone());
        return Ok(Rows { schema, stream, rows_hint: None });
    }
    if let Some(opened) = &planned.opened
        && let Some(rows) = opened.read(share).map_err(of_statement)?
    {
        return Ok(rows);
    }
    if !planned.is_named() {
        // What a transaction block saw cannot be seen again.
        return Err(lost());
    }
    let opened = open(planned, OpenOptions { at: planned.moment, ..OpenOptions::default() }).await?;
    opened.read(share).map_err(of_statement)?.ok_or_else(lost)
}

/// A query with several sets of values: the answers follow each other, each computed when the one before has been read.
fn each(planned: Planned, batch: RecordBatch) -> sql::BatchStream {
    let answers = futures::stream::iter(0..batch.num_rows()).then(move |row| {
        let planned = planned.clone();
        let values = batch.columns().iter().map(|column| column.slice(row, 1)).collect();
        async move {
            let Planned { owner, plan, transaction, moment, .. } = planned;
            let options = OpenOptions { at: moment, ..OpenOptions::default() };
            let opened = owner.session.open(&plan, Params::Positional(values), transaction, options).await?;
            Ok::<_, sql::Error>(match opened.read(0)? {
                Some(rows) => rows.stream,
                None => futures::stream::empty().boxed(),
            })
        }
    });
    answers.try_flatten().boxed()
}

/// Checks bound values against a statement and gives them the engine's form.
pub(crate) fn params_of(batch: Option<RecordBatch>, prepared: &Prepared) -> Result<Params> {
    let wanted = prepared.parameters.fields().len();
    let Some(batch) = batch.filter(|batch| batch.num_columns() > 0) else {
        return Ok(Params::None);
    };
    if batch.num_columns() != wanted {
        return Err(Error::Invalid(format!(
            "{} values are bound, but the statement has {wanted} parameters",
            batch.num_columns()
        )));
    }
    Ok(if batch.num_rows() == 1 { Params::Positional(batch.columns().to_vec()) } else { Params::Batch(batch) })
}

pub(crate) fn check_bound(prepared: &Prepared, params: &Params) -> Result<()> {
    let wanted = prepared.parameters.fields().len();
    if wanted > 0 && matches!(params, Params::None) {
        return Err(Error::Invalid(format!("the statement has {wanted} parameters, and none is bound")));
    }
    Ok(())
}

async fn plan_in(
    owner: &Client,
    text: &str,
    transaction: Option<(Handle, TransactionId)>,
    question_marks: bool,
) -> Result<Arc<Plan>> {
    let options = PrepareOptions { question_marks, transaction: transaction.map(|(_, id)| id) };
    let prepared = owner.session.prepare(text, options).await;
    let prepared = prepared.map_err(|error| Error::Sql { error: Box::new(error), statement: Some(text.into()) })?;
    Ok(Arc::new(Plan::new(prepared)))
}

impl Inner {
    pub(crate) fn decode_limits(&self) -> DecodeLimits {
        DecodeLimits { bytes_max: self.limits.batch_bytes_max, ..DecodeLimits::default() }
    }

    /// The session that owns a handle the caller shows.
    pub(crate) fn owner_of(
        &self,
        call: &Call,
        handle: Handle,
        what: &'static str,
        state: SqlState,
    ) -> Result<Arc<Client>> {
        self.registry.owner(handle.client, &call.client).ok_or_else(|| Error::unknown(what, state))
    }

    /// Reads the transaction of a request: the session that owns it, its handle, and the engine's number.
    pub(crate) fn transaction(
        &self,
        call: &Call,
        bytes: Option<&Bytes>,
    ) -> Result<(Arc<Client>, Option<(Handle, TransactionId)>)> {
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            return Ok((Arc::clone(&call.client), None));
        };
        let (what, state) = ("transaction", SqlState::NO_ACTIVE_TRANSACTION);
        let handle = Handle::from_bytes(bytes).ok_or_else(|| Error::unknown(what, state))?;
        let owner = self.owner_of(call, handle, what, state)?;
        let transaction = owner.open_transaction(handle)?;
        Ok((owner, Some((handle, transaction))))
    }

    /// A prepared statement that the caller shows, and the session it belongs to.
    pub(crate) fn statement(&self, call: &Call, bytes: &[u8]) -> Result<(Arc<Client>, Arc<Statement>)> {
        let unknown = || Error::unknown("prepared statement", SqlState::INVALID_STATEMENT_NAME);
        let handle = Handle::from_bytes(bytes).ok_or_else(unknown)?;
        let owner = self.registry.owner(handle.client, &call.client).ok_or_else(unknown)?;
        let statement = owner.statement(handle).ok_or_else(unknown)?;
        Ok((owner, statement))
    }

    /// Plans a text: one statement, or several that will run as a script.
    pub(crate) async fn plan(&self, call: &Call, text: &str, transaction: Option<&Bytes>) -> Result<Bound> {
        let (owner, transaction) = self.transaction(call, transaction)?;
        let options = PrepareOptions { question_marks: false, transaction: transaction.map(|(_, id)| id) };
        let parsed = owner
            .session
            .parse(text, options)
            .await
            .map_err(|error| Error::Sql { error: Box::new(error), statement: Some(text.into()) })?;
        Ok(Bound {
            owner,
            what: match parsed {
                Parsed::Statement(prepared) => What::Statement(Arc::new(Plan::new(prepared))),
                Parsed::Script(script) => What::Script(Arc::new(script)),
            },
            params: Params::None,
            transaction_handle: transaction.map(|(handle, _)| handle),
            transaction: transaction.map(|(_, id)| id),
            question_marks: false,
        })
    }

    /// Prepares one statement.
    pub(crate) async fn plan_one(
        &self,
        call: &Call,
        text: &str,
        transaction: Option<&Bytes>,
    ) -> Result<(Arc<Client>, Arc<Plan>, Option<Handle>)> {
        let (owner, transaction) = self.transaction(call, transaction)?;
        let plan = plan_in(&owner, text, transaction, true).await?;
        Ok((owner, plan, transaction.map(|(handle, _)| handle)))
    }

    /// A prepared statement with the values of its last bind.
    pub(crate) fn prepared(&self, call: &Call, bytes: &[u8]) -> Result<(Bound, Arc<Plan>)> {
        let (owner, statement) = self.statement(call, bytes)?;
        let transaction = owner.transaction_of_statement(statement.transaction)?;
        let params = statement.bound.lock().clone();
        let plan = Arc::clone(&statement.plan);
        let what = What::Statement(Arc::clone(&plan));
        let transaction_handle = statement.transaction;
        Ok((Bound { owner, what, params, transaction_handle, transaction, question_marks: true }, plan))
    }

    /// The statement behind a descriptor, if it is one.
    async fn bound(&self, call: &Call, asked: &Asked) -> Result<Option<Bound>> {
        match asked {
            Asked::Command(Command::CommandStatementQuery(CommandStatementQuery { query, transaction_id })) => {
                self.plan(call, query, transaction_id.as_ref()).await.map(Some)
            }
            Asked::Command(Command::CommandPreparedStatementQuery(query)) => {
                self.prepared(call, &query.prepared_statement_handle).map(|(bound, _)| Some(bound))
            }
            Asked::Command(Command::CommandStatementSubstraitPlan(_)) => {
                Err(Error::Unsupported("a Substrait plan".to_owned()))
            }
            Asked::Command(_) | Asked::Job(_) => Ok(None),
            Asked::Path(path) => {
                let table = quoted_path(path)?;
                self.plan(call, &format!("SELECT * FROM {table}"), None).await.map(Some)
            }
        }
    }

    /// The schema of a metadata command's answer.
    fn metadata_schema(&self, command: &Command) -> Result<SchemaRef> {
        Ok(match command {
            Command::CommandGetCatalogs(_) => catalog::catalogs_schema(),
            Command::CommandGetDbSchemas(_) => catalog::schemas_schema(),
            Command::CommandGetTables(CommandGetTables { include_schema, .. }) => {
                catalog::tables_schema(*include_schema)
            }
            Command::CommandGetTableTypes(_) => catalog::table_types()?.schema(),
            Command::CommandGetPrimaryKeys(_) => catalog::primary_keys_schema(),
            Command::CommandGetImportedKeys(_)
            | Command::CommandGetExportedKeys(_)
            | Command::CommandGetCrossReference(_) => catalog::foreign_keys_schema(),
            Command::CommandGetSqlInfo(_) => self.info.sql(&[])?.schema(),
            Command::CommandGetXdbcTypeInfo(_) => self.info.xdbc(None)?.schema(),
            other => return Err(unknown_command(other)),
        })
    }

    /// The answer to a metadata command.
    async fn metadata(&self, call: &Call, command: Command) -> Result<RecordBatch> {
        let session = &call.client.session;
        match command {
            Command::CommandGetCatalogs(_) => catalog::catalogs(session).await,
            Command::CommandGetDbSchemas(command) => catalog::schemas(session, command).await,
            Command::CommandGetTables(command) => catalog::tables(session, command).await,
            Command::CommandGetTableTypes(_) => catalog::table_types(),
            Command::CommandGetPrimaryKeys(of) => {
                let keys = session.primary_keys(of.catalog.as_deref(), of.db_schema.as_deref(), &of.table).await?;
                catalog::primary_keys(keys)
            }
            Command::CommandGetImportedKeys(of) => {
                let keys = session.imported_keys(of.catalog.as_deref(), of.db_schema.as_deref(), &of.table).await?;
                catalog::foreign_keys(keys, true)
            }
            Command::CommandGetExportedKeys(of) => {
                let keys = session.exported_keys(of.catalog.as_deref(), of.db_schema.as_deref(), &of.table).await?;
                catalog::foreign_keys(keys, false)
            }
            Command::CommandGetCrossReference(of) => {
                let keys = session
                    .cross_reference(
                        (of.pk_catalog.as_deref(), of.pk_db_schema.as_deref(), &of.pk_table),
                        (of.fk_catalog.as_deref(), of.fk_db_schema.as_deref(), &of.fk_table),
                    )
                    .await?;
                catalog::foreign_keys(keys, false)
            }
            Command::CommandGetSqlInfo(command) => self.info.sql(&command.info),
            Command::CommandGetXdbcTypeInfo(command) => self.info.xdbc(command.data_type),
            other => Err(unknown_command(&other)),
        }
    }

    /// `GetFlightInfo`.
    async fn flight_info(&self, call: &Call, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let asked = Asked::read(&descriptor)?;
        if let Some(bound) = self.bound(call, &asked).await? {
            return self.issue(call, bound, descriptor).await;
        }
        match asked {
            Asked::Command(command) => {
                let schema = self.metadata_schema(&command)?;
                // The command itself is the ticket: running it has no effects.
                let ticket = descriptor.cmd.clone();
                Ok(self.info(schema_bytes(&schema)?, descriptor, vec![ticket], None, -1))
            }
            Asked::Job(id) => self.jobs.info(id, &call.client.principal),
            Asked::Path(_) => Err(Error::Internal("a path was not planned".to_owned())),
        }
    }

    /// Issues the ticket of a statement: runs it now if it has effects.
    pub(crate) async fn issue(&self, call: &Call, bound: Bound, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        bound.check()?;
        let progress = Arc::default();
        if let Some(plan) = bound.query() {
            let mut limits = self.limits;
            if descriptor.r#type() == DescriptorType::Path {
                // Clients that know nothing of SQL often read the first endpoint only.
                limits.endpoints_max = 1;
            }
            let planned = Box::pin(bound.open(plan, &limits, progress)).await?;
            return self.issue_planned(Uuid::new_v4(), &bound, planned, descriptor);
        }
        let outcome = bound.execute(progress).await?;
        self.issue_outcome(call, Uuid::new_v4(), &bound, outcome, descriptor).await
    }

    /// The tickets of a query that waits.
    pub(crate) fn issue_planned(
        &self,
        id: Uuid,
        bound: &Bound,
        mut planned: Planned,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo> {
        let announced = planned.plan.announced()?;
        let shares = planned.opened.as_ref().map_or(1, |opened| opened.shares());
        if shares > 1 {
            let tickets = (0..u32::try_from(shares).unwrap_or(u32::MAX)).map(|share| {
                let mut ticket = Ticket::new(id, Kind::Share, bound.owner.number);
                ticket.share = share;
                ticket.encode_any()
            });
            let mut info = self.info(announced, descriptor, tickets.collect(), Some(self.results.ttl()), -1);
            // Nobody asked for an order, so the endpoints can be read in any.
            info.ordered = false;
            self.results.put(id, &bound.owner, Content::Planned(planned));
            return Ok(info);
        }
        let ticket = self.query_ticket(id, bound, &planned)?;
        planned.kept = ticket.incomplete;
        // A query in a transaction reads that transaction's state, which a later retry would not find.
        let expires = planned.moment.is_some().then(|| self.results.ttl());
        self.results.put(id, &bound.owner, Content::Planned(planned));
        Ok(self.info(announced, descriptor, vec![ticket.encode_any()], expires, -1))
    }

    /// The ticket of a query that `PollFlightInfo` has started.
    pub(crate) fn issue_started(
        &self,
        id: Uuid,
        bound: &Bound,
        planned: &Planned,
        started: Started,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo> {
        let ticket = self.query_ticket(id, bound, planned)?;
        self.results.put(id, &bound.owner, Content::Started(started));
        let expires = planned.moment.is_some().then(|| self.results.ttl());
        Ok(self.info(planned.plan.announced()?, descriptor, vec![ticket.encode_any()], expires, -1))
    }

    /// A ticket with all it takes to plan the query again.
    fn query_ticket(&self, id: Uuid, bound: &Bound, planned: &Planned) -> Result<Ticket> {
        let mut ticket = Ticket::new(id, Kind::Query, bound.owner.number);
        ticket.statement = planned.plan.sql.to_string();
        ticket.question_marks = bound.question_marks;
        ticket.set_moment(planned.moment);
        if let (Some(handle), Some(_)) = (bound.transaction_handle, bound.transaction) {
            ticket.transaction = handle.to_bytes();
        }
        let batch = match &bound.params {
            Params::None => None,
            Params::Batch(batch) => Some(batch.clone()),
            Params::Positional(values) => {
                let columns =
                    values.iter().enumerate().map(|(n, array)| (format!("${}", n + 1), Arc::clone(array), true));
                Some(RecordBatch::try_from_iter_with_nullable(columns)?)
            }
        };
        if let Some(batch) = batch {
            match encode_parameters(&batch) {
                Some(parameters) => ticket.parameters = parameters,
                None => ticket.incomplete = true,
            }
        }
        Ok(ticket)
    }

    /// The ticket of a statement that has run.
    pub(crate) async fn issue_outcome(
        &self,
        call: &Call,
        id: Uuid,
        bound: &Bound,
        outcome: Outcome,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo> {
        let owner = bound.owner.number;
        let ttl = Some(self.results.ttl());
        match outcome {
            Outcome::Rows(rows) if matches!(bound.what, What::Script(_)) => {
                // The last query of a script may be as large as any, so it is not collected; it can be fetched once.
                let announced = schema_bytes(&rows.schema)?;
                let started = Started { rows, first: None, statement: Arc::clone(bound.what.sql()) };
                self.results.put(id, &call.client, Content::Started(started));
                let ticket = Ticket::new(id, Kind::Held, owner);
                Ok(self.info(announced, descriptor, vec![ticket.encode_any()], None, -1))
            }
            Outcome::Rows(rows) => {
                let schema = Arc::clone(&rows.schema);
                let collected = rows.collect().await;
                let batches = collected.map_err(|error| Error::of_statement(error, bound.what.sql()))?;
                let count = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                let announced = schema_bytes(&schema)?;
                let content = Content::Rows { schema, batches: Arc::new(batches) };
                self.results.put(id, &call.client, content);
                let ticket = Ticket::new(id, Kind::Held, owner);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                Ok(self.info(announced, descriptor, vec![ticket.encode_any()], ttl, count))
            }
            Outcome::Affected { rows, .. } => {
                let ticket = Ticket::new(id, Kind::Empty, owner);
                let count = i64::try_from(rows).unwrap_or(i64::MAX);
                let announced = schema_bytes(&Schema::empty())?;
                Ok(self.info(announced, descriptor, vec![ticket.encode_any()], ttl, count))
            }
            Outcome::Done { .. } => {
                let ticket = Ticket::new(id, Kind::Empty, owner);
                // Nothing was counted; 0 would claim that nothing happened.
                let announced = schema_bytes(&Schema::empty())?;
                Ok(self.info(announced, descriptor, vec![ticket.encode_any()], ttl, -1))
            }
        }
    }

    /// A `FlightInfo` whose endpoints are fetched over the connection it came by.
    pub(crate) fn info(
        &self,
        schema: Bytes,
        descriptor: FlightDescriptor,
        tickets: Vec<Bytes>,
        expires: Option<Duration>,
        records: i64,
    ) -> FlightInfo {
        let endpoints = tickets.into_iter().map(|ticket| {
            let mut endpoint = FlightEndpoint { ticket: Some(FlightTicket { ticket }), ..Default::default() };
            if let Some(ttl) = expires {
                set_expiration(&mut endpoint, ttl);
            }
            endpoint
        });
        FlightInfo {
            schema,
            flight_descriptor: Some(descriptor),
            endpoint: endpoints.collect(),
            total_records: records,
            total_bytes: -1,
            ordered: true,
            app_metadata: Bytes::new(),
        }
    }

    /// `GetSchema`.
    async fn schema(&self, call: &Call, descriptor: FlightDescriptor) -> Result<SchemaResult> {
        let asked = Asked::read(&descriptor)?;
        let schema = match self.bound(call, &asked).await? {
            Some(bound) if matches!(bound.what, What::Script(_)) => {
                return Err(Error::Unsupported("the schema of several statements, before they have run,".to_owned()));
            }
            Some(bound) => bound.announced()?,
            None => match asked {
                Asked::Command(command) => schema_bytes(self.metadata_schema(&command)?.as_ref())?,
                Asked::Job(id) => self.jobs.info(id, &call.client.principal)?.schema,
                Asked::Path(_) => return Err(Error::Internal("a path was not planned".to_owned())),
            },
        };
        Ok(SchemaResult { schema })
    }

    /// `DoGet`.
    async fn fetch(&self, call: &Call, ticket: FlightTicket) -> Result<MessageStream> {
        let any = Any::decode(&*ticket.ticket)
            .map_err(|_| Error::Protocol("the ticket is not one of this server's".to_owned()))?;
        match read_command(any)? {
            Command::TicketStatementQuery(statement) => {
                self.fetch_statement(call, Ticket::decode_handle(&statement.statement_handle)?).await
            }
            Command::CommandStatementQuery(_)
            | Command::CommandPreparedStatementQuery(_)
            | Command::CommandStatementSubstraitPlan(_) => {
                Err(Error::Protocol("a statement is fetched with the ticket that GetFlightInfo returned".to_owned()))
            }
            command => {
                let batch = self.metadata(call, command).await?;
                self.stream_batches(call, Uuid::new_v4(), batch.schema(), Arc::new(vec![batch])).await
            }
        }
    }

    async fn fetch_statement(&self, call: &Call, ticket: Ticket) -> Result<MessageStream> {
        let id = ticket.uuid();
        let kind = ticket.kind();
        if kind == Kind::Empty {
            return self.stream_batches(call, id, Arc::new(Schema::empty()), Arc::default()).await;
        }
        match self.results.take(id, &call.client.principal, ticket.share) {
            Some(Taken::Rows { schema, batches }) => self.stream_batches(call, id, schema, batches).await,
            Some(Taken::Started(started)) => self.stream_started(call, id, started).await,
            Some(Taken::Cancelled) => Err(Error::Cancelled),
            Some(Taken::Planned(planned)) => {
                let share = usize::try_from(ticket.share).unwrap_or(usize::MAX);
                let rows = read(&planned, share).await?;
                self.stream_rows(call, id, &planned.plan, rows).await
            }
            None if kind == Kind::Query && !ticket.incomplete => {
                let planned = self.plan_again(call, ticket).await?;
                let rows = read(&planned, 0).await?;
                self.stream_rows(call, id, &planned.plan, rows).await
            }
            None => Err(Error::unknown("result", SqlState::INVALID_CURSOR_NAME)),
        }
    }

    /// Plans the query of a ticket whose plan is gone: redeemed before, evicted, or from before a restart.
    async fn plan_again(&self, call: &Call, ticket: Ticket) -> Result<Planned> {
        let lost = || Error::unknown("result", SqlState::INVALID_CURSOR_NAME);
        let moment = ticket.moment();
        let parameters = decode_parameters(ticket.parameters, self.decode_limits())?;
        let (mut owner, transaction) = self.transaction(call, Some(&ticket.transaction))?;
        if moment.is_none() && transaction.is_none() {
            // It read a transaction block, whose state has no name.
            return Err(lost());
        }
        if transaction.is_none()
            && let Some(issuer) = self.registry.owner(ticket.client, &call.client)
        {
            // Names mean what they meant in the session that asked, as long as it lives.
            owner = issuer;
        }
        let plan = plan_in(&owner, &ticket.statement, transaction, ticket.question_marks).await?;
        let params = params_of(parameters, &plan)?;
        let transaction_handle = transaction.map(|(handle, _)| handle);
        let transaction = transaction.map(|(_, id)| id);
        let what = What::Statement(Arc::clone(&plan));
        let bound =
            Bound { owner, what, params, transaction_handle, transaction, question_marks: ticket.question_marks };
        if bound.query().is_none() {
            // TICKET-2
            return Err(lost());
        }
        let Bound { owner, params, .. } = bound;
        Ok(Planned { owner, plan, params, transaction, moment, opened: None, kept: false })
    }

    async fn stream_rows(&self, call: &Call, id: Uuid, plan: &Plan, rows: Rows) -> Result<MessageStream> {
        let schema = plan.result_schema.clone().unwrap_or_else(|| Arc::clone(&rows.schema));
        self.stream(call, id, schema, Some(plan.header()), rows.stream, Some(Arc::clone(&plan.sql))).await
    }

    async fn stream_started(&self, call: &Call, id: Uuid, started: Started) -> Result<MessageStream> {
        let Started { rows: Rows { schema, stream, .. }, first, statement } = started;
        let stream = futures::stream::iter(first.map(Ok)).chain(stream).boxed();
        self.stream(call, id, schema, None, stream, Some(statement)).await
    }

    async fn stream_batches(
        &self,
        call: &Call,
        id: Uuid,
        schema: SchemaRef,
        batches: Arc<Vec<RecordBatch>>,
    ) -> Result<MessageStream> {
        let count = batches.len();
        let stream = futures::stream::iter((0..count).map(move |n| Ok(batches[n].clone()))).boxed();
        self.stream(call, id, schema, None, stream, None).await
    }

    async fn stream(
        &self,
        call: &Call,
        id: Uuid,
        schema: SchemaRef,
        header: Option<Bytes>,
        batches: sql::BatchStream,
        statement: Option<Arc<str>>,
    ) -> Result<MessageStream> {
        // It can be cancelled from here on.
        let stop = Stop::new();
        let running = self.results.running(id, &call.client.principal, &stop);
        let batches = match ready(batches).await {
            Ready::All(batches) => return small(&schema, batches, header, &self.counters),
            Ready::Part(batches) => batches,
        };
        let shape = Shape { bytes_max: self.limits.result_message_bytes_max, ..Shape::default() };
        let guard = Box::new((running, call.busy()));
        let (deadline, counters) = (call.deadline, Arc::clone(&self.counters));
        Ok(messages(schema, batches, Outgoing { shape, header, statement, deadline, stop, counters, guard }))
    }

    /// `ListFlights`: the tables, by path.
    async fn flights(&self, call: &Call) -> Result<Vec<FlightInfo>> {
        let tables = call.client.session.tables(TableFilter::default()).await?;
        tables
            .iter()
            .map(|table| {
                let path = vec![table.catalog.clone(), table.schema.clone(), table.name.clone()];
                Ok(FlightInfo {
                    schema: schema_bytes(&catalog::described(table))?,
                    flight_descriptor: Some(FlightDescriptor::new_path(path)),
                    total_records: -1,
                    total_bytes: -1,
                    ..Default::default()
                })
            })
            .collect()
    }

    /// `Handshake`: the token goes out as a header and, for old clients, as the payload of the one response.
    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Error::ShuttingDown);
        }
        let (metadata, extensions, mut incoming) = request.into_parts();
        let mut credentials = Credentials::of(&metadata)?;
        // A log-in starts afresh, whatever cookie an earlier session left behind.
        let origin = Origin { cookie: None, ..origin(&metadata, &extensions) };
        if credentials == Credentials::Missing {
            // Old Java and C++ clients put user and password into the first message.
            let first = incoming.message().await.map_err(broken_off)?;
            if let Some(first) = first
                && let Ok(basic) = arrow_flight::BasicAuth::decode(&*first.payload)
                && !basic.username.is_empty()
            {
                credentials = Credentials::Basic { user: basic.username, password: basic.password };
            }
        }
        let (client, token) = self.registry.login(credentials, &origin).await?;
        let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::from(token.clone()) };
        let mut response = Response::new(futures::stream::iter([Ok(answer)]).boxed());
        if let Ok(header) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert("authorization", header);
        }
        put_cookie(response.metadata_mut(), &client);
        Ok(response)
    }

    /// Counts a request and finds its session.
    async fn enter<T>(&self, request: &Request<T>) -> Result<Call> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Call::enter(&self.registry, request, true).await
    }

    /// Counts a failure on its way out.
    fn failed(&self, method: Method, error: Error) -> Status {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let status: Status = error.into();
        self.counters.ended(method, status.code());
        status
    }

    /// Counts a call with one answer.
    fn done<T>(&self, method: Method, result: Result<Response<T>>) -> Result<Response<T>, Status> {
        match result {
            Ok(response) => {
                self.counters.ended(method, Code::Ok);
                Ok(response)
            }
            Err(error) => Err(self.failed(method, error)),
        }
    }

    /// Counts a call with a stream of answers, when that ends.
    fn streaming<T: Send + 'static, S>(
        &self,
        method: Method,
        result: Result<Response<S>>,
    ) -> Result<Response<BoxStream<'static, Result<T, Status>>>, Status>
    where
        S: Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
    {
        match result {
            Ok(response) => Ok(response.map(|stream| Counted::new(stream, &self.counters, method).boxed())),
            Err(error) => Err(self.failed(method, error)),
        }
    }
}

/// Says until when an endpoint can be fetched.
pub(crate) fn set_expiration(endpoint: &mut FlightEndpoint, ttl: Duration) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ttl;
    let time = endpoint.expiration_time.get_or_insert_default();
    time.seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    time.nanos = i32::try_from(at.subsec_nanos()).unwrap_or(0);
}

/// A path of names as SQL writes it.
pub(crate) fn quoted_path(path: &[String]) -> Result<String> {
    // Some clients send "schema.table" as one element; a name with a dot in it needs a path of its own.
    let parts: Vec<&str> = match path {
        [one] => one.split('.').collect(),
        _ => path.iter().map(String::as_str).collect(),
    };
    if parts.is_empty() || parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(Error::Protocol("a path names a table: [catalog,] [schema,] table".to_owned()));
    }
    Ok(parts.iter().map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join("."))
}

#[async_trait]
impl FlightService for Service {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let inner = &self.0;
        inner.counters.requests.fetch_add(1, Ordering::Relaxed);
        inner.streaming(Method::Handshake, inner.handshake(request).await)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let flights = call.run(inner.flights(&call)).await?;
            Ok(call.answer(futures::stream::iter(flights.into_iter().map(Ok)).boxed()))
        };
        inner.streaming(Method::ListFlights, work.await)
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let info = call.run(Box::pin(inner.flight_info(&call, request.into_inner()))).await?;
            Ok(call.answer(info))
        };
        inner.done(Method::GetFlightInfo, work.await)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let descriptor = request.into_inner();
            let poll = match Asked::read(&descriptor)? {
                Asked::Job(id) => call.run(inner.jobs.poll(id, &call)).await?,
                asked => {
                    let bound = call.run(Box::pin(inner.bound(&call, &asked))).await?;
                    match bound {
                        Some(bound) => {
                            bound.check()?;
                            call.run(inner.jobs.start(inner, &call, bound, descriptor)).await?
                        }
                        None => {
                            let info = call.run(Box::pin(inner.flight_info(&call, descriptor))).await?;
                            PollInfo { info: Some(info), progress: Some(1.0), ..Default::default() }
                        }
                    }
                }
            };
            Ok(call.answer(poll))
        };
        inner.done(Method::PollFlightInfo, work.await)
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let schema = call.run(Box::pin(inner.schema(&call, request.into_inner()))).await?;
            Ok(call.answer(schema))
        };
        inner.done(Method::GetSchema, work.await)
    }

    async fn do_get(&self, request: Request<FlightTicket>) -> Result<Response<Self::DoGetStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let stream = call.run(Box::pin(inner.fetch(&call, request.into_inner()))).await?;
            Ok(call.answer(stream))
        };
        inner.streaming(Method::DoGet, work.await)
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let stream = call.run(Box::pin(put::put(inner, &call, request.into_inner()))).await?;
            Ok(call.answer(stream))
        };
        inner.streaming(Method::DoPut, work.await)
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let inner = &self.0;
        inner.counters.requests.fetch_add(1, Ordering::Relaxed);
        let work = async {
            let create = !actions::only_existing_sessions(&request.get_ref().r#type);
            let call = Call::enter(&inner.registry, &request, create).await?;
            let answers = call.run(Box::pin(actions::act(inner, &call, request.into_inner()))).await?;
            let results = answers.into_iter().map(|body| Ok(arrow_flight::Result { body }));
            Ok(call.answer(futures::stream::iter(results).boxed()))
        };
        inner.streaming(Method::DoAction, work.await)
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let types = actions::TYPES.iter().map(|(name, description)| {
                Ok(ActionType { r#type: (*name).to_owned(), description: (*description).to_owned() })
            });
            Ok(call.answer(futures::stream::iter(types).boxed()))
        };
        inner.streaming(Method::ListActions, work.await)
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.0.counters.requests.fetch_add(1, Ordering::Relaxed);
        Err(self.0.failed(Method::DoExchange, Error::Unsupported("DoExchange".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names() {
        let quote = |path: &[&str]| quoted_path(&path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
        assert_eq!(quote(&["t"]).unwrap(), "\"t\"");
        assert_eq!(quote(&["public.t"]).unwrap(), "\"public\".\"t\"");
        assert_eq!(quote(&["lattice", "public", "a.\"b"]).unwrap(), "\"lattice\".\"public\".\"a.\"\"b\"");
        assert!(quote(&[]).is_err());
        assert!(quote(&["a", ""]).is_err());
        assert!(quote(&["a", "b", "c", "d"]).is_err());
    }

    #[test]
    fn descriptors_are_read() {
        let garbage = FlightDescriptor::new_cmd(&b"\xff\xff\xff"[..]);
        assert!(matches!(Asked::read(&garbage), Err(Error::Protocol(_))));
        assert!(matches!(Asked::read(&FlightDescriptor::default()), Err(Error::Protocol(_))));
        let path = FlightDescriptor::new_path(vec!["t".to_owned()]);
        assert!(matches!(Asked::read(&path), Ok(Asked::Path(_))));
    }

    #[test]
    fn endpoints_expire_in_the_future() {
        let mut endpoint = FlightEndpoint::default();
        set_expiration(&mut endpoint, Duration::from_secs(60));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let at = endpoint.expiration_time.unwrap().seconds;
        assert!((now + 58..=now + 61).contains(&at));
    }
}
