"""The layers of a slice, fitted one after another to what the same layers of the whole say.

A layer of a slice reads less than it did: fewer channels, which themselves read less. In one pass
over some examples each layer, in the order in which they run, is moved by the ridge regression of
what the whole network's layer says (those of its outputs that stayed) on what the slice's layer
reads by now, before it says anything itself. A layer that writes to a residual sum aims at the
whole's sum, behind any blocks that went, and so makes up for what was lost before and for them.
Statistics of norms then still hold. Nothing is learned by gradients.
Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017),
section 3, there for the weights that read pruned channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tutelage.least_squares import ridge_solution
from tutelage.passes import in_half

_RIDGE = 0.01  # times the mean square of what a layer reads
_SAMPLES = 12_288  # places of all examples' maps or tokens that a layer is fitted to
_NUMBERS = 1 << 26  # of all examples in the largest map, at most
_AT_ONCE = 32  # examples that the whole is asked about: larger batches leave the caches
_DEAD = 1e-3  # of a norm's largest factor: a channel under it says nothing that could be fitted
_SAME = 1e-5  # of the largest that is said: rounding
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a layer of a slice is to say: what module `of` of the whole says, of these `outputs`.

    Where the layer writes to a sum, `of` says the sum, or reads it where `reads`, and the layer
    aims at what is missing of it: `norm` is the slice's batch norm behind the layer, `rest` its
    module that reads what else is in the sum (or, where `said`, says it), `through` the one that
    this goes through.
    """

    outputs: Int[Tensor, " k"]
    of: str
    reads: bool = False
    norm: str | None = None
    rest: str | None = None
    said: bool = False
    through: str | None = None


Aims = Mapping[str, Aim]


def own(kept: Mapping[str, Int[Tensor, " k"]]) -> dict[str, Aim]:
    """Return the aims of layers that are to say what the whole's ones of the same name say."""
    return {name: Aim(outputs=outputs, of=name) for name, outputs in kept.items()}


@torch.no_grad()
def fit(
    small: nn.Module, whole: nn.Module, aims: Aims, inputs: Tensor, *,
    counts: Bool[Tensor, "b t"] | None = None, half: bool = False,
) -> None:  # fmt: skip
    """Move the layers of `small`, a slice of `whole`, towards their aims, in place.

    `aims` are by the names of convolutions and linear layers of the slice. Some hundreds of
    `inputs` do; of large maps fewer are taken, and more of each. `counts` says which tokens of them
    count, where some are pads. Convolutions that pad with other than zeros stay as they are. Both
    are asked in eval mode, in which `small` is left; the whole in bfloat16 where `half`, and where
    the processor has it.
    """
    aims = {name: aim for name, aim in aims.items() if _covered(small.get_submodule(name))}
    fitting, training = _Fitting(small.eval(), aims), whole.training
    whole.eval()
    every = -(-len(inputs) * _largest(whole, aims.values(), inputs[:1]) // _NUMBERS)
    inputs, counts = inputs[::every], None if counts is None else counts[::every]
    with in_half(whole, half):
        fitting.ask(whole, inputs, counts)
    whole.train(training)
    fitting.move(inputs)


def _covered(layer: Any) -> bool:
    padded = isinstance(layer, _CONVOLUTIONS) and isinstance(layer.padding, str)
    return not padded and getattr(layer, "padding_mode", "zeros") == "zeros"


def _largest(network: nn.Module, aims: Iterable[Aim], example: Tensor) -> int:
    """Return the most numbers that one of the modules aimed at reads or says of an example."""
    sizes = [1]
    with ExitStack() as hooks:
        for aim in aims:
            hook = network.get_submodule(aim.of).register_forward_hook(
                lambda _, given, said: sizes.extend((given[0].numel(), said.numel()))
            )
            hooks.callback(hook.remove)
        network(example)
    return max(sizes)


class _Fitting:
    """Knows what each layer is to say, at which places, and moves it when it is about to."""

    def __init__(self, small: nn.Module, aims: Aims) -> None:
        self._small, self._aims = small, aims
        self._places: dict[str, Int[Tensor, "b p"]] = {}
        self._wanted: dict[str, Float[Tensor, "n out"]] = {}
        self._rest: dict[str, Tensor] = {}

    def ask(self, whole: nn.Module, inputs: Tensor, counts: Tensor | None) -> None:
        """Note what the whole says at some places."""
        draw, begin = torch.Generator().manual_seed(0), 0
        parts: dict[str, list[Tensor]] = {name: [] for name in self._aims}

        def note(name: str, said: Tensor) -> None:
            aim = self._aims[name]
            said = self._by_place(name, said)
            if name not in self._places:
                drawn = _places(len(inputs), said.shape[2], counts, draw)
                self._places[name] = drawn.to(said.device)
            places = self._places[name][begin : begin + len(said)]
            parts[name].append(_at(said[:, aim.outputs.to(said.device)], places).float())

        with ExitStack() as hooks:
            for name, aim in self._aims.items():
                hooks.callback(_listen(whole, aim.of, aim.reads, partial(note, name)))
            for part in inputs.split(_AT_ONCE):
                whole(part)
                begin += len(part)
        self._wanted = {name: torch.cat(said) for name, said in parts.items()}

    def move(self, inputs: Tensor) -> None:
        """Run the slice; each layer moves before it says anything."""
        with ExitStack() as hooks:
            for name, aim in self._aims.items():
                if aim.rest is not None:
                    note = partial(self._rest.__setitem__, name)
                    hooks.callback(_listen(self._small, aim.rest, not aim.said, note))
                hooks.callback(_listen(self._small, name, True, partial(self._fit, name)))
            self._small(inputs)

    def _fit(self, name: str, given: Tensor) -> None:
        if name not in self._wanted:  # a shortcut, once for the sum that it is part of
            return
        aim, wanted = self._aims[name], self._wanted.pop(name)
        layer, places = self._small.get_submodule(name), self._places[name]
        if aim.rest is not None:
            rest = self._rest.pop(name)
            rest = rest if aim.through is None else self._small.get_submodule(aim.through)(rest)
            wanted = wanted - _at(self._by_place(name, rest), places)
        alive = None
        if aim.norm is not None:
            wanted, alive = _before_norm(self._small.get_submodule(aim.norm), wanted)
        _move(layer, _inputs(layer, given, places), wanted, alive)

    def _by_place(self, name: str, said: Tensor) -> Float[Tensor, "b c l"]:
        """Return what is said where a layer speaks, by channel and place or token."""
        return _by_place(self._small.get_submodule(name), said)


def _listen(
    network: nn.Module, name: str, reads: bool, hear: Callable[[Tensor], None]
) -> Callable[[], None]:
    """Let `hear` be told what a module reads first, or says; return what ends that."""
    module = network.get_submodule(name)
    if reads:
        return module.register_forward_pre_hook(lambda _, given: hear(given[0])).remove

    def after(_: nn.Module, __: Any, said: Tensor) -> None:
        hear(said)

    return module.register_forward_hook(after).remove


def _places(
    examples: int, length: int, counts: Bool[Tensor, "b l"] | None, draw: torch.Generator
) -> Int[Tensor, "b p"]:
    """Draw places of the `length` at which a layer speaks of each example."""
    number = min(length, -(-_SAMPLES // examples))
    if counts is None or length != counts.shape[1]:
        return torch.randint(length, (examples, number), generator=draw)
    likely = counts.cpu().float()
    likely[likely.sum(dim=1) == 0] = 1.0  # a text of nothing but pads
    return torch.multinomial(likely, number, replacement=True, generator=draw)


def _by_place(layer: nn.Module, said: Tensor) -> Float[Tensor, "b c l"]:
    """Return by channel and place what a convolution or, token by token, a linear layer says."""
    if isinstance(layer, _CONVOLUTIONS):
        return said.flatten(2)
    return said.reshape(len(said), -1, said.shape[-1]).transpose(1, 2)


def _at(said: Float[Tensor, "b c l"], places: Int[Tensor, "b p"]) -> Float[Tensor, "n c"]:
    index = places[:, None].expand(-1, said.shape[1], -1)
    return said.gather(2, index).transpose(1, 2).flatten(0, 1)


def _inputs(layer: Any, given: Tensor, places: Tensor) -> Float[Tensor, "groups n f"]:
    """Return what each group of a layer's outputs reads at these places."""
    if not isinstance(layer, _CONVOLUTIONS):
        return _at(_by_place(layer, given), places)[None]
    given = given[:, :, None] if isinstance(layer, nn.Conv1d) else given
    geometry: Any = layer
    kernel, dilation, padding, stride = (
        (*[default] * (2 - len(size)), *size)
        for size, default in (
            (geometry.kernel_size, 1), (geometry.dilation, 1), (geometry.padding, 0),
            (geometry.stride, 1),
        )
    )  # fmt: skip
    padded = F.pad(given, (padding[1], padding[1], padding[0], padding[0]))
    padded = padded.permute(0, 2, 3, 1).contiguous()  # rows of channels are read at once
    sizes = [
        (size - spread * (width - 1) - 1) // step + 1
        for size, spread, width, step in zip(
            padded.shape[1:3], dilation, kernel, stride, strict=True
        )
    ]
    each, *axes, one = padded.stride()
    windows = padded.as_strided(
        (len(padded), *sizes, *kernel, padded.shape[3]),
        (each, *map(mul, axes, stride), *map(mul, axes, dilation), one),
    )
    of = torch.arange(len(places), device=places.device)[:, None].expand_as(places)
    read = windows[of, places // sizes[1], places % sizes[1]].flatten(0, 1)
    read = read.permute(0, 3, 1, 2).flatten(1)
    return read.unflatten(1, (geometry.groups, -1)).transpose(0, 1)


def _before_norm(norm: Any, said: Float[Tensor, "n c"]) -> tuple[Tensor, Bool[Tensor, " c"]]:
    """Return what a batch norm is to read so that it says this, and for which channels it can."""
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    alive = factor.abs() > _DEAD * factor.abs().max()
    return (said - norm.bias) / torch.where(alive, factor, 1.0) + norm.running_mean, alive


def _move(
    layer: Any, read: Float[Tensor, "groups n f"], wanted: Float[Tensor, "n out"],
    alive: Bool[Tensor, " out"] | None,
) -> None:  # fmt: skip
    """Move a layer's weights from where they are to where they say what is wanted."""
    bias = 0.0 if layer.bias is None else layer.bias
    weights = layer.weight.flatten(1).unflatten(0, (len(read), -1))
    aims = (wanted - bias).unflatten(1, (len(read), -1)).transpose(0, 1)
    missing = aims - read @ weights.transpose(1, 2)
    if missing.abs().max() <= _SAME * aims.abs().max():
        return  # the layer reads what the whole's does
    gram, cross = read.transpose(1, 2) @ read, read.transpose(1, 2) @ missing
    moved = ridge_solution(gram, cross, _RIDGE).transpose(1, 2).reshape(layer.weight.shape)
    if alive is not None:
        moved[~alive] = 0.0
    layer.weight.add_(moved)
