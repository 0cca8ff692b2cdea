"""Kafka as a `Broker`: what the settings say, turned into clients.

Called by whoever starts something (runtime, client, commands). It holds no connection itself: each of the
context managers that it hands out opens its own and closes it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from typing import Any, Final

from aiokafka.conn import get_ip_port_afi

from anabranch.config import KafkaSettings
from anabranch.errors import ConfigError
from anabranch.kafka.admin import Admin
from anabranch.kafka.appender import KafkaAppender
from anabranch.kafka.meters import RoleMeters
from anabranch.kafka.oauth import TokenSource
from anabranch.kafka.pump import KafkaSubscription
from anabranch.kafka.reader import KafkaReader
from anabranch.kafka.seam import Lack, Listener, Place, Start
from anabranch.topics import TopicSpec

_HOST: Final = re.compile(rb"[A-Za-z0-9._-]+")


class KafkaBroker:
    """One Kafka cluster. `meters` hear of what goes wrong with its producers."""

    def __init__(self, settings: KafkaSettings, meters: RoleMeters | None = None) -> None:
        self._settings, self._meters = settings, meters
        self._arguments = client_arguments(settings)

    def appender(self) -> AbstractAsyncContextManager[KafkaAppender]:
        return KafkaAppender.opened(self._arguments, self._settings.idempotent, self._meters)

    @asynccontextmanager
    async def subscribe(
        self, topics: Sequence[str], group: str, listener: Listener, newer: Sequence[str] = ()
    ) -> AsyncIterator[KafkaSubscription]:
        async with self._admin() as admin:
            subscription = KafkaSubscription(self._settings, self._arguments, topics, group, listener, admin, newer)
            async with subscription.opened():
                yield subscription

    def reader(self, places: Sequence[Place], start: Start) -> AbstractAsyncContextManager[KafkaReader]:
        return KafkaReader.opened(self._arguments, places, start)

    async def partitions(self, topic: str) -> int:
        async with self._admin() as admin:
            return await admin.partitions(topic)

    async def lacks(self, specs: Sequence[TopicSpec]) -> list[Lack]:
        async with self._admin() as admin:
            return await admin.lacks(specs)

    async def apply(self, specs: Sequence[TopicSpec]) -> list[str]:
        async with self._admin() as admin:
            return await admin.apply(specs)

    def _admin(self) -> AbstractAsyncContextManager[Admin]:
        return Admin.opened(self._settings, self._arguments)


def client_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """What every aiokafka client is given. Raises `ConfigError` for settings that do not go together."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": _servers(settings.bootstrap),
        "security_protocol": settings.security_protocol,
        "client_id": "anabranch",
    }
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        arguments["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        arguments |= _login(settings)
    return arguments


def _servers(bootstrap: str) -> str:
    """Those that are named, without the blanks and the commas that name none."""
    servers = [server.strip() for server in bootstrap.split(",") if server.strip()]
    for server in servers or [""]:
        if not _is_server(server):
            raise ConfigError(
                f"ANABRANCH_BOOTSTRAP={bootstrap!r}: {server!r} is no server of Kafka: give a host and its port, as in "
                "localhost:9092, or several with commas between them"
            )
    return ",".join(servers)


def _is_server(server: str) -> bool:
    try:
        host, port, _ = get_ip_port_afi(server)
        is_host = bool(ip_address(host)) if ":" in host else _HOST.fullmatch(host.encode("idna")) is not None
    except ValueError:  # also of a name that none can be
        return False
    return is_host and 0 < port < 65_536


def _login(settings: KafkaSettings) -> dict[str, Any]:
    mechanism = settings.sasl_mechanism
    if mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": TokenSource(settings)}
    needs = {"ANABRANCH_SASL_USERNAME": settings.sasl_username, "ANABRANCH_SASL_PASSWORD": settings.sasl_password}
    if missing := [name for name, value in needs.items() if not value]:
        raise ConfigError(
            f"{settings.security_protocol} with {mechanism} needs {' and '.join(missing)} (or the latter in a file, "
            "ANABRANCH_SASL_PASSWORD_FILE); ANABRANCH_SASL_MECHANISM says how to log in"
        )
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password,
    }


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ANABRANCH_SSL_CAFILE={settings.ssl_cafile} cannot be read: {error}") from None
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile is None:
        if settings.ssl_keyfile is not None:
            raise ConfigError("ANABRANCH_SSL_KEYFILE is set without its certificate, ANABRANCH_SSL_CERTFILE")
        return context
    try:
        # Without a password the function asks at the terminal: a worker would hang.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_password or "")
    except (OSError, ssl.SSLError) as error:
        files = f"ANABRANCH_SSL_CERTFILE={settings.ssl_certfile}, ANABRANCH_SSL_KEYFILE={settings.ssl_keyfile}"
        raise ConfigError(
            f"our certificate and its key cannot be read ({files}, ANABRANCH_SSL_PASSWORD if the key has one): {error}"
        ) from None
    return context
