"""Workers that do not agree where a limit has its homes, as in a deploy that renames it: calls go to and fro.

Responsible for: how often they do. Must never: run a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from tests.support.bench import NAMESPACE, Group, Results, ToolBench, call
from tests.support.builders import Read
from tests.support.executing import call as to_a_tool
from tests.support.virtual import now, virtually

from anabranch import App, Limit
from anabranch.codec import Outgoing
from anabranch.homes import homes
from anabranch.kafka.seam import Committed, Place
from anabranch.kafka.sent import Sent
from anabranch.messages import ToolCall
from anabranch.tools import strays

PARTITIONS = 8
QUEUE = NAMESPACE.calls("q")
HOP_S = 0.01


class Topic(Results):
    """Takes calls to whoever has their partition."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, ToolBench] = {}
        self.hops = list[float]()

    def append(self, record: Outgoing, once: bool = False) -> Sent:
        if record.topic == QUEUE and record.partition is not None:
            self.hops.append(now())
            read = Read(QUEUE, record.partition, len(self.hops), 0, record.key, record.value, record.headers)
            asyncio.get_running_loop().call_later(HOP_S, self.deliver, read)
        return super().append(record, once)

    def deliver(self, read: Read) -> None:
        self.owners[read.partition].deliver(read)


def owner(limit: Limit, partition: int, topic: Topic) -> ToolBench:
    """A worker that knows the limit by this name, and has this partition."""
    app, group = App("t"), Group()

    @app.tool(queue="q", limit=limit)
    async def ask() -> str:
        """Ask."""
        return "asked"

    group.stands = {Place(QUEUE, partition): Committed(0, "")}
    topic.owners[partition] = bench = ToolBench(app, group, sent=topic, partitions=PARTITIONS)
    return bench


def test_a_call_goes_to_and_fro_only_so_often_while_a_deploy_renames_its_limit() -> None:
    before, after = Limit("before", "5/s"), Limit("after", "5/s")
    old, new = (homes(limit.spec("q"), None, PARTITIONS)[0] for limit in (before, after))
    assert old != new, "choose another name for the limit"

    async def deploy() -> tuple[Sequence[float], list[str]]:
        topic = Topic()
        one, other = owner(before, new, topic), owner(after, old, topic)  # each has what is the other's home
        async with one.running(), other.running():
            await one.assign(Place(QUEUE, new))
            await other.assign(Place(QUEUE, old))
            one.deliver(call(0, "ask", partition=new))
            await asyncio.sleep(60)
            async with owner(after, new, topic).running() as third:  # the deploy is over
                await third.assign(Place(QUEUE, new))
                await asyncio.sleep(2 * strays.LONGEST_S)
        return topic.hops, topic.returned

    hops, returned = virtually(deploy)
    assert len(hops) < 30
    assert hops[2] - hops[0] >= strays.FIRST_S
    assert max(later - sooner for sooner, later in pairwise(hops)) <= strays.LONGEST_S + 1
    assert len(returned) == 1


def numbered(number: int) -> ToolCall:
    return replace(to_a_tool(), call_id=f"r/1.a/{number}")


async def test_a_call_that_comes_for_the_first_time_waits_for_nothing() -> None:
    made = strays.Strays()
    async with asyncio.timeout(0.5):
        for offset in range(100):
            await made.comes(numbered(offset))


def test_no_more_calls_are_remembered_than_there_is_room_for() -> None:
    async def come() -> int:
        made = strays.Strays()
        for offset in range(strays.REMEMBERED + 1):
            await made.comes(numbered(offset))
        begun = now()
        await made.comes(numbered(0))  # is forgotten
        await made.comes(numbered(strays.REMEMBERED))
        return round(now() - begun)

    assert virtually(come) == strays.FIRST_S
