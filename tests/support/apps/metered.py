"""An App of one limited tool whose every start is written down where an outside meter reads it.

Responsible for: a line in a file for each start, with the machine's monotonic clock, which all processes share.
Must never: know how the limit is kept. Called by: worker processes, `anabranch worker tool` of this file.
"""

from __future__ import annotations

import asyncio
import os
import time

from anabranch import App, Limit

RATE = os.environ.get("METER_RATE", "50/s")
PLACES = int(os.environ.get("METER_PLACES", "0")) or None
TAKES_S = float(os.environ.get("METER_TAKES_S", "0"))
FILE = os.open(os.environ.get("METER_FILE", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

app = App("metered")
api = Limit("api", RATE, concurrency=PLACES)


@app.tool(queue="q", limit=api, timeout=2)
async def hit(n: int) -> str:
    """Uses the API."""
    os.write(FILE, b"start %d %.6f %d\n" % (n, time.monotonic(), os.getpid()))
    if TAKES_S:
        await asyncio.sleep(TAKES_S)
        os.write(FILE, b"end %d %.6f %d\n" % (n, time.monotonic(), os.getpid()))
    return "hit"


@app.tool(queue="q")
async def look(n: int) -> str:
    """Uses nothing that is limited."""
    os.write(FILE, b"look %d %.6f %d\n" % (n, time.monotonic(), os.getpid()))
    return "looked"
