"""The data of the demo: a small shop with 200 customers, their orders and their support tickets.

Responsible for making the same data on every machine: `customers.jsonl` (the records that the demo enriches) and
the SQLite database that the tools of `shop.py` read. Every person, company and figure is made up. It must never
read a clock, and takes its chances from `Random.random()` alone, whose sequence Python promises to keep.
Called by `make demo`, by the tests, and by hand: `python examples/shop_data.py [DATABASE]`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

T = TypeVar("T")

CUSTOMERS = 200
SEED = 20250930
AS_OF = date(2025, 9, 30)
"""The shop's "today": ages of orders and tickets are counted from here, so that answers never change."""

RECORDS = Path(__file__).with_name("customers.jsonl")
DATABASE = Path("build/shop.db")

SCHEMA = """
CREATE TABLE shop (as_of TEXT NOT NULL);
CREATE TABLE customers (
    customer_id INTEGER PRIMARY KEY, name TEXT NOT NULL, company TEXT NOT NULL, city TEXT NOT NULL,
    email TEXT NOT NULL, customer_since TEXT NOT NULL, newsletter INTEGER NOT NULL
);
CREATE TABLE orders (
    order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers, placed_on TEXT NOT NULL,
    product TEXT NOT NULL, quantity INTEGER NOT NULL, total_cents INTEGER NOT NULL, status TEXT NOT NULL
);
CREATE TABLE tickets (
    ticket_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers, opened_on TEXT NOT NULL,
    subject TEXT NOT NULL, severity TEXT NOT NULL, status TEXT NOT NULL
);
CREATE INDEX orders_of_a_customer ON orders (customer_id, placed_on);
CREATE INDEX tickets_of_a_customer ON tickets (customer_id, opened_on);
"""


def _words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = _words(
    "Ada Alma Anselm Aurel Bela Brida Caspar Cora Dario Delia Edda Elio Enna Fabian Femke Gisela Hanno Ilse Imre "
    "Ines Jorin Juno Kaja Lennart Lioba Livia Malin Marek Mila Nora Odin Orla Pavel Petra Quirin Rasmus Romy Sanna "
    "Silas Tamsin Tilda Ulla Valentin Vera Wanda Xenia Yorick Zoe"
)
LAST_NAMES = _words(
    "Abelard Birkholm Brandvold Calloway Corvane Dornbusch Eastermann Elderfield Fairwater Falkenrath Gantry "
    "Glasbrook Halloran Hazelgrove Ivarsen Jessamy Karrow Kestrelmann Lindqvale Lorimer Marchbanks Merriweather "
    "Northolt Okonedal Ostrander Penhallow Quillfeather Ravensworth Rosenhain Saltmarsh Sandoval-Reyes Thistlewood "
    "Tremaine Underhill Vantongeren Wexcombe Whitlocke Yarrowby Zellweger-Oduya Zimmerlund"
)
HOUSES = _words(
    "Amber Bramble Copper Driftwood Ember Foxglove Granite Harbour Indigo Juniper Kingfisher Lantern Marigold "
    "Nettle Orchard Pebble Quarry Rowan Saffron Tidewater"
)
TRADES = (
    "Bakery",
    "Bistro",
    "Books",
    "Brewing",
    "Ceramics",
    "Cycles",
    "Dental Practice",
    "Florists",
    "Guesthouse",
    "Joinery",
    "Physio",
    "Roasters",
    "School of Music",
    "Veterinary",
)
CITIES = (
    "Aarhus",
    "Antwerp",
    "Bergen",
    "Bologna",
    "Bristol",
    "Brno",
    "Cork",
    "Freiburg",
    "Gdansk",
    "Ghent",
    "Graz",
    "Leipzig",
    "Lille",
    "Malmo",
    "Nantes",
    "Porto",
    "Tartu",
    "Turku",
    "Utrecht",
    "Valencia",
)
PRODUCTS = (
    ("Espresso beans, 5 kg", 8900),
    ("Filter papers, 1,000", 2450),
    ("Grinder, 64 mm burrs", 39900),
    ("Milk pitcher set", 5400),
    ("Oat drink, 24 cartons", 4320),
    ("Paper cups, 2,000", 11800),
    ("Two-group espresso machine", 489000),
    ("Water filter cartridge", 6650),
    ("Decaf beans, 5 kg", 9700),
    ("Barista course, one day", 18500),
)
SUBJECTS = {
    "low": ("Copy of an invoice", "Change of delivery address", "Question about grind size"),
    "normal": ("Delivery came a week late", "Charged twice for one order", "Cups arrived crushed"),
    "high": ("Espresso machine leaks", "Grinder stops under load", "Wants to cancel the contract"),
}


@dataclass(frozen=True)
class Habit:
    """How one kind of customer behaves. Pairs are lowest and highest; ages are in days before `AS_OF`."""

    weight: float
    orders: tuple[int, int]
    customer_for: tuple[int, int]
    last_order: tuple[int, int]
    tickets: tuple[int, int]
    open_share: float
    severities: Sequence[str]


HABITS = (
    Habit(0.15, (12, 24), (700, 2200), (1, 25), (0, 2), 0.1, ("low", "normal")),  # the best
    Habit(0.35, (4, 11), (300, 1600), (5, 80), (0, 2), 0.3, ("low", "low", "normal")),  # steady
    Habit(0.15, (1, 2), (10, 60), (1, 9), (0, 1), 0.6, ("low",)),  # new
    Habit(0.15, (5, 12), (500, 1500), (100, 200), (1, 3), 0.5, ("normal", "high")),  # fading
    Habit(0.12, (1, 5), (600, 2000), (300, 550), (0, 1), 0.2, ("low", "normal")),  # lapsed
    Habit(0.08, (6, 15), (400, 1800), (10, 90), (3, 6), 0.8, ("normal", "high", "high")),  # troubled
)


@dataclass(frozen=True)
class Customer:
    """One row of `customers`; the first four fields make a line of `customers.jsonl`."""

    customer_id: int
    name: str
    company: str
    city: str
    email: str
    customer_since: str
    newsletter: int


@dataclass(frozen=True)
class Shop:
    """All rows, in the order of the tables' columns. Dates are ISO, money is cents of euros."""

    customers: list[Customer]
    orders: list[tuple[int, int, str, str, int, int, str]]
    tickets: list[tuple[int, int, str, str, str, str]]


def make_shop() -> Shop:
    """The shop: the same one each time."""
    rng = Random(SEED)
    shop = Shop([], [], [])
    names = _sample(rng, [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES])
    companies = _sample(rng, [f"{house} {trade}" for house in HOUSES for trade in TRADES])
    for customer_id, name, company in zip(range(1, CUSTOMERS + 1), names, companies, strict=True):
        habit = _habit(rng)
        age = _between(rng, *habit.customer_for)
        email = f"{name.split()[0].lower()}@{company.replace(' ', '-').lower()}.example"
        row = Customer(customer_id, name, company, _pick(rng, CITIES), email, _ago(age), int(rng.random() < 0.6))
        shop.customers.append(row)
        _add_orders(rng, shop, customer_id, habit, age)
        _add_tickets(rng, shop, customer_id, habit, age)
    return shop


def make_database(path: str | os.PathLike[str]) -> None:
    """Write the shop as an SQLite database to `path`, replacing what is there in one step.

    Raises OSError if the folder cannot be made or written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        _fill(part, make_shop())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def record_lines() -> Iterator[str]:
    """The lines of `customers.jsonl`, without line ends."""
    for customer in make_shop().customers:
        record = {name: getattr(customer, name) for name in ("customer_id", "name", "company", "city")}
        yield json.dumps(record)


def _fill(path: Path, shop: Shop) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO shop VALUES (?)", (AS_OF.isoformat(),))
        people = [tuple(vars(customer).values()) for customer in shop.customers]
        db.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?, ?)", people)
        db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", shop.orders)
        db.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?, ?, ?)", shop.tickets)


def _add_orders(rng: Random, shop: Shop, customer_id: int, habit: Habit, age: int) -> None:
    last = min(_between(rng, *habit.last_order), age)
    count = _between(rng, *habit.orders)
    days = sorted((_between(rng, last, age) for _ in range(count - 1)), reverse=True)
    for day in (*days, last):
        product, cents = _pick(rng, PRODUCTS)
        quantity = 1 if cents > 30_000 else _between(rng, 1, 6)
        status = "in delivery" if day < 4 else "returned" if rng.random() < 0.05 else "delivered"
        order_id = 10_001 + len(shop.orders)
        shop.orders.append((order_id, customer_id, _ago(day), product, quantity, cents * quantity, status))


def _add_tickets(rng: Random, shop: Shop, customer_id: int, habit: Habit, age: int) -> None:
    ages = sorted((_between(rng, 1, min(age, 240)) for _ in range(_between(rng, *habit.tickets))), reverse=True)
    for day in ages:
        severity = _pick(rng, habit.severities)
        status = "open" if rng.random() < habit.open_share else "closed"
        subject = _pick(rng, SUBJECTS[severity])
        shop.tickets.append((501 + len(shop.tickets), customer_id, _ago(day), subject, severity, status))


def _habit(rng: Random) -> Habit:
    point = rng.random() * sum(habit.weight for habit in HABITS)
    for habit in HABITS:
        point -= habit.weight
        if point < 0:
            return habit
    return HABITS[-1]


def _sample(rng: Random, items: Sequence[T]) -> list[T]:
    ranked = sorted((rng.random(), place) for place in range(len(items)))
    return [items[place] for _, place in ranked[:CUSTOMERS]]


def _pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _between(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _ago(days: int) -> str:
    return (AS_OF - timedelta(days=days)).isoformat()


def main() -> None:
    """Write both files and say where."""
    database = Path(sys.argv[1]) if len(sys.argv) > 1 else DATABASE
    RECORDS.write_text("".join(f"{line}\n" for line in record_lines()), encoding="utf-8", newline="\n")
    make_database(database)
    print(f"{RECORDS}: {CUSTOMERS} customers\n{database}: their orders and tickets, as of {AS_OF}")


if __name__ == "__main__":
    main()
