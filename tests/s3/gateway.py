"""A real S3 server on loopback for the tests, and a client that signs requests, in a few lines each."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import shutil
import subprocess
import time
import urllib.parse

import lattice

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
REGION, ACCESS, SECRET = "us-east-1", "lattice", "lattice-secret"


def binary() -> pathlib.Path:
    """The gateway, installed with Go into build/tools when it is not there yet."""
    path = ROOT / "build" / "tools" / "versitygw"
    if not path.exists():
        if shutil.which("go") is None:
            raise FileNotFoundError("the S3 tests need Go 1.23 or newer to install their S3 server")
        path.parent.mkdir(parents=True, exist_ok=True)
        print("installing versitygw with go install (a minute or two)", flush=True)
        done = subprocess.run(["go", "install", MODULE], env=os.environ | {"GOBIN": str(path.parent)}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"go install {MODULE} failed:\n{done.stderr[-2000:]}")
    return path


class Gateway:
    """versitygw over a folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.port, self.process = folder, lattice.free_port(), None
        (folder / "bucket").mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> "Gateway":
        command = [str(binary()), "--access", ACCESS, "--secret", SECRET, "--region", REGION, "--port", f"127.0.0.1:{self.port}"]
        log = open(self.folder.with_suffix(".log"), "ab")
        self.process = subprocess.Popen([*command, "posix", str(self.folder)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"versitygw ended:\n{self.folder.with_suffix('.log').read_text()[-2000:]}")
            try:
                self.request("GET", "/bucket")
                return self
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("versitygw does not answer")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Gateway":
        return self.start()

    def __exit__(self, *_exc) -> None:
        self.stop()

    def request(self, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, bytes]:
        """One request with an AWS signature (version 4)."""
        now = datetime.datetime.now(datetime.UTC)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        path, _, query = path.partition("?")
        query = "&".join(sorted(query.split("&"))) if query else ""
        digest = hashlib.sha256(body).hexdigest()
        host = f"127.0.0.1:{self.port}"
        signed = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": stamp} | {k.lower(): v for k, v in (headers or {}).items()}
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = f"{method}\n{urllib.parse.quote(path)}\n{query}\n{lines}\n{names}\n{digest}"
        scope = f"{day}/{REGION}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{SECRET}".encode()
        for part in (day, REGION, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        authorization = f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={names}, Signature={signature}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            url = path + (f"?{query}" if query else "")
            connection.request(method, url, body, {k: v for k, v in signed.items() if k != "host"} | {"Authorization": authorization})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
