"""`lattice sql` and `lattice load` as people use them: what they print, and what they say when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import pty
import select
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lattice
from tools import run


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with lattice.Server(tmp_path_factory.mktemp("tools") / "data") as server:
        yield server


def host(server) -> list[str]:
    return ["--host", f"127.0.0.1:{server.flight_port}"]


def sql(server, *args, **kwargs) -> subprocess.CompletedProcess:
    return run("sql", *host(server), *args, **kwargs)


def load(server, *args, **kwargs) -> subprocess.CompletedProcess:
    return run("load", *host(server), *args, **kwargs)


def rows(server, text: str) -> list[list[str]]:
    done = sql(server, "--format", "csv", "-c", text)
    assert done.returncode == 0, done.stderr
    return list(csv.reader(io.StringIO(done.stdout)))[1:]


def refused(done: subprocess.CompletedProcess, *parts: str) -> str:
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    for part in parts:
        assert part in done.stderr, done.stderr
    return done.stderr


# What the shell prints.


def test_csv_has_every_row(server):
    done = sql(server, "--format", "csv", "-c", "select 1 a, array['x', null, 'two words'] e union all select 2, null order by 1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'a,e\n1,"{x,NULL,""two words""}"\n2,\n'
    done = sql(server, "--format", "csv", "-c", "select null as a union all select '' order by 1")
    assert sorted(done.stdout.split("\n")[1:-1]) == ["", '""']
    done = sql(server, "--format", "json", "-c", "select array[1, 2] as e")
    assert json.loads(done.stdout) == [{"e": [1, 2]}]


def test_output_that_cannot_be_written_is_an_error(server):
    with open("/dev/full", "w") as full:
        command = [lattice.default_binary(), "sql", *host(server), "--format", "csv", "-c", "select 1 as a"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "the result cannot be written" in done.stderr, done.stderr


def test_a_file_that_fails_names_the_line(server, tmp_path):
    script = tmp_path / "script.sql"
    script.write_text("select 1;\n\n\\timing\n\\oops\nselect 2;\n")
    done = sql(server, "-f", script)
    assert refused(done, f"{script}:4: unknown command \\oops") and "| 2 |" not in done.stdout
    script.write_text("select 1;\nselect\n  nothing;\n")
    refused(sql(server, "-f", script), f"{script}:2: ERROR: 42703")


def test_describe(server):
    done = sql(
        server, "-c",
        """create table makers (id bigint primary key, name text);
        create table "Goods" (
            id bigint generated always as identity primary key,
            maker bigint references makers (id) on delete cascade,
            price numeric(10, 2) not null check (price > 0),
            doubled numeric(12, 2) generated always as (price * 2) stored,
            tags text[] default array['x'],
            code varchar(8) unique);
        create index goods_price on "Goods" (price, maker);
        create view cheap as select id, price from "Goods" where price < 1;
        create sequence tickets""",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = sql(server, "-c", '\\d "Goods"').stdout
    for part in [
        'Table public."Goods"', "numeric(10,2)", "text[]", "varchar(8)", "generated always as identity", "stored",
        "FOREIGN KEY (maker) REFERENCES public.makers (id) ON DELETE CASCADE", "CHECK (", "price > 0", "PRIMARY KEY (id)",
        "goods_price (price, maker)", " UNIQUE (code)",
    ]:  # fmt: skip
        assert part in shown, (part, shown)
    assert 'Referred to from:\n    public."Goods" by ' in sql(server, "-c", "\\d makers").stdout
    view = sql(server, "-c", "\\d cheap").stdout
    assert "numeric(10,2)" in view and "Definition:" in view and "CREATE VIEW public.cheap" in view, view
    refused(sql(server, "-c", "\\d Goods"), 'did you mean \\d "Goods"?')
    refused(sql(server, "-c", "\\d nothing"), "there is no table or view named `nothing`")
    listed = sql(server, "-c", "\\di").stdout
    assert "goods_price" in listed and "primary key" in listed, listed
    assert "goods_price" not in sql(server, "-c", "\\di mak*").stdout
    assert "bytes_in_files" in sql(server, "-c", "\\dt+").stdout
    assert "cheap" not in sql(server, "-c", "\\dt").stdout and "cheap" in sql(server, "-c", "\\dv").stdout
    assert "tickets" in sql(server, "-c", "\\d").stdout and "tickets" in sql(server, "-c", "\\ds tick*").stdout
    assert "increment" in sql(server, "-c", "\\d tickets").stdout


class Terminal:
    """A shell at a pseudo-terminal."""

    def __init__(self, *args, env=None):
        self.text = ""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")}
        clean |= {"LATTICE_HISTORY": "", "TERM": "xterm"} | (env or {})
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(lattice.default_binary(), [lattice.default_binary(), *map(str, args)], clean)

    def wait_for(self, part: str, timeout: float = 30) -> str:
        deadline = time.monotonic() + timeout
        while part not in self.text:
            ready, _, _ = select.select([self.fd], [], [], 0.2)
            if ready:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                if not data:
                    break
                self.text += data.decode(errors="replace")
            assert time.monotonic() < deadline, f"no {part!r} in {self.text!r}"
        assert part in self.text, self.text
        before, _, self.text = self.text.partition(part)
        return before + part

    def send(self, line: str) -> None:
        os.write(self.fd, (line + "\r").encode())

    def end(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_the_prompt(server):
    shell = Terminal("sql", *host(server))
    shell.wait_for("lattice=> ")
    shell.send("help")
    shell.wait_for("Statements end with a semicolon")
    shell.wait_for("lattice=> ")
    shell.send("select 6 *")
    shell.wait_for("lattice-> ")
    shell.send("7 as answer, 'a")
    shell.wait_for("lattice'> ")
    shell.send("b' as t;")
    shell.wait_for("42")
    shell.wait_for("lattice=> ")
    shell.send("select")
    shell.wait_for("lattice-> ")
    shell.send("quit")
    shell.wait_for("\\q leaves")
    shell.wait_for("lattice-> ")
    shell.send("\\r")
    shell.wait_for("lattice=> ")
    shell.send("exit;")
    assert shell.end() == 0


# Files to load.


def test_a_wrong_file_loads_nothing(server, tmp_path):
    assert sql(server, "-c", "create table parts (id bigint primary key, price numeric(10, 2), note text)").returncode == 0

    def written(name: str, content: str | bytes) -> pathlib.Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def fails(path, *parts: str, table: str = "parts") -> str:
        said = refused(load(server, path, "-t", table), *parts)
        assert "08P01" not in said and "malformed" not in said, said
        return said

    bad = written("bad1.csv", "id,price,note\n1,abc,x\n")
    fails(bad, f'{bad} line 2, column price: "abc" is not numeric(10,2)')
    fails(written("short.csv", "id,price,note\n1,2,x\n2,3\n"), "short.csv line 3: 2 values where the header has 3")
    fails(written("latin.csv", b"id,price,note\n1,2,caf\xe9\n"), "latin.csv line 2, column note: not UTF-8 (byte 0xE9)", "iconv")
    fails(written("broken.jsonl", '{"id": 1, "price": 2}\n{"id": 2, "pri\n'), "broken.jsonl line 2: ")
    fails(written("text.jsonl", '{"id": 1}\n{"id": "one"}\n'), "text.jsonl line 2, column id: ")
    table = pa.table({"id": pa.array(range(1000)), "note": ["x" * 50] * 1000})
    pq.write_table(table, tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    fails(written("damaged.parquet", whole[:-20]), "damaged.parquet", "cannot be read as Parquet", "Is the file whole")
    for name in ["empty.csv", "empty.parquet", "empty.jsonl"]:
        fails(written(name, ""), f"{name} is empty: there is nothing to load")
    # The error comes after batches that the server has: they must not be committed.
    many = "id,price,note\n" + "".join(f"{i},1.50,note {i}\n" for i in range(200_000)) + "last,1,x\n"
    long = written("long.csv", many)
    fails(long, 'long.csv line 200002, column id: "last" is not bigint')
    fails(long, 'long.csv line 200002, column id: "last" is not bigint', "HINT: the types were guessed", table="made")
    assert rows(server, "select count(*) from parts") == [["0"]]
    assert rows(server, "select count(*) from information_schema.tables where table_name = 'made'") == [["0"]]
    # Files before the wrong one stay, and the message says so.
    good = written("good.csv", "id,price\n1,2.50\n2,\n")
    assert "The files before it are loaded: 2 rows." in refused(load(server, good, bad, "-t", "parts"), f"{bad} line 2")
    assert rows(server, "select count(*) from parts") == [["2"]]
    # A header alone is no error where the table is known.
    alone = load(server, written("alone.csv", "id,price\n"), "-t", "parts")
    assert alone.returncode == 0 and "has no rows" in alone.stderr, alone.stderr
    fails(written("alone.csv", "id,price\n"), "create the table first", table="made")


def test_names_and_delimiters(server, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id;name\n1;x\n2;y\n")
    refused(load(server, path, "-t", "semi"), "a.csv line 1", "--delimiter ';'")
    done = load(server, path, "-t", '"Odd Name"', "--delimiter", ";")
    assert done.returncode == 0, done.stderr
    assert rows(server, 'select id, name from "Odd Name" order by id') == [["1", "x"], ["2", "y"]]
    assert load(server, path, "-t", 'PUBLIC."Odd Name"', "--delimiter", ";").returncode == 0
    assert rows(server, 'select count(*) from "Odd Name"') == [["4"]]
    refused(load(server, path, "-t", '"Odd'), "its quote is not closed")
    path.write_text("id\tname\n1\tx\n")
    refused(load(server, path, "-t", "tabbed"), "--delimiter '\\t'")
    for word in ["\\t", "tab"]:
        assert load(server, path, "-t", "Tabbed", "--delimiter", word).returncode == 0
    assert rows(server, "select count(*), max(name) from tabbed") == [["2", "x"]]


def test_standard_input(server):
    done = load(server, "-", "-t", "piped", stdin="id,name\n1,x\n")
    refused(done, "standard input", "--format")
    done = load(server, "-", "-t", "piped", "--format", "csv", stdin="id,name\n1,x\n2,y\n")
    assert done.returncode == 0 and "2 rows loaded" in done.stdout, done.stderr
    assert rows(server, "select count(*) from piped") == [["2"]]
    refused(load(server, "-", "-t", "piped", "--format", "csv", stdin="id,name\nz,x\n"), 'standard input line 2, column id: "z"')


# Connections.


def test_a_password_that_is_missing(tmp_path):
    with lattice.Server(tmp_path / "data", env={"LATTICE_ADMIN_PASSWORD": "secret"}) as server:
        wanted = sql(server, "-c", "select 1")
        assert wanted.returncode == 2, wanted.stderr
        assert "LATTICE_PASSWORD" in wanted.stderr and "--password" in wanted.stderr, wanted.stderr
        assert "28P01" in sql(server, "--password", "wrong", "-c", "select 1").stderr
        assert sql(server, "--password", "secret", "-c", "select 1").returncode == 0
        assert sql(server, "-c", "select 1", env={"LATTICE_PASSWORD": "secret"}).returncode == 0
        shell = Terminal("sql", *host(server), "-c", "select 6 * 7 as answer")
        shell.wait_for("Password of admin at ")
        shell.send("secret")
        assert "secret" not in shell.wait_for("42")
        assert shell.end() == 0
        wrong = run("sql", "--host", f"127.0.0.1:{server.http_port}", "-c", "select 1")
        assert wrong.returncode == 2 and "is not a Flight SQL port" in wrong.stderr and "50051" in wrong.stderr, wrong.stderr
        tls = run("sql", "--host", f"grpc+tls://127.0.0.1:{server.flight_port}", "-c", "select 1")
        assert tls.returncode == 2 and "answers, but not with TLS" in tls.stderr, tls.stderr
