"""Which layer of a language model is missed least, without computing every network to its end.

Of each network without one more layer the tokens are passed some at a time, with the keys and
values of those before. KL is nowhere negative, so its sum over the tokens so far bounds the sum
over all: always the network with the smallest sum goes on, and the first to reach the end is the
one. What comes before a layer is computed once, and kept from step to step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.students.decoders.stack import Stack

_TOKENS, _TOKENS_GPU = 64, 1_024  # passed at once: fewer stop sooner, more are faster each


class Past:
    """Keys and values of the tokens so far, by layer; what transformers asks of a cache here."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Add those of further tokens and return all."""
        if layer in self.held:
            before = self.held[layer]
            keys, values = torch.cat([before[0], keys], -2), torch.cat([before[1], values], -2)
        self.held[layer] = keys, values
        return keys, values


@dataclass(slots=True, kw_only=True)
class _Piece:
    """Tokens `first` to `last` of some sequences, and what the whole network says after each.

    KL(p, q) = sum p log p - sum p z + (sum p) log sum exp z, of logits z. `known` is the first
    term, and `mass` the sum of p, which rounding leaves off 1: z is large.
    """

    group: _Group
    first: int
    last: int
    p: Float[Tensor, "n v"]
    known: Float[Tensor, " n"]
    mass: Float[Tensor, " n"]

    def kl(self, logits: Float[Tensor, "n v"]) -> float:
        """Return the sum over these tokens, in nats."""
        said = (self.p * logits).sum(-1)  # einsum adds one after another, and loses 1e-3
        return float((self.known - said + self.mass * logits.logsumexp(-1)).sum())


class _Group:
    """Some sequences, with the state before each layer that is left, [c, t, d]."""

    def __init__(self, decoder: Any, ids: Int[Tensor, "c t"]) -> None:
        self.stack, self.kept = Stack(decoder, ids), []
        self.before: list[Tensor] = []
        self.own = decoder.states(ids)

    def follow(self, kept: Sequence[int]) -> None:
        """Compute the states before the layers `kept`, from where they differ from the last."""
        same = 0
        while same < min(len(kept), len(self.kept)) and kept[same] == self.kept[same]:
            same += 1
        del self.before[same + 1 :]
        for place in range(len(self.before), len(kept)):
            state = self.before[-1] if place else self.stack.start
            self.before.append(self.stack.through([kept[place - 1]], state) if place else state)
        self.kept = list(kept)


@dataclass(order=True, slots=True)
class _Network:
    """One without the layer at `place` of those left: its KL over the pieces it went through."""

    total: float
    place: int
    done: int = field(default=0, compare=False)
    past: Past = field(default_factory=Past, compare=False)


class DepthSearch:
    """Finds the layer to drop, again and again, for the next tokens of `batches`."""

    @torch.no_grad()
    def __init__(
        self, decoder: Any, batches: Int[Tensor, "b t"], *, at_once: int | None = None
    ) -> None:
        on_cpu = batches.device.type == "cpu"
        size, length = at_once or (_TOKENS if on_cpu else _TOKENS_GPU), batches.shape[1]
        rows = max(1, size // length)
        width = min(length, max(1, size // rows))
        self.decoder, self.tokens = decoder, batches.numel()
        self.groups = [_Group(decoder, ids) for ids in batches.split(rows)]
        self.pieces = [
            self._piece(group, first, min(first + width, length))
            for group in self.groups
            for first in range(0, length, width)
        ]

    @torch.no_grad()
    def least_missed(self, kept: Sequence[int]) -> tuple[int, float]:
        """Return the place of the layer in `kept`, and the mean KL of a token without it, in nats.

        Of equals the first.
        """
        for group in self.groups:
            group.follow(kept)
        queue = [_Network(0.0, place) for place in range(len(kept))]
        while True:
            network = heapq.heappop(queue)
            if network.done == len(self.pieces):
                return network.place, network.total / self.tokens
            network.total += self._next(network, kept)
            heapq.heappush(queue, network)

    def _next(self, network: _Network, kept: Sequence[int]) -> float:
        """Pass the next piece through a network and return the KL over it."""
        piece = self.pieces[network.done]
        if piece.first == 0:
            network.past = Past()
        network.done += 1
        state = piece.group.before[network.place][:, piece.first : piece.last]
        rest = kept[network.place + 1 :]
        state = piece.group.stack.part_through(rest, state, piece.first, network.past)
        return piece.kl(self._logits(self.decoder.body.norm(state)))

    def _logits(self, states: Tensor) -> Tensor:
        return self.decoder.decision(states).flatten(0, -2).float()

    def _piece(self, group: _Group, first: int, last: int) -> _Piece:
        log_p = self._logits(group.own[:, first:last]).log_softmax(-1)
        p = log_p.exp()
        known = (p * log_p).sum(-1)
        return _Piece(group=group, first=first, last=last, p=p, known=known, mass=p.sum(-1))
