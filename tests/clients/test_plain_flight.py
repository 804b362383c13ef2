"""pyarrow's Flight client, without Flight SQL, and messages that are broken."""

import os

import pyarrow as pa
import pyarrow.flight
import pytest
from conftest import run, value


@pytest.fixture
def client(server):
    with pyarrow.flight.connect(server.grpc) as client:
        yield client


def test_tables_by_path(connection, client, name):
    data = pa.table({"id": pa.array([1, 2, 3], pa.int64())})
    descriptor = pyarrow.flight.FlightDescriptor.for_path("public", name)
    for _ in range(2):
        writer, _ = client.do_put(descriptor, data.schema)
        writer.write_table(data)
        writer.close()
    assert value(connection, f"SELECT count(*) FROM {name}") == 6
    info = client.get_flight_info(descriptor)
    assert info.schema == data.schema
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert sorted(table["id"].to_pylist()) == [1, 1, 2, 2, 3, 3]
    paths = [flight.descriptor.path for flight in client.list_flights()]
    assert [b"lattice", b"public", name.encode()] in paths


def test_actions_are_listed(client):
    names = {action.type for action in client.list_actions()}
    assert {"BeginTransaction", "CancelFlightInfo", "SetSessionOptions"} <= names
    with pytest.raises(pa.ArrowNotImplementedError):
        list(client.do_action(pyarrow.flight.Action("Frobnicate", b"")))


def test_garbage_is_refused(connection, client):
    for _ in range(50):
        garbage = os.urandom(40)
        with pytest.raises(pa.ArrowInvalid):
            client.get_flight_info(pyarrow.flight.FlightDescriptor.for_command(garbage))
        with pytest.raises(pa.ArrowInvalid):
            client.do_get(pyarrow.flight.Ticket(garbage)).read_all()
    assert value(connection, "SELECT 1") == 1


def test_bytes_that_are_not_grpc(server, connection):
    import socket

    for payload in [b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512)]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(payload)
            try:
                raw.recv(1024)
            except OSError:
                pass
    run(connection, "SELECT 1")
