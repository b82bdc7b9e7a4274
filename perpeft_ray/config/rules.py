"""Rules that settings must keep; each raises InputError with the input, the rule and the value."""

from __future__ import annotations

import math

from perpeft_ray.errors import InputError


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """The value must be one of `allowed`."""
    if value not in allowed:
        raise InputError(f"`{name}` must be one of {', '.join(map(str, allowed))}, but is {value}")


def applies(name: str, value: object, it_does: bool) -> None:
    """The setting must be None where it does not apply, and must not where it does."""
    if it_does and value is None:
        raise InputError(f"`{name}` must be given for this method and variant, but is None")
    if not it_does and value is not None:
        raise InputError(f"`{name}` must be None for this method and variant, but is {value}")


def at_least(name: str, value: int, least: int) -> None:
    """The value must be a whole number, not below `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"`{name}` must be a whole number of at least {least}, but is {value}")


def between(name: str, value: float, low: float, high: float) -> None:
    """The value must be in [low, high]; `high` may be infinite."""
    if not low <= value <= high:
        rule = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise InputError(f"`{name}` must be {rule}, but is {value}")


def positive(name: str, value: float) -> None:
    """The value must be finite and above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"`{name}` must be a positive number, but is {value}")


def distinct(name: str, values: tuple[object, ...]) -> None:
    """There must be a value, and none twice."""
    if not isinstance(values, tuple | list):
        raise InputError(f"`{name}` must be a list of values, but is {values!r}")
    if not values:
        raise InputError(f"`{name}` must have at least one value, but is empty")
    if len(set(values)) != len(values):
        raise InputError(f"`{name}` must not repeat a value, but is {values}")
