"""Restate: its server, and a process each for the agent and the tools, which it calls over HTTP/2."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.bench.peers import turns
from tests.bench.peers.job import CannotBeHad, Job, main
from tests.bench.peers.place import Place
from tests.bench.peers.servers import listens, running
from tests.support.process import free_ports

SERVICES: Final = "tests.bench.peers.restate.services"


@dataclass(frozen=True, slots=True)
class Ingress:
    """See `load.Asked`: over HTTP, as any client of Restate."""

    http: aiohttp.ClientSession
    url: str

    async def ask(self, tool_ms: int) -> None:
        async with self.http.post(f"{self.url}/agents/run", json=tool_ms) as response:
            answer = await response.text()
        turns.check(json.loads(answer) if response.status == 200 else answer)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """The server on ports of its own, its data in the job's folder, everything else as it comes."""
    ingress, admin, node, agents, tools = free_ports(5)
    ports = {"RESTATE_INGRESS__BIND_PORT": ingress, "RESTATE_ADMIN__BIND_PORT": admin, "RESTATE_BIND_PORT": node}
    settings = {"RESTATE_BASE_DIR": place.home, "RESTATE_LISTEN_MODE": "tcp", "RESTATE_DISABLE_TELEMETRY": "true"}
    env = settings | {name: str(port) for name, port in ports.items()}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running([_program(place)], place, listens(admin), env))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), raise_for_status=False)
        )
        for port, app in ((agents, "agents_app"), (tools, "tools_app")):
            hypercorn = [sys.executable, "-m", "hypercorn", f"{SERVICES}:{app}", "--bind", f"127.0.0.1:{port}"]
            await stack.enter_async_context(running(hypercorn, place, listens(port)))
            await _register(http, f"http://127.0.0.1:{admin}", f"http://127.0.0.1:{port}")
        yield Job(
            Ingress(http, f"http://127.0.0.1:{ingress}"), {"restate": server.pid}, {"restate-server": _version(place)}
        )


def _program(place: Place) -> str:
    found = sorted(Path(place.tools, "node_modules", "@restatedev").glob("restate-server-*/bin/restate-server"))
    if not found:
        raise CannotBeHad("npm installed no Restate server for this kind of machine")
    return str(found[0])


def _version(place: Place) -> str:
    package = Path(place.tools, "node_modules", "@restatedev", "restate-server", "package.json")
    return str(json.loads(package.read_text())["version"])


async def _register(http: aiohttp.ClientSession, admin: str, service: str) -> None:
    async with http.post(f"{admin}/deployments", json={"uri": service}) as response:
        if response.status >= 300:
            raise CannotBeHad(f"Restate refused the service: {await response.text()}")


if __name__ == "__main__":
    main(opened, ["restate-sdk", "hypercorn", "anthropic"])
