"""Times small ONNX graphs on this machine and writes the readings as YAML.

    python probe.pyz --minutes 3 --threads 1 --out readings.yaml

Needs onnxruntime and numpy. Bring the file back to `tutelage probe --from readings.yaml`.

Covers: convolutions, depthwise ones, matrix products, recurrent layers, pools, sums, functions and
moves of data, in float32 and in the int8 form that tutelage ships, alone and in small networks.
Every round has an order of its own; one graph, the anchor, comes back every few, so that throttling
and other work show. Does not cover: larger networks, batches, or anything but the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .graphs import graph

FORMAT = 1
_ANCHOR = 17  # a small convolutional network
_ANCHOR_EVERY = 8
_SHORTEST_S, _LONGEST_S = 0.002, 0.05  # of a block of calls
_ROUNDS = 3  # at least, whatever the time
_POWERCAP = Path("/sys/class/powercap")
_FLAGS = {
    "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
}  # fmt: skip
Clock = Callable[[], float]


class Probe:
    """Opens the graphs and reads the clock round after round."""

    def __init__(self, graphs: int, threads: int, clock: Clock, wall: Clock) -> None:
        self.clock, self.wall = clock, wall
        self.names, self.calls = [], []
        for number in range(graphs):
            name, model = graph(number)
            self.names.append(name)
            self.calls.append(_open(model, threads))
        self.anchor = _open(graph(_ANCHOR)[1], threads)
        self.readings: list[list[float]] = [[] for _ in range(graphs)]
        self.anchors: list[float] = []
        self.dropped = self.busy_s = self.all_s = 0

    def run(self, seconds: float, say: Callable[[str], None]) -> None:
        """Take readings for `seconds`, and for three whole rounds at least."""
        chance, begin, count = random.Random(0), self.clock(), len(self.calls)
        block_s = seconds / (10 * (count + count / _ANCHOR_EVERY))
        self.block_s = min(max(block_s, _SHORTEST_S), _LONGEST_S)
        rounds = 0
        while rounds < _ROUNDS or self.clock() - begin < seconds:
            for place, number in enumerate(chance.sample(range(count), count)):
                if place % _ANCHOR_EVERY == 0:
                    self._read(self.anchor, self.anchors)
                self._read(self.calls[number], self.readings[number])
                gone = self.clock() - begin
                if rounds >= _ROUNDS and gone >= seconds:
                    return
                past = rounds + (place + 1) / count
                left = max(seconds - gone, gone * (_ROUNDS / past - 1), 0.0)
                say(f"probe: round {rounds + 1}, {_minutes(left)} left")
            rounds += 1

    def _read(self, call: Callable[[], object], into: list[float]) -> None:
        """Add the median of one block, unless the clock jumped or the machine slept meanwhile."""
        clock, times = self.clock, []
        for _ in range(3):
            call()
        wall, begin, worked = self.wall(), clock(), time.process_time()
        while not times or (clock() - begin < self.block_s and len(times) < 2_000):
            start = clock()
            call()
            times.append(clock() - start)
        gone, walled = clock() - begin, self.wall() - wall
        if min(times) <= 0 or abs(walled - gone) > 0.05 + 0.1 * gone:
            self.dropped += 1
            return
        self.all_s += gone
        self.busy_s += max(0.0, gone - (time.process_time() - worked))
        into.append(median(times))


def measure(
    minutes: float, threads: int, graphs: int, say: Callable[[str], None] = lambda line: None, *,
    clock: Clock = time.perf_counter, wall: Clock = time.time,
) -> dict[str, Any]:  # fmt: skip
    """Return the readings of `graphs` graphs and what the machine is, ready to be written."""
    load = _load()
    probe = Probe(graphs, threads, clock, wall)
    bandwidth, idle = _bandwidth(clock), _power(lambda: time.sleep(1.0))
    active = _power(lambda: probe.run(60 * minutes, say))
    named = zip(probe.names, probe.readings)
    return {
        "probe": FORMAT,
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "threads": threads,
        "load": [load, _load()],
        "dropped": probe.dropped,
        "other_work": round(probe.busy_s / max(probe.all_s, 1e-9), 4) if threads == 1 else None,
        "noise_floor": round(noise_floor(probe.anchors), 4),
        "drift": round(drift(probe.anchors), 4),
        "bandwidth_bytes_per_s": bandwidth,
        "idle_power_w": idle,
        "active_power_w": active,
        "readings": [_reading(name, times) for name, times in named if len(times) >= 2],
        "whole": True,  # the last line: without it, the file was cut off
    }


def noise_floor(anchors: list[float]) -> float:
    """Return how far two neighbouring readings of the same graph lie apart, as a ratio (median)."""
    pairs = zip(anchors, anchors[1:])
    return median(abs(a - b) / min(a, b) for a, b in pairs) if len(anchors) > 1 else 0.0


def drift(anchors: list[float]) -> float:
    """Return by how much the slowest fifth of the session is slower than the fastest, as a ratio.

    Medians of five spans of time are compared, so single readings do not count.
    """
    size = len(anchors) // 5
    if size < 1:
        return 0.0
    middles = [median(anchors[i * size : (i + 1) * size]) for i in range(5)]
    return max(middles) / min(middles) - 1


def _reading(name: str, times: list[float]) -> dict[str, Any]:
    low, _, high = quantiles(times, n=4)
    return {
        "graph": name,
        "time_s": _short(median(times)),
        "quartiles_s": [_short(low), _short(high)],
        "blocks": len(times),
    }


def _open(model: bytes, threads: int) -> Callable[[], object]:
    """Return a call that runs the graph once, at batch 1 on random input."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (item,) = session.get_inputs()
    chance = np.random.default_rng(0)
    drawn = chance.integers(1, 500, item.shape) if "int" in item.type else chance.random(item.shape)
    feed = {item.name: drawn.astype(np.int64 if "int" in item.type else np.float32)}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def _bandwidth(clock: Clock) -> float:
    """Return bytes a second, read and written, of a copy that no cache holds."""
    import numpy as np

    source = np.ones(32 << 20, np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(9):
        start = clock()
        np.copyto(target, source)
        times.append(clock() - start)
    return _short(2 * source.nbytes / max(median(times), 1e-9))


def _power(work: Callable[[], object]) -> float | None:
    """Do `work`; return the mean watts of the processor packages, where RAPL can be read."""
    before, begin = _joules(), time.perf_counter()
    work()
    after, gone = _joules(), time.perf_counter() - begin
    if before is None or after is None or after <= before:  # unreadable, or wrapped
        return None
    return _short((after - before) / gone)


def _joules() -> float | None:
    try:
        zones = [z for z in _POWERCAP.glob("intel-rapl:*")
                 if (z / "name").read_text().startswith("package")]  # fmt: skip
        counts = [float((zone / "energy_uj").read_text()) * 1e-6 for zone in zones]
    except (OSError, ValueError):
        return None
    return sum(counts) if counts else None


def _machine() -> dict[str, Any]:
    import numpy
    import onnxruntime

    said = dict(_proc("/proc/cpuinfo"))
    memory = dict(_proc("/proc/meminfo")).get("MemTotal", "").split()
    model = said.get("model name") or dict(_proc("/proc/device-tree/model")).get("")
    flags = (said.get("flags") or said.get("Features") or "").split()
    return {
        "cpu": model or said.get("Model") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count() or 1,
        "flags": sorted(_FLAGS.intersection(flags)),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "ram_bytes": 1024 * int(memory[0]) if memory else None,
        "disk_bytes": shutil.disk_usage(".").total,
    }


def _proc(path: str) -> Iterator[tuple[str, str]]:
    try:
        lines = Path(path).read_text(errors="replace").replace("\0", "").splitlines()
    except OSError:
        return
    for line in lines:
        key, colon, value = line.partition(":")
        yield (key.strip(), value.strip()) if colon else ("", line.strip())


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _minutes(seconds: float) -> str:
    return f"{math.ceil(seconds) // 60}:{math.ceil(seconds) % 60:02d}"


def _short(value: float) -> float:
    """Return five significant digits: readings tell no more."""
    return float(f"{value:.5g}")


def write(found: dict[str, Any]) -> str:
    """Return the readings as YAML: JSON, which YAML holds, with a line for each entry."""
    lines = []
    for key, value in found.items():
        if key == "readings":
            lines += ["readings:"] + ["- " + json.dumps(reading) for reading in value]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, take the readings, write them."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--graphs", type=int, default=200, help="how many; 50 to 500")
    parser.add_argument("--out", type=Path, default=Path("readings.yaml"))
    options = parser.parse_args()
    if not (0 < options.minutes <= 600 and 1 <= options.threads <= 1024):
        parser.error("--minutes goes from above 0 to 600, --threads from 1 to 1024")
    if not 1 <= options.graphs <= 500:
        parser.error("--graphs goes from 1 to 500; fewer than 50 calibrate nothing")
    try:
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        parser.error(f"{error}; install what is missing: pip install onnxruntime numpy")
    said = [0.0]

    def say(line: str) -> None:
        end, now = ("\r" if sys.stderr.isatty() else "\n"), time.monotonic()
        if now - said[0] >= (0.2 if end == "\r" else 15.0):
            said[0] = now
            sys.stderr.write(line + "   " + end)
            sys.stderr.flush()

    found = measure(options.minutes, options.threads, options.graphs, say)
    options.out.write_text(write(found), encoding="utf-8")
    drifted, noise = found["drift"], found["noise_floor"]
    sys.stderr.write(f"\nwrote {options.out.name}; drift {drifted:.0%}, noise {noise:.1%}\n")


if __name__ == "__main__":
    main()
