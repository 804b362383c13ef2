"""The JDBC driver, if Java and Maven are there: starts a server and runs the tests in jdbc/."""

import os
import pathlib
import shutil
import subprocess

import pytest


@pytest.mark.skipif(not (shutil.which("mvn") and shutil.which("java")), reason="needs Java and Maven")
def test_the_jdbc_driver(start, tmp_path):
    server = start(password="p:q")
    project = pathlib.Path(__file__).parent / "jdbc"
    command = ["mvn", "--batch-mode", "--quiet", "-f", str(project / "pom.xml"), f"-DbuildDirectory={tmp_path}", "test"]
    environment = {**os.environ, "LATTICE_JDBC_PORT": str(server.port)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
