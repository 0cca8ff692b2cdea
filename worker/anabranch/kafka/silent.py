"""Brokers that do not answer and do not hang up, as one whose machine has lost its network: nobody waits for them long.

aiokafka asks any broker for metadata or for a group's coordinator, waits 10 to 40 s for one that is silent, and asks it
again the next time. While it connects to it, it connects to no other. So a client that has met a silent broker leaves
that one alone for a while: to everybody it is one that cannot be connected to, and another one is asked, which knows by
then who leads.

And once it has begun, aiokafka asks nobody but the brokers that it knows: if all of them have moved to other addresses,
it asks where they were, for ever. So the servers that the client was given are asked again when no broker can be had.

Responsible for: whom a client asks who leads what; that a client which starts has time for all servers it was given.
Must never: leave a broker alone for ever, or create a topic by asking for it. Called by: `link.py`, `admin.py`,
`produce/producing.py`, `fetch/fetching.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError, RequestTimedOutError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

log = logging.getLogger(__name__)

LEAVE_S: Final = 10.0
"""By then it is no longer among the brokers (`broker.session.timeout.ms` is 9 s), or it is tried again."""
REFUSED_S: Final = 1.0
"""A broker that cannot be connected to says so sooner; one that took longer to fail is silent."""
CONNECT_S: Final = 15.0
"""How long connecting may take, a token and a login included: a member of a group is otherwise patient for 40 s."""
HEARD_S: Final = 5.0
"""Nor is one that has answered so lately: what took long may have been a name that is not found, or a token."""
SERVER_S: Final = 4.0
"""For how long one of several bootstrap servers is waited for: with three, all are asked before a start fails."""


class Silent:
    """The silent brokers of one client, an `AIOKafkaClient` that has not been started: `of` finds it again."""

    def __init__(self, client: Any) -> None:
        self._client, self._connect, self._bootstrap = client, client._get_conn, client.bootstrap
        self._send, self._leaves_who_is_late = client.send, False
        self._left: dict[int | str, float] = {}
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        client.silent, client._get_conn, client._metadata_update = self, self._connected, self._updated
        client.send = self._sent
        if len(client.hosts) > 1:
            client.bootstrap = self._bootstrapped

    @staticmethod
    def of(client: Any) -> Silent:
        silent: Silent = client.silent
        return silent

    def leave(self, node_id: int | str) -> None:
        """End all connections to a broker at once, whatever they have still to write, and make none for a while."""
        self._left[node_id] = self._loop.time() + LEAVE_S
        for (known, _), connection in list(self._client._conns.items()):
            if known == node_id:
                if connection._writer is not None:
                    connection._writer.transport.abort()
                error = KafkaConnectionError(f"broker {node_id} does not answer")
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT, exc=error)

    def leave_who_is_late(self) -> None:
        """From here on also a broker that does not answer a request in the client's time for it."""
        self._leaves_who_is_late = True

    async def _sent(self, node_id: int, request: Any, **arguments: Any) -> Any:
        """In the place of aiokafka's `send`. If two requests are late in the same turn, it trips over the connection,
        which is closed for the first of them, and perhaps forgotten: the end of its tasks, and of the worker.
        """
        try:
            try:
                return await self._send(node_id, request, **arguments)
            except KeyError as error:
                raise RequestTimedOutError from error
        except RequestTimedOutError:
            if self._leaves_who_is_late:
                self.leave(node_id)
                self._client.force_metadata_update()
            raise

    async def _connected(self, node_id: int | str, **arguments: Any) -> Any:
        """In the place of aiokafka's `_get_conn`. None stands for a broker that cannot be connected to.

        It connects one at a time. Whoever waits for that here and not there knows by then who was silent, and is not
        taken for silent itself.
        """
        known = self._client._conns.get((node_id, arguments.get("group", ConnectionGroup.DEFAULT)))
        if known is not None and known.connected():
            return known
        async with self._turn:
            if self.is_left(node_id):
                self._client.force_metadata_update()
                return None
            began, connection = self._loop.time(), None
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CONNECT_S):
                        connection = await self._connect(node_id, **arguments)
            except Exception:  # what a name or a login brings up would end aiokafka's task that asks who leads
                log.exception("broker %s cannot be connected to", node_id)
                self._client.force_metadata_update()
            finally:  # whoever gives up first, aiokafka or the one who waits for it
                if connection is None and self._loop.time() > began + REFUSED_S and not self._is_heard(node_id):
                    self.leave(node_id)
            return connection

    def _is_heard(self, node_id: int | str) -> bool:
        """Whether it has answered over another connection."""
        since = time.monotonic() - HEARD_S
        return any(
            known == node_id and connection.connected() and connection._last_action > since
            for (known, _), connection in self._client._conns.items()
        )

    def is_left(self, node_id: int | str) -> bool:
        """If all are silent, none is left: something else is the matter."""
        now = self._loop.time()
        left = {node for node, until in self._left.items() if now < until}
        return node_id in left and not left.issuperset(broker.nodeId for broker in self._client.cluster.brokers())

    async def _updated(self, cluster: Any, topics: Collection[str] | None) -> bool:
        """In the place of aiokafka's `_metadata_update`, which lets a broker create the topics that it asks for."""
        client = self._client
        request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
        brokers = [broker.nodeId for broker in client.cluster.brokers()]
        random.shuffle(brokers)
        for node_id in brokers:
            if await self._is_told(node_id, request, cluster):
                return True
        for host, port, _ in client.hosts:
            server = f"{host}:{port}"
            client.cluster._bootstrap_brokers = {server: BrokerMetadata(server, host, port, None)}
            is_told = await self._is_told(server, request, cluster)
            if (connection := client._conns.pop((server, ConnectionGroup.DEFAULT), None)) is not None:
                connection.close()
            if is_told:
                log.info("no broker was where it had been: %s has told where they are now", server)
                return True
        log.error("no broker tells who leads what: neither those known so far (%s), nor the first servers", brokers)
        return False

    async def _is_told(self, node_id: int | str, request: Any, cluster: Any) -> bool:
        if (connection := await self._client._get_conn(node_id)) is None:
            return False
        try:
            told = await connection.send(request)
        except (KafkaError, TimeoutError) as error:
            log.warning("broker %s does not tell who leads what: %r", node_id, error)
            return False
        cluster.update_metadata(told)
        return bool(told.brokers)

    async def _bootstrapped(self) -> None:
        """In the place of aiokafka's `bootstrap`."""
        client = self._client
        patience_ms = client._request_timeout_ms
        client._request_timeout_ms = min(patience_ms, int(SERVER_S * 1000))
        try:
            await self._bootstrap()
        finally:
            client._request_timeout_ms = patience_ms
