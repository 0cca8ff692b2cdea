"""What counts as a deviation of a topic, how bad it is, and what `apply` may change.

Responsible for: the judgement over descriptions of topics, those of large clusters included.
Must never: need a broker.
Called by: pytest.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from anabranch.errors import TopicsError
from anabranch.kafka.comparison import (
    ROOM_BYTES,
    Cluster,
    Configs,
    Seen,
    changes,
    lacks,
    partitions_to_add,
    partitions_to_create,
)
from anabranch.kafka.refusals import missing
from anabranch.kafka.seam import Lack
from anabranch.roles import refuse_bad_topics
from anabranch.topics import Namespace, TopicSpec

SPECS = Namespace("shop").specs(["io", "agent.log"], partitions=6)
SPEC = {spec.name: spec for spec in SPECS}
BULK = SPEC["shop.agent.requests.bulk"]
LOG, REQUESTS, CALLS, REGISTRY = SPEC["shop.agent.log"], SPEC["shop.agent.requests"], "shop.tool.calls.io", "registry"


def right(spec: TopicSpec, **more: str) -> Seen:
    """`spec` as a broker would describe it, with settings added or changed (`_` for `.`)."""
    settings = {**spec.settings, **{name.replace("_", "."): value for name, value in more.items()}}
    return Seen(spec.partitions, replicas=1, configs=Configs(settings))


def cluster(brokers: int = 1, **changed: Seen) -> Cluster:
    """A cluster as it should be, but for some topics (`_` for `.`)."""
    topics = {spec.name: right(spec) for spec in SPECS}
    return Cluster(brokers, {**topics, **{f"shop.{name.replace('_', '.')}": seen for name, seen in changed.items()}})


def without(*names: str) -> Cluster:
    whole = cluster()
    return replace(whole, topics={name: seen for name, seen in whole.topics.items() if name not in names})


def test_topics_as_they_should_be_lack_nothing() -> None:
    assert lacks(SPECS, cluster()) == []


def test_a_missing_topic_is_dangerous_and_its_message_names_the_command() -> None:
    [lack] = lacks(SPECS, without(CALLS))
    assert (lack.topic, lack.dangerous) == (CALLS, True)
    assert "anabranch topics apply" in lack.message


@pytest.mark.parametrize(
    ("name", "value", "dangerous"),
    [
        ("cleanup_policy", "compact,delete", True),
        ("message_timestamp_type", "CreateTime", True),
        ("max_message_bytes", "1000", True),
        ("retention_ms", "1000", True),
        ("retention_bytes", "1000", True),
        ("retention_bytes", str(ROOM_BYTES), False),
    ],
)
def test_a_wrong_setting_of_the_log_is_named_with_its_value(name: str, value: str, dangerous: bool) -> None:
    [lack] = lacks(SPECS, cluster(agent_log=right(LOG, **{name: value})))
    assert (lack.topic, lack.dangerous) == (LOG.name, dangerous)
    assert f"{name.replace('_', '.')} is {value}" in lack.message


def test_a_bound_of_the_size_is_lifted_only_where_open_runs_have_no_room() -> None:
    small, large = (right(LOG, retention_bytes=str(ROOM_BYTES - less)) for less in (1, 0))
    assert changes(LOG, small, new=False) == {"retention.bytes": "-1"}
    assert changes(LOG, large, new=False) == {}
    [lack] = lacks(SPECS, cluster(agent_log=small))
    assert "deletes what open runs" in lack.message
    calls = right(SPEC[CALLS], retention_bytes="1000")
    assert lacks(SPECS, cluster(tool_calls_io=calls)) == [], "a call that is gone ends at its deadline"


def test_a_registry_that_keeps_the_workers_times_is_told_of_and_not_dangerous() -> None:
    [lack] = lacks(SPECS, cluster(registry=right(SPEC["shop.registry"], message_timestamp_type="CreateTime")))
    assert not lack.dangerous
    assert "must be LogAppendTime" in lack.message


def test_a_short_retention_of_answers_is_reported_and_not_dangerous() -> None:
    [lack] = lacks(SPECS, cluster(agent_responses=right(SPEC["shop.agent.responses"], retention_ms="5")))
    assert not lack.dangerous
    assert "must be at least 86400000" in lack.message


@pytest.mark.parametrize(
    ("name", "value"), [("retention_ms", "-1"), ("retention_ms", "99999999999"), ("max_message_bytes", "2000000")]
)
def test_what_keeps_records_longer_or_takes_larger_ones_is_left_alone(name: str, value: str) -> None:
    seen = right(LOG, **{name: value})
    assert lacks(SPECS, cluster(agent_log=seen)) == []
    assert changes(LOG, seen, new=False) == {}


def test_settings_that_the_broker_does_not_report_are_unknown_and_not_wrong() -> None:
    silent = Seen(6, replicas=1, configs=Configs({"cleanup.policy": "delete"}))
    assert lacks(SPECS, cluster(agent_log=silent)) == []
    assert changes(LOG, silent, new=False) == {}


def test_settings_that_may_not_be_read_are_one_harmless_lack() -> None:
    [lack] = lacks(SPECS, cluster(agent_log=Seen(6, replicas=1, configs=None)))
    assert not lack.dangerous
    assert "DescribeConfigs" in lack.message


def test_requests_and_log_may_all_have_another_count_than_is_configured() -> None:
    alike = {spec.name: replace(right(spec), partitions=4) for spec in (LOG, REQUESTS, BULK)}
    all_ = replace(cluster(), topics={**cluster().topics, **alike})
    assert lacks(SPECS, all_) == []
    assert partitions_to_add(LOG, SPECS, all_) == 0


@pytest.mark.parametrize("requests", [REQUESTS, BULK], ids=["interactive", "bulk"])
def test_requests_and_log_with_different_counts_are_dangerous(requests: TopicSpec) -> None:
    [lack] = lacks(SPECS, replace(cluster(), topics={**cluster().topics, requests.name: Seen(4, replicas=1)}))
    assert lack.dangerous
    assert f"shop.agent.log has 6 partitions and {requests.name} has 4" in lack.message


@pytest.mark.parametrize("missing", [LOG, BULK], ids=["the log", "the bulk lane"])
def test_what_is_missing_is_created_with_the_count_of_the_others(missing: TopicSpec) -> None:
    rest = without(missing.name)
    rest = replace(rest, topics={**rest.topics, REQUESTS.name: replace(right(REQUESTS), partitions=4)})
    assert partitions_to_create(missing, SPECS, replace(rest, topics={REQUESTS.name: rest.topics[REQUESTS.name]})) == 4


def test_a_queue_called_like_the_log_is_a_queue() -> None:
    queue = SPEC["shop.tool.calls.agent.log"]
    few = cluster(tool_calls_agent_log=replace(right(queue), partitions=4))
    assert partitions_to_add(queue, SPECS, few) == 20
    assert [lack.dangerous for lack in lacks(SPECS, few)] == [False]


def test_more_partitions_than_wanted_are_fine() -> None:
    assert lacks(SPECS, cluster(tool_calls_io=replace(right(SPEC[CALLS]), partitions=48))) == []


def test_a_cluster_of_three_brokers_should_replicate_safely() -> None:
    unsafe = right(LOG, min_insync_replicas="1", unclean_leader_election_enable="true")
    found = [lack for lack in lacks(SPECS, cluster(3, agent_log=unsafe)) if lack.topic == LOG.name]
    assert [lack.dangerous for lack in found] == [False, False, False]
    assert "replication factor 1" in found[0].message
    assert "min.insync.replicas is 1" in found[1].message
    assert "unclean.leader.election.enable is true" in found[2].message


def test_a_new_replicated_topic_is_made_safe_and_an_old_one_is_left_to_its_owner() -> None:
    seen = replace(right(LOG, min_insync_replicas="1", unclean_leader_election_enable="true"), replicas=3)
    assert changes(LOG, seen, new=True) == {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}
    assert changes(LOG, seen, new=False) == {}
    assert changes(LOG, replace(seen, replicas=1), new=True) == {}


class Differs:
    """A broker, as far as topics are compared."""

    def __init__(self, seen: Cluster) -> None:
        self._cluster = seen

    async def lacks(self, specs: list[TopicSpec]) -> list[Lack]:
        return lacks(specs, self._cluster)


async def test_a_worker_that_is_refused_is_told_what_mends_it_and_nothing_that_does_not() -> None:
    apart = Differs(cluster(agent_log=replace(right(LOG), partitions=12)))
    with pytest.raises(TopicsError) as refused:
        await refuse_bad_topics(apart, list(SPECS))  # type: ignore[arg-type]
    assert all("delete both, or take another namespace" in line for line in str(refused.value).splitlines())


def test_of_a_topic_that_is_not_there_the_namespace_is_asked_first() -> None:
    said = str(missing("shpo.agent.log", "kafka:9092"))
    assert said.index("is the namespace the right one") < said.index("topics apply")
