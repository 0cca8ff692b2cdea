"""A function's signature and docstring become what the model is told, and its input becomes typed arguments."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import tracemalloc
from typing import Annotated, Any, Literal, Optional

import jsonschema_rs
import pytest
from pydantic import BaseModel, Field
from tests.support.described import read
from typing_extensions import TypedDict

from anabranch import ArgumentsError, Call, DefinitionError
from anabranch.declarations.schema import check_schema


class Address(BaseModel):
    street: str
    zip: str = Field(description="Five digits.", pattern=r"^\d{5}$")


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclasses.dataclass
class Item:
    sku: str
    count: int = 1


class Options(TypedDict, total=False):
    gift: bool


class Node(BaseModel):
    name: str
    children: list[Node] = []


class Opaque:
    pass


async def order(
    customer_id: int,
    address: Address,
    items: list[Item],
    size: Size,
    when: dt.datetime,
    pair: tuple[int, str],
    call: Call,
    *,
    mode: Literal["fast", "slow"] = "fast",
    tags: set[str] = frozenset(),  # type: ignore[assignment]
    prices: dict[str, float] | None = None,
    either: int | str = 3,
    options: Optional[Options] = None,  # noqa: UP045
    limit: Annotated[int, Field(ge=1, le=9, description="How many.")] = 5,
) -> Opaque:
    """Order things."""
    return Opaque()


INPUT = {
    "customer_id": 7,
    "address": {"street": "Main", "zip": "12345"},
    "items": [{"sku": "a"}, {"sku": "b", "count": 2}],
    "size": "l",
    "when": "2024-05-06T07:08:09Z",
    "pair": [1, "x"],
    "tags": ["t", "t"],
    "options": {"gift": True},
}


def test_arguments_arrive_typed() -> None:
    assert read(order).arguments.bind(INPUT) == {
        "customer_id": 7,
        "address": Address(street="Main", zip="12345"),
        "items": [Item("a"), Item("b", 2)],
        "size": Size.LARGE,
        "when": dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC),
        "pair": (1, "x"),
        "mode": "fast",
        "tags": {"t"},
        "prices": None,
        "either": 3,
        "options": {"gift": True},
        "limit": 5,
    }


def test_the_schema_is_one_that_the_api_takes_and_fits_its_inputs() -> None:
    schema = read(order).input_schema
    check_schema(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert not {"oneOf", "anyOf", "allOf", "title"} & schema.keys()
    assert schema["required"] == ["customer_id", "address", "items", "size", "when", "pair"]
    assert schema["properties"]["mode"] == {"enum": ["fast", "slow"], "type": "string", "default": "fast"}
    assert schema["properties"]["limit"]["description"] == "How many."
    assert schema["properties"]["limit"]["maximum"] == 9
    assert schema["$defs"]["Address"]["properties"]["zip"]["description"] == "Five digits."
    assert jsonschema_rs.is_valid(schema, {**INPUT, "tags": ["t"]})


def test_a_parameter_annotated_call_is_left_out_whatever_its_name() -> None:
    def optional(x: int, context: Call | None = None) -> None: ...

    assert read(order).call_parameter == "call"
    assert "call" not in read(order).input_schema["properties"]
    assert read(optional).call_parameter == "context"
    assert read(optional).arguments.bind({"x": 1}) == {"x": 1}


def test_two_call_parameters_are_refused() -> None:
    def twice(a: Call, b: Call) -> None: ...

    with pytest.raises(DefinitionError, match=r"\['a', 'b'\]"):
        read(twice)


def test_a_function_without_parameters_has_an_empty_schema() -> None:
    def ping() -> None: ...

    assert read(ping).input_schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert read(ping).arguments.bind({}) == {}


def test_parameters_may_have_names_that_pydantic_keeps_for_itself() -> None:
    def odd(json: int, model_config: str, _private: bool, copy: int = 3, p0: int = 4) -> None: ...

    bound = read(odd).arguments.bind({"json": 1, "model_config": "m", "_private": True})
    assert bound == {"json": 1, "model_config": "m", "_private": True, "copy": 3, "p0": 4}


def test_a_recursive_model_is_described() -> None:
    def grow(tree: Node) -> None: ...

    bound = read(grow).arguments.bind({"tree": {"name": "a", "children": [{"name": "b"}]}})
    assert bound["tree"].children[0] == Node(name="b")


def test_a_default_of_none_lets_the_model_say_null() -> None:
    def search(limit: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    assert read(search).arguments.bind({"limit": None}) == {"limit": None}
    assert jsonschema_rs.is_valid(read(search).input_schema, {"limit": None})


def test_a_type_of_the_place_where_the_tool_is_defined_is_found() -> None:
    class Local(BaseModel):
        x: int

    def use(local: Local) -> None: ...

    assert read(use, Local=Local).arguments.bind({"local": {"x": 1}}) == {"local": Local(x=1)}


# --- what the model is told of its mistakes ------------------------------------------------------------


def test_each_wrong_argument_has_a_line_that_says_what_was_wrong_and_given() -> None:
    def refund(customer_id: int, cents: int, why: Literal["late", "broken"]) -> None: ...

    with pytest.raises(ArgumentsError) as caught:
        read(refund).arguments.bind({"customer_id": "Müller", "why": "bored", "amount": 12})
    head, *lines = str(caught.value).splitlines()
    assert head == "the input of order does not fit its schema:"
    assert lines[0].startswith("- customer_id: Input should be a valid integer")
    assert lines[0].endswith('(given: "Müller")')
    assert lines[1] == "- cents: missing"
    assert lines[2] == "- why: Input should be 'late' or 'broken' (given: \"bored\")"
    assert lines[3] == "- amount: no such argument; there are: customer_id, cents, why (given: 12)"
    assert len(lines) == 4


def test_a_mistake_inside_an_argument_is_named_by_its_path() -> None:
    with pytest.raises(ArgumentsError, match=r"- address\.zip: String should match.*\n- items\.0\.count: .*integer"):
        read(order).arguments.bind(
            {**INPUT, "address": {"street": "x", "zip": "1"}, "items": [{"sku": "a", "count": "n"}]}
        )


@pytest.mark.parametrize("given", [[1], "text", None, {"x": "\ud800"}])
def test_an_input_that_is_no_object_or_no_json_is_refused(given: Any) -> None:
    def one(x: str) -> None: ...

    with pytest.raises(ArgumentsError, match="input of order"):
        read(one).arguments.bind(given)


def test_a_long_value_is_shown_in_part() -> None:
    def one(x: int) -> None: ...

    with pytest.raises(ArgumentsError) as caught:
        read(one).arguments.bind({"x": "9" * 10_000 + "!"})
    assert len(str(caught.value)) < 500


def test_a_hundred_thousand_mistakes_take_little_more_memory_than_the_first() -> None:
    """What was given is not told of so many: as objects, each with that, they took seconds."""

    def add(items: list[int]) -> None: ...

    bind, given = read(add).arguments.bind, ["x"] * 100_000
    tracemalloc.start()
    try:
        with pytest.raises(ArgumentsError) as caught:
            bind({"items": given})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    first, *lines = str(caught.value).splitlines()[1:]
    assert first == "- items.0: Input should be a valid integer, unable to parse string as an integer"
    assert (len(lines), lines[-1]) == (20, "- and 99980 more")


# --- docstrings ------------------------------------------------------------------------------------------

GOOGLE = """Find customers.

    Slow on Mondays.

    Args:
        query: What to look for,
            in words.
        limit (int): How many.

    Returns:
        The customers.
    """
NUMPY = """Find customers.

    Slow on Mondays.

    Parameters
    ----------
    query : str
        What to look for,
        in words.
    limit : int
        How many.

    Returns
    -------
    list
        The customers.
    """
REST = """Find customers.

    Slow on Mondays.

    :param query: What to look for,
        in words.
    :type query: str
    :param limit: How many.
    :returns: The customers.
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_a_docstring_describes_the_parameters_and_the_rest_describes_the_tool(docstring: str) -> None:
    def find(query: str, limit: int = 5) -> None: ...

    find.__doc__ = docstring
    description = read(find)
    properties = description.input_schema["properties"]
    assert properties["query"]["description"] == "What to look for, in words."
    assert properties["limit"]["description"] == "How many."
    assert description.text.startswith("Find customers.\n\nSlow on Mondays.\n\n")
    assert "The customers." in description.text
    assert "How many." not in description.text
    assert "Args" not in description.text
    assert "Parameters" not in description.text


def test_a_field_description_wins_over_the_docstring() -> None:
    def find(query: Annotated[str, Field(description="From the field.")], address: Address) -> None:
        """Find.

        Args:
            query: From the docstring.
            address: Where.
        """

    properties = read(find).input_schema["properties"]
    assert properties["query"]["description"] == "From the field."
    assert properties["address"] == {"$ref": "#/$defs/Address", "description": "Where."}


def test_a_docstring_without_parameters_is_kept_as_written() -> None:
    def find(query: str) -> None:
        """Find: the quick way.

        Example::

            find("x")
        """

    assert read(find).text == 'Find: the quick way.\n\nExample::\n\n    find("x")'
