"""The simulation finds nothing wrong, repeats itself exactly, and notices every bug that is planted.

`make simulate` runs more seeds; here are a few of each profile, and the proof that the checker is no rubber stamp.
"""

from __future__ import annotations

import pytest
from tests.simulation import plants, plants_of_cleaning, plants_of_early, plants_of_lanes  # noqa: F401  # fill PLANTS
from tests.simulation.checker import CHECKS, violations
from tests.simulation.evidence import Evidence
from tests.simulation.faults import PROFILES, Profile
from tests.simulation.planting import PLANTS, Plant, planted
from tests.simulation.world import simulate

SEEDS = 4
"""How many seeds of each profile run here."""
ENOUGH = 40
"""In how many seeds a planted bug must have been noticed."""


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_promise_holds_whatever_the_faults(profile: Profile) -> None:
    for seed in range(SEEDS):
        broken = violations(simulate(seed, profile))
        assert not broken, f"seed={seed} ({profile.name}): {broken[0]}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_replays_exactly(seed: int) -> None:
    first, second = simulate(seed), simulate(seed)
    assert first.ledger.trace == second.ledger.trace
    assert _records(first) == _records(second)


def test_two_seeds_differ() -> None:
    assert simulate(1).ledger.trace != simulate(2).ledger.trace


@pytest.mark.parametrize("bug", PLANTS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_noticed(bug: Plant) -> None:
    profile = next(profile for profile in PROFILES if profile.name == bug.profile)
    for seed in range(bug.start, bug.start + ENOUGH):
        with planted(bug):
            evidence = simulate(seed, profile)
        if any(text.startswith(f"{bug.promise}: ") for text in violations(evidence)):
            return
    pytest.fail(f"{ENOUGH} seeds, and nobody noticed that {bug.name.replace('_', ' ')}")


def test_every_promise_has_a_bug_that_breaks_it() -> None:
    assert CHECKS.keys() == {bug.promise for bug in PLANTS}


def _records(evidence: Evidence) -> list[tuple[object, ...]]:
    """What lies where, but for the ids that come from outside the seed: they decide nothing."""
    return [
        (place, record.offset, record.timestamp, record.key, _header(record.headers, "ce_type"))
        for place, records in evidence.records.items()
        for record in records
    ]


def _header(headers: object, name: str) -> bytes | None:
    assert isinstance(headers, tuple)
    return dict(headers).get(name)
