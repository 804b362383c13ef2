"""Starting a server, connecting to it, and TPC-H data: shared by the demo, the tests and the benchmarks."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLES = ["region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem"]
ROWS_PER_BATCH = 64 * 1024


def default_binary() -> str:
    """The server to test: LATTICE_BIN, or the dev build."""
    named = os.environ.get("LATTICE_BIN")
    if named:
        return named
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.expanduser("~/.cache/latticedb/target")
    return os.path.join(target, "debug", "lattice")


def free_port(preferred: int = 0) -> int:
    """A loopback port that nothing listens on; the preferred one when it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


class Server:
    """A server process on loopback. Use it as a context manager, or call start() and stop()."""

    def __init__(self, data, binary=None, settings=(), env=None, flight_port=0, http_port=0, log=None):
        self.data = pathlib.Path(data)
        self.binary = str(binary or default_binary())
        self.settings = list(settings)
        self.env = dict(env or {})
        self.flight_port = flight_port or free_port()
        self.http_port = http_port or free_port()
        self.log = pathlib.Path(log) if log else self.data.with_name(self.data.name + ".log")
        self.process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self.flight_port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, timeout: float = 120.0) -> "Server":
        if not os.path.exists(self.binary):
            raise FileNotFoundError(f"{self.binary} does not exist: build it first (make release), or set LATTICE_BIN")
        self.data.parent.mkdir(parents=True, exist_ok=True)
        command = [self.binary, "serve", "--data", str(self.data)]
        command += ["--flight", f"127.0.0.1:{self.flight_port}", "--http", f"127.0.0.1:{self.http_port}"]
        for setting in self.settings:
            command += ["--set", setting]
        env = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")} | self.env
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}:\n{self.log_tail()}")
            if self.ready():
                return self
            time.sleep(0.05)
        self.kill()
        raise TimeoutError(f"the server was not ready after {timeout:.0f} s:\n{self.log_tail()}")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http}/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def log_tail(self, lines: int = 30) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, timeout: float = 120.0) -> int:
        """SIGTERM, then waits; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"the server did not stop within {timeout:.0f} s:\n{self.log_tail()}") from None
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL: the process gets no chance to write anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def connect(self, **kwargs):
        return connect(self.uri, **kwargs)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_exc) -> None:
        self.kill()


def connect(uri: str, autocommit: bool = True, username: str | None = None, password: str | None = None):
    """An ADBC connection."""
    options = {}
    if username is not None:
        options = {"username": username, "password": password or ""}
    return flightsql.connect(uri, db_kwargs=options, autocommit=autocommit)


def execute(connection, sql: str, parameters=None):
    """Runs one statement and returns its rows, or an empty list."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def statements(path) -> list[str]:
    """The statements of one of our own SQL files: comments on lines of their own, semicolons at line ends."""
    lines = [line for line in pathlib.Path(path).read_text().splitlines() if not line.lstrip().startswith("--")]
    return [text.strip() for text in "\n".join(lines).split(";\n") if text.strip(" ;\n")]


# --- TPC-H ---


def tpch_data(scale: float, folder=None) -> pathlib.Path:
    """Parquet files of the eight tables, made once per scale factor."""
    folder = pathlib.Path(folder or ROOT / "build" / "tpch") / f"sf{scale:g}"
    done = folder / ".complete"
    if not done.exists():
        generator = shutil.which("tpchgen-cli", path=os.path.dirname(os.sys.executable)) or shutil.which("tpchgen-cli")
        if generator is None:
            raise FileNotFoundError("tpchgen-cli is not installed: run scripts/setup.sh")
        folder.mkdir(parents=True, exist_ok=True)
        command = [generator, "parquet", "-s", f"{scale:g}", "--output-dir", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return folder


def tpch_query(number: int, scale: float = 1.0) -> str:
    """The text of one query; query 11 has a fraction that depends on the scale factor (clause 2.4.11.3)."""
    text = (ROOT / "benches" / "tpch" / "queries" / f"q{number:02}.sql").read_text().strip()
    return text.replace("0.0001000000", f"{0.0001 / scale:.10f}")


def tpch_tables() -> list[str]:
    """The CREATE TABLE statements."""
    return statements(ROOT / "benches" / "tpch" / "schema.sql")


def plain(schema: pa.Schema) -> pa.Schema:
    """The same schema with ordinary strings, which every consumer knows."""
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.schema([field.with_type(views.get(field.type, field.type)) for field in schema])


def parquet_reader(path, on_rows=lambda rows: None) -> pa.RecordBatchReader:
    """A stream of a Parquet file's batches that reports the rows as they are taken."""
    file = pq.ParquetFile(path)
    schema = plain(file.schema_arrow)

    def batches():
        for batch in file.iter_batches(ROWS_PER_BATCH):
            yield batch.cast(schema)
            on_rows(batch.num_rows)

    return pa.RecordBatchReader.from_batches(schema, batches())


def load_table(connection, table: str, folder, on_rows=lambda rows: None) -> int:
    """Appends one table's file through ADBC bulk ingest."""
    with connection.cursor() as cursor:
        return cursor.adbc_ingest(table, parquet_reader(pathlib.Path(folder) / f"{table}.parquet", on_rows), mode="append")
