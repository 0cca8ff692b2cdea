"""Tokens for OAUTHBEARER: the client credentials grant of OAuth 2 (RFC 6749, 4.4).

Responsible for: one token at a time, fetched when a connection needs one, used for four fifths of its life, or until a
broker refuses it: it may be revoked, or the machine was asleep. Must never: follow a redirect, for it would carry the
secret elsewhere; show a secret or a token in an error. The broker asks for a
token once a connection; where it ends a session with its token, the next connection brings a fresh one.
Called by: `connect.py`, and by aiokafka for each connection.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import ssl
import time
from base64 import b64encode, urlsafe_b64decode
from typing import Any, Final
from urllib.parse import quote_plus

import orjson
from aiokafka import conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import OAuthAuthenticator
from aiokafka.errors import KafkaError, SaslAuthenticationFailed

from anabranch.config import KafkaSettings, is_http, without_secrets
from anabranch.errors import ConfigError
from anabranch.values import frozen

log = logging.getLogger(__name__)

FETCH_S: Final = 10.0
ANSWER_BYTES: Final = 256 * 1024
USED_UP: Final = 0.8
"""The part of its life after which a token is no longer given to new connections."""
REFUSED_S: Final = 10.0
"""A token that a broker refuses sooner is kept: another one would fare no better, and nobody floods the server."""
SHOWN: Final = 200
_NEEDS: Final = ("sasl_oauth_token_url", "sasl_oauth_client_id", "sasl_oauth_client_secret")


class NoToken(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """The token cannot be had; the message says why. aiokafka takes it for a connection that failed."""

    retriable = True


@frozen()
class _Token:
    """Seconds of a clock that nobody sets: when it was asked for, and what it is good for."""

    text: str
    since: float
    fresh_until: float
    valid_until: float


class _Authenticator(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka 0.14 takes a token that was refused for one that was accepted: the broker says so in the bytes of an
    answer that is no error (RFC 7628, 3.2.2), and then answers every request with nothing."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if payload:
            raise SaslAuthenticationFailed(payload[:SHOWN].decode("utf-8", "replace"))
        step: tuple[bytes, bool] | None = await super().step(payload)
        return step


class _Connection(conn.AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """Whichever way a broker refuses the login, by such an answer or by an error: its token is not offered again."""

    async def _do_sasl_handshake(self) -> None:
        try:
            await super()._do_sasl_handshake()
        except SaslAuthenticationFailed:
            if self._sasl_oauth_token_provider is not None:
                self._sasl_oauth_token_provider.is_refused()
            raise


conn.OAuthAuthenticator, conn.AIOKafkaConnection = _Authenticator, _Connection


class TokenSource(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Where every connection of a process gets its token. Raises `ConfigError` for settings that do not do."""

    def __init__(self, settings: KafkaSettings) -> None:
        if missing := [name for name in _NEEDS if not getattr(settings, name)]:
            wanted = ", ".join(f"ANABRANCH_{name.upper()}" for name in missing)
            raise ConfigError(f"OAUTHBEARER needs a source of tokens: set {wanted} (a secret may be in a ..._FILE)")
        self._url, self._settings = str(settings.sasl_oauth_token_url), settings
        self._where = without_secrets(self._url)
        if not is_http(self._url):
            raise ConfigError(f"ANABRANCH_SASL_OAUTH_TOKEN_URL must be an http(s) URL, not {self._where!r}")
        if self._url.lower().startswith("http:"):
            log.warning("the client's secret goes unencrypted to %s (ANABRANCH_SASL_OAUTH_TOKEN_URL)", self._where)
        self._tls = _trust(settings.sasl_oauth_cafile)
        self._token: _Token | None = None
        self._fetching = asyncio.Lock()

    @property
    def principal(self) -> str:
        """Who Kafka takes us for, as far as the token tells: its subject."""
        subject = _claims(self._token.text).get("sub") if self._token is not None else None
        return f"User:{subject}" if isinstance(subject, str) else "the user of ANABRANCH_SASL_OAUTH_CLIENT_ID's token"

    async def token(self) -> str:
        """One that is fresh. Raises `NoToken`."""
        async with self._fetching:
            now = time.monotonic()
            if self._token is None or now >= self._token.fresh_until:
                try:
                    self._token = await self._fetch()
                except NoToken as error:
                    if self._token is None or now >= self._token.valid_until:
                        raise
                    log.warning("%s; the last token is valid for %.0f s more", error, self._token.valid_until - now)
            return self._token.text

    def is_refused(self) -> None:
        """A broker does not take it: whoever comes next gets another one, if this one is not new."""
        if self._token is not None and time.monotonic() - self._token.since > REFUSED_S:
            self._token = None

    async def _fetch(self) -> _Token:
        since, asked_at = time.monotonic(), time.time()
        try:
            async with asyncio.timeout(FETCH_S):
                status, answer = await self._post()
        except TimeoutError:
            raise self._none(f"no answer in {FETCH_S:g} s") from None
        except OSError as error:
            raise self._none(str(error) or type(error).__name__) from None
        if status != 200:
            said = " ".join(str(answer[name]) for name in ("error", "error_description") if answer.get(name))
            raise self._none(f"it answers {status} {said[:SHOWN]}".rstrip())
        text = answer.get("access_token")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text or not text:
            raise self._none("its answer has no access_token")
        life = _life(answer.get("expires_in"), text, asked_at)
        return _Token(text, since, since + life * USED_UP, since + life)

    async def _post(self) -> tuple[int, dict[str, Any]]:
        settings = self._settings
        form = {"grant_type": "client_credentials"}
        if settings.sasl_oauth_scope:
            form["scope"] = settings.sasl_oauth_scope
        # RFC 6749, 2.3.1: both are form-encoded before they go into the header
        both = (quote_plus(text or "") for text in (settings.sasl_oauth_client_id, settings.sasl_oauth_client_secret))
        who = {"Authorization": f"Basic {b64encode(':'.join(both).encode()).decode()}", "Accept": "application/json"}
        import aiohttp  # a fifth of a worker's imports, which those without tokens are spared

        try:
            async with (
                aiohttp.ClientSession(headers=who, trust_env=True) as session,
                session.post(self._url, data=form, ssl=self._tls, allow_redirects=False) as response,
            ):
                return response.status, _object(await response.content.read(ANSWER_BYTES))
        except aiohttp.ClientError as error:
            raise self._none(str(error) or type(error).__name__) from None

    def _none(self, why: str) -> NoToken:
        return NoToken(
            f"no token for Kafka from {self._where}: {why} "
            "(ANABRANCH_SASL_OAUTH_TOKEN_URL, ..._CLIENT_ID, ..._CLIENT_SECRET)"
        )


def _trust(cafile: str | None) -> ssl.SSLContext | bool:
    try:
        return True if cafile is None else ssl.create_default_context(cafile=cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ANABRANCH_SASL_OAUTH_CAFILE={cafile} cannot be read: {error}") from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _life(expires_in: object, text: str, now: float) -> float:
    """For how many seconds a token is valid: as the answer says, or the token; 0 if neither does."""
    expires = _claims(text).get("exp")
    for seconds in (expires_in, expires - now if isinstance(expires, int | float) else None):
        try:
            return max(0.0, float(seconds))  # type: ignore[arg-type]  # some servers write a string
        except (TypeError, ValueError):
            continue
    return 0.0


def _claims(text: str) -> dict[str, Any]:
    """What a JWT says of itself, unverified: that is the broker's to do. Nothing of an opaque token."""
    parts = text.split(".")
    if len(parts) != 3:
        return {}
    try:
        return _object(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
