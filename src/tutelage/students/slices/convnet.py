"""The built-in convolutional networks with fewer channels and blocks; again of their own family.

Covers images and series, plain and depthwise blocks; not inception blocks.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1d, ConvNet1dSpec
from tutelage.students.slices.channels import (
    Slicing,
    choosing,
    cut,
    even_share,
    least_missed,
    remembered,
)
from tutelage.students.slices.fitting import Aim, fit, own
from tutelage.students.slices.rescale import neighbours, rescale

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
    `StudentError` where that is impossible. `fitted`: layers are then fitted to the network's, and
    filters scaled to the size that a lesson is made for.
    """
    some = choosing(inputs)
    blocks = remembered(network, spec.depths, lambda: blocks_that_stay(network, spec.depths, some))
    fewer = with_blocks(network, blocks)
    wanted: Any = type(network)(spec)  # pyright: ignore[reportArgumentType]
    small, kept = cut(fewer, some, lambda n, _: len(wanted.get_parameter(f"{n}.weight")))
    wanted.load_state_dict(small.state_dict())
    wanted.eval()
    if fitted:
        fit(wanted, network, _aims(network, kept, blocks), inputs)
        rescale(neighbours(wanted))
    return wanted


Blocks = tuple[tuple[int, ...], ...]  # which of a network's blocks each stage has


def blocks_that_stay(
    network: Staged, depths: tuple[int, ...], inputs: Float[Tensor, "b c ..."]
) -> Blocks:
    """Return which blocks stay where stage `i` keeps `depths[i]` of them.

    One block goes at a time: the one without which the decision changes least (mean KL;
    squared, for a single output). A block that changes shapes stays.
    """
    left = tuple(tuple(range(depth)) for depth in network.spec.depths)
    if depths == network.spec.depths:
        return left
    with torch.no_grad():
        decision = with_blocks(network, left)(inputs)
        for number, depth in enumerate(depths):
            while len(left[number]) > depth:
                rests = [
                    (
                        *left[:number],
                        tuple(b for b in left[number] if b != gone),
                        *left[number + 1 :],
                    )
                    for gone in left[number]
                    if _is_spare(network.stages[number][gone])  # pyright: ignore
                ]
                said = lambda rest: with_blocks(network, rest)(inputs)  # noqa: E731
                left = least_missed(rests, said, decision)
    return left


def _is_spare(block: nn.Module) -> bool:
    same, shortcut = getattr(block, "same", False), getattr(block, "shortcut", None)
    return same or isinstance(shortcut, nn.Identity)


def with_blocks(network: Staged, blocks: Blocks) -> Staged:
    """Return a copy with these blocks alone, in eval mode."""
    small: Any = copy.deepcopy(network).eval()
    for number, left in enumerate(blocks):
        small.stages[number] = nn.Sequential(*(small.stages[number][block] for block in left))
    small.spec = dataclasses.replace(network.spec, depths=tuple(map(len, blocks)))
    return small


def _aims(network: Staged, kept: dict[str, Int[Tensor, " k"]], blocks: Blocks) -> dict[str, Aim]:
    """Return what the layers of a slice with these blocks are to say.

    The last of a block aims at the network's sum, behind the blocks that went.
    """
    found = own({name: outputs for name, outputs in kept.items() if "stages." not in name})
    for number, left in enumerate(blocks):
        ends = (*left[1:], network.spec.depths[number])
        if left[0] > 0:  # the stem makes up for the blocks before the first that stays
            found["stem.0"] = Aim(
                outputs=kept["stem.0"], norm="stem.1", **_sum_of(network, number, left[0] - 1)
            )
        for place, (block, end) in enumerate(zip(left, ends, strict=True)):
            here, there = f"stages.{number}.{place}", f"stages.{number}.{block}"
            inside = {n: k for n, k in kept.items() if n.startswith(f"{here}.")}
            found |= {n: Aim(outputs=k, of=n.replace(here, there, 1)) for n, k in inside.items()}
            last, rest = _last_of(network.get_submodule(there), here)
            found[f"{last}.0"] = Aim(
                outputs=kept[f"{last}.0"], norm=f"{last}.1", **rest,
                **_sum_of(network, number, end - 1),
            )  # fmt: skip
    return found


def _sum_of(network: Staged, stage: int, block: int) -> dict[str, Any]:
    """Return where a block's sum is read or said."""
    name = f"stages.{stage}.{block}"
    reads = hasattr(network.get_submodule(name), "relu")
    return {"of": f"{name}.relu" if reads else name, "reads": reads}


def _last_of(block: nn.Module, name: str) -> tuple[str, dict[str, str]]:
    """Return a block's last convolution with its norm, and what else its sum is made of."""
    last = next(n for n in ("second", "project", "pointwise") if hasattr(block, n))
    rest: dict[str, str] = {}
    if hasattr(block, "shortcut"):
        rest = {"rest": name, "through": f"{name}.shortcut"}
    elif getattr(block, "same", False):
        rest = {"rest": name}
    return f"{name}.{last}", rest


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
