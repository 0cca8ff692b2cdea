"""JSON as the text that it is: the members of an object and the items of a list, each as it was written. PURE.

What the provider says goes back to it so: numbers of any size, escapes, spaces and doubled keys are never written anew.
The text must be known to be JSON. Called by whoever puts replies together or takes them apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

_VALUE: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_SPACE: Final = re.compile(r"[ \t\n\r]*")


def members(text: str) -> dict[str, str]:
    """The value of each key. Raises `TypeError` if it is no object."""
    return _as_dumped(text) or _members(text)


def _as_dumped(text: str) -> dict[str, str] | None:
    """The same for an object without any space, written as it would be written here: what most providers write. Its
    parts are then what they are dumped as, which is much faster.
    """
    try:
        value = orjson.loads(text)
        if type(value) is dict and orjson.dumps(value) == text.encode():
            return {key: orjson.dumps(each).decode() for key, each in value.items()}
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    return None


def _members(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = _inside(text, "{")
    while text[at] != "}":
        key, at = _VALUE.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, at = _VALUE.raw_decode(text, begin)
        found[key] = text[begin:at]
        at = _next(text, at)
    return found


def items(text: str) -> Iterator[str]:
    """Each item. Raises `TypeError` if it is no list."""
    at = _inside(text, "[")
    while text[at] != "]":
        begin = at
        _, at = _VALUE.raw_decode(text, begin)
        yield text[begin:at]
        at = _next(text, at)


def written(fields: Mapping[str, str]) -> str:
    """The object that has these members."""
    return "{" + ",".join(f"{orjson.dumps(key).decode()}:{value}" for key, value in fields.items()) + "}"


def member(text: str, name: str, value: dict[str, Any]) -> str:
    """A member of an object whose `value` is known. The last one is found without a look at the others."""
    before, mark, last = text.partition(f'"{name}":')
    plain = mark and "\\" not in before and text.count(f'"{name}"') == 1
    if plain and next(reversed(value), None) == name and text[-1:] == "}":
        return last[:-1].strip()
    return members(text)[name]


def with_member(text: str, name: str, new: str, value: dict[str, Any]) -> str:
    """An object with another member of that name, in its place or behind the others; `value` is what the object was.

    One that was empty, as most are, is replaced without a look at the others.
    """
    old = f'"{name}":' + ("{}" if value.get(name) == {} else '""')
    named = 1 + sum(each == name for each in value.values())
    if value.get(name) in ({}, "") and "\\" not in text and text.count(f'"{name}"') == named and text.count(old) == 1:
        return text.replace(old, f'"{name}":{new}')
    return written({**members(text), name: new})


def is_json(text: str | bytes) -> bool:
    """Whether it is any JSON at all."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _inside(text: str, bracket: str) -> int:
    at = _skip(text, 0)
    if text[at : at + 1] != bracket:
        raise TypeError(f"{text[:80]!r} does not begin with {bracket!r}")
    return _skip(text, at + 1)


def _next(text: str, at: int) -> int:
    """Where the next one begins, or the bracket that ends them."""
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None, "it matches nothing too"
    return space.end()
