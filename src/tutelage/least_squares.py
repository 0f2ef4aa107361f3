"""Ridge regression: from examples, or from sums over them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_SMALL = 1e-8


def ridge_solution(
    gram: Float[Tensor, "*g f f"], cross: Float[Tensor, "*g f out"], ridge: float
) -> Float[Tensor, "*g f out"]:
    """Return the weights W for which W' x is nearest to y, of each group.

    `gram` is the sum of x x' over examples, and is changed; `cross` that of x y'. `ridge` counts in
    mean squares of what is read: it is added to the diagonal, times the diagonal's mean.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += ridge * diagonal.mean(dim=-1, keepdim=True) + _SMALL
    return torch.linalg.solve(gram, cross)


def affine_fit(
    given: Float[Tensor, "n f"], wanted: Float[Tensor, "n out"], ridge: float
) -> tuple[Float[Tensor, "out f"], Float[Tensor, " out"]]:
    """Return weight and bias of the linear map that comes nearest to `wanted`, in single precision.

    The bias is free; `ridge` counts as in `ridge_solution`, in variances of what is given.
    """
    x, y = given.double(), wanted.double()
    mean, level = x.mean(0), y.mean(0)
    x = x - mean
    weight = ridge_solution(x.T @ x, x.T @ (y - level), ridge).T
    return weight.float(), (level - weight @ mean).float()
