"""Tiny language models of every kind that is covered, with random weights, and token ids."""

import pytest
import torch

from tutelage.students.decoders.network import KINDS, Decoder, spec_of

pytest.importorskip("transformers")

SIZE = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 4, "intermediate_size": 24, "vocab_size": 61, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MORE = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {"eos_token_id": [2, 3]},
    "gemma": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 4},
}
assert set(MORE) == set(KINDS)


def config(kind, **changes):
    return {"model_type": kind, **SIZE, **MORE[kind], **changes}


def decoder(kind="llama", seed=0, **changes):
    """Weights are large enough for every part to change the decision."""
    torch.manual_seed(seed)
    made = Decoder(spec_of(config(kind, **changes))).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "norm" in name else 0.15))
            if "norm" in name and not kind.startswith("gemma"):
                parameter.add_(1.0)
    return made


def some_ids(count=6, length=12, seed=1):
    return torch.randint(4, 61, (count, length), generator=torch.Generator().manual_seed(seed))


def said(network, ids=None):
    with torch.no_grad():
        return network(some_ids() if ids is None else ids)
