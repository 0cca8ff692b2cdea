"""The demo: an agent that looks at one customer of a shop, and the four tools that it uses.

Responsible for declaring the App `shop`. The tools read the SQLite database that `shop_data.py` makes, and take as
long as remote APIs would. They must never write, so that a repeated call changes nothing.
Run by `make demo`, or piece by piece: `anabranch worker agent examples/shop.py`,
`anabranch worker tool examples/shop.py --queue io`, `anabranch run analyst "Assess customer 7"`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from anabranch import App, Call, Limit

CUSTOMER_S = 0.4
ORDERS_S = 0.5
TICKETS_S = 0.6
OFFER_S = 0.3
"""How long each API takes, in seconds."""

app = App("shop")
crm = Limit("crm", "400/s")  # one budget for the three tools that use this API

CustomerId = Annotated[int, Field(ge=1, description="The number of the customer")]
Segment = Literal["new", "champion", "steady", "at_risk", "lapsed"]


class Customer(BaseModel):
    """Who the customer is."""

    customer_id: int
    name: str
    company: str
    city: str
    email: str
    customer_since: date
    newsletter: bool


class Order(BaseModel):
    """One order; money is cents of euros."""

    order_id: int
    placed_on: date
    product: str
    quantity: int
    total_cents: int
    status: str


class Orders(BaseModel):
    """All orders of a customer, the oldest first. `as_of` is the shop's today."""

    as_of: date
    orders: list[Order]


class Ticket(BaseModel):
    """One conversation with the support."""

    ticket_id: int
    opened_on: date
    subject: str
    severity: str
    status: str


class Tickets(BaseModel):
    """All support tickets of a customer, the oldest first."""

    tickets: list[Ticket]


class Offer(BaseModel):
    """What to propose to a customer, and why."""

    code: str
    text: str
    discount_percent: int
    valid_days: int


@app.tool(queue="io", limit=crm, read_only=True)
async def get_customer(customer_id: CustomerId) -> Customer:
    """Fetch a customer's name, company, city, address and since when they buy from us."""
    await asyncio.sleep(CUSTOMER_S)
    rows = await _query("SELECT * FROM customers WHERE customer_id = ?", customer_id)
    if not rows:
        raise LookupError(f"there is no customer {customer_id}")
    return Customer.model_validate(rows[0])


@app.tool(queue="io", limit=crm, read_only=True)
async def get_orders(customer_id: CustomerId) -> Orders:
    """Fetch all orders of a customer, the oldest first, and the date of today as the shop has it."""
    await asyncio.sleep(ORDERS_S)
    today = await _query("SELECT as_of FROM shop")
    rows = await _query("SELECT * FROM orders WHERE customer_id = ? ORDER BY placed_on, order_id", customer_id)
    return Orders.model_validate({**today[0], "orders": rows})


@app.tool(queue="io", limit=crm, read_only=True)
async def get_tickets(customer_id: CustomerId) -> Tickets:
    """Fetch all support tickets of a customer, open and closed, the oldest first."""
    await asyncio.sleep(TICKETS_S)
    rows = await _query("SELECT * FROM tickets WHERE customer_id = ? ORDER BY opened_on, ticket_id", customer_id)
    return Tickets.model_validate({"tickets": rows})


@app.tool(queue="io", read_only=True)
async def propose_offer(
    customer_id: CustomerId,
    segment: Segment,
    lifetime_value_cents: Annotated[int, Field(ge=0, description="The sum of all orders not returned")],
    open_tickets: Annotated[int, Field(ge=0, description="How many tickets are open")],
    call: Call,
) -> Offer:
    """Work out the offer that the shop makes to a customer of this kind.

    Call it when the customer's orders and tickets are known: it takes figures that come from them.
    """
    await asyncio.sleep(OFFER_S)
    offer = decide_offer(customer_id, segment, lifetime_value_cents, open_tickets)
    call.log.debug("customer %d (%s): %s", customer_id, segment, offer.code)
    return offer


def decide_offer(customer_id: int, segment: Segment, lifetime_value_cents: int, open_tickets: int) -> Offer:
    """The shop's rules: mend what is broken before selling anything, then by segment."""
    if open_tickets:
        return _offer(customer_id, "MEND", "A call from a technician and a voucher", 5 * min(open_tickets, 4), 14)
    match segment:
        case "champion":
            return _offer(customer_id, "THANKS", "A barista course for two on the house", 10, 90)
        case "new":
            return _offer(customer_id, "HELLO", "Free delivery of the second order", 0, 30)
        case "steady":
            return _offer(customer_id, "PLAN", "A subscription for beans", 8, 60)
        case "at_risk" | "lapsed":
            return _offer(customer_id, "BACK", "Welcome back", 20 if lifetime_value_cents > 100_000 else 12, 30)


def _offer(customer_id: int, kind: str, text: str, discount_percent: int, valid_days: int) -> Offer:
    code = f"{kind}-{customer_id:04d}"
    return Offer(code=code, text=text, discount_percent=discount_percent, valid_days=valid_days)


async def _query(sql: str, *parameters: int) -> list[dict[str, Any]]:
    return await asyncio.to_thread(_read, sql, parameters)


def _read(sql: str, parameters: tuple[int, ...]) -> list[dict[str, Any]]:
    path = Path(os.environ.get("SHOP_DB", "build/shop.db")).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no database at {path}: make it with `python examples/shop_data.py`, or set SHOP_DB")
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(sql, parameters)]


app.agent(
    "analyst",
    model=os.environ.get("ANABRANCH_DEMO_MODEL", "scripted"),
    system="prompts/analyst.md",
    tools=["get_customer", "get_orders", "get_tickets", "propose_offer"],
    max_turns=8,
    deadline="10m",
)
