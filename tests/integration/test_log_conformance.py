"""The log's double in memory and the real Kafka give the same guarantees: one suite, run on both."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support.log_conformance", "tests.support.group_conformance")

from tests.support.group_conformance import GroupConformance, PositionConformance  # noqa: E402
from tests.support.log_conformance import AdminConformance, AppenderConformance, ReaderConformance  # noqa: E402
from tests.support.log_worlds import KafkaWorld, MemoryWorld, World  # noqa: E402


class Everything(AppenderConformance, ReaderConformance, AdminConformance, PositionConformance, GroupConformance):
    """All guarantees of the seam."""

    @pytest.fixture
    def group(self, namespace: str) -> str:
        return f"{namespace}.group"


class TestMemory(Everything):
    """The double."""

    @pytest.fixture
    def world(self, namespace: str) -> World:
        return MemoryWorld(namespace)


class TestKafka(Everything):
    """Apache Kafka."""

    @pytest.fixture
    def world(self, kafka: str, namespace: str) -> World:
        return KafkaWorld(kafka, namespace)
