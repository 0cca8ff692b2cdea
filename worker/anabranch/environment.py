"""Settings are read: once, here, from a TOML file and the environment, into the values of `config.py`.

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
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from anabranch.config import ModelLimits, Settings
from anabranch.errors import ConfigError
from anabranch.prices import Price

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
    _refuse_truths(data, where)
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
            variable, file = _variable(section, name), table.pop(name + _FILE)
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


def _refuse_truths(data: Mapping[str, Any], file: str) -> None:
    """A `true` where a number belongs, which would count as 1."""
    kinds = get_type_hints(Settings)
    for section, table in data.items():
        kind = _BY_MODEL.get(section) or kinds[section]
        tables = {f"{section}.{name}": of for name, of in table.items()} if section in _BY_MODEL else {section: table}
        hints = get_type_hints(kind)
        for where, given in tables.items():
            for name, value in given.items() if isinstance(given, dict) else ():
                hint = hints.get(name, str)
                if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
                    raise ConfigError(f"{file}: [{where}] {name} is {str(value).lower()}, which it cannot be")


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
