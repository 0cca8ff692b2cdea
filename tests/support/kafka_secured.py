"""A Kafka as careful people run it: TLS, logins of every kind, and nothing allowed that is not granted.

Responsible for: its certificates, users and listeners, one broker process for all of them, and what a client of each
kind is given as settings. Must never: know about agents or tools.
Called by: `tests/conftest.py`; needs Java and Maven (a container would not see its files).
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.kafka import Broker, started
from tests.support.kafka_sources import JVM, Jars, KafkaUnavailable, Node, find_source
from tests.support.process import free_ports

SUPERS = ("plain", "scram", "oauth", "CN=mutual,OU=tests,O=anabranch")
"""They may do everything: how one logs in is one matter, what one may do another."""
USERS = tuple(f"user-{number}" for number in range(100))
"""They may do nothing until a test grants it. The name is shown, so the password (`password_of`) is another one."""
SESSION_MS = 1500
"""After so long the broker hangs up on who logged in by a token, as brokers do when the token has ended."""
ISSUER, AUDIENCE = "https://issuer.test", "kafka"


class Tokens:
    """Signs tokens as an identity provider does, with a key that the broker knows."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def keys(self) -> str:
        """The key's public half as the JSON Web Key Set that the broker reads."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": "k1",
            "n": _number(numbers.n),
            "e": _number(numbers.e),
        }
        return json.dumps({"keys": [key]})

    def sign(self, subject: str = "oauth", life_s: float = 300.0, **more: Any) -> str:
        now = int(time.time())
        claims = {"sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + int(life_s), **more}
        signed = f"{_part({'alg': 'RS256', 'kid': 'k1', 'typ': 'JWT'})}.{_part(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"


@dataclass
class Secrets:
    """Certificates and keys in a folder of the test's, and who signed them."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)
    stranger: trustme.CA = field(default_factory=trustme.CA)
    tokens: Tokens = field(default_factory=Tokens)

    def __post_init__(self) -> None:
        self.authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        self.stranger.cert_pem.write_to_path(str(self.folder / "stranger-ca.pem"))
        (self.folder / "keys.json").write_text(self.tokens.keys())
        for name, of in (("mutual", self.authority), ("stranger", self.stranger)):
            own = of.issue_cert(
                f"{name}.test", common_name=name, organization_name="anabranch", organization_unit_name="tests"
            )
            own.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.pem"))
            own.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))

    def path(self, name: str) -> str:
        return str(self.folder / name)


def password_of(user: str) -> str:
    return f"secret-of-{user}"


class SecuredJars(Jars):
    """Beside the open listener (where everybody may do everything) three others, each with its own way in."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self.login_port, self.mutual_port, self.clear_port = free_ports(3)
        self.jvm = [*JVM, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self._keys}"]
        self.format_options = [
            option
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for option in ("--add-scram", f"{mechanism}=[name=scram,password=secret-of-scram]")
        ]

    @property
    def _keys(self) -> str:
        return (self._secrets.folder / "keys.json").as_uri()

    def settings(self, node: Node) -> dict[str, str]:
        plain = super().settings(node)
        ports = {"LOGIN": self.login_port, "MUTUAL": self.mutual_port, "CLEAR": self.clear_port}
        users = " ".join(f'user_{name}="{password_of(name)}"' for name in USERS) + ' user_plain="secret-of-plain"'
        package = "org.apache.kafka.common.security"
        given = f"{package}.plain.PlainLoginModule required {users};"
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        token = "listener.name.login.oauthbearer"
        return plain | self._certificates() | {
            "listeners": f"{plain['listeners']},{listeners}",
            "advertised.listeners": f"{plain['advertised.listeners']},{listeners.replace('127.0.0.1', 'localhost')}",
            "listener.security.protocol.map": (
                f"{plain['listener.security.protocol.map']},LOGIN:SASL_SSL,MUTUAL:SSL,CLEAR:SASL_PLAINTEXT"
            ),
            "listener.name.mutual.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.clear.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.login.plain.sasl.jaas.config": given,
            "listener.name.clear.plain.sasl.jaas.config": given,
            "listener.name.login.scram-sha-256.sasl.jaas.config": f"{package}.scram.ScramLoginModule required;",
            "listener.name.login.scram-sha-512.sasl.jaas.config": f"{package}.scram.ScramLoginModule required;",
            f"{token}.sasl.jaas.config": f"{package}.oauthbearer.OAuthBearerLoginModule required;",
            f"{token}.sasl.server.callback.handler.class": (
                f"{package}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
            f"{token}.connections.max.reauth.ms": str(SESSION_MS),
            "sasl.oauthbearer.jwks.endpoint.url": self._keys,
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.expected.issuer": ISSUER,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join(f"User:{name}" for name in ("ANONYMOUS", *SUPERS)),
            "allow.everyone.if.no.acl.found": "false",
        }  # fmt: skip

    def _certificates(self) -> dict[str, str]:
        own = self._secrets.authority.issue_cert("localhost")
        chain = b"".join(pem.bytes() for pem in own.cert_chain_pems)
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.key": _line(_pkcs8(own.private_key_pem.bytes())),
            "ssl.keystore.certificate.chain": _line(chain),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": _line(self._secrets.authority.cert_pem.bytes()),
        }


@dataclass
class SecuredKafka:
    """A running one. `login` (SASL over TLS), `mutual` (TLS with certificates) and `clear` (SASL without TLS) are
    `localhost:port`; at `open` nobody logs in, and everything is allowed."""

    broker: Broker
    secrets: Secrets
    source: SecuredJars

    @property
    def open(self) -> str:
        return self.broker.bootstrap

    @property
    def login(self) -> str:
        return f"localhost:{self.source.login_port}"

    @property
    def mutual(self) -> str:
        return f"localhost:{self.source.mutual_port}"

    @property
    def clear(self) -> str:
        return f"localhost:{self.source.clear_port}"

    def as_user(self, name: str) -> dict[str, Any]:
        """Settings of one of `USERS`, by the way that costs least."""
        return {
            "bootstrap": self.clear,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_username": name,
            "sasl_password": password_of(name),
        }


def launch_secured(folder: Path) -> SecuredKafka:
    """One that serves, with its secrets in `folder`; close its `broker`. Raises KafkaUnavailable or KafkaFailed."""
    if not isinstance(find_source(), Jars):
        raise KafkaUnavailable("these tests need a Java runtime and Maven: Docker would not see their certificates")
    secrets = Secrets(folder)
    made: list[SecuredJars] = []

    def make() -> Broker:
        made.append(SecuredJars(secrets))
        return Broker(made[-1])

    broker = started(make)
    return SecuredKafka(broker, secrets, made[-1])


def _pkcs8(pem: bytes) -> bytes:
    key = form.load_pem_private_key(pem, None)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _line(pem: bytes) -> str:
    """PEM in one line of a properties file."""
    return " ".join(pem.decode().split("\n")).strip()


def _part(value: Mapping[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8, "big"))
