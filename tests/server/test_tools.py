"""`lattice sql` and `lattice load` as people use them: what they print, and what they say when something is wrong."""

from __future__ import annotations

import csv
import io
import pathlib
import subprocess

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
