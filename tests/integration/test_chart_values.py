"""The chart's values: what is refused, with which words, and that the documents keep step.

Responsible for: a schema that is closed and described throughout, refusals that say what to do, the README's table.
Must never: check what is rendered; `test_chart.py` does.
Called by: pytest.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import jsonschema_rs
import pytest
from tests.support.chart import CHART, MINIMAL, Values, helm, render, value_sets
from tests.support.chart_readme import README, defaults, resolved, rows, schema, written

from anabranch.config import Settings
from anabranch.environment import shown

SCHEMA = schema()
OPEN = {"podSecurityContext", "securityContext"}
"""Objects that are passed on to Kubernetes as they are."""


def merged(*parts: Values) -> Values:
    total: Values = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(total.get(name), dict)
            total[name] = merged(total[name], value) if both else copy.deepcopy(value)
    return total


REFUSED: dict[str, tuple[Values, str]] = {
    "no App": ({"app": ""}, "app is missing: name your App"),
    "no image": ({"image": {"repository": ""}}, "image.repository is missing: build an image"),
    "no Kafka": ({"kafka": {"bootstrap": ""}}, "kafka.bootstrap is missing: name your Kafka"),
    "a grace period within the drain": (
        {"defaults": {"drainSeconds": 60, "terminationGracePeriodSeconds": 60}},
        "must be at least drainSeconds + 20 = 80",
    ),
    "a pool's drain above the grace period of all": (
        {"defaults": {"terminationGracePeriodSeconds": 50}, "toolPools": {"slow": {"drainSeconds": 31}}},
        "tools-slow: terminationGracePeriodSeconds is 50",
    ),
    "a grace period that no drain fits into": ({"agents": {"terminationGracePeriodSeconds": 10}}, "minimum"),
    "fewer workers at most than at least": (
        {"agents": {"scaling": {"minReplicas": 5, "maxReplicas": 4}}},
        "agents: scaling.maxReplicas is 4, less than scaling.minReplicas 5",
    ),
    "zero workers by Prometheus": (
        {
            "autoscaling": {"prometheus": {"serverAddress": "http://p"}},
            "toolPools": {"io": {"scaling": {"mode": "keda", "minReplicas": 0}}},
        },
        "nobody would tell Prometheus that work waits",
    ),
    "zero workers by an HPA": (
        {"toolPools": {"io": {"scaling": {"mode": "hpa", "minReplicas": 0}}}},
        "takes at least 1",
    ),
    "zero agents, whose open runs no lag counts": (
        {
            "kafka": {"namespace": "shop"},
            "autoscaling": {"source": "kafka"},
            "agents": {"scaling": {"mode": "keda", "minReplicas": 0}},
        },
        "open runs would stand still",
    ),
    "KEDA without a Prometheus": (
        {"agents": {"scaling": {"mode": "keda"}}},
        "autoscaling.prometheus.serverAddress is missing",
    ),
    "plain lag without the namespace": (
        {"autoscaling": {"source": "kafka"}, "agents": {"scaling": {"mode": "keda"}}},
        "kafka.namespace is missing",
    ),
    "plain lag with a login that KEDA does not have": (
        {
            "kafka": {
                "namespace": "shop",
                "securityProtocol": "SASL_SSL",
                "sasl": {"mechanism": "OAUTHBEARER", "oauth": {"tokenUrl": "https://login.example.com/token"}},
            },
            "autoscaling": {"source": "kafka"},
            "agents": {"scaling": {"mode": "keda"}},
        },
        "cannot log in with OAUTHBEARER here",
    ),
    "Strimzi without a cluster": ({"topics": {"mode": "strimzi"}}, "topics.strimzi.cluster is missing"),
    "Strimzi with two queues that are one name to Kubernetes": (
        {
            "kafka": {"namespace": "shop"},
            "topics": {"mode": "strimzi", "strimzi": {"cluster": "main", "queues": ["big-jobs", "Big_jobs"]}},
        },
        "shop.tool.calls.Big_jobs and shop.tool.calls.big-jobs would both be the KafkaTopic shop.tool.calls.big-jobs",
    ),
    "a label of pods that selectors need": (
        {"toolPools": {"io": {"podLabels": {"app.kubernetes.io/component": "mine"}}}},
        "tools-io: podLabels has app.kubernetes.io/component, which the chart sets itself",
    ),
    "a label of all that selectors need": (
        {"commonLabels": {"app.kubernetes.io/instance": "mine"}},
        "commonLabels has app.kubernetes.io/instance, which the chart sets itself",
    ),
    "both bounds of a disruption budget": (
        {"defaults": {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 2}}},
        "Kubernetes takes one of them",
    ),
    "an alert that there is not": (
        {"prometheusRule": {"enabled": True, "disabled": ["AnabranchRunsWaits"]}},
        "there is no alert AnabranchRunsWaits; there are AnabranchRunsWait,",
    ),
    "a key in clear": ({"anthropic": {"apiKey": "sk-1"}}, "apiKey"),
    "a password in clear": ({"kafka": {"sasl": {"password": "x"}}}, "password"),
    "credentials in the store's URL": ({"store": {"url": "s3://user:secret@bucket"}}, "store"),
    "credentials in the keys' URL": ({"sealing": {"keys": "s3://user:secret@bucket"}}, "sealing"),
    "keys without a master key": ({"sealing": {"keys": "s3://keys"}}, "sealing.existingSecret"),
    "a misspelt value of a pool": ({"toolPools": {"io": {"replicaCount": 2}}}, "replicaCount"),
    "a pool with a name that is no label": ({"toolPools": {"IO_1": {}}}, "IO_1"),
    "a Kafka without a port": ({"kafka": {"bootstrap": "kafka"}}, "bootstrap"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "digest"),
    "a volume that the chart has itself": ({"defaults": {"extraVolumes": [{"name": "tmp"}]}}, "extraVolumes"),
    "a section of settings that there is not": ({"settings": {"agents": {}}}, "agents"),
    "a setting that a variable overrules": (
        {"settings": {"worker": {"drain_s": 300}}},
        "settings.worker.drain_s would not count, for the chart says it to workers itself: use drainSeconds",
    ),
    "a drain beyond the grace period by the back door": (
        {"toolPools": {"io": {"extraEnv": [{"name": "ANABRANCH_DRAIN_S", "value": "300"}]}}},
        "tools-io: extraEnv has ANABRANCH_DRAIN_S, which the chart sets itself",
    ),
    "a tag in the repository": ({"image": {"repository": "registry.example.com:5000/shop:1.0"}}, "repository"),
    "tokens from nowhere": (
        {"kafka": {"securityProtocol": "SASL_SSL", "sasl": {"mechanism": "OAUTHBEARER"}}},
        "kafka.sasl.oauth.tokenUrl is missing",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_words_that_help(what: str) -> None:
    values, words = REFUSED[what]
    with pytest.raises(helm().HelmError) as refusal:
        render(merged(MINIMAL, values))

    assert words in str(refusal.value)


def test_settings_hold_no_secret_that_would_stand_in_a_config_map() -> None:
    secrets = [
        (section.name, item.name)
        for section in fields(Settings)
        if is_dataclass(kind := type(getattr(Settings(), section.name)))
        for item in fields(kind)
        if item.metadata.get("secret")
    ]
    assert len(secrets) > 5
    for section, name in secrets:
        with pytest.raises(helm().HelmError, match=rf"settings\.{section}\.{name} is a secret, .* use \w+"):
            render(merged(MINIMAL, {"settings": {section: {name: "hunter22"}}}))


def test_the_defaults_alone_fit_the_schema() -> None:
    jsonschema_rs.Draft7Validator(SCHEMA).validate(without_nulls(defaults()))


def without_nulls(value: Any) -> Any:
    """As Helm hands values over: what is null is not there."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return value


def parts(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema of a value, with its path."""
    part = resolved(part, SCHEMA)
    yield path, part
    for name, own in part.get("properties", {}).items():
        yield from parts(own, f"{path}.{name}".lstrip("."))
    if isinstance(part.get("additionalProperties"), dict):
        yield from parts(part["additionalProperties"], f"{path}.*")


def test_no_object_takes_what_it_does_not_know() -> None:
    loose = {
        path.rpartition(".")[2]
        for path, part in parts(SCHEMA)
        if part.get("type") == "object" and "properties" in part and part.get("additionalProperties") is not False
    }
    assert loose == set()
    anything = {
        path
        for path, part in parts(SCHEMA)
        if part.get("type") == "object" and "properties" not in part and "additionalProperties" not in part
    }
    assert {path for path in anything if path.rpartition(".")[2] not in OPEN} == {
        "global",
        *(f"settings.{section}" for section in SCHEMA["properties"]["settings"]["properties"]),
        *(f"{pool}.affinity.{kind}" for pool in ("defaults", "toolDefaults", "agents", "toolPools.*")
          for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity")),
    }  # fmt: skip


def test_settings_have_the_sections_that_a_settings_file_has() -> None:
    assert SCHEMA["properties"]["settings"]["properties"].keys() == shown(Settings()).keys()


def test_every_value_is_described() -> None:
    assert [path for path, part in parts(SCHEMA) if path and "*" not in path and not part.get("description")
            and "updateStrategy." not in path and ".affinity." not in path] == []  # fmt: skip


def test_every_value_has_a_default_and_every_default_is_a_value() -> None:
    def leaves(given: Any, part: Any, path: str = "") -> Iterator[str]:
        known = resolved(part, SCHEMA)
        for name, value in given.items():
            yield f"{path}{name}"
            if isinstance(value, dict) and "properties" in resolved(known["properties"][name], SCHEMA):
                yield from leaves(value, known["properties"][name], f"{path}{name}.")

    given = set(leaves(defaults(), SCHEMA))
    pool = {f"defaults.{name}" for name in SCHEMA["definitions"]["pool"]["properties"]}
    assert pool <= given
    assert {name for name in SCHEMA["properties"] if name != "global"} <= given


def test_the_readme_has_every_value() -> None:
    """If this fails: make chart-readme."""
    assert README.read_text() == written()
    assert len(list(rows())) > 150


def test_every_value_of_the_templates_is_in_the_schema() -> None:
    known = {path for path, _ in parts(SCHEMA)}
    for file in (CHART / "templates").iterdir():
        for used in re.findall(r"\.Values\.([A-Za-z.]*[A-Za-z])", file.read_text()):
            assert used in known, f"{file.name}: {used}"


def test_the_sets_of_values_are_those_that_the_readme_names() -> None:
    assert value_sets().keys() == {"minimal", "keda", "lag", "hpa", "tls-sasl", "roles", "strimzi", "everything"}
