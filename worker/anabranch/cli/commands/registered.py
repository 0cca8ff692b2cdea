"""`anabranch agents`, `anabranch tools` and `anabranch workers`: what the registry of a namespace says.

It reads and shows, and decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from anabranch.cli import figures, frame, output
from anabranch.wording import counted

if TYPE_CHECKING:
    from anabranch.registry import Registry
    from anabranch.specs import AgentSpec, LimitSpec, ToolSpec, WorkerInfo


@click.command()
@frame.options(app=True, listing=True)
def agents(common: frame.Frame) -> None:
    """List the agents that are registered, each in its newest revision."""
    found = sorted(_read(common).agents.values(), key=lambda agent: agent.name)
    if common.as_json:
        output.print_json(found)
        return
    columns = ("agent", "model", "tools", ">turns", ">deadline", "revision")
    output.print_table(columns, map(_agent, found), empty=_nothing(common, "agent", "anabranch worker agent APP"))


@click.command()
@frame.options(app=True, listing=True)
def tools(common: frame.Frame) -> None:
    """List the tools that are registered, with the queue that each is called through."""
    registry = _read(common)
    found = sorted(registry.tools.values(), key=lambda tool: (tool.queue, tool.name))
    if common.as_json:
        output.print_json([{**asdict(tool), "limit_in_force": registry.limits.get(tool.limit or "")} for tool in found])
        return
    columns = ("tool", "queue", ">timeout", "delivery", "limit", "description")
    rows = [_tool(tool, registry.limits.get(tool.limit or "")) for tool in found]
    output.print_table(columns, rows, empty=_nothing(common, "tool", "anabranch worker tool APP --queue Q"))


@click.command()
@frame.options(app=True, listing=True)
def workers(common: frame.Frame) -> None:
    """List the workers; one that has given no sign of life for 30 s is shown as dead, for a day."""
    from anabranch.registry import BURIED_S, is_alive

    now = time.time()
    found = _in_order(_read(common).workers.values(), now)
    if common.as_json:
        output.print_json([{**asdict(worker), "alive": is_alive(worker, now)} for worker in found])
        return
    columns = ("worker", "role", "queue", "state", ">running", ">oldest waiting", ">up for", "version")
    rows = [_worker(worker, now) for worker in found if now - worker.seen_at <= BURIED_S]
    output.print_table(columns, rows, empty=_nothing(common, "living worker", "anabranch worker agent APP"))
    if others := len(found) - len(rows):
        output.say(f"({counted(others, 'worker')} dead for more than a day not shown: --json names all)")


def _in_order(workers: Iterable[WorkerInfo], now: float) -> list[WorkerInfo]:
    """Those that are alive first."""
    from anabranch.registry import is_alive

    return sorted(workers, key=lambda each: (not is_alive(each, now), each.role, each.queue or "", each.id))


def _read(common: frame.Frame) -> Registry:
    from anabranch.registry import snapshot

    broker, namespace = common.broker(), common.namespace()

    async def reading() -> Registry:
        await broker.partitions(namespace.registry)  # says so, if there is no such topic
        return await snapshot(broker, namespace)

    return frame.run_async(reading())


def _nothing(common: frame.Frame, what: str, mend: str) -> str:
    return f"no {what} is registered in namespace {common.namespace().name}: {mend} registers them"


def _agent(agent: AgentSpec) -> tuple[object, ...]:
    tools = ", ".join(agent.tools) or "-"
    return agent.name, agent.model, tools, agent.limits.max_turns, f"{agent.limits.deadline_s:g} s", agent.revision


def _tool(tool: ToolSpec, limit: LimitSpec | None) -> tuple[object, ...]:
    description = tool.description.strip().partition("\n")[0]
    budget = (tool.limit or "-") if limit is None else _limit(limit)
    return tool.name, tool.queue, f"{tool.timeout_s:g} s", tool.delivery, budget, description


def _limit(limit: LimitSpec) -> str:
    """As people write it, by the shortest unit in which it is one or more."""
    units = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
    unit = next((unit for unit, seconds in units.items() if limit.per_second * seconds >= 0.9), "d")
    at_once = "" if limit.concurrency is None else f", {limit.concurrency} at once"
    whose = "" if limit.per is None else f", per {limit.per}"
    return f"{limit.name} {limit.per_second * units[unit]:.6g}/{unit}{at_once}{whose}"


def _worker(worker: WorkerInfo, now: float) -> tuple[object, ...]:
    from rich.text import Text

    from anabranch.registry import is_alive

    if is_alive(worker, now):
        state = Text("alive", style="green")
    else:
        state = Text(f"dead, seen {figures.ago(now - worker.seen_at)} ago", style="red")
    waiting = f"{worker.oldest_waiting_s:.1f} s" if worker.oldest_waiting_s else "-"
    up = figures.ago(worker.seen_at - worker.started_at)
    return worker.id, worker.role, worker.queue or "-", state, worker.running, waiting, up, worker.version
