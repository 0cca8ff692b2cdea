"""The client: submits runs, awaits their answers, watches and cancels them.

It reads one partition of `agent.responses`, its inbox, and tells its runs from others' by their ids. It holds
no state that matters: a client that dies loses only its waiting, and one that submits the same run id again
joins the run. Made by `App.client()`; the commands use it too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from anabranch import client_checks as checked
from anabranch.bodies import dump, read, read_request, refuse_incomplete
from anabranch.client_seals import STORE_S, ClientSeals, fetched, is_sealed
from anabranch.client_traces import ClientTraces
from anabranch.codec import cloud_event, encode
from anabranch.config import KafkaSettings, Settings
from anabranch.environment import load
from anabranch.errors import AnabranchError, BrokerError, InvalidRequest, RunFailed, StoreError, WireError
from anabranch.events import Answer, Event, RunEvent
from anabranch.fields import LANES, Content, Json, Lane
from anabranch.following import Ears, Following
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.seam import Appender, Broker, Place
from anabranch.kafka.sent import Acked, Sent
from anabranch.log_events import RequestNoted, RunCancelled
from anabranch.messages import ReplyTo, RunRequest, RunResponse
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.security.sealing import opened as open_sealing
from anabranch.spans import HEADER as TRACE
from anabranch.spans import Traces
from anabranch.spans import opened as open_traces
from anabranch.store import NO_STORE, Store, opened
from anabranch.topics import BODY_BYTES, Namespace, partition_of
from anabranch.view import LogView

if TYPE_CHECKING:
    from anabranch.app import App

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
BACK_S: Final = 60.0
"""How far back a watcher begins, in seconds before the submission: clocks differ."""


class Run:
    """A run that was submitted. `await run` gives its `RunResponse`."""

    def __init__(
        self, client: Client, run_id: str, answer: asyncio.Future[RunResponse], tenant: str | None = None
    ) -> None:
        self.run_id = run_id
        self._client, self._answer, self._tenant = client, answer, tenant
        self._whole: RunResponse | None = None
        self._submitted_at = time.time()

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, done={self.done})"

    def __await__(self) -> Generator[Any, None, RunResponse]:
        return self._response().__await__()

    async def _response(self) -> RunResponse:
        """The answer, with what of it is sealed or lies in the store. Raises `StoreError` if that cannot be had, and
        `Forgotten` if the tenant's key was deleted.
        """
        response = await asyncio.shield(self._answer)
        if response.content_ref is None and not is_sealed(response):
            return response
        if self._whole is None:
            self._whole = await self._client.whole(response, self._tenant)
        return self._whole

    @property
    def done(self) -> bool:
        return self._answer.done()

    async def output(self) -> str:
        """The final text. Raises `RunFailed` if the run did not complete."""
        response = await self
        if response.status != "completed":
            error = response.error
            code, message = (error.code, error.message) if error is not None else (response.status, "")
            raise RunFailed(self.run_id, response.status, code, message)
        return response.output or ""

    async def events(self) -> AsyncIterator[Event]:
        """What happens to the run, from its admission to its end, as it happens; of one that was submitted with
        `stream=True`, what its model says, too. See `anabranch.events`.
        """
        async for event in self._client.events(self.run_id, since=self._submitted_at - BACK_S):
            yield event

    async def cancel(self, reason: str = "cancelled by its client") -> None:
        await self._client.cancel(self.run_id, reason)


class Client:
    """See the module. Use it as `async with app.client() as client`."""

    def __init__(
        self,
        namespace: Namespace,
        broker: Broker,
        store: Store = NO_STORE,
        traces: Traces | None = None,
        sealing: Sealing = NO_SEALING,
    ) -> None:
        self.namespace, self._broker, self._store = namespace, broker, store
        self._seals = ClientSeals(sealing)
        self._traces = ClientTraces(traces)
        self._id = f"client-{secrets.token_hex(6)}"
        self._waiting: dict[str, list[asyncio.Future[RunResponse]]] = {}
        self._exit = AsyncExitStack()
        self._appender: Appender | None = None
        self._reading: asyncio.Task[None] | None = None
        self._partitions = 0
        self._inbox = 0

    @classmethod
    def for_app(
        cls,
        app: App | None = None,
        *,
        settings: Settings | None = None,
        bootstrap: str | None = None,
        namespace: str | None = None,
        broker: Broker | None = None,
    ) -> Client:
        """A client of the App's namespace; what is not given comes from the settings."""
        settings = settings or load()
        kafka: KafkaSettings = settings.kafka
        if bootstrap is not None:
            kafka = replace(kafka, bootstrap=bootstrap)
        name = Namespace((namespace or settings.worker.namespace or (app.namespace if app is not None else "")).lower())
        traces = open_traces(settings.telemetry, "anabranch-client", secrets.token_hex(6))
        store = opened(settings.storage, name)
        sealing = open_sealing(settings.sealing, name.name, store, app.keys if app is not None else None)
        return cls(name, broker or KafkaBroker(kafka), store, traces, sealing)

    async def __aenter__(self) -> Self:
        if self._reading is not None and not self._reading.done():
            raise AnabranchError(
                "the client is open already: make another one, or use this one inside its `async with`"
            )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self._traces.close)
            self._partitions = await self._broker.partitions(self.namespace.requests)
            answers = await self._broker.partitions(self.namespace.responses)
            # Some may have been added since the agent workers began, which then refuse a request that names one.
            self._inbox = secrets.randbelow(min(answers, self._partitions))
            self._appender = await stack.enter_async_context(self._broker.appender())
            inbox = [Place(self.namespace.responses, self._inbox)]
            reader = await stack.enter_async_context(self._broker.reader(inbox, "end"))
            self._reading = asyncio.create_task(self._read(reader), name="client inbox")
            stack.push_async_callback(self._stop_reading)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._exit.aclose()

    # --- runs ---------------------------------------------------------------------------------------------------

    async def submit(
        self,
        agent: str,
        input: Content | None = None,
        *,
        messages: list[dict[str, Json]] | None = None,
        run_id: str | None = None,
        tenant: str | None = None,
        deadline: float | str | None = None,
        max_turns: int | None = None,
        max_cost_usd: float | None = None,
        parallel_tool_calls: bool | None = None,
        metadata: Mapping[str, Json] | None = None,
        stream: bool | None = None,
        stream_thinking: bool | None = None,
        lane: Lane = "interactive",
    ) -> Run:
        """Ask for a run; returns when Kafka has the request. `deadline` is seconds, or "1h". What comes by the `bulk`
        lane gives way to what comes by the other, wherever both wait. With `stream`, `events` tells what the model
        says as it speaks, and with `stream_thinking` what it thinks.

        What is too large for a record goes into the store; where there are keys, all texts are sealed. Raises
        `InvalidRequest` for what no worker would take or is no JSON (NaN, a date), `BrokerError` if Kafka does not take
        it, `StoreError` if the store does not, `Forgotten` if the tenant's key was deleted. Whether there is such an
        agent is seen by the workers alone: a run of one that is not registered fails, with the code `unknown_agent`.
        """
        self._check_open()
        run_id = f"run-{secrets.token_hex(10)}" if run_id is None else checked.a_run(run_id)
        request = RunRequest(
            run_id=run_id,
            agent=agent,
            input=input,
            messages=messages,
            tenant=tenant,
            deadline_s=None if deadline is None else checked.seconds(deadline),
            max_turns=max_turns,
            max_cost_usd=None if max_cost_usd is None else checked.dollars(max_cost_usd),
            parallel_tool_calls=parallel_tool_calls,
            metadata=None if metadata is None else checked.an_object(metadata),
            reply_to=ReplyTo(self._inbox),
            stream=stream,
            stream_thinking=stream_thinking,
        )
        answer = self._expect(run_id)
        try:
            await self._request(request, checked.lane(lane))
        except BaseException:
            self._forget(run_id, answer)
            raise
        return Run(self, run_id, answer, tenant)

    async def cancel(self, run_id: str, reason: str = "cancelled by its client") -> None:
        """End a run. It is heard at once by an open run; one that still waits to be admitted will end when it is,
        however many requests lie between it and the cancel. Once this has returned, the id can be asked for anew, by
        either lane: that run is not meant.
        """
        self._check_open()
        checked.cancel(run_id, reason)
        await self._say(RunCancelled(run_id, None, reason))  # first: an open run ends for this reason
        request = RunRequest(run_id=run_id, cancel=True)
        said = await asyncio.gather(*(self._request(request, lane) for lane in LANES))
        behind = [None if acked.offset is None else acked.offset + 1 for acked in said]
        await self._say(RunCancelled(run_id, None, reason, *behind))

    async def _say(self, event: RunCancelled) -> None:
        await self._append(encode(event, self.namespace.log, partition_of(event.run_id, self._partitions), self._id))

    async def events(self, run_id: str, since: float | None = None) -> AsyncIterator[Event]:
        """The events of a run, up to its end; from the log's start, or from `since` in epoch seconds.

        Of a run that asked to be streamed, what its model says comes as it says it: see `anabranch.events`. Raises
        `Forbidden` if this client may not hear it.
        """
        self._check_open()
        checked.moment(since)
        place = Place(self.namespace.log, partition_of(checked.a_run(run_id), self._partitions))
        async with (
            self._broker.reader([place], "begin" if since is None else since) as reader,
            Ears.opened(reader, self._broker, self.namespace, run_id, strict=True) as ears,
        ):
            following = Following(LogView(only=run_id), ears, self._seals)
            while True:
                async for event in following.read(POLL_S):
                    if since is not None and _is_older(event):
                        async for earlier in self.events(run_id):
                            yield earlier
                        return
                    yield await self._opened(event)
                    if isinstance(event, Answer):
                        return
                self._raise_if_dead()

    async def _opened(self, event: Event) -> Event:
        """An answer with what of it is sealed, if we have the keys."""
        if isinstance(event, Answer) and event.run is not None and is_sealed(event.response):
            with suppress(StoreError):
                return replace(event, response=await self.whole(event.response, event.run.opening.request.tenant))
        return event

    # --- inside ---------------------------------------------------------------------------------------------------

    def _expect(self, run_id: str) -> asyncio.Future[RunResponse]:
        answer: asyncio.Future[RunResponse] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        self._waiting.setdefault(run_id, []).append(answer)
        return answer

    def _forget(self, run_id: str, answer: asyncio.Future[RunResponse]) -> None:
        """Only this one: others here may wait for the same run."""
        left = [other for other in self._waiting.pop(run_id, []) if other is not answer]
        self._traces.forget(run_id)
        if left:
            self._waiting[run_id] = left

    async def _request(self, request: RunRequest, lane: Lane) -> Acked:
        body, run_id = checked.written(request), request.run_id or ""
        read_back = read_request(body)  # in which a tuple is a list
        if not request.cancel:
            refuse_incomplete(read_back)
        if self._seals.is_set and not request.cancel:
            body = dump(await self._seals.request(request))
        elif self._store.takes(len(body)):
            body = await self._referring(request) or body
        partition = partition_of(run_id, self._partitions)
        topic = self.namespace.requests_of(lane)
        asks = self._traces.asks(topic)
        record = cloud_event(topic, "run.request", self._id, run_id, body, [(TRACE, asks.header)], partition)
        acked = await self._append(record)
        self._traces.asked(asks, topic, request)
        return acked

    async def _referring(self, request: RunRequest) -> bytes | None:
        """The request with what makes it large in the store; None if that cannot be had, and need not."""
        messages = request.messages
        if request.input is not None:
            messages = [{"role": "user", "content": request.input}]
        data = dump(messages)
        reference = await self._store.put_if(data, request.tenant, STORE_S, fits=len(data) <= BODY_BYTES)
        return None if reference is None else dump(replace(request, input=None, messages=None, messages_ref=reference))

    async def whole(self, response: RunResponse, tenant: str | None = None) -> RunResponse:
        """A response with what of it is sealed or lies in the store. Raises `StoreError` if that cannot be had, and
        `Forgotten` if the tenant's key was deleted.
        """
        if is_sealed(response):
            response = await self._seals.response(response, tenant)
        return await fetched(response, self._store, tenant)

    async def _append(self, record: Any) -> Acked:
        appender = self._check_open()
        try:
            return await _acked(appender.append(record))
        except AnabranchError as error:
            if isinstance(error, BrokerError):
                raise
            hint = "" if self._store.is_set else "; a store would take it (ANABRANCH_STORE)"
            raise InvalidRequest(f"the request cannot be sent: {error}{hint}") from None

    async def _read(self, reader: Any) -> None:
        ended = "the client was closed before the answer came"
        try:
            while True:
                for record in await reader.read(POLL_S):
                    self._take(record)
        except Exception as error:
            ended = f"the client no longer reads its inbox: {error!r}"
            raise
        finally:
            for futures in self._waiting.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(BrokerError(ended))

    def _take(self, record: Any) -> None:
        run_id = (record.key or b"").decode("utf-8", "replace")
        futures = self._waiting.pop(run_id, [])
        if not futures:
            return
        try:
            response = read(RunResponse, record.value)
        except WireError as error:
            log.error("the answer of run %s cannot be read: %s", run_id, error)
            self._waiting[run_id] = futures
            return
        self._traces.answered(record, run_id)
        for future in futures:
            if not future.done():
                future.set_result(response)

    def _check_open(self) -> Appender:
        if self._appender is None:
            raise AnabranchError("the client is not open: use it as `async with app.client() as client`")
        if self._reading is not None and self._reading.get_loop() is not asyncio.get_running_loop():
            raise AnabranchError("the client was opened in another event loop: use it there, or make one for each loop")
        self._raise_if_dead()
        return self._appender

    def _raise_if_dead(self) -> None:
        if self._reading is None or not self._reading.done():
            return
        if self._reading.cancelled():
            raise BrokerError("the client was closed: use it inside of its `async with`, or make another one")
        raise BrokerError(f"the client no longer reads its inbox: {self._reading.exception()!r}")

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


async def _acked(sent: Sent) -> Acked:
    """Where the appender gives up, as the client is closed, that is no cancellation of whoever waits."""
    try:
        return await sent
    except asyncio.CancelledError:
        if not sent.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise BrokerError("the client was closed before Kafka had confirmed a request: it may have it or not") from None


def _is_older(event: Event) -> bool:
    """Whether the request met a run that began before we started to look."""
    return (
        isinstance(event, RunEvent)
        and event.run is None
        and isinstance(event.event, RequestNoted)
        and event.event.code == "duplicate"
    )
