//! What rows must satisfy.

mod common;

use base::SqlState;
use common::{World, fails, rows, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_those_of_postgresql() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, email varchar(10) UNIQUE, n int NOT NULL CHECK (n > 0))").await;
    run(&session, "INSERT INTO t VALUES (1, 'a@b', 1), (2, NULL, 1), (3, NULL, 1)").await;
    let error = fails(&session, "INSERT INTO t VALUES (1, 'x', 1)").await;
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(error.message, "duplicate key value violates unique constraint \"t_pkey\"");
    assert_eq!(error.detail.as_deref(), Some("Key (id)=(1) already exists."));
    let error = fails(&session, "INSERT INTO t VALUES (4, 'a@b', 1)").await;
    assert_eq!(error.message, "duplicate key value violates unique constraint \"t_email_key\"");
    assert_eq!(error.detail.as_deref(), Some("Key (email)=(a@b) already exists."));
    let error = fails(&session, "INSERT INTO t VALUES (4, 'x', NULL)").await;
    assert_eq!(error.sqlstate, SqlState::NOT_NULL_VIOLATION);
    assert_eq!(error.message, "null value in column \"n\" of relation \"t\" violates not-null constraint");
    let error = fails(&session, "INSERT INTO t VALUES (4, 'x', 0)").await;
    assert_eq!(error.sqlstate, SqlState::CHECK_VIOLATION);
    assert_eq!(error.message, "new row for relation \"t\" violates check constraint \"t_n_check\"");
    let error = fails(&session, "INSERT INTO t VALUES (4, 'much too long', 1)").await;
    assert_eq!(error.sqlstate, SqlState::STRING_TOO_LONG);
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_follows_its_table() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, a int, b text)").await;
    run(&session, "INSERT INTO t SELECT value, value % 50, 'x' FROM generate_series(1, 500) AS g(value)").await;
    run(&session, "CREATE INDEX t_a ON t (a)").await;
    let plan = rows(&session, "EXPLAIN SELECT * FROM t WHERE a = 7").await.join("\n");
    assert!(plan.contains("Index Lookup t using t_a"), "{plan}");
    for _ in 0..2 {
        assert_eq!(rows(&session, "SELECT count(*) FROM t WHERE a = 7").await, ["10"]);
        world.store.flush(None).await.unwrap();
    }
    run(
        &session,
        "UPDATE t SET a = 1000 WHERE id = 7; DELETE FROM t WHERE id = 57; INSERT INTO t VALUES (501, 7, 'y')",
    )
    .await;
    for _ in 0..2 {
        assert_eq!(rows(&session, "SELECT count(*) FROM t WHERE a = 7").await, ["9"]);
        assert_eq!(rows(&session, "SELECT id FROM t WHERE a = 1000").await, ["7"]);
        world.store.flush(None).await.unwrap();
    }
    run(&session, "CREATE UNIQUE INDEX t_u ON t (a, id)").await;
    let error = fails(&session, "CREATE UNIQUE INDEX t_v ON t (b)").await;
    assert_eq!(error.sqlstate, SqlState::UNIQUE_VIOLATION);
    assert_eq!(error.message, "could not create unique index \"t_v\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_holds_without_a_primary_key() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (a int UNIQUE, b int); INSERT INTO t VALUES (1, 1), (2, 2), (NULL, 3), (NULL, 4)")
        .await;
    assert_eq!(fails(&session, "INSERT INTO t VALUES (1, 9)").await.sqlstate, SqlState::UNIQUE_VIOLATION);
    run(&session, "UPDATE t SET a = 3 WHERE a = 1; INSERT INTO t VALUES (1, 9); DELETE FROM t WHERE a = 2; INSERT INTO t VALUES (2, 8)").await;
    assert_eq!(rows(&session, "SELECT b FROM t WHERE a = 1").await, ["9"]);
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_hold() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE p (id int PRIMARY KEY, code text UNIQUE);
         CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p);
         CREATE TABLE d (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE n (id int PRIMARY KEY, p text REFERENCES p (code) ON DELETE SET NULL);
         INSERT INTO p VALUES (1, 'a'), (2, 'b'), (3, 'c');
         INSERT INTO c VALUES (1, 1), (2, NULL);
         INSERT INTO d VALUES (1, 2), (2, 2), (3, 3);
         INSERT INTO n VALUES (1, 'b'), (2, 'c')",
    )
    .await;
    let error = fails(&session, "INSERT INTO c VALUES (3, 9)").await;
    assert_eq!(error.sqlstate, SqlState::FOREIGN_KEY_VIOLATION);
    assert_eq!(error.message, "insert or update on table \"c\" violates foreign key constraint \"c_p_fkey\"");
    assert_eq!(error.detail.as_deref(), Some("Key (p)=(9) is not present in table \"p\"."));
    let error = fails(&session, "DELETE FROM p WHERE id = 1").await;
    assert_eq!(error.sqlstate, SqlState::FOREIGN_KEY_VIOLATION);
    assert_eq!(error.detail.as_deref(), Some("Key (id)=(1) is still referenced from table \"c\"."));
    run(&session, "DELETE FROM p WHERE id = 2").await;
    assert_eq!(rows(&session, "SELECT id FROM d ORDER BY id").await, ["3"]);
    assert_eq!(rows(&session, "SELECT id, p FROM n ORDER BY id").await, ["1|∅", "2|c"]);
    run(&session, "UPDATE p SET id = 30 WHERE id = 3").await;
    assert_eq!(rows(&session, "SELECT p FROM d").await, ["30"]);
    assert_eq!(fails(&session, "DROP TABLE p").await.sqlstate, SqlState::DEPENDENT_OBJECTS);
    assert_eq!(fails(&session, "TRUNCATE p").await.sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
    run(&session, "DROP TABLE p CASCADE; INSERT INTO c VALUES (9, 9)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_default_and_generated() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s serial, a int DEFAULT 5, b int GENERATED ALWAYS AS (a * 2) STORED)",
    )
    .await;
    run(&session, "INSERT INTO t DEFAULT VALUES; INSERT INTO t (a) VALUES (7), (DEFAULT)").await;
    assert_eq!(rows(&session, "SELECT id, s, a, b FROM t ORDER BY id").await, ["1|1|5|10", "2|2|7|14", "3|3|5|10"]);
    assert!(
        fails(&session, "INSERT INTO t (id) VALUES (10)").await.message.contains("cannot insert a non-DEFAULT value")
    );
    run(&session, "INSERT INTO t (id) OVERRIDING SYSTEM VALUE VALUES (10)").await;
    run(&session, "UPDATE t SET a = 1 WHERE id = 10").await;
    assert_eq!(rows(&session, "SELECT b FROM t WHERE id = 10").await, ["2"]);
    run(&session, "CREATE SEQUENCE q START 10 INCREMENT 5").await;
    assert_eq!(rows(&session, "SELECT nextval('q')").await, ["10"]);
    assert_eq!(rows(&session, "SELECT nextval('q')").await, ["15"]);
    assert_eq!(rows(&session, "SELECT currval('q')").await, ["15"]);
    run(&session, "SELECT setval('q', 100)").await;
    assert_eq!(rows(&session, "SELECT setval('q', 100)").await, ["100"]);
    assert_eq!(rows(&session, "SELECT nextval('q')").await, ["105"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_resolved() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, n int); INSERT INTO t VALUES (1, 'a', 1)").await;
    run(&session, "INSERT INTO t VALUES (1, 'z', 9), (2, 'b', 2) ON CONFLICT DO NOTHING").await;
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id").await, ["1|a|1", "2|b|2"]);
    let returned = rows(
        &session,
        "INSERT INTO t AS x VALUES (1, 'a', 10), (3, 'c', 3) ON CONFLICT (id) DO UPDATE SET n = x.n + excluded.n RETURNING id, n",
    )
    .await;
    assert_eq!(returned, ["3|3", "1|11"]);
    run(&session, "INSERT INTO t VALUES (77, 'b', 5) ON CONFLICT (u) DO UPDATE SET n = excluded.n WHERE t.n < 0").await;
    run(&session, "INSERT INTO t VALUES (77, 'b', 6) ON CONFLICT ON CONSTRAINT t_u_key DO UPDATE SET n = excluded.n")
        .await;
    assert_eq!(rows(&session, "SELECT id, n FROM t ORDER BY id").await, ["1|11", "2|6", "3|3"]);
    let error =
        fails(&session, "INSERT INTO t VALUES (1, 'q', 1), (1, 'r', 1) ON CONFLICT (id) DO UPDATE SET n = 0").await;
    assert_eq!(error.sqlstate, SqlState::CARDINALITY_VIOLATION);
    let error = fails(&session, "INSERT INTO t VALUES (1, 'q', 1) ON CONFLICT (n) DO NOTHING").await;
    assert_eq!(error.sqlstate, SqlState::INVALID_COLUMN_REFERENCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merge_does_each_action() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);
         CREATE TABLE s (id int, n int); INSERT INTO s VALUES (2, 20), (3, 0), (4, 40)",
    )
    .await;
    run(
        &session,
        "MERGE INTO t USING s ON t.id = s.id
         WHEN MATCHED AND s.n = 0 THEN DELETE
         WHEN MATCHED THEN UPDATE SET n = t.n + s.n
         WHEN NOT MATCHED THEN INSERT (id, n) VALUES (s.id, s.n)
         WHEN NOT MATCHED BY SOURCE THEN UPDATE SET n = -1",
    )
    .await;
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id").await, ["1|-1", "2|22", "4|40"]);
}
