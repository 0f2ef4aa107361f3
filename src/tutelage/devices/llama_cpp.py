"""What a decoder would take in llama.cpp on a device, by arithmetic alone: memory, tokens a second.

Covers weights, the cache of keys and values, and llama.cpp's working memory, one conversation at a
time on the CPU. Does not cover the program itself, the tokenizer's tables (some 20 MB for 50,000
tokens), or memory that several conversations need. Everything here is predicted.

The working memory was compared with what llama.cpp (of llama-cpp-python 0.3.36) reports for
SmolLM2-135M (49,152 tokens, 576 numbers a token, 9 heads): contexts of 512, 2048 and 8192 take
98.25, 99.38 and 166.38 MiB, and 99.38, 99.38 and 166.75 MiB are predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.devices.profile import Device
from tutelage.records import Measurement

BATCH = 512  # tokens of a prompt that llama.cpp reads at once
_PADDED = 256  # tokens to which the cache is rounded up
_HALF, _SINGLE = 2, 4  # bytes
_KEPT = 3  # vectors a token alive beside the logits
_ATTENDING = 6  # vectors a token alive beside the scores of attention


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSize:
    """Sizes of a decoder; `heads` are of queries, `groups` of keys and values."""

    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderSize:
        """Read the sizes of a Hugging Face config."""
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]), hidden=hidden, heads=heads,
            inner=int(config["intermediate_size"]), vocabulary=int(config["vocab_size"]),
            groups=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppMemory:
    """Bytes by what they hold; `total` is what llama.cpp reserves, its interval what it touches."""

    weight_bytes: int
    cache_bytes: int
    work_bytes: int
    total: Measurement


def cache_bytes(size: DecoderSize, context: int) -> int:
    """Return the bytes of keys and values (float16) of `context` tokens in all layers."""
    rows = -(-context // _PADDED) * _PADDED
    return 2 * size.layers * rows * size.groups * size.head_size * _HALF


def work_bytes(size: DecoderSize, context: int, *, least: bool = False) -> int:
    """Return llama.cpp's working memory: the largest of its stages, for a batch of the prompt.

    Logits of every token of the batch; or, without flash attention, its scores in all heads and
    their mask; or the feed-forward part. `least` counts the last alone: of what is reserved for
    logits a chat touches one row, and flash attention keeps no scores.
    """
    batch = min(BATCH, context)
    rows = -(-context // _PADDED) * _PADDED
    logits = size.vocabulary + _KEPT * size.hidden
    scores = (size.heads + 1) * rows + _ATTENDING * size.hidden
    inner = 2 * size.inner + _KEPT * size.hidden
    return batch * _SINGLE * (inner if least else max(logits, inner, scores))


def predict_memory(size: DecoderSize, weight_bytes: int, context: int) -> LlamaCppMemory:
    """Predict the memory of weights, cache and work for texts of up to `context` tokens."""
    cache, work = cache_bytes(size, context), work_bytes(size, context)
    least = work_bytes(size, context, least=True)
    total = Measurement(
        name="ram", value=float(weight_bytes + cache + work), unit="B", kind="predicted",
        spread=(float(weight_bytes + cache + least), float(weight_bytes + cache + work)),
        where=f"llama.cpp, context {context}: weights, cache and working memory",
    )  # fmt: skip
    return LlamaCppMemory(
        weight_bytes=weight_bytes, cache_bytes=cache, work_bytes=work, total=total
    )


def predict_tokens_per_s(
    size: DecoderSize, read_bytes: int, device: Device, *, filled: int = 0
) -> Measurement | None:
    """Predict how fast tokens are said with `filled` tokens before; None without a bandwidth.

    A token needs `read_bytes` of weights (`gguf_sizes.bytes_a_token`) and the cache so far, and
    one multiplication a weight: time is the longer of the two at typical figures, at best with the
    best, at worst the sum with the worst (Williams et al., 2009, "Roofline").
    """
    if device.bandwidth is None:
        return None
    cached = 2 * size.layers * filled * size.groups * size.head_size * _HALF
    moved, macs = read_bytes + cached, _macs(size, filled)
    slow, fast = device.bandwidth.bounds
    rates = [device.throughput[p] for p in ("int8", "float32") if p in device.throughput]
    counted = [0.0, 0.0, 0.0]
    if rates:
        low, high = rates[0].bounds
        counted = [macs / low, macs / rates[0].typical, macs / high]
    worst = moved / slow + counted[0]
    typical = max(moved / device.bandwidth.typical, counted[1])
    best = max(moved / fast, counted[2])
    return Measurement(
        name="tokens_per_s", value=1 / typical, unit="token/s", kind="predicted",
        spread=(1 / worst, 1 / best),
        where=f"{device.name}: {moved / 1e6:.4g} MB read a token, after {filled} tokens",
    )  # fmt: skip


def _macs(size: DecoderSize, filled: int) -> int:
    attention = size.hidden * size.head_size * (2 * size.heads + 2 * size.groups)
    scores = 2 * size.heads * size.head_size * filled
    layer = attention + 3 * size.hidden * size.inner + scores
    return size.layers * layer + size.hidden * size.vocabulary
