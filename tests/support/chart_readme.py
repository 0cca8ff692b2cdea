"""The table of values in the chart's README, made from `values.yaml` and the descriptions of `values.schema.json`.

Responsible for: a row for every value, in the order of the schema. Must never: invent a description; a value that the
schema does not describe is a `KeyError`.
Called by: `make chart-readme`, which writes the table; tests/integration/test_chart_values.py, which compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.chart import CHART

README = CHART / "README.md"
BEGIN, END = "<!-- values: `make chart-readme` writes them -->", "<!-- end of values -->"

Json = Any


def schema() -> Json:
    return json.loads((CHART / "values.schema.json").read_text())


def defaults() -> Json:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def resolved(part: Json, root: Json) -> Json:
    """The schema that `part` stands for; its own description wins."""
    for step in (part, *part.get("allOf", [])):
        if "$ref" in step:
            found = root
            for name in step["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            return resolved(found, root) | {key: value for key, value in part.items() if key == "description"}
    return part


def rows() -> Iterator[tuple[str, str, str]]:
    """Path, default and description of each value. A pool's are shown once, at `defaults`."""
    root = schema()
    yield from _rows(root, defaults(), "", root)


def _rows(part: Json, given: Json, path: str, root: Json) -> Iterator[tuple[str, str, str]]:
    for name, own in part["properties"].items():
        where, found = f"{path}{name}", resolved(own, root)
        if where == "global" or (
            where.startswith(("agents.", "toolDefaults.")) and name in root["definitions"]["pool"]["properties"]
        ):
            continue
        value = given.get(name) if isinstance(given, dict) else None
        if "properties" in found and isinstance(value, dict) and value and found.get("additionalProperties") is False:
            yield f"`{where}`", "", found["description"]
            if _shown(where):
                yield from _rows(found, value, f"{where}.", root)
        else:
            yield f"`{where}`", f"`{_text(value)}`", found["description"]


def _shown(where: str) -> bool:
    """Not what is Kubernetes' own, in its own words."""
    return not where.endswith(
        (".resources", ".updateStrategy", ".startup", ".liveness", ".readiness", ".scaleUp", ".scaleDown")
    )


def _text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def table() -> str:
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| {name} | {default.replace('|', '∣')} | {text.replace('|', '∣')} |" for name, default, text in rows()]
    return "\n".join(lines)


def written() -> str:
    """The README with the table as it should be."""
    text = README.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written())
