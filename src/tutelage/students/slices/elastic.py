"""One network that holds many: its first channels are smaller networks of its family.

Channels are ordered by what the decision would miss, so that the first ones are the best to keep.
Covers the built-in convolutional families of images and series, plain, depthwise and separable
blocks; not inception blocks, whose channels lie side by side.
Widths alone are elastic: depths are the network's own.
Source: Yu and Huang, Universally slimmable networks (1903.05134).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from tutelage.errors import StudentError
from tutelage.students.families.convnet import ConvNetSpec
from tutelage.students.families.convnet1d import ConvNet1dSpec
from tutelage.students.slices.channels import channel_groups, even_share, moved, recalibrated
from tutelage.students.slices.convnet import is_part
from tutelage.students.slices.narrowing import SHARES, Narrowed
from tutelage.students.strided import sliced_strides

Spec = ConvNetSpec | ConvNet1dSpec


def ordered(network: nn.Module, inputs: Float[Tensor, "b ..."]) -> nn.Module:
    """Return a copy that decides the same, the most important channels of each layer first.

    `inputs` are some dozens of examples; channels that go together move together (see
    `channels.importance`). Raises `StudentError` where channels lie side by side.
    """
    found = copy.deepcopy(network).eval().requires_grad_(True)
    with torch.enable_grad():
        groups = list(channel_groups(found, inputs))
    with torch.no_grad():
        for scores, members in groups:
            order = scores.argsort(descending=True, stable=True)
            for module, axis in members:
                _reorder(module, axis, order)
    return found


def _reorder(module: nn.Module, axis: int, order: Tensor) -> None:
    """Reorder the outputs (axis 0) or inputs (axis 1) of a layer or norm, in place."""
    for tensor in module.state_dict().values():
        if tensor.dim() > axis:
            if tensor.shape[axis] != len(order):
                raise StudentError(
                    f"{type(module).__name__} joins channels side by side, and these cannot be "
                    "ordered. Choose student.space: compact"
                )
            tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))


def first_of(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of the first entries along every axis, as many as in `like`, name by name."""
    return {
        name: tensors[name][tuple(slice(n) for n in small.shape)] for name, small in like.items()
    }


def cut_of(network: Any, spec: Spec, inputs: Float[Tensor, "b ..."]) -> nn.Module:
    """Return the first channels as an ordinary network of `spec`, in eval mode.

    Its batch norms hold the statistics of `inputs`, training examples. Raises `StudentError` where
    `spec` is no part of the network's own.
    """
    if not is_part(spec, network.spec) or spec.depths != network.spec.depths:
        raise StudentError(f"a network of {network.spec} holds none of {spec}")
    small = type(network)(spec)
    small.load_state_dict(first_of(network.state_dict(), small.state_dict()))
    return recalibrated(small, inputs)


class Nested:
    """Calls a network as any of the smaller ones that it holds, in training mode.

    Gradients reach the network's own weights. Batch norms go by the batch alone, and the network's
    statistics stay as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._shells: dict[Any, nn.Module] = {}

    def __call__(self, spec: Spec, inputs: Float[Tensor, "b ..."]) -> Float[Tensor, "b k"]:
        """Return the logits of the network of `spec`."""
        shell = self._shells.get(spec)
        if shell is None:
            shell = self._shells[spec] = _shell(self._network, spec)
        own = dict(self._network.named_parameters())
        with sliced_strides([shell]):
            return functional_call(shell, first_of(own, dict(shell.named_parameters())), inputs)


def _shell(network: Any, spec: Spec) -> nn.Module:
    """Return a network of `spec` whose own numbers are never read; it lies where `network` does."""
    with torch.device("meta"):
        shell = type(network)(spec)
    for norm in shell.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return shell.to_empty(device=next(network.parameters()).device).train()


def smallest(spec: Spec, share: float) -> Spec:
    """Return the smallest network that is taught: about a share of every width."""
    return dataclasses.replace(spec, widths=tuple(even_share(w, share) for w in spec.widths))


def drawn(whole: Spec, least: Spec, random: np.random.Generator) -> Spec:
    """Return a network between the two, each width drawn by itself among even ones and its own."""
    widths = zip(least.widths, whole.widths, strict=True)
    between = [[n for n in range(few, most) if n % 2 == 0] + [most] for few, most in widths]
    return dataclasses.replace(whole, widths=tuple(int(random.choice(n)) for n in between))


def narrowed(
    network: Any, least: Spec, inputs: Float[Tensor, "b ..."], judged: Float[Tensor, "n ..."]
) -> Narrowed:
    """Score each stage of the network narrowed alone, down to the width of `least`.

    The network's own decision on `judged` is compared with that of each cut; `inputs` renew norms.
    """
    own: Spec = network.spec
    with torch.no_grad():
        said = recalibrated(network, inputs)(judged)
        widths, scores = [], []
        for stage, (few, most) in enumerate(zip(least.widths, own.widths, strict=True)):
            tried = sorted({few, most, *(even_share(most, share) for share in SHARES)})
            tried = [n for n in tried if n >= few]
            specs = [_with_width(own, stage, n) for n in tried]
            scores.append(tuple(moved(cut_of(network, s, inputs)(judged), said) for s in specs))
            widths.append(tuple(tried))
    return Narrowed(widths=tuple(widths), moved=tuple(scores))


def _with_width(spec: Spec, stage: int, width: int) -> Spec:
    widths = (*spec.widths[:stage], width, *spec.widths[stage + 1 :])
    return dataclasses.replace(spec, widths=widths)
