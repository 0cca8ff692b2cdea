"""Tokens that follow from an attempt's id and show neither it nor what else is derived from it. PURE.

`plan.py` puts them into the ids of calls, `speaking.py` into the stream, and who reads both compares them.
"""

from __future__ import annotations

import hashlib


def derived(attempt: str, what: int | str) -> str:
    """64 bits in hex, of BLAKE2b.

    In the id of call `what` they are the right to answer this call and no other: the reply's other calls may be in
    queues of workers who do not trust each other, and those who hear the model speak may answer none.
    """
    return hashlib.blake2b(f"{attempt}/{what}".encode(), digest_size=8).hexdigest()


def in_stream(attempt: str) -> str:
    """What `agent.stream` calls an attempt."""
    return derived(attempt, "stream")
