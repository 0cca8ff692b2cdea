"""When the next call of a model may start: its limits a minute, what the provider says of them, and its refusals.

PURE: the time is given, in seconds of one clock, and nothing waits here; `lanes.py` asks and sets the timers.

- **A pace, not a sum.** A share of a limit is spent evenly: what is not used is kept for `BURST_S`, and for one call.
  So no window of a minute holds more than the limit, that remainder (0.4 %) and two or three calls a worker: the one
  that was kept, the one that begins, and what was estimated too low. And nothing is left over from a former owner of
  the share that could be spent twice.
- **Estimated, then settled.** A call starts when no bucket is in debt, takes what it is estimated to use, and gives
  back or owes the difference when its usage is known. So a large call waits for no more than a small one, those after
  it wait for what it took, and the pace holds in the long run. The provider counts input as it is estimated at the
  start of a request, and output as it is produced; `max_tokens` counts only until something was learnt.
- **Corrected.** What the provider says is left bounds the budget: never more than our share of it, less what is on its
  way and may not have been counted. A limit that it names holds like one that is declared; the lower one counts. But
  a worker asks at least once in `PAUSE_MAX_S`: what was named may have been nonsense, and only a reply corrects it.
- **Refusals** (`Window`) hold whatever was declared.

`aiolimiter` is of no use here: its buckets know no debt, no giving back and no change of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from anabranch.agent.model.seam import Left, Quota
from anabranch.config import ModelLimits
from anabranch.prices import count

MINUTE_S: Final = 60.0
BURST_S: Final = 0.25
"""How long unused budget is kept: longer than a busy event loop is late, or the pace would be lost with it."""
PAUSE_MAX_S: Final = 300.0
"""The longest pause of a model, whatever is asked for: after it one call finds out."""
UNNAMED_S: Final = (0.1, 8.0)
"""The pause after a refusal that names none: the first one, twice as long for each that follows on end, the longest."""
FIRST_RATIO: Final = 1 / 3
"""Tokens a byte, before anything was learnt: more than text and JSON have."""
BELIEVED: Final = 2_000_000
"""Tokens of one call that are believed whatever its limit: twice the largest context, for the provider's tools make it
read again ..."""
BELIEVED_S: Final = 300.0
"""... and as many as the limit of the whole fleet gives in so many seconds: the provider lets no call have more."""
MEMORY: Final = 0.95
"""What is kept of what was learnt, with each reply."""
_TINY: Final = 1e-6


def share_of(owned: int, partitions: int) -> float:
    """The part of the fleet's limits that a worker has, which owns so many of the partitions of `agent.log`."""
    return owned / partitions if partitions else 0.0


class Bucket:
    """One limit. Its level rises with the share's pace, and falls below nothing when more was used than was there.

    A call may start at `least`; `unit` is what a typical one takes. `rate` is a second's, on this worker; None: nothing
    is known that would limit it.
    """

    def __init__(self, declared: float | None, least: float) -> None:
        self._declared, self._least, self.unit = declared, least, least
        self._named: float | None = None
        self._share = 0.0
        self._level, self._at = least, 0.0
        self.rate = None if declared is None else 0.0

    def set_share(self, share: float, now: float) -> None:
        self._fill(now)
        self._share = share
        self._set_rate(now)

    def spend(self, amount: float, now: float) -> None:
        """What was not needed is given back by a negative amount."""
        if self._fill(now) is not None:
            self._level -= amount

    def correct(self, quota: Quota, on_its_way: float, now: float) -> None:
        if quota.limit and quota.limit != self._named:
            self._fill(now)
            self._named = quota.limit
            self._set_rate(now)
        if self._fill(now) is not None and quota.remaining is not None:
            self._level = min(self._level, self._share * quota.remaining - on_its_way)

    def believes(self, amount: float, size: int) -> bool:
        """Whether a single call, of a request of `size` bytes, may have used so much: nonsense is owed for days."""
        limits = [limit * BELIEVED_S / MINUTE_S for limit in (self._declared, self._named) if limit is not None]
        return amount <= max(BELIEVED, size, *limits)

    def opens_at(self, now: float, latest: float) -> float:
        """When the next call may start; `inf`: never, with the share as it is. A limit that the provider alone names
        holds no call for longer than until `latest`, or who named nonsense once would not be asked again."""
        rate = self._fill(now)
        if rate == 0:
            return math.inf
        if rate is None or self._level >= self._least - _TINY:
            return now
        opens = now + (self._least - self._level) / rate
        return opens if self._holds_as_declared else max(now, min(opens, latest))

    @property
    def _holds_as_declared(self) -> bool:
        return self._declared is not None and (self._named is None or self._declared <= self._named)

    def _set_rate(self, now: float) -> None:
        limits = [limit for limit in (self._declared, self._named) if limit is not None]
        if self.rate is None:
            self._at = now  # it fills from now on
        self.rate = min(limits) / MINUTE_S * self._share if limits else None

    def _fill(self, now: float) -> float | None:
        if (rate := self.rate) is not None:
            self._level = min(self._level + rate * (now - self._at), self.unit + rate * BURST_S)
            self._at = now
        return rate


class Window:
    """How many requests may wait for the provider's word at once, be it yes or no: AIMD, as in TCP.

    Where nothing is declared there is no rate to halve, and a window needs none: it is a rate for each round trip. It
    counts requests that were neither accepted nor refused yet, not calls that are being answered: a refusal comes
    at once, an answer takes a minute, and a window of answers would take an hour to open again. A refusal halves
    what may be reached soon and goes on with one; it counts once a round, for those sent before it say the same.
    One at a time is still as often as the provider can refuse: where it does not say for how long, `pause_s` does.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._size = self._soon = float(ceiling)
        self.unanswered = self._round = 0
        self.pause_s = 0.0

    @property
    def is_open(self) -> bool:
        return self.unanswered < self._size

    @property
    def size(self) -> int:
        return int(self._size)

    @property
    def open_part(self) -> float:
        """From 1, where nothing was refused, down."""
        return self._size / self._ceiling

    def send(self) -> int:
        """Returns the round, for `refused`."""
        self.unanswered += 1
        return self._round

    def answered(self) -> None:
        self.unanswered -= 1

    def accepted(self) -> None:
        self.pause_s = 0.0
        self._size = min(self._ceiling, self._size + (1.0 if self._size < self._soon else 1 / self._size))

    def refused(self, sent_in: int) -> None:
        if sent_in == self._round:
            self._round += 1
            first, longest = UNNAMED_S
            self.pause_s = min(longest, max(first, 2 * self.pause_s))
            self._soon, self._size = max(2.0, min(self._size, self.unanswered) / 2), 1.0


class Experience:
    """What calls of the model have used lately: tokens a byte of the request, and tokens a reply."""

    def __init__(self) -> None:
        self._bytes = self._input = self._output = self._replies = 0.0

    def input_of(self, size: int) -> float:
        return size * (self._input / self._bytes if self._bytes else FIRST_RATIO)

    def output_of(self, max_tokens: int) -> float:
        return min(max_tokens, self._output / self._replies) if self._replies else max_tokens

    def learn(self, size: int, input_tokens: float, output_tokens: float) -> None:
        self._bytes, self._input = self._bytes * MEMORY + size, self._input * MEMORY + input_tokens
        self._output, self._replies = self._output * MEMORY + output_tokens, self._replies * MEMORY + 1

    @property
    def typical(self) -> tuple[float, float]:
        """Input and output of a call; nothing, before anything was learnt."""
        calls = self._replies or 1.0
        return self._input / calls, self._output / calls


@dataclass(slots=True, eq=False)
class Attempt:
    """One request to the provider: what it was estimated to use, and what the provider has said to it."""

    size: int
    input: float
    output: float
    round: int
    heard_of: bool = False
    accepted: bool = False


class Budget:
    """All that says when the next call of a model may start, on this worker."""

    def __init__(self, limits: ModelLimits, ceiling: int) -> None:
        self._count_cache_reads = limits.count_cache_reads
        self._requests = Bucket(limits.requests_per_minute, least=1.0)
        self._input = Bucket(limits.input_tokens_per_minute, least=0.0)
        self._output = Bucket(limits.output_tokens_per_minute, least=0.0)
        self._buckets = {"requests": self._requests, "input tokens": self._input, "output tokens": self._output}
        self._limited = self._which_limit()
        self._window, self._experience = Window(ceiling), Experience()
        self._on_its_way = 0.0  # input tokens of requests that the provider may not have counted yet
        self.paused_until = 0.0
        self._share = self._started_at = 0.0

    def _which_limit(self) -> list[Bucket]:
        """Those of a limit that is known: the others hold no call, and count none."""
        return [bucket for bucket in self._buckets.values() if bucket.rate is not None]

    @property
    def open_part(self) -> float:
        """What the provider's refusals leave of the requests that may wait for its word at once."""
        return self._window.open_part

    def set_share(self, share: float, now: float) -> None:
        self._share = share
        for bucket in self._buckets.values():
            bucket.set_share(share, now)

    def opens_at(self, now: float, again: bool = False) -> float:
        """When the next call may start: `now` if it may at once, `inf` if that takes an answer or a share.

        A call that has begun and is made `again` needs no share: its partition's new owner waits for it.
        """
        if not self._window.is_open:
            return math.inf
        opens = max(now, self.paused_until)
        if self._limited and (self._share > 0 or not again):
            latest = self._started_at + PAUSE_MAX_S
            return max(opens, *[bucket.opens_at(now, latest) for bucket in self._limited])
        return opens

    def held_by(self, now: float) -> str:
        """Why the next call may not start, in words; "" if it may."""
        if self.paused_until > now:
            return f"the provider has refused calls: a pause of {self.paused_until - now:.1f} s more"
        if not self._window.is_open:
            return f"the provider has refused calls, and may be asked {self._window.size} at a time until it accepts"
        latest = self._started_at + PAUSE_MAX_S
        name, opens = max(((n, b.opens_at(now, latest)) for n, b in self._buckets.items()), key=lambda pair: pair[1])
        if opens <= now:
            return ""
        wait = "when this worker has a share of them" if opens == math.inf else f"in {opens - now:.1f} s"
        return f"its {name} a minute are used up; the next call may start {wait}"

    # --- one call ----------------------------------------------------------------------------------------------------

    def start(self, size: int, max_tokens: int, now: float) -> Attempt:
        """A request of `size` bytes goes out."""
        known, self._started_at = self._experience, now
        attempt = Attempt(size, known.input_of(size), known.output_of(max_tokens), self._window.send())
        self._on_its_way += attempt.input
        self._spend(1.0, attempt.input, attempt.output, now)
        return attempt

    def _spend(self, requests: float, input_tokens: float, output_tokens: float, now: float) -> None:
        if self._limited:
            self._requests.spend(requests, now)
            self._input.spend(input_tokens, now)
            self._output.spend(output_tokens, now)

    def told(self, attempt: Attempt, left: Left, now: float) -> None:
        """The provider has said what is left; `attempt` it has counted, others of ours perhaps not."""
        self._heard_of(attempt)
        self._requests.correct(left.requests, self._window.unanswered, now)
        self._input.correct(left.input_tokens, self._on_its_way, now)
        self._output.correct(left.output_tokens, 0.0, now)  # while it is being produced, as much comes back
        if len(self._limited) < len(self._buckets):
            self._limited = self._which_limit()

    def accepted(self, attempt: Attempt) -> None:
        """The provider answers. Said more than once it counts once."""
        if not attempt.accepted:
            self._heard_of(attempt)
            attempt.accepted = True
            self._window.accepted()

    def refused(self, attempt: Attempt, retry_after: float | None, now: float, charged: bool = False) -> None:
        """The provider wants to be asked less: for `retry_after` seconds nothing of the model is asked for. If it names
        none, for as long as the window says; but not if such retries are `charged`, for that holds them already.

        A refused request is given back; if the provider counts it, what it says is left will tell.
        """
        self._window.refused(attempt.round)
        self._spend(-1.0, 0.0, 0.0, now)
        pause = retry_after or (0.0 if charged else self._window.pause_s)
        self.paused_until = max(self.paused_until, now + min(pause, PAUSE_MAX_S))

    def ended(self, attempt: Attempt, usage: Mapping[str, Any] | None, now: float) -> str | None:
        """Settle. `usage` is the provider's; empty: nothing was used; None: unknown, so the estimate stands. So it does
        where no call can have used as much as is said, which is returned.
        """
        self._heard_of(attempt)
        if usage is None:
            return None
        used_input, used_output = self._input_of(usage), count(usage.get("output_tokens"))
        if not (self._input.believes(used_input, attempt.size) and self._output.believes(used_output, attempt.size)):
            return f"{used_input:,} tokens of input and {used_output:,} of output"
        self._spend(0.0, used_input - attempt.input, used_output - attempt.output, now)
        if used_input or used_output:
            self._experience.learn(attempt.size, used_input, used_output)
            self._input.unit, self._output.unit = self._experience.typical
        return None

    def withdrawn(self, attempt: Attempt, now: float) -> None:
        """It is not sent after all; `ended` gives the rest back."""
        if not attempt.heard_of:
            self._spend(-1.0, 0.0, 0.0, now)

    def _heard_of(self, attempt: Attempt) -> None:
        if not attempt.heard_of:
            attempt.heard_of = True
            self._window.answered()
            self._on_its_way = max(0.0, self._on_its_way - attempt.input)

    def _input_of(self, usage: Mapping[str, Any]) -> int:
        used = count(usage.get("input_tokens")) + count(usage.get("cache_creation_input_tokens"))
        return used + count(usage.get("cache_read_input_tokens")) if self._count_cache_reads else used


def limits_of(model: str, declared: Mapping[str, ModelLimits]) -> tuple[str, ModelLimits]:
    """Under which name, and how, `model` is limited: by its own name, or by the first pattern that it matches."""
    if model in declared:
        return model, declared[model]
    pattern = next((pattern for pattern in declared if fnmatchcase(model, pattern)), None)
    return (model, ModelLimits()) if pattern is None else (pattern, declared[pattern])
