"""Whether a model call fits: the run's money, and the model's context. Decided before the call is made, and paid for.

A call's input is counted or estimated (`estimate.py`), and priced as it will probably be: what the provider had in its
cache a moment ago is read from there. What is left of `max_cost_usd` then buys so many tokens of a reply, and no more
are asked for; if that is too few to be of use, the run ends without the call. What was paid for and thrown away is
spent. `asking.py` makes one for each call, and `Thinker` asks it before each attempt and tells it what that cost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from anabranch.agent.model.seam import Hopeless
from anabranch.agent.prompt.dropping import dropped
from anabranch.agent.prompt.estimate import NOTHING, Known, Size, fresh_in, known_of
from anabranch.agent.state import Run
from anabranch.messages import Usage
from anabranch.prices import Price, price_of
from anabranch.specs import AgentSpec

USEFUL: Final = 256
"""Tokens of a reply below which it is not worth its prompt."""
_START: Final = re.compile(rb'(\{(?:"betas":\["[^\]]*"\],)?"max_tokens":)\d+')
_KEPT_S: Final = {"5m": 300.0, "1h": 3600.0, "off": 0.0}
BUDGET: Final = "budget_exceeded"


@dataclass(slots=True, eq=False)
class Fitting:
    """What one model call may take. `limit` and `spent` are dollars, `since` is when the provider last read the
    conversation (epoch seconds), `known` what it counted then. `cut` is how long a reply the money bought, if less than
    the agent's own `max_tokens`. `reader` is the model that read the conversation last: no other has it in its cache.
    """

    agent: AgentSpec
    prices: Mapping[str, Price] = field(default_factory=dict)
    limit: float | None = None
    spent: float | None = 0.0
    known: Known = NOTHING
    since: float = 0.0
    cut: int | None = None
    reader: str = ""

    @classmethod
    def of(cls, run: Run, agent: AgentSpec, prices: Mapping[str, Price]) -> Fitting:
        """For the call that `run` owes."""
        since = run.turns[-1].replied_at if run.turns else 0.0
        reader = (run.turns[-1].model if run.turns else None) or agent.model
        spent = (run.usage + run.discarded).cost_usd
        known = NOTHING if dropped(run, agent).now else known_of(run)  # what was counted is not what is sent
        return cls(agent, prices, run.opening.limits.max_cost_usd, spent, known, since, None, reader)

    def spend(self, usage: Usage) -> None:
        """An attempt was paid for and thrown away."""
        both = None in (self.spent, usage.cost_usd)
        self.spent = None if both else (self.spent or 0.0) + (usage.cost_usd or 0.0)

    def fitted(self, body: bytes, model: str, now: float) -> bytes:
        """The request as it may be sent, to `model`, now. Raises `Hopeless` if it may not."""
        window = self.agent.context_window
        if self.limit is None and (window is None or len(body) + self.known.tokens < window):
            return body
        fresh = fresh_in(body, self.known)
        if window is not None and self.agent.context != "provider":  # which leaves out what is too much
            self._refuse_beyond(window, fresh, model)
        if self.limit is None:
            return body
        bought = self._bought(self.limit, fresh, model, now)
        self.cut = bought if bought < self.agent.max_tokens else None
        return body if self.cut is None else _with_max_tokens(body, self.cut)

    def _refuse_beyond(self, window: int, fresh: Size, model: str) -> None:
        """What is certainly too long; of what may be, the provider says it, for nothing."""
        if (least := self.known.tokens + fresh.least) > window:
            message = f"the conversation has {least:,} tokens at least, and the context of {model} holds {window:,}"
            raise Hopeless("context_exceeded", message)

    def _bought(self, limit: float, fresh: Size, model: str, now: float) -> int:
        """How many tokens of a reply the money buys. Raises `Hopeless` if they are too few."""
        price = price_of(model, self.prices)
        if price is None or self.spent is None:
            raise Hopeless(BUDGET, f"nobody knows what of ${limit:.4f} is spent, or what {model} costs: set [prices]")
        prompt = self._prompt_usd(price, fresh, model, now)
        left = limit - self.spent - prompt
        rate = price.rates(self.known.tokens + fresh.most).output
        bought = math.floor(left * 1e6 / rate) if rate else self.agent.max_tokens
        if bought < self._least():
            spent, tokens = f"${self.spent:.4f} of ${limit:.4f} is spent", self.known.tokens + fresh.most
            next_turn = f"the next turn's prompt of about {tokens:,} tokens would cost ${prompt:.4f}"
            raise Hopeless(BUDGET, f"{spent}, {next_turn}, and the rest is not enough for a reply")
        return min(bought, self.agent.max_tokens)

    def _prompt_usd(self, price: Price, fresh: Size, model: str, now: float) -> float:
        rates = price.rates(self.known.tokens + fresh.most)
        if self.agent.caching == "off" or (self.known.tokens and not self.known.cached):
            return (self.known.tokens + fresh.most) * rates.input / 1e6  # the provider keeps nothing, or not this
        written = rates.cache_creation_1h if self.agent.caching == "1h" else rates.cache_creation
        still = model == (self.reader or model) and now - self.since < _KEPT_S[self.agent.caching]
        kept = self.known.cached if still else 0
        return (kept * rates.cache_read + (self.known.tokens - kept + fresh.most) * written) / 1e6

    def _least(self) -> int:
        """The fewest tokens of a reply that are of use: thinking has to fit into them."""
        thinking = self.agent.options.get("thinking")
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        return min(self.agent.max_tokens, USEFUL + (budget if isinstance(budget, int) else 0))


def is_bounded(run: Run, agent: AgentSpec) -> bool:
    """Whether there is anything that a call of the run has to fit."""
    return run.opening.limits.max_cost_usd is not None or agent.context_window is not None


def _with_max_tokens(body: bytes, tokens: int) -> bytes:
    """The request with another `max_tokens`, which it begins with: the rest stays byte for byte what it was."""
    found = _START.match(body)
    assert found is not None, "a request begins with its max_tokens, or with what betas it needs"
    return b"%b%d%b" % (found.group(1), tokens, body[found.end() :])
