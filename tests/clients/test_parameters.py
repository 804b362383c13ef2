"""Bound values."""

import datetime
import decimal

import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import run, value


def test_both_placeholders(connection):
    assert value(connection, "SELECT ?::int + ?::int", (2, 3)) == 5
    assert value(connection, "SELECT $2::int - $1::int", (2, 3)) == 1


VALUES = [
    ("int", 7),
    ("bigint", 2**60),
    ("double precision", 1.25),
    ("numeric(10,2)", decimal.Decimal("12.34")),
    ("text", "it's — “ü”"),
    ("bytea", b"\x00\xff"),
    ("boolean", True),
    ("date", datetime.date(2026, 11, 22)),
    ("timestamp", datetime.datetime(2026, 11, 22, 1, 2, 3, 456789)),
    ("time", datetime.time(1, 2, 3)),
    ("text", ""),
]


@pytest.mark.parametrize("type_name,sent", VALUES)
def test_types_of_parameters(connection, name, type_name, sent):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, v {type_name})")
    run(connection, f"INSERT INTO {name} VALUES (1, ?)", (sent,))
    run(connection, f"INSERT INTO {name} VALUES (2, ?)", (None,))
    assert run(connection, f"SELECT v FROM {name} ORDER BY id") == [(sent,), (None,)]
    assert value(connection, f"SELECT id FROM {name} WHERE v = ?", (sent,)) == 1


def test_instants(connection, name):
    run(connection, f"CREATE TABLE {name} (v TIMESTAMPTZ)")
    sent = datetime.datetime(2026, 11, 22, 1, 2, 3, tzinfo=datetime.timezone.utc)
    run(connection, f"INSERT INTO {name} VALUES (?)", (sent,))
    assert value(connection, f"SELECT v FROM {name}") == sent


def test_the_types_of_parameters_are_announced(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, s TEXT)")
    with connection.cursor() as cursor:
        schema = cursor.adbc_prepare(f"INSERT INTO {name} VALUES (?, ?)")
    assert [field.type for field in schema] == [pa.int32(), pa.string()]
    assert all(field.nullable for field in schema)


def test_executemany(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, s TEXT)")
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {name} VALUES (?, ?)", [(n, f"s{n}") for n in range(1000)])
        assert cursor.rowcount == 1000
        cursor.executemany(f"UPDATE {name} SET s = ? WHERE id = ?", [("a", 1), ("b", 2), ("c", 5000)])
        assert cursor.rowcount == 2
        cursor.executemany(f"INSERT INTO {name} VALUES (?, ?)", [])
    assert value(connection, f"SELECT count(*) FROM {name}") == 1000
    assert run(connection, f"SELECT s FROM {name} WHERE id IN (1, 2) ORDER BY id") == [("a",), ("b",)]


def test_executemany_is_atomic(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY)")
    with connection.cursor() as cursor, pytest.raises(adbc_driver_manager.ProgrammingError, match="23505"):
        cursor.executemany(f"INSERT INTO {name} VALUES (?)", [(1,), (2,), (1,)])
    assert value(connection, f"SELECT count(*) FROM {name}") == 0


def test_arrow_parameters(connection, name):
    run(connection, f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, s TEXT)")
    batch = pa.record_batch({"id": pa.array([1, 2, 3]), "s": pa.array(["a", None, "c"])})
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {name} VALUES ($1, $2)", batch)
        assert cursor.rowcount == 3
    assert run(connection, f"SELECT s FROM {name} ORDER BY id") == [("a",), (None,), ("c",)]


def test_wrong_numbers_of_parameters(connection):
    with connection.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="2 parameters"):
            cursor.execute("SELECT ?::int + ?::int", (1,))
    with connection.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="1 parameters"):
            cursor.execute("SELECT ?::int")


def test_a_statement_is_reused(connection):
    with connection.cursor() as cursor:
        for n in range(50):
            cursor.execute("SELECT ?::int * 2", (n,))
            assert cursor.fetchone() == (2 * n,)
