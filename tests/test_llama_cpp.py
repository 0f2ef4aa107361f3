"""Predictions for llama.cpp by hand, asking it in a process of its own, and llama.cpp itself.

The last part runs where llama-cpp-python is at hand (TUTELAGE_LLAMA_PYTHON names its interpreter).
"""

from __future__ import annotations

import os
import subprocess
import sys

import gguf_samples as samples
import numpy as np
import pytest
from text_samples import refused

from tutelage.devices import load_device
from tutelage.devices.llama_cpp import (
    DecoderSize,
    cache_bytes,
    predict_memory,
    predict_tokens_per_s,
    work_bytes,
)
from tutelage.errors import CorruptFileError
from tutelage.export.gguf import write_gguf
from tutelage.measure.llama_cpp import (
    PYTHON,
    llama_cpp_logits,
    llama_cpp_tokens,
    measure_llama_cpp,
)

SMOLLM2 = DecoderSize(
    layers=30, hidden=576, inner=1536, heads=9, groups=3, head_size=64, vocabulary=49152
)
MIB = 1 << 20
# Says token + 1 after each token, cuts texts into bytes, and refuses files that are empty.
STAND_IN = """
import numpy as np
__version__ = "0.0"
class Llama:
    def __init__(self, path, n_ctx, **options):
        if not open(path, "rb").read():
            raise ValueError("Failed to load\\nmore")
        self.scores = np.zeros((n_ctx, 300), np.float32)
        self.at = 0
    def n_vocab(self):
        return 300
    def reset(self):
        self.at = 0
    def eval(self, ids):
        for i in ids:
            self.scores[min(self.at, len(self.scores) - 1)] = np.arange(300) == i + 1
            self.at += 1
    def tokenize(self, text, add_bos, special):
        return [0] * add_bos + list(text)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A file, and a process in which `llama_cpp` is the stand-in."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "llama_cpp.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    monkeypatch.delenv(PYTHON, raising=False)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return path


# --- predictions ------------------------------------------------------------------------------


def test_sizes_are_read_from_a_config():
    plain = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 330,
             "num_attention_heads": 4, "num_key_value_heads": None, "head_dim": None}  # fmt: skip
    size = DecoderSize.of(plain)
    assert (size.groups, size.head_size, size.layers) == (4, 16, 2)
    assert DecoderSize.of({**plain, "num_key_value_heads": 2, "head_dim": 32}).head_size == 32


@pytest.mark.parametrize(
    ("context", "cache", "work"), [(512, 11.25, 98.25), (2048, 45.0, 99.38), (8192, 180.0, 166.38)]
)
def test_memory_is_as_llama_cpp_reports_it(context, cache, work):
    assert cache_bytes(SMOLLM2, context) == cache * MIB
    assert work_bytes(SMOLLM2, context) / MIB == pytest.approx(work, rel=0.015)


def test_memory_by_hand():
    size = DecoderSize(layers=2, hidden=8, inner=16, heads=2, groups=1, head_size=4, vocabulary=100)
    # Keys and values, 2 layers, 256 rows (300 is rounded up to 512), 4 numbers of 2 bytes.
    assert cache_bytes(size, 256) == 2 * 2 * 256 * 4 * 2
    assert cache_bytes(size, 300) == 2 * cache_bytes(size, 256)
    assert work_bytes(size, 100, least=True) == 100 * 4 * (32 + 24)
    assert work_bytes(size, 100) == 100 * 4 * (3 * 256 + 48)
    found = predict_memory(size, 1000, 100)
    assert found.total.value == 1000 + 8192 + 326400 and found.total.kind == "predicted"
    assert found.total.spread == (1000 + 8192 + 22400, found.total.value)


def test_speed_by_hand():
    device = load_device("raspberry-pi-5")
    assert device.bandwidth is not None
    low, high = device.bandwidth.bounds
    found = predict_tokens_per_s(SMOLLM2, 100_000_000, device)
    assert found is not None and found.kind == "predicted" and found.unit == "token/s"
    macs = 30 * (576 * 64 * 24 + 3 * 576 * 1536) + 576 * 49152
    slow, fast = device.throughput["int8"].bounds
    assert found.spread is not None and found.spread[0] < found.value <= found.spread[1]
    assert 1 / found.spread[0] == pytest.approx(1e8 / low + macs / slow)
    assert 1 / found.spread[1] == pytest.approx(1e8 / high)
    later = predict_tokens_per_s(SMOLLM2, 100_000_000, device, filled=2000)
    moved = 100_000_000 + 2 * 30 * 2000 * 3 * 64 * 2
    assert later is not None and found.value / later.value == pytest.approx(moved / 1e8)


def test_no_speed_without_a_bandwidth():
    assert predict_tokens_per_s(SMOLLM2, 1000, load_device("galaxy-s25")) is None


# --- asking -----------------------------------------------------------------------------------


def test_figures_come_from_a_process_of_its_own(stand_in):
    found, note = measure_llama_cpp(stand_in, prompt=16, said=10, repeats=2)
    assert note == "" and found is not None and found.tokens_per_s.n == 20
    assert found.tokens_per_s.value == pytest.approx(1 / found.token_s.value)
    low, high = found.tokens_per_s.spread or (0, 0)
    assert 0 < low <= found.tokens_per_s.value <= high
    assert found.ram.unit == "B" and "llama-cpp-python 0.0, 1 thread" in found.ram.where


def test_logits_and_tokens_come_back(stand_in, tmp_path):
    ids = np.array([[5, 6, 7], [9, 8, 7]])
    logits = llama_cpp_logits(stand_in, ids, tmp_path)
    assert logits is not None and logits.shape == (2, 3, 300)
    assert logits.argmax(-1).tolist() == (ids + 1).tolist()
    assert llama_cpp_tokens(stand_in, ["ab"]) == [[0, 97, 98]]


def test_without_the_library_a_sentence_says_so(stand_in, tmp_path):
    (tmp_path / "library" / "llama_cpp.py").write_text("raise ImportError('none')")
    found, note = measure_llama_cpp(stand_in)
    assert found is None and "pip install llama-cpp-python" in note and "\n" not in note
    assert llama_cpp_logits(stand_in, np.ones((1, 2)), tmp_path) is None


def test_what_cannot_run_is_refused(stand_in, tmp_path, monkeypatch):
    refused("no GGUF file at", measure_llama_cpp, tmp_path / "nowhere.gguf")
    refused("got 0, 32 x 3", measure_llama_cpp, stand_in, threads=0)
    refused("correct them", measure_llama_cpp, stand_in, prompt=600)
    refused("is no Python interpreter", measure_llama_cpp, stand_in, python="/nowhere/python")
    stand_in.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="cannot be run by llama.cpp .Failed to load."):
        measure_llama_cpp(stand_in)
    (tmp_path / "library" / "llama_cpp.py").write_text("import os; os._exit(3)")
    refused("ended llama.cpp (exit status 3)", measure_llama_cpp, stand_in)
    refused("within 0.001 s", measure_llama_cpp, stand_in, timeout_s=0.001)


# --- llama.cpp itself -------------------------------------------------------------------------


def at_hand() -> bool:
    asked = [os.environ.get(PYTHON) or sys.executable, "-c", "import llama_cpp"]
    return PYTHON in os.environ and subprocess.run(asked, capture_output=True).returncode == 0


llama_cpp = pytest.mark.skipif(not at_hand(), reason=f"{PYTHON} names no llama-cpp-python")


@llama_cpp
@pytest.mark.parametrize("kind", samples.KINDS)
def test_llama_cpp_says_what_torch_says(kind, tmp_path):
    model, folder = samples.network(kind), samples.byte_level(tmp_path / "tokenizer")
    config, path = samples.config_of(model), tmp_path / "m.gguf"
    write_gguf(path, config, model.state_dict(), folder, quantization="f16")
    ids = samples.some_ids()
    got = llama_cpp_logits(path, ids.numpy(), tmp_path)
    want = samples.said(samples.rounded(model), ids).numpy()
    # llama.cpp rounds activations and the cache to float16.
    assert got is not None and np.abs(got - want).max() < 0.03 * want.std()


@llama_cpp
@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "fallback"])
def test_llama_cpp_cuts_texts_alike(pre, tmp_path):
    fallback = pre == "fallback"
    place = tmp_path / "t"
    folder = samples.fallback(place) if fallback else samples.byte_level(place, pre)
    model, path = samples.network(), tmp_path / "m.gguf"
    config, own = samples.config_of(model), samples.load(folder)
    write_gguf(path, config, model.state_dict(), folder, quantization="q4_0")
    texts = [text for text in samples.TEXTS if not (fallback and "<|" in text)]
    assert llama_cpp_tokens(path, texts) == [own(text).input_ids for text in texts]
