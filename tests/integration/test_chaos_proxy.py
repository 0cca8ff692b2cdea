"""The chaos's proxy: what it lets through when it is mute, and what becomes of the rest.

Responsible for: `tests.chaos.proxy`, between two ends of ours. Must never: need a broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.chaos.proxy import Proxy
from tests.support.process import free_ports
from tests.support.wait import until

FETCH, PRODUCE = b"\0\0\0\6\0\1fetch", b"\0\0\0\6\0\0write"


@dataclass
class Broker:
    """What has arrived."""

    heard: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            self.heard += data
        writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Broker, Proxy]]:
    door, port = free_ports(2)
    broker, proxy = Broker(), Proxy(door, port)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", port)
    await proxy.start()
    try:
        yield broker, proxy
    finally:
        await proxy.close()
        server.close()


async def connection(proxy: Proxy) -> asyncio.StreamWriter:
    return (await asyncio.open_connection("127.0.0.1", proxy.port))[1]


async def test_what_writes_records_does_not_pass_a_mute_proxy_and_all_else_does() -> None:
    async with proxied() as (broker, proxy):
        producer, consumer = await connection(proxy), await connection(proxy)
        proxy.set("mute")
        producer.write(PRODUCE)
        consumer.write(FETCH)
        await until(lambda: broker.heard == FETCH, what="the fetch arrives")
        proxy.set("pass")
        await until(lambda: broker.heard == FETCH + PRODUCE, what="the write arrives too")
        producer.close()
        consumer.close()


async def test_what_was_held_back_is_lost_when_its_sender_has_died() -> None:
    async with proxied() as (broker, proxy):
        producer = await connection(proxy)
        proxy.set("mute")
        producer.write(FETCH)
        await until(lambda: broker.heard == FETCH, what="it is connected")
        producer.write(PRODUCE)
        proxy.mend()
        consumer = await connection(proxy)
        consumer.write(FETCH)
        await until(lambda: broker.heard.count(FETCH) == 2, what="the next one arrives")
        assert PRODUCE not in broker.heard
        producer.close()
        consumer.close()
