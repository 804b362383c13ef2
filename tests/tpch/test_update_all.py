"""UPDATE of every row of lineitem in one transaction, with a row tier far smaller than what it writes (storage rule 10).

Rolled back and committed, at scale factor 0.01 by default and at 1 with LATTICE_LONG=1. Beside it others write: new rows must
go through, the same rows must wait or conflict. Peak memory is reported; LATTICE_EVIDENCE=1 writes docs/evidence/update_all.json.
"""

from __future__ import annotations

import os
import threading
import time

import evidence
import lattice

LONG = bool(os.environ.get("LATTICE_LONG"))
SCALE = 1.0 if LONG else 0.01
ROW_TIER = "256MiB" if LONG else "4MiB"
SPILL = "64MiB" if LONG else "1MiB"
SETTINGS = [f"storage.row_tier={ROW_TIER}", f"storage.spill_bytes={SPILL}", "storage.cache=256MiB", "storage.lock_timeout=1s"]
SUMS = "select count(*), sum(l_quantity), sum(l_extendedprice), min(l_comment), max(l_comment) from lineitem where l_orderkey > 0"


def resident(server) -> dict[str, int]:
    """Peak and present memory of the process, in bytes."""
    lines = open(f"/proc/{server.process.pid}/status").read().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("peak", "VmHWM"), ("now", "VmRSS"))}


class Inserter(threading.Thread):
    """Inserts rows that the update does not touch; none may be refused."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.halt, self.count, self.error = server, threading.Event(), 0, None

    def run(self) -> None:
        try:
            with self.server.connect() as connection:
                while not self.halt.is_set():
                    self.count += 1
                    statement = (
                        "insert into lineitem select -{0}, l_partkey, l_suppkey, l_linenumber, l_quantity, l_extendedprice, l_discount, l_tax, "
                        "l_returnflag, l_linestatus, l_shipdate, l_commitdate, l_receiptdate, l_shipinstruct, l_shipmode, 'small' "
                        "from lineitem where l_orderkey = 1 and l_linenumber = 1"
                    ).format(self.count)
                    lattice.execute(connection, statement)
                    time.sleep(0.05)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error


def data_files(server) -> int:
    return sum(1 for path in (server.data / "columns").glob("t*/current/data/*"))


def test_update_all_lineitem(tmp_path):
    server = lattice.Server(tmp_path / "data", settings=SETTINGS).start()
    took: dict[str, float] = {}
    try:
        with server.connect() as connection:
            for statement in lattice.tpch_tables():
                if "lineitem" in statement:
                    lattice.execute(connection, statement)
            lattice.load_table(connection, "lineitem", lattice.tpch_data(SCALE))
            count, quantity, price, first, last = lattice.execute(connection, SUMS)[0]
            (moment,) = lattice.execute(connection, "select current_timestamp")[0]
        loaded, files = resident(server), data_files(server)
        for ending in ("rollback", "commit"):
            inserter = Inserter(server)
            with server.connect(autocommit=False) as connection:
                begun = time.monotonic()
                inserter.start()
                lattice.execute(connection, "update lineitem set l_quantity = l_quantity + 1, l_comment = 'updated' where l_orderkey > 0")
                assert lattice.execute(connection, SUMS)[0] == (count, quantity + count, price, "updated", "updated")
                with server.connect() as other:
                    try:
                        lattice.execute(other, "update lineitem set l_comment = 'late' where l_orderkey = 1 and l_linenumber = 1")
                        raise AssertionError("a row of the update was not locked")
                    except AssertionError:
                        raise
                    except Exception as error:  # noqa: BLE001 - its text is looked at
                        assert "lock timeout" in str(error), error
                    assert lattice.execute(other, SUMS)[0] == (count, quantity, price, first, last), "others see it too early"
                connection.rollback() if ending == "rollback" else connection.commit()
                took[ending] = time.monotonic() - begun
            inserter.halt.set()
            inserter.join()
            assert inserter.error is None, inserter.error
            assert inserter.count > 0
            expected = (count, quantity, price, first, last) if ending == "rollback" else (count, quantity + count, price, "updated", "updated")
            with server.connect() as connection:
                assert lattice.execute(connection, SUMS)[0] == expected, ending
                assert lattice.execute(connection, "select count(*) from lineitem where l_comment = 'small'")[0] == (inserter.count,)
                lattice.execute(connection, "delete from lineitem where l_orderkey < 0")
            if ending == "rollback":
                deadline = time.monotonic() + 30
                # What the rollback wrote goes at once; flushes of the small rows add few.
                while data_files(server) > files + 12:
                    assert time.monotonic() < deadline, f"{data_files(server)} files, {files} before"
                    time.sleep(0.1)
        peak = resident(server)
        with server.connect() as connection:
            past = SUMS.replace("from lineitem", f"from lineitem for system_time as of '{moment.isoformat(sep=' ')}'")
            assert lattice.execute(connection, past)[0] == (count, quantity, price, first, last)
        server.kill()
        server.start()
        with server.connect() as connection:
            assert lattice.execute(connection, SUMS)[0] == (count, quantity + count, price, "updated", "updated")
    finally:
        server.kill()
    print(
        f"{count:,} rows: rolled back in {took['rollback']:.1f} s, committed in {took['commit']:.1f} s; "
        f"memory {loaded['peak'] / 2**20:,.0f} MiB after the load, {peak['peak'] / 2**20:,.0f} MiB at most"
    )
    if os.environ.get("LATTICE_EVIDENCE"):
        rows = [
            evidence.row("rows", "lattice", "count", [count]),
            evidence.row("rollback", "lattice", "s", [took["rollback"]]),
            evidence.row("commit", "lattice", "s", [took["commit"]]),
            evidence.row("memory_after_load", "lattice", "bytes", [loaded["peak"]]),
            evidence.row("memory_peak", "lattice", "bytes", [peak["peak"]]),
        ]
        evidence.write("update_all", rows, "LATTICE_LONG=1 LATTICE_EVIDENCE=1 pytest tests/tpch/test_update_all.py", {})
