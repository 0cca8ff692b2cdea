"""What no model can be told, and no API takes, is refused where a tool is defined, with the parameter's name."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from tests.support.described import read

from anabranch import DefinitionError
from anabranch.declarations.schema import check_schema


class Opaque:
    pass


def untyped(a: int, b) -> None:  # type: ignore[no-untyped-def]
    ...


class Shop:
    def find(self, x: int) -> None: ...


def several(*args: int) -> None: ...
def keywords(**kwargs: int) -> None: ...
def positional(a: int, /) -> None: ...
def opaque(thing: Opaque) -> None: ...
def callback(hook: Callable[[], None]) -> None: ...
def nowhere(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def sentinel(x: Any = object()) -> None: ...  # noqa: B008
def endless(x: float = float("inf")) -> None: ...
def unicode(größe: int) -> None: ...
def pattern(x: Annotated[str, Field(pattern="(")]) -> None: ...
def text_for_number(x: int = "7") -> None: ...  # type: ignore[assignment]
def number_for_some(x: str | dt.date | None = 7) -> None: ...  # type: ignore[assignment]
def none_of_them(x: Literal["a", "b"] = "c") -> None: ...  # type: ignore[assignment]
def described_number(x: Annotated[bool, Field(description="d")] = 1) -> None: ...  # type: ignore[assignment]
def field_default(x: int = Field(ge=1)) -> None: ...
def class_variable(x: ClassVar[int]) -> None: ...  # type: ignore[misc]
def more_than_text(x: Annotated[str, Field(gt=3)] | None = None) -> None: ...
def long_number(x: dict[str, Annotated[int, Field(max_length=3)]]) -> None: ...
def patterned(x: Annotated[list[int], Field(pattern="a")]) -> None: ...


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (untyped, "'b' has no type.*`b: str`"),
        (Shop.find, r"method without its object: hand over that of one, `app.tool\(Shop\(\).find\)`"),
        (several, r"'\*args' is variadic"),
        (keywords, r"'\*\*kwargs' is variadic"),
        (positional, "'a' is positional-only"),
        (opaque, "'thing'.*Opaque"),
        (callback, "'hook'"),
        (nowhere, "'Missing'.*TYPE_CHECKING"),
        (sentinel, "default.*'x' cannot be written as JSON"),
        (endless, "default inf.*'x'"),
        (text_for_number, "default '7' of the parameter 'x' is not of its type, int: change one"),
        (number_for_some, "default 7 of the parameter 'x' is not of its type"),
        (none_of_them, "default 'c' of the parameter 'x' is not of its type"),
        (described_number, "default 1 of the parameter 'x' is not of its type"),
        (unicode, "'größe' must be named"),
        (pattern, "'x'.*unclosed group"),
        (
            class_variable,
            r"'ClassVar\[int\]' of the parameter 'x' cannot be resolved .*is not valid as type argument\)$",
        ),
        (more_than_text, "'x': it asks for gt=3 of a value of type str, which none can meet"),
        (long_number, "'x': it asks for max_length=3 of a value of type int"),
        (patterned, "'x': it asks for pattern='a' of a value of type list"),
        (field_default, "Annotated"),
    ],
)
def test_what_the_model_cannot_be_told_is_refused_with_the_parameters_name(
    function: Callable[..., Any], told: str
) -> None:
    with pytest.raises(DefinitionError, match=told):
        read(function)


class Colour(StrEnum):
    RED = "red"


def short(x: Annotated[str, Field(min_length=1)] = "") -> None: ...
def of_an_enumeration(x: Colour = Colour.RED, y: Colour = "red") -> None: ...  # type: ignore[assignment]
def wider(x: float = 1, y: int | None = 2, z: Any = "z") -> None: ...
def parsed(x: Annotated[int, BeforeValidator(int), WithJsonSchema({"type": "string"})] = 7) -> None: ...


@pytest.mark.parametrize("function", [short, of_an_enumeration, wider, parsed])
def test_a_default_of_the_type_is_taken_as_it_is(function: Callable[..., Any]) -> None:
    """Also one that no model could give: it may mean that nothing was given."""
    read(function)


@pytest.mark.parametrize("hint", [ClassVar[int], Annotated[ClassVar[int], "note"]])
def test_a_class_variable_is_no_argument(hint: Any) -> None:
    def look(x: Any) -> None: ...

    look.__annotations__["x"] = hint
    with pytest.raises(DefinitionError, match="'x': a ClassVar is the class's: write the type alone"):
        read(look)


@pytest.mark.parametrize(
    ("hint", "given"),
    [
        (Annotated[str, AfterValidator(len), Field(gt=1)], "ab"),
        (Annotated[bool, Field(gt=0)], True),
        (Annotated[int, Field(coerce_numbers_to_str=True)], 12),
        (Annotated[int | float, Field(gt=1)], 2.5),
        (Annotated[list[int], Field(max_length=1)], [1]),
        (Annotated[dt.date, Field(gt=dt.date(2026, 1, 1))], "2026-01-02"),
    ],
)
def test_a_constraint_that_some_value_meets_is_taken(hint: Any, given: Any) -> None:
    def look(x: Any) -> None: ...

    look.__annotations__["x"] = hint
    read(look).arguments.bind({"x": given})


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ([], "object"),
        ({"type": "string"}, "object"),
        ({"properties": {}}, "object"),
        ({"type": "object", "anyOf": [{}]}, "anyOf"),
        ({"type": "object", "properties": {"a b": {}}}, "'a b'"),
        ({"type": "object", "properties": {"a" * 65: {}}}, "must be named"),
        ({"type": "object", "properties": 3}, "no valid JSON schema"),
        ({"type": "object", "properties": {"a": {"type": "strnig"}}}, "strnig"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/None"}}}, "no valid JSON schema"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/x.json"}}}, "nobody fetches"),
        ({"type": "object", "properties": {"a": {"default": float("nan")}}}, "no valid JSON schema"),
    ],
)
def test_a_schema_that_the_api_would_refuse_is_refused(schema: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        check_schema(schema)


def test_a_schema_with_definitions_is_taken() -> None:
    defs = {"P": {"type": "object", "properties": {"lat": {"type": "number"}}}}
    check_schema({"type": "object", "$defs": defs, "properties": {"at": {"$ref": "#/$defs/P"}}})
