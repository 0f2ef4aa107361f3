"""Writing GGUF: what transformers reads of it, exact bytes, blocks by hand, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_samples as samples
import numpy as np
import pytest
import torch
from text_samples import refused

from tutelage.devices.gguf_sizes import bytes_a_token, gguf_bytes
from tutelage.errors import ExportError
from tutelage.export.gguf import gguf_file_bytes, write_gguf
from tutelage.export.gguf_names import rotated, unrotated
from tutelage.export.gguf_tokenizer import read_tokenizer

transformers: Any = pytest.importorskip("transformers")
gguf: Any = pytest.importorskip("gguf")

KINDS = ("llama", "llama, untied", "qwen2")  # what transformers reads as it is


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return samples.byte_level(tmp_path_factory.mktemp("tokenizer"), "gpt-2")


def write(path, model, tokenizer, quantization="f16", **changes):
    config = {**samples.config_of(model), **changes}
    return write_gguf(path, config, model.state_dict(), tokenizer, quantization=quantization)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_network(kind, tmp_path, tokenizer):
    model = samples.network(kind)
    if kind == "llama, untied":  # transformers' reader does not know of biases in Llama
        model = samples.network(kind, **dict.fromkeys(samples.BIASES, False))
    write(tmp_path / "model.gguf", model, tokenizer)
    options = {"gguf_file": "model.gguf", "dtype": torch.float32}
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    ids, plain = samples.some_ids(), samples.rounded(model)
    assert type(read) is type(model)
    want = samples.said(plain, ids)
    torch.testing.assert_close(samples.said(read, ids), want, rtol=0, atol=1e-4 * float(want.std()))
    assert read.config.eos_token_id == 2
    assert read.config.tie_word_embeddings is model.config.tie_word_embeddings


def test_rows_of_queries_and_keys_come_in_pairs():
    rows = np.arange(8).repeat(2).reshape(8, 2)  # two heads of four: halves (0, 1) and (2, 3)
    assert rotated(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert unrotated(rotated(rows, 2), 2).tolist() == rows.tolist()
    bias = torch.arange(8)
    assert rotated(bias, 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_transformers_reads_the_same_tokens(pre, tmp_path):
    folder = samples.byte_level(tmp_path / "tokenizer", pre)
    write(tmp_path / "model.gguf", samples.network(), folder)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    own = samples.load(folder)
    for text in samples.TEXTS:
        assert read(text).input_ids == own(text).input_ids, text
    assert read.chat_template == samples.CHAT
    assert (read.bos_token, read.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_transformers_reads_a_tokenizer_with_byte_fallback(tmp_path):
    folder = samples.fallback(tmp_path / "tokenizer")
    write(tmp_path / "model.gguf", samples.network(), folder)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    own = samples.load(folder)
    for text in [*samples.TEXTS[:6], "good über film"]:
        assert read(text).input_ids == own(text).input_ids, text
    assert own("good film").input_ids[0] == 1


FILE_TYPES = {"f16": 1, "q8_0": 7, "q5_1": 9, "q5_0": 8, "q4_1": 3, "q4_0": 2}  # llama.cpp's


@pytest.mark.parametrize("quantization", FILE_TYPES)
def test_bytes_are_known_before(quantization, tmp_path, tokenizer):
    model = samples.network("llama", intermediate_size=100)  # 32 does not divide its rows
    shapes, config = shapes_of(model), samples.config_of(model)
    path = write(tmp_path / "m.gguf", model, tokenizer, quantization)
    told = gguf_file_bytes(config, shapes, tokenizer, quantization=quantization, name="m")
    assert path.stat().st_size == told
    reader = gguf.GGUFReader(path)
    data = path.stat().st_size - reader.data_offset
    assert data == gguf_bytes(shapes, quantization, tied=True)
    kinds = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "f16" and kinds["blk.0.attn_norm.weight"] == "f32"
    assert kinds["blk.0.ffn_up.weight"] == quantization and "output.weight" not in kinds
    assert kinds["token_embd.weight"] == (quantization if quantization == "f16" else "q8_0")
    assert reader.fields["general.file_type"].contents() == FILE_TYPES[quantization]


def test_bytes_by_hand():
    shapes = {"model.embed_tokens.weight": (10, 64), "lm_head.weight": (10, 64),
              "model.norm.weight": (64,), "a.weight": (3, 32), "b.weight": (3, 33)}  # fmt: skip
    # 10 x 2 blocks of 34; 64 x 4; 3 blocks of 18, padded; 99 x 2, padded.
    assert gguf_bytes(shapes, "q4_0", tied=True) == 704 + 256 + 64 + 224
    assert gguf_bytes(shapes, "q4_0") == 2 * 704 + 256 + 64 + 224
    assert gguf_bytes(shapes, "f16") == 2 * 1280 + 256 + 192 + 224
    assert bytes_a_token(shapes, "q8_0") == 680 + 256 + 3 * 34 + 198
    assert bytes_a_token(shapes, "q8_0", tied=True) == bytes_a_token(shapes, "q8_0")


@pytest.mark.parametrize(("quantization", "step"), [("q8_0", 1 / 127), ("q4_0", 1 / 8)])
def test_blocks_are_ggmls(quantization, step, tmp_path, tokenizer):
    model = samples.network()
    path = write(tmp_path / "m.gguf", model, tokenizer, quantization)
    read = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.1.ffn_up.weight"]
    want = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    got = gguf.dequantize(read.data, read.tensor_type)
    worst = np.abs(got - want).reshape(-1, 32).max(1) / np.abs(want).reshape(-1, 32).max(1)
    # q4_0 has 16 steps, and at one end up to a whole one is lost; scales are rounded to float16.
    assert worst.max() <= step * (0.57 if quantization == "q8_0" else 1.01) and worst.min() > 0


def test_blocks_by_hand(tmp_path, tokenizer):
    model = samples.network()
    rows = model.model.layers[0].mlp.up_proj.weight.data
    rows[0, :32] = torch.arange(-8, 8).repeat_interleave(2) * 0.5
    rows[1, :32] = 3e-39  # too small for a scale
    path = write(tmp_path / "m.gguf", model, tokenizer, "q4_0")
    data = {t.name: t.data for t in gguf.GGUFReader(path).tensors}["blk.0.ffn_up.weight"]
    assert data[0, :2].view(np.float16) == 0.5
    # Low halves are the first 16 numbers, high halves the last: codes 0..7 and 8..15, each twice.
    assert data[0, 2:18].tolist() == [i // 2 + (8 + i // 2) * 16 for i in range(16)]
    assert data[1, :2].view(np.float16) == 0


def test_specials_and_kinds_of_tokens(tmp_path):
    folder = samples.fallback(tmp_path)
    fields = read_tokenizer(folder, {"vocab_size": samples.ROWS})
    assert fields.types[:4] == [2, 3, 3, 6] and fields.types[-1] == 5  # unknown, control, byte, pad
    assert fields.tokens[-1] == f"[PAD{samples.ROWS - 1}]"
    assert fields.specials == {"bos": 1, "eos": 2, "unknown": 0}
    assert (fields.adds_bos, fields.adds_eos, fields.space_prefix) == (True, False, True)
    earlier, later = fields.tokens.index("▁g"), fields.tokens.index("▁good")
    assert fields.scores[earlier] > fields.scores[later] > fields.scores[fields.tokens.index("z")]


def test_a_chat_template_is_found_where_it_lies(tmp_path):
    folder = samples.byte_level(tmp_path, template=None)
    config = {"vocab_size": samples.ROWS}
    assert read_tokenizer(folder, config).chat_template is None
    said = json.loads((folder / "tokenizer_config.json").read_text())
    listed = [{"name": "default", "template": "x"}, {"name": "tools", "template": "y"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": listed}))
    assert read_tokenizer(folder, config).chat_template == "x"
    (folder / "chat_template.jinja").write_text("z")
    assert read_tokenizer(folder, config).chat_template == "z"


# --- refusals ---------------------------------------------------------------------------------


def test_networks_that_llama_cpp_computes_otherwise_are_refused(tmp_path, tokenizer):
    model = samples.network()

    def refuse(what, **changes):
        refused(what, write, tmp_path / "m.gguf", model, tokenizer, **changes)

    refuse("of type 'bert' cannot be written as GGUF: use one of llama", model_type="bert")
    refuse("hidden_act: relu", hidden_act="relu")
    refuse("rope_type: dynamic", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4})
    refuse("quantization_config: set", quantization_config={"bits": 4})
    refuse("hidden_size: None, which is no size", hidden_size=None)
    refuse("quantization 'q2_k' is not known", quantization="q2_k")
    refuse("'model.layers.2.input_layernorm.weight' is missing", num_hidden_layers=3)
    refuse("more than the 1 layers", num_hidden_layers=1)
    refuse("is [96, 64] where its config asks for [64, 64]", intermediate_size=64)
    gemma = samples.network("gemma2")
    error = refused("layer_types: another order", write, tmp_path / "m.gguf", gemma, tokenizer,
                    layer_types=["full_attention"] * 2)  # fmt: skip
    assert "llama.cpp" in error and not list(tmp_path.glob("*.gguf*"))


def test_tensors_that_cannot_be_stored_are_refused(tmp_path, tokenizer):
    model = samples.network()
    state, config = model.state_dict(), samples.config_of(model)

    def refuse(what, **changes):
        tensors = {**state, **changes}
        refused(
            what, write_gguf, tmp_path / "m.gguf", config, tensors, tokenizer, quantization="f16"
        )
        assert not list(tmp_path.iterdir())

    norm = {"model.norm.weight": torch.full((64,), torch.nan)}
    refuse("'model.norm.weight' holds nan, which f32 cannot store", **norm)
    large = {"model.layers.0.mlp.up_proj.weight": torch.full((96, 64), 7e4)}
    refuse("holds 70000, which f16 cannot store", **large)
    refuse("'extra.weight' has no place in a GGUF file", **{"extra.weight": torch.ones(3, 3)})
    other = {"lm_head.weight": torch.ones(samples.ROWS, 64)}
    refuse("'lm_head.weight' differs from its embedding", **other)


def test_tokenizers_that_llama_cpp_reads_otherwise_are_refused(tmp_path):
    folder, config = samples.byte_level(tmp_path), {"vocab_size": samples.ROWS}
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())

    def refuse(what, rows=samples.ROWS, **changes):
        path.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(ExportError) as caught:
            read_tokenizer(folder, {"vocab_size": rows})
        assert what in str(caught.value) and "\n" not in str(caught.value)

    spaced = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    refuse("has no name in llama.cpp", pre_tokenizer=spaced)
    refuse("has no name in llama.cpp", normalizer={"type": "Lowercase"})
    refuse("is of type 'Unigram', and only BPE", model={"type": "Unigram", "vocab": []})
    refuse("and the network has 100 rows of them", rows=100)
    cut = json.loads((samples.fallback(tmp_path / "cut") / "tokenizer.json").read_text())
    del cut["model"]["vocab"]["<0x41>"]
    refuse("keep all 256", **cut)
    path.unlink()
    refused("has no tokenizer.json", read_tokenizer, folder, config)
