"""A bucket that speaks S3 over HTTP, on this machine: gofakes3, which keeps what it is given in memory. Of Google's
storage it speaks what obstore uses: that interface is S3's, with other headers.

Responsible for: building it, running it, and saying how a store reaches it.
Must never: check signatures, which it cannot: what a key may do is the provider's affair.
Called by: tests/integration/test_buckets.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.go_program import built
from tests.support.process import Command, GuardedProcess, free_ports, is_listening, tail

START_S = 30.0
NAME = "bucket"
Scheme = Literal["s3", "gs"]


@dataclass(frozen=True)
class Bucket:
    """`environment` is what somebody who uses it as that of a provider sets."""

    port: int
    process: GuardedProcess
    folder: Path
    scheme: Scheme

    @property
    def url(self) -> str:
        return self.url_of(NAME)

    def url_of(self, name: str) -> str:
        return f"{self.scheme}://{name}/prefix"

    @property
    def environment(self) -> dict[str, str]:
        at = f"http://127.0.0.1:{self.port}"
        if self.scheme == "gs":
            account = {"gcs_base_url": at, "disable_oauth": True, "client_email": "", "private_key": ""}
            path = self.folder / "account.json"
            path.write_text(json.dumps({**account, "private_key_id": ""}))
            return {"GOOGLE_SERVICE_ACCOUNT": str(path)}
        return {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-central-1",
            "AWS_ENDPOINT_URL": at,
            "AWS_ALLOW_HTTP": "true",
        }


@contextmanager
def bucket(folder: Path, scheme: Scheme) -> Iterator[Bucket]:
    """One that runs while inside; its log is in `folder`."""
    program = built("gofakes3", package="github.com/johannesboyne/gofakes3/cmd/gofakes3")
    (port,), log = free_ports(1), folder / "gofakes3.log"
    command = [str(program), "-backend", "mem", "-host", f"127.0.0.1:{port}", "-initialbucket", NAME]
    process = GuardedProcess(Command(command), log)
    try:
        deadline = time.monotonic() + START_S
        while not is_listening(port):
            assert process.is_running(), f"the bucket has ended:\n{tail(log)}"
            assert time.monotonic() < deadline, f"the bucket does not listen:\n{tail(log)}"
            time.sleep(0.02)
        yield Bucket(port, process, folder, scheme)
    finally:
        process.kill()
