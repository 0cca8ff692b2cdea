"""An App whose tools are written in two languages: `weather` here, `pollen` in `go-tool-worker/`.

Responsible for showing what a remote tool needs: a name, a queue, a schema. It must never import anything of the
other worker: all that the two share is the wire.
Run as `anabranch worker agent examples/weather.py` and `anabranch worker tool examples/weather.py --queue io`.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from anabranch import App

WEATHER_S = 0.2
SKIES: tuple[Literal["clear", "cloudy", "rain", "storm"], ...] = ("clear", "cloudy", "rain", "storm")

app = App("weather")


class Weather(BaseModel):
    """Tomorrow's weather in a city."""

    city: str
    sky: Literal["clear", "cloudy", "rain", "storm"]
    high_celsius: int


@app.tool(queue="io", read_only=True)
async def weather(city: Annotated[str, Field(min_length=1, description="The name of a city")]) -> Weather:
    """Fetch tomorrow's weather for a city. The figures are made up, but the same ones for the same city."""
    await asyncio.sleep(WEATHER_S)
    chance = zlib.crc32(city.strip().lower().encode())
    return Weather(city=city, sky=SKIES[chance % len(SKIES)], high_celsius=4 + chance // 7 % 26)


# Pollen flies as the weather lets it: of one batch, `weather` runs first.
app.remote_tool("pollen", queue="go", schema="pollen.json", after=["weather"])

app.agent(
    "forecaster",
    model=os.environ.get("ANABRANCH_DEMO_MODEL", "scripted"),
    system="prompts/forecaster.md",
    tools=["weather", "pollen"],
    max_turns=6,
    deadline="5m",
)
