"""Asks a worker's port as a probe and as Prometheus would: over HTTP, in a thread.

Responsible for: one request, and the samples of one scrape by name and labels. Called by: tests of health and metrics.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 10.0


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body. Raises OSError if nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def status(port: int, path: str) -> int:
    """What a probe gets; 0 if nobody answers."""
    try:
        return (await asyncio.to_thread(ask, port, path))[0]
    except OSError:
        return 0


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of one series; 0 if it is not there."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """Over all series that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)


async def scrape(port: int) -> Scrape:
    code, text = await asyncio.to_thread(ask, port, "/metrics")
    assert code == 200, text
    families = text_string_to_metric_families(text)
    return Scrape({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})
