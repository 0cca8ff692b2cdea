"""A record on its way to the broker: what `Appender.append` returns.

Like a future, but its callbacks run at once, inside whatever has learnt of the acknowledgement, and not in the
loop's next round: of these there are a dozen for each run. It knows no broker and no record. Appenders settle it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple


class Acked(NamedTuple):
    """Where a record lies. `offset` is None if the broker had it already and does not say where.

    `at_ms` is the broker's own time of it, in milliseconds; None where the topic keeps the producer's.
    """

    offset: int | None
    at_ms: int | None = None


class Sent:
    """See the module. It ends once: with `Acked`, with an error, or cancelled when its appender is closed."""

    __slots__ = ("_acked", "_callbacks", "_error", "_is_over", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop  # to ask for the running one costs as much as half of the waiting
        self._acked: Acked | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._callbacks: list[Callable[[Sent], object]] = []

    def done(self) -> bool:
        return self._is_over

    def cancelled(self) -> bool:
        return self._is_over and self._acked is None and self._error is None

    @property
    def is_written(self) -> bool:
        """Whether the broker has it for certain."""
        return self._acked is not None

    def exception(self) -> Exception | None:
        return self._error

    def result(self) -> Acked:
        """Raises the error that it ended with, or `CancelledError`."""
        if self._acked is not None:
            return self._acked
        if self._error is not None:
            raise self._error
        raise asyncio.CancelledError if self._is_over else asyncio.InvalidStateError

    def add_done_callback(self, callback: Callable[[Sent], object]) -> None:
        """Call it when this ends; soon, if it has ended already, so that nobody is called back while asking."""
        if self._is_over:
            asyncio.get_running_loop().call_soon(callback, self)
        else:
            self._callbacks.append(callback)

    def remove_done_callback(self, callback: Callable[[Sent], object]) -> None:
        self._callbacks = [known for known in self._callbacks if known != callback]

    def succeed(self, acked: Acked) -> None:
        if not self._is_over:
            self._acked = acked
            self._tell()

    def fail(self, error: Exception) -> None:
        if not self._is_over:
            self._error = error
            self._tell()

    def cancel(self) -> None:
        """Nobody will ever know what became of it."""
        if not self._is_over:
            self._tell()

    def _tell(self) -> None:
        self._is_over = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - as with a future: loud, and the others hear of it too
                told = {"message": f"{callback!r} failed after an append", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)

    def __await__(self) -> Generator[Any, None, Acked]:
        if not self._is_over:
            waiter: asyncio.Future[None] = (self._loop or asyncio.get_running_loop()).create_future()

            def wake(_: Sent) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self._callbacks.append(wake)
            try:
                yield from waiter
            except BaseException:
                self.remove_done_callback(wake)
                raise
        return self.result()


async def settled(sent: Iterable[Sent], timeout_s: float) -> set[Sent]:
    """Wait until all have ended, or for `timeout_s`; returns those that have not."""
    left = {each for each in sent if not each.done()}
    if not left:
        return left
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(each: Sent) -> None:
        left.discard(each)
        if not left and not over.done():
            over.set_result(None)

    for each in list(left):
        each.add_done_callback(ended)
    try:
        await asyncio.wait([over], timeout=timeout_s)
    finally:
        for each in left:
            each.remove_done_callback(ended)
    return left
