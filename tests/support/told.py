"""Spans that were told of, kept in a list: an exporter for tests of what the roles tell.

Responsible for: `Traces` in memory. Must never: export. Called by: tests of traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anabranch.spans import Parent, Span

TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{ABOVE}-01", f"00-{TRACE}-{ABOVE}-00"


@dataclass
class Told:
    """`samples_roots` is what becomes of traces that begin with us; one that goes on keeps its flag."""

    content: bool = False
    samples_roots: bool = True
    spans: list[Span] = field(default_factory=list)
    around: list[Parent] = field(default_factory=list)
    """Within which spans code has run."""

    def emit(self, span: Span) -> None:
        self.spans.append(span)

    def samples(self, name: str, trace_id: str, parent: Parent | None) -> bool:
        return parent.sampled if parent is not None else self.samples_roots

    @contextmanager
    def inside(self, span: Parent) -> Iterator[None]:
        self.around.append(span)
        yield

    def close(self) -> None:
        """Nothing is left."""

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def one(self, name: str) -> Span:
        [found] = [span for span in self.spans if span.name == name]
        return found
