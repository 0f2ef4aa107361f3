"""The layers of a slice, fitted one after another to what the same layers of the whole say.

A layer of a slice reads less than it did: fewer channels, which themselves read less. In one pass
over some examples each layer, in the order in which they run, is moved by the ridge regression of
what the whole network's layer says (those of its outputs that stayed) on what the slice's layer
reads by now, before it says anything itself. Statistics of norms then still hold. Nothing is
learned by gradients.
Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017),
section 3, there for the weights that read pruned channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_RIDGE = 0.01  # times the mean square of what a layer reads
_SMALL = 1e-8
_SAMPLES = 24_576  # places of all examples' maps or tokens that a layer is fitted to
_NUMBERS = 1 << 26  # of all examples in the largest map, at most
_CHUNK = 16  # examples whose patches are in memory at once
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
Kept = Mapping[str, Int[Tensor, " k"]]


@torch.no_grad()
def fit(
    small: nn.Module, whole: nn.Module, kept: Kept, inputs: Tensor, *,
    counts: Bool[Tensor, "b t"] | None = None,
) -> None:  # fmt: skip
    """Move the layers of `small`, a slice of `whole` whose layers keep these outputs, in place.

    `kept` names convolutions and linear layers of both. Some hundreds of `inputs` do; of large
    maps fewer are taken, and more of each. `counts` says which tokens of them count, where some are
    pads. Convolutions that pad with other than zeros stay as they are.
    """
    kept = {name: rows for name, rows in kept.items() if _covered(whole.get_submodule(name))}
    layers = {name: small.get_submodule(name) for name in kept}
    every = -(-len(inputs) * _largest(whole, kept, inputs[:1]) // _NUMBERS)
    inputs, counts = inputs[::every], None if counts is None else counts[::every]
    places: dict[str, Tensor] = {}
    wanted = _wanted(whole, kept, inputs, counts, places)
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def before(layer: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                _move(layer, _read(layer, given[0], places[name]), wanted.pop(name))

            hooks.callback(layer.register_forward_pre_hook(before).remove)
        small(inputs)


def _covered(layer: Any) -> bool:
    padded = isinstance(layer, _CONVOLUTIONS) and isinstance(layer.padding, str)
    return not padded and getattr(layer, "padding_mode", "zeros") == "zeros"


def _largest(network: nn.Module, names: Iterable[str], example: Tensor) -> int:
    """Return the most numbers that one of the layers reads or says of an example."""
    sizes = [1]
    with ExitStack() as hooks:
        for name in names:
            hook = network.get_submodule(name).register_forward_hook(
                lambda _, given, said: sizes.extend((given[0].numel(), said.numel()))
            )
            hooks.callback(hook.remove)
        network(example)
    return max(sizes)


def _wanted(
    whole: nn.Module, kept: Kept, inputs: Tensor, counts: Tensor | None, places: dict[str, Tensor]
) -> dict[str, Float[Tensor, "n out"]]:
    """Return what the layers of the whole network say at some places; note which those are."""
    draw, wanted = torch.Generator().manual_seed(0), {}
    with ExitStack() as hooks:
        for name, outputs in kept.items():

            def after(
                layer: nn.Module, _: Any, said: Tensor, name: str = name, outputs: Tensor = outputs
            ) -> None:
                said = said.flatten(2) if isinstance(layer, _CONVOLUTIONS) else _by_token(said)
                places[name] = _places(said, counts, draw)
                wanted[name] = _at(said[:, outputs.to(said.device)], places[name])

            hooks.callback(whole.get_submodule(name).register_forward_hook(after).remove)
        whole(inputs)
    return wanted


def _places(
    said: Float[Tensor, "b c l"], counts: Bool[Tensor, "b l"] | None, draw: torch.Generator
) -> Int[Tensor, "b p"]:
    """Draw places of what a layer says of each example."""
    length = said.shape[2]
    number = min(length, -(-_SAMPLES // len(said)))
    if counts is None or length != counts.shape[1]:
        return torch.randint(length, (len(said), number), generator=draw).to(said.device)
    likely = counts.cpu().float()
    likely[likely.sum(dim=1) == 0] = 1.0  # a text of nothing but pads
    drawn = torch.multinomial(likely, number, replacement=True, generator=draw)
    return drawn.to(said.device)


def _by_token(said: Float[Tensor, "b *t c"]) -> Float[Tensor, "b c t"]:
    return said.reshape(len(said), -1, said.shape[-1]).transpose(1, 2)


def _at(said: Float[Tensor, "b c l"], places: Int[Tensor, "b p"]) -> Float[Tensor, "n c"]:
    index = places[:, None].expand(-1, said.shape[1], -1)
    return said.gather(2, index).transpose(1, 2).flatten(0, 1)


def _read(layer: nn.Module, given: Tensor, places: Tensor) -> Float[Tensor, "groups n f"]:
    """Return what each group of a layer's outputs reads at these places."""
    if not isinstance(layer, _CONVOLUTIONS):
        return _at(_by_token(given), places)[None]
    given = given[:, :, None] if isinstance(layer, nn.Conv1d) else given
    geometry: Any = layer
    kernel, dilation, padding, stride = (
        (*[default] * (2 - len(size)), *size)
        for size, default in (
            (geometry.kernel_size, 1), (geometry.dilation, 1), (geometry.padding, 0),
            (geometry.stride, 1),
        )
    )  # fmt: skip
    read = torch.cat(
        [
            _at(F.unfold(part, kernel, dilation, padding, stride), some)
            for part, some in zip(given.split(_CHUNK), places.split(_CHUNK), strict=True)
        ]
    )
    return read.unflatten(1, (geometry.groups, -1)).transpose(0, 1)


def _move(layer: Any, read: Float[Tensor, "groups n f"], wanted: Float[Tensor, "n out"]) -> None:
    """Move a layer's weights from where they are to where they say what is wanted."""
    bias = 0.0 if layer.bias is None else layer.bias
    weights = layer.weight.flatten(1).unflatten(0, (len(read), -1))
    aims = (wanted - bias).unflatten(1, (len(read), -1)).transpose(0, 1)
    missing = aims - read @ weights.transpose(1, 2)
    gram, cross = read.transpose(1, 2) @ read, read.transpose(1, 2) @ missing
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(dim=1) + _SMALL
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    moved = torch.linalg.solve(gram, cross).transpose(1, 2)
    layer.weight.add_(moved.reshape(layer.weight.shape))
