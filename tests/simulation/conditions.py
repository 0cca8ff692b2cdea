"""Under which settings, timing and clocks the workers of a seed live.

Responsible for: the settings that make a simulated minute eventful, and clocks that go wrong.
Must never: change anything once a worker has been started with it.
Called by: the world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from anabranch.config import AgentSettings, KafkaSettings, Settings, ToolSettings, WorkerSettings
from anabranch.kafka.memory.cluster import Timing
from tests.simulation.evidence import EPOCH, NAMESPACE, PARTITIONS
from tests.simulation.faults import Profile

SKEW_S: Final = 2.0
TIMING: Final = Timing(heartbeat_s=0.1, rebalance_s=12.0, session_s=6.0, request_s=3.0)
OPEN_BYTES: Final = (512 * 1024 * 1024, 512 * 1024 * 1024, 20_000)
"""Room for open runs: of a worker, for all that are asked for, or for one or two; then requests wait in Kafka."""
SETTINGS: Final = Settings(
    kafka=KafkaSettings(partitions=PARTITIONS),
    worker=WorkerSettings(namespace=NAMESPACE.name, drain_s=30.0, commit_s=0.5, heartbeat_s=5.0),
    agent=AgentSettings(model_backoff_s=0.2, model_backoff_max_s=1.0, hand_off_s=40.0, snapshot_part_bytes=4096),
    tool=ToolSettings(hand_off_s=60.0, threads=1, processes=1),
)


def settings(profile: Profile, chance: Random) -> Settings:
    lives = profile.lives
    clean_bytes, age_s = chance.choice(lives.clean_bytes), chance.choice(lives.snapshot_age_s)
    agent = replace(SETTINGS.agent, clean_bytes=clean_bytes, snapshot_age_s=age_s)
    return replace(SETTINGS, agent=replace(agent, max_open_bytes=chance.choice(OPEN_BYTES)))


def clock(chance: Random) -> Callable[[], float]:
    """A clock of one process, in epoch seconds: it goes wrong, and some are set while it runs."""
    loop, skews = asyncio.get_running_loop(), [chance.uniform(-SKEW_S, SKEW_S) for _ in range(2)]
    set_at = loop.time() + chance.uniform(0, 120)
    return lambda: EPOCH + loop.time() + skews[loop.time() > set_at]
