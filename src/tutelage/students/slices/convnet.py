"""The built-in convolutional networks with fewer channels and blocks; again of their own family.

Covers images and series, plain and depthwise blocks; not inception blocks.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices.channels import Slicing, choosing, cut, even_share, least_missed
from tutelage.students.slices.fitting import fit

Staged = TypeVar("Staged", ConvNet, ConvNet1d)


def is_part(spec: ConvNetSpec | ConvNet1dSpec, whole: ConvNetSpec | ConvNet1dSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    if type(spec) is not type(whole) or spec.block == "inception":
        return False
    if len(spec.widths) != len(whole.widths):
        return False
    same = dataclasses.replace(whole, widths=spec.widths, depths=spec.depths) == spec
    sizes = zip(spec.widths + spec.depths, whole.widths + whole.depths, strict=True)
    return same and all(own <= there for own, there in sizes)


def slice_convnet(
    network: Staged, spec: ConvNetSpec | ConvNet1dSpec, inputs: Float[Tensor, "b c ..."],
    *, fitted: bool = False,
) -> Staged:  # fmt: skip
    """Return a network of `spec` that starts with this one's weights, in eval mode.

    `spec` is part of the network's own (see `is_part`). Blocks go first, then channels (see
    `channels.importance`); what stays is copied as it is, statistics of the norms included. Raises
    `StudentError` where that is impossible. `fitted`: layers are then fitted to the network's.
    """
    some = choosing(inputs)
    fewer = without_blocks(network, spec.depths, some)
    wanted: Any = type(network)(spec)  # pyright: ignore[reportArgumentType]
    small, kept = cut(fewer, some, lambda n, _: len(wanted.get_parameter(f"{n}.weight")))
    wanted.load_state_dict(small.state_dict())
    wanted.eval()
    if fitted:
        fit(wanted, fewer, kept, inputs)
    return wanted


def without_blocks(
    network: Staged, depths: tuple[int, ...], inputs: Float[Tensor, "b c ..."]
) -> Staged:
    """Return a copy with `depths[i]` blocks in stage `i`, in eval mode.

    One block goes at a time: the one without which the decision changes least (mean KL;
    squared, for a single output). A block that changes shapes stays.
    """
    small = copy.deepcopy(network).eval()
    if depths == network.spec.depths:
        return small
    with torch.no_grad():
        own = small(inputs)
        for number, depth in enumerate(depths):
            while len(small.stages[number]) > depth:  # pyright: ignore[reportArgumentType]
                _drop_one(small, number, own, inputs)
    small.spec = dataclasses.replace(network.spec, depths=depths)  # pyright: ignore
    return small


def _drop_one(small: ConvNet | ConvNet1d, number: int, own: Tensor, inputs: Tensor) -> None:
    """Take the least missed block out of stage `number`, in place."""
    blocks = list(small.stages[number].children())
    rests = [
        nn.Sequential(*blocks[:i], *blocks[i + 1 :])
        for i, block in enumerate(blocks)
        if getattr(block, "same", False)
        or isinstance(getattr(block, "shortcut", None), nn.Identity)
    ]

    def said(rest: nn.Sequential) -> Tensor:
        small.stages[number] = rest
        return small(inputs)

    small.stages[number] = least_missed(rests, said, own)


def narrower(
    spec: ConvNetSpec | ConvNet1dSpec, share: float
) -> ConvNetSpec | ConvNet1dSpec:  # fmt: skip
    """Return the spec with about a share of the channels, the same in every stage."""
    return dataclasses.replace(spec, widths=tuple(even_share(w, share) for w in spec.widths))


def shallower(spec: Any) -> tuple[Any, ...]:
    """Return the spec, then with one block fewer in each stage that has several, down to one."""
    found = [spec]
    while max(spec.depths) > 1:
        spec = dataclasses.replace(spec, depths=tuple(max(1, d - 1) for d in spec.depths))
        found.append(spec)
    return tuple(found)


def sizes(spec: ConvNetSpec | ConvNet1dSpec) -> tuple[tuple[int, ...], ...]:
    """Return the widths that each stage may take alone: even ones, and its own.

    Within a stage channels go together through the residual sums; between stages a convolution
    with a stride always stands, so that no width binds another.
    """
    return tuple((*range(2, width, 2), width) for width in spec.widths)


def resized(
    spec: ConvNetSpec | ConvNet1dSpec, widths: tuple[int, ...]
) -> ConvNetSpec | ConvNet1dSpec:  # fmt: skip
    """Return the spec with these widths."""
    return dataclasses.replace(spec, widths=widths)


SLICING = Slicing(
    cut=slice_convnet,
    is_part=is_part,
    narrower=narrower,
    shallower=shallower,
    steps=lambda spec: max(spec.widths) // 2,
    sizes=sizes,
    resized=resized,
)
