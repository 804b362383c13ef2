"""Logging in."""

import contextlib
import shutil
import subprocess
import threading
import time

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import pyarrow.flight
import pytest
from adbc_driver_flightsql import DatabaseOptions
from conftest import run, value


def credentials(user, password):
    return {"username": user, "password": password}


def test_passwords(start):
    server = start(password="s:e—c")
    with server.connect(database=credentials("admin", "s:e—c")) as connection:
        assert value(connection, "SELECT current_user") == "admin"
    for wrong in [credentials("admin", "x"), credentials("nobody", "s:e—c"), None]:
        with pytest.raises(adbc_driver_manager.Error) as caught:
            with server.connect(database=wrong) as connection:
                value(connection, "SELECT 1")
        assert "28P01" in str(caught.value) or "28000" in str(caught.value)


def test_guesses_are_slowed_down(start):
    server = start(password="right")
    for _ in range(5):
        with pytest.raises(adbc_driver_manager.Error, match="28P01"):
            with server.connect(database=credentials("admin", "guess")) as connection:
                value(connection, "SELECT 1")
    begun = time.monotonic()
    with server.connect(database=credentials("admin", "right")) as connection:
        assert value(connection, "SELECT 1") == 1
    assert 0.2 < time.monotonic() - begun < 20
    begun = time.monotonic()
    with server.connect(database=credentials("admin", "right")) as connection:
        assert value(connection, "SELECT 1") == 1
    assert time.monotonic() - begun < 2
    log = (server.folder / "server.log").read_text()
    assert "audit" in log and "wrong user name or password" in log and "guess" not in log.replace("guesses", "")


def test_one_login_is_one_session(start):
    server = start(password="p")
    login = credentials("admin", "p")
    with server.connect(database=login) as one, server.connect(database=login) as two:
        run(one, "CREATE TABLE t (x INT)")
        run(one, "BEGIN")
        run(one, "INSERT INTO t VALUES (1)")
        assert value(two, "SELECT count(*) FROM t") == 0
        run(one, "COMMIT")
        assert value(two, "SELECT count(*) FROM t") == 1


def test_tokens(start):
    server = start(password="p")
    client = pyarrow.flight.connect(server.grpc)
    header, bearer = client.authenticate_basic_token("admin", "p")
    assert header == b"authorization" and bearer.startswith(b"Bearer ")
    options = {DatabaseOptions.AUTHORIZATION_HEADER.value: bearer.decode()}
    with server.connect(database=options) as connection:
        assert value(connection, "SELECT 1") == 1
    options = {DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer made-up"}
    with pytest.raises(adbc_driver_manager.Error, match="28000"):
        with server.connect(database=options) as connection:
            value(connection, "SELECT 1")


def test_cookies(server):
    options = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
    with server.connect(database=options) as connection:
        run(connection, "SET application_name = 'with cookies'")
        assert value(connection, "SHOW application_name") == "with cookies"


def test_anonymous_connections_have_sessions_of_their_own(server):
    with server.connect() as one, server.connect() as two:
        run(one, "SET application_name = 'one'")
        assert value(one, "SHOW application_name") == "one"
        assert value(two, "SHOW application_name") != "one"


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for loopback."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
        check=True,
        capture_output=True,
    )
    return key, certificate


def test_tls(start, certificate):
    key, cert = certificate
    server = start("--tls-cert", str(cert), "--tls-key", str(key), password="p", tls=True)
    trusting = {**credentials("admin", "p"), DatabaseOptions.TLS_ROOT_CERTS.value: cert.read_text()}
    with server.connect(database=trusting) as connection:
        assert value(connection, "SELECT 1") == 1
    with pytest.raises(adbc_driver_manager.Error):
        with server.connect(database=credentials("admin", "p")) as connection:
            value(connection, "SELECT 1")
    with pytest.raises(adbc_driver_manager.Error):
        with flightsql.connect(server.uri.replace("transport=tls", "transport=tcp"), autocommit=True) as connection:
            value(connection, "SELECT 1")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stopping_server_finishes_what_runs(start):
    server = start()
    connection = server.connect()
    cursor = connection.cursor()
    reader = cursor.execute("SELECT x FROM generate_series(1, 3000000) AS g (x)").fetch_record_batch()
    seen = reader.read_next_batch().num_rows
    codes = []
    stopping = threading.Thread(target=lambda: codes.append(server.stop()))
    stopping.start()
    seen += sum(batch.num_rows for batch in reader)
    assert seen == 3_000_000
    # Closing tells a server that is no longer there.
    for closing in (cursor, connection):
        with contextlib.suppress(adbc_driver_manager.Error):
            closing.close()
    stopping.join()
    assert codes == [0]
