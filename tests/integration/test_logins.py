"""TLS, certificates, passwords and tokens, against a Kafka that asks for them.

Responsible for: that everything of ours (workers, client, commands) gets in by each of the ways that the settings
offer, and that whoever does not is told within seconds what to mend, and never sees a secret.
Must never: try what somebody may do once he is in (tests/integration/test_access*.py).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from tests.support.fleet import Fleet, by_turn, fleet, settings_for
from tests.support.kafka_secured import SESSION_MS, SecuredKafka
from tests.support.process import free_ports

from anabranch import App
from anabranch.cli import anabranch, frame
from anabranch.client import Client
from anabranch.config import KafkaSettings, Settings, WorkerSettings
from anabranch.errors import BrokerError, ConfigError
from anabranch.kafka import oauth
from anabranch.kafka.connect import KafkaBroker
from anabranch.kafka.oauth import NoToken, TokenSource
from anabranch.runtime import Shutdown
from anabranch.testing import tool_use
from anabranch.tool_role import serve_tools

Way = Callable[[SecuredKafka], dict[str, Any]]
WRONG = "hunter2-is-wrong"
SECRETS = ("secret-of-plain", "secret-of-scram", WRONG, "s3cret+client")
SOON_S = 10.0

app = App("logins")


@app.tool(queue="io")
async def near() -> str:
    """Answers."""
    return "near"


app.agent("caller", model="scripted", tools=[near])
script = by_turn(tool_use("near", {}), "done")


# --- ways in --------------------------------------------------------------------------------------------------------


def by_password(mechanism: str, user: str, password: str) -> Way:
    def way(kafka: SecuredKafka) -> dict[str, Any]:
        return {
            "bootstrap": kafka.login,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_username": user,
            "sasl_password": password,
            "ssl_cafile": kafka.secrets.path("ca.pem"),
        }

    return way


def by_certificate(name: str = "mutual") -> Way:
    def way(kafka: SecuredKafka) -> dict[str, Any]:
        return {
            "bootstrap": kafka.mutual,
            "security_protocol": "SSL",
            "ssl_cafile": kafka.secrets.path("ca.pem"),
            "ssl_certfile": kafka.secrets.path(f"{name}.pem"),
            "ssl_keyfile": kafka.secrets.path(f"{name}.key"),
        }

    return way


def but(way: Way, **changes: Any) -> Way:
    """`way` with changes; "-" takes a setting away, and a text with "{...}" is filled from the broker."""

    def changed(kafka: SecuredKafka) -> dict[str, Any]:
        given = {**way(kafka), **changes}
        filled = {n: v.format(kafka=kafka) if isinstance(v, str) else v for n, v in given.items()}
        return {name: value for name, value in filled.items() if value != "-"}

    return changed


PLAIN = by_password("PLAIN", "plain", "secret-of-plain")
SCRAM = by_password("SCRAM-SHA-512", "scram", "secret-of-scram")
WAYS = {
    "PLAIN": PLAIN,
    "SCRAM-SHA-256": by_password("SCRAM-SHA-256", "scram", "secret-of-scram"),
    "SCRAM-SHA-512": SCRAM,
    "a certificate": by_certificate(),
}


async def serves(kafka: SecuredKafka, namespace: str, way: dict[str, Any]) -> None:
    """All that we have in the way of clients: admin, producers, group members, readers, of each role."""
    settings = settings_for(kafka.open, namespace)
    settings = replace(settings, kafka=replace(settings.kafka, **way))
    async with fleet(app, script, settings) as running:
        assert (await running.ask("caller")).output == "done"


@pytest.mark.parametrize("way", WAYS)
async def test_both_roles_and_a_client_get_in_by(
    secured: SecuredKafka, namespace: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await serves(secured, namespace, WAYS[way](secured))
    assert not [secret for secret in SECRETS if secret in caplog.text]


def test_a_command_gets_in_by_what_the_environment_says(
    secured: SecuredKafka, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    password = tmp_path / "password"
    password.write_text("secret-of-scram\n")
    environment = {
        "BOOTSTRAP": secured.login, "SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-256",
        "SASL_USERNAME": "scram", "SASL_PASSWORD_FILE": str(password), "SSL_CAFILE": secured.secrets.path("ca.pem"),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(f"ANABRANCH_{name}", value)
    arguments = [f"{__file__}:app", "--namespace", namespace]
    assert frame.invoke(anabranch, ["topics", "apply", *arguments]) == 0
    assert frame.invoke(anabranch, ["topics", "check", *arguments]) == 0
    assert frame.invoke(anabranch, ["tools", "--namespace", namespace]) == 0


def test_a_command_that_does_not_get_in_ends_with_1_and_says_why(
    secured: SecuredKafka, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in PLAIN(secured).items():
        monkeypatch.setenv(f"ANABRANCH_{name.upper()}", value)
    monkeypatch.setenv("ANABRANCH_SASL_PASSWORD", WRONG)
    for command in (["tools"], ["runs", "list"], ["dlq", "list"]):
        assert frame.invoke(anabranch, [*command, "--namespace", namespace]) == 1
        said = capsys.readouterr().err
        assert "does not accept user 'plain'" in said
        assert WRONG not in said


# --- tokens ---------------------------------------------------------------------------------------------------------


@dataclass
class TokenServer:
    """An identity provider with one client, "worker"; `answers` are given first, each once."""

    kafka: SecuredKafka
    life_s: float = 300.0
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    answers: list[web.Response] = field(default_factory=list)
    down: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append({**await request.post(), "authorization": request.headers.get("Authorization", "")})
        if self.down:
            return web.Response(status=503)
        if self.answers:
            return self.answers.pop(0)
        expected = base64.b64encode(b"worker:s3cret%2Bclient").decode()
        if self.asked[-1]["authorization"] != f"Basic {expected}":
            return web.json_response({"error": "invalid_client", "error_description": "who is that?"}, status=401)
        token = self.kafka.secrets.tokens.sign(life_s=self.life_s)
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": self.life_s})

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_url": self.url,
            "sasl_oauth_client_id": "worker",
            "sasl_oauth_client_secret": "s3cret+client",
            "sasl_oauth_scope": "kafka",
        }

    def way(self) -> dict[str, Any]:
        given = PLAIN(self.kafka)
        return {n: v for n, v in given.items() if n not in ("sasl_username", "sasl_password")} | self.settings


@asynccontextmanager
async def token_server(kafka: SecuredKafka, tls: bool = False) -> AsyncIterator[TokenServer]:
    [port] = free_ports(1)
    server = TokenServer(kafka, url=f"http{'s' if tls else ''}://127.0.0.1:{port}/token")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
    if context is not None:
        kafka.secrets.authority.issue_cert("127.0.0.1").configure_cert(context)
    router = web.Application()
    router.router.add_post("/token", server.answer)
    runner = web.AppRunner(router)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    try:
        yield server
    finally:
        await runner.cleanup()


async def test_both_roles_and_a_client_get_in_by_tokens_and_stay_when_kafka_ends_their_sessions(
    secured: SecuredKafka, namespace: str
) -> None:
    settings = settings_for(secured.open, namespace)
    async with token_server(secured) as tokens:
        settings = replace(settings, kafka=replace(settings.kafka, **tokens.way()))
        async with fleet(app, script, settings) as running:
            assert (await running.ask("caller")).output == "done"
            await _work_on(running, 3 * SESSION_MS / 1000)
        assert len(tokens.asked) <= 4, "one token serves all connections of what was started"
        assert {(asked["grant_type"], asked["scope"]) for asked in tokens.asked} == {("client_credentials", "kafka")}


async def _work_on(running: Fleet, for_s: float) -> None:
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        assert (await running.ask("caller")).output == "done"


async def test_a_token_is_renewed_before_it_ends_and_used_up_if_no_other_can_be_had(
    secured: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    async with token_server(secured) as tokens:
        source = TokenSource(KafkaSettings(**tokens.way()))
        first = await source.token()
        assert await source.token() == first
        assert source.principal == "User:oauth"
        clock = time.monotonic() + tokens.life_s * 0.85
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(oauth, "time", SimpleNamespace(time=time.time, monotonic=lambda: clock))
            tokens.down = True
            assert await source.token() == first
            assert re.search(r"it answers 503 .*the last token is valid for 4\d s more", caplog.text)
            tokens.down, asked = False, len(tokens.asked)
            await source.token()
            assert len(tokens.asked) == asked + 1
            tokens.down, clock = True, clock + tokens.life_s
            with pytest.raises(NoToken, match="it answers 503"):
                await source.token()


async def test_the_secret_goes_only_to_a_server_whose_certificate_is_trusted(
    secured: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    async with token_server(secured, tls=True) as tokens:
        trusting = KafkaSettings(**tokens.way(), sasl_oauth_cafile=secured.secrets.path("ca.pem"))
        assert await KafkaBroker(trusting).lacks([]) == []
        asked = len(tokens.asked)
        with pytest.raises(BrokerError, match=r"no token for Kafka from https://.*certificate verify failed"):
            await KafkaBroker(KafkaSettings(**tokens.way())).partitions("any")
        assert len(tokens.asked) == asked
    assert "unencrypted" not in caplog.text
    with pytest.raises(ConfigError, match="ANABRANCH_SASL_OAUTH_CAFILE=/nowhere"):
        KafkaBroker(replace(trusting, sasl_oauth_cafile="/nowhere"))


BAD_ANSWERS = {
    "a redirect, which would carry the secret on": (302, b"", "it answers 302"),
    "no JSON": (200, b"<html>", "its answer has no access_token"),
    "no token": (200, b'{"access_token": "a b"}', "its answer has no access_token"),
    "an error": (400, b'{"error": "invalid_scope"}', "it answers 400 invalid_scope"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
async def test_an_answer_without_a_token_is_told(secured: SecuredKafka, what: str) -> None:
    status, body, told = BAD_ANSWERS[what]
    async with token_server(secured) as tokens:
        headers = {"Location": tokens.url}
        tokens.answers += [web.Response(status=status, body=body, headers=headers) for _ in range(5)]
        with pytest.raises(BrokerError, match=told) as refused:
            await KafkaBroker(KafkaSettings(**tokens.way())).partitions("any")
    assert "s3cret" not in str(refused.value)


async def test_a_token_for_another_server_is_refused_with_the_brokers_words(secured: SecuredKafka) -> None:
    wrong = secured.secrets.tokens.sign(aud="another")
    async with token_server(secured) as tokens:
        tokens.answers.append(web.json_response({"access_token": wrong}))
        told = r"does not accept the token of ANABRANCH_SASL_OAUTH_\* .*invalid_token"
        with pytest.raises(BrokerError, match=told) as refused:
            await KafkaBroker(KafkaSettings(**tokens.way())).partitions("any")
    assert wrong not in str(refused.value)


async def test_a_wrong_secret_and_a_server_that_is_not_there_are_told(secured: SecuredKafka) -> None:
    async with token_server(secured) as tokens:
        way = {**tokens.way(), "sasl_oauth_client_secret": WRONG}
        with pytest.raises(BrokerError, match=r"it answers 401 invalid_client who is that\?"):
            await KafkaBroker(KafkaSettings(**way)).partitions("any")
    with pytest.raises(
        BrokerError, match=r"no token for Kafka from http://127.0.0.1:\d+/token: .*refused|Cannot connect"
    ):
        await KafkaBroker(KafkaSettings(**tokens.way())).partitions("any")


# --- ways that lead nowhere -----------------------------------------------------------------------------------------

PROTOCOL = "ANABRANCH_SECURITY_PROTOCOL is"
OPEN: dict[str, Any] = {"sasl_username": "-", "sasl_password": "-", "sasl_mechanism": "PLAIN", "ssl_cafile": "-"}
REFUSED = {
    "a wrong password": (but(PLAIN, sasl_password=WRONG), "does not accept user 'plain' .*ANABRANCH_SASL_PASSWORD"),
    "a wrong scram password": (but(SCRAM, sasl_password=WRONG), "does not accept user 'scram'"),
    "nobody we know": (but(SCRAM, sasl_username="nobody"), "does not accept user 'nobody'"),
    "another mechanism": (
        but(SCRAM, bootstrap="{kafka.clear}", security_protocol="SASL_PLAINTEXT"),
        r"does not have SCRAM-SHA-512 \(ANABRANCH_SASL_MECHANISM\)",
    ),
    "no TLS where it is wanted": (but(PLAIN, security_protocol="SASL_PLAINTEXT"), f"want TLS.* {PROTOCOL} SASL_PLAIN"),
    "no login where it is wanted": (
        but(PLAIN, bootstrap="{kafka.clear}", security_protocol="PLAINTEXT", **OPEN),
        f"or a login.* {PROTOCOL} PLAINTEXT",
    ),
    "neither": (but(PLAIN, security_protocol="PLAINTEXT", **OPEN), f"want TLS, or a login.* {PROTOCOL} PLAINTEXT"),
    "TLS alone": (but(PLAIN, security_protocol="SSL"), f"does it want a login.* {PROTOCOL} SSL"),
    "TLS where there is none": (but(PLAIN, bootstrap="{kafka.clear}"), f"speak TLS.* {PROTOCOL} SASL_SSL"),
    "a login where there is none": (
        but(PLAIN, bootstrap="{kafka.open}", security_protocol="SASL_PLAINTEXT"),
        "takes no login: ANABRANCH_SECURITY_PROTOCOL must be PLAINTEXT",
    ),
    "a CA that nobody knows": (but(PLAIN, ssl_cafile="-"), "ANABRANCH_SSL_CAFILE must name"),
    "another CA": (but(PLAIN, ssl_cafile="{kafka.secrets.folder}/stranger-ca.pem"), "ANABRANCH_SSL_CAFILE must name"),
    "another host": (
        but(PLAIN, bootstrap="127.0.0.1:{kafka.source.login_port}"),
        "not valid for '127.0.0.1'.*ANABRANCH_SSL_CHECK_HOSTNAME",
    ),
    "no certificate": (
        but(by_certificate(), ssl_certfile="-", ssl_keyfile="-"),
        "wants a certificate of ours.*ANABRANCH_SSL_CERTFILE",
    ),
    "a stranger's certificate": (by_certificate("stranger"), "a certificate of ours that it trusts"),
    "no such host": (but(PLAIN, bootstrap="no-such-host.invalid:9092"), "is that of no host"),
    "nobody at home": (but(PLAIN, bootstrap="127.0.0.1:1"), "nobody listens at 127.0.0.1:1"),
}


@pytest.mark.parametrize("way", REFUSED)
async def test_a_worker_and_a_client_end_within_seconds_and_say_what_to_mend(
    secured: SecuredKafka, namespace: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, told = REFUSED[way]
    its = Settings(kafka=KafkaSettings(**settings(secured)), worker=WorkerSettings(namespace=namespace))
    with caplog.at_level(logging.DEBUG):
        async with asyncio.timeout(SOON_S):
            with pytest.raises(BrokerError, match=told) as at_worker:
                await serve_tools(app, "io", its, Shutdown())
            with pytest.raises(BrokerError, match=told) as at_client:
                async with Client.for_app(app, settings=its):
                    pass
            with pytest.raises(BrokerError, match=told) as at_producer:
                async with KafkaBroker(its.kafka).appender():
                    pass
    said = f"{at_worker.value} {at_client.value} {at_producer.value} {caplog.text}"
    assert not [secret for secret in SECRETS if secret in said]


async def test_a_name_that_is_not_the_certificates_is_taken_if_the_settings_say_so(secured: SecuredKafka) -> None:
    way = but(PLAIN, bootstrap="127.0.0.1:{kafka.source.login_port}", ssl_check_hostname=False)
    assert await KafkaBroker(KafkaSettings(**way(secured))).lacks([]) == []


BROKEN_SETTINGS = [
    (but(PLAIN, sasl_password="-"), r"SASL_SSL with PLAIN needs ANABRANCH_SASL_PASSWORD \("),
    (but(SCRAM, sasl_username="-", sasl_password="-"), "ANABRANCH_SASL_USERNAME and ANABRANCH_SASL_PASSWORD"),
    (but(PLAIN, sasl_mechanism="OAUTHBEARER"), "set ANABRANCH_SASL_OAUTH_TOKEN_URL, ANABRANCH_SASL_OAUTH_CLIENT_ID"),
    (
        but(PLAIN, sasl_mechanism="OAUTHBEARER", sasl_oauth_token_url="ftp://u:p@host/x", sasl_oauth_client_id="x",
            sasl_oauth_client_secret="y"),
        "must be an http.* URL, not 'ftp://host/x'",
    ),
    (but(PLAIN, ssl_cafile="/nowhere.pem"), "ANABRANCH_SSL_CAFILE=/nowhere.pem cannot be read"),
    (but(PLAIN, ssl_cafile="{kafka.secrets.folder}/mutual.key"), "ANABRANCH_SSL_CAFILE=.*mutual.key cannot be read"),
    (but(by_certificate(), ssl_certfile="-"), "ANABRANCH_SSL_KEYFILE is set without"),
    (but(by_certificate(), ssl_keyfile="{kafka.secrets.folder}/stranger.key"), "our certificate and its key cannot"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "told"), BROKEN_SETTINGS, ids=range(len(BROKEN_SETTINGS)))
def test_settings_that_do_not_go_together_are_told_before_anything_is_tried(
    secured: SecuredKafka, way: Way, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        KafkaBroker(KafkaSettings(**way(secured)))
