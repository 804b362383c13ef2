//! The whole wire: a server on a loopback port over a real engine, and Arrow's client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
    ActionBeginTransactionResult, ActionEndSavepointRequest, ActionEndTransactionRequest, Any, Command,
    CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData,
    FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, PollInfo, RenewFlightEndpointRequest, SchemaResult,
    Ticket,
};
use async_trait::async_trait;
use base::Principal;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::auth::{Authenticator, Refusal};
use crate::messages::{
    GetSessionOptionsResult, PreparedStatementResult, SessionOptionValue, SetSessionOptionsRequest,
    SetSessionOptionsResult, session_option_value::Value,
};
use crate::{Address, FlightOptions, Server, Service};

mod hostile;
mod tickets;

type Client = FlightSqlServiceClient<Channel>;

/// A server over an engine in a folder of its own.
struct Running {
    _folder: tempfile::TempDir,
    address: SocketAddr,
    service: Service,
    engine: sql::Engine,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<crate::Result<()>>,
}

impl Running {
    async fn start() -> Running {
        Running::with(FlightOptions::default()).await
    }

    async fn with(mut options: FlightOptions) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let store = storage::StoreOptions::new(folder.path().join("data"));
        let store = storage::Store::open(runtime::Runtime::real(), store).await.unwrap();
        let engine = sql::Engine::open(store, sql::EngineOptions::default()).await.unwrap();
        if options.listeners == FlightOptions::default().listeners {
            options.listeners = vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))];
        }
        let server = Server::bind(options, engine.clone()).await.unwrap();
        let address = server
            .addresses()
            .iter()
            .find_map(|address| match address {
                Address::Tcp(address) => Some(*address),
                Address::Unix(_) => None,
            })
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let service = server.service();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        Running { _folder: folder, address, service, engine, stop: Some(stop), task }
    }

    /// A connection of its own.
    async fn connect(&self) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap();
        FlightSqlServiceClient::new(channel)
    }

    /// A connection that has logged in.
    async fn login(&self, user: &str, password: &str) -> Client {
        let mut client = self.connect().await;
        client.handshake(user, password).await.unwrap();
        client
    }

    async fn end(mut self) -> crate::Result<()> {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.task).await.unwrap()
    }
}

#[derive(Debug)]
struct Users;

#[async_trait]
impl Authenticator for Users {
    async fn password(&self, user: &str, password: &str) -> Result<Principal, Refusal> {
        match (user, password) {
            ("admin", "s:e:c") => Ok(Principal::admin()),
            ("alice", "a") => Ok(Principal::user("alice")),
            ("bob", "b") => Ok(Principal::user("bob")),
            _ => Err(Refusal::WrongPassword),
        }
    }

    async fn bearer(&self, token: &str) -> Result<Principal, Refusal> {
        if token == "from-elsewhere" { Ok(Principal::user("alice")) } else { Err(Refusal::UnknownToken) }
    }
}

fn with_users() -> FlightOptions {
    FlightOptions { auth: Arc::new(Users), ..FlightOptions::default() }
}

/// The gRPC status inside a client error.
fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

fn sqlstate(status: &Status) -> String {
    status.metadata().get("lattice-sqlstate").unwrap().to_str().unwrap().to_owned()
}

async fn fetch(client: &mut Client, info: &FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    client.do_get(ticket).await?.try_collect().await
}

async fn rows(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    fetch(client, &info).await
}

async fn run(client: &mut Client, sql: &str) -> i64 {
    client.execute_update(sql.to_owned(), None).await.unwrap()
}

/// The one number a query answers.
async fn number(client: &mut Client, sql: &str) -> i64 {
    let batches = rows(client, sql).await.unwrap();
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("a row");
    let column = arrow::compute::cast(batch.column(0), &DataType::Int64).unwrap();
    column.as_any().downcast_ref::<Int64Array>().unwrap().value(0)
}

fn texts(batches: &[RecordBatch], column: &str) -> Vec<String> {
    batches
        .iter()
        .flat_map(|batch| {
            let column = batch.column_by_name(column).unwrap();
            let column = column.as_any().downcast_ref::<StringArray>().unwrap();
            column.iter().map(|text| text.unwrap_or("NULL").to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

/// A request with the client's token.
fn with_token<T>(client: &Client, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = client.token() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

async fn act(client: &mut Client, name: &str, body: Vec<u8>) -> Result<Vec<Bytes>, Status> {
    let request = with_token(client, Action { r#type: name.to_owned(), body: body.into() });
    let answers = client.inner_mut().do_action(request).await?.into_inner();
    answers.map_ok(|answer| answer.body).try_collect().await
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> M {
    Any::decode(body).unwrap().unpack().unwrap().unwrap()
}

async fn begin(client: &mut Client) -> Bytes {
    let answers =
        act(client, "BeginTransaction", ActionBeginTransactionRequest {}.as_any().encode_to_vec()).await.unwrap();
    unpack::<ActionBeginTransactionResult>(&answers[0]).transaction_id
}

async fn end(client: &mut Client, transaction: &Bytes, commit: bool) -> Result<(), Status> {
    let request =
        ActionEndTransactionRequest { transaction_id: transaction.clone(), action: if commit { 1 } else { 2 } };
    act(client, "EndTransaction", request.as_any().encode_to_vec()).await.map(|_| ())
}

/// Prepares without Arrow's client, to see the whole answer.
async fn prepare(
    client: &mut Client,
    query: &str,
    transaction: Option<Bytes>,
) -> Result<PreparedStatementResult, Status> {
    let request = arrow_flight::sql::ActionCreatePreparedStatementRequest {
        query: query.to_owned(),
        transaction_id: transaction,
    };
    let answers = act(client, "CreatePreparedStatement", request.as_any().encode_to_vec()).await?;
    let any = Any::decode(&*answers[0]).unwrap();
    assert_eq!(any.type_url, crate::messages::PREPARED_STATEMENT_RESULT_URL);
    Ok(PreparedStatementResult::decode(any.value).unwrap())
}

/// The messages of a `DoPut`.
async fn upload(command: &impl ProstMessageExt, batches: Vec<RecordBatch>, schema: Arc<Schema>) -> Vec<FlightData> {
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_flight_descriptor(Some(descriptor))
        .build(futures::stream::iter(batches.into_iter().map(Ok)))
        .map(Result::unwrap)
        .collect()
        .await
}

async fn put(client: &mut Client, messages: Vec<FlightData>) -> Result<Option<Bytes>, Status> {
    let request = with_token(client, futures::stream::iter(messages));
    let mut answers = client.inner_mut().do_put(request).await?.into_inner();
    let answer = answers.message().await?.map(|answer| answer.app_metadata);
    while answers.message().await?.is_some() {}
    Ok(answer)
}

fn count(answer: Option<Bytes>) -> i64 {
    DoPutUpdateResult::decode(answer.unwrap()).unwrap().record_count
}

async fn update_prepared(client: &mut Client, handle: &Bytes, batch: RecordBatch) -> Result<i64, Status> {
    let command = CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() };
    let schema = batch.schema();
    Ok(count(put(client, upload(&command, vec![batch], schema).await).await?))
}

fn params(values: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(values.into_iter().map(|(name, values)| (name, values, true))).unwrap()
}

fn ints(values: &[i32]) -> ArrayRef {
    Arc::new(Int32Array::from(values.to_vec()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_results() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    assert_eq!(run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await, 0);
    assert_eq!(run(&mut client, "INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, 'c')").await, 3);
    assert_eq!(run(&mut client, "UPDATE t SET name = 'x' WHERE id > 1").await, 2);
    let batches = rows(&mut client, "SELECT id, name FROM t ORDER BY id").await.unwrap();
    assert_eq!(texts(&batches, "name"), ["a", "x", "x"]);
    assert_eq!(run(&mut client, "DELETE FROM t WHERE id = 2").await, 1);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2);
    // No rows, but a schema.
    let info = client.execute("SELECT id FROM t WHERE false".to_owned(), None).await.unwrap();
    assert_eq!(Schema::try_from(info.clone()).unwrap().fields().len(), 1);
    assert_eq!(fetch(&mut client, &info).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let metrics = server.service.metrics();
    assert!(metrics.requests > 5 && metrics.rows_sent >= 4 && metrics.connections == 1, "{metrics:?}");
    server.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_schema_everywhere() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(
        &mut client,
        "CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT NOT NULL, d NUMERIC(10,2), at TIMESTAMPTZ, j JSON)",
    )
    .await;
    run(&mut client, "INSERT INTO t VALUES (1, 'a', 1.5, now(), '{}')").await;
    for query in [
        "SELECT * FROM t",
        "SELECT s, count(*) AS n, sum(d) AS d, max(id) AS m FROM t GROUP BY s",
        "SELECT 1 AS one, 'x' AS x, NULL AS n, 1.5 AS d, true AS b, now() AS at",
        "SHOW search_path",
        "EXPLAIN SELECT 1",
        "VALUES (1, 'a'), (2, 'b')",
    ] {
        let info = client.execute(query.to_owned(), None).await.unwrap();
        let announced = Schema::try_from(info.clone()).unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut stream = client.do_get(ticket).await.unwrap();
        let mut sent = 0;
        while let Some(batch) = stream.try_next().await.unwrap() {
            assert_eq!(*batch.schema(), announced, "{query}");
            sent += batch.num_rows();
        }
        assert!(sent > 0, "{query}");
        assert_eq!(stream.schema().unwrap().as_ref(), &announced, "{query}");

        let prepared = prepare(&mut client, query, None).await.unwrap();
        let dataset = Schema::try_from(&SchemaResult { schema: prepared.dataset_schema }).unwrap();
        assert_eq!(dataset, announced, "{query}");
        assert_eq!(prepared.is_update, Some(false), "{query}");

        let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
        let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
        let schema = client.inner_mut().get_schema(request).await.unwrap().into_inner();
        assert_eq!(Schema::try_from(&schema).unwrap(), announced, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dml_runs_once() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    // As Python does it: GetFlightInfo, then DoGet, here even twice.
    let info = client.execute("INSERT INTO t VALUES (1), (2)".to_owned(), None).await.unwrap();
    assert_eq!(info.total_records, 2);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2, "it has run already");
    for _ in 0..2 {
        assert!(fetch(&mut client, &info).await.unwrap().is_empty());
    }
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2);

    // RETURNING gives rows, and the same rows to whoever asks again.
    let info = client.execute("INSERT INTO t VALUES (3) RETURNING id".to_owned(), None).await.unwrap();
    for _ in 0..2 {
        let batches = fetch(&mut client, &info).await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
    }
    let info = client.execute("CREATE TABLE u (x INT)".to_owned(), None).await.unwrap();
    assert_eq!(info.total_records, -1);
    assert!(fetch(&mut client, &info).await.unwrap().is_empty());

    // A forged ticket with a statement that writes is not run.
    let mut forged = crate::ticket::Ticket::new(uuid::Uuid::new_v4(), crate::ticket::Kind::Query, 1);
    forged.statement = "DELETE FROM t".to_owned();
    let ticket = Ticket { ticket: forged.encode_any() };
    let refused = status(client.do_get(ticket).await.unwrap_err());
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_and_parameters() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY, name TEXT)").await;
    let insert = prepare(&mut client, "INSERT INTO t VALUES (?, ?)", None).await.unwrap();
    assert_eq!(insert.is_update, Some(true));
    assert!(insert.dataset_schema.is_empty(), "updates have no dataset schema");
    let wanted = Schema::try_from(&SchemaResult { schema: insert.parameter_schema }).unwrap();
    assert_eq!(wanted.fields().len(), 2);
    assert!(wanted.fields().iter().all(|field| field.is_nullable()));
    assert_eq!(wanted.field(0).data_type(), &DataType::Int32);

    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
    let batch = params(vec![("", ints(&[1, 2, 3])), ("", names)]);
    let inserted = update_prepared(&mut client, &insert.prepared_statement_handle, batch).await.unwrap();
    assert_eq!(inserted, 3);

    // A query: bind, then GetFlightInfo; the handle always comes back.
    let query = prepare(&mut client, "SELECT name FROM t WHERE id = ?", None).await.unwrap();
    let command = CommandPreparedStatementQuery { prepared_statement_handle: query.prepared_statement_handle.clone() };
    let batch = params(vec![("", ints(&[3]))]);
    let schema = batch.schema();
    let answer = put(&mut client, upload(&command, vec![batch], schema).await).await.unwrap();
    let bound = arrow_flight::sql::DoPutPreparedStatementResult::decode(answer.unwrap()).unwrap();
    assert_eq!(bound.prepared_statement_handle, Some(query.prepared_statement_handle.clone()));
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let info = client.inner_mut().get_flight_info(request).await.unwrap().into_inner();
    // Binding other values now does not change what was asked for.
    let batch = params(vec![("", ints(&[1]))]);
    let schema = batch.schema();
    put(&mut client, upload(&command, vec![batch], schema).await).await.unwrap();
    for _ in 0..2 {
        // The second time the plan is gone, and the ticket alone says what to run.
        assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "name"), ["c"]);
    }

    // Unbound parameters and wrong counts are errors that say so.
    let unbound = prepare(&mut client, "SELECT $1::int + $2::int AS n", None).await.unwrap();
    let command =
        CommandPreparedStatementQuery { prepared_statement_handle: unbound.prepared_statement_handle.clone() };
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let error = client.inner_mut().get_flight_info(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("2 parameters"), "{}", error.message());
    let batch = params(vec![("", ints(&[1]))]);
    let schema = batch.schema();
    let error = put(&mut client, upload(&command, vec![batch], schema).await).await.unwrap_err();
    assert!(error.message().contains("1 values are bound"), "{}", error.message());

    // Several sets of values for a query: the answers follow each other.
    let command = CommandPreparedStatementQuery { prepared_statement_handle: query.prepared_statement_handle.clone() };
    let batch = params(vec![("", ints(&[1, 9, 3]))]);
    let schema = batch.schema();
    put(&mut client, upload(&command, vec![batch], schema).await).await.unwrap();
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let info = client.inner_mut().get_flight_info(request).await.unwrap().into_inner();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "name"), ["a", "c"]);

    // Closing twice is fine; using a closed statement is not.
    let close = arrow_flight::sql::ActionClosePreparedStatementRequest {
        prepared_statement_handle: query.prepared_statement_handle.clone(),
    };
    for _ in 0..2 {
        act(&mut client, "ClosePreparedStatement", close.as_any().encode_to_vec()).await.unwrap();
    }
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let error = client.inner_mut().get_flight_info(request).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "26000"));

    // And the way Arrow's own client does it all.
    let mut statement = client.prepare("SELECT name FROM t WHERE id = $1".to_owned(), None).await.unwrap();
    statement.set_parameters(params(vec![("$1", ints(&[1]))])).unwrap();
    let info = statement.execute().await.unwrap();
    statement.close().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "name"), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executemany_is_atomic() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let insert = prepare(&mut client, "INSERT INTO t VALUES ($1)", None).await.unwrap();
    let command = CommandPreparedStatementUpdate { prepared_statement_handle: insert.prepared_statement_handle };
    let first = params(vec![("$1", ints(&[1, 2]))]);
    let schema = first.schema();
    let second = params(vec![("$1", ints(&[3, 1]))]);
    let error =
        put(&mut client, upload(&command, vec![first.clone(), second], schema.clone()).await).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::AlreadyExists, "23505"));
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 0, "all or nothing, over batches");
    let third = params(vec![("$1", ints(&[3]))]);
    assert_eq!(count(put(&mut client, upload(&command, vec![first, third], schema.clone()).await).await.unwrap()), 3);
    // No rows: nothing is executed.
    assert_eq!(count(put(&mut client, upload(&command, vec![], schema).await).await.unwrap()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_do_not_wait_for_the_client_to_close() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT)").await;
    let insert = prepare(&mut client, "INSERT INTO t VALUES (1)", None).await.unwrap();
    let plain = CommandStatementUpdate { query: "INSERT INTO t VALUES (2)".to_owned(), transaction_id: None };
    let prepared = CommandPreparedStatementUpdate { prepared_statement_handle: insert.prepared_statement_handle };
    let empty = Arc::new(Schema::empty());
    for messages in
        [upload(&plain, vec![], Arc::clone(&empty)).await, upload(&prepared, vec![], Arc::clone(&empty)).await]
    {
        // The sender stays open, as C++ clients leave it until they have the answer.
        let (sender, receiver) = mpsc::unbounded_channel();
        for message in messages {
            sender.send(message).unwrap();
        }
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let request = with_token(&client, stream);
        let answer = async {
            let mut answers = client.inner_mut().do_put(request).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap();
            drop(sender);
            assert!(answers.message().await.unwrap().is_none());
            answer
        };
        let answer = tokio::time::timeout(Duration::from_secs(4), answer).await.expect("an answer before the end");
        assert_eq!(count(Some(answer.app_metadata)), 1);
    }
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_savepoints() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let mut other = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY)").await;

    let transaction = begin(&mut client).await;
    let insert = |id: i32| format!("INSERT INTO t VALUES ({id})");
    client.execute_update(insert(1), Some(transaction.clone())).await.unwrap();
    let savepoint = ActionBeginSavepointRequest { transaction_id: transaction.clone(), name: "s".to_owned() };
    let answers = act(&mut client, "BeginSavepoint", savepoint.as_any().encode_to_vec()).await.unwrap();
    let savepoint = unpack::<ActionBeginSavepointResult>(&answers[0]).savepoint_id;
    client.execute_update(insert(2), Some(transaction.clone())).await.unwrap();
    let info = client.execute("SELECT count(*) AS n FROM t".to_owned(), Some(transaction.clone())).await.unwrap();
    let seen = fetch(&mut client, &info).await.unwrap();
    assert_eq!(seen[0].column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), 2);
    assert_eq!(number(&mut other, "SELECT count(*) FROM t").await, 0);
    let back = ActionEndSavepointRequest { savepoint_id: savepoint.clone(), action: 2 };
    act(&mut client, "EndSavepoint", back.as_any().encode_to_vec()).await.unwrap();
    let release = ActionEndSavepointRequest { savepoint_id: savepoint, action: 1 };
    act(&mut client, "EndSavepoint", release.as_any().encode_to_vec()).await.unwrap();
    let error = act(&mut client, "EndSavepoint", release.as_any().encode_to_vec()).await.unwrap_err();
    assert_eq!(sqlstate(&error), "3B001");
    end(&mut client, &transaction, true).await.unwrap();
    assert_eq!(number(&mut other, "SELECT sum(id) FROM t").await, 1);

    let transaction = begin(&mut client).await;
    client.execute_update(insert(5), Some(transaction.clone())).await.unwrap();
    end(&mut client, &transaction, false).await.unwrap();
    end(&mut client, &transaction, false).await.expect("a second rollback is no error");
    let error = end(&mut client, &transaction, true).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "25P01"));
    let error = status(client.execute_update(insert(6), Some(transaction)).await.unwrap_err());
    assert_eq!(sqlstate(&error), "25P01");
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 1);

    // SQL text, per session.
    run(&mut client, "BEGIN").await;
    run(&mut client, &insert(7)).await;
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2);
    assert_eq!(number(&mut other, "SELECT count(*) FROM t").await, 1);
    run(&mut client, "COMMIT").await;
    assert_eq!(number(&mut other, "SELECT count(*) FROM t").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_outlive_their_transaction() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let one = begin(&mut client).await;
    let insert = prepare(&mut client, "INSERT INTO t VALUES ($1)", Some(one.clone())).await.unwrap();
    let handle = insert.prepared_statement_handle;
    update_prepared(&mut client, &handle, params(vec![("$1", ints(&[1]))])).await.unwrap();
    end(&mut client, &one, true).await.unwrap();
    let two = begin(&mut client).await;
    update_prepared(&mut client, &handle, params(vec![("$1", ints(&[2]))])).await.unwrap();
    end(&mut client, &two, false).await.unwrap();
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 1, "it ran in the second transaction");
    update_prepared(&mut client, &handle, params(vec![("$1", ints(&[3]))])).await.unwrap();
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 2, "it committed by itself");
}

fn ingest_into(table: &str, missing: TableNotExistOption, exists: TableExistsOption) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: missing as i32,
            if_exists: exists as i32,
        }),
        table: table.to_owned(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: HashMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_in_four_modes() {
    use {TableExistsOption as E, TableNotExistOption as M};
    let server = Running::start().await;
    let mut client = server.connect().await;
    let batch = |from: i32| {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
        RecordBatch::try_from_iter(vec![("id", ints(&[from, from + 1, from + 2])), ("name", names)]).unwrap()
    };
    let load = async |client: &mut Client, missing, exists, from| {
        let stream = futures::stream::iter([Ok(batch(from)), Ok(batch(from + 10))]);
        client.execute_ingest(ingest_into("t", missing, exists), stream).await
    };
    let error = status(load(&mut client, M::Fail, E::Append, 0).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "42P01"));
    assert_eq!(load(&mut client, M::Create, E::Fail, 0).await.unwrap(), 6);
    let error = status(load(&mut client, M::Create, E::Fail, 0).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::AlreadyExists, "42P07"));
    assert_eq!(load(&mut client, M::Fail, E::Append, 100).await.unwrap(), 6);
    assert_eq!(load(&mut client, M::Create, E::Append, 200).await.unwrap(), 6);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 18);
    assert_eq!(load(&mut client, M::Create, E::Replace, 300).await.unwrap(), 6);
    assert_eq!(number(&mut client, "SELECT min(id) FROM t").await, 300);

    // A load without a transaction of its own belongs to the open one.
    let transaction = begin(&mut client).await;
    assert_eq!(load(&mut client, M::Fail, E::Append, 400).await.unwrap(), 6);
    end(&mut client, &transaction, false).await.unwrap();
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 6);

    // A stream that breaks off leaves nothing.
    let command = ingest_into("t", M::Fail, E::Append);
    let mut messages = upload(&command, vec![batch(500), batch(600)], batch(0).schema()).await;
    let last = messages.last_mut().unwrap();
    last.data_body = last.data_body.slice(..8);
    let error = put(&mut client, messages).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert!(error.message().contains("truncated"), "{}", error.message());
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 6);

    // Unknown options are not ignored.
    let mut command = ingest_into("t", M::Fail, E::Append);
    command.options.insert("frobnicate".to_owned(), "1".to_owned());
    let error = put(&mut client, upload(&command, vec![batch(1)], batch(0).schema()).await).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);

    // A plain upload, by path.
    let data = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_path(vec!["public".into(), "uploaded".into()])))
        .build(futures::stream::iter([Ok(batch(0))]));
    let messages: Vec<FlightData> = data.try_collect().await.unwrap();
    assert_eq!(count(put(&mut client, messages).await.unwrap()), 3);
    assert_eq!(number(&mut client, "SELECT count(*) FROM uploaded").await, 3);
    assert!(server.service.metrics().rows_ingested >= 27);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_leave_the_server_up() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let command = ingest_into("t", TableNotExistOption::Create, TableExistsOption::Append);
    let batch =
        RecordBatch::try_from_iter(vec![("s", Arc::new(StringArray::from(vec!["abc"; 100])) as ArrayRef)]).unwrap();
    let good = upload(&command, vec![batch.clone()], batch.schema()).await;
    let mut refused = 0;
    for at in 0..good.len() {
        for cut in [0, 4, 17, 64] {
            let mut messages = good.clone();
            let header = messages[at].data_header.clone();
            messages[at].data_header = header.slice(..cut.min(header.len()));
            if at > 0 {
                messages[at].data_body = Bytes::from(vec![0xff; cut]);
            }
            if put(&mut client, messages).await.is_err() {
                refused += 1;
            }
        }
    }
    assert!(refused >= 6, "{refused}");
    // Garbage in every other place.
    let garbage = FlightDescriptor::new_cmd(&b"\xde\xad\xbe\xef"[..]);
    let request = with_token(&client, garbage);
    assert_eq!(client.inner_mut().get_flight_info(request).await.unwrap_err().code(), Code::InvalidArgument);
    let request = with_token(&client, Ticket { ticket: Bytes::from_static(b"\xde\xad") });
    assert_eq!(client.inner_mut().do_get(request).await.unwrap_err().code(), Code::InvalidArgument);
    for action in
        ["CreatePreparedStatement", "BeginSavepoint", "CancelFlightInfo", "RenewFlightEndpoint", "SetSessionOptions"]
    {
        let error = act(&mut client, action, vec![0xff, 0xff, 0xff]).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{action}: {error:?}");
    }
    assert_eq!(put(&mut client, vec![]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(put(&mut client, vec![FlightData::default()]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(number(&mut client, "SELECT 1").await, 1, "the server is up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_is_complete() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE parent (a INT, b TEXT, PRIMARY KEY (a, b))").await;
    run(&mut client, "CREATE TABLE child (id BIGINT PRIMARY KEY, a INT NOT NULL, b TEXT, price NUMERIC(18,2) DEFAULT 0, FOREIGN KEY (a, b) REFERENCES parent (a, b))").await;
    run(&mut client, "CREATE VIEW v AS SELECT id FROM child").await;

    let info = client.get_catalogs().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "catalog_name"), ["lattice"]);
    let info = client
        .get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: Some("pub%".into()) })
        .await
        .unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "db_schema_name"), ["public"]);
    let info = client
        .get_db_schemas(CommandGetDbSchemas { catalog: Some(String::new()), db_schema_filter_pattern: None })
        .await
        .unwrap();
    assert_eq!(fetch(&mut client, &info).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let info = client.get_table_types().await.unwrap();
    assert!(texts(&fetch(&mut client, &info).await.unwrap(), "table_type").contains(&"VIEW".to_owned()));

    let tables = |pattern: Option<&str>, types: &[&str], include_schema| CommandGetTables {
        catalog: None,
        db_schema_filter_pattern: Some("public".to_owned()),
        table_name_filter_pattern: pattern.map(str::to_owned),
        table_types: types.iter().map(|kind| (*kind).to_owned()).collect(),
        include_schema,
    };
    let info = client.get_tables(tables(None, &[], false)).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "table_name"), ["child", "parent", "v"]);
    let info = client.get_tables(tables(Some("_h%"), &[], false)).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "table_name"), ["child"]);
    let info = client.get_tables(tables(None, &["VIEW"], false)).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "table_name"), ["v"]);
    let info = client.get_tables(tables(Some("child"), &["TABLE"], true)).await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    let schemas = batches[0].column_by_name("table_schema").unwrap();
    let schemas = schemas.as_any().downcast_ref::<arrow::array::BinaryArray>().unwrap();
    let schema = arrow_ipc::convert::try_schema_from_ipc_buffer(schemas.value(0)).unwrap();
    let price = schema.field_with_name("price").unwrap();
    assert_eq!(price.data_type(), &DataType::Decimal128(18, 2));
    assert_eq!(price.metadata()["ARROW:FLIGHT:SQL:PRECISION"], "18");
    assert_eq!(price.metadata()["ARROW:FLIGHT:SQL:SCALE"], "2");
    assert!(!schema.field_with_name("a").unwrap().is_nullable());
    assert!(schema.field_with_name("b").unwrap().is_nullable());

    let of = |table: &str| (None::<String>, Some("public".to_owned()), table.to_owned());
    let (catalog, db_schema, table) = of("parent");
    let info = client.get_primary_keys(CommandGetPrimaryKeys { catalog, db_schema, table }).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "column_name"), ["a", "b"]);
    let (catalog, db_schema, table) = of("child");
    let info = client.get_imported_keys(CommandGetImportedKeys { catalog, db_schema, table }).await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    assert_eq!(texts(&batches, "pk_table_name"), ["parent", "parent"]);
    assert_eq!(texts(&batches, "fk_column_name"), ["a", "b"]);
    let (catalog, db_schema, table) = of("parent");
    let info = client.get_exported_keys(CommandGetExportedKeys { catalog, db_schema, table }).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, &info).await.unwrap(), "fk_table_name"), ["child", "child"]);

    let info = client.get_sql_info(vec![]).await.unwrap();
    assert!(fetch(&mut client, &info).await.unwrap()[0].num_rows() > 80);
    let command = CommandGetSqlInfo { info: vec![0] };
    let announced = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let schema = client.inner_mut().get_schema(announced).await.unwrap().into_inner();
    assert_eq!(Schema::try_from(&schema).unwrap().field(0).name(), "info_name");
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert!(fetch(&mut client, &info).await.unwrap()[0].num_rows() > 10);

    // Plain Flight: tables as flights, by path.
    let request = with_token(&client, Criteria::default());
    let flights: Vec<FlightInfo> =
        client.inner_mut().list_flights(request).await.unwrap().into_inner().try_collect().await.unwrap();
    let child = flights
        .iter()
        .find(|flight| {
            flight.flight_descriptor.as_ref().is_some_and(|of| of.path.last().is_some_and(|name| name == "child"))
        })
        .unwrap();
    run(&mut client, "INSERT INTO parent VALUES (1, 'x')").await;
    run(&mut client, "INSERT INTO child (id, a, b) VALUES (7, 1, 'x')").await;
    let request = with_token(&client, child.flight_descriptor.clone().unwrap());
    let info = client.inner_mut().get_flight_info(request).await.unwrap().into_inner();
    assert_eq!(fetch(&mut client, &info).await.unwrap()[0].num_rows(), 1);
    let request = with_token(&client, Empty {});
    let actions: Vec<_> =
        client.inner_mut().list_actions(request).await.unwrap().into_inner().try_collect().await.unwrap();
    assert!(actions.iter().any(|action| action.r#type == "SetSessionOptions"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_passwords_are_refused() {
    let server = Running::with(with_users()).await;
    let mut client = server.connect().await;
    let refused = status(client.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!((refused.code(), sqlstate(&refused).as_str()), (Code::Unauthenticated, "28000"));
    let unknown = client.handshake("nobody", "x").await.unwrap_err().to_string();
    let wrong = client.handshake("admin", "x").await.unwrap_err().to_string();
    assert_eq!(unknown, wrong, "a refusal does not say which was wrong");
    assert!(wrong.contains("28P01"), "{wrong}");
    client.handshake("admin", "s:e:c").await.unwrap();
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
    // Without padding, as Go sends it; with one response at most.
    let mut request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
    request.metadata_mut().insert("authorization", "Basic YWxpY2U6YQ".parse().unwrap());
    let mut fresh = server.connect().await;
    let response = fresh.inner_mut().handshake(request).await.unwrap();
    assert!(response.metadata().get("authorization").unwrap().to_str().unwrap().starts_with("Bearer "));
    assert!(response.metadata().get("set-cookie").is_some());
    let answers: Vec<_> = response.into_inner().try_collect().await.unwrap();
    assert_eq!(answers.len(), 1);
    // A token of another issuer.
    let mut elsewhere = server.connect().await;
    elsewhere.set_token("from-elsewhere".to_owned());
    assert_eq!(texts(&rows(&mut elsewhere, "SELECT current_user AS who").await.unwrap(), "who"), ["alice"]);
    elsewhere.set_token("made-up".to_owned());
    let refused = status(elsewhere.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_clients_get_a_token_too() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let request = Request::new(futures::stream::iter([HandshakeRequest::default()]));
    let response = client.inner_mut().handshake(request).await.unwrap();
    let header = response.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
    client.set_token(header.strip_prefix("Bearer ").unwrap().to_owned());
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
    assert_eq!(server.service.metrics().sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_a_session() {
    let server = Running::with(with_users()).await;
    let mut one = server.login("alice", "a").await;
    let mut two = server.login("alice", "a").await;
    run(&mut one, "SET application_name = 'one'").await;
    // The same token over another connection is the same session.
    let mut again = server.connect().await;
    again.set_token(one.token().unwrap().clone());
    assert_eq!(texts(&rows(&mut again, "SHOW application_name").await.unwrap(), "application_name"), ["one"]);
    assert_ne!(texts(&rows(&mut two, "SHOW application_name").await.unwrap(), "application_name"), ["one"]);
    assert_eq!(server.service.metrics().sessions, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_name_sessions() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let command = CommandStatementQuery { query: "SELECT 1".to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let response = client.inner_mut().get_flight_info(descriptor.clone()).await.unwrap();
    let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap().split(';').next().unwrap().to_owned();
    let response = client.inner_mut().get_flight_info(descriptor.clone()).await.unwrap();
    assert!(response.metadata().get("set-cookie").is_none(), "only once");
    run(&mut client, "SET application_name = 'kept'").await;
    let mut other = server.connect().await;
    other.set_header("cookie", cookie);
    assert_eq!(texts(&rows(&mut other, "SHOW application_name").await.unwrap(), "application_name"), ["kept"]);
    other.set_header("cookie", "arrow_flight_session_id=gone");
    let refused = status(other.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sessions_end_and_busy_ones_stay() {
    let options = FlightOptions { session_idle: Duration::from_millis(50), ..with_users() };
    let server = Running::with(options).await;
    let mut idle = server.login("alice", "a").await;
    let mut busy = server.login("bob", "b").await;
    let info = busy.execute("SELECT * FROM generate_series(1, 3000000)".to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut stream = busy.do_get(ticket).await.unwrap();
    stream.try_next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.service.expire().await;
    assert_eq!(server.service.metrics().sessions, 1);
    // SESS-2: it is not replaced by a fresh one.
    let refused = status(idle.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("expired"), "{}", refused.message());
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_private_to_a_principal() {
    let server = Running::with(with_users()).await;
    let mut admin = server.login("admin", "s:e:c").await;
    let mut alice = server.login("alice", "a").await;
    let mut again = server.login("admin", "s:e:c").await;
    let transaction = begin(&mut admin).await;
    let statement = prepare(&mut admin, "SELECT 1 AS one", None).await.unwrap().prepared_statement_handle;
    let command = CommandPreparedStatementQuery { prepared_statement_handle: statement };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    // Another session of the same principal may use them, nobody else.
    let request = with_token(&again, descriptor.clone());
    again.inner_mut().get_flight_info(request).await.unwrap();
    let request = with_token(&alice, descriptor);
    assert_eq!(alice.inner_mut().get_flight_info(request).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(end(&mut alice, &transaction, false).await.unwrap_err().code(), Code::NotFound);
    end(&mut again, &transaction, false).await.unwrap();
    // Outcomes are private too.
    let info = admin.execute("SHOW search_path".to_owned(), None).await.unwrap();
    assert_eq!(status(fetch(&mut alice, &info).await.unwrap_err()).code(), Code::NotFound);
    fetch(&mut again, &info).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_rolls_back() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT PRIMARY KEY)").await;
    let mut doomed = server.connect().await;
    run(&mut doomed, "BEGIN").await;
    run(&mut doomed, "INSERT INTO t VALUES (1)").await;
    drop(doomed);
    for _ in 0..100 {
        if server.service.metrics().sessions == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.service.metrics().sessions, 1, "the session ended with its connection");
    // The key is free again.
    assert_eq!(run(&mut client, "INSERT INTO t VALUES (1)").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_options_and_closing() {
    let server = Running::with(with_users()).await;
    let mut client = server.login("admin", "s:e:c").await;
    run(&mut client, "CREATE SCHEMA other").await;
    let text = |value: &str| SessionOptionValue { value: Some(Value::Text(value.to_owned())) };
    let request = SetSessionOptionsRequest {
        session_options: HashMap::from([
            ("schema".to_owned(), text("other")),
            ("statement_timeout".to_owned(), SessionOptionValue { value: Some(Value::Number(5000)) }),
            ("nonsense".to_owned(), text("x")),
            ("default_transaction_isolation".to_owned(), text("nonsense")),
            ("catalog".to_owned(), text("elsewhere")),
        ]),
    };
    let answers = act(&mut client, "SetSessionOptions", request.encode_to_vec()).await.unwrap();
    let errors = SetSessionOptionsResult::decode(answers[0].clone()).unwrap().errors;
    let mut refused: Vec<(&str, i32)> = errors.iter().map(|(name, error)| (name.as_str(), error.value)).collect();
    refused.sort_unstable();
    assert_eq!(refused, [("catalog", 2), ("default_transaction_isolation", 2), ("nonsense", 1)]);
    run(&mut client, "CREATE TABLE here (x INT)").await;
    assert_eq!(number(&mut client, "SELECT count(*) FROM other.here").await, 0);

    let answers = act(&mut client, "GetSessionOptions", vec![]).await.unwrap();
    let options = GetSessionOptionsResult::decode(answers[0].clone()).unwrap().session_options;
    assert_eq!(options["schema"], text("other"));
    assert_eq!(options["catalog"], text("lattice"));

    // An empty value unsets.
    let request = SetSessionOptionsRequest {
        session_options: HashMap::from([("statement_timeout".to_owned(), SessionOptionValue { value: None })]),
    };
    let answers = act(&mut client, "SetSessionOptions", request.encode_to_vec()).await.unwrap();
    assert!(SetSessionOptionsResult::decode(answers[0].clone()).unwrap().errors.is_empty());

    let answers = act(&mut client, "CloseSession", vec![]).await.unwrap();
    assert_eq!(&answers[0][..], &[0x08, 1]);
    let refused = status(client.execute("SELECT 1".to_owned(), None).await.unwrap_err());
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probing_makes_no_session() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let refused = act(&mut client, "GetSessionOptions", vec![]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(act(&mut client, "CloseSession", vec![]).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(server.service.metrics().sessions, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_actions_are_unimplemented() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    for action in ["Frobnicate", "CreatePreparedSubstraitPlan", ""] {
        let error = act(&mut client, action, vec![]).await.unwrap_err();
        assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::Unimplemented, "0A000"), "{action}");
    }
}

/// A query that takes long.
const ENDLESS: &str = "SELECT count(*) AS n FROM generate_series(1, 1000000000000) AS g (x) WHERE x < 0";

async fn quiet(server: &Running) {
    for _ in 0..200 {
        if server.engine.queries().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("still running: {:?}", server.engine.queries());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_and_deadlines_stop_the_plan() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    // Dropped in the middle of the rows.
    let info = client.execute("SELECT * FROM generate_series(1, 50000000)".to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let first = stream.try_next().await.unwrap().unwrap();
    assert!(first.num_rows() <= 100_000, "the first batch leaves early");
    assert_eq!(server.engine.queries().len(), 1);
    drop(stream);
    quiet(&server).await;
    // Dropped before the first row.
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    drop(stream);
    quiet(&server).await;
    // The deadline of the request.
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let mut request = with_token(&client, info.endpoint[0].ticket.clone().unwrap());
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let ended = match client.inner_mut().do_get(request).await {
        Ok(stream) => stream.into_inner().try_collect::<Vec<FlightData>>().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    quiet(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_is_cancelled() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let cancel = async |client: &mut Client, info: &FlightInfo| {
        let body = CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec();
        let answers = act(client, "CancelFlightInfo", body).await.unwrap();
        CancelFlightInfoResult::decode(answers[0].clone()).unwrap().status()
    };
    // Before it is fetched.
    let info = client.execute("SELECT 1 AS one".to_owned(), None).await.unwrap();
    assert_eq!(cancel(&mut client, &info).await, CancelStatus::Cancelled);
    assert_eq!(status(fetch(&mut client, &info).await.unwrap_err()).code(), Code::Cancelled);
    // While it is fetched.
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut other = server.connect().await;
    let (status_of_cancel, ended) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cancel(&mut other, &info).await
        },
        stream.try_next()
    );
    assert_eq!(status_of_cancel, CancelStatus::Cancelled);
    assert_eq!(status(ended.unwrap_err()).code(), Code::Cancelled);
    quiet(&server).await;
    // After it was fetched.
    let info = client.execute("SHOW search_path".to_owned(), None).await.unwrap();
    fetch(&mut client, &info).await.unwrap();
    assert_eq!(cancel(&mut client, &info).await, CancelStatus::NotCancellable);
    // The deprecated action.
    let info = client.execute("SELECT 2 AS two".to_owned(), None).await.unwrap();
    let request = arrow_flight::sql::ActionCancelQueryRequest { info: info.encode_to_vec().into() };
    let answers = act(&mut client, "CancelQuery", request.as_any().encode_to_vec()).await.unwrap();
    assert_eq!(unpack::<arrow_flight::sql::ActionCancelQueryResult>(&answers[0]).result, 1);
}

async fn poll(client: &mut Client, descriptor: FlightDescriptor) -> Result<PollInfo, Status> {
    let request = with_token(client, descriptor);
    Ok(client.inner_mut().poll_flight_info(request).await?.into_inner())
}

fn statement(query: &str) -> FlightDescriptor {
    let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polling_runs_once() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT)").await;
    // Short: the first poll is the last.
    let mut answer = poll(&mut client, statement("INSERT INTO t VALUES (1)")).await.unwrap();
    while let Some(next) = answer.flight_descriptor {
        answer = poll(&mut client, next).await.unwrap();
    }
    assert_eq!(answer.progress, Some(1.0));
    assert_eq!(answer.info.unwrap().total_records, 1);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 1);
    // Long: the schema is known at once; polls follow; cancelling ends it.
    let answer = poll(&mut client, statement(ENDLESS)).await.unwrap();
    let next = answer.flight_descriptor.clone().unwrap();
    let partial = answer.info.unwrap();
    assert_eq!(Schema::try_from(partial.clone()).unwrap().field(0).name(), "n");
    assert!(partial.endpoint.is_empty());
    assert_eq!(server.engine.queries().len(), 1);
    let body = CancelFlightInfoRequest { info: Some(partial) }.encode_to_vec();
    let answers = act(&mut client, "CancelFlightInfo", body).await.unwrap();
    assert_eq!(CancelFlightInfoResult::decode(answers[0].clone()).unwrap().status(), CancelStatus::Cancelled);
    assert_eq!(poll(&mut client, next).await.unwrap_err().code(), Code::Cancelled);
    quiet(&server).await;
    // A query's rows come through the final info, and again when asked again.
    let answer = poll(&mut client, statement("SELECT id FROM t")).await.unwrap();
    let info = answer.info.unwrap();
    for _ in 0..2 {
        assert_eq!(fetch(&mut client, &info).await.unwrap()[0].num_rows(), 1);
    }
    // An error is reported by the poll.
    let error = poll(&mut client, statement("SELECT 1/0 AS n")).await.unwrap_err();
    assert_eq!(sqlstate(&error), "22012");
    let error = poll(&mut client, statement("SELECT nope FROM t")).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "42703"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_are_redeemable() {
    let server = Running::with(with_users()).await;
    let mut client = server.login("alice", "a").await;
    let info = client.execute("SELECT 7 AS n".to_owned(), None).await.unwrap();
    let endpoint = &info.endpoint[0];
    assert!(endpoint.expiration_time.is_some() && endpoint.location.is_empty());
    // Again and again, and from other sessions, as Spark's tasks do.
    for _ in 0..2 {
        assert_eq!(fetch(&mut client, &info).await.unwrap()[0].num_rows(), 1);
    }
    let mut task = server.login("alice", "a").await;
    assert_eq!(fetch(&mut task, &info).await.unwrap()[0].num_rows(), 1);
    // Names mean what they meant where the ticket was issued.
    run(&mut client, "CREATE TEMPORARY TABLE here AS SELECT 5 AS n").await;
    let info = client.execute("SELECT n FROM here".to_owned(), None).await.unwrap();
    for _ in 0..2 {
        assert_eq!(fetch(&mut task, &info).await.unwrap()[0].num_rows(), 1);
    }
    // Metadata commands are their own tickets.
    let info = client.get_catalogs().await.unwrap();
    let any = Any::decode(&*info.endpoint[0].ticket.as_ref().unwrap().ticket).unwrap();
    assert!(matches!(Command::try_from(any).unwrap(), Command::CommandGetCatalogs(_)));
    // Renewing an endpoint moves its expiration.
    let info = client.execute("SHOW search_path".to_owned(), None).await.unwrap();
    let request = RenewFlightEndpointRequest { endpoint: Some(info.endpoint[0].clone()) };
    let answers = act(&mut client, "RenewFlightEndpoint", request.encode_to_vec()).await.unwrap();
    let renewed = FlightEndpoint::decode(answers[0].clone()).unwrap();
    assert_eq!(renewed.ticket, info.endpoint[0].ticket);
    assert!(renewed.expiration_time.unwrap().seconds >= info.endpoint[0].expiration_time.as_ref().unwrap().seconds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_reach_the_client_in_full() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE orders (id INT PRIMARY KEY)").await;
    let error = status(client.execute("SELECT * FROM oders".to_owned(), None).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "42P01"));
    assert!(error.message().starts_with("42P01: "), "{}", error.message());
    assert!(!error.details().is_empty());
    for (statement, code, state) in [
        ("SELEC 1", Code::InvalidArgument, "42601"),
        ("SELECT nope FROM orders", Code::NotFound, "42703"),
        ("CREATE TABLE orders (id INT)", Code::AlreadyExists, "42P07"),
        ("SELECT 'x'::int", Code::InvalidArgument, "22P02"),
    ] {
        let error = match client.execute(statement.to_owned(), None).await {
            Ok(info) => status(fetch(&mut client, &info).await.unwrap_err()),
            Err(error) => status(error),
        };
        assert_eq!((error.code(), sqlstate(&error).as_str()), (code, state), "{statement}: {}", error.message());
    }
    // An error in the middle of the rows arrives after the rows before it, and the server goes on.
    let error = rows(&mut client, "SELECT 10 / (5 - x) AS n FROM generate_series(1, 10) AS g (x)").await.unwrap_err();
    assert_eq!(sqlstate(&status(error)), "22012");
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_results_come_in_messages_of_a_few_megabytes() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let info = client
        .execute("SELECT x, repeat('y', 100) AS s FROM generate_series(1, 200000) AS g (x)".to_owned(), None)
        .await
        .unwrap();
    let request = with_token(&client, info.endpoint[0].ticket.clone().unwrap());
    let messages: Vec<FlightData> =
        client.inner_mut().do_get(request).await.unwrap().into_inner().try_collect().await.unwrap();
    let largest = messages.iter().map(|message| message.data_body.len()).max().unwrap();
    assert!(largest < 4 << 20, "{largest}");
    let total: usize = messages.iter().map(|message| message.data_body.len()).sum();
    assert!(messages.len() <= 2 + total / (256 << 10), "{} messages for {total} bytes", messages.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_sessions_are_refused() {
    let mut options = with_users();
    options.limits.sessions_max = 1;
    let server = Running::with(options).await;
    let _one = server.login("alice", "a").await;
    let mut two = server.connect().await;
    let refused = two.handshake("bob", "b").await.unwrap_err().to_string();
    assert!(refused.contains("53300"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deserted_sessions_make_room() {
    let mut options = with_users();
    options.limits.sessions_max = 2;
    let server = Running::with(options).await;
    let mut stays = server.login("alice", "a").await;
    run(&mut stays, "BEGIN").await;
    for _ in 0..5 {
        // Clients that go without a word.
        let mut leaves = server.login("bob", "b").await;
        assert_eq!(number(&mut leaves, "SELECT 1").await, 1);
        drop(leaves);
        // The server hears of the closed connection a moment later.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(server.service.metrics().sessions, 2);
    run(&mut stays, "COMMIT").await;
    // Whoever is connected is not deserted.
    let _second = server.login("bob", "b").await;
    let mut third = server.connect().await;
    assert!(third.handshake("bob", "b").await.unwrap_err().to_string().contains("53300"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_messages_are_refused() {
    let mut options = FlightOptions::default();
    options.limits.message_bytes_max = 1 << 20;
    let server = Running::with(options).await;
    let mut client = server.connect().await;
    let batch = RecordBatch::try_from_iter(vec![("n", ints(&vec![7; 500_000]))]).unwrap();
    let command = ingest_into("t", TableNotExistOption::Create, TableExistsOption::Append);
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let messages: Vec<FlightData> = FlightDataEncoderBuilder::new()
        .with_max_flight_data_size(usize::MAX)
        .with_flight_descriptor(Some(descriptor))
        .build(futures::stream::iter([Ok(batch)]))
        .try_collect()
        .await
        .unwrap();
    let error = put(&mut client, messages).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::ResourceExhausted, "54000"), "{error:?}");
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_requests_at_once_share_a_session() {
    let server = Running::start().await;
    let client = server.connect().await;
    let requests = (0..20).map(|_| {
        let mut client = client.inner().clone();
        async move { client.get_flight_info(statement("SELECT 1 AS one")).await.map(|_| ()) }
    });
    for done in futures::future::join_all(requests).await {
        done.unwrap();
    }
    assert_eq!(server.service.metrics().sessions, 1);
}

/// Runs openssl in a folder.
fn openssl(folder: &std::path::Path, arguments: &[&str]) {
    let done = std::process::Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_both_ends() {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};

    if std::process::Command::new("openssl").arg("version").output().is_err() {
        eprintln!("not run: openssl, which makes the certificates, is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"];
    openssl(folder.path(), &[&authority[..], &new_key].concat());
    for name in ["server", "client"] {
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let ask =
            ["req", "-keyout", &key, "-out", &request, "-subj", &subject, "-addext", "subjectAltName=DNS:localhost"];
        openssl(folder.path(), &[&ask[..], &new_key].concat());
        let sign =
            ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-out", &certificate, "-days", "2"];
        openssl(folder.path(), &[&sign[..], &["-CAcreateserial", "-copy_extensions", "copy"]].concat());
    }
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let tls = crate::TlsOptions {
        certificate: read("server.pem"),
        key: read("server.key"),
        client_ca: Some(read("ca.pem")),
        client_optional: false,
    };
    let server = Running::with(FlightOptions { tls: Some(tls), ..FlightOptions::default() }).await;
    let connect = async |identity: bool| {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca.pem"))).domain_name("localhost");
        if identity {
            tls = tls.identity(Identity::from_pem(read("client.pem"), read("client.key")));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap().tls_config(tls).unwrap();
        let mut client = FlightSqlServiceClient::new(endpoint.connect().await.map_err(|error| error.to_string())?);
        rows(&mut client, "SELECT 1 AS one").await.map_err(|error| error.to_string())
    };
    assert_eq!(connect(true).await.unwrap()[0].num_rows(), 1);
    assert!(connect(false).await.is_err(), "a client without a certificate is refused");
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await;
    if let Ok(channel) = plain {
        let mut client = FlightSqlServiceClient::new(channel);
        assert!(client.execute("SELECT 1".to_owned(), None).await.is_err());
    }
    let broken = crate::TlsOptions {
        certificate: "nonsense".to_owned(),
        key: "nonsense".to_owned(),
        client_ca: None,
        client_optional: false,
    };
    let options = FlightOptions {
        tls: Some(broken),
        listeners: vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))],
        ..FlightOptions::default()
    };
    let refused = Server::bind(options, server.engine.clone()).await.unwrap_err();
    assert!(matches!(refused, crate::Error::Tls(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_drains() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    let info = client.execute("SELECT * FROM generate_series(1, 2000000)".to_owned(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut seen = stream.try_next().await.unwrap().unwrap().num_rows();
    let address = server.address;
    let ended = tokio::spawn(server.end());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!ended.is_finished(), "it waits for the running result");
    while let Some(batch) = stream.try_next().await.unwrap() {
        seen += batch.num_rows();
    }
    assert_eq!(seen, 2_000_000);
    drop((stream, client));
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap().unwrap().unwrap();
    assert!(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lattice.sock");
    let options = FlightOptions { listeners: vec![Address::Unix(path.clone())], ..FlightOptions::default() };
    let server = Running::with(options.clone()).await;
    let channel = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap().connect().await.unwrap();
    let mut client = FlightSqlServiceClient::new(channel);
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
    let second = Server::bind(options.clone(), server.engine.clone()).await;
    assert!(second.is_err(), "another server answers there");
    drop(client);
    let engine = server.engine.clone();
    server.end().await.unwrap();
    // The file that the first one left is replaced.
    assert!(Server::bind(options, engine).await.is_ok());
}
