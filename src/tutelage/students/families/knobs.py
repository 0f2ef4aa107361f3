"""Checks that the knobs of every student family share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_whole(knobs: Any, largest: Mapping[str, int], lists: tuple[str, ...] = ()) -> None:
    """Check that knobs hold whole numbers from 1 to `largest`, and that `lists` alone are lists.

    Raises `ValueError` naming the knob.
    """
    for knob, most in largest.items():
        value = getattr(knobs, knob)
        if isinstance(value, tuple) is not (knob in lists):
            kind = "a list" if knob in lists else "one number"
            raise ValueError(f"{knob} cannot be {value!r}; it is {kind}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ValueError(f"{knob} holds {number!r}; write whole numbers")
            if not 1 <= number <= most:
                raise ValueError(f"{knob} holds {number}; it goes from 1 to {most}")
