"""The built-in transformer of texts with fewer layers, heads, inner units and numbers a token."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tutelage.students import slice_layers
from tutelage.students.encoder import Encoder, EncoderSpec
from tutelage.students.slice import Slicing
from tutelage.students.slice_layers import (
    SIZES,
    Gates,
    copy_layers,
    copy_linear,
    copy_norm,
    is_smaller,
    most,
    shallower,
    steps,
    without_layers,
)


def is_part(spec: EncoderSpec, whole: EncoderSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    width, there = (knobs.embedding or knobs.hidden for knobs in (spec, whole))
    sizes = {name: getattr(spec, name) for name in (*SIZES, "embedding")}
    return (
        dataclasses.replace(whole, **sizes) == spec
        and is_smaller(spec, whole)
        and (width == spec.hidden) == (there == whole.hidden)
        and width <= there
    )


def slice_encoder(network: Encoder, spec: EncoderSpec, ids: Int[Tensor, "b t"]) -> Encoder:
    """Return a network of `spec`, part of this one's own, that starts with its weights."""
    fewer = without_layers(network, spec.layers, ids)
    small = Encoder(spec).eval()
    same = isinstance(fewer.project, nn.Identity)
    with Gates() as gates:
        gates.after(fewer.embedding_norm, "stream" if same else "embedding")
        if not same:
            gates.after(fewer.project, "stream")
        gates.of_layers(fewer.stages)
        information = gates.information(fewer, ids)
    stay = most(information["stream"], spec.hidden)
    rows = stay if same else most(information["embedding"], spec.embedding)
    with torch.no_grad():
        small.embedding.weight.copy_(fewer.embedding.weight[:, rows])
        small.positions.copy_(fewer.positions[:, rows])
        copy_norm(small.embedding_norm, fewer.embedding_norm, rows)
        if not same:
            copy_linear(small.project, fewer.project, stay, rows)
        copy_layers(small.stages, fewer.stages, information, stay)
        if isinstance(fewer.norm, nn.LayerNorm):
            copy_norm(small.norm, fewer.norm, stay)
        copy_linear(small.head, fewer.head, torch.arange(spec.classes), stay)
    return small


def narrower(spec: EncoderSpec, share: float) -> EncoderSpec:
    """Return the spec with about a share of its heads, numbers a token and inner units."""
    found = slice_layers.narrower(spec, share)
    embedding = spec.embedding and max(1, round(spec.embedding * found.heads / spec.heads))
    return dataclasses.replace(found, embedding=embedding)


SLICING = Slicing(
    cut=slice_encoder,
    is_part=is_part,
    narrower=narrower,
    shallower=shallower,
    steps=steps,
)
