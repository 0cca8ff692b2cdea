"""The API's errors: which types there are, with which status, and how their body looks.

Pure. It must never decide whether a request is refused: the rules do, and raise `Refused`; the server turns
that into a response.
"""

from __future__ import annotations

from typing import Any, NoReturn

import orjson

from anabranch.errors import AnabranchError

Json = Any  # a request, a reply, a block: not ours

STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Error type -> HTTP status, as https://docs.claude.com/en/api/errors lists them."""

_TYPE_OF = {status: type_ for type_, status in STATUS_OF.items()}


class Refused(AnabranchError):
    """A request that the API would answer with an error of this `status`, `type` and message."""

    def __init__(self, message: str, type_: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.type, self.status = type_, STATUS_OF[type_]


def refuse(message: str, type_: str = "invalid_request_error") -> NoReturn:
    """Raise `Refused`; the rules read better with a verb."""
    raise Refused(message, type_)


def type_of(status: int) -> str:
    """The error type that the API sends with this HTTP status."""
    return _TYPE_OF.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_body(type_: str, message: str, request_id: str, details: Json = None) -> bytes:
    """The body of an error response. `details` is what the SDK shows as `error.details`."""
    error: dict[str, Json] = {"type": type_, "message": message}
    if details is not None:
        error["details"] = details
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
