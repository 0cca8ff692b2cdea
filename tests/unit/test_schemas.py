"""The contract as data: schemas that are up to date and valid, and records that fit them.

Responsible for: that `schemas/`, the tables of `contract`, the codec and `docs/wire.md` say the same.
Must never: test what a run does with a record.
Called by: pytest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import jsonschema_rs
import pytest

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.answer import answer, note_answer
from anabranch.agent.fold import apply
from anabranch.agent.outbox import call_record, response_record
from anabranch.agent.state import Partition, Run
from anabranch.agent.station import Station
from anabranch.bodies import dump, read, read_request
from anabranch.codec import Outgoing, cloud_event, decode, encode
from anabranch.contract import records as contract
from anabranch.contract import schemagen
from anabranch.contract.examples import AT, ATTEMPT, CALL, EXAMPLES, LIFE, RUN
from anabranch.contract.examples import EVENTS as EXAMPLE_EVENTS
from anabranch.contract.records import BODIES, EVENTS, KINDS, Anything, Kind, Some
from anabranch.errors import WireError
from anabranch.registry import worker_entry
from anabranch.topics import Namespace

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas"
OURS = Namespace("shop")
BY_EVENT = {kind.event: kind for kind in EVENTS}
BY_NAME = {kind.name: kind for kind in KINDS}
LOG = "## agent.log: what happens to runs"
LOGS = ("n.agent.requests", "n.agent.requests.bulk", "n.agent.log")
BODY_TABLES = {
    "run-request": "## agent.requests: asking for a run",
    "run-response": "## agent.responses: the answers",
    "tool-call": "## tool.calls: the work of tool workers",
}
EXAMPLE_IDS = [f"{type(event).__name__}-{number}" for number, event in enumerate(EXAMPLE_EVENTS)]


@dataclass(frozen=True)
class Read:
    """A record as a consumer gets it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    partition: int = 3
    offset: int = 41
    timestamp: int = 1767225600000


def as_read(sent: Outgoing) -> Read:
    return Read(sent.topic, sent.key, sent.value, sent.headers)


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_bytes())
    return loaded


def strict(node: Any) -> Any:
    """The schema as writers keep it: nothing but what it names."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items() if key not in ("examples", "contentSchema")}
    if isinstance(closed.get("properties"), dict) and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def assert_fits(document: Mapping[str, Any], value: Any) -> None:
    """`value` has all that the schema requires, and nothing that it does not name."""
    errors = [
        f"{list(error.instance_path)}: {error.message}" for error in jsonschema_rs.iter_errors(strict(document), value)
    ]
    assert errors == []


def assert_keeps_the_contract(kind: Kind, sent: Outgoing) -> None:
    """Headers and body of a record of ours are those of its kind."""
    names = [name for name, _ in sent.headers]
    assert len(set(names)) == len(names)
    headers = {name: value.decode() for name, value in sent.headers}
    assert_fits(kind.header_schema(), headers)
    for name, value in headers.items():
        if name == "ce_usage":
            assert_fits(schema("usage"), json.loads(value))
        elif name == "ce_plan":
            for entry in json.loads(value):
                assert_fits(schema("planned-call"), entry)
    assert sent.value is not None
    assert_fits(schema(kind.body), json.loads(sent.value))


# --- the files ---------------------------------------------------------------------------------------------------


def test_the_schemas_are_up_to_date() -> None:
    assert schemagen.differences(SCHEMAS) == [], "schemas/ is out of date: run `make schemas`"


def test_what_is_out_of_date_is_named_and_not_yet_written(tmp_path: Path) -> None:
    schemagen.write(tmp_path)
    assert schemagen.differences(tmp_path) == []
    (tmp_path / "usage.json").write_text("{}")
    (tmp_path / "forgotten.json").write_text("{}")
    (tmp_path / "reason.json").unlink()

    assert schemagen.differences(tmp_path) == ["forgotten.json", "reason.json", "usage.json"]
    assert (tmp_path / "usage.json").read_text() == "{}"


def test_writing_mends_what_differs_and_deletes_what_belongs_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "forgotten.json").write_text("{}")
    assert "forgotten.json" in schemagen.write(tmp_path)
    assert schemagen.differences(tmp_path) == []
    assert not (tmp_path / "forgotten.json").exists()


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_schema_is_valid_and_describes_every_field(name: str) -> None:
    document = schema(name)
    jsonschema_rs.meta.validate(document)
    assert document["$id"] == f"urn:anabranch:{name}"
    assert document["description"]
    if not isinstance(BODIES[name], Some):
        parts = [document, *document.get("$defs", {}).values()]
        bare = [
            field for part in parts for field, what in part.get("properties", {}).items() if "description" not in what
        ]
        assert bare == []


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_examples_of_a_schema_fit_it_and_can_be_read(name: str) -> None:
    document, kind = schema(name), BODIES[name]
    assert document["examples"]
    for example in document["examples"]:
        assert_fits(document, example)
        if not isinstance(kind, Some | Anything):
            assert read(kind, json.dumps(example).encode()) is not None


@pytest.mark.parametrize("name", sorted(BODIES))
def test_readers_may_meet_fields_that_a_schema_does_not_name(name: str) -> None:
    document, kind = schema(name), BODIES[name]
    later = {**document["examples"][0], "of_a_later_version": [1]}
    assert jsonschema_rs.is_valid(document, later)
    if not isinstance(kind, Some | Anything):
        assert read(kind, json.dumps(later).encode()) == EXAMPLES[name][0]


# --- the run log -------------------------------------------------------------------------------------------------


def test_every_kind_of_event_that_we_write_is_in_the_contract_and_has_an_example() -> None:
    written = set(get_args(e.Event)) - {e.UnknownEvent}
    assert set(BY_EVENT) == written
    assert {type(event) for event in EXAMPLE_EVENTS} == written


@pytest.mark.parametrize("event", EXAMPLE_EVENTS, ids=EXAMPLE_IDS)
def test_an_event_fits_its_schemas_and_comes_back_the_same(event: e.Event) -> None:
    sent = encode(event, OURS.log, 3, "worker-1")
    assert_keeps_the_contract(BY_EVENT[type(event)], sent)
    assert decoded(as_read(sent)) == event


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_an_event_that_is_made_from_the_schemas_alone_can_be_decoded(kind: Kind) -> None:
    values = {name: sample(what) for name, what in kind.header_schema()["properties"].items()}
    body = dump(schema(kind.body)["examples"][0])
    record = Read(OURS.log, b"order-1234", body, tuple((name, value.encode()) for name, value in values.items()))
    assert type(decode(record)) is kind.event


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_an_event_without_one_of_its_own_headers_is_refused(kind: Kind) -> None:
    event = next(event for event in EXAMPLE_EVENTS if type(event) is kind.event)
    whole_record = as_read(encode(event, OURS.log, 3, "worker-1"))
    for missing in kind.headers.keys() - kind.may_lack:
        headers = tuple(pair for pair in whole_record.headers if pair[0] != missing)
        with pytest.raises(WireError, match=missing):
            decode(replace(whole_record, headers=headers))


def test_an_event_with_further_headers_is_the_same_event() -> None:
    for event in EXAMPLE_EVENTS:
        record = as_read(encode(event, OURS.log, 3, "worker-1"))
        assert decoded(replace(record, headers=(*record.headers, ("of_a_later_version", b"1")))) == event


def decoded(record: Read) -> e.Event:
    """The event, without what the reader notes of the record itself."""
    event = decode(record)
    return replace(event, size=0) if isinstance(event, e.RunRequested) else event


def sample(what: dict[str, Any]) -> str:
    """A value that a header's schema allows."""
    if "const" in what or "enum" in what:
        return str(what.get("const") or what["enum"][0])
    if "contentSchema" in what:
        return "[]" if what["contentSchema"].get("type") == "array" else "{}"
    candidates = ("text", "7", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", f"k1:{'A' * 43}=")
    return next(value for value in candidates if jsonschema_rs.is_valid(what, value))


# --- the other topics --------------------------------------------------------------------------------------------


STATION = cast(Station, SimpleNamespace(namespace=OURS, worker_id="agent-1", response_partitions=24, traces=None))
FINAL = {"id": "msg_02", "role": "assistant", "stop_reason": "end_turn", "content": [{"type": "text", "text": "Done."}]}


def a_run(events: Iterable[e.Event]) -> Run:
    """The run of the examples after `events`."""
    state = Partition()
    for offset, event in enumerate(events):
        apply(state, event, offset, AT + offset)
    return state.runs[RUN]


def examples_of(*kinds: type) -> list[e.Event]:
    return [next(event for event in EXAMPLE_EVENTS if type(event) is kind) for kind in kinds]


def test_a_tool_call_fits_its_schemas() -> None:
    run = a_run(examples_of(e.RunRequested, e.ModelReplied))
    call = run.call(CALL)
    assert call is not None
    sent = call_record(STATION, 11, run, call)
    assert_keeps_the_contract(BY_NAME["tool.call"], sent)


def test_an_answer_fits_its_schemas_whether_its_request_was_good_or_not() -> None:
    final = e.ModelReplied(RUN, LIFE, 2, ATTEMPT, "final", (), m.Usage(), dump(FINAL))
    run = a_run([*examples_of(e.RunRequested, e.ModelReplied, e.ToolReturned), final])
    rejected = next(event for event in EXAMPLE_EVENTS if isinstance(event, e.RequestNoted))
    for body in (answer(run), note_answer(rejected)):
        assert_keeps_the_contract(BY_NAME["run.response"], response_record(STATION, RUN, m.ReplyTo(3), body))


def test_what_is_registered_fits_its_schemas() -> None:
    entries = [
        *(cloud_event(OURS.registry, "registry.tool", "w", "tool/t", dump(tool)) for tool in EXAMPLES["tool-spec"]),
        *(cloud_event(OURS.registry, "registry.agent", "w", "agent/a", dump(spec)) for spec in EXAMPLES["agent-spec"]),
        worker_entry(OURS, EXAMPLES["worker-info"][0]),
    ]
    for entry in entries:
        assert_keeps_the_contract(BY_NAME[dict(entry.headers)["ce_type"].decode()], entry)


def test_a_piece_of_speech_fits_its_schemas() -> None:
    for delta in EXAMPLES["stream-delta"]:
        assert_keeps_the_contract(
            BY_NAME["stream.delta"], cloud_event(OURS.stream, "stream.delta", "w", RUN, dump(delta))
        )


def test_a_request_needs_no_header_and_its_examples_are_taken() -> None:
    assert jsonschema_rs.is_valid(BY_NAME["run.request"].header_schema(), {})
    for request in EXAMPLES["run-request"]:
        assert read_request(dump(request)) == request
        sent = cloud_event(OURS.requests, "run.request", "client-1", RUN, dump(request))
        assert_keeps_the_contract(BY_NAME["run.request"], sent)


# --- docs/wire.md ------------------------------------------------------------------------------------------------


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of `docs/wire.md`, without its own head."""
    text = (ROOT / "docs" / "wire.md").read_text().split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"^\|.*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.M)
    assert rows is not None, f"no table below {heading!r}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1].splitlines()]


def coded(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def test_the_document_has_every_event_with_its_headers_in_order() -> None:
    told = {coded(row[0])[0]: [name for name in coded(row[1]) if name.startswith("ce_")] for row in table_below(LOG)}
    assert told == {kind.name: [name for name in kind.headers if name not in contract.RUN] for kind in EVENTS}


def test_the_document_says_which_events_name_no_run() -> None:
    told = {coded(row[0])[0] for row in table_below(LOG) if "no run" in row[0]}
    assert told == {kind.name for kind in EVENTS if "ce_runid" not in kind.headers}


def test_the_document_has_the_values_that_a_header_may_have() -> None:
    for row in table_below(LOG):
        kind = BY_NAME[coded(row[0])[0]]
        allowed = [value for schema in kind.headers.values() for value in schema.get("enum", ())]
        assert [value for value in coded(row[1]) if not value.startswith("ce_")] == allowed


def test_the_document_has_every_field_of_every_event_s_body() -> None:
    for row in table_below(LOG):
        name = coded(row[0])[0]
        fields = re.findall(r"\w+", coded(row[2])[0]) if coded(row[2]) else []
        assert fields == list(schema(BY_NAME[name].body).get("properties", {})), name


@pytest.mark.parametrize("name", ["run-request", "run-response", "tool-call"])
def test_the_document_has_every_field_of_a_body(name: str) -> None:
    told = [field for row in table_below(BODY_TABLES[name]) for field in coded(row[0])]
    assert sorted(told) == sorted(schema(name)["properties"])


def test_the_document_has_every_topic_with_its_partitions() -> None:
    told = {coded(row[0])[0]: row[1] for row in table_below("## Topics")}
    specs = Namespace("n").specs(["<queue>"], 24)
    assert told == {
        spec.name.removeprefix("n."): "P (24)" if spec.name in LOGS else str(spec.partitions) for spec in specs
    }
