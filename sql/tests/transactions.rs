//! Transactions under cancellation, idleness and concurrent changes of definitions.

mod common;

use std::sync::Arc;
use std::time::Duration;

use base::SqlState;
use common::{World, fails, rows, run};
use futures::StreamExt;
use lattice_sql::{EngineOptions, Error, Outcome, Params, PrepareOptions, Session, TransactionId};
use runtime::{Runtime, SimDisk};

/// Runs a statement in a transaction that a handle names.
async fn within(session: &Session, handle: TransactionId, sql: &str) -> Result<Outcome, Error> {
    let options = PrepareOptions { question_marks: false, transaction: Some(handle) };
    let prepared = session.prepare(sql, options).await?;
    session.execute(&prepared, Params::None, Some(handle)).await
}

/// Waits until a statement is in this state; gives its number.
async fn until(world: &World, state: &str) -> u64 {
    for _ in 0..500 {
        if let Some(query) = world.engine.queries().into_iter().find(|query| query.state == state) {
            return query.id;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no statement is {state}: {:?}", world.engine.queries());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_not_cancelled() {
    let disk = SimDisk::new();
    let world = World::on(Runtime { disk: Arc::new(disk.clone()), ..Runtime::real() }).await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await;
    let other = world.admin();
    disk.pause_syncs(true);
    let statement = tokio::spawn(async move { session.run("INSERT INTO t VALUES (2, 'b')").await });
    let id = until(&world, "committing").await;
    assert!(world.engine.cancel(id));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!statement.is_finished(), "what was sent to the log is not called back");
    disk.pause_syncs(false);
    statement.await.unwrap().expect("it was committed");
    assert_eq!(rows(&other, "SELECT v FROM t ORDER BY id").await, ["a", "b"]);

    // A client that goes away meanwhile changes nothing: everybody hears of the new definition.
    let session = world.admin();
    disk.pause_syncs(true);
    let statement = tokio::spawn(async move { session.run("ALTER TABLE t ADD COLUMN w int DEFAULT 5").await });
    until(&world, "committing").await;
    statement.abort();
    assert!(statement.await.unwrap_err().is_cancelled());
    disk.pause_syncs(false);
    for _ in 0..200 {
        if other.run("SELECT w FROM t").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rows(&other, "SELECT w FROM t").await, ["5", "5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_statement_fails_its_transaction() {
    let world = World::new().await;
    let (session, other) = (world.admin(), world.admin());
    run(&session, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)").await;
    // The update of one row waits for this, and is dropped while it does.
    run(&other, "BEGIN; UPDATE t SET id = 3 WHERE id = 2").await;
    let handle = session.begin().await.unwrap();
    within(&session, handle, "INSERT INTO t VALUES (10)").await.unwrap();
    let update = within(&session, handle, "UPDATE t SET id = id + 100");
    assert!(tokio::time::timeout(Duration::from_millis(100), update).await.is_err(), "it waits");
    assert_eq!(within(&session, handle, "SELECT 1").await.unwrap_err().sqlstate, SqlState::IN_FAILED_TRANSACTION);
    assert_eq!(session.commit(handle).await.unwrap_err().sqlstate, SqlState::IN_FAILED_TRANSACTION);
    run(&other, "ROLLBACK").await;
    assert_eq!(rows(&session, "SELECT id FROM t ORDER BY id").await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_among_the_rows_fails_the_transaction() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY); BEGIN; INSERT INTO t VALUES (1)").await;
    assert_eq!(
        fails(&session, "SELECT 1 / (x - 9) FROM generate_series(1, 10) AS g (x)").await.sqlstate,
        SqlState::DIVISION_BY_ZERO
    );
    assert_eq!(fails(&session, "SELECT 1").await.sqlstate, SqlState::IN_FAILED_TRANSACTION);
    run(&session, "COMMIT").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
    // Rows that nobody wants to the end are no error.
    run(&session, "BEGIN; INSERT INTO t VALUES (1)").await;
    let mut outcomes = run(&session, "SELECT * FROM generate_series(1, 1000000)").await;
    let Some(Outcome::Rows(mut some)) = outcomes.pop() else { panic!("rows") };
    some.stream.next().await.unwrap().unwrap();
    drop(some);
    run(&session, "COMMIT").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["1"]);
}

fn impatient() -> EngineOptions {
    EngineOptions { idle_transaction_timeout: Duration::from_millis(200), ..EngineOptions::default() }
}

const EXPIRED: SqlState = SqlState(*b"25P03");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_transactions_let_go() {
    let world = World::with(impatient()).await;
    let (session, by_handle, other) = (world.admin(), world.admin(), world.admin());
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0), (2, 0)").await;
    run(&session, "BEGIN; UPDATE t SET n = 1 WHERE id = 1").await;
    let handle = by_handle.begin().await.unwrap();
    within(&by_handle, handle, "UPDATE t SET n = 1 WHERE id = 2").await.unwrap();
    session.expire_idle_transactions();
    by_handle.expire_idle_transactions();
    assert_eq!(rows(&session, "SELECT n FROM t WHERE id = 1").await, ["1"], "neither was idle for long");
    tokio::time::sleep(Duration::from_millis(300)).await;
    session.expire_idle_transactions();
    by_handle.expire_idle_transactions();
    // Nobody waits for their locks, and nothing of them is there.
    run(&other, "SET lock_timeout = '100ms'; UPDATE t SET n = n + 10").await;
    assert_eq!(rows(&other, "SELECT n FROM t ORDER BY id").await, ["10", "10"]);
    // Their clients hear of it, however often they ask, and never work outside the transaction they believe to be in.
    for sql in ["UPDATE t SET n = 5", "SELECT 1", "SAVEPOINT a", "COMMIT"] {
        assert_eq!(fails(&session, sql).await.sqlstate, EXPIRED, "{sql}");
    }
    run(&session, "UPDATE t SET n = 11 WHERE id = 1").await;
    assert_eq!(within(&by_handle, handle, "SELECT 1").await.unwrap_err().sqlstate, EXPIRED);
    assert_eq!(by_handle.commit(handle).await.unwrap_err().sqlstate, EXPIRED);
    // Without a sweep, the next statement finds out.
    run(&session, "BEGIN; UPDATE t SET n = 12").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fails(&session, "UPDATE t SET n = 13").await.sqlstate, EXPIRED);
    run(&session, "ROLLBACK").await;
    assert_eq!(rows(&session, "SELECT n FROM t ORDER BY id").await, ["11", "10"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_statement_settles_the_snapshot() {
    let world = World::with(impatient()).await;
    let (session, by_handle, other) = (world.admin(), world.admin(), world.admin());
    run(&other, "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&session, "BEGIN").await;
    let handle = by_handle.begin().await.unwrap();
    run(&other, "INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN v int DEFAULT 7").await;
    // Drivers without autocommit keep one open all the time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    session.expire_idle_transactions();
    by_handle.expire_idle_transactions();
    assert_eq!(rows(&session, "SELECT id, v FROM t").await, ["1|7"]);
    let Outcome::Rows(found) = within(&by_handle, handle, "SELECT v FROM t").await.unwrap() else { panic!("rows") };
    assert_eq!(common::text(&found.collect().await.unwrap()), ["7"]);
    run(&other, "INSERT INTO t VALUES (2)").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["1"], "now it stays");
    run(&session, "COMMIT").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["2"]);
    by_handle.rollback(handle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_statement_is_not_idle() {
    let world = World::with(impatient()).await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&session, "BEGIN; INSERT INTO t VALUES (1)").await;
    let mut outcomes = run(&session, "SELECT * FROM generate_series(1, 1000000)").await;
    let Some(Outcome::Rows(mut slow)) = outcomes.pop() else { panic!("rows") };
    slow.stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    session.expire_idle_transactions();
    drop(slow);
    run(&session, "INSERT INTO t VALUES (2); COMMIT").await;
    assert_eq!(rows(&session, "SELECT id FROM t ORDER BY id").await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_puts_settings_back() {
    let world = World::new().await;
    let session = world.admin();
    let shown = async || rows(&session, "SHOW application_name").await.remove(0);
    run(&session, "SET application_name = 'a'; BEGIN; SET application_name = 'b'; SET LOCAL application_name = 'c'")
        .await;
    assert_eq!(shown().await, "c");
    run(&session, "SAVEPOINT s; SET application_name = 'd'; ROLLBACK TO s").await;
    assert_eq!(shown().await, "c");
    run(&session, "COMMIT").await;
    assert_eq!(shown().await, "b");
    run(&session, "BEGIN; SET LOCAL application_name = 'x'; SET application_name = 'y'; COMMIT").await;
    assert_eq!(shown().await, "y");
    run(&session, "BEGIN; SET application_name = 'z'; RESET ALL; ROLLBACK").await;
    assert_eq!(shown().await, "y");
    run(&session, "BEGIN; SET application_name = 'z'").await;
    fails(&session, "SELECT 1/0").await;
    run(&session, "COMMIT").await;
    assert_eq!(shown().await, "y", "the transaction had failed");
    assert_eq!(
        fails(&session, "SET default_transaction_isolation = 'serializable'").await.sqlstate,
        SqlState::FEATURE_NOT_SUPPORTED
    );
    assert_eq!(fails(&session, "SET lattice.max_staleness = '5s'").await.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_do_not_contain_themselves() {
    let world = World::new().await;
    let session = world.admin();
    for sql in [
        "PREPARE a AS EXECUTE a",
        "PREPARE a AS PREPARE b AS SELECT 1",
        "PREPARE a AS EXPLAIN SELECT 1",
        "EXPLAIN EXPLAIN SELECT 1",
    ] {
        assert_eq!(fails(&session, sql).await.sqlstate, SqlState::SYNTAX_ERROR, "{sql}");
    }
    let deep = format!("{} SELECT 1", "EXPLAIN ".repeat(100_000));
    assert_eq!(fails(&session, &deep).await.sqlstate, SqlState::SYNTAX_ERROR);
    run(&session, "PREPARE p (numeric(4, 1), text) AS SELECT $1 * 2, $2 || '!'; PREPARE q AS (SELECT 1)").await;
    assert_eq!(rows(&session, "EXECUTE p(1.5, 7)").await, ["3.0|7!"]);
    assert_eq!(rows(&session, "EXECUTE q").await, ["1"]);
}

/// Begins a statement that has to wait; gives it when it does.
async fn waiting(session: &Session, sql: &'static str) -> tokio::task::JoinHandle<Result<Vec<Outcome>, Error>> {
    let session = session.clone();
    let statement = tokio::spawn(async move { session.run(sql).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!statement.is_finished(), "{sql} does not wait");
    statement
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_waits_for_writers_and_keeps_them_out() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)").await;
    run(&a, "INSERT INTO p VALUES (1)").await;
    run(&a, "BEGIN; INSERT INTO c VALUES (1, 1)").await;
    let truncate = waiting(&b, "TRUNCATE p CASCADE").await;
    run(&a, "COMMIT").await;
    truncate.await.unwrap().unwrap();
    assert_eq!(rows(&a, "SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM c)").await, ["0|0"]);

    run(&a, "INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (1, 1)").await;
    run(&a, "BEGIN; TRUNCATE c").await;
    let index = waiting(&b, "CREATE UNIQUE INDEX c_p ON c (p)").await;
    run(&a, "COMMIT").await;
    index.await.unwrap().unwrap();
    run(&a, "INSERT INTO c VALUES (5, 1)").await;
    assert_eq!(rows(&a, "SELECT id FROM c WHERE p = 1").await, ["5"]);
    assert!(world.engine.verify_indexes(|_| {}).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_foreign_key_waits_for_writers_of_its_parent() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p VALUES (1), (2)").await;
    run(&a, "BEGIN; DELETE FROM p WHERE id = 1").await;
    let create = waiting(&b, "CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)").await;
    run(&a, "COMMIT").await;
    create.await.unwrap().unwrap();
    assert_eq!(fails(&b, "INSERT INTO c VALUES (1, 1)").await.sqlstate, SqlState::FOREIGN_KEY_VIOLATION);

    run(&a, "CREATE TABLE d (id int PRIMARY KEY, p int); INSERT INTO d VALUES (1, 2)").await;
    run(&a, "BEGIN; DELETE FROM p WHERE id = 2").await;
    let alter = waiting(&b, "ALTER TABLE d ADD FOREIGN KEY (p) REFERENCES p").await;
    run(&a, "COMMIT").await;
    assert_eq!(alter.await.unwrap().unwrap_err().sqlstate, SqlState::FOREIGN_KEY_VIOLATION);
}
