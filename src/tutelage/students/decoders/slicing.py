"""A language model with less of what it has: layers, units, groups of query heads, numbers, tokens.

What stays is copied as it is, but for the scale of norms where numbers of a token go. Layers go
first (see `decoder_choice.depths_by_kl`), then groups and units of what is left, then numbers (see
`decoder_width`), then tokens. A key/value head goes with all the query heads that it serves.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import StudentError
from tutelage.students.decoders.choice import Parts, depths_by_kl, energies
from tutelage.students.decoders.network import ENDS, Decoder, DecoderSpec, filled
from tutelage.students.decoders.sizes import why_no_part, with_sizes
from tutelage.students.decoders.width import number_energies, with_numbers

_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")


def slice_decoder(
    decoder: Decoder,
    wanted: DecoderSpec,
    batches: Int[Tensor, "b t"],
    *,
    vocabulary: Int[Tensor, " v"] | None = None,
    kept: Sequence[int] | None = None,
) -> Decoder:
    """Return a network of the sizes of `wanted` with this one's weights, in evaluation mode.

    `batches` are some hundred to thousand tokens, as this network numbers them, and choose what
    stays. `vocabulary` are the tokens to keep, rising; the slice numbers them from 0 on. `kept` are
    the layers to keep where they are chosen already. The slice's own spec says which kinds of
    layers stayed and how special tokens are numbered now. Raises `StudentError` where `wanted` is
    no part of the network.
    """
    why = why_no_part(wanted, decoder.spec)
    if why:
        raise StudentError(f"the language model cannot be sliced: {why}")
    rows = _rows(decoder.spec, wanted, vocabulary)
    small, layers, numbers = decoder, range(decoder.spec.layers), range(decoder.spec.hidden)
    if wanted.layers < decoder.spec.layers:
        if kept is None:
            *_, depth = depths_by_kl(decoder, batches, least=wanted.layers)
            kept = depth.kept
        layers, small = kept, with_layers(small, kept, wanted.layers)
    if (wanted.groups, wanted.inner) != (small.spec.groups, small.spec.inner):
        parts = energies(small, batches)
        small = with_parts(small, parts, groups=wanted.groups, inner=wanted.inner)
    if wanted.hidden < small.spec.hidden:
        most = most_of(number_energies(small, batches), wanted.hidden)
        numbers, small = most.tolist(), with_numbers(small, most, batches)
    if rows is not None:
        small = with_tokens(small, rows)
    small = copy.deepcopy(small).eval() if small is decoder else small
    small.origin = decoder.origin.at(layers, numbers)
    return small


def with_layers(decoder: Decoder, kept: Sequence[int], count: int | None = None) -> Decoder:
    """Return a copy with the layers `kept`, rising; raises `StudentError` for others."""
    known = range(decoder.spec.layers)
    if (
        list(kept) != sorted(set(kept) & set(known))
        or len(kept) != (count or len(kept))
        or not kept
    ):
        raise StudentError(
            f"layers {list(kept)} cannot be kept: name {count or 'some'}, rising, of 0 to "
            f"{known[-1]}"
        )
    new = {old: i for i, old in enumerate(kept)}
    state = {}
    for name, tensor in decoder.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            state[name] = tensor
        elif int(found[2]) in new:
            state[f"{found[1]}{new[int(found[2])]}{found[3]}"] = tensor
    spec = with_sizes(decoder.spec, layers=len(kept))
    if spec.config.get("layer_types") is not None:
        spec.config["layer_types"] = [decoder.spec.config["layer_types"][i] for i in kept]
    return filled(spec, state)


def with_tokens(decoder: Decoder, kept: Int[Tensor, " v"]) -> Decoder:
    """Return a copy that knows the tokens `kept` alone, numbered anew in their order."""
    state = decoder.state_dict()
    for name in ("network.model.embed_tokens.weight", "network.lm_head.weight"):
        if name in state:
            state[name] = state[name][kept.to(state[name].device)]
    spec = with_sizes(decoder.spec, vocabulary=len(kept))
    new = {old: i for i, old in enumerate(kept.tolist())}
    for key in ENDS:
        ends = decoder.spec.config.get(key)
        if ends is not None:
            spec.config[key] = [new[i] for i in ends] if isinstance(ends, list) else new[ends]
    return filled(spec, state)


def _rows(
    spec: DecoderSpec, wanted: DecoderSpec, vocabulary: Int[Tensor, " v"] | None
) -> Int[Tensor, " v"] | None:
    """Return the rows to keep, checked."""
    if vocabulary is None:
        if wanted.vocabulary != spec.vocabulary:
            raise StudentError(
                f"which {wanted.vocabulary} of {spec.vocabulary} tokens are kept is not known: "
                "give their numbers (vocabulary)"
            )
        return None
    rows = vocabulary.cpu().long()
    if len(rows) != wanted.vocabulary:
        raise StudentError(
            f"vocabulary names {len(rows)} tokens and the spec has {wanted.vocabulary}: make them "
            "the same"
        )
    if len(rows) and (rows[0] < 0 or rows[-1] >= spec.vocabulary or (rows.diff() <= 0).any()):
        raise StudentError(f"vocabulary names tokens, rising, from 0 to {spec.vocabulary - 1}")
    for key in ENDS:
        ends = spec.config.get(key)
        for end in ends if isinstance(ends, list) else [ends]:
            if end is not None and end not in rows:
                raise StudentError(f"vocabulary leaves out token {end}, the {key}: keep it")
    return rows


def with_parts(decoder: Decoder, parts: Parts, *, groups: int, inner: int) -> Decoder:
    """Return a copy with so many groups and units a layer: of each layer those that count most."""
    spec = decoder.spec
    a_group = spec.heads // spec.groups
    state: dict[str, Tensor] = decoder.state_dict()
    for number in range(spec.layers):
        heads, units = most_of(parts.groups[number], groups), most_of(parts.units[number], inner)
        shared, asked = (_spread(heads, spec.head_size * n) for n in (1, a_group))
        for part, axis, rows in (
            ("self_attn.q_proj", 0, asked), ("self_attn.k_proj", 0, shared),
            ("self_attn.v_proj", 0, shared), ("self_attn.o_proj", 1, asked),
            ("mlp.gate_proj", 0, units), ("mlp.up_proj", 0, units), ("mlp.down_proj", 1, units),
        ):  # fmt: skip
            for what in ("weight", "bias") if axis == 0 else ("weight",):
                name = f"network.model.layers.{number}.{part}.{what}"
                if name in state:
                    state[name] = state[name].index_select(axis, rows.to(state[name].device))
    return filled(with_sizes(spec, groups=groups, inner=inner), state)


def most_of(counts: Float[Tensor, " n"], number: int) -> Int[Tensor, " k"]:
    """Return which count most, rising; of equals the first."""
    return counts.argsort(descending=True, stable=True)[:number].sort().values


def _spread(numbers: Int[Tensor, " k"], size: int) -> Int[Tensor, " n"]:
    return (numbers[:, None] * size + torch.arange(size)).flatten()
