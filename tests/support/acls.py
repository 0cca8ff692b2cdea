"""Access control lists of a test's Kafka: entries are there, on the broker that decides by them, when a call returns.

Responsible for: creating entries, and waiting until the broker goes by them (it hears of them a little later than
Kafka takes them). Must never: know which role needs what; that is `anabranch.security.access`.
Called by: integration tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest

from tests.support.kafka_admin import admin_of
from tests.support.wait import until

SEEN_S = 20.0
# The numbers of Kafka's protocol.
_ANY, _ALLOW, _DENY, _LITERAL, _PREFIXED = 1, 3, 2, 3, 4
_OPERATIONS = {
    "All": 2, "Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8, "DescribeConfigs": 10, "AlterConfigs": 11,
}  # fmt: skip
_KINDS = {"topic": 2, "group": 3}


class Entry(NamedTuple):
    """`user` without "User:"; `kind` is "topic" or "group"."""

    user: str
    operation: str
    kind: str
    name: str
    prefixed: bool = False
    denied: bool = False

    @property
    def wire(self) -> tuple[Any, ...]:
        """Kind, name, pattern, principal, host, operation, permission."""
        pattern, permission = _PREFIXED if self.prefixed else _LITERAL, _DENY if self.denied else _ALLOW
        what = _OPERATIONS[self.operation]
        return _KINDS[self.kind], self.name, pattern, f"User:{self.user}", "*", what, permission


async def put(bootstrap: str, entries: Iterable[Entry]) -> None:
    """Create `entries`; `bootstrap` is where access control lists may be changed."""
    wanted = {entry.wire for entry in entries}
    async with admin_of(bootstrap) as admin:
        for wire in wanted:
            answer = (await admin._send_request(CreateAclsRequest(*wire))).to_object()
            refused = [created for created in answer["creation_responses"] if created["error_code"]]
            assert not refused, f"Kafka takes no such access control list: {refused}"
        for who in {wire[3] for wire in wanted}:
            of_one = {wire for wire in wanted if wire[3] == who}

            async def is_in_force(who: str = who, of_one: set[tuple[Any, ...]] = of_one) -> bool:
                return of_one <= await _in_force(admin, who)

            await until(is_in_force, SEEN_S, f"the broker goes by the entries of {who}")


async def deny(bootstrap: str, user: str, operation: str, kind: str, name: str) -> None:
    """Let everybody do everything with the topic or group `name`, but `user` not do `operation`.

    In this order: what has entries, and none that allows, is denied to everybody, whatever they say.
    """
    allowed, denied = Entry("*", "All", kind, name), Entry(user, operation.title(), kind, name, denied=True)
    await put(bootstrap, [allowed])
    await put(bootstrap, [denied])


async def _in_force(admin: Any, principal: str) -> set[tuple[Any, ...]]:
    request = DescribeAclsRequest(_ANY, None, _ANY, principal, None, _ANY, _ANY)
    answer = (await admin._send_request(request)).to_object()
    assert not answer["error_code"], answer
    return {
        (
            found["resource_type"], found["resource_name"], found["resource_pattern_type"],
            entry["principal"], entry["host"], entry["operation"], entry["permission_type"],
        )
        for found in answer["resources"]
        for entry in found["acls"]
    }  # fmt: skip
