"""Stopping what takes too long."""

import threading
import time

import adbc_driver_manager
import pytest
from adbc_driver_flightsql import ConnectionOptions
from conftest import run, value

ENDLESS = "SELECT count(*) FROM generate_series(1, 1000000000000) AS g (x) WHERE x < 0"


def running(connection) -> int:
    """Statements that run, this question aside."""
    return value(connection, "SELECT count(*) FROM lattice.queries") - 1


def wait_until_quiet(connection):
    for _ in range(200):
        if running(connection) == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"still running: {run(connection, 'SELECT * FROM lattice.queries')}")


def test_cancelling_a_cursor(server, connection):
    with server.connect() as work, work.cursor() as cursor:
        timer = threading.Timer(0.5, cursor.adbc_cancel)
        timer.start()
        started = time.monotonic()
        with pytest.raises(adbc_driver_manager.OperationalError):
            cursor.execute(ENDLESS)
            cursor.fetchall()
        timer.join()
        assert time.monotonic() - started < 20
        wait_until_quiet(connection)
        # The connection is as good as before.
        assert value(work, "SELECT 1") == 1


def test_leaving_rows_unread_stops_the_query(server, connection):
    with server.connect() as work:
        cursor = work.cursor()
        cursor.execute("SELECT x FROM generate_series(1, 100000000) AS g (x)")
        assert cursor.fetchone() == (1,)
        cursor.close()
    wait_until_quiet(connection)


def test_time_limits_of_the_client(server, connection):
    limits = {ConnectionOptions.TIMEOUT_FETCH.value: "0.5", ConnectionOptions.TIMEOUT_QUERY.value: "0.5"}
    with server.connect(connection=limits) as work:
        started = time.monotonic()
        with pytest.raises(adbc_driver_manager.Error):
            value(work, ENDLESS)
        assert time.monotonic() - started < 20
    wait_until_quiet(connection)


def test_time_limit_of_the_session(server):
    with server.connect() as work:
        run(work, "SET statement_timeout = '300ms'")
        with pytest.raises(adbc_driver_manager.OperationalError, match="57014"):
            value(work, ENDLESS)
        run(work, "SET statement_timeout = 0")
        assert value(work, "SELECT 1") == 1
