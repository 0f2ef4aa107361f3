"""The built-in transformer of texts with fewer layers, heads, inner units and numbers a token."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tutelage.students.families.encoder import Encoder, EncoderSpec
from tutelage.students.slices import layers
from tutelage.students.slices.channels import choosing
from tutelage.students.slices.fitting import fit, own


def is_part(spec: EncoderSpec, whole: EncoderSpec) -> bool:
    """Say whether a network of `spec` can be sliced from one of `whole`."""
    width, there = (knobs.embedding or knobs.hidden for knobs in (spec, whole))
    sizes = {name: getattr(spec, name) for name in (*layers.SIZES, "embedding")}
    return (
        dataclasses.replace(whole, **sizes) == spec
        and layers.is_smaller(spec, whole)
        and (width == spec.hidden) == (there == whole.hidden)
        and width <= there
    )


def slice_encoder(
    network: Encoder, spec: EncoderSpec, ids: Int[Tensor, "b t"], *, fitted: bool = False
) -> Encoder:
    """Return a network of `spec`, part of this one's own, that starts with its weights.

    `fitted`: layers are then fitted to the network's, on what is no pad.
    """
    some = choosing(ids)
    left = layers.layers_that_stay(network, spec.layers, some)
    fewer = layers.with_layers(network, left)
    small = Encoder(spec).eval()
    same = isinstance(fewer.project, nn.Identity)

    def place(gates: layers.Gates) -> None:
        gates.after(fewer.embedding_norm, "stream" if same else "embedding")
        if not same:
            gates.after(fewer.project, "stream")
        gates.of_layers(fewer.stages)

    information = layers.information(network, left, fewer, some, place)
    stay = layers.most(information["stream"], spec.hidden)
    rows = stay if same else layers.most(information["embedding"], spec.embedding)
    with torch.no_grad():
        small.embedding.weight.copy_(fewer.embedding.weight[:, rows])
        small.positions.copy_(fewer.positions[:, rows])
        layers.copy_norm(small.embedding_norm, fewer.embedding_norm, rows)
        if not same:
            layers.copy_linear(small.project, fewer.project, stay, rows)
        kept = layers.copy_layers(small.stages, fewer.stages, information, stay)
        if isinstance(fewer.norm, nn.LayerNorm):
            layers.copy_norm(small.norm, fewer.norm, stay)
        layers.copy_linear(small.head, fewer.head, torch.arange(spec.classes), stay)
    if fitted:
        ends = {**({} if same else {"project": stay}), "head": torch.arange(spec.classes)}
        aims = {**own(ends), **layers.aims_of_layers(network.stages, left, kept)}
        fit(small, network, aims, ids, counts=ids.ne(spec.pad), half=True)
    return small


def narrower(spec: EncoderSpec, share: float) -> EncoderSpec:
    """Return the spec with about a share of its heads, numbers a token and inner units."""
    found = layers.narrower(spec, share)
    embedding = spec.embedding and max(1, round(spec.embedding * found.heads / spec.heads))
    return dataclasses.replace(found, embedding=embedding)


SLICING = layers.slicing(slice_encoder, is_part, narrower)
