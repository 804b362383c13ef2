"""Measures LatticeDB beside DuckDB and PostgreSQL, all in one run on one machine, and writes docs/evidence/*.json.

Subjects are interleaved and warmed up; where there are answers, they are compared before a time is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import pathlib
import pwd
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import duckdb

import evidence
import lattice
from answers import same_answer

ROOT = pathlib.Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    print(text, flush=True)


def version(binary: str) -> str:
    return subprocess.run([binary, "version"], capture_output=True, text=True, check=True).stdout.split()[-1]


@contextlib.contextmanager
def folder():
    """A folder on a disk, not in memory, so that syncs cost what they cost; others may enter it, because PostgreSQL runs
    as a user of its own."""
    base = ROOT / "build" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    if not all(os.stat(parent).st_mode & 0o001 for parent in [base, *base.parents]):
        base = pathlib.Path("/var/tmp")
    path = pathlib.Path(tempfile.mkdtemp(prefix="latticedb-bench-", dir=base))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Postgres:
    """A temporary PostgreSQL cluster on loopback, with its defaults for durability."""

    def __init__(self, path: pathlib.Path):
        found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise FileNotFoundError("PostgreSQL is not installed: run scripts/setup.sh --bench")
        self.bin, self.path, self.port = found[-1], path / "postgres", lattice.free_port()
        # PostgreSQL refuses to run as root; Debian's package brings a user for it.
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.path.mkdir(parents=True)
        if self.prefix:
            shutil.chown(self.path, "postgres", "postgres")

    def run(self, tool: str, *args: str) -> None:
        command = [*self.prefix, str(self.bin / tool), *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr.strip()}")

    def __enter__(self):
        data = str(self.path / "data")
        self.run("initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-locale", "-E", "UTF8")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=1GB -c max_wal_size=4GB"
        self.run("pg_ctl", "-D", data, "-w", "-l", str(self.path / "log"), "-o", options, "start")
        return self

    def __exit__(self, *_exc):
        self.run("pg_ctl", "-D", str(self.path / "data"), "-m", "immediate", "stop")

    def pgbench(self, script: str, clients: int, seconds: float) -> tuple[int, float, float]:
        """Runs a script with PostgreSQL's own load generator: transactions, median and 95th percentile in seconds."""
        logs = pathlib.Path(tempfile.mkdtemp(dir=self.path))
        (logs / "script.sql").write_text(script)
        for path in (logs, logs / "script.sql"):
            path.chmod(0o777)
        host = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench"]
        load = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1)), "-T", f"{seconds:.0f}"]
        self.run("pgbench", *host, *load, "-f", str(logs / "script.sql"), "-l", f"--log-prefix={logs}/log", "postgres")
        lines = [line.split() for log in logs.glob("log*") for line in log.read_text().splitlines()]
        latencies = sorted(int(fields[2]) / 1e6 for fields in lines)
        shutil.rmtree(logs)
        return len(latencies), percentile(latencies, 0.5), percentile(latencies, 0.95)

    def connect(self, autocommit: bool = True):
        import psycopg

        return psycopg.connect(f"host=127.0.0.1 port={self.port} user=bench dbname=postgres", autocommit=autocommit)

    def version(self) -> str:
        with self.connect() as connection:
            return connection.execute("show server_version").fetchone()[0].split()[0]


class Measure:
    """`lattice measure`: a client that costs little itself. It asks a server, or opens a database in its own process, which
    shows what the engine does without the wire."""

    def __init__(self, binary: str, *args: str):
        self.process = subprocess.Popen([binary, "measure", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    @classmethod
    def server(cls, binary: str, server: lattice.Server) -> "Measure":
        return cls(binary, "--at", server.uri)

    @classmethod
    def engine(cls, binary: str, source: pathlib.Path) -> "Measure":
        """On a copy of a stopped server's folder."""
        copy = source.with_name(source.name + "-engine")
        shutil.copytree(source, copy)
        return cls(binary, "--data", str(copy))

    def answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("lattice measure ended; its reason stands above")
        return line.strip()

    def ask(self, command: str) -> list[float]:
        self.process.stdin.write(" ".join(command.split()) + "\n")
        self.process.stdin.flush()
        return [float(part) for part in self.answer().split()]

    def seconds(self, sql: str) -> float:
        return self.ask(f"run {sql}")[0]

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.stdin.close()
        self.process.wait()


def timed(work):
    """Makes a measure of a subject: runs a text and returns the seconds."""

    def seconds(sql: str) -> float:
        begun = time.perf_counter()
        work(sql)
        return time.perf_counter() - begun

    return seconds


def geomean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


# --- benches ---


def bench_tpch(options) -> None:
    """The 22 queries: over Flight SQL, in DuckDB's own format, and in DuckDB over Parquet."""
    files = lattice.tpch_data(options.scale)
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        server = stack.enter_context(lattice.Server(path / "data", options.binary))
        say("loading")
        with server.connect() as connection:
            for statement in lattice.tpch_tables():
                lattice.execute(connection, statement)
            for table in lattice.TABLES:
                lattice.load_table(connection, table, files)
        server.stop()
        engine = stack.enter_context(Measure.engine(options.binary, path / "data"))
        server.start()
        connection = server.connect()
        native, parquet = duckdb.connect(str(path / "duck.db")), duckdb.connect()
        for table in lattice.TABLES:
            native.execute(f"create table {table} as select * from '{files}/{table}.parquet'")
            parquet.execute(f"create view {table} as select * from '{files}/{table}.parquet'")
        subjects = {
            "lattice_flight": lambda sql: lattice.execute(connection, sql),
            "duckdb_native": lambda sql: native.execute(sql).fetchall(),
            "duckdb_parquet": lambda sql: parquet.execute(sql).fetchall(),
        }
        measures = {name: timed(work) for name, work in subjects.items()} | {"lattice_engine": engine.seconds}
        rows, times = [], {subject: {} for subject in measures}

        def measure(names, numbers):
            for number in numbers:
                sql = lattice.tpch_query(number, options.scale)
                wrong = same_answer(number, subjects["lattice_flight"](sql), native.execute(sql).fetchall())
                if wrong:
                    raise AssertionError(f"query {number}: {wrong}")
                for name in names:
                    measures[name](sql)
                    times[name][number] = []
                for _ in range(options.repeat):
                    for name in names:
                        times[name][number].append(measures[name](sql))
                say(f"q{number:02}  " + "  ".join(f"{name} {min(times[name][number]) * 1e3:8.1f} ms" for name in names))

        measure(list(measures), range(1, 23))
        for name in measures:
            rows += [evidence.row(f"q{number:02}", name, "s", times[name][number]) for number in range(1, 23)]
        for name in measures:
            runs = [geomean([times[name][number][i] for number in range(1, 23)]) for i in range(options.repeat)]
            rows.append(evidence.row("geomean", name, "s", runs))

        say("one row in a hundred updated, in the row tier")
        for table, key in (("orders", "o_orderkey"), ("lineitem", "l_orderkey")):
            comment = "o_clerk = o_clerk" if table == "orders" else "l_comment = l_comment"
            lattice.execute(connection, f"update {table} set {comment} where {key} % 100 = 1")
        measure(["lattice_flight"], range(1, 23))
        runs = [geomean([times["lattice_flight"][number][i] for number in range(1, 23)]) for i in range(options.repeat)]
        rows.append(evidence.row("geomean_delta", "lattice_flight", "s", runs))
        status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        rows.append(evidence.row("peak_rss", "lattice_flight", "bytes", [peak]))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append(evidence.row("peak_rss", "duckdb_native", "bytes", [own]))
        connection.close()
    finish(f"tpch_sf{options.scale:g}", rows, options)


def bench_load_lineitem(options) -> None:
    """Bulk load of lineitem with its primary key, and what the file formats alone cost."""
    source = lattice.tpch_data(options.scale) / "lineitem.parquet"
    expected = lattice.pq.read_metadata(source).num_rows
    ddl = next(statement for statement in lattice.tpch_tables() if "table lineitem" in statement)
    times: dict[str, list[float]] = {}

    def keep(name: str, seconds: float, count: int) -> None:
        if count != expected:
            raise AssertionError(f"{name}: {count} rows instead of {expected}")
        times.setdefault(name, []).append(seconds)
        say(f"{name:<18} {seconds:8.2f} s")

    for _ in range(options.repeat):
        with folder() as path, lattice.Server(path / "data", options.binary) as server, server.connect() as connection:
            lattice.execute(connection, ddl)
            begun = time.perf_counter()
            lattice.load_table(connection, "lineitem", source.parent)
            took = time.perf_counter() - begun
            keep("lattice_adbc", took, lattice.execute(connection, "select count(*) from lineitem")[0][0])
        with folder() as path:
            duck = duckdb.connect(str(path / "ctas.db"))
            begun = time.perf_counter()
            duck.execute(f"create table lineitem as select * from '{source}'")
            duck.execute("checkpoint")
            keep("duckdb_ctas", time.perf_counter() - begun, duck.execute("select count(*) from lineitem").fetchone()[0])
            duck.close()
            duck = duckdb.connect(str(path / "pk.db"))
            duck.execute(ddl)
            begun = time.perf_counter()
            duck.execute(f"insert into lineitem select * from '{source}'")
            duck.execute("checkpoint")
            keep("duckdb_pk", time.perf_counter() - begun, duck.execute("select count(*) from lineitem").fetchone()[0])
            duck.close()
        with folder() as path:
            import lance

            reader = lattice.parquet_reader(source)
            begun = time.perf_counter()
            dataset = lance.write_dataset(reader, str(path / "lineitem.lance"), max_rows_per_file=1 << 20)
            subprocess.run(["sync", "-f", str(path)], check=True)
            keep("lance_write", time.perf_counter() - begun, dataset.count_rows())
    with folder() as path, Postgres(path) as postgres, postgres.connect() as connection:
        postgres_version = postgres.version()
        csv = path / "lineitem.csv"
        duckdb.connect().execute(f"copy (select * from '{source}') to '{csv}' (header false)")
        connection.execute(ddl)
        begun = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("copy lineitem from stdin (format csv)") as copy, open(csv, "rb") as file:
            while block := file.read(1 << 20):
                copy.write(block)
        keep("postgres_copy_pk", time.perf_counter() - begun, connection.execute("select count(*) from lineitem").fetchone()[0])
    rows = [evidence.row("seconds", name, "s", values) for name, values in times.items()]
    finish("load_lineitem", rows, options, {"postgres": postgres_version})


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


POINT_ROWS = 1_000_000


def bench_point_read(options) -> None:
    """Reads of one row by primary key, prepared, from 1 and from 16 connections."""
    import pyarrow as pa

    keys = pa.array(range(POINT_ROWS), pa.int64())
    table = pa.table({"id": keys, "body": pa.array([f"value {i:012}" for i in range(POINT_ROWS)])})
    ddl = "create table kv (id bigint primary key, body text not null)"
    sql = "select body from kv where id = $1"
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        server = stack.enter_context(lattice.Server(path / "data", options.binary))
        postgres = stack.enter_context(Postgres(path))
        with server.connect() as connection:
            lattice.execute(connection, ddl)
            with connection.cursor() as cursor:
                cursor.adbc_ingest("kv", table.to_reader(lattice.ROWS_PER_BATCH), mode="append")
        server.stop()
        engine = stack.enter_context(Measure.engine(options.binary, path / "data"))
        server.start()
        wire = stack.enter_context(Measure.server(options.binary, server))
        with postgres.connect() as connection:
            connection.execute(ddl)
            connection.execute(f"insert into kv select g, 'value ' || lpad(g::text, 12, '0') from generate_series(0, {POINT_ROWS - 1}) g")
            connection.execute("vacuum analyze kv")
        script = f"\\set key random(0, {POINT_ROWS - 1})\nselect body from kv where id = :key;\n"

        def over_adbc(clients: int, seconds: float) -> tuple[int, float, float]:
            latencies, rng, until = [], random.Random(clients), time.monotonic() + seconds
            with server.connect() as connection, connection.cursor() as cursor:
                cursor.adbc_prepare("select body from kv where id = ?")
                while time.monotonic() < until:
                    key, begun = rng.randrange(POINT_ROWS), time.perf_counter()
                    cursor.execute("select body from kv where id = ?", (key,))
                    found = cursor.fetchone()[0]
                    latencies.append(time.perf_counter() - begun)
                    if found != f"value {key:012}":
                        raise AssertionError(f"key {key}: {found}")
            latencies.sort()
            return len(latencies), percentile(latencies, 0.5), percentile(latencies, 0.95)

        subjects = {
            "lattice_flight": lambda clients, seconds: wire.ask(f"read {clients} {seconds} {POINT_ROWS} {sql}"),
            "lattice_engine": lambda clients, seconds: engine.ask(f"read {clients} {seconds} {POINT_ROWS} {sql}"),
            "postgres": lambda clients, seconds: postgres.pgbench(script, clients, seconds),
        }
        python = {"lattice_adbc": over_adbc}
        rows = load(options, {1: subjects | python, 16: subjects}, "reads/s", ("p50_c1", "p95_c1", "p50_c16", "p95_c16", "tps_c16"))
        versions = {"postgres": postgres.version()}
    finish("point_read", rows, options, versions)


def bench_commit(options) -> None:
    """Transactions that insert one row each, durable before the answer, from 1, 16 and 64 connections."""
    ddl = "create table log (client bigint, n bigint, body text, primary key (client, n))"
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        server = stack.enter_context(lattice.Server(path / "data", options.binary))
        postgres = stack.enter_context(Postgres(path))
        with server.connect() as connection:
            lattice.execute(connection, ddl)
        with postgres.connect() as connection:
            connection.execute(ddl)
            connection.execute("create sequence numbers cache 1000")
        wire = stack.enter_context(Measure.server(options.binary, server))
        body = "a row of ordinary length, about sixty characters of text here"
        script = f"insert into log values (:client_id, nextval('numbers'), '{body}');\n"
        subjects = {
            "lattice": lambda clients, seconds: wire.ask(f"write {clients} {seconds} insert into log values ($1, $2, $3)"),
            "postgres": lambda clients, seconds: postgres.pgbench(script, clients, seconds),
        }
        wanted = ("tps_c1", "tps_c16", "tps_c64", "p95_c64")
        rows = load(options, {clients: subjects for clients in (1, 16, 64)}, "commits/s", wanted)
        versions = {"postgres": postgres.version()}
    finish("commit", rows, options, versions)


def load(options, plan: dict[int, dict], unit: str, wanted: tuple) -> list[dict]:
    """Runs every subject with every number of clients, interleaved, after one short run each to warm up. A subject takes
    clients and seconds, and returns how many it did and the seconds of the median and of the 95th percentile."""
    figures: dict[tuple, list[float]] = {}
    for turn in range(options.repeat + 1):
        for clients, subjects in plan.items():
            for name, run in subjects.items():
                count, median, p95 = run(clients, options.seconds if turn else 1)
                if turn == 0:
                    continue
                rate = count / options.seconds
                say(f"{name:<16} {clients:>3} clients {rate:>10,.0f} {unit}  p50 {median * 1e3:.2f} ms  p95 {p95 * 1e3:.2f} ms")
                for figure, value, of in (("tps", rate, "1/s"), ("p50", median, "s"), ("p95", p95, "s")):
                    if f"{figure}_c{clients}" in wanted:
                        figures.setdefault((f"{figure}_c{clients}", name, of), []).append(value)
    return [evidence.row(name, subject, unit, values) for (name, subject, unit), values in figures.items()]


def finish(bench: str, rows: list[dict], options, versions: dict | None = None) -> None:
    command = f"benches/run.py {options.name} --scale {options.scale:g} --repeat {options.repeat} --seconds {options.seconds:g}"
    found = {"lattice": version(options.binary), "duckdb": duckdb.__version__} | (versions or {})
    path = evidence.write(bench, rows, command, found)
    say(f"\n{evidence.table(rows)}\n\nwritten to {path.relative_to(ROOT)}")


BENCHES = {"tpch": bench_tpch, "load_lineitem": bench_load_lineitem, "point_read": bench_point_read, "commit": bench_commit}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("bench", choices=["all", *BENCHES])
    arguments.add_argument("--binary", default=lattice.default_binary())
    arguments.add_argument("--scale", type=float, default=1.0)
    arguments.add_argument("--repeat", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=5.0, help="length of one run of the concurrent benches")
    options = arguments.parse_args()
    for name in BENCHES if options.bench == "all" else [options.bench]:
        options.name = name
        say(f"\n== {name}: {BENCHES[name].__doc__.splitlines()[0]}")
        BENCHES[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
