"""What the runs of a log have used, and what that cost, by agent, tenant or model. PURE.

Of a log's records the headers are read, and of those that open a run who asked for it. What is remembered of runs is
bounded: of one that was forgotten, or was opened before the log begins, nobody knows whose it is. Called by `usage`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from anabranch.codec import Record, header

UNKNOWN: Final = "(unknown)"
KEPT: Final = 100_000
"""Runs that are remembered, in some 30 MB."""
_RECENT: Final = 8
"""Attempts of a run among which a copy is known again."""
_PAID: Final = ("model.replied", "model.discarded")
_OVER: Final = frozenset({"final", "stopped"})


class Whose(NamedTuple):
    """A run's agent and its revision, and its tenant."""

    agent: str = UNKNOWN
    revision: str = ""
    tenant: str = UNKNOWN


@dataclass(slots=True)
class _Known:
    whose: Whose
    attempts: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))


@dataclass(slots=True)
class Row:
    """Of one agent, tenant or model. `cost_usd` is of all that has a price, thrown away or not; `unpriced` replies have
    none. Tokens read are `input_tokens` and both of the cache's.
    """

    name: str
    runs: int = 0
    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cost_usd: float | None = 0.0
    unpriced: int = 0
    thrown_away: int = 0
    thrown_away_usd: float = 0.0

    @property
    def prompt(self) -> int:
        """All tokens that were read."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_creation_input_tokens

    def add(self, used: dict[str, Any], thrown_away: bool) -> None:
        """Count a reply."""
        for name in _TOKENS:
            setattr(self, name, getattr(self, name) + int(used.get(name) or 0))
        cost = used.get("cost_usd")
        self.replies += 1
        self.unpriced += cost is None
        if cost is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost
        elif self.unpriced == self.replies:
            self.cost_usd = None
        if thrown_away:
            self.thrown_away += 1
            self.thrown_away_usd += cost or 0.0


_TOKENS: Final = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")

By = Callable[[Whose, dict[str, Any]], str]
"""In which row a reply counts: by whose run it is of, and by its usage."""


class Ledger:
    """Counts the records of a log as they come, those from `since` on (epoch seconds)."""

    def __init__(self, by: By, since: float = 0.0, keep: int = KEPT) -> None:
        self._by, self._since, self._keep = by, since, keep
        self._runs: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._rows: dict[str, Row] = {}

    @property
    def rows(self) -> list[Row]:
        """The dearest first."""
        return sorted(self._rows.values(), key=lambda row: (-(row.cost_usd or 0.0), -row.prompt, row.name))

    def take(self, record: Record) -> None:
        """Count one record; most tell of nothing that was paid for."""
        kind = header(record.headers, "ce_type")
        if kind == "run.requested":
            self._open(record)
        elif kind in _PAID:
            self._pay(record, kind)

    def _open(self, record: Record) -> None:
        run = _run_of(record)
        if run in self._runs:
            return  # a copy
        whose = _whose(record.value)
        self._remember(run, whose)
        if record.timestamp / 1000 >= self._since:
            self._row(self._by(whose, {})).runs += 1

    def _pay(self, record: Record, kind: str) -> None:
        run = _run_of(record)
        known = self._runs.get(run) or self._remember(run, Whose())
        attempt = " ".join([kind, *(header(record.headers, name) or "" for name in ("ce_turn", "ce_attempt"))])
        if attempt in known.attempts:
            return  # an append may be written twice
        known.attempts.append(attempt)
        if header(record.headers, "ce_outcome") in _OVER:
            self._runs.move_to_end(run, last=False)  # the first to be forgotten
        used, is_lost = _usage_in(record), kind == "model.discarded"
        if used is None or (is_lost and not any(used.get(name) for name in (*_TOKENS, "cost_usd"))):
            return  # it only names attempts that cost nothing
        if record.timestamp / 1000 >= self._since:
            self._row(self._by(known.whose, used)).add(used, is_lost)

    def _remember(self, run: tuple[str, str], whose: Whose) -> _Known:
        if len(self._runs) >= self._keep:
            self._runs.popitem(last=False)
        known = self._runs[run] = _Known(whose)
        return known

    def _row(self, name: str) -> Row:
        if name not in self._rows:
            self._rows[name] = Row(name)
        return self._rows[name]


def _run_of(record: Record) -> tuple[str, str]:
    return header(record.headers, "ce_runid") or "", header(record.headers, "ce_life") or ""


def _whose(body: bytes | None) -> Whose:
    """Who asked for a run, as far as its opening says so."""
    try:
        opening = orjson.loads(body or b"")
        request = opening["request"]
        agent, tenant = request.get("agent"), request.get("tenant")
        return Whose(str(agent or UNKNOWN), str(opening.get("revision") or ""), str(tenant or "(none)"))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return Whose()


def _usage_in(record: Record) -> dict[str, Any] | None:
    try:
        used = orjson.loads(header(record.headers, "ce_usage") or "")
    except orjson.JSONDecodeError:
        return None
    return used if isinstance(used, dict) else None
