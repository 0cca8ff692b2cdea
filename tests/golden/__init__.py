"""Golden logs: recorded logs of `agent.log`, and the state that their fold gave when they were recorded.

The rule: **a recorded file is never changed; new ones are added.** What a run is follows from its events for ever, so a
change of code may add to what the fold knows, but must fold every old log to the same state. If a golden log fails,
the code is wrong, or it breaks every run that is open at the upgrade.

`NAME.jsonl` has one record a line: offset, timestamp (milliseconds), key, headers, value, all as text.
`NAME.state.json` is a projection of `agent.state.Partition`: named values, not the fields of a class, so that a field
may be renamed or added. This file reads, writes and projects; it never folds differently from an owner.
Called by `tests/unit/test_golden_logs.py`, and by `python -m tests.golden NAME`, which records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from anabranch.agent import effects, fold
from anabranch.agent.answer import answer, note_answer
from anabranch.agent.state import Call, HandOff, Partition, Run, Turn
from anabranch.bodies import dump
from anabranch.codec import Record, decode, header
from anabranch.errors import WireError
from tests.support.builders import Read

HERE: Final = Path(__file__).resolve().parent
Projected = dict[str, Any]


def names() -> list[str]:
    """All that were recorded."""
    return sorted(path.stem for path in HERE.glob("*.jsonl"))


def log_of(name: str) -> Path:
    return HERE / f"{name}.jsonl"


def state_of(name: str) -> Path:
    return HERE / f"{name}.state.json"


# --- records as lines ---------------------------------------------------------------------------------------


def as_line(record: Record) -> str:
    """One record as JSON. Raises `UnicodeDecodeError` for one that is not text."""
    line = {
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None if record.key is None else record.key.decode(),
        "headers": [[key, value.decode()] for key, value in record.headers],
        "value": None if record.value is None else record.value.decode(),
    }
    return json.dumps(line, ensure_ascii=False)


def from_line(line: str) -> Read:
    told = json.loads(line)
    key, value = (None if told[name] is None else told[name].encode() for name in ("key", "value"))
    headers = [(name, text.encode()) for name, text in told["headers"]]
    return Read("golden.agent.log", 0, told["offset"], told["timestamp"], key, value, headers)


def load(name: str) -> list[Read]:
    return [from_line(line) for line in log_of(name).read_text(encoding="utf-8").splitlines()]


def save(name: str, records: Iterable[Record]) -> None:
    """Record a log and its state. Raises `FileExistsError`: what is recorded stays."""
    kept = [from_line(as_line(record)) for record in records]
    with log_of(name).open("x", encoding="utf-8") as file:
        file.writelines(as_line(record) + "\n" for record in kept)
    with state_of(name).open("x", encoding="utf-8") as file:
        json.dump(project(folded(kept)), file, indent=1, ensure_ascii=False)
        file.write("\n")


def types_in(records: Iterable[Record]) -> set[str]:
    return {header(record.headers, "ce_type") or "" for record in records}


# --- the fold, and what it gives ------------------------------------------------------------------------------


def folded(records: Sequence[Record]) -> Partition:
    """As an owner folds that begins at the first of `records` without a commit."""
    state = Partition(began=records[0].offset, position=records[0].offset)
    for record in records:
        try:
            event = decode(record)
        except WireError:
            event = None
        fold.apply(state, event, record.offset, record.timestamp / 1000)
    return state


def project(state: Partition) -> Projected:
    """What counts of a partition, as JSON."""
    projected = {
        "position": state.position,
        "next_request": state.next_request,
        **_of_lanes(state),
        "done": state.done,
        "notes": {str(offset): _json(note_answer(note)) for offset, note in state.notes.items()},
        "runs": {run_id: _run(run) for run_id, run in state.runs.items()},
    }
    plain: Projected = orjson.loads(orjson.dumps(projected))
    return plain


def _of_lanes(state: Partition) -> Projected:
    """Of logs that know more than one: those that were recorded before stay as they are."""
    cancels = {run_id: [*cancel.before, cancel.reason] for run_id, cancel in state.cancels.items()}
    return {"next_bulk": state.next_bulk, "cancels": cancels} if state.next_bulk is not None else {}


def _run(run: Run) -> Projected:
    due = effects.model_due(run)
    return {
        "life": run.life,
        "first": run.first,
        "next_as_of_first": run.next_as_of_first,
        "opened_at": run.opened_at,
        "opening": _json(dump(run.opening)),
        "turn": run.turn,
        "owes_reply_since": run.owed_at if run.owed else None,
        "model_call_due": due.turn if due is not None else None,
        "publications_due": [_publication(publication) for publication in effects.publications(run)],
        "turns": [_turn(turn) for turn in run.turns],
        "hand_offs": [_hand_off(hand_off) for hand_off in run.hand_offs.values()],
        "reply_to": [a.reply_to.partition if a.reply_to is not None else None for a in run.addresses],
        "usage": _json(dump(run.usage)),
        "discarded": _json(dump(run.discarded)),
        "parked": run.parked,
        "ended": run.ending.offset if run.ending is not None else None,
        "answer": _json(answer(run)) if run.ending is not None else None,
    }


def _publication(due: effects.Publication) -> list[Any]:
    if isinstance(due, effects.CallDue):
        return ["call", due.call_id, due.dispatch, due.cause, "at_most_once" if due.at_most_once else "at_least_once"]
    return ["answer", due.address, due.cause] if isinstance(due, effects.AnswerDue) else ["note", due.cause]


def _turn(turn: Turn) -> Projected:
    return {
        "number": turn.number,
        "attempt": turn.attempt,
        "outcome": turn.outcome,
        "reply": turn.body.decode(),
        "replied_at": turn.replied_at,
        "finished_at": turn.finished_at,
        "calls": {call_id: _call(call) for call_id, call in turn.calls.items()},
    }


def _call(call: Call) -> Projected:
    result = call.result
    return {
        "tool": call.planned.tool,
        "due": call.due,
        "due_at": call.due_at,
        "dispatch": call.dispatch,
        "token": call.token,
        "hand_off": _hand_off(call.hand_off) if call.hand_off is not None else None,
        "outcome": result.outcome if result is not None else None,
        "result_at": result.at if result is not None else None,
        "result": _said(result.body, result.text) if result is not None else None,
    }


def _said(body: bytes | None, text: str | None) -> Any:
    return text if body is None else _json(body)


def _hand_off(hand_off: HandOff) -> list[Any]:
    return [hand_off.worker, hand_off.offset, hand_off.for_s]


def _json(raw: bytes) -> Any:
    return orjson.loads(raw)
