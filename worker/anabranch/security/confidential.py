"""Which values are secrets: those of the settings, and of the environment, which is of tools and libraries, too. PURE.

Must never: print one, or guess at what is in a file. Called by: `cli/frame.py`, for `redaction.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from anabranch.config import Settings

_SOUNDS_SECRET: Final = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|PRIVATE_?KEY")
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_LONG: Final = 8
"""A variable that only sounds like a secret is one if it is at least so long, and no number or path."""
_PART: Final = 16
"""A secret setting may be a list, of keys with their ids, say: parts that are at least so long are secrets as well."""


def secrets_of(settings: Settings | None, environment: Mapping[str, str]) -> set[str]:
    """What must never be printed."""
    found = {text for name, text in environment.items() if _SOUNDS_SECRET.search(name.upper()) and _is_one(text)}
    for name in _HEADERS:
        found.update(pair.partition("=")[2].strip() for pair in environment.get(name, "").split(","))
    found.update(_of(settings) if settings is not None else ())
    return {form for text in found for form in (text, unquote(text))} - {""}


def _is_one(text: str) -> bool:
    return len(text) >= _LONG and not text.isdecimal() and not text.startswith("/")


def _of(settings: Settings) -> Iterator[str]:
    for section in fields(settings):
        value = getattr(settings, section.name)
        for item in fields(value) if is_dataclass(value) else ():
            text = getattr(value, item.name)
            if isinstance(text, str) and item.metadata.get("secret"):
                yield text
                yield from (part for part in re.split(r"[\s,;:]+", text) if len(part) >= _PART)
            elif isinstance(text, str) and "shown" in item.metadata:
                parts = urlsplit(text)
                yield from (parts.password or "", parts.query, *(value for _, value in parse_qsl(parts.query)))
