"""Records a golden log: `python -m tests.golden NAME`, or `... NAME --bootstrap HOST:PORT --log TOPIC --partition N`.

Without `--log` NAME is a scenario of `scenarios.py`, with it the log is a partition of a real `agent.log`, from its
beginning to its end. The rule is that of the package: what was recorded is never changed, so a NAME that is there is
refused. Look at the `.state.json` before you commit it: it says for ever what this log means.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from anabranch.codec import Record
from anabranch.config import KafkaSettings
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.seam import Place
from tests.golden import log_of, save, state_of
from tests.golden.scenarios import SCENARIOS, records

READ_S = 60.0


async def read_log(bootstrap: str, place: Place) -> list[Record]:
    """All records of a partition, in order. Raises `TimeoutError` after `READ_S` seconds."""
    found: list[Record] = []
    async with (
        asyncio.timeout(READ_S),
        KafkaBroker(KafkaSettings(bootstrap=bootstrap)).reader([place], "begin") as reader,
    ):
        end = (await reader.ends())[place]
        while reader.position(place) < end:
            found += await reader.read(1.0)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Record a golden log.")
    parser.add_argument("name", help=f"of the log; scenarios are {', '.join(SCENARIOS)}")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="Kafka, with --log")
    parser.add_argument("--log", metavar="TOPIC", help="record a partition of this topic instead of a scenario")
    parser.add_argument("--partition", type=int, default=0)
    given = parser.parse_args(arguments)
    if log_of(given.name).exists():
        parser.error(f"{given.name} is recorded already, and stays as it is: choose another name")
    if given.log is None and given.name not in SCENARIOS:
        parser.error(f"no scenario is called {given.name}; write one in scenarios.py, or name a --log")
    if given.log is None:
        save(given.name, records(given.name))
    else:
        save(given.name, asyncio.run(read_log(given.bootstrap, Place(given.log, given.partition))))
    sys.stdout.write(f"recorded {log_of(given.name).name}: look at {state_of(given.name).name} before you commit it\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
