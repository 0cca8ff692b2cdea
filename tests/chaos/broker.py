"""The Kafka of the chaos: one that can be stopped, and that is reached through a proxy for each place of a worker.

Responsible for: a listener for each proxy, which tells clients the proxy's address as the broker's own, so that all
that a worker says to Kafka goes through its proxy.
Must never: break anything by itself (`faults.py`). Called by: `__main__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.proxy import Proxy
from tests.support.kafka import Broker
from tests.support.kafka_sources import Jars, Node, find_source
from tests.support.process import free_ports


@dataclass(frozen=True, slots=True)
class Door:
    """One listener: the broker's port, and the port of the proxy in front of it."""

    port: int
    proxy: int


class WithDoors(Jars):
    """Kafka from Maven's jars, with a listener more for each door."""

    def __init__(self, doors: list[Door]) -> None:
        self._doors = doors

    def format(self, node: Node) -> None:
        super().format(node)
        properties = self._properties(node)
        lines = [_with_doors(line, self._doors) for line in properties.read_text().splitlines()]
        properties.write_text("\n".join(lines) + "\n")


def _with_doors(line: str, doors: list[Door]) -> str:
    more = {
        "listeners": [f"DOOR{i}://127.0.0.1:{door.port}" for i, door in enumerate(doors)],
        "advertised.listeners": [f"DOOR{i}://127.0.0.1:{door.proxy}" for i, door in enumerate(doors)],
        "listener.security.protocol.map": [f"DOOR{i}:PLAINTEXT" for i in range(len(doors))],
    }
    return ",".join([line, *more.get(line.partition("=")[0], [])])


@dataclass(frozen=True, slots=True)
class Kafka:
    """Where Kafka is. Without `broker` it is somebody else's, and is left alone; without proxies workers reach it
    directly."""

    bootstrap: str
    broker: Broker | None
    proxies: tuple[Proxy, ...] = ()


def started(places: int) -> Kafka:
    """A broker of our own, with a proxy for each of `places` workers (none if it runs in Docker). Blocks; raises what
    `tests.support.kafka.launch` does."""
    source = find_source()
    ports = free_ports(2 * places)
    doors = [Door(*pair) for pair in zip(ports[:places], ports[places:], strict=True)]
    behind = isinstance(source, Jars)
    proxies = tuple(Proxy(door.proxy, door.port) for door in doors if behind)
    broker = Broker(WithDoors(doors) if behind else source)
    try:
        broker.start()
    except BaseException:
        broker.close()
        for proxy in proxies:
            proxy.give_back()
        raise
    return Kafka(broker.bootstrap, broker, proxies)
