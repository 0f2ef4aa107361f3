"""Peak memory of loading and running an artifact on this machine.

Covers: how much the resident memory of a fresh process grows from just before onnxruntime opens the
file to its peak after a few runs at batch 1, the runtime's arenas included. Does not cover: Python
and the libraries themselves, memory of an accelerator, or what a microcontroller would need, which
is predicted from the graph.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tutelage.devices.profile import cpu_name
from tutelage.errors import CorruptFileError, ExportError, RecipeError
from tutelage.records import Measurement

# Runs with nothing but onnxruntime and numpy. VmHWM is this process's own peak: ru_maxrss would
# carry over the parent's, since Linux keeps it across fork and exec.
_CHILD = r"""
import sys
sys.path = [entry for entry in sys.path if entry]
import json, resource
import numpy as np, onnxruntime as ort

def status(key):
    try:
        with open("/proc/self/status") as lines:
            return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(key + ":"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

stage = "open"

def main(path, threads):
    global stage
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
    except OSError:
        pass
    before = status("VmRSS")
    where = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # else it prints
    session = ort.InferenceSession(path, options, **where)
    stage = "run"
    names = {"float": "float32", "double": "float64"}
    feeds = {}
    for item in session.get_inputs():
        shape = [s if isinstance(s, int) else 1 for s in item.shape]
        kind = item.type[7:-1]
        feeds[item.name] = np.zeros(shape, names.get(kind, kind))
    for _ in range(3):
        session.run(None, feeds)
    return {"bytes": max(0, status("VmHWM") - before), "version": ort.__version__}

try:
    answer = main(sys.argv[1], int(sys.argv[2]))
except Exception as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    answer = {"error": lines[0], "stage": stage}
sys.stdout.write(json.dumps(answer))
"""


def measure_memory(
    model_path: str | Path, *, threads: int = 1, repeats: int = 3, timeout_s: float = 120.0
) -> Measurement:
    """Return the peak growth of resident memory, in bytes: the largest of `repeats` processes.

    Raises `ExportError` for a missing file or one that does not run, `CorruptFileError` for a file
    that onnxruntime cannot open, `RecipeError` for fewer than one repeat or thread.
    """
    path = Path(model_path)
    if repeats < 1 or threads < 1:
        raise RecipeError(
            f"memory needs at least 1 repeat and 1 thread; got {repeats}, {threads}: correct them"
        )
    if not path.is_file():
        raise ExportError(f"no ONNX file at '{path}': check the path, or export the student first")
    answers = [_run(path, threads, timeout_s) for _ in range(repeats)]
    grown = sorted(int(answer["bytes"]) for answer in answers)
    plural = "" if threads == 1 else "s"
    return Measurement(
        name="ram",
        value=float(grown[-1]),
        unit="B",
        kind="measured",
        n=repeats,
        spread=(float(grown[0]), float(grown[-1])),
        where=f"{cpu_name()}, onnxruntime {answers[0]['version']}, {threads} thread{plural}, "
        "growth of a fresh process",
    )


def _run(path: Path, threads: int, timeout_s: float) -> dict[str, str | int]:
    command = [sys.executable, "-c", _CHILD, str(path.resolve()), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"'{path}' did not run within {timeout_s:g} s: raise timeout_s, or export it again"
        ) from None
    if done.returncode != 0 or not done.stdout:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ExportError(f"'{path}' could not be run in a process of its own ({last}): try again")
    answer = json.loads(done.stdout.splitlines()[-1])  # a library may print before it
    if answer.get("stage") == "run":
        raise ExportError(
            f"'{path}' does not run here ({answer['error']}): export it with static shapes (only "
            "the batch may be dynamic)"
        )
    if "error" in answer:
        raise CorruptFileError(
            f"'{path}' is not a whole ONNX file ({answer['error']}): export it again"
        )
    return answer
