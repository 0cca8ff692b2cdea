"""What Kafka refuses, in words that an operator can act on. PURE.

Responsible for: naming who was refused what, on which topic or group, and the command that mends it. Must never:
decide what becomes of a worker. Called by: `admin.py`, `appender.py`, `pump.py`, `reader.py`,
`produce/producing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidTimestampError,
    KafkaError,
    KafkaStorageError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from anabranch.errors import BrokerError, Forbidden, TopicsError
from anabranch.kafka.comparison import APPLY

ACLS: Final = "`anabranch topics acls APP`"
FORBIDDEN: Final = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)

_TOO_FEW: Final = "fewer replicas are in sync than min.insync.replicas asks for: is a broker away?"
_PASSING: Final[dict[type[KafkaError], str]] = {
    InvalidTimestampError: "the clock of this machine is ahead of the broker's by more than the topic's "
    "message.timestamp.after.max.ms (1 hour, unless set otherwise): set it (NTP), or the broker's",
    KafkaStorageError: "a disk of the broker is full or broken: see its log",
    NotEnoughReplicasError: _TOO_FEW,
    NotEnoughReplicasAfterAppendError: _TOO_FEW,
}


def missing(topic: str, where: str) -> TopicsError:
    """There is no such topic at the broker `where`."""
    asked = "is the namespace the right one, or was it deleted?"
    return TopicsError(f"topic {topic} does not exist at {where} ({asked}): create it with {APPLY}")


def refusal(error: BaseException, arguments: Mapping[str, Any], operation: str, subject: str) -> BrokerError | None:
    """`error` as ours, if it is one that no repetition cures: forbidden, or a topic that is not there.

    `arguments` are those of the client, `operation` is Kafka's word ("Read", "Write"), and `subject` the topic or
    group that was asked for, if the error names none.
    """
    where = arguments["bootstrap_servers"]
    if isinstance(error, UnknownTopicOrPartitionError):
        return missing(subject, where)
    if isinstance(error, ClusterAuthorizationFailedError):
        return Forbidden(
            f"Kafka at {where} forbids {principal(arguments)} to write ({type(error).__name__}): it may write nowhere, "
            f"or this is a Kafka before 3.0, which wants IdempotentWrite on the cluster as well; {ACLS} prints all "
            "that a role needs, as commands of kafka-acls"
        )
    if not isinstance(error, FORBIDDEN):
        return None
    kind = "group" if isinstance(error, GroupAuthorizationFailedError) else "topic"
    named = _named(error) or subject
    who = principal(arguments)
    return Forbidden(
        f"Kafka at {where} forbids {who} to {operation.lower()} {kind} {named} ({type(error).__name__}); "
        f"{ACLS} prints all that a role needs. Allow it: "
        f"kafka-acls --bootstrap-server {where} --add --allow-principal {who} --operation {operation} --{kind} {named}"
    )


def told(error: BaseException) -> str:
    """An error that may pass, and what is to be done about it if that is known."""
    what = next((words for kind, words in _PASSING.items() if isinstance(error, kind)), None)
    return repr(error) if what is None else f"{error!r}: {what}"


def principal(arguments: Mapping[str, Any]) -> str:
    """Who we are to Kafka, as far as the settings tell."""
    protocol: str = arguments["security_protocol"]
    if (tokens := arguments.get("sasl_oauth_token_provider")) is not None:
        return str(tokens.principal)
    if protocol.startswith("SASL"):
        return f"User:{arguments.get('sasl_plain_username')}"
    return "User:ANONYMOUS" if protocol == "PLAINTEXT" else "the user of ANABRANCH_SSL_CERTFILE"


def _named(error: KafkaError) -> str:
    """The topics or the group that aiokafka names: a text, or a set of them."""
    named = error.args[0] if error.args else ""
    return named if isinstance(named, str) else ", ".join(sorted(map(str, named)))
