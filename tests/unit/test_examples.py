"""The examples: the shop's data is the same everywhere, its tools read it, and its scripted analyst uses what they say.

Must never: start a broker, a worker or a server; that the demo runs as a whole is shown by the acceptance tests.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from anabranch import App, Call
from anabranch.testing import Reply

EXAMPLES = Path(__file__).parents[2] / "examples"
Json = Any

CUSTOMER = {
    "customer_id": 7,
    "name": "Ada Gantry",
    "company": "Amber Books",
    "city": "Cork",
    "customer_since": "2023-01-01",
}
ORDER = {"order_id": 1, "placed_on": "2025-09-01", "product": "Cups", "quantity": 1, "status": "delivered"}
OFFER = {"code": "PLAN-0007", "text": "A subscription", "discount_percent": 8, "valid_days": 60}


@pytest.fixture
def example() -> Iterator[Callable[[str], Any]]:
    """Loads `examples/<name>.py` as a module, as the command line loads an App from a path."""
    loaded: list[str] = []

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def order(cents: int, **changes: Json) -> Json:
    return {**ORDER, "total_cents": cents, **changes}


def facts(orders: list[Json], open_tickets: int = 0, **customer: Json) -> dict[str, Json]:
    """What the tools return, by tool."""
    tickets = [{"ticket_id": number, "status": "open"} for number in range(open_tickets)]
    return {
        "get_customer": {**CUSTOMER, **customer},
        "get_orders": {"as_of": "2025-09-30", "orders": orders},
        "get_tickets": {"tickets": [*tickets, {"ticket_id": 99, "status": "closed"}]},
        "propose_offer": OFFER,
    }


def calls_of(reply: Reply) -> list[Json]:
    return [block for block in reply.content if isinstance(block, dict) and block["type"] == "tool_use"]


def as_results(calls: list[Json], returned: Mapping[str, Json]) -> Iterator[Json]:
    """One result a call; what is an exception becomes an error result."""
    for call in calls:
        value = returned[call["name"]]
        failed = isinstance(value, Exception)
        content = str(value) if failed else json.dumps(value)
        yield {"type": "tool_result", "tool_use_id": call["id"], "content": content, "is_error": failed}


def converse(model: Callable[[Json], Reply], prompt: str, returned: Mapping[str, Json], **request: Json) -> list[Reply]:
    """The model's replies until it calls no more tools; results come back in the opposite order of the calls."""
    messages: list[Json] = [{"role": "user", "content": prompt}]
    replies: list[Reply] = []
    while not replies or calls_of(replies[-1]):
        assert len(replies) < 10, "the conversation does not end"
        replies.append(model({"messages": messages, **request}))
        blocks = [{"id": f"toolu_{len(replies)}_{n}", **block} for n, block in enumerate(replies[-1].content)]  # type: ignore[dict-item]
        messages.append({"role": "assistant", "content": blocks})
        asked = [block for block in blocks if block["type"] == "tool_use"]
        messages.append({"role": "user", "content": list(as_results(asked, returned))[::-1]})
    return replies


def final(replies: list[Reply]) -> Json:
    [block] = replies[-1].content
    assert isinstance(block, dict)
    return json.loads(block["text"])


def test_the_records_in_the_repository_are_those_that_the_script_makes(example: Callable[[str], Any]) -> None:
    lines = (EXAMPLES / "customers.jsonl").read_bytes().decode()
    assert lines == "".join(f"{line}\n" for line in example("shop_data").record_lines())


def test_there_are_two_hundred_different_customers() -> None:
    records = [json.loads(line) for line in (EXAMPLES / "customers.jsonl").read_text().splitlines()]
    assert [record["customer_id"] for record in records] == list(range(1, 201))
    assert len({record["name"] for record in records}) == len({record["company"] for record in records}) == 200
    assert all(record.keys() == {"customer_id", "name", "company", "city"} for record in records)


def test_the_database_is_the_same_each_time_and_replaces_an_older_one(
    example: Callable[[str], Any], tmp_path: Path
) -> None:
    data = example("shop_data")
    first, second = tmp_path / "new" / "shop.db", tmp_path / "shop.db"
    second.write_text("not a database")
    data.make_database(first)
    data.make_database(str(second))
    assert rows(first) == rows(second)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "shop.db", "shop.db"]


def test_a_database_that_cannot_be_finished_leaves_the_old_one(
    example: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = example("shop_data")
    target = tmp_path / "shop.db"
    target.write_text("the old one")
    monkeypatch.setattr(data, "SCHEMA", "CREATE TABLE nonsense")
    with pytest.raises(sqlite3.Error):
        data.make_database(target)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("shop.db", "the old one")]


def test_the_customers_differ_in_what_they_do(example: Callable[[str], Any]) -> None:
    shop = example("shop_data").make_shop()
    with_orders = {row[1] for row in shop.orders}
    troubled = {row[1] for row in shop.tickets if row[-1] == "open"}
    assert len(with_orders) == 200
    assert 40 < len(troubled) < 160
    assert len({row[6] for row in shop.orders}) == 3


def test_the_analyst_asks_three_things_at_once_then_for_an_offer_and_answers(example: Callable[[str], Any]) -> None:
    returned = facts([order(120_050), order(30_000), order(999, status="returned")], open_tickets=1)
    first, second, third = converse(example("shop_model").model, '{"customer_id": 7, "name": "Ada"}', returned)

    assert isinstance(first.content[0], dict)
    assert first.content[0]["type"] == "text"
    assert [(call["name"], call["input"]) for call in calls_of(first)] == [
        (tool, {"customer_id": 7}) for tool in ("get_customer", "get_orders", "get_tickets")
    ]
    [offer] = calls_of(second)
    assert (offer["name"], offer["input"]) == (
        "propose_offer",
        {"customer_id": 7, "segment": "steady", "lifetime_value_cents": 150_050, "open_tickets": 1},
    )
    answer = final([third])
    assert "PLAN-0007" in answer.pop("summary")
    assert answer == {
        "customer_id": 7,
        "segment": "steady",
        "lifetime_value_eur": 1500.5,
        "open_tickets": 1,
        "offer": OFFER,
    }


@pytest.mark.parametrize(
    ("segment", "returned"),
    [
        ("new", facts([order(900_000)], customer_since="2025-08-01")),
        ("lapsed", facts([order(900_000, placed_on="2024-06-01")])),
        ("at_risk", facts([order(900_000, placed_on="2025-05-01")])),
        ("at_risk", facts([order(900_000)], open_tickets=3)),
        ("champion", facts([order(900_000)])),
        ("steady", facts([order(1)])),
        ("lapsed", facts([])),
    ],
)
def test_the_segment_follows_from_the_results(
    example: Callable[[str], Any], segment: str, returned: dict[str, Json]
) -> None:
    assert final(converse(example("shop_model").model, "Assess customer 7", returned))["segment"] == segment


@pytest.mark.parametrize("tool", ["get_orders", "propose_offer"])
def test_an_answer_after_a_failed_tool_says_what_is_missing(example: Callable[[str], Any], tool: str) -> None:
    returned = {**facts([order(1)]), tool: RuntimeError("the API is down")}
    answer = final(converse(example("shop_model").model, "Assess customer 7", returned))
    assert answer["summary"] == f"Missing: {tool}: the API is down"
    assert answer["offer"] is None


def test_one_call_a_turn_if_the_request_forbids_parallel_ones(example: Callable[[str], Any]) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    replies = converse(example("shop_model").model, "Customer 7", facts([order(1)]), tool_choice=choice)
    assert [len(calls_of(reply)) for reply in replies] == [1, 1, 1, 1, 0]


def test_a_prompt_without_a_number_is_answered_at_once(example: Callable[[str], Any]) -> None:
    [reply] = converse(example("shop_model").model, "Hello", {})
    assert final([reply])["summary"] == "Missing: a customer"


def test_the_latency_of_a_reply_is_small_and_always_the_same(example: Callable[[str], Any]) -> None:
    model, request = example("shop_model").model, {"messages": [{"role": "user", "content": "Customer 7"}]}
    assert model(request).latency_s == model(request).latency_s
    assert 0.02 <= model(request).latency_s <= 0.06


@pytest.fixture
def shop(example: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `shop.py`, its tools quick, over a database of its own."""
    monkeypatch.setenv("SHOP_DB", str(tmp_path / "shop.db"))
    example("shop_data").make_database(tmp_path / "shop.db")
    module = example("shop")
    for name in ("CUSTOMER_S", "ORDERS_S", "TICKETS_S", "OFFER_S"):
        monkeypatch.setattr(module, name, 0.0)
    return module


async def execute(app: App, call: Json) -> Json:
    """What a tool worker does with a call: typed arguments in, JSON out."""
    tool = app.tools[call["name"]]
    arguments = tool.bind(call["input"], lambda: Call(id="run/1.0/0", run_id="run", tool=tool.name))
    return (await tool.function(**arguments)).model_dump(mode="json")


async def assess(shop: Any, model: Callable[[Json], Reply], customer_id: int) -> Json:
    """The analyst's answer for a customer, with the real tools over the real database."""
    returned: dict[str, Json] = {}
    for tool in ("get_customer", "get_orders", "get_tickets"):
        returned[tool] = await execute(shop.app, {"name": tool, "input": {"customer_id": customer_id}})
    asked = [call for reply in converse(model, f"Customer {customer_id}", {**returned, "propose_offer": OFFER})
             for call in calls_of(reply)]  # fmt: skip
    returned["propose_offer"] = await execute(shop.app, asked[-1])
    return final(converse(model, f"Customer {customer_id}", returned))


async def test_every_customer_of_the_shop_can_be_assessed(shop: Any, example: Callable[[str], Any]) -> None:
    model = example("shop_model").model
    answers = [await assess(shop, model, customer_id) for customer_id in range(1, 201)]
    assert {answer["segment"] for answer in answers} == {"new", "champion", "steady", "at_risk", "lapsed"}
    assert {answer["offer"]["code"].split("-")[0] for answer in answers} == {"MEND", "THANKS", "HELLO", "PLAN", "BACK"}
    assert [answer["customer_id"] for answer in answers] == list(range(1, 201))


async def test_an_unknown_customer_or_database_is_told_plainly(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="there is no customer 999"):
        await shop.get_customer(999)
    monkeypatch.setenv("SHOP_DB", "nowhere.db")
    with pytest.raises(FileNotFoundError, match="make it with `python examples/shop_data"):
        await shop.get_orders(1)


def test_the_tools_take_the_time_that_the_demo_promises(example: Callable[[str], Any]) -> None:
    shop = example("shop")
    assert (shop.CUSTOMER_S, shop.ORDERS_S, shop.TICKETS_S, shop.OFFER_S) == (0.4, 0.5, 0.6, 0.3)


def test_the_analyst_has_its_tools_its_prompt_and_the_model_of_the_environment(
    example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANABRANCH_DEMO_MODEL", raising=False)
    app = example("shop").app
    app.check()
    analyst = app.agents["analyst"].spec
    assert analyst.model == "scripted"
    assert analyst.tools == list(app.tools)
    assert analyst.system == (EXAMPLES / "prompts" / "analyst.md").read_text()
    assert all(tool.spec.queue == "io" and tool.spec.read_only for tool in app.tools.values())
    monkeypatch.setenv("ANABRANCH_DEMO_MODEL", "another")
    assert example("shop").app.agents["analyst"].spec.model == "another"


async def test_the_weather_app_has_a_tool_here_and_one_elsewhere(example: Callable[[str], Any]) -> None:
    module = example("weather")
    module.app.check()
    pollen = module.app.remote_tools["pollen"]
    assert (pollen.queue, pollen.after) == ("go", ["weather"])
    assert pollen.input_schema["required"] == ["city"]
    assert module.app.agents["forecaster"].spec.tools == ["weather", "pollen"]
    assert await module.weather("Ghent") == await module.weather("Ghent")
