"""The counters in /metrics."""

from __future__ import annotations

import pytest

import lattice


def test_conflicts_are_counted(tmp_path):
    with lattice.Server(tmp_path / "data") as server, server.connect() as one, server.connect() as other:
        lattice.execute(one, "create table c (id int primary key, n int)")
        lattice.execute(one, "insert into c values (1, 0)")
        before = server.metrics()
        lattice.execute(one, "begin")
        assert lattice.execute(one, "select n from c") == [(0,)]
        lattice.execute(other, "update c set n = 1")
        with pytest.raises(Exception, match="40001"):
            lattice.execute(one, "update c set n = 2")
        lattice.execute(one, "rollback")
        after = server.metrics()
    for name in ["lattice_sql_conflicts_total", "lattice_storage_conflicts_total"]:
        assert after[name] == before[name] + 1, (name, before[name], after[name])
