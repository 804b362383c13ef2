"""The demo: one server that takes writes and answers analytics at the same time, told in six steps.

Everything goes over Arrow Flight SQL, through the ADBC driver, as any program's requests would.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import pathlib
import random
import shutil
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import lattice  # noqa: E402

COLOR = sys.stdout.isatty()
TITLES = {
    1: "pricing summary", 2: "cheapest supplier", 3: "shipping priority", 4: "order priority", 5: "local suppliers",
    6: "revenue forecast", 7: "volume shipping", 8: "market share", 9: "product profit", 10: "returned items",
    11: "important stock", 12: "shipping modes", 13: "customer spread", 14: "promotion effect", 15: "top supplier",
    16: "parts and suppliers", 17: "small orders", 18: "large orders", 19: "discounted revenue", 20: "part promotion",
    21: "waiting suppliers", 22: "sales opportunity",
}  # fmt: skip
LOOK_BACK_S = 60


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOR else text


def step(number: int, text: str) -> None:
    print(f"\n{paint('1;36', f'{number}.')} {paint('1', text)}", flush=True)


def say(text: str = "") -> None:
    print(f"   {text}", flush=True)


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, label: str, total: int | None = None):
        self.label, self.total, self.done = label, total, 0
        self.started = self.shown = time.monotonic()
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            self.done += count
            self.show()

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.shown < (0.1 if COLOR else 10):
            return
        self.shown = now
        if self.total:
            share = min(1.0, self.done / self.total)
            bar = "█" * round(share * 24) + "░" * (24 - round(share * 24))
            text = f"{self.label:<10} {bar} {self.done:>10,} of {self.total:,} rows"
        else:
            text = f"{self.label} … {now - self.started:.0f} s"
        print(f"\r\x1b[K   {text}" if COLOR else f"   {text}", end="" if COLOR else "\n", flush=True)

    def clear(self) -> None:
        if COLOR:
            print("\r\x1b[K", end="", flush=True)


class Ticker:
    """Shows that a step without countable progress still runs."""

    def __init__(self, label: str):
        self.progress, self.stop = Progress(label), threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.tick, daemon=True)
        self.thread.start()
        return self

    def tick(self) -> None:
        while not self.stop.wait(0.25):
            if time.monotonic() - self.progress.started > 1.5:
                self.progress.show()

    def __exit__(self, *_exc) -> None:
        self.stop.set()
        self.thread.join()
        self.progress.clear()


class Writer(threading.Thread):
    """Changes orders and their lines, one transaction after the other, until told to stop."""

    def __init__(self, uri: str, keys: list[int]):
        super().__init__(daemon=True)
        self.uri, self.keys, self.halt = uri, keys, threading.Event()
        self.commits, self.rows, self.conflicts, self.error = 0, 0, 0, None
        self.latencies: list[float] = []

    def run(self) -> None:
        rng = random.Random(42)
        try:
            with lattice.connect(self.uri, autocommit=False) as connection, connection.cursor() as cursor:
                while not self.halt.is_set():
                    key = rng.choice(self.keys)
                    begun = time.monotonic()
                    cursor.execute(f"update lineitem set l_quantity = l_quantity + 1 where l_orderkey = {key}")
                    changed = max(cursor.rowcount, 0)
                    cursor.execute(f"update orders set o_totalprice = o_totalprice + 100 where o_orderkey = {key}")
                    changed += max(cursor.rowcount, 0)
                    connection.commit()
                    self.latencies.append(time.monotonic() - begun)
                    self.commits += 1
                    self.rows += changed
        except Exception as error:  # noqa: BLE001 - shown at the end of the step
            self.error = error


def queries(connection, scale: float, title: str) -> tuple[dict[int, float], dict[int, int]]:
    """Runs the 22 queries and prints their times, two columns wide."""
    times, rows = {}, {}
    for number in range(1, 23):
        with Ticker(f"{title}: query {number} of 22, {TITLES[number]}"):
            begun = time.monotonic()
            rows[number] = len(lattice.execute(connection, lattice.tpch_query(number, scale)))
            times[number] = time.monotonic() - begun
    longest = max(times.values())
    for left in range(1, 12):
        cells = []
        for number in (left, left + 11):
            bar = "▇" * max(1, round(times[number] / longest * 12))
            cells.append(f"Q{number:<2} {TITLES[number]:<19} {rows[number]:>6,} rows {times[number] * 1000:>8,.0f} ms {bar:<12}")
        say("  ".join(cells).rstrip())
    say(paint("2", f"all 22 in {sum(times.values()):.1f} s"))
    return times, rows


def total(connection, when: str = "") -> tuple:
    sql = f"select count(*), sum(o_totalprice), max(o_totalprice) from orders {when}"
    return lattice.execute(connection, sql)[0]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=lattice.default_binary())
    arguments.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor; 1 is about a gigabyte")
    arguments.add_argument("--folder", default=str(ROOT / "build" / "demo"), help="where the demo keeps its database")
    arguments.add_argument("--keep", action="store_true", help="leave the server running at the end")
    options = arguments.parse_args()
    scale = options.scale
    if not 0 < scale <= 100:
        print("error: the scale factor must be between 0 and 100; 1 is about a gigabyte", file=sys.stderr)
        return 2
    begun = time.monotonic()

    step(1, "Start a server: one process, one folder, no configuration")
    folder = pathlib.Path(options.folder)
    data = folder / "data"
    if data.exists():
        shutil.rmtree(data)
    folder.mkdir(parents=True, exist_ok=True)
    server = lattice.Server(
        data, options.binary, log=folder / "server.log",
        flight_port=lattice.free_port(50051), http_port=lattice.free_port(8080),
    )  # fmt: skip
    server.log.unlink(missing_ok=True)
    with Ticker("starting"):
        server.start()
    say(f"listening at {server.uri}, status page at {server.http}")
    say(f"data in {data.relative_to(ROOT) if data.is_relative_to(ROOT) else data}, log in {server.log.name} beside it")

    try:
        story(server, scale)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C")
        server.stop()
        return 130
    except Exception as error:
        print(f"\n{paint('31', 'The demo stopped:')} {error}", file=sys.stderr)
        print(f"The server's last words:\n{server.log_tail(15)}", file=sys.stderr)
        server.kill()
        raise SystemExit(1) from error

    print(f"\n{paint('1;32', 'Done')} in {time.monotonic() - begun:.0f} s. To go on:")
    target = pathlib.Path(options.binary)
    address = f"127.0.0.1:{server.flight_port}"
    if options.keep:
        say(f"the server keeps running (process {server.process.pid}); stop it with: kill {server.process.pid}")
    else:
        with Ticker("stopping the server"):
            code = server.stop()
        say(f"the server stopped cleanly (exit code {code}); start it again on the same data with")
        say(paint("1", f"  {target} serve --data {data} --flight {address}"))
    say("and ask it something:")
    host = "" if server.flight_port == 50051 else f" --host {address}"
    say(paint("1", f"  {target} sql{host} -c 'select o_orderpriority, count(*) from orders group by 1 order by 1'"))
    say("Python, notebooks and BI tools: docs/flight-sql.md")
    return 0


def story(server: lattice.Server, scale: float) -> None:
    connection = server.connect()

    step(2, f"Load TPC-H at scale factor {scale:g} over ADBC")
    with Ticker("generating the data"):
        files = lattice.tpch_data(scale)
    for statement in lattice.tpch_tables():
        lattice.execute(connection, statement)
    loaded, seconds = 0, 0.0
    for table in lattice.TABLES:
        expected = lattice.pq.read_metadata(files / f"{table}.parquet").num_rows
        progress = Progress(table, expected)
        started = time.monotonic()
        count = lattice.load_table(connection, table, files, progress.add)
        took = time.monotonic() - started
        progress.clear()
        if count not in (-1, expected):
            raise RuntimeError(f"{table}: {count} rows arrived, {expected} were sent")
        loaded, seconds = loaded + expected, seconds + took
        say(f"{table:<10} {expected:>11,} rows {took:>7.2f} s {expected / took:>12,.0f} rows/s")
    say(paint("2", f"{loaded:,} rows with primary keys checked, {loaded / seconds:,.0f} rows/s"))

    step(3, "Ask the 22 queries of TPC-H")
    alone, _ = queries(connection, scale, "quiet")

    step(4, "Ask them again while a writer changes orders and their lines")
    (then,) = lattice.execute(connection, "select current_timestamp")[0]
    before = total(connection)
    moment = time.monotonic()
    keys = [row[0] for row in lattice.execute(connection, "select o_orderkey from orders order by o_orderkey limit 1000")]
    # The noted moment must lie strictly before the first change.
    time.sleep(0.01)
    writer = Writer(server.uri, keys)
    writer.start()
    busy, _ = queries(connection, scale, "with a writer")
    writer.halt.set()
    writer.join()
    if writer.error is not None:
        raise RuntimeError(f"the writer failed: {writer.error}")
    latencies = sorted(writer.latencies) or [0.0]
    say(
        f"meanwhile {writer.commits:,} transactions changed {writer.rows:,} rows; "
        f"a commit took {latencies[len(latencies) // 2] * 1000:.1f} ms in the middle, {latencies[int(len(latencies) * 0.95)] * 1000:.1f} ms at the 95th percentile"
    )
    say(f"the queries took {sum(busy.values()) / sum(alone.values()):.2f} times as long as alone")

    step(5, "See an update in the very next query")
    key = keys[0]
    with server.connect() as other:
        (old,) = lattice.execute(other, f"select o_totalprice from orders where o_orderkey = {key}")[0]
        started = time.monotonic()
        lattice.execute(connection, f"update orders set o_totalprice = o_totalprice + 1000000 where o_orderkey = {key}")
        (new,) = lattice.execute(other, f"select o_totalprice from orders where o_orderkey = {key}")[0]
        took = time.monotonic() - started
        now = total(other)
    say(f"order {key}: {old:,} → {new:,}, seen by another connection {took * 1000:.0f} ms after the update was sent")
    if new - old != decimal.Decimal(1000000):
        raise RuntimeError("the update was not seen by the next query")
    say(f"sum over all {now[0]:,} orders: {now[1]:,}")

    step(6, "Go back in time")
    waiting = Progress("waiting until the noted moment is a minute old")
    while time.monotonic() - moment < LOOK_BACK_S:
        waiting.show()
        time.sleep(0.25)
    waiting.clear()
    age = time.monotonic() - moment
    stamp = then.isoformat(sep=" ") if isinstance(then, datetime.datetime) else str(then)
    clause = f"for system_time as of '{stamp}'"
    say(f"select … from orders {clause}   -- {age:.0f} s ago")
    past = total(connection, clause)
    say(f"then: {before[1]:>24,}   noted at that moment, before the writer started")
    say(f"AS OF {past[1]:>24,}   asked now" + (paint("32", "   equal") if past == before else ""))
    say(f"now:  {now[1]:>24,}")
    if past != before:
        raise RuntimeError(f"time travel gave {past}, but the answer was {before}")
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
