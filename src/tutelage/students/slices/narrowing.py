"""What narrowing one stage of a network alone does to its decision: replace-one scores.

Covers families whose stages can be narrowed alone (`Slicing.sizes`). A score is of a slice that was
taught nothing, and says nothing of how stages narrowed together act on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.slices.channels import moved, remembering
from tutelage.students.spec import FAMILIES, StudentSpec, sliced_from

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """How far a teacher's decision moves where one stage alone is narrowed.

    `widths[i]` were tried for stage `i`, ascending; the last is its own. `moved[i]` has for each of
    them the mean KL of the teacher's decision to that of the narrowed network, in nats (of single
    values the mean square).
    """

    widths: tuple[tuple[int, ...], ...]
    moved: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"widths": [list(w) for w in self.widths], "moved": [list(m) for m in self.moved]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Narrowed:
        """Rebuild from `to_json`."""
        return cls(widths=tuple(map(tuple, data["widths"])), moved=tuple(map(tuple, data["moved"])))


def tried_widths(spec: StudentSpec) -> tuple[tuple[int, ...], ...]:
    """Return for each stage the widths nearest to `SHARES` of its own, ascending, and its own."""
    slicing = FAMILIES[spec.family].slicing
    assert slicing is not None and slicing.sizes is not None
    return tuple(
        tuple(sorted({min(sizes, key=lambda n: abs(n - share * sizes[-1])) for share in SHARES}
                     | {sizes[-1]}))
        for sizes in slicing.sizes(spec.knobs)
    )  # fmt: skip


def replace_one(
    teacher: nn.Module, spec: StudentSpec, inputs: Float[Tensor, "b ..."],
    judged: Float[Tensor, "n ..."], *, done: Callable[[], None] = lambda: None,
) -> Narrowed:  # fmt: skip
    """Score each stage of the teacher, at the depth of `spec`, at each of a few widths.

    `spec` is the teacher's own with fewer blocks, or with all. `inputs` choose the weights that
    stay and what they are fitted on, as for every slice (`sliced_from`); decisions are compared on
    `judged`. `done` is called after each width. After the block scores of Bercovich et al., Puzzle
    (2411.19146), of stages that keep the teacher's own weights.
    """
    slicing = FAMILIES[spec.family].slicing
    assert slicing is not None and slicing.sizes is not None and slicing.resized is not None
    own = _decisions(teacher, judged)

    def moved_by(knobs: Any) -> float:
        small = sliced_from(teacher, StudentSpec(family=spec.family, knobs=knobs), inputs)
        return moved(_decisions(small, judged), own)

    most = tuple(sizes[-1] for sizes in slicing.sizes(spec.knobs))
    widths, scores = tried_widths(spec), []
    with remembering():
        whole = moved_by(spec.knobs)
        for stage, tried in enumerate(widths):
            found = []
            for width in tried[:-1]:
                narrowed = (*most[:stage], width, *most[stage + 1 :])
                found.append(moved_by(slicing.resized(spec.knobs, narrowed)))
                done()
            scores.append((*found, whole))
    return Narrowed(widths=widths, moved=tuple(scores))


def _decisions(network: nn.Module, inputs: Tensor) -> Float[Tensor, "n k"]:
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part).float() for part in inputs.split(_BATCH)])
