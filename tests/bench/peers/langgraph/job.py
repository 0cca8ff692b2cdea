"""LangGraph: its prebuilt agent, with a checkpoint after every step in SQLite, all in one process.

LangChain makes its own client of the SDK, over its default transport; that is what its users have.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.bench import workload
from tests.bench.peers import turns
from tests.bench.peers.job import Job, main
from tests.bench.peers.place import Place


@dataclass(frozen=True, slots=True)
class Graph:
    """See `load.Asked`."""

    agent: Any

    async def ask(self, tool_ms: int) -> None:
        thread = {"configurable": {"thread_id": uuid.uuid4().hex}}
        state = {"messages": [{"role": "user", "content": workload.prompt(tool_ms)}]}
        # "sync": the next step begins when the checkpoint of this one is written, without which a kill loses more.
        ended = await self.agent.ainvoke(state, thread, durability="sync")
        turns.check(ended["messages"][-1].text)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Job]:
    """One graph and one database for all runs."""
    async with AsyncSqliteSaver.from_conn_string(str(Path(place.home, "checkpoints.sqlite"))) as saver:
        model = ChatAnthropic(model=turns.MODEL, max_tokens=4096, max_retries=0)
        agent = create_agent(model, [tool(turns.look_up)], system_prompt=turns.SYSTEM, checkpointer=saver)
        yield Job(Graph(agent))


if __name__ == "__main__":
    main(opened, ["langgraph", "langgraph-checkpoint-sqlite", "langchain", "langchain-anthropic", "anthropic"])
