"""The layers of a language model one by one, with all they are given beside the state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BY_TOKEN = ("position_ids", "cache_position")  # what is given for each token, on its last axis


class Stack:
    """The layers of a network for one batch of tokens.

    Masks and positions are the network's own: they are noted as a pass goes by. `start` is the
    state before the first layer.
    """

    def __init__(self, decoder: Any, ids: Int[Tensor, "b t"]) -> None:
        self.layers: list[Any] = list(decoder.layers)
        self.given: list[dict[str, Any]] = []
        states: list[Tensor] = []

        def note(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            states.append(args[0] if args else options["hidden_states"])
            self.given.append({k: v for k, v in options.items() if k != "hidden_states"})

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(note, with_kwargs=True))
            decoder.states(ids)
        self.start = states[0]

    def through(self, numbers: Sequence[int], state: Float[Tensor, "b t d"]) -> Tensor:
        """Pass whole sequences through layers."""
        for number in numbers:
            state = _state(self.layers[number](state, **self.given[number]))
        return state

    def part_through(
        self, numbers: Sequence[int], state: Float[Tensor, "b c d"], first: int, past: Any
    ) -> Tensor:
        """Pass the tokens from `first` on through layers; `past` holds those before, and grows."""
        for number in numbers:
            given = part_of(self.given[number], first, state)
            state = _state(self.layers[number](state, **given, past_key_values=past))
        return state


def part_of(given: dict[str, Any], first: int, state: Float[Tensor, "b c d"]) -> dict[str, Any]:
    """Return what a layer is given for the tokens from `first` on, as many as `state` has.

    Without a mask each token sees those before it and itself.
    """
    last = first + state.shape[1]
    found = {k: v for k, v in given.items() if k not in ("past_key_values", "use_cache")}
    for name in _BY_TOKEN:
        if isinstance(found.get(name), Tensor):
            found[name] = found[name][..., first:last]
    if found.get("position_embeddings") is not None:
        found["position_embeddings"] = tuple(
            x[..., first:last, :] for x in found["position_embeddings"]
        )
    mask = found.get("attention_mask")
    if mask is None:
        seen = torch.ones(last - first, last, dtype=torch.bool, device=state.device)
        found["attention_mask"] = seen.tril(first)[None, None]
    else:
        found["attention_mask"] = mask[..., first:last, :last]
    return found


def _state(said: Any) -> Tensor:
    return said[0] if isinstance(said, tuple) else said
