"""Projectors: linear maps from what a student's tap reads to the width of a teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import RecipeError
from tutelage.losses.base import Loss

Pairs = tuple[tuple[int, int], ...]
Projections = Sequence[tuple[Tensor, Tensor]]  # weight and bias, one of each a pair


def projectors(
    losses: tuple[Loss, ...], pairs: Pairs, student_widths: tuple[int, ...],
    teacher_widths: tuple[int, ...], projections: Projections, seed: int,
) -> nn.ModuleDict:  # fmt: skip
    """Return the projectors of each loss that has some, one a pair.

    Those of features begin as `projections` where they are given; all others are drawn from `seed`.
    Raises `RecipeError` where a tap of a pair is not there.
    """
    draw = torch.Generator().manual_seed(seed)
    found = nn.ModuleDict()
    for entry in losses:
        if not entry.projector:
            continue
        layers = nn.ModuleList()
        for number, pair in enumerate(pairs):
            check_pair(entry.name, pair, len(student_widths), len(teacher_widths))
            begins = projections[number] if projections and entry.reads == "features" else None
            widths = student_widths[pair[0]], teacher_widths[pair[1]]
            layers.append(_projector(*widths, begins, draw))
        found[entry.name] = layers
    return found


def _projector(
    given: int, wanted: int, begins: tuple[Tensor, Tensor] | None, draw: torch.Generator
) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, given, wanted)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    with torch.no_grad():
        if begins is None:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=draw)
            bias.zero_()
        else:
            weight.copy_(begins[0])
            bias.copy_(begins[1])
    return layer


def check_pair(name: str, pair: tuple[int, int], student_taps: int, teacher_taps: int) -> None:
    """Raise `RecipeError` where a tap of a pair is not there."""
    if not (0 <= pair[0] < student_taps and 0 <= pair[1] < teacher_taps):
        raise RecipeError(
            f"loss '{name}' pairs student tap {pair[0]} with teacher tap {pair[1]}, but the "
            f"student has {student_taps} taps and the teacher {teacher_taps}: correct the pairing"
        )
