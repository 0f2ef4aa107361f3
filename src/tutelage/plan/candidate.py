"""A student that could be built, and what it would cost."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.export.graph import GraphCosts
from tutelage.plan.costs import Costing, cost_of, figures_on, missed_limits, needs_timing, shake
from tutelage.records import Measurement
from tutelage.students.spec import StudentSpec

_MOST_OF_A_TINY_TEACHER = 2_000


def most_parameters(of_teacher: int) -> int:
    """Return how many parameters a student may have: half of its teacher's, or a few thousand."""
    return max(_MOST_OF_A_TINY_TEACHER, of_teacher // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A student that could be built, what it would cost, and which limits it would miss.

    `counted` is what its exported graph counts, whatever the device. `weights` are those that it
    takes over from the teacher; None starts fresh, or as the recipe says. `by_scores`: each stage's
    width was chosen by what narrowing it does; otherwise all go by one rule. `elastic`: it was cut
    from the elastic student, not from the teacher.
    """

    spec: StudentSpec
    parameters: int
    figures: tuple[Measurement, ...]
    missed: tuple[str, ...] = ()
    counted: GraphCosts | None = None
    weights: dict[str, Tensor] | None = None
    by_scores: bool = False
    elastic: bool = False

    @property
    def space(self) -> str:
        """The space that it comes from: only slices and cuts bring weights along."""
        if self.elastic:
            return "elastic"
        return "compact" if self.weights is None else "sliced"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, without weights."""
        assert self.counted is not None  # every candidate of a space was exported
        return {
            "spec": self.spec.to_json(),
            "parameters": self.parameters,
            "figures": [figure.to_json() for figure in self.figures],
            "counted": dataclasses.asdict(self.counted),
            "by_scores": self.by_scores,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        """Rebuild from `to_json`, without weights."""
        return cls(
            spec=StudentSpec.from_json(data["spec"]),
            parameters=data["parameters"],
            figures=tuple(Measurement.from_json(figure) for figure in data["figures"]),
            counted=GraphCosts.from_json(data["counted"]),
            by_scores=data.get("by_scores", False),
        )

    def figure(self, name: str) -> float:
        """Return the value of one figure."""
        return next(f.value for f in self.figures if f.name == name)


_counted: dict[str, tuple[int, GraphCosts]] = {}  # budgets change, what a graph counts does not


def weigh(spec: StudentSpec, costing: Costing) -> Candidate:
    """Cost one spec; a second time, on another device or within other limits, takes no export."""
    key = repr((spec, costing.precision, costing.meta, costing.exits, costing.taps))
    if key in _counted and not needs_timing(costing):
        parameters, counted = _counted[key]
        return _judged(spec, parameters, counted, figures_on(counted, costing), costing)
    candidate = weighed(spec, stand_in(spec), costing)
    assert candidate.counted is not None
    _counted[key] = candidate.parameters, candidate.counted
    return candidate


def weighed(spec: StudentSpec, network: nn.Module, costing: Costing) -> Candidate:
    """Cost one network, which `spec` describes."""
    counted, figures = cost_of(network, costing)
    return _judged(spec, sum(p.numel() for p in network.parameters()), counted, figures, costing)


def _judged(
    spec: StudentSpec, parameters: int, counted: GraphCosts, figures: tuple[Measurement, ...],
    costing: Costing,
) -> Candidate:  # fmt: skip
    return Candidate(
        spec=spec,
        parameters=parameters,
        figures=figures,
        missed=missed_limits(figures, costing.limits),
        counted=counted,
    )


def stand_in(spec: StudentSpec) -> nn.Module:
    """Build an untrained network that costs what the trained one will."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = spec.build()
        shake(network)
    return network


def shaken(network: nn.Module) -> nn.Module:
    """Return a copy of an untrained network that costs what the trained one will."""
    made = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shake(made)
    return made
