"""The ledger: what the outside world saw, and when. Values only, and a file of one JSON object a line.

Responsible for: the entries, and writing them to a file and reading them back. Times are epoch seconds of this machine.
Must never: judge (`checker.py`), or ask a worker what it did: the model's server, the tools themselves, Kafka's records
and whoever did the damage say so.
Called by: everything in this package.

A *token* names one reply of the model, so also the model call: `run/turn/serial`, new for every request that the
model's server gets. The calls that a reply makes carry it in their input, so an execution says who asked for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

Delivery = Literal["at_least_once", "at_most_once"]
FaultKind = Literal[
    "kill",
    "mute",
    "freeze",
    "cut",
    "delay",
    "half_open",
    "broker_stop",
    "broker_kill",
    "roll",
    "scale_out",
    "scale_in",
]
PLANNED: Final[frozenset[FaultKind]] = frozenset({"roll", "scale_out", "scale_in"})
"""What a deploy does: it explains no repeat of anything."""


def tool_use_id(token: str, index: int) -> str:
    """The id under which a reply asks for its call number `index`."""
    return f"toolu_{token}/{index}".replace("/", "_")


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that Kafka has taken."""

    run: str
    at: float


@dataclass(frozen=True, slots=True)
class Asked:
    """One call that a reply of the model made."""

    tool_use_id: str
    index: int
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Told:
    """One `tool_result` that the model was given."""

    tool_use_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request to the model. `after` is the token of the reply that it answers, None in the first turn; `ended` is
    None if the worker went away before it had the reply."""

    token: str
    run: str
    turn: int
    worker: str
    begun: float
    ended: float | None
    after: str | None
    told: tuple[Told, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Execution:
    """A tool was executed. `nonce` is new for each; `ended` is None if it never came to its end, `stopped` is when it
    was given up. `serial` is the argument by which it runs in order, if it has one."""

    nonce: str
    token: str
    index: int
    delivery: Delivery
    call_id: str
    key: str
    worker: str
    begun: float
    ended: float | None
    stopped: float | None = None
    serial: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """A tool call lies in its queue."""

    call_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Logged:
    """A reply of the model stands in the run log; `at` is the broker's time. The first one of a turn counts."""

    token: str
    run: str
    turn: int
    partition: int
    offset: int
    at: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A record of `agent.responses`; `digest` is one of its whole value."""

    run: str
    status: str
    output: str
    digest: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done, and to which worker (None: to the broker, so to all); `ended` is when it was undone."""

    kind: FaultKind
    worker: str | None
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Committed:
    """Where a group stands in the end; `end` is the end of the log."""

    group: str
    topic: str
    partition: int
    offset: int | None
    end: int


@dataclass(frozen=True, slots=True)
class Life:
    """A worker process, and how it ended; `alone` is of its own accord. `grown_bytes` and `grown_files` are what its
    memory and its open files have grown by since it was warm, None if it did not live long enough; `complaints` are
    lines of its log that speak of a leak or a defect."""

    worker: str
    role: str
    lived_s: float
    ended: Literal["killed", "stopped", "alone"]
    grown_bytes: int | None
    grown_files: int | None
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The strict model refused a request, and why."""

    worker: str
    reason: str


Entry = Submitted | ModelCall | Published | Execution | Logged | Answer | Fault | Committed | Life | Refused
_KINDS: Final[dict[str, Callable[..., Entry]]] = {kind.__name__: kind for kind in get_args(Entry)}


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that was seen. A test builds one by hand; `only_planned` says that nothing but deploys happened."""

    seed: int = 0
    only_planned: bool = False
    submitted: tuple[Submitted, ...] = ()
    model_calls: tuple[ModelCall, ...] = ()
    published: tuple[Published, ...] = ()
    executions: tuple[Execution, ...] = ()
    logged: tuple[Logged, ...] = ()
    answers: tuple[Answer, ...] = ()
    faults: tuple[Fault, ...] = ()
    committed: tuple[Committed, ...] = ()
    lives: tuple[Life, ...] = ()
    refused: tuple[Refused, ...] = field(default=())

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        for item in fields(self):
            value = getattr(self, item.name)
            found += value if isinstance(value, tuple) else ()
        return found


_PLACES: Final = {
    "Submitted": "submitted",
    "ModelCall": "model_calls",
    "Published": "published",
    "Execution": "executions",
    "Logged": "logged",
    "Answer": "answers",
    "Fault": "faults",
    "Committed": "committed",
    "Life": "lives",
    "Refused": "refused",
}


def write(ledger: Ledger, path: Path) -> None:
    """One JSON object a line; the first one says the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"seed": ledger.seed, "only_planned": ledger.only_planned}]
    lines += [{"is": type(entry).__name__, **dataclasses.asdict(entry)} for entry in ledger.entries()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> Ledger:
    """The inverse of `write`."""
    first, *lines = (json.loads(line) for line in path.read_text().splitlines())
    found: dict[str, list[Entry]] = {name: [] for name in _PLACES.values()}
    for line in lines:
        kind = line.pop("is")
        found[_PLACES[kind]].append(_KINDS[kind](**_typed(kind, line)))
    return Ledger(first["seed"], first["only_planned"], **{name: tuple(entries) for name, entries in found.items()})  # type: ignore[arg-type]


def _typed(kind: str, line: dict[str, Any]) -> dict[str, Any]:
    if kind == "ModelCall":
        told, asked = (Told(**item) for item in line["told"]), (Asked(**item) for item in line["asked"])
        return {**line, "told": tuple(told), "asked": tuple(asked)}
    if kind == "Life":
        return {**line, "complaints": tuple(line["complaints"])}
    return line
