"""What clients ask about the server and its tables."""

import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import run, value


@pytest.fixture
def table(connection, name):
    run(
        connection,
        f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, s TEXT NOT NULL, price NUMERIC(18,2) DEFAULT 0, at TIMESTAMPTZ)",
    )
    run(connection, f"COMMENT ON COLUMN {name}.s IS 'a remark'")
    return name


def test_objects(connection, table):
    [catalog] = connection.adbc_get_objects(depth="all", table_name_filter=table).read_all().to_pylist()
    assert catalog["catalog_name"] == "lattice"
    [schema] = [one for one in catalog["catalog_db_schemas"] if one["db_schema_tables"]]
    assert schema["db_schema_name"] == "public"
    [found] = schema["db_schema_tables"]
    assert (found["table_name"], found["table_type"]) == (table, "TABLE")
    columns = {column["column_name"]: column for column in found["table_columns"]}
    assert list(columns) == ["id", "s", "price", "at"]
    assert [column["ordinal_position"] for column in found["table_columns"]] == [1, 2, 3, 4]
    assert [column["xdbc_type_name"].split("(")[0].lower() for column in found["table_columns"]] == [
        "bigint",
        "text",
        "numeric",
        "timestamptz",
    ]
    assert columns["id"]["xdbc_is_autoincrement"] is False


def test_depths_and_patterns(connection, table):
    catalogs = connection.adbc_get_objects(depth="catalogs").read_all().to_pylist()
    assert [catalog["catalog_name"] for catalog in catalogs] == ["lattice"]
    [catalog] = connection.adbc_get_objects(depth="db_schemas").read_all().to_pylist()
    assert {"public", "information_schema"} <= {one["db_schema_name"] for one in catalog["catalog_db_schemas"]}
    [catalog] = connection.adbc_get_objects(depth="tables", table_name_filter=f"%{table[1:]}").read_all().to_pylist()
    names = [one["table_name"] for schema in catalog["catalog_db_schemas"] for one in schema["db_schema_tables"] or []]
    assert table in names


def test_table_schema(connection, table):
    schema = connection.adbc_get_table_schema(table)
    assert schema.names == ["id", "s", "price", "at"]
    assert schema.field("price").type == pa.decimal128(18, 2)
    assert schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert not schema.field("s").nullable and schema.field("price").nullable
    metadata = schema.field("price").metadata
    assert metadata[b"ARROW:FLIGHT:SQL:TYPE_NAME"].lower().startswith(b"numeric")
    assert metadata[b"ARROW:FLIGHT:SQL:PRECISION"] == b"18"
    assert schema.field("s").metadata[b"ARROW:FLIGHT:SQL:REMARKS"] == b"a remark"
    with pytest.raises(adbc_driver_manager.Error):
        connection.adbc_get_table_schema("does_not_exist")


def test_table_types(connection):
    assert {"TABLE", "VIEW"} <= set(connection.adbc_get_table_types())


def test_info(connection):
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "LatticeDB"
    assert info["vendor_version"] and info["vendor_arrow_version"]


def test_execute_schema(connection, table):
    with connection.cursor() as cursor:
        schema = cursor.adbc_execute_schema(f"SELECT id, price * 2 AS double FROM {table}")
    assert schema.names == ["id", "double"]
    with connection.cursor() as cursor:
        assert cursor.adbc_execute_schema("SELECT ?::int AS n").names == ["n"], "parameters need not be bound"


def test_the_current_schema(server, name):
    with server.connect() as connection:
        assert connection.adbc_current_catalog == "lattice"
        assert connection.adbc_current_db_schema == "public"
        run(connection, f"CREATE SCHEMA s_{name}")
        connection.adbc_current_db_schema = f"s_{name}"
        assert connection.adbc_current_db_schema == f"s_{name}"
        run(connection, f"CREATE TABLE {name} (x INT)")
        assert value(connection, f"SELECT count(*) FROM s_{name}.{name}") == 0
        with pytest.raises(adbc_driver_manager.Error):
            connection.adbc_current_catalog = "elsewhere"


def test_session_options(server):
    with server.connect(connection={"adbc.flight.sql.session.option.application_name": "tests"}) as connection:
        assert value(connection, "SHOW application_name") == "tests"
