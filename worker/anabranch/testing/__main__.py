"""`python -m anabranch.testing SCRIPT`: a scripted model as a process of its own.

It parses the command line, serves until SIGINT or SIGTERM, and leaves nothing behind. It must never print more
than the one line that says where it listens: scripts read it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from anabranch.errors import AnabranchError, ConfigError
from anabranch.testing.load import load_script
from anabranch.testing.quota import RateLimits
from anabranch.testing.server import ScriptedModel


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("script")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--port-file", type=click.Path(dir_okay=False, path_type=Path), help="Write the port there.")
@click.option("--model", "models", multiple=True, default=["scripted"], show_default=True,
              help="A model name that is known; may be repeated.")  # fmt: skip
@click.option(
    "--latency",
    "latency_s",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds before each reply, beside the script's own.",
)
@click.option("--requests-per-minute", "requests", type=float, help="Refuse with 429 what exceeds it, for each model.")
@click.option("--input-tokens-per-minute", "input_tokens", type=float, help="The same for input tokens.")
@click.option("--output-tokens-per-minute", "output_tokens", type=float, help="The same for output tokens.")
def main(
    script: str,
    host: str,
    port: int,
    port_file: Path | None,
    models: tuple[str, ...],
    latency_s: float,
    **limits: float | None,
) -> None:
    """Serve the Messages API from SCRIPT: module:attribute or path.py[:attribute] (default: model)."""
    try:
        if port_file is not None:
            port_file.unlink(missing_ok=True)  # the port of a killed predecessor would mislead
        enforced = RateLimits(limits["requests"], limits["input_tokens"], limits["output_tokens"])
        server = ScriptedModel(
            load_script(script), models, port, host=host, keep=0, latency_s=latency_s, limits=enforced
        )  # keep=0: nobody reads the requests
        asyncio.run(_serve(server, port_file))
    except AnabranchError as error:
        raise click.ClickException(str(error)) from error


async def _serve(server: ScriptedModel, port_file: Path | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server:
        with nullcontext() if port_file is None else _written(port_file, server.port):
            click.echo(f"listening on {server.base_url}")
            await stopped.wait()


@contextmanager
def _written(path: Path, port: int) -> Iterator[None]:
    """The port is in the file, from one moment to the next, and the file goes with the server."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(f"{port}\n")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write the port to {str(path)!r}: {error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(prog_name="python -m anabranch.testing")
