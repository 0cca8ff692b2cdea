"""What goes wrong, and when: profiles of faults, the troubles of a process's link, and a seeded schedule.

Responsible for: drawing from a seed which faults a simulation has; it promises nothing and injures nobody itself.
Must never: look at what the workers do.
Called by: the world, which carries the schedule out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from anabranch.kafka.memory.link import Faults

Action = Literal["add", "stop", "deploy", "kill", "doom", "freeze", "freeze two", "cut", "expel", "regress", "copy"]
Retention = Literal["none", "low", "age"]
Role = Literal["agent", "tool"]
ROLES: Final[tuple[Role, Role]] = ("agent", "tool")


@dataclass(frozen=True, slots=True)
class Lives:
    """How long runs live, and how their logs are kept in bounds. Of each field a seed chooses one.

    `batches` a run has; logs are cleaned beyond `clean_bytes`, and an open run is said again after `snapshot_age_s`.
    Retention: nothing goes, or everything below the committed low at once, or what is of a certain age.
    """

    batches: tuple[int, ...] = (0, 1, 1, 1, 2)
    clean_bytes: tuple[int, ...] = (1 << 22,)
    snapshot_age_s: tuple[float, ...] = (1e9,)
    retention: tuple[Retention, ...] = ("none",)


SHORT: Final = Lives()
LONG: Final = Lives((1, 3, 5, 8), (1_500, 6_000, 1 << 22), (2.0, 6.0), ("none", "low", "low"))
AGEING: Final = Lives((3, 5, 8), (6_000, 1 << 22), (2.0, 6.0), ("low", "age", "age"))


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of seed. `actions` with their weights; `rough`: how often an acknowledgement is lost, or comes late or
    without an offset; `lost_commit`: how often a commit is kept and not confirmed.
    """

    name: str
    actions: tuple[tuple[Action, int], ...]
    rough: float = 0.0
    lost_commit: float = 0.0
    metadata: bool = True
    lives: Lives = SHORT

    @property
    def orderly(self) -> bool:
        """Nothing happens here that may repeat anything."""
        return (
            not self.lost_commit
            and self.metadata
            and {action for action, _ in self.actions} <= {"add", "stop", "deploy"}
        )


_COME_AND_GO: Final[tuple[tuple[Action, int], ...]] = (("add", 3), ("stop", 3))
_CRASHES: Final[tuple[tuple[Action, int], ...]] = (("kill", 2), ("doom", 4))
_ZOMBIES: Final[tuple[tuple[Action, int], ...]] = (("freeze", 3), ("freeze two", 1), ("cut", 3), ("expel", 2))
_ALL: Final = (*_CRASHES, *_ZOMBIES, *_COME_AND_GO)

PROFILES: Final = (
    Profile("orderly", _COME_AND_GO),
    Profile("orderly, rough", _COME_AND_GO, rough=0.1),
    Profile("crashes", (*_CRASHES, ("add", 1)), rough=0.05),
    Profile("crashes and rebalances", (*_CRASHES, *_COME_AND_GO), rough=0.1),
    Profile("zombies", (*_ZOMBIES, ("add", 1))),
    Profile("everything", (*_ALL, ("copy", 4)), rough=0.1, lost_commit=0.1),
    Profile("regressed commits", (*_CRASHES, *_COME_AND_GO, ("regress", 4)), rough=0.05),
    Profile("no metadata", (*_CRASHES, *_COME_AND_GO), rough=0.05, metadata=False),
    Profile("deploys", (("deploy", 3), ("add", 1)), lives=Lives((1, 2, 3))),
    Profile("copies", (("copy", 8), *_COME_AND_GO, ("kill", 1)), rough=0.1),
    Profile("long lives", (*_COME_AND_GO, ("deploy", 1)), lives=AGEING),
    Profile("long lives, crashes", (*_CRASHES, *_COME_AND_GO), rough=0.1, lives=LONG),
    Profile("long lives, zombies", (*_ZOMBIES, *_COME_AND_GO), rough=0.05, lives=LONG),
    Profile("long lives, everything", (*_ALL, ("copy", 3), ("regress", 2)), rough=0.1, lost_commit=0.1, lives=LONG),
)
BATCHES: Final = (1, 2, 5, 500, 500)
"""How many records a producer sends at once: the fewer, the more often it dies between two of them."""
SLOW_S: Final = (0.01, 0.01, 0.1, 0.4)
"""How slow the network of a seed is: the slower, the more is under way when something happens."""


@dataclass(frozen=True, slots=True)
class Event:
    """`what` happens at `at` to one of `role`, the one that `pick` chooses, for `for_s` seconds or after `steps`."""

    at: float
    what: Action
    role: Role
    pick: float
    for_s: float
    steps: int


def schedule(profile: Profile, chance: Random) -> list[Event]:
    """The faults of one seed, in order."""
    actions, weights = zip(*profile.actions, strict=True)
    events = []
    for _ in range(chance.randint(2, 8)):
        what: Action = chance.choices(actions, weights)[0]
        role = ROLES[chance.random() < 0.5]
        for_s = chance.choice((chance.uniform(0, 3), chance.uniform(3, 25)))
        events.append(Event(chance.uniform(0.5, 45), what, role, chance.random(), for_s, chance.randint(1, 600)))
    return sorted(events, key=lambda event: event.at)


def troubles(
    profile: Profile, slow_s: float, chance: Random, calm: Callable[[], bool], on_lost_commit: Callable[[], None]
) -> Faults:
    """The link of one process: up to `slow_s` slow; rough as its profile says, until all is calm."""

    def delay() -> float:
        late = not calm() and chance.random() < profile.rough / 5
        return chance.uniform(0.2, 1.5) if late else chance.uniform(0.0005, slow_s)

    def rough() -> bool:
        return not calm() and chance.random() < profile.rough

    def lost_commit() -> bool:
        lost = not calm() and chance.random() < profile.lost_commit
        if lost:
            on_lost_commit()
        return lost

    return Faults(delay, rough, rough, lost_commit, lambda: chance.choice(BATCHES))
