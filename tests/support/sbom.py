"""Looks at the bill of materials that `make sbom` writes: is it of what runs, all of it, as pinned?

Responsible for: ending with a message that says what is wrong, or with one line that counts. Must never: change it.
Called by: `make sbom`, as `python -m tests.support.sbom FILE`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and line[0] != "#"]
    return {name_of(name): version for name, version in pairs}


def problems(bill: Any) -> list[str]:
    """What is wrong with a CycloneDX document of ours."""
    found = {name_of(part["name"]): part["version"] for part in bill["components"]}
    wrong = [
        f"{name} {version} is not the pinned one" for name, version in found.items() if pinned().get(name) != version
    ]
    wrong += [f"{name} is missing" for name in ("aiokafka", "anthropic", "pydantic-core") if name not in found]
    wrong += [f"{name} is none of what runs" for name in ("pytest", "mypy", "pip", "setuptools") if name in found]
    if bill.get("metadata", {}).get("component", {}).get("name") != "anabranch":
        wrong.append("it does not say that it is of anabranch")
    return wrong


def main(file: str) -> None:
    bill = json.loads(Path(file).read_text())
    if wrong := problems(bill):
        sys.exit(f"{file}: " + "; ".join(wrong))
    sys.stdout.write(f"{file}: {len(bill['components'])} components, CycloneDX {bill['specVersion']}\n")


if __name__ == "__main__":
    main(sys.argv[1])
