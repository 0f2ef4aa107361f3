"""What a GGUF file does in llama.cpp on this machine: tokens a second, memory, what it says.

Covers: reading a prompt and saying tokens one after another, one conversation, on the CPU; growth
of a fresh process from before the file is opened to its peak (weights are mapped from the file and
count as they are read); logits of given tokens. Does not cover: other machines, accelerators,
batches of conversations, or Ollama. llama-cpp-python need not be installed where this runs: any
interpreter that has it can be named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tutelage.devices.profile import cpu_name
from tutelage.errors import CorruptFileError, ExportError, RecipeError
from tutelage.measure.latency import summarise
from tutelage.records import Measurement

PYTHON = "TUTELAGE_LLAMA_PYTHON"  # names another interpreter
_INSTALL = "pip install llama-cpp-python"
# Runs with nothing but llama_cpp and numpy. See measure/memory.py on VmHWM.
_CHILD = r"""
import sys
sys.path = [entry for entry in sys.path if entry]
import json, time
import numpy as np
try:
    import llama_cpp
except ImportError as error:
    sys.stdout.write(json.dumps({"missing": str(error)}))
    sys.exit()

def status(key):
    try:
        with open("/proc/self/status") as lines:
            return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(key + ":"))
    except (OSError, StopIteration):
        return 0

def opened(job, whole):
    own = {"n_threads": job["threads"], "n_threads_batch": job["threads"], "n_gpu_layers": 0}
    return llama_cpp.Llama(
        job["path"], n_ctx=job["context"], logits_all=whole, verbose=False, seed=0, **own)

def speed(job):
    try:
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
    except OSError:
        pass
    before = status("VmRSS")
    model = opened(job, False)
    ids = np.random.default_rng(0).integers(0, model.n_vocab(), job["prompt"]).tolist()
    model.eval(ids[:8])
    prompts, each = [], []
    for _ in range(job["repeats"]):
        model.reset()
        begin = time.perf_counter()
        model.eval(ids)
        prompts.append((time.perf_counter() - begin) / len(ids))
        for token in ids[:job["said"]]:
            begin = time.perf_counter()
            model.eval([token])
            each.append(time.perf_counter() - begin)
    return {"prompt_s": prompts, "token_s": each, "bytes": max(0, status("VmHWM") - before)}

def logits(job):
    model, rows = opened(job, True), np.load(job["ids"])
    made = np.lib.format.open_memmap(job["to"], "w+", np.float32, (*rows.shape, model.n_vocab()))
    for i, row in enumerate(rows):
        model.reset()
        model.eval(row.tolist())
        made[i] = model.scores[:len(row)]
    made.flush()
    return {}

def tokens(job):
    model = opened(job, False)
    cut = lambda text: model.tokenize(text.encode(), add_bos=True, special=True)
    return {"ids": [cut(text) for text in job["texts"]]}

job = json.loads(sys.stdin.read())
try:
    answer = {"speed": speed, "logits": logits, "tokens": tokens}[job["do"]](job)
except Exception as error:
    answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
sys.stdout.write("\n" + json.dumps({**answer, "version": llama_cpp.__version__}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppFigures:
    """Tokens a second while saying and while reading, seconds a said token, bytes of memory."""

    tokens_per_s: Measurement
    prompt_tokens_per_s: Measurement
    token_s: Measurement
    ram: Measurement


def measure_llama_cpp(
    path: Path,
    *,
    threads: int = 1,
    context: int = 512,
    prompt: int = 128,
    said: int = 32,
    repeats: int = 3,
    python: str | None = None,
    timeout_s: float = 600.0,
) -> tuple[LlamaCppFigures | None, str]:
    """Return the figures and '', or None and a sentence where llama.cpp is not installed.

    Raises `RecipeError` for settings that measure nothing, `ExportError` for a missing file or one
    that does not run in time, `CorruptFileError` for one that llama.cpp cannot open.
    """
    if min(threads, repeats) < 1 or said * repeats < 10 or not 8 <= prompt <= context - said:
        raise RecipeError(
            "llama.cpp needs 1 thread, 10 said tokens in all, a prompt of 8 tokens and a context "
            f"for both; got {threads}, {said} x {repeats}, {prompt}, {context}: correct them"
        )
    sizes = {"threads": threads, "context": context, "prompt": prompt, "said": said}
    answer = _asked(path, {"do": "speed", "repeats": repeats, **sizes}, python, timeout_s)
    if answer is None:
        return None, not_installed()
    plural = "" if threads == 1 else "s"
    where = f"{cpu_name()}, llama-cpp-python {answer['version']}, {threads} thread{plural}"
    one = summarise(answer["token_s"], f"{where}, after {prompt} tokens").p50
    times = sorted(answer["prompt_s"])
    read = Measurement(
        name="prompt_token_s", value=times[len(times) // 2], unit="s", kind="measured",
        n=len(times), spread=(times[0], times[-1]), where=f"{where}, {prompt} tokens at once",
    )  # fmt: skip
    ram = Measurement(
        name="ram", value=float(answer["bytes"]), unit="B", kind="measured",
        where=f"{where}, context {context}, growth of a fresh process",
    )  # fmt: skip
    rate, fast = _rate("tokens_per_s", one), _rate("prompt_tokens_per_s", read)
    return LlamaCppFigures(tokens_per_s=rate, prompt_tokens_per_s=fast, token_s=one, ram=ram), ""


def llama_cpp_logits(
    path: Path,
    ids: Int[np.ndarray, "n t"],
    folder: Path,
    *,
    threads: int = 1,
    python: str | None = None,
    timeout_s: float = 3600.0,
) -> Float[np.ndarray, "n t v"] | None:
    """Return what the file says after each token, mapped from `folder`; None without llama.cpp.

    `folder` gets a file of n x t x v x 4 bytes. Raises as `measure_llama_cpp` does.
    """
    given, made = folder / "ids.npy", folder / "logits.npy"
    np.save(given, np.asarray(ids, np.int64))
    job = {"do": "logits", "ids": str(given), "to": str(made), "threads": threads}
    answer = _asked(path, {**job, "context": ids.shape[1]}, python, timeout_s)
    return None if answer is None else np.load(made, mmap_mode="r")


def llama_cpp_tokens(
    path: Path, texts: list[str], *, python: str | None = None, timeout_s: float = 600.0
) -> list[list[int]] | None:
    """Return how llama.cpp cuts texts into tokens, special ones included; None without it."""
    job = {"do": "tokens", "texts": texts, "threads": 1, "context": 64}
    answer = _asked(path, job, python, timeout_s)
    return None if answer is None else answer["ids"]


def not_installed() -> str:
    """Say that nothing was measured in llama.cpp, and what to install."""
    return (
        "tokens a second and memory in llama.cpp were not measured, since llama-cpp-python is not "
        f"installed: {_INSTALL}, or name an interpreter that has it in {PYTHON}"
    )


def _rate(name: str, seconds: Measurement) -> Measurement:
    low, high = seconds.spread or (seconds.value, seconds.value)
    return Measurement(
        name=name, value=1 / seconds.value, unit="token/s", kind="measured", n=seconds.n,
        spread=(1 / high, 1 / low), where=seconds.where,
    )  # fmt: skip


def _asked(
    path: Path, job: dict[str, Any], python: str | None, timeout_s: float
) -> dict[str, Any] | None:
    """Run a job in a fresh process; None where it has no llama_cpp."""
    if not path.is_file():
        raise ExportError(f"no GGUF file at '{path}': check the path, or export the student first")
    command = [python or os.environ.get(PYTHON) or sys.executable, "-c", _CHILD]
    try:
        with tempfile.TemporaryDirectory() as quiet:
            done = subprocess.run(
                command, input=json.dumps({"path": str(path.resolve()), **job}), cwd=quiet,
                capture_output=True, text=True, timeout=timeout_s,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"'{path}' did not run in llama.cpp within {timeout_s:g} s: raise timeout_s"
        ) from None
    except OSError as error:
        raise RecipeError(
            f"'{command[0]}' is no Python interpreter ({error.strerror}): correct {PYTHON}"
        ) from None
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ExportError(f"'{path}' ended llama.cpp ({last[:200]}): export it again")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if "missing" in answer:
        return None
    if "error" in answer:
        raise CorruptFileError(
            f"'{path}' cannot be run by llama.cpp ({answer['error'][:200]}): export it again"
        )
    return answer
