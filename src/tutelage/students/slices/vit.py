"""The built-in vision transformer with fewer layers, heads, inner units and numbers a token.

A convolutional stem follows: its widths hang on the numbers a token, and its channels go by the
Fisher information of their gates too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.students.families.vit import ViT, ViTSpec
from tutelage.students.slices import layers
from tutelage.students.slices.channels import choosing
from tutelage.students.slices.fitting import fit, own


def is_part(spec: ViTSpec, whole: ViTSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    sizes = {name: getattr(spec, name) for name in layers.SIZES}
    return dataclasses.replace(whole, **sizes) == spec and layers.is_smaller(spec, whole)


def slice_vit(
    network: ViT, spec: ViTSpec, images: Float[Tensor, "b c h w"], *, fitted: bool = False
) -> ViT:
    """Return a network of `spec`, part of this one's own, that starts with its weights.

    `fitted`: layers are then fitted to the network's.
    """
    some = choosing(images)
    left = layers.layers_that_stay(network, spec.layers, some)
    fewer = layers.with_layers(network, left)
    small = ViT(spec).eval()

    def place(gates: layers.Gates) -> None:
        for number, module in enumerate(fewer.stem):
            if isinstance(module, nn.ReLU):
                gates.after(module, f"stem.{number}")
        gates.before(fewer.stages[0], "stream")
        gates.of_layers(fewer.stages)

    information = layers.information(network, left, fewer, some, place)
    stay = layers.most(information["stream"], spec.hidden)
    with torch.no_grad():
        ends = _copy_stem(small.stem, fewer.stem, information, stay)
        small.positions.copy_(fewer.positions[:, stay])
        kept = layers.copy_layers(small.stages, fewer.stages, information, stay)
        layers.copy_norm(small.norm, fewer.norm, stay)
        layers.copy_linear(small.head, fewer.head, torch.arange(spec.classes), stay)
    if fitted:
        ends["head"] = torch.arange(spec.classes)
        aims = {**own(ends), **layers.aims_of_layers(network.stages, left, kept)}
        fit(small, network, aims, images, half=True)
    return small


def _copy_stem(
    to: nn.Sequential, of: nn.Sequential, information: dict[str, Tensor], stay: Int[Tensor, " k"]
) -> dict[str, Int[Tensor, " k"]]:
    """Fill the stem; return which channels each convolution keeps, by its name in the network."""
    outputs: dict[str, Tensor] = {f"stem.{len(to) - 1}": stay}
    *blocks, last = zip(to, of, strict=True)
    channels: Any = of[0].in_channels
    kept = read = torch.arange(channels)
    for number, (small, whole) in enumerate(blocks):
        if isinstance(whole, nn.Conv2d):  # its ReLU, two modules on, has the gate
            width: Any = small.out_channels
            kept = layers.most(information[f"stem.{number + 2}"], width)
            layers.copy_linear(small, whole, kept, read)
            read = outputs[f"stem.{number}"] = kept
        elif isinstance(whole, nn.BatchNorm2d):
            layers.copy_norm(small, whole, kept)
    layers.copy_linear(*last, stay, read)
    return outputs


SLICING = layers.slicing(slice_vit, is_part)
