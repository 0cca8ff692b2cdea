"""An hour of a `Thinker`, in virtual time: what comes of the model calls that a test submits.

Responsible for: its clockwork, its task, and that it is still at work when the hour is over.
Must never: know what a test looks at.
Called by: `thinking` and `providers`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections.abc import Callable
from typing import Protocol, TypeVar

from anabranch.agent.model.thinking import Thinker
from anabranch.clockwork import Clockwork
from tests.support.virtual import now, virtually


class Desk(Protocol):
    """Who submits jobs to a thinker."""

    thinker: Thinker


D = TypeVar("D", bound=Desk)


def an_hour(make: Callable[[Clockwork], D], arrange: Callable[[D], object]) -> D:
    """The desk that `make` makes, an hour after `arrange` has submitted its jobs."""

    async def run() -> D:
        ids = itertools.count(1)
        desk = make(Clockwork(now, lambda: f"id{next(ids)}", random.Random(1)))
        running = asyncio.create_task(desk.thinker.run())
        arranging = arrange(desk)
        if inspect.isawaitable(arranging):
            await arranging
        await asyncio.sleep(3600)
        assert not running.done()
        running.cancel()
        return desk

    return virtually(run)
