"""Splits a docstring into what it says of the function and what it says of each parameter.

Pure. Google, NumPy, reST and Epydoc styles. `docstring-parser` reads the parameters; the rest is kept as it
was written, because what a model is told should be what the author wrote. Called by `schema` only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import docstring_parser

_SECTION: Final = r"(Args|Arguments|Params|Parameters|Keyword Args|Keyword Arguments|Other Parameters)"
_GOOGLE: Final = re.compile(rf"\s*{_SECTION}\s*:\s*$")
_NUMPY: Final = re.compile(rf"{_SECTION}\s*$")
_RULE: Final = re.compile(r"-{3,}\s*$")
_FIELD: Final = re.compile(r"\s*[:@](param|parameter|arg|argument|key|keyword|kwarg|type)\b[^:]*:")


@dataclass(frozen=True, slots=True)
class Docstring:
    """`text` is the docstring without its parameters; `parameters` maps a name to its description."""

    text: str
    parameters: Mapping[str, str]


def read_docstring(docstring: str) -> Docstring:
    """Reads a docstring whose indentation is clean, as `inspect.getdoc` gives it."""
    try:
        parsed = docstring_parser.parse(docstring).params
    except docstring_parser.ParseError:
        parsed = []
    described = {param.arg_name: " ".join(param.description.split()) for param in parsed if param.description}
    return Docstring(_without_parameters(docstring.splitlines()), described)


def _without_parameters(lines: list[str]) -> str:
    kept: list[str] = []
    at = 0
    while at < len(lines):
        if _GOOGLE.match(lines[at]) or _FIELD.match(lines[at]):
            at = _end_of_block(lines, at)
            kept.append("")
        elif _is_header(lines, at) and _NUMPY.match(lines[at]):
            at = next((i for i in range(at + 2, len(lines)) if _is_header(lines, i)), len(lines))
            kept.append("")
        else:
            kept.append(lines[at])
            at += 1
    return re.sub(r"\n\s*\n\s*\n+", "\n\n", "\n".join(kept)).strip()


def _is_header(lines: list[str], at: int) -> bool:
    return at + 1 < len(lines) and bool(lines[at].strip()) and bool(_RULE.match(lines[at + 1]))


def _end_of_block(lines: list[str], at: int) -> int:
    """The first line after `at` that is neither blank nor indented deeper than it."""
    depth = _indent(lines[at])
    return next((i for i in range(at + 1, len(lines)) if lines[i].strip() and _indent(lines[i]) <= depth), len(lines))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
