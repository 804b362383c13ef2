//! Definitions: tables, views, indexes, schemas, their changes and their listing.

mod common;

use base::{Principal, SqlState};
use common::{World, fails, rows, run};
use lattice_sql::{EngineOptions, SessionOptions, TableFilter};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_roll_back() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "BEGIN; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE INDEX i ON t (id)").await;
    assert_eq!(rows(&a, "SELECT count(*) FROM t").await, ["1"]);
    assert_eq!(fails(&b, "SELECT * FROM t").await.sqlstate, SqlState::UNDEFINED_TABLE);
    run(&a, "ROLLBACK").await;
    assert_eq!(fails(&a, "SELECT * FROM t").await.sqlstate, SqlState::UNDEFINED_TABLE);
    run(&a, "BEGIN; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); COMMIT").await;
    assert_eq!(rows(&b, "SELECT count(*) FROM t").await, ["1"]);
    run(&a, "BEGIN; DROP TABLE t").await;
    assert_eq!(rows(&b, "SELECT count(*) FROM t").await, ["1"]);
    run(&a, "ROLLBACK").await;
    assert_eq!(rows(&a, "SELECT count(*) FROM t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_name_twice_collides() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "BEGIN; CREATE TABLE t (x int)").await;
    let other = tokio::spawn(async move { b.run("CREATE TABLE t (y int)").await.map(|_| ()) });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    run(&a, "COMMIT").await;
    let error = other.await.unwrap().unwrap_err();
    assert!(matches!(error.sqlstate, SqlState::DUPLICATE_TABLE | SqlState::SERIALIZATION_FAILURE), "{error}");
    run(&a, "CREATE TABLE IF NOT EXISTS t (z int)").await;
    assert_eq!(fails(&a, "CREATE TABLE t (z int)").await.sqlstate, SqlState::DUPLICATE_TABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_bind_as_of_the_snapshot() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE t (x int); INSERT INTO t VALUES (1); BEGIN").await;
    assert_eq!(rows(&a, "SELECT x FROM t").await, ["1"]);
    run(&b, "ALTER TABLE t RENAME COLUMN x TO y").await;
    assert_eq!(rows(&a, "SELECT x FROM t").await, ["1"]);
    run(&a, "COMMIT").await;
    assert_eq!(rows(&a, "SELECT y FROM t").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_change() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 10), (2, 20)").await;
    run(&session, "ALTER TABLE t ADD COLUMN b text DEFAULT 'x', ADD COLUMN c int").await;
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id").await, ["1|10|x|∅", "2|20|x|∅"]);
    run(&session, "INSERT INTO t VALUES (3, 30, 'y', 3)").await;
    world.store.flush(None).await.unwrap();
    assert_eq!(rows(&session, "SELECT b FROM t ORDER BY id").await, ["x", "x", "y"]);
    run(&session, "ALTER TABLE t DROP COLUMN a").await;
    assert_eq!(rows(&session, "SELECT * FROM t ORDER BY id").await, ["1|x|∅", "2|x|∅", "3|y|3"]);
    run(&session, "ALTER TABLE t ALTER COLUMN c TYPE text USING c::text || '!'").await;
    assert_eq!(rows(&session, "SELECT c FROM t ORDER BY id").await, ["∅", "∅", "3!"]);
    assert_eq!(
        fails(&session, "ALTER TABLE t ALTER COLUMN c SET NOT NULL").await.sqlstate,
        SqlState::NOT_NULL_VIOLATION
    );
    run(&session, "UPDATE t SET c = 'z' WHERE c IS NULL; ALTER TABLE t ALTER COLUMN c SET NOT NULL").await;
    assert_eq!(fails(&session, "INSERT INTO t (id) VALUES (9)").await.sqlstate, SqlState::NOT_NULL_VIOLATION);
    run(&session, "ALTER TABLE t ALTER c SET DEFAULT 'd'; INSERT INTO t (id) VALUES (9)").await;
    assert_eq!(rows(&session, "SELECT b, c FROM t WHERE id = 9").await, ["x|d"]);
    run(&session, "ALTER TABLE t ADD CONSTRAINT short CHECK (length(b) < 5)").await;
    assert_eq!(fails(&session, "UPDATE t SET b = 'longer'").await.sqlstate, SqlState::CHECK_VIOLATION);
    run(&session, "ALTER TABLE t DROP CONSTRAINT short; UPDATE t SET b = 'longer'").await;
    run(&session, "ALTER TABLE t RENAME COLUMN b TO e; ALTER TABLE t RENAME TO u").await;
    assert_eq!(rows(&session, "SELECT DISTINCT e FROM u").await, ["longer"]);
    run(&session, "ALTER TABLE u DROP CONSTRAINT t_pkey; INSERT INTO u (id) VALUES (1); DELETE FROM u WHERE e = 'x'")
        .await;
    run(&session, "ALTER TABLE u ADD CONSTRAINT u_pk PRIMARY KEY (id)").await;
    assert_eq!(
        fails(&session, "INSERT INTO u (id) VALUES (1)").await.message,
        "duplicate key value violates unique constraint \"u_pk\""
    );
    drop(session);
    let world = world.restart().await;
    assert_eq!(rows(&world.admin(), "SELECT count(*) FROM u").await, ["4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_show_their_query() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 10), (2, 20)").await;
    run(
        &session,
        "CREATE VIEW v (x, y) AS SELECT id, a FROM t WHERE a > 10; CREATE VIEW w AS SELECT x * 2 AS z FROM v",
    )
    .await;
    assert_eq!(rows(&session, "SELECT * FROM v").await, ["2|20"]);
    assert_eq!(rows(&session, "SELECT z FROM w").await, ["4"]);
    assert_eq!(fails(&session, "DROP TABLE t").await.sqlstate, SqlState::DEPENDENT_OBJECTS);
    assert_eq!(fails(&session, "INSERT INTO v VALUES (1, 2)").await.sqlstate, SqlState::WRONG_OBJECT_TYPE);
    run(&session, "CREATE OR REPLACE VIEW v AS SELECT id AS x, a AS y FROM t").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM v").await, ["2"]);
    run(&session, "DROP TABLE t CASCADE").await;
    assert_eq!(fails(&session, "SELECT * FROM w").await.sqlstate, SqlState::UNDEFINED_TABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_made_from_queries() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t AS SELECT value AS n, value::text AS s FROM generate_series(1, 1000) AS g(value)")
        .await;
    assert_eq!(rows(&session, "SELECT count(*), max(n), max(length(s)) FROM t").await, ["1000|1000|4"]);
    run(&session, "CREATE TABLE u AS SELECT * FROM t WITH NO DATA; CREATE TABLE k (LIKE t)").await;
    assert_eq!(rows(&session, "SELECT count(*) FROM u").await, ["0"]);
    assert_eq!(
        rows(&session, "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'k' ORDER BY ordinal_position").await,
        ["n|bigint", "s|text"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_index_knows_every_row() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, a int)").await;
    let writer = {
        let session = world.admin();
        tokio::spawn(async move {
            for id in 0..60 {
                run(&session, &format!("INSERT INTO t VALUES ({id}, {})", id % 3)).await;
            }
        })
    };
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    run(&session, "CREATE INDEX t_a ON t (a)").await;
    writer.await.unwrap();
    assert!(rows(&session, "EXPLAIN SELECT id FROM t WHERE a = 1").await.join("\n").contains("t_a"));
    assert_eq!(rows(&session, "SELECT count(*) FROM t WHERE a = 1").await, ["20"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_find_what_is_there() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE p (id int PRIMARY KEY, name varchar(20) NOT NULL DEFAULT 'x');
         CREATE TABLE c (id bigint GENERATED BY DEFAULT AS IDENTITY, p int REFERENCES p ON DELETE CASCADE);
         CREATE VIEW v AS SELECT name FROM p; COMMENT ON TABLE p IS 'parents'; COMMENT ON COLUMN p.name IS 'what it is called'",
    )
    .await;
    let tables =
        session.tables(TableFilter { schema_pattern: Some("pub%".into()), ..TableFilter::default() }).await.unwrap();
    let found: Vec<_> = tables.iter().map(|table| (table.name.as_str(), table.kind)).collect();
    assert_eq!(found, [("c", "TABLE"), ("p", "TABLE"), ("v", "VIEW")]);
    assert_eq!(tables[1].remarks.as_deref(), Some("parents"));
    assert_eq!(tables[1].columns[1].type_name, "varchar(20)");
    assert_eq!(tables[1].columns[1].remarks.as_deref(), Some("what it is called"));
    assert!(tables[0].columns[0].auto_increment);
    assert_eq!(session.primary_keys(None, None, "p").await.unwrap()[0].key_name, "p_pkey");
    let imported = session.imported_keys(None, Some("public"), "c").await.unwrap();
    assert_eq!((imported[0].pk_table.as_str(), imported[0].delete_rule), ("p", 0));
    assert_eq!(session.exported_keys(None, None, "p").await.unwrap().len(), 1);
    assert_eq!(session.schemas(None, Some("inf%")).await.unwrap()[0].1, "information_schema");
    assert_eq!(
        rows(&session, "SELECT constraint_name, constraint_type FROM information_schema.table_constraints ORDER BY 1")
            .await,
        ["c_p_fkey|FOREIGN KEY", "p_pkey|PRIMARY KEY"]
    );
    assert!(rows(&session, "SHOW CREATE TABLE p").await[0].contains("PRIMARY KEY (id)"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_stays_in_its_folders() {
    let outside = tempfile::tempdir().unwrap();
    let inside = tempfile::tempdir().unwrap();
    let world =
        World::with(EngineOptions { copy_folders: vec![inside.path().to_owned()], ..EngineOptions::default() }).await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, s text, d numeric(8,2), u uuid)").await;
    run(
        &session,
        "INSERT INTO t VALUES (1, 'a,\"b\"', 1.25, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), (2, NULL, NULL, NULL)",
    )
    .await;
    for (file, options) in [("t.csv", "(FORMAT csv, HEADER)"), ("t.parquet", ""), ("t.json", "")] {
        let path = inside.path().join(file);
        run(&session, &format!("COPY t TO '{}' {options}", path.display())).await;
        run(&session, "CREATE TABLE b (LIKE t)").await;
        run(&session, &format!("COPY b FROM '{}' {options}", path.display())).await;
        assert_eq!(
            rows(&session, "SELECT * FROM b ORDER BY id").await,
            rows(&session, "SELECT * FROM t ORDER BY id").await,
            "{file}"
        );
        run(&session, "DROP TABLE b").await;
    }
    let target = outside.path().join("t.csv");
    assert_eq!(
        fails(&session, &format!("COPY t TO '{}'", target.display())).await.sqlstate,
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
    let around = inside.path().join("link/t.csv");
    assert_eq!(
        fails(&session, &format!("COPY t TO '{}'", around.display())).await.sqlstate,
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    let user = world.engine.session(Principal::user("ann"), SessionOptions::default());
    let path = inside.path().join("x.csv");
    assert_eq!(
        fails(&user, &format!("COPY t TO '{}'", path.display())).await.sqlstate,
        SqlState::INSUFFICIENT_PRIVILEGE
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_made_late_in_a_transaction_misses_nothing() {
    let world = World::new().await;
    let (a, b) = (world.admin(), world.admin());
    run(&a, "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (x int); INSERT INTO t VALUES (1, 1)")
        .await;
    // Nobody touched the table since the transaction began: its own rows are in the index.
    run(&a, "BEGIN; INSERT INTO other VALUES (1); INSERT INTO t VALUES (2, 2); CREATE INDEX first ON t (v); COMMIT")
        .await;
    assert_eq!(rows(&a, "SELECT id FROM t WHERE v = 2").await, ["2"]);
    run(&a, "DROP INDEX first").await;
    // Somebody did.
    for change in [
        "CREATE INDEX late ON t (v)",
        "ALTER TABLE t ADD CONSTRAINT late UNIQUE (v)",
        "ALTER TABLE t ADD CHECK (v < 3)",
    ] {
        run(&a, "BEGIN; INSERT INTO other VALUES (2)").await;
        run(&b, "INSERT INTO t SELECT max(id) + 1, max(v) + 1 FROM t").await;
        let error = fails(&a, change).await;
        assert_eq!(error.sqlstate, SqlState::SERIALIZATION_FAILURE, "{change}: {error}");
        run(&a, "ROLLBACK").await;
    }
    // A transaction that has not written yet sees everything.
    run(&a, "BEGIN").await;
    run(&b, "INSERT INTO t VALUES (50, 50)").await;
    run(&a, "CREATE INDEX late ON t (v); COMMIT").await;
    assert_eq!(rows(&a, "SELECT id FROM t WHERE v = 50").await, ["50"]);
}
