"""What taskiq's workers run: an agent task that kicks a tool task for each call and waits for their results.

Called by: `job.py`, and taskiq's own program, which imports this module by name in two workers.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.admin import NewTopic
from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_kafka import AioKafkaBroker
from taskiq_redis import RedisAsyncResultBackend

from tests.bench.peers import turns
from tests.bench.peers.place import Place

PARTITIONS: Final = 24
POLL_S: Final = 0.01
"""How often a result is asked for; taskiq's default is 0.2 s, most of which would be added to each wait."""
KEEP_S: Final = 600

_place = Place.here()


def _broker(name: str) -> AioKafkaBroker:
    results = RedisAsyncResultBackend(f"unix://{_place.redis_socket}", result_ex_time=KEEP_S)
    topic = NewTopic(f"{_place.namespace}-{name}", num_partitions=PARTITIONS, replication_factor=1)
    broker = AioKafkaBroker(_place.bootstrap, kafka_topic=topic, result_backend=results)
    broker.configure_producer(acks="all", enable_idempotence=True)
    # The strategy that it would choose by itself is kafka-python's, whose interface is no longer aiokafka's.
    broker.configure_consumer(
        group_id=f"{_place.namespace}-{name}",
        auto_offset_reset="earliest",
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )
    return broker


agents, tools = _broker("agents"), _broker("tools")
"""A broker each, so that tool workers scale on their own, and waiting agents do not take the tools' places."""

look_up = tools.task(task_name="look_up")(turns.look_up)


@agents.on_event(TaskiqEvents.WORKER_STARTUP)
async def _open(state: TaskiqState) -> None:
    state.model = turns.client()
    await tools.startup()


@agents.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def _close(state: TaskiqState) -> None:
    await tools.shutdown()
    await state.model.close()


@agents.task(task_name="run")
async def run(tool_ms: int) -> str:
    """The agent: it stays in the worker's memory until the model has answered."""
    messages = turns.first(tool_ms)
    while calls := turns.calls_of(content := await turns.think(agents.state.model, messages)):
        tasks = await asyncio.gather(*(look_up.kiq(**call["input"]) for call in calls))
        done = await asyncio.gather(*(task.wait_result(check_interval=POLL_S, timeout=60) for task in tasks))
        messages = turns.with_results(messages, content, [each.return_value for each in done])
    return turns.text_of(content)
