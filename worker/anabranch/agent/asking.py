"""From a run to its next model call, and from what the model says to the record for those who watch. PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

from anabranch.agent.conversation import request_body
from anabranch.agent.dropping import dropped
from anabranch.agent.fitting import Fitting
from anabranch.agent.jobs import Request
from anabranch.agent.large import Incomplete, needed, sealed_in
from anabranch.agent.plan import BatchContext, Place, by_key
from anabranch.agent.state import Run
from anabranch.bodies import dump
from anabranch.codec import Outgoing, cloud_event
from anabranch.errors import AnabranchError
from anabranch.messages import StreamDelta
from anabranch.prices import Price
from anabranch.registry import Registry
from anabranch.topics import Namespace


def to_request(
    run: Run, registry: Registry, place: Place = by_key, prices: Mapping[str, Price] = MappingProxyType({})
) -> Request:
    """The model call that `run` owes. Raises if the registry no longer has the run's revision."""
    name, revision = run.opening.request.agent or "", run.opening.revision
    agent = registry.agent(name, revision)
    if agent is None:
        raise AnabranchError(
            f"agent {name!r} at revision {revision} is not in the registry: start a worker that has it"
        )
    tools = [spec for tool in agent.tools if (spec := registry.tool(tool)) is not None]
    parallel = agent.parallel_tool_calls and run.opening.request.parallel_tool_calls is not False
    tenant = run.opening.request.tenant
    used = frozenset(_ids_of(run))
    context = BatchContext(run.run_id, run.turn, "", agent, parallel, registry.tool, place, tenant, run.trace, used)
    build, fitting = partial(request_body, run, agent, tools), Fitting.of(run, agent, prices)
    out = dropped(run, agent).results
    references, sealed = needed(run, out), sealed_in(run, out)
    if not references and not sealed:
        return Request(run.life, context, run.opening.deadline, build(), None, build, fitting)
    incomplete = Incomplete(run.opening.request.tenant, references, run.run_id, sealed)
    return Request(run.life, context, run.opening.deadline, b"", incomplete, build, fitting)


def _ids_of(run: Run) -> Iterator[str]:
    """The ids of the calls that the conversation holds, but for those in messages that lie in the store."""
    for message in run.opening.request.messages or ():
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict) and block.get("type") == "tool_use" and isinstance(block.get("id"), str):
                yield block["id"]
    for turn in run.turns:
        yield from (call.planned.tool_use_id for call in turn.calls.values())


def stream_record(namespace: Namespace, run: Run, delta: StreamDelta, partitions: int) -> Outgoing:
    """The record for `agent.stream`, in the partition that the client of this run reads, if there is one like that."""
    reply_to = run.opening.request.reply_to
    partition = reply_to.partition if reply_to is not None and reply_to.partition < partitions else None
    return cloud_event(namespace.stream, "stream.delta", "anabranch", run.run_id, dump(delta), partition=partition)
