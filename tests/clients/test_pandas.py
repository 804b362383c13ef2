"""pandas over ADBC."""

import pandas
import pytest
from conftest import run, value

FRAME = pandas.DataFrame(
    {
        "id": [1, 2, 3],
        "s": ["a", None, "c"],
        "x": [1.5, 2.5, float("nan")],
        "at": pandas.to_datetime(["2026-11-22 01:02:03", None, "2026-11-23 00:00:00"]),
        "flag": [True, False, True],
    }
)


def test_read_sql(connection, name):
    run(connection, f"CREATE TABLE {name} (id INT PRIMARY KEY, s TEXT)")
    run(connection, f"INSERT INTO {name} VALUES (1, 'a'), (2, NULL)")
    frame = pandas.read_sql(f"SELECT * FROM {name} ORDER BY id", connection)
    assert frame["id"].tolist() == [1, 2]
    assert frame["s"].isna().tolist() == [False, True]
    frame = pandas.read_sql_table(name, connection)
    assert sorted(frame["id"]) == [1, 2]


def test_to_sql(connection, name):
    assert FRAME.to_sql(name, connection, index=False) == 3
    back = pandas.read_sql(f"SELECT * FROM {name} ORDER BY id", connection)
    assert back["id"].tolist() == [1, 2, 3]
    assert back["x"].tolist()[:2] == [1.5, 2.5] and pandas.isna(back["x"][2])
    assert back["flag"].tolist() == [True, False, True]
    assert str(back["at"][0]).startswith("2026-11-22 01:02:03")
    with pytest.raises(ValueError):
        FRAME.to_sql(name, connection, index=False)
    assert FRAME.to_sql(name, connection, index=False, if_exists="append") == 3
    assert value(connection, f"SELECT count(*) FROM {name}") == 6
    assert FRAME.to_sql(name, connection, index=False, if_exists="replace") == 3
    assert value(connection, f"SELECT count(*) FROM {name}") == 3


def test_to_sql_in_a_transaction(server, connection, name):
    with server.connect(autocommit=False) as work:
        FRAME.to_sql(name, work, index=False)
        work.commit()
    assert value(connection, f"SELECT count(*) FROM {name}") == 3
