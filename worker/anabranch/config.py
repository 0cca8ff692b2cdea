"""Settings: what may be set, in which section, and what is in force if nobody says anything. Frozen values.

Here is no I/O and nothing is read: `environment.py` makes these of a file and of variables. A field's metadata say
whether it is a `secret`, how it is `shown`, and its `variable` if that is not made of its name. Called by: everybody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field

from anabranch.prices import Price
from anabranch.weights import WEIGHT

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerMinute = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Heartbeat = Annotated[float, Field(ge=0.1, le=15)]
"""A worker that tells less often is taken for dead (`registry.DEAD_S`); one that never pauses fills the registry."""
Session = Annotated[float, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Field(ge=0, le=1)]


def without_secrets(url: str) -> str:
    """A URL without what may be a secret in it: user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is none, and may still hold a password
        return url.rpartition("@")[2].partition("?")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_http(url: str) -> bool:
    """Whether it is the address of something that speaks HTTP: what takes any text fails only when it is asked."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        return False
    return whole and not any(character.isspace() for character in url)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach Kafka. `idempotent` is off only for a broker that cannot do it.

    `sasl_username` and `sasl_password` are for PLAIN and SCRAM. OAUTHBEARER takes tokens from `sasl_oauth_token_url`,
    by the client credentials grant; `sasl_oauth_cafile` is the CA of that server, if the system does not know it.
    """

    bootstrap: str = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, metadata={"secret": True})
    sasl_oauth_token_url: str | None = field(default=None, metadata={"shown": without_secrets})
    sasl_oauth_client_id: str | None = None
    sasl_oauth_client_secret: str | None = field(default=None, metadata={"secret": True})
    sasl_oauth_scope: str | None = None
    sasl_oauth_cafile: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: str | None = field(default=None, metadata={"secret": True})
    ssl_check_hostname: bool = True
    idempotent: bool = True
    session_timeout_s: Session = 10.0
    replication_factor: Annotated[int, Field(ge=-1)] = -1
    partitions: Count = 24


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What both roles have in common. `http_port` 0 means no health and metrics server; it listens at `http_host`, or
    everywhere, and calls the process dead when its event loop has stood still for `stalled_s`.
    """

    namespace: str | None = None
    drain_s: Seconds = 30.0
    commit_s: Seconds = 1.0
    heartbeat_s: Heartbeat = 5.0
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    http_host: str | None = None
    stalled_s: SomeSeconds = 15.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the whole fleet may use of a model in a minute; None: as much as the provider lets through.

    Input that is read from the provider's cache does not count, unless `count_cache_reads`.
    """

    requests_per_minute: PerMinute | None = None
    input_tokens_per_minute: PerMinute | None = None
    output_tokens_per_minute: PerMinute | None = None
    count_cache_reads: bool = False


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent role. `model_silence_s` is how long a stream may say nothing, `hand_off_s` how long a model call
    goes on after its partition was given up, `snapshot_age_s` how old an open run's oldest event may grow (well
    below the retention of the log), `clean_bytes` how much log is not worth a cleaning, `clean_at_once_bytes` how
    much of open runs one cleaning says again, in parts of `snapshot_part_bytes`; sizes are bytes. `hold_after_s` is
    how long the oldest call of a queue may have waited before no run is opened that would add to them. While runs of
    both lanes wait for the model, `interactive_weight` of that lane have their turn for each of the bulk lane.

    Of one model a worker makes `model_retry_ratio` retries for each first try, and `model_retries_per_minute` besides.
    Its breaker opens for `model_breaker_open_s` when of at least `model_breaker_calls` attempts in a minute
    `model_breaker_ratio` failed, for `model_breaker_lasting_s` by then. An agent's fallback is asked while it is open,
    after `model_fallback_tries` failures in a row, or if the model cannot be had within `model_fallback_wait_s`.
    """

    model_concurrency: Count = 256
    model_silence_s: Seconds = 60.0
    model_backoff_s: Seconds = 0.5
    model_backoff_max_s: Seconds = 30.0
    model_broken_max: Count = 5
    model_retry_ratio: Ratio = 0.2
    model_retries_per_minute: PerMinute = 300.0
    model_breaker_calls: Count = 20
    model_breaker_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    model_breaker_lasting_s: Seconds = 10.0
    model_breaker_open_s: SomeSeconds = 10.0
    model_fallback_tries: Count = 3
    model_fallback_wait_s: Seconds = 10.0
    hand_off_s: Seconds = 120.0
    snapshot_age_s: Seconds = 172_800.0
    clean_bytes: Count = 4 * 1024 * 1024
    clean_at_once_bytes: Count = 16 * 1024 * 1024
    snapshot_part_bytes: Annotated[int, Field(ge=4096, le=512 * 1024)] = 512 * 1024
    max_open_bytes: Count = 512 * 1024 * 1024
    max_partition_bytes: Count = 64 * 1024 * 1024
    hold_after_s: SomeSeconds = 30.0
    interactive_weight: Count = WEIGHT


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """The tool role. `concurrency` bounds the calls that run at once in one worker, `max_taken_bytes` the memory for
    those that run or wait there. While calls of both lanes wait for a place, `interactive_weight` of the interactive
    lane's have their turn for each of the bulk lane's.
    """

    concurrency: Count = 1000
    max_taken_bytes: Count = 128 * 1024 * 1024
    hand_off_s: Seconds = 300.0
    threads: Count = 64
    interactive_weight: Count = WEIGHT
    processes: Count = field(default_factory=lambda: max(2, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class AnthropicSettings:
    """The provider, as its SDK has it: `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`."""

    api_key: str | None = field(default=None, metadata={"secret": True})
    auth_token: str | None = field(default=None, metadata={"secret": True})
    base_url: str | None = field(default=None, metadata={"shown": without_secrets})


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where large bodies lie. `store` is a URL (file, s3, gs, az), without which nothing goes by reference.

    What is larger than `store_inline_bytes` goes there; an object larger than `store_max_bytes` is neither kept
    nor read.
    """

    store: str | None = field(default=None, metadata={"shown": without_secrets})
    store_inline_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = 256 * 1024
    store_max_bytes: Count = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SealingSettings:
    """Whose key seals bodies. `keys` is the URL of a folder or bucket (file, s3, gs, az) with a key for each tenant,
    wrapped by `keys_master`: `id:base64`, or several, of which the first one wraps. Without it nothing is sealed.
    """

    keys: str | None = field(default=None, metadata={"shown": without_secrets})
    keys_master: str | None = field(default=None, metadata={"secret": True})


def _captures(said: Any) -> Any:
    """The convention's words for whether spans may hold content: at first a truth value, later where it goes."""
    words = {"no_content": False, "event_only": False, "span_only": True, "span_and_event": True}
    return words.get(said.strip().lower(), said) if isinstance(said, str) else said


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What is told to others of the work: `traces` by OpenTelemetry, which has its own `OTEL_*` variables for where to,
    and what the log looks like. `capture_content` and `log_content` let in what people, models and tools have said.
    """

    traces: bool = False
    capture_content: Annotated[bool, BeforeValidator(_captures)] = field(
        default=False, metadata={"variable": "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"}
    )
    log_format: Literal["readable", "json"] = "readable"
    log_content: bool = False


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """Keys of agent workers alone, `id:base64` each, the one that signs first. `mode` is what becomes of events without
    a signature: `accept` while it is introduced, then `require`.
    """

    keys: str | None = field(default=None, metadata={"secret": True})
    mode: Literal["accept", "require"] = "accept"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is in force. `prices` go by the model's name; so do the limits of `models`, or by a pattern
    such as `claude-opus-4*`: the models that match one share its limits.
    """

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    tool: ToolSettings = field(default_factory=ToolSettings)
    anthropic: AnthropicSettings = field(default_factory=AnthropicSettings)
    storage: StoreSettings = field(default_factory=StoreSettings)
    signing: SigningSettings = field(default_factory=SigningSettings)
    sealing: SealingSettings = field(default_factory=SealingSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    prices: dict[str, Price] = field(default_factory=dict)
    models: dict[str, ModelLimits] = field(default_factory=dict)
