"""The requests to the model's provider are those that the SDK would make, though it makes the first of each kind alone.

Called by: pytest.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic._models import FinalRequestOptions

from anabranch.agent.model.anthropic_model import AnthropicModel
from anabranch.config import AnthropicSettings
from anabranch.environment import load
from anabranch.errors import ConfigError

HEADERS = {"content-type": "application/json", "accept": "text/event-stream"}


def theirs(model: AnthropicModel, content: bytes, betas: list[str]) -> Any:
    client = model._client
    headers = HEADERS | ({"anthropic-beta": ",".join(betas)} if betas else {})
    url = f"{str(client.base_url).rstrip('/')}/v1/messages"
    return client._build_request(
        FinalRequestOptions.construct(method="post", url=url, content=content, headers=headers)
    )


@pytest.mark.parametrize("who", [{"api_key": "k"}, {"auth_token": "t"}])
@pytest.mark.parametrize("url", ["https://api.example", "http://gateway_1.example:8080/under/here/"])
async def test_each_request_is_the_one_that_the_sdk_would_make(who: dict[str, str], url: str) -> None:
    async with AnthropicModel.opened(AnthropicSettings(base_url=url, **who), 60.0) as model:
        for text in "", "a", "\u00e9" * 1000:
            for betas in [], ["one"], ["one", "two"]:
                said = orjson.dumps({"a": text})
                asked = b'{"betas":' + orjson.dumps(betas) + b"," + said[1:] if betas else said
                made, wanted = model._requests.of(asked), theirs(model, said, betas)
                assert (made.method, made.url, made.content) == (wanted.method, wanted.url, said)
                assert made.headers.raw == wanted.headers.raw
                assert made.extensions == wanted.extensions
                assert made.extensions is not model._requests.of(asked).extensions


async def test_what_a_response_has_set_is_not_baked_into_later_requests() -> None:
    """A cookie is aiohttp's to keep and to renew."""
    async with AnthropicModel.opened(AnthropicSettings(api_key="k", base_url="https://api.example"), 60.0) as model:
        model._client._client.cookies.set("session", "old")
        assert "cookie" in theirs(model, b"{}", []).headers
        assert "cookie" not in model._requests.of(b"{}").headers


async def test_a_variable_that_is_set_to_nothing_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `${ANTHROPIC_BASE_URL:-}` makes one."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    async with AnthropicModel.opened(load().anthropic, 60.0) as model:
        assert str(model._requests.of(b"{}").url) == "https://api.anthropic.com/v1/messages"


@pytest.mark.parametrize("url", ["gateway.example", "gateway:8080", "ftp://a", "http://", "http://a:0", "http://a b"])
async def test_an_address_that_is_none_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"ANTHROPIC_BASE_URL=.* must be http:// or https:// and a host"):
        async with AnthropicModel.opened(AnthropicSettings(api_key="k", base_url=url), 60.0):
            pass


async def test_an_address_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"ANTHROPIC_BASE_URL=\w+://gateway ") as refusal:
        async with AnthropicModel.opened(AnthropicSettings(api_key="k", base_url="ssh://u:hunter2@gateway"), 60.0):
            pass
    assert "hunter2" not in str(refusal.value)
