"""The App of the workload: three tools that write down, outside of Anabranch, that they were executed.

Responsible for: one line of JSON at the start and one at the end of each execution, or where it was given up, in the
file that `CHAOS_EXECUTIONS` names; a line is written whole, so a process that is killed has either written it or not.
Must never: know of the chaos. Run by the worker processes, by its path.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from typing import Any, Final

from anabranch import App, Call

FILE: Final = "CHAOS_EXECUTIONS"
QUEUE: Final = "work"

app = App("chaos")


@app.tool(queue=QUEUE, timeout=60)
async def often(token: str, index: int, seconds: float, call: Call) -> str:
    """May be executed again after a crash."""
    return await _execute("at_least_once", token, index, seconds, call)


@app.tool(queue=QUEUE, timeout=30, deadline=60, delivery="at_most_once")  # longer than a worker is ever frozen
async def once(token: str, index: int, seconds: float, call: Call) -> str:
    """Must never be executed a second time."""
    return await _execute("at_most_once", token, index, seconds, call)


@app.tool(queue=QUEUE, timeout=60, serial_key="serial")
async def serial(token: str, index: int, seconds: float, serial: str, call: Call) -> str:
    """May be executed again, but calls of one `serial` run one at a time, and in order."""
    return await _execute("at_least_once", token, index, seconds, call, serial)


app.agent("worker", model="scripted", tools=["often", "once", "serial"], max_turns=20)


async def _execute(delivery: str, token: str, index: int, seconds: float, call: Call, serial: str | None = None) -> str:
    nonce = secrets.token_hex(6)
    told = {"token": token, "index": index, "delivery": delivery, "call_id": call.id, "key": call.idempotency_key}
    _write({"nonce": nonce, **told, "serial": serial, "pid": os.getpid(), "begun": time.time()})
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _write({"nonce": nonce, "stopped": time.time()})
        raise
    _write({"nonce": nonce, "ended": time.time()})
    return nonce


def _write(line: dict[str, Any]) -> None:
    """One write to a file that is open for appending: lines of several processes do not mix."""
    file = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)
