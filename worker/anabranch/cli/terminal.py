"""What may reach a terminal of what others have said: nothing that it would obey. PURE.

A control character can move the cursor, rename the window or type for the user, and a bidirectional override makes a
line read as another one. Must never touch what goes into a file or a pipe on purpose as it is. Called by the commands.
"""

from __future__ import annotations

import re
from typing import Final

_OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""All but tabs and line ends, and halves of characters, which cannot be written at all."""


def printable(text: str) -> str:
    """`text` with a `?` for each such character."""
    return _OBEYED.sub("?", text)


def printable_json(text: str) -> str:
    """JSON that says the same with each such character written as an escape of JSON."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
