"""The clients of a seed: they ask for runs, ask again, ask badly, and cancel.

Responsible for: what they send, in which lane and to which partition. Must never: wait for an answer, or judge one.
Called by: `world.py`, as its agenda says.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from anabranch.bodies import dump
from anabranch.codec import Outgoing, cloud_event, encode
from anabranch.fields import LANES, Lane
from anabranch.kafka.memory.append import MemoryAppender
from anabranch.kafka.sent import Sent
from anabranch.log_events import RunCancelled
from anabranch.messages import ReplyTo, RunRequest
from anabranch.topics import partition_of
from tests.simulation.evidence import NAMESPACE, PARTITIONS
from tests.simulation.ledger import Ledger
from tests.simulation.workload import PlannedRun


class Clients:
    """See the module. `later` runs what they do next, once something is acknowledged."""

    def __init__(
        self, appender: MemoryAppender, ledger: Ledger, later: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._appender, self._ledger, self._later = appender, ledger, later

    def ask(self, run: PlannedRun, inbox: int, lane: Lane) -> None:
        request = RunRequest(
            run_id=run.run_id, agent="worker", input=run.run_id, deadline_s=run.deadline_s, reply_to=ReplyTo(inbox)
        )
        self._ledger.say(f"request {run.run_id}")
        self.send(run.run_id, dump(request), lane, run.misplaced)

    def cancel(self, run_id: str) -> None:
        """As a client does: where it stands in the lanes is known before it is said in the log."""
        self._ledger.say(f"cancel {run_id}")
        body, partition = dump(RunRequest(run_id=run_id, cancel=True)), partition_of(run_id, PARTITIONS)
        sent = [self.send(run_id, body, lane) for lane in LANES]

        async def tell() -> None:
            event = RunCancelled(run_id, None, "no longer wanted", *[(await each).offset for each in sent])
            self._appender.append(encode(event, NAMESPACE.log, partition, "client"))

        self._later(tell())

    def send(self, run_id: str, body: bytes, lane: Lane, misplaced: bool = False) -> Sent:
        """A request as it is, be it a bad one."""
        partition = (partition_of(run_id, PARTITIONS) + misplaced) % PARTITIONS
        topic = NAMESPACE.requests_of(lane)
        record: Outgoing = cloud_event(topic, "run.request", "client", run_id, body, partition=partition)
        return self._appender.append(record)
