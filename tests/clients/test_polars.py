"""polars over ADBC."""

import polars
from conftest import run, value

FRAME = polars.DataFrame({"id": [1, 2, 3], "s": ["a", None, "c"], "x": [1.5, 2.5, None]})


def test_read_database(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, s TEXT)")
    run(connection, f"INSERT INTO {name} VALUES (1, 'a'), (2, NULL)")
    frame = polars.read_database(f"SELECT * FROM {name} ORDER BY id", connection)
    assert frame.to_dict(as_series=False) == {"id": [1, 2], "s": ["a", None]}
    batches = polars.read_database(f"SELECT * FROM {name}", connection, iter_batches=True, batch_size=1)
    assert sum(batch.height for batch in batches) == 2


def test_read_database_uri(server, connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY)")
    run(connection, f"INSERT INTO {name} VALUES (1), (2)")
    frame = polars.read_database_uri(f"SELECT id FROM {name} ORDER BY id", server.uri, engine="adbc")
    assert frame["id"].to_list() == [1, 2]


def test_write_database(connection, name):
    assert FRAME.write_database(name, connection, engine="adbc") == 3
    assert FRAME.write_database(name, connection, engine="adbc", if_table_exists="append") == 3
    assert value(connection, f"SELECT count(*) FROM {name}") == 6
    assert FRAME.write_database(name, connection, engine="adbc", if_table_exists="replace") == 3
    back = polars.read_database(f"SELECT * FROM {name} ORDER BY id", connection)
    assert back.equals(FRAME)
