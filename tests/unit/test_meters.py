"""Counters, gauges and histograms as the roles use them: plain numbers, bounded, readable at any time.

Responsible for: `meters.py`. Must never: know how they are shown (tests/unit/test_metrics). Called by: pytest.
"""

from __future__ import annotations

import threading

from anabranch.meters import OTHER, SERIES, Counter, Gauge, Histogram


def test_a_counter_adds_up_by_its_labels() -> None:
    counter = Counter("runs_total", "h", ("agent", "status"))
    counter.count("a", "completed")
    counter.add(2, "a", "completed")
    counter.count("a", "failed")
    assert counter.copied() == {("a", "completed"): 3, ("a", "failed"): 1}


def test_what_may_happen_shows_as_zero_before_it_has() -> None:
    assert Counter("sends_total", "h").copied() == {(): 0}
    assert Counter("x_total", "h", ("reason",), {"role": "agent"}, [("bad",)]).copied() == {("bad",): 0}
    assert Counter("x_total", "h", ("agent",)).copied() == {}
    assert Gauge("x", "h", fixed={"role": "agent"}).copied() == {(): 0.0}


def test_a_value_counts_in_the_first_bucket_that_it_does_not_exceed() -> None:
    waits = Histogram("wait_seconds", "h", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        waits.observe(value)
    assert waits.copied() == {(): ([2, 1, 1], 12.0)}


def test_a_clock_that_went_backwards_counts_as_no_time_at_all() -> None:
    waits = Histogram("wait_seconds", "h", (1.0, 2.0))
    waits.observe(-5.0)
    assert waits.copied() == {(): ([1, 0, 0], 0)}


def test_no_labels_whatever_make_more_series_than_the_bound() -> None:
    counter, gauge = Counter("a_total", "h", ("x", "y")), Gauge("g", "h", ("x",))
    histogram = Histogram("h_seconds", "h", (1.0,), ("x",))
    for number in range(2 * SERIES):
        counter.count(str(number), "y")
        gauge.set(1, str(number))
        histogram.observe(0.5, str(number))
    assert (len(counter.copied()), len(gauge.copied()), len(histogram.copied())) == (SERIES + 1, SERIES, SERIES + 1)
    assert counter.copied()[OTHER, OTHER] == SERIES
    assert histogram.copied()[(OTHER,)] == ([SERIES, 0], SERIES * 0.5)
    counter.count("0", "y")
    assert counter.copied()["0", "y"] == 2, "those that are known go on"


def test_a_gauge_forgets_what_is_no_more() -> None:
    lag = Gauge("lag", "h", ("topic",))
    lag.set(3, "gone")
    lag.replace({("here",): 1.0})
    assert lag.copied() == {("here",): 1.0}


def test_another_thread_may_read_while_the_loop_counts() -> None:
    counter, histogram = Counter("a_total", "h", ("x",)), Histogram("h_seconds", "h", (1.0,), ("x",))
    over, failed = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not over.is_set():
                counter.copied()
                histogram.copied()
        except BaseException as error:  # noqa: BLE001 - it is what the test is about
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(SERIES):
        counter.count(str(number))
        histogram.observe(0.5, str(number))
    over.set()
    reader.join()
    assert not failed
