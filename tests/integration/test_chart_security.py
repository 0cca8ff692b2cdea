"""The Helm chart: which pod gets which secret, what it may do, and whom it may reach.

Must never: check the objects' form; `test_chart_manifests.py` does.
Called by: pytest.
"""

from __future__ import annotations

import pytest
import yaml
from tests.support.chart import MINIMAL, Values, container, environment, pods, render, value_sets

SETS = value_sets()


# --- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_are_named_and_never_written() -> None:
    rendered = render(SETS["tls-sasl"])
    tools = dict(rendered.pods())["rel-anabranch-tools-io"]

    assert rendered.all("Secret") == []
    found = environment(tools)
    assert found["ANABRANCH_SASL_USERNAME"] == {"secretKeyRef": {"name": "shop-kafka", "key": "user"}}
    assert found["ANABRANCH_SASL_PASSWORD"] == {"secretKeyRef": {"name": "shop-kafka", "key": "pass"}}
    assert found["ANABRANCH_SSL_PASSWORD"] == {"secretKeyRef": {"name": "shop-kafka-tls", "key": "key-password"}}
    [mount] = [item for item in container(tools)["volumeMounts"] if item["name"] == "kafka-tls"]
    files = {found[f"ANABRANCH_SSL_{kind}FILE"] for kind in ("CA", "CERT", "KEY")}
    assert files == {f"{mount['mountPath']}/{name}" for name in ("ca.pem", "tls.crt", "tls.key")}
    assert mount["readOnly"]


def test_each_role_may_be_a_user_of_its_own_and_only_agents_sign() -> None:
    rendered = render(SETS["roles"])
    users = {name: environment(pod) for name, pod in rendered.pods()}

    asked = {name: found["ANABRANCH_SASL_OAUTH_CLIENT_ID"]["secretKeyRef"]["name"] for name, found in users.items()}
    assert asked == {
        "rel-anabranch-agents": "shop-agents",
        "rel-anabranch-tools-io": "shop-tools",
        "rel-anabranch-topics": "shop-topics",
    }
    for found in users.values():
        assert found["ANABRANCH_SASL_MECHANISM"] == "OAUTHBEARER"
        assert found["ANABRANCH_SASL_OAUTH_TOKEN_URL"] == "https://login.example.com/token"
        assert "ANABRANCH_SASL_PASSWORD" not in found
    assert [name for name, found in users.items() if "ANABRANCH_SIGNING_KEYS" in found] == ["rel-anabranch-agents"]


def test_workers_get_the_master_key_from_a_secret_and_the_job_of_the_topics_does_not() -> None:
    users = {name: environment(pod) for name, pod in pods(SETS["everything"]).items()}
    holders = {name: found["ANABRANCH_KEYS_MASTER"] for name, found in users.items() if "ANABRANCH_KEYS" in found}
    assert {name for name in users if "topics" not in name} == set(holders)
    for found in holders.values():
        assert found == {"secretKeyRef": {"name": "shop-sealing", "key": "master-key"}}


def test_only_agents_get_the_key_of_the_model() -> None:
    holders = [name for name, pod in pods(SETS["everything"]).items() if "ANTHROPIC_API_KEY" in environment(pod)]

    assert holders == ["rel-agents-agents"]


def test_certificates_are_left_out_where_kafka_speaks_plainly() -> None:
    values = MINIMAL | {
        "kafka": {"bootstrap": "kafka:9092", "tls": {"existingSecret": "x"}, "sasl": {"existingSecret": "y"}}
    }

    text = yaml.safe_dump(render(values).objects)

    assert "kafka-tls" not in text
    assert "SASL" not in text


# --- security ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_restricted(name: str) -> None:
    """What the Pod Security Standard *restricted* asks for, and a file system that cannot be written to."""
    for _, pod in render(SETS[name]).pods():
        spec, own = pod["spec"], container(pod)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        [tmp] = [volume for volume in spec["volumes"] if volume["name"] == "tmp"]
        assert "sizeLimit" in tmp["emptyDir"]
        assert {"name": "tmp", "mountPath": "/tmp"} in container(pod)["volumeMounts"]
        assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)


def test_a_cluster_that_gives_users_itself_can_have_ours_taken_back() -> None:
    """As OpenShift does: it wants no user of ours."""
    own: Values = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}

    context = pods(MINIMAL | {"defaults": own})["rel-anabranch-agents"]["spec"]["securityContext"]

    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_a_network_policy_lets_agents_reach_kafka_and_the_model_and_tools_what_they_say() -> None:
    rendered = render(SETS["everything"])

    def ports(name: str) -> list[list[int]]:
        rules = rendered.one("NetworkPolicy", name)["spec"]["egress"]
        return [[port["port"] for port in rule["ports"]] for rule in rules]

    names, kafka, https = [53, 53], [9093, 9094], [443]
    assert ports("rel-agents-agents") == [names, kafka, https, https]  # the model, and the store
    assert ports("rel-agents-tools-io") == [names, kafka, https, https]  # the store, and what it says itself
    assert ports("rel-agents-tools-cpu") == [names, kafka, https]
    assert ports("rel-agents-topics") == [names, kafka]
    [rule] = rendered.one("NetworkPolicy", "rel-agents-tools-io")["spec"]["ingress"]
    assert rule["from"] == SETS["everything"]["networkPolicy"]["scrapers"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]


def test_a_network_policy_takes_the_ports_of_the_bootstrap_servers() -> None:
    for bootstrap, wanted in {
        "a:9092": [9092],
        "b-1.x:9096,b-2.x:9096": [9096],
        "a:1,b:22, c:333": [1, 22, 333],
    }.items():
        values = MINIMAL | {"kafka": {"bootstrap": bootstrap}, "networkPolicy": {"enabled": True}}
        rules = render(values).one("NetworkPolicy", "rel-anabranch-agents")["spec"]["egress"]
        assert [port["port"] for port in rules[1]["ports"]] == wanted


def test_a_network_policy_takes_the_ports_of_the_model_and_of_who_gives_tokens() -> None:
    login = {"mechanism": "OAUTHBEARER", "oauth": {"tokenUrl": "https://login.example.com:8443/token"}}
    values = MINIMAL | {
        "kafka": MINIMAL["kafka"] | {"securityProtocol": "SASL_SSL", "sasl": login},
        "anthropic": {"baseUrl": "http://gateway.models"},
        "toolPools": {"io": {}},
        "networkPolicy": {"enabled": True},
    }

    def ports(name: str, given: Values) -> list[int]:
        rules = render(given).one("NetworkPolicy", f"rel-anabranch-{name}")["spec"]["egress"]
        return [port["port"] for rule in rules[1:] for port in rule["ports"]]

    assert ports("agents", values) == [9092, 8443, 80]
    assert ports("tools-io", values) == ports("topics", values) == [9092, 8443]
    said = {"enabled": True, "login": {"ports": [1]}, "model": {"ports": [2, 3]}}
    assert ports("agents", values | {"networkPolicy": said}) == [9092, 1, 2, 3]
    assert ports("agents", MINIMAL | {"networkPolicy": {"enabled": True}}) == [9092, 443]
