"""Running the binary's other commands."""

from __future__ import annotations

import os
import subprocess

import lattice


def run(*args, env: dict | None = None, timeout: float = 120, stdin: str | None = None) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LATTICE_")}
    command = [lattice.default_binary(), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=clean | (env or {}), input=stdin)
