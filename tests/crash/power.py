"""Cuts the power of the whole store on a simulated disk, many times, and shows that every sync call is needed.

The work is done by `storage/tests/power.rs`; this runs its long forms, one process per batch of stories so that memory stays
small, and writes docs/evidence/power.json when asked to.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import evidence  # noqa: E402

BATCH = 20
BUILD = ["cargo", "test", "-q", "--locked", "-p", "lattice-storage", "-p", "lattice-pins", "--test", "power", "--no-run", "--message-format=json"]


def build() -> str:
    """The test binary, in the dev profile, which the stories are made for."""
    done = subprocess.run(BUILD, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("the test does not build; the reason stands above")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["target"]["name"] == "power":
            return message["executable"]
    sys.exit("cargo names no binary for the test `power`")


def run(binary: str, arguments: list[str], variables: dict[str, int]) -> tuple[int, str]:
    env = os.environ | {name: str(value) for name, value in variables.items()}
    done = subprocess.run([binary, "--nocapture", *arguments], cwd=ROOT / "storage", env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--stories", type=int, default=200, help="each is several lives of one data folder")
    arguments.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    arguments.add_argument("--sync-stories", type=int, default=200, help="give up on a sync call site after so many")
    arguments.add_argument("--no-syncs", action="store_true", help="leave out the proof that every sync is needed")
    arguments.add_argument("--binary", help="the built test; otherwise cargo builds it")
    arguments.add_argument("--evidence", action="store_true", help="write docs/evidence/power.json")
    options = arguments.parse_args()
    binary = options.binary or build()
    begun = time.monotonic()
    total: dict[str, int] = {}
    violations: list[str] = []
    print(f"seed {options.seed}, {options.stories} stories", flush=True)
    for first in range(options.seed, options.seed + options.stories, BATCH):
        count = min(BATCH, options.seed + options.stories - first)
        test = ["--exact", "power_cuts_lose_nothing_that_was_acknowledged"]
        code, output = run(binary, test, {"LATTICE_POWER_SEED": first, "LATTICE_POWER_STORIES": count})
        found = re.search(r"^power: (\{.*\})$", output, re.MULTILINE)
        if code or not found:
            what = re.search(r"^(seed \d+.*)$", output, re.MULTILINE)
            violations.append(what.group(1)[:500] if what else output[-2000:])
            print(f"VIOLATION {violations[-1]}", flush=True)
            continue
        for name, value in json.loads(found.group(1)).items():
            total[name] = max(total.get(name, 0), value) if name == "sync_sites" else total.get(name, 0) + value
        print(f"{total['stories']:>4} stories, {total['cuts']} power cuts, {total['commits']:,} acknowledged commits", flush=True)
    needed, unneeded = {}, []
    if not options.no_syncs:
        test = ["--exact", "every_sync_is_needed", "--ignored"]
        code, output = run(binary, test, {"LATTICE_POWER_SYNC_STORIES": options.sync_stories})
        for site, stories in re.findall(r"^sync (\S+) (\d+) stories", output, re.MULTILINE):
            needed[site] = int(stories)
        unneeded = re.findall(r"^sync (\S+) not needed", output, re.MULTILINE)
        print("\n".join(line[:160] for line in output.splitlines() if line.startswith("sync ")))
        if code and not unneeded:
            violations.append(output[-2000:])
            print(f"VIOLATION {violations[-1]}")
    took = time.monotonic() - begun
    print(f"{total.get('stories', 0)} stories in {took:.0f} s: {total}, {len(violations)} violations; {len(needed)} sync sites shown to be needed")
    if options.evidence:
        rows = [evidence.row(name, "lattice", "count", [total.get(name, 0)]) for name in ("stories", "lives", "cuts", "kills", "commits", "in_doubt", "as_of")]
        rows.append(evidence.row("violations", "lattice", "count", [len(violations)]))
        rows += [evidence.row(f"until_violation_without_{site}", "lattice", "stories", [count]) for site, count in sorted(needed.items())]
        rows.append(evidence.row("syncs_not_needed", "lattice", "count", [len(unneeded)]))
        path = evidence.write("power", rows, f"make test-crash  # seed {options.seed}", {})
        print(f"written to {path.relative_to(ROOT)}")
    return 1 if violations or unneeded else 0


if __name__ == "__main__":
    sys.exit(main())
