"""GGUF files as teachers: round trips of every architecture, and files that cannot be trusted."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf_samples as samples
import pytest
import torch
from text_samples import refused

from tutelage.errors import CorruptFileError, MissingExtra, TeacherError
from tutelage.export.gguf import write_gguf
from tutelage.teach.gguf_file import is_gguf, open_gguf
from tutelage.teach.gguf_header import BLOCKS, read_header

gguf: Any = pytest.importorskip("gguf")


def write(path, kind="llama", tokenizer=None, quantization="f16", **more):
    model = samples.network(kind, **more)
    folder = tokenizer or samples.byte_level(path.parent / "tokenizer")
    config = samples.config_of(model)
    write_gguf(path, config, model.state_dict(), folder, quantization=quantization)
    return model, folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    write(path)
    return path


@pytest.mark.parametrize("kind", samples.KINDS)
def test_a_network_comes_back(kind, tmp_path, whole):
    model, _ = write(tmp_path / "m.gguf", kind, whole.parent / "tokenizer")
    read, _ = open_gguf(tmp_path / "m.gguf")
    ids = samples.some_ids()
    want = samples.said(samples.rounded(model), ids)
    torch.testing.assert_close(samples.said(read, ids), want, rtol=0, atol=1e-4 * float(want.std()))
    assert not read.training and {p.dtype for p in read.parameters()} == {torch.float32}
    for key in ("head_dim", "rms_norm_eps", "vocab_size", "rope_parameters", "eos_token_id"):
        assert getattr(read.config, key, None) == getattr(model.config, key, None), key
    assert read.config.tie_word_embeddings is model.config.tie_word_embeddings
    mistral = kind == "mistral"  # is a llama to llama.cpp
    assert read.config.model_type == ("llama" if mistral else model.config.model_type)


@pytest.mark.parametrize(("quantization", "most"), [("q8_0", 0.03), ("q4_0", 0.4)])
def test_a_quantized_network_is_read(quantization, most, tmp_path, whole):
    model, _ = write(tmp_path / "m.gguf", "llama", whole.parent / "tokenizer", quantization)
    read, _ = open_gguf(tmp_path / "m.gguf")
    want = samples.said(model, samples.some_ids())
    off = (samples.said(read, samples.some_ids()) - want).std() / want.std()
    assert 0 < float(off) < most


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_a_tokenizer_comes_back(pre, tmp_path):
    folder = samples.byte_level(tmp_path / "tokenizer", pre)
    write(tmp_path / "m.gguf", tokenizer=folder)
    own, (_, read) = samples.load(folder), open_gguf(tmp_path / "m.gguf", chat=True)
    for text in samples.TEXTS:
        ids = own(text).input_ids
        assert read(text).input_ids == ids and read.decode(ids) == own.decode(ids), text
    turns = [{"role": "user", "content": "Hi 12"}]
    assert read.apply_chat_template(turns, tokenize=False) == "<|im_start|>user\nHi 12<|im_end|>\n"
    if pre == "smollm":
        assert read.tokenize("12") == ["1", "2"]


def test_a_tokenizer_with_byte_fallback_comes_back(tmp_path):
    folder = samples.fallback(tmp_path / "tokenizer")
    write(tmp_path / "m.gguf", tokenizer=folder)
    own, (_, read) = samples.load(folder), open_gguf(tmp_path / "m.gguf")
    for text in [*samples.TEXTS, "good über film"]:
        ids = own(text).input_ids
        assert read(text).input_ids == ids and read.decode(ids) == own.decode(ids), text


def test_a_tokenizer_survives_saving_and_writing_again(tmp_path, whole):
    model, tokenizer = open_gguf(whole)
    tokenizer.save_pretrained(tmp_path / "again")
    config = samples.config_of(model)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, model.state_dict(), tmp_path / "again", quantization="f16")
    first, second = read_header(whole), read_header(path)
    assert first.metadata == second.metadata
    assert path.read_bytes() == whole.read_bytes()


def test_blocks_are_ggmls():
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert all(sizes[kind] == block for kind, block in BLOCKS.items())


def test_a_missing_chat_template_is_said(tmp_path):
    write(tmp_path / "m.gguf", tokenizer=samples.byte_level(tmp_path / "plain", template=None))
    assert open_gguf(tmp_path / "m.gguf")[1].chat_template is None
    refused(
        "has no chat template, and the data holds chats", open_gguf, tmp_path / "m.gguf", chat=True
    )


def test_a_missing_library_is_named(whole, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tutelage\[hf\]'"):
        open_gguf(whole)


# --- files that cannot be trusted --------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(share, tmp_path, whole):
    raw = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw[: max(5, int(len(raw) * share))])
    refused("is truncated or damaged", open_gguf, path)
    with pytest.raises(CorruptFileError):
        read_header(path)


def test_what_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    refused("cannot be read", open_gguf, path)
    for raw in (b"", b"GG", b"ggml" + bytes(100)):
        path.write_bytes(raw)
        refused("is no GGUF file", open_gguf, path)
    assert is_gguf(path) and not is_gguf(tmp_path)


S, U = 8, 4  # kinds of values: string, uint32
ARCH = samples.key("general.architecture", S, samples.text("llama"))
ROW = samples.text("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
LIES = {
    "version 1": (samples.header(version=1), "is GGUF version 1, and"),
    "the other byte order": (samples.header(version=3 << 24), "of a big-endian machine"),
    "countless keys": (samples.header(counts=(0, 1 << 60)), "1152921504606846976 keys"),
    "countless tensors": (samples.header(counts=(1 << 60, 0)), "1152921504606846976 tensors"),
    "a string of 2^60": (samples.header(struct.pack("<Q", 1 << 60)), "within its header"),
    "an array of 2^60": (
        samples.header(samples.key("a", 9, struct.pack("<IQ", U, 1 << 60))), "within its header"),
    "strings, 2^60": (
        samples.header(samples.key("a", 9, struct.pack("<IQ", S, 1 << 60))), "within its header"),
    "an array of arrays": (
        samples.header(samples.key("a", 9, struct.pack("<IQ", 9, 1))), "a value of type 9"),
    "an unknown value": (samples.header(samples.key("a", 77, bytes(8))), "a value of type 77"),
    "a key twice": (samples.header(ARCH, ARCH), "'general.architecture' twice"),
    "no text": (samples.header(samples.key(b"\xff\xfe", U, bytes(4))), "is no text"),
    "alignment 0": (
        samples.header(samples.key("general.alignment", U, bytes(4))), "its alignment is 0"),
    "weights that are not there": (samples.header(ARCH, tensors=[ROW]), "ends at byte"),
    "seven dimensions": (
        samples.header(tensors=[samples.text("t") + struct.pack("<I7QIQ", 7, *[1] * 7, 0, 0)]),
        "has 7 dimensions"),
    "a shape of 2^126": (
        samples.header(tensors=[samples.text("t") + struct.pack("<I4QI", 3, *3 * [1 << 42], 0, 0)]),
        "ends at byte"),
    "half a block": (
        samples.header(tensors=[samples.text("t") + struct.pack("<IQIQ", 1, 33, 2, 0)]),
        "has the shape [33]"),
    "an unknown type": (
        samples.header(tensors=[samples.text("t") + struct.pack("<IQIQ", 1, 8, 99, 0)]),
        "in ggml's type 99"),
    "no architecture": (samples.header(), "of type 'None', which is not known here"),
    "another architecture": (
        samples.header(samples.key("general.architecture", S, samples.text("mamba"))),
        "of type 'mamba', which is not known here. Use one of llama"),
    "no sizes": (samples.header(ARCH), "says llama.context_length: None, which cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_refused(lie, tmp_path):
    raw, what = LIES[lie]
    (tmp_path / "m.gguf").write_bytes(raw)
    refused(what, open_gguf, tmp_path / "m.gguf")


def changed(path: Path, whole: Path, name: str, old: bytes, new: bytes) -> Path:
    raw = whole.read_bytes()
    at = raw.index(name.encode()) + len(name)
    assert raw[at + 4 : at + 4 + len(old)] == old and len(old) == len(new)
    path.write_bytes(raw[: at + 4] + new + raw[at + 4 + len(old) :])
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        ("llama.block_count", 2, 1_000_000, "says llama.block_count: 1000000, which cannot be"),
        ("llama.block_count", 2, 3, "'blk.2.attn_norm.weight' is missing"),
        ("llama.feed_forward_length", 96, 64, "is [96, 64] where [64, 64] is due"),
        ("llama.attention.head_count_kv", 2, 4, "is [32, 64] where [64, 64] is due"),
        ("llama.embedding_length", 64, 0, "says llama.embedding_length: 0"),
        ("llama.rope.dimension_count", 16, 8, "differs from the size of a head"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, old, new, what, tmp_path, whole):
    values = struct.pack("<I", old), struct.pack("<I", new)
    refused(what, open_gguf, changed(tmp_path / "m.gguf", whole, name, *values))


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        ("tokenizer.ggml.pre", "smollm", "viking", "cuts texts as 'viking', which is not known"),
        ("tokenizer.ggml.model", "gpt2", "bert", "a tokenizer of kind 'bert', which is not known"),
    ],
)
def test_tokenizers_that_are_not_known_are_refused(name, old, new, what, tmp_path, whole):
    path = changed(tmp_path / "m.gguf", whole, name, samples.text(old), samples.text(new))
    with pytest.raises(TeacherError, match=what):
        open_gguf(path)


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_numbers_that_are_not_finite_are_refused(quantization, tmp_path, whole):
    path = tmp_path / "m.gguf"
    write(path, "llama", whole.parent / "tokenizer", quantization)
    place = read_header(path).tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    raw[place.start : place.start + 2] = b"\xff\x7f"  # NaN in float16: a weight, or a scale
    path.write_bytes(raw)
    refused("'blk.1.ffn_up.weight' holds numbers that are not finite", open_gguf, path)


def test_a_merge_of_other_tokens_is_refused(tmp_path, whole):
    raw = whole.read_bytes()
    merge = read_header(whole).metadata["tokenizer.ggml.merges"][-1].encode()
    at = raw.index(b"tokenizer.ggml.merges")
    where = raw.index(samples.text(merge), at) + 8
    (tmp_path / "m.gguf").write_bytes(raw[:where] + b"\n" * len(merge) + raw[where + len(merge) :])
    refused("is not of its tokens", open_gguf, tmp_path / "m.gguf")
