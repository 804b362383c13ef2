"""Results that are read in another place, and statements that are polled."""

import concurrent.futures

import adbc_driver_manager
import pytest
from adbc_driver_flightsql import StatementOptions
from conftest import run, value


def read(server, partition):
    """Reads a partition over a connection of its own."""
    with server.connect() as task, task.cursor() as cursor:
        cursor.adbc_read_partition(partition)
        return cursor.fetch_arrow_table()


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


ROWS = 600_000


@pytest.fixture(scope="module")
def large(server):
    """A table that is large enough for several partitions, in files and in memory."""
    with server.connect() as connection:
        run(connection, "CREATE TABLE large (id BIGINT PRIMARY KEY, v INT)")
        run(connection, f"INSERT INTO large SELECT x, x % 10 FROM generate_series(1, {ROWS}) AS g (x)")
        run(connection, "VACUUM large")
        run(connection, "INSERT INTO large VALUES (0, 0)")
    return "large"


def test_large_results_are_read_in_parallel(server, connection, large):
    with connection.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions(f"SELECT id, v * 2 AS w FROM {large} WHERE v <> 7")
    assert len(partitions) > 1 and schema.names == ["id", "w"]
    # What happens afterwards is not seen.
    run(connection, f"DELETE FROM {large} WHERE id BETWEEN 1000 AND 2000")
    run(connection, f"VACUUM {large}")
    wanted = [x for x in range(ROWS + 1) if x % 10 != 7]
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(len(partitions)) as pool:
            shares = list(pool.map(lambda partition: read(server, partition), partitions))
        assert all(share.num_rows for share in shares)
        ids = sorted(x for share in shares for x in share["id"].to_pylist())
        assert ids == wanted
    run(connection, f"INSERT INTO {large} SELECT x, x % 10 FROM generate_series(1000, 2000) AS g (x)")
    # Nobody has to know: the driver reads all endpoints of an ordinary query.
    with connection.cursor() as cursor:
        table = cursor.execute(f"SELECT id FROM {large}").fetch_arrow_table()
    assert table.num_rows == ROWS + 1 and sorted(table["id"].to_pylist()) == list(range(ROWS + 1))


@pytest.mark.parametrize("query", ["SELECT id FROM large ORDER BY id DESC", "SELECT id FROM large LIMIT 550000"])
def test_what_has_an_order_or_a_limit_is_one_partition(server, connection, large, query):
    with connection.cursor() as cursor:
        partitions, _ = cursor.adbc_execute_partitions(query)
    assert len(partitions) == 1
    table = read(server, partitions[0])
    assert table.num_rows in (550_000, ROWS + 1)
    if "ORDER" in query:
        assert table["id"].to_pylist() == list(range(ROWS, -1, -1))


def test_partitions_read_their_moment(server, connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, v INT)")
    run(connection, f"INSERT INTO {name} VALUES (1, 1), (2, 2)")
    with connection.cursor() as cursor:
        [all_rows], _ = cursor.adbc_execute_partitions(f"SELECT v FROM {name} ORDER BY id")
        [one_row], _ = cursor.adbc_execute_partitions(f"SELECT v FROM {name} WHERE id = ?", (2,))
    run(connection, f"UPDATE {name} SET v = v + 100")
    run(connection, f"VACUUM {name}")
    for _ in range(2):
        assert read(server, all_rows)["v"].to_pylist() == [1, 2]
        assert read(server, one_row)["v"].to_pylist() == [2]


def test_partitions_after_a_restart(start, tmp_path):
    server = start()
    with server.connect() as connection, connection.cursor() as cursor:
        run(connection, "CREATE TABLE t (id BIGINT PRIMARY KEY)")
        run(connection, f"INSERT INTO t SELECT x FROM generate_series(1, {ROWS}) AS g (x)")
        [total], _ = cursor.adbc_execute_partitions("SELECT count(*) AS n FROM t")
        shares, _ = cursor.adbc_execute_partitions("SELECT id FROM t")
        run(connection, "DELETE FROM t WHERE id > 5")
    assert len(shares) > 1
    folder = server.folder
    assert server.stop() == 0
    again = type(server)(folder)
    try:
        assert read(again, total)["n"].to_pylist() == [ROWS]
        with pytest.raises(adbc_driver_manager.ProgrammingError, match="34000"):
            read(again, shares[0])
    finally:
        again.stop()


def test_progress(connection, large):
    with connection.cursor() as cursor:
        statement = cursor.adbc_statement
        statement.set_options(**{"adbc.statement.exec.incremental": "true"})
        slow = f"SELECT count(*) AS n FROM {large} AS a, generate_series(1, 60) AS g (x) WHERE (a.v + g.x) % 1000003 = -1"
        seen = []
        partitions = []
        while not partitions:
            partitions, _ = cursor.adbc_execute_partitions(slow)
            seen.append(statement.get_option_float("adbc.statement.exec.progress"))
        assert seen == sorted(seen) and seen[-1] == 1.0, seen


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
