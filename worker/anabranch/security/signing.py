"""Events that agent workers alone write, signed with a key that they alone hold. PURE.

Kafka's access control ends at a topic: tool workers and clients may write to `agent.log` too, and could write
anything there. With a key, an owner takes for an agent worker's event only what is signed. HMAC-SHA256, because those
who sign are those who check: a public key would spare nobody a secret, and costs many times as much for each event.

Responsible for: signing a record, and refusing one that is not signed as it must be. Must never: show a key, or look
into a body. Called by: `agent/station.py`, `agent/reading.py`, `agent/worker.py`, `registry.py`, and `view.py` for the
commands.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping
from struct import pack
from typing import Final

from anabranch.codec import Outgoing, Record, header
from anabranch.config import SigningSettings
from anabranch.errors import ConfigError, WireError
from anabranch.security.named_keys import named_keys

SIGNATURE: Final = "ce_signature"
OPEN: Final = frozenset({"tool.returned", "calls.handed_off", "run.cancelled"})
"""What tool workers and clients write: these are never asked for a signature."""
_MARKED: Final = b"anabranch agent workers"
_REQUIRED: Final = ":required"
_NOT_SIGNED: Final = frozenset({SIGNATURE, "traceparent", "tracestate"})


class Signer:
    """`keys` by id, the first of which signs; without any it does nothing. `required`: nothing unsigned is taken."""

    def __init__(self, keys: Mapping[str, bytes], required: bool = False) -> None:
        self._keys, self._required = dict(keys), required
        self._current = next(iter(keys), None)
        self._marks = {name: f"{name}:{hmac.digest(key, _MARKED, 'sha256').hex()[:16]}" for name, key in keys.items()}

    @property
    def mark(self) -> str:
        """What names the key that we sign with, and tells nothing of it, and whether we take what is not signed; ""
        without a key. It stands with our commits.
        """
        return "" if self._current is None else self._marks[self._current] + (_REQUIRED if self._required else "")

    def recognise(self, mark: str, place: str) -> None:
        """Only agent workers commit: one whose key is not ours would be taken for a forger here, or we for one there,
        runs begun again and paid for twice. Raises `ConfigError`, which ends the worker before it does anything.
        """
        signed_by = mark.removesuffix(_REQUIRED)
        known = self._marks.get(signed_by.partition(":")[0])
        if self._current is None:
            if mark != signed_by:
                raise ConfigError(
                    f"{place} was worked on by an agent worker that signs, and takes nothing that is not signed: set "
                    f"ANABRANCH_SIGNING_KEYS here, too, to keys of which one is {signed_by} (id and hash)"
                )
        elif mark and known != signed_by and (known is not None or self._required):
            raise ConfigError(
                f"{place} was worked on by an agent worker that signs with the key {signed_by}, and "
                f"ANABRANCH_SIGNING_KEYS has {' and '.join(self._marks.values())} here (id and hash): give all agent "
                "workers the same keys"
            )

    def signed(self, record: Outgoing) -> Outgoing:
        """`record`, an event for `agent.log` or an agent for the registry, with our signature."""
        if self._current is None:
            return record
        signature = f"{self._current}:{_digest(self._keys[self._current], record)}".encode()
        headers = (*record.headers, (SIGNATURE, signature))
        return Outgoing(record.topic, record.key, record.value, headers, record.partition)

    def check(self, record: Record) -> None:
        """Raises `WireError` for an event that is not signed, or not by one of our keys, and should be."""
        if self._current is not None and (kind := header(record.headers, "ce_type") or "") not in OPEN:
            self.vouch(record, kind)

    def vouch(self, record: Record, kind: str) -> None:
        """Raises `WireError` for a record, a `kind` by its place or key, that no agent worker of ours has written."""
        if self._current is None:
            return
        name, _, given = (header(record.headers, SIGNATURE) or "").partition(":")
        key = self._keys.get(name)
        if key is None:
            if self._required:
                raise WireError(f"{kind}: only agent workers write such records, and this one has no signature of ours")
            return
        if not hmac.compare_digest(_digest(key, record).encode(), given.encode()):
            raise WireError(f"{kind}: the signature is wrong: no agent worker of ours has written this, as it is")


NO_SIGNER: Final = Signer({})


def signer_of(settings: SigningSettings) -> Signer:
    """The signer of an agent worker, or of who looks at the log. Raises `ConfigError` for keys that do not do."""
    if settings.keys is None:
        if settings.mode == "require":
            raise ConfigError("ANABRANCH_SIGNING_MODE is require, and there is no key: set ANABRANCH_SIGNING_KEYS")
        return NO_SIGNER
    return Signer(named_keys(settings.keys, "ANABRANCH_SIGNING_KEYS"), settings.mode == "require")


def verifier_of(settings: SigningSettings) -> Signer:
    """For who only looks: without a key everything is shown, and nothing is vouched for."""
    return NO_SIGNER if settings.keys is None else signer_of(settings)


def _digest(key: bytes, record: Outgoing | Record) -> str:
    """Over where it lies, its key, all headers but those of the way, and its body: all their lengths, then all of them.

    Lengths are 32-bit signed big-endian numbers, -1 for what is null; the partition stands before them as one more.
    """
    parts: list[bytes | None] = [record.topic.encode(), record.key, record.value or b""]
    for name, value in record.headers:
        if name not in _NOT_SIGNED:
            parts.append(name.encode())
            parts.append(value)
    sizes = [-1 if part is None else len(part) for part in parts]
    numbers = pack(f">{len(parts) + 2}i", -1 if record.partition is None else record.partition, len(parts), *sizes)
    return b64encode(hmac.digest(key, numbers + b"".join([part or b"" for part in parts]), "sha256")).decode()
