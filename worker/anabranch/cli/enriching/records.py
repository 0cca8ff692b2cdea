"""Records to enrich: read from JSONL or CSV, turned into prompts, and named. PURE.

Responsible for: saying which lines are no records and why, filling a template with a record's fields, and deriving a
run's id from what the run is about, so that the same command asks for the same runs.
Must never: hold more than one record, or repair one. Called by `enrich`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from anabranch.bodies import MAX_DEPTH, depth_of
from anabranch.errors import AnabranchError
from anabranch.fields import Json
from anabranch.wording import counted

CELL_BYTES: Final = 1_000_000
"""The largest cell of a CSV file: a record of Kafka takes no more."""
_BOM: Final = b"\xef\xbb\xbf"
_NAME_CHARS, _AGENT_CHARS, _PLACE_CHARS = re.compile(r"[^A-Za-z0-9._:-]+", re.ASCII), 32, 32


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the input; `line` is where it begins, counted from 1."""

    line: int
    data: dict[str, Json]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record, or one that cannot be asked about."""

    line: int
    problem: str


# --- reading ----------------------------------------------------------------------------------------------------


def read_jsonl(lines: Iterable[bytes]) -> Iterator[Record | BadLine]:
    """One JSON object a line; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        body = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if body:
            yield _record(number, body)


def _record(number: int, body: bytes) -> Record | BadLine:
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(data, dict):
            return BadLine(number, f"it must be a JSON object, not {_kind(data)}")
        if depth_of(data) > MAX_DEPTH:
            return BadLine(number, f"it nests deeper than {MAX_DEPTH} levels")
        canonical(data)
    except UnicodeDecodeError as error:
        return BadLine(number, f"it is not UTF-8: byte {error.start + 1} of it is {error.object[error.start]:#04x}")
    except UnicodeEncodeError:
        return BadLine(number, "it has half of a surrogate pair in a text, which no encoding can write")
    except json.JSONDecodeError as error:
        return BadLine(number, f"it is not JSON: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        return BadLine(number, f"it is not JSON: {error}")
    except RecursionError:
        return BadLine(number, f"it nests deeper than {MAX_DEPTH} levels")
    return Record(number, data)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def read_csv(lines: Iterable[bytes], recipe: Recipe | None = None) -> Iterator[Record | BadLine]:
    """A header line, then one record a row, all values texts. Raises `AnabranchError` for a header that is no good, or
    lacks a column that `recipe` asks for: so would each row.
    """
    csv.field_size_limit(CELL_BYTES)
    texts = _Texts(lines)
    rows = csv.reader(texts, strict=True)
    try:
        names = next(rows, None)
    except csv.Error as error:
        mend = "save the file as UTF-8, with lines that end in a line feed"
        raise AnabranchError(f"line 1 of the CSV file, its header, cannot be read: {error}; {mend}") from None
    if names is None:
        return
    _check_header(names)
    if recipe is not None:
        recipe.check(names)
    yield from _rows(rows, texts, names)


class _Texts:
    """Lines as texts. `number` is that of the last one, from 1, `quotes` how many there were since it was set to 0."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines, self.number, self.quotes = iter(lines), 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.quotes += line.count(b'"')
        return (line.removeprefix(_BOM) if self.number == 1 else line).decode("utf-8", "surrogateescape")

    def pass_over_cell(self) -> None:
        """To the end of the row in which a quotation mark was left open: what follows it is no row."""
        while self.quotes % 2 and next(self, None) is not None:
            pass


def _check_header(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    what = None
    if not names:
        what = "is empty: it must name the columns"
    elif not _is_writable(names):
        what = "is not UTF-8: save the file as UTF-8"
    elif twice or "" in names:
        what = f"names {twice[0]!r} twice" if twice and twice[0] else "has a column without a name"
        what += ": give each column a name of its own"
    if what is not None:
        raise AnabranchError(f"line 1 of the CSV file, its header, {what}")


def _is_writable(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(rows: Iterator[list[str]], texts: _Texts, names: Sequence[str]) -> Iterator[Record | BadLine]:
    while True:
        begins, texts.quotes = texts.number + 1, 0
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield BadLine(begins, _problem_in_row(str(error), texts))
            continue
        if cells is None:
            return
        if cells:
            yield _row(begins, names, cells)


def _problem_in_row(error: str, texts: _Texts) -> str:
    """What the csv module says, or what it means by it."""
    if error == "unexpected end of data":
        return "a quotation mark in it is never closed, so what is behind it cannot be read"
    if error.startswith("field larger than"):
        texts.pass_over_cell()
        return f"it has a cell of more than {CELL_BYTES:,} characters"
    return f"it is not CSV: {error}"


def _row(line: int, names: Sequence[str], cells: Sequence[str]) -> Record | BadLine:
    if len(cells) != len(names):
        return BadLine(line, f"it has {counted(len(cells), 'column')}, and the header has {len(names)}")
    if not _is_writable(cells):
        return BadLine(line, "it is not UTF-8")
    return Record(line, dict(zip(names, cells, strict=True)))


# --- prompts ----------------------------------------------------------------------------------------------------


class MissingField(Exception):
    """The record has no such field."""


class _Fields(string.Formatter):
    """`{name}` and `{address.city}`; what is no text is written as JSON has it, not as Python does."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        if field_name in kwargs:
            return kwargs[field_name], field_name
        value: Any = kwargs
        for part in re.split(r"[.\[\]]+", field_name.rstrip("]")):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                raise MissingField(field_name)
        return value, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None or isinstance(value, bool | dict | list):
            value = json.dumps(value, ensure_ascii=False)
        return format(value, format_spec)


@dataclass(frozen=True, slots=True)
class Template:
    """The prompt of each record. Without a text it is the record itself, as JSON."""

    text: str | None = None

    def __post_init__(self) -> None:
        """Raises `AnabranchError` for a text that is no template."""
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.text or "") if name is not None]
        except ValueError as error:
            raise AnabranchError(f"the template cannot be read: {error} (write {{{{ and }}}} for braces)") from None
        if "" in fields:
            raise AnabranchError("the template has {} in it: name a field of the record, such as {name}")

    def prompt(self, data: Mapping[str, Json]) -> str:
        """The template with the record's fields. Raises `MissingField`, or ValueError for a wrong format."""
        if self.text is None:
            return json.dumps(data, ensure_ascii=False)
        return _Fields().vformat(self.text, (), data)


# --- jobs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A record with its prompt. `run_id` is that of the first try."""

    line: int
    data: dict[str, Json]
    prompt: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked about each record. `id_field` names records by one of their fields instead of by their line."""

    namespace: str
    agent: str
    template: Template
    id_field: str | None = None

    @property
    def mark(self) -> str:
        """8 hex digits that all runs of this recipe have in their ids."""
        return _digest([self.namespace, self.agent, self.template.text, self.id_field])[:8]

    def check(self, columns: Sequence[str]) -> None:
        """Raises `AnabranchError` if records of these columns, all texts, lack a field."""
        lacks = f"--id-field {self.id_field!r}" if self.id_field not in (None, *columns) else None
        try:
            self.template.prompt(dict.fromkeys(columns, ""))
        except MissingField as error:
            lacks = f"{{{error}}} of the template"
        except (ValueError, TypeError):
            pass  # that depends on what stands in a row
        if lacks is not None:
            raise AnabranchError(f"the CSV file has no column for {lacks}: it has {', '.join(columns)}")

    def run_id(self, place: str, data: Mapping[str, Json]) -> str:
        """`<agent>-<place>-<mark>-<16 hex digits>`, at most 92 characters."""
        agent, where = _NAME_CHARS.sub("_", self.agent)[:_AGENT_CHARS], _NAME_CHARS.sub("_", place)[:_PLACE_CHARS]
        mark = self.mark
        return f"{agent}-{where}-{mark}-{_digest([mark, place, canonical(data).decode()])[:16]}"


def jobs(records: Iterable[Record | BadLine], recipe: Recipe) -> Iterator[Job | BadLine]:
    """A job for each record; bad lines are passed on, and records join them that cannot be asked about."""
    seen: set[str] = set()
    for record in records:
        yield record if isinstance(record, BadLine) else _job(record, recipe, seen)


def _job(record: Record, recipe: Recipe, seen: set[str]) -> Job | BadLine:
    try:
        prompt = recipe.template.prompt(record.data)
    except MissingField as error:
        return BadLine(record.line, f"it has no field {str(error)!r}, which the template asks for")
    except (ValueError, TypeError) as error:
        return BadLine(record.line, f"the template does not fit it: {error}")
    if not prompt.strip():
        return BadLine(record.line, "its prompt is empty")
    place = str(record.line)
    if recipe.id_field is not None:
        value = record.data.get(recipe.id_field)
        if value is None or isinstance(value, dict | list):
            return BadLine(record.line, f"it has no id in the field {recipe.id_field!r}")
        place = str(value)
        if place in seen:
            return BadLine(record.line, f"its {recipe.id_field} {place!r} has come before")
        seen.add(place)
    return Job(record.line, record.data, prompt, recipe.run_id(place, record.data))


def canonical(data: Mapping[str, Json]) -> bytes:
    """The record in the one form that its id is derived from: the order of its fields does not matter. Raises
    ValueError for what has none.
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _digest(parts: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- tries --------------------------------------------------------------------------------------------------------

_RUN_ID: Final = re.compile(r"(?P<first>.+-(?P<mark>[0-9a-f]{8})-[0-9a-f]{16})(?:\.(?P<tries>\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Try:
    """A run id taken apart: which record (the id of its first try), of which recipe, and which try it is, from 1."""

    first: str
    mark: str
    number: int = 1


def read_run_id(run_id: str) -> Try | None:
    """The opposite of `Recipe.run_id` and `again`; None for an id that is of no recipe."""
    found = _RUN_ID.fullmatch(run_id)
    return Try(found["first"], found["mark"], int(found["tries"] or 1)) if found else None


def again(first: str, number: int) -> str:
    """The run id of try `number` of a record: another run, because the answer of the same one would be repeated."""
    return first if number == 1 else f"{first}.{number}"
