"""Names of topics and groups, headers, and which partition a key belongs to.

A run's partition is murmur2 of its id, as the Java client's default partitioner has it; it is computed
here and passed explicitly, so that no client library's own choice matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from struct import unpack_from
from typing import Final

from anabranch.errors import ConfigError
from anabranch.fields import Lane
from anabranch.values import frozen

REQUESTS: Final = "agent.requests"
BULK_REQUESTS: Final = "agent.requests.bulk"
LOG: Final = "agent.log"
RESPONSES: Final = "agent.responses"
STREAM: Final = "agent.stream"
REGISTRY: Final = "registry"
DEAD_LETTERS: Final = "dead.letters"
CALLS: Final = "tool.calls."

DAY_MS: Final = 86_400_000


@frozen()
class TopicSpec:
    """What one topic must look like. `settings` are Kafka topic configurations."""

    name: str
    partitions: int
    settings: dict[str, str]


@dataclass(frozen=True)
class Namespace:
    """The topics and groups of one namespace: one trust domain."""

    name: str

    def __post_init__(self) -> None:
        allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        if not self.name or not set(self.name) <= allowed or len(self.name) > 100:
            raise ConfigError(
                f"namespace {self.name!r} must be 1 to 100 characters of a-z, 0-9, '.', '_' and '-': "
                "it begins the name of every topic"
            )

    def topic(self, base: str) -> str:
        return f"{self.name}.{base}"

    @cached_property
    def requests(self) -> str:
        return self.topic(REQUESTS)

    @cached_property
    def bulk_requests(self) -> str:
        return self.topic(BULK_REQUESTS)

    def requests_of(self, lane: Lane) -> str:
        """The topic of a lane's requests."""
        return self.bulk_requests if lane == "bulk" else self.requests

    @cached_property
    def log(self) -> str:
        return self.topic(LOG)

    @cached_property
    def responses(self) -> str:
        return self.topic(RESPONSES)

    @cached_property
    def stream(self) -> str:
        return self.topic(STREAM)

    @cached_property
    def registry(self) -> str:
        return self.topic(REGISTRY)

    @cached_property
    def dead_letters(self) -> str:
        return self.topic(DEAD_LETTERS)

    def calls(self, queue: str) -> str:
        return self.topic(CALLS + queue)

    @cached_property
    def agents_group(self) -> str:
        return f"{self.name}.agents"

    def tools_group(self, queue: str) -> str:
        return f"{self.name}.tools.{queue}"

    def specs(self, queues: list[str], partitions: int = 24) -> list[TopicSpec]:
        """Every topic of the namespace, with the settings of WIRE's table."""

        def spec(name: str, count: int, days: float, **more: str) -> TopicSpec:
            settings = {"cleanup.policy": "delete", "retention.ms": str(int(days * DAY_MS)), **more}
            return TopicSpec(name, count, settings)

        large = {"max.message.bytes": str(RECORD_BYTES)}
        lasting = {**large, "retention.bytes": "-1"}
        broker_time = {"message.timestamp.type": "LogAppendTime"}
        return [
            spec(self.requests, partitions, 7, **lasting),
            spec(self.bulk_requests, partitions, 7, **lasting),
            spec(self.log, partitions, 7, **lasting, **broker_time),
            spec(self.responses, 24, 1, **large),
            spec(self.stream, 24, 10 / 1440),
            TopicSpec(self.registry, 1, {"cleanup.policy": "compact", **broker_time}),
            spec(self.dead_letters, 6, 30, **large),
            *(spec(self.calls(queue), 24, 7, **large) for queue in queues),
        ]


RECORD_BYTES: Final = 1_048_576
"""What a topic takes as one record batch."""
BODY_BYTES: Final = RECORD_BYTES - 24_576
"""What we put into one body: the rest is for key, headers and the batch's own framing."""

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32-bit murmur2 with the seed of Kafka's Java client (`org.apache.kafka.common.utils.Utils`)."""
    h, words = _SEED ^ len(data), len(data) >> 2
    for k in unpack_from(f"<{words}I", data):
        k = k * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    if rest := data[words << 2 :]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(maxsize=4096)
def partition_of(key: str | bytes, partitions: int) -> int:
    """The partition that the Java client's default partitioner gives `key`. A run's is asked for again and again."""
    data = key.encode() if isinstance(key, str) else key
    return (murmur2(data) & 0x7FFFFFFF) % partitions
