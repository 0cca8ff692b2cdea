"""Two owners of one partition at once, in any interleaving: each request counts once, and nobody's run is forgotten.

Responsible for: that the events of both lanes are one sequence even while a zombie takes requests up as well.
Must never: run a broker.
Called by: pytest.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from tests.support import builders as b
from tests.support.desk import Desk, Log
from tests.support.virtual import virtually

from anabranch import log_events as e
from anabranch.agent import fold
from anabranch.agent.admission.admission import Admission
from anabranch.agent.state import Nexts, Partition
from anabranch.codec import decode
from anabranch.fields import LANES, Lane

Requests = dict[Lane, list[b.Read]]
STEPS = st.tuples(st.booleans(), st.sampled_from(["interactive", "bulk", "land", "read"]))


def requests_for(names: dict[Lane, list[str]]) -> Requests:
    body = {"agent": "a", "input": "hello"}
    return {
        lane: [b.raw_request({**body, "run_id": name}, offset) for offset, name in enumerate(runs)]
        for lane, runs in names.items()
    }


class OwnerAtWork:
    """One of the owners; what it appends lies in the log once it lands."""

    def __init__(self, log: Log, requests: Requests) -> None:
        self.desk, self._requests = Desk(log).begin(), requests
        self.admission = Admission(self.desk.owner, self.desk.station)

    async def take(self, lane: Lane) -> bool:
        """The next request of the lane, if there is one."""
        left = self._requests[lane][self.admission.position(lane) :]
        if left:
            await self.admission._take_up(left[0], lane)
        return bool(left)

    def land(self) -> None:
        self.desk.land()

    def read(self) -> None:
        self.desk.read()
        self.admission.folded()

    async def finish(self) -> None:
        """Alone, until nothing is left."""
        for _ in range(20):
            self.land()
            self.read()
            if not any([await self.take(lane) for lane in LANES]):
                return
        raise AssertionError(f"requests stay where they are: {self.admission.position('bulk')}")


def judge(log: Log, names: dict[Lane, list[str]]) -> None:
    """Each request counts once; a run opens once, and what is called a copy is one of a run that is there."""
    state, counted = Partition(next_request=0, next_bulk=0), list[tuple[Lane, int]]()
    for record in log.records:
        event, before, known = decode(record), state.nexts, set(state.runs)
        fold.apply(state, event, record.offset, 1.0)
        if state.nexts != before:
            assert isinstance(event, e.RunRequested | e.RequestNoted)
            counted.append((event.lane, event.request_offset))
            is_copy = isinstance(event, e.RequestNoted)
            assert (event.run_id in known) == is_copy, f"{event.run_id}: {'noted, unknown' if is_copy else 'known'}"
    assert sorted(counted) == sorted((lane, offset) for lane, runs in names.items() for offset in range(len(runs)))
    assert state.nexts == Nexts(len(names["interactive"]), len(names["bulk"]))


RUNS = st.lists(st.sampled_from("xyz"), max_size=4)


_OTHER_LANE_LATE = [
    *[(False, "interactive"), (False, "bulk"), (True, "interactive"), (True, "interactive"), (True, "land")],
    *[(False, "interactive"), (False, "interactive"), (False, "land"), (True, "bulk")],
]


@given(RUNS, RUNS, st.lists(STEPS, max_size=30))
@example(["x", "x", "x"], ["x"], _OTHER_LANE_LATE)
def test_two_owners_at_once_lose_no_request_and_open_no_run_twice(
    interactive: list[str], bulk: list[str], steps: list[tuple[bool, str]]
) -> None:
    names: dict[Lane, list[str]] = {"interactive": interactive, "bulk": bulk}

    async def run() -> None:
        log, requests = Log(), requests_for(names)
        owners = [OwnerAtWork(log, requests), OwnerAtWork(log, requests)]
        for which, step in steps:
            owner = owners[which]
            if step == "land":
                owner.land()
            elif step == "read":
                owner.read()
            else:
                await owner.take("bulk" if step == "bulk" else "interactive")
        owners[1].land()
        await owners[0].finish()
        judge(log, names)

    virtually(run)
