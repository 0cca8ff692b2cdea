"""What the probes are told: by the loop's pulse, by the roles, from their start to their drain.

Responsible for: `health.py`. Must never: open a port (tests/integration/test_probes). Called by: pytest.
"""

from __future__ import annotations

from anabranch.health import Health, Process

WAITS = "it waits for its partitions"


def process(*roles: Health, expected: int = 1) -> Process:
    return Process(5.0, 100.0, expected, list(roles))


def ready() -> Health:
    health = Health("agent")
    health.see(True, "")
    return health


def test_a_process_lives_as_long_as_its_loop_beats() -> None:
    found = process()
    assert found.live(104.9).good
    assert not found.live(105.0).good
    found.beat(105.0)
    assert found.live(109.0).good


def test_what_is_wrong_with_a_role_is_no_reason_to_call_the_process_dead() -> None:
    assert process(Health("agent")).live(101.0).good


def test_a_blocked_loop_says_for_how_long() -> None:
    assert "stood still for 7.5 s" in process().live(107.5).text


def test_a_process_without_its_roles_has_not_started() -> None:
    found = process(ready(), expected=2)
    assert not found.started().good
    assert not found.ready(101.0).good
    found.roles.append(ready())
    assert found.started().good
    assert found.ready(101.0).good


def test_a_role_has_started_with_its_first_assignment_and_is_ready_when_that_is_folded() -> None:
    health = Health("agent")
    found = process(health)
    health.see(False, WAITS)
    assert not found.started().good
    health.see(True, "2 of its 4 partitions are still read")
    assert found.started().good
    assert not found.ready(101.0).good
    assert found.ready(101.0).text == "agent: 2 of its 4 partitions are still read"
    health.see(True, "")
    assert found.ready(101.0).good


def test_a_rebalance_makes_it_unready_but_not_unstarted() -> None:
    health = ready()
    health.see(False, WAITS)
    found = process(health)
    assert found.started().good
    assert not found.ready(101.0).good


def test_who_drains_is_not_ready_and_lives() -> None:
    health = ready()
    found = process(health)
    health.drain()
    assert found.ready(101.0).text == "agent: it is draining"
    assert not found.ready(101.0).good
    assert found.live(101.0).good
    assert found.started().good


def test_one_role_that_is_not_ready_makes_the_process_unready() -> None:
    other = Health("tool io")
    found = process(ready(), other, expected=2)
    other.see(False, WAITS)
    verdict = found.ready(101.0)
    assert (verdict.good, verdict.text) == (False, f"agent: ok\ntool io: {WAITS}")


def test_what_a_blocked_loop_said_last_is_not_believed() -> None:
    assert not process(ready()).ready(106.0).good
