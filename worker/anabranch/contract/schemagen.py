"""Writes `schemas/`: a JSON Schema for each body, and the AsyncAPI document. `make schemas` runs it.

Everything is made from `records.py` and the types in `messages`, in a stable order, so that the same code gives the
same bytes; a test tells when a file is out of date. The schemas say what writers send; they never forbid further
fields, because readers ignore those.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from anabranch.bodies import lean
from anabranch.contract import asyncapi
from anabranch.contract.examples import EXAMPLES
from anabranch.contract.records import BODIES, Anything, Schema, Some
from anabranch.messages import RunResponse

FOLDER: Final = Path("schemas")
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Generate(GenerateJsonSchema):
    """Without a title for each field: it would say the name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def body_schema(name: str) -> Schema:
    """The JSON Schema (2020-12) of the body `name`, a key of `BODIES`."""
    head = {"$schema": DIALECT, "$id": f"urn:anabranch:{name}", "title": name}
    body = BODIES[name]
    match body:
        case Anything():
            schema: Schema = {"type": "object", "description": body.description}
        case Some():
            schema = {**_some(_of_type(body.event), body.names), "description": body.description}
        case _:
            schema = _of_type(body)
    examples = {"examples": [example if body is RunResponse else lean(example) for example in EXAMPLES[name]]}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}, **examples}


def _of_type(kind: type) -> Schema:
    """Of a dataclass, as it is written: `null` fields may be left out, so that no default needs to be told."""
    schema = TypeAdapter(kind).json_schema(schema_generator=_Generate)
    for part in (schema, *schema.get("$defs", {}).values()):
        for value in part.get("properties", {}).values():
            if value.get("default", ...) is None:
                del value["default"]
    return schema


def _some(schema: Schema, names: tuple[str, ...]) -> Schema:
    """The part of an event's schema that is about the fields `names`."""
    properties = {name: schema["properties"][name] for name in names}
    required = [name for name in names if name in schema.get("required", ())]
    used = orjson.dumps(properties).decode()
    parts = {name: part for name, part in schema.get("$defs", {}).items() if f'"#/$defs/{name}"' in used}
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        **({"$defs": parts} if parts else {}),
    }


def files() -> dict[str, bytes]:
    """What `schemas/` holds, by file name."""
    documents: dict[str, Schema] = {f"{name}.json": body_schema(name) for name in sorted(BODIES)}
    documents["asyncapi.json"] = asyncapi.document()
    option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return {name: orjson.dumps(document, option=option) for name, document in documents.items()}


def differences(folder: Path) -> list[str]:
    """The files of `folder` that are missing, differ, or belong to nothing."""
    wanted = files()
    found = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def write(folder: Path) -> list[str]:
    """Make `folder` what it should be; returns the names of the files that were changed."""
    changed, wanted = differences(folder), files()
    folder.mkdir(parents=True, exist_ok=True)
    for name in changed:
        if name in wanted:
            (folder / name).write_bytes(wanted[name])
        else:
            (folder / name).unlink()
    return changed


if __name__ == "__main__":
    sys.stdout.write(f"{FOLDER}: {', '.join(write(FOLDER)) or 'nothing'} changed\n")
