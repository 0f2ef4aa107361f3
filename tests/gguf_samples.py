"""Tiny decoders with random weights and tokenizers trained on the spot, for the tests of GGUF."""

import copy
import json
import struct
from typing import Any

import torch
import transformers
from text_samples import LETTERS, WORDS, some_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tutelage.export.pre_tokenizers import named

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
ROWS = 330
TEXTS = [
    *some_texts(6, seed=3),
    "In 1234, I've 3.14 (ok) —\n\n\t it's über",
    "<|im_start|>hi<|im_end|>",
]
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": ROWS,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
        "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # fmt: skip
BIASES = ("attention_bias", "mlp_bias")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama, untied": ("Llama", {"num_key_value_heads": 4, **dict.fromkeys(BIASES, True)}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32}),
}


def network(kind="llama", **more):
    """A network whose norms and biases are random too, so that none can be lost unseen."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **options, **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "gemma" not in kind else 0.0, std=0.3)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def config_of(model):
    return json.loads(json.dumps(model.config.to_dict(), default=str))


def byte_level(folder, pre="smollm", template=CHAT):
    """A tokenizer as SmolLM's: digits one by one, chat tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 10, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(some_texts(100) + [" 12 34 56"] * 20, trainer)
    data = json.loads(made.to_str())
    data["pre_tokenizer"] = named(pre).parts()
    data["normalizer"] = {"type": "NFC"} if named(pre).composed else None
    data["model"]["ignore_merges"] = named(pre).whole_words
    return save(Tokenizer.from_str(json.dumps(data)), folder, template)


def fallback(folder, template=CHAT):
    """A tokenizer as Llama 2's: unknown letters in bytes, a first token, a space before a text."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *LETTERS,
    ]
    merges = []
    for word in ["▁" + w for w in WORDS[:6]]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    made = Tokenizer.from_str(json.dumps({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": None, "post_processor": None,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(pieces)}, "merges": merges,
                  "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }))  # fmt: skip
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return save(made, folder, template, roles)


def save(tokenizer, folder, template, roles=None):
    roles = roles or {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **roles,
    )
    made.save_pretrained(folder)
    return folder


def load(folder):
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def some_ids(n=3, length=12):
    return torch.randint(4, ROWS, (n, length), generator=torch.Generator().manual_seed(1))


def rounded(model):
    """A copy whose matrices are rounded to float16, as a file has them."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    return made


def said(model, ids):
    with torch.no_grad():
        return model(ids).logits


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def header(*keys, tensors=(), version=3, counts=None):
    """A GGUF header by hand, from packed keys and tensor rows."""
    most = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", version, *most) + b"".join([*keys, *tensors])
