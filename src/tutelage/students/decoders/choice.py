"""What a language model can spare: layers judged on the whole network, units and groups by energy.

A layer's importance taken alone says little once others are gone, so layers go one at a time, and
those that are left are judged anew after each: by the KL divergence of every next token from what
the whole network says. Units of the feed-forward parts and groups of query heads are many; they are
ranked within their layer by what they write (see `energies`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import StudentError
from tutelage.students.decoders.depth_search import DepthSearch
from tutelage.students.decoders.network import Decoder
from tutelage.students.decoders.stack import Stack

_TOKENS = 1_024  # passed at once: their logits over a whole vocabulary are in memory twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Which layers stay, in order, and the mean KL of a token from the whole network, in nats."""

    kept: tuple[int, ...]
    kl: float


def depths_by_kl(
    decoder: Decoder, batches: Int[Tensor, "b t"], *, least: int, kept: Sequence[int] | None = None
) -> Iterator[Depth]:
    """Yield the best depths found as they are, with a layer fewer each, down to `least`.

    The first is the whole network; a search that stopped goes on from the layers `kept`. Each time
    the layer goes without which the next tokens of `batches` change least; of equals the first
    (see `DepthSearch`). Nothing is trained, and the decoder stays as it is.
    """
    count = len(decoder.layers)
    if not 1 <= least <= count:
        raise StudentError(f"{least} layers cannot be kept of {count}; keep 1 to {count}")
    return _depths(decoder, batches, least, tuple(range(count) if kept is None else kept))


def _depths(
    decoder: Decoder, batches: Int[Tensor, "b t"], least: int, kept: tuple[int, ...]
) -> Iterator[Depth]:
    if len(kept) == len(decoder.layers):
        yield Depth(kept=kept, kl=0.0)
    search = DepthSearch(decoder, batches) if len(kept) > least else None
    while search is not None and len(kept) > least:
        gone, kl = search.least_missed(kept)
        kept = kept[:gone] + kept[gone + 1 :]
        yield Depth(kept=kept, kl=kl)


@torch.no_grad()
def changes_without(
    decoder: Decoder, batches: Int[Tensor, "b t"], kept: Sequence[int]
) -> list[float]:
    """Return, for each layer of `kept`, the mean KL of a token, in nats, where it goes too."""
    sums = [0.0] * len(kept)
    for ids in in_parts(batches):
        stack = Stack(decoder, ids)
        own = decoder.decision(decoder.states(ids)).log_softmax(-1)
        state = stack.start
        for place, layer in enumerate(kept):
            rest = stack.through(kept[place + 1 :], state)
            said = decoder.decision(decoder.body.norm(rest)).log_softmax(-1)
            sums[place] += float((own.exp() * (own - said)).sum())
            state = stack.through([layer], state)
    return [total / batches.numel() for total in sums]


def in_parts(batches: Int[Tensor, "b t"]) -> Iterator[Int[Tensor, "c t"]]:
    """Yield the sequences, about as many at once as hold a thousand tokens."""
    yield from batches.split(max(1, _TOKENS // batches.shape[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How much each group of query heads, and each unit, of every layer counts."""

    groups: Float[Tensor, "layers groups"]
    units: Float[Tensor, "layers inner"]


def energies(decoder: Decoder, batches: Int[Tensor, "b t"]) -> Parts:
    """Return the mean square of what each part adds to the state of a token.

    Of a unit that is its mean squared activation times the squared norm of its column of the down
    projection.
    """
    spec = decoder.spec
    groups = torch.zeros(spec.layers, spec.groups)
    units = torch.zeros(spec.layers, spec.inner)

    def of_groups(number: int, weight: Tensor, said: Tensor) -> None:
        size = said.shape[-1] // spec.groups
        for group, (z, w) in enumerate(
            zip(said.split(size, -1), weight.split(size, 1), strict=True)
        ):
            groups[number, group] += (z @ w.T).square().sum().cpu()

    def of_units(number: int, weight: Tensor, said: Tensor) -> None:
        moved = said.square().sum(dim=(0, 1)) * weight.square().sum(dim=0)
        units[number] += moved.cpu()

    with ExitStack() as hooks, torch.no_grad():
        for number, layer in enumerate(decoder.layers):
            for module, note in (
                (layer.self_attn.o_proj, of_groups),
                (layer.mlp.down_proj, of_units),
            ):
                hooks.enter_context(
                    module.register_forward_pre_hook(
                        lambda m, given, n=number, note=note: note(n, m.weight, given[0])
                    )
                )
        for ids in in_parts(batches):
            decoder.states(ids)
    return Parts(groups=groups / batches.numel(), units=units / batches.numel())
