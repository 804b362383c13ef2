"""The log stays short with many tables of which one is written, and a start is quick (storage rule 1).

60 tables by default, 500 with LATTICE_LONG=1; LATTICE_EVIDENCE=1 writes docs/evidence/log.json.
"""

from __future__ import annotations

import os
import time

import evidence
import lattice

LONG = bool(os.environ.get("LATTICE_LONG"))
TABLES = 500 if LONG else 60
COMMITS = 4000 if LONG else 1000
LOG_MAX = 8 << 20
SEGMENT = 1 << 20
SETTINGS = [
    f"storage.log_max={LOG_MAX}B", f"storage.journal_segment={SEGMENT}B", "storage.flush_bytes=4MiB",
    # Long after the test: no table is flushed because it is old.
    "storage.flush_interval=1h",
]  # fmt: skip


def test_idle_tables_do_not_keep_the_log(tmp_path):
    server = lattice.Server(tmp_path / "data", settings=SETTINGS).start()
    longest, starts = 0.0, []
    try:
        with server.connect() as connection:
            for number in range(TABLES):
                lattice.execute(connection, f"create table t{number} (id int primary key, v text)")
                lattice.execute(connection, f"insert into t{number} values (1, 'cold')")
            body = "h" * 2000
            for commit in range(COMMITS):
                rows = ", ".join(f"({1000 + commit * 10 + row}, '{body}')" for row in range(10))
                lattice.execute(connection, f"insert into t0 values {rows}")
                if commit % 20 == 0:
                    longest = max(longest, server.metrics()["lattice_journal_bytes"])
            deadline = time.monotonic() + 60
            while server.metrics()["lattice_journal_bytes"] > LOG_MAX + SEGMENT:
                assert time.monotonic() < deadline, "the log is never cut"
                time.sleep(0.1)
        written = COMMITS * 10 * len(body)
        # A checkpoint takes a while, during which writers go on.
        assert longest < max(4 * LOG_MAX, written / 4), f"the log grew to {longest:,.0f} bytes"
        for way in ("kill", "stop"):
            server.kill() if way == "kill" else server.stop()
            begun = time.monotonic()
            server.start()
            starts.append(time.monotonic() - begun)
            assert starts[-1] < 10, f"a start after {way} took {starts[-1]:.1f} s"
            with server.connect() as connection:
                assert lattice.execute(connection, "select count(*) from t0") == [(1 + COMMITS * 10,)]
                for number in range(1, TABLES, 50):
                    assert lattice.execute(connection, f"select id, v from t{number}") == [(1, "cold")]
    finally:
        server.kill()
    print(f"{TABLES} tables: log at most {longest / 2**20:.0f} MiB, starts {', '.join(f'{start:.1f} s' for start in starts)}")
    if os.environ.get("LATTICE_EVIDENCE"):
        rows = [
            evidence.row("tables", "lattice", "count", [TABLES]),
            evidence.row("written", "lattice", "bytes", [written]),
            evidence.row("log_limit", "lattice", "bytes", [LOG_MAX]),
            evidence.row("log_longest", "lattice", "bytes", [longest]),
            evidence.row("start_after_kill", "lattice", "s", starts[:1]),
            evidence.row("start_after_stop", "lattice", "s", starts[1:]),
        ]
        evidence.write("log", rows, "LATTICE_LONG=1 LATTICE_EVIDENCE=1 pytest tests/server/test_log.py", {})
