"""Two agent workers that were given different keys to sign with, on a real Kafka.

Responsible for: nothing is paid for twice and nothing stands still, and the worker that came last says why it ends.
Must never: say what a signature is (tests/unit/test_signing.py). Called by: pytest.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import replace

import pytest
from tests.support.fleet import ANSWER_S, by_turn, fleet, settings_for
from tests.support.wait import until

from anabranch import App
from anabranch.agent_role import serve_agent
from anabranch.config import Settings, SigningSettings
from anabranch.errors import ConfigError
from anabranch.runtime import Shutdown
from anabranch.testing import tool_use

RUNS = 12


def signing(settings: Settings, key: bytes) -> Settings:
    return replace(settings, signing=SigningSettings(keys=f"k:{b64encode(key * 32).decode()}", mode="require"))


async def test_a_worker_with_another_key_ends_and_no_run_is_paid_for_twice(kafka: str, namespace: str) -> None:
    app, is_ended = App("shop"), asyncio.Event()
    app.agent("a", model="scripted", system="s", tools=["slow"])

    @app.tool(queue="q")
    async def slow() -> str:
        """Wait."""
        await is_ended.wait()
        return "ok"

    settings = signing(settings_for(kafka, namespace), b"1")
    async with fleet(app, by_turn(tool_use("slow", {}), "done"), settings) as running:
        asking = asyncio.create_task(running.ask_all("a", [str(n) for n in range(RUNS)]))
        try:
            await until(lambda: len(running.model.requests) == RUNS, ANSWER_S, "all runs are under way")
            with pytest.raises(ExceptionGroup) as ended:
                async with asyncio.timeout(ANSWER_S):
                    await serve_agent(app, signing(running.settings, b"2"), Shutdown())
        finally:
            is_ended.set()
        assert ended.group_contains(ConfigError, match="give all agent workers the same keys")
        assert {answer.status for answer in await asking} == {"completed"}
        assert len(running.model.requests) == 2 * RUNS
