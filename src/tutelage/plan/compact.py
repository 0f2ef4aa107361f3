"""The compact space: for each structure of a family, the widest network inside the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tutelage.errors import InfeasibleError
from tutelage.plan.costs import Costing, cost_of, missed_limits
from tutelage.records import Measurement
from tutelage.students.spec import FAMILIES, StudentSpec
from tutelage.units import format_quantity

_UNITS = {"latency_s": "s", "ram_bytes": "B", "storage_bytes": "B", "energy_j": "J"}
_NARROWEST, _WIDEST = 4, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A student that could be built, what it would cost, and which limits it would miss."""

    spec: StudentSpec
    parameters: int
    figures: tuple[Measurement, ...]
    missed: tuple[str, ...] = ()

    def figure(self, name: str) -> float:
        """Return the value of one figure."""
        return next(f.value for f in self.figures if f.name == name)


def candidates(
    costing: Costing,
    *,
    families: Sequence[str],
    given: dict[str, Any],
    most_parameters: int,
    count: int,
) -> tuple[Candidate, ...]:
    """Return up to `count` candidates that keep every hard limit, the most able first.

    Each structure of each family is widened by bisection until a limit binds; ability is guessed by
    operations, and decided later by short distillations. `given` holds the knobs that the data
    decides. Raises `InfeasibleError` when not even the narrowest network fits, naming the limit
    that binds.
    """
    found = []
    narrowest = []
    for family, structure in structures_of(families):
        best, smallest = widest(family, structure, costing, given, most_parameters)
        narrowest.append(smallest)
        if best is not None:
            found.append(best)
    if not found:
        raise InfeasibleError(_why_none(narrowest, costing))
    distinct = {str(c.spec.to_json()): c for c in found}.values()
    return tuple(sorted(distinct, key=lambda c: -c.figure("macs"))[:count])


def structures_of(families: Sequence[str]) -> list[tuple[str, Any]]:
    """Return every structure of these families, with the family's name."""
    return [(name, structure) for name in families for structure in FAMILIES[name].structures]


def widest(
    family: str, structure: Any, costing: Costing, given: dict[str, Any], most_parameters: int
) -> tuple[Candidate | None, Candidate]:
    """Bisect the base width; cost grows with it. Return the widest that fits, and the narrowest."""
    known: dict[int, Candidate] = {}
    sized = FAMILIES[family].sized
    assert sized is not None  # a family with structures can size them

    def at(width: int) -> Candidate:
        if width not in known:
            knobs = sized(structure, width, given)
            known[width] = weigh(StudentSpec(family=family, knobs=knobs), costing)
        return known[width]

    def fits(width: int) -> bool:
        candidate = at(width)
        return not candidate.missed and candidate.parameters <= most_parameters

    low, high = _NARROWEST, _WIDEST
    if not fits(low):
        return None, at(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low), at(_NARROWEST)


def weigh(spec: StudentSpec, costing: Costing) -> Candidate:
    """Cost one spec."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = spec.build()
        _shake(network)
    figures = cost_of(network, costing)
    return Candidate(
        spec=spec,
        parameters=sum(p.numel() for p in network.parameters()),
        figures=figures,
        missed=missed_limits(figures, costing.limits),
    )


def _shake(network: nn.Module) -> None:
    """Give norms values as after training: equal constants would merge, and shrink the file."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)


def _why_none(narrowest: list[Candidate], costing: Costing) -> str:
    """Say which limit binds, by how much, and the nearest point that could be met."""
    nearest = min(narrowest, key=lambda c: sum(1 for _ in _overshoots(c, costing)) or 99)
    parts = [
        f"{metric} is limited to {format_quantity(limit, _UNITS[metric])} and the smallest student "
        f"needs {format_quantity(value, _UNITS[metric])}"
        for metric, limit, value in _overshoots(nearest, costing)
    ]
    return f"no student fits {costing.device.name}: {'; '.join(parts)}. Raise the limit in budget:"


def _overshoots(candidate: Candidate, costing: Costing) -> Iterator[tuple[str, float, float]]:
    for limit in costing.limits:
        if limit.metric in candidate.missed:
            yield limit.metric, limit.value, candidate.figure(limit.metric)
