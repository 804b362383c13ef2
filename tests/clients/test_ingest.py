"""Bulk loads."""

import datetime
import decimal

import adbc_driver_manager
import pandas
import polars
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions
from conftest import run, value

DATA = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "s": pa.array(["a", None, "c"])})


def ingest(connection, table, data=DATA, **options):
    with connection.cursor() as cursor:
        return cursor.adbc_ingest(table, data, **options)


def test_four_modes(connection, name):
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="42P01"):
        ingest(connection, name, mode="append")
    assert ingest(connection, name, mode="create") == 3
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="42P07"):
        ingest(connection, name, mode="create")
    assert ingest(connection, name, mode="append") == 3
    assert ingest(connection, name, mode="create_append") == 3
    assert value(connection, f"SELECT count(*) FROM {name}") == 9
    assert ingest(connection, name, mode="replace") == 3
    assert run(connection, f"SELECT id, s FROM {name} ORDER BY id") == [(1, "a"), (2, None), (3, "c")]
    assert ingest(connection, f"{name}_new", mode="create_append") == 3


def test_into_a_schema(connection, name):
    run(connection, f"CREATE SCHEMA s_{name}")
    assert ingest(connection, name, mode="create", db_schema_name=f"s_{name}") == 3
    assert value(connection, f"SELECT count(*) FROM s_{name}.{name}") == 3
    assert ingest(connection, name, mode="append", catalog_name="lattice", db_schema_name=f"s_{name}") == 3
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="3F000|3D000"):
        ingest(connection, name, mode="create", db_schema_name="nowhere")


def test_temporary_tables(server, name):
    with server.connect() as one, server.connect() as two:
        assert ingest(one, name, mode="create", temporary=True) == 3
        assert value(one, f"SELECT count(*) FROM {name}") == 3
        with pytest.raises(adbc_driver_manager.ProgrammingError, match="42P01"):
            value(two, f"SELECT count(*) FROM {name}")


@pytest.mark.parametrize("kind", ["reader", "batch", "pandas", "polars", "chunks"])
def test_every_kind_of_source(connection, name, kind):
    source = {
        "reader": lambda: DATA.to_reader(),
        "batch": lambda: DATA.to_batches()[0],
        "pandas": lambda: pa.Table.from_pandas(pandas.DataFrame({"id": [1, 2, 3], "s": ["a", None, "c"]})),
        "polars": lambda: polars.from_arrow(DATA),
        "chunks": lambda: pa.concat_tables([DATA.slice(0, 1), DATA.slice(1, 0), DATA.slice(1, 2)]),
    }[kind]()
    assert ingest(connection, name, source, mode="create") == 3
    assert run(connection, f"SELECT id, s FROM {name} ORDER BY id") == [(1, "a"), (2, None), (3, "c")]


def test_types(connection, name):
    moment = datetime.datetime(2026, 11, 22, 1, 2, 3, 456000)
    data = pa.table(
        {
            "i8": pa.array([1, None], pa.int8()),
            "u32": pa.array([2**32 - 1, None], pa.uint32()),
            "f32": pa.array([1.5, None], pa.float32()),
            "dec": pa.array([decimal.Decimal("1.23"), None], pa.decimal128(12, 2)),
            "large": pa.array(["x", None], pa.large_string()),
            "view": pa.array(["y", None], pa.string_view()),
            "category": pa.array(["z", None]).dictionary_encode(),
            "bytes": pa.array([b"\x01", None], pa.large_binary()),
            "day": pa.array([datetime.date(2026, 1, 2), None], pa.date32()),
            "ns": pa.array([moment, None], pa.timestamp("ns")),
            "ms": pa.array([moment, None], pa.timestamp("ms", tz="UTC")),
            "list": pa.array([[1, 2], None], pa.list_(pa.int64())),
            "flag": pa.array([True, None]),
        }
    )
    assert ingest(connection, name, data, mode="create") == 2
    with connection.cursor() as cursor:
        rows = cursor.execute(f"SELECT * FROM {name} ORDER BY i8").fetch_arrow_table().to_pylist()
    first, second = rows
    assert first["i8"] == 1 and first["u32"] == 2**32 - 1 and first["f32"] == 1.5
    assert first["dec"] == decimal.Decimal("1.23")
    assert (first["large"], first["view"], first["category"]) == ("x", "y", "z")
    assert first["bytes"] == b"\x01" and first["day"] == datetime.date(2026, 1, 2)
    assert first["ns"] == moment
    assert first["ms"] == moment.replace(tzinfo=datetime.timezone.utc)
    assert first["list"] == [1, 2] and first["flag"] is True
    assert set(second.values()) == {None}


def test_a_large_batch(server, connection, name):
    # One message well above the default limit of gRPC.
    rows = 400_000
    data = pa.table({"id": pa.array(range(rows), pa.int64()), "s": pa.array(["x" * 60] * rows)})
    assert data.nbytes > 24 << 20
    # The driver refuses to send more than 16 MiB at once unless it is told otherwise.
    options = {DatabaseOptions.WITH_MAX_MSG_SIZE.value: str(128 << 20)}
    with server.connect(database=options) as large:
        assert ingest(large, name, data.combine_chunks(), mode="create") == rows
    assert run(connection, f"SELECT count(*), sum(id), max(length(s)) FROM {name}") == [(rows, rows * (rows - 1) // 2, 60)]


def test_nothing_is_left_of_a_load_that_fails(connection, name):
    run(connection, f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, s TEXT)")
    duplicate = pa.table({"id": pa.array([1, 2, 1], pa.int64()), "s": pa.array(["a", "b", "c"])})
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="23505"):
        ingest(connection, name, duplicate, mode="append")
    assert value(connection, f"SELECT count(*) FROM {name}") == 0


def test_columns_are_matched_by_name(connection, name):
    run(connection, f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, s TEXT, d INT DEFAULT 7)")
    assert ingest(connection, name, DATA.select(["s", "id"]), mode="append") == 3
    assert run(connection, f"SELECT id, s, d FROM {name} WHERE id = 1") == [(1, "a", 7)]


def test_no_rows(connection, name):
    # The driver sends nothing at all for a source without rows, not even which table is meant.
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="the stream is empty"):
        ingest(connection, name, DATA.slice(0, 0), mode="create")
