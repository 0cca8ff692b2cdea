"""What an early start gains, and what streaming out costs: a turn of ten calls of a model that speaks slowly.

Responsible for: two tables, as in docs/performance.md: `python -m tests.bench.early BOOTSTRAP`.
Must never: judge; the claims are in tests/integration/test_early_start.py. Called by: people.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import sys
import time
from typing import Any, Final

from anabranch import App, Limit
from anabranch.testing import Answer, Reply, prompt_of, text, tool_use, turn_of
from tests.support.fleet import Fleet, fleet, settings_for
from tests.support.kafka_admin import drop_topics

CALLS: Final = 10
KINDS: Final = {
    "ten of 0.2 s, all at once": ("look", [0.2] * CALLS),
    "the first of 2 s, the others of 0.2 s": ("look", [2.0] + [0.2] * (CALLS - 1)),
    "ten of 0.2 s, by a limit of 5/s": ("look_by_limit", [0.2] * CALLS),
    "ten of 0.5 s, two at a time": ("look_by_two", [0.5] * CALLS),
}
"""A turn's calls, by what is special about them: the tool, and how long each takes."""
SPEAKS_S: Final = 2.0
"""How long the model speaks of its calls; at 60 tokens a second, calls of 12 tokens."""
WORDS: Final = 400
EVENTS: Final = 3 + 4 * CALLS
"""Of a reply of ten calls, about: a block begins, is said in two pieces, and stops."""


def an_app() -> App:
    app = App("early-bench")

    @app.tool(queue="io", read_only=True, timeout=30)
    async def look(seconds: float, place: int) -> str:
        """Looks for a while."""
        await asyncio.sleep(seconds)
        return "seen"

    @app.tool(queue="limited", read_only=True, timeout=30, limit=Limit("eyes", "5/s"))
    async def look_by_limit(seconds: float, place: int) -> str:
        """Looks for a while, five times a second."""
        await asyncio.sleep(seconds)
        return "seen"

    @app.tool(queue="io", read_only=True, timeout=30, concurrency=2)
    async def look_by_two(seconds: float, place: int) -> str:
        """Looks for a while, with two eyes."""
        await asyncio.sleep(seconds)
        return "seen"

    for name in ("waits", "eager"):
        app.agent(name, model="scripted", tools=[look, look_by_limit, look_by_two], early_start=name == "eager")
    app.agent("teller", model="scripted")
    return app


def script(request: dict[str, Any]) -> Answer:
    """Asks for ten calls, slowly, then answers at once; or says many words."""
    if not request.get("tools"):
        return Reply(content=[text("word " * WORDS)], chunk_s=SPEAKS_S / 100)
    if turn_of(request) > 1:
        return "seen"
    tool, times = KINDS[prompt_of(request)]
    calls = [tool_use(tool, {"seconds": seconds, "place": number}) for number, seconds in enumerate(times)]
    return Reply(content=calls, chunk_s=SPEAKS_S / EVENTS)


async def took(running: Fleet, agent: str, asked: str, runs: int, **options: Any) -> list[float]:
    """The seconds of each of some runs, one after the other, as their answers tell."""
    return [(await running.ask(agent, asked, **options)).timing.wall_s for _ in range(runs)]


async def early(running: Fleet, runs: int) -> None:
    say("| calls | they wait for the reply | early start | gain |\n|---|---|---|---|")
    for kind in KINDS:
        waits, eager = [statistics.median(await took(running, name, kind, runs)) for name in ("waits", "eager")]
        say(f"| {kind} | {waits:.2f} s | {eager:.2f} s | {1 - eager / waits:.0%} |")


async def streamed(running: Fleet, runs: int) -> None:
    """CPU of all roles in this process, for runs that are streamed and for those that are not, all at once."""
    say("| | CPU a run | wall, median |\n|---|---|---|")
    for stream in (None, True):
        began = time.process_time()
        found = await asyncio.gather(*(took(running, "teller", "go", 1, stream=stream) for _ in range(runs)))
        cpu_ms = (time.process_time() - began) / runs * 1000
        say(f"| {'streamed' if stream else 'not'} | {cpu_ms:.1f} ms | {statistics.median(map(sum, found)):.2f} s |")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bootstrap")
    parser.add_argument("--runs", type=int, default=10, help="of each kind")
    given = parser.parse_args()
    namespace = f"bench-early-{secrets.token_hex(3)}"
    try:
        async with fleet(an_app(), script, settings_for(given.bootstrap, namespace)) as running:
            await took(running, "eager", next(iter(KINDS)), 2)
            await early(running, given.runs)
            await streamed(running, 10 * given.runs)
    finally:
        await asyncio.to_thread(drop_topics, given.bootstrap, f"{namespace}.")


if __name__ == "__main__":
    asyncio.run(main())
