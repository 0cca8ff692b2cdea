"""`anabranch dlq list | show | replay`: the dead letters of a namespace.

A dead letter is known by its origin, `topic/partition/offset`. Replaying sends the original record again, to the
partition it was found in; it must never send anything but what came, or to a topic that is no one's to write to.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from anabranch.cli import figures, frame, output
from anabranch.cli.terminal import printable
from anabranch.errors import AnabranchError
from anabranch.wording import counted

if TYPE_CHECKING:
    from anabranch.codec import Outgoing, Record
    from anabranch.kafka.seam import Broker
    from anabranch.topics import Namespace

_OURS: Final = ("ce_reason", "ce_origin")


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `at` is epoch seconds; `key` and `value` are what was kept of the original's."""

    origin: str
    reason: str
    at: float
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def size(self) -> int:
        return len(self.value or b"")


@click.group(cls=frame.Commands)
def dlq() -> None:
    """Look at dead letters: records that could not be read or run, kept as they came."""


@dlq.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Only the newest.")
@frame.options(app=True, listing=True)
def list_letters(common: frame.Frame, limit: int) -> None:
    """List dead letters, the oldest first."""
    letters, left_out = frame.run_async(_newest(common.broker(), common.namespace(), limit))
    output.say_left_out(left_out, "dead letter")
    if common.as_json:
        output.print_json([_plain(letter) for letter in letters])
        return
    rows = [
        (letter.origin, figures.moment(letter.at, brief=True), _key(letter), f"{letter.size} B", letter.reason)
        for letter in letters
    ]
    empty = f"no dead letters in namespace {common.namespace().name}"
    output.print_table(("origin", "time", "key", ">size", "reason"), rows, empty=empty)


@dlq.command()
@click.argument("origin")
@frame.options(app=True, listing=True)
def show(common: frame.Frame, origin: str) -> None:
    """Print one dead letter: why it is here, its headers and its value. ORIGIN is topic/partition/offset."""
    letter = frame.run_async(_find(common.broker(), common.namespace(), origin))
    if common.as_json:
        output.print_json({**_plain(letter), "value": _text(letter.value)})
        return
    lines = {"origin": letter.origin, "reason": letter.reason, "time": figures.moment(letter.at), "key": _key(letter)}
    headers = {name: _text(value) for name, value in letter.headers}
    width = max(map(len, [*lines, *headers]))
    for name, text in [*lines.items(), *headers.items()]:
        click.echo(printable(f"{name:<{width}}  {text}"))
    click.echo(f"\n{printable(_pretty(letter.value))}")


@dlq.command()
@click.argument("origins", metavar="ORIGIN...", nargs=-1, required=True)
@frame.options(app=True)
def replay(common: frame.Frame, origins: tuple[str, ...]) -> None:
    """Send the original records again, as they came: once whatever refused them has been mended.

    Only requests and tool calls, whose readers recognise what they have seen; and none that was cut at 64 kB.
    """
    broker, namespace = common.broker(), common.namespace()

    async def replaying() -> None:
        letters = [await _find(broker, namespace, origin) for origin in origins]
        records = [original(letter, namespace) for letter in letters]
        for letter, record in zip(letters, records, strict=True):
            await _check_place(broker, record)
            click.echo(f"{letter.origin} replayed as {await _send(broker, record)}")

    frame.run_async(replaying())


def original(letter: Letter, namespace: Namespace) -> Outgoing:
    """The record that became this dead letter. Raises `AnabranchError` for one that cannot be sent again."""
    from anabranch.codec import Outgoing
    from anabranch.deadletters import KEPT

    topic, partition, _ = _split(letter.origin)
    if topic not in (namespace.requests, namespace.bulk_requests) and not topic.startswith(namespace.calls("")):
        raise AnabranchError(
            f"{letter.origin} cannot be replayed: only requests and tool calls of {namespace.name} can, for events "
            "of the log presume what came before them"
        )
    if letter.size >= KEPT or len(letter.key or b"") >= KEPT:
        raise AnabranchError(
            f"{letter.origin} cannot be replayed: only its first {KEPT} bytes were kept; let its sender send it again"
        )
    return Outgoing(topic, letter.key, letter.value, letter.headers, partition)


def read_letter(record: Record) -> Letter:
    """What a record of `dead.letters` says."""
    headers = tuple((name, value or b"") for name, value in record.headers)
    ours = {name: value.decode("utf-8", "backslashreplace") for name, value in headers if name in _OURS}
    return Letter(
        origin=ours.get("ce_origin", f"{record.topic}/{record.partition}/{record.offset}"),
        reason=ours.get("ce_reason", "unknown"),
        at=record.timestamp / 1000,
        key=record.key,
        value=record.value,
        headers=tuple((name, value) for name, value in headers if name not in _OURS),
    )


# --- Kafka ------------------------------------------------------------------------------------------------------


async def _letters(broker: Broker, namespace: Namespace) -> AsyncIterator[Letter]:
    """All that are there now."""
    from anabranch.cli.reading import whole

    async for record in whole(broker, namespace.dead_letters):
        yield read_letter(record)


async def _newest(broker: Broker, namespace: Namespace, limit: int) -> tuple[list[Letter], int]:
    """The newest, and how many more there are."""
    from anabranch.cli.reading import Newest

    newest = Newest[Letter](limit)
    async for letter in _letters(broker, namespace):
        newest.take(letter.at, letter)
    return newest.first_to_last(), newest.left_out


async def _find(broker: Broker, namespace: Namespace, origin: str) -> Letter:
    _split(origin)
    found = None
    async for letter in _letters(broker, namespace):
        if letter.origin == origin:
            found = letter
    if found is None:
        raise AnabranchError(f"there is no dead letter {origin}: see `anabranch dlq list --namespace {namespace.name}`")
    return found


async def _check_place(broker: Broker, record: Outgoing) -> None:
    partitions = await broker.partitions(record.topic)
    if record.partition is None or record.partition >= partitions:
        raise AnabranchError(
            f"{record.topic} has {counted(partitions, 'partition')}, and no {record.partition} any more"
        )


async def _send(broker: Broker, record: Outgoing) -> str:
    async with broker.appender() as appender:
        acked = await appender.append(record)
    return f"{record.topic}/{record.partition}" + ("" if acked.offset is None else f"/{acked.offset}")


# --- how it looks -------------------------------------------------------------------------------------------------


def _split(origin: str) -> tuple[str, int, int]:
    match origin.rsplit("/", 2):
        case [topic, partition, offset] if topic and partition.isdecimal() and offset.isdecimal():
            return topic, int(partition), int(offset)
    raise click.BadParameter(f"{origin!r} is no origin: it is topic/partition/offset, as `dlq list` shows it")


def _plain(letter: Letter) -> dict[str, Any]:
    headers = {name: _text(value) for name, value in letter.headers}
    key = None if letter.key is None else _text(letter.key)
    names = {"origin": letter.origin, "reason": letter.reason, "at": letter.at, "key": key}
    return {**names, "size": letter.size, "headers": headers}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _key(letter: Letter) -> str:
    text = _text(letter.key)
    return "-" if text is None else text if len(text) <= 80 else f"{text[:79]}…"


def _pretty(value: bytes | None) -> str:
    """JSON over several lines, anything else as it is."""
    if value is None:
        return "(no value)"
    try:
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return value.decode("utf-8", "backslashreplace")
