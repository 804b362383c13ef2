//! Transactions, settings, prepared statements, temporary tables.

mod common;

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use base::SqlState;
use common::{World, fails, rows, run, text};
use lattice_sql::{Outcome, Params, PrepareOptions, StatementKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_transaction_waits_for_rollback() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&session, "BEGIN; INSERT INTO t VALUES (1)").await;
    assert_eq!(fails(&session, "INSERT INTO t VALUES (1)").await.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(fails(&session, "SELECT 1").await.sqlstate, SqlState::IN_FAILED_TRANSACTION);
    run(&session, "COMMIT").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn savepoints_undo_a_part() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&session, "BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2)").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["2"]);
    fails(&session, "INSERT INTO t VALUES (2)").await;
    run(&session, "ROLLBACK TO a; INSERT INTO t VALUES (3); RELEASE a; COMMIT").await;
    assert_eq!(rows(&session, "SELECT id FROM t ORDER BY id").await, ["1", "3"]);
    assert_eq!(fails(&session, "SAVEPOINT x").await.sqlstate, SqlState::NO_ACTIVE_TRANSACTION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_read_one_snapshot_and_the_first_writer_wins() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)").await;
    run(&a, "BEGIN").await;
    assert_eq!(rows(&a, "SELECT n FROM t").await, ["0"]);
    run(&b, "UPDATE t SET n = 1").await;
    assert_eq!(rows(&a, "SELECT n FROM t").await, ["0"]);
    assert_eq!(fails(&a, "UPDATE t SET n = n + 1").await.sqlstate, SqlState::SERIALIZATION_FAILURE);
    run(&a, "ROLLBACK").await;
    assert_eq!(rows(&a, "SELECT n FROM t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn autocommit_updates_of_one_row_all_count() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)").await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let session = world.admin();
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                run(&session, "UPDATE t SET n = n + 1 WHERE id = 1").await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(rows(&session, "SELECT n FROM t").await, ["40"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_transactions_of_their_own() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let txn = session.begin().await.unwrap();
    let insert = session
        .prepare("INSERT INTO t VALUES (?)", PrepareOptions { question_marks: true, transaction: Some(txn) })
        .await
        .unwrap();
    assert!(insert.is_update);
    assert_eq!(insert.parameters.field(0).data_type(), &DataType::Int32);
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    session.execute(&insert, Params::Positional(vec![one]), Some(txn)).await.unwrap();
    let savepoint = session.savepoint(txn, "s").await.unwrap();
    let two: ArrayRef = Arc::new(Int32Array::from(vec![2]));
    session.execute(&insert, Params::Positional(vec![two]), Some(txn)).await.unwrap();
    session.rollback_to_savepoint(txn, savepoint).await.unwrap();
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
    session.commit(txn).await.unwrap();
    assert_eq!(rows(&session, "SELECT id FROM t").await, ["1"]);
    assert!(session.commit(txn).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_know_their_types() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, name text, d numeric(10,2)); INSERT INTO t VALUES (1, 'a', 1.25), (2, 'b', 2)").await;
    let query = session
        .prepare("SELECT id, name, d FROM t WHERE id = $1 AND name <> $2", PrepareOptions::default())
        .await
        .unwrap();
    assert_eq!(query.kind, StatementKind::Query);
    let types: Vec<_> = query.parameters.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(types, [DataType::Int32, DataType::Utf8]);
    let schema = query.result_schema.clone().unwrap();
    assert_eq!(schema.field(2).data_type(), &DataType::Decimal128(10, 2));
    let values: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![2])), Arc::new(StringArray::from(vec!["x"]))];
    let Outcome::Rows(found) = session.execute(&query, Params::Positional(values), None).await.unwrap() else {
        panic!("rows")
    };
    assert_eq!(found.schema, schema);
    assert_eq!(text(&found.collect().await.unwrap()), ["2|b|2.00"]);

    let insert =
        session.prepare("INSERT INTO t (id, name) VALUES ($1, upper($2))", PrepareOptions::default()).await.unwrap();
    let batch = RecordBatch::try_new(
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)])),
        vec![
            Arc::new(Int64Array::from(vec![10, 11, 12])),
            Arc::new(StringArray::from(vec![Some("x"), None, Some("z")])),
        ],
    )
    .unwrap();
    let Outcome::Affected { rows: count, .. } = session.execute(&insert, Params::Batch(batch), None).await.unwrap()
    else {
        panic!("a count")
    };
    assert_eq!(count, 3);
    assert_eq!(rows(&session, "SELECT name FROM t WHERE id >= 10 ORDER BY id").await, ["X", "∅", "Z"]);

    run(&session, "PREPARE p AS SELECT name FROM t WHERE id = $1").await;
    assert_eq!(rows(&session, "EXECUTE p(1)").await, ["a"]);
    run(&session, "DEALLOCATE p").await;
    assert_eq!(fails(&session, "EXECUTE p(1)").await.sqlstate, SqlState::INVALID_STATEMENT_NAME);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_tables_belong_to_their_session() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE t (x int); INSERT INTO t VALUES (1); CREATE TEMPORARY TABLE t (x int); INSERT INTO t VALUES (2), (3)").await;
    assert_eq!(rows(&a, "SELECT count(*) FROM t").await, ["2"]);
    assert_eq!(rows(&b, "SELECT count(*) FROM t").await, ["1"]);
    assert_eq!(
        rows(&b, "SELECT count(*) FROM information_schema.tables WHERE table_type = 'LOCAL TEMPORARY'").await,
        ["0"]
    );
    a.close().await;
    assert!(a.run("SELECT 1").await.is_err());
    let c = world.admin();
    assert_eq!(rows(&c, "SELECT count(*) FROM lattice.tables").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_a_closed_list() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "SET statement_timeout = '1500ms'").await;
    assert_eq!(rows(&session, "SHOW statement_timeout").await, ["1500ms"]);
    run(&session, "BEGIN; SET LOCAL statement_timeout = 100; COMMIT").await;
    assert_eq!(rows(&session, "SHOW statement_timeout").await, ["1500ms"]);
    run(&session, "RESET statement_timeout").await;
    assert_eq!(rows(&session, "SHOW statement_timeout").await, ["0"]);
    assert_eq!(fails(&session, "SET nonsense = 1").await.sqlstate, SqlState::UNDEFINED_OBJECT);
    run(&session, "CREATE SCHEMA s; SET search_path = s, public; CREATE TABLE t (x int)").await;
    assert_eq!(
        rows(&session, "SELECT table_schema FROM information_schema.tables WHERE table_name = 't'").await,
        ["s"]
    );
    run(&session, "SET statement_timeout = 50").await;
    let slow = "SELECT count(*) FROM generate_series(1, 100000) AS a(x), generate_series(1, 100000) AS b(y)";
    assert_eq!(fails(&session, slow).await.sqlstate, SqlState::QUERY_CANCELED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_statements_can_be_cancelled() {
    let world = World::new().await;
    let session = world.admin();
    let running = {
        let session = session.clone();
        tokio::spawn(async move {
            fails(
                &session,
                "SELECT count(*) FROM generate_series(1, 100000) AS a(x), generate_series(1, 100000) AS b(y)",
            )
            .await
        })
    };
    loop {
        if let Some(query) = world.engine.queries().first() {
            assert!(world.engine.cancel(query.id));
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(running.await.unwrap().sqlstate, SqlState::QUERY_CANCELED);
    assert!(world.engine.queries().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_statement_leaves_nothing() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY)").await;
    fails(&session, "INSERT INTO t VALUES (1), (2), (1)").await;
    fails(&session, "INSERT INTO t SELECT 10 / (5 - value) FROM generate_series(1, 10) AS g(value)").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
}
