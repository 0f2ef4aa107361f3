"""The built-in convolutional network with fewer channels and blocks; again of its own family."""

from __future__ import annotations

import copy
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.losses.decision import kl
from tutelage.students.convnet import ConvNet, ConvNetSpec
from tutelage.students.slice import cut


def slice_convnet(network: ConvNet, spec: ConvNetSpec, images: Float[Tensor, "b c h w"]) -> ConvNet:
    """Return a network of `spec` that starts with this one's weights, in eval mode.

    `spec` differs from the network's own in `widths` and `depths`, which are not larger. Blocks go
    first, then channels (see `slice.importance`); what stays is copied as it is, statistics of the
    norms included. Raises `StudentError` where that is impossible.
    """
    fewer = without_blocks(network, spec.depths, images)
    wanted = ConvNet(spec)
    small = cut(fewer, images, lambda name, _: len(wanted.get_parameter(f"{name}.weight")))
    wanted.load_state_dict(small.state_dict())
    return wanted.eval()


def without_blocks(
    network: ConvNet, depths: tuple[int, ...], images: Float[Tensor, "b c h w"]
) -> ConvNet:
    """Return a copy with `depths[i]` blocks in stage `i`, in eval mode.

    One block goes at a time: the one without which the decision changes least (mean KL;
    squared, for a single output). A block that changes shapes stays.
    """
    small = copy.deepcopy(network).eval()
    with torch.no_grad():
        own = small(images)
        for number, depth in enumerate(depths):
            while len(small.stages[number]) > depth:  # pyright: ignore[reportArgumentType]
                _drop_one(small, number, own, images)
    small.spec = dataclasses.replace(network.spec, depths=depths)
    return small


def _drop_one(small: ConvNet, number: int, own: Tensor, images: Tensor) -> None:
    """Take the least missed block out of stage `number`, in place."""
    blocks = list(small.stages[number].children())
    tried = []
    for i, block in enumerate(blocks):
        if getattr(block, "same", False) or isinstance(
            getattr(block, "shortcut", None), nn.Identity
        ):
            rest = nn.Sequential(*blocks[:i], *blocks[i + 1 :])
            small.stages[number] = rest
            tried.append((_change(small(images), own), i, rest))
    small.stages[number] = min(tried, key=lambda found: found[:2])[2]


def _change(said: Tensor, own: Tensor) -> float:
    """Return how far a decision is from the network's own, on average."""
    if own.shape[1] == 1:
        return float((said - own).square().mean())
    return float(kl(said, own, temperature=1.0).mean())
