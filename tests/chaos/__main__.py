"""`python -m tests.chaos`: a workload on a real Kafka while things break, and then the proof that nothing was lost.

Responsible for: the options, the order of things, the files in build/chaos, the exit status (1: a promise was broken).
Must never: leave a process, a broker or topics behind.
Called by: `make chaos`, `make chaos-short`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from anabranch.config import KafkaSettings, Settings, WorkerSettings
from anabranch.roles import broker_of, topic_specs
from anabranch.tasks import alongside
from tests.chaos import evidence, ledger
from tests.chaos.app import app
from tests.chaos.broker import Kafka, started
from tests.chaos.checker import violations
from tests.chaos.faults import Faults, kinds
from tests.chaos.fleet import PARTITIONS, PLACES, CannotStart, Fleet, started_fleet
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load
from tests.chaos.model import Model
from tests.chaos.report import show
from tests.support.kafka import BOOTSTRAP_VARIABLE
from tests.support.kafka_admin import drop_topics
from tests.support.kafka_sources import ROOT, KafkaFailed, KafkaUnavailable

FOLDER: Final = ROOT / "build" / "chaos"
LEDGER: Final = "ledger.jsonl"
SECONDS, SHORT_SECONDS = 120.0, 25.0
AT_ONCE: Final = 32
ANSWERED_S, READ_S = 150.0, 90.0
console = Console(width=120)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: for how long, with which seed, and which faults (None: all)."""

    seconds: float
    seed: int
    only: str | None
    short: bool


def parse(arguments: Sequence[str]) -> tuple[Plan, Path | None]:
    """The options as a plan, and the ledger to check instead. Exits with 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Breaks things, and checks the ledger.")
    parser.add_argument("--seconds", type=float, help=f"how long things break ({SECONDS:g})")
    parser.add_argument("--seed", type=int, help="what breaks, and when (a new one each time)")
    parser.add_argument("--short", action="store_true", help="each kind of fault once, in about a minute")
    parser.add_argument(
        "--only",
        choices=["rolling", "kills"],
        help="deploys alone (then nothing at all may be repeated), or SIGKILL alone, as often as the fleet recovers",
    )
    parser.add_argument("--check", type=Path, metavar="LEDGER", help="check this ledger again, and break nothing")
    given = parser.parse_args(arguments)
    seconds = given.seconds or (SHORT_SECONDS if given.short else SECONDS)
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    return Plan(seconds, seed, given.only, given.short), given.check


async def chaos(plan: Plan, kafka: Kafka) -> Ledger:
    """The workload and the faults; returns what the outside world saw. If it ends early, that is in the ledger's file
    as far as it was seen."""
    namespace = f"chaos-{secrets.token_hex(4)}"
    settings = Settings(
        kafka=KafkaSettings(bootstrap=kafka.bootstrap, partitions=PARTITIONS),
        worker=WorkerSettings(namespace=namespace),
    )
    await broker_of(settings).apply(topic_specs(app, settings))
    model, load = Model(plan.seed), Load(settings)
    running = Fleet(kafka, namespace, FOLDER, model)
    faults = Faults(running, plan.seed, kinds(plan.only, plan.short))
    try:
        async with started_fleet(running):
            async with alongside(running.watch(), "watch"), asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run(AT_ONCE), name="load")
                await (faults.kill_on if plan.only == "kills" else faults.run)(plan.seconds)
                load.end()
            console.print("all is mended: waiting for the last answers")
            await evidence.all_answered(kafka.bootstrap, namespace, {s.run for s in load.submitted}, ANSWERED_S)
            committed = await evidence.settled(kafka.bootstrap, namespace, READ_S)
            await running.stop_all()
        return replace(
            _seen(plan, load, running, faults),
            committed=committed,
            logged=await evidence.logged(kafka.bootstrap, namespace),
            published=await evidence.published(kafka.bootstrap, namespace),
            answers=await evidence.answers(kafka.bootstrap, namespace),
        )
    except BaseException:
        ledger.write(_seen(plan, load, running, faults), FOLDER / LEDGER)
        raise
    finally:
        if kafka.broker is None:  # of our own one nothing is left anyway
            await asyncio.to_thread(drop_topics, kafka.bootstrap, f"{namespace}.")


def _seen(plan: Plan, load: Load, fleet: Fleet, faults: Faults) -> Ledger:
    """What was seen outside of Kafka so far."""
    return Ledger(
        seed=plan.seed,
        only_planned=plan.only == "rolling",
        submitted=tuple(load.submitted),
        model_calls=tuple(fleet.model.calls.values()),
        executions=tuple(fleet.executions()),
        faults=tuple(faults.done),
        lives=tuple(fleet.lives),
        refused=tuple(fleet.refused),
    )


def main(arguments: Sequence[str]) -> int:
    plan, recorded = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if recorded is not None:
        return _judge(ledger.read(recorded))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    logging.basicConfig(filename=FOLDER / "chaos.log", level=logging.WARNING)  # Kafka's clients say much
    console.print(f"chaos for {plan.seconds:g} s, seed {plan.seed}; logs and ledger in {FOLDER.relative_to(ROOT)}")
    kafka = None
    try:
        external = os.environ.get(BOOTSTRAP_VARIABLE)
        kafka = Kafka(external, None) if external else started(PLACES)
        _say_what_is_left_alone(kafka)
        found = asyncio.run(chaos(plan, kafka))
    except (KafkaFailed, KafkaUnavailable, CannotStart) as error:
        console.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        console.print(f"seed {plan.seed}: it ended early; {FOLDER.relative_to(ROOT)} has what was seen until then")
        raise
    finally:
        if kafka is not None and kafka.broker is not None:
            kafka.broker.close()
    ledger.write(found, FOLDER / LEDGER)
    return _judge(found)


def _say_what_is_left_alone(kafka: Kafka) -> None:
    if kafka.broker is None:
        console.print(
            f"{BOOTSTRAP_VARIABLE} names this Kafka: it is neither stopped nor killed, nor its connections cut"
        )
    elif not kafka.proxies:
        console.print("Kafka runs in Docker: its connections are not cut; with java and mvn on the PATH they are")


def _judge(found: Ledger) -> int:
    broken = violations(found)
    show(console, found, broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
