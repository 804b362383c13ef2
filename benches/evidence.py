"""Evidence files: every figure that a document quotes comes from docs/evidence/<bench>.json, written here."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "evidence"


def machine() -> dict:
    cpu = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30), "kernel": platform.release()}


def commit() -> str:
    """The measured commit; a change on top of it is marked."""
    run = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    head = run("rev-parse", "--short=12", "HEAD") or "none"
    dirty = run("status", "--porcelain", "--", ".", ":(exclude)docs/evidence")
    return f"{head}+changes" if dirty else head


def row(name: str, subject: str, unit: str, values: list[float]) -> dict:
    """One measured thing of one subject."""
    values = [float(value) for value in values]
    digits = lambda value: float(f"{value:.6g}")  # noqa: E731
    return {
        "name": name,
        "subject": subject,
        "unit": unit,
        "median": digits(statistics.median(values)),
        "min": digits(min(values)),
        "max": digits(max(values)),
        "n": len(values),
    }


def write(bench: str, rows: list[dict], command: str, versions: dict) -> pathlib.Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {
        "bench": bench,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions,
        "command": command,
    }
    path = FOLDER / f"{bench}.json"
    # One row a line: small diffs, still one JSON document.
    head = json.dumps(content, indent=2)[:-2]
    body = ",\n".join("    " + json.dumps(row) for row in rows)
    path.write_text(f'{head},\n  "rows": [\n{body}\n  ]\n}}\n')
    json.loads(path.read_text())
    return path


def table(rows: list[dict]) -> str:
    """The rows as a table for people: a line per name, a column per subject."""
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    names = list(dict.fromkeys((row["name"], row["unit"]) for row in rows))
    cell = {(row["name"], row["subject"]): row["median"] for row in rows}
    widths = [max(len(subject), 12) for subject in subjects]
    lines = [f"{'':<16}{'':<9}" + "".join(f"{subject:>{width + 2}}" for subject, width in zip(subjects, widths))]
    for name, unit in names:
        values = []
        for subject, width in zip(subjects, widths):
            value = cell.get((name, subject))
            values.append(f"{'' if value is None else f'{value:,.4g}':>{width + 2}}")
        lines.append(f"{name:<16}{unit:<9}" + "".join(values))
    return "\n".join(lines)
