"""The teachers that can be fitted on the spot, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tutelage.registry import Registry
from tutelage.students.families import convnet, convnet1d, minirocket
from tutelage.students.spec import StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """A network of a family: `knobs(width, given)` of it, where `given` is what the data decides.

    `most`: it is solved for and not trained, on so many labelled examples at most.
    """

    family: str
    knobs: Callable[[int, dict[str, Any]], Any]
    most: int | None = None

    def spec(self, width: int, given: dict[str, Any]) -> StudentSpec:
        """Return the network's spec; one that is solved for has no width."""
        return StudentSpec(family=self.family, knobs=self.knobs(width, given))


TEACHERS: Registry[BuiltIn] = Registry("built-in teacher")
TEACHERS.add("convnet", BuiltIn(family="convnet", knobs=convnet.teacher))
TEACHERS.add("inception", BuiltIn(family="convnet1d", knobs=convnet1d.teacher))
TEACHERS.add("resnet1d", BuiltIn(family="convnet1d", knobs=convnet1d.resnet))
TEACHERS.add(
    "minirocket",
    BuiltIn(family="minirocket", knobs=minirocket.teacher, most=minirocket.MOST_SERIES),
)
