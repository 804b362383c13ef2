"""The README's example works as it stands there."""

from __future__ import annotations

import contextlib
import io
import re

import lattice


def test_the_python_example(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (lattice.ROOT / "README.md").read_text(), re.DOTALL)
    assert "127.0.0.1:50051" in example
    printed = io.StringIO()
    with lattice.Server(tmp_path / "data") as server, contextlib.redirect_stdout(printed):
        exec(example.replace("127.0.0.1:50051", f"127.0.0.1:{server.flight_port}"), {})
    said = re.search(r"print\(.*#\s*(.*)", example)
    assert said and printed.getvalue().strip() == said.group(1).strip()
