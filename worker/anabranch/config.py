"""Settings: read once, here, from a TOML file and the environment, into frozen values.

`load` is called by the commands and by `App.client`; nothing else in the package looks at the environment.
A setting `agent.model_concurrency` is `ANABRANCH_AGENT_MODEL_CONCURRENCY` in the environment and
`[agent] model_concurrency = 64` in the file; the environment wins. Those of `kafka`, `worker` and `storage` have
no prefix of their own: `ANABRANCH_BOOTSTRAP`, `ANABRANCH_DRAIN_S`, `ANABRANCH_STORE`; nor have those of `telemetry` and
`sealing`. A secret may lie in a file of its own: `ANABRANCH_SASL_PASSWORD_FILE`, or `sasl_password_file` in the
settings. No message ever shows one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from anabranch.errors import ConfigError
from anabranch.prices import Price

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerMinute = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1)]


def without_secrets(url: str) -> str:
    """A URL without what may be a secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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
    session_timeout_s: Seconds = 10.0
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
    heartbeat_s: Seconds = 5.0
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
    interactive_weight: Count = 4


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
    interactive_weight: Count = 4
    processes: Count = field(default_factory=lambda: max(2, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class AnthropicSettings:
    """The provider, as its SDK has it: `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`."""

    api_key: str | None = field(default=None, metadata={"secret": True})
    auth_token: str | None = field(default=None, metadata={"secret": True})
    base_url: str | None = None


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


_FILE = "_file"
"""A secret's name with this names the file that it lies in."""

_BY_MODEL: dict[str, type] = {"prices": Price, "models": ModelLimits}
"""Sections with a table for each model; they have no variables."""

_PREFIXES = {
    "kafka": "ANABRANCH_",
    "worker": "ANABRANCH_",
    "agent": "ANABRANCH_AGENT_",
    "tool": "ANABRANCH_TOOL_",
    "anthropic": "ANTHROPIC_",
    "storage": "ANABRANCH_",
    "signing": "ANABRANCH_SIGNING_",
    "sealing": "ANABRANCH_",
    "telemetry": "ANABRANCH_",
}


_OURS = "ANABRANCH_"
_NO_SETTINGS = frozenset({"TEST_BOOTSTRAP", "SEED", "DEMO_MODEL"})  # what tests and examples look at


def _variable(section: str, name: str) -> str:
    """What a setting is called in the environment."""
    for item in fields(get_type_hints(Settings)[section]):
        if item.name == name and "variable" in item.metadata:
            return str(item.metadata["variable"])
    return _PREFIXES[section] + name.upper()


def load(file: str | Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of `file` (TOML), overruled by the environment. Raises `ConfigError`."""
    data = _read(Path(file)) if file is not None else {}
    for section, table in _by_section(_given(os.environ if environment is None else environment)).items():
        given = data.setdefault(section, {})
        if not isinstance(given, dict):
            raise ConfigError(f"[{section}] in {file} must be a table")
        data[section] = {name: value for name, value in given.items() if _other_form(name) not in table} | table
    where = str(file) if file is not None else "a settings file"
    _refuse_unknown(data, where)
    _read_secrets(data)
    try:
        return TypeAdapter(Settings).validate_python(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {file} is not TOML: {error}") from None


def _sections() -> Iterator[tuple[str, type]]:
    hints = get_type_hints(Settings)
    for name in _PREFIXES:
        yield name, hints[name]


def _names(kind: type) -> list[str]:
    """What may be set: each setting, and for a secret its file as well."""
    secrets = [item.name + _FILE for item in fields(kind) if item.metadata.get("secret")]
    return [*(item.name for item in fields(kind)), *secrets]


def _given(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Section, setting and text of each variable that is set."""
    for section, kind in _sections():
        for name in _names(kind):
            if (text := environment.get(_variable(section, name), "")) != "":
                yield section, name, text


def misspelt(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are no settings, but nearly: what was meant, by what is set."""
    known = {_variable(section, name).removeprefix(_OURS) for section, kind in _sections() for name in _names(kind)}
    found = {}
    for variable in environment:
        name = variable.removeprefix(_OURS)
        if variable == name or name in known or name in _NO_SETTINGS:
            continue
        if near := get_close_matches(name.upper(), known, 1, 0.8):
            found[variable] = _OURS + near[0]
    return found


def _by_section(given: Iterator[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    tables: dict[str, dict[str, str]] = {}
    for section, name, text in given:
        tables.setdefault(section, {})[name] = text
    return tables


def _other_form(name: str) -> str:
    """A secret's file for the secret, and the other way round."""
    return name.removesuffix(_FILE) if name.endswith(_FILE) else name + _FILE


def _read_secrets(data: dict[str, Any]) -> None:
    """Put what lies in files into its place."""
    for section, kind in _sections():
        table = data.get(section, {})
        for name in [item.name for item in fields(kind) if item.metadata.get("secret") and item.name + _FILE in table]:
            variable, file = _PREFIXES[section] + name.upper(), table.pop(name + _FILE)
            if name in table:
                raise ConfigError(f"both {variable} and {variable}_FILE are set: take one of them away")
            table[name] = _secret(variable + "_FILE", file)


def _secret(variable: str, file: Any) -> str:
    """The content of a file, without the line's end that editors add."""
    try:
        text = Path(str(file)).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{variable}={file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{variable}={file} is no text in UTF-8") from None
    if not text:
        raise ConfigError(f"{variable}={file} is empty")
    return text


def _refuse_unknown(data: Mapping[str, Any], file: str) -> None:
    known = {section: set(_names(kind)) for section, kind in _sections()}
    for section, table in data.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} must be a table, such as [{section}], not {type(table).__name__}")
        if section in _BY_MODEL:
            _refuse_unknown_of_models(section, table, file)
            continue
        if section not in known:
            raise ConfigError(f"{file}: there is no section [{section}]; there are {', '.join([*known, *_BY_MODEL])}")
        for name in table:
            if name not in known[section]:
                raise ConfigError(
                    f"{file}: [{section}] has no setting {name!r}; it has {', '.join(sorted(known[section]))}"
                )


def _refuse_unknown_of_models(section: str, tables: Mapping[str, Any], file: str) -> None:
    known = {item.name for item in fields(_BY_MODEL[section])}
    for model, table in tables.items():
        if isinstance(table, dict) and (unknown := table.keys() - known):
            names = ", ".join(sorted(known))
            raise ConfigError(f"{file}: [{section}.{model}] has no setting {sorted(unknown)[0]!r}; it has {names}")


def _explain(error: ValidationError, file: str) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    ours = len(path) > 1 and path[0] in _PREFIXES
    variable = _variable(path[0], path[1]) if ours else name
    value = "********" if _is_secret(path) else repr(first["input"])
    return f"setting {name} ({variable}, or in {file}) is {value}: {first['msg']}"


def _is_secret(path: list[str]) -> bool:
    kinds = dict(_sections())
    of = {item.name: item for item in fields(kinds[path[0]])} if path[0] in kinds else {}
    return len(path) > 1 and path[1] in of and not {"secret", "shown"}.isdisjoint(of[path[1]].metadata)


def shown(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings as plain data, secrets masked: for `anabranch config`."""
    out: dict[str, dict[str, Any]] = {}
    for section, kind in _sections():
        value = getattr(settings, section)
        out[section] = {item.name: _masked(item.metadata, getattr(value, item.name)) for item in fields(kind)}
    for section, kind in _BY_MODEL.items():
        tables = getattr(settings, section)
        out[section] = {
            model: {item.name: getattr(table, item.name) for item in fields(kind)} for model, table in tables.items()
        }
    return out


def _masked(metadata: Mapping[str, Any], value: Any) -> Any:
    if not value:
        return value
    show = metadata.get("shown")
    return "********" if metadata.get("secret") else show(value) if show is not None else value


def sources(file: str | Path | None = None, environment: Mapping[str, str] | None = None) -> dict[tuple[str, str], str]:
    """Where each setting (section, name) that is not the default comes from: a variable's name, or the file's."""
    data = _read(Path(file)) if file is not None else {}
    found = {(section, _plain(section, name)): str(file) for section, table in data.items() for name in table}
    for section, name, _ in _given(os.environ if environment is None else environment):
        found[section, _plain(section, name)] = _variable(section, name)
    return found


def _plain(section: str, name: str) -> str:
    """The setting that a name sets: that of a secret's file is the secret."""
    kind = dict(_sections()).get(section)
    is_file = kind is not None and name not in {item.name for item in fields(kind)}
    return name.removesuffix(_FILE) if is_file else name
