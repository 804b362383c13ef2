"""Backups of a running server, and what is made of them."""

from __future__ import annotations

import threading
import time

import pytest

import lattice
from tools import run


def host(server) -> list[str]:
    return ["--host", f"127.0.0.1:{server.flight_port}"]


SCHEMA = [
    "create table p (id int generated always as identity primary key, name text unique, v int)",
    "create table c (id int primary key, p int not null references p, body text)",
    "create index c_body on c (body)",
    "create sequence s start 100",
    "create view both_sides as select p.name, c.body from p join c on c.p = p.id",
]


def test_a_backup_is_taken_while_clients_write(tmp_path):
    """One writer moves units between rows, so a mixture of moments would show in the sum."""
    settings = ["storage.flush_interval=200ms", "storage.merge_files=2"]
    with lattice.Server(tmp_path / "data", settings=settings) as server:
        with server.connect() as connection:
            for statement in SCHEMA:
                lattice.execute(connection, statement)
            lattice.execute(connection, "insert into p (name, v) select 'n' || g, 100 from generate_series(1, 500) as s(g)")
            lattice.execute(connection, "insert into c select g, 1 + g % 500, 'b' || g from generate_series(1, 30000) as s(g)")
            assert lattice.execute(connection, "select nextval('s')") == [(100,)]
            early = lattice.execute(connection, "select current_timestamp::text")[0][0]
            lattice.execute(connection, "update p set v = v + 1 where id = 1")
            lattice.execute(connection, "update p set v = v - 1 where id = 2")
        stop, moved, failures = threading.Event(), [0], []

        def write(number: int):
            try:
                with server.connect(autocommit=False) as connection:
                    step = 0
                    while not stop.is_set():
                        step += 1
                        a, b = 10 + 40 * number + step % 30, 11 + 40 * number + step % 30
                        lattice.execute(connection, f"update p set v = v - 1 where id = {a}")
                        lattice.execute(connection, f"update p set v = v + 1 where id = {b}")
                        lattice.execute(connection, f"insert into c values ({100000 + number * 100000 + step}, {a}, 'w{step}')")
                        connection.commit()
                        moved[0] += 1
            except Exception as error:  # noqa: BLE001 - reported by the test
                failures.append(error)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for writer in writers:
            writer.start()
        try:
            time.sleep(1)
            before = moved[0]
            done = run("backup", tmp_path / "backup", *host(server))
            assert done.returncode == 0, done.stderr
            assert "everything up to" in done.stdout and "MiB" in done.stdout or "KiB" in done.stdout, done.stdout
            while moved[0] == before and not failures:
                time.sleep(0.05)
            # The same over SQL, and only what is new is sent.
            with server.connect() as connection:
                as_of, files, size, copied, copied_bytes = lattice.execute(connection, f"BACKUP TO '{tmp_path}/backup'")[0]
                assert files > copied > 0 and size > copied_bytes
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        assert not failures, failures[0]
        with server.connect() as connection:
            then = f"for system_time as of timestamptz '{as_of.isoformat()}'"
            rows = lattice.execute(connection, f"select * from p {then} order by id")
            children = lattice.execute(connection, f"select count(*), sum(id), max(body) from c {then}")
            past = lattice.execute(connection, f"select sum(v), max(v) from p for system_time as of timestamptz '{early}'")
        sound = run("restore", tmp_path / "backup", "--verify")
        assert sound.returncode == 0 and "is sound" in sound.stdout, sound.stderr
        done = run("restore", tmp_path / "backup", "--data", tmp_path / "copy")
        assert done.returncode == 0, done.stderr
        assert "lattice serve --data" in done.stdout
        # Both run side by side: the copy is a database of its own.
        with lattice.Server(tmp_path / "copy") as copy, copy.connect() as connection:
            assert lattice.execute(connection, "select * from p order by id") == rows
            assert lattice.execute(connection, "select sum(v) from p") == [(50_000,)]
            assert lattice.execute(connection, "select count(*), sum(id), max(body) from c") == children
            assert lattice.execute(connection, f"select sum(v), max(v) from p for system_time as of timestamptz '{early}'") == past
            assert lattice.execute(connection, "select count(*) from both_sides")[0] == (children[0][0],)
            assert lattice.execute(connection, "select nextval('s')")[0][0] > 100
            lattice.execute(connection, "insert into p (name, v) values ('new', 0)")
            assert lattice.execute(connection, "select id > 500 from p where name = 'new'") == [(True,)]
            with pytest.raises(Exception, match="23505"):
                lattice.execute(connection, "insert into p (name, v) values ('n7', 0)")
            with pytest.raises(Exception, match="23503"):
                lattice.execute(connection, "insert into c values (999999, 424242, 'x')")
            assert copy.stop() == 0
        with server.connect() as connection:
            assert lattice.execute(connection, "select count(*) from p where name = 'new'") == [(0,)]


def test_the_folder_of_a_stopped_server(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id int primary key, v text)")
        lattice.execute(connection, "insert into t select g, 'v' || g from generate_series(1, 1000) as s(g)")
    refused = run("backup", tmp_path / "backup", "--data", server.data)
    assert refused.returncode == 1 and "in use" in refused.stderr and "leave --data out" in refused.stderr
    server.kill()
    done = run("backup", tmp_path / "backup", "--data", server.data)
    assert done.returncode == 0, done.stderr
    done = run("restore", tmp_path / "backup", "--data", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    with lattice.Server(tmp_path / "copy") as copy, copy.connect() as connection:
        assert lattice.execute(connection, "select count(*), max(v) from t") == [(1000, "v999")]


def test_what_is_refused(tmp_path):
    with lattice.Server(tmp_path / "data") as server:
        with server.connect() as connection:
            lattice.execute(connection, "create table t (id int primary key)")
            with pytest.raises(Exception, match="absolute path"):
                lattice.execute(connection, "BACKUP TO 'here'")
            with pytest.raises(Exception, match="42601"):
                lattice.execute(connection, "BACKUP 'here'")
            with pytest.raises(Exception, match="inside the database"):
                lattice.execute(connection, f"BACKUP TO '{server.data}/backups'")
        with server.connect(autocommit=False) as connection, pytest.raises(Exception, match="25001"):
            lattice.execute(connection, f"BACKUP TO '{tmp_path}/backup'")
        letters = tmp_path / "letters"
        letters.mkdir()
        (letters / "a.txt").write_text("dear")
        refused = run("backup", letters, *host(server))
        assert refused.returncode == 1 and "not empty" in refused.stderr, refused.stderr
        assert [path.name for path in letters.iterdir()] == ["a.txt"]
        away = run("backup", "s3://bucket/backup", *host(server))
        assert away.returncode == 1 and "s3://bucket/backup" in away.stderr and "AWS_" in away.stderr, away.stderr
        assert len(away.stderr.strip().splitlines()) <= 3, away.stderr
        assert run("backup", tmp_path / "backup", *host(server)).returncode == 0
        refused = run("restore", tmp_path / "backup", "--data", server.data)
        assert refused.returncode == 1 and "is a database already: restore into an empty or new folder" in refused.stderr, refused.stderr
    nobody = run("backup", tmp_path / "b", "--host", "127.0.0.1:1")
    assert nobody.returncode == 1 and "no server answers" in nobody.stderr
    nothing = run("restore", tmp_path / "none", "--data", tmp_path / "copy")
    assert nothing.returncode == 1 and "there is no backup at" in nothing.stderr
    assert not (tmp_path / "copy").exists()
    # Cut off: the manifest is missing, a file is short, a byte is wrong.
    backup = tmp_path / "backup"
    manifest = (backup / "MANIFEST").read_bytes()
    (backup / "MANIFEST").unlink()
    refused = run("restore", backup, "--data", tmp_path / "copy")
    assert refused.returncode == 1 and "never finished" in refused.stderr
    (backup / "MANIFEST").write_bytes(manifest[:8] + b"\x63" + manifest[9:])
    refused = run("restore", backup, "--data", tmp_path / "copy")
    assert refused.returncode == 1 and "format 99" in refused.stderr, refused.stderr
    (backup / "MANIFEST").write_bytes(manifest)
    checkpoint = next(backup.glob("checkpoint-*"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    refused = run("restore", backup, "--data", tmp_path / "copy")
    assert refused.returncode == 1 and checkpoint.name in refused.stderr, refused.stderr
    assert not (tmp_path / "copy").exists()


def test_a_restore_that_was_cut_off_is_refused(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id int primary key)")
        lattice.execute(connection, "insert into t values (1)")
    assert run("backup", tmp_path / "backup", *host(server)).returncode == 0
    server.kill()
    for failpoint in ["restore.copied", "restore.checkpoint"]:
        folder = tmp_path / failpoint
        cut = run("restore", tmp_path / "backup", "--data", folder, env={"LATTICE_FAILPOINT": failpoint})
        assert cut.returncode != 0
        refused = run("serve", "--data", folder, "--flight", "127.0.0.1:0", "--http", "")
        assert refused.returncode == 1 and "was not finished" in refused.stderr, refused.stderr


@pytest.mark.parametrize("failpoint", ["backup.copied_ahead", "backup.copied", "backup.checkpoint", "backup.manifest"])
def test_a_server_that_dies_during_a_backup(tmp_path, failpoint):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id int primary key)")
        lattice.execute(connection, "insert into t values (1)")
    assert run("backup", tmp_path / "backup", *host(server)).returncode == 0
    server.stop()
    server.env["LATTICE_FAILPOINT"] = failpoint
    server.start()
    with server.connect() as connection:
        lattice.execute(connection, "insert into t values (2)")
    assert run("backup", tmp_path / "backup", *host(server)).returncode == 1
    server.process.wait(20)
    server.kill()
    # What is there is the old backup, or, once its manifest is written, the new one.
    assert run("restore", tmp_path / "backup", "--data", tmp_path / "copy").returncode == 0
    with lattice.Server(tmp_path / "copy") as copy, copy.connect() as connection:
        assert lattice.execute(connection, "select max(id) from t") == [(2 if failpoint == "backup.manifest" else 1,)]
    del server.env["LATTICE_FAILPOINT"]
    with server, server.connect() as connection:
        assert lattice.execute(connection, "select max(id) from t") == [(2,)]
        assert run("backup", tmp_path / "backup", *host(server)).returncode == 0
