"""How a bug is planted into our own code, and taken out again; the code is as it was afterwards.

Responsible for: the list of bugs, each with the promise that it breaks and the seeds that show it.
Must never: be imported by what it changes.
Called by: the modules with the bugs, and tests of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Plant:
    """`promise` is the name of the check that must fail, in some of the seeds of `profile` from `start` on: best in the
    first, and soon.
    """

    name: str
    promise: str
    profile: str
    start: int
    dig: Callable[[Patch], None]


PLANTS: list[Plant] = []


def plant(promise: str, profile: str, start: int = 0) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def declare(dig: Callable[[Patch], None]) -> Callable[[Patch], None]:
        PLANTS.append(Plant(dig.__name__, promise, profile, start, dig))
        return dig

    return declare


@contextmanager
def planted(bug: Plant) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        bug.dig(patch)
        yield
