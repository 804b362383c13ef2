//! Rows and values that clients bring as Arrow: bulk loads, COPY, parameters.

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array,
    LargeStringArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema};
use base::SqlState;
use common::{World, fails, rows, run, text};
use lattice_sql::{EngineOptions, Error, IfExists, IfMissing, IngestRequest, Outcome, Params, PrepareOptions, Session};

/// `?` is a parameter.
const MARKS: PrepareOptions = PrepareOptions { question_marks: true, transaction: None };

/// Loads batches of these columns into a table that is there.
async fn load(session: &Session, table: &str, batches: Vec<Vec<(&str, ArrayRef)>>) -> Result<u64, Error> {
    let batches: Vec<RecordBatch> =
        batches.into_iter().map(|columns| RecordBatch::try_from_iter(columns).unwrap()).collect();
    load_batches(session, table, batches).await
}

async fn load_batches(session: &Session, table: &str, batches: Vec<RecordBatch>) -> Result<u64, Error> {
    let request = IngestRequest {
        catalog: None,
        schema: None,
        table: table.to_owned(),
        temporary: false,
        if_missing: IfMissing::Fail,
        if_exists: IfExists::Append,
        transaction: None,
    };
    let schema = batches[0].schema();
    session.ingest(request, schema, futures::stream::iter(batches.into_iter().map(Ok))).await
}

fn ints(values: &[i32]) -> ArrayRef {
    Arc::new(Int32Array::from(values.to_vec()))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn doubles(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

/// Runs a statement with parameters; the rows it gives.
async fn with(session: &Session, sql: &str, values: Vec<ArrayRef>) -> Result<Vec<String>, Error> {
    let prepared = session.prepare(sql, MARKS).await?;
    match session.execute(&prepared, Params::Positional(values), None).await? {
        Outcome::Rows(rows) => Ok(text(&rows.collect().await?)),
        _ => Ok(Vec::new()),
    }
}

/// Runs a statement once per row.
async fn with_each(session: &Session, sql: &str, columns: Vec<(&str, ArrayRef)>) -> Result<(), Error> {
    let prepared = session.prepare(sql, MARKS).await?;
    session.execute(&prepared, Params::Batch(RecordBatch::try_from_iter(columns).unwrap()), None).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defaults_differ_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::with(EngineOptions { copy_folders: vec![folder.path().to_owned()], ..EngineOptions::default() }).await;
    let session = world.admin();
    run(
        &session,
        "CREATE SEQUENCE s START WITH 10;
         CREATE TABLE t (v int, id uuid DEFAULT gen_random_uuid(), n int PRIMARY KEY DEFAULT nextval('s'), r double precision DEFAULT random(),
                         fixed text DEFAULT 'x', at timestamptz DEFAULT now())",
    )
    .await;
    load(&session, "t", vec![vec![("v", ints(&[1, 2, 3]))], vec![("v", ints(&[4, 5]))]]).await.unwrap();
    let shape = "SELECT count(DISTINCT id), min(n), max(n), count(DISTINCT n), count(DISTINCT r) > 1, min(fixed), count(DISTINCT at) FROM t";
    assert_eq!(rows(&session, shape).await, ["5|10|14|5|true|x|1"]);
    let file = folder.path().join("v.csv");
    std::fs::write(&file, "6\n7\n8\n").unwrap();
    run(&session, &format!("COPY t (v) FROM '{}'", file.display())).await;
    assert_eq!(
        rows(&session, "SELECT count(DISTINCT id), min(n), max(n), count(DISTINCT n) FROM t").await,
        ["8|10|17|8"]
    );
    // A query and many sets of parameters, too.
    run(&session, "INSERT INTO t (v) SELECT * FROM generate_series(9, 12)").await;
    with_each(&session, "INSERT INTO t (v) VALUES (?)", vec![("1", ints(&[13, 14, 15]))]).await.unwrap();
    assert_eq!(
        rows(&session, "SELECT count(DISTINCT id), min(n), max(n), count(DISTINCT n) FROM t").await,
        ["15|10|24|15"]
    );
    assert_eq!(rows(&session, "SELECT currval('s')").await, ["24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loaded_json_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::with(EngineOptions { copy_folders: vec![folder.path().to_owned()], ..EngineOptions::default() }).await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY, plain json, binary jsonb)").await;
    let given = r#"{"b": 1,  "a": [1,2], "b": 3}"#;
    let batch = vec![("id", ints(&[1])), ("plain", texts(&[given])), ("binary", texts(&[given]))];
    load(&session, "t", vec![batch]).await.unwrap();
    // As INSERT keeps it.
    run(&session, &format!("INSERT INTO t VALUES (2, '{given}', '{given}')")).await;
    assert_eq!(
        rows(&session, "SELECT count(DISTINCT plain::text), count(DISTINCT binary::text), count(*) FROM t").await,
        ["1|1|2"]
    );
    // Other texts of Arrow, and those that say that they are JSON, are checked as well.
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["{}", "{nope"]));
    let error = load(&session, "t", vec![vec![("id", ints(&[3, 4])), ("binary", large)]]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{error}");
    assert!(error.message.contains("column \"binary\"") && error.message.contains("row 2"), "{error}");
    let metadata = HashMap::from([("ARROW:extension:name".to_owned(), "arrow.json".to_owned())]);
    let claimed = texts(&["[1]", "[2]", "[3"]);
    let fields = vec![
        Field::new("id", arrow::datatypes::DataType::Int32, false),
        Field::new("plain", arrow::datatypes::DataType::Utf8, true).with_metadata(metadata),
    ];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![ints(&[5, 6, 7]), claimed]).unwrap();
    let error = load_batches(&session, "t", vec![batch.slice(0, 2), batch.slice(2, 1)]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{error}");
    assert!(error.message.contains("column \"plain\"") && error.message.contains("row 3"), "{error}");
    let file = folder.path().join("j.csv");
    std::fs::write(&file, "8,\"{\"\"a\"\": 1}\",1\n9,{,1\n").unwrap();
    let error = fails(&session, &format!("COPY t FROM '{}'", file.display())).await;
    assert_eq!(error.sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{error}");
    assert!(error.message.contains("row 2"), "{error}");
    assert_eq!(rows(&session, "SELECT count(*) FROM t").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_convert_as_assignments_do() {
    let folder = tempfile::tempdir().unwrap();
    let world =
        World::with(EngineOptions { copy_folders: vec![folder.path().to_owned()], ..EngineOptions::default() }).await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (i int, d numeric(6,2), ts timestamp, tz timestamptz, u uuid, b bytea, s varchar(3), a int[])",
    )
    .await;
    let decimals: ArrayRef = Arc::new(Decimal128Array::from(vec![25_i128, 35]).with_precision_and_scale(6, 1).unwrap());
    let batch = vec![
        ("i", doubles(&[2.7, -3.5])),
        ("d", doubles(&[1.005, 2.0])),
        ("ts", texts(&["2024-05-01 12:00:00+02", "May 2, 2024"])),
        ("tz", texts(&["2024-05-01 12:00:00+02", "2024-05-01 12:00 Europe/Berlin"])),
        ("u", texts(&["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"])),
        ("b", texts(&["\\x6869", "hi"])),
        ("a", texts(&["{1,2}", "{}"])),
    ];
    load(&session, "t", vec![batch]).await.unwrap();
    load(&session, "t", vec![vec![("i", decimals)]]).await.unwrap();
    assert_eq!(rows(&session, "SELECT i FROM t ORDER BY i").await, ["-4", "3", "3", "4"]);
    assert_eq!(
        rows(&session, "SELECT ts::text, tz::text, u::text, b::text, a::text FROM t WHERE ts IS NOT NULL ORDER BY ts")
            .await,
        [
            "2024-05-01 12:00:00|2024-05-01 10:00:00+00|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|\\x6869|{1,2}",
            "2024-05-02 00:00:00|2024-05-01 10:00:00+00|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|\\x6869|{}",
        ]
    );
    // Too long a text is an error, not cut.
    let error = load(&session, "t", vec![vec![("s", texts(&["four"]))]]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::STRING_TOO_LONG, "{error}");
    // A boolean is no number.
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    let error = load(&session, "t", vec![vec![("i", flags)]]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DATATYPE_MISMATCH, "{error}");
    // Sixteen bytes without a name are bytes where bytes are wanted.
    let bytes: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([[7_u8; 16]].into_iter()).unwrap());
    load(&session, "t", vec![vec![("b", bytes)]]).await.unwrap();
    assert_eq!(rows(&session, "SELECT length(b) FROM t WHERE length(b) > 2").await, ["16"]);
    // A file's timestamps ignore a zone as literals do.
    run(&session, "CREATE TABLE times (ts timestamp)").await;
    let file = folder.path().join("times.csv");
    std::fs::write(&file, "2024-05-01 12:00:00+02\n").unwrap();
    run(&session, &format!("COPY times FROM '{}'", file.display())).await;
    run(&session, "INSERT INTO times VALUES ('2024-05-01 12:00:00+02')").await;
    run(&session, "INSERT INTO times SELECT '2024-05-01 12:00:00+02'::timestamp").await;
    assert_eq!(rows(&session, "SELECT DISTINCT ts::text FROM times").await, ["2024-05-01 12:00:00"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_not_cut() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (id int PRIMARY KEY, n int, d numeric(6,2), day date, f double precision);
         INSERT INTO t VALUES (1, 1, 1.00, '2024-01-01', 0), (2, 2, 2.25, '2024-01-02', 1), (3, 3, 3.00, '2024-01-03', 2)",
    )
    .await;
    let ids = |sql: &'static str, value: ArrayRef| {
        let session = &session;
        async move { with(session, sql, vec![value]).await.unwrap_or_else(|error| panic!("{sql}: {error}")) }
    };
    let none = Vec::<String>::new();
    // By key, by another column, in a range, in a list.
    assert_eq!(ids("SELECT id FROM t WHERE id = ?", doubles(&[2.5])).await, none);
    assert_eq!(ids("SELECT id FROM t WHERE id = ?", doubles(&[2.0])).await, ["2"]);
    assert_eq!(ids("SELECT id FROM t WHERE n = ?", doubles(&[2.5])).await, none);
    assert_eq!(ids("SELECT id FROM t WHERE n < ? ORDER BY id", doubles(&[2.5])).await, ["1", "2"]);
    assert_eq!(ids("SELECT id FROM t WHERE n > ?", doubles(&[2.5])).await, ["3"]);
    assert_eq!(ids("SELECT id FROM t WHERE n IN (?, 3)", doubles(&[2.5])).await, ["3"]);
    let eighth: ArrayRef = Arc::new(Decimal128Array::from(vec![2245_i128]).with_precision_and_scale(6, 3).unwrap());
    assert_eq!(ids("SELECT id FROM t WHERE d = ?", eighth).await, none);
    assert_eq!(ids("SELECT id FROM t WHERE d = ?", doubles(&[2.25])).await, ["2"]);
    let far: ArrayRef = Arc::new(Int64Array::from(vec![5_000_000_000_i64]));
    assert_eq!(ids("SELECT id FROM t WHERE n < ? ORDER BY id", far).await, ["1", "2", "3"]);
    let noon: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_704_153_600_000_000 + 43_200_000_000]));
    assert_eq!(ids("SELECT id FROM t WHERE day = ?", noon.clone()).await, none);
    assert_eq!(ids("SELECT id FROM t WHERE day < ? ORDER BY id", noon).await, ["1", "2"]);
    assert_eq!(ids("SELECT id FROM t WHERE f = ?", doubles(&[-0.0])).await, ["1"]);
    // The plan that is kept for other values stays.
    let prepared = session.prepare("SELECT count(*) FROM t WHERE n >= ?", MARKS).await.unwrap();
    for (value, expected) in [(2.0, "2"), (2.5, "1"), (2.0, "2")] {
        let Outcome::Rows(found) =
            session.execute(&prepared, Params::Positional(vec![doubles(&[value])]), None).await.unwrap()
        else {
            panic!("no rows")
        };
        assert_eq!(text(&found.collect().await.unwrap()), [expected]);
    }
    run(&session, "PREPARE by_n (int) AS SELECT id FROM t WHERE n = $1").await;
    assert_eq!(rows(&session, "EXECUTE by_n (2.5)").await, none);
    assert_eq!(rows(&session, "EXECUTE by_n (2)").await, ["2"]);
    // Nor is a result that was announced.
    assert_eq!(ids("SELECT n + ? FROM t WHERE id = 1", doubles(&[2.0])).await, ["3"]);
    let error = with(&session, "SELECT n + ? FROM t WHERE id = 1", vec![doubles(&[2.5])]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DATATYPE_MISMATCH, "{error}");
    assert_eq!(ids("SELECT n + ?::numeric(4,1) FROM t WHERE id = 1", doubles(&[2.5])).await, ["3.5"]);
    assert_eq!(ids("SELECT id FROM t ORDER BY id LIMIT ?", doubles(&[1.0])).await, ["1"]);
    assert!(with(&session, "SELECT id FROM t ORDER BY id LIMIT ?", vec![doubles(&[1.5])]).await.is_err());
    // What is assigned is rounded, as a literal is.
    with(&session, "INSERT INTO t (id, n, d) VALUES (4, ?, ?)", vec![doubles(&[2.7]), doubles(&[1.005])])
        .await
        .unwrap();
    with(&session, "UPDATE t SET n = ? WHERE id = 3", vec![doubles(&[3.7])]).await.unwrap();
    with(&session, "UPDATE t SET n = ? WHERE id < 2", vec![doubles(&[0.6])]).await.unwrap();
    with_each(&session, "INSERT INTO t (id, n) VALUES (?, ?)", vec![("1", ints(&[5, 6])), ("2", doubles(&[4.5, 5.5]))])
        .await
        .unwrap();
    with_each(
        &session,
        "UPDATE t SET n = ? WHERE id = ?",
        vec![("1", doubles(&[7.5, 8.5])), ("2", doubles(&[5.0, 6.5]))],
    )
    .await
    .unwrap();
    assert_eq!(rows(&session, "SELECT id, n FROM t ORDER BY id").await, ["1|1", "2|2", "3|4", "4|3", "5|8", "6|6"]);
    // A boolean is no number.
    let flag: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    let error = with(&session, "INSERT INTO t (id, n) VALUES (7, ?)", vec![flag.clone()]).await.unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DATATYPE_MISMATCH, "{error}");
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
    let error = with_each(&session, "INSERT INTO t (id, n) VALUES (?, ?)", vec![("1", ints(&[8, 9])), ("2", flags)])
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate, SqlState::DATATYPE_MISMATCH, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_zeros_have_no_sign() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int, f double precision, r real)").await;
    load(&session, "t", vec![vec![("id", ints(&[1])), ("f", doubles(&[-0.0])), ("r", doubles(&[-0.0]))]])
        .await
        .unwrap();
    run(&session, "INSERT INTO t VALUES (2, '-0.0', '-0'), (3, 1, 1)").await;
    run(&session, "UPDATE t SET f = 0.0::float8 * (-1), r = 0.0::real * (-1) WHERE id = 3").await;
    with_each(&session, "INSERT INTO t VALUES (?, ?, 0)", vec![("1", ints(&[4, 5])), ("2", doubles(&[-0.0, 0.0]))])
        .await
        .unwrap();
    assert_eq!(rows(&session, "SELECT count(*) FROM t WHERE f = 0.0 AND r = 0.0").await, ["5"]);
    assert_eq!(rows(&session, "SELECT count(DISTINCT f), count(DISTINCT r) FROM t").await, ["1|1"]);
    assert_eq!(rows(&session, "SELECT count(*) FROM t AS a JOIN t AS b ON a.f = b.f").await, ["25"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_parameters() {
    let world = World::new().await;
    let session = world.admin();
    run(&session, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3), (4)").await;
    let page = "SELECT id FROM t ORDER BY id LIMIT ? OFFSET ?";
    let prepared = session.prepare(page, MARKS).await.unwrap();
    let types: Vec<String> = prepared.parameters.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Int64", "Int64"]);
    assert_eq!(with(&session, page, vec![ints(&[2]), ints(&[1])]).await.unwrap(), ["2", "3"]);
    let inner =
        "SELECT count(*) FROM (SELECT id FROM t LIMIT ?) AS part WHERE id IN (SELECT id FROM t ORDER BY id OFFSET ?)";
    assert_eq!(with(&session, inner, vec![ints(&[4]), ints(&[3])]).await.unwrap(), ["1"]);
    assert_eq!(
        with(&session, "SELECT id FROM t WHERE id > ? ORDER BY id LIMIT ?", vec![ints(&[1]), ints(&[1])])
            .await
            .unwrap(),
        ["2"]
    );
    assert!(with(&session, page, vec![ints(&[-1]), ints(&[0])]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_parameters_are_checked() {
    let world = World::new().await;
    let session = world.admin();
    run(
        &session,
        "CREATE TABLE t (id int PRIMARY KEY, plain json, binary jsonb); INSERT INTO t VALUES (1, '{}', '{}')",
    )
    .await;
    for sql in [
        "INSERT INTO t (id, plain) VALUES (2, ?)",
        "INSERT INTO t (id, binary) VALUES (2, ?)",
        "INSERT INTO t (id, plain) SELECT 2, ?",
        "INSERT INTO t (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET plain = ?",
        "INSERT INTO t (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET binary = ?",
        "UPDATE t SET plain = ? WHERE id = 1",
        "UPDATE t SET plain = ? WHERE id < 2",
        "UPDATE t SET binary = ? WHERE id < 2",
        "MERGE INTO t USING (SELECT 1 AS id) AS s ON t.id = s.id WHEN MATCHED THEN UPDATE SET plain = ?",
        "MERGE INTO t USING (SELECT 2 AS id) AS s ON t.id = s.id WHEN NOT MATCHED THEN INSERT (id, plain) VALUES (2, ?)",
        "SELECT ?::json",
        "SELECT ?::jsonb",
    ] {
        let error = with(&session, sql, vec![texts(&["{nope"])]).await.map(|_| ()).expect_err(sql);
        assert_eq!(error.sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{sql}: {error}");
        let error = with_each(&session, sql, vec![("1", texts(&["{nope", "{}"]))]).await.expect_err(sql);
        let expected = if sql.starts_with("SELECT") {
            SqlState::FEATURE_NOT_SUPPORTED
        } else {
            SqlState::INVALID_TEXT_REPRESENTATION
        };
        assert_eq!(error.sqlstate, expected, "{sql}: {error}");
    }
    assert_eq!(rows(&session, "SELECT id, plain::text, binary::text FROM t").await, ["1|{}|{}"]);
}
