"""Who may have been frozen does nothing before the group has had the time to say that it is out."""

from __future__ import annotations

from anabranch.kafka.liveness import Liveness

SESSION_S, HEARTBEAT_S = 10.0, 2.5


def test_who_polls_is_alive() -> None:
    liveness = Liveness(SESSION_S, HEARTBEAT_S, 0.0)
    for now in (0.0, 5.0, 14.0):
        liveness.polled(now)
        assert liveness.is_alive(now)


def test_who_has_not_polled_for_a_session_is_not() -> None:
    liveness = Liveness(SESSION_S, HEARTBEAT_S, 0.0)
    assert liveness.is_alive(9.9)
    assert not liveness.is_alive(10.0)


def test_the_first_poll_after_a_freeze_proves_nothing() -> None:
    liveness = Liveness(SESSION_S, HEARTBEAT_S, 0.0)
    liveness.polled(30.0)
    assert not liveness.is_alive(30.0)
    liveness.polled(31.0)
    assert not liveness.is_alive(31.0)


def test_after_a_heartbeats_time_it_is_alive_again_if_nothing_was_heard() -> None:
    liveness = Liveness(SESSION_S, HEARTBEAT_S, 0.0)
    liveness.polled(30.0)
    liveness.polled(32.5)
    assert liveness.is_alive(32.5)


def test_who_has_waited_for_the_group_for_long_is_alive_once_it_has_joined() -> None:
    liveness = Liveness(SESSION_S, HEARTBEAT_S, 0.0)
    liveness.joined(25.0)
    liveness.polled(25.1)
    assert liveness.is_alive(25.1)
