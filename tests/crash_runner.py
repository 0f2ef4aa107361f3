"""Runs `tutelage run` in forks of one warm process, and kills or starves them at a chosen moment.

Started by test_resume.py: one JSON object a line comes in on stdin, one goes out on stdout. A job
names `recipe`, `run` and at most one fault, and may set the clock's notes:

- `die`: exit at once just before (`when: before`) or after the n-th file is put in its place;
- `interrupt`: the same with Ctrl-C;
- `kill`: SIGKILL after so many seconds;
- `note_s`: the seconds between two notes of the time; without it none is taken while a stage works;
- `full`: the n-th call of `call` (`replace`, `fsync`, `open`) inside the run finds the disk full.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch._dynamo  # noqa: F401  (what a run imports late, imported once for all forks)
import torch.onnx.utils  # noqa: F401
from conftest import _no_memory

import tutelage.cli.main  # noqa: F401
from tutelage import pipeline
from tutelage.files import write_atomically
from tutelage.pipeline import opening, proving
from tutelage.tasks import find_task

counted = {"replace": 0, "fsync": 0, "open": 0}


def watch(job: dict[str, Any]) -> None:
    """Count what is done to files of the run, and let the fault happen."""
    run = str(job["run"])
    fault: dict[str, Any] = next((job[f] for f in ("full", "die", "interrupt") if f in job), {})

    def wrapped(name: str, original: Callable[..., Any], inside: Callable[..., bool]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if not inside(*args):
                return original(*args, **options)
            counted[name] += 1
            now = counted[name] == fault.get("n") and name == fault.get("call", "replace")
            if now and "full" in job:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if now and fault["when"] == "before":
                end(job)
            result = original(*args, **options)
            if now and fault["when"] == "after":
                end(job)
            return result

        return call

    def target(source: Any, to: Any, *rest: Any) -> bool:
        return str(to).startswith(run)

    def written(path: Any, mode: str = "r", *rest: Any) -> bool:
        return str(path).startswith(run) and mode[0] in "wa"

    os.replace = wrapped("replace", os.replace, target)
    os.fsync = wrapped("fsync", os.fsync, lambda handle: True)
    io.open = builtins.open = wrapped("open", open, written)


def end(job: dict[str, Any]) -> None:
    if "die" in job:
        os._exit(137)
    signal.raise_signal(signal.SIGINT)


def child(job: dict[str, Any], answer: Path) -> None:
    watch(job)
    # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    proving.measure_memory = _no_memory
    # Notes of the time come as a clock has it, and the writes of a run must be as many each time.
    opening._SHORTEST_S = job.get("note_s", math.inf)
    pipeline.build_report = lambda folder: write_atomically(folder / "report.html", "a stand-in")
    said = tiny.cli("run", job["recipe"], "--run", job["run"])
    text = json.dumps({"err": said.err, "errors": said.errors, "counted": counted})
    os.unlink(answer)
    with os.fdopen(os.open(answer, os.O_CREAT | os.O_WRONLY), "w") as file:
        file.write(text)
    os._exit(said.status)


def serve(job: dict[str, Any]) -> dict[str, Any]:
    handle, name = tempfile.mkstemp()
    os.close(handle)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            child(job, Path(name))
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(99)
    if "kill" in job:
        time.sleep(job["kill"])
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = Path(name).read_text()
    os.unlink(name)
    seconds = time.monotonic() - started
    return {"status": status, "seconds": seconds, **(json.loads(text) if text else {})}


if __name__ == "__main__":
    find_task("vision")
    assert threading.active_count() == 1
    for line in sys.stdin:
        sys.stdout.write(json.dumps(serve(json.loads(line))) + "\n")
        sys.stdout.flush()
