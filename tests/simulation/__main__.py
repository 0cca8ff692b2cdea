"""`python -m tests.simulation --seeds N --start S`: many seeds; one that fails is named, and replays exactly.

Responsible for: spreading seeds over processes, counting what was met, and the exit code.
Must never: choose seeds by chance or by the time of day.
Called by: `make simulate`, continuous integration, and whoever replays a seed with `--seeds 1 --start SEED --trace`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import FrameType

import orjson

from tests.simulation.checker import violations
from tests.simulation.evidence import NAMESPACE, Evidence
from tests.simulation.workload import QUEUE
from tests.simulation.world import simulate

SHOWN = 8
"""How many violations of one seed are printed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one seed."""

    seed: int
    profile: str
    broken: list[str]
    met: Counter[str]
    trace: list[str]


HANGS_S = 60
"""How long one seed may take by the clock on the wall: longer, and some worker no longer yields."""


class Hangs(BaseException):
    """Raised in the very line that does not come to an end."""


def _hangs(number: int, frame: FrameType | None) -> None:
    raise Hangs(f"nobody else could act for too long, at {frame}")


def judge(seed: int) -> Verdict:
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANGS_S)
    try:
        evidence = simulate(seed)
    finally:
        signal.alarm(0)
    ledger = evidence.ledger
    met: Counter[str] = Counter(fault.kind for fault in ledger.faults)
    met["model calls"], met["executions"] = len(ledger.model_calls), len(ledger.executions)
    met["early starts"], met["early results used"] = _early(evidence)
    met["runs"] = len(evidence.workload.runs)
    met["snapshots"], met["snapshots cut short"] = _snapshots(evidence)
    met["records gone"] = evidence.gone
    met["rebalances asked for"] = sum(" start " in line or " stop " in line for line in ledger.trace)
    return Verdict(seed, evidence.profile.name, violations(evidence), met, ledger.trace)


def _early(evidence: Evidence) -> tuple[int, int]:
    """Calls that began while their model spoke, and those of them that were asked for by a reply of their attempt."""
    topics = (NAMESPACE.calls(QUEUE), NAMESPACE.log)
    calls, log = ([r for place, rs in evidence.records.items() if place.topic == topic for r in rs] for topic in topics)
    begun = {orjson.loads(r.value or b"")["call_id"] for r in calls if b'"dispatch":0,' in (r.value or b"")}
    plans = [dict(record.headers).get("ce_plan", b"[]") for record in log]
    return len(begun), len(begun & {call["call_id"] for plan in plans for call in orjson.loads(plan)})


def _snapshots(evidence: Evidence) -> tuple[int, int]:
    """How many were written to their end, and of how many an author wrote only the first parts."""
    parts: dict[tuple[bytes | None, ...], set[bytes]] = defaultdict(set)
    wanted: dict[tuple[bytes | None, ...], int] = {}
    for place, records in evidence.records.items():
        for record in records if place.topic == NAMESPACE.log else ():
            told = dict(record.headers)
            if told["ce_type"] == b"run.snapshot":
                key = (record.key, told["ce_source"], told["ce_asof"])
                parts[key].add(told["ce_part"])
                wanted[key] = int(told["ce_parts"])
    whole = sum(len(parts[key]) == wanted[key] for key in parts)
    return whole, len(parts) - whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--trace", action="store_true", help="print the order of events of each seed")
    given = parser.parse_args()
    began, met, failed = time.monotonic(), Counter[str](), 0
    with ProcessPoolExecutor(given.jobs) as pool:
        for verdict in pool.map(judge, range(given.start, given.start + given.seeds), chunksize=4):
            met += verdict.met
            failed += bool(verdict.broken)
            _tell(verdict, given.trace)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(met.items()))
    sys.stdout.write(f"{given.seeds} seeds in {time.monotonic() - began:.0f} s, {failed} failed; met: {counts}\n")
    return 1 if failed else 0


def _tell(verdict: Verdict, trace: bool) -> None:
    lines = verdict.trace if trace else []
    for text in lines:
        sys.stdout.write(f"  {text}\n")
    for text in verdict.broken[:SHOWN]:
        sys.stdout.write(f"seed={verdict.seed} ({verdict.profile}): {text[:1000]}\n")
    if verdict.broken and not trace:
        sys.stdout.write(f"  replay: python -m tests.simulation --seeds 1 --start {verdict.seed} --trace\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
