"""The script of the scripted model: it plays the analyst of `shop.py`, so that the demo needs no key.

Responsible for the replies that a real model would give under `prompts/analyst.md`: ask for what is not known yet, all
at once, then for the offer, then answer. A pure function of the request: no clock, no chance, no memory, so that the
same conversation always goes on in the same way. It must never import the App: it sees what a model sees.
Called by the server of `anabranch.testing` in `make demo`, and by the tests.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from anabranch.testing import Reply, prompt_of, result_text, text, tool_use, turn_of

Json = Any  # the provider's JSON, not ours
FACTS = ("get_customer", "get_orders", "get_tickets")
OFFER = "propose_offer"
FASTEST_S, SPREAD_S = 0.020, 0.040
"""Latency of a reply: at least this, and up to that much more."""


@dataclass(frozen=True)
class Result:
    """What one tool gave back; `data` is None if that was an error."""

    data: Json
    text: str


@dataclass(frozen=True)
class Assessment:
    """What follows from the facts. Money is cents of euros."""

    segment: str
    lifetime_value_cents: int
    open_tickets: int


def model(request: Mapping[str, Json]) -> Reply:
    """The analyst's next reply to a request of the Messages API."""
    customer_id = customer_in(prompt_of(request))
    if customer_id is None:
        return _say(request, answer(None, {}))
    known = results_of(request)
    missing = [tool for tool in FACTS if tool not in known]
    if missing:
        return _fetch(request, customer_id, missing)
    if OFFER not in known and all(known[tool].data for tool in FACTS):
        figures = {"customer_id": customer_id, **vars(assess(known))}
        return _reply(request, "Everything is here. Now the offer.", [tool_use(OFFER, figures)])
    return _say(request, answer(customer_id, known))


def customer_in(prompt: str) -> int | None:
    """The customer's number in `customer 7` or `{"customer_id": 7}`, or else the first number; None without one."""
    found = re.search(r"customer(?:_id)?\W{0,4}(\d+)", prompt, re.IGNORECASE) or re.search(r"(\d+)", prompt)
    return int(found[1]) if found else None


def results_of(request: Mapping[str, Json]) -> dict[str, Result]:
    """The latest result of each tool in the conversation, matched to its call by id."""
    names: dict[str, str] = {}
    known: dict[str, Result] = {}
    for message in request["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block["type"] == "tool_use":
                names[block["id"]] = block["name"]
            elif block["type"] == "tool_result":
                known[names[block["tool_use_id"]]] = _result(block)
    return known


def assess(known: Mapping[str, Result]) -> Assessment:
    """Segment, lifetime value and open tickets, by the rules of `prompts/analyst.md`."""
    customer, history = known["get_customer"].data, known["get_orders"].data
    value = sum(order["total_cents"] for order in history["orders"] if order["status"] != "returned")
    waiting = sum(ticket["status"] == "open" for ticket in known["get_tickets"].data["tickets"])
    today = date.fromisoformat(history["as_of"])
    age = _days(today, customer["customer_since"])
    idle = min((_days(today, order["placed_on"]) for order in history["orders"]), default=age)
    return Assessment(_segment(age, idle, value, waiting), value, waiting)


def answer(customer_id: int | None, known: Mapping[str, Result]) -> dict[str, Json]:
    """The final JSON; fields that depend on something that failed are null, and the summary says what."""
    failed = [f"{tool}: {result.text}" for tool, result in known.items() if not result.data]
    facts = assess(known) if known and all(known[tool].data for tool in FACTS) else None
    offer = known[OFFER].data if OFFER in known else None
    return {
        "customer_id": customer_id,
        "segment": facts.segment if facts else None,
        "lifetime_value_eur": facts.lifetime_value_cents / 100 if facts else None,
        "open_tickets": facts.open_tickets if facts else None,
        "offer": offer,
        "summary": _summary(known, facts, offer)
        if facts and offer
        else f"Missing: {'; '.join(failed) or 'a customer'}",
    }


def _summary(known: Mapping[str, Result], facts: Assessment, offer: Json) -> str:
    customer, count = known["get_customer"].data, len(known["get_orders"].data["orders"])
    orders = "1 order" if count == 1 else f"{count} orders"
    trouble = f", {facts.open_tickets} open tickets" if facts.open_tickets else ""
    who = f"{customer['name']} of {customer['company']} ({customer['city']})"
    return f"{who}: {facts.segment.replace('_', ' ')}, {orders}{trouble}. Propose {offer['code']}: {offer['text']}."


def _segment(age: int, idle: int, value_cents: int, open_tickets: int) -> str:
    if age < 90:
        return "new"
    if idle > 270:
        return "lapsed"
    if idle > 90 or open_tickets >= 3:
        return "at_risk"
    return "champion" if value_cents > 400_000 else "steady"


def _fetch(request: Mapping[str, Json], customer_id: int, missing: list[str]) -> Reply:
    if (request.get("tool_choice") or {}).get("disable_parallel_tool_use"):
        missing = missing[:1]
    what = ", ".join(tool.removeprefix("get_") for tool in missing)
    calls = [tool_use(tool, {"customer_id": customer_id}) for tool in missing]
    return _reply(request, f"I look up customer {customer_id}: {what}.", calls)


def _say(request: Mapping[str, Json], value: dict[str, Json]) -> Reply:
    return _reply(request, json.dumps(value, ensure_ascii=False), [])


def _reply(request: Mapping[str, Json], words: str, calls: list[dict[str, Json]]) -> Reply:
    chance = zlib.crc32(f"{turn_of(request)} {prompt_of(request)}".encode()) / 2**32
    return Reply(content=[text(words), *calls], latency_s=FASTEST_S + SPREAD_S * chance)


def _result(block: Mapping[str, Json]) -> Result:
    words = result_text(dict(block))
    try:
        return Result(None if block.get("is_error") else json.loads(words), words)
    except ValueError:
        return Result(None, words)


def _days(today: date, day: str) -> int:
    return (today - date.fromisoformat(day)).days
