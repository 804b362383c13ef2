//! Queries that are opened and read later, shares, progress, and scripts.

mod common;

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array};
use base::SqlState;
use common::{World, rows, run, text};
use lattice_sql::{OpenOptions, Opened, Outcome, Params, Parsed, PrepareOptions, Prepared, Progress, Script, Session};

async fn prepared(session: &Session, sql: &str) -> Prepared {
    session.prepare(sql, PrepareOptions::default()).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn open(session: &Session, sql: &str, options: OpenOptions) -> Opened {
    let prepared = prepared(session, sql).await;
    session.open(&prepared, Params::None, None, options).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn read(opened: &Opened, share: usize) -> Vec<String> {
    text(&opened.read(share).unwrap().expect("not read before").collect().await.unwrap())
}

async fn script(session: &Session, sql: &str) -> Script {
    match session.parse(sql, PrepareOptions::default()).await.unwrap() {
        Parsed::Script(script) => script,
        Parsed::Statement(_) => panic!("one statement: {sql}"),
    }
}

async fn run_script(session: &Session, sql: &str) -> Result<Vec<String>, lattice_sql::Error> {
    let script = script(session, sql).await;
    Ok(match session.run_script(&script, None, Arc::default()).await? {
        Outcome::Rows(rows) => text(&rows.collect().await?),
        other => vec![format!("{other:?}")],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_queries_are_typed_as_planning_would() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (a int, b text, c bigint NOT NULL, d uuid, e numeric(9,3), f timestamptz, g json, h bool, i bytea, j smallint, PRIMARY KEY (a, b));
         CREATE TABLE u (id uuid PRIMARY KEY, x int);
         CREATE TABLE v (at timestamptz, n numeric(9,3), j smallint, f float8, day date, PRIMARY KEY (at, n, j, f, day))",
    )
    .await;
    for (query, planned) in [
        ("SELECT * FROM t WHERE a = $1 AND b = $2", true),
        ("SELECT c AS x, b FROM t AS s WHERE $2 = s.b AND s.a = ($1)", true),
        ("SELECT d, e, f, g, h, i, j FROM t WHERE a = 7 AND b = $1", true),
        ("SELECT x FROM u WHERE id = $1", true),
        ("SELECT at FROM v WHERE at = $1 AND n = $2 AND j = $3 AND f = $4 AND day = $5", true),
    ] {
        let short = prepared(&session, query).await;
        let long = prepared(&session, &format!("{query} AND true")).await;
        assert_eq!(short.parameters, long.parameters, "{query}");
        assert_eq!(short.result_schema, long.result_schema, "{query}");
        assert!(planned && !short.is_update);
    }
    // One parameter for two columns is for the planner to judge.
    let both = prepared(&session, "SELECT c FROM t WHERE a = $1 AND b = $1").await;
    assert_eq!(both.parameters.fields().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opened_query_reads_its_moment() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    run(&session, "INSERT INTO t VALUES (1, 10), (2, 20)").await;
    let all = "SELECT id, v FROM t ORDER BY id";
    let whole = open(&session, all, OpenOptions::default()).await;
    let point = open(&session, "SELECT v FROM t WHERE id = 1", OpenOptions::default()).await;
    let clock = open(&session, "SELECT now() AS at", OpenOptions::default()).await;
    assert!(whole.holds_versions() && !point.holds_versions());
    run(&session, "UPDATE t SET v = v + 1").await;
    run(&session, "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, 30)").await;
    world.store.flush(None).await.unwrap();
    assert_eq!(read(&whole, 0).await, ["1|10", "2|20"]);
    assert!(whole.read(0).unwrap().is_none(), "a plan runs once");
    assert_eq!(whole.read(1).unwrap_err().sqlstate, SqlState::INVALID_CURSOR_NAME);
    for _ in 0..2 {
        assert_eq!(read(&point, 0).await, ["10"]);
    }
    let moment = whole.moment().expect("outside transactions there is one");
    let then = OpenOptions { at: Some(moment), ..OpenOptions::default() };
    assert_eq!(read(&open(&session, all, then.clone()).await, 0).await, ["1|10", "2|20"]);
    assert_eq!(read(&open(&session, "SELECT v FROM t WHERE id = 2", then.clone()).await, 0).await, ["20"]);
    let at = OpenOptions { at: clock.moment(), ..OpenOptions::default() };
    assert_eq!(read(&clock, 0).await, read(&open(&session, "SELECT now() AS at", at).await, 0).await);
    // A table that has gone since was there then.
    run(&session, "DROP TABLE t").await;
    let typed = session.prepare(all, PrepareOptions::default()).await;
    assert_eq!(typed.unwrap_err().sqlstate, SqlState::UNDEFINED_TABLE);

    // After a restart the moment is still known.
    run(&session, "CREATE TABLE w (id int PRIMARY KEY)").await;
    run(&session, "INSERT INTO w VALUES (1)").await;
    let moment = session.moment().unwrap();
    run(&session, "INSERT INTO w VALUES (2)").await;
    drop((whole, point, clock, session));
    let world = world.restart().await;
    let session = world.admin();
    let then = OpenOptions { at: Some(moment), ..OpenOptions::default() };
    assert_eq!(read(&open(&session, "SELECT id FROM w ORDER BY id", then).await, 0).await, ["1"]);

    // A moment that this database has not reached was never handed out by it.
    let mut future = session.moment().unwrap();
    future.snapshot.0 += 3_600_000_000;
    let options = OpenOptions { at: Some(future), ..OpenOptions::default() };
    let typed = prepared(&session, "SELECT id FROM w").await;
    let error = session.open(&typed, Params::None, None, options).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::INVALID_CURSOR_NAME);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_reads_its_own_rows() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let handle = session.begin().await.unwrap();
    let insert = session
        .prepare("INSERT INTO t VALUES ($1)", PrepareOptions { transaction: Some(handle), ..Default::default() })
        .await
        .unwrap();
    let one: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    session.execute(&insert, Params::Positional(vec![one]), Some(handle)).await.unwrap();
    let query = session
        .prepare("SELECT id FROM t WHERE id < 5", PrepareOptions { transaction: Some(handle), ..Default::default() })
        .await
        .unwrap();
    let opened = session.open(&query, Params::None, Some(handle), OpenOptions::default()).await.unwrap();
    assert_eq!(opened.moment(), None);
    assert_eq!(read(&opened, 0).await, ["1"]);
    // An error dooms the transaction, as running the query would.
    let broken = session
        .prepare(
            "SELECT 1 / id AS x FROM t WHERE id = $1",
            PrepareOptions { transaction: Some(handle), ..Default::default() },
        )
        .await
        .unwrap();
    assert_eq!(
        session.open(&broken, Params::None, Some(handle), OpenOptions::default()).await.unwrap_err().sqlstate,
        SqlState::PROTOCOL_VIOLATION
    );
    let error = session.open(&query, Params::None, Some(handle), OpenOptions::default()).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::IN_FAILED_TRANSACTION);
    session.rollback(handle).await.unwrap();
}

fn shared(shares_max: usize) -> OpenOptions {
    OpenOptions { shares_max, share_rows_min: 64 << 10, ..OpenOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_have_every_row_once() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id bigint PRIMARY KEY, v bigint)").await;
    run(&session, "INSERT INTO t SELECT x, x % 10 FROM generate_series(1, 300000) AS g (x)").await;
    world.store.flush(None).await.unwrap();
    // Some rows in memory, some masked.
    run(&session, "INSERT INTO t SELECT x, 3 FROM generate_series(300001, 300100) AS g (x)").await;
    run(&session, "DELETE FROM t WHERE id <= 50").await;
    let opened = open(&session, "SELECT id, v + 1 AS w FROM t WHERE v <> 7", shared(8)).await;
    assert!((2..=8).contains(&opened.shares()), "{} shares", opened.shares());
    run(&session, "DELETE FROM t").await;
    world.store.flush(None).await.unwrap();
    let mut first = Vec::new();
    for share in 0..opened.shares() {
        first.push(read(&opened, share).await);
    }
    // Reading a share again gives the same rows.
    assert_eq!(read(&opened, 1).await, first[1]);
    assert!(first.iter().all(|share| share.len() >= 100), "{:?}", first.iter().map(Vec::len).collect::<Vec<_>>());
    let mut ids: Vec<i64> = first.iter().flatten().map(|row| row.split('|').next().unwrap().parse().unwrap()).collect();
    ids.sort_unstable();
    let wanted: Vec<i64> = (51..=300_100).filter(|id| if *id > 300_000 { true } else { id % 10 != 7 }).collect();
    assert_eq!(ids.len(), wanted.len());
    assert!(ids == wanted, "the shares differ from the whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_plain_scans_are_shared() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id bigint PRIMARY KEY, v bigint)").await;
    run(&session, "INSERT INTO t SELECT x, x % 10 FROM generate_series(1, 200000) AS g (x)").await;
    world.store.flush(None).await.unwrap();
    for (query, several) in [
        ("SELECT id FROM t", true),
        ("SELECT id + 1 AS x FROM t WHERE v = 3 OR id > 100", true),
        ("SELECT id FROM t ORDER BY id", false),
        ("SELECT id FROM t LIMIT 150000", false),
        ("SELECT id FROM t OFFSET 10", false),
        ("SELECT DISTINCT v FROM t", false),
        ("SELECT count(*) AS n FROM t", false),
        ("SELECT id, row_number() OVER () AS n FROM t", false),
        ("SELECT a.id FROM t AS a JOIN t AS b ON a.id = b.id", false),
        ("SELECT id FROM t WHERE id = 5", false),
    ] {
        let opened = open(&session, query, shared(8)).await;
        assert_eq!(opened.shares() > 1, several, "{query}: {} shares", opened.shares());
    }
    assert_eq!(open(&session, "SELECT id FROM t", shared(1)).await.shares(), 1);
    let large = OpenOptions { share_rows_min: 1 << 20, ..shared(8) };
    assert_eq!(open(&session, "SELECT id FROM t", large).await.shares(), 1, "too small to be shared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_reaches_the_end() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id bigint PRIMARY KEY, v bigint)").await;
    run(&session, "INSERT INTO t SELECT x, x % 10 FROM generate_series(1, 200000) AS g (x)").await;
    world.store.flush(None).await.unwrap();
    for query in ["SELECT sum(v) AS s FROM t", "SELECT count(*) AS n FROM t WHERE id > 190000 AND v = 1"] {
        let progress = Arc::new(Progress::default());
        let options = OpenOptions { progress: Some(Arc::clone(&progress)), ..OpenOptions::default() };
        let opened = open(&session, query, options).await;
        assert_eq!(progress.fraction(), Some(0.0), "{query}");
        read(&opened, 0).await;
        assert_eq!(progress.fraction(), Some(0.99), "{query}: read, what follows is not known here");
    }
    let progress = Arc::new(Progress::default());
    let update = prepared(&session, "UPDATE t SET v = 0 WHERE v = 5").await;
    session.execute_watched(&update, Params::None, None, Arc::clone(&progress)).await.unwrap();
    assert_eq!(progress.fraction(), Some(0.99));
    // The view of running statements shows it.
    assert_eq!(rows(&session, "SELECT progress FROM lattice.queries").await, ["∅"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_answer_with_their_last_statement() {
    let world = World::new().await;
    let session = world.admin();
    let made = run_script(&session, "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2); SELECT id, v FROM t ORDER BY id").await;
    assert_eq!(made.unwrap(), ["1|1", "2|2"]);
    assert_eq!(run_script(&session, "SELECT 1; UPDATE t SET v = 5").await.unwrap(), ["UPDATE 2"]);
    assert_eq!(rows(&session, "SELECT sum(v) FROM t").await, ["10"]);
    // A script of one statement is none.
    assert!(matches!(session.parse("SELECT 1;", PrepareOptions::default()).await.unwrap(), Parsed::Statement(_)));
    let refused = session.prepare("SELECT 1; SELECT 2", PrepareOptions::default()).await.unwrap_err();
    assert_eq!((refused.sqlstate, refused.position), (SqlState::SYNTAX_ERROR, Some(11)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_script_leaves_nothing() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let error = run_script(
        &session,
        "INSERT INTO t VALUES (1); CREATE TABLE u (x int); INSERT INTO t VALUES (1); INSERT INTO t VALUES (9)",
    )
    .await
    .unwrap_err();
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
    assert_eq!(common::fails(&session, "SELECT * FROM u").await.sqlstate, SqlState::UNDEFINED_TABLE);
    // What a COMMIT in the script has committed stays; the rest goes. Rows of an unread statement are computed.
    let error = run_script(
        &session,
        "INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); SELECT 1 / (id - id) AS x FROM t; SELECT 1",
    )
    .await
    .unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DIVISION_BY_ZERO);
    assert_eq!(rows(&session, "SELECT id FROM t").await, ["1"]);
    assert_eq!(run_script(&session, "INSERT INTO t VALUES (5); ROLLBACK").await.unwrap(), ["ROLLBACK"]);
    assert_eq!(rows(&session, "SELECT id FROM t").await, ["1"]);

    // BEGIN keeps what came before it and leaves its block open.
    run_script(&session, "INSERT INTO t VALUES (2); BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    let other = world.admin();
    assert_eq!(rows(&other, "SELECT count(*) FROM t").await, ["1"]);
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["3"]);
    let error = run_script(&session, "SELECT 1; SELECT * FROM missing").await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::UNDEFINED_TABLE);
    assert_eq!(common::fails(&session, "SELECT 1").await.sqlstate, SqlState::IN_FAILED_TRANSACTION);
    run(&session, "ROLLBACK").await;
    assert_eq!(rows(&session, "SELECT id FROM t").await, ["1"]);
    let error = run_script(&session, "SELECT 1; SAVEPOINT s").await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::NO_ACTIVE_TRANSACTION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_their_statement() {
    let world = World::new().await;
    let session = world.admin();
    let error = run_script(&session, "SELECT 1 AS a;\n  SELECT nothing FROM nowhere; SELECT 3").await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::UNDEFINED_TABLE);
    let detail = error.detail.unwrap();
    assert!(detail.contains("Statement 2 of 3, SELECT, failed"), "{detail}");
    assert!(error.position.is_some_and(|at| at >= 18), "{:?}", error.position);
}
