"""What Celery's workers run: a turn is a task, and the calls of a turn are a chord whose body is the next turn.

Called by: `job.py`, and Celery's own program, which imports this module by name in two workers.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from anthropic import Anthropic
from celery import Celery, chord
from celery.signals import worker_ready

from tests.bench import workload
from tests.bench.peers import turns
from tests.bench.peers.place import Place

AGENTS: Final = "agents"
TOOLS: Final = "tools"
KEEP_S: Final = 600

_redis = f"redis+socket://{Place.here().redis_socket}"

app = Celery("peers", broker=_redis, backend=_redis)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    result_expires=KEEP_S,
    task_default_queue=AGENTS,
    task_routes={"look_up": TOOLS},
    broker_connection_retry_on_startup=True,
)

_model = Anthropic(max_retries=0)


@app.task(name="look_up")
def look_up(wait_ms: int, note: str) -> str:
    """Finds something after a while."""
    if wait_ms:
        time.sleep(wait_ms / 1000)
    return workload.RESULT


def _turn(task: Any, messages: list[turns.Json]) -> str:
    """One turn of the agent; the chord that it asks for takes the place of `task`."""
    reply = _model.messages.create(**turns.request(messages))
    content = [block.to_dict() for block in reply.content]
    calls = turns.calls_of(content)
    if not calls:
        return turns.text_of(content)
    batch = [look_up.s(**call["input"]) for call in calls]
    return str(task.replace(chord(batch, go_on.s(messages, content))))


@app.task(name="turn", bind=True)
def turn(self: Any, messages: list[turns.Json]) -> str:
    """The first turn."""
    return _turn(self, messages)


@app.task(name="go_on", bind=True)
def go_on(self: Any, results: list[str], messages: list[turns.Json], content: list[turns.Json]) -> str:
    """The turn after a batch."""
    return _turn(self, turns.with_results(messages, content, results))


@worker_ready.connect
def _say(**_: Any) -> None:
    sys.stdout.write("serving\n")
    sys.stdout.flush()
