"""What a user declares is kept as declared, and a mistake is told where it is made."""

from __future__ import annotations

import functools
import logging
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import anabranch
from anabranch import App, Call, DefinitionError, Limit, RateLimited, Retryable
from anabranch.specs import LimitSpec, ToolSpec

CALL = Call(id="run-1/1.ab/0", run_id="run-1", tool="refund", attempt=2, tenant="acme")


@pytest.fixture
def app() -> App:
    return App("Shop")


def score(report: str) -> float:
    """Score a report."""
    return float(len(report))


def declare(app: App, name: str, **options: Any) -> None:
    """A tool of the given name with nothing in it."""

    def function(x: int = 0) -> None:
        """Does nothing."""

    app.tool(name=name, **options)(function)


# --- tools ------------------------------------------------------------------------------------------


def test_a_decorated_function_stays_what_it_was(app: App) -> None:
    assert app.tool(score) is score
    assert app.tool(queue="cpu", name="score2")(score) is score
    assert score("abc") == 3.0
    assert app.tools["score"].function is score


def test_a_tool_has_its_defaults(app: App) -> None:
    app.tool(score)
    tool = app.tools["score"]
    assert tool.spec == ToolSpec(
        name="score",
        queue="default",
        description="Score a report.",
        input_schema={
            "type": "object",
            "properties": {"report": {"type": "string"}},
            "required": ["report"],
            "additionalProperties": False,
        },
    )
    assert (tool.run_in, tool.retries, tool.concurrency, tool.limit) == ("thread", 0, None, None)
    with pytest.raises(FrozenInstanceError):
        tool.retries = 3  # type: ignore[misc]


def test_a_tool_keeps_what_it_declares(app: App) -> None:
    crm = Limit("crm", "50/s", concurrency=20)

    @app.tool(
        queue="io", limit=crm, serial_key="customer_id", timeout="1m", deadline="1h", retries=3, read_only=True,
        after=["weather"], on_error="abort", max_result="32kB", concurrency=4, description="Pays back.",
    )  # fmt: skip
    async def refund(customer_id: int, cents: int, call: Call) -> str:
        return call.idempotency_key

    tool = app.tools["refund"]
    spec = tool.spec
    assert (spec.queue, spec.limit, spec.serial_key, spec.description) == ("io", "crm", "customer_id", "Pays back.")
    assert (spec.timeout_s, spec.deadline_s, spec.max_result) == (60.0, 3600.0, 32_768)
    assert (spec.after, spec.on_error, spec.read_only) == (["weather"], "abort", True)
    assert (tool.run_in, tool.retries, tool.concurrency, tool.limit) == ("loop", 3, 4, crm)
    assert tool.bind({"customer_id": 1, "cents": 2}, lambda: CALL) == {"customer_id": 1, "cents": 2, "call": CALL}


def test_a_call_that_must_not_be_repeated_has_a_deadline_a_minute_after_its_timeout(app: App) -> None:
    declare(app, "once", delivery="at_most_once", timeout=5)
    assert app.tools["once"].spec.deadline_s == 65.0


def test_tools_are_found_by_queue(app: App) -> None:
    declare(app, "a", queue="io")
    declare(app, "b", queue="cpu")
    app.remote_tool("c", queue="go", schema={"type": "object"}, description="Afar.")
    assert app.queues() == ["cpu", "go", "io"]
    assert [tool.name for tool in app.tools_of("io")] == ["a"]
    assert app.tools_of("go") == []
    assert [spec.name for spec in app.tool_specs()] == ["a", "b", "c"]


def test_a_model_defined_next_to_a_tool_in_a_function_is_found(app: App) -> None:
    from pydantic import BaseModel

    class Local(BaseModel):
        x: int

    @app.tool
    def use(local: Local) -> None:
        """Use."""

    assert app.tools["use"].bind({"local": {"x": 1}}, lambda: CALL) == {"local": Local(x=1)}


def test_an_unknown_keyword_is_a_type_error(app: App) -> None:
    with pytest.raises(TypeError, match="timout"):
        app.tool(timout=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="retries"):
        app.remote_tool("x", queue="q", schema={}, retries=3)  # type: ignore[call-arg]


# --- mistakes in a tool --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"timeout": 0}, "timeout=0 must be more than 0"),
        ({"timeout": "soon"}, "timeout: 'soon' is no duration"),
        ({"deadline": -1}, "deadline"),
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"delivery": "exactly_once"}, "delivery='exactly_once' must be one of 'at_least_once', 'at_most_once'"),
        ({"delivery": "at_most_once", "retries": 1}, "retries=1 contradicts"),
        ({"on_error": "panic"}, "on_error='panic'"),
        ({"run_in": "gpu"}, "run_in='gpu'"),
        ({"run_in": "process"}, "run_in='process'.*top of its module"),
        ({"serial_key": "customer"}, r"serial_key='customer' is none of \['x'\]"),
        ({"serial_key": ["x"]}, r"serial_key=\['x'\] is none of \['x'\]"),
        ({"description": "half a \ud83d"}, "description holds half a character"),
        ({"max_result": "huge"}, "max_result: 'huge'"),
        ({"max_result": 0}, "max_result=0"),
        ({"queue": "a b"}, "queue 'a b'"),
        ({"queue": "a:b"}, "queue 'a:b'"),
        ({"name": "a.b"}, "tool name 'a.b'"),
        ({"name": "a" * 65}, "tool name"),
        ({"name": "a\n"}, "tool name"),
        ({"limit": "50/s"}, "must be a Limit"),
        ({"read_only": "yes"}, "read_only"),
        ({"after": "weather"}, r"after=\['weather'\]"),
        ({"after": ["function"]}, "circular.*'function' after 'function'"),
        ({"after": ["a", "a"]}, "twice"),
        ({"after": [len]}, "no tool of this App"),
        ({"after": [{}]}, "no tool of this App"),
    ],
)
def test_a_wrong_keyword_is_told_with_where_it_stands(app: App, options: dict[str, Any], told: str) -> None:
    def function(x: int) -> None:
        """Does nothing."""

    line = function.__code__.co_firstlineno
    with pytest.raises(DefinitionError, match=told) as caught:
        app.tool(**options)(function)
    assert f"function ({__file__}:{line}): " in str(caught.value)
    assert app.tool_specs() == []


def test_what_is_no_function_is_told_with_where_it_was_handed_over(app: App) -> None:
    class Callable:
        def __call__(self, x: int) -> None: ...

    for wrong in (Callable, Callable(), functools.partial(score, "abc"), len):
        with pytest.raises(DefinitionError, match="a tool is a function") as caught:
            app.tool(queue="io")(wrong)
        assert f" ({__file__}:" in str(caught.value)


def undocumented(x: int) -> None: ...


def only_arguments(x: int) -> None:
    """
    Args:
        x: A number.
    """


@pytest.mark.parametrize("function", [undocumented, only_arguments])
def test_a_tool_without_a_description_is_described_by_its_name(app: App, function: Any) -> None:
    app.tool(name="risk_score")(function)
    assert app.tools["risk_score"].spec.description == "risk score"


async def streaming(x: int) -> AsyncIterator[int]:
    """Streams."""
    yield x


def generating(x: int) -> Iterator[int]:
    """Generates."""
    yield x


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (streaming, "generator"),
        (generating, "generator"),
        (int, "a tool is a function, not a type"),
        ("score", "a tool is a function, not a str"),
        (lambda x: x, "tool name '<lambda>'"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(app: App, function: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        app.tool(function)


@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_a_coroutine_runs_in_the_loop_only(app: App, run_in: Any) -> None:
    with pytest.raises(DefinitionError, match="for plain functions"):

        @app.tool(run_in=run_in)
        async def wait(x: int) -> None:
            """Waits."""


def test_a_function_at_the_top_of_its_module_may_run_in_a_process(app: App) -> None:
    app.tool(run_in="process")(score)
    assert app.tools["score"].run_in == "process"


def test_a_process_tool_that_another_process_could_not_import_is_refused_at_start(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = score
    app.tool(run_in="process", name="hidden")(hidden)
    monkeypatch.setitem(globals(), "score", lambda report: 0.0)
    with pytest.raises(DefinitionError, match="'hidden' has run_in='process'"):
        app.check()


def test_two_tools_of_one_name_are_refused(app: App) -> None:
    declare(app, "a")
    app.remote_tool("b", queue="q", schema={"type": "object"}, description="Afar.")
    for name in ("a", "b"):
        with pytest.raises(DefinitionError, match=f"already a tool '{name}'"):
            declare(app, name)
        with pytest.raises(DefinitionError, match=f"already a tool '{name}'"):
            app.remote_tool(name, queue="q", schema={"type": "object"}, description="Afar.")


def test_tools_that_wait_for_each_other_are_refused_when_the_circle_closes(app: App) -> None:
    declare(app, "a", after=["c"])
    declare(app, "b", after=["a", "elsewhere"])
    app.check()
    with pytest.raises(DefinitionError, match=r"circular.*'a' after 'c' after 'b' after 'a'"):
        declare(app, "c", after=["b"])
    assert "c" not in app.tools


def test_a_circle_made_behind_our_back_is_seen_at_start(app: App) -> None:
    declare(app, "a", after=["b"])
    app.remote_tools["b"] = ToolSpec("b", "q", "Afar.", {"type": "object"}, after=["a"])
    with pytest.raises(DefinitionError, match="circular"):
        app.check()


def test_a_diamond_is_no_circle(app: App) -> None:
    declare(app, "a")
    declare(app, "b", after=["a"])
    declare(app, "c", after=["a"])
    declare(app, "d", after=["b", "c"])
    app.check()


# --- limits --------------------------------------------------------------------------------------------


def test_a_limit_knows_its_rate_a_second() -> None:
    assert Limit("crm", "600/m").per_second == 10.0
    assert Limit("crm", 5).per_second == 5.0
    assert Limit("mail", "1/min").per_second == pytest.approx(1 / 60)
    assert Limit("bulk", "2000/s").per_second == 2000.0


@pytest.mark.parametrize(
    ("name", "rate", "concurrency", "told"),
    [
        ("crm", "fast", None, "'fast' is no rate"),
        ("crm", 0, None, "more than 0"),
        ("a b", 1, None, "'a b'"),
        ("crm", 1, 0, "concurrency=0"),
        ("crm", 1, 10**30, "concurrency must be less than"),
        ("crm", "1/2d", None, "between one a day and 100,000 a second"),
        ("crm", "101/ms", None, "between one a day and 100,000 a second"),
    ],
)
def test_a_wrong_limit_is_refused(name: str, rate: str | float, concurrency: int | None, told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as caught:
        Limit(name, rate, concurrency)
    assert __file__ in str(caught.value)


def test_a_limit_is_for_all_or_for_each_tenant() -> None:
    assert Limit("crm", 5, per="tenant").spec("io") == LimitSpec("crm", "io", 5.0, None, "tenant")
    with pytest.raises(DefinitionError, match="per='user' must be one of 'tenant'"):
        Limit("crm", 5, per="user")  # type: ignore[arg-type]


def test_what_the_registry_is_told_of_limits_names_their_queue(app: App) -> None:
    declare(app, "a", limit=Limit("crm", "10/s", concurrency=3), queue="io")
    assert app.limit_specs() == [LimitSpec("crm", "io", 10.0, 3)]


def test_two_different_limits_of_one_name_are_refused(app: App) -> None:
    declare(app, "a", limit=Limit("crm", "10/s"))
    declare(app, "b", limit=Limit("crm", "600/m"))
    with pytest.raises(DefinitionError, match="differs"):
        declare(app, "c", limit=Limit("crm", "11/s"))
    with pytest.raises(DefinitionError, match="differs"):
        declare(app, "d", limit=Limit("crm", "10/s", per="tenant"))


def test_the_tools_of_a_limit_are_in_one_queue(app: App) -> None:
    crm = Limit("crm", "10/s")
    declare(app, "a", limit=crm, queue="io")
    with pytest.raises(DefinitionError, match="'io' by 'a', and here in 'cpu'"):
        declare(app, "b", limit=crm, queue="cpu")
    with pytest.raises(DefinitionError, match="one queue"):
        app.remote_tool("c", queue="go", schema={"type": "object"}, description="Afar.", limit=crm)


# --- the App, the Call, the package --------------------------------------------------------------------------


def test_the_namespace_is_the_name_in_lower_case_unless_said() -> None:
    assert App("Shop").namespace == "shop"
    assert App("Shop", namespace="team.shop").namespace == "team.shop"
    with pytest.raises(DefinitionError, match="'my shop'"):
        App("My Shop")


def test_a_call_logs_its_fields_beside_those_of_the_tool(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="anabranch.tool"):
        CALL.log.info("refunded", extra={"cents": 5})
    record = vars(caplog.records[0])
    assert (record["call_id"], record["run_id"], record["attempt"], record["tenant"]) == (CALL.id, "run-1", 2, "acme")
    assert record["cents"] == 5


def test_a_call_and_a_retryable_survive_the_way_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(CALL))
    assert copy == CALL
    assert copy.log.extra == CALL.log.extra
    error = pickle.loads(pickle.dumps(Retryable("busy", after=2.0)))
    assert (str(error), error.after) == ("busy", 2.0)
    limited = pickle.loads(pickle.dumps(RateLimited("slow down", after=30)))
    assert (str(limited), limited.after) == ("slow down", 30.0)
    assert RateLimited(after="30").after == 30.0, "as the header says it"
    assert RateLimited(after="5m").after == 300.0


@pytest.mark.parametrize(
    "after", [-1, float("inf"), float("nan"), pytest.param(10**310, id="huge"), "soon", "Sun, 99 Nov 2026 12:00:00 GMT",
     f"Sun, 22 Nov {10**12} 12:00:00 GMT"],
)  # fmt: skip
def test_a_pause_that_is_none_is_refused(after: float | str) -> None:
    with pytest.raises(ValueError, match="seconds to wait"):
        RateLimited(after=after)
    with pytest.raises(ValueError, match="seconds to wait"):
        Retryable("busy", after=after)


def test_a_pause_may_be_the_date_of_a_retry_after_header(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = 1_795_348_800.0
    monkeypatch.setattr("time.time", lambda: noon)
    for minutes, left_s in (("00:30", 30.0), ("05:00", 300.0)):
        date = f"Sun, 22 Nov 2026 12:{minutes} GMT"
        assert (RateLimited(after=date).after, Retryable("busy", after=date).after) == (left_s, left_s)
    assert RateLimited(after="Sun, 22 Nov 2026 11:59:59 GMT").after == 0.0, "the time has come"


def test_the_package_exports_what_users_need() -> None:
    assert {"App", "Agent", "Call", "Limit", "RateLimited", "Retryable", "text", "image", "AnabranchError"} <= set(
        anabranch.__all__
    )
    assert all(hasattr(anabranch, name) for name in anabranch.__all__)
    assert anabranch.__version__[0].isdigit()


def test_importing_the_package_brings_no_client_along() -> None:
    code = (
        "import anabranch, sys; print({'aiokafka', 'anthropic', 'aiolimiter', 'aiohttp', 'obstore'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
