"""The compact transformer family for texts: a few layers over a factorised embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.errors import StudentError
from tutelage.students.families.knobs import check_whole

_LARGEST = {
    "vocabulary": 10_000_000, "length": 65_536, "classes": 1_000_000, "layers": 256,
    "hidden": 16_384, "heads": 1_024, "inner": 65_536,
}  # fmt: skip
_HEAD = 32  # numbers in an attention head
_EPS = {"pre": 1e-5, "post": 1e-12}  # torch's, and BERT's
_MASKED = -1e4  # added to the score of a pad: its weight is exactly 0 in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """Knobs of one network; every field is plain JSON.

    A text is at most `length` tokens out of `vocabulary`, filled up with the token `pad`. `layers`
    layers have `hidden` numbers a token, `heads` attention heads and `inner` units between. Tokens
    are embedded in `embedding` numbers and mapped to `hidden`; 0 embeds in `hidden` at once. A
    layer is normalised before its parts (`norm: pre`) or, as in BERT, after each (`post`), so that
    BERT's own layers can be taken over. Raises `ValueError` for an impossible knob.
    """

    vocabulary: int
    length: int
    classes: int
    layers: int
    hidden: int
    heads: int
    inner: int
    pad: int = 0
    embedding: int = 0
    norm: Literal["pre", "post"] = "pre"

    def __post_init__(self) -> None:
        check_whole(self, _LARGEST)
        check_pad(self)
        if self.hidden % self.heads:
            raise ValueError(f"hidden is {self.hidden}; {self.heads} heads do not divide it evenly")
        if self.norm not in ("pre", "post"):
            raise ValueError(f"norm is {self.norm!r}; it is pre or post")
        if self.embedding != 0:
            check_whole(self, {"embedding": _LARGEST["hidden"]})

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the layers."""
        return tuple(f"stages.{i}" for i in range(self.layers))


def check_pad(knobs: Any) -> None:
    """Check that the knob `pad` is a token of `vocabulary`; raises `ValueError` if it is not."""
    if isinstance(knobs.pad, bool) or not isinstance(knobs.pad, int):
        raise ValueError(f"pad holds {knobs.pad!r}; write a whole number")
    if not 0 <= knobs.pad < knobs.vocabulary:
        raise ValueError(f"pad is {knobs.pad}; tokens go from 0 to {knobs.vocabulary - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Everything about an encoder but its width: `inner` and `embedding` are shares of `hidden`."""

    layers: int
    inner: int
    embedding: int


STRUCTURES = (
    Structure(layers=2, inner=2, embedding=2),
    Structure(layers=2, inner=4, embedding=4),
    Structure(layers=4, inner=2, embedding=4),
    Structure(layers=4, inner=4, embedding=2),
)


def drawn(random: np.random.Generator) -> Structure:
    """Return a structure drawn at random: one to six layers."""
    layers, inner, embedding = (int(random.choice(x)) for x in ((1, 2, 3, 4, 6), (1, 2, 4), (2, 4)))
    return Structure(layers=layers, inner=inner, embedding=embedding)


def sized(structure: Structure, width: int, given: dict[str, Any]) -> EncoderSpec:
    """Return the network of this structure with 4 x `width` numbers a token, or a little fewer.

    From 64 on that is a multiple of 32, the size of an attention head.
    """
    hidden = 4 * width
    hidden = hidden if hidden < 2 * _HEAD else hidden - hidden % _HEAD
    return EncoderSpec(
        vocabulary=given["vocabulary"],
        length=given["length"],
        pad=given["pad"],
        classes=given["classes"],
        layers=structure.layers,
        hidden=hidden,
        heads=max(1, hidden // _HEAD),
        inner=structure.inner * hidden,
        embedding=max(4, hidden // structure.embedding),
    )


class Encoder(nn.Module):
    """Embedding, layers, mean over the tokens that are no pads, linear head.

    `stages.i` are its taps, [b, t, hidden]. What stands at pads changes no decision, nor does how
    many there are.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec, self.pad, width = spec, spec.pad, spec.embedding or spec.hidden
        self.embedding = nn.Embedding(spec.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(spec.length, width))
        post = spec.norm == "post"
        self.embedding_norm = nn.LayerNorm(width, eps=_EPS[spec.norm])
        same = width == spec.hidden
        self.project = nn.Identity() if same else nn.Linear(width, spec.hidden)
        self.stages = nn.ModuleList(Layer(spec, spec.norm) for _ in range(spec.layers))
        self.norm = nn.Identity() if post else nn.LayerNorm(spec.hidden)
        self.head = nn.Linear(spec.hidden, spec.classes)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        # An exported graph has one length; a constant keeps arithmetic on shapes out of it.
        exporting = torch.onnx.is_in_onnx_export()
        x = self.embedding(ids)
        x = x + (self.positions if exporting else self.positions[: ids.shape[1]])
        x = self.project(self.embedding_norm(x))
        keep = ids.ne(self.pad).to(x.dtype)
        bias = ((1 - keep) * _MASKED)[:, None, None, :]
        for stage in self.stages:
            x = stage(x, bias)
        return self.head(masked_mean(self.norm(x), keep))


def masked_mean(tokens: Float[Tensor, "b t c"], keep: Float[Tensor, "b t"]) -> Float[Tensor, "b c"]:
    """Return the mean over the tokens where `keep` is 1 (it is 0 elsewhere), 0 if there is none."""
    share = keep / keep.sum(dim=1, keepdim=True).clamp_min(1)
    return (tokens * share[:, :, None]).sum(dim=1)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `post`: norm(x + f(x)) both times.

    `spec` has the knobs `length` (tokens), `hidden`, `heads` and `inner`; `eps` is the norms'.
    """

    by_head = True  # what `qkv` gives: query, key and value of one head after the other

    def __init__(
        self, spec: Any, norm: Literal["pre", "post"] = "pre", eps: float | None = None
    ) -> None:
        super().__init__()
        self.length, self.heads, self.size = spec.length, spec.heads, spec.hidden // spec.heads
        self.post, eps = norm == "post", eps or _EPS[norm]
        self.attention_norm = nn.LayerNorm(spec.hidden, eps=eps)
        self.qkv = nn.Linear(spec.hidden, 3 * spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.hidden)
        self.mlp_norm = nn.LayerNorm(spec.hidden, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(spec.hidden, spec.inner), nn.GELU(), nn.Linear(spec.inner, spec.hidden)
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the next tokens, [b, t, hidden]; `bias` is added to the scores of attention."""
        if self.post:
            x = self.attention_norm(x + self.out(self._attend(self.qkv(x), bias)))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.out(self._attend(self.qkv(self.attention_norm(x)), bias))
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, qkv: Tensor, bias: Tensor | None) -> Tensor:
        # Written out: the exporter's scaled_dot_product_attention scales query and key apart.
        tokens = self.length if torch.onnx.is_in_onnx_export() else qkv.shape[1]
        parts = qkv.reshape(-1, tokens, self.heads, 3 * self.size).transpose(1, 2)
        query, key, value = parts.split([self.size] * 3, dim=-1)
        scores = query @ key.transpose(2, 3) * self.size**-0.5
        scores = scores if bias is None else scores + bias
        said = (scores.softmax(dim=-1) @ value).transpose(1, 2)
        return said.reshape(-1, tokens, self.heads * self.size)


def initialise_from(student: nn.Module, embedding: Float[Tensor, "v h"]) -> None:
    """Start a text student's embedding from a teacher's, in place, cut to the student's size.

    Kept are the directions of largest variance (a truncated singular value decomposition of the
    centred rows), scaled as a whole to the spread the student's own numbers have; a student wider
    than the teacher keeps its own in what is left over. Raises `StudentError` when the student has
    no embedding, or one for another number of tokens.
    """
    own = getattr(student, "embedding", None)
    if not isinstance(own, nn.Embedding):
        raise StudentError(
            f"{type(student).__name__} has no token embedding to start from the teacher's. "
            "Choose an encoder or a textconv"
        )
    if embedding.ndim != 2 or len(embedding) != own.num_embeddings:
        raise StudentError(
            f"the student has {own.num_embeddings} tokens and the teacher's embedding is "
            f"{' x '.join(map(str, embedding.shape))}. Use the same tokenizer for both"
        )
    with torch.no_grad():
        rows = _principal(embedding.detach().to("cpu", torch.float64), own.embedding_dim)
        spread = rows.square().mean().sqrt().clamp_min(1e-12)
        rows = rows / spread * own.weight.double().std(correction=0)
        own.weight[:, : rows.shape[1]] = rows.to(own.weight)


def _principal(rows: Float[Tensor, "v h"], count: int) -> Float[Tensor, "v k"]:
    # The eigenvectors of the small matrix R'R are R's right singular vectors.
    rows = rows - rows.mean(dim=0)
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return rows @ (vectors * largest.sign())  # a vector's sign is free: make it one
