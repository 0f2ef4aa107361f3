"""Students of texts that start from their teacher: its token embedding, and BERT's whole layers.

Layers are taken over only where that is the same function: the student is an encoder with
`norm: post` that embeds in its whole width, as wide and with as many heads as a teacher that is
laid out like BERT (RoBERTa, ELECTRA and DistilBERT are). Any other width, a rotary or pre-norm
teacher, and every other family of students gets the embedding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import StudentError
from tutelage.students.families.encoder import Encoder, EncoderSpec, initialise_from
from tutelage.teach.hf_teacher import HfEncoder

_Parts = dict[str, Any]
_LAYERS = (
    {
        "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense",
        "down": "output.dense", "mlp_norm": "output.LayerNorm",
    },
    {
        "query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
        "out": "attention.out_lin", "attention_norm": "sa_layer_norm", "up": "ffn.lin1",
        "down": "ffn.lin2", "mlp_norm": "output_layer_norm",
    },
)  # fmt: skip
_EMBEDDINGS = {
    "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}  # fmt: skip


def start_from(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Start a student from its teacher, in place; return what was taken over, in words.

    Raises `StudentError` where the teacher has no token embedding, or the student has none or one
    of other tokens.
    """
    rows = getattr(teacher, "embedding", None)
    rows = rows.weight if isinstance(rows, nn.Embedding) else rows
    if not isinstance(rows, Tensor):
        raise StudentError(
            f"student.start: teacher takes over a token embedding, and the teacher "
            f"({type(teacher).__name__}) has none; leave it out, or use a Hugging Face encoder"
        )
    initialise_from(student, rows)
    own: Any = student.get_submodule("embedding")
    said = f"its embedding, {rows.shape[1]} numbers a token to {own.embedding_dim} (SVD)"
    why = _unlike(student, teacher)
    if why:
        return (said, f"none of its layers: {why}")
    assert isinstance(student, Encoder) and isinstance(teacher, HfEncoder)
    with torch.no_grad():
        _copy_embedding(student, teacher)
        layers = _layers(teacher.encoder)
        count, wanted = len(layers), len(student.stages)
        chosen = [(i + 1) * count // wanted - 1 for i in range(wanted)]
        for stage, number in zip(student.stages, chosen, strict=True):
            _copy_layer(stage, layers[number])
        taken = [
            "its whole embedding",
            f"layers {', '.join(str(n + 1) for n in chosen)} of {count}",
        ]
        if teacher.head is not None:  # it reads the mean of the last layer, as the student's does
            linear: Any = teacher.head[-1]  # pyright: ignore[reportIndexIssue]
            _copy(student.head, linear.weight, linear.bias)
            taken.append("its head")
    return tuple(taken)


def as_encoder(teacher: HfEncoder, *, length: int) -> Encoder | None:
    """Return a BERT-like teacher of texts of `length` tokens as a network of our own family.

    It says what the teacher says. None where no such network does: another layout, or a head that
    was not put on here.
    """
    layers = _layers(teacher.encoder)
    if teacher.head is None or not layers:
        return None
    config: Any = teacher.body.config
    linear: Any = teacher.head[-1]  # pyright: ignore[reportIndexIssue]
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_heads", 0)
    spec = EncoderSpec(
        vocabulary=len(teacher.embedding), length=length, classes=linear.out_features,
        layers=len(layers), hidden=layers[0]["query"].out_features, heads=heads,
        inner=layers[0]["up"].out_features, pad=teacher.pad, norm="post",
    )  # fmt: skip
    network = Encoder(spec).eval()
    if _unlike(network, teacher):
        return None
    start_from(network, teacher)
    return network


def _unlike(student: nn.Module, teacher: nn.Module) -> str:
    """Say why the teacher's layers would be another function in the student; '' if they fit."""
    if not isinstance(student, Encoder) or not student.spec.norm == "post":
        return "the student is no encoder with norm: post"
    found = _layers(teacher.encoder) if isinstance(teacher, HfEncoder) else []
    if not isinstance(teacher, HfEncoder) or not found or _at(teacher.encoder, _EMBEDDINGS) is None:
        return "the teacher is not laid out like BERT"
    config: Any = teacher.body.config
    act = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if act != "gelu" or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return "the teacher has another activation or other positions than BERT"
    spec, layer = student.spec, found[0]
    words = teacher.embedding.shape[1]
    heads = getattr(config, "num_attention_heads", 0)
    facts = (
        ("hidden", spec.hidden, layer["query"].out_features),
        ("embedding", spec.embedding or spec.hidden, words),
        ("heads", spec.heads, heads),
    )
    for knob, mine, theirs in facts:
        if mine != theirs:
            return f"{knob} is {mine} and the teacher's {theirs}"
    for knob, mine, theirs in (
        ("layers", spec.layers, len(found)), ("inner", spec.inner, layer["up"].out_features),
    ):  # fmt: skip
        if mine > theirs:
            return f"{knob} is {mine}, above the teacher's {theirs}"
    return "" if words == spec.hidden else "the teacher maps its embedding to another width"


def _at(module: nn.Module, paths: dict[str, str]) -> _Parts | None:
    try:
        return {name: module.get_submodule(path) for name, path in paths.items()}
    except AttributeError:
        return None


def _layers(encoder: nn.Module) -> list[_Parts]:
    found = [_at(module, paths) for module in encoder.modules() for paths in _LAYERS]
    return [parts for parts in found if parts is not None]


def _copy(target: nn.Module, weight: Tensor, bias: Tensor) -> None:
    target.get_parameter("weight").copy_(weight)
    target.get_parameter("bias").copy_(bias)


def _copy_embedding(student: Encoder, teacher: HfEncoder) -> None:
    parts = _at(teacher.encoder, _EMBEDDINGS)
    assert parts is not None
    student.embedding.weight.copy_(teacher.embedding)
    first, length = teacher.first_position, len(student.positions)
    positions = parts["positions"].weight[first : first + length]
    types = _at(teacher.encoder, {"types": "embeddings.token_type_embeddings"})
    if types is not None:  # every token is of type 0
        positions = positions + types["types"].weight[0]
    student.positions[: len(positions)] = positions
    _copy(student.embedding_norm, parts["norm"].weight, parts["norm"].bias)


def by_heads(kinds: Sequence[Tensor], heads: int) -> Tensor:
    """Return rows of query, key and value as our layers have them: one head after the other."""
    return torch.stack([kind.unflatten(0, (heads, -1)) for kind in kinds], dim=1).flatten(0, 2)


def _copy_layer(stage: Any, layer: _Parts) -> None:
    """Copy one layer; of its inner units as many as the student has, those that weigh most."""
    kinds = [layer[kind] for kind in ("query", "key", "value")]
    for name in ("weight", "bias"):
        rows = by_heads([getattr(kind, name) for kind in kinds], stage.heads)
        stage.qkv.get_parameter(name).copy_(rows)
    _copy(stage.out, layer["out"].weight, layer["out"].bias)
    up, down, inner = layer["up"], layer["down"], stage.mlp[0].out_features
    weighs = up.weight.norm(dim=1) * down.weight.norm(dim=0)
    kept = weighs.topk(inner).indices.sort().values
    _copy(stage.mlp[0], up.weight[kept], up.bias[kept])
    _copy(stage.mlp[2], down.weight[:, kept], down.bias)
    for name in ("attention_norm", "mlp_norm"):
        _copy(getattr(stage, name), layer[name].weight, layer[name].bias)
