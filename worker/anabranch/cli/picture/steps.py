"""What an event of a run says, and what it changed, in words. PURE.

Responsible for the lines of `run` where there is no terminal, and of `runs replay`. It compares the run before and
after an event, and never judges an event by itself: the fold does. Called by `run` and `runs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from anabranch import log_events as e
from anabranch import messages as m
from anabranch.agent.results import result_of, seconds_between, shown_content, unreadable
from anabranch.agent.state import Call, Run
from anabranch.cli.figures import span
from anabranch.cli.terminal import printable
from anabranch.events import RunEvent
from anabranch.fields import Content
from anabranch.wording import counted

EXCERPT = 160
"""How many characters of a failed call's result are shown."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A run at one moment, by value: the run itself changes under the fold. `calls`: state by call id; `attempts`: how
    many of the model's were told to have come to nothing.
    """

    life: str
    turn: int
    owed: bool
    owed_at: float
    calls: dict[str, str]
    status: str
    parked: str | None
    spent: tuple[m.Usage, m.Usage]
    addresses: int
    hand_offs: int
    attempts: int


def facts(run: Run | None) -> Facts | None:
    """What can change about `run`, as it is now."""
    if run is None:
        return None
    calls = {call_id: _state(call) for turn in run.turns for call_id, call in turn.calls.items()}
    status = run.ending.status if run.ending is not None else "running"
    spent, addresses = (run.usage, run.discarded), len(run.addresses)
    hand_offs, attempts = len(run.hand_offs), len(run.discards)
    return Facts(
        run.life, run.turn, run.owed, run.owed_at, calls, status, run.parked, spent, addresses, hand_offs, attempts
    )  # fmt: skip


def _state(call: Call) -> str:
    if call.result is not None:
        return call.result.outcome
    if call.due is None:
        return "waits"
    if call.hand_off is not None:
        return "handed off"
    if call.token:
        return "claimed by who is to publish it"
    return "to be published" + (f" again ({call.dispatch})" if call.dispatch > 1 else "")


# --- what an event says -------------------------------------------------------------------------------------------


def told(event: e.Event, before: Facts | None, at: float) -> str:
    """The event in a line; `at` is its time."""
    match event:
        case e.RunRequested():
            opening = event.opening
            tenant = f", tenant {opening.request.tenant}" if opening.request.tenant else ""
            waited = max(0.0, at - (opening.requested_at or at))
            return f"admitted after {span(waited)}: agent {opening.request.agent}{tenant}"
        case e.ModelReplied():
            took = f" after {span(max(0.0, at - before.owed_at))}" if before is not None else ""
            by = f" ({event.model})" if event.model is not None else ""
            times = sum(each.times for each in event.tried)
            tries = f" at the last of {times} tries" if times > 1 else ""
            return f"turn {event.turn}: the model{by} replied{took}{tries}: {_reply(event)}"
        case e.ModelFailed():
            return f"turn {event.turn}: the model failed: {event.error.code}: {event.error.message}"
        case e.ModelDiscarded():
            return f"turn {event.turn}: {_discarded(event)}"
        case e.RunCancelled() | e.RunExpired():
            return event.reason or ("cancelled" if isinstance(event, e.RunCancelled) else "past its deadline")
        case e.UnknownEvent():
            return event.reason
        case _:
            return _told_of_calls(event)


def _discarded(event: e.ModelDiscarded) -> str:
    """Without usage it only names attempts that came to nothing since they were last told."""
    times = sum(each.times for each in event.tried) or 1
    if event.usage == m.Usage():
        return f"the model has failed {counted(times, 'time')}, and is asked again: {event.reason}"
    return f"an attempt was paid for and thrown away: {event.reason}"


def _reply(event: e.ModelReplied) -> str:
    names = [call.tool for call in event.plan]
    if not names:
        return {"final": "its answer", "pause": "it pauses", "calls": "no calls"}.get(event.outcome, "it stopped")
    called = [f"{name} ×{names.count(name)}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    refused = [
        f"; {call.tool} is not run: {excerpt(call.rejected)}" for call in event.plan if call.rejected is not None
    ]
    return f"{counted(len(names), 'call')}: {', '.join(called)}{''.join(dict.fromkeys(refused))}"


def _told_of_calls(event: e.Event) -> str:
    match event:
        case e.ToolReturned():
            return _returned(event)
        case e.CallExpired():
            return f"call {_short(event.call_id)} is past its deadline" + (f": {event.reason}" if event.reason else "")
        case e.CallLost():
            return f"call {_short(event.call_id)} is lost: nobody finished it in the time of the hand-off"
        case e.CallDispatched():
            return f"call {_short(event.call_id)} is claimed for publication"
        case e.ModelHandedOff():
            return f"turn {event.turn}: {event.worker} goes on with the model call for {event.for_s:g} s"
        case e.CallsHandedOff():
            return f"{event.worker} goes on with {counted(len(event.calls), 'call')} for {event.for_s:g} s"
        case e.RequestNoted():
            return f"a request was noted as {event.code}" + (f": {event.error.message}" if event.error else "")
        case _:
            return ""


def _returned(event: e.ToolReturned) -> str:
    result = result_of(event.body)
    text = f"call {_short(event.call_id)}: {event.outcome}"
    if result is None:
        return f"{text}: {unreadable(event.body)}"
    if result.started_at is not None and result.finished_at is not None:
        text += f" in {span(seconds_between(result.started_at, result.finished_at))}"
    text += f", {result.tries} tries" if result.tries > 1 else ""
    return text if event.outcome == "ok" else f"{text}: {excerpt(shown_content(result))}"


def excerpt(content: Content) -> str:
    words = content if isinstance(content, str) else " ".join(str(block.get("text", "")) for block in content)
    words = " ".join(words.split())
    return words if len(words) <= EXCERPT else f"{words[: EXCERPT - 1]}…"


def _short(call_id: str) -> str:
    """`<turn>/<index>`: within a run it says enough."""
    parts = call_id.rsplit("/", 2)
    return f"{parts[1].partition('.')[0]}/{parts[2]}" if len(parts) == 3 else call_id


def named(text: str, run: Run | None) -> str:
    """`text` with the tools' names instead of `call 1/0`; the place stays where a turn has a tool twice."""
    for turn in run.turns if run is not None else []:
        tools = [call.planned.tool for call in turn.calls.values()]
        for call_id, call in turn.calls.items():
            place, tool = _short(call_id), call.planned.tool
            name = tool if tools.count(tool) == 1 else f"{tool} {place}"
            text = text.replace(f"call {place}:", f"{name}:").replace(f"call {place} ", f"{name} ")
    return text


# --- what an event changed ----------------------------------------------------------------------------------------


def changes(before: Facts | None, after: Facts | None) -> list[str]:
    """What is different afterwards; nothing if the event changed nothing."""
    if after is None or after == before:
        return []
    if before is None or before.life != after.life:
        return [f"the run opens (life {after.life})", f"turn {after.turn} owes a model call"]
    found: list[str] = []
    found += _of_calls(before, after)
    if (after.turn, after.owed) != (before.turn, before.owed) and after.status == "running":
        if after.owed:
            found.append(f"turn {after.turn} owes a model call")
        else:
            found.insert(0, f"turn {after.turn} has its reply")
    if after.spent[0] != before.spent[0]:
        found.append(f"usage {_tokens(before.spent[0], after.spent[0])}")
    if after.spent[1] != before.spent[1]:
        found.append(f"discarded {_tokens(before.spent[1], after.spent[1])}")
    elif after.attempts != before.attempts:
        found.append("the reply is still owed: what came to nothing is named")
    if after.addresses != before.addresses:
        found.append(f"{after.addresses} want the answer")
    if after.hand_offs > before.hand_offs:
        found.append("the model call is somebody else's for now")
    if after.parked != before.parked:
        found.append("the run is parked")
    return [*found, f"the run is {after.status}"] if after.status != before.status else found


def _of_calls(before: Facts, after: Facts) -> list[str]:
    new = [call for call in after.calls if call not in before.calls]
    moved = [call for call in after.calls if call in before.calls and after.calls[call] != before.calls[call]]
    found: list[str] = []
    if new:
        states = [after.calls[call] for call in new]
        ready, waiting, refused = (states.count(state) for state in ("to be published", "waits", "error"))
        rest = (f", {waiting} wait" if waiting else "") + (f", {refused} not run" if refused else "")
        found.append(f"a batch of {len(new)} opens: {ready} to be published{rest}")
    results = {"ok", "error", "timeout", "unknown"}
    for call in moved:
        state = after.calls[call]
        found.append(f"call {_short(call)} {'has its result' if state in results else f'is {state}'}")
    if any(after.calls[call] in results for call in moved):
        turn = _turn_of(moved[0])
        batch = [state for call, state in after.calls.items() if _turn_of(call) == turn]
        missing = sum(state not in results for state in batch)
        found.append("the batch is complete" if not missing else f"{missing} of {len(batch)} to come")
    return found


def _turn_of(call_id: str) -> str:
    return call_id.rsplit("/", 2)[1].partition(".")[0]


def _tokens(before: m.Usage, after: m.Usage) -> str:
    return f"+{after.input_tokens - before.input_tokens} in, +{after.output_tokens - before.output_tokens} out"


# --- replay -------------------------------------------------------------------------------------------------------


def concerns(event: e.Event, run_id: str) -> bool:
    """Whether an event speaks of the run: those of a whole partition may not."""
    if isinstance(event, e.CallsHandedOff):
        return any(call_id.rsplit("/", 2)[0] == run_id for call_id in event.calls)
    return getattr(event, "run_id", None) == run_id


def replayed(event: RunEvent, before: Facts | None, after: Facts | None, run: Run | None, zero: float) -> list[Text]:
    """An event with what it says, and a line for each thing that it changed; `zero` is when the first one happened."""
    head = Text().append(f"{event.offset:>8}", "dim").append(f"  {event.at - zero:9.3f} s  ")
    head.append(f"{printable(event.type):<18}", "bold cyan").append(
        f" {printable(named(told(event.event, before, event.at), run))}", "default"
    )
    found = [named(change, run) for change in changes(before, after)]
    if not found:
        return [head, Text(f"{'':24}changed nothing", "yellow")]
    return [head, *(Text(f"{'':24}→ {printable(change)}", "green") for change in found)]
