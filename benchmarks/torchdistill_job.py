"""What torchdistill is told: a job for `torchdistill_child.py`, in an environment of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.files import write_tensors
from tutelage.pipeline.material import Material
from tutelage.train.schedule import Schedule


def job_for(
    material: Material, schedule: Schedule, losses: dict[str, Any], folder: Path, *, teacher: Path,
    student: Path, shift: int, flip: bool, workers: int = 0, cache: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what the child is told; the images are written into `folder`, once.

    `losses` are torchdistill's classes by name, each with its options and `weight`; `teacher` and
    `student` are folders of networks, the latter of first weights. Images are moved by up to
    `shift` pixels and mirrored where `flip`, anew in each epoch.
    """
    data = folder / "data"
    for name in ("train", "validation", "test"):
        if not (data / f"{name}.safetensors").exists():
            data.mkdir(exist_ok=True)
            held = getattr(material.data, name)
            arrays = {"pixels": torch.from_numpy(np.ascontiguousarray(held.pixels)),
                      "labels": torch.from_numpy(held.labels.astype(np.int64))}  # fmt: skip
            write_tensors(data / f"{name}.safetensors", arrays)
    steps = schedule.epochs * max(1, material.train.count // schedule.batch)
    adam = schedule.optimizer == "adamw"
    optimizer = {"weight_decay": schedule.weight_decay} if adam else {
        "momentum": 0.9, "nesterov": True, "fused": True}  # fmt: skip
    return {
        "losses": losses, "epochs": schedule.epochs, "batch": schedule.batch, "cache": cache,
        "seed": schedule.seed, "teacher": str(teacher.resolve()), "student": str(student),
        "data": str(data),
        "optimizer": "AdamW" if adam else "SGD",
        "of_optimizer": {"lr": schedule.rate, **optimizer},
        "rates": [schedule.rate_at(step, steps) / schedule.rate for step in range(steps)],
        "clip": schedule.clip, "workers": workers, "threads": torch.get_num_threads(),
        "shift": shift, "flip": flip, "side": material.shape[-1],
        "mean": material.normalisation.mean, "std": material.normalisation.std,
        "result": str(folder / "result.json"), "keep": str(folder / "taught.safetensors"),
    }  # fmt: skip
