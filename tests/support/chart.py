"""The Helm chart as the tests see it: rendered by Helm itself, in this process, without a cluster.

Responsible for: rendering, the sets of values in `helm/anabranch/ci`, and finding objects in what came out.
Must never: judge what came out; that is for the tests.
Called by: tests of the chart and of the queries.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.need import unavailable

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "anabranch"
RELEASE, NAMESPACE = "rel", "prod"

Json = Any
Values = dict[str, Json]

MINIMAL: Values = {
    "app": "shop.app:app",
    "image": {"repository": "registry.example.com/shop"},
    "kafka": {"bootstrap": "kafka:9092"},
}


@dataclass(frozen=True)
class Rendered:
    """What came out: every object, and the notes."""

    objects: list[Json]
    notes: str

    def all(self, kind: str) -> list[Json]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Json:
        found = [item for item in self.all(kind) if name is None or item["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {self.names}"
        return found[0]

    @property
    def names(self) -> list[str]:
        return [f"{item['kind']}/{item['metadata']['name']}" for item in self.objects]

    def pods(self) -> Iterator[tuple[str, Json]]:
        """The name of each workload, and the template of its pods."""
        for item in self.objects:
            if item["kind"] in ("Deployment", "Job"):
                yield item["metadata"]["name"], item["spec"]["template"]


def value_sets() -> dict[str, Values]:
    """The values of `ci/`, by name."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {file.name.removesuffix("-values.yaml"): yaml.safe_load(file.read_text()) for file in files}


def render(values: Values, release: str = RELEASE) -> Rendered:
    """Render the chart. Raises Helm's own errors, HelmRenderError and HelmValuesError, and a YAML error for a key that
    is there twice.
    """
    texts = _chart().render(values, name=release, namespace=NAMESPACE)
    objects: list[Json] = []
    notes = ""
    for path, text in texts.items():
        if path.endswith("NOTES.txt"):
            notes = text
        elif not path.endswith(".tpl"):
            objects += [item for item in yaml.load_all(text, OneOfEachKey) if item]
    return Rendered(objects, notes)


class OneOfEachKey(yaml.SafeLoader):
    """As strict readers are: of two keys of one name Helm takes the last, others the first, or none."""

    def construct_mapping(self, node: Json, deep: bool = False) -> Json:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{sorted(twice)} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def lint(values: Values) -> list[Json]:
    """What `helm lint --strict` has to say."""
    found: list[Json] = helm().lint(str(CHART), values, strict=True, namespace=NAMESPACE)["messages"]
    return found


@cache
def _chart() -> Json:
    return helm().Chart.load(str(CHART))


def helm() -> Json:
    """Helm, as a module."""
    if importlib.util.find_spec("helm_python") is None:
        unavailable("this test needs Helm: pip install helm-python-sdk, which has no package for this machine")
    return importlib.import_module("helm_python")


def container(pod: Any) -> Any:
    [found] = pod["spec"]["containers"]
    return found


def environment(pod: Any) -> dict[str, Any]:
    """Each variable's value, or where it comes from."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container(pod)["env"]}


def pods(values: Values) -> dict[str, Any]:
    return dict(render(values).pods())
