"""What all commands have in common: options, settings, exit statuses, and how one is run.

The statuses: 0 for success, 1 for a failure that is explained on stderr, 2 for wrong usage, 130 after Ctrl-C.
A command returns its status, or None for 0, and raises an `AnabranchError` for what the user can mend. What it prints
goes through `output.py`. Must never import anything slow at its head: `anabranch --help` comes through here. Called by
every command.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar

import click

from anabranch.cli.ending import Unwaited, cancel_others, is_anything_left, to_its_end
from anabranch.cli.failures import explain
from anabranch.cli.loglines import log_to_stderr
from anabranch.errors import ConfigError
from anabranch.security.redaction import Redaction

if TYPE_CHECKING:
    from anabranch.app import App
    from anabranch.client import Client
    from anabranch.config import Settings
    from anabranch.kafka.seam import Broker
    from anabranch.security.sealing import Sealing
    from anabranch.security.signing import Signer
    from anabranch.store import Store
    from anabranch.topics import Namespace

log = logging.getLogger(__name__)

T = TypeVar("T")

FAILED: Final = 1
INTERRUPTED: Final = 130


# --- commands ---------------------------------------------------------------------------------------------------


class Lazy(NamedTuple):
    """A command that is imported when it is used: `target` is module:attribute in `commands/`, `help` its line in the
    list.
    """

    name: str
    target: str
    help: str


class Commands(click.Group):
    """A group of `Lazy` commands (and of plain ones), in the order in which they are given."""

    def __init__(self, *arguments: Any, lazy: Sequence[Lazy] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = {command.name: command for command in lazy}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *(name for name in self.commands if name not in self._lazy)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        lazy = self._lazy.get(name)
        if lazy is None:
            return super().get_command(ctx, name)
        module, _, attribute = lazy.target.partition(":")
        command: click.Command = getattr(importlib.import_module(f"anabranch.cli.commands.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._line(ctx, name)) for name in self.list_commands(ctx)])

    def _line(self, ctx: click.Context, name: str) -> str:
        if name in self._lazy:
            return self._lazy[name].help
        command = self.get_command(ctx, name)
        return command.get_short_help_str(100) if command is not None else ""


# --- options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What the common options say. `as_json`: print JSON instead of a table."""

    config: Path | None = None
    namespace_option: str | None = None
    bootstrap: str | None = None
    app_option: str | None = None
    as_json: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The settings in force: the options, then the environment, then the file. Raises `ConfigError`."""
        from anabranch.environment import load

        settings = load(self.config)
        if self.bootstrap is not None:
            settings = replace(settings, kafka=replace(settings.kafka, bootstrap=self.bootstrap))
        if self.namespace_option is not None:
            settings = replace(settings, worker=replace(settings.worker, namespace=self.namespace_option))
        return settings

    def app(self, reference: str) -> App:
        """The App at `reference`. Raises `AppNotFound`."""
        from anabranch.declarations.loading import load_app

        return load_app(reference)

    @property
    def named_app(self) -> App | None:
        """The App of --app, if that is given. Raises `AppNotFound`."""
        return self.app(self.app_option) if self.app_option is not None else None

    def namespace(self, app: App | None = None) -> Namespace:
        """The one that is set, or that of `app` or --app. Raises `ConfigError` if there is none."""
        from anabranch.topics import Namespace

        name = self.settings.worker.namespace
        if name is None and (app := app or self.named_app) is not None:
            name = app.namespace
        if name is None:
            raise ConfigError("no namespace: give --namespace NAME or --app APP, or set ANABRANCH_NAMESPACE")
        return Namespace(name.lower())

    def broker(self) -> Broker:
        """The Kafka of the settings; nothing is connected yet."""
        from anabranch.kafka.connect import KafkaBroker

        return KafkaBroker(self.settings.kafka)

    def verifier(self) -> Signer:
        """Checks who wrote an event, if the settings have the key of agent workers."""
        from anabranch.security.signing import verifier_of

        return verifier_of(self.settings.signing)

    def store(self) -> Store:
        """The store of the settings, or one that refuses."""
        from anabranch.store import opened

        return opened(self.settings.storage, self.namespace())

    def sealing(self) -> Sealing:
        """The keys of the settings, or of --app, and the store; without keys none is opened."""
        from anabranch.security.sealing import NO_SEALING, opened

        app, settings = self.named_app, self.settings.sealing
        keys = app.keys if app is not None else None
        if keys is None and settings.keys is None:
            return NO_SEALING
        return opened(settings, self.namespace().name, self.store(), keys)

    def client(self) -> Client:
        """A client of the namespace, with store and keys of the settings; nothing is connected yet."""
        from anabranch.client import Client

        settings = self.settings
        worker = replace(settings.worker, namespace=self.namespace().name)
        return Client.for_app(self.named_app, settings=replace(settings, worker=worker), broker=self.broker())


_CONFIG = click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="Settings, in TOML."
)
_NAMESPACE = click.option(
    "--namespace", "namespace_option", metavar="NAME", help="Instead of ANABRANCH_NAMESPACE or the App's."
)
_BOOTSTRAP = click.option("--bootstrap", metavar="HOST:PORT", help="Kafka, instead of ANABRANCH_BOOTSTRAP.")
_APP = click.option("--app", "app_option", metavar="APP", help="Take the namespace of this App.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def options(
    *, app: bool = False, listing: bool = False, least: str = "warning", content: bool = False
) -> Callable[[Callable[..., int | None]], Callable[..., Any]]:
    """Adds the common options to a command, which gets them as a `Frame`, its first argument.

    `app` adds --app, for commands that need a namespace but no App; `listing` adds --json. `least` is the level of
    its log: "warning" for a command that shows its work itself, "debug" for one whose log is what it shows. `content`
    lets its log say what models and tools have said.
    """
    chosen = [_CONFIG, _NAMESPACE, _BOOTSTRAP, *([_APP] if app else []), *([_JSON] if listing else [])]

    def decorate(function: Callable[..., int | None]) -> Callable[..., Any]:
        def command(
            config: Path | None,
            namespace_option: str | None,
            bootstrap: str | None,
            app_option: str | None = None,
            as_json: bool = False,
            **rest: Any,
        ) -> int | None:
            frame = Frame(config, namespace_option, bootstrap, app_option, as_json)
            log_to_stderr(frame.settings, least=least, redact=_redaction(frame.settings), content=content)
            _warn_of_misspelt()
            return function(frame, **rest)

        wrapped: Callable[..., Any] = update_wrapper(command, function)
        for option in reversed(chosen):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def _warn_of_misspelt() -> None:
    """A setting that nobody reads is one that its user believes to be in force."""
    from anabranch.environment import misspelt

    for variable, meant in misspelt(os.environ).items():
        log.warning("%s is no setting and has no effect: did you mean %s?", variable, meant)


class Name(click.ParamType[str]):
    """What can be the id of a run, or the name of an agent or a tenant."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from anabranch.fields import NAME_SAID, is_name

        if not is_name(value):
            self.fail(f"{value!r} is none: {NAME_SAID}", param, ctx)
        return value


class Duration(click.ParamType[str]):
    """Such as 90s or 10m, as it was written. Nothing and less are no time to do anything in."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from anabranch.units import UnitError, duration

        try:
            seconds = duration(value)
        except UnitError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} leaves no time at all", param, ctx)
        return value


# --- running ----------------------------------------------------------------------------------------------------


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; Ctrl-C cancels it."""

    async def running() -> T:
        asyncio.get_running_loop().set_default_executor(Unwaited(thread_name_prefix="asyncio"))
        try:
            return await work
        finally:
            await cancel_others()

    return to_its_end(running())


def _redaction(settings: Settings | None = None) -> Redaction:
    """Keeps out what is secret in these settings; without any, in the environment alone."""
    from anabranch.security.confidential import secrets_of

    global _redact
    _redact = Redaction(secrets_of(settings, os.environ))
    return _redact


_redact: Redaction | None = None
"""Of the command that runs: what is printed of its failure goes through it."""


def invoke(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command line, explain its failure on stderr, and return its status."""
    try:
        status = command.main(arguments, prog_name="anabranch", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the outermost: what is not explained has its traceback printed)
        explain(error, _redact or _redaction())
        return FAILED
    return status if isinstance(status, int) else 0


def finish(status: int) -> NoReturn:
    """End the process, without what does not end by itself."""
    if is_anything_left():
        logging.shutdown()
        _flush()
        os._exit(status)
    sys.exit(status)


def _flush() -> None:
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (OSError, ValueError):
            continue  # its reader is gone
