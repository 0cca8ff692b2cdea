"""Reads the log of a namespace for the commands: one run, or all of them.

Responsible for: where a run lies, reading up to the end or as events come, and folding what is read. It never
appends. Called by `run` and `runs`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anabranch.agent.state import Run
from anabranch.cli.picture.attempts import Attempts, Made
from anabranch.cli.reading import POLL_S, whole
from anabranch.client_seals import ClientSeals
from anabranch.codec import header
from anabranch.errors import AnabranchError
from anabranch.events import Event, RunEvent
from anabranch.fields import LANES
from anabranch.following import Ears, Following
from anabranch.kafka.seam import Broker, Place, Reader, Start
from anabranch.log_events import RequestNoted
from anabranch.security.signing import NO_SIGNER, Signer
from anabranch.spoken import Block
from anabranch.topics import Namespace, partition_of
from anabranch.view import LogView


class RunLog:
    """The events of one run, folded as they are read. `last_at` is the time of the newest one, `attempts` are those of
    its model calls.
    """

    def __init__(
        self,
        run_id: str,
        place: Place,
        reader: Reader,
        signer: Signer = NO_SIGNER,
        ears: Ears | None = None,
        seals: ClientSeals | None = None,
    ) -> None:
        self.run_id, self.place, self.last_at = run_id, place, 0.0
        self.view, self.attempts = LogView(run_id, signer), Attempts()
        self._reader = reader
        self._following = Following(self.view, ears, seals or ClientSeals()) if ears is not None else None

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        broker: Broker,
        namespace: Namespace,
        run_id: str,
        start: Start,
        signer: Signer = NO_SIGNER,
        seals: ClientSeals | None = None,
    ) -> AsyncIterator[RunLog]:
        """Of `run_id`, from `start` on, without the events that `signer` refuses; what is heard is opened with `seals`.
        Raises `BrokerError`.
        """
        place = Place(namespace.log, partition_of(run_id, await broker.partitions(namespace.log)))
        async with (
            broker.reader([place], start) as reader,
            Ears.opened(reader, broker, namespace, run_id) as ears,
        ):
            yield cls(run_id, place, reader, signer, ears, seals)

    @property
    def run(self) -> Run | None:
        """The run as far as it is read; its last life, if it had several."""
        return self.view.state.runs.get(self.run_id)

    @property
    def made(self) -> list[Made]:
        """The attempts of the run's model calls."""
        return [] if self.run is None else self.attempts.of(self.run)

    @property
    def note(self) -> RequestNoted | None:
        """Why the request was rejected, if the last one was."""
        notes = [note for note in self.view.state.notes.values() if note.run_id == self.run_id]
        return notes[-1] if notes else None

    async def read(self, timeout_s: float = POLL_S) -> AsyncIterator[RunEvent]:
        """Each of the next events, or none after `timeout_s`; meanwhile `run` is as that event left it."""
        for record in await self._reader.read(timeout_s):
            for event in self.view.take([record]):
                self._note(event)
                yield event

    def listen(self) -> None:
        """From here on `hear` tells what the model says, too, if the run asked to be streamed."""
        if self._following is not None and self.run is not None:
            self._following.join(self.run)

    async def hear(self, timeout_s: float = POLL_S) -> AsyncIterator[Event]:
        """As `read`, with what is said of a turn while the model speaks."""
        if self._following is None:
            async for seen in self.read(timeout_s):
                yield seen
            return
        async for event in self._following.read(timeout_s):
            if isinstance(event, RunEvent):
                self._note(event)
            yield event

    def _note(self, event: RunEvent) -> None:
        self.last_at = max(self.last_at, event.at)
        self.attempts.take(event.event, event.run)

    @property
    def saying(self) -> Sequence[Block]:
        """What the model has said so far of the turn that it speaks now, by the blocks of its reply."""
        blocks = self._following.spoken.blocks if self._following is not None else {}
        return [blocks[index] for index in sorted(blocks)]

    async def to_end(self) -> AsyncIterator[RunEvent]:
        """Each event up to where the log ends now; meanwhile `run` is as that event left it."""
        end = (await self._reader.ends())[self.place]
        while self._reader.position(self.place) < end:
            async for event in self.read():
                yield event

    async def catch_up(self) -> Run | None:
        """Read to the end; returns the run."""
        async for _ in self.to_end():
            pass
        return self.run


async def is_waiting(broker: Broker, namespace: Namespace, log: RunLog) -> bool:
    """Whether a request for the run lies in either lane and nobody has taken it yet."""
    taken = {
        Place(namespace.requests_of(lane), log.place.partition): log.view.state.nexts.of(lane) or 0 for lane in LANES
    }
    async with broker.reader(list(taken), "begin") as reader:
        ends = await reader.ends()
        while any(reader.position(place) < end for place, end in ends.items()):
            for record in await reader.read(POLL_S):
                named = header(record.headers, "ce_runid") or (record.key or b"").decode("utf-8", "replace")
                if record.offset >= taken[Place(record.topic, record.partition)] and named == log.run_id:
                    return True
    return False


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in a list; times are epoch seconds, `ended_at` is None while it runs."""

    run_id: str
    agent: str
    status: str
    opened_at: float
    ended_at: float | None
    turns: int
    calls: int
    failed_calls: int
    input_tokens: int
    output_tokens: int
    tenant: str | None


def summary_of(run: Run, status: str) -> Summary:
    request, used = run.opening.request, run.usage
    calls = [call for turn in run.turns for call in turn.calls.values()]
    return Summary(
        run.run_id,
        request.agent or "",
        status,
        run.opened_at,
        run.ending.at if run.ending is not None else None,
        len(run.turns),
        len(calls),
        sum(call.failed for call in calls),
        used.prompt_tokens,
        used.output_tokens,
        request.tenant,
    )


async def fold_all(broker: Broker, namespace: Namespace, signer: Signer = NO_SIGNER) -> AsyncIterator[Run]:
    """Every run of the log: those that have ended as they do, and are forgotten; then those that are open."""
    views = defaultdict[int, LogView](lambda: LogView(signer=signer))
    async for record in whole(broker, namespace.log):
        view = views[record.partition]
        for event in view.take([record]):
            if event.run is not None and not event.run.open:
                yield view.state.runs.pop(event.run.run_id)
    for view in views.values():
        for run in view.state.runs.values():
            yield run


def not_found(namespace: Namespace, log: RunLog) -> AnabranchError:
    """What is said of a run that the log does not have."""
    note = log.note
    if note is not None:
        why = f"{note.error.code}: {note.error.message}" if note.error is not None else note.code
        return AnabranchError(f"the request for run {log.run_id!r} was not admitted: {why}")
    return AnabranchError(
        f"there is no run {log.run_id!r} in namespace {namespace.name} (the log goes back 7 days, unless its "
        "retention was changed): `anabranch runs list` shows those that there are"
    )
