"""bfloat16 beside float32: a step of training, and asking a teacher, in turn on one thread.

python benchmarks/precision.py [--sizes 8 16 28] [--blocks 5]
python benchmarks/precision.py --table

Convnets of random weights, channels-last, batches of as many images as make 100,000 pixels (at
most 128); AdamW, cross entropy. Asking is a forward pass in inference mode; its first line is the
kept Fashion-MNIST teacher, for which float32 with filters laid out as they come is measured too
(how it was asked before). A ratio above 1 says how many times as fast bfloat16 is. Lines go to
benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import HERE, TEACHER, command, machine, ratio_of_medians
from torch import Tensor, nn

from tutelage.files import read_json, write_json
from tutelage.students.spec import StudentSpec, load

RESULTS = HERE / "results" / "precision.json"
STUDENTS: tuple[dict[str, Any], ...] = (
    {"widths": [8, 10, 16], "depths": [2, 2, 2], "block": "plain"},
    {"widths": [12, 16, 24], "depths": [2, 2, 2], "block": "plain"},
    {"widths": [18, 28, 40], "depths": [2, 2, 2], "block": "plain"},
    {"widths": [32, 64, 128], "depths": [1, 1, 1], "block": "plain"},
    {"widths": [8, 16, 32], "depths": [2, 2, 2], "block": "depthwise"},
    {"widths": [32, 64, 128], "depths": [2, 2, 2], "block": "depthwise"},
)


def in_turn(first: Callable[[], None], second: Callable[[], None], blocks: int) -> Any:
    """Time both in turn, three readings a block; return the ratio of medians."""
    readings: tuple[list[list[float]], list[list[float]]] = ([], [])
    first(), second()
    for _ in range(blocks):
        for work, into in zip((first, second), readings, strict=True):
            block = []
            for _ in range(3):
                started = time.perf_counter()
                work()
                block.append(time.perf_counter() - started)
            into.append(block)
    return ratio_of_medians(*readings)


def under(bf16: bool) -> torch.autocast:
    """Return bfloat16 autocast, or none."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


def asking(network: nn.Module, inputs: Tensor, bf16: bool) -> Callable[[], None]:
    """Return a forward pass."""

    def work() -> None:
        with torch.inference_mode(), under(bf16):
            network(inputs)

    return work


def training(network: nn.Module, inputs: Tensor, bf16: bool) -> Callable[[], None]:
    """Return a step of training."""
    labels = torch.randint(10, (len(inputs),))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

    def work() -> None:
        optimizer.zero_grad()
        with under(bf16):
            said = network(inputs)
        nn.functional.cross_entropy(said.float(), labels).backward()
        optimizer.step()

    return work


def batch_of(size: int, channels: int) -> Tensor:
    """Return noise images."""
    count = min(128, 100_000 // size**2)
    return torch.rand(count, channels, size, size).contiguous(memory_format=torch.channels_last)


def run(options: argparse.Namespace) -> None:
    """Measure everything."""
    torch.manual_seed(0)
    rows = []
    inputs = batch_of(28, 1)
    plain, laid_out = load(TEACHER).eval(), load(TEACHER).eval()
    laid_out.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = asking(laid_out, inputs, True)
    for what, slow in (
        ("float32, as it comes", asking(plain, inputs.contiguous(), False)),
        ("float32, channels-last", asking(laid_out, inputs, False)),
    ):
        ratio = in_turn(slow, fast, options.blocks)
        rows.append({"network": "teacher", "size": 28, "work": f"asking, {what}", **ratio})
        print(rows[-1], flush=True)
    for size in options.sizes:
        for given in STUDENTS:
            spec = {"family": "convnet", "image": [3, size, size], "classes": 10, **given}
            network = StudentSpec.from_json(spec).build()
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = batch_of(size, 3)
            name = "{block} {widths} x{depths[0]}".format(**given)
            for what, made in (("training", training), ("asking", asking)):
                network.train(what == "training")
                pair = [made(network, inputs, bf16) for bf16 in (False, True)]
                ratio = in_turn(*pair, options.blocks)
                rows.append({"network": name, "size": size, "work": what, **ratio})
                print(rows[-1], flush=True)
    write_json(RESULTS, {"rows": rows, "command": command(), "machine": machine()})


def table() -> None:
    """Print the ratios: a line a network and kind of work, a column a size."""
    rows = read_json(RESULTS)["rows"]
    sizes = sorted({row["size"] for row in rows})
    print("| network | work | " + " | ".join(f"{s} x {s}" for s in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    for network, work in dict.fromkeys((r["network"], r["work"]) for r in rows):
        found = {r["size"]: r for r in rows if (r["network"], r["work"]) == (network, work)}
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(found[s]["ratio"], *found[s]["interval"])
            if s in found else ""
            for s in sizes
        ]  # fmt: skip
        print(f"| {network} | {work} | " + " | ".join(cells) + " |")


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", type=int, default=[8, 16, 28])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        run(options)
    table()


if __name__ == "__main__":
    main()
