"""The file that `enrich` writes: one JSON line a record, appended and flushed, and read again to go on.

Responsible for: what is done already, the line that a crash tore, one writer at a time, and, at the end, one line
for each record, in the order of the input if that is wanted.
Must never: delete an answer that was paid for, or write into a file that is not its own. Called by `enrich`.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import orjson

from anabranch.bodies import lean
from anabranch.cli.enriching.records import Try, read_run_id
from anabranch.errors import AnabranchError
from anabranch.fields import Json
from anabranch.messages import RunResponse

CHUNK: Final = 65_536


@dataclass(slots=True)
class Standing:
    """What the file has: the records that are completed, and of the others how often each was tried."""

    completed: set[int] = field(default_factory=set)
    tries: dict[int, int] = field(default_factory=dict)

    def note(self, found: Try, status: str) -> None:
        key = key_of(found.first)
        if status == "completed":
            self.completed.add(key)
            self.tries.pop(key, None)
        elif key not in self.completed:
            self.tries[key] = max(self.tries.get(key, 0), found.number)


def key_of(first: str) -> int:
    """The digest at the end of a record's first run id, as a number: small, for there may be millions."""
    return int(first[-16:], 16)


def line_of(record: dict[str, Json], response: RunResponse) -> bytes:
    """A line of the file, with its end. `output` is parsed if it is JSON; `error` is there if the run failed."""
    line = {
        "record": record,
        "output": _parsed(response.output),
        "run_id": response.run_id,
        "status": response.status,
        "usage": lean(response.usage),
    }
    if response.status != "completed":
        line["error"] = lean(response.error)
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _parsed(output: str | None) -> Json:
    """What the file could not be read again with stays the text that it is: half a character, a number without end."""
    if output is None:
        return None
    try:
        orjson.loads(f'{{"output": {output}}}')
        return json.loads(output)
    except (ValueError, RecursionError):
        return output


class OutFile:
    """An open file: `with OutFile.opened(path, mark) as out`. `mark` is the recipe's."""

    def __init__(self, path: Path, file: IO[bytes], mark: str) -> None:
        self.path, self.standing = path, Standing()
        self._file, self._mark = file, mark
        self._superseded = False

    @classmethod
    @contextmanager
    def opened(cls, path: Path, mark: str) -> Iterator[OutFile]:
        """Open or create it, and read what it has.

        Raises `AnabranchError` if it cannot be written, another process writes it, or its lines are of another recipe.
        """
        path = path.resolve()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise AnabranchError(f"cannot write {path}: {error.strerror}") from None
        with file:
            _lock(file, path)
            out = cls(path, file, mark)
            out._mend()
            out._read()
            yield out

    def write(self, line: bytes, found: Try, status: str) -> None:
        """Append a line; it is with the operating system when this returns."""
        self._superseded = self._superseded or key_of(found.first) in self.standing.tries
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise AnabranchError(f"cannot write {self.path}: {error.strerror}; the same command goes on") from None
        self.standing.note(found, status)

    def settle(self, order: Sequence[int] | None) -> None:
        """One line for each record, that of its last try; and in the order of `order` (keys), if given.

        Lines of records that `order` does not have stay, at the end.
        """
        spans = _index(self._file, self.path)
        wanted = list(spans) if order is None else [*(key for key in order if key in spans), *_rest(spans, order)]
        try:
            if self._superseded or wanted != list(spans):
                self._rewrite([spans[key] for key in wanted])
            else:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise AnabranchError(f"cannot write {self.path}: {error.strerror}") from None

    def _mend(self) -> None:
        """Drop a line without an end, which a process that died was writing, unless only its end is missing."""
        end = position = self._file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - CHUNK)
            self._file.seek(start)
            if (newline := self._file.read(position - start).rfind(b"\n")) >= 0:
                position = start + newline + 1
                break
            position = start
        if position == 0 and end > 0 and not _begins_a_line(self._file):
            raise _foreign(self.path, 1)
        if position < end:
            self._file.seek(position)
            if _is_whole(self._file.read()):
                self._file.write(b"\n")
            else:
                self._file.truncate(position)
            self._file.flush()

    def _read(self) -> None:
        for number, _, _, found, status in _lines(self._file, self.path):
            if found.mark != self._mark:
                raise AnabranchError(
                    f"{self.path} has answers of another command (line {number}: another agent, template or "
                    "namespace): give another --out, or move it away"
                )
            key = key_of(found.first)
            self._superseded = self._superseded or key in self.standing.tries or key in self.standing.completed
            self.standing.note(found, status)

    def _rewrite(self, spans: list[tuple[int, int]]) -> None:
        part = self.path.with_name(f".{self.path.name}.part")
        with part.open("wb") as new:
            for start, length in spans:
                self._file.seek(start)
                new.write(self._file.read(length))
            new.flush()
            os.fsync(new.fileno())
        part.replace(self.path)


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, int, int, Try, str]]:
    """Number, offset, length, try and status of each line."""
    start = file.seek(0)
    for number, line in enumerate(file, 1):
        try:
            data = orjson.loads(line)
            found, status = read_run_id(data["run_id"]), str(data["status"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise _foreign(path, number) from None
        if found is None:
            raise _foreign(path, number)
        yield number, start, len(line), found, status
        start += len(line)


def _index(file: IO[bytes], path: Path) -> dict[int, tuple[int, int]]:
    """Where each record's line is: the completed one, or else the last one."""
    spans: dict[int, tuple[int, int]] = {}
    done: set[int] = set()
    for _, start, length, found, status in _lines(file, path):
        key = key_of(found.first)
        if key not in done:
            spans[key] = (start, length)
        if status == "completed":
            done.add(key)
    return spans


def _rest(spans: dict[int, tuple[int, int]], order: Sequence[int]) -> Iterator[int]:
    known = set(order)
    return (key for key in spans if key not in known)


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _begins_a_line(file: IO[bytes]) -> bool:
    """Whether what stands in a file without a whole line is the beginning of one of ours."""
    file.seek(0)
    begin = b'{"record": '
    return begin.startswith(head := file.read(len(begin))) or head == begin


def _foreign(path: Path, number: int) -> AnabranchError:
    return AnabranchError(
        f"{path} is there already, and its line {number} is not one that `anabranch enrich` writes: "
        "give another --out, or move it away"
    )


def _lock(file: IO[bytes], path: Path) -> None:
    """One writer: two would run, and pay for, everything twice. Where the system has no such locks, none is taken."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AnabranchError(f"another process is writing {path}: wait for it, or give another --out") from None
    except OSError:
        return  # a file system that has no locks


def new_order() -> array[int]:
    """Collects keys in the order of the input, 8 bytes each."""
    return array("Q")
