//! What tickets stand for: a moment, a share, a script's last answer; and what waits on the server for them.

use super::*;
use crate::{Calls, Limits};

const MANY: i64 = 300_000;

async fn large_table(server: &Running, client: &mut Client) {
    run(client, "CREATE TABLE large (id BIGINT PRIMARY KEY, v BIGINT)").await;
    run(client, &format!("INSERT INTO large SELECT x, x % 10 FROM generate_series(1, {MANY}) AS g (x)")).await;
    server.engine.store().flush(None).await.unwrap();
}

async fn fetch_all(client: &mut Client, endpoint: &FlightEndpoint) -> Result<Vec<i64>, FlightError> {
    let batches: Vec<RecordBatch> = client.do_get(endpoint.ticket.clone().unwrap()).await?.try_collect().await?;
    Ok(batches
        .iter()
        .flat_map(|batch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec())
        .collect())
}

fn small_endpoints() -> FlightOptions {
    let limits = Limits { endpoints_max: 4, endpoint_rows_min: 64 << 10, ..Limits::default() };
    FlightOptions { limits, ..with_users() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_read_their_moment() {
    let server = Running::with(with_users()).await;
    let mut client = server.login("alice", "a").await;
    run(&mut client, "CREATE TABLE t (id BIGINT PRIMARY KEY, v BIGINT)").await;
    run(&mut client, "INSERT INTO t VALUES (1, 10), (2, 20)").await;
    let all = client.execute("SELECT v FROM t ORDER BY id".to_owned(), None).await.unwrap();
    let point = client.execute("SELECT v FROM t WHERE id = 2".to_owned(), None).await.unwrap();
    let clock = client.execute("SELECT now()::text AS at".to_owned(), None).await.unwrap();
    let prepared = prepare(&mut client, "SELECT v FROM t WHERE id = ?", None).await.unwrap();
    let command =
        CommandPreparedStatementQuery { prepared_statement_handle: prepared.prepared_statement_handle.clone() };
    let values = params(vec![("", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]);
    let schema = values.schema();
    put(&mut client, upload(&command, vec![values], schema).await).await.unwrap();
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    let bound = client.inner_mut().get_flight_info(request).await.unwrap().into_inner();

    run(&mut client, "UPDATE t SET v = v + 1").await;
    run(&mut client, "DELETE FROM t WHERE id = 2").await;
    server.engine.store().flush(None).await.unwrap();
    let mut other = server.login("alice", "a").await;
    let mut seen = Vec::new();
    // First what waits on the server, then what the ticket alone says, here and elsewhere.
    for _ in 0..2 {
        assert_eq!(fetch_all(&mut client, &all.endpoint[0]).await.unwrap(), [10, 20]);
        assert_eq!(fetch_all(&mut other, &all.endpoint[0]).await.unwrap(), [10, 20]);
        assert_eq!(fetch_all(&mut client, &point.endpoint[0]).await.unwrap(), [20]);
        assert_eq!(fetch_all(&mut client, &bound.endpoint[0]).await.unwrap(), [10]);
        seen.extend(texts(&fetch(&mut client, &clock).await.unwrap(), "at"));
    }
    assert_eq!(seen[0], seen[1], "now() is the moment's");
    assert_eq!(number(&mut client, "SELECT sum(v) FROM t").await, 11);

    // A ticket that names a moment this database has not seen, or another server's.
    let mut forged = crate::ticket::Ticket::new(uuid::Uuid::new_v4(), crate::ticket::Kind::Query, 1);
    forged.statement = "SELECT v FROM t".to_owned();
    forged.snapshot = Some(i64::MAX - 1);
    let error = status(client.do_get(Ticket { ticket: forged.encode_any() }).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "34000"));
    forged.snapshot = None;
    let error = status(client.do_get(Ticket { ticket: forged.encode_any() }).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::NotFound, "34000"));
    forged.version = 1;
    let error = status(client.do_get(Ticket { ticket: forged.encode_any() }).await.unwrap_err());
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_read_while_its_plan_waits() {
    let server = Running::with(with_users()).await;
    let mut client = server.login("alice", "a").await;
    run(&mut client, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    run(&mut client, "BEGIN").await;
    run(&mut client, "INSERT INTO t VALUES (1)").await;
    let info = client.execute("SELECT id FROM t".to_owned(), None).await.unwrap();
    assert!(info.endpoint[0].expiration_time.is_none(), "it can be read once");
    assert_eq!(fetch_all(&mut client, &info.endpoint[0]).await.unwrap(), [1]);
    run(&mut client, "ROLLBACK").await;
    // Never something else than was asked for.
    let error = status(fetch(&mut client, &info).await.unwrap_err());
    assert_eq!(sqlstate(&error), "34000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_have_every_row_once() {
    let server = Running::with(small_endpoints()).await;
    let mut client = server.login("alice", "a").await;
    large_table(&server, &mut client).await;
    let info = client.execute("SELECT id FROM large WHERE v <> 3".to_owned(), None).await.unwrap();
    assert!((2..=4).contains(&info.endpoint.len()), "{} endpoints", info.endpoint.len());
    assert!(!info.ordered && info.endpoint.iter().all(|endpoint| endpoint.expiration_time.is_some()));
    // The rows that were there when it was asked, whatever happens since.
    run(&mut client, "DELETE FROM large WHERE id % 2 = 0").await;
    server.engine.store().flush(None).await.unwrap();
    for _ in 0..2 {
        // By other connections, at the same time, and again.
        let mut readers = Vec::new();
        for endpoint in info.endpoint.clone() {
            let mut reader = server.login("alice", "a").await;
            readers.push(tokio::spawn(async move { fetch_all(&mut reader, &endpoint).await.unwrap() }));
        }
        let mut ids = Vec::new();
        for reader in readers {
            let share = reader.await.unwrap();
            assert!(!share.is_empty());
            ids.extend(share);
        }
        ids.sort_unstable();
        assert!(ids == (1..=MANY).filter(|id| id % 10 != 3).collect::<Vec<_>>(), "{} rows", ids.len());
    }
    // Other users' endpoints do not exist.
    let mut bob = server.login("bob", "b").await;
    assert_eq!(sqlstate(&status(fetch_all(&mut bob, &info.endpoint[0]).await.unwrap_err())), "34000");
    // Nor does a share that was not handed out.
    let any = Any::decode(&*info.endpoint[0].ticket.as_ref().unwrap().ticket).unwrap();
    let handle = match Command::try_from(any).unwrap() {
        Command::TicketStatementQuery(ticket) => ticket.statement_handle,
        other => panic!("{other:?}"),
    };
    let mut forged = crate::ticket::Ticket::decode_handle(&handle).unwrap();
    forged.share = 77;
    let error = status(client.do_get(Ticket { ticket: forged.encode_any() }).await.unwrap_err());
    assert_eq!(sqlstate(&error), "34000");

    // What has an order, a limit or a total comes from one endpoint; so does a table asked for by its path.
    for query in
        ["SELECT id FROM large ORDER BY id", "SELECT id FROM large LIMIT 200000", "SELECT sum(id) AS s FROM large"]
    {
        let info = client.execute(query.to_owned(), None).await.unwrap();
        assert!(info.endpoint.len() == 1 && info.ordered, "{query}");
    }
    let path = with_token(&client, FlightDescriptor::new_path(vec!["large".to_owned()]));
    assert_eq!(client.inner_mut().get_flight_info(path).await.unwrap().into_inner().endpoint.len(), 1);
    // Polling hands the endpoints out at once; cancelling one cancels all.
    let answer = poll(&mut client, statement("SELECT id FROM large")).await.unwrap();
    assert_eq!((answer.progress, answer.flight_descriptor), (Some(1.0), None));
    let info = answer.info.unwrap();
    assert!(info.endpoint.len() > 1);
    let body = CancelFlightInfoRequest { info: Some(info.clone()) }.encode_to_vec();
    act(&mut client, "CancelFlightInfo", body).await.unwrap();
    for endpoint in &info.endpoint {
        assert_eq!(status(fetch_all(&mut client, endpoint).await.unwrap_err()).code(), Code::Cancelled);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pins_end() {
    let limits = Limits { pins_max: 4, ..small_endpoints().limits };
    let options = FlightOptions { limits, result_pin: Duration::from_millis(50), ..with_users() };
    let server = Running::with(options).await;
    let mut client = server.login("alice", "a").await;
    large_table(&server, &mut client).await;
    let unread = client.execute("SELECT id FROM large".to_owned(), None).await.unwrap();
    let read = client.execute("SELECT id FROM large".to_owned(), None).await.unwrap();
    let mut infos = Vec::new();
    for _ in 0..2 {
        infos.push(client.execute("SELECT count(*) AS n FROM large".to_owned(), None).await.unwrap());
    }
    let pinned = || server.service.metrics().results_pinned;
    let later = async || {
        tokio::time::sleep(Duration::from_millis(80)).await;
        server.service.expire().await;
    };
    assert_eq!(pinned(), 4);
    // Nobody fetches: after a while the plans are let go, and the tickets bring them back.
    later().await;
    assert_eq!(pinned(), 2, "shares stay, because only the server knows them");
    run(&mut client, "DELETE FROM large WHERE id > 10").await;
    assert_eq!(fetch_all(&mut client, &infos[0].endpoint[0]).await.unwrap(), [MANY]);
    // Shares are let go when all of them have been read and nobody asks again.
    for (number, endpoint) in read.endpoint.iter().enumerate() {
        later().await;
        assert_eq!(pinned(), 2, "share {number} is still to be read");
        fetch_all(&mut client, endpoint).await.unwrap();
    }
    fetch_all(&mut client, &read.endpoint[0]).await.unwrap();
    later().await;
    assert_eq!(pinned(), 1);
    let lost = status(fetch_all(&mut client, &read.endpoint[0]).await.unwrap_err());
    assert_eq!((lost.code(), sqlstate(&lost).as_str()), (Code::NotFound, "34000"));
    // Their number is bounded too: the oldest go first, shares included.
    for _ in 0..5 {
        infos.push(client.execute("SELECT count(*) AS n FROM large".to_owned(), None).await.unwrap());
    }
    assert_eq!(pinned(), 4);
    let lost = status(fetch_all(&mut client, &unread.endpoint[1]).await.unwrap_err());
    assert_eq!((lost.code(), sqlstate(&lost).as_str()), (Code::NotFound, "34000"));
    for (number, info) in infos.iter().enumerate().skip(1) {
        let wanted = if number < 2 { MANY } else { 10 };
        assert_eq!(fetch_all(&mut client, &info.endpoint[0]).await.unwrap(), [wanted], "{number}");
    }
    assert_eq!(pinned(), 0);
    // When memory is short, whatever is idle goes; the rest does not.
    let unread = client.execute("SELECT id FROM large".to_owned(), None).await.unwrap();
    assert!(unread.endpoint.len() > 1, "files keep their size until they are merged");
    server.service.0.results.expire(true);
    assert_eq!(pinned(), 1, "it is not idle yet");
    tokio::time::sleep(Duration::from_millis(80)).await;
    server.service.0.results.expire(false);
    assert_eq!(pinned(), 1);
    server.service.0.results.expire(true);
    assert_eq!(pinned(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_goes_on() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    large_table(&server, &mut client).await;
    // Slow enough to be watched: every row of the table meets a few hundred others.
    let slow =
        "SELECT count(*) AS n FROM large AS a, generate_series(1, 300) AS g (x) WHERE (a.v + g.x) % 1000003 = -1";
    let mut answer = poll(&mut client, statement(slow)).await.unwrap();
    let mut fractions = Vec::new();
    while let Some(next) = answer.flight_descriptor.take() {
        fractions.push(answer.progress.expect("its scans are known"));
        let shown = texts_of_running(&mut client).await;
        assert!(shown.iter().any(|(sql, progress)| sql == slow && progress.is_some()), "{shown:?}");
        answer = poll(&mut client, next).await.unwrap();
        assert!(fractions.len() < 600, "it never ends: {fractions:?}");
    }
    assert_eq!(answer.progress, Some(1.0));
    assert!(fractions.windows(2).all(|pair| pair[0] <= pair[1]), "{fractions:?}");
    assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)), "{fractions:?}");
    assert_eq!(fetch_all(&mut client, &answer.info.unwrap().endpoint[0]).await.unwrap(), [0]);
    // What reads no table says nothing of its progress.
    let answer = poll(&mut client, statement(ENDLESS)).await.unwrap();
    assert_eq!(answer.progress, None);
    let body = CancelFlightInfoRequest { info: answer.info }.encode_to_vec();
    act(&mut client, "CancelFlightInfo", body).await.unwrap();
}

async fn texts_of_running(client: &mut Client) -> Vec<(String, Option<f64>)> {
    let batches = rows(client, "SELECT sql, progress FROM lattice.queries").await.unwrap();
    let mut all = Vec::new();
    for batch in &batches {
        let progress = batch.column(1).as_any().downcast_ref::<arrow::array::Float64Array>().unwrap();
        for (sql, progress) in texts(std::slice::from_ref(batch), "sql").into_iter().zip(progress.iter()) {
            all.push((sql, progress));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_bounded() {
    let limits = Limits { jobs_max: 2, ..Limits::default() };
    let server = Running::with(FlightOptions { limits, ..FlightOptions::default() }).await;
    let mut client = server.connect().await;
    let first = poll(&mut client, statement(ENDLESS)).await.unwrap();
    for _ in 0..3 {
        // Those that have ended make room.
        assert_eq!(poll(&mut client, statement("SELECT 1 AS n")).await.unwrap().progress, Some(1.0));
    }
    let second = poll(&mut client, statement(ENDLESS)).await.unwrap();
    let error = poll(&mut client, statement("SELECT 1 AS n")).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::ResourceExhausted, "54000"));
    for job in [first, second] {
        let body = CancelFlightInfoRequest { info: job.info }.encode_to_vec();
        act(&mut client, "CancelFlightInfo", body).await.unwrap();
    }
    // Cancelled ones have ended, too.
    assert_eq!(poll(&mut client, statement("SELECT 1 AS n")).await.unwrap().progress, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_run_as_one() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    // As an update: the last statement counts.
    let script = "CREATE TABLE t (id BIGINT PRIMARY KEY); INSERT INTO t VALUES (1), (2); UPDATE t SET id = id + 10";
    assert_eq!(run(&mut client, script).await, 2);
    // As a query: the last statement's rows, once.
    let info = client.execute("INSERT INTO t VALUES (1); SELECT id FROM t ORDER BY id".to_owned(), None).await.unwrap();
    assert_eq!(Schema::try_from(info.clone()).unwrap().field(0).name(), "id");
    assert_eq!(fetch_all(&mut client, &info.endpoint[0]).await.unwrap(), [1, 11, 12]);
    let error = status(fetch_all(&mut client, &info.endpoint[0]).await.unwrap_err());
    assert_eq!(sqlstate(&error), "34000");
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 3, "it ran once");
    // All or nothing, and the error says where.
    let broken = "INSERT INTO t VALUES (50);\nINSERT INTO t VALUES (1);\nSELECT 1";
    let error = status(client.execute(broken.to_owned(), None).await.unwrap_err());
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::AlreadyExists, "23505"));
    assert!(error.message().contains("Statement 2 of 3, INSERT"), "{}", error.message());
    let position: usize = error.metadata().get("lattice-position").unwrap().to_str().unwrap().parse().unwrap();
    assert!((28..54).contains(&position), "{position}");
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 3);
    // Not where one statement is meant.
    let error = prepare(&mut client, "SELECT 1; SELECT 2", None).await.unwrap_err();
    assert_eq!((error.code(), sqlstate(&error).as_str()), (Code::InvalidArgument, "42601"));
    let command = CommandStatementQuery { query: "SELECT 1; SELECT 2".to_owned(), transaction_id: None };
    let request = with_token(&client, FlightDescriptor::new_cmd(command.as_any().encode_to_vec()));
    assert_eq!(client.inner_mut().get_schema(request).await.unwrap_err().code(), Code::Unimplemented);
    // Within a transaction of the protocol it belongs to that.
    let transaction = begin(&mut client).await;
    let command = CommandStatementUpdate {
        query: "INSERT INTO t VALUES (60); INSERT INTO t VALUES (61)".to_owned(),
        transaction_id: Some(transaction.clone()),
    };
    let messages = upload(&command, vec![], Arc::new(Schema::empty())).await;
    assert_eq!(count(put(&mut client, messages).await.unwrap()), 1);
    end(&mut client, &transaction, false).await.unwrap();
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 3);
    // A polled script runs once as well.
    let mut answer =
        poll(&mut client, statement("INSERT INTO t VALUES (70); SELECT count(*) AS n FROM t")).await.unwrap();
    while let Some(next) = answer.flight_descriptor {
        answer = poll(&mut client, next).await.unwrap();
    }
    assert_eq!(fetch_all(&mut client, &answer.info.unwrap().endpoint[0]).await.unwrap(), [4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_by_code() {
    let server = Running::start().await;
    let mut client = server.connect().await;
    run(&mut client, "CREATE TABLE t (id INT)").await;
    let load = ingest_into("t", TableNotExistOption::Fail, TableExistsOption::Append);
    let batch = params(vec![("id", ints(&[1, 2]))]);
    put(&mut client, upload(&load, vec![batch.clone()], batch.schema()).await).await.unwrap();
    number(&mut client, "SELECT 1 AS n").await;
    client.execute("SELECT nothing FROM t".to_owned(), None).await.unwrap_err();
    let error = rows(&mut client, "SELECT 1 / (x - 100000) AS n FROM generate_series(1, 200000) AS g (x)").await;
    assert!(error.is_err());
    client.inner_mut().do_exchange(futures::stream::empty()).await.unwrap_err();
    for _ in 0..100 {
        if server.service.metrics().active_streams == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let metrics = server.service.metrics();
    assert_eq!(metrics.active_streams, 0);
    assert!(metrics.bytes_received > 100, "schema and rows of a DoPut count");
    let count = |method: &str, code: &str| {
        let found = metrics.calls.iter().find(|Calls { method: of, code: with, .. }| *of == method && *with == code);
        found.map_or(0, |calls| calls.count)
    };
    assert_eq!((count("DoPut", "OK"), count("DoGet", "OK")), (2, 1), "{metrics:?}");
    assert_eq!((count("GetFlightInfo", "OK"), count("GetFlightInfo", "NOT_FOUND")), (2, 1), "{metrics:?}");
    assert_eq!(count("DoGet", "INVALID_ARGUMENT"), 1, "an error in the middle of a stream: {metrics:?}");
    assert_eq!(count("DoExchange", "UNIMPLEMENTED"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_passwords_slow_down() {
    let server = Running::with(with_users()).await;
    let mut guesser = server.connect().await;
    for _ in 0..4 {
        let error = guesser.handshake("admin", "guess").await.unwrap_err();
        assert!(error.to_string().contains("wrong user name or password"), "{error}");
    }
    let before = std::time::Instant::now();
    server.login("admin", "s:e:c").await;
    assert!(before.elapsed() >= Duration::from_millis(200), "the next check of this user waits");
    let before = std::time::Instant::now();
    server.login("admin", "s:e:c").await;
    server.login("alice", "a").await;
    assert!(before.elapsed() < Duration::from_secs(2), "a right password ends it, and others never waited");
    let metrics = server.service.metrics();
    assert!(metrics.logins_failed == 4 && metrics.logins_throttled >= 1, "{metrics:?}");
}
