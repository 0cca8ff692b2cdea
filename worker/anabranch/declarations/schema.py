"""What the model is told about a function, and how its arguments become the function's.

From a function's signature, hints and docstring: the tool's description, a JSON schema that the Messages API
takes, and the binder that turns a call's input into typed keyword arguments. Pure but for reading the
function. Must never let a schema through that the API would refuse: that would fail every run of every agent
with the tool. Called by `app` when a tool is declared, and by the tool executor through `Tool.bind`.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Union, get_args, get_origin

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from pydantic_core import ErrorDetails, PydanticSerializationError, SchemaError, to_json

from anabranch.declarations.constraints import unfitting
from anabranch.declarations.docstrings import read_docstring
from anabranch.errors import AnabranchError, DefinitionError
from anabranch.fields import Json
from anabranch.wording import writable

PROPERTY_PATTERN: Final = r"[a-zA-Z0-9_.-]{1,64}"
"""What the API takes as the key of a top-level property (it does not look at nested ones)."""

_GIVEN_CHARACTERS: Final = 200
_SAID_CHARACTERS: Final = 500
_MISTAKES: Final = 20
_MANY: Final = 1000
"""Of more mistakes than these it is not said what was given: a hundred thousand, each with that, take seconds."""
_JSON: Final = json.JSONDecoder()


class ArgumentsError(AnabranchError):
    """The input of a call does not fit the tool; the message is for the model, a line for each mistake."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Binds the input of a call to the parameters of one tool. `fields` maps parameters to the model's fields."""

    tool: str
    model: type[BaseModel]
    fields: Mapping[str, str]

    def bind(self, input: Mapping[str, Json]) -> dict[str, Any]:
        """Typed keyword arguments, those left out by their defaults. Raises `ArgumentsError`."""
        try:
            bound = self.model.__pydantic_validator__.validate_json(to_json(input))
        except PydanticSerializationError as error:
            raise ArgumentsError(f"the input of {self.tool} cannot be read as JSON: {error}") from error
        except ValidationError as error:
            lines = [f"the input of {self.tool} does not fit its schema:", *map(self._explain, _first_of(error))]
            if (count := error.error_count()) > _MISTAKES:
                lines.append(f"- and {count - _MISTAKES} more")
            raise ArgumentsError("\n".join(lines)) from error
        return {name: getattr(bound, field) for name, field in self.fields.items()}

    def _explain(self, wrong: ErrorDetails) -> str:
        where = _cut(".".join(str(step) for step in wrong["loc"]) or "input", _GIVEN_CHARACTERS)
        if wrong["type"] == "missing":
            return f"- {where}: missing"
        given = f" (given: {_given(wrong['input'])})" if "input" in wrong else ""
        if wrong["type"] == "extra_forbidden" and len(wrong["loc"]) == 1:
            return f"- {where}: no such argument; there are: {', '.join(self.fields) or 'none'}{given}"
        return f"- {where}: {_cut(wrong['msg'], _SAID_CHARACTERS)}{given}"


@dataclass(frozen=True, slots=True)
class Description:
    """What a function says of itself. `call_parameter` is the parameter that gets the `Call`, if it has one."""

    text: str
    input_schema: dict[str, Json]
    arguments: Arguments
    call_parameter: str | None


def describe(function: Callable[..., Any], *, tool: str, injected: type, namespace: Mapping[str, Any]) -> Description:
    """Reads a function. Raises `DefinitionError`, which does not say where: the caller knows.

    A parameter annotated with `injected` is left out of the schema. `namespace` holds the names that the
    annotations may use besides the globals of the function's module.
    """
    hints = _hints(function, namespace)
    calls = [name for name, hint in hints.items() if _is_injected(hint, injected)]
    if len(calls) > 1:
        raise DefinitionError(f"the parameters {calls} are all {injected.__name__}: keep one")
    document = read_docstring(inspect.getdoc(function) or "")
    parameters = inspect.signature(function).parameters
    fields = {
        name: _field(hint, parameters[name], document.parameters.get(name))
        for name, hint in hints.items()
        if name not in calls
    }
    model, input_schema = _build_or_blame(tool, fields)
    arguments = Arguments(tool, model, {name: f"p{place}" for place, name in enumerate(fields)})
    return Description(document.text, input_schema, arguments, calls[0] if calls else None)


def check_schema(schema: Json) -> None:
    """Raises `DefinitionError` for what the Messages API would refuse as an `input_schema`."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise DefinitionError('the schema must have "type": "object" at its top: its properties are the arguments')
    if several := [key for key in ("oneOf", "anyOf", "allOf") if key in schema]:
        raise DefinitionError(
            f"the schema has {several} at its top, which the model's API refuses: move it into a property"
        )
    properties = schema.get("properties", {})
    for name in properties if isinstance(properties, dict) else ():
        if not isinstance(name, str) or not re.fullmatch(PROPERTY_PATTERN, name):
            raise DefinitionError(
                f"the argument {name!r} must be named in 1 to 64 characters of a-z, A-Z, 0-9, '_', '.' and '-': "
                "the model's API refuses others"
            )
    try:
        json.dumps(schema, allow_nan=False)
        jsonschema_rs.meta.validate(schema)
        jsonschema_rs.validator_for(schema, retriever=_refuse)
    except (ValueError, TypeError, RecursionError) as error:
        raise DefinitionError(f"the schema is no valid JSON schema: {_gist(error)}") from error


# --- the signature ------------------------------------------------------------------------------------


def _hints(function: Callable[..., Any], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The type of each parameter, text annotations resolved. The result's type is of no interest."""
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    hints: dict[str, Any] = {}
    for name, parameter in _parameters(function).items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DefinitionError(
                f"the parameter {str(parameter).split(':')[0]!r} is {parameter.kind.description}: a model names each "
                "argument, so make it an ordinary parameter with a type"
            )
        if parameter.annotation is parameter.empty and name == "self" and not hints:
            raise DefinitionError("it is a method without its object: hand over that of one, `app.tool(Shop().find)`")
        if parameter.annotation is parameter.empty:
            raise DefinitionError(
                f"the parameter {name!r} has no type: write one, such as `{name}: str`, for the model is told it"
            )
        hints[name] = _resolve(name, parameter.annotation, scope, namespace)
    return hints


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError, NameError) as error:
        raise DefinitionError(f"its signature cannot be read: {_gist(error)}") from error


def _resolve(name: str, annotation: Any, scope: dict[str, Any], namespace: Mapping[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    try:
        hints = typing.get_type_hints(holder, scope, dict(namespace), include_extras=True)
    except Exception as error:
        is_missing = isinstance(error, NameError | AttributeError)
        mend = ": import what it names at the top of the module, outside of `if TYPE_CHECKING`" if is_missing else ""
        raise DefinitionError(
            f"the type {annotation!r} of the parameter {name!r} cannot be resolved ({_gist(error)}){mend}"
        ) from error
    return hints[name]


def _is_injected(hint: Any, injected: type) -> bool:
    if get_origin(hint) is Annotated:
        return _is_injected(get_args(hint)[0], injected)
    if get_origin(hint) in (Union, types.UnionType):
        others = [arg for arg in get_args(hint) if arg is not type(None)]
        return len(others) == 1 and _is_injected(others[0], injected)
    return hint is injected


def _field(hint: Any, parameter: inspect.Parameter, documented: str | None) -> tuple[Any, Any]:
    """A pydantic field under its alias: a parameter may be called `json` or `_x`, a field may not."""
    if isinstance(parameter.default, FieldInfo):
        raise DefinitionError(
            f"the default of {parameter.name!r} is a Field(): write `{parameter.name}: Annotated[..., Field(...)]` "
            "instead, so that the function can still be called without it"
        )
    options: dict[str, Any] = {"alias": parameter.name}
    if documented and not _describes_itself(hint):
        options["description"] = documented
    if parameter.default is not parameter.empty:
        options["default"] = parameter.default
    if parameter.default is None:  # `x: int = None` means `int | None`, and the model must be allowed to say so
        hint = hint | None if isinstance(hint, type | types.UnionType) else Union[hint, None]  # noqa: UP007
    return hint, Field(**options)


def _describes_itself(hint: Any) -> bool:
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return any(isinstance(extra, FieldInfo) and extra.description for extra in extras)


# --- the schema -----------------------------------------------------------------------------------------


class _Unserialisable(Exception):
    pass


class _Unusable(Exception):
    """No call could ever bind a parameter of this type; the message says why."""


class _Schema(GenerateJsonSchema):
    """Without the titles that pydantic makes up from names: they tell the model nothing and cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        if kind == "non-serializable-default":
            raise _Unserialisable(detail)


def _build_or_blame(tool: str, fields: dict[str, tuple[Any, Any]]) -> tuple[type[BaseModel], dict[str, Json]]:
    """The model and schema of all fields; if there is none, an error that names the parameter to blame."""
    try:
        return _build(tool, fields)
    except Exception as error:
        for name, field in fields.items():
            _blame(tool, name, field)
        raise DefinitionError(f"no JSON schema can be made of its parameters: {_gist(error)}") from error


def _blame(tool: str, name: str, field: tuple[Any, Any]) -> None:
    try:
        _build(tool, {name: field})
    except DefinitionError:
        raise
    except _Unserialisable as error:
        raise DefinitionError(
            f"the default {field[1].default!r} of the parameter {name!r} cannot be written as JSON: use a "
            "value of JSON, such as None, and replace it in the function"
        ) from error
    except _Unusable as error:
        raise DefinitionError(f"nothing can be given for the parameter {name!r}: {error}") from error
    except Exception as error:
        raise DefinitionError(
            f"no JSON schema can be made of the type of the parameter {name!r}, {inspect.formatannotation(field[0])}: "
            f"{_gist(error)}"
        ) from error


def _build(tool: str, fields: dict[str, tuple[Any, Any]]) -> tuple[type[BaseModel], dict[str, Json]]:
    named: dict[str, Any] = {f"p{place}": field for place, field in enumerate(fields.values())}
    model = create_model(tool, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **named)
    _check_bindable(model, named)
    schema = model.model_json_schema(by_alias=True, schema_generator=_Schema)
    schema.pop("title", None)
    schema.setdefault("properties", {})
    _check_defaults(schema)
    check_schema(schema)
    for hint, field in fields.values():
        _check_type_of_default(hint, field, schema)
    return model, schema


def _check_bindable(model: type[BaseModel], named: Collection[str]) -> None:
    """What pydantic accepts, and each call would fail for."""
    if model.model_fields.keys() != set(named):
        raise _Unusable("a ClassVar is the class's: write the type alone")
    if (constraint := unfitting(model.__pydantic_core_schema__)) is not None:
        raise _Unusable(f"it asks for {constraint}, which none can meet: drop that, or change the type")


def _check_defaults(schema: dict[str, Json]) -> None:
    """Pydantic writes a default of infinity as something that is no JSON."""
    for field in schema["properties"].values():
        try:
            json.dumps(field.get("default"), allow_nan=False)
        except ValueError as error:
            raise _Unserialisable(str(error)) from error


def _check_type_of_default(hint: Any, field: FieldInfo, schema: Mapping[str, Json]) -> None:
    """Refuse `days: int = "7"`, which the function would be called with, whatever its type says.

    What breaks a constraint alone may be meant, and of a type with a validator nobody knows what it is made of.
    """
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    if type(field.default) not in (str, int, float, bool) or not all(isinstance(each, FieldInfo) for each in extras):
        return
    name = str(field.alias)
    wanted = {**schema["properties"][name], "$defs": schema.get("$defs", {})}
    for error in jsonschema_rs.validator_for(wanted).iter_errors(field.default):
        if _is_of_another_type(error):
            raise DefinitionError(
                f"the default {field.default!r} of the parameter {name!r} is not of its type, "
                f"{inspect.formatannotation(hint)}: change one of the two"
            )


def _is_of_another_type(error: jsonschema_rs.ValidationError) -> bool:
    branches = getattr(error.kind, "context", None)
    if branches is not None:
        return all(any(map(_is_of_another_type, branch)) for branch in branches)
    return error.kind.name in ("type", "enum", "const")


# --- small things ---------------------------------------------------------------------------------------


def _first_of(error: ValidationError) -> list[ErrorDetails]:
    """The first mistakes. Pydantic tells all or none, and makes each one a dictionary unless they become one text."""
    if error.error_count() <= _MANY:
        return error.errors(include_url=False, include_context=False)[:_MISTAKES]
    written = error.json(include_url=False, include_context=False, include_input=False)
    first, at = list[ErrorDetails](), 1
    while len(first) < _MISTAKES:
        wrong, end = _JSON.raw_decode(written, at)
        first.append(wrong)
        at = end + 1
    return first


def _given(value: object) -> str:
    written = json.dumps(value, ensure_ascii=False, default=str)
    return writable(_cut(written, _GIVEN_CHARACTERS))


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}..."


def _gist(error: Exception) -> str:
    """The line that says what is wrong: the first one, but of a `SchemaError` the last."""
    lines = str(error).splitlines()
    line = lines[-1 if isinstance(error, SchemaError) else 0] if lines else type(error).__name__
    return line.strip().removeprefix("error: ")[:300]


def _refuse(uri: str) -> Json:
    raise ValueError(f"{uri} lies outside of the schema, and nobody fetches it: put it into $defs")


__all__ = ["Arguments", "ArgumentsError", "Description", "check_schema", "describe"]
