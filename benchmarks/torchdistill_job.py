"""What torchdistill is told: a job for `torchdistill_child.py`, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.errors import DataError
from tutelage.files import write_json, write_tensors
from tutelage.pipeline.material import Material
from tutelage.train.schedule import Schedule

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".work" / "torchdistill-env"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKAGES = ("torch==2.14.1", "torchvision==0.29.1", "torchdistill==1.1.5")
_SETUP = "python benchmarks/torchdistill.py --setup"


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


def told(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in torchdistill's environment; return what the child wrote.

    Raises `DataError` where that environment is not there.
    """
    if not PYTHON.exists():
        raise DataError(f"{ENVIRONMENT} is missing; make it with: {_SETUP}")
    path = Path(job["result"]).with_name("job.json")
    write_json(path, job)
    child = HERE / "torchdistill_child.py"
    # -P: else this very file would be found beside the child, and taken for the package.
    subprocess.run([str(PYTHON), "-P", str(child), str(path)], check=True)
    return json.loads(Path(job["result"]).read_text())
