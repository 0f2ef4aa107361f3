"""Sizes of language models: what is part of what, which fit a limit, and the steps to one."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from tutelage.errors import InfeasibleError, StudentError
from tutelage.students.decoders.network import ENDS, SIZES, Decoder, DecoderSpec

_BLOCK = 32  # weights that share a scale in a quantized file: rows of the down projection are whole
_CUT = ("layers", "groups", "inner", "hidden", "vocabulary")
_LLAMA = ("attention_bias", "mlp_bias", "pretraining_tp")  # keys that a Mistral has not
_FIRST = re.compile(r"(.*\.layers\.)0(\..*)")
_ABOUT = 0.1  # of a step: what is lost beyond whole steps is shared out among them


def with_sizes(spec: DecoderSpec, **sizes: int) -> DecoderSpec:
    """Return the spec with other `layers`, `inner`, `groups`, `hidden` or `vocabulary`.

    Query heads follow their groups, sizes of heads stay. Kinds of layers are those of the first so
    many. A Llama whose heads do not divide the numbers of a token becomes a Mistral without a
    window, which computes the same: transformers opens no such Llama.
    """
    config = copy.deepcopy(spec.config)
    config |= {SIZES[name]: value for name, value in sizes.items()}
    if "groups" in sizes:
        config[SIZES["heads"]] = spec.heads // spec.groups * sizes["groups"]
    if config.get("layer_types") is not None:
        config["layer_types"] = config["layer_types"][: config[SIZES["layers"]]]
    if config[SIZES["hidden"]] % config[SIZES["heads"]] and _plain(config):
        config = {k: v for k, v in config.items() if k not in _LLAMA}
        config |= {"model_type": "mistral", "sliding_window": None}
    try:
        return DecoderSpec(config=config)
    except ValueError as error:
        raise StudentError(f"the language model cannot have these sizes: {error}") from None


def _plain(config: dict[str, Any]) -> bool:
    """Say whether this is a Llama without biases or a Mistral without a window."""
    unlike = {"llama": ("attention_bias", "mlp_bias"), "mistral": ("sliding_window",)}
    kind = config["model_type"]
    return kind in unlike and not any(config.get(key) for key in unlike[kind])


def why_no_part(spec: DecoderSpec, whole: DecoderSpec) -> str:
    """Say why a network of `spec` cannot be sliced from one of `whole`; '' if it can.

    Kinds of layers and numbers of special tokens follow from what is kept: they are not compared.
    """
    for name in _CUT:
        if getattr(spec, name) > getattr(whole, name):
            return f"it has {getattr(whole, name)} {name} and {getattr(spec, name)} are wanted"
    if spec.heads * whole.groups != whole.heads * spec.groups:
        return f"{spec.groups} groups of it have {whole.heads // whole.groups} query heads each"
    free = {"layer_types", SIZES["heads"], *ENDS, *(SIZES[name] for name in _CUT)}
    if _plain(spec.config) and _plain(whole.config):  # the same by two names: see `with_sizes`
        free |= {"model_type", "sliding_window", *_LLAMA}
    for key in sorted((spec.config.keys() | whole.config.keys()) - free):
        if spec.config.get(key) != whole.config.get(key):
            return f"its {key} is {whole.config.get(key)!r} and {spec.config.get(key)!r} is wanted"
    return ""


def shapes_of(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of its folder, by name; nothing is built.

    A tied head is not among them.
    """
    return dict(_shapes(json.dumps(spec.config, sort_keys=True)))


@lru_cache(maxsize=256)
def _shapes(config: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    spec = DecoderSpec(config=json.loads(config))
    with torch.device("meta"):
        single = Decoder(with_sizes(spec, layers=1))
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in single.state_dict().items():
        bare, inside = name.removeprefix("network."), _FIRST.fullmatch(name)
        numbers = range(spec.layers) if inside else range(1)
        for n in numbers:
            own = f"{inside[1]}{n}{inside[2]}".removeprefix("network.") if inside else bare
            found[own] = tuple(tensor.shape)
    return tuple(found.items())


def parameters(spec: DecoderSpec) -> int:
    """Return how many weights there are, a tied head counted once."""
    return sum(math.prod(shape) for shape in shapes_of(spec).values())


def in_layers(spec: DecoderSpec) -> int:
    """Return how many weights the layers have: all but embedding, head and last norm."""
    return sum(math.prod(x) for name, x in shapes_of(spec).items() if ".layers." in name)


def plan_slices(
    spec: DecoderSpec,
    *,
    most_bytes: int,
    bytes_of: Callable[[DecoderSpec], int],
    vocabulary: int | None = None,
    groups: int | None = None,
    count: int = 3,
) -> list[DecoderSpec]:
    """Return up to `count` slices of at most `most_bytes`, the deepest and narrowest first.

    `bytes_of` a spec grows with its sizes. The vocabulary and the groups are those given, or the
    network's own. Each has the widest feed-forward parts that fit its depth: no other slice has as
    many layers and is wider. They go in even steps from the deepest, with a quarter of the units at
    least where that can be, to the one whose layers are whole. Raises `InfeasibleError` where
    nothing fits.
    """
    top = with_sizes(spec, vocabulary=vocabulary or spec.vocabulary, groups=groups or spec.groups)
    found: list[DecoderSpec] = []
    for layers in range(top.layers, 0, -1):
        fits = widest(with_sizes(top, layers=layers), most_bytes, bytes_of)
        if fits is not None:
            found.append(fits)
        if fits is not None and fits.inner == top.inner:
            break
    if not found:
        least = bytes_of(with_sizes(top, layers=1, inner=widths_of(top.inner)[0]))
        raise InfeasibleError(
            f"no slice of the language model keeps within {most_bytes:,} bytes: one layer of the "
            f"fewest units takes {least:,}. Raise the budget, or keep fewer tokens"
        )
    wide = [spec for spec in found if 4 * spec.inner >= top.inner] or found[-1:]
    last = len(wide) - 1
    chosen = {round(i * last / max(1, count - 1)) for i in range(count)}
    return [wide[i] for i in sorted(chosen)]


def widest(
    spec: DecoderSpec, most_bytes: int, bytes_of: Callable[[DecoderSpec], int]
) -> DecoderSpec | None:
    """Return the spec with as many units as fit, by bisection; None where the fewest do not."""
    widths = widths_of(spec.inner)
    low, high = -1, len(widths) - 1  # of these, `low` fits and all above `high` do not
    while low < high:
        middle = (low + high + 1) // 2
        if bytes_of(with_sizes(spec, inner=widths[middle])) <= most_bytes:
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else with_sizes(spec, inner=widths[low])


def widths_of(whole: int) -> list[int]:
    """Return the widths to consider, rising; a file's blocks divide them where they can."""
    step = _BLOCK if whole >= 2 * _BLOCK else 2
    return [*range(step, whole, step), whole]


def steps_to(spec: DecoderSpec, wanted: DecoderSpec, *, most: float = 0.4) -> list[DecoderSpec]:
    """Return the specs on the way to `wanted`, that one last: each has lost about `most` at most.

    That is the share of the weights in layers; layers, units, groups and numbers shrink together.
    Tokens all go at once, since the data has none of them. Raises `StudentError` where `wanted` is
    no part of `spec`, or `most` no share.
    """
    why = why_no_part(wanted, spec)
    if why or not 0 < most < 1:
        raise StudentError(
            f"there is no way to this language model: {why or f'most is {most}, not between 0, 1'}"
        )
    left = in_layers(wanted) / in_layers(spec)
    count = max(1, math.ceil(math.log(left) / math.log(1 - most) - _ABOUT))
    found: list[DecoderSpec] = []
    for step in range(1, count):
        between = _between(spec, wanted, step / count)
        if between not in (wanted, *found):
            found.append(between)
    return [*found, wanted]


def _between(spec: DecoderSpec, wanted: DecoderSpec, share: float) -> DecoderSpec:
    """Return the sizes at a share of the way, each by the same factor a step."""

    def at(name: str) -> float:
        start, end = getattr(spec, name), getattr(wanted, name)
        return start * (end / start) ** share

    inner, hidden = (
        min((w for w in widths_of(getattr(spec, name)) if w >= getattr(wanted, name)),
            key=lambda w, name=name: abs(w - at(name)))
        for name in ("inner", "hidden")
    )  # fmt: skip
    sizes = {"layers": round(at("layers")), "inner": inner, "vocabulary": wanted.vocabulary}
    for numbers in sorted({hidden, wanted.hidden, spec.hidden}, key=lambda n: abs(n - hidden)):
        for groups in range(math.ceil(at("groups") - 1e-6), spec.groups + 1):
            try:
                return with_sizes(spec, groups=groups, hidden=numbers, **sizes)
            except StudentError:
                continue  # heads that do not divide the numbers of a token: other sizes
    return with_sizes(spec, **sizes)
