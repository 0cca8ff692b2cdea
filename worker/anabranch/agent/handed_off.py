"""Model calls that another worker has handed off: until when it may still be on them, and its reply stand in the log.

Responsible for: which hand-offs are waited for, and up to where the log has to be read once the time of one is up. Must
never: make a call, or read the log. Called by: `owner.py`, of which each has one.
"""

from __future__ import annotations

from collections.abc import Iterator

from anabranch.agent.alarms import Alarms
from anabranch.agent.deadlines import Moment
from anabranch.agent.state import Partition, Run
from anabranch.agent.station import Station


class HandedOff:
    """See the module. `read_on` says where the log ended when the time of a hand-off was up."""

    def __init__(self, station: Station, alarms: Alarms) -> None:
        self._station, self._alarms = station, alarms
        self.read_on: dict[Moment, int] = {}

    def may_call(self, run: Run, state: Partition) -> bool:
        """Somebody who handed the call off may still be on it: wait, and then read on to the log's end."""
        others = [hand_off for hand_off in run.hand_offs.values() if hand_off.worker != self._station.worker_id]
        for hand_off in others:
            moment = Moment("model", run.run_id, run.life, run.turn, hand_off.offset)
            if moment not in self.read_on:
                if self._alarms.after(moment, hand_off.left_s(state.at)):
                    self._station.meters.hand_offs.count("model", "waited")
                return False
            if state.position < self.read_on[moment]:
                return False
        return True

    def is_waited_for(self, run: Run, moment: Moment) -> bool:
        """Whether this hand-off's call is still owed, and its giver has not said anything else since."""
        return any(hand_off.offset == moment.hand_off for hand_off in run.hand_offs.values())

    def time_is_up(self, moment: Moment, end: int) -> None:
        """The log ended at `end` then: up to there a reply may still stand."""
        self._station.meters.hand_offs.count("model", "lost")
        self.read_on[moment] = end

    def without_reply(self, state: Partition) -> Iterator[Run]:
        """The runs for which all has been read that the giver may have written, and that still owe their call."""
        for moment, end in list(self.read_on.items()):
            if state.position >= end:
                run = state.runs.get(moment.run_id)
                if run is None or run.life != moment.life or run.turn != moment.subject or not run.owed:
                    del self.read_on[moment]
                else:
                    yield run
