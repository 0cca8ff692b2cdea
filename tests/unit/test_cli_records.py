"""What `enrich` makes of the lines of a file: records, prompts, run ids."""

from __future__ import annotations

import re

import pytest

from anabranch.cli.enriching.records import (
    CELL_BYTES,
    BadLine,
    Job,
    Recipe,
    Record,
    Template,
    again,
    jobs,
    read_csv,
    read_jsonl,
    read_run_id,
)
from anabranch.errors import AnabranchError
from anabranch.fields import is_name

RECIPE = Recipe("shop", "analyst", Template("Assess {name}"))


def test_each_line_of_jsonl_is_a_record_and_empty_lines_are_passed_over() -> None:
    lines = [b'\xef\xbb\xbf{"a": 1}\n', b"\n", b'  {"b": [1, null]}\r\n', b'{"c": 123456789012345678901234567890}']
    assert list(read_jsonl(lines)) == [
        Record(1, {"a": 1}),
        Record(3, {"b": [1, None]}),
        Record(4, {"c": 123456789012345678901234567890}),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": ', "not JSON"),
        (b"[1]", "not a list"),
        (b"7", "not a number"),
        (b"null", "not null"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "Out of range"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "deeper than"),
        (b'{"a": ' + b"[" * 100_000, "deeper than"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_next_one_is_read(line: bytes, problem: str) -> None:
    first, bad, last = read_jsonl([b'{"a": 1}', line, b'{"a": 2}'])
    assert isinstance(bad, BadLine)
    assert bad.line == 2
    assert problem in bad.problem
    assert (first, last) == (Record(1, {"a": 1}), Record(3, {"a": 2}))


def test_csv_records_are_named_by_the_line_where_they_begin() -> None:
    lines = [b"\xef\xbb\xbfid,name\n", b'1,"Bo\n', b'Diddley"\n', b"2\n", b"\n", b"3,Cy\n", b"4,\xff\n"]
    assert list(read_csv(lines)) == [
        Record(2, {"id": "1", "name": "Bo\nDiddley"}),
        BadLine(4, "it has 1 column, and the header has 2"),
        Record(6, {"id": "3", "name": "Cy"}),
        BadLine(7, "it is not UTF-8"),
    ]


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"id,id\n", "names 'id' twice"),
        (b"id,\n", "has a column without a name"),
        (b"\n", "is empty"),
        ("id,größe\n".encode("latin-1"), "is not UTF-8"),
        ("id,name\n".encode("utf-16"), "cannot be read: .*; save the file as UTF-8"),
    ],
)
def test_a_csv_header_that_does_not_name_each_column_is_refused(header: bytes, told: str) -> None:
    with pytest.raises(AnabranchError, match=f"header, {told}"):
        list(read_csv([header, b"1,2\n"]))


@pytest.mark.parametrize(
    ("template", "id_field", "told"),
    [
        ("{nam}", None, "{nam} of the template"),
        ("{name.first}", None, "{name.first} of the template"),
        ("{name}", "ident", "--id-field 'ident'"),
    ],
)
def test_a_csv_file_without_a_column_that_is_asked_for_is_refused_once(
    template: str, id_field: str | None, told: str
) -> None:
    recipe = Recipe("shop", "analyst", Template(template), id_field)
    with pytest.raises(AnabranchError, match=f"no column for {re.escape(told)}: it has id, name"):
        list(read_csv([b"id,name\n", b"1,Ann\n", b"2,Bo\n"], recipe))


def test_what_depends_on_a_row_costs_the_row_alone() -> None:
    recipe = Recipe("shop", "analyst", Template("{name:d}"), "id")
    assert len(list(read_csv([b"id,name\n", b"1,Ann\n"], recipe))) == 1


@pytest.mark.parametrize("rest", [[b'"\n'], [b"\n", b"a,row\n", b'the ""end"""\n'], [b"\n", b'end",more\n']])
def test_a_cell_that_is_too_large_costs_its_row_and_no_line_of_it_is_a_record(rest: list[bytes]) -> None:
    first, *others = rest
    lines = [b"id,name\n", b'1,"' + b"x" * CELL_BYTES + b"x" + first, *others, b"2,Bo\n"]
    assert list(read_csv(lines)) == [
        BadLine(2, "it has a cell of more than 1,000,000 characters"),
        Record(len(lines), {"id": "2", "name": "Bo"}),
    ]


def test_a_quotation_mark_that_is_never_closed_is_named_by_its_row() -> None:
    good, bad = read_csv([b"id,name\n", b"1,Ann\n", b'2,"Bo\n', b"3,Cy\n"])
    assert good == Record(2, {"id": "1", "name": "Ann"})
    assert bad == BadLine(3, "a quotation mark in it is never closed, so what is behind it cannot be read")


def test_a_template_reaches_into_the_record_and_writes_json_where_it_is_no_text() -> None:
    data = {"name": "Ann", "address": {"city": "Brno"}, "tags": ["a", "b"], "vip": True, "first name": "A."}
    text = "{name} of {address.city}, {tags[1]}, {tags}, {vip}, {first name}, {{}}"
    assert Template(text).prompt(data) == 'Ann of Brno, b, ["a", "b"], true, A., {}'


def test_without_a_template_the_prompt_is_the_record() -> None:
    assert Template().prompt({"b": "é", "a": 1}) == '{"b": "é", "a": 1}'


@pytest.mark.parametrize("text", ["{", "{}", "a } b"])
def test_a_text_that_is_no_template_is_refused_at_once(text: str) -> None:
    with pytest.raises(AnabranchError, match="template"):
        Template(text)


def test_a_template_reaches_nothing_but_the_record() -> None:
    [job] = jobs([Record(1, {"name": "Ann"})], Recipe("shop", "a", Template("{name.__class__}")))
    assert job == BadLine(1, "it has no field 'name.__class__', which the template asks for")


def test_a_record_without_a_field_of_the_template_is_reported_with_its_line() -> None:
    good, missing, bad = jobs([Record(1, {"name": "Ann"}), Record(2, {"nom": "B"}), BadLine(3, "no")], RECIPE)
    assert isinstance(good, Job)
    assert good.prompt == "Assess Ann"
    assert missing == BadLine(2, "it has no field 'name', which the template asks for")
    assert bad == BadLine(3, "no")


def test_a_run_id_depends_on_the_recipe_the_record_and_its_line_and_nothing_else() -> None:
    ids = {
        RECIPE.run_id("1", {"name": "Ann", "x": 1}),
        RECIPE.run_id("2", {"name": "Ann", "x": 1}),
        RECIPE.run_id("1", {"name": "Bo", "x": 1}),
        Recipe("shop2", "analyst", Template("Assess {name}")).run_id("1", {"name": "Ann", "x": 1}),
        Recipe("shop", "analyst2", Template("Assess {name}")).run_id("1", {"name": "Ann", "x": 1}),
        Recipe("shop", "analyst", Template("{name}")).run_id("1", {"name": "Ann", "x": 1}),
    }
    assert len(ids) == 6
    assert RECIPE.run_id("1", {"x": 1, "name": "Ann"}) in ids
    assert all(is_name(run_id) for run_id in ids)


def test_a_run_id_can_be_read_and_is_short_enough_whatever_it_is_made_of() -> None:
    run_id = Recipe("n", "ä" * 128, Template(), "id").run_id("ü / " * 100, {})
    assert is_name(again(run_id, 999_999_999))
    found = read_run_id(again(run_id, 3))
    assert found is not None
    assert (found.first, found.number, again(found.first, 1)) == (run_id, 3, run_id)
    assert re.match(r"analyst-7-[0-9a-f]{8}-", RECIPE.run_id("7", {}))


@pytest.mark.parametrize("run_id", ["", "run-1", "order-1234", "a-1-zzzzzzzz-0123456789abcdef"])
def test_other_run_ids_are_recognised_as_such(run_id: str) -> None:
    assert read_run_id(run_id) is None


def test_an_id_field_names_records_whatever_their_line_and_must_be_there_once() -> None:
    recipe = Recipe("shop", "analyst", Template(), "id")
    records = [Record(1, {"id": 7}), Record(2, {"id": 7, "x": 1}), Record(3, {}), Record(4, {"id": "8"})]
    first, twice, without, last = jobs(records, recipe)
    [moved] = jobs([Record(9, {"id": 7})], recipe)
    assert isinstance(first, Job)
    assert isinstance(moved, Job)
    assert isinstance(last, Job)
    assert first.run_id == moved.run_id
    assert isinstance(twice, BadLine)
    assert "has come before" in twice.problem
    assert without == BadLine(3, "it has no id in the field 'id'")
