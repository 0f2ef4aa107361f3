"""What a decoder is called in a GGUF file: architectures and the names of tensors.

Source: llama.cpp's conversion scripts and gguf-py's tensor_mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PREFIX = "model.layers."
_ENDS = (".weight", ".bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A kind of decoder: `name` in GGUF, `model_type` and class `network` in transformers.

    `permuted`: rows of queries and keys are stored in pairs, as the first Llama had them.
    `norm_shift` is what stored norms are larger by. `renamed` are layer names that differ.
    """

    name: str
    model_type: str
    network: str
    activation: str = "silu"
    permuted: bool = False
    norm_shift: float = 0.0
    renamed: Mapping[str, str] = field(default_factory=dict)

    def stored_name(self, name: str) -> str | None:
        """Return the name in GGUF of a tensor of transformers; None where there is none."""
        return _map(name, _TOP, {**_LAYER, **self.renamed}, _PREFIX, "blk.")

    def network_name(self, name: str) -> str | None:
        """Return the name in transformers of a tensor of GGUF; None where there is none."""
        layer = {**_LAYER, **self.renamed}
        return _map(name, _flip(_TOP), _flip(layer), "blk.", _PREFIX)


_GEMMA = {"activation": "gelu_pytorch_tanh", "norm_shift": 1.0}
ARCHITECTURES = (
    Architecture(name="llama", model_type="llama", network="LlamaForCausalLM", permuted=True),
    Architecture(name="llama", model_type="mistral", network="MistralForCausalLM", permuted=True),
    Architecture(name="qwen2", model_type="qwen2", network="Qwen2ForCausalLM"),
    Architecture(name="qwen3", model_type="qwen3", network="Qwen3ForCausalLM"),
    Architecture(name="gemma", model_type="gemma", network="GemmaForCausalLM", **_GEMMA),
    Architecture(
        name="gemma2", model_type="gemma2", network="Gemma2ForCausalLM", **_GEMMA,
        renamed=_FOUR_NORMS,
    ),
)  # fmt: skip


def of_model_type(model_type: object) -> Architecture | None:
    """Return the architecture of a transformers model type."""
    return next((a for a in ARCHITECTURES if a.model_type == model_type), None)


def of_name(name: object) -> Architecture | None:
    """Return the architecture that a GGUF file names."""
    return next((a for a in ARCHITECTURES if a.name == name), None)


def names_of(kind: str) -> str:
    """List what is known, for a message: by `name` or by `model_type`."""
    return ", ".join(dict.fromkeys(str(getattr(a, kind)) for a in ARCHITECTURES))


def rotated(rows: Any, heads: int) -> Any:
    """Reorder rows of queries or keys [heads x 2 halves x pairs, ...] to pairs, as GGUF has them.

    Takes and returns a numpy array or a tensor, weights and biases alike.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unrotated(rows: Any, heads: int) -> Any:
    """Undo `rotated`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _map(
    name: str, top: Mapping[str, str], layer: Mapping[str, str], before: str, after: str
) -> str | None:
    end = next((e for e in _ENDS if name.endswith(e)), None)
    if end is None:
        return None
    stem = name.removesuffix(end)
    if stem in top:
        return top[stem] + end
    number, _, rest = stem.removeprefix(before).partition(".")
    if not stem.startswith(before) or not number.isdecimal() or rest not in layer:
        return None
    return f"{after}{number}.{layer[rest]}{end}"


def _flip(names: Mapping[str, str]) -> dict[str, str]:
    return {b: a for a, b in names.items()}
