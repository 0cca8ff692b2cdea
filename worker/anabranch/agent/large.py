"""What an agent worker keeps in the store or seals, and gets from there: replies, answers, what a run refers to.

The fold knows references and seals only; they are resolved here, when a model call is about to be made, and what was
fetched is in memory only as long as one attempt of it. Nothing here decides anything about a run: what cannot be had
becomes `Hopeless`, as when the model cannot be had.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from anabranch import references
from anabranch.agent import answer
from anabranch.agent.model.seam import Hopeless
from anabranch.agent.reply.content import Found, content_of
from anabranch.agent.reply.referring import Input, content_ref_of, content_sealed_of, referring, sealed_reply
from anabranch.agent.reply.reply import Reply, RequestedCall
from anabranch.agent.results import result_elsewhere
from anabranch.agent.state import Run
from anabranch.errors import Forgotten, InvalidRequest, StoreError
from anabranch.in_hand import InHand
from anabranch.security.sealing import NO_SEALING, Fields, Sealing, size_of
from anabranch.store import Store
from anabranch.topics import BODY_BYTES
from anabranch.values import frozen

if TYPE_CHECKING:
    from anabranch.security.seals import Sealer, What

log = logging.getLogger(__name__)

HEADER_BYTES: Final = 200_000
"""What a plan may take in a record's header: more is a reply that nobody can run."""
REPLY_BYTES: Final = BODY_BYTES - HEADER_BYTES
"""What a reply may take in a record, beside the plan of its calls."""
ANSWER_S: Final = 30.0
"""How long an answer is tried; its owner tries again, for as long as it owns the run."""


@frozen()
class Incomplete:
    """A model call that is not all in the log: its body is made of what `references` name and `sealed` holds."""

    tenant: str | None
    references: tuple[str, ...]
    run_id: str = ""
    sealed: Fields = ()

    @property
    def size(self) -> int:
        """The bytes that it stands for, about."""
        return sum(map(references.size_of, self.references)) + sum(size_of(sealed) for _, sealed in self.sealed)


class Completed(NamedTuple):
    """What a model call is made of beside the log, and what seals what the model says to it, if its run is sealed."""

    found: Found
    sealer: Sealer | None


def needed(run: Run, left_out: int = 0) -> tuple[str, ...]:
    """What has to be fetched for the next model call of `run`, each once; of the first turns no results."""
    named = [run.opening.request.messages_ref]
    for number, turn in enumerate(run.turns):
        named.append(content_ref_of(turn.body))
        for call in turn.calls.values() if number >= left_out else ():
            if (result := call.result) is not None and result.body is not None:
                told = result_elsewhere(result.body)
                named.append(told.content_ref if told is not None else None)
    return tuple(dict.fromkeys(name for name in named if name is not None)) if any(named) else ()


def sealed_in(run: Run, left_out: int = 0) -> Fields:
    """What has to be opened for the next model call of `run`, if it is sealed; of the first turns no results."""
    if (messages := run.opening.request.messages_sealed) is None:
        return ()
    found: list[tuple[What, str]] = [("messages", messages)]
    for number, turn in enumerate(run.turns):
        if (content := content_sealed_of(turn.body)) is not None:
            found.append(("reply", content))
        for call in turn.calls.values():
            result = call.result
            if result is not None and result.body is not None:
                told = result_elsewhere(result.body) if number >= left_out else None
                found += [("result", told.content_sealed)] if told is not None and told.content_sealed else []
            elif call.planned.rejected_sealed is not None:
                found.append(("rejected", call.planned.rejected_sealed))
    return tuple(found)


class Large:
    """The store and the keys, as model calls use them. `now` is epoch seconds."""

    def __init__(self, store: Store, now: Callable[[], float], sealing: Sealing = NO_SEALING) -> None:
        self._store, self._now, self._sealing = store, now, sealing
        self._in_hand = InHand()

    @asynccontextmanager
    async def completed(self, incomplete: Incomplete, deadline: float) -> AsyncIterator[Completed]:
        """What the model call is made of, while inside. Raises `Hopeless` if it cannot be had by the deadline, or if
        the body that is made of it inside cannot be one.
        """
        try:
            for reference in incomplete.references:
                self._store.refuse(reference)
            for _, sealed in incomplete.sealed:
                self._sealing.refuse(sealed)
            async with self._in_hand.hold(incomplete.size):
                within_s = deadline - self._now()
                found = await self._store.get_all(incomplete.references, incomplete.tenant, within_s)
                sealer = None
                if incomplete.sealed:
                    tenant, run_id = incomplete.tenant, incomplete.run_id
                    sealer = await self._sealing.sealer(tenant, run_id, within_s)
                    found |= await self._sealing.open_all(incomplete.sealed, tenant, run_id, within_s)
                yield Completed(found, sealer)
        except InvalidRequest as error:
            raise Hopeless(error.code, str(error)) from None
        except Forgotten as error:
            raise Hopeless("forgotten", str(error)) from None
        except StoreError as error:
            what = f"the model call cannot be made: {error}"
            log.error("a run fails: %s", what)
            raise Hopeless("internal", what) from None

    async def body_of(self, reply: Reply, tenant: str | None, deadline: float, sealer: Sealer | None = None) -> bytes:
        """What the log says of a reply: all of it, or where it lies; sealed, if there is a `sealer`. Raises `Hopeless`
        if it cannot be kept.
        """
        if sealer is not None:
            return await self._sealed(reply, sealer, tenant, deadline - self._now())
        if not self._store.takes(len(reply.body)):
            return reply.body
        within_s, fits = deadline - self._now(), len(reply.body) <= REPLY_BYTES
        try:
            reference = await self._store.put_if(content_of(reply.body), tenant, within_s, fits)
            if reference is None:
                return reply.body
            return referring(reply.body, reference, await self._inputs(reply.calls, tenant, within_s))
        except StoreError as error:
            raise Hopeless("internal", f"the reply cannot be kept: {error}", reply.usage) from None

    async def _sealed(self, reply: Reply, sealer: Sealer, tenant: str | None, within_s: float) -> bytes:
        seal = partial(self._sealing.seal, sealer, tenant=tenant, within_s=within_s)
        try:
            content = await seal("reply", content_of(reply.body))
            inputs, room = {}, REPLY_BYTES // 2
            for call in reply.calls:
                data = json.dumps(call.input, separators=(",", ":")).encode()
                inputs[call.tool_use_id] = sealed = await seal("input", data, inline_bytes=room)
                room -= len(sealed)
            return sealed_reply(reply.body, content, inputs)
        except StoreError as error:
            raise Hopeless("internal", f"the reply cannot be kept: {error}", reply.usage) from None

    async def _inputs(self, calls: Sequence[RequestedCall], tenant: str | None, within_s: float) -> dict[str, Input]:
        """Those that fit into the log together stand there; the others go into the store, each by itself."""
        inputs: dict[str, Input] = {}
        room = self._store.inline_bytes
        for call in calls:
            data = json.dumps(call.input, separators=(",", ":")).encode()
            inline = len(data) <= room
            room -= len(data) if inline else 0
            inputs[call.tool_use_id] = call.input if inline else await self._store.put(data, tenant, within_s)
        return inputs


async def large_answer(store: Store, run: Run) -> bytes:
    """The answer of a run whose last words are too large for it, or lie in pieces. Raises `StoreError`."""
    tenant, last = run.opening.request.tenant, answer.last_words(run)
    named = dict.fromkeys(name for turn in last if (name := content_ref_of(turn.body)) is not None)
    found = await store.get_all(named, tenant, ANSWER_S)
    lists = [content_of(turn.body, found) for turn in last]
    joined = b"[" + b",".join(part[1:-1] for part in lists if len(part) > 2) + b"]"
    inline = answer.answer(run)
    fits = not named and len(inline) <= BODY_BYTES
    reference = await store.put_if(joined, tenant, ANSWER_S, fits)
    return inline if reference is None else answer.referring_answer(run, reference)


def is_for_the_store(store: Store, run: Run) -> bool:
    """Whether the answer has to be put into the store. What is sealed is there by now, as far as it is large."""
    if run.opening.request.messages_sealed is not None:
        return False
    last = answer.last_words(run)
    if len(last) > 1 and any(content_ref_of(turn.body) for turn in last):
        return True  # in pieces: the fold alone does not tell it
    return store.takes(run.size) and store.takes(len(answer.answer(run)))
