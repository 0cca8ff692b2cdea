"""From a run to its next model call. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from anabranch.agent.large import Incomplete, needed, sealed_in
from anabranch.agent.model.jobs import Request
from anabranch.agent.prompt.conversation import request_body
from anabranch.agent.prompt.dropping import dropped
from anabranch.agent.prompt.fitting import Fitting, is_bounded
from anabranch.agent.prompt.offer import Offers
from anabranch.agent.reply.plan import BatchContext, Partitioner, by_key
from anabranch.agent.state import Run
from anabranch.errors import AnabranchError
from anabranch.prices import Price


def to_request(
    run: Run, offers: Offers, place: Partitioner = by_key, prices: Mapping[str, Price] = MappingProxyType({})
) -> Request:
    """The model call that `run` owes. Raises if the registry no longer has the run's revision."""
    asked, revision, deadline = run.opening.request, run.opening.revision, run.opening.deadline
    offer = offers.of(asked.agent or "", revision)
    if offer is None:
        raise AnabranchError(
            f"agent {asked.agent or ''!r} at revision {revision} is not in the registry: start a worker that has it"
        )
    agent, parallel, used = offer.agent, offer.is_parallel(asked), frozenset(_ids_of(run))
    context = BatchContext(
        run.run_id, run.turn, "", agent, parallel, offers.registry.tool, place, asked.tenant, run.trace, used
    )
    build, out = partial(request_body, run, offer), dropped(run, agent)
    fitting = Fitting.of(run, agent, prices) if is_bounded(run, agent) else None
    references, sealed = needed(run, out.results), sealed_in(run, out.results)
    if not references and not sealed:
        return Request(run.life, context, deadline, build(), None, build, fitting)
    incomplete = Incomplete(asked.tenant, references, run.run_id, sealed)
    return Request(run.life, context, deadline, b"", incomplete, build, fitting)


def _ids_of(run: Run) -> list[str]:
    """The ids of the calls that the conversation holds, but for those in messages that lie in the store."""
    found = []
    for message in run.opening.request.messages or ():
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict) and block.get("type") == "tool_use" and isinstance(block.get("id"), str):
                found.append(block["id"])
    for turn in run.turns:
        for call in turn.calls.values():
            found.append(call.planned.tool_use_id)
    return found
