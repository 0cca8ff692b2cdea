"""The Helm chart: what it promises of the objects that it renders.

Responsible for: pools, probes, shutdown, scaling, topics, and that workers understand what it tells them; secrets and
security are in `test_chart_security.py`. Must never: check the objects' form; `test_chart_manifests.py` does.
Called by: pytest.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from tests.support.chart import CHART, MINIMAL, Values, container, environment, pods, render, value_sets

from anabranch import config
from anabranch.cli.commands.worker import GRACE_S
from anabranch.environment import _PREFIXES, load
from anabranch.topics import Namespace

SETS = value_sets()
KNOWN = {
    prefix + item.name.upper()
    for section, prefix in _PREFIXES.items()
    for item in fields(get_type_hints(config.Settings)[section])
}


# --- pools ---------------------------------------------------------------------------------------------------------


def test_each_key_of_the_map_is_a_pool_of_its_queue() -> None:
    found = pods(MINIMAL | {"toolPools": {"io": {}, "slow": {"queue": "reports.pdf"}, "go": {"replicas": 0}}})

    commands = {name: container(pod)["args"] for name, pod in found.items()}
    assert commands == {
        "rel-anabranch-topics": ["topics", "apply", "shop.app:app"],
        "rel-anabranch-agents": ["worker", "agent", "shop.app:app"],
        "rel-anabranch-tools-go": ["worker", "tool", "shop.app:app", "--queue", "go"],
        "rel-anabranch-tools-io": ["worker", "tool", "shop.app:app", "--queue", "io"],
        "rel-anabranch-tools-slow": ["worker", "tool", "shop.app:app", "--queue", "reports.pdf"],
    }


def test_a_pool_says_otherwise_than_the_defaults_with_any_value_also_an_empty_one() -> None:
    values = MINIMAL | {
        "defaults": {
            "replicas": 7,
            "podDisruptionBudget": {"enabled": True},
            "extraEnv": [{"name": "A", "value": "all"}],
            "tolerations": [{"operator": "Exists"}],
        },
        "toolDefaults": {"extraEnv": [{"name": "T", "value": "tools"}], "logLevel": "warning"},
        "toolPools": {
            "io": {
                "replicas": 0,
                "podDisruptionBudget": {"enabled": False},
                "spread": {"enabled": False},
                "extraEnv": [{"name": "P", "value": "pool"}],
                "tolerations": [],
            }
        },
    }
    rendered = render(values)
    tools, agents = (
        rendered.one("Deployment", "rel-anabranch-tools-io"),
        rendered.one("Deployment", "rel-anabranch-agents"),
    )

    assert (tools["spec"]["replicas"], agents["spec"]["replicas"]) == (0, 7)
    assert [budget["metadata"]["name"] for budget in rendered.all("PodDisruptionBudget")] == ["rel-anabranch-agents"]
    pod = tools["spec"]["template"]
    assert {"tolerations", "topologySpreadConstraints"}.isdisjoint(pod["spec"])
    assert [environment(pod).get(name) for name in "ATP"] == ["all", "tools", "pool"]
    assert environment(pod)["ANABRANCH_LOG_LEVEL"] == "warning"
    assert [environment(agents["spec"]["template"]).get(name) for name in "ATP"] == ["all", None, None]


@pytest.mark.parametrize("name", SETS)
def test_selectors_find_the_pods_of_their_pool_and_no_others(name: str) -> None:
    rendered = render(SETS[name])
    labels = {name: pod["metadata"]["labels"] for name, pod in rendered.pods()}

    for item in rendered.objects:
        spec = item.get("spec", {})
        selector = spec.get("podSelector") if item["kind"] == "NetworkPolicy" else spec.get("selector")
        if item["kind"] in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            wanted = selector["matchLabels"].items()
            assert [who for who, has in labels.items() if wanted <= has.items()] == [item["metadata"]["name"]]
    for name, pod in rendered.pods():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            wanted = spread["labelSelector"]["matchLabels"].items()
            assert [who for who, has in labels.items() if wanted <= has.items()] == [name]


def test_two_releases_in_one_namespace_have_no_name_in_common() -> None:
    stem = "a-team-with-a-long-name-and-a-product-of-its-own-"

    one, other = render(SETS["everything"], f"{stem}eu").names, render(SETS["everything"], f"{stem}us").names

    assert set(one) & set(other) == {"ServiceAccount/shop"}


# --- what workers are told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_variable_is_a_setting_that_there_is(name: str) -> None:
    for _, pod in render(SETS[name]).pods():
        ours = {variable for variable in environment(pod) if variable.startswith(("ANABRANCH_", "ANTHROPIC_"))}
        assert ours <= KNOWN
        assert len(environment(pod)) == len(container(pod)["env"])


@pytest.mark.parametrize("name", SETS)
def test_workers_understand_what_they_are_told(name: str, tmp_path: Path) -> None:
    rendered = render(SETS[name])
    for _, pod in rendered.pods():
        given = {variable: text for variable, text in environment(pod).items() if isinstance(text, str)}
        file = settings_file(rendered, pod, tmp_path)
        settings = load(file, given)
        assert settings.kafka.bootstrap == SETS[name]["kafka"]["bootstrap"]
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "topics":
            [port] = container(pod)["ports"]
            assert (port["name"], port["containerPort"]) == ("http", settings.worker.http_port)


def settings_file(rendered: Any, pod: Any, folder: Path) -> Path | None:
    """What `--config` names, as the pod sees it."""
    args = container(pod)["args"]
    if "--config" not in args:
        return None
    where = args[args.index("--config") + 1]
    [volume] = [item["name"] for item in container(pod)["volumeMounts"] if where.startswith(item["mountPath"] + "/")]
    [source] = [item["configMap"]["name"] for item in pod["spec"]["volumes"] if item["name"] == volume]
    file = folder / "settings.toml"
    file.write_text(rendered.one("ConfigMap", source)["data"][Path(where).name])
    return file


def test_the_settings_arrive_as_they_were_written(tmp_path: Path) -> None:
    rendered = render(SETS["tls-sasl"])
    file = settings_file(rendered, dict(rendered.pods())["rel-anabranch-agents"], tmp_path)

    settings = load(file, {})

    assert file is not None
    assert tomllib.loads(file.read_text()) == SETS["tls-sasl"]["settings"]
    assert settings.agent.max_open_bytes == 1024**3
    assert settings.models["claude-opus-4*"] == config.ModelLimits(50, count_cache_reads=True)
    assert settings.prices["claude-sonnet-4-5"].cache_creation == 3.75


def test_a_pools_own_variable_replaces_that_of_all() -> None:
    """Two variables of one name are one too many for who applies a pod on the server's side."""
    theirs = {"SHOP": "close", "HOME": "/srv/home"}
    values = MINIMAL | {
        "defaults": {"extraEnv": [{"name": "SHOP", "value": "all"}]},
        "toolPools": {"io": {"extraEnv": [{"name": name, "value": value} for name, value in theirs.items()]}},
    }

    found = pods(values)

    assert environment(found["rel-anabranch-agents"])["SHOP"] == "all"
    assert environment(found["rel-anabranch-tools-io"]).items() >= theirs.items()
    for pod in found.values():
        assert len(environment(pod)) == len(container(pod)["env"])


def test_who_is_stopped_before_the_next_one_starts_has_no_rolling_update() -> None:
    """Kubernetes refuses one beside `Recreate`, and `defaults` has one."""
    rendered = render(MINIMAL | {"agents": {"updateStrategy": {"type": "Recreate"}}})

    assert rendered.one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_closer_of_two_labels_or_annotations_counts_and_is_there_once() -> None:
    closer = {"team": "close"}
    values = SETS["everything"] | {
        "commonLabels": {"team": "all"},
        "commonAnnotations": {"team": "all", "checksum/settings": "mine"},
        "defaults": {"podLabels": closer, "podAnnotations": closer},
        "topics": {"job": {"annotations": closer | {"helm.sh/hook-weight": "3"}}},
        **{name: {"enabled": True, "labels": closer} for name in ("podMonitor", "prometheusRule", "dashboard")},
    }

    rendered = render(values)  # refuses keys that are there twice

    for item in rendered.all("Deployment"):
        found = item["spec"]["template"]["metadata"]
        assert found["labels"]["team"] == found["annotations"]["team"] == "close"
        assert found["annotations"]["checksum/settings"] != "mine"
        assert item["metadata"]["labels"]["team"] == item["metadata"]["annotations"]["team"] == "all"
    for kind in ("PodMonitor", "PrometheusRule"):
        assert rendered.one(kind)["metadata"]["labels"]["team"] == "close"
    job = rendered.one("Job")["metadata"]["annotations"]
    assert (job["team"], job["helm.sh/hook-weight"], job["helm.sh/hook"]) == ("close", "3", "pre-install,pre-upgrade")


def test_new_settings_restart_the_workers() -> None:
    def checksum(settings: Values) -> str:
        pod = pods(MINIMAL | {"settings": settings})["rel-anabranch-agents"]
        return str(pod["metadata"]["annotations"]["checksum/settings"])

    assert checksum({"agent": {"hold_after_s": 1}}) != checksum({"agent": {"hold_after_s": 2}})


# --- start and stop ------------------------------------------------------------------------------------------------


def test_a_worker_has_longer_than_its_drain_before_it_is_killed() -> None:
    for drain_s in (0, 30, 600):
        pod = pods(MINIMAL | {"agents": {"drainSeconds": drain_s}})["rel-anabranch-agents"]
        assert environment(pod)["ANABRANCH_DRAIN_S"] == str(drain_s)
        assert pod["spec"]["terminationGracePeriodSeconds"] == drain_s + 20 > drain_s + GRACE_S


def test_each_probe_asks_its_own_question() -> None:
    worker = container(pods(MINIMAL)["rel-anabranch-agents"])

    asked = {kind: worker[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}

    assert asked == {
        "startup": {"path": "/startupz", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }


# --- scaling -------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_scaled_has_no_replicas_of_its_own() -> None:
    """An upgrade would set them back."""
    for name in ("keda", "hpa"):
        assert all("replicas" not in item["spec"] for item in render(SETS[name]).all("Deployment"))


@pytest.mark.parametrize(("name", "kind"), [("keda", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")])
def test_a_scaler_finds_its_deployment(name: str, kind: str) -> None:
    rendered = render(SETS[name])

    assert len(rendered.all(kind)) == len(rendered.all("Deployment"))
    for scaler in rendered.all(kind):
        assert rendered.one("Deployment", scaler["spec"]["scaleTargetRef"]["name"])


def test_a_tool_pool_scales_on_the_age_of_its_oldest_call_in_proportion() -> None:
    """With an average an age of 60 s would mean the same number of workers, however many there are."""
    [age, places] = render(SETS["keda"]).one("ScaledObject", "rel-anabranch-tools-io")["spec"]["triggers"]

    assert (age["metricType"], age["metadata"]["threshold"]) == ("Value", "5")
    assert (places["metricType"], places["metadata"]["threshold"]) == ("AverageValue", "0.7")


def test_a_pool_is_not_scaled_by_one_whose_name_begins_like_its_own() -> None:
    """Both may serve one queue, on other machines; each counts its own workers only."""
    pools = {"io": {}, "io-spot": {"queue": "io"}}
    scaled = render(
        SETS["keda"] | {"toolPools": {name: {"scaling": {"mode": "keda"}} | own for name, own in pools.items()}}
    )

    for name, other in (("io", "io-spot"), ("io-spot", "io")):
        for trigger in scaled.one("ScaledObject", f"rel-anabranch-tools-{name}")["spec"]["triggers"]:
            for pattern in re.findall(r'pod=~"([^"]+)"', trigger["metadata"]["query"]):
                assert re.fullmatch(pattern, f"rel-anabranch-tools-{name}-6c9d5f7b84-x2k4z")
                assert not re.fullmatch(pattern, f"rel-anabranch-tools-{other}-6c9d5f7b84-x2k4z")


def test_plain_lag_is_that_of_the_pools_own_group_and_topic() -> None:
    rendered = render(SETS["lag"])
    [trigger] = rendered.one("ScaledObject")["spec"]["triggers"]
    namespace = Namespace("team_a.shop")

    told = trigger["metadata"]
    assert (told["consumerGroup"], told["topic"]) == (namespace.tools_group("io"), namespace.calls("io"))
    assert (told["sasl"], told["tls"], told["lagThreshold"]) == ("scram_sha512", "enable", "50")
    login = rendered.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
    assert {item["parameter"] for item in login["spec"]["secretTargetRef"]} == {"username", "password", "ca"}


def test_plain_lag_of_agents_is_that_of_the_requests_of_either_lane() -> None:
    values = SETS["lag"] | {"agents": {"scaling": {"mode": "keda"}}}
    triggers = render(values).one("ScaledObject", "rel-anabranch-agents")["spec"]["triggers"]
    namespace = Namespace("team_a.shop")

    assert {each["metadata"]["consumerGroup"] for each in triggers} == {namespace.agents_group}
    assert [each["metadata"]["topic"] for each in triggers] == [namespace.requests, namespace.bulk_requests]
    assert len({each["name"] for each in triggers}) == len(triggers)


# --- topics --------------------------------------------------------------------------------------------------------


def test_strimzi_makes_the_topics_that_the_command_would_make() -> None:
    values = SETS["strimzi"]
    safe = {name: str(value).lower() for name, value in values["topics"]["strimzi"]["config"].items()}
    made = {
        topic["spec"]["topicName"]: (
            topic["spec"]["partitions"],
            {name: str(value).lower() for name, value in topic["spec"]["config"].items()},
        )
        for topic in render(values).all("KafkaTopic")
    }

    specs = Namespace("shop_eu").specs(["go", "io", "mail.out"], 48)
    assert made == {
        spec.name: (spec.partitions, {name: value.lower() for name, value in spec.settings.items()} | safe)
        for spec in specs
    }


def test_topics_stay_when_the_release_goes() -> None:
    for topic in render(SETS["strimzi"]).all("KafkaTopic"):
        assert topic["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert topic["metadata"]["labels"]["strimzi.io/cluster"] == "main"


def test_the_job_runs_before_the_workers_with_nothing_that_comes_later() -> None:
    rendered = render(SETS["everything"])
    job = rendered.one("Job")

    early = {name for name, item in zip(rendered.names, rendered.objects, strict=True)
             if "pre-install" in item["metadata"].get("annotations", {}).get("helm.sh/hook", "")}  # fmt: skip
    assert early == {"Job/rel-agents-topics", "ConfigMap/rel-agents-topics", "NetworkPolicy/rel-agents-topics"}
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    [settings] = [volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "settings"]
    assert settings["configMap"]["name"] == "rel-agents-topics"


# --- the rest ------------------------------------------------------------------------------------------------------


def test_the_dashboard_is_shipped_as_it_is() -> None:
    [shipped] = render(SETS["everything"]).one("ConfigMap", "rel-agents-dashboard")["data"].values()

    assert shipped.strip() == (CHART / "files" / "dashboard.json").read_text().strip()


def test_notes_name_what_is_there_and_what_to_mind() -> None:
    bare = render(MINIMAL).notes
    assert "kubectl -n prod exec deploy/rel-anabranch-agents -- anabranch workers --app shop.app:app" in bare
    for warning in ("anthropic.existingSecret", "toolPools is empty", "PLAINTEXT"):
        assert warning in bare
    full = render(SETS["everything"]).notes
    assert "2 to 12 workers (keda), queue io" in full
    assert "tools-cpu reaches nothing but Kafka" in full
    assert "PLAINTEXT" not in full
    idle = render(MINIMAL | {"agents": {"replicas": 25}, "toolPools": {"io": {"replicas": 24}}}).notes
    assert "agents may be 25 workers, and their topic has 24 partitions" in idle
    assert "tools-io may be" not in idle


def test_the_versions_are_those_of_the_package() -> None:
    from importlib.metadata import version

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version("anabranch")
