//! Golden and hostile statements.

use std::time::{Duration, Instant};

use base::SqlState;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser as Stock;

use super::modifiers::{Bound, Period};
use super::statement::*;
use super::*;

fn parse(text: &str) -> StatementAst {
    match parse_one(text, ParseOptions::default()) {
        Ok(statement) => statement.kind,
        Err(error) => panic!("{text}: {error} (at {:?}, hint {:?})", error.position, error.hint),
    }
}

fn fails(text: &str) -> Error {
    match parse_script(text, ParseOptions::default()) {
        Ok(statements) => panic!("{text} parsed as {statements:?}"),
        Err(error) => error,
    }
}

/// The query as sqlparser prints it (fine where no table has modifiers).
fn printed(text: &str) -> String {
    match parse(text) {
        StatementAst::Query(query) => query.to_string(),
        other => panic!("{text} is {other:?}"),
    }
}

/// The modifiers of the first table of a query.
fn modifiers(text: &str) -> TableModifiers {
    let StatementAst::Query(query) = parse(text) else { panic!("{text} is no query") };
    let select = query.body.as_select().expect("a select");
    TableModifiers::of(&select.from[0].relation).expect("modifiers")
}

fn as_of(expr: &str) -> TimeRange {
    TimeRange::AsOf(parse_expr(expr).expect("an expression"))
}

#[test]
fn the_specification_parses() {
    // Statement, what it must become. The specification's slips are corrected as the decisions say.
    let statements: &[(&str, &str)] = &[
        (
            "CREATE TABLE ledger (
               acct_id     UUID PRIMARY KEY,
               balance     DECIMAL(18,2) MERGE sum_bounded(0, 1e12),
               tags        SET<TEXT>      MERGE gset,
               note        TEXT           MERGE lww,
               _valid_from TIMESTAMPTZ,
               _valid_to   TIMESTAMPTZ
             ) WITH (merge = 'mrt', retention = INTERVAL '365 days')",
            "a MERGE type on a column",
        ),
        ("SELECT * FROM ledger FOR SYSTEM_TIME AS OF '2025-08-01T12:00:00Z'", "SELECT"),
        ("UPDATE ledger VALID PERIOD ['2025-07-01','2025-07-31') SET balance = balance + 100 WHERE acct_id = '...'", "UPDATE"),
        (
            "CREATE POLICY ssn_mask ON people AS COLUMN (ssn)
             USING MASK WITH (expr => 'CASE WHEN has_role(''auditor'') THEN ssn ELSE sha2(ssn) END')",
            "CREATE POLICY",
        ),
        ("CREATE POLICY dp_count_sales ON sales AS DP USING (epsilon => 0.5, sensitivity => 1)", "CREATE POLICY"),
        ("SELECT p.*, lineage(p) FROM people p WHERE p.country = 'US'", "SELECT"),
        (
            "CREATE TABLE items(id UUID PRIMARY KEY, title TEXT, embedding VECTOR<FLOAT,768> INDEX HNSW (M=32, ef_search=64))",
            "INDEX on a column",
        ),
        (
            "SELECT o.id, i.title FROM orders o JOIN ANN items i ON distance(o.query_vec, i.embedding) < 0.25 WHERE o.status = 'open'",
            "SELECT",
        ),
        (
            "CREATE MATERIALIZED VIEW top_skus_5m WITH (refresh = 'continuous', window = INTERVAL '5 minutes')
             AS SELECT sku, count(*) AS c FROM STREAM OF sales GROUP BY TUMBLE(ts, INTERVAL '5 minutes'), sku ORDER BY c DESC LIMIT 100",
            "CREATE MATERIALIZED VIEW",
        ),
        ("INSERT INTO inv_mrt(acct_id, balance, tags) VALUES ($1, +50, {'promo'})", "INSERT"),
        ("CALL lattice.sync('region-eu','region-us')", "CALL"),
        ("APPLY POLICY dp_count_sales ON (SELECT COUNT(*) FROM sales WHERE region='NA')", "APPLY POLICY"),
        ("SELECT * FROM orders FOR SYSTEM_TIME AS OF '2025-08-10T13:37:00Z' WHERE id=42", "SELECT"),
        ("SELECT lineage_explain(orders, 42, '2025-08-10T13:37:00Z')", "SELECT"),
        (
            "CREATE MATERIALIZED VIEW revenue_daily WITH (refresh='continuous', watermark = INTERVAL '1 minute')
             AS SELECT DATE_TRUNC('day', ts) d, SUM(amount) amt FROM STREAM OF payments GROUP BY d",
            "CREATE MATERIALIZED VIEW",
        ),
        ("CALL mv.backfill('revenue_daily', source => 'payments_archive', from => '2025-01-01')", "CALL"),
        ("CREATE TABLE people (id UUID PRIMARY KEY, name TEXT, ssn TEXT, profile_vec VECTOR<FLOAT,768> INDEX HNSW)", "INDEX on a column"),
        ("CREATE POLICY rls_us_only ON people AS ROW USING (country = 'US')", "CREATE POLICY"),
        ("CREATE POLICY dp_people_count ON people AS DP USING (epsilon => 1.0)", "CREATE POLICY"),
        (
            "CREATE MERGE RESOLVER rev_note LANGUAGE wasm AS 'wasm://org.example.merges/resolve_rev_note@1.0'",
            "CREATE MERGE RESOLVER",
        ),
        ("ALTER TABLE tickets ALTER COLUMN note SET MERGE USING rev_note", "ALTER TABLE"),
        ("BEGIN DETERMINISTIC GROUP 'hot-accounts'", "BEGIN DETERMINISTIC GROUP"),
        ("UPDATE ledger SET balance = balance - 10 WHERE acct_id='A'", "UPDATE"),
        ("UPDATE ledger SET balance = balance + 10 WHERE acct_id='B'", "UPDATE"),
        ("COMMIT", "COMMIT"),
    ];
    assert_eq!(statements.len(), 25);
    for (text, name) in statements {
        assert_eq!(parse(text).name(), *name, "{text}");
    }
}

#[test]
fn variants_of_the_specification_parse() {
    let statements: &[(&str, &str)] = &[
        ("CREATE TABLE t (a int, PERIOD FOR valid_time (_valid_from, _valid_to), b int)", "PERIOD FOR"),
        ("CREATE TABLE t (a int) WITH SYSTEM VERSIONING", "WITH SYSTEM VERSIONING"),
        (
            "CREATE TYPE v2 OF customer (id int PRIMARY KEY, email text) WITH (compatibility = 'backward')",
            "CREATE TYPE … OF",
        ),
        ("CREATE RESOURCE GROUP oltp WITH (cpu = 0.5, memory = '4 GiB')", "CREATE RESOURCE GROUP"),
        ("CREATE POLICY p ON t AS PERMISSIVE FOR SELECT TO app USING (a = 1)", "CREATE POLICY"),
        ("DROP POLICY IF EXISTS p ON t", "DROP POLICY"),
        ("REFRESH MATERIALIZED VIEW v", "REFRESH MATERIALIZED VIEW"),
        ("ALTER MATERIALIZED VIEW v SET (refresh = 'manual')", "ALTER MATERIALIZED VIEW"),
        ("DROP MATERIALIZED VIEW v CASCADE", "DROP MATERIALIZED VIEW"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT CHANGES", "CREATE MATERIALIZED VIEW"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1 EMIT ON WINDOW CLOSE", "CREATE MATERIALIZED VIEW"),
        ("SELECT * FROM t READ AT MOST 150ms STALE", "READ AT MOST … STALE"),
        ("ERASE FROM people WHERE id = 7", "ERASE"),
        ("DELETE FROM t FOR PORTION OF VALID_TIME FROM DATE '2020-01-01' TO DATE '2021-01-01' WHERE a = 1", "DELETE"),
        ("DELETE FROM t FOR ALL VALID_TIME WHERE a = 1", "DELETE"),
        ("SELECT '[1,2]'::vector <-> '[1,3]'::vector", "SELECT"),
        ("SELECT * FROM items ORDER BY embedding <=> $1 LIMIT 3", "SELECT"),
    ];
    for (text, name) in statements {
        assert_eq!(parse(text).name(), *name, "{text}");
    }
}

#[test]
fn time_clauses_become_the_carrier() {
    let plain = TableModifiers::default();
    let cases = [
        ("FOR SYSTEM_TIME AS OF '2020-01-01'", TableModifiers { system: Some(as_of("'2020-01-01'")), ..plain.clone() }),
        (
            "FOR SYSTEM_TIME AS OF now() - INTERVAL '1 hour'",
            TableModifiers { system: Some(as_of("now() - INTERVAL '1 hour'")), ..plain.clone() },
        ),
        ("FOR SYSTEM_TIME AS OF $1", TableModifiers { system: Some(as_of("$1")), ..plain.clone() }),
        ("TIMESTAMP AS OF '2020-01-01'", TableModifiers { system: Some(as_of("'2020-01-01'")), ..plain.clone() }),
        ("AS OF SYSTEM TIME '2020-01-01'", TableModifiers { system: Some(as_of("'2020-01-01'")), ..plain.clone() }),
        ("AS OF TX 12", TableModifiers { system: Some(as_of("12")), ..plain.clone() }),
        ("AS OF VALID TIME '2020-01-01'", TableModifiers { valid: Some(as_of("'2020-01-01'")), ..plain.clone() }),
        ("FOR VALID_TIME AS OF '2020-01-01'", TableModifiers { valid: Some(as_of("'2020-01-01'")), ..plain.clone() }),
        ("FOR SYSTEM_TIME ALL", TableModifiers { system: Some(TimeRange::All), ..plain.clone() }),
        ("FOR ALL SYSTEM_TIME", TableModifiers { system: Some(TimeRange::All), ..plain.clone() }),
        ("FOR ALL VALID_TIME", TableModifiers { valid: Some(TimeRange::All), ..plain.clone() }),
        ("VERSION AS OF 7", TableModifiers { version: Some(parse_expr("7").unwrap()), ..plain.clone() }),
        (
            "FOR SYSTEM_TIME AS OF 'a' FOR VALID_TIME AS OF 'b'",
            TableModifiers { system: Some(as_of("'a'")), valid: Some(as_of("'b'")), ..plain.clone() },
        ),
        (
            "FOR VALID_TIME FROM x TO y FOR SYSTEM_TIME AS OF z",
            TableModifiers {
                system: Some(as_of("z")),
                valid: Some(TimeRange::Period(Period {
                    from: Bound { at: parse_expr("x").unwrap(), inclusive: true },
                    to: Bound { at: parse_expr("y").unwrap(), inclusive: false },
                })),
                ..plain.clone()
            },
        ),
        (
            "FOR SYSTEM_TIME BETWEEN 1 AND 2",
            TableModifiers {
                system: Some(TimeRange::Period(Period {
                    from: Bound { at: parse_expr("1").unwrap(), inclusive: true },
                    to: Bound { at: parse_expr("2").unwrap(), inclusive: true },
                })),
                ..plain.clone()
            },
        ),
    ];
    for (clause, expected) in cases {
        for alias in ["", " o", " AS o"] {
            for tail in ["", " WHERE a = 1", " JOIN u USING (a)", " ORDER BY 1", ", u v"] {
                let text = format!("SELECT * FROM s.orders {clause}{alias}{tail}");
                assert_eq!(modifiers(&text), expected, "{text}");
            }
        }
    }
    assert!(modifiers("SELECT * FROM STREAM OF sales s").stream);
    assert_eq!(modifiers("SELECT * FROM orders"), TableModifiers::default());
}

#[test]
fn clauses_nest() {
    let modifiers = modifiers(
        "SELECT * FROM t FOR SYSTEM_TIME AS OF (SELECT max(ts) FROM u FOR SYSTEM_TIME AS OF '2020-01-01' WHERE u.a > 1) x WHERE x.a = 1",
    );
    let Some(TimeRange::AsOf(expr)) = modifiers.system else { panic!("no AS OF") };
    assert!(expr.to_string().contains("system_at => '2020-01-01'"), "{expr}");
    // Two tables, each with its own clause, in a join.
    let text = "SELECT * FROM a FOR SYSTEM_TIME AS OF 1 x JOIN b FOR VALID_TIME AS OF 2 y ON x.i = y.i";
    let StatementAst::Query(query) = parse(text) else { panic!("no query") };
    let join = &query.body.as_select().expect("a select").from[0].joins[0];
    assert_eq!(TableModifiers::of(&join.relation).unwrap().valid, Some(as_of("2")));
    // A clause in a table that is changed.
    let StatementAst::Update(update) = parse("UPDATE t VALID PERIOD ('a', 'b'] SET x = 1") else { panic!("no update") };
    let portion = TableModifiers::of(&update.table).unwrap().portion.expect("a portion");
    assert!(!portion.from.inclusive && portion.to.inclusive);
}

#[test]
fn a_clause_after_the_alias_is_explained() {
    for text in
        ["SELECT * FROM orders o FOR SYSTEM_TIME AS OF 'x'", "SELECT * FROM orders AS o FOR SYSTEM_TIME AS OF 'x'"]
    {
        let error = fails(text);
        assert!(error.message.contains("after the table's alias"), "{error}");
        assert!(error.hint.is_some());
        assert_eq!(error.position, Some(text.find("FOR").unwrap() + 1));
    }
    assert!(fails("SELECT * FROM (SELECT 1) FOR SYSTEM_TIME AS OF 'x'").message.contains("must follow a table's name"));
    assert!(fails("SELECT * FROM t FOR SYSTEM_TIME FROM 1").message.contains("expected TO"));
    assert!(fails("SELECT * FROM t FOR SYSTEM_TIME SINCE 1").message.contains("expected AS OF, FROM, BETWEEN or ALL"));
    assert!(fails("SELECT * FROM t FOR SYSTEM_TIME AS OF 1 FOR SYSTEM_TIME AS OF 2").message.contains("given twice"));
}

#[test]
fn other_tokens_are_left_alone() {
    for text in [
        "SELECT set, vector, table_name, period, stream, ann, of FROM t",
        "SELECT vector < 3 FROM t",
        "SELECT a FROM t AS ann",
        "SELECT * FROM t JOIN ann ON t.a = ann.a",
        "SELECT x::timestamp AS of FROM t",
    ] {
        parse(text);
    }
    // Without the words above nothing is rewritten at all.
    assert_eq!(printed("SELECT a, b FROM t WHERE c = 1"), "SELECT a, b FROM t WHERE c = 1");
}

#[test]
fn the_dialect_agrees_with_postgresql() {
    let corpus = [
        "SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b DESC NULLS LAST",
        "SELECT a::int, CAST(b AS numeric(10, 2)), c::text[] FROM t",
        "SELECT E'a\\nb', $tag$it's$tag$, U&'\\0061', 1_000, 1e10, .5",
        "SELECT j -> 'a' ->> 'b', j #> '{a,b}', j #>> '{a}', j @> '{}', j ? 'a', j ?| ARRAY['a'], a && b, a <@ b",
        "SELECT a ~ 'x', a ~* 'x', a !~ 'x', a !~* 'x', a ~~ 'x', a ILIKE 'x', a SIMILAR TO 'x'",
        "SELECT count(*) FILTER (WHERE a > 1), sum(x) OVER (PARTITION BY a ORDER BY b ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t",
        "SELECT a FROM t GROUP BY GROUPING SETS ((a), (b), ())",
        "SELECT * FROM a LEFT JOIN b USING (id), LATERAL (SELECT * FROM c WHERE c.id = a.id) x",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
        "SELECT CASE WHEN a THEN 1 ELSE 2 END, CASE a WHEN 1 THEN 'x' END FROM t",
        "SELECT extract(year FROM d), substring(s FROM 2 FOR 3), trim(BOTH 'x' FROM s), position('a' IN s), overlay(s PLACING 'x' FROM 2)",
        "SELECT a[1], a[2:3], ARRAY[1, 2], ARRAY[[1], [2]] FROM t",
        "SELECT INTERVAL '1 day', DATE '2020-01-01', TIMESTAMP WITH TIME ZONE '2020-01-01'",
        "SELECT a IS DISTINCT FROM b, a BETWEEN SYMMETRIC 1 AND 2 FROM t",
        "SELECT * FROM t WHERE a = ANY(ARRAY[1]) AND b > ALL(SELECT 1) AND EXISTS (SELECT 1)",
        "INSERT INTO t (a, b) VALUES (1, DEFAULT) ON CONFLICT (a) DO UPDATE SET b = excluded.b WHERE t.b < 3 RETURNING *",
        "UPDATE t SET a = 1, (b, c) = (2, 3) FROM u WHERE t.id = u.id RETURNING t.a",
        "DELETE FROM t USING u WHERE t.id = u.id RETURNING *",
        "CREATE TABLE t (a int, b text COLLATE \"C\" NOT NULL DEFAULT 'x', CHECK (a > 0), UNIQUE (a, b))",
        "CREATE UNIQUE INDEX i ON t USING btree (a DESC, lower(b)) INCLUDE (c) WHERE a > 0",
        "ALTER TABLE t ADD COLUMN c int, DROP COLUMN IF EXISTS d CASCADE, ALTER COLUMN a TYPE bigint USING a::bigint",
        "SELECT 2 ^ 3, 5 % 2, 1 << 2, 7 & 3, 7 | 8, 5 # 3, ~ 1, a || b, -a FROM t",
    ];
    for text in corpus {
        let stock = Stock::parse_sql(&PostgreSqlDialect {}, text);
        let dialect = LatticeDialect::for_tokens(1000);
        let ours = Stock::parse_sql(&dialect, text);
        assert_eq!(ours, stock, "{text}");
    }
}

#[test]
fn scripts_are_cut_at_semicolons() {
    let text = "-- first\n;; SELECT 'a;b' ; /* between ; */ INSERT INTO t VALUES (1);\n\n  COMMIT -- end";
    let statements = parse_script(text, ParseOptions::default()).expect("a script");
    let texts: Vec<&str> = statements.iter().map(|statement| &*statement.text).collect();
    assert_eq!(texts, ["SELECT 'a;b'", "INSERT INTO t VALUES (1)", "COMMIT"]);
    for statement in &statements {
        let byte = text.char_indices().nth(statement.position - 1).expect("a place").0;
        assert!(text[byte..].starts_with(&*statement.text));
    }
    assert!(parse_script(" -- nothing\n ; ; ", ParseOptions::default()).expect("nothing").is_empty());
    assert!(parse_one("SELECT 1; SELECT 2", ParseOptions::default()).is_err());
}

#[test]
fn errors_say_where() {
    let cases = [
        ("SELECT 1 +", 11),
        ("SELEC 1", 1),
        ("SELECT 'é' FRM t x y", 16),
        ("SELECT 1;\n SELECT * FROM t WHERE", 33),
        ("SELECT 'abc", 8),
        ("SELECT * FROM t FOR UPDATE", 1),
    ];
    for (text, position) in cases {
        let error = fails(text);
        assert_eq!(error.position, Some(position), "{text}: {error}");
    }
    assert_eq!(fails("SELEC 1").hint.as_deref(), Some("did you mean SELECT?"));
    assert_eq!(fails("SELECT 1 +").sqlstate, SqlState::SYNTAX_ERROR);
}

#[test]
fn question_marks_become_numbers() {
    let options = ParseOptions { question_marks: true };
    let statement = parse_one("SELECT * FROM t WHERE a>? AND b=? AND c-?>=?", options).expect("a statement");
    assert_eq!(statement.parameters, 4);
    let StatementAst::Query(query) = statement.kind else { panic!("no query") };
    assert_eq!(query.to_string(), "SELECT * FROM t WHERE a > $1 AND b = $2 AND c - $3 >= $4");
    // A question mark in a string or a comment is none.
    let statement = parse_one("SELECT '?', ? -- ?", options).expect("a statement");
    assert_eq!(statement.parameters, 1);
    let StatementAst::Query(query) =
        parse_one("SELECT a ?? 'k' AS x, b ??| c AS y FROM t", options).expect("a statement").kind
    else {
        panic!("no query")
    };
    assert_eq!(query.to_string(), "SELECT a ? 'k' AS x, b ?| c AS y FROM t");
    assert_eq!(parse_one("SELECT $2", ParseOptions::default()).unwrap().parameters, 2);
    assert!(parse_one("SELECT $0", ParseOptions::default()).is_err());
    assert!(parse_one("SELECT ?, $2", options).is_err());
}

#[test]
fn rewrites() {
    let cases = [
        ("SELECT a FROM t FETCH FIRST 3 ROWS ONLY", "SELECT a FROM t LIMIT 3"),
        ("SELECT a FROM t OFFSET 2 FETCH NEXT ROW ONLY", "SELECT a FROM t LIMIT 1 OFFSET 2"),
        ("TABLE t", "SELECT * FROM t"),
        ("SELECT a FROM u UNION ALL TABLE t", "SELECT a FROM u UNION ALL SELECT * FROM t"),
        ("SELECT ts AT TIME ZONE 'UTC' AS x FROM t", "SELECT timezone('UTC', ts) AS x FROM t"),
        ("SELECT (a, b) = (1, 2) AS x FROM t", "SELECT (a = 1 AND b = 2) AS x FROM t"),
        ("SELECT a FROM t WHERE (a, b) >= (1, 2)", "SELECT a FROM t WHERE (a > 1 OR (a = 1 AND (b >= 2)))"),
        (
            "SELECT a FROM t WHERE (a, b) IN ((1, 2), (3, 4))",
            "SELECT a FROM t WHERE ((a = 1 AND b = 2) OR (a = 3 AND b = 4))",
        ),
        ("SELECT pg_catalog.lower(a) OPERATOR(pg_catalog.~) 'x' AS x FROM t", "SELECT lower(a) ~ 'x' AS x FROM t"),
        ("SELECT b FROM t ORDER BY a COLLATE \"C\"", "SELECT b FROM t ORDER BY a"),
        ("SELECT generate_series(1, 3)", "SELECT unnest(generate_series(1, 3)) AS \"generate_series\""),
        ("SELECT * FROM generate_series(1, 3) AS g", "SELECT * FROM generate_series(1, 3) AS g (g)"),
        (
            "SELECT * FROM generate_series(1, 3)",
            "SELECT * FROM generate_series(1, 3) AS generate_series (generate_series)",
        ),
        ("SELECT * FROM unnest(ARRAY[1]) AS u(x)", "SELECT * FROM UNNEST(ARRAY[1]) AS u (x)"),
        (
            "SELECT * FROM unnest(ARRAY[1]) WITH ORDINALITY AS u(x, n)",
            "SELECT * FROM (SELECT *, row_number() OVER () AS ordinality FROM UNNEST(ARRAY[1]) AS u (x)) AS u (x, n)",
        ),
        (
            "SELECT ARRAY(SELECT a FROM t ORDER BY a DESC) AS x",
            "SELECT array_or_empty((SELECT array_agg(_rows._value ORDER BY _rows._value DESC) FROM (SELECT a FROM t) AS _rows (_value))) AS x",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(printed(text), expected, "{text}");
    }
}

#[test]
fn columns_are_named_as_in_postgresql() {
    let names = |text: &str| {
        let StatementAst::Query(query) = parse(text) else { panic!("{text} is no query") };
        let items = &query.body.as_select().expect("a select").projection;
        let names: Vec<String> = items
            .iter()
            .map(|item| match item {
                sqlparser::ast::SelectItem::ExprWithAlias { alias, .. } => shown_name(&alias.value).to_owned(),
                other => other.to_string(),
            })
            .collect();
        // What the planner sees differs.
        let mut inner: Vec<String> = items.iter().map(ToString::to_string).collect();
        inner.sort();
        inner.dedup();
        assert_eq!(inner.len(), items.len(), "{text}");
        names.join(" ")
    };
    let cases = [
        ("SELECT 1, 2, 'x', $1, a + b FROM t", "?column? ?column? ?column? ?column? ?column?"),
        ("SELECT a, t.b, count(*), pg_catalog.lower(a), max(a) AS m FROM t", "a t.b count lower m"),
        ("SELECT count(*), count(a), count FROM t", "count count count"),
        ("SELECT a, a, t.a, b.a FROM t", "a a a a"),
        ("SELECT *, a, count(*) OVER () FROM t", "* a count"),
        (
            "SELECT a::int, 1::int, '1'::text, a::text || 'x', lower(a)::text, now() FROM t",
            "a int4 text ?column? lower now",
        ),
        (
            "SELECT CASE WHEN a THEN 1 END, CASE WHEN a THEN 1 ELSE b END, coalesce(a, 1), nullif(a, 1), greatest(a, b) FROM t",
            "case b coalesce nullif greatest",
        ),
        (
            "SELECT extract(year FROM a), substring(a FROM 2), trim(a), position('x' IN a), a AT TIME ZONE 'UTC' FROM t",
            "extract substring btrim position timezone",
        ),
        (
            "SELECT EXISTS (SELECT 1), (SELECT max(a) FROM t), ARRAY[1], ARRAY(SELECT 1), true, DATE '2024-01-01', INTERVAL '1 day'",
            "exists max array array bool date interval",
        ),
        ("SELECT current_date, generate_series(1, 2), arr[1], (a) FROM t", "current_date generate_series arr a"),
    ];
    for (text, expected) in cases {
        assert_eq!(names(text), expected, "{text}");
    }
}

#[test]
fn every_ignored_clause_is_refused() {
    // Statement, words that the message must contain.
    let cases = [
        ("SELECT * FROM t FOR UPDATE", "FOR UPDATE"),
        ("SELECT * FROM t FOR SHARE SKIP LOCKED", "FOR SHARE"),
        ("SELECT * FROM t TABLESAMPLE SYSTEM (10)", "TABLESAMPLE"),
        ("SELECT * INTO u FROM t", "SELECT INTO"),
        ("SELECT * FROM t FETCH FIRST 3 ROWS WITH TIES", "WITH TIES"),
        ("SELECT * FROM t FETCH FIRST 3 PERCENT ROWS ONLY", "PERCENT"),
        ("SELECT * FROM t ORDER BY 1 LIMIT 1 FETCH FIRST 2 ROWS ONLY", "FETCH together with LIMIT"),
        ("WITH a AS MATERIALIZED (SELECT 1) SELECT * FROM a", "AS MATERIALIZED"),
        ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", "writes inside WITH"),
        ("SELECT a FROM t GROUP BY a WITH ROLLUP", ""),
        ("SELECT * FROM t ORDER BY ALL", ""),
        ("SELECT rank() OVER (w ORDER BY a) FROM t WINDOW w AS (PARTITION BY b)", "a window that extends another"),
        ("SELECT f(SELECT 1)", ""),
        ("SELECT a ILIKE ANY (ARRAY['x']) FROM t", "ILIKE ANY"),
        ("SELECT a COLLATE \"de_DE\" FROM t", "COLLATE"),
        ("SELECT a IS NORMALIZED FROM t", "IS NORMALIZED"),
        ("SELECT vector '[1]'", "is not a name"),
        ("SELECT * FROM a NATURAL CROSS JOIN b", ""),
        ("SELECT * FROM a LEFT SEMI JOIN b ON a.i = b.i", ""),
        ("SELECT * FROM t AT(moon => 1)", "moon"),
        ("SELECT * FROM ONLY t", "ONLY is a reserved word"),
        ("SELECT * FROM WHERE", "WHERE is a reserved word"),
        ("SELECT a FROM order", "ORDER is a reserved word"),
        ("CREATE TABLE t (user_id int, group int)", "GROUP is a reserved word"),
        ("SELECT a, count(*) FROM t GROUP BY ALL", "GROUP BY ALL"),
        ("INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 1", "ON CONFLICT DO UPDATE"),
        ("INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = 1", "ON DUPLICATE KEY UPDATE"),
        ("INSERT OVERWRITE t VALUES (1)", ""),
        ("UPDATE t SET a = 1 LIMIT 3", "LIMIT in UPDATE"),
        ("UPDATE t JOIN u ON t.a = u.a SET a = 1", "a join as the target"),
        ("UPDATE t SET (a, b) = (SELECT 1, 2)", "a subquery to several columns"),
        ("DELETE FROM t LIMIT 3", "LIMIT in DELETE"),
        ("DELETE FROM t ORDER BY a", "ORDER BY in DELETE"),
        ("DELETE FROM t, u WHERE 1 = 1", "several tables"),
        ("CREATE OR REPLACE TABLE t (a int)", "CREATE OR REPLACE TABLE"),
        ("CREATE UNLOGGED TABLE t (a int)", "CREATE UNLOGGED"),
        ("CREATE TABLE t (a int) INHERITS (u)", "INHERITS"),
        ("CREATE TABLE t (a int) PARTITION BY RANGE (a)", "partitions"),
        ("CREATE TABLE t PARTITION OF u FOR VALUES IN (1)", "partitions"),
        ("CREATE TABLE t (a int REFERENCES u DEFERRABLE)", "DEFERRABLE"),
        ("CREATE TABLE t (a int UNIQUE INITIALLY DEFERRED)", "INITIALLY DEFERRED"),
        ("CREATE TABLE t (a int CHECK (a > 0) NOT ENFORCED)", "NOT ENFORCED"),
        ("CREATE TABLE t (a int, FOREIGN KEY (a) REFERENCES u (b) MATCH FULL)", "MATCH FULL"),
        ("CREATE TABLE t (a text COLLATE \"de_DE\")", "COLLATE"),
        ("CREATE TABLE t (a int COMMENT 'x')", "COMMENT on a column"),
        ("CREATE TABLE t (a int) ON COMMIT DROP", "temporary"),
        ("CREATE VIEW v WITH (security_barrier = true) AS SELECT 1", "WITH (…) on a view"),
        ("CREATE VIEW v AS SELECT 1 WITH CHECK OPTION", "CHECK OPTION"),
        ("CREATE INDEX i ON t (a text_pattern_ops)", "operator class"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE FUNCTION"),
        ("CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()", "CREATE TRIGGER"),
        ("CREATE EXTENSION x", "CREATE EXTENSION"),
        ("CREATE ROLE x", "CREATE ROLE"),
        ("CREATE TYPE mood AS ENUM ('a')", "CREATE TYPE"),
        ("ALTER TABLE t ADD SYSTEM VERSIONING", "SYSTEM VERSIONING"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "ROW LEVEL SECURITY"),
        ("ALTER TABLE ONLY t ADD COLUMN a int", "ALTER TABLE ONLY"),
        ("TRUNCATE ONLY t", "ONLY"),
        ("COPY t FROM PROGRAM 'x'", "PROGRAM"),
        ("COPY t FROM STDIN WHERE a > 1", "WHERE"),
        ("EXPLAIN (WAL) SELECT 1", "WAL"),
        ("GRANT SELECT ON t TO u", "GRANT"),
        ("LISTEN x", "LISTEN"),
        ("DECLARE c CURSOR FOR SELECT 1", "DECLARE"),
        ("LOCK TABLE t", "LOCK"),
        ("SET ROLE x", "role"),
        ("SET TRANSACTION SNAPSHOT 'x'", "SNAPSHOT"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("COMMIT PREPARED 'x'", "PREPARED"),
        ("SELECT 1 READ AT MOST 3 STALE", "expected ms"),
        ("SELECT 1 OVERRIDING SYSTEM VALUE", "OVERRIDING"),
    ];
    for (text, words) in cases {
        let error = fails(text);
        assert!(error.message.contains(words), "{text}: {error}");
        assert!(
            matches!(
                error.sqlstate,
                SqlState::FEATURE_NOT_SUPPORTED | SqlState::SYNTAX_ERROR | SqlState::INVALID_TABLE_DEFINITION
            ),
            "{text}: {}",
            error.sqlstate
        );
    }
}

#[test]
fn rows_are_changed() {
    let StatementAst::Insert(insert) = parse(
        "WITH n AS (SELECT 1 AS a) INSERT INTO s.t AS x (a, b) OVERRIDING SYSTEM VALUE SELECT a, 2 FROM n \
         ON CONFLICT (a) DO UPDATE SET b = excluded.b, (c, d) = (1, DEFAULT) WHERE x.b < 3 RETURNING a, b AS c",
    ) else {
        panic!("no insert")
    };
    assert!(insert.with.is_some());
    assert_eq!(name_parts(&insert.table), ["s", "t"]);
    assert_eq!(insert.alias.as_ref().map(fold).as_deref(), Some("x"));
    assert_eq!(insert.overriding, Some(Overriding::System));
    assert_eq!(insert.returning.len(), 2);
    let Some(OnConflict {
        target: Some(ConflictTarget::Columns(columns)),
        action: ConflictAction::Update { assignments, selection },
    }) = insert.on_conflict
    else {
        panic!("no conflict clause")
    };
    assert_eq!(columns.len(), 1);
    assert_eq!(assignments.len(), 3);
    assert!(is_default(&assignments[2].value));
    assert!(selection.is_some());

    let StatementAst::Insert(insert) = parse("INSERT INTO t DEFAULT VALUES") else { panic!("no insert") };
    assert_eq!(insert.source, InsertSource::DefaultValues);
    let StatementAst::Insert(insert) =
        parse("INSERT INTO t VALUES (1, DEFAULT) ON CONFLICT ON CONSTRAINT k DO NOTHING")
    else {
        panic!("no insert")
    };
    assert!(matches!(
        insert.on_conflict,
        Some(OnConflict { target: Some(ConflictTarget::Constraint(_)), action: ConflictAction::Nothing })
    ));

    let StatementAst::Update(update) =
        parse("UPDATE t AS x SET a = DEFAULT, (b) = (2) FROM u, v WHERE x.i = u.i RETURNING *")
    else {
        panic!("no update")
    };
    assert_eq!((update.assignments.len(), update.from.len(), update.returning.len()), (2, 2, 1));
    let StatementAst::Delete(delete) =
        parse("WITH x AS (SELECT 1) DELETE FROM t USING u JOIN v USING (i) WHERE t.i = u.i")
    else {
        panic!("no delete")
    };
    assert!(delete.with.is_some() && delete.using[0].joins.len() == 1);

    let StatementAst::Merge(merge) = parse(
        "MERGE INTO t AS x USING (SELECT * FROM u) AS y ON x.id = y.id \
         WHEN MATCHED AND y.gone THEN DELETE WHEN MATCHED THEN UPDATE SET a = y.a \
         WHEN NOT MATCHED BY TARGET THEN INSERT (id, a) OVERRIDING USER VALUE VALUES (y.id, DEFAULT) \
         WHEN NOT MATCHED BY SOURCE THEN DO NOTHING RETURNING x.id",
    ) else {
        panic!("no merge")
    };
    let when: Vec<_> = merge.clauses.iter().map(|clause| clause.when).collect();
    assert_eq!(when, [MergeWhen::Matched, MergeWhen::Matched, MergeWhen::NotMatched, MergeWhen::NotMatchedBySource]);
    assert!(
        matches!(&parse("WITH s AS (SELECT 1 AS id) MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN DELETE"),
        StatementAst::Merge(merge) if merge.with.is_some())
    );
    assert!(fails("MERGE INTO t USING u ON true WHEN MATCHED THEN INSERT VALUES (1)").message.contains("NOT MATCHED"));
}

#[test]
fn tables_are_defined() {
    let StatementAst::CreateTable(table) = parse(
        "CREATE TEMP TABLE IF NOT EXISTS s.t (
           id bigserial PRIMARY KEY,
           n int GENERATED BY DEFAULT AS IDENTITY (START WITH 10 INCREMENT BY 5 NO CYCLE),
           email varchar(20) NOT NULL UNIQUE,
           price numeric(12, 2) DEFAULT 0 CHECK (price >= 0),
           total numeric GENERATED ALWAYS AS (price * 2) STORED,
           owner int CONSTRAINT fk REFERENCES u (id) ON DELETE CASCADE,
           CONSTRAINT pair UNIQUE NULLS NOT DISTINCT (email, price),
           FOREIGN KEY (owner, n) REFERENCES v
         ) WITH (fillfactor = 70, merge = 'mrt') ON COMMIT DELETE ROWS",
    ) else {
        panic!("no table")
    };
    assert!(table.temporary && table.if_not_exists);
    assert_eq!(table.on_commit, Some(OnCommit::DeleteRows));
    let names: Vec<String> = table.columns.iter().map(|column| fold(&column.name)).collect();
    assert_eq!(names, ["id", "n", "email", "price", "total", "owner"]);
    assert!(table.columns[0].not_null && table.columns[0].identity.is_some());
    let sequence = &table.columns[1].identity.as_ref().expect("identity").sequence;
    assert_eq!((sequence.start, sequence.increment, sequence.cycle), (Some(10), Some(5), Some(false)));
    assert!(table.columns[4].generated.is_some());
    assert_eq!(table.constraints.len(), 6);
    assert!(
        matches!(&table.constraints[3], ConstraintDefinition { name: Some(_), rule: Constraint::ForeignKey { columns, referred, .. } }
        if columns.len() == 1 && referred.len() == 1)
    );
    assert!(matches!(&table.constraints[4].rule, Constraint::Unique { nulls_distinct: false, .. }));
    assert_eq!(table.options.iter().map(|option| option.name.as_str()).collect::<Vec<_>>(), ["fillfactor", "merge"]);

    assert!(
        matches!(parse("CREATE TABLE t (LIKE u INCLUDING DEFAULTS)"), StatementAst::CreateTable(table) if table.like.is_some())
    );
    assert!(matches!(parse("CREATE TABLE t (a, b) AS SELECT 1, 2 WITH NO DATA"), StatementAst::CreateTableAs(table)
        if !table.with_data && table.columns.len() == 2));
    assert!(matches!(parse("CREATE TABLE t AS TABLE u"), StatementAst::CreateTableAs(table) if table.with_data));

    let StatementAst::AlterTable(alter) = parse(
        "ALTER TABLE IF EXISTS t ADD COLUMN IF NOT EXISTS a int NOT NULL DEFAULT 1 CHECK (a > 0), DROP b, RENAME c TO d, \
         ALTER e SET NOT NULL, ALTER e DROP NOT NULL, ALTER e SET DEFAULT 1, ALTER e DROP DEFAULT, ALTER e TYPE bigint USING e::bigint, \
         ALTER e SET DATA TYPE text, ADD CONSTRAINT k CHECK (a > 1) NOT VALID, DROP CONSTRAINT IF EXISTS k, VALIDATE CONSTRAINT k, \
         ALTER e ADD GENERATED ALWAYS AS IDENTITY, ALTER COLUMN e DROP IDENTITY IF EXISTS, SET SCHEMA x, OWNER TO bob",
    ) else {
        panic!("no alter")
    };
    assert_eq!(alter.operations.len(), 16);
    assert!(
        matches!(&alter.operations[0], AlterOperation::AddColumn { if_not_exists: true, constraints, .. } if constraints.len() == 1)
    );
    assert!(matches!(parse("ALTER TABLE t RENAME TO u"), StatementAst::AlterTable(_)));
    assert!(matches!(parse("ALTER VIEW v RENAME TO w"), StatementAst::Rename(Rename { kind: ObjectKind::View, .. })));

    let StatementAst::CreateView(view) =
        parse("CREATE OR REPLACE VIEW v (x) AS  SELECT a /* keep */ FROM t FOR SYSTEM_TIME AS OF 'x'  ")
    else {
        panic!("no view")
    };
    assert_eq!(&*view.query_text, "SELECT a /* keep */ FROM t FOR SYSTEM_TIME AS OF 'x'");
    let StatementAst::CreateIndex(index) = parse(
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t USING btree (a DESC NULLS LAST, lower(b)) INCLUDE (c) WHERE a > 0",
    ) else {
        panic!("no index")
    };
    assert!(index.unique && index.concurrently && index.if_not_exists && index.predicate.is_some());
    assert_eq!((index.columns.len(), index.include.len(), index.method.as_deref()), (2, 1, Some("btree")));
    let StatementAst::CreateSequence(sequence) = parse(
        "CREATE SEQUENCE IF NOT EXISTS s AS bigint INCREMENT BY -1 MINVALUE -100 NO MAXVALUE START -1 CACHE 20 CYCLE OWNED BY t.a",
    ) else {
        panic!("no sequence")
    };
    assert_eq!(sequence.options.increment, Some(-1));
    assert_eq!((sequence.options.min, sequence.options.max), (Some(Some(-100)), Some(None)));
    assert!(sequence.owned_by.is_some());
    assert!(
        matches!(parse("ALTER SEQUENCE s RESTART WITH 5"), StatementAst::AlterSequence(alter) if alter.restart == Some(Some(5)))
    );
    assert!(
        matches!(parse("DROP TABLE IF EXISTS a, s.b CASCADE"), StatementAst::Drop(drop) if drop.cascade && drop.names.len() == 2)
    );
    assert!(matches!(parse("CREATE SCHEMA IF NOT EXISTS s AUTHORIZATION bob"), StatementAst::CreateSchema(_)));
    assert!(matches!(
        parse("COMMENT ON COLUMN s.t.c IS 'x'"),
        StatementAst::CommentOn(CommentOn { target: CommentTarget::Column { .. }, comment: Some(_) })
    ));
    assert!(matches!(parse("COMMENT ON TABLE t IS NULL"), StatementAst::CommentOn(CommentOn { comment: None, .. })));
    assert!(matches!(parse("TRUNCATE a, b RESTART IDENTITY CASCADE"), StatementAst::Truncate(truncate)
        if truncate.restart_identity && truncate.cascade && truncate.tables.len() == 2));
}

#[test]
fn the_session_is_spoken_to() {
    let modes = |text| match parse(text) {
        StatementAst::Begin(modes) => modes,
        other => panic!("{text} is {other:?}"),
    };
    assert_eq!(modes("BEGIN"), TransactionModes::default());
    assert_eq!(modes("BEGIN WORK"), TransactionModes::default());
    assert_eq!(
        modes("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY NOT DEFERRABLE"),
        TransactionModes { isolation: Some(Isolation::Snapshot), read_only: Some(true), deferrable: Some(false) }
    );
    for text in ["COMMIT", "END", "COMMIT WORK", "END TRANSACTION", "COMMIT AND NO CHAIN"] {
        assert_eq!(parse(text), StatementAst::Commit { chain: false });
    }
    assert_eq!(parse("ROLLBACK AND CHAIN"), StatementAst::Rollback { chain: true });
    assert_eq!(parse("ABORT"), StatementAst::Rollback { chain: false });
    for text in ["ROLLBACK TO x", "ROLLBACK WORK TO SAVEPOINT x"] {
        assert!(matches!(parse(text), StatementAst::RollbackTo(name) if fold(&name) == "x"));
    }
    assert!(matches!(parse("RELEASE SAVEPOINT x"), StatementAst::Release(_)));

    let variable = |text| match parse(text) {
        StatementAst::Set(Set::Variable { name, values, local }) => {
            (name, values.iter().map(OptionValue::text).collect::<Vec<_>>().join("|"), local)
        }
        other => panic!("{text} is {other:?}"),
    };
    let set = |name: &str, value: &str, local| (name.to_owned(), value.to_owned(), local);
    assert_eq!(variable("SET lattice.durability = 'async'"), set("lattice.durability", "async", false));
    assert_eq!(variable("SET LOCAL statement_timeout TO 500"), set("statement_timeout", "500", true));
    assert_eq!(variable("SET SESSION search_path = a, \"B\", public"), set("search_path", "a|B|public", false));
    assert_eq!(variable("SET x = DEFAULT"), set("x", "", false));
    assert_eq!(variable("SET x TO on"), set("x", "on", false));
    assert_eq!(variable("SET x = -1.5"), set("x", "-1.5", false));
    assert_eq!(variable("SET TIME ZONE 'Europe/Berlin'"), set("timezone", "Europe/Berlin", false));
    assert_eq!(variable("SET TIME ZONE LOCAL"), set("timezone", "", false));
    assert_eq!(variable("SET NAMES 'utf8'"), set("client_encoding", "utf8", false));
    assert!(matches!(parse("SET TRANSACTION READ ONLY"), StatementAst::Set(Set::Transaction(_))));
    assert!(matches!(
        parse("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
        StatementAst::Set(Set::SessionTransaction(_))
    ));
    assert_eq!(
        parse("SHOW TRANSACTION ISOLATION LEVEL"),
        StatementAst::Show(Show::Variable("transaction_isolation".to_owned()))
    );
    assert_eq!(parse("SHOW lattice.durability"), StatementAst::Show(Show::Variable("lattice.durability".to_owned())));
    assert_eq!(parse("SHOW ALL"), StatementAst::Show(Show::All));
    assert!(matches!(
        parse("SHOW TABLES FROM s LIKE 'a%'"),
        StatementAst::Show(Show::Tables { schema: Some(_), like: Some(_) })
    ));
    assert!(matches!(parse("DESCRIBE t"), StatementAst::Show(Show::Columns { .. })));
    assert_eq!(parse("RESET ALL"), StatementAst::Reset(None));
    assert_eq!(parse("RESET search_path"), StatementAst::Reset(Some("search_path".to_owned())));
    assert_eq!(parse("DISCARD ALL"), StatementAst::Discard(Discard::All));
    assert_eq!(parse("KILL QUERY 7"), StatementAst::Cancel { query: 7 });
    assert_eq!(parse("BACKUP TO 's3://b/p'"), StatementAst::Backup { url: "s3://b/p".to_owned() });

    let StatementAst::Prepare(prepare) = parse("PREPARE p (int, text) AS INSERT INTO t VALUES ($1, $2)") else {
        panic!("no prepare")
    };
    assert_eq!(
        (prepare.types.len(), prepare.inner.parameters, &*prepare.inner.text),
        (2, 2, "INSERT INTO t VALUES ($1, $2)")
    );
    assert!(matches!(parse("EXECUTE p (1, 'x')"), StatementAst::Execute(execute) if execute.values.len() == 2));
    assert!(matches!(parse("EXECUTE p"), StatementAst::Execute(execute) if execute.values.is_empty()));
    assert_eq!(parse("DEALLOCATE ALL"), StatementAst::Deallocate(None));

    for (text, analyze, verbose, format) in [
        ("EXPLAIN SELECT 1", false, false, ExplainFormat::Text),
        ("EXPLAIN ANALYZE VERBOSE SELECT 1", true, true, ExplainFormat::Text),
        ("EXPLAIN (ANALYZE, FORMAT JSON, COSTS off) SELECT 1", true, false, ExplainFormat::Json),
        ("EXPLAIN (VERBOSE true, FORMAT 'tree') DELETE FROM t", false, true, ExplainFormat::Tree),
        ("EXPLAIN (SELECT 1)", false, false, ExplainFormat::Text),
    ] {
        let StatementAst::Explain(explain) = parse(text) else { panic!("no explain") };
        assert_eq!((explain.analyze, explain.verbose, explain.format), (analyze, verbose, format), "{text}");
    }

    let copy = |text| match parse(text) {
        StatementAst::Copy(copy) => {
            let options: Vec<String> = copy
                .options
                .iter()
                .map(|option| {
                    format!("{}={}", option.name, option.value.as_ref().map(OptionValue::text).unwrap_or_default())
                })
                .collect();
            (copy.direction, copy.target, options.join(" "))
        }
        other => panic!("{text} is {other:?}"),
    };
    assert_eq!(copy("COPY t (a, b) FROM STDIN").0, CopyDirection::From);
    assert_eq!(
        copy("COPY t FROM 's3://b/x.csv' WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL '', FORCE_NULL (a, b))"),
        (
            CopyDirection::From,
            CopyTarget::File("s3://b/x.csv".to_owned()),
            "format=csv header=true delimiter=; null= force_null=a,b".to_owned()
        )
    );
    assert_eq!(
        copy(
            "COPY (SELECT * FROM t FOR SYSTEM_TIME AS OF 'x') TO STDOUT (FORMAT parquet, COMPRESSION 'zstd', ROW_GROUP_SIZE 1000)"
        ),
        (CopyDirection::To, CopyTarget::Client, "format=parquet compression=zstd row_group_size=1000".to_owned())
    );
    assert_eq!(copy("COPY t TO STDOUT CSV HEADER DELIMITER AS ';'").2, "format=csv header= delimiter=;");
    assert!(matches!(parse("VACUUM FULL t"), StatementAst::Vacuum(Vacuum { full: true, table: Some(_), .. })));
    assert!(matches!(
        parse("VACUUM (FULL, ANALYZE)"),
        StatementAst::Vacuum(Vacuum { full: true, analyze: true, table: None })
    ));
    assert!(matches!(parse("ANALYZE t (a, b)"), StatementAst::Analyze(analyze) if analyze.columns.len() == 2));
}

#[test]
fn long_chains_are_balanced() {
    let text = format!("SELECT 1 WHERE {} a = 0", "a = 1 OR ".repeat(5_000));
    assert_eq!(printed(&text).matches(" OR ").count(), 5_000);
    let text = format!("SELECT 1 {}", "UNION ALL SELECT 1 ".repeat(5_000));
    assert_eq!(printed(&text).matches("UNION ALL").count(), 5_000);
    // The order of the operands stays.
    let text = format!("SELECT {}z AS x", (0..100).map(|i| format!("'{i}' || ")).collect::<String>());
    assert_eq!(printed(&text), text);
    // Grouping can be seen in arithmetic, so long chains of it are refused.
    let error = fails(&format!("SELECT 1{}", " + 1".repeat(1_000)));
    assert_eq!(error.sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
    parse(&format!("SELECT 1{}", " + 1".repeat(200)));
}

#[test]
fn bombs_stop_quickly() {
    let nest = |open: &str, close: &str, n: usize| format!("SELECT {}1{}", open.repeat(n), close.repeat(n));
    let mut bombs = vec![
        nest("f(", ")", 30),
        nest("f(", ")", 3000),
        nest("(", ")", 5000),
        nest("CASE WHEN ", " THEN 1 END", 500),
        nest("ARRAY[", "]", 500),
        nest("NOT ", "", 5000),
        nest("- ", "", 5000),
        nest("{", "}", 500),
        nest("if(current_time(", "))", 12),
        nest("f(a => ", ")", 40),
        nest("x[", "]", 400),
        nest("(SELECT ", ")", 400),
        nest("EXISTS (SELECT ", ")", 400),
        nest("CAST(", " AS int)", 400),
        nest("f(DISTINCT ", ")", 40),
        format!("SELECT * FROM {}t{}", "(".repeat(40), ")".repeat(40)),
        format!("SELECT * FROM {}t{}", "((".repeat(20), "))".repeat(20)),
        format!("SELECT * FROM {}SELECT 1{}", "(".repeat(200), ")".repeat(200)),
        format!("SELECT * FROM {}t{}", "(a JOIN ".repeat(30), " ON true)".repeat(30)),
        format!("SELECT 1 {}", "UNION SELECT 1 ".repeat(3000)),
        format!("{}SELECT 1{}", "(".repeat(300), ")".repeat(300)),
        format!("SELECT 1{}", " + 1".repeat(20_000)),
        format!("SELECT {}", "a AND ".repeat(20_000)),
        format!("SELECT a::{}int{}", "f(".repeat(40), ")".repeat(40)),
        format!("SELECT {}", "ARRAY<".repeat(300)),
        format!("SELECT * FROM t FOR SYSTEM_TIME AS OF {}1{}", "f(".repeat(400), ")".repeat(400)),
        format!("SELECT * FROM t {}", "FOR SYSTEM_TIME AS OF 1 ".repeat(500)),
        format!("SELECT '{}", "a".repeat(200_000)),
        format!("SELECT {}", "/*".repeat(20_000)),
        format!("SELECT {}", "\"a\".".repeat(20_000)),
        format!("INSERT INTO t VALUES {}", "(1, 'a', f(2)), ".repeat(2_000)),
        format!("CREATE TABLE t (a {}int)", "MERGE x(".repeat(200)),
        format!("EXPLAIN {} SELECT 1", "EXPLAIN ".repeat(2_000)),
        format!("WITH {} SELECT 1", "a AS (WITH b AS (SELECT 1) SELECT 1), ".repeat(300)),
        format!("SELECT 1{}", " + 1".repeat(200_000)),
        format!("SELECT a{}", "::int".repeat(100_000)),
        format!("SELECT a{}", " IS NULL".repeat(100_000)),
        format!("SELECT 1 WHERE {}", "a = 1 OR ".repeat(49_000)),
        format!("SELECT 1 WHERE {} true", "a = 1 OR ".repeat(49_000)),
        format!("SELECT 1 {}", "UNION ALL SELECT 1 ".repeat(30_000)),
        ";".repeat(100_000),
        "SELECT 1;".repeat(2_000),
        "(".repeat(100_000),
        "x ".repeat(100_000),
    ];
    bombs.push("SELECT CASE ".repeat(300));
    for bomb in &bombs {
        let head: String = bomb.chars().take(40).collect();
        // Shown when a test run dies of an overflowing stack, which no assertion can report.
        eprintln!("{head}…");
        let started = Instant::now();
        let result = parse_script(bomb, ParseOptions::default());
        let took = started.elapsed();
        // A generous limit for slow machines; the exponential ones took minutes.
        assert!(took < Duration::from_secs(10), "{head}… took {took:?} ({:?})", result.map(|list| list.len()));
    }
}
