"""Values: equal and hashed by their fields, and no dearer to make than what can be changed.

Responsible for: `values.py`. That nobody changes one is mypy's to see. Called by: pytest.
"""

from __future__ import annotations

from anabranch.values import frozen


@frozen()
class Point:
    x: int
    y: int = 0


@frozen(eq=False, kw_only=True)
class Corner:
    x: int


def test_values_of_the_same_fields_are_one_key() -> None:
    assert {Point(1): "a"}[Point(1, 0)] == "a"
    assert Point(1) != Point(2)


def test_a_value_without_equality_is_its_own_key() -> None:
    assert len({Corner(x=1), Corner(x=1)}) == 2


def test_a_value_has_its_fields_and_no_others() -> None:
    assert not hasattr(Point(1), "__dict__")


def test_a_value_is_made_as_what_can_be_changed_is() -> None:
    """`__setattr__` of its own would mean a call for each field."""
    assert Point.__setattr__ is object.__setattr__
