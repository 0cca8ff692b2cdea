"""Reads PromQL as far as needed to say which series it asks for: names, matched labels, labels that it groups by.

Responsible for: finding names and labels in our own queries, with Grafana's variables put in. Must never: evaluate
anything, or be taken for a parser: whether a query is well formed is promtool's to say.
Called by: tests of alerts, dashboard and autoscaling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_SERIES = re.compile(r"\b(anabranch_[a-z0-9_]+)\s*(\{[^}]*\})?")
_MATCHER = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WINDOWED = re.compile(r"\b(?:rate|increase)\s*\(\s*(anabranch_[a-z0-9_]+)")


@dataclass(frozen=True)
class Series:
    """One selector: a name, and the labels that it matches."""

    name: str
    labels: frozenset[str]


def series_in(query: str) -> Iterator[Series]:
    bare = _TEXT.sub('""', query)
    for found in _SERIES.finditer(bare):
        yield Series(found[1], frozenset(_MATCHER.findall(found[2] or "")))


def grouped_by(query: str) -> set[str]:
    """The labels in `by (...)`, `on (...)` and the like."""
    return {name.strip() for found in _GROUPING.findall(query) for name in found.split(",") if name.strip()}


def windowed(query: str) -> set[str]:
    """The names that are only looked at through rate() or increase()."""
    return set(_WINDOWED.findall(query))


def without_variables(query: str) -> str:
    """As Grafana would send it."""
    return query.replace("$__rate_interval", "5m").replace("$namespace", ".*")
