"""`lattice check`: what is sound passes, each kind of damage is one line that names it, and nothing is written."""

from __future__ import annotations

import pytest

import lattice
from tools import run


def content(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def data(tmp_path):
    """The folder of a server that was killed, with rows in both tiers and a history."""
    server = lattice.Server(tmp_path / "data", settings=["storage.flush_interval=1h"]).start()
    with server.connect() as connection:
        lattice.execute(connection, "create table p (id int primary key, v text not null)")
        lattice.execute(connection, "create table c (id int primary key, p int references p, w int unique)")
        lattice.execute(connection, "create index c_p on c (p)")
        lattice.execute(connection, "insert into p select g, 'v' || g from generate_series(1, 30000) as s(g)")
        lattice.execute(connection, "insert into c select g, g, g from generate_series(1, 2000) as s(g)")
        lattice.execute(connection, "vacuum")
        lattice.execute(connection, "update p set v = 'new' where id <= 50")
        lattice.execute(connection, "delete from c where id <= 10")
        lattice.execute(connection, "vacuum")
        lattice.execute(connection, "update p set v = 'newer' where id <= 5")
    server.kill()
    return server.data


def test_a_sound_database(data):
    before = content(data)
    done = run("check", "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 tables with 31,990 rows" in done.stdout and done.stdout.rstrip().endswith("0 faults"), done.stdout
    assert "checkpoint and log are sound" in done.stdout
    assert content(data) == before, "a check writes nothing"
    # A server still opens it, and keeps a check out meanwhile.
    with lattice.Server(data) as server, server.connect() as connection:
        assert lattice.execute(connection, "select count(*) from p where v = 'newer'") == [(5,)]
        refused = run("check", "--data", data)
        assert refused.returncode == 1 and "in use" in refused.stderr and "0 faults" not in refused.stdout, refused.stderr


def largest(data, pattern: str):
    return max(data.glob(pattern), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("pattern", "damage", "reason"),
    [
        ("columns/*/current/data/*.lance", "flip", "its checksum does not match"),
        ("columns/*/history/data/*.lance", "flip", "its checksum does not match"),
        ("columns/*/current/data/*.lance", "cut", "bytes where"),
        ("columns/*/current/data/*.lance", "remove", "is missing"),
        ("columns/*/current/_stats/*.stats", "flip", "checksum mismatch"),
        ("columns/*/history/_stats/*.stats", "remove", "is missing"),
    ],
)
def test_damage_is_one_line(data, pattern, damage, reason):
    victim = largest(data, pattern)
    whole = victim.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0x40
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(changed if damage == "flip" else whole[:-100])
    done = run("check", "--data", data)
    assert done.returncode == 1, done.stdout
    about = [line for line in done.stdout.splitlines() if victim.name in line and reason in line]
    assert len(about) == 1, done.stdout
    assert about[0].startswith("public.") and "restore a backup" in about[0], about
    assert "fault" in done.stderr and " found; " in done.stderr


def test_files_that_belong_to_nothing_are_listed(data):
    stray = next(data.glob("columns/t*/current/data")) / "77-stray.lance"
    stray.write_bytes(b"left over")
    done = run("check", "--data", data)
    assert done.returncode == 0, done.stdout
    assert "77-stray.lance (9 bytes)" in done.stdout and "belonging to nothing" in done.stdout, done.stdout
    assert stray.exists()


def test_what_is_no_database(tmp_path):
    refused = run("check", "--data", tmp_path)
    assert refused.returncode == 1 and "not the data folder" in refused.stderr
    assert list(tmp_path.iterdir()) == []
