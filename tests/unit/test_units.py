"""Units: what people write, and what is refused because it could mean two things."""

from __future__ import annotations

import pytest

from anabranch import AnabranchError
from anabranch.units import UnitError, duration, rate, size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (10, 10.0),
        (0.5, 0.5),
        ("10", 10.0),
        ("10s", 10.0),
        ("250ms", 0.25),
        ("5m", 300.0),
        ("5 min", 300.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        (" 1.5h ", 5400.0),
        ("7d", 604_800.0),
        (0, 0.0),
    ],
)
def test_a_duration_is_read_as_seconds(written: str | float, seconds: float) -> None:
    assert duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "s", "10x", "-1s", "1h-30m", "1h!", -1, float("nan"), float("inf"), True])
def test_what_is_no_duration_is_refused_with_its_value(written: str | float) -> None:
    with pytest.raises(UnitError, match="duration"):
        duration(written)


@pytest.mark.parametrize(
    ("written", "per_second"),
    [("50/s", 50.0), ("600/m", 10.0), ("600 / min", 10.0), ("3600/h", 1.0), ("5/10s", 0.5), (2, 2.0), ("0.5", 0.5)],
)
def test_a_rate_is_read_as_calls_a_second(written: str | float, per_second: float) -> None:
    assert rate(written) == pytest.approx(per_second)


@pytest.mark.parametrize("written", ["", "0/s", "50/0s", "50/fortnight", "-1/s", 0, -5, float("inf"), False])
def test_what_is_no_rate_is_refused(written: str | float) -> None:
    with pytest.raises(UnitError):
        rate(written)


@pytest.mark.parametrize(
    ("written", "count"),
    [("32kB", 32_768), ("32 KiB", 32_768), ("256kB", 262_144), ("1MB", 1_048_576), ("1.5k", 1536), ("10B", 10), (7, 7)],
)
def test_a_size_is_read_as_bytes_and_a_kilobyte_has_1024(written: str | int, count: int) -> None:
    assert size(written) == count


@pytest.mark.parametrize("written", ["", "kB", "1.5B", "-1kB", "3 parsecs", -1, 1.5, True])
def test_what_is_no_size_is_refused(written: str | int) -> None:
    with pytest.raises(UnitError, match=r"size|bytes"):
        size(written)


def test_a_unit_error_is_caught_as_ours_and_as_a_value_error() -> None:
    assert issubclass(UnitError, AnabranchError)
    assert issubclass(UnitError, ValueError)
