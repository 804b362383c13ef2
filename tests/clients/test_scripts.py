"""Several statements in one text."""

import adbc_driver_manager
import pytest
from conftest import run, value


def test_a_script_is_one_transaction(connection, name):
    with connection.cursor() as cursor:
        cursor.executescript(f"CREATE TABLE {name} (id INT PRIMARY KEY); INSERT INTO {name} VALUES (1), (2)")
        assert value(connection, f"SELECT count(*) FROM {name}") == 2
        with pytest.raises(adbc_driver_manager.Error) as caught:
            cursor.executescript(f"INSERT INTO {name} VALUES (3); INSERT INTO {name} VALUES (1); SELECT 1")
        assert "23505" in str(caught.value) and "Statement 2 of 3, INSERT" in str(caught.value)
        assert value(connection, f"SELECT count(*) FROM {name}") == 2
        cursor.executescript(f"INSERT INTO {name} VALUES (3); COMMIT; INSERT INTO {name} VALUES (4); ROLLBACK")
    assert run(connection, f"SELECT id FROM {name} ORDER BY id") == [(1,), (2,), (3,)]


def test_a_script_inside_a_transaction(server, name):
    with server.connect(autocommit=False) as connection, server.connect() as other:
        run(other, f"CREATE TABLE {name} (id INT)")
        with connection.cursor() as cursor:
            cursor.executescript(f"INSERT INTO {name} VALUES (1); INSERT INTO {name} VALUES (2)")
        assert value(other, f"SELECT count(*) FROM {name}") == 0
        connection.commit()
        assert value(other, f"SELECT count(*) FROM {name}") == 2


def test_a_script_is_not_prepared(connection):
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="42601"):
        run(connection, "SELECT 1; SELECT 2")
    assert value(connection, "SELECT 3;") == 3
