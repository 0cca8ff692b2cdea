"""What each role must be allowed to do in Kafka, and nothing more. PURE.

Responsible for: the one list of access control entries, of which docs/security.md and the command `topics acls` are
made, and which tests/integration/test_access takes apart one by one. Must never: grant what a role only might need.
Kafka lets whoever may read or write a topic describe it as well, and whoever may write one have an idempotent producer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from anabranch.topics import CALLS, Namespace

Role = Literal["agent", "tool", "client", "reader", "operator", "admin"]
ROLES: Final[dict[Role, str]] = {
    "agent": "`anabranch worker agent`",
    "tool": "`anabranch worker tool`, for each queue that it serves",
    "client": "`app.client()`, `anabranch run`, `anabranch enrich`",
    "reader": "`anabranch runs list`, `show`, `watch`, `replay`, `usage`, `agents`, `tools`, `workers`, "
    "`dlq list`, `show`",
    "operator": "beside what a reader has: `anabranch runs cancel`, `dlq replay`",
    "admin": "`anabranch topics check` and `apply`",
}
"""What each is for."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry. With `prefixed` it holds for all names that begin with `name`; `why` says what fails without it."""

    operation: str
    kind: Literal["topic", "group"]
    name: str
    why: str
    prefixed: bool = False


def grants(role: Role, namespace: Namespace, queues: Sequence[str]) -> list[Grant]:
    """All that `role` needs; `queues` are those that a tool worker serves."""
    match role:
        case "agent":
            return _agent(namespace)
        case "tool":
            return _tool(namespace, queues)
        case "client":
            return _client(namespace)
        case "reader":
            return _reader(namespace)
        case "operator":
            return _reader(namespace) + _operator(namespace)
        case "admin":
            return _admin(namespace)


def command(grant: Grant, principal: str, bootstrap: str) -> str:
    """The `kafka-acls` that adds it."""
    where = ["kafka-acls", "--bootstrap-server", bootstrap, "--add", "--allow-principal", principal]
    pattern = ["--resource-pattern-type", "prefixed"] if grant.prefixed else []
    return shlex.join([*where, "--operation", grant.operation, f"--{grant.kind}", grant.name, *pattern])


def _agent(ns: Namespace) -> list[Grant]:
    return [
        Grant("Read", "group", ns.agents_group, "joins the group that shares the partitions"),
        Grant("Read", "topic", ns.requests, "admits runs"),
        Grant("Write", "topic", ns.requests, "moves a request that came to another partition than its run's"),
        Grant("Read", "topic", ns.bulk_requests, "admits runs of the bulk lane"),
        Grant("Write", "topic", ns.bulk_requests, "moves a request there that came to another partition"),
        Grant("Read", "topic", ns.log, "folds the events of runs"),
        Grant("Write", "topic", ns.log, "appends events"),
        Grant("Write", "topic", ns.topic(CALLS), "sends tool calls out", prefixed=True),
        Grant("Write", "topic", ns.responses, "answers"),
        Grant("Write", "topic", ns.stream, "tells what the model says, as it says it"),
        Grant("Read", "topic", ns.registry, "knows the tools of other Apps"),
        Grant("Write", "topic", ns.registry, "registers agents and itself"),
        Grant("Write", "topic", ns.dead_letters, "keeps what cannot be read"),
        _describes(ns),
    ]


def _tool(ns: Namespace, queues: Sequence[str]) -> list[Grant]:
    of_queues = [
        grant
        for queue in queues
        for grant in (
            Grant("Read", "group", ns.tools_group(queue), "joins the group that shares the queue"),
            Grant("Read", "topic", ns.calls(queue), "takes calls"),
        )
    ]
    return [
        *of_queues,
        Grant("Write", "topic", ns.log, "returns results"),
        Grant("Write", "topic", ns.registry, "registers tools and itself"),
        Grant("Write", "topic", ns.dead_letters, "keeps what cannot be read"),
        _describes(ns),
    ]


def _client(ns: Namespace) -> list[Grant]:
    return [
        Grant("Write", "topic", ns.requests, "submits runs"),
        Grant("Write", "topic", ns.bulk_requests, "submits runs of the bulk lane; cancels runs"),
        Grant("Read", "topic", ns.responses, "hears the answers"),
        Grant("Write", "topic", ns.log, "cancels runs; leave it out for a client that does not"),
        Grant("Read", "topic", ns.log, "watches runs; leave it out for a client that only awaits answers"),
        Grant("Read", "topic", ns.stream, "hears the model speak; leave it out for a client that does not stream"),
    ]


def _reader(ns: Namespace) -> list[Grant]:
    return [
        Grant("Read", "topic", ns.log, "shows runs"),
        Grant("Read", "topic", ns.requests, "tells whether a run waits to be admitted"),
        Grant("Read", "topic", ns.bulk_requests, "the same for the bulk lane"),
        Grant("Read", "topic", ns.registry, "shows agents, tools and workers"),
        Grant("Read", "topic", ns.dead_letters, "shows dead letters"),
    ]


def _operator(ns: Namespace) -> list[Grant]:
    return [
        Grant("Read", "topic", ns.responses, "cancels runs: a client has an inbox"),
        Grant("Write", "topic", ns.log, "cancels runs"),
        Grant("Write", "topic", ns.requests, "cancels runs that wait, and replays requests"),
        Grant("Write", "topic", ns.bulk_requests, "the same for the bulk lane"),
        Grant("Write", "topic", ns.topic(CALLS), "replays calls", prefixed=True),
    ]


def _admin(ns: Namespace) -> list[Grant]:
    everything = ns.topic("")
    return [
        Grant("Create", "topic", everything, "creates topics", prefixed=True),
        Grant("Alter", "topic", everything, "sees topics, and adds partitions", prefixed=True),
        Grant("AlterConfigs", "topic", everything, "sees and sets their settings", prefixed=True),
    ]


def _describes(ns: Namespace) -> Grant:
    why = "refuses to start on topics that would lose records; without it a warning says that it cannot tell"
    return Grant("DescribeConfigs", "topic", ns.topic(""), why, prefixed=True)
