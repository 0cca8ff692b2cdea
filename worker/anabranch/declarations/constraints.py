"""Constraints on a parameter that no value of its type can meet: `Annotated[str, Field(gt=3)]`. PURE.

Pydantic takes them, and raises a TypeError for each value. They show in the schema that it validates by, as a function
of its own around a plain type. Must never refuse what a validator of the user's may have made of the value, nor call
one. Called by `schema.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

_ITS_OWN: Final = "pydantic._internal."
_WITHOUT_TEXT: Final = frozenset(
    {"int", "float", "bool", "decimal", "list", "tuple", "set", "frozenset", "dict"}
    | {"date", "time", "datetime", "timedelta", "uuid"}
)
_PLAIN: Final = _WITHOUT_TEXT - {"bool"} | {"str", "bytes"}
"""Types of which pydantic checks by itself all that it can check; but True is more than 0."""


def unfitting(schema: Mapping[str, Any]) -> str | None:
    """The first such constraint in a core schema of pydantic's, and the type that it is on."""
    for node in _nodes(schema):
        match node:
            case {"type": "function-after", "function": {"function": partial() as check}, "schema": {"type": kind}}:
                if kind in _PLAIN and _is_its_own(check.func):
                    return f"{_words(check.keywords)} of a value of type {kind}"
            case {"type": "chain", "steps": [{"type": kind}, *others]} if kind in _WITHOUT_TEXT:
                for step in others:
                    if (on_text := _on_text(step)) is not None:
                        return f"{_words(on_text)} of a value of type {kind}"
    return None


def _nodes(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    left: list[Any] = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left += node.values()
        elif isinstance(node, list | tuple):
            left += node


def _on_text(step: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a step of a chain asks of a text, if pydantic has put it behind something else."""
    match step:
        case {"type": "function-wrap", "function": {"function": check}, "schema": {"type": "str"} as text}:
            if _is_its_own(check) and "coerce_numbers_to_str" not in text:
                return {name: value for name, value in text.items() if name != "type"}
    return None


def _is_its_own(check: object) -> bool:
    return str(getattr(check, "__module__", "")).startswith(_ITS_OWN)


def _words(asked: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asked.items())
