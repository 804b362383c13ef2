"""Exceptions that say what to do."""

import re

import adbc_driver_manager as adbc
import pytest
from conftest import run, value


@pytest.fixture
def table(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT NOT NULL CHECK (n > 0))")
    run(connection, f"INSERT INTO {name} VALUES (1, 1)")
    return name


CASES = [
    ("SELEC 1", adbc.ProgrammingError, "42601"),
    ("SELECT * FROM nowhere", adbc.ProgrammingError, "42P01"),
    ("SELECT nothing FROM {t}", adbc.ProgrammingError, "42703"),
    ("SELECT no_such_function(1)", adbc.ProgrammingError, "42883"),
    ("CREATE TABLE {t} (x INT)", adbc.ProgrammingError, "42P07"),
    ("INSERT INTO {t} VALUES (1, 1)", adbc.ProgrammingError, "23505"),
    ("INSERT INTO {t} VALUES (2, NULL)", adbc.ProgrammingError, "23502"),
    ("INSERT INTO {t} VALUES (2, -1)", adbc.ProgrammingError, "23514"),
    ("SELECT 1 / (n - n) FROM {t}", adbc.ProgrammingError, "22012"),
    ("SELECT 'x'::int", adbc.ProgrammingError, "22P02"),
    ("SELECT * FROM {t} FOR UPDATE", adbc.NotSupportedError, "0A000"),
]


@pytest.mark.parametrize("statement,kind,state", CASES, ids=[case[2] for case in CASES])
def test_classes(connection, table, statement, kind, state):
    with connection.cursor() as cursor, pytest.raises(kind) as caught:
        cursor.execute(statement.format(t=table))
        cursor.fetchall()
    assert state in str(caught.value)
    details = dict(caught.value.details)
    assert details[b"lattice-sqlstate"] == state.encode()


def test_a_mistake_is_pointed_at(connection, table):
    with connection.cursor() as cursor, pytest.raises(adbc.ProgrammingError) as caught:
        cursor.execute(f"SELECT id,\n       FROM FROM {table}")
    text = str(caught.value)
    assert "42601: syntax error" in text
    assert re.search(r"LINE 2:        FROM FROM \w+\n +\^", text), text
    assert dict(caught.value.details)[b"lattice-position"].isdigit()


def test_hints(connection, table):
    with connection.cursor() as cursor, pytest.raises(adbc.ProgrammingError, match="HINT: did you mean"):
        cursor.execute(f"SELECT * FROM {table}x")


def test_the_connection_survives_errors(connection, table):
    for _ in range(20):
        with connection.cursor() as cursor, pytest.raises(adbc.Error):
            cursor.execute("SELECT * FROM nowhere")
    assert value(connection, f"SELECT count(*) FROM {table}") == 1


def test_errors_in_the_middle_of_the_rows(connection):
    with connection.cursor() as cursor, pytest.raises(adbc.ProgrammingError, match="22012"):
        cursor.execute("SELECT 1 / (200000 - x) FROM generate_series(1, 300000) AS g (x)")
        cursor.fetchall()
