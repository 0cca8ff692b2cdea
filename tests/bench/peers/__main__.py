"""`python -m tests.bench.peers`: the same job on Anabranch and on its peers. See docs/performance.md.

Responsible for: the options, the model's server and the Kafka that they are given, one subject after the other, and
that nothing is left running, however it ends.
Must never: judge what it measures, or let one peer's trouble end the others'.
Called by: `make bench-peers`, tests/integration/test_bench_peers.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tests.bench.load import WARM, Cell, Effort
from tests.bench.peers.catalogue import PEERS, Peer
from tests.bench.peers.cost import cost
from tests.bench.peers.environments import CannotBeHad
from tests.bench.peers.leftovers import end_leftovers
from tests.bench.peers.place import Place
from tests.bench.peers.report import Line, Outcome, print_table, write_json
from tests.bench.processes import ROOT, Worker, WorkerDied, started
from tests.support.kafka import Broker, launch
from tests.support.kafka_sources import KafkaFailed, KafkaUnavailable
from tests.support.process import Command, GuardedProcess, tail

CELLS: Final = (Cell(0, 1), Cell(0, 100), Cell(50, 1), Cell(50, 100))
QUICK_CELL: Final = Cell(tool_ms=0, concurrency=4)
WARM_CELL: Final = Cell(tool_ms=0, concurrency=20)
FULL: Final = Effort(seconds=4.0, limit_s=12.0, least=2, floor=50, warm_up=100)
QUICK: Final = Effort(seconds=0.2, limit_s=3.0, least=2, floor=8, warm_up=4)
PATIENCE_S: Final = 60.0
"""What a load may take beyond its limit: its last runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to measure under which loads, and where to write it."""

    peers: Sequence[Peer]
    cells: Sequence[Cell]
    effort: Effort
    out: Path


@dataclass(slots=True)
class Surroundings:
    """What all subjects are given: the model's server, and a Kafka once the first one asks for it."""

    model: GuardedProcess
    url: str
    stack: ExitStack
    broker: Broker | None = field(default=None)

    def kafka(self) -> Broker:
        """Raises CannotBeHad."""
        if self.broker is None:
            try:
                self.broker = self.stack.enter_context(launch())
            except (KafkaUnavailable, KafkaFailed) as error:
                raise CannotBeHad(f"there is no Kafka: {str(error).splitlines()[0]}") from error
        return self.broker


def parse(arguments: Sequence[str]) -> Plan:
    """The options as a plan. Exits with 2 on wrong usage."""
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description="The same job on the peers.")
    parser.add_argument("--quick", action="store_true", help="one tiny load of each, for a test: means nothing")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"these alone: {', '.join(names)}")
    parser.add_argument("--tool-ms", type=int, nargs="+", metavar="MS", help="how long tools take")
    parser.add_argument("--concurrency", type=int, nargs="+", metavar="N", help="how many runs are in flight")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "peers.json", metavar="FILE", help="the JSON")
    options = parser.parse_args(arguments)
    tool_ms = options.tool_ms or list(dict.fromkeys(cell.tool_ms for cell in CELLS))
    concurrency = options.concurrency or list(dict.fromkeys(cell.concurrency for cell in CELLS))
    cells = [Cell(each, number) for each in tool_ms for number in concurrency]
    return Plan(
        peers=[peer for peer in PEERS if not options.only or peer.name in options.only],
        cells=[QUICK_CELL] if options.quick else cells,
        effort=QUICK if options.quick else FULL,
        out=options.out,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure; the status is 1 if a peer that could be had failed, 130 if it was stopped."""
    plan = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _surroundings() as around:
            outcomes = [asyncio.run(_outcome(peer, plan, around)) for peer in plan.peers]
    except KeyboardInterrupt:
        return 130
    # Where no terminal says how wide it is, the table must not be cut.
    print_table(Console(width=None if sys.stdout.isatty() else 130), outcomes)
    write_json(plan.out, outcomes)
    sys.stdout.write(f"wrote {plan.out}\n")
    return int(any(outcome.failed for outcome in outcomes))


@contextmanager
def _surroundings() -> Iterator[Surroundings]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anabranch-peers-")))
        port_file, log = home / "port", home / "model.log"
        script = ["tests.bench.peers.model:model", "--model", "instant", "--port-file", str(port_file)]
        model = GuardedProcess(Command([sys.executable, "-m", "anabranch.testing", *script]), log)
        stack.callback(model.kill)
        asyncio.run(_until_listening(port_file, model, log))
        yield Surroundings(model, f"http://127.0.0.1:{port_file.read_text().strip()}", stack)


async def _until_listening(port_file: Path, model: GuardedProcess, log: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not port_file.exists():
            if not model.is_running():
                raise RuntimeError(f"the model's server ended while it started:\n{tail(log)}")
            await asyncio.sleep(0.05)


async def _outcome(peer: Peer, plan: Plan, around: Surroundings) -> Outcome:
    """Whatever goes wrong with a peer is its outcome."""
    sys.stderr.write(f"{peer.name}\n")
    lines: list[Line] = []
    versions: dict[str, str] = {}
    try:
        async with _job(peer, around) as (worker, greeting):
            versions |= greeting["versions"]
            servers = list(greeting["servers"].values()) + ([around.kafka().pid] if peer.kafka else [])
            if plan.effort is FULL:
                await _load(worker, WARM_CELL, WARM)
            for cell in plan.cells:
                sys.stderr.write(f"  tools of {cell.tool_ms} ms, {cell.concurrency} in flight\n")
                lines.append(await _measure(worker, cell, plan.effort, servers, around.model.pid))
    except CannotBeHad as error:
        return Outcome(peer.name, skipped=str(error))
    except (WorkerDied, TimeoutError) as error:
        why = f"{type(error).__name__}: {error}" if str(error) else "it did not answer in time"
        return Outcome(peer.name, versions, lines, failed=why)
    return Outcome(peer.name, versions, lines)


@asynccontextmanager
async def _job(peer: Peer, around: Surroundings) -> AsyncIterator[tuple[Worker, dict[str, Any]]]:
    """The peer's process, serving, and what it said then; its folder goes with it."""
    made = await asyncio.to_thread(peer.environment)
    bootstrap = (await asyncio.to_thread(around.kafka)).bootstrap if peer.kafka else ""
    home = tempfile.mkdtemp(prefix="anabranch-peer-")
    place = Place(home, str(made.home) if made else "", f"p{secrets.token_hex(4)}", bootstrap, peer.variant)
    env = place.environment() | {"ANTHROPIC_BASE_URL": around.url, "ANTHROPIC_API_KEY": "scripted"}
    python = str(made.python) if made else sys.executable
    try:
        async with started([python, "-m", peer.module], peer.name, env) as worker:
            greeting = json.loads(await worker.ready())
            if word := greeting.get("skipped"):
                raise CannotBeHad(word)
            if word := greeting.get("failed"):
                raise WorkerDied(word)
            yield worker, greeting
    finally:
        await asyncio.to_thread(end_leftovers, place)
        shutil.rmtree(home, ignore_errors=True)


async def _measure(worker: Worker, cell: Cell, effort: Effort, servers: Sequence[int], model: int) -> Line:
    await _load(worker, cell, effort.shorter(cell))
    before, model_before = cost(worker.pid, servers), cost(model, ())
    measured = await _load(worker, cell, effort)
    used, model_used = cost(worker.pid, servers).since(before), cost(model, ()).since(model_before)
    runs = measured["runs"]
    return Line(
        tool_ms=cell.tool_ms,
        concurrency=cell.concurrency,
        **measured,
        cpu_ms_per_run=used.workers_s / runs * 1000,
        server_cpu_ms_per_run=used.servers_s / runs * 1000,
        model_cpu_ms_per_run=model_used.workers_s / runs * 1000,
        written_per_run=None if used.written is None else used.written / runs,
    )


async def _load(worker: Worker, cell: Cell, effort: Effort) -> dict[str, Any]:
    order = json.dumps({"cell": asdict(cell), "effort": asdict(effort)})
    async with asyncio.timeout(effort.limit_s + PATIENCE_S):
        measured: dict[str, Any] = json.loads(await worker.ask(order))
    return measured


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
