"""The process: starting, listening, stopping, and what it refuses."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

import lattice


def run(*args: str, env: dict | None = None, timeout: float = 60, stdin: str | None = None) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")}
    return subprocess.run(
        [lattice.default_binary(), *args],
        capture_output=True, text=True, timeout=timeout, env=clean | (env or {}), input=stdin,
    )  # fmt: skip


def get(url: str, user: str | None = None, password: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url)
    if user is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def server(tmp_path):
    with lattice.Server(tmp_path / "data") as running:
        yield running


def test_pages(server):
    assert get(f"{server.http}/health") == (200, "ok\n")
    assert get(f"{server.http}/ready") == (200, "ready\n")
    status, page = get(f"{server.http}/")
    assert status == 200 and "LatticeDB" in page and "Running statements" in page
    assert get(f"{server.http}/nothing")[0] == 404
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id int primary key)")
        lattice.execute(connection, "insert into t values (1), (2)")
        assert lattice.execute(connection, "select count(*) from t") == [(2,)]
    metrics = server.metrics()
    assert metrics["lattice_sql_statements_total"] >= 3
    assert metrics["lattice_sql_rows_written_total"] >= 2
    assert metrics["lattice_flight_connections_total"] >= 1
    assert metrics['lattice_flight_calls_total{method="DoGet",code="OK"}'] >= 1
    assert metrics["process_resident_memory_bytes"] > 1_000_000


def test_the_first_screen_says_how_to_connect(server):
    screen = server.log.read_text()
    assert f"grpc://127.0.0.1:{server.flight_port}" in screen
    assert "LATTICE_ADMIN_PASSWORD is not set" in screen
    assert "lattice sql" in screen


def test_sigterm_drains_flushes_and_exits_with_zero(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id bigint primary key, v text)")
        lattice.execute(connection, "insert into t select g, 'row ' || g from generate_series(1, 5000) as s(g)")
        answers: list = []
        slow = "select count(*) from t a join t b on a.id % 50 = b.id % 50 where a.v <= b.v or a.v > b.v"

        def ask():
            # Closing the statement afterwards fails: the server is gone by then.
            other = server.connect()
            cursor = other.cursor()
            cursor.execute(slow)
            answers.append(cursor.fetchall())

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        assert server.stop() == 0
        thread.join(30)
    assert answers == [[(500_000,)]], "the running statement was to finish"
    server.start()
    with server.connect() as connection:
        assert lattice.execute(connection, "select count(*), max(v) from t") == [(5000, "row 999")]
    # A clean stop leaves nothing to replay: all rows come from the column tier.
    assert server.stop() == 0


def test_kill_and_second_start(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id int primary key)")
        for key in range(20):
            lattice.execute(connection, f"insert into t values ({key})")
    server.kill()
    server.start()
    with server.connect() as connection:
        assert lattice.execute(connection, "select count(*) from t") == [(20,)]
    server.kill()


def test_a_second_server_on_the_folder_is_refused(server):
    other = run("serve", "--data", str(server.data), "--flight", "127.0.0.1:0", "--http", "")
    assert other.returncode == 1
    assert "in use" in other.stderr or "another" in other.stderr or "lock" in other.stderr, other.stderr
    assert len(other.stderr.strip().splitlines()) <= 3
    with server.connect() as connection:
        assert lattice.execute(connection, "select 1") == [(1,)]


def test_a_port_in_use_is_refused_before_anything_is_made(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("serve", "--data", str(tmp_path / "data"), "--flight", f"127.0.0.1:{port}", "--http", "")
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr and "another port" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "letters.txt").write_text("not a database")
    refused = run("serve", "--data", str(data), "--flight", "127.0.0.1:0", "--http", "")
    assert refused.returncode == 1
    assert str(data) in refused.stderr
    assert sorted(path.name for path in data.iterdir()) == ["letters.txt"]


def test_settings_that_are_not_understood_stop_the_start(tmp_path):
    file = tmp_path / "lattice.toml"
    file.write_text("[storage]\nrow_teir = \"1GiB\"\n")
    refused = run("serve", "--config", str(file), "--data", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert "did you mean `storage.row_tier`" in refused.stderr
    refused = run("serve", "--data", str(tmp_path / "data"), env={"LATTICE_PROT": "1"})
    assert refused.returncode == 1 and "LATTICE_PROT" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_beyond_loopback_it_wants_password_and_tls(tmp_path):
    refused = run("serve", "--data", str(tmp_path / "data"), "--flight", "0.0.0.0:0")
    assert refused.returncode == 1
    assert "LATTICE_ADMIN_PASSWORD" in refused.stderr and "--tls-cert" in refused.stderr and "--insecure" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_password_is_asked_for_everywhere(tmp_path):
    with lattice.Server(tmp_path / "data", env={"LATTICE_ADMIN_PASSWORD": "se:cret"}) as server:
        for user, password in [(None, None), ("admin", "wrong"), ("root", "se:cret"), ("admin", "")]:
            with pytest.raises(Exception, match="(?i)password|credentials|authent"):
                with lattice.connect(server.uri, username=user, password=password) as connection:
                    lattice.execute(connection, "select 1")
        with lattice.connect(server.uri, username="admin", password="se:cret") as connection:
            assert lattice.execute(connection, "select current_user") == [("admin",)]
        assert get(f"{server.http}/health")[0] == 200
        assert get(f"{server.http}/metrics")[0] == 401
        assert get(f"{server.http}/")[0] == 401
        assert get(f"{server.http}/metrics", "admin", "se:cret")[0] == 200


def test_a_second_signal_stops_at_once(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table t (id bigint primary key)")
        lattice.execute(connection, "insert into t select g from generate_series(1, 20000) as s(g)")

    def endless():
        try:
            with server.connect() as other:
                lattice.execute(other, "select count(*) from t a, t b, t c where a.id + b.id + c.id < 0")
        except Exception:  # noqa: BLE001 - it is meant to be cut off
            pass

    thread = threading.Thread(target=endless, daemon=True)
    thread.start()
    time.sleep(0.5)
    process = server.process
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "it waits for the running statement"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    server.process = None


def test_the_shell(server):
    host = ["--host", f"127.0.0.1:{server.flight_port}"]
    script = "create table t (id int primary key, name text);\ninsert into t values (1, 'ä'), (2, NULL);\nselect * from t order by id"
    done = run("sql", *host, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "CREATE TABLE", "INSERT: 2 rows", "+----+------+", "| id | name |", "+----+------+", "|  1 | ä    |", "|  2 | NULL |", "+----+------+", "2 rows",
    ]  # fmt: skip
    done = run("sql", *host, "--format", "csv", "-c", "select * from t order by id")
    assert done.stdout == "id,name\n1,ä\n2,\n"
    done = run("sql", *host, "--format", "json", stdin="select id, name from t where id = 2;")
    assert done.stdout == '[{"id":2,"name":null}]\n'
    done = run("sql", *host, "-c", "\\d t")
    assert done.returncode == 0 and "not null" in done.stdout and "PRIMARY KEY (id)" in done.stdout, done.stdout
    done = run("sql", *host, "-c", "\\dt")
    assert "public" in done.stdout and " t " in done.stdout
    failed = run("sql", *host, "-c", "select nam from t; select 'never'")
    assert failed.returncode == 1 and "42703" in failed.stderr and "never" not in failed.stdout
    assert 'did you mean "t.name"?' in failed.stderr
    failed = run("sql", *host, "-c", "select 1 form t")
    assert failed.returncode == 1 and "42601" in failed.stderr and "^" in failed.stderr
    nobody = run("sql", "--host", "127.0.0.1:1", "-c", "select 1")
    assert nobody.returncode == 2 and "no server answers" in nobody.stderr


def test_load(server, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    host = ["--host", f"127.0.0.1:{server.flight_port}"]
    pq.write_table(pa.table({"id": range(1000), "v": [f"row {i}" for i in range(1000)]}), tmp_path / "a.parquet")
    done = run("load", *host, str(tmp_path / "a.parquet"), "--table", "a")
    assert done.returncode == 0 and "1,000 rows" in done.stdout, done.stderr
    (tmp_path / "b.csv").write_text("id,v\n5000,from csv\n5001,\n")
    done = run("load", *host, str(tmp_path / "b.csv"), "--table", "a")
    assert done.returncode == 0, done.stderr
    (tmp_path / "c.jsonl").write_text('{"id": 6000, "v": "from json"}\n')
    done = run("load", *host, str(tmp_path / "c.jsonl"), "--table", "public.a")
    assert done.returncode == 0, done.stderr
    with server.connect() as connection:
        assert lattice.execute(connection, "select count(*), count(v), max(id) from a") == [(1003, 1002, 6000)]
    failed = run("load", *host, str(tmp_path / "missing.csv"), "--table", "a")
    assert failed.returncode == 1 and "missing.csv" in failed.stderr
    failed = run("load", *host, str(tmp_path / "b.csv"), "--table", "nowhere", "--no-create")
    assert failed.returncode == 1 and "42P01" in failed.stderr


def test_check(tmp_path):
    server = lattice.Server(tmp_path / "data").start()
    with server.connect() as connection:
        lattice.execute(connection, "create table p (id int primary key, v text not null)")
        lattice.execute(connection, "create table c (id int primary key, p int references p)")
        lattice.execute(connection, "insert into p select g, 'x' from generate_series(1, 1000) as s(g)")
        lattice.execute(connection, "insert into c values (1, 1), (2, null)")
    refused = run("check", "--data", str(server.data))
    assert refused.returncode == 1 and "faults" not in refused.stdout, "the server still has the folder"
    server.kill()
    done = run("check", "--data", str(server.data))
    assert done.returncode == 0, done.stderr
    assert "2 tables with 1,002 rows" in done.stdout and "0 faults" in done.stdout
    # A flipped byte in the log is found, and named.
    segment = max((server.data / "journal").glob("**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(segment.read_bytes())
    used = len(bytes(content).rstrip(b"\0"))
    content[used // 2] ^= 0xFF
    segment.write_bytes(content)
    damaged = run("check", "--data", str(server.data))
    assert damaged.returncode == 1 and segment.name in damaged.stderr, damaged.stderr
    missing = run("check", "--data", str(tmp_path / "nothing"))
    assert missing.returncode == 1 and "not a folder" in missing.stderr


def test_version():
    done = run("version")
    assert done.returncode == 0 and done.stdout.startswith("lattice ")
