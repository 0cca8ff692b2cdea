"""For how long a token is given to new connections, whatever clocks and brokers say.

Responsible for: `TokenSource`, given tokens. Must never: ask a server; tests/integration does. Called by: pytest.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import SaslAuthenticationFailed

from anabranch.config import KafkaSettings
from anabranch.kafka import oauth
from anabranch.kafka.oauth import REFUSED_S, TokenSource, _Authenticator

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


async def test_a_token_that_a_broker_refuses_is_not_offered_again_unless_it_is_new(server: Server) -> None:
    async def refused() -> str:
        login = _Authenticator(sasl_oauth_token_provider=server.source)
        step = await login.step(None)
        with pytest.raises(SaslAuthenticationFailed, match="invalid_token"):
            await login.step(b'{"status":"invalid_token"}')
        return step[0].decode() if step is not None else ""

    assert "token-1" in await refused()
    assert "token-1" in await refused(), "it is as new as another one would be"
    server.steady += REFUSED_S + 1
    assert "token-1" in await refused()
    assert "token-2" in await refused()
