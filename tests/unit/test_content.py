"""What a tool returns becomes content that the Messages API takes, and nothing is lost silently."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import itertools
import json
import re
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict

from anabranch.content import ResultError, cut, image, text, to_content


class Customer(BaseModel):
    name: str
    score: float


@dataclasses.dataclass
class Order:
    id: int
    at: dt.date


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("plain", "plain"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (12, "12"),
        ([], "[]"),
        ({"a": 1}, '{"a":1}'),
        ([1, "two"], '[1,"two"]'),
        (Customer(name="Ada", score=1.5), '{"name":"Ada","score":1.5}'),
        ([Order(1, dt.date(2024, 5, 6))], '[{"id":1,"at":"2024-05-06"}]'),
        (Colour.RED, "red"),
        ("żółw 🐢", "żółw 🐢"),
    ],
)
def test_a_value_becomes_text_or_json(value: object, content: str) -> None:
    assert to_content(value) == content


def test_nan_and_infinity_become_null_so_that_the_json_is_valid() -> None:
    found = to_content({"a": float("nan"), "b": [float("-inf")], "c": Customer(name="NaN", score=float("nan"))})
    assert isinstance(found, str)
    assert orjson.loads(found) == {"a": None, "b": [None], "c": {"name": "NaN", "score": None}}


def test_a_model_configured_to_write_nan_still_gives_valid_json() -> None:
    class Loose(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")
        score: float

    found = to_content(Loose(score=float("nan")))
    assert isinstance(found, str)
    assert orjson.loads(found) == {"score": None}


def test_a_lone_surrogate_in_a_text_is_replaced() -> None:
    found = to_content("broken \ud83d end")
    assert found == "broken \ufffd end"
    assert to_content("pair \ud83d\ude00") == "pair 😀"


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "object"), ({"f": lambda: 1}, "dict"), ({"a": "\ud800"}, "dict"), (b"\xff\xfe", "bytes")],
)
def test_what_has_no_json_is_refused_with_its_type(value: object, named: str) -> None:
    with pytest.raises(ResultError, match=f"returned a {named}.*should return a string") as caught:
        to_content(value)
    caught.value.args[0].encode()


def test_a_generator_is_refused_before_it_runs() -> None:
    """It would run on the worker's loop, where no timeout reaches it."""
    numbers = itertools.count()
    with pytest.raises(ResultError, match=r"returned a generator.*should return a list"):
        to_content(number for number in numbers)
    assert next(numbers) == 0


def test_a_circular_value_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultError, match="Circular"):
        to_content(value)


def test_blocks_stay_blocks() -> None:
    picture = image(b"\x89PNG", "image/png")
    assert picture == {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()},
    }
    assert to_content(picture) == [picture]
    assert to_content([text("see:"), picture]) == [{"type": "text", "text": "see:"}, picture]
    assert to_content(("see:", picture)) == [{"type": "text", "text": "see:"}, picture]


def test_empty_text_blocks_are_left_out_because_the_api_refuses_them() -> None:
    picture = image(b"x", "image/gif")
    assert to_content([text(""), picture, text(" \n")]) == [picture]
    assert to_content([text("")]) == ""


@pytest.mark.parametrize(
    "value",
    [
        {"type": "text", "body": "a tool's own"},
        {"type": "image", "url": "cat.png"},
        {"type": "image", "source": {"camera": 3}},
        {"type": "text", "text": "x", "author": "Ada"},
        {"type": "text", "text": "x", "title": "Ada"},
        {"type": "order", "id": 1},
        [{"type": "text", "text": "block"}, {"id": 1}],
    ],
)
def test_data_that_only_looks_like_a_block_becomes_json(value: object) -> None:
    found = to_content(value)
    assert isinstance(found, str)
    assert json.loads(found) == value


def test_a_block_that_is_no_json_is_refused() -> None:
    with pytest.raises(ResultError, match="content block"):
        to_content({"type": "image", "source": {"type": "base64", "data": b"raw"}})


@pytest.mark.parametrize(("data", "media_type"), [(b"x", "image/tiff"), (b"", "image/png"), ("text", "image/png")])
def test_an_image_that_the_api_refuses_is_refused(data: Any, media_type: str) -> None:
    with pytest.raises(ResultError, match="image"):
        image(data, media_type)


PICTURE = image(b"\x89PNG", "image/png")
CITED = {"type": "char_location", "cited_text": "so", "document_index": 0, "start_char_index": 0, "end_char_index": 2}


def document(source: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"type": "document", "source": source, **others}


def found(*content: Any, **others: Any) -> dict[str, Any]:
    return {"type": "search_result", "source": "https://x.example", "title": "x", "content": list(content), **others}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "url", "url": "https://x.example/cat.png"}, "cache_control": None},
        {**text("so"), "cache_control": {"type": "ephemeral"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}, "transformations": {}},
        document({"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}, title="x", context=None),
        document({"type": "text", "media_type": "text/plain", "data": "so"}, citations={"enabled": True}),
        document({"type": "content", "content": [text("so"), PICTURE]}, citations={}),
        document({"type": "content", "content": "so"}),
        document({"type": "url", "url": "http://x.example/a.pdf"}),
        document({"type": "file", "file_id": "file_1"}),
        found(text("so"), citations={"enabled": False}),
        {**text("so"), "citations": [CITED]},
    ],
)
def test_a_block_that_the_api_takes_stays_as_it_is(block: dict[str, Any]) -> None:
    assert to_content([block]) == [block]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"type": "base64", "media_type": "image/tiff", "data": "AAAA"}, "image of type 'image/tiff' is not taken"),
        ({"type": "base64", "media_type": ["image/png"], "data": "AAAA"}, "source.media_type must be a text"),
        ({"type": "base64", "data": "AAAA"}, "must have media_type and data, and nothing else"),
        ({"type": "base64", "media_type": "image/png"}, "must have media_type and data"),
        ({"type": "base64", "media_type": "image/png", "data": ""}, "source.data must be a text, and not an empty"),
        ({"type": "base64", "media_type": "image/png", "data": "data:image/png;base64,AA"}, "must be base64"),
        ({"type": "base64", "media_type": "image/png", "data": "AAA"}, "must be base64"),
        ({"type": "base64", "media_type": "image/png", "data": "A==="}, "must be base64"),
        ({"type": "base64", "media_type": "image/png", "data": "AAAA", "name": "cat"}, "nothing else"),
        ({"type": "url", "url": "cat.png"}, "source.url='cat.png' must be an address"),
        ({"type": "file", "file_id": 3}, "source.file_id must be a text"),
        ({"type": "bytes", "data": "AAAA"}, "source.type='bytes' must be one of 'base64', 'url', 'file'"),
        ({"type": ["url"], "url": "https://x.example"}, "source.type="),
    ],
)
def test_an_image_block_that_the_api_refuses_is_refused(source: dict[str, Any], told: str) -> None:
    with pytest.raises(ResultError, match=f"a block of type 'image': .*{re.escape(told)}"):
        to_content([text("see"), {"type": "image", "source": source}])


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({**text("so"), "citations": ["so"]}, "citations=['so'] must be a list of citations"),
        ({**PICTURE, "title": "cat"}, "has no 'title': leave it out"),
        ({**PICTURE, "transformations": "none"}, "transformations='none' must be an object"),
        (document({"type": "base64", "media_type": "text/plain", "data": "AAAA"}), "a document of type 'text/plain'"),
        (document({"type": "text", "media_type": "text/html", "data": "so"}), "use one of text/plain"),
        (document({"type": "text", "media_type": "text/plain", "data": b"so"}), "JSON"),
        (document({"type": "content", "content": 3}), "source.content must be a text"),
        (document({"type": "content", "content": ["so"]}), "source.content.0 must be a block of type text or image"),
        (
            document({"type": "content", "content": [text("so"), {**PICTURE, "citations": []}]}),
            "source.content.1: a block of type 'image' has no 'citations'",
        ),
        (document({"type": "file", "file_id": "file_1"}, citations=True), "citations=True must be {'enabled'"),
        (document({"type": "file", "file_id": "file_1"}, citations={"enabled": "yes"}), "citations="),
        (document({"type": "file", "file_id": "file_1"}, title=["x"]), "title=['x'] must be a text"),
        (found("so"), "content.0 must be a block of type text"),
        (found(text("so"), PICTURE), "content.1 must be a block of type text"),
        (found({"type": "text", "body": "so"}), "content.0: it must have text"),
        (found(text(" ")), "content.0: its text is blank"),
        (found(text("so"), context="x"), "has no 'context'"),
    ],
)
def test_another_block_that_the_api_refuses_is_refused(block: dict[str, Any], told: str) -> None:
    with pytest.raises(ResultError, match=re.escape(told)):
        to_content(["see", block])


def test_a_long_text_is_cut_visibly_with_its_original_size() -> None:
    found = cut("a" * 1_234_567, 32_768)
    assert found == "a" * 32_768 + "... [cut: 32,768 of 1,234,567 bytes shown]"


def test_a_text_that_fits_exactly_is_left_alone() -> None:
    assert cut("żó", 4) == "żó"


@pytest.mark.parametrize("max_bytes", range(1, 12))
def test_a_cut_never_splits_a_character(max_bytes: int) -> None:
    found = cut("ż🐢ó水", max_bytes)
    assert isinstance(found, str)
    shown = found.split("... [cut")[0]
    assert "ż🐢ó水".startswith(shown)
    assert len(shown.encode()) <= max_bytes


def test_an_image_over_the_limit_is_replaced_by_a_text_that_says_so() -> None:
    picture = image(b"x" * 3000, "image/png")
    size = len(orjson.dumps(picture))
    assert cut([text("hello"), picture, text("bye")], 100) == [
        text("hello"),
        text(f"[image/png of {size:,} bytes not shown: the limit is 100 bytes]"),
        text("bye"),
    ]
    assert cut([picture], size) == [picture]


def test_blocks_share_one_limit_and_the_rest_is_counted() -> None:
    found = cut([text("a" * 60), text("b" * 60), text("c"), text("d")], 100)
    assert found == [
        text("a" * 60),
        text("b" * 40 + "... [cut: 40 of 60 bytes shown]"),
        text("[cut: 2 more blocks are not shown]"),
    ]
