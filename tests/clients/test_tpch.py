"""TPC-H at a small scale: loaded through ADBC, and the answers compared with DuckDB's."""

import math
import shutil
import subprocess
import sysconfig

import duckdb
import pyarrow.parquet
import pytest

TABLES = ["region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem"]


@pytest.fixture(scope="module")
def loaded(server, tmp_path_factory):
    tool = shutil.which("tpchgen-cli", path=sysconfig.get_path("scripts")) or shutil.which("tpchgen-cli")
    if not tool:
        pytest.skip("tpchgen-cli makes the data")
    folder = tmp_path_factory.mktemp("tpch")
    subprocess.run(
        [tool, "parquet", "-s", "0.01", "--output-dir", str(folder)], check=True, capture_output=True
    )
    oracle = duckdb.connect()
    connection = server.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA tpch")
        for table in TABLES:
            data = pyarrow.parquet.read_table(folder / f"{table}.parquet")
            assert cursor.adbc_ingest(table, data, mode="create", db_schema_name="tpch") == data.num_rows
            oracle.execute(f"CREATE TABLE {table} AS SELECT * FROM read_parquet('{folder}/{table}.parquet')")
        cursor.execute("SET search_path = tpch")
    yield connection, oracle
    connection.close()


QUERIES = {
    "q01": """
        SELECT l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice), sum(l_extendedprice * (1 - l_discount)),
               avg(l_quantity), count(*)
        FROM lineitem WHERE l_shipdate <= DATE '1998-09-02'
        GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus
    """,
    "q03": """
        SELECT l_orderkey, sum(l_extendedprice * (1 - l_discount)) AS revenue, o_orderdate, o_shippriority
        FROM customer, orders, lineitem
        WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey
          AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
        GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate, l_orderkey LIMIT 10
    """,
    "q05": """
        SELECT n_name, sum(l_extendedprice * (1 - l_discount)) AS revenue
        FROM customer, orders, lineitem, supplier, nation, region
        WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND l_suppkey = s_suppkey AND c_nationkey = s_nationkey
          AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey AND r_name = 'ASIA'
          AND o_orderdate >= DATE '1994-01-01' AND o_orderdate < DATE '1995-01-01'
        GROUP BY n_name ORDER BY revenue DESC, n_name
    """,
    "q06": """
        SELECT sum(l_extendedprice * l_discount) FROM lineitem
        WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'
          AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24
    """,
    "q18": """
        SELECT c_name, o_orderkey, o_totalprice, sum(l_quantity)
        FROM customer, orders, lineitem
        WHERE o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING sum(l_quantity) > 250)
          AND c_custkey = o_custkey AND o_orderkey = l_orderkey
        GROUP BY c_name, o_orderkey, o_totalprice ORDER BY o_totalprice DESC, o_orderkey LIMIT 100
    """,
}


def same(ours, theirs) -> bool:
    if isinstance(ours, str) or ours is None or not hasattr(ours, "__float__"):
        return ours == theirs
    return math.isclose(float(ours), float(theirs), rel_tol=1e-9, abs_tol=1e-6)


@pytest.mark.parametrize("query", QUERIES)
def test_answers_agree(loaded, query):
    connection, oracle = loaded
    with connection.cursor() as cursor:
        ours = cursor.execute(QUERIES[query]).fetchall()
    theirs = oracle.execute(QUERIES[query]).fetchall()
    assert len(ours) == len(theirs)
    for our_row, their_row in zip(ours, theirs):
        assert all(map(same, our_row, their_row)), (our_row, their_row)
