"""Latency of an artifact on this machine's CPU.

Covers: the time of one call at batch 1 on random input, warm, one process, with the noise floor of
the machine at that moment. Does not cover: a first, cold call, loading, batches, thermal limits
over minutes, or any machine other than this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.devices.profile import cpu_name
from tutelage.errors import CorruptFileError, ExportError, RecipeError
from tutelage.records import Measurement

Call = Callable[[], object]
_BLOCKS = 5
_FEWEST = 10  # readings taken even when the time is up, so that an interval exists


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyResult:
    """Median and 95th percentile in seconds, and the noise floor.

    `noise_floor` is a ratio: how far apart the medians of consecutive blocks of readings lie. Two
    latencies that differ by less cannot be told apart.
    """

    p50: Measurement
    p95: Measurement
    noise_floor: Measurement


def measure_latency(
    model: str | Path | Call,
    *,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 200,
    budget_s: float = 3.0,
) -> LatencyResult:
    """Time calls of an ONNX file, or of a function without arguments.

    Stops at `repeats` readings or after `budget_s` seconds, whichever is first. Raises
    `CorruptFileError` for a damaged file, `ExportError` for one that cannot run here, and
    `RecipeError` for settings that measure nothing.
    """
    if repeats < _FEWEST or threads < 1 or warmup < 0 or not budget_s > 0:
        raise RecipeError(
            f"latency needs at least {_FEWEST} repeats, 1 thread, no negative warm-up and a time "
            f"budget above 0 s; got {repeats}, {threads}, {warmup}, {budget_s}: correct them"
        )
    call, where = prepare(model, threads)
    warm = ", warm" if warmup else ""
    return summarise(time_calls(call, warmup, repeats, budget_s), f"{where}{warm}")


def time_calls(call: Call, warmup: int, repeats: int, budget_s: float) -> list[float]:
    """Return seconds of each call, in order; the warm-up takes at most half of the budget."""
    clock = time.perf_counter
    begin = clock()
    for _ in range(warmup):
        if clock() - begin > budget_s / 2:
            break
        call()
    readings: list[float] = []
    while len(readings) < repeats:
        start = clock()
        if start - begin > budget_s and len(readings) >= _FEWEST:
            break
        call()
        readings.append(clock() - start)
    return readings


def summarise(seconds: Sequence[float], where: str) -> LatencyResult:
    """Turn readings in seconds, in the order taken, into percentiles with 95 % intervals."""
    return LatencyResult(
        p50=_percentile("latency_p50", seconds, 0.50, where),
        p95=_percentile("latency_p95", seconds, 0.95, where),
        noise_floor=_noise_floor(seconds, where),
    )


def _percentile(name: str, seconds: Sequence[float], q: float, where: str) -> Measurement:
    """Take a percentile, its interval from order statistics (Hahn and Meeker, 1991, section 5.2).

    The number of readings below the true percentile is binomial(n, q): the interval runs between
    the readings of rank np -+ 1.96 sqrt(npq), whatever the distribution.
    """
    ranked, n = sorted(seconds), len(seconds)
    half = 1.96 * math.sqrt(n * q * (1 - q))
    low = ranked[max(0, math.floor(n * q - half) - 1)]
    high = ranked[min(n - 1, math.ceil(n * q + half))]
    middle = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
    value = middle if q == 0.5 else ranked[min(n - 1, math.ceil(n * q) - 1)]
    return Measurement(
        name=name, value=value, unit="s", kind="measured", n=n, spread=(low, high), where=where
    )


def _noise_floor(seconds: Sequence[float], where: str) -> Measurement:
    size = len(seconds) // _BLOCKS
    blocks = [sorted(seconds[i * size : (i + 1) * size]) for i in range(_BLOCKS)]
    medians = [(block[(size - 1) // 2] + block[size // 2]) / 2 for block in blocks]
    middle = sorted(medians)[_BLOCKS // 2]
    spread = (max(medians) - min(medians)) / middle if middle > 0 else 0.0
    return Measurement(
        name="latency_noise_floor", value=spread, unit="1", kind="measured", n=_BLOCKS, where=where
    )


def prepare(model: str | Path | Call, threads: int) -> tuple[Call, str]:
    """Return a call without arguments that runs `model` once, and where it runs.

    An ONNX file runs at batch 1 on seeded random input of its own shape.
    """
    if callable(model):
        return model, f"{cpu_name()}, a Python function"
    session = open_session(Path(model), threads)
    feeds = {item.name: _random(item, model) for item in session.get_inputs()}
    import onnxruntime

    plural = "" if threads == 1 else "s"
    where = f"{cpu_name()}, onnxruntime {onnxruntime.__version__}, {threads} thread{plural}"
    try:
        session.run(None, feeds)
    except Exception as error:  # onnxruntime's errors share no base class
        raise ExportError(_one_line(f"'{model}' does not run here", error)) from error
    return lambda: session.run(None, feeds), where


def open_session(path: Path, threads: int) -> Any:
    """Open an ONNX file in onnxruntime on the CPU with `threads` threads.

    Raises `ExportError` for a missing file, `CorruptFileError` for one that is not whole.
    """
    import onnxruntime

    if not path.is_file():
        raise ExportError(f"no ONNX file at '{path}': check the path, or export the student first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # the error is raised; it need not be logged as well
    try:
        # Its own retry on an error prints to stdout, and has no other provider to turn to.
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors share no base class
        if type(error).__name__ == "NotImplemented":  # whole, but beyond this runtime
            raise ExportError(_one_line(f"'{path}' does not run here", error)) from error
        raise CorruptFileError(_one_line(f"'{path}' is not a whole ONNX file", error)) from error


def _random(item: Any, model: object) -> Any:
    import numpy as np

    shape = list(item.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = 1
    if not all(isinstance(side, int) for side in shape):
        raise ExportError(
            f"input '{item.name}' of '{model}' has the dynamic shape {item.shape}: "
            "export with static shapes (only the batch may be dynamic)"
        )
    random = np.random.default_rng(0)
    name = item.type.removeprefix("tensor(").removesuffix(")")
    kind = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    if kind.kind == "f":
        return random.random(shape).astype(kind)
    return random.integers(0, 2, shape).astype(kind)


def _one_line(what: str, error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{what} ({first}): export it again"
