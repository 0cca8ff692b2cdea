"""What is counted and measured: plain numbers that the roles change and `metrics.py` shows. PURE.

Responsible for: counters, gauges and histograms that cost the event loop a dictionary's look-up each, and for bounds on
how many series there are, whatever the labels come from. Must never: know a monitoring system, take a lock, or block.

One thread writes, the event loop's; others only read, by copying a dictionary or a list in one step of the interpreter
(`copied`). So a reader never stops the loop, and sees each number as it was at one moment; a histogram may be read
between its count and its sum, which the next reading mends. Called by: the roles and `kafka/`, which count;
`metrics.py`, which reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final, Literal

Key = tuple[str, ...]
"""The values of the labels, in their order."""
Fixed = Mapping[str, str]
"""Labels that all series of a meter have, with their values."""
Kind = Literal["counter", "gauge", "histogram"]

_NONE: Final[Fixed] = {}

SERIES: Final = 500
"""Series of one meter, at most: what comes on top is counted as `OTHER`."""
OTHER: Final = "other"
"""The label of what nobody here has declared."""

QUICK_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CALL_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
RUN_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
"""Upper bounds of buckets, in seconds."""


class Meter:
    """Whoever counts gives the values of `labels`, but for those that are `fixed`, which stand first."""

    kind: Kind

    def __init__(self, name: str, help: str, labels: Key = (), fixed: Fixed = _NONE) -> None:
        self.name, self.help = name, help
        self.labels, self.fixed = (*fixed, *labels), tuple(fixed.values())
        self._is_single, self._others = not labels, (OTHER,) * len(labels)


class Counter(Meter):
    """It only grows. `known` are label values that show as 0 before anything was counted."""

    kind: Kind = "counter"

    def __init__(self, name: str, help: str, labels: Key = (), fixed: Fixed = _NONE, known: Iterable[Key] = ()) -> None:
        super().__init__(name, help, labels, fixed)
        self._values: dict[Key, float] = dict.fromkeys([()] if self._is_single else known, 0)

    def count(self, *key: str) -> None:
        """One more."""
        try:
            self._values[key] += 1
        except KeyError:
            self._open(key, 1)

    def add(self, amount: float, *key: str) -> None:
        """So many more; 0 makes the series known."""
        try:
            self._values[key] += amount
        except KeyError:
            self._open(key, amount)

    def _open(self, key: Key, amount: float) -> None:
        if len(self._values) >= SERIES:
            key = self._others
        self._values[key] = self._values.get(key, 0) + amount

    def copied(self) -> dict[Key, float]:
        return self._values.copy()


class Gauge(Meter):
    """It goes up and down: whoever samples it says all of it."""

    kind: Kind = "gauge"

    def __init__(self, name: str, help: str, labels: Key = (), fixed: Fixed = _NONE) -> None:
        super().__init__(name, help, labels, fixed)
        self._values: dict[Key, float] = {(): 0.0} if self._is_single else {}

    def set(self, value: float, *key: str) -> None:
        if key in self._values or len(self._values) < SERIES:
            self._values[key] = value

    def replace(self, values: Mapping[Key, float]) -> None:
        """These, and no others."""
        self._values = dict(list(values.items())[:SERIES])

    def copied(self) -> dict[Key, float]:
        return self._values.copy()


class Histogram(Meter):
    """How often a value was in which bucket. `bounds` are the buckets' upper ones, ascending."""

    kind: Kind = "histogram"

    def __init__(self, name: str, help: str, bounds: tuple[float, ...], labels: Key = (), fixed: Fixed = _NONE) -> None:
        super().__init__(name, help, labels, fixed)
        self.bounds, self._at_sum = bounds, len(bounds) + 1
        self._series: dict[Key, list[float]] = {(): self._new()} if self._is_single else {}

    def _new(self) -> list[float]:
        """A count for each bucket, one for what is above them all, and the sum."""
        return [0] * (self._at_sum + 1)

    def observe(self, value: float, *key: str) -> None:
        """Clocks of different machines are compared here and there: what is below 0 counts as 0."""
        try:
            series = self._series[key]
        except KeyError:
            series = self._opened(key)
        if value > 0:
            series[bisect_left(self.bounds, value)] += 1
            series[-1] += value
        else:
            series[0] += 1

    def _opened(self, key: Key) -> list[float]:
        if len(self._series) >= SERIES:
            key = self._others
        return self._series.setdefault(key, self._new())

    def copied(self) -> dict[Key, tuple[list[float], float]]:
        """Of each series the counts by bucket, not added up, and the sum."""
        found = {}
        for key, series in self._series.copy().items():
            numbers = series.copy()
            found[key] = (numbers[: self._at_sum], numbers[self._at_sum])
        return found


class Meters:
    """Several meters, as attributes."""

    def all(self) -> list[Counter | Gauge | Histogram]:
        return [meter for meter in vars(self).values() if isinstance(meter, Counter | Gauge | Histogram)]
