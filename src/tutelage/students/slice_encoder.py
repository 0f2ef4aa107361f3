"""The built-in transformer of texts with fewer layers, heads, inner units and numbers a token.

What stays is copied as it is. Layers go first: one at a time the one without which the decision
changes least. Then the parts of the residual stream, whole attention heads, and inner units go by
the Fisher information of their gates (see `slice.importance`). The size of a head stays, so numbers
a token and heads shrink together.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.students.encoder import Encoder, EncoderSpec, Layer
from tutelage.students.slice import Slicing, drawn_decision, even_share, least_missed

_SIZES = ("layers", "hidden", "heads", "inner")
_STEPS_A_HEAD = 2


def is_part(spec: EncoderSpec, whole: EncoderSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    width, there = (knobs.embedding or knobs.hidden for knobs in (spec, whole))
    sizes = {name: getattr(spec, name) for name in (*_SIZES, "embedding")}
    return (
        dataclasses.replace(whole, **sizes) == spec
        and all(getattr(spec, name) <= getattr(whole, name) for name in _SIZES)
        and spec.hidden // spec.heads == whole.hidden // whole.heads
        and (width == spec.hidden) == (there == whole.hidden)
        and width <= there
    )


def slice_encoder(network: Encoder, spec: EncoderSpec, ids: Int[Tensor, "b t"]) -> Encoder:
    """Return a network of `spec`, part of this one's own, that starts with its weights."""
    fewer = without_layers(network, spec.layers, ids)
    small = Encoder(spec).eval()
    hidden, embedded, heads, inner = _gates(fewer, ids)
    stay = _most(hidden, spec.hidden)
    same = isinstance(fewer.project, nn.Identity)
    rows = stay if same else _most(embedded, spec.embedding)
    with torch.no_grad():
        small.embedding.weight.copy_(fewer.embedding.weight[:, rows])
        small.positions.copy_(fewer.positions[:, rows])
        _copy_norm(small.embedding_norm, fewer.embedding_norm, rows)
        if not same:
            _copy_linear(small.project, fewer.project, stay, rows)
        for number, (to, of) in enumerate(zip(small.stages, fewer.stages, strict=True)):
            assert isinstance(to, Layer) and isinstance(of, Layer)
            kept = _most(heads[number], spec.heads)
            units = _most(inner[number], spec.inner)
            said = _spread(kept, of.size)
            _copy_linear(to.qkv, of.qkv, _spread(kept, 3 * of.size), stay)
            _copy_linear(to.out, of.out, stay, said)
            _copy_linear(to.mlp[0], of.mlp[0], units, stay)
            _copy_linear(to.mlp[2], of.mlp[2], stay, units)
            _copy_norm(to.attention_norm, of.attention_norm, stay)
            _copy_norm(to.mlp_norm, of.mlp_norm, stay)
        if isinstance(fewer.norm, nn.LayerNorm):
            _copy_norm(small.norm, fewer.norm, stay)
        _copy_linear(small.head, fewer.head, torch.arange(spec.classes), stay)
    return small


def without_layers(network: Encoder, layers: int, ids: Int[Tensor, "b t"]) -> Encoder:
    """Return a copy with so many layers, in eval mode; see `slice.least_missed`."""
    small = copy.deepcopy(network).eval()
    with torch.no_grad():
        own = small(ids)
        while len(small.stages) > layers:
            rests = [
                nn.ModuleList([*small.stages[:i], *small.stages[i + 1 :]])
                for i in range(len(small.stages))
            ]

            def said(rest: nn.ModuleList) -> Tensor:
                small.stages = rest
                return small(ids)

            small.stages = least_missed(rests, said, own)
    small.spec = dataclasses.replace(network.spec, layers=layers)
    return small


def _gates(
    network: Encoder, ids: Int[Tensor, "b t"]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Return the Fisher information of numbers of the stream, of the embedding, heads and units.

    A number of the stream is gated wherever it is written: at the norms of a `post` network, at
    what layers add in a `pre` one.
    """
    gates: dict[tuple[str, int], Tensor] = {}

    def gated(key: tuple[str, int], group: int = 1) -> Callable[..., Tensor]:
        def gate(output: Tensor) -> Tensor:
            size = output.shape[-1] // group
            gates[key] = torch.ones(len(output), 1, size, requires_grad=True)
            return output * gates[key].repeat_interleave(group, dim=-1)

        return gate

    def after(module: nn.Module, key: tuple[str, int], group: int = 1) -> Any:
        gate = gated(key, group)
        return module.register_forward_hook(lambda _m, _i, output: gate(output))

    def before(module: nn.Module, key: tuple[str, int], group: int) -> Any:
        gate = gated(key, group)
        return module.register_forward_pre_hook(lambda _, given: gate(given[0]))

    post, places = network.spec.norm == "post", 0
    with ExitStack() as hooks:
        whole = isinstance(network.project, nn.Identity)
        start = network.embedding_norm if whole else network.project
        hooks.enter_context(after(start, ("stream", places)))
        if not whole:
            hooks.enter_context(after(network.embedding_norm, ("embedding", 0)))
        for number, stage in enumerate(network.stages):
            assert isinstance(stage, Layer)
            written = (stage.attention_norm, stage.mlp_norm) if post else (stage.out, stage.mlp[2])
            for module in written:
                places += 1
                hooks.enter_context(after(module, ("stream", places)))
            hooks.enter_context(before(stage.out, ("heads", number), stage.size))
            hooks.enter_context(after(stage.mlp[1], ("inner", number)))
        with torch.enable_grad():
            total = drawn_decision(network(ids).float())
            moved = torch.autograd.grad(total, list(gates.values()))
    found = {key: grad[:, 0] for key, grad in zip(gates, moved, strict=True)}

    def information(*grads: Float[Tensor, "b c"]) -> Float[Tensor, " c"]:
        return torch.stack(grads).sum(0).square().mean(0)

    layers = range(len(network.stages))
    stream = information(*(grad for (kind, _), grad in found.items() if kind == "stream"))
    embedding = stream if whole else information(found["embedding", 0])
    return (
        stream,
        embedding,
        [information(found["heads", i]) for i in layers],
        [information(found["inner", i]) for i in layers],
    )


def _most(information: Float[Tensor, " c"], count: int) -> Int[Tensor, " k"]:
    return information.argsort(descending=True, stable=True)[:count].sort().values


def _spread(numbers: Int[Tensor, " k"], size: int) -> Int[Tensor, " n"]:
    return (numbers[:, None] * size + torch.arange(size)).flatten()


def _copy_linear(to: Any, of: Any, rows: Tensor, columns: Tensor) -> None:
    to.weight.copy_(of.weight[rows][:, columns])
    to.bias.copy_(of.bias[rows])


def _copy_norm(to: Any, of: Any, kept: Tensor) -> None:
    to.weight.copy_(of.weight[kept])
    to.bias.copy_(of.bias[kept])


def narrower(spec: EncoderSpec, share: float) -> EncoderSpec:
    """Return the spec with about a share of its heads, numbers a token and inner units."""
    size = spec.hidden // spec.heads
    heads = max(1, round(share * spec.heads))
    embedding = spec.embedding and max(1, round(spec.embedding * heads / spec.heads))
    return dataclasses.replace(
        spec, heads=heads, hidden=heads * size, inner=even_share(spec.inner, share),
        embedding=embedding,
    )  # fmt: skip


def shallower(spec: EncoderSpec) -> tuple[EncoderSpec, ...]:
    """Return the spec, then with one layer fewer at a time, down to one."""
    return tuple(dataclasses.replace(spec, layers=n) for n in range(spec.layers, 0, -1))


SLICING = Slicing(
    cut=slice_encoder,
    is_part=is_part,
    narrower=narrower,
    shallower=shallower,
    steps=lambda spec: _STEPS_A_HEAD * spec.heads,
)
