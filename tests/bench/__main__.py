"""`python -m tests.bench`: measures Anabranch and the floor on a real Kafka. See docs/benchmarks.md.

Responsible for: the options, the Kafka (`ANABRANCH_TEST_BOOTSTRAP`, else one of its own), the order of the loads; that
topics and processes are gone afterwards, however it ends (but a SIGKILL leaves the topics on a Kafka not its own).
Must never: judge what it measures.
Called by: `make bench`, tests/integration/test_bench.py.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.bench.anabranch_run import anabranch
from tests.bench.dressed import dressed
from tests.bench.floor import floor
from tests.bench.load import WARM, Cell, Effort, load
from tests.bench.logged import logged
from tests.bench.measure import Figures, Scene, measure
from tests.bench.processes import ROOT, WorkerDied
from tests.bench.report import print_table, write_json, write_profiles
from tests.bench.subject import Subject, WrongAnswer
from tests.support.kafka import BOOTSTRAP_VARIABLE, launch
from tests.support.kafka_admin import drop_topics
from tests.support.kafka_sources import KafkaFailed, KafkaUnavailable

SUBJECTS: Final[dict[str, Callable[[str, str], AbstractAsyncContextManager[Subject]]]] = {
    "anabranch": anabranch,
    "floor": floor,
    "logged": logged,
    "dressed": dressed,
}
ORDINARY: Final = ("anabranch", "floor")
LOGGED: Final = ("logged", "dressed")
TOOL_MS, CONCURRENCY = (0, 50), (1, 50, 500)
FULL = Effort(seconds=4.0, limit_s=12.0, least=4, floor=100, warm_up=50)
QUICK = Effort(seconds=0.3, limit_s=3.0, least=2, floor=20, warm_up=8)
QUICK_CELL = Cell(tool_ms=0, concurrency=8)
WARM_CELL = Cell(tool_ms=0, concurrency=200)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and where to write it."""

    subjects: Sequence[str]
    cells: Sequence[Cell]
    effort: Effort
    out: Path
    profiles: Path | None


def parse(arguments: Sequence[str]) -> Plan:
    """The options as a plan. Exits with 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures Anabranch and the floor.")
    parser.add_argument("--quick", action="store_true", help="one small load of each, for a test: means nothing")
    parser.add_argument("--only", choices=list(SUBJECTS), help="measure this one alone, without ratios")
    parser.add_argument("--logged", action="store_true", help="also the floor with a log, bare and dressed")
    parser.add_argument("--tool-ms", type=int, nargs="+", default=TOOL_MS, metavar="MS", help="how long tools take")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCY, metavar="N", help="how many runs are in flight"
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="profile the workers into DIR: slower figures")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes (build/bench.json)")
    options = parser.parse_args(arguments)
    profiles = options.profile.resolve() if options.profile is not None else None
    cells = [Cell(tool_ms, number) for tool_ms in options.tool_ms for number in options.concurrency]
    return Plan(
        subjects=[options.only] if options.only else [*ORDINARY, *(LOGGED if options.logged else ())],
        cells=[QUICK_CELL] if options.quick else cells,
        effort=QUICK if options.quick else FULL,
        # A profiler's figures must not be taken for the benchmark's.
        out=options.out or (profiles or ROOT / "build") / "bench.json",
        profiles=profiles,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure; the status is 1 if there is no Kafka or a run went wrong, 130 if it was stopped."""
    plan = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with kafka() as bootstrap, namespaces(bootstrap) as namespace:
            figures = asyncio.run(_measure_all(plan, bootstrap, namespace))
    except (KafkaFailed, KafkaUnavailable, WorkerDied, WrongAnswer) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    _report(plan, figures)
    return 0


@contextmanager
def kafka() -> Iterator[str]:
    """The bootstrap address of a Kafka that is running while the context lasts."""
    if external := os.environ.get(BOOTSTRAP_VARIABLE):
        yield external
        return
    with launch() as broker:
        yield broker.bootstrap


@contextmanager
def namespaces(bootstrap: str) -> Iterator[str]:
    """The beginning of the namespaces of this invocation, whose topics are dropped in the end."""
    prefix = f"bench-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        yield prefix
    finally:
        drop_topics(bootstrap, f"{prefix}-")


async def _measure_all(plan: Plan, bootstrap: str, prefix: str) -> list[Figures]:
    """Under each load one subject right after the other, for the machine's own speed changes; the others idle."""
    if plan.profiles is not None:
        plan.profiles.mkdir(parents=True, exist_ok=True)
    figures: list[Figures] = []
    async with _stopped_by_sigterm(), AsyncExitStack() as stack:
        subjects: list[tuple[Subject, Scene]] = []
        for name in plan.subjects:
            scene = Scene(bootstrap, f"{prefix}-{name}", plan.effort, plan.profiles)
            subjects.append((await stack.enter_async_context(SUBJECTS[name](bootstrap, scene.namespace)), scene))
        for subject, _ in subjects if plan.effort is FULL else ():
            sys.stderr.write(f"{subject.name}: warming up\n")
            await load(subject, WARM_CELL, WARM)
        for cell in plan.cells:
            for subject, scene in subjects:
                sys.stderr.write(f"{subject.name}: tools of {cell.tool_ms} ms, {cell.concurrency} runs in flight\n")
                figures.append(await measure(subject, cell, scene))
    return figures


@asynccontextmanager
async def _stopped_by_sigterm() -> AsyncIterator[None]:
    """SIGTERM cancels this task, as Ctrl-C does."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _report(plan: Plan, figures: Sequence[Figures]) -> None:
    # Where no terminal says how wide it is, the table must not be cut.
    console = Console(width=None if sys.stdout.isatty() else 120)
    print_table(console, figures)
    write_json(plan.out, figures)
    written = [plan.out, *(write_profiles(plan.profiles) if plan.profiles is not None else [])]
    sys.stdout.write("".join(f"wrote {file}\n" for file in written))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
