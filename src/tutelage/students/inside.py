"""What is inside a transformer: token states at taps, and the query, key and value of its layers.

Covers layers whose query, key and value come out of linear layers of their own (BERT, RoBERTa,
DistilBERT, ELECTRA, timm, our own encoder), or out of a fused one (ModernBERT, timm, our own).
Rotary positions are not in them: they are what the layers say of content. It does not cover
`nn.MultiheadAttention`, which calls no layer for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.errors import StudentError, TutelageError
from tutelage.types import Tap

_APART = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)
_FUSED = ("qkv", "Wqkv")
_HEADS = ("num_attention_heads", "n_heads", "num_heads", "heads")
_SIZES = ("attention_head_size", "head_dim", "size")
_INSTEAD = "use features or trajectory, or a transformer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's query, key and value: `paths` of the three linear layers, or of a fused one.

    A fused output holds all queries first (`thirds`), or query, key and value head by head
    (`heads`: the layer says so by an attribute `by_head`). `size` is the numbers in a head.
    """

    paths: tuple[str, ...]
    size: int
    order: Literal["thirds", "heads"] = "thirds"

    def of(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "b 3 t c"]:
        """Return query, key and value from what the layers at `paths` gave."""
        if len(self.paths) == 3:
            return torch.stack([outputs[path] for path in self.paths], dim=1)
        fused = outputs[self.paths[0]]
        if self.order == "thirds":
            return fused.unflatten(2, (3, -1)).transpose(1, 2)
        return fused.unflatten(2, (-1, 3, self.size)).permute(0, 3, 1, 2, 4).flatten(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What is read inside one network: taps with their token states, layers with their attention.

    `states` and `scores` are one a pair of taps, `relations` is the last layer.
    """

    states: tuple[str, ...] = ()
    scores: tuple[Attention, ...] = ()
    relations: tuple[Attention, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Module paths to read, each once."""
        layers = [path for a in (*self.scores, *self.relations) for path in a.paths]
        return tuple(dict.fromkeys([*self.states, *layers]))

    def of(self, outputs: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """Return the fields of a reading, float32, from what the modules at `paths` gave."""
        return {
            "states": tuple(outputs[path].float() for path in self.states),
            "scores": tuple(_scores(a.of(outputs).float(), a.size) for a in self.scores),
            "relations": tuple(a.of(outputs).float() for a in self.relations),
        }


def find_attention(network: nn.Module) -> tuple[Attention, ...]:
    """Return the attention of every layer, in order; none where nothing is laid out as known."""
    return tuple(_attentions(network))


def look_inside(
    network: nn.Module,
    taps: Sequence[Tap],
    reads: frozenset[str],
    *,
    who: str,
    error: type[TutelageError] = StudentError,
) -> Inside:
    """Return what losses that read `reads` want of one network; `taps` are one a pair, in order.

    Raises `error`, in one line that calls the network `who`, where it has no tokens at a tap, or no
    attention that can be read.
    """
    if "states" in reads:
        flat = next((tap for tap in taps if len(tap.shape) != 2), None)
        if flat is not None:
            shape = " x ".join(map(str, flat.shape)) or "one number"
            raise error(
                f"loss 'hidden' reads tokens, and tap '{flat.path}' of the {who} gives {shape} an "
                f"example: {_INSTEAD}"
            )
    found = find_attention(network) if reads & {"scores", "relations"} else ()
    if reads & {"scores", "relations"} and not found:
        name = "relations" if "relations" in reads else "attention_scores"
        raise error(
            f"loss '{name}' reads query, key and value, and none are found in the {who}'s "
            f"{type(network).__name__}: {_INSTEAD}"
        )
    return Inside(
        states=tuple(tap.path for tap in taps) if "states" in reads else (),
        scores=tuple(_at(found, tap, who, error) for tap in taps) if "scores" in reads else (),
        relations=found[-1:] if "relations" in reads else (),
    )


def _scores(parts: Float[Tensor, "b 3 t c"], size: int) -> Float[Tensor, "b t t"]:
    # The mean over heads of q k / sqrt(size): a sum over heads is one product of all numbers.
    query, key = parts[:, 0], parts[:, 1]
    return query @ key.transpose(1, 2) * (size**0.5 / query.shape[2])


def _at(found: Sequence[Attention], tap: Tap, who: str, error: type[TutelageError]) -> Attention:
    inside = [a for a in found if a.paths[0].startswith(f"{tap.path}.")]
    if not inside:
        raise error(
            f"loss 'attention_scores' reads the attention inside each tap, and tap '{tap.path}' of "
            f"the {who} holds none: choose layers as taps, or {_INSTEAD}"
        )
    return inside[-1]


def _attentions(network: nn.Module) -> Iterator[Attention]:
    for path, module in network.named_modules():
        own = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
        names = next((n for n in _APART if own.issuperset(n)), None)
        names = names or tuple(n for n in _FUSED if n in own)[:1]
        if not names:
            continue
        first = module.get_submodule(names[0])
        assert isinstance(first, nn.Linear)
        width = first.out_features // (3 if len(names) == 1 else 1)
        size = _head_size(module, width)
        same = len({module.get_submodule(n).out_features for n in names}) == 1
        if size is not None and same:
            prefix = f"{path}." if path else ""
            yield Attention(
                paths=tuple(f"{prefix}{name}" for name in names),
                size=size,
                order="heads" if getattr(module, "by_head", False) else "thirds",
            )


def _head_size(module: nn.Module, width: int) -> int | None:
    """Return the numbers in a head, as the layer or its configuration tells."""
    for holder in (module, getattr(module, "config", None)):
        for name in _SIZES:
            if isinstance(size := getattr(holder, name, None), int) and width % size == 0:
                return size
        for name in _HEADS:
            if isinstance(heads := getattr(holder, name, None), int) and width % heads == 0:
                return width // heads
    return None
