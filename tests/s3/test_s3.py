"""The column tier on an S3 server: conditional writes, loading, crashes, and an unreachable store."""

from __future__ import annotations

import threading
import time

import pytest

import lattice
from gateway import binary


def serve(tmp_path, gateway, *settings, data="data", env=None):
    settings = ["storage.columns=s3://bucket/tier", *settings]
    return lattice.Server(tmp_path / data, settings=settings, env=gateway.environment | (env or {}))


def test_the_server_refuses_the_second_conditional_write(gateway):
    """What everything else stands on: of two writers of one name, one wins."""
    for attempt in range(20):
        answers: list[int] = []
        gate = threading.Barrier(8)

        def write(body: bytes, attempt=attempt, answers=answers, gate=gate):
            gate.wait()
            answers.append(gateway.request("PUT", f"/bucket/race-{attempt}", body, {"If-None-Match": "*"})[0])

        threads = [threading.Thread(target=write, args=(b"%d" % i * 1000,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers)[0] == 200 and answers.count(200) == 1, answers
        assert all(answer in (200, 409, 412) for answer in answers), answers


def test_load_query_restart(tmp_path, gateway):
    server = serve(tmp_path, gateway).start()
    try:
        with server.connect() as connection:
            for statement in lattice.tpch_tables():
                lattice.execute(connection, statement)
            files = lattice.tpch_data(0.01)
            for table in lattice.TABLES:
                lattice.load_table(connection, table, files)
            lattice.execute(connection, "update orders set o_totalprice = o_totalprice + 1 where o_orderkey < 100")
            before = lattice.execute(connection, "select count(*), sum(o_totalprice) from orders")
        assert server.stop() == 0
        assert gateway.request("GET", "/bucket?list-type=2")[1].count(b"<Key>") > 10, "nothing lies in the bucket"
        server.start()
        with server.connect() as connection:
            assert lattice.execute(connection, "select count(*), sum(o_totalprice) from orders") == before
            lattice.execute(connection, "insert into region values (100, 'NOWHERE', 'x')")
        server.kill()
        server.start()
        with server.connect() as connection:
            assert lattice.execute(connection, "select count(*), sum(o_totalprice) from orders") == before
            assert lattice.execute(connection, "select count(*) from region") == [(6,)]
    finally:
        server.kill()


def test_a_bucket_belongs_to_one_database(tmp_path, gateway):
    first = serve(tmp_path, gateway).start()
    try:
        with first.connect() as connection:
            lattice.execute(connection, "create table t (id int primary key)")
        second = serve(tmp_path, gateway, data="other")
        with pytest.raises(RuntimeError, match="ended with code 1"):
            second.start()
        with first.connect() as connection:
            assert lattice.execute(connection, "select count(*) from t") == [(0,)]
    finally:
        first.kill()


def test_while_the_store_cannot_be_reached(tmp_path, gateway):
    settings = ["storage.flush_bytes=64KiB", "storage.flush_interval=300ms", "storage.row_tier=1MiB", "storage.write_stall_timeout=2s"]
    server = serve(tmp_path, gateway, *settings).start()
    try:
        with server.connect() as connection:
            lattice.execute(connection, "create table t (id int primary key, body text)")
            lattice.execute(connection, "insert into t values (0, 'x')")
            lattice.execute(connection, "create table old (id int primary key, v text)")
            lattice.execute(connection, "insert into old select g, 'v' || g from generate_series(1, 5000) as s(g)")
            lattice.execute(connection, "vacuum old")
            # Read once, so that it is cached.
            assert lattice.execute(connection, "select count(v), max(id), max(v) from old") == [(5000, 5000, "v999")]
        gateway.stop()
        acked = {0}
        body = "x" * 20_000
        refused = None
        with server.connect() as connection:
            for key in range(1, 500):
                try:
                    lattice.execute(connection, f"insert into t values ({key}, '{body}')")
                    acked.add(key)
                except Exception as error:  # noqa: BLE001 - looked at below
                    refused = error
                    break
            assert refused is not None, "the row tier took more than its limit"
            message = str(refused)
            assert "53400" in message and "storage.row_tier" in message and "s3://bucket/tier" in message, message
            assert len(acked) > 10, "commits were to go on until the row tier is full"
            # Rows in memory, and cached ones of the column tier, are still answered.
            assert lattice.execute(connection, "select count(v), max(id), max(v) from old") == [(5000, 5000, "v999")]
            assert lattice.execute(connection, "select count(*) from t")[0][0] >= len(acked)
        gateway.start()
        deadline = time.monotonic() + 60
        with server.connect() as connection:
            while True:
                try:
                    lattice.execute(connection, f"insert into t values (1000, '{body}')")
                    break
                except Exception:  # noqa: BLE001 - until it recovers by itself
                    assert time.monotonic() < deadline, "writes did not come back by themselves"
                    time.sleep(0.5)
        server.kill()
        server.start()
        with server.connect() as connection:
            found = {row[0] for row in lattice.execute(connection, "select id from t")}
        assert acked <= found
    finally:
        server.kill()
