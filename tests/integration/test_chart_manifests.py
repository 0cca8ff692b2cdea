"""What the chart renders, judged by the instruments that a platform team has.

Responsible for: Helm's linter, the schemas of Kubernetes (the oldest that the chart takes, and the newest) and of the
operators, kube-score, for every set of values in `helm/anabranch/ci`.
Must never: test what the objects are for; `test_chart.py` does.
Called by: pytest.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml
from tests.support.chart import CHART, ROOT, lint, render, value_sets
from tests.support.instruments import KEDA, kube_score, module_folder, run
from tests.support.manifests import errors, is_name
from tests.support.node import node_for

pytestmark = pytest.mark.timeout(300)  # instruments may have to be fetched and built first

SETS = value_sets()
STRIMZI = ROOT / "tests" / "tools" / "strimzi"
LET_BE = {
    "container-image-pull-policy": "a tag that never moves need not be pulled again; image.pullPolicy says otherwise",
    "container-resources": "a CPU limit throttles the event loop, and a worker that is throttled loses its session",
    "deployment-has-host-podantiaffinity": "topologySpreadConstraints spread the pods, over zones too",
    "pod-networkpolicy": "networkPolicy.enabled is the user's choice: only he knows what his tools call",
}
"""Checks of kube-score that we do not follow, and why."""


@pytest.mark.parametrize("name", SETS)
def test_helm_has_nothing_to_say(name: str) -> None:
    assert [item for item in lint(SETS[name]) if item["severity"] > 1] == []


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize("name", SETS)
def test_each_object_is_what_kubernetes_takes(name: str, version: str) -> None:
    found = {}
    for item in render(SETS[name]).objects:
        if item["kind"] != "KafkaTopic" and (wrong := errors(item, version)):
            found[item["metadata"]["name"]] = wrong

    assert found == {}


def test_a_misspelt_field_would_be_found() -> None:
    rendered = render(SETS["everything"])
    for kind, path in {"Deployment": "replica", "ScaledObject": "triggerz", "PrometheusRule": "group"}.items():
        item = rendered.all(kind)[0]
        item["spec"][path] = []
        assert any(path in error for error in errors(item, "1.37")), kind


def test_the_oldest_kubernetes_is_that_of_the_readme_and_an_older_one_is_refused_by_helm() -> None:
    assert "Needs Kubernetes 1.27 or later" in (CHART / "README.md").read_text()
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == ">=1.27.0-0"


@pytest.mark.parametrize("name", ["keda", "lag", "everything"])
def test_triggers_have_the_parameters_that_keda_reads(name: str) -> None:
    """It ignores those that it does not know, and no schema lists them: only its own code does."""
    rendered = render(SETS[name])
    triggers = [trigger for scaled in rendered.all("ScaledObject") for trigger in scaled["spec"]["triggers"]]

    assert triggers
    for trigger in triggers:
        assert trigger["metadata"].keys() <= keda_parameters(
            f"pkg/scalers/{trigger['type']}_scaler.go", "triggerMetadata"
        )
    for login in rendered.all("TriggerAuthentication"):
        given = {item["parameter"] for item in login["spec"]["secretTargetRef"]}
        assert given <= keda_parameters("pkg/scalers/kafka_scaler.go", "authParams")


def keda_parameters(path: str, source: str) -> set[str]:
    """What a scaler of KEDA reads from there, by the tags of its code; how it logs in is in a file of its own."""
    files = [path, "pkg/scalers/authentication/authentication_types.go"]
    code = "".join((module_folder(KEDA) / file).read_text() for file in files)
    tags = re.findall(r'keda:"name=([\w;]+),\s*order=([\w;]+)', code)
    assert len(tags) > 10
    return {name for names, sources in tags if source in sources.split(";") for name in names.split(";")}


@pytest.mark.parametrize("version", ["v1", "v1beta2"])
def test_topics_are_what_strimzi_takes(version: str) -> None:
    values = copy.deepcopy(SETS["strimzi"])
    values["topics"]["strimzi"]["apiVersion"] = f"kafka.strimzi.io/{version}"
    topics = render(values).all("KafkaTopic")

    assert wrong_topics(topics) == []
    assert {topic["apiVersion"] for topic in topics} == {f"kafka.strimzi.io/{version}"}
    for topic in topics:
        assert topic["spec"].keys() == {"topicName", "partitions", "replicas", "config"}  # the schemas are not closed
        assert re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic["spec"]["topicName"])


def test_a_wrong_topic_would_be_found() -> None:
    topic = render(SETS["strimzi"]).all("KafkaTopic")[0]
    topic["spec"]["partitions"] = "many"

    assert wrong_topics([topic]) == ["shop-eu.agent.requests: data/spec/partitions must be integer"]


def wrong_topics(topics: list[Any]) -> list[str]:
    done = run([node_for(STRIMZI), "validate.mjs"], cwd=STRIMZI, text=json.dumps(topics))
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", SETS)
def test_names_and_labels_are_such_as_kubernetes_takes(name: str) -> None:
    rendered = render(SETS[name], release="a-release-with-a-name-that-is-as-long-as-helm-allows")
    for item in rendered.objects:
        assert is_name(item["metadata"]["name"])
    for _, pod in rendered.pods():
        for value in pod["metadata"]["labels"].values():
            assert re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value), value
    assert len(set(rendered.names)) == len(rendered.names)


@pytest.mark.parametrize("name", SETS)
def test_kube_score_finds_nothing_that_we_do_not_mean(name: str) -> None:
    objects = [item for item in render(SETS[name]).objects if item["kind"] != "KafkaTopic"]

    found = {(item["check"], text) for item in scored(objects) for text in item["texts"]}

    assert {(check, text) for check, text in found if check not in LET_BE} == set()
    resources = {text for check, text in found if check == "container-resources"}
    assert resources <= {"CPU limit is not set"}


def test_kube_score_would_find_a_pod_that_runs_as_root() -> None:
    item = render(SETS["minimal"]).all("Deployment")[0]
    pod = item["spec"]["template"]["spec"]
    pod["securityContext"] = {}
    pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False

    assert "container-security-context-readonlyrootfilesystem" in {found["check"] for found in scored([item])}


def scored(objects: list[Any]) -> list[Any]:
    """What kube-score calls a warning or worse."""
    done = run([*kube_score(), "score", "--output-format", "json", "-"], text=yaml.safe_dump_all(objects))
    assert done.stdout, done.stderr
    return [
        {"check": check["check"]["id"], "texts": [comment["summary"] for comment in check["comments"] or []]}
        for item in json.loads(done.stdout)
        for check in item["checks"] or []
        if check["grade"] <= 5 and not check["skipped"]
    ]
