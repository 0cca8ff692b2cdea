"""Secrets in what is printed: known ones in every form, what looks like one, and settings that cannot be read.

Responsible for: `redaction.py`, `confidential.py`, and that a command's errors go through them. Called by: pytest.
"""

from __future__ import annotations

import base64
import json
import traceback
from pathlib import Path

import click
import pytest

from anabranch.cli import frame
from anabranch.environment import load
from anabranch.errors import BrokerError, ConfigError
from anabranch.security.confidential import secrets_of
from anabranch.security.redaction import MASK, Redaction

SECRET = 'it\'s a "pass/wörd"\\ & 7'
KEY = base64.b64encode(bytes(range(32))).decode()
ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "key",
    "ANTHROPIC_AUTH_TOKEN": "authtoken-1",
    "ANABRANCH_SASL_PASSWORD": SECRET,
    "ANABRANCH_SSL_PASSWORD": "ssl-password-1",
    "ANABRANCH_STORE": "s3://id-1:store%2Fpass@bucket/path?signature=signed-1",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20b3RlbDpwYXNz,x-team=team-token-1",
    "CRM_API_KEY": "crm-key-of-a-tool",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-key",
    "ANABRANCH_SIGNING_KEYS": f"one:{KEY}",
    "TOKENS_PER_MINUTE": "1000000000",
    "SSL_TOKEN_FILE": "/run/secrets/token",
}


def test_what_is_secret_is_known_from_the_settings_and_the_environment() -> None:
    found = secrets_of(load(environment=ENVIRONMENT), ENVIRONMENT)
    assert {
        SECRET,
        "key",
        "authtoken-1",
        "ssl-password-1",
        "store/pass",
        "signed-1",
        "Basic b3RlbDpwYXNz",
        "team-token-1",
        "crm-key-of-a-tool",
        "aws-secret-key",
        KEY,
    } <= found
    assert not {"1000000000", "/run/secrets/token", ""} & found


@pytest.mark.parametrize(
    "said",
    [
        f"refused for {SECRET}.",
        f"ConfigError({SECRET!r})",
        json.dumps({"password": SECRET}),
        "https://u:it%27s%20a%20%22pass%2Fw%C3%B6rd%22%5C%20%26%207@host",
        f"Authorization: Basic {base64.b64encode(SECRET.encode()).decode()}",
    ],
)
def test_a_secret_is_kept_out_in_every_form(said: str) -> None:
    told = Redaction([SECRET])(said)
    assert MASK in told
    assert not [part for part in ("pass/w", "pass%2Fw", "00f6", "rd%22", "aXQncy") if part in told]


def test_what_looks_like_a_secret_is_kept_out_though_nobody_knows_it() -> None:
    redact = Redaction()
    assert redact("key sk-ant-api03-abcdefghijklmnop is wrong") == f"key {MASK} is wrong"
    assert redact("Authorization: Bearer eyJhbGciOi.J9.x") == f"Authorization: Bearer {MASK}"
    assert redact("at https://me:hunter2@host:1/x") == f"at https://{MASK}@host:1/x"
    assert redact("s3://bucket/a at 10:30, me@host, run order-1") == "s3://bucket/a at 10:30, me@host, run order-1"


def test_a_secret_of_several_lines_is_kept_out_line_by_line() -> None:
    assert Redaction(["-----BEGIN-----\nMIIEvQ\nabcdef\n"])("it ends with abcdef") == f"it ends with {MASK}"


def test_a_traceback_that_holds_a_secret_is_redacted() -> None:
    try:
        raise ValueError(f"cannot log in with {SECRET}")
    except ValueError as error:
        told = Redaction([SECRET])("".join(traceback.format_exception(error)))
    assert "wörd" not in told
    assert f"cannot log in with {MASK}" in told


def test_a_secret_setting_of_the_wrong_kind_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[kafka]\nsasl_password = 12345678\n")
    with pytest.raises(ConfigError, match="ANABRANCH_SASL_PASSWORD") as refused:
        load(file, {})
    assert "12345678" not in str(refused.value)


@pytest.mark.parametrize("raised", [BrokerError, RuntimeError])
def test_what_a_command_prints_of_its_failure_holds_no_secret(
    raised: type[Exception], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANABRANCH_SASL_PASSWORD", "hunter2-hunter2")
    monkeypatch.delenv("ANABRANCH_LOG_LEVEL", raising=False)

    @click.command()
    @frame.options()
    def failing(common: frame.Frame) -> None:
        raise raised(f"refused with {common.settings.kafka.sasl_password}")

    assert frame.invoke(failing, []) == frame.FAILED
    said = capfd.readouterr().err
    assert f"refused with {MASK}" in said
    assert "hunter2" not in said
