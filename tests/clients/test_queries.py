"""Types both ways, and every way to fetch."""

import datetime
import decimal

import pyarrow as pa
import pytest
from conftest import run, value


def test_fetching(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT x, x * 2 AS y FROM generate_series(1, 5) AS g (x)")
        assert [column[0] for column in cursor.description] == ["x", "y"]
        assert cursor.fetchone() == (1, 2)
        assert cursor.fetchmany(2) == [(2, 4), (3, 6)]
        assert cursor.fetchall() == [(4, 8), (5, 10)]
        assert cursor.fetchone() is None
    with connection.cursor() as cursor:
        table = cursor.execute("SELECT 1 AS a, 'x' AS b").fetch_arrow_table()
        assert table.column_names == ["a", "b"]
        assert table.to_pylist() == [{"a": 1, "b": "x"}]
    with connection.cursor() as cursor:
        reader = cursor.execute("SELECT x FROM generate_series(1, 100000) AS g (x)").fetch_record_batch()
        assert sum(batch.num_rows for batch in reader) == 100000
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT 1 AS a").fetch_df()["a"].tolist() == [1]
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT 1 AS a").fetch_polars()["a"].to_list() == [1]


def test_types(connection):
    table = run_table(
        connection,
        """
        SELECT 1::smallint AS i16, 2::int AS i32, 3::bigint AS i64, 1.5::real AS f32, 2.5::double precision AS f64,
               12.34::numeric(10,2) AS dec, 'ü' AS text, '\\x0102'::bytea AS bytes, true AS flag,
               DATE '2026-11-22' AS day, TIME '10:11:12.5' AS time,
               TIMESTAMP '2026-11-22 10:11:12.123456' AS ts,
               TIMESTAMPTZ '2026-11-22 10:11:12+01' AS tstz,
               NULL::int AS nothing, ARRAY[1, 2] AS list
        """,
    )
    [row] = table.to_pylist()
    assert row["i16"] == 1 and row["i32"] == 2 and row["i64"] == 3
    assert row["f32"] == 1.5 and row["f64"] == 2.5
    assert row["dec"] == decimal.Decimal("12.34")
    assert row["text"] == "ü" and row["bytes"] == b"\x01\x02" and row["flag"] is True
    assert row["day"] == datetime.date(2026, 11, 22)
    assert row["time"] == datetime.time(10, 11, 12, 500000)
    assert row["ts"] == datetime.datetime(2026, 11, 22, 10, 11, 12, 123456)
    assert row["tstz"] == datetime.datetime(2026, 11, 22, 9, 11, 12, tzinfo=datetime.timezone.utc)
    assert row["nothing"] is None and row["list"] == [1, 2]
    types = {field.name: field.type for field in table.schema}
    assert types["i16"] == pa.int16() and types["i32"] == pa.int32() and types["i64"] == pa.int64()
    assert types["dec"] == pa.decimal128(10, 2)
    assert types["text"] == pa.string(), "never a view or a large string"
    assert types["tstz"] == pa.timestamp("us", tz="UTC")


def run_table(connection, statement: str) -> pa.Table:
    with connection.cursor() as cursor:
        return cursor.execute(statement).fetch_arrow_table()


def test_the_schema_is_known_before_the_rows(connection):
    statement = "SELECT 1 AS a, 'x' AS b, 1.5 AS c WHERE false"
    with connection.cursor() as cursor:
        announced = cursor.adbc_execute_schema(statement)
    table = run_table(connection, statement)
    assert table.schema == announced
    assert table.num_rows == 0


def test_dml_counts_rows_and_runs_once(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)")
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {name} VALUES (1, 1), (2, 2), (3, 3)")
        assert cursor.rowcount == 3
        cursor.execute(f"UPDATE {name} SET n = n + 1 WHERE id > 1")
        assert cursor.rowcount == 2
        cursor.execute(f"DELETE FROM {name} WHERE id = 1")
        assert cursor.rowcount == 1
    assert run(connection, f"SELECT id, n FROM {name} ORDER BY id") == [(2, 3), (3, 4)]
    assert run(connection, f"INSERT INTO {name} VALUES (4, 4) RETURNING id, n") == [(4, 4)]
    assert value(connection, f"SELECT count(*) FROM {name}") == 3


@pytest.mark.parametrize("rows", [0, 1, 8192, 8193, 500_000])
def test_results_of_every_size(connection, rows):
    table = run_table(connection, f"SELECT x, 'row ' || x AS s FROM generate_series(1, {rows}) AS g (x)")
    assert table.num_rows == rows
    assert sorted(table["x"].to_pylist()) == list(range(1, rows + 1))
    assert all(row["s"] == f"row {row['x']}" for row in table.slice(0, 100).to_pylist())


def test_wide_values(connection):
    # Larger than one message of ours, smaller than the client's limit.
    assert len(value(connection, "SELECT repeat('x', 8000000)")) == 8_000_000


def test_two_cursors_at_once(connection):
    with connection.cursor() as one, connection.cursor() as two:
        one.execute("SELECT x FROM generate_series(1, 100000) AS g (x)")
        two.execute("SELECT x FROM generate_series(1, 100000) AS g (x)")
        for expected in range(1, 1000):
            assert one.fetchone() == two.fetchone() == (expected,)
