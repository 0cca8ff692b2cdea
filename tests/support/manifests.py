"""Judges Kubernetes objects by the schemas that a cluster has: of Kubernetes itself, and of the operators' resources.

Responsible for: the right schema for each object, closed, so that a misspelt field is found although a server would
only drop it. Must never: leave an object unjudged; a kind without a schema is a `KeyError`.
Called by: tests/integration/test_chart_manifests.py.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs
import yaml

from tests.support.instruments import KEDA, PROMETHEUS_OPERATOR, Module, module_folder

Json = Any

_BASE = "file:///kubernetes/"
_CRDS: dict[str, tuple[Module, str]] = {
    "ScaledObject": (KEDA, "config/crd/bases/keda.sh_scaledobjects.yaml"),
    "TriggerAuthentication": (KEDA, "config/crd/bases/keda.sh_triggerauthentications.yaml"),
    "PodMonitor": (PROMETHEUS_OPERATOR, "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"),
    "PrometheusRule": (
        PROMETHEUS_OPERATOR,
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}


def errors(item: Json, version: str) -> list[str]:
    """What is wrong with an object for Kubernetes `version`, such as 1.37; a custom resource has but one version."""
    kind = item["kind"]
    judge = _of_crd(kind, item["apiVersion"]) if kind in _CRDS else _of_kubernetes(kind, item["apiVersion"], version)
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in judge.iter_errors(item)]


@cache
def _of_kubernetes(kind: str, api_version: str, version: str) -> jsonschema_rs.Draft7Validator:
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], number)))
    definitions = _schema(version, "_definitions")
    registry = jsonschema_rs.Registry([(f"{_BASE}_definitions.json", definitions)])
    return jsonschema_rs.Draft7Validator(_schema(version, name), registry=registry, base_uri=f"{_BASE}{name}.json")


@cache
def _schema(version: str, name: str) -> Json:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    return json.loads((folder / f"v{version}.0-local-strict" / f"{name}.json").read_text())


@cache
def _of_crd(kind: str, api_version: str) -> jsonschema_rs.Draft7Validator:
    module, path = _CRDS[kind]
    text = (module_folder(module) / path).read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]  # they are large
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in definition["versions"]
        if f"{definition['group']}/{version['name']}" == api_version
    ]
    for part in _objects(schema):
        if "properties" in part and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
        if "(?i)" in part.get("pattern", ""):
            del part["pattern"]  # Go's way to say it, which JSON Schema does not have
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema_rs.Draft7Validator(schema)


def _objects(schema: Json) -> Iterator[Json]:
    """The schema and those within it, of structural schemas."""
    yield schema
    for part in schema.get("properties", {}).values():
        yield from _objects(part)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _objects(schema[name])


def is_name(text: str) -> bool:
    """A DNS subdomain, as names of objects must be."""
    return (
        len(text) <= 253
        and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", text) is not None
    )
