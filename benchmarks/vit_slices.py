"""Digits: a slice of a vision transformer against fresh weights of the same structure.

python benchmarks/vit_slices.py [--seeds 3] [--steps 50 150]

A transformer of 4 layers, 64 numbers a token, 4 heads and 128 inner units learns the labels of
1,200 digits for 300 steps (seed 0). Slices of it and fresh networks of two structures then learn
its decision (KL at temperature 4, batches of 64, AdamW at 0.002), the same batches for both, and
are asked about the other 597 digits. No augmentation, float32; the seed is that of fresh weights
and of the batches.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tutelage.losses.decision import kl
from tutelage.students.spec import StudentSpec, sliced_from

KNOBS = {"family": "vit", "image": [1, 8, 8], "classes": 10, "patch": 2}
TEACHER = {**KNOBS, "layers": 4, "hidden": 64, "heads": 4, "inner": 128}
STUDENTS: dict[str, dict[str, Any]] = {
    "3 layers of 48": {**KNOBS, "layers": 3, "hidden": 48, "heads": 3, "inner": 96},
    "2 layers of 32": {**KNOBS, "layers": 2, "hidden": 32, "heads": 2, "inner": 64},
}
_TRAIN, _BATCH = 1_200, 64


def batches(seed: int, steps: int) -> list[Tensor]:
    """Return the numbers of the images of each step."""
    random = torch.Generator().manual_seed(seed)
    per = _TRAIN // _BATCH
    orders = [torch.randperm(_TRAIN, generator=random) for _ in range(-(-steps // per))]
    return [order[i * _BATCH : (i + 1) * _BATCH] for order in orders for i in range(per)][:steps]


def learn(network: nn.Module, x: Tensor, wanted: Tensor, chosen: list[Tensor]) -> None:
    """Teach labels (int64) or decisions (logits) for a step a batch."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    for rows in chosen:
        said = network(x[rows])
        if wanted.is_floating_point():
            loss = 16 * kl(said, wanted[rows], temperature=4.0).mean()
        else:
            loss = F.cross_entropy(said, wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def said_by(network: nn.Module, x: Tensor) -> Tensor:
    """Return decisions, in evaluation mode."""
    with torch.no_grad():
        return network.eval()(x)


def main() -> None:
    """Run all seeds and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 150], help="ascending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(digits.images).float()[order, None] / 16 - 0.3
    y = torch.from_numpy(digits.target).long()[order]
    torch.manual_seed(0)
    teacher = StudentSpec.from_json(TEACHER).build()
    learn(teacher, x, y, batches(0, 300))
    decision = said_by(teacher, x)

    def right(network: nn.Module) -> float:
        found = said_by(network, x[_TRAIN:]).argmax(1) == y[_TRAIN:]
        return 100 * float(found.float().mean())

    print(f"teacher: {right(teacher):.1f} %")
    print("| student | start | steps | seeds | test accuracy |")
    print("|---|---|---|---|---|", flush=True)
    for name, knobs in STUDENTS.items():
        spec = StudentSpec.from_json(knobs)
        cut = sliced_from(teacher, spec, x[:256])
        for start in ("slice", "fresh"):
            found: dict[int, list[float]] = defaultdict(list)
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                network = copy.deepcopy(cut) if start == "slice" else spec.build()
                done, order = 0, batches(100 + seed, options.steps[-1])
                for step in (0, *options.steps):
                    learn(network, x, decision, order[done:step])
                    found[step].append(right(network))
                    done = step
            for step, values in found.items():
                each = ", ".join(f"{value:.1f}" for value in values)
                mean = statistics.mean(values)
                print(f"| {name} | {start} | {step} | {each} | {mean:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
