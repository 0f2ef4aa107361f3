"""A language model with fewer numbers a token: which of them stay, in every layer alike.

All layers write to and read from the same numbers, so one choice holds for embedding, norms and
projections. A norm divides by the root mean square of what it is given, which is another one of
fewer numbers: its weights are scaled by what the two differ by, so that what stays leaves the norm
as large as before. Sizes of heads and everything between the projections stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import StudentError
from tutelage.students.decoders.choice import in_parts
from tutelage.students.decoders.network import Decoder, filled
from tutelage.students.decoders.sizes import with_sizes

_READ = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITE = ("o_proj", "down_proj")
_EMBEDDING, _LAST = "network.model.embed_tokens.weight", "network.model.norm.weight"
_EPS = 1e-12


def number_energies(decoder: Decoder, batches: Int[Tensor, "b t"]) -> Float[Tensor, " hidden"]:
    """Return the share of each number of a token in what is read of it, over all that reads it.

    Of one projection that is the number's mean square after the norm times the squared norm of its
    column, over the sum of these; the head is one more. Shares sum to 1.
    """
    found = torch.zeros(decoder.spec.hidden)
    squares: dict[int, Tensor] = {}
    readers = list(_readers(decoder))

    def note(number: int, read: Tensor) -> None:
        square = read.float().square().flatten(0, -2).sum(dim=0).cpu()
        squares[number] = squares.get(number, 0.0) + square

    with ExitStack() as hooks, torch.no_grad():
        for number, reader in enumerate(readers):
            hooks.enter_context(
                reader.register_forward_pre_hook(lambda _m, given, n=number: note(n, given[0]))
            )
        for ids in in_parts(batches):
            note(len(readers), decoder.states(ids))
    weights = [*(reader.weight for reader in readers), decoder.head]
    for number, weight in enumerate(weights):
        energy = squares[number] * weight.detach().float().square().sum(dim=0).cpu()
        found += energy / energy.sum().clamp(min=_EPS) / len(weights)
    return found


@torch.no_grad()
def with_numbers(
    decoder: Decoder, numbers: Int[Tensor, " kept"], batches: Int[Tensor, "b t"]
) -> Decoder:
    """Return a copy whose tokens have the `numbers` alone, rising; `batches` scale the norms.

    Raises `StudentError` for numbers that are not the network's, or a count that its heads forbid.
    """
    spec = decoder.spec
    kept = numbers.cpu().long()
    if not len(kept) or kept[0] < 0 or kept[-1] >= spec.hidden or (kept.diff() <= 0).any():
        raise StudentError(f"name numbers of a token to keep, rising, of 0 to {spec.hidden - 1}")
    scales, shift = _norm_scales(decoder, kept, batches), 0.0
    if spec.kind.startswith("gemma"):  # it multiplies what it looks up by the root of its width
        shift, grown = 1.0, math.sqrt(spec.hidden / len(kept))
        scales[_EMBEDDING] = grown
        scales[_LAST] /= grown if spec.tied else 1.0  # the head is what is looked up
    state = {}
    for name, tensor in decoder.state_dict().items():
        axis = _axis(name)
        cut = tensor if axis is None else tensor.index_select(axis, kept.to(tensor.device))
        added = 0.0 if name == _EMBEDDING else shift
        state[name] = _scaled(cut, scales[name], added) if name in scales else cut
    return filled(with_sizes(spec, hidden=len(kept)), state)


def _readers(decoder: Decoder) -> Iterator[Any]:
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            yield from (getattr(part, name) for name in _READ if hasattr(part, name))


def _axis(name: str) -> int | None:
    """Return the axis of a tensor along which the numbers of a token lie."""
    *_, module, what = name.split(".")
    if module in ("embed_tokens", "lm_head") or module in _READ:
        return 1 if what == "weight" else None
    if module in _WRITE or _is_norm(name):
        return 0
    return None


def _is_norm(name: str) -> bool:
    """Say whether this is a norm over all numbers of a token, not over those of a head."""
    return name.endswith("layernorm.weight") or name.endswith("model.norm.weight")


def _norm_scales(
    decoder: Decoder, kept: Int[Tensor, " kept"], batches: Int[Tensor, "b t"]
) -> dict[str, float]:
    """Return, by the name of its weights, how much smaller each norm's divisor is of the kept."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str, given: Tensor) -> None:
        square = given.float().square()
        part = square[..., kept.to(square.device)].mean(-1) / square.mean(-1).clamp(min=_EPS)
        found.setdefault(name, []).append(part.sqrt().flatten())

    names = [n.removesuffix(".weight") for n in decoder.state_dict() if _is_norm(n)]
    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(
                decoder.get_submodule(name).register_forward_pre_hook(
                    lambda _m, given, n=name: note(str(n), given[0])
                )
            )
        for ids in in_parts(batches):
            decoder.states(ids)
    return {f"{name}.weight": float(torch.cat(each).mean()) for name, each in found.items()}


def _scaled(weight: Tensor, scale: float, shift: float) -> Tensor:
    return ((weight.float() + shift) * scale - shift).to(weight.dtype)
