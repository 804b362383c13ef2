"""An S3 server of its own for each test."""

from __future__ import annotations

import pytest

from gateway import Gateway, binary


@pytest.fixture(scope="session", autouse=True)
def installed():
    try:
        binary()
    except FileNotFoundError as error:
        # Without Go there is no S3 server to test against; CI has Go.
        pytest.skip(str(error))


@pytest.fixture
def gateway(tmp_path):
    with Gateway(tmp_path / "s3") as running:
        yield running
