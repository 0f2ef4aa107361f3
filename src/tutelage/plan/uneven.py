"""Slices whose stages each have a width of their own, chosen by what narrowing it was found to do.

The integer program (`plan.widths`) knows costs as fitted to some weighed networks, and none of peak
memory. What it chooses is weighed exactly, as every candidate is; what misses a limit is cut off
with all that is wider, since costs grow with widths, and the program is solved again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from tutelage.plan.candidate import Candidate, weigh
from tutelage.plan.costs import Costing
from tutelage.plan.widths import Chosen, Cost, Cut, Stage, choose, cut_off, fitted, stages_of
from tutelage.students.slices.channels import Slicing
from tutelage.students.slices.narrowing import Narrowed
from tutelage.students.spec import FAMILIES, StudentSpec

MOST_MISSES = 16
"""How often, of one depth, a choice may miss a limit before no further one is looked for."""


def uneven_slices(
    spec: StudentSpec, scores: Narrowed, costing: Costing, most_parameters: int, even: Candidate
) -> Iterator[Candidate]:
    """Yield slices of the depth of `spec` that keep every hard limit, the least moved first.

    `spec` has the teacher's own widths, `scores` are of its stages, and `even` is the widest slice
    with one share of all widths. Each is wider in some stage than that and than any before.
    """
    slicing = FAMILIES[spec.family].slicing
    assert slicing is not None and slicing.sizes is not None
    usual = widths_of(slicing, even.spec)
    stages = stages_of(scores.widths, scores.moved, slicing.sizes(spec.knobs), usual)
    search = _Search(
        spec=spec, slicing=slicing, stages=stages, costing=costing, most=most_parameters
    )
    search.known[usual] = even
    search.cuts.append(cut_off(stages, usual, "as narrow"))
    search.cuts += [
        cut_off(stages, w, "as wide") for w in _corners(stages) if not search.fits(w)
    ]  # fmt: skip
    misses = 0
    while misses < MOST_MISSES:
        widths = choose(stages, search.costs(), search.cuts)
        if widths is None:
            return
        if search.fits(widths):
            search.cuts.append(cut_off(stages, widths, "as narrow"))
            yield dataclasses.replace(search.at(widths), by_scores=True)
        else:
            search.cuts.append(cut_off(stages, widths, "as wide", search.at_fault(widths)))
            misses += 1


def widths_of(slicing: Slicing, spec: StudentSpec) -> Chosen:
    """Return the width of each stage."""
    assert slicing.sizes is not None
    return tuple(sizes[-1] for sizes in slicing.sizes(spec.knobs))


def _corners(stages: tuple[Stage, ...]) -> Iterator[Chosen]:
    """Yield the networks that costs are fitted to: enough for every term of the polynomial."""
    least, middle, most = (
        tuple(stage.widths[at(len(stage.widths))] for stage in stages)
        for at in (lambda _: 0, lambda n: n // 2, lambda n: n - 1)
    )
    yield from (least, middle, most)
    for i in range(len(stages)):
        for wide in (middle, most):
            yield (*least[:i], wide[i], *least[i + 1 :])
    for i in range(len(stages) - 1):
        yield (*least[:i], *most[i : i + 2], *least[i + 2 :])


@dataclass(slots=True, kw_only=True)
class _Search:
    spec: StudentSpec
    slicing: Slicing
    stages: tuple[Stage, ...]
    costing: Costing
    most: int
    known: dict[Chosen, Candidate] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)

    def at(self, widths: Chosen) -> Candidate:
        if widths not in self.known:
            assert self.slicing.resized is not None
            knobs = self.slicing.resized(self.spec.knobs, widths)
            spec = StudentSpec(family=self.spec.family, knobs=knobs)
            self.known[widths] = weigh(spec, self.costing)
        return self.known[widths]

    def fits(self, widths: Chosen) -> bool:
        candidate = self.at(widths)
        return not candidate.missed and candidate.parameters <= self.most

    def costs(self) -> list[Cost]:
        """Return the limits on what is a sum over operators, fitted to all that was weighed."""
        parameters = {w: float(c.parameters) for w, c in self.known.items()}
        found = [fitted(self.stages, parameters, float(self.most))]
        for limit in self.costing.limits:
            figures = {
                w: figure.value
                for w, candidate in self.known.items()
                for figure in candidate.figures
                if figure.name == limit.metric
            }
            if limit.hard and figures and limit.metric != "ram_bytes":
                found.append(fitted(self.stages, figures, limit.value))
        return found

    def at_fault(self, widths: Chosen) -> list[int]:
        """Return the stages whose widths alone, the others at their narrowest, miss a limit too.

        Looked for where memory is missed, of which a stage or two are the peak: all stages else.
        """
        every = list(range(len(self.stages)))
        if "ram_bytes" not in self.at(widths).missed:
            return every
        faulty = []
        for i in every:
            lower = (*widths[:i], self.stages[i].widths[0], *widths[i + 1 :])
            if self.fits(lower):
                faulty.append(i)
            else:
                widths = lower
        return faulty
