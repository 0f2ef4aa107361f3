"""What a tool that teaches texts is told: tokens, networks and rates; and what it says back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tutelage.files import write_tensors
from tutelage.pipeline.material import Material
from tutelage.train.schedule import Schedule


def job_for(
    material: Material, schedule: Schedule, losses: dict[str, Any], folder: Path, *, teacher: Path,
    student: Path, pad: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what the child is told; the tokens are written into `folder`, once.

    `losses` are the tool's by name, each with its options and weight; `teacher` and `student` are
    folders of networks, the latter of first weights. Texts are filled up with the token `pad`.
    """
    for split in (material.train, material.validation):
        path = folder / f"{split.name}.safetensors"
        if not path.exists():
            everyone = split.batch(torch.arange(split.count), 0)
            assert everyone.labels is not None
            write_tensors(path, {"ids": everyone.inputs, "labels": everyone.labels})
    steps = schedule.epochs * max(1, material.train.count // schedule.batch)
    return {
        "losses": losses, "epochs": schedule.epochs, "batch": schedule.batch,
        "seed": schedule.seed, "teacher": str(teacher), "student": str(student), "pad": pad,
        "data": str(folder), "rate": schedule.rate, "weight_decay": schedule.weight_decay,
        "rates": [schedule.rate_at(step, steps) / schedule.rate for step in range(steps)],
        "clip": schedule.clip, "threads": torch.get_num_threads(),
        "result": str(folder / "result.json"), "keep": str(folder / "taught.safetensors"),
    }  # fmt: skip
