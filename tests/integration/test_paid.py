"""Token by token: what runs say they have used is what a server says it has charged, whatever became of its replies.

Responsible for: the sum of usage and discarded usage over many random outcomes, over connections, with two models.
Must never: run a fleet or start a broker. What is lost by a kill nobody knows, and no test can.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support import builders as b
from tests.support.wait import until

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent import fold
from anabranch.agent.model.anthropic_model import AnthropicModel
from anabranch.agent.model.jobs import Job
from anabranch.agent.model.thinking import Thinker
from anabranch.agent.prompt.asking import to_request
from anabranch.agent.prompt.offer import Offers
from anabranch.agent.state import Partition
from anabranch.clockwork import Clockwork, steady_time
from anabranch.config import AgentSettings, AnthropicSettings
from anabranch.prices import Price
from anabranch.registry import Registry
from anabranch.testing import Reply, ScriptedModel, prompt_of, tool_use

RUNS = 60
SETTINGS = AgentSettings(
    model_concurrency=16, model_backoff_s=0.01, model_backoff_max_s=0.05, model_broken_max=4,
    model_retries_per_minute=60_000, model_breaker_open_s=0.1, model_fallback_tries=2,
)  # fmt: skip
PRICES = {"own": Price(3.0, 15.0), "other": Price(1.0, 5.0)}
LONG: list[str | dict[str, Any]] = ["some words " * 40, tool_use("t", {"a": "b" * 200})]
ERRORS = [Reply.error(429), Reply.error(529), Reply.error(500), Reply.error(408)]


@dataclass
class Script:
    """Draws what becomes of each request. A run that is to be cancelled hears nothing behind the start of its reply."""

    chance: random.Random
    started: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: dict[str, object]) -> Reply:
        name, chance = prompt_of(request), self.chance
        self.started[name] += 1
        usage = {
            "input_tokens": chance.randint(1, 1000),
            "output_tokens": chance.randint(2, 1000),
            "cache_creation_input_tokens": chance.choice((0, 500)),
        }
        if name.startswith("cancelled"):
            return Reply(content=LONG, usage=usage, hang_after=chance.randint(1, 6))
        match chance.randrange(8):
            case 0 | 1:
                return chance.choice(ERRORS)
            case 2:
                return Reply(content=LONG, usage=usage, cut_after=chance.randint(0, 9))
            case 3:
                return Reply(content=LONG, usage=usage, hang_after=chance.randint(0, 9))
            case 4:
                return Reply(content=LONG, usage=usage, sse_error=("overloaded_error", "busy"))
            case 5:
                again = tool_use("t", {}, id="twice")
                return Reply(content=[again, again], usage=usage)
            case _:
                return Reply(content=["done"], usage=usage)


@dataclass
class Runs:
    """The runs, each with a partition of its own that their events are folded into."""

    thinker: Thinker
    states: dict[str, Partition] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)

    def start(self, name: str) -> Job:
        state = b.folded(b.requested(opens=b.opening(request=b.request(input=name), deadline=1e12)))
        self.states[name], run = state, b.run_of(state)
        registry = Registry()
        registry.add([b.tool()], [b.agent(model="own", fallback="other")])

        def append(event: e.Event) -> None:
            fold.apply(state, event, state.position, 1.0)
            if isinstance(event, e.ModelReplied | e.ModelFailed):
                self.over.add(name)

        job = Job("", "own", lambda: to_request(run, Offers(registry)), append, lambda *_: None, fallback="other")
        self.thinker.submit(job)
        return job

    @property
    def used(self) -> m.Usage:
        total = m.Usage()
        for state in self.states.values():
            total += b.run_of(state).usage + b.run_of(state).discarded
        return total


@pytest.mark.timeout(60)
async def test_what_was_used_and_thrown_away_is_what_the_server_has_counted(seed: int) -> None:
    chance, ids = random.Random(seed), itertools.count()
    script = Script(chance)
    async with ScriptedModel(script, models=("own", "other")) as server:
        access = AnthropicSettings(api_key="k", base_url=server.base_url)
        async with AnthropicModel.opened(access, silence_s=0.5) as model, asyncio.timeout(50):
            clockwork = Clockwork(lambda: 0.0, lambda: f"id{next(ids)}", chance, steady=steady_time)
            runs = Runs(Thinker(model, SETTINGS, PRICES, clockwork, {}))
            running = asyncio.create_task(runs.thinker.run())
            jobs = {f"run-{number}": runs.start(f"run-{number}") for number in range(RUNS)}
            doomed = {f"cancelled-{number}": runs.start(f"cancelled-{number}") for number in range(RUNS // 8)}
            for name, job in doomed.items():
                await until(lambda n=name, j=job: runs.thinker.spent(j) is not None or n in runs.over)  # type: ignore[misc, arg-type]
                runs.thinker.cancel(job)
            await until(lambda: len(runs.over) >= len(jobs), 40)
            await runs.thinker.idle()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        charged = {name: [each for each in server.metered if each.model == name] for name in PRICES}
    used = runs.used
    assert sum(each.input_tokens for each in server.metered) == used.input_tokens + used.cache_creation_input_tokens
    assert sum(each.output_tokens for each in server.metered) == used.output_tokens
    assert charged["other"], "the other model was asked, too"
    assert any(b.run_of(state).discarded.output_tokens for state in runs.states.values())
