"""The 22 answers equal DuckDB's wherever the rows lie, while they change, and after a crash.

At scale factor 0.01 by default; with LATTICE_LONG=1 also 0.1, and 1 for everything that does not force all rows into
memory. The server's own counters prove which tier the rows came from. With LATTICE_EVIDENCE=1 the number of answers that
were compared goes to docs/evidence/tpch_answers.json.
"""

from __future__ import annotations

import os
import random
import threading

import duckdb
import pytest

import evidence
import lattice
from answers import same_answer

SCALES = [0.01, 0.1] if os.environ.get("LATTICE_LONG") else [0.01]
LARGE = [1.0] if os.environ.get("LATTICE_LONG") else []

# Rows stay in the row tier: nothing is large or old enough to move.
KEEP_ROWS = [
    "storage.flush_bytes=1TiB", "storage.flush_interval=0", "storage.row_tier=8GiB", "storage.log_max=1TiB",
    "storage.spill_bytes=1TiB", "sql.bulk_rows=1000000000",
]  # fmt: skip


#: Answers compared, and those that were wrong, by where the rows lay.
COMPARED: dict[str, list[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def record():
    yield
    if os.environ.get("LATTICE_EVIDENCE") and COMPARED:
        rows = [evidence.row(where, "lattice", "queries", [count]) for where, (count, _) in COMPARED.items()]
        rows.append(evidence.row("violations", "lattice", "queries", [sum(wrong for _, wrong in COMPARED.values())]))
        command = "LATTICE_LONG=1 LATTICE_EVIDENCE=1 pytest tests/tpch/test_answers.py"
        evidence.write("tpch_answers", rows, command, {"duckdb": duckdb.__version__})


@pytest.fixture(scope="module")
def reference():
    """DuckDB's answers by scale factor."""
    known: dict[float, dict[int, list]] = {}

    def answers(scale: float) -> dict[int, list]:
        if scale not in known:
            files = lattice.tpch_data(scale)
            with duckdb.connect() as duck:
                for table in lattice.TABLES:
                    duck.execute(f"create view {table} as select * from '{files}/{table}.parquet'")
                known[scale] = {n: duck.execute(lattice.tpch_query(n, scale)).fetchall() for n in range(1, 23)}
        return known[scale]

    return answers


def create(connection) -> None:
    for statement in lattice.tpch_tables():
        lattice.execute(connection, statement)


def load(connection, scale: float) -> None:
    """Loads the tables, each in one bulk ingest."""
    files = lattice.tpch_data(scale)
    for table in lattice.TABLES:
        lattice.load_table(connection, table, files)


def check(connection, scale: float, expected: dict[int, list], where: str) -> None:
    faults = []
    for number in range(1, 23):
        wrong = same_answer(number, lattice.execute(connection, lattice.tpch_query(number, scale)), expected[number])
        if wrong:
            faults.append(f"query {number}: {wrong}")
    COMPARED[f"{where}_sf{scale:g}"] = [22, len(faults)]
    assert not faults, "\n".join(faults)


def scanned(server) -> tuple[float, float]:
    metrics = server.metrics()
    return metrics["lattice_rows_scanned_total"], metrics["lattice_columns_scanned_total"]


@pytest.mark.parametrize("scale", SCALES)
def test_all_rows_in_the_row_tier(tmp_path, reference, scale):
    with lattice.Server(tmp_path / "data", settings=KEEP_ROWS) as server, server.connect() as connection:
        create(connection)
        load(connection, scale)
        before = scanned(server)
        check(connection, scale, reference(scale), "rows_only")
        after = scanned(server)
        assert after[0] > before[0], "no row came from the row tier"
        assert after[1] == before[1], "rows came from the column tier"


@pytest.mark.parametrize("scale", SCALES + LARGE)
def test_all_rows_in_the_column_tier(tmp_path, reference, scale):
    server = lattice.Server(tmp_path / "data").start()
    try:
        with server.connect() as connection:
            create(connection)
            load(connection, scale)
        # A clean stop moves every row.
        assert server.stop() == 0
        server.start()
        with server.connect() as connection:
            before = scanned(server)
            check(connection, scale, reference(scale), "columns_only")
            after = scanned(server)
        assert after[1] > before[1], "no row came from the column tier"
        # The catalog's own rows may still lie in the row tier; TPC-H's are far more.
        assert after[0] - before[0] < 20_000, "rows came from the row tier"
    finally:
        server.kill()


@pytest.mark.parametrize("scale", SCALES)
def test_half_of_the_rows_in_each_tier(tmp_path, reference, scale):
    server = lattice.Server(tmp_path / "data", settings=KEEP_ROWS).start()
    half = {table: lattice.pq.read_metadata(lattice.tpch_data(scale) / f"{table}.parquet").num_rows // 2 for table in lattice.TABLES}
    try:
        with server.connect() as connection:
            create(connection)
            files = lattice.tpch_data(scale)
            for table in lattice.TABLES:
                content = lattice.parquet_reader(files / f"{table}.parquet").read_all()
                with connection.cursor() as cursor:
                    cursor.adbc_ingest(table, content.slice(0, half[table]), mode="append")
        assert server.stop() == 0
        server.start()
        with server.connect() as connection:
            for table in lattice.TABLES:
                content = lattice.parquet_reader(files / f"{table}.parquet").read_all()
                with connection.cursor() as cursor:
                    cursor.adbc_ingest(table, content.slice(half[table]), mode="append")
            before = scanned(server)
            check(connection, scale, reference(scale), "half_and_half")
            after = scanned(server)
            assert after[0] > before[0] and after[1] > before[1], f"both tiers must be read: {before} {after}"
    finally:
        server.kill()


class Writer(threading.Thread):
    """Rewrites columns that no query reads, so that rows move between the tiers and no answer may change."""

    def __init__(self, server, keys):
        super().__init__(daemon=True)
        self.server, self.keys, self.halt, self.commits, self.error = server, keys, threading.Event(), 0, None

    def run(self) -> None:
        rng = random.Random(7)
        try:
            with self.server.connect(autocommit=False) as connection, connection.cursor() as cursor:
                while not self.halt.is_set():
                    key = rng.choice(self.keys)
                    cursor.execute(f"update lineitem set l_comment = 'changed {rng.random()}' where l_orderkey = {key}")
                    cursor.execute(f"update orders set o_clerk = 'Clerk#{rng.randrange(1000):09}' where o_orderkey = {key}")
                    connection.commit()
                    self.commits += 1
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error


@pytest.mark.parametrize("scale", SCALES[:1] + LARGE)
def test_while_a_writer_updates_and_after_a_crash(tmp_path, reference, scale):
    settings = ["storage.flush_bytes=256KiB", "storage.flush_interval=1s"]
    server = lattice.Server(tmp_path / "data", settings=settings).start()
    try:
        with server.connect() as connection:
            create(connection)
            load(connection, scale)
            keys = [row[0] for row in lattice.execute(connection, "select o_orderkey from orders order by o_orderkey limit 2000")]
            writer = Writer(server, keys)
            writer.start()
            check(connection, scale, reference(scale), "beside_a_writer")
            writer.halt.set()
            writer.join()
        assert writer.error is None, writer.error
        assert writer.commits > 0
        server.kill()
        server.start()
        with server.connect() as connection:
            check(connection, scale, reference(scale), "after_kill")
            (changed,) = lattice.execute(connection, "select count(*) from lineitem where l_comment like 'changed %'")[0]
            assert changed > 0
    finally:
        server.kill()
