"""A LatticeDB server for the tests of real clients.

The binary is named by the environment variable LATTICE_BIN. Every server listens on a free loopback port and keeps its data in
a temporary folder.
"""

import contextlib
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import time

import adbc_driver_flightsql.dbapi as flightsql
import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server."""

    def __init__(self, folder: pathlib.Path, *arguments: str, password: str | None = None, tls: bool = False):
        binary = os.environ.get("LATTICE_BIN")
        if not binary:
            raise pytest.UsageError("set LATTICE_BIN to the path of the lattice binary")
        self.folder = folder
        self.port = free_port()
        self.tls = tls
        self.log = open(folder / "server.log", "ab")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LATTICE_")}
        if password is not None:
            environment["LATTICE_ADMIN_PASSWORD"] = password
        command = [
            binary,
            "serve",
            "--data",
            str(folder / "data"),
            "--flight",
            f"127.0.0.1:{self.port}",
            "--http",
            "",
            *arguments,
        ]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        text = (self.folder / "server.log").read_text(errors="replace")
        raise RuntimeError(f"the server did not start:\n{text[-4000:]}")

    @property
    def uri(self) -> str:
        """The address as drivers take it."""
        return f"flightsql://127.0.0.1:{self.port}?transport={'tls' if self.tls else 'tcp'}"

    @property
    def grpc(self) -> str:
        """The address as plain Flight clients take it."""
        return f"grpc{'+tls' if self.tls else ''}://127.0.0.1:{self.port}"

    def connect(self, *, autocommit: bool = True, database=None, connection=None) -> flightsql.Connection:
        return flightsql.connect(self.uri, db_kwargs=database, conn_kwargs=connection, autocommit=autocommit)

    def stop(self) -> int:
        """Stops it as a service manager does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.log.close()
        return code


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests that do not need one of their own."""
    running = Server(tmp_path_factory.mktemp("lattice"))
    yield running
    assert running.stop() == 0


@pytest.fixture
def start(tmp_path):
    """Starts servers with arguments of their own."""
    started = []

    def make(*arguments: str, **options) -> Server:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(Server(folder, *arguments, **options))
        return started[-1]

    yield make
    for running in started:
        running.stop()


@pytest.fixture
def connection(server):
    """A connection in which every statement commits by itself."""
    with server.connect() as connection:
        yield connection


_numbers = itertools.count(1)


@pytest.fixture
def name():
    """A name that no other test uses."""
    return f"t{next(_numbers)}"


def run(connection, statement: str, parameters=None):
    """Runs a statement; returns its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def value(connection, statement: str, parameters=None):
    """The one value that a query answers."""
    [[answer]] = run(connection, statement, parameters)
    return answer
