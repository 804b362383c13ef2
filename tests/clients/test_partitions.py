"""Results that are read in another place, and statements that are polled."""

from adbc_driver_flightsql import StatementOptions
from conftest import run, value


def test_partitions_are_read_elsewhere(server, connection):
    with connection.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions("SELECT x FROM generate_series(1, 1000) AS g (x)")
    assert schema.names == ["x"] and partitions
    for _ in range(2):
        # Task retries read the same partition again.
        seen = []
        for partition in partitions:
            with server.connect() as task, task.cursor() as cursor:
                cursor.adbc_read_partition(partition)
                seen += [x for (x,) in cursor.fetchall()]
        assert sorted(seen) == list(range(1, 1001))


def test_partitions_with_parameters(server, connection, name):
    run(connection, f"CREATE TABLE {name} (id INT)")
    run(connection, f"INSERT INTO {name} VALUES (1), (2), (3)")
    with connection.cursor() as cursor:
        partitions, _ = cursor.adbc_execute_partitions(f"SELECT id FROM {name} WHERE id > ?", (1,))
    for _ in range(2):
        with server.connect() as task, task.cursor() as cursor:
            cursor.adbc_read_partition(partitions[0])
            assert sorted(cursor.fetchall()) == [(2,), (3,)]


def test_incremental_execution(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT)")
    run(connection, f"INSERT INTO {name} VALUES (1), (2)")
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.statement.exec.incremental": "true"})
        partitions, _ = cursor.adbc_execute_partitions(f"SELECT id FROM {name} ORDER BY id")
        rows = []
        while partitions:
            for partition in partitions:
                with connection.cursor() as reader:
                    reader.adbc_read_partition(partition)
                    rows += reader.fetchall()
            partitions, _ = cursor.adbc_execute_partitions(f"SELECT id FROM {name} ORDER BY id")
    assert rows == [(1,), (2,)]


def test_the_last_flight_info_is_there(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert StatementOptions.LAST_FLIGHT_INFO.value
        assert cursor.fetchone() == (1,)
    assert value(connection, "SELECT 2") == 2
