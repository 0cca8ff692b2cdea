"""The model of the workload: it keeps the ledger of its calls, and asks for tools in all turns but the last.

Responsible for: what each request held and which reply it got. Each worker has a server of its own, so that an entry
says whose call it was. Must never: know of the chaos. Called by: `fleet.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from typing import Any, Final

from anabranch.testing import Answer, Reply, last_results, prompt_of, result_text, text, tool_use, turn_of
from tests.chaos.ledger import Asked, Delivery, ModelCall, Told, tool_use_id

TURNS: Final = 3
TOOLS: Final[dict[str, Delivery]] = {"often": "at_least_once", "once": "at_most_once", "serial": "at_least_once"}
TURN: Final = ("often", "often", "once")
"""What is called in each turn but the last."""
SERIAL_TURN: Final = ("often", "serial", "serial")
KINDS, SERIAL_KEYS = 5, 4
"""Of so many runs one calls in order, and shares so many keys with its like: a few, for a key waits long when the
worker that went on with it has left. Two are answered at once: they are over when a worker that was away comes back."""
SERIAL, QUICK = (0,), (1, 2)
LATENCY_S, TOOL_S = (0.1, 0.8), (0.02, 1.0)
LONG, LONG_S = 0.25, (2.0, 6.0)
"""This part of the calls takes longer than a rebalance: without those a forgotten hand-off would not be noticed."""
Request = dict[str, Any]


class Model:
    """Answers for all workers; `calls` is its ledger, by token."""

    def __init__(self, seed: int) -> None:
        self.calls: dict[str, ModelCall] = {}
        self._chance, self._serial = random.Random(seed), count(1)

    def script(self, worker: Callable[[], str]) -> Callable[[Request], Awaitable[Answer]]:
        """For the server of one worker, which has its name when it is up."""

        async def answer(request: Request) -> Answer:
            call = self._begun(request, worker())
            await asyncio.sleep(self._time_of(LATENCY_S))
            self.calls[call.token] = replace(call, ended=time.time())
            return self._reply(call)

        return answer

    def _time_of(self, usual: tuple[float, float]) -> float:
        return self._chance.uniform(*(LONG_S if self._chance.random() < LONG else usual))

    def _begun(self, request: Request, worker: str) -> ModelCall:
        run, turn = prompt_of(request), turn_of(request)
        token = f"{run}/{turn}/{next(self._serial)}"
        told = [
            Told(id_, result_text(block), bool(block.get("is_error"))) for id_, block in last_results(request).items()
        ]
        tools = _turn_of(run) if turn < _turns_of(run) else ()
        asked = [Asked(tool_use_id(token, i), i, TOOLS[tool]) for i, tool in enumerate(tools)]
        call = ModelCall(token, run, turn, worker, time.time(), None, _after(request), tuple(told), tuple(asked))
        self.calls[token] = call
        return call

    def _reply(self, call: ModelCall) -> Reply:
        uses = []
        for asked, tool in zip(call.asked, _turn_of(call.run), strict=False):
            arguments: dict[str, Any] = {"token": call.token, "index": asked.index, "seconds": self._time_of(TOOL_S)}
            if tool == "serial":
                arguments["serial"] = f"key-{_number(call.run) // KINDS % SERIAL_KEYS}"
            uses.append(tool_use(tool, arguments, asked.tool_use_id))
        return Reply(content=[text(call.token), *uses])


def _turn_of(run: str) -> tuple[str, ...]:
    return SERIAL_TURN if _number(run) % KINDS in SERIAL else TURN


def _turns_of(run: str) -> int:
    return 1 if _number(run) % KINDS in QUICK else TURNS


def _number(run: str) -> int:
    return int(run.rpartition("-")[2])


def _after(request: Request) -> str | None:
    """The token of the reply that this request answers."""
    said = [message["content"] for message in request["messages"] if message["role"] == "assistant"]
    return str(said[-1][0]["text"]) if said else None
