//! One table, the plain statements.

mod common;

use base::SqlState;
use common::{World, fails, rows, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_in_and_come_out() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL, price numeric(10,2), at timestamptz)").await;
    run(&session, "INSERT INTO t VALUES (1, 'one', 1.5, '2026-01-02T03:04:05Z'), (2, 'two', NULL, NULL)").await;
    run(&session, "INSERT INTO t (name, id) SELECT 'three', 1 + 2").await;
    assert_eq!(
        rows(&session, "SELECT id, name, price FROM t ORDER BY id").await,
        ["1|one|1.50", "2|two|∅", "3|three|∅"]
    );
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["3"]);
    assert_eq!(rows(&session, "SELECT name FROM t WHERE id = 2").await, ["two"]);
    assert_eq!(
        rows(&session, "UPDATE t SET price = coalesce(price, 0) + 1 WHERE id <> 3 RETURNING id, price").await.len(),
        2
    );
    assert_eq!(rows(&session, "SELECT price FROM t ORDER BY id").await, ["2.50", "1.00", "∅"]);
    assert_eq!(rows(&session, "DELETE FROM t WHERE name LIKE 't%' RETURNING *").await.len(), 2);
    assert_eq!(rows(&session, "SELECT id FROM t").await, ["1"]);
    drop(session);
    let world = world.restart().await;
    assert_eq!(rows(&world.admin(), "SELECT id, name, price FROM t").await, ["1|one|2.50"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tiers_answer_alike() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    run(&session, "INSERT INTO t SELECT value, value * 2 FROM generate_series(1, 100) AS g(value)").await;
    world.store.flush(None).await.unwrap();
    run(&session, "UPDATE t SET v = 0 WHERE id = 50; DELETE FROM t WHERE id = 51; INSERT INTO t VALUES (101, 5)").await;
    for _ in 0..2 {
        assert_eq!(
            rows(&session, "SELECT count(*), sum(v) FROM t").await,
            [format!("100|{}", 2 * 5050 - 100 - 102 + 5)]
        );
        assert_eq!(
            rows(&session, "SELECT v FROM t WHERE id IN (50, 51, 52, 101) ORDER BY id").await,
            ["0", "104", "5"]
        );
        world.store.flush(None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_without_a_key_keep_duplicates_apart() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (v int); INSERT INTO t VALUES (1), (1), (2)").await;
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY v").await, ["1", "1", "2"]);
    run(&session, "UPDATE t SET v = v + 10 WHERE v = 1").await;
    assert_eq!(rows(&session, "SELECT v FROM t ORDER BY v").await, ["2", "11", "11"]);
    run(&session, "DELETE FROM t WHERE v = 11").await;
    assert_eq!(rows(&session, "SELECT v FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_columns_are_hidden_and_nameable() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    assert_eq!(rows(&session, "SELECT * FROM t").await, ["1"]);
    assert_eq!(
        rows(&session, "SELECT *, _op, _tx_from IS NOT NULL, _tx_to IS NULL FROM t").await,
        ["1|INSERT|true|true"]
    );
    let error = fails(&session, "CREATE TABLE u (_tx_from int)").await;
    assert_eq!(error.sqlstate, SqlState::RESERVED_NAME);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_read_as_it_was() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')").await;
    let then = world.store.now();
    run(&session, "UPDATE t SET v = 'new'; ALTER TABLE t RENAME COLUMN v TO w").await;
    let past = format!("SELECT v FROM t FOR SYSTEM_TIME AS OF {}", then.0);
    for _ in 0..2 {
        assert_eq!(rows(&session, &past).await, ["old"]);
        assert_eq!(rows(&session, "SELECT w FROM t").await, ["new"]);
        world.store.flush(None).await.unwrap();
    }
    run(&session, "DROP TABLE t").await;
    assert_eq!(rows(&session, &past).await, ["old"]);
    assert_eq!(fails(&session, "SELECT * FROM t").await.sqlstate, SqlState::UNDEFINED_TABLE);
    let future = fails(&session, "SELECT * FROM t FOR SYSTEM_TIME AS OF '2300-01-01'").await;
    assert_eq!(future.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fast_path_agrees() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (a int, b text, v numeric(8,2), n int, PRIMARY KEY (a, b))").await;
    run(&session, "INSERT INTO t VALUES (1, 'x', 1.5, 7), (1, 'y', NULL, 8), (2, 'x', 3, 9)").await;
    for flushed in [false, true] {
        if flushed {
            world.store.flush(None).await.unwrap();
        }
        for query in [
            "SELECT v, n FROM t WHERE a = 1 AND b = 'x'",
            "SELECT * FROM t AS s WHERE s.b = 'x' AND 2 = s.a",
            "SELECT n AS m FROM t WHERE a = 9 AND b = ''",
        ] {
            let long = format!("{query} AND true");
            assert_eq!(rows(&session, query).await, rows(&session, &long).await, "{query}");
        }
    }
    assert_eq!(rows(&session, "UPDATE t SET v = 2 * v + n, n = 0 WHERE a = 1 AND b = 'x'").await, ["UPDATE 1"]);
    assert_eq!(rows(&session, "UPDATE t SET n = 5 WHERE b = 'nobody' AND a = 1").await, ["UPDATE 0"]);
    assert_eq!(rows(&session, "DELETE FROM t WHERE a = 2 AND b = 'x'").await, ["DELETE 1"]);
    assert_eq!(rows(&session, "DELETE FROM t WHERE a = 2 AND b = 'x'").await, ["DELETE 0"]);
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY b").await, ["1|x|10.00|0", "1|y|∅|8"]);
}
