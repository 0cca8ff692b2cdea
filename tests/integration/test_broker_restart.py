"""Kafka itself restarts under load: nothing that was acknowledged is lost, and nobody has to be restarted with it.

Responsible for: workers and clients that outlive their broker. Must never: run on a Kafka that is not ours to break.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.support.apps.adding import app, check, inputs, script
from tests.support.fleet import ANSWER_S, fleet, settings_for
from tests.support.kafka import Broker
from tests.support.wait import until

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_broker_that_restarts_under_load_costs_nobody_a_run(broker: Broker, namespace: str, how: str) -> None:
    async with fleet(app, script, settings_for(broker.bootstrap, namespace)) as running:
        loading = asyncio.create_task(running.ask_all("adder", inputs(60), within_s=120))
        await until(lambda: running.model.calls > 20, ANSWER_S, "the load is on")
        await asyncio.to_thread(broker.stop if how == "stop" else broker.kill)
        await asyncio.to_thread(broker.start)
        check(await loading)
        check(await running.ask_all("adder", inputs(10)))
