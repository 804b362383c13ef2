"""Backups and checks with an S3 server on either side."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

import lattice
from gateway import binary


def run(gateway, *args, timeout: float = 180) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")}
    command = [lattice.default_binary(), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=clean | gateway.environment)


def listed(gateway, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix. The gateway keeps objects as files."""
    folder = gateway.folder / "bucket" / prefix
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(connection, rows: int = 2000) -> None:
    lattice.execute(connection, "create table t (id int primary key, v text, w int unique)")
    lattice.execute(connection, "create index t_v on t (v)")
    lattice.execute(connection, f"insert into t select g, 'v' || g, g from generate_series(1, {rows}) as s(g)")
    lattice.execute(connection, "vacuum")
    lattice.execute(connection, "update t set v = 'changed' where id <= 100")


def test_from_a_folder_to_a_bucket_and_back(tmp_path, gateway):
    with lattice.Server(tmp_path / "data", env=gateway.environment) as server:
        with server.connect() as connection:
            fill(connection)
        host = ["--host", f"127.0.0.1:{server.flight_port}"]
        done = run(gateway, "backup", "s3://bucket/backups/one", *host)
        assert done.returncode == 0, done.stderr
        again = run(gateway, "backup", "s3://bucket/backups/one", *host)
        assert again.returncode == 0 and "in 1 file)" in again.stdout, again.stdout + again.stderr
    assert "MANIFEST" in listed(gateway, "backups/one")
    assert run(gateway, "restore", "s3://bucket/backups/one", "--verify").returncode == 0
    done = run(gateway, "restore", "s3://bucket/backups/one", "--data", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    with lattice.Server(tmp_path / "copy") as copy, copy.connect() as connection:
        assert lattice.execute(connection, "select count(*), count(case when v = 'changed' then 1 end) from t") == [(2000, 100)]
    # A damaged object is named.
    victim = next(path for path in (gateway.folder / "bucket/backups/one").rglob("*.lance"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    refused = run(gateway, "restore", "s3://bucket/backups/one", "--data", tmp_path / "other")
    assert refused.returncode == 1 and victim.name in refused.stderr, refused.stderr


def test_a_column_tier_in_a_bucket(tmp_path, gateway):
    server = lattice.Server(tmp_path / "data", settings=["storage.columns=s3://bucket/tier"], env=gateway.environment).start()
    try:
        with server.connect() as connection:
            fill(connection)
            expected = lattice.execute(connection, "select count(*), sum(w), max(v) from t")
        done = run(gateway, "backup", "s3://bucket/backup", "--host", f"127.0.0.1:{server.flight_port}")
        assert done.returncode == 0, done.stderr
        # Onto the original's tier: refused. Onto an empty place of its own: both run side by side.
        taken = run(gateway, "restore", "s3://bucket/backup", "--data", tmp_path / "copy", "--set", "storage.columns=s3://bucket/tier")
        assert taken.returncode == 1 and "s3://bucket/tier is not empty" in taken.stderr, taken.stderr
        assert not (tmp_path / "copy").exists()
        done = run(gateway, "restore", "s3://bucket/backup", "--data", tmp_path / "copy", "--set", "storage.columns=s3://bucket/tier2")
        assert done.returncode == 0, done.stderr
        with lattice.Server(tmp_path / "copy", settings=["storage.columns=s3://bucket/tier2"], env=gateway.environment) as copy:
            with copy.connect() as connection:
                assert lattice.execute(connection, "select count(*), sum(w), max(v) from t") == expected
                lattice.execute(connection, "delete from t")
            with server.connect() as connection:
                assert lattice.execute(connection, "select count(*), sum(w), max(v) from t") == expected
        # Each is refused at the other's.
        crossed = lattice.Server(tmp_path / "copy", settings=["storage.columns=s3://bucket/tier"], env=gateway.environment)
        with pytest.raises(RuntimeError, match="ended with code 1"):
            crossed.start()
    finally:
        server.kill()


def test_a_check_leaves_the_bucket_as_it_is(tmp_path, gateway):
    server = lattice.Server(tmp_path / "data", settings=["storage.columns=s3://bucket/tier"], env=gateway.environment).start()
    with server.connect() as connection:
        fill(connection)
    server.kill()
    before = listed(gateway, "tier")
    check = ["check", "--data", server.data, "--set", "storage.columns=s3://bucket/tier"]
    done = run(gateway, *check)
    assert done.returncode == 0 and "0 faults" in done.stdout, done.stdout + done.stderr
    assert listed(gateway, "tier") == before
    victim = max((gateway.folder / "bucket/tier").rglob("*.lance"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 0x10
    victim.write_bytes(content)
    done = run(gateway, *check)
    assert done.returncode == 1 and victim.name in done.stdout and "checksum" in done.stdout, done.stdout + done.stderr


def test_a_bucket_that_goes_away(tmp_path, gateway):
    with lattice.Server(tmp_path / "data", env=gateway.environment) as server:
        with server.connect() as connection:
            fill(connection)
        gateway.stop()
        started = time.monotonic()
        away = run(gateway, "backup", "s3://bucket/backup", "--host", f"127.0.0.1:{server.flight_port}")
        assert away.returncode == 1 and "s3://bucket/backup" in away.stderr and time.monotonic() - started < 90, away.stderr
        assert len(away.stderr.strip().splitlines()) <= 3, away.stderr
        with server.connect() as connection:
            lattice.execute(connection, "insert into t values (5000, 'goes on', 5000)")
        gateway.start()
        assert run(gateway, "backup", "s3://bucket/backup", "--host", f"127.0.0.1:{server.flight_port}").returncode == 0
    nothing = run(gateway, "restore", "s3://bucket/none", "--data", tmp_path / "copy")
    assert nothing.returncode == 1 and "there is no backup at s3://bucket/none" in nothing.stderr, nothing.stderr
