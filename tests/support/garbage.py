"""What is no longer reachable and still there: Python frees it only when its collector comes.

Responsible for: catching it, and telling ours from others'. Called by: tests of what is freed at once.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Garbage:
    """`of_ours` says of what kind it was, in the block of `kept`."""

    def __init__(self) -> None:
        self.of_ours: Counter[str] = Counter()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All that is made in this block and left in it is kept, and counted in the end. What others left behind, and
        a thread of theirs lets go of only now, is none of it.
        """
        gc.collect()
        gc.freeze()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            yield
            gc.collect()
            found = list(gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        self.of_ours = Counter(type(one).__name__ for one in found if _is_ours(one))


def _is_ours(one: object) -> bool:
    return isinstance(one, asyncio.Task) or type(one).__module__.startswith("anabranch.")


@contextmanager
def collected() -> Iterator[Garbage]:
    """Nobody else's collector comes in between, what was left before is gone, and what is there is not looked at again:
    that may be a million objects, for a whole session's tests.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield Garbage()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
        gc.collect()
