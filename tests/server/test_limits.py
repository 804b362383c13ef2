"""Full disks, large rows and large messages: refused by name, and everything else goes on."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pytest

import lattice
from tools import run


def refused(connection, sql: str) -> str:
    with pytest.raises(Exception) as error:
        lattice.execute(connection, sql)
    return str(error.value)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 96 MiB of its own. Mounting needs root, or to be root of a namespace (below)."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(mount)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)


def fill(path: pathlib.Path, leave: int) -> None:
    """Takes all space of a disk but `leave` bytes."""
    status = os.statvfs(path.parent)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)


def insert_until_refused(connection, key: int) -> int:
    """Inserts rows of 2 kB until the disk counts as full, which the server looks up now and then. Gives the first key
    that is not there."""
    for key in range(key, key + 2000):
        try:
            lattice.execute(connection, f"insert into t values ({key}, '{'y' * 2000}')")
        except Exception as error:  # noqa: BLE001 - looked at here
            assert "53100" in str(error) and "almost full" in str(error), error
            return key
    raise AssertionError("2,000 rows went to a full disk")


def test_a_full_disk(small_disk):
    settings = ["storage.journal_segment=2MiB", "storage.low_water=16MiB", "storage.flush_interval=300ms", "storage.log_max=8MiB"]
    server = lattice.Server(small_disk / "data", settings=settings, log=small_disk.parent / "server.log").start()
    ballast = small_disk / "ballast"
    try:
        with server.connect() as connection:
            lattice.execute(connection, "create table t (id int primary key, body text)")
            lattice.execute(connection, "insert into t select g, repeat('x', 100) from generate_series(1, 1000) as s(g)")
            acked = 1000
            open_transaction = server.connect(autocommit=False)
            lattice.execute(open_transaction, "insert into t values (-1, 'open')")
            fill(ballast, leave=8 << 20)
            acked = insert_until_refused(connection, acked + 1) - 1
            # It stays so, for every kind of write; reads go on; the server lives.
            for statement in ["delete from t where id = 1", "create table u (id int)", "update t set body = '' where id = 2"]:
                assert "53100" in refused(connection, statement)
            with pytest.raises(Exception, match="53100"):
                open_transaction.commit()
            open_transaction.close()
            assert lattice.execute(connection, "select count(*), min(id) from t") == [(acked, 1)]
            assert server.metrics()["lattice_storage_disk_low"] == 1
            time.sleep(1.5)
            assert server.alive() and lattice.execute(connection, "select count(*) from t") == [(acked,)]
            # Space comes back, and writes go on by themselves.
            ballast.unlink()
            deadline = time.monotonic() + 20
            while server.metrics()["lattice_storage_disk_low"]:
                assert time.monotonic() < deadline, "the server does not find out"
                time.sleep(0.1)
            lattice.execute(connection, "insert into t values (5000, 'after')")
        # Nothing acknowledged is lost, also when the process dies in the middle of it.
        fill(ballast, leave=4 << 20)
        with server.connect() as connection:
            next_key = insert_until_refused(connection, 5001)
        server.kill()
        server.start()
        with server.connect() as connection:
            expected = [(acked + next_key - 5000, 1, next_key - 1)]
            assert lattice.execute(connection, "select count(*), min(id), max(id) from t") == expected
            assert "53100" in refused(connection, f"insert into t values ({next_key}, 'x')")
            ballast.unlink()
            deadline = time.monotonic() + 20
            while server.metrics()["lattice_storage_disk_low"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            lattice.execute(connection, f"insert into t values ({next_key}, 'x')")
        assert server.stop() == 0
    finally:
        server.kill()


@pytest.mark.skipif(os.geteuid() == 0 or bool(os.environ.get("LATTICE_TEST_NAMESPACE")), reason="root mounts without a namespace")
def test_a_full_disk_in_a_namespace():
    command = ["unshare", "-Urm", sys.executable, "-m", "pytest", "-q", "-rs", f"{__file__}::test_a_full_disk"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LATTICE_TEST_NAMESPACE": "1"}, cwd=lattice.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_row_above_the_limit(tmp_path):
    with lattice.Server(tmp_path / "data", settings=["limits.row=1MiB"]) as server, server.connect() as connection:
        lattice.execute(connection, "create table wide (id int primary key, a text, b bytea)")
        lattice.execute(connection, "insert into wide values (1, repeat('a', 1000000), null)")
        for statement in [
            "insert into wide values (2, repeat('a', 1048577), null)",
            "insert into wide values (2, repeat('a', 600000), cast(repeat('b', 600000) as bytea))",
            "update wide set b = cast(repeat('b', 600000) as bytea) where id = 1",
            "insert into wide select g, repeat('a', case when g = 30000 then 2000000 else 10 end), null from generate_series(2, 40000) as s(g)",
        ]:
            message = refused(connection, statement)
            assert "54000" in message and '"wide"' in message and "1048576 bytes" in message and "limits.row" in message, message
        # Over bulk ingest too, and nothing of the batch is there.
        batch = pa.table({"id": pa.array([10, 11, 12], pa.int32()), "a": ["x", "y" * 1_200_000, "z"], "b": pa.array([None] * 3, pa.binary())})
        with connection.cursor() as cursor, pytest.raises(Exception, match="54000.*wide"):
            cursor.adbc_ingest("wide", batch, mode="append")
        assert lattice.execute(connection, "select id, length(a) from wide") == [(1, 1_000_000)]


def test_large_rows_and_batches_below_the_limits(tmp_path):
    """More than a log entry, and more than the row tier: rows go to files, and are there after a crash."""
    settings = ["storage.journal_segment=4MiB", "storage.row_tier=16MiB", "limits.message=64MiB"]
    server = lattice.Server(tmp_path / "data", settings=settings).start()
    try:
        with server.connect() as connection:
            lattice.execute(connection, "create table big (id int primary key, a text)")
            lattice.execute(connection, "insert into big values (1, repeat('a', 20000000))")
            batch = pa.table({"id": pa.array(range(2, 42), pa.int32()), "a": [chr(97 + i % 26) * 1_000_000 for i in range(40)]})
            # The driver itself sends no more than 16 MiB at once, unless told.
            generous = {"adbc.flight.sql.client_option.with_max_msg_size": str(64 << 20)}
            with flightsql.connect(server.uri, db_kwargs=generous, autocommit=True) as loader, loader.cursor() as cursor:
                # One message of 40 MB, far above the row tier and a log entry.
                assert cursor.adbc_ingest("big", batch.combine_chunks(), mode="append") == 40
            lattice.execute(connection, "update big set a = a || 'x' where id = 1")
            # Small commits go on at once.
            lattice.execute(connection, "insert into big values (100, 'small')")
        server.kill()
        server.start()
        with server.connect() as connection:
            rows = lattice.execute(connection, "select count(*), sum(length(a)), max(length(a)) from big")
            assert rows == [(42, 20_000_001 + 40_000_000 + 5, 20_000_001)]
    finally:
        server.kill()


def test_a_message_above_the_limit(tmp_path):
    with lattice.Server(tmp_path / "data", settings=["limits.message=2MiB"]) as server, server.connect() as connection:
        lattice.execute(connection, "create table t (id int, a text)")
        batch = pa.table({"id": pa.array(range(40), pa.int32()), "a": ["x" * 100_000] * 40})
        with connection.cursor() as cursor, pytest.raises(Exception, match="(?i)too large|larger than|54000"):
            cursor.adbc_ingest("t", batch.combine_chunks(), mode="append")
        # The same rows in smaller batches are welcome, and the connection is as good as before.
        reader = pa.RecordBatchReader.from_batches(batch.schema, batch.to_batches(max_chunksize=5))
        with connection.cursor() as cursor:
            assert cursor.adbc_ingest("t", reader, mode="append") == 40
        assert lattice.execute(connection, "select count(*), sum(length(a)) from t") == [(40, 4_000_000)]
        message = refused(connection, "select '" + "x" * (3 << 20) + "'")
        assert "large" in message, message[:300]
        assert lattice.execute(connection, "select 1") == [(1,)]


def test_a_transaction_that_does_not_fit_into_the_log(tmp_path):
    settings = ["storage.journal_segment=1MiB", "storage.flush_interval=1h", "storage.flush_bytes=1GiB"]
    with lattice.Server(tmp_path / "data", settings=settings) as server, server.connect() as connection:
        lattice.execute(connection, "create table t (id bigint primary key, v int)")
        for first in range(0, 120_000, 5_000):
            lattice.execute(connection, f"insert into t select g, 0 from generate_series({first}, {first + 4_999}) as s(g)")
        message = refused(connection, "update t set v = 1")
        assert "54000" in message and "journal_segment" in message, message
        lattice.execute(connection, "insert into t values (-1, 0)")
        assert lattice.execute(connection, "select count(*), sum(v) from t") == [(120_001, 0)]
        lattice.execute(connection, "vacuum")
        lattice.execute(connection, "update t set v = 1")
        assert lattice.execute(connection, "select count(*), sum(v) from t") == [(120_001, 120_001)]
        assert run("sql", "--host", f"127.0.0.1:{server.flight_port}", "-c", "select 1").returncode == 0
