//! Plans: what they know, how they stop, and what prepared statements keep of them.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use base::SqlState;
use common::{World, fails, rows, run, text};
use futures::StreamExt;
use lattice_sql::{Outcome, Params, PrepareOptions, Prepared, Session};

/// Statements that would run for hours.
const ENDLESS: [&str; 5] = [
    // A condition that never holds.
    "SELECT count(*) FROM generate_series(1, 1000000) a(x), generate_series(1, 1000000) b(y) WHERE x * y < 0",
    // No condition, and one row at the end.
    "SELECT count(*), sum(x + y) FROM generate_series(1, 10000000) a(x), generate_series(1, 10000000) b(y)",
    // Equal keys everywhere, and a condition that never holds.
    "SELECT x FROM generate_series(1, 1000000) a(x) JOIN generate_series(1, 1000000) b(y) ON x % 2 = y % 2 AND x * y < 0",
    // Rows without end.
    "WITH RECURSIVE n(x) AS (SELECT 1::bigint UNION ALL SELECT x + 0 FROM n) SELECT count(*) FROM n",
    // A source without joins.
    "SELECT sum(x) FROM generate_series(1, 1000000000000000) a(x)",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_joins_can_be_stopped() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (x bigint); SET statement_timeout = 200").await;
    for sql in ENDLESS {
        let started = Instant::now();
        assert_eq!(fails(&session, sql).await.sqlstate, SqlState::QUERY_CANCELED, "{sql}");
        assert!(started.elapsed() < Duration::from_secs(20), "{sql} took {:?}", started.elapsed());
    }
    let insert = "INSERT INTO t SELECT x FROM generate_series(1, 1000000) a(x), generate_series(1, 1000000) b(y) WHERE x * y < 0";
    assert_eq!(fails(&session, insert).await.sqlstate, SqlState::QUERY_CANCELED);
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_joins_leave_room_to_cancel_them() {
    let world = World::new().await;
    let session = world.admin();
    // More endless statements than threads: whoever cancels them needs one too.
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let session = world.admin();
            tokio::spawn(async move { fails(&session, ENDLESS[0]).await })
        })
        .collect();
    let started = Instant::now();
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        assert!(started.elapsed() < Duration::from_secs(60), "still {:?}", world.engine.queries());
        tokio::time::sleep(Duration::from_millis(100)).await;
        // As a user would: by another statement.
        for id in rows(&session, "SELECT id FROM lattice.queries WHERE sql LIKE '%< 0'").await {
            // It may have ended since.
            let killed = session.run(&format!("KILL QUERY {id}")).await;
            assert!(
                killed.as_ref().err().is_none_or(|error| error.sqlstate == SqlState::UNDEFINED_OBJECT),
                "{killed:?}"
            );
        }
    }
    for task in tasks {
        assert_eq!(task.await.unwrap().sqlstate, SqlState::QUERY_CANCELED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_stops_its_plan() {
    let world = World::new().await;
    let session = world.admin();
    for sql in [ENDLESS[0], ENDLESS[2]] {
        let Some(Outcome::Rows(mut found)) = run(&session, sql).await.pop() else { panic!("rows") };
        let waited = tokio::time::timeout(Duration::from_millis(300), found.stream.next()).await;
        assert!(waited.is_err(), "{sql} gave a row");
        assert!(world.engine.metrics().memory_used > 0, "a join keeps one side in memory");
        drop(found);
        assert!(world.engine.queries().is_empty());
        let started = Instant::now();
        while world.engine.metrics().memory_used > 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "the plan of {sql} goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The scans of a plan, in the order in which EXPLAIN shows them.
async fn scans(session: &Session, sql: &str) -> Vec<String> {
    let plan = rows(session, &format!("EXPLAIN {sql}")).await;
    plan.iter().filter_map(|line| Some(line.trim().strip_prefix("Scan ")?.split(':').next()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_are_built_from_the_smaller_side() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE small (k int, v int); CREATE TABLE big (k int, v int)").await;
    run(&session, "INSERT INTO small SELECT x, x FROM generate_series(1, 500) s(x)").await;
    run(&session, "INSERT INTO big SELECT x % 500, x FROM generate_series(1, 30000) s(x)").await;
    // The numbers of rows are known wherever the rows lie.
    for _ in 0..2 {
        for sql in ["SELECT count(*) FROM big JOIN small USING (k)", "SELECT count(*) FROM small JOIN big USING (k)"] {
            assert_eq!(scans(&session, sql).await, ["small", "big"], "{sql}");
        }
        world.store.flush(None).await.unwrap();
    }
    // What a filter leaves follows from the least and the greatest value: 3 rows of `big` are fewer than 500.
    for sql in [
        "SELECT count(*) FROM small JOIN big USING (k) WHERE big.v > 29997",
        "SELECT count(*) FROM big JOIN small USING (k) WHERE big.v > 29997",
    ] {
        assert_eq!(scans(&session, sql).await, ["big", "small"], "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_at_the_ends_of_their_types_can_be_planned() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE n (id int PRIMARY KEY, s smallint, i int, b bigint, r real, d double precision, day date, at timestamp, tz timestamptz, e numeric(38,0))",
    )
    .await;
    run(
        &session,
        "INSERT INTO n VALUES
         (1, -32768, -2147483648, -9223372036854775808, '-Infinity', '-Infinity', '0001-01-01', '0001-01-01', '0001-01-01', -99999999999999999999999999999999999999),
         (2, 32767, 2147483647, 9223372036854775807, 'Infinity', 'NaN', '9999-12-31', '9999-12-31', '9999-12-31', 99999999999999999999999999999999999999)",
    )
    .await;
    for _ in 0..2 {
        for column in ["s", "i", "b", "r", "d", "e"] {
            let found =
                rows(&session, &format!("SELECT id FROM n WHERE {column} > 0 AND {column} <> 17 ORDER BY id")).await;
            assert_eq!(found, ["2"], "{column}");
            assert_eq!(rows(&session, &format!("SELECT id FROM n WHERE {column} + 0 < 0")).await, ["1"], "{column}");
            let join = format!(
                "SELECT count(*) FROM n a JOIN n b ON a.{column} = b.{column} WHERE a.{column} > 5 AND b.{column} >= a.{column}"
            );
            assert_eq!(rows(&session, &join).await, ["1"], "{column}");
        }
        for column in ["day", "at", "tz"] {
            assert_eq!(
                rows(&session, &format!("SELECT id FROM n WHERE {column} > '2000-01-01'")).await,
                ["2"],
                "{column}"
            );
            let join = format!("SELECT count(*) FROM n a JOIN n b USING ({column}) WHERE a.{column} < '2000-01-01'");
            assert_eq!(rows(&session, &join).await, ["1"], "{column}");
        }
        assert_eq!(
            fails(&session, "SELECT b + 1 FROM n WHERE b > 0").await.sqlstate,
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE
        );
        assert_eq!(
            rows(&session, "SELECT min(b), max(b), min(i), max(s) FROM n").await,
            ["-9223372036854775808|9223372036854775807|-2147483648|32767"]
        );
        world.store.flush(None).await.unwrap();
    }
}

/// Runs a prepared statement with values.
async fn execute(session: &Session, prepared: &Prepared, values: Vec<ArrayRef>) -> Vec<String> {
    match session.execute(prepared, Params::Positional(values), None).await.unwrap() {
        Outcome::Rows(found) => text(&found.collect().await.unwrap()),
        other => vec![format!("{other:?}")],
    }
}

fn int(value: i32) -> ArrayRef {
    Arc::new(Int32Array::from(vec![value]))
}

fn long(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

fn word(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

/// How many plans were made and used again meanwhile.
struct Plans {
    made: u64,
    reused: u64,
}

impl Plans {
    fn of(world: &World) -> Self {
        let metrics = world.engine.metrics();
        Self { made: metrics.plans_made, reused: metrics.plans_reused }
    }

    fn since(&self, world: &World) -> (u64, u64) {
        let now = Plans::of(world);
        (now.made - self.made, now.reused - self.reused)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_are_planned_once() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v bigint, w text); INSERT INTO t SELECT x, x * 10, 'w' || x FROM generate_series(1, 100) s(x)").await;
    let prepare = |sql: &'static str| {
        let session = session.clone();
        async move { session.prepare(sql, PrepareOptions::default()).await.unwrap() }
    };

    let select = prepare("SELECT id, v + $2 AS v, w FROM t WHERE v > $1 AND v < $1 + 20 ORDER BY id").await;
    let before = Plans::of(&world);
    for start in [10, 20, 980] {
        let found = execute(&session, &select, vec![long(start), long(1)]).await;
        assert_eq!(found, [format!("{}|{}|w{}", start / 10 + 1, start + 11, start / 10 + 1)]);
    }
    assert_eq!(before.since(&world), (0, 3));

    let plain =
        prepare("SELECT count(*), sum(v), current_user FROM t WHERE id IN (SELECT id FROM t WHERE v < 100)").await;
    let before = Plans::of(&world);
    for _ in 0..2 {
        assert_eq!(execute(&session, &plain, vec![]).await, ["9|450|admin"]);
    }
    assert_eq!(before.since(&world), (0, 2));

    let insert =
        prepare("INSERT INTO t SELECT $1 + x, $2, upper($3) FROM generate_series(1, 2) s(x) RETURNING id, w").await;
    let update = prepare("UPDATE t SET v = v + $1 WHERE v > $2").await;
    let delete = prepare("DELETE FROM t USING (VALUES (1)) o(one) WHERE v = $1 AND one = 1").await;
    let merge = prepare("MERGE INTO t USING (SELECT $1::int AS id, $2::bigint AS v) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, s.v)").await;
    let before = Plans::of(&world);
    for (round, id) in [200, 300, 400].into_iter().enumerate() {
        let id_after = execute(&session, &insert, vec![int(id), long(5000), word("new")]).await;
        assert_eq!(id_after, [format!("{}|NEW", id + 1), format!("{}|NEW", id + 2)]);
        assert_eq!(execute(&session, &update, vec![long(1), long(4999)]).await, ["UPDATE 2"]);
        assert_eq!(execute(&session, &delete, vec![long(5001)]).await, ["DELETE 2"]);
        assert_eq!(execute(&session, &merge, vec![int(1000), long(i64::try_from(round).unwrap())]).await, ["MERGE 1"]);
    }
    assert_eq!(before.since(&world), (4, 8));
    assert_eq!(rows(&session, "SELECT v FROM t WHERE id = 1000").await, ["2"]);

    run(&session, "PREPARE p AS SELECT w FROM t WHERE v = $1 + 1 OR v = $1").await;
    let before = Plans::of(&world);
    for value in [10, 20, 30] {
        assert_eq!(rows(&session, &format!("EXECUTE p({value})")).await, [format!("w{}", value / 10)]);
    }
    assert_eq!(before.since(&world), (0, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_plan_reads_its_own_moment() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE VIEW w AS SELECT v FROM t; INSERT INTO t VALUES (1, 1)",
    )
    .await;
    let sum = session
        .prepare("SELECT sum(v), (SELECT max(v) FROM w) FROM t WHERE v >= $1", PrepareOptions::default())
        .await
        .unwrap();
    let now = session
        .prepare("SELECT now() > $1::timestamptz, count(*) FROM t WHERE v < 1000", PrepareOptions::default())
        .await
        .unwrap();
    let clock = session.prepare("SELECT now()::text, count(*) FROM t", PrepareOptions::default()).await.unwrap();
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["1|1"]);
    let first = execute(&session, &clock, vec![]).await;
    run(&session, "INSERT INTO t VALUES (2, 2)").await;
    world.store.flush(None).await.unwrap();
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["3|2"]);
    assert_eq!(execute(&session, &now, vec![word("2020-01-01")]).await, ["true|2"]);
    assert_ne!(execute(&session, &clock, vec![]).await, first);
    // A transaction reads its snapshot and its own writes.
    let other = world.admin();
    run(&session, "BEGIN; INSERT INTO t VALUES (3, 3)").await;
    run(&other, "INSERT INTO t VALUES (4, 4)").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["6|3"]);
    run(&session, "ROLLBACK").await;
    assert_eq!(execute(&session, &sum, vec![int(2)]).await, ["6|4"]);
    // A moment, a series, and a system view belong to one execution.
    let then = world.store.now();
    run(&session, "DELETE FROM t").await;
    let past =
        session.prepare("SELECT count(*) FROM t FOR SYSTEM_TIME AS OF $1", PrepareOptions::default()).await.unwrap();
    assert_eq!(execute(&session, &past, vec![long(then.0)]).await, ["3"]);
    assert_eq!(execute(&session, &past, vec![long(world.store.now().0)]).await, ["0"]);
    let series = session
        .prepare("SELECT count(*), min(x) FROM generate_series($1, $2) s(x)", PrepareOptions::default())
        .await
        .unwrap();
    assert_eq!(execute(&session, &series, vec![long(1), long(5)]).await, ["5|1"]);
    assert_eq!(execute(&session, &series, vec![long(3), long(4)]).await, ["2|3"]);
    let tables = session
        .prepare("SELECT count(*) FROM information_schema.tables WHERE table_name = 'later'", PrepareOptions::default())
        .await
        .unwrap();
    assert_eq!(execute(&session, &tables, vec![]).await, ["0"]);
    run(&session, "CREATE TABLE later (x int)").await;
    assert_eq!(execute(&session, &tables, vec![]).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_plan_follows_definitions_and_settings() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2)").await;
    run(
        &session,
        "CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v int); INSERT INTO s.t VALUES (1, 100), (2, 200)",
    )
    .await;
    let sum = session.prepare("SELECT sum(v) FROM t WHERE v > $1", PrepareOptions::default()).await.unwrap();
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["3"]);
    run(&session, "SET search_path = s").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["300"]);
    run(&session, "RESET search_path").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["3"]);
    run(&session, "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v int DEFAULT 7").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["14"]);
    run(&session, "CREATE INDEX ON t (v)").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["14"]);
    // Definitions that only a transaction sees so far.
    run(&session, "BEGIN; ALTER TABLE t RENAME TO u; CREATE TABLE t (v int); INSERT INTO t VALUES (5)").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["5"]);
    run(&session, "ROLLBACK").await;
    assert_eq!(execute(&session, &sum, vec![int(0)]).await, ["14"]);
    run(&session, "DROP TABLE t").await;
    let gone = session.execute(&sum, Params::Positional(vec![int(0)]), None).await.map(|_| ()).unwrap_err();
    assert_eq!(gone.sqlstate, SqlState::UNDEFINED_TABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_do_not_exist_have_a_place() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    let cases = [
        ("SELECT id,\n  gone FROM t", SqlState::UNDEFINED_COLUMN, 14),
        ("SELECT 1; SELECT t.gone FROM t", SqlState::UNDEFINED_COLUMN, 18),
        ("SELECT id FROM t a, t b", SqlState::AMBIGUOUS_COLUMN, 8),
        ("SELECT gone(id) FROM t", SqlState::UNDEFINED_FUNCTION, 8),
        ("SELECT 'gone' FROM t JOIN gone ON true", SqlState::UNDEFINED_TABLE, 27),
        ("INSERT INTO t (id, gone) VALUES (1, 2)", SqlState::UNDEFINED_COLUMN, 20),
        ("UPDATE t SET v = 1, gone = 2", SqlState::UNDEFINED_COLUMN, 21),
        ("DELETE FROM gone", SqlState::UNDEFINED_TABLE, 13),
        ("DROP TABLE gone", SqlState::UNDEFINED_TABLE, 12),
        ("CREATE TABLE gone.t (id int)", SqlState::INVALID_SCHEMA_NAME, 14),
    ];
    for (sql, state, position) in cases {
        let error = fails(&session, sql).await;
        assert_eq!((error.sqlstate, error.position), (state, Some(position)), "{sql}: {error}");
    }
    let error = session.prepare("SELECT v, gone FROM t WHERE id = $1", PrepareOptions::default()).await.unwrap_err();
    assert_eq!(error.position, Some(11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_that_do_not_read_are_told_as_in_postgresql() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (v text, i int); INSERT INTO t VALUES ('abc', 1)").await;
    let cases = [
        ("SELECT 'abc'::int", "22P02", "invalid input syntax for type integer: \"abc\""),
        ("SELECT v::int FROM t", "22P02", "invalid input syntax for type integer: \"abc\""),
        ("SELECT v::double precision FROM t", "22P02", "invalid input syntax for type double precision: \"abc\""),
        ("SELECT 'abc'::numeric", "22P02", "invalid input syntax for type numeric: \"abc\""),
        ("SELECT 'maybe'::boolean", "22P02", "invalid input syntax for type boolean: \"maybe\""),
        ("INSERT INTO t (i) VALUES ('x')", "22P02", "invalid input syntax for type integer: \"x\""),
        ("SELECT '70000'::smallint", "22003", "value \"70000\" is out of range for type smallint"),
        ("SELECT 70000::smallint", "22003", "smallint out of range"),
    ];
    for (sql, state, message) in cases {
        let error = fails(&session, sql).await;
        assert_eq!(
            (error.sqlstate.as_str(), error.message.as_str(), error.detail.as_deref()),
            (state, message, None),
            "{sql}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_have_the_types_of_their_places() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3), (4)").await;
    let cases: [(&str, Vec<ArrayRef>, &[&str]); 3] = [
        (
            "SELECT id FROM t ORDER BY id LIMIT $1 OFFSET $2",
            vec![Arc::new(Int64Array::from(vec![2])), Arc::new(Int64Array::from(vec![1]))],
            &["2", "3"],
        ),
        ("SELECT $1 * interval '1 day' > interval '36 hours'", vec![Arc::new(Int64Array::from(vec![2]))], &["true"]),
        ("SELECT interval '3 days' / $1 = interval '1 day'", vec![Arc::new(Int32Array::from(vec![3]))], &["true"]),
    ];
    for (sql, values, expected) in cases {
        let prepared = session.prepare(sql, PrepareOptions::default()).await.expect(sql);
        let types: Vec<_> = prepared.parameters.fields().iter().map(|field| field.data_type().clone()).collect();
        assert!(types.iter().all(arrow::datatypes::DataType::is_numeric), "{sql}: {types:?}");
        assert_eq!(execute(&session, &prepared, values).await, expected, "{sql}");
    }
    let among =
        session.prepare("SELECT id FROM t WHERE id = ANY ($1) ORDER BY id", PrepareOptions::default()).await.unwrap();
    assert!(matches!(among.parameters.field(0).data_type(), arrow::datatypes::DataType::List(_)));
    let list = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>(vec![Some(vec![
        Some(2),
        Some(4),
        Some(9),
    ])]);
    assert_eq!(execute(&session, &among, vec![Arc::new(list)]).await, ["2", "4"]);
}
