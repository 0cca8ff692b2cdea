"""Calls that come where their limit has no home. The first time they are sent to it at once.

Where they come again, other workers take other partitions for its homes, as in the midst of a deploy that renames a
limit or gives it another `per`: calls go to and fro then, until all say the same. Responsible for: how long each waits
before it is sent again. Must never: send it. Called by: `serving.py`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from anabranch.messages import ToolCall

FIRST_S: Final = 1.0
LONGEST_S: Final = 8.0
REMEMBERED: Final = 20_000


class Strays:
    """Those that were here lately, with how long they have to wait when they come again."""

    def __init__(self) -> None:
        self._pauses: OrderedDict[tuple[str, int], float] = OrderedDict()

    async def comes(self, call: ToolCall) -> None:
        """Wait until it may be sent: not at all, or twice as long as the last time."""
        key = call.call_id, call.dispatch
        pause_s = self._pauses.pop(key, 0.0)
        self._pauses[key] = min(LONGEST_S, 2 * pause_s) or FIRST_S
        if len(self._pauses) > REMEMBERED:
            self._pauses.popitem(last=False)
        if pause_s:
            await asyncio.sleep(pause_s)
