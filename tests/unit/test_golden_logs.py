"""Recorded logs give the recorded state: a change of code never changes an old run.

Responsible for: folding every log of `tests/golden`, and for there being one of every type of event.
Must never: record or change one. Called by: pytest.
"""

from __future__ import annotations

import json

import pytest
from tests import golden

from anabranch import codec

OF_NO_LIFE = {"run.cancelled", "calls.handed_off", "partition.released"}


def recorded_state(name: str) -> golden.Projected:
    state: golden.Projected = json.loads(golden.state_of(name).read_text(encoding="utf-8"))
    return state


@pytest.mark.parametrize("name", golden.names())
def test_a_recorded_log_folds_to_the_recorded_state(name: str) -> None:
    assert golden.project(golden.folded(golden.load(name))) == recorded_state(name)


def test_every_type_of_event_is_in_a_recorded_log() -> None:
    recorded = set().union(*(golden.types_in(golden.load(name)) for name in golden.names()))
    assert recorded >= set(codec._OF_A_LIFE) | OF_NO_LIFE


def test_an_event_from_the_future_parks_its_run_and_no_other() -> None:
    runs = recorded_state("future")["runs"]
    assert "run.levitated" in runs["r"]["parked"]
    assert runs["s"]["parked"] is None
    assert runs["r"]["publications_due"] == []


def test_a_log_that_begins_at_a_snapshot_gives_what_the_whole_log_gives() -> None:
    whole = golden.load("snapshots")
    cleaned = [record for record in whole if record.offset >= golden.load("from_snapshot")[0].offset]
    assert len(cleaned) < len(whole)
    assert golden.project(golden.folded(cleaned)) == recorded_state("snapshots")


def test_what_is_recorded_is_never_overwritten() -> None:
    with pytest.raises(FileExistsError):
        golden.save("answered", golden.load("answered"))
