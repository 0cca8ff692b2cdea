"""What was counted, as Prometheus reads it: the one place that knows `prometheus_client`.

Responsible for: turning meters into families at each scrape, by copying them from a thread of the server: the loop is
not asked, and takes no lock. Must never: count anything itself. Called by: `watch.py`, which gives `application` to the
server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from anabranch.meters import Counter, Gauge, Histogram, Key, Meters

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Copied = dict[Key, Any]


def application(watched: Callable[[], Sequence[Meters]]) -> Wsgi:
    """A WSGI application that answers with the metrics of all that is watched by then, and of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(MetersCollector(watched))
    found: Wsgi = make_wsgi_app(registry)
    return found


class MetersCollector(Collector):
    """The families of all meters; those of several roles in one process that have the same name are one family."""

    def __init__(self, watched: Callable[[], Sequence[Meters]]) -> None:
        self._watched = watched

    def describe(self) -> Iterator[Family]:
        """Nothing: there may be nobody to watch yet."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        families: dict[str, tuple[Counter | Gauge | Histogram, Copied]] = {}
        for meters in self._watched():
            for meter in meters.all():
                _, series = families.setdefault(meter.name, (meter, {}))
                for key, value in meter.copied().items():
                    labels = (*meter.fixed, *key)
                    series[labels] = _sum(series[labels], value) if labels in series else value
        for meter, series in families.values():
            yield _family(meter, series)


def _sum(one: Any, other: Any) -> Any:
    """Of two roles in a process, where no label tells them apart."""
    if isinstance(one, tuple):
        return [a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]
    return one + other


def _family(meter: Counter | Gauge | Histogram, series: Copied) -> Family:
    match meter:
        case Histogram():
            return _histogram(meter, series)
        case Counter():
            family: CounterMetricFamily | GaugeMetricFamily
            family = CounterMetricFamily(meter.name, meter.help, labels=meter.labels)
        case Gauge():
            family = GaugeMetricFamily(meter.name, meter.help, labels=meter.labels)
    for labels, value in series.items():
        family.add_metric(labels, value)
    return family


def _histogram(meter: Histogram, series: Copied) -> HistogramMetricFamily:
    family = HistogramMetricFamily(meter.name, meter.help, labels=meter.labels)
    bounds = [*(str(bound) for bound in meter.bounds), "+Inf"]
    for labels, (counts, total) in series.items():
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return family
