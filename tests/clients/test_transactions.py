"""Transactions as DB-API users know them."""

import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import run, value


@pytest.fixture
def table(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT)")
    return name


def test_commit_and_rollback(server, connection, table):
    with server.connect(autocommit=False) as work:
        with work.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (1, 1)")
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchone() == (1,), "it sees its own writes"
        assert value(connection, f"SELECT count(*) FROM {table}") == 0, "others do not, before the commit"
        work.commit()
        assert value(connection, f"SELECT count(*) FROM {table}") == 1
        with work.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table}")
        work.rollback()
        assert value(connection, f"SELECT count(*) FROM {table}") == 1


def test_a_closed_connection_rolls_back(server, connection, table):
    work = server.connect(autocommit=False)
    run(work, f"INSERT INTO {table} VALUES (1, 1)")
    work.close()
    assert value(connection, f"SELECT count(*) FROM {table}") == 0
    run(connection, f"INSERT INTO {table} VALUES (1, 1)")


def test_one_cursor_over_several_transactions(server, connection, table):
    statement = f"INSERT INTO {table} VALUES (?, ?)"
    with server.connect(autocommit=False) as work, work.cursor() as cursor:
        for n in range(3):
            cursor.execute(statement, (n, n))
            work.commit()
        cursor.execute(statement, (10, 10))
        work.rollback()
        cursor.executemany(statement, [(20, 1), (21, 1)])
        work.commit()
    assert run(connection, f"SELECT id FROM {table} ORDER BY id") == [(0,), (1,), (2,), (20,), (21,)]


def test_a_snapshot_stays(server, connection, table):
    run(connection, f"INSERT INTO {table} VALUES (1, 1)")
    with server.connect(autocommit=False) as reader:
        assert value(reader, f"SELECT n FROM {table}") == 1
        run(connection, f"UPDATE {table} SET n = 2")
        assert value(reader, f"SELECT n FROM {table}") == 1, "repeatable read"
        reader.rollback()
        assert value(reader, f"SELECT n FROM {table}") == 2


def test_the_second_writer_loses(server, connection, table):
    run(connection, f"INSERT INTO {table} VALUES (1, 1)")
    with server.connect(autocommit=False) as one, server.connect(autocommit=False) as two:
        assert value(one, f"SELECT n FROM {table}") == value(two, f"SELECT n FROM {table}") == 1
        run(one, f"UPDATE {table} SET n = n + 1")
        one.commit()
        with pytest.raises(adbc_driver_manager.OperationalError, match="40001"):
            run(two, f"UPDATE {table} SET n = n + 1")
            two.commit()
        two.rollback()
        run(two, f"UPDATE {table} SET n = n + 1")
        two.commit()
    assert value(connection, f"SELECT n FROM {table}") == 3


def test_after_an_error_only_rollback_helps(server, connection, table):
    with server.connect(autocommit=False) as work:
        run(work, f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(adbc_driver_manager.Error, match="23505"):
            run(work, f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(adbc_driver_manager.Error, match="25P02"):
            run(work, f"INSERT INTO {table} VALUES (2, 2)")
        work.rollback()
        run(work, f"INSERT INTO {table} VALUES (2, 2)")
        work.commit()
    assert run(connection, f"SELECT id FROM {table}") == [(2,)]


def test_ingest_belongs_to_the_transaction(server, connection, table):
    data = pa.table({"id": pa.array([1, 2], pa.int32()), "n": pa.array([1, 2], pa.int32())})
    with server.connect(autocommit=False) as work:
        with work.cursor() as cursor:
            assert cursor.adbc_ingest(table, data, mode="append") == 2
        work.rollback()
        assert value(connection, f"SELECT count(*) FROM {table}") == 0
        with work.cursor() as cursor:
            cursor.adbc_ingest(table, data, mode="append")
        work.commit()
    assert value(connection, f"SELECT count(*) FROM {table}") == 2


def test_transactions_in_sql(connection, server, table):
    with server.connect() as work:
        run(work, "BEGIN")
        run(work, f"INSERT INTO {table} VALUES (1, 1)")
        run(work, "SAVEPOINT s")
        run(work, f"INSERT INTO {table} VALUES (2, 2)")
        run(work, "ROLLBACK TO SAVEPOINT s")
        assert value(connection, f"SELECT count(*) FROM {table}") == 0
        run(work, "COMMIT")
    assert run(connection, f"SELECT id FROM {table}") == [(1,)]
