"""Values: dataclasses that nobody changes, and that cost no more to make than others.

`frozen=True` of the standard library sets each field by a call, so that a value of seven fields is ten times as dear
to make as one that can be changed, and each run makes some hundreds. Here mypy alone holds them frozen: every change of
ours has to pass it. Must never: be used for what users declare (`declarations/declared.py`, `specs.py`, `config.py`)
and this process goes on sharing: nobody checks their code, so that is frozen at run time. Called by: whoever declares a
value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(*, eq: bool = True, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """`@dataclass(frozen=True, slots=True)`, with equality and hash as there, but frozen for mypy alone."""
    return dataclass(slots=True, eq=eq, unsafe_hash=eq, kw_only=kw_only)
