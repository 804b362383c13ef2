"""Mutual TLS, the local socket, and the wire's counters."""

from __future__ import annotations

import shutil
import subprocess

import adbc_driver_flightsql.dbapi as flightsql
import pytest

import lattice
from tools import run


def openssl(*args: str, cwd) -> None:
    done = subprocess.run(["openssl", *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def certificates(tmp_path):
    """Two authorities; the first has signed a server and a client, the second another client."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl, which is not installed")
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "server.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
    (folder / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for authority in ["ca", "other"]:
        openssl("req", "-x509", *curve, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-days", "2", "-subj", f"/CN={authority}", cwd=folder)
    for name, authority, kind in [("server", "ca", "server"), ("client", "ca", "client"), ("stranger", "other", "client")]:
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=folder)
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{kind}.ext", "-out", f"{name}.pem", cwd=folder,
        )  # fmt: skip
    return folder


def test_mutual_tls(tmp_path, certificates):
    settings = [f"{key}={certificates / file}" for key, file in [("tls_cert", "server.pem"), ("tls_key", "server.key"), ("client_ca", "ca.pem")]]
    server = lattice.Server(tmp_path / "data", settings=[*settings, "http="], env={"LATTICE_ADMIN_PASSWORD": "secret"})
    server.ready = lambda: "is ready" in server.log_tail()
    server.start()
    try:
        host = ["--host", f"127.0.0.1:{server.flight_port}", "--tls-ca", certificates / "ca.pem", "-c", "select 6 * 7"]
        known = ["--tls-cert", certificates / "client.pem", "--tls-key", certificates / "client.key"]
        stranger = ["--tls-cert", certificates / "stranger.pem", "--tls-key", certificates / "stranger.key"]
        password = {"LATTICE_PASSWORD": "secret"}
        done = run("sql", *host, *known, env=password)
        assert done.returncode == 0 and "42" in done.stdout, done.stderr
        for wrong in [[], stranger]:
            refused = run("sql", *host, *wrong, env=password)
            assert refused.returncode != 0 and "42" not in refused.stdout, refused.stdout
            assert "--tls-cert" in refused.stderr, refused.stderr
        address = f"127.0.0.1:{server.flight_port}"
        plain = run("sql", "--host", address, "-c", "select 1", env=password)
        assert plain.returncode == 2 and "wants TLS" in plain.stderr and f"grpc+tls://{address}" in plain.stderr, plain.stderr
        untrusted = run("sql", "--host", f"grpc+tls://{address}", "-c", "select 1", env=password)
        assert untrusted.returncode == 2 and "is not accepted" in untrusted.stderr and "--tls-ca" in untrusted.stderr, untrusted.stderr
        refused = run("sql", *host, *known, env={"LATTICE_PASSWORD": "wrong"})
        assert refused.returncode != 0 and "28P01" in refused.stderr, refused.stderr
        # Over ADBC, with the driver's own options.
        options = {
            "username": "admin",
            "password": "secret",
            "adbc.flight.sql.client_option.tls_root_certs": (certificates / "ca.pem").read_text(),
            "adbc.flight.sql.client_option.mtls_cert_chain": (certificates / "client.pem").read_text(),
            "adbc.flight.sql.client_option.mtls_private_key": (certificates / "client.key").read_text(),
        }
        with flightsql.connect(f"grpc+tls://127.0.0.1:{server.flight_port}", db_kwargs=options, autocommit=True) as connection:
            assert lattice.execute(connection, "select 1") == [(1,)]
    finally:
        server.kill()


def test_a_client_ca_that_is_none_stops_the_start(tmp_path, certificates):
    (certificates / "empty.pem").write_text("nothing\n")
    flags = ["--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key"]
    refused = run("serve", "--data", tmp_path / "data", *flags, "--client-ca", certificates / "empty.pem")
    assert refused.returncode == 1 and "`client_ca` holds no certificates" in refused.stderr, refused.stderr
    refused = run("serve", "--data", tmp_path / "data", "--client-ca", certificates / "ca.pem")
    assert refused.returncode == 1 and "`client_ca` needs TLS" in refused.stderr, refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_local_socket(tmp_path):
    socket = tmp_path / "lattice.sock"
    with lattice.Server(tmp_path / "data", settings=[f"socket={socket}"]) as server:
        with lattice.connect(f"grpc+unix://{socket}") as connection:
            lattice.execute(connection, "create table t (id int primary key)")
            lattice.execute(connection, "insert into t values (1), (2)")
        with server.connect() as connection:
            assert lattice.execute(connection, "select count(*) from t") == [(2,)]
        assert str(socket) in server.log.read_text()
        other = run("serve", "--data", tmp_path / "other", "--flight", "127.0.0.1:0", "--http", "", "--set", f"socket={socket}")
        assert other.returncode == 1 and "another server answers there" in other.stderr, other.stderr
        metrics = server.metrics()
        assert metrics["lattice_flight_connections_total"] >= 2 and metrics["lattice_flight_rows_sent_total"] >= 1
        assert metrics["lattice_flight_sessions"] >= 0
        server.kill()
        # The file that a killed server leaves does not stop the next one.
        assert socket.exists()
        server.start()
        with lattice.connect(f"grpc+unix://{socket}") as connection:
            assert lattice.execute(connection, "select count(*) from t") == [(2,)]
