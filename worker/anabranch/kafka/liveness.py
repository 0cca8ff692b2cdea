"""Whether a group still counts us in, as far as one who may have been frozen can know. PURE.

A process that does not run hears nothing: no heartbeat is sent, no answer is read. When it goes on, its first look
at what it had fetched before proves nothing; only the next heartbeat tells it that the session is over. `pump.py`
tells when it has joined and polled, and asks.
"""

from __future__ import annotations


class Liveness:
    """`session_s` is the group's timeout, `heartbeat_s` the time between heartbeats; `now` any steady clock's."""

    def __init__(self, session_s: float, heartbeat_s: float, now: float) -> None:
        self._session_s, self._heartbeat_s = session_s, heartbeat_s
        self._polled, self._doubted_until = now, now

    def joined(self, now: float) -> None:
        """The group counts us in from now on, however long it let us wait for that."""
        self._polled = self._doubted_until = now

    def polled(self, now: float) -> None:
        """We run. If we have not for as long as a session takes, we doubt it until a heartbeat must have told us."""
        if now - self._polled >= self._session_s:
            self._doubted_until = now + self._heartbeat_s
        self._polled = now

    def is_alive(self, now: float) -> bool:
        return now >= self._doubted_until and now - self._polled < self._session_s
