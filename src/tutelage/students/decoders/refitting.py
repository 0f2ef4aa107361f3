"""What a slice writes, fitted anew to the network it was cut from: least squares, layer by layer.

A cut takes with it what its units, heads and layers wrote. From the first layer to the last, the
slice's state (with all that was lost before) is brought near the state that the whole network has
at that place, behind the layers that went: first by the output projection of attention, then by the
down projection. Each moves by the ridge regression of what is missing on what it reads. Tokens
count by one over the mean square of their state, since what comes next reads its direction.
Source: layers of pruned convolutional networks are fitted so in He, Zhang and Sun, Channel Pruning
for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.least_squares import ridge_solution
from tutelage.progress import Progress, Silent, track
from tutelage.students.decoders.choice import in_parts
from tutelage.students.decoders.network import Decoder
from tutelage.students.decoders.stack import Stack

_RIDGE = 0.1  # times the mean square of what a projection reads
_SMALL = 1e-6

States = list[Float[Tensor, "b t d"]]


def can_refit(decoder: Decoder) -> bool:
    """Tell whether its projections write to the state itself, with no norm between."""
    return not any(hasattr(layer, "post_feedforward_layernorm") for layer in decoder.layers)


@torch.no_grad()
def refit(
    small: Decoder, whole: Decoder, batches: Int[Tensor, "b t"], *, ridge: float = _RIDGE,
    progress: Progress | None = None, label: str = "Fitting the slice anew",
) -> None:  # fmt: skip
    """Move the projections of `small`, a slice of `whole`, so that its states are near the whole's.

    `batches` are some thousand tokens or more, as both number them. With fewer tokens, or more
    `ridge`, projections stay nearer to what they are.
    """
    kept = [whole.origin.layers.index(layer) for layer in small.origin.layers]
    numbers = torch.tensor([whole.origin.numbers.index(n) for n in small.origin.numbers])
    parts = list(in_parts(batches))
    theirs, own = ([Stack(network, ids) for ids in parts] for network in (whole, small))
    wanted: States = [s.through(range(kept[0]), s.start) for s in theirs]
    states: States = [s.start for s in own]
    ends = [*kept[1:], whole.spec.layers]
    steps = enumerate(zip(kept, ends, strict=True))
    for place, (first, end) in track(steps, len(kept), label, progress or Silent()):
        between = [attended(s, first, x)[1] for s, x in zip(theirs, wanted, strict=True)]
        wanted = [
            s.through(range(first + 1, end), fed(s.layers[first], x)[1])
            for s, x in zip(theirs, between, strict=True)
        ]
        layer = small.layers[place]
        for projection, pass_on, target in (
            (layer.self_attn.o_proj, lambda s, x, n=place: attended(s, n, x), between),
            (layer.mlp.down_proj, lambda s, x, n=place: fed(s.layers[n], x), wanted),
        ):
            aims = [x[..., numbers] for x in target]
            states = _fitted(projection, pass_on, own, states, aims, ridge)


def _fitted(
    projection: nn.Linear, pass_on: Callable[[Stack, Tensor], tuple[Tensor, Tensor]],
    stacks: list[Stack], states: States, aims: States, ridge: float,
) -> States:  # fmt: skip
    """Move one projection towards the aims; return the states behind it."""
    said = [pass_on(stack, state) for stack, state in zip(stacks, states, strict=True)]
    reads, device = projection.in_features, projection.weight.device
    gram = torch.zeros(reads, reads, device=device)
    cross = torch.zeros(reads, projection.out_features, device=device)
    for (read, state), aim in zip(said, aims, strict=True):
        weights = 1 / aim.square().mean(dim=-1, keepdim=True).clamp_min(_SMALL)
        weighed = (read * weights).flatten(0, 1)
        gram += weighed.T @ read.flatten(0, 1)
        cross += weighed.T @ (aim - state).flatten(0, 1)
    moved = ridge_solution(gram, cross, ridge)
    projection.weight += moved.T
    return [state + read @ moved for read, state in said]


def attended(stack: Stack, number: int, state: Float[Tensor, "b t d"]) -> tuple[Tensor, Tensor]:
    """Return what a layer's output projection reads, and the state behind attention."""
    layer = stack.layers[number]
    with _Reading(layer.self_attn.o_proj) as read:
        said = layer.self_attn(
            hidden_states=layer.input_layernorm(state), **stack.given[number]
        )[0]  # fmt: skip
    return read.what, state + said


def fed(layer: Any, state: Float[Tensor, "b t d"]) -> tuple[Tensor, Tensor]:
    """Return what a layer's down projection reads, and the state behind the layer."""
    with _Reading(layer.mlp.down_proj) as read:
        said = layer.mlp(layer.post_attention_layernorm(state))
    return read.what, state + said


class _Reading:
    """Notes what a projection is given."""

    def __init__(self, projection: nn.Module) -> None:
        self._projection, self.what = projection, torch.empty(0)

    def __enter__(self) -> _Reading:
        def note(_: Any, given: tuple[Tensor, ...]) -> None:
            self.what = given[0]

        self._hook = self._projection.register_forward_pre_hook(note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
