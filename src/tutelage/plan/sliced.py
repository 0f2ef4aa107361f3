"""The sliced space: the teacher with fewer channels and blocks, inside the limits.

Covers teachers of the built-in convolutional families, of images and series: a slice of one is
again of its family, and `spec.json` rebuilds it. It does not cover foreign networks, whose slices
no spec can name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from tutelage.errors import InfeasibleError
from tutelage.plan.candidate import Candidate, weigh
from tutelage.plan.costs import Costing
from tutelage.students.convnet import ConvNet, ConvNetSpec
from tutelage.students.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slice import even_share
from tutelage.students.spec import StudentSpec, sliced_from


def sliced(
    costing: Costing,
    *,
    family: str,
    teacher: ConvNet | ConvNet1d,
    inputs: Float[Tensor, "b c ..."],
    most_parameters: int,
    count: int,
) -> tuple[Candidate, ...]:
    """Return up to `count` slices of the teacher that keep every hard limit, most able first.

    For each of the teacher's depths, one block fewer a stage, and so on down to one block a stage,
    the widths are the largest share of the teacher's that fits, the same in all stages. Each holds
    the weights that it takes over; `inputs` choose them, and norms hold their statistics.
    Raises `InfeasibleError` where nothing fits.
    """
    own: Any = teacher.spec
    found = [widest_slice(family, spec, costing, most_parameters) for spec in shallower(own)]
    fit = sorted((c for c in found if c is not None), key=lambda c: -c.figure("macs"))
    if not fit:
        raise InfeasibleError(
            "no slice of the teacher, however narrow, keeps the limits. Choose student.space: "
            "compact, or raise the budget"
        )
    return tuple(
        dataclasses.replace(c, weights=dict(sliced_from(teacher, c.spec, inputs).state_dict()))
        for c in fit[:count]
    )


Spec = TypeVar("Spec", ConvNetSpec, ConvNet1dSpec)


def shallower(spec: Spec) -> Iterator[Spec]:
    """Yield the spec, then with one block fewer in each stage that has several, down to one."""
    yield spec
    while max(spec.depths) > 1:
        spec = dataclasses.replace(spec, depths=tuple(max(1, d - 1) for d in spec.depths))
        yield spec


def widest_slice(
    family: str, spec: ConvNetSpec | ConvNet1dSpec, costing: Costing, most_parameters: int
) -> Candidate | None:
    """Bisect the share of channels; cost grows with it. Return the widest that fits, or None."""
    known: dict[int, Candidate] = {}
    most = max(spec.widths) // 2

    def at(step: int) -> Candidate:
        if step not in known:
            share = min(1.0, step / most)
            widths = tuple(even_share(width, share) for width in spec.widths)
            knobs = dataclasses.replace(spec, widths=widths)
            known[step] = weigh(StudentSpec(family=family, knobs=knobs), costing)
        return known[step]

    def fits(step: int) -> bool:
        return not at(step).missed and at(step).parameters <= most_parameters

    low, high = 1, most + 1
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low)
