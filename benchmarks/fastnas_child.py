"""One pruning and distillation with NVIDIA ModelOpt 0.47, as its starter asks for it.

Runs in ModelOpt's own environment. FastNAS narrows a copy of the teacher to the limits, then the
mode `kd_loss` distils the teacher into it, both by their defaults but for what follows. Channels
are divided by 1, not 32, which leaves nothing below 200,234 parameters. ModelOpt's tracer stops at
a flatten and would keep the last stage whole (23,037), so that the head is shown to it as a 1 x 1
convolution. It takes one limit: for two it searches twice by the same scores. These are of fewer
images, and the ratios coarser, where the search would take more than half of the seconds.

Its `params` leave out batch norms; its `flops` are twice the multiply-accumulates. Argument: a JSON
file with the job; the file it names as `result` is written.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
import json
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modelopt.torch.distill as mtd
import modelopt.torch.nas as mtn
import numpy as np
import torch
import torch.nn.functional as F
from modelopt.torch.opt.utils import named_hparams
from torch import Tensor, nn

from tutelage.students.spec import load
from tutelage.train.schedule import Schedule, build_optimizer

DEFAULT_RATIOS = tuple(round(0.05 * i, 2) for i in range(1, 21))  # those of FastNAS
COARSE_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
QUEUE = 50  # batches: with fewer, FastNAS warns once and calibrates no batch norm at all
MOST_SCORED, FEWEST_SCORED, FEWEST_IN_BATCH, ENOUGH = 2_000, 200, 4, 512
STEPS, TRIED = 20, 10  # of the binary search, each calibrates; of training, to count the epochs
WEIGHT_DECAY = 5e-4
Json = dict[str, Any]
Data = dict[str, tuple[Tensor, Tensor]]


class Traceable(nn.Module):
    """The teacher's function and weights, with a head that ModelOpt's tracer follows."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem, self.stages, self.pool = network.stem, network.stages, network.pool
        self.head = nn.Conv2d(network.head.in_features, network.head.out_features, 1)
        self.head.weight.data = network.head.weight.data[:, :, None, None].clone()
        self.head.bias = copy.deepcopy(network.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.pool(self.stages(self.stem(images)))).flatten(1)


def main() -> None:
    """Prune, distil, test, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job["seed"])
    data, teacher = _data(job), load(job["teacher"]).eval()
    begin = time.process_time()
    network, result = _prune(job, data, Traceable(copy.deepcopy(teacher)).eval())
    result["search_s"] = time.process_time() - begin
    if network is not None:
        result |= _size(network, data["validation"][0][:1])
        network, learned = _learn(job, data, teacher, network, begin + job["seconds"])
        result |= learned | {"learn_s": time.process_time() - begin - result["search_s"]}
        result["test"] = _accuracy(network, *data["test"])
    result["versions"] = {x: version(x) for x in ("nvidia-modelopt", "torch", "torchprofile")}
    Path(job["result"]).write_text(json.dumps(result))


def _data(job: Json) -> Data:
    """Return normalised images and labels; those for training have a black border to shift in."""
    arrays = np.load(job["arrays"])
    mean, std = (torch.tensor(job[name])[:, None, None] for name in ("mean", "std"))
    found = {}
    for name in ("train", "validation", "test"):
        border = [job["shift"] if name == "train" else 0] * 4
        pixels = F.pad(torch.from_numpy(arrays[f"{name}_x"]).permute(0, 3, 1, 2), border)
        labels = torch.from_numpy(arrays[f"{name}_y"]).long()
        found[name] = ((pixels.float() / 255 - mean) / std, labels)
    return found


def _prune(job: Json, data: Data, whole: nn.Module) -> tuple[nn.Module | None, Json]:
    """Return the pruned network, None where a limit cannot be kept, and the story of the search."""
    limits = {k: float(v) for k, v in job["constraints"].items() if v is not None}
    plan, blank, told = _plan(job, data, whole), data["validation"][0][:1], {}
    config = _search_config(job, data, plan)
    for name, limit in limits.items():
        model = _searchable(whole, plan["ratios"])
        possible, stats = mtn.profile(model, blank, limits, verbose=False, use_centroid=True)
        told = {"search": plan, "smallest": {k: stats["min"][k] for k in ("params", "flops")}}
        if not possible:
            return None, told | {"infeasible": "no network of the search space keeps the limits"}
        model, _ = mtn.search(model, {name: limit}, blank, config)
        told["counted"] = counted = mtn.profile(model, blank, verbose=False)[1]["full"]
        if all(counted[key] <= limits[key] for key in limits):
            return model, told
    return None, told | {"infeasible": "the search ended with a network above the limits"}


def _plan(job: Json, data: Data, whole: nn.Module) -> Json:
    """Return ratios and numbers of images with which the search takes half of the seconds."""
    before = time.process_time()
    _accuracy(whole, *(part[:256] for part in data["validation"]))
    affordable = job["seconds"] / 2 * 256 / (time.process_time() - before)
    for ratios in (DEFAULT_RATIOS, COARSE_RATIOS):
        model = _searchable(whole, ratios)
        scores = sum(len(h.choices) - 1 for _, h in named_hparams(model, configurable=True))
        each = int(affordable / (scores + STEPS))
        if each >= ENOUGH:
            break
    most = len(data["train"][1]) // QUEUE
    batch = min(max(each // 2 // QUEUE, FEWEST_IN_BATCH), job["batch"], most)
    scored = min(max(each - batch * QUEUE, FEWEST_SCORED), MOST_SCORED)
    return {"ratios": ratios, "scores": scores, "calibration_batch": batch, "scored": scored}


def _searchable(whole: nn.Module, ratios: tuple[float, ...]) -> nn.Module:
    """Return a copy as FastNAS' search space: every layer at these shares of its channels."""
    channels = {"channels_ratio": ratios, "channel_divisor": 1, "kernel_size": ()}
    features = {"features_ratio": ratios, "feature_divisor": 1}
    config = {"nn.Conv2d": {"*": channels}, "nn.BatchNorm2d": {"*": features}}
    return mtn.convert(copy.deepcopy(whole), mode=[("fastnas", config)])


def _search_config(job: Json, data: Data, plan: Json) -> Json:
    """Return score function and calibration data, both from images drawn at random."""
    chosen = torch.randperm(len(data["validation"][1]))[: plan["scored"]]
    part, known = [x[chosen] for x in data["validation"]], dict[tuple[int, ...], float]()

    def score(model: nn.Module) -> float:
        key = tuple(_widths(model))  # a second search asks the same again
        if key not in known:
            model.eval()  # ModelOpt calibrates the batch norms in this call
            known[key] = _accuracy(model, *part)
        return known[key]

    size, train = plan["calibration_batch"], data["train"][0]
    drawn = train[torch.randperm(len(train))[: size * QUEUE]]
    batches = [(batch,) for batch in F.pad(drawn, [-job["shift"]] * 4).split(size)]
    return {"score_func": score, "data_loader": batches, "verbose": False}


def _learn(job: Json, data: Data, teacher: nn.Module, network: Any, end: float) -> tuple[Any, Json]:
    """Distil until the processor's clock shows about `end`; return the best epoch's network."""
    config = {"teacher_model": teacher, "criterion": mtd.LogitsDistillationLoss(),
              "loss_balancer": mtd.StaticLossBalancer()}  # fmt: skip
    model = mtd.convert(network, mode=[("kd_loss", config)])
    schedule = Schedule(epochs=1, optimizer="sgd", shape="cosine", rate=job["rate"],
                        weight_decay=WEIGHT_DECAY, warmup=0.1)  # fmt: skip
    count, epochs = len(data["train"][1]), _epochs(job, data, model, schedule, end)
    steps = count // job["batch"]
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], schedule)
    best, state, curve = -1.0, {}, []
    for epoch in range(epochs):
        order = torch.randperm(count)[: steps * job["batch"]].split(job["batch"])
        for step, chosen in enumerate(order, epoch * steps):
            _step(job, data, model, optimizer, chosen, schedule.rate_at(step, epochs * steps))
        curve.append(_distilled_accuracy(model, data))
        if curve[-1] > best:
            best, state = curve[-1], {k: v.clone() for k, v in model.state_dict().items()}
        print(f"  epoch {epoch + 1} of {epochs}: validation {curve[-1]:.2%}", file=sys.stderr)
    model.load_state_dict(state)
    return mtd.export(model).eval(), {"validation": best, "epochs": epochs, "curve": curve}


def _epochs(job: Json, data: Data, model: nn.Module, schedule: Schedule, end: float) -> int:
    """Return how many epochs fit, from the time of a few steps and one validation, undone again."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], schedule)
    count, marks = len(data["train"][1]), []
    for chosen in torch.randint(count, (TRIED + 2, job["batch"])):
        marks.append(time.process_time())  # the first step is slow
        _step(job, data, model, optimizer, chosen, 1e-3)
    steps_s = (marks[-1] - marks[1]) / TRIED * (count // job["batch"])
    before = time.process_time()
    _distilled_accuracy(model, data)
    after = time.process_time()
    model.load_state_dict(state)
    return max(1, int((end - after) / (steps_s + after - before)))


def _step(job: Json, data: Data, model: Any, optimizer: Any, chosen: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    optimizer.zero_grad()
    logits = model(_varied(data["train"][0], chosen, job))
    loss = model.compute_kd_loss(student_loss=F.cross_entropy(logits, data["train"][1][chosen]))
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], job["clip"])
    optimizer.step()


def _varied(images: Tensor, chosen: Tensor, job: Json) -> Tensor:
    """Return the chosen images, each shifted and half of them mirrored."""
    count, shift = len(chosen), job["shift"]
    sides = [side - 2 * shift for side in images.shape[2:]]
    down, right = (torch.randint(2 * shift + 1, (count, 1)) + torch.arange(s) for s in sides)
    right = torch.where(torch.rand(count, 1) < 0.5 * job["flip"], right.flip(1), right)
    return images[chosen[:, None, None], :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2)


def _distilled_accuracy(model: Any, data: Data) -> float:
    model.eval()  # returns None in a distillation model
    with model.only_student_forward():
        return _accuracy(model, *data["validation"])


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right decisions of a network in evaluation mode."""
    pairs = zip(images.split(256), labels.split(256), strict=True)
    return sum(int((model(part).argmax(1) == right).sum()) for part, right in pairs) / len(labels)


def _size(model: nn.Module, image: Tensor) -> Json:
    """Return all parameters, multiply-accumulates of one image, and channels without the head."""
    macs: list[int] = []

    def count(layer: Any, _: Any, out: Tensor) -> None:
        macs.append(out.numel() * layer.weight[0].numel())

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    _accuracy(model.eval(), image, torch.zeros(1))
    for hook in hooks:
        hook.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "macs": sum(macs), "widths": _widths(model)[:-1]}


def _widths(model: nn.Module) -> list[int]:
    return [int(m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)]


if __name__ == "__main__":
    main()
