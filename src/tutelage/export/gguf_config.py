"""A decoder's config.json as keys of a GGUF file; what llama.cpp computes otherwise is refused.

Source: set_gguf_parameters of llama.cpp's conversion scripts, and its load_arch_hparams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from tutelage.errors import ExportError
from tutelage.export.gguf_names import Architecture, names_of, of_model_type

Config = Mapping[str, Any]
ROPE_FACTORS = "rope_freqs.weight"
WINDOW_PERIOD = 2  # gemma2: every second layer sees the whole text
_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}


def architecture_of(config: Config) -> Architecture:
    """Return what a network is called in GGUF; raises `ExportError` where it has no name there."""
    found = of_model_type(config.get("model_type"))
    if found is None:
        raise ExportError(
            f"a network of type '{config.get('model_type')}' cannot be written as GGUF: use one of "
            + names_of("model_type")
        )
    return found


def metadata_of(config: Config) -> dict[str, Any]:
    """Return the keys that describe the network.

    Raises `ExportError` for a network of another type, or of parts that llama.cpp has not.
    """
    arch = architecture_of(config)
    _check_like(config, arch)
    head = head_size(config)
    keys: dict[str, Any] = {key: _size(config, name) for name, key in _SIZES.items()}
    keys["context_length"] = _context(config, arch)
    keys["attention.head_count_kv"] = kv_heads(config)
    keys["attention.layer_norm_rms_epsilon"] = float(config.get("rms_norm_eps", 1e-6))
    keys |= {"attention.key_length": head, "attention.value_length": head}
    keys |= {"rope.dimension_count": head, **_rope_keys(config)}
    if arch.name == "gemma2":
        keys |= _gemma2_keys(config, head)
    return {f"{arch.name}.{key}": value for key, value in keys.items()}


def head_size(config: Config) -> int:
    """Return the numbers of a head."""
    size = config.get("head_dim")
    return (
        int(size) if size else _size(config, "hidden_size") // _size(config, "num_attention_heads")
    )


def kv_heads(config: Config) -> int:
    """Return the heads of keys and values of a layer."""
    return int(config.get("num_key_value_heads") or _size(config, "num_attention_heads"))


def rope_of(config: Config) -> dict[str, Any]:
    """Return base (`rope_theta`), kind (`rope_type`) and options of the rotary positions."""
    options = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = options.pop("type", None)
    options.setdefault("rope_type", kind or "default")
    options.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return options


def rope_factors(config: Config) -> list[float] | None:
    """Return what Llama 3.1's scaling divides each frequency by [head / 2]; None without it."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    return llama3_factors(
        head_size(config), float(rope["rope_theta"]), float(rope["factor"]),
        float(rope["low_freq_factor"]), float(rope["high_freq_factor"]),
        float(rope["original_max_position_embeddings"]),
    )  # fmt: skip


def llama3_factors(
    head: int, base: float, factor: float, low: float, high: float, context: float
) -> list[float]:
    """Return the divisor of each frequency: 1 for short waves, `factor` for long ones, between."""
    found = []
    for i in range(0, head, 2):
        wave = 2 * math.pi * base ** (i / head)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def wanted_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that the network must have, by Hugging Face's names."""
    vocabulary, hidden = _size(config, "vocab_size"), _size(config, "hidden_size")
    inner, head = _size(config, "intermediate_size"), head_size(config)
    queries, groups = _size(config, "num_attention_heads") * head, kv_heads(config) * head
    wanted = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not is_tied(config):
        wanted["lm_head.weight"] = (vocabulary, hidden)
    each = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (groups, hidden), "self_attn.v_proj": (groups, hidden),
        "self_attn.o_proj": (hidden, queries), "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    layers = range(_size(config, "num_hidden_layers"))
    return wanted | {f"model.layers.{i}.{n}.weight": s for i in layers for n, s in each.items()}


def is_tied(config: Config) -> bool:
    """Say whether the head is the embedding."""
    gemma = str(config.get("model_type")).startswith("gemma")
    return bool(config.get("tie_word_embeddings", gemma))


def _size(config: Config, name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(
            f"the network's config says {name}: {value!r}, which is no size. Correct config.json"
        )
    return value


def _rope_keys(config: Config) -> dict[str, Any]:
    rope = rope_of(config)
    kind = rope["rope_type"]
    keys: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind not in ("default", "llama3"):
        raise _refusal("rope_type", kind, "llama.cpp is not known to compute its positions alike")
    return keys


def _context(config: Config, arch: Architecture) -> int:
    """Return the longest text; llama.cpp knows no window in these, so none is longer than one."""
    longest = _size(config, "max_position_embeddings")
    window = config.get("sliding_window")
    used = arch.model_type == "mistral" or bool(config.get("use_sliding_window"))
    return min(longest, int(window)) if window and used else longest


def _gemma2_keys(config: Config, head: int) -> dict[str, Any]:
    types = config.get("layer_types") or []
    period: tuple[Literal["sliding_attention"], Literal["full_attention"]]
    period = ("sliding_attention", "full_attention")
    if any(kind != period[i % WINDOW_PERIOD] for i, kind in enumerate(types)):
        raise _refusal("layer_types", "another order", "llama.cpp takes every second layer as full")
    if float(config.get("query_pre_attn_scalar", head)) != head:
        raise _refusal("query_pre_attn_scalar", config["query_pre_attn_scalar"], f"use {head}")
    return {
        "attention.sliding_window": _size(config, "sliding_window"),
        "attn_logit_softcapping": float(config.get("attn_logit_softcapping") or 0.0),
        "final_logit_softcapping": float(config.get("final_logit_softcapping") or 0.0),
    }


def _check_like(config: Config, arch: Architecture) -> None:
    active = [config[k] for k in ("hidden_activation", "hidden_act") if config.get(k)]
    if active and active[0] not in (arch.activation, *(["gelu"] if arch.norm_shift else [])):
        raise _refusal("hidden_act", active[0], f"llama.cpp computes {arch.activation} here")
    if float(rope_of(config).get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refusal("partial_rotary_factor", "below 1", "every number of a head must rotate")
    for key in ("quantization_config", "num_local_experts", "num_experts"):
        if config.get(key):
            raise _refusal(key, "set", "only plain, dense weights are written")


def _refusal(key: str, value: Any, why: str) -> ExportError:
    return ExportError(
        f"the network cannot be written as GGUF, since its config says {key}: {value} and {why}. "
        "Choose another teacher or export it with llama.cpp's own script"
    )
