"""The demo: two hundred records, enriched by agents whose tool calls run in parallel, through a broker.

Responsible for: starting an embedded broker, a scripted model, an agent worker and two tool workers, each a process
of its own; enriching `customers.jsonl` into `build/enriched.jsonl`; and leaving nothing behind but files.
Must never: call the real API unless told to with --model. Called by `make demo`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that this file runs as a script, and its neighbours can be imported

import click  # noqa: E402
from examples.demo_processes import Children  # noqa: E402
from examples.shop_data import make_database  # noqa: E402

from anabranch.cli import frame, output  # noqa: E402
from anabranch.cli.commands.enrich import Outcome, Source, enrich_file, print_outcome  # noqa: E402
from anabranch.cli.enriching.enrichment import Order, Stop  # noqa: E402
from anabranch.cli.enriching.outfile import OutFile  # noqa: E402
from anabranch.cli.enriching.records import Recipe, Template  # noqa: E402
from anabranch.cli.loglines import log_to_stderr  # noqa: E402
from anabranch.cli.picture import portrait  # noqa: E402
from anabranch.cli.picture.logs import RunLog  # noqa: E402
from anabranch.client import Client  # noqa: E402
from anabranch.config import Settings  # noqa: E402
from anabranch.errors import AnabranchError, ConfigError  # noqa: E402
from anabranch.kafka.connect import KafkaBroker  # noqa: E402
from anabranch.kafka.embedded import EmbeddedBroker  # noqa: E402
from anabranch.kafka.seam import Broker, Place  # noqa: E402
from anabranch.registry import Registry  # noqa: E402
from anabranch.topics import Namespace  # noqa: E402
from anabranch.wording import counted  # noqa: E402

NAMESPACE: Final = Namespace("shop")
SCRIPTED: Final = "scripted"
RECORDS: Final = ROOT / "examples" / "customers.jsonl"
APP: Final = str(ROOT / "examples" / "shop.py")
TOOL_WORKERS: Final = 2
READY_S: Final = 60.0
DRAIN_S: Final = 20.0
AGAIN: Final = "make demo"


@dataclass(frozen=True)
class Plan:
    """What is asked for. `model` is SCRIPTED or the name of a real one; `build` takes everything that is written."""

    model: str
    records: int | None
    concurrency: int
    build: Path

    @property
    def is_real(self) -> bool:
        return self.model != SCRIPTED

    @property
    def out(self) -> Path:
        return self.build / "enriched.jsonl"

    @property
    def recipe(self) -> Recipe:
        """The model is part of it: answers of one are not mixed with those of another."""
        return Recipe(f"{NAMESPACE.name}/{self.model}", "analyst", Template())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default=SCRIPTED, help="A real model instead of the scripted one: your key, your money.")
@click.option("--records", type=click.IntRange(1), help="Only the first N of the 200.")
@click.option("--concurrency", type=click.IntRange(1), help="Runs at once (100; 10 with a real model).")
@click.option(
    "--build", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "build", help="What it writes."
)
def demo(model: str, records: int | None, concurrency: int | None, build: Path) -> int:
    """Enrich 200 customers of a small shop. No key, no Docker, no Kafka; Ctrl-C drains."""
    log_to_stderr(Settings(), least="error")  # the workers' logs are in their files
    wanted = concurrency or (100 if model == SCRIPTED else 10)
    plan = Plan(model, records, wanted, build.absolute())
    if plan.is_real:
        _check_key()
        output.say(f"This calls {model} with your key, about {3 * (records or 200)} times: it costs money.")
    return frame.run_async(_guarded(plan))


def _check_key() -> None:
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
        raise ConfigError("a real model needs your key in ANTHROPIC_API_KEY; without --model the demo needs none")


# --- from the start to the end ------------------------------------------------------------------------------------


async def _guarded(plan: Plan) -> int:
    """Ends in order on a signal: before anything runs at once, later by draining."""
    stop, busy = Stop(), asyncio.Event()
    async with stop.on_signals():
        work = asyncio.create_task(_demo(plan, stop, busy), name="demo")
        stop.on_ask(lambda: None if busy.is_set() and not stop.hurry.is_set() else _cancel(work, busy))
        try:
            return await work
        except asyncio.CancelledError:
            if not stop.asked.is_set():
                raise
            return frame.INTERRUPTED


def _cancel(work: asyncio.Task[int], busy: asyncio.Event) -> None:
    if not busy.is_set():
        work.cancel()


async def _demo(plan: Plan, stop: Stop, busy: asyncio.Event) -> int:
    source = _source(plan)
    _start_afresh_if_complete(plan, source)
    async with AsyncExitStack() as stack:
        broker = await _start(plan, stack)
        client = await stack.enter_async_context(Client(NAMESPACE, broker.kafka))
        busy.set()
        order = Order("analyst", plan.concurrency, drain_s=DRAIN_S)
        console = output.stderr()
        work = enrich_file(source, plan.recipe, plan.out, order, client, console, stop)
        outcome = await broker.guard(work)
        print_outcome(console, outcome, source, _near(plan.out), AGAIN)
        if not outcome.stopped and outcome.tally.ran:
            await _show_one(plan, broker.kafka)
        return _last_words(plan, outcome)


def _source(plan: Plan) -> Source:
    """The records; a part of them is copied first."""
    if plan.records is None:
        return Source(str(RECORDS), "jsonl")
    plan.build.joinpath("demo").mkdir(parents=True, exist_ok=True)
    part = plan.build / "demo" / RECORDS.name
    with RECORDS.open("rb") as lines:
        part.write_bytes(b"".join(islice(lines, plan.records)))
    return Source(str(part), "jsonl")


def _start_afresh_if_complete(plan: Plan, source: Source) -> None:
    """Whoever starts the demo again wants to see it again; what was stopped in the middle goes on."""
    if not plan.out.exists():
        return
    try:
        with OutFile.opened(plan.out, plan.recipe.mark) as out:
            there = len(out.standing.completed)
    except AnabranchError:
        there = None  # of another model, or not ours
    if there is not None and there < (source.count() or 0):
        output.say(
            f"Going on with {_near(plan.out)}: {counted(there, 'record is', 'records are')} there." if there else ""
        )
        return
    before = plan.out.with_suffix(".before.jsonl")
    plan.out.replace(before)
    output.say(f"The answers of last time are now in {_near(before)}.")


# --- the processes ------------------------------------------------------------------------------------------------


class Guarded:
    """The broker and the children: work done under `guard` ends when one of them dies."""

    def __init__(self, embedded: EmbeddedBroker, children: Children, kafka: Broker) -> None:
        self._embedded, self._children, self.kafka = embedded, children, kafka

    async def guard(self, work: Awaitable[Any]) -> Any:
        """The result of `work`. Raises what the death of a child raises."""
        working = asyncio.ensure_future(work)
        deaths = [asyncio.ensure_future(death) for death in (self._children.died(), self._embedded.died())]
        try:
            await asyncio.wait([working, *deaths], return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not working.cancelled() and working.exception() is not None:
                # It may be about to be known why: a client notices a dead broker as soon as we do.
                await asyncio.wait(deaths, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for death in deaths:
                if death.done():
                    death.result()
            return await working
        finally:
            for task in (working, *deaths):
                task.cancel()
            await asyncio.wait([working, *deaths])


async def _start(plan: Plan, stack: AsyncExitStack) -> Guarded:
    """Everything up and ready; it ends with `stack`, in the opposite order."""
    database = plan.build / "shop.db"
    make_database(database)
    embedded = await stack.enter_async_context(EmbeddedBroker())
    settings = embedded.settings()
    kafka = KafkaBroker(settings)
    _tell("broker", f"{embedded.bootstrap}, embedded, in memory")
    children = await stack.enter_async_context(Children(plan.build / "demo", ROOT))
    guarded = Guarded(embedded, children, kafka)
    env = _environment(plan, embedded.bootstrap, database)
    await kafka.apply(NAMESPACE.specs(["io"], settings.partitions))
    if not plan.is_real:
        env |= {
            "ANTHROPIC_BASE_URL": await _start_model(plan, children, guarded, env),
            "ANTHROPIC_API_KEY": "none-needed",
        }
    await _start_workers(children, env)
    output.say("Waiting until the workers have joined their groups: this broker takes 5 seconds for that.")
    await guarded.guard(_until_ready(kafka))
    return guarded


def _environment(plan: Plan, bootstrap: str, database: Path) -> dict[str, str]:
    """What the children see: the user's environment, without settings that are meant for something else."""
    foreign = ("ANABRANCH_",) if plan.is_real else ("ANABRANCH_", "ANTHROPIC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    away = ",".join(filter(None, [env.get("NO_PROXY") or env.get("no_proxy"), "127.0.0.1"]))
    env |= {"NO_PROXY": away, "no_proxy": away, "PYTHONUNBUFFERED": "1", "SHOP_DB": str(database)}
    env |= {"ANABRANCH_BOOTSTRAP": bootstrap, "ANABRANCH_IDEMPOTENT": "false", "ANABRANCH_REPLICATION_FACTOR": "1"}
    return env | {"ANABRANCH_DEMO_MODEL": plan.model}


async def _start_model(plan: Plan, children: Children, guarded: Guarded, env: Mapping[str, str]) -> str:
    """The scripted model; returns its URL."""
    port_file = plan.build / "demo" / "model.port"
    port_file.unlink(missing_ok=True)
    script = str(ROOT / "examples" / "shop_model.py")
    command = [sys.executable, "-m", "anabranch.testing", script, "--port", "0", "--port-file", str(port_file)]
    await children.start("model", command, env)
    port = await guarded.guard(_port_in(port_file))
    _tell("model", f"127.0.0.1:{port}, scripted: no key, no cost")
    return f"http://127.0.0.1:{port}"


async def _port_in(file: Path) -> str:
    """The text of a file that another process is about to put there, from one moment to the next."""
    async with asyncio.timeout(READY_S):
        while (port := _text(file)) is None:  # noqa: ASYNC110 (a file tells nobody)
            await asyncio.sleep(0.02)
    return port


def _text(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


async def _start_workers(children: Children, env: Mapping[str, str]) -> None:
    anabranch = [sys.executable, "-m", "anabranch.cli", "worker"]
    agent = await children.start("agent", [*anabranch, "agent", APP], env)
    _tell("agent worker", f"process {agent.process.pid}, {_near(agent.log)}")
    for number in range(1, TOOL_WORKERS + 1):
        tool = await children.start(f"tool-{number}", [*anabranch, "tool", APP, "--queue", "io"], env)
        _tell("tool worker", f"process {tool.process.pid}, {_near(tool.log)}")


async def _until_ready(broker: Broker) -> None:
    """Until every worker has given its first sign of life."""
    registry = Registry()
    async with asyncio.timeout(READY_S), broker.reader([Place(NAMESPACE.registry, 0)], "begin") as reader:
        while len(registry.workers) < TOOL_WORKERS + 1:
            for record in await reader.read(0.2):
                registry.take(record)


# --- words --------------------------------------------------------------------------------------------------------


async def _show_one(plan: Plan, broker: Broker) -> None:
    """The waterfall of the run whose answer stands last."""
    console = output.stderr()
    async with RunLog.opened(broker, NAMESPACE, _last_run_id(plan.out), "begin") as log:
        run = await log.catch_up()
    if run is not None:
        console.print("One of the runs, as `anabranch runs show` draws it:\n")
        console.print(portrait.whole(run, time.time(), min(console.width, 100), answer=False))


def _last_run_id(out: Path) -> str:
    run_id = ""
    with out.open("rb") as lines:
        for line in lines:
            run_id = json.loads(line)["run_id"]
    return run_id


def _last_words(plan: Plan, outcome: Outcome) -> int:
    if not outcome.stopped:
        output.say(
            f"""
The answers  {_near(plan.out)}
The code     examples/shop.py: four tools and an agent
Try next     .venv/bin/anabranch dev examples/shop.py --script examples/shop_model.py
             and in another terminal, while that runs:
             .venv/bin/anabranch run analyst "Assess customer 7" --namespace shop
             .venv/bin/anabranch runs list --namespace shop"""
        )
    return outcome.status


def _tell(name: str, text: str) -> None:
    output.say(f"  {name:<13} {text}")


def _near(path: Path) -> Path:
    """Relative to where the user is, if that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    frame.finish(frame.invoke(demo))
