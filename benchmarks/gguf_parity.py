"""Does llama.cpp say of our GGUF files what torch says: greedy tokens, perplexity, speed, memory.

python benchmarks/gguf_parity.py MODEL [--text FILE] [--python INTERPRETER] [--formats f16 q8_0]

MODEL is a Hugging Face folder or a GGUF file. It is read into torch in float32 and written again as
f16, q8_0 and q4_0; each file is run in llama.cpp (INTERPRETER has llama-cpp-python; by default
TUTELAGE_LLAMA_PYTHON or this one) over the same tokens, in windows of 512. `greedy` is the share of
positions with the same likeliest token as the network before quantization, `own` against torch with
the file's own weights: what is left there is llama.cpp's arithmetic, not our writing. KL is of the
network before quantization from the file, in nats a token. The text is Python's own documentation
of its language unless given. Lines go to benchmarks/results/gguf_parity.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, machine

from tutelage.devices.gguf_sizes import QUANTIZATIONS
from tutelage.devices.llama_cpp import DecoderSize, predict_memory
from tutelage.export.gguf import gguf_bytes, gguf_file_bytes, write_gguf
from tutelage.files import read_json, write_json
from tutelage.measure.llama_cpp import (
    llama_cpp_logits,
    llama_cpp_tokens,
    measure_llama_cpp,
    not_installed,
)
from tutelage.teach.gguf_file import is_gguf, open_gguf

RESULTS = HERE / "results" / "gguf_parity.json"
WINDOW = 512


def opened(path: Path) -> tuple[Any, Any]:
    """Return network and tokenizer."""
    if is_gguf(path):
        return open_gguf(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: Any = {"local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    return model.eval(), AutoTokenizer.from_pretrained(path, **options)


def some_text(path: Path | None) -> str:
    """Return the text that is read."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in ("naming", "class", "import", "exprlists"))


def torch_logits(model: Any, windows: np.ndarray) -> np.ndarray:
    """Return logits [n, t, v]."""
    with torch.no_grad():
        rows = [model(torch.from_numpy(row)[None]).logits[0].numpy() for row in windows]
    return np.stack(rows)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compared(said: np.ndarray, truth: np.ndarray, windows: np.ndarray) -> dict[str, float]:
    """Compare logits [n, t, v] window by window; the last position has no next token."""
    same, kl, lost = [], [], []
    for mine, theirs, ids in zip(said, truth, windows, strict=True):
        a, b = log_softmax(theirs.astype(float)), log_softmax(mine.astype(float))
        same.append(a.argmax(-1) == b.argmax(-1))
        kl.append((np.exp(a) * (a - b)).sum(-1))
        lost.append(-b[np.arange(len(ids) - 1), ids[1:]])
    perplexity = float(np.exp(np.concatenate(lost).mean()))
    return {"greedy": float(np.mean(same)), "kl": float(np.mean(kl)), "perplexity": perplexity}


def main() -> None:
    """Write, run and compare each format."""
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("model", type=Path)
    read.add_argument("--text", type=Path)
    read.add_argument("--python")
    read.add_argument("--tokens", type=int, default=3 * WINDOW)
    read.add_argument("--formats", nargs="+", choices=QUANTIZATIONS, default=QUANTIZATIONS)
    given = read.parse_args()
    model, tokenizer = opened(given.model)
    text = some_text(given.text)
    ids = np.array(tokenizer(text).input_ids, np.int64)
    count = min(given.tokens, len(ids)) // WINDOW
    windows = ids[: count * WINDOW].reshape(count, WINDOW)
    truth = torch_logits(model, windows)
    config = model.config.to_dict()
    state, size = model.state_dict(), DecoderSize.of(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tied = bool(config.get("tie_word_embeddings"))
    before = compared(truth, truth, windows)
    lines: list[dict[str, Any]] = [{"format": "torch float32", **before}]
    print(f"{windows.size} positions, perplexity in torch {before['perplexity']:.4f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder / "tokenizer")
        for kind in given.formats:
            path = folder / f"{kind}.gguf"
            write_gguf(path, config, state, folder / "tokenizer", quantization=kind)
            told = gguf_file_bytes(
                config, shapes, folder / "tokenizer", quantization=kind, name=kind
            )
            logits = llama_cpp_logits(path, windows, folder, python=given.python)
            if logits is None:
                raise SystemExit(not_installed())
            own = compared(logits, torch_logits(open_gguf(path)[0], windows), windows)
            line = {"format": kind, **compared(logits, truth, windows), "own": own["greedy"]}
            cut = llama_cpp_tokens(path, [text], python=given.python)
            line["same_tokens"] = cut == [ids.tolist()]
            line |= {"bytes": path.stat().st_size, "predicted_bytes": told}
            options: Any = {"python": given.python, "context": WINDOW, "prompt": 256, "said": 64}
            figures, note = measure_llama_cpp(path, **options)
            assert figures is not None, note
            weights = gguf_bytes(shapes, kind, tied=tied)
            memory = predict_memory(size, weights, WINDOW).total
            line |= {
                "tokens_per_s": figures.tokens_per_s.value,
                "prompt_tokens_per_s": figures.prompt_tokens_per_s.value,
                "ram_bytes": figures.ram.value, "predicted_ram_bytes": memory.value,
                "where": figures.token_s.where, "machine": machine(),
            }  # fmt: skip
            lines.append(line)
            print(line)
    write_json(RESULTS, {"model": given.model.name, "lines": _with_others(lines)})


def _with_others(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of this run, and of formats that only earlier ones measured."""
    own = {line["format"] for line in lines}
    before = read_json(RESULTS)["lines"] if RESULTS.is_file() else []
    return [*(line for line in before if line["format"] not in own), *lines]


if __name__ == "__main__":
    main()
