"""For how long a token is given to new connections, whatever clocks and brokers say.

Responsible for: `TokenSource`, given tokens. Must never: ask a server; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import conn
from aiokafka.errors import SaslAuthenticationFailed
from aiokafka.protocol.admin import SaslHandShakeRequest

from anabranch.config import KafkaSettings
from anabranch.kafka import oauth
from anabranch.kafka.oauth import REFUSED_S, TokenSource

LIFE_S = 300.0


class Server:
    """It gives tokens, each another one. `wall` and `steady` are what the clocks say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = 0
        self.wall, self.steady = time.time(), 1000.0
        clocks = SimpleNamespace(time=lambda: self.wall, monotonic=lambda: self.steady)
        monkeypatch.setattr(oauth, "time", clocks)
        way: dict[str, Any] = {
            "sasl_oauth_token_url": "https://tokens", "sasl_oauth_client_id": "me", "sasl_oauth_client_secret": "secret"
        }  # fmt: skip
        self.source = TokenSource(KafkaSettings(**way))
        monkeypatch.setattr(self.source, "_post", self._post)

    async def _post(self) -> tuple[int, dict[str, Any]]:
        self.given += 1
        return 200, {"access_token": f"token-{self.given}", "expires_in": LIFE_S}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


async def test_a_clock_that_is_set_back_does_not_make_a_token_last_longer(server: Server) -> None:
    assert await server.source.token() == "token-1"
    server.wall -= 3600
    server.steady += LIFE_S
    assert await server.source.token() == "token-2"


async def test_a_clock_that_is_set_on_does_not_use_a_token_up(server: Server) -> None:
    assert await server.source.token() == "token-1"
    server.wall += 3600
    server.steady += LIFE_S * 0.7
    assert await server.source.token() == "token-1"


@pytest.mark.parametrize(
    "refused", [(0, None, b'{"status":"invalid_token"}'), (SaslAuthenticationFailed.errno, "invalid_token", b"")]
)
async def test_a_token_that_a_broker_refuses_is_not_offered_again_unless_it_is_new(
    server: Server, refused: tuple[int, str | None, bytes]
) -> None:
    """As Kafka does, by an answer that is no error, or by an error at once."""

    async def offered() -> str:
        connection = conn.AIOKafkaConnection(
            "kafka", 9092, sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider=server.source,
            security_protocol="SASL_PLAINTEXT",
        )  # fmt: skip
        said: list[bytes] = []

        async def send(request: Any) -> Any:
            if isinstance(request, SaslHandShakeRequest):
                return SimpleNamespace(error_code=0, enabled_mechanisms=["OAUTHBEARER"], API_VERSION=1)
            said.append(request._payload)
            return SimpleNamespace(error_code=refused[0], error_message=refused[1], sasl_auth_bytes=refused[2])

        connection.send = send
        with pytest.raises(SaslAuthenticationFailed, match="invalid_token"):
            await connection._do_sasl_handshake()
        return said[0].decode().split("Bearer ")[1].strip("\x01")

    assert await offered() == "token-1"
    assert await offered() == "token-1", "it is as new as another one would be"
    server.steady += REFUSED_S + 1
    assert await offered() == "token-1"
    assert await offered() == "token-2"
