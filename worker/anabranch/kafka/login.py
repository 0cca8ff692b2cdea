"""Why Kafka cannot be reached, or does not let us in: asked when a client has failed, for its error says nothing.

Responsible for: one more try at the bootstrap servers, and what came of it in words that name the setting to look at;
that no log shows a password or a token, however much it tells.
Must never: decide what becomes of who failed.
Called by: `admin.py`, `appender.py`, `reader.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from anabranch.errors import BrokerError
from anabranch.kafka.oauth import NoToken

PROBE_S: Final = 5.0
MOST_SERVERS: Final = 3
_PROTOCOL: Final = "ANABRANCH_SECURITY_PROTOCOL"
_CERTIFICATE: Final = "ANABRANCH_SSL_CERTFILE and ANABRANCH_SSL_KEYFILE"


def _tells_no_secret(record: logging.LogRecord) -> bool:
    """aiokafka shows each request, at the level DEBUG: that of a login holds the password, or the token."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_tells_no_secret)


async def unreachable(arguments: Mapping[str, Any], error: BaseException) -> BrokerError:
    """`error`, met by a client with these `arguments`, as ours, with what a look at the servers shows."""
    where = arguments["bootstrap_servers"]
    why = await _why_not(arguments) or f"{str(error) or type(error).__name__}; but now it answers: try again"
    return BrokerError(f"cannot connect to Kafka at {where} (ANABRANCH_BOOTSTRAP): {why}")


async def _why_not(arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with the first servers; None if one of them is all right now."""
    found = []
    for host, port, _ in collect_hosts(arguments["bootstrap_servers"])[:MOST_SERVERS]:
        try:
            async with asyncio.timeout(PROBE_S):
                await _greet(host, port, arguments)
            return None
        except (KafkaError, OSError, TimeoutError, ValueError, AssertionError) as error:
            found.append(_explained(error, f"{host}:{port}", arguments))
    return "; ".join(dict.fromkeys(found))


async def _greet(host: str, port: int, arguments: Mapping[str, Any]) -> None:
    """Connect, log in and ask something: a server that wants a login hangs up only at the question."""
    how = {name: value for name, value in arguments.items() if name != "bootstrap_servers"}
    connection = await create_conn(host, port, request_timeout_ms=int(PROBE_S * 1000), **how)
    try:
        await connection.send(MetadataRequest([]))
    finally:
        connection.close()


def _explained(error: BaseException, at: str, arguments: Mapping[str, Any]) -> str:
    protocol = arguments.get("security_protocol", "PLAINTEXT")
    for cause in _causes(error):
        if (known := _of_login(cause, arguments) or _of_tls(cause, at)) is not None:
            return known
    for cause in _causes(error):
        if (known := _of_network(cause, at)) is not None:
            return known
    if isinstance(error, TimeoutError):
        return f"{at} does not answer in {PROBE_S:g} s: is it a Kafka, and is {protocol} ({_PROTOCOL}) what it speaks?"
    if isinstance(error, KafkaConnectionError | ConnectionError):
        return f"{at} hangs up: {_hint(protocol)}"
    return f"{at}: {error}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what led to it: aiokafka puts the true one behind its own."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _of_login(error: BaseException, arguments: Mapping[str, Any]) -> str | None:
    mechanism = arguments.get("sasl_mechanism")
    if isinstance(error, NoToken):
        return str(error)
    if isinstance(error, SaslAuthenticationFailed):
        what = (
            "the token of ANABRANCH_SASL_OAUTH_*"
            if mechanism == "OAUTHBEARER"
            else f"user {arguments.get('sasl_plain_username')!r} (ANABRANCH_SASL_USERNAME, ANABRANCH_SASL_PASSWORD)"
        )
        said = error.args[0] if error.args and error.args[0] else "it says no more"
        return f"it does not accept {what} by {mechanism} (ANABRANCH_SASL_MECHANISM): {said}"
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"its listener does not have {mechanism} (ANABRANCH_SASL_MECHANISM): take one that it has enabled"
    if isinstance(error, IllegalSaslStateError):
        return f"its listener takes no login: {_PROTOCOL} must be PLAINTEXT or SSL there"
    if isinstance(error, ValueError) and str(error).startswith("Server "):  # SCRAM: who does not know the password
        return f"it does not prove that it knows {arguments.get('sasl_plain_username')!r}: is it your Kafka? ({error})"
    return None


def _of_tls(error: BaseException, at: str) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {at} is not accepted: {error.verify_message.rstrip('.')}. {_mend(error)}"
    if not isinstance(error, ssl.SSLError):
        return None
    reason = (error.reason or "").upper()
    if any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):  # of an alert that it sent
        return f"{at} wants a certificate of ours that it trusts: {_CERTIFICATE} name one, and its key ({reason})"
    return f"{at} does not speak TLS as we do ({reason or error}): is {_PROTOCOL} right for this port?"


def _mend(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message.lower()
    if "hostname" in said or "ip address" in said:
        return "Use a name that it is for, or set ANABRANCH_SSL_CHECK_HOSTNAME=false where that is safe"
    if "expired" in said or "not yet valid" in said:
        return "The broker needs a new one, or a clock is wrong"
    return "ANABRANCH_SSL_CAFILE must name the file of the CA that signed it"


def _of_network(error: BaseException, at: str) -> str | None:
    if isinstance(error, socket.gaierror):
        return f"the name in {at} is that of no host"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {at}: is Kafka up?"
    return None


def _hint(protocol: str) -> str:
    if protocol in ("SSL", "SASL_SSL"):
        return f"does this port speak TLS, and does it want a login? {_PROTOCOL} is {protocol}"
    return f"does this port want TLS, or a login? {_PROTOCOL} is {protocol}"
