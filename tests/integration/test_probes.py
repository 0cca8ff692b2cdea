"""The port of a worker over real HTTP: probes that look at the loop from outside, bounds, errors that say what to do.

Responsible for: `probes.py` and `watch.py`, with roles that play their part. Must never: need a
broker. Called by: pytest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.support.process import free_ports
from tests.support.scrape import ask, scrape, status
from tests.support.wait import until

from anabranch import probes
from anabranch.config import WorkerSettings
from anabranch.errors import ConfigError
from anabranch.health import Process
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.seam import Place
from anabranch.watch import Watch


class Role:
    """A worker that is as it is told to be."""

    def __init__(self) -> None:
        self.meters = RoleMeters("tool", "io")
        self.is_settled, self.unready = True, ""
        self.positions: dict[Place, int] = {}
        self.samples, self.defect = 0, False

    def sample(self) -> None:
        self.samples += 1
        if self.defect:
            raise ZeroDivisionError("of ours")


@asynccontextmanager
async def watched(**settings: Any) -> AsyncIterator[tuple[int, Role, Watch]]:
    (port,) = free_ports(1)
    watch, role = Watch(WorkerSettings(http_port=port, **settings)), Role()
    async with watch.opened():
        watch.take(role.meters, role)
        yield port, role, watch


async def test_a_blocked_loop_is_dead_and_still_measured() -> None:
    found: dict[str, tuple[int, str]] = {}
    async with watched(stalled_s=0.5) as (port, _, _):
        await until(lambda: status_is(port, "/readyz", 200), what="it is ready")
        assert await status(port, "/livez") == 200

        def look() -> None:
            time.sleep(0.8)  # into the block below
            found.update({path: ask(port, path) for path in ("/livez", "/readyz", "/startupz", "/metrics")})

        looking = threading.Thread(target=look)
        looking.start()
        time.sleep(1.5)  # noqa: ASYNC251 - it is what the test is about
        assert not looking.is_alive(), "it was answered while the loop stood still"
        assert {path: code for path, (code, _) in found.items()} == {
            "/livez": 503, "/readyz": 503, "/startupz": 200, "/metrics": 200,
        }  # fmt: skip
        assert "stood still for" in found["/livez"][1]
        await until(lambda: status_is(port, "/livez", 200), what="it lives again")
        lag = await scrape(port)
        labels = {"role": "tool", "queue": "io"}
        assert lag("anabranch_event_loop_lag_seconds_sum", **labels) > 1.0


async def status_is(port: int, path: str, wanted: int) -> bool:
    return await status(port, path) == wanted


async def test_it_follows_a_role_from_its_start_to_its_drain() -> None:
    (port,) = free_ports(1)
    watch, role = Watch(WorkerSettings(http_port=port)), Role()
    role.is_settled, role.unready = False, "it waits for its partitions"
    async with watch.opened():
        assert (await status(port, "/startupz"), await status(port, "/livez")) == (503, 200)
        health = watch.take(role.meters, role)
        await until(lambda: health.unready == role.unready, what="it was looked at")
        assert await asyncio.to_thread(ask, port, "/readyz") == (503, "tool io: it waits for its partitions\n")
        assert await status(port, "/startupz") == 503
        role.is_settled, role.unready = True, "1 of its 2 partitions are still read"
        await until(lambda: status_is(port, "/startupz", 200), what="it has started")
        assert await status(port, "/readyz") == 503
        role.unready = ""
        await until(lambda: status_is(port, "/readyz", 200), what="it is ready")
        health.drain()
        assert await status(port, "/readyz") == 503
        assert await status(port, "/livez") == 200
    assert await status(port, "/livez") == 0, "the port is free again"


async def test_other_paths_and_methods_are_refused() -> None:
    async with watched() as (port, _, _):
        code, text = await asyncio.to_thread(ask, port, "/")
        assert (code, "/metrics" in text) == (404, True)
        assert (await asyncio.to_thread(ask, port, "/metrics", "POST"))[0] == 405


async def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    async with watched() as (port, _, _):
        with pytest.raises(ConfigError, match=rf"port {port} of all addresses.*: Address already in use.*HTTP_PORT"):
            async with Watch(WorkerSettings(http_port=port)).opened():
                raise AssertionError("it was opened")


async def test_an_address_that_is_not_ours_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"port \d+ of 192\.0\.2\.1 for health and metrics.*ANABRANCH_HTTP_HOST"):
        async with watched(http_host="192.0.2.1"):
            raise AssertionError("it was opened")


async def test_it_listens_everywhere_unless_it_is_told_where() -> None:
    async with watched() as (port, _, _):
        families = [socket.AF_INET, *([socket.AF_INET6] if socket.has_dualstack_ipv6() else [])]
        for family, host in zip(families, ("127.0.0.1", "::1"), strict=False):
            with socket.socket(family) as probe:
                assert probe.connect_ex((host, port)) == 0, host
    async with watched(http_host="127.0.0.1") as (port, _, _):
        with socket.socket() as elsewhere:
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0
        assert await status(port, "/livez") == 200


async def test_who_says_nothing_takes_no_more_than_some_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "THREADS", 3)
    async with watched() as (port, _, _):
        before = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        try:
            await until(lambda: threading.active_count() >= before + 3, what="some are listened to")
            assert await status(port, "/livez") == 0
            assert threading.active_count() <= before + 4, "the one that asked counts too"
        finally:
            for each in silent:
                each.close()
        await until(lambda: status_is(port, "/livez", 200), what="it answers again")


async def test_who_says_a_little_again_and_again_takes_its_thread_for_no_longer_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "THREADS", 1)
    monkeypatch.setattr(probes, "WHOLE_S", 0.5)
    async with watched() as (port, _, _):
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.setblocking(False)
            slow.send(b"GET /livez HTTP/1.1\r\nX: ")

            async def has_turn() -> bool:
                with suppress(OSError):
                    slow.send(b"x")
                return await status(port, "/livez") == 200

            await until(has_turn, what="the next one to be answered")


async def test_who_does_not_listen_to_the_answer_is_no_news(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probes._Handler, "timeout", 0.1)

    def metrics(_: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 50_000_000]

    async with probes.serving("127.0.0.1", 0, Process(60.0, time.monotonic()), metrics) as port:
        before = threading.active_count()
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert deaf.recv(1)
            await until(lambda: threading.active_count() == before, what="it to be left")
    assert capfd.readouterr().err == ""


async def test_a_role_that_cannot_be_measured_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with watched() as (port, role, _):
        role.defect = True
        await until(lambda: role.samples == 1, what="it was sampled")
        await until(lambda: status_is(port, "/readyz", 200), what="it is ready")
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "tool io cannot be measured any more; it goes on without"
    ]


async def test_without_a_port_nothing_is_opened_or_sampled() -> None:
    watch, role = Watch(WorkerSettings()), Role()
    threads = threading.active_count()
    async with watch.opened():
        watch.take(role.meters, role)
        assert threading.active_count() == threads
        await watch.follow_lag(role.meters, role, lambda places: pytest.fail("it asked Kafka"))
    assert role.samples == 0
