//! The Flight service: which request means what.
//!
//! [`Service`] implements gRPC's `FlightService` itself instead of Arrow's blanket implementation, which answers `GetSchema`,
//! `PollFlightInfo` and `ListFlights` with "unimplemented", drops the results of some actions and knows nothing of sessions. Commands,
//! messages and metadata builders are Arrow's.
//!
//! # How a statement runs
//! `GetFlightInfo` plans. A query is only planned: its plan waits in [`Results`], its ticket says everything needed to plan it again,
//! and `DoGet` runs it. Everything else (DML, DDL, `SET`, …) runs right there, exactly once, and its ticket names the outcome: Python's
//! `cursor.execute("INSERT …")` arrives as `GetFlightInfo` + `DoGet`, and must not insert twice. `DoPut` runs updates with their
//! parameters, one execution per bound row.
//!
//! # Invariants
//! - SERVICE-1 the schema of a `FlightInfo`, of `GetSchema`, of the prepared statement and of the stream are the same.
//!   Test: `tests::one_schema_everywhere`.
//! - SERVICE-2 a statement with effects runs once, at `GetFlightInfo` or `DoPut`. Test: `tests::dml_runs_once`.
//! - SERVICE-3 every answer to a request that made a session carries its cookie. Test: `tests::cookies_name_sessions`.
//!
//! # Deliberately absent
//! Substrait plans and `DoExchange` are refused by name. There is one endpoint per result.

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
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use sql::{Outcome, Params, PrepareOptions, Prepared, Rows, StatementKind, TableFilter, TransactionId};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::actions;
use crate::auth::Credentials;
use crate::catalog;
use crate::decode::{DecodeLimits, broken_off};
use crate::encode::{MessageStream, Outgoing, Shape, Stop, messages, schema_bytes};
use crate::error::{Error, Result};
use crate::metrics::{Counters, Metrics};
use crate::options::{FlightOptions, Limits};
use crate::poll::Jobs;
use crate::put;
use crate::request::{Call, origin, put_cookie};
use crate::results::{Content, Planned, Results, Started, Taken};
use crate::sessions::{Client, Handle, Registry, Statement};
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
        Ok(Service(Arc::new(Inner {
            registry: Registry::new(engine, Arc::clone(&options.auth), limits.sessions_max, options.session_idle),
            results: Results::new(options.result_ttl, limits.results_max, limits.results_bytes_max),
            jobs: Jobs::new(options.result_ttl),
            limits,
            counters: Arc::default(),
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
        self.0.counters.read(self.0.registry.len())
    }

    /// Ends idle sessions and drops results that nobody fetched. The server calls it every few seconds.
    pub async fn expire(&self) {
        let gone = self.0.registry.expire().await;
        self.0.results.forget(&gone);
        self.0.results.expire();
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

/// A statement with everything it needs to run.
pub(crate) struct Bound {
    /// The session it runs in: the caller's, or the one that owns the transaction or the prepared statement.
    pub(crate) owner: Arc<Client>,
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) params: Params,
    /// As the ticket names it.
    pub(crate) transaction_handle: Option<Handle>,
    pub(crate) transaction: Option<TransactionId>,
    pub(crate) question_marks: bool,
}

impl Bound {
    /// Whether running it has no effects, so that it can wait for `DoGet`.
    pub(crate) fn is_query(&self) -> bool {
        self.prepared.kind == StatementKind::Query && !self.prepared.is_update && self.prepared.result_schema.is_some()
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.prepared.result_schema.clone().unwrap_or_else(|| Arc::new(Schema::empty()))
    }

    pub(crate) async fn execute(&self) -> Result<Outcome> {
        execute(&self.owner, &self.prepared, self.params.clone(), self.transaction).await
    }
}

async fn execute(
    owner: &Client,
    prepared: &Arc<Prepared>,
    params: Params,
    transaction: Option<TransactionId>,
) -> Result<Outcome> {
    if let (StatementKind::Query, Some(schema), Params::Batch(batch)) =
        (prepared.kind, &prepared.result_schema, &params)
    {
        let rows = each(owner.session.clone(), Arc::clone(prepared), batch.clone(), transaction);
        return Ok(Outcome::Rows(Rows { schema: Arc::clone(schema), stream: rows, rows_hint: None }));
    }
    owner
        .session
        .execute(prepared, params, transaction)
        .await
        .map_err(|error| Error::of_statement(error, &prepared.sql))
}

/// A query with several sets of values: the answers follow each other, each computed when the one before has been read.
fn each(
    session: sql::Session,
    prepared: Arc<Prepared>,
    batch: RecordBatch,
    transaction: Option<TransactionId>,
) -> sql::BatchStream {
    let answers = futures::stream::iter(0..batch.num_rows()).then(move |row| {
        let (session, prepared) = (session.clone(), Arc::clone(&prepared));
        let values = batch.columns().iter().map(|column| column.slice(row, 1)).collect();
        async move {
            match session.execute(&prepared, Params::Positional(values), transaction).await? {
                Outcome::Rows(rows) => Ok::<_, sql::Error>(rows.stream),
                Outcome::Affected { .. } | Outcome::Done { .. } => Ok(futures::stream::empty().boxed()),
            }
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

fn check_bound(prepared: &Prepared, params: &Params) -> Result<()> {
    let wanted = prepared.parameters.fields().len();
    if wanted > 0 && matches!(params, Params::None) {
        return Err(Error::Invalid(format!("the statement has {wanted} parameters, and none is bound")));
    }
    Ok(())
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

    /// Plans a statement given as text.
    pub(crate) async fn plan(
        &self,
        call: &Call,
        text: &str,
        transaction: Option<&Bytes>,
        question_marks: bool,
    ) -> Result<Bound> {
        let (owner, transaction) = self.transaction(call, transaction)?;
        self.plan_in(owner, text, transaction, question_marks).await
    }

    async fn plan_in(
        &self,
        owner: Arc<Client>,
        text: &str,
        transaction: Option<(Handle, TransactionId)>,
        question_marks: bool,
    ) -> Result<Bound> {
        let options = PrepareOptions { question_marks, transaction: transaction.map(|(_, id)| id) };
        let prepared = owner
            .session
            .prepare(text, options)
            .await
            .map_err(|error| Error::Sql { error: Box::new(error), statement: Some(text.into()) })?;
        Ok(Bound {
            owner,
            prepared: Arc::new(prepared),
            params: Params::None,
            transaction_handle: transaction.map(|(handle, _)| handle),
            transaction: transaction.map(|(_, id)| id),
            question_marks,
        })
    }

    /// A prepared statement with the values of its last bind.
    pub(crate) fn prepared(&self, call: &Call, bytes: &[u8]) -> Result<Bound> {
        let (owner, statement) = self.statement(call, bytes)?;
        let transaction = owner.transaction_of_statement(statement.transaction)?;
        let params = statement.bound.lock().clone();
        Ok(Bound {
            owner,
            prepared: Arc::clone(&statement.prepared),
            params,
            transaction_handle: statement.transaction,
            transaction,
            question_marks: true,
        })
    }

    /// The statement behind a descriptor, if it is one.
    async fn bound(&self, call: &Call, asked: &Asked) -> Result<Option<Bound>> {
        match asked {
            Asked::Command(Command::CommandStatementQuery(CommandStatementQuery { query, transaction_id })) => {
                self.plan(call, query, transaction_id.as_ref(), false).await.map(Some)
            }
            Asked::Command(Command::CommandPreparedStatementQuery(query)) => {
                self.prepared(call, &query.prepared_statement_handle).map(Some)
            }
            Asked::Command(Command::CommandStatementSubstraitPlan(_)) => {
                Err(Error::Unsupported("a Substrait plan".to_owned()))
            }
            Asked::Command(_) | Asked::Job(_) => Ok(None),
            Asked::Path(path) => {
                let table = quoted_path(path)?;
                self.plan(call, &format!("SELECT * FROM {table}"), None, false).await.map(Some)
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
                self.info(&schema, descriptor, ticket, None, -1)
            }
            Asked::Job(id) => self.jobs.info(id, &call.client.principal),
            Asked::Path(_) => Err(Error::Internal("a path was not planned".to_owned())),
        }
    }

    /// Issues the ticket of a statement: runs it now if it has effects.
    pub(crate) async fn issue(&self, call: &Call, bound: Bound, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        check_bound(&bound.prepared, &bound.params)?;
        let id = Uuid::new_v4();
        if bound.is_query() {
            return self.issue_query(id, &bound, descriptor, |kept| {
                Content::Planned(Planned {
                    owner: Arc::clone(&bound.owner),
                    prepared: Arc::clone(&bound.prepared),
                    params: bound.params.clone(),
                    transaction: bound.transaction,
                    kept,
                })
            });
        }
        let outcome = bound.execute().await?;
        self.issue_outcome(call, id, &bound, outcome, descriptor).await
    }

    /// The ticket of a query: what waits for it on the server is `content`.
    pub(crate) fn issue_query(
        &self,
        id: Uuid,
        bound: &Bound,
        descriptor: FlightDescriptor,
        content: impl FnOnce(bool) -> Content,
    ) -> Result<FlightInfo> {
        let mut ticket = Ticket::new(id, Kind::Query, bound.owner.number);
        ticket.statement = bound.prepared.sql.to_string();
        ticket.question_marks = bound.question_marks;
        if let Some(handle) = bound.transaction_handle {
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
        self.results.put(id, &bound.owner, content(ticket.incomplete));
        // A query in a transaction reads that transaction's state, which a later retry would not find.
        let expires = bound.transaction.is_none().then(|| self.results.ttl());
        self.info(&bound.schema(), descriptor, ticket.encode_any(), expires, -1)
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
        match outcome {
            Outcome::Rows(rows) => {
                let schema = Arc::clone(&rows.schema);
                let batches = rows.collect().await.map_err(|error| Error::of_statement(error, &bound.prepared.sql))?;
                let count = batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                let content = Content::Rows { schema: Arc::clone(&schema), batches: Arc::new(batches) };
                self.results.put(id, &call.client, content);
                let ticket = Ticket::new(id, Kind::Held, owner);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.info(&schema, descriptor, ticket.encode_any(), Some(self.results.ttl()), count)
            }
            Outcome::Affected { rows, .. } => {
                let ticket = Ticket::new(id, Kind::Empty, owner);
                let count = i64::try_from(rows).unwrap_or(i64::MAX);
                self.info(&Schema::empty(), descriptor, ticket.encode_any(), Some(self.results.ttl()), count)
            }
            Outcome::Done { .. } => {
                let ticket = Ticket::new(id, Kind::Empty, owner);
                // Nothing was counted; 0 would claim that nothing happened.
                self.info(&Schema::empty(), descriptor, ticket.encode_any(), Some(self.results.ttl()), -1)
            }
        }
    }

    /// A `FlightInfo` with one endpoint, to be fetched over the connection it came by.
    pub(crate) fn info(
        &self,
        schema: &Schema,
        descriptor: FlightDescriptor,
        ticket: Bytes,
        expires: Option<Duration>,
        records: i64,
    ) -> Result<FlightInfo> {
        let mut endpoint = FlightEndpoint { ticket: Some(FlightTicket { ticket }), ..Default::default() };
        if let Some(ttl) = expires {
            set_expiration(&mut endpoint, ttl);
        }
        Ok(FlightInfo {
            schema: schema_bytes(schema)?,
            flight_descriptor: Some(descriptor),
            endpoint: vec![endpoint],
            total_records: records,
            total_bytes: -1,
            ordered: true,
            app_metadata: Bytes::new(),
        })
    }

    /// `GetSchema`.
    async fn schema(&self, call: &Call, descriptor: FlightDescriptor) -> Result<SchemaResult> {
        let asked = Asked::read(&descriptor)?;
        let schema = match self.bound(call, &asked).await? {
            Some(bound) => schema_bytes(&bound.schema())?,
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
                Ok(self.stream_batches(call, Uuid::new_v4(), batch.schema(), Arc::new(vec![batch])))
            }
        }
    }

    async fn fetch_statement(&self, call: &Call, ticket: Ticket) -> Result<MessageStream> {
        let id = ticket.uuid();
        let kind = ticket.kind();
        let lost = || Error::unknown("result", SqlState::INVALID_CURSOR_NAME);
        if kind == Kind::Empty {
            return Ok(self.stream_batches(call, id, Arc::new(Schema::empty()), Arc::default()));
        }
        match self.results.take(id, &call.client.principal) {
            Some(Taken::Rows { schema, batches }) => Ok(self.stream_batches(call, id, schema, batches)),
            Some(Taken::Started(started)) => Ok(self.stream_started(call, id, started)),
            Some(Taken::Cancelled) => Err(Error::Cancelled),
            Some(Taken::Planned(planned)) => {
                let Planned { owner, prepared, params, transaction, .. } = planned;
                let outcome = execute(&owner, &prepared, params, transaction).await?;
                Ok(self.stream_outcome(call, id, &prepared, outcome))
            }
            None if kind == Kind::Query && !ticket.incomplete => {
                let bound = self.plan_again(call, ticket).await?;
                let outcome = bound.execute().await?;
                Ok(self.stream_outcome(call, id, &bound.prepared, outcome))
            }
            None => Err(lost()),
        }
    }

    /// Plans the query of a ticket whose plan is gone: redeemed before, evicted, or from before a restart.
    async fn plan_again(&self, call: &Call, ticket: Ticket) -> Result<Bound> {
        let parameters = decode_parameters(ticket.parameters, self.decode_limits())?;
        let (mut owner, transaction) = self.transaction(call, Some(&ticket.transaction))?;
        if transaction.is_none()
            && let Some(issuer) = self.registry.owner(ticket.client, &call.client)
        {
            // Names mean what they meant in the session that asked, as long as it lives.
            owner = issuer;
        }
        let mut bound = self.plan_in(owner, &ticket.statement, transaction, ticket.question_marks).await?;
        if !bound.is_query() {
            // TICKET-2
            return Err(Error::unknown("result", SqlState::INVALID_CURSOR_NAME));
        }
        bound.params = params_of(parameters, &bound.prepared)?;
        Ok(bound)
    }

    fn stream_outcome(&self, call: &Call, id: Uuid, prepared: &Prepared, outcome: Outcome) -> MessageStream {
        match outcome {
            Outcome::Rows(rows) => {
                let schema = prepared.result_schema.clone().unwrap_or_else(|| Arc::clone(&rows.schema));
                self.stream(call, id, schema, rows.stream, Some(Arc::clone(&prepared.sql)))
            }
            Outcome::Affected { .. } | Outcome::Done { .. } => {
                self.stream_batches(call, id, Arc::new(Schema::empty()), Arc::default())
            }
        }
    }

    fn stream_started(&self, call: &Call, id: Uuid, started: Started) -> MessageStream {
        let Started { rows: Rows { schema, stream, .. }, first, statement } = started;
        let stream = futures::stream::iter(first.map(Ok)).chain(stream).boxed();
        self.stream(call, id, schema, stream, Some(statement))
    }

    fn stream_batches(
        &self,
        call: &Call,
        id: Uuid,
        schema: SchemaRef,
        batches: Arc<Vec<RecordBatch>>,
    ) -> MessageStream {
        let count = batches.len();
        let stream = futures::stream::iter((0..count).map(move |n| Ok(batches[n].clone()))).boxed();
        self.stream(call, id, schema, stream, None)
    }

    fn stream(
        &self,
        call: &Call,
        id: Uuid,
        schema: SchemaRef,
        batches: sql::BatchStream,
        statement: Option<Arc<str>>,
    ) -> MessageStream {
        let stop = Stop::new();
        let running = self.results.running(id, &call.client.principal, &stop);
        let shape = Shape { bytes_max: self.limits.result_message_bytes_max, ..Shape::default() };
        messages(
            schema,
            batches,
            Outgoing {
                shape,
                statement,
                deadline: call.deadline,
                stop,
                counters: Arc::clone(&self.counters),
                guard: Box::new((running, call.busy())),
            },
        )
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
        let mut credentials = Credentials::of(request.metadata())?;
        let mut origin = origin(request.metadata(), request.extensions());
        // A log-in starts afresh, whatever cookie an earlier session left behind.
        origin.cookie = None;
        let mut incoming = request.into_inner();
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
    fn failed(&self, error: Error) -> Status {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        error.into()
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
        inner.handshake(request).await.map_err(|error| inner.failed(error))
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let flights = call.run(inner.flights(&call)).await?;
            Ok(call.answer(futures::stream::iter(flights.into_iter().map(Ok)).boxed()))
        };
        work.await.map_err(|error| inner.failed(error))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let info = call.run(Box::pin(inner.flight_info(&call, request.into_inner()))).await?;
            Ok(call.answer(info))
        };
        work.await.map_err(|error| inner.failed(error))
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
                            check_bound(&bound.prepared, &bound.params)?;
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
        work.await.map_err(|error| inner.failed(error))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let schema = call.run(Box::pin(inner.schema(&call, request.into_inner()))).await?;
            Ok(call.answer(schema))
        };
        work.await.map_err(|error| inner.failed(error))
    }

    async fn do_get(&self, request: Request<FlightTicket>) -> Result<Response<Self::DoGetStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let stream = call.run(Box::pin(inner.fetch(&call, request.into_inner()))).await?;
            Ok(call.answer(stream.boxed()))
        };
        work.await.map_err(|error| inner.failed(error))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let inner = &self.0;
        let work = async {
            let call = inner.enter(&request).await?;
            let stream = call.run(Box::pin(put::put(inner, &call, request.into_inner()))).await?;
            Ok(call.answer(stream))
        };
        work.await.map_err(|error| inner.failed(error))
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
        work.await.map_err(|error| inner.failed(error))
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
        work.await.map_err(|error| inner.failed(error))
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(self.0.failed(Error::Unsupported("DoExchange".to_owned())))
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
