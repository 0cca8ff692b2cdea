"""What a declaration must fulfil, and how a mistake in one is told.

Pure, but for reading the files that a declaration names. The checks here raise a bare `DefinitionError`;
`Place.named` adds which declaration it was and where it stands. Must never know an App: `app` calls this.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast, get_args

import orjson

from anabranch import units
from anabranch.errors import DefinitionError
from anabranch.fields import NAME_PATTERN, Json
from anabranch.prices import window_of
from anabranch.specs import AgentSpec, Caching, Context

TOOL_PATTERN: Final = r"[a-zA-Z0-9_-]{1,64}"
"""What the Messages API takes as the name of a tool."""
QUEUE_PATTERN: Final = r"[A-Za-z0-9._-]{1,100}"
"""What Kafka takes in the name of a topic, with room for the namespace."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a declaration stands. `folder` is what the paths in it are relative to."""

    what: str
    file: str
    line: int

    @classmethod
    def of_frame(cls, what: str, frame: FrameType) -> Place:
        return cls(what, frame.f_code.co_filename, frame.f_lineno)

    @property
    def folder(self) -> Path:
        return Path.cwd() if self.file.startswith("<") else Path(self.file).resolve().parent

    @contextmanager
    def named(self) -> Iterator[None]:
        """Puts the place in front of the message of what goes wrong inside."""
        try:
            yield
        except (DefinitionError, units.UnitError) as error:
            raise DefinitionError(f"{self.what} ({self.file}:{self.line}): {error}") from error


# --- values -----------------------------------------------------------------------------------------


def check_name(kind: str, name: object, pattern: str = NAME_PATTERN) -> None:
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise DefinitionError(f"the {kind} {name!r} must match {pattern.strip('^$')}")


def seconds(label: str, value: float | str) -> float:
    """A duration above 0."""
    with _labelled(label):
        found = units.duration(value)
    if found <= 0:
        raise DefinitionError(f"{label}={value!r} must be more than 0 seconds")
    return found


def size(label: str, value: int | str) -> int:
    """A size above 0."""
    with _labelled(label):
        found = units.size(value)
    if found <= 0:
        raise DefinitionError(f"{label}={value!r} must be more than 0 bytes")
    return found


MOST: Final = 2**53
SLOWEST: Final = 1 / 86_400
FASTEST: Final = 100_000.0


def paced(label: str, value: float | str) -> float:
    """A rate that a limit can keep: from one a day to 100,000 a second."""
    with _labelled(label):
        found = units.rate(value)
    if not SLOWEST <= found <= FASTEST:
        raise DefinitionError(f"{label}={value!r} must lie between one a day and {FASTEST:,.0f} a second")
    return found


@contextmanager
def _labelled(label: str) -> Iterator[None]:
    try:
        yield
    except units.UnitError as error:
        raise DefinitionError(f"{label}: {error}") from error


def whole(label: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DefinitionError(f"{label}={value!r} must be a whole number of at least {least}")
    if value >= MOST:
        raise DefinitionError(f"{label} must be less than 2**53, so that it can be written as JSON")


def text(label: str, value: str) -> None:
    """A text that can be written as JSON."""
    if not _is_utf8(value):
        raise DefinitionError(f"{label} holds half a character (a lone surrogate), which JSON cannot: take it out")


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_of(label: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise DefinitionError(f"{label}={value!r} must be one of {', '.join(map(repr, allowed))}")


def boolean(label: str, value: object) -> None:
    if not isinstance(value, bool):
        raise DefinitionError(f"{label}={value!r} must be True or False")


def caching(value: bool | str) -> Caching:
    """How long the provider keeps what it has read."""
    match value:
        case True | "5m":
            return "5m"
        case "1h":
            return "1h"
        case False | "off":
            return "off"
    raise DefinitionError(f"caching={value!r} must be True, False, '5m' or '1h'")


def context(value: str, model: str, window: int | None) -> Context:
    """What is done when a conversation outgrows the context of `model`."""
    one_of("context", value, get_args(Context))
    if window is not None:
        whole("context_window", window, 1)
    elif value == "drop_tool_results" and window_of(model) is None:
        raise DefinitionError(
            f"context={value!r} needs context_window=, the tokens that {model!r} holds: it is not known"
        )
    return cast(Context, value)


def tool_names(label: str, values: Sequence[str | Callable[..., Any]], named: Mapping[Any, str]) -> list[str]:
    """Names of tools, given as names or as the decorated functions; `named` maps functions to names."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise DefinitionError(f"{label}={values!r} must be a list of tools, such as {label}=['weather']")
    names: list[str] = []
    for value in values:
        name = value if isinstance(value, str) else named.get(value) if callable(value) else None
        if name is None:
            raise DefinitionError(f"{label} has {value!r}, which is no tool of this App: decorate it, or use a name")
        check_name(f"tool in {label}", name, TOOL_PATTERN)
        if name in names:
            raise DefinitionError(f"{label} names {name!r} twice: leave one out")
        names.append(name)
    return names


def check_order(after: Mapping[str, Sequence[str]]) -> None:
    """Raises if the tools wait for each other in a circle. `after` maps each tool to those it waits for."""
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        _walk(start, after, path, done)


def _walk(tool: str, after: Mapping[str, Sequence[str]], path: list[str], done: set[str]) -> None:
    if tool in path:
        circle = " after ".join(repr(name) for name in [*path[path.index(tool) :], tool])
        raise DefinitionError(f"after is circular, so that none of these could ever start: {circle}")
    if tool in done:
        return
    path.append(tool)
    for earlier in after.get(tool, ()):
        _walk(earlier, after, path, done)
    done.add(path.pop())


# --- files ------------------------------------------------------------------------------------------


def read_schema(schema: Mapping[str, Json] | str | Path, folder: Path) -> tuple[Json, str | None]:
    """A remote tool's input schema, and the description that stands beside or in it."""
    found: Json = _read_json(folder / schema) if isinstance(schema, str | Path) else schema
    if isinstance(found, Mapping) and "input_schema" in found:
        return found["input_schema"], found.get("description")
    if isinstance(found, Mapping):
        return dict(found), found.get("description")
    return found, None


def _read_json(path: Path) -> Json:
    try:
        return orjson.loads(_read(path, "schema"))
    except orjson.JSONDecodeError as error:
        raise DefinitionError(f"the schema {path} is not JSON: {error}") from error


def read_system(system: str | Path, folder: Path) -> str:
    """The system prompt: the text itself, or what is in the file if it is a path to an .md or .txt."""
    is_path = isinstance(system, Path) or (
        isinstance(system, str) and system.endswith((".md", ".txt")) and "\n" not in system
    )
    if is_path:
        try:
            return _read(folder / system, "system prompt").decode()
        except UnicodeDecodeError as error:
            raise DefinitionError(f"the system prompt {folder / system} is not UTF-8: {error}") from error
    if not isinstance(system, str):
        raise DefinitionError(f"system={system!r} must be a text, or a path that ends in .md or .txt")
    return system


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DefinitionError(
            f"the {what} {path} cannot be read ({error.strerror}): a path is relative to the file that names it"
        ) from error


# --- agents -----------------------------------------------------------------------------------------

_OURS: Final = frozenset({"messages", "stream"})
_GONE: Final = frozenset({"temperature", "top_p", "top_k"})


def check_options(options: Mapping[str, Json], own: Collection[str]) -> None:
    """`options` go to the Messages API as they are, except those that are ours (`own`) or exist no more."""
    for key in options:
        if key in _OURS:
            raise DefinitionError(f"{key!r} is set by Anabranch for each model call: leave it out")
        if key in _GONE:
            raise DefinitionError(
                f"{key!r} no longer exists on current models, which refuse it: leave it out and steer by the prompt"
            )
        if near := [name for name in own if _squeezed(name) == _squeezed(key)]:
            raise DefinitionError(f"there is no option {key!r}: did you mean {near[0]!r}?")
    _check_betas(options.get("betas", []))
    try:
        orjson.dumps(dict(options))
        json.dumps(options, allow_nan=False)
    except (orjson.JSONEncodeError, TypeError, ValueError) as error:
        raise DefinitionError(f"the options {sorted(options)} must be values of JSON: {error}") from error


def _check_betas(betas: Json) -> None:
    """They go into a header."""
    if not isinstance(betas, list | tuple) or not all(
        isinstance(beta, str) and _BETA.fullmatch(beta) for beta in betas
    ):
        raise DefinitionError(f"betas={betas!r} must be a list of names, such as ['mcp-client-2025-11-20']")


_BETA: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


def _squeezed(name: str) -> str:
    """The same for the usual slips: `max_turn`, `maxTurns`, `max_turns`."""
    return name.replace("_", "").lower().rstrip("s")


def revision_of(spec: AgentSpec) -> str:
    """16 hex digits that stand for all of an agent but its revision."""
    rest = asdict(spec)
    del rest["revision"]
    # They came later, and an agent without one is what it was before.
    for late in ("fallback", "early_start", "server_tools"):
        if not rest[late]:
            del rest[late]
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def check_model(model: object) -> None:
    """What else is asked of a model goes by its name."""
    if not _is_model(model):
        raise DefinitionError(f"model={model!r} must be the name of a model")


def _is_model(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip()) and _is_utf8(name)


def check_agent(spec: AgentSpec) -> None:
    """All of an agent but its name being free, its options and its files."""
    check_name("agent name", spec.name)
    text("system", spec.system)
    if spec.fallback is not None and not _is_model(spec.fallback):
        raise DefinitionError(f"fallback={spec.fallback!r} must be the name of a model, or None")
    if spec.fallback == spec.model:
        raise DefinitionError(f"fallback={spec.fallback!r} is the agent's own model: name another one, or leave it out")
    whole("max_turns", spec.limits.max_turns, 1)
    whole("max_calls_per_turn", spec.limits.max_calls_per_turn, 1)
    whole("max_tokens", spec.max_tokens, 1)
    boolean("parallel_tool_calls", spec.parallel_tool_calls)
    boolean("parallel_hint", spec.parallel_hint)
    boolean("early_start", spec.early_start)
    cost = spec.limits.max_cost_usd
    if cost is not None and (isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 < cost < math.inf):
        raise DefinitionError(f"max_cost_usd={cost!r} must be a number above 0, or None for no limit")
    _check_choice(spec.tool_choice, spec.tools)


def _check_choice(choice: str | None, tools: Sequence[str]) -> None:
    if choice is None or choice == "none":
        return
    if choice == "auto":
        raise DefinitionError("tool_choice='auto' is the default: leave it out, or write None")
    if choice == "any" and not tools:
        raise DefinitionError("tool_choice='any' forces a call, but the agent has no tools: give it some")
    if choice != "any" and choice not in tools:
        raise DefinitionError(
            f"tool_choice={choice!r} is none of the agent's tools {list(tools)}: add it, or write 'any' or 'none'"
        )
