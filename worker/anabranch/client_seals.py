"""What a client seals of what it asks for, and opens or fetches of what it gets.

Responsible for: which fields of requests, answers and streams are sealed, and what of an answer lies in the store. Must
never: leave a text beside its seal.
Called by: `client.py`, and the commands that show an answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from anabranch.agent.answer import words_of
from anabranch.agent.reply.referring import content_sealed_of
from anabranch.bodies import dump, read
from anabranch.errors import StoreError, WireError
from anabranch.fields import Json
from anabranch.messages import RunError, RunRequest, RunResponse, StreamDelta
from anabranch.security.sealing import NO_SEALING, Sealing
from anabranch.store import Store

STORE_S: Final = 30.0
"""How long keys and store are tried for a request or an answer."""


def is_sealed(response: RunResponse) -> bool:
    """Whether something in it is."""
    told_of_error = response.error is not None and response.error.message_sealed is not None
    return told_of_error or response.content_sealed is not None or response.metadata_sealed is not None


async def fetched(response: RunResponse, store: Store, tenant: str | None, within_s: float = STORE_S) -> RunResponse:
    """A response with what of it lies in the store. Raises `StoreError`."""
    if response.content_ref is None:
        return response
    data = await store.get(response.content_ref, tenant, within_s)
    try:
        output, content = words_of(read(list[dict[str, Json]], data), response.status == "completed")
    except WireError as error:
        raise StoreError(f"{response.content_ref} is no list of content blocks: {error}") from None
    return replace(response, output=output, content=content)


class ClientSeals:
    """See the module. Keys and store are tried for `within_s` each time."""

    def __init__(self, sealing: Sealing = NO_SEALING, within_s: float = STORE_S) -> None:
        self._sealing, self._within_s = sealing, within_s

    @property
    def is_set(self) -> bool:
        """Whether requests are sealed."""
        return self._sealing.is_set

    async def request(self, request: RunRequest) -> RunRequest:
        """With its texts sealed; they may be large, and are in the store then. Raises `StoreError`: `Forgotten`."""
        tenant, messages = request.tenant, request.messages
        sealer = await self._sealing.sealer(tenant, request.run_id or "", self._within_s)
        if request.metadata is not None:
            request = replace(request, metadata=None, metadata_sealed=sealer.seal("metadata", dump(request.metadata)))
        if request.input is not None:
            messages = [{"role": "user", "content": request.input}]
        sealed = await self._sealing.seal(sealer, "messages", dump(messages), tenant, self._within_s)
        return replace(request, input=None, messages=None, messages_sealed=sealed)

    async def response(self, response: RunResponse, tenant: str | None) -> RunResponse:
        """With all that is sealed opened. Raises `StoreError`: `Forgotten`."""
        run_id, error = response.run_id, response.error
        if response.metadata_sealed is not None:
            metadata = await self._read("metadata", response.metadata_sealed, tenant, run_id)
            response = replace(response, metadata=metadata, metadata_sealed=None)
        if error is not None and error.message_sealed is not None:
            message = await self._read("error", error.message_sealed, tenant, run_id)
            response = replace(response, error=RunError(error.code, message))
        if response.content_sealed is None:
            return response
        blocks: list[dict[str, Json]] = []
        for part in response.content_sealed:
            blocks += await self._read("reply", part, tenant, run_id)
        output, content = words_of(blocks, response.status == "completed")
        return replace(response, output=output, content=content, content_sealed=None)

    async def delta(self, delta: StreamDelta, tenant: str | None) -> StreamDelta:
        """A piece of the stream, opened. Raises `StoreError`: `Forgotten`."""
        if delta.text_sealed is not None:
            text = await self._read("stream", delta.text_sealed, tenant, delta.run_id)
            return replace(delta, text=str(text), text_sealed=None)
        if delta.input_sealed is not None:
            given = await self._read("stream", delta.input_sealed, tenant, delta.run_id)
            return replace(delta, input=given, input_sealed=None)
        return delta

    async def blocks(self, body: bytes, tenant: str | None, run_id: str) -> list[dict[str, Json]] | None:
        """The content of a sealed reply; None of another one. Raises `StoreError`: `Forgotten`."""
        if (sealed := content_sealed_of(body)) is None:
            return None
        found: list[dict[str, Json]] = await self._read("reply", sealed, tenant, run_id)
        return found

    async def _read(self, what: Any, sealed: str, tenant: str | None, run_id: str) -> Any:
        data = await self._sealing.open(what, sealed, tenant, run_id, self._within_s)
        try:
            return read(_KINDS[what], data)
        except WireError as error:
            raise StoreError(f"a sealed {what} of run {run_id} is not what it should be: {error}") from None


_KINDS: Final[dict[str, Any]] = {
    "metadata": dict[str, Json],
    "error": str,
    "reply": list[dict[str, Json]],
    "stream": Any,
}
