"""Kills the server, at random moments and at named points, while writers write; then checks that nothing was lost.

What is checked after each restart:
  - every acknowledged transaction is there, with all its rows;
  - of a transaction that was not acknowledged either all rows are there or none;
  - no transaction is there that was never sent;
  - transfers between accounts preserve their sum, in the present and at the moment of the last check (AS OF);
  - a bulk load that was acknowledged is complete, another one is complete or absent.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import pyarrow as pa  # noqa: E402

import evidence  # noqa: E402
import lattice  # noqa: E402

WRITERS = 4
ACCOUNTS = 40
START_BALANCE = 1000
BULK_ROWS = 3000
ROUNDS_PER_DATABASE = 20
# Small limits, so that flushes, checkpoints, spills and segment changes all happen within seconds.
SETTINGS = [
    "storage.flush_bytes=48KiB", "storage.flush_interval=400ms", "storage.log_max=1MiB", "storage.journal_segment=1MiB",
    "storage.row_tier=16MiB", "storage.spill_bytes=256KiB", "sql.bulk_rows=1000", "storage.lock_timeout=2s",
]  # fmt: skip
TABLES = [
    "create table ledger (writer int, seq int, part int, parts int, body text, primary key (writer, seq, part))",
    "create table head (writer int primary key, seq int not null)",
    "create table account (id int primary key, balance bigint not null)",
    "create table bulk (load int, n int, body text, primary key (load, n))",
]


def failpoints() -> list[str]:
    """The named points, as the source code spells them."""
    names = set()
    for folder in ("storage", "sql"):
        for path in (ROOT / folder).rglob("*.rs"):
            names.update(re.findall(r'failpoint(?:_hit)?!?\(\s*"([a-z0-9_.]+)"', path.read_text()))
    return sorted(names)


class Expected:
    """What the writers were told."""

    def __init__(self):
        self.lock = threading.Lock()
        self.acked: dict[int, dict[int, int]] = {writer: {} for writer in range(WRITERS)}
        self.sent: dict[int, dict[int, int]] = {writer: {} for writer in range(WRITERS)}
        self.loads_acked: set[int] = set()
        self.loads_sent: set[int] = set()
        self.checked_at: str | None = None

    def next_seq(self, writer: int) -> int:
        return max(self.sent[writer], default=0) + 1


class Writers:
    """Concurrent clients. They stop at the first broken connection: that is the crash."""

    def __init__(self, server, expected: Expected, seed: int):
        self.server, self.expected, self.halt = server, expected, threading.Event()
        self.unexpected: list[str] = []
        self.threads = [threading.Thread(target=self.guard, args=(self.write, writer, seed), daemon=True) for writer in range(WRITERS)]
        self.threads.append(threading.Thread(target=self.guard, args=(self.transfer, 0, seed), daemon=True))
        self.threads.append(threading.Thread(target=self.guard, args=(self.bulk, 0, seed), daemon=True))
        self.commits = 0

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        self.halt.set()
        for thread in self.threads:
            thread.join(30)
            if thread.is_alive():
                self.unexpected.append("a client did not notice within 30 s that the server is gone")

    def guard(self, work, writer: int, seed: int) -> None:
        try:
            with self.server.connect(autocommit=False) as connection:
                work(connection, writer, random.Random(seed * 100 + writer))
        except Exception as error:  # noqa: BLE001 - sorted out here
            if self.server.alive() and not self.halt.is_set():
                # The process may be dying right now; an error of a living server is a finding.
                time.sleep(1)
                if self.server.alive() and not self.halt.is_set():
                    self.unexpected.append(f"{type(error).__name__}: {error}")

    def write(self, connection, writer: int, rng: random.Random) -> None:
        expected = self.expected
        with connection.cursor() as cursor:
            while not self.halt.is_set():
                seq, parts = expected.next_seq(writer), rng.randint(1, 6)
                if rng.random() < 0.02:
                    parts = 1500  # large enough to spill and to commit by reference
                expected.sent[writer][seq] = parts
                body = "x" * rng.randint(1, 400)
                if parts > 100:
                    cursor.execute(
                        f"insert into ledger select {writer}, {seq}, g, {parts}, '{body}' from generate_series(0, {parts - 1}) as s(g)"
                    )
                else:
                    values = ", ".join(f"({writer}, {seq}, {part}, {parts}, '{body}')" for part in range(parts))
                    cursor.execute(f"insert into ledger values {values}")
                cursor.execute(f"update head set seq = {seq} where writer = {writer}")
                connection.commit()
                expected.acked[writer][seq] = parts
                self.commits += 1
                if rng.random() < 0.05 and seq > 3:
                    self.forget(connection, cursor, writer, rng)

    def forget(self, connection, cursor, writer: int, rng: random.Random) -> None:
        """Rolls back a change to rows that must stay."""
        seq = rng.randint(1, max(self.expected.acked[writer]))
        cursor.execute(f"update ledger set body = 'never' where writer = {writer} and seq = {seq}")
        cursor.execute(f"delete from ledger where writer = {writer} and seq < {seq}")
        connection.rollback()

    def transfer(self, connection, _writer: int, rng: random.Random) -> None:
        with connection.cursor() as cursor:
            while not self.halt.is_set():
                a, b = rng.sample(range(ACCOUNTS), 2)
                amount = rng.randint(1, 50)
                cursor.execute(f"update account set balance = balance - {amount} where id = {a}")
                cursor.execute(f"update account set balance = balance + {amount} where id = {b}")
                connection.commit()
                self.commits += 1

    def bulk(self, connection, _writer: int, rng: random.Random) -> None:
        while not self.halt.is_set():
            load = len(self.expected.loads_sent) + 1
            self.expected.loads_sent.add(load)
            body = [f"{load}-{n}" for n in range(BULK_ROWS)]
            batch = pa.table({"load": pa.array([load] * BULK_ROWS, pa.int32()), "n": pa.array(range(BULK_ROWS), pa.int32()), "body": body})
            with connection.cursor() as cursor:
                cursor.adbc_ingest("bulk", batch, mode="append")
            connection.commit()
            self.expected.loads_acked.add(load)
            self.commits += 1
            self.halt.wait(rng.uniform(0.1, 0.5))


def prepare(server) -> Expected:
    with server.connect() as connection:
        for statement in TABLES:
            lattice.execute(connection, statement)
        heads = ", ".join(f"({writer}, 0)" for writer in range(WRITERS))
        lattice.execute(connection, f"insert into head values {heads}")
        accounts = ", ".join(f"({account}, {START_BALANCE})" for account in range(ACCOUNTS))
        lattice.execute(connection, f"insert into account values {accounts}")
    return Expected()


def check(server, expected: Expected) -> list[str]:
    """Everything that is wrong with the recovered state."""
    faults: list[str] = []
    with server.connect() as connection:
        found: dict[int, dict[int, tuple]] = {writer: {} for writer in range(WRITERS)}
        groups = "select writer, seq, count(*), min(parts), max(parts), min(part), max(part) from ledger group by writer, seq"
        for writer, seq, *rest in lattice.execute(connection, groups):
            found[writer][seq] = tuple(rest)
        heads = dict(lattice.execute(connection, "select writer, seq from head"))
        for writer in range(WRITERS):
            for seq, parts in expected.acked[writer].items():
                if seq not in found[writer]:
                    faults.append(f"writer {writer}: acknowledged transaction {seq} is lost")
            for seq, (count, low, high, first, last) in found[writer].items():
                parts = expected.sent[writer].get(seq)
                if parts is None:
                    faults.append(f"writer {writer}: transaction {seq} was never sent")
                elif (count, low, high, first, last) != (parts, parts, parts, 0, parts - 1):
                    faults.append(f"writer {writer}: transaction {seq} is partial: {count} of {parts} rows")
            newest = max(found[writer], default=0)
            if heads.get(writer) != newest:
                faults.append(f"writer {writer}: head says {heads.get(writer)}, the ledger ends at {newest}")
            # What survived was committed; what did not survive was never sent, as far as the next round knows.
            expected.acked[writer] = {seq: expected.sent[writer][seq] for seq in found[writer] if seq in expected.sent[writer]}
            expected.sent[writer] = dict(expected.acked[writer])
        never = lattice.execute(connection, "select count(*) from ledger where body = 'never'")[0][0]
        if never:
            faults.append(f"{never} rows of transactions that were rolled back")
        total = lattice.execute(connection, "select count(*), sum(balance) from account")[0]
        if (int(total[0]), int(total[1])) != (ACCOUNTS, ACCOUNTS * START_BALANCE):
            faults.append(f"accounts: {total[0]} rows with a sum of {total[1]}")
        if expected.checked_at:
            past = lattice.execute(connection, f"select count(*), sum(balance) from account for system_time as of '{expected.checked_at}'")[0]
            if (int(past[0]), int(past[1])) != (ACCOUNTS, ACCOUNTS * START_BALANCE):
                faults.append(f"accounts as of {expected.checked_at}: {past[0]} rows with a sum of {past[1]}")
        (now,) = lattice.execute(connection, "select current_timestamp")[0]
        expected.checked_at = now.isoformat(sep=" ")
        loads = dict(lattice.execute(connection, "select load, count(*) from bulk group by load"))
        for load in expected.loads_acked - set(loads):
            faults.append(f"acknowledged load {load} is lost")
        for load, count in loads.items():
            if count != BULK_ROWS:
                faults.append(f"load {load} is partial: {count} of {BULK_ROWS} rows")
        expected.loads_acked |= set(loads)
    return faults


def quiet_hook(unraisable) -> None:
    """The driver complains in its destructors about statements that died with the server; that is what this is about."""
    if not isinstance(unraisable.exc_value, (RuntimeError, OSError)) and "adbc" not in type(unraisable.exc_value).__module__:
        sys.__unraisablehook__(unraisable)


def main() -> int:
    sys.unraisablehook = quiet_hook
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", default=lattice.default_binary())
    arguments.add_argument("--rounds", type=int, default=200)
    arguments.add_argument("--seconds", type=float, default=0, help="stop early after this long; 0 means never")
    arguments.add_argument("--seed", type=int, default=int(time.time()))
    arguments.add_argument("--evidence", action="store_true", help="write docs/evidence/crash.json")
    options = arguments.parse_args()
    rng = random.Random(options.seed)
    points = failpoints()
    print(f"seed {options.seed}, {options.rounds} rounds, {len(points)} named points: {', '.join(points)}", flush=True)
    begun = time.monotonic()
    base = ROOT / "build" / "crash"
    base.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=base))
    rounds, commits, violations, hit = 0, 0, [], dict.fromkeys(points, 0)
    recovery: list[float] = []
    server, expected = None, None
    queue: list[str] = []
    while rounds < options.rounds:
        if options.seconds and time.monotonic() - begun > options.seconds:
            print(f"stopping after {rounds} rounds: the {options.seconds:.0f} s are over")
            break
        if rounds % ROUNDS_PER_DATABASE == 0:
            server = lattice.Server(folder / f"data{rounds}", options.binary, SETTINGS)
            server.start()
            expected = prepare(server)
            server.stop()
        # Every second round dies at a named point, each of them in turn; the others at a random moment.
        point = None
        if points and rounds % 2:
            if not queue:
                queue = rng.sample(points, len(points))
            point = queue.pop()
        server.env = {"LATTICE_FAILPOINT": f"{point}:{rng.randint(1, 4)}"} if point else {}
        died_early = False
        try:
            server.start()
        except RuntimeError:
            # The point lies on the way up: the next start must recover all the same.
            died_early = point is not None
            if not died_early:
                raise
        writers = None
        if not died_early:
            writers = Writers(server, expected, options.seed + rounds)
            writers.start()
            patience = time.monotonic() + (6.0 if point else rng.uniform(0.05, 2.5))
            while time.monotonic() < patience and server.alive():
                time.sleep(0.01)
        if point and (died_early or not server.alive()):
            hit[point] += 1
            code = server.process.returncode if server.process else None
            if code not in (137, -signal.SIGKILL, None):
                violations.append(f"round {rounds}: exit code {code} at {point}\n{server.log_tail(10)}")
        elif not point and not server.alive():
            violations.append(f"round {rounds}: the server died by itself:\n{server.log_tail()}")
        server.kill()
        if writers:
            writers.join()
            commits += writers.commits
            violations += [f"round {rounds}: a client was refused: {text}" for text in writers.unexpected]
        server.env = {}
        started = time.monotonic()
        try:
            server.start()
            recovery.append(time.monotonic() - started)
            faults = check(server, expected)
        except Exception as error:  # noqa: BLE001 - a server that does not come back is the worst finding
            faults = [f"recovery failed: {error}"]
        violations += [f"round {rounds} ({point or 'random moment'}): {fault}" for fault in faults]
        server.kill()
        rounds += 1
        if faults:
            kept = server.data.with_name(f"{server.data.name}-failed-{rounds}")
            shutil.copytree(server.data, kept)
            print(f"the data folder is kept in {kept}")
            for fault in faults[:5]:
                print(f"  {fault}", flush=True)
            server = lattice.Server(folder / f"data{rounds}-again", options.binary, SETTINGS)
            server.start()
            expected = prepare(server)
            server.stop()
        if rounds % 5 == 0 or sys.stdout.isatty():
            print(f"{rounds:>4} rounds, {commits:,} acknowledged commits, {len(violations)} violations", flush=True)
    if server:
        server.kill()
    never_hit = [point for point, count in hit.items() if not count]
    slowest = max(recovery, default=0.0)
    print(f"{rounds} rounds in {time.monotonic() - begun:.0f} s: {commits:,} acknowledged commits, {len(violations)} violations")
    print(f"died at {sum(hit.values())} named points ({len(points) - len(never_hit)} of {len(points)} different); slowest recovery {slowest:.1f} s")
    if never_hit and rounds > 2 * len(points):
        print(f"never reached: {', '.join(never_hit)}")
    for violation in violations[:20]:
        print(f"VIOLATION {violation}")
    if options.evidence:
        rows = [
            evidence.row("rounds", "lattice", "rounds", [rounds]),
            evidence.row("violations", "lattice", "count", [len(violations)]),
            evidence.row("acknowledged", "lattice", "commits", [commits]),
            evidence.row("named_points", "lattice", "count", [len(points) - len(never_hit)]),
            evidence.row("recovery", "lattice", "s", recovery or [0.0]),
        ]
        import subprocess

        found = subprocess.run([options.binary, "version"], capture_output=True, text=True, check=True).stdout.split()[-1]
        path = evidence.write("crash", rows, f"make test-crash  # seed {options.seed}", {"lattice": found})
        print(f"written to {path.relative_to(ROOT)}")
    if not violations:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
