"""One training with torchdistill, as `torchdistill.py` or the grid asks for it; started by that.

Runs in torchdistill's own environment. The loop is that of its examples/torchvision/
image_classification.py (release 1.1.5): a DistillationBox built from a configuration, its metric
logger, validation after each epoch, the best epoch kept and tested at the end. The networks are
registered as its users register theirs, the images read as torchvision's FashionMNIST reads its
own. Argument: a JSON file with the job; the files that it names as `result` and `keep` are written,
the latter with the weights of the best epoch.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchdistill
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchdistill.common.main_util import load_ckpt, save_ckpt, set_seed
from torchdistill.core.distillation import get_distillation_box
from torchdistill.datasets.registry import get_dataset, register_dataset
from torchdistill.datasets.util import build_data_loader
from torchdistill.misc.log import MetricLogger, SmoothedValue
from torchdistill.models.registry import get_model, register_model
from torchvision import transforms

from tutelage.students.spec import load

CPU = torch.device("cpu")
_OF_FEATURES = ("SRDLoss",)  # of which networks are wrapped, so that their features are at hand
_PLACES = {
    f"{who}_module_{what}": value
    for who in ("student", "teacher")
    for what, value in (("path", "."), ("io", "output"))
}


@register_model
def stored_network(folder: str) -> nn.Module:
    """Rebuild a network from its folder: the teacher, or the student's first weights."""
    return load(folder)


@register_dataset
class StoredImages(torch.utils.data.Dataset):
    """Images of bytes in memory, each handed out as torchvision's FashionMNIST does."""

    def __init__(self, path: str, transform: Any) -> None:
        held = load_file(path)
        self.images, self.labels = held["pixels"], held["labels"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, transformed, and its label."""
        image = Image.fromarray(self.images[index].squeeze(-1).numpy())
        return self.transform(image), self.labels[index]


def main() -> None:
    """Train, test, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.INFO)  # the log would be written in the time that is measured
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])
    datasets = _datasets(job)
    teacher = get_model("stored_network", folder=job["teacher"])
    student = get_model("stored_network", folder=job["student"])
    begun = _cpu_s()
    config = _config(job, teacher, student)
    box = get_distillation_box(teacher, student, datasets, config, CPU, None, False, 1)
    best, epochs = -1.0, []
    checkpoint = str(Path(job["result"]).with_suffix(".pt"))
    for epoch in range(box.num_epochs):
        before = (time.perf_counter(), _cpu_s())
        box.pre_epoch_process(epoch=epoch)
        loss = _train_one_epoch(box, epoch)
        trained = (time.perf_counter(), _cpu_s())
        accuracy = _evaluate(student, box.val_data_loader)
        if accuracy > best:
            best = accuracy
            save_ckpt(student, box.optimizer, box.lr_scheduler, best, None, checkpoint)
        box.post_epoch_process()
        row = {"train_s": trained[0] - before[0], "train_cpu_s": trained[1] - before[1],
               "whole_s": time.perf_counter() - before[0], "whole_cpu_s": _cpu_s() - before[1],
               "loss": loss, "validation": accuracy / 100}  # fmt: skip
        epochs.append(row)
        print(f"  epoch {epoch + 1}: {row['train_s']:.1f} s, validation {accuracy:.2f} %",
              file=sys.stderr)  # fmt: skip
    box.clean_modules()
    load_ckpt(checkpoint, model=student, strict=True)
    spent = _cpu_s() - begun
    save_file(student.state_dict(), job["keep"])
    loader = build_data_loader(datasets["test"], _loader(job, "test", job["batch"]), False)
    versions = {"torchdistill": torchdistill.__version__, "torch": torch.__version__,
                "torchvision": torchvision.__version__}  # fmt: skip
    result = {"test": _evaluate(student, loader) / 100, "epochs": epochs, "fill_s": 0.0,
              "cpu_s": spent, "versions": versions, "threads": torch.get_num_threads()}  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


def _datasets(job: dict[str, Any]) -> dict[str, Any]:
    plain = [transforms.ToTensor(), transforms.Normalize(job["mean"], job["std"])]
    varied = []
    if job["shift"]:
        varied.append(transforms.RandomCrop(job["side"], padding=job["shift"]))
    if job["flip"]:
        varied.append(transforms.RandomHorizontalFlip())
    kind = get_dataset("StoredImages")
    parts = {"train": varied, "validation": [], "test": []}
    return {
        name: kind(
            path=str(Path(job["data"]) / f"{name}.safetensors"),
            transform=transforms.Compose([*extra, *plain]),
        )
        for name, extra in parts.items()
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


def _config(job: dict[str, Any], teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
    """Return the configuration, in the form of configs/sample/cifar10/kd/*.yaml."""
    inside = any(name in _OF_FEATURES for name in job["losses"])
    sides = [_side(teacher, student, "teacher", inside), _side(student, teacher, "student", inside)]
    return {
        "num_epochs": job["epochs"],
        "train_data_loader": _loader(job, "train", job["batch"]),
        "val_data_loader": _loader(job, "validation", 512),
        "teacher": sides[0],
        "student": sides[1],
        "optimizer": {
            "key": job["optimizer"],
            "kwargs": job["of_optimizer"],
            "max_grad_norm": job["clip"],
        },
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": lambda step: job["rates"][min(step, len(job["rates"]) - 1)]},
            "scheduling_step": 1,
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {name: _term(name, job) for name in job["losses"]}},
        },
    }


def _side(network: nn.Module, other: nn.Module, who: str, inside: bool) -> dict[str, Any]:
    """Return how a network takes part; `inside`: with features of its last stage, projected."""
    side: dict[str, Any] = {
        "forward_proc": "forward_batch_only", "sequential": [], "requires_grad": who == "student",
    }  # fmt: skip
    if inside:
        own, teachers = network.head.in_features, other.head.in_features
        last = f"model.stages.{len(network.stages) - 1}"
        kwargs: dict[str, Any] = {"input_module": {"path": last, "io": "output"}}
        if who == "student":
            kwargs["linear_kwargs"] = {"in_features": own, "out_features": teachers}
            own = teachers
        kwargs["norm_kwargs"] = {"num_features": own, "eps": 1e-4, "affine": False}
        wrapper = {"key": "SRDModelWrapper", "kwargs": kwargs}
        side |= {"auxiliary_model_wrapper": wrapper,
                 "forward_hook": {"input": [], "output": [last, "norm_layer"]}}  # fmt: skip
    return side


def _term(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return one loss: its class, options and weight."""
    options = dict(job["losses"][name])
    weight = options.pop("weight", 1.0)
    if name == "CrossEntropyLoss":
        place = {"is_from_teacher": False, "module_path": ".", "io": "output"}
        wrapper = {"input": place, "target": {"uses_label": True}}
        return {
            "criterion": {"key": name, "kwargs": {"reduction": "mean"}},
            "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": wrapper},
            "weight": weight,
        }
    places = _PLACES
    if name in _OF_FEATURES:
        places = {key.replace("module", "linear_module"): v for key, v in _PLACES.items()}
        for who in ("student", "teacher"):
            places[f"{who}_feature_module_path"] = "norm_layer"
            places[f"{who}_feature_module_io"] = "output"
    return {"criterion": {"key": name, "kwargs": {**places, **options}}, "weight": weight}


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
