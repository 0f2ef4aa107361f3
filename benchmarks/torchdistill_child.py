"""One training with torchdistill, as `benchmarks/torchdistill.py` asks for it; started by that.

Runs in torchdistill's own environment. The loop is that of its examples/torchvision/
image_classification.py (release 1.1.5): a DistillationBox built from a configuration, its metric
logger, validation after each epoch, the best epoch kept and tested at the end. The networks are
registered as its users register theirs. Argument: a JSON file with the job; the file it names as
`result` is written.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchdistill
import torchvision
from torch import Tensor, nn
from torchdistill.common.main_util import load_ckpt, save_ckpt, set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.datasets.registry import get_dataset
from torchdistill.datasets.util import build_data_loader
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchdistill.models.registry import get_model, register_model
from torchvision import transforms

from tutelage.students.spec import load

CPU = torch.device("cpu")


@register_model
def stored_network(folder: str) -> nn.Module:
    """Rebuild a network from its folder: the teacher, or the student's first weights."""
    return load(folder)


def main() -> None:
    """Train, test, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.INFO)  # the log would be written in the time that is measured
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    datasets = _datasets(job)
    teacher = get_model("stored_network", folder=job["teacher"])
    student = get_model("stored_network", folder=job["student"])
    box = get_distillation_box(teacher, student, datasets, _config(job), CPU, None, False, 1)
    best, epochs = 0.0, []
    checkpoint = str(Path(job["result"]).with_suffix(".pt"))
    for epoch in range(box.num_epochs):
        before = (time.perf_counter(), _cpu_s())
        box.pre_epoch_process(epoch=epoch)
        loss = _train_one_epoch(box, epoch)
        trained = (time.perf_counter(), _cpu_s())
        accuracy = _evaluate(box.student_model, box.val_data_loader)
        if accuracy > best:
            best = accuracy
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, None, checkpoint)
        box.post_epoch_process()
        row = {"train_s": trained[0] - before[0], "train_cpu_s": trained[1] - before[1],
               "whole_s": time.perf_counter() - before[0], "loss": loss,
               "validation": accuracy / 100}  # fmt: skip
        epochs.append(row)
        print(f"  epoch {epoch + 1}: {row['train_s']:.1f} s, validation {accuracy:.2f} %",
              file=sys.stderr)  # fmt: skip
    box.clean_modules()
    load_ckpt(checkpoint, model=student, strict=True)
    loader = build_data_loader(datasets["test"], _loader(job, "test", job["batch"]), False)
    versions = {"torchdistill": torchdistill.__version__, "torch": torch.__version__,
                "torchvision": torchvision.__version__}  # fmt: skip
    result = {"test": _evaluate(student, loader) / 100, "epochs": epochs, "fill_s": 0.0,
              "versions": versions, "threads": torch.get_num_threads()}  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


def _datasets(job: dict[str, Any]) -> dict[str, Any]:
    plain = [transforms.ToTensor(), transforms.Normalize(job["mean"], job["std"])]
    varied = []
    if job["augment"]:
        shift = job["shift"]
        varied = [transforms.RandomCrop(28, padding=shift), transforms.RandomHorizontalFlip()]
    kind = get_dataset("FashionMNIST")
    parts = {
        "train": ("learn", True, varied),
        "validation": ("learn", False, []),
        "test": ("test", False, []),
    }
    return {
        name: kind(
            root=str(Path(job["data"]) / folder),
            train=train,
            transform=transforms.Compose([*extra, *plain]),
        )
        for name, (folder, train, extra) in parts.items()
    }


def _loader(job: dict[str, Any], name: str, batch: int) -> dict[str, Any]:
    training = name == "train"
    sampler = torch.utils.data.RandomSampler if training else torch.utils.data.SequentialSampler
    return {
        "dataset_id": name,
        "sampler": {"class_or_func": sampler, "kwargs": None},
        "kwargs": {
            "batch_size": batch, "num_workers": job["workers"], "drop_last": training,
        },
        "cache_output": job["cache"] if training else None,
    }  # fmt: skip


def _config(job: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration, in the form of configs/sample/cifar10/kd/*.yaml."""
    loss = {"student_module_path": ".", "student_module_io": "output",
            "teacher_module_path": ".", "teacher_module_io": "output",
            "temperature": job["temperature"], "alpha": job["alpha"],
            "reduction": "batchmean"}  # fmt: skip
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}
    return {
        "num_epochs": job["epochs"],
        "train_data_loader": _loader(job, "train", job["batch"]),
        "val_data_loader": _loader(job, "validation", 512),
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": job["rate"], "momentum": 0.9, "nesterov": True, "fused": True},
            "max_grad_norm": job["clip"],
        },
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": lambda step: _share(step, job)},
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def _share(step: int, job: dict[str, Any]) -> float:
    """Return the share of the rate in a step: a linear rise, then half a cosine, as tutelage's."""
    total = job["epochs"] * job["steps"]
    rise = max(1, int(job["warmup"] * total))
    if step < rise:
        return (step + 1) / rise
    floor, part = job["floor"], (step - rise) / max(1, total - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def _train_one_epoch(box: Any, epoch: int) -> float:
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for batch, targets, extra in logger.log_every(box.train_data_loader, 100, f"Epoch: [{epoch}]"):
        start = time.time()
        batch, targets = batch.to(CPU), targets.to(CPU)
        loss = box.forward_process(batch, targets, extra)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(batch.shape[0] / (time.time() - start))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"the training broke: loss = {loss}")
    return float(logger.meters["loss"].global_avg)


@torch.inference_mode()
def _evaluate(model: nn.Module, loader: Any) -> float:
    """Return the accuracy in percent."""
    model.eval()
    logger = MetricLogger(delimiter="  ")
    for images, targets, *_ in logger.log_every(loader, 1000, "Validation:"):
        hits: Tensor = model(images).argmax(1).eq(targets).float()
        logger.meters["acc1"].update(100 * hits.mean().item(), n=len(targets))
    return float(logger.meters["acc1"].global_avg)


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    main()
