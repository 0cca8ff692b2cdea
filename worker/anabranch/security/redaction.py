"""Keeps secrets out of whatever is printed. PURE.

Responsible for: replacing known secrets, in the forms in which errors and libraries quote them, and what looks like
one: the provider's keys, bearer tokens, passwords in URLs. Must never: read a setting or the environment, as
`confidential.py` does. Called by: `cli/loglines.py` for every record, `cli/frame.py` for errors.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

MASK: Final = "********"
LEAST: Final = 4
"""What is shorter is a word like any other, and no secret."""
_LOOKS_SECRET: Final = (
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)"), MASK),
)


class Redaction:
    """See the module. `secrets` are the values that may not be seen."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= LEAST for form in _forms(secret)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, instead in _LOOKS_SECRET:
            text = pattern.sub(instead, text)
        return text


def _forms(secret: str) -> Iterator[str]:
    """As it is, quoted by Python or JSON, in a URL, and in base64."""
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield base64.b64encode(secret.encode()).decode()
    yield from (line for line in secret.splitlines() if len(line) >= LEAST and line != secret)
