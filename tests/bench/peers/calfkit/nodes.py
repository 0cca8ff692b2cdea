"""A Calfkit agent and its tool, and the workers that host them.

Called by: `job.py`, which runs it as a program, `python -m tests.bench.peers.calfkit.nodes agents|tools`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any, Final

from calfkit import (
    Agent,
    AnthropicModelClient,
    Client,
    FanoutConfig,
    KTableReaderTuning,
    ProvisioningConfig,
    Worker,
    agent_tool,
)

from tests.bench import workload
from tests.bench.peers.place import Place

AGENT: Final = "bench"
MODEL: Final = "instant"
PARTITIONS: Final = 24
AT_ONCE: Final = 1000
POLL_MS: Final = 10
"""How often its tables look for news; the defaults, 200 and 500 ms, would be most of a run's time."""


@agent_tool
async def look_up(wait_ms: int, note: str) -> str:
    """Finds something after a while."""
    if wait_ms:
        await asyncio.sleep(wait_ms / 1000)
    return workload.RESULT


def client(place: Place) -> Any:
    """With idempotent producers, topics that make themselves, and no line in a log for each message."""
    topics = ProvisioningConfig(enabled=True, num_partitions=PARTITIONS)
    return Client.connect(place.bootstrap, provisioning=topics, enable_idempotence=True, logger=None)


def node(role: str) -> Any:
    """What a worker of `role` hosts."""
    if role == "tools":
        return look_up
    model = AnthropicModelClient(
        MODEL,
        max_tokens=4096,
        base_url=os.environ["ANTHROPIC_BASE_URL"],
        api_key=os.environ["ANTHROPIC_API_KEY"],
    )
    return Agent(AGENT, system_prompt="You are measured.", model_client=model, tools=[look_up])


async def _serve(role: str) -> None:
    tables = FanoutConfig(reader_tuning=KTableReaderTuning(poll_timeout_ms=POLL_MS, fetch_max_wait_ms=POLL_MS))
    async with Worker(client(Place.here()), [node(role)], max_workers=AT_ONCE, fanout=tables):
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_serve(sys.argv[1]))
