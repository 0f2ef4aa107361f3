"""One training of a text student by TextBrewer or Sentence Transformers, as the grid asks for it.

Runs in an environment of these tools (`tools.py`). Both get the tokens, the networks, the optimizer
and the rates of this library. TextBrewer: its distiller on decisions alone with the teacher's
answers cached, or with hidden states and attention scores besides, as TinyBERT has them, the
teacher in the loop; the best epoch on validation is kept. Sentence Transformers: its model
distillation, where the student's embeddings learn the teacher's, cut to as many numbers by their
principal components, then a logistic regression on the labels. Argument: a JSON file with the job;
the files that it names as `result` and `keep` are written, the latter with the student's weights.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tutelage.students.spec import load

_AT_ONCE = 512


def main() -> None:
    """Teach, write the result."""
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.disable(logging.INFO)  # the log would be written in the time that is measured
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    parts = {n: load_file(f"{job['data']}/{n}.safetensors") for n in ("train", "validation")}
    teacher, student = load(job["teacher"]), load(job["student"])
    begun = time.process_time()
    teach = by_sentence_transformers if "MSELoss" in job["losses"] else by_textbrewer
    epochs = teach(job, parts, teacher, student)
    spent = time.process_time() - begun
    save_file(student.state_dict(), job["keep"])
    Path(job["result"]).write_text(json.dumps({"epochs": epochs, "cpu_s": spent}))


def cut(ids: Tensor, pad: int) -> Tensor:
    """Return tokens without the pads that none of the texts needs."""
    return ids[:, : max(1, int(ids.ne(pad).sum(1).max()))]


@torch.inference_mode()
def said(network: nn.Module, ids: Tensor, pad: int) -> Tensor:
    """Return a network's answers, [n, ...]."""
    network.eval()
    return torch.cat([network(cut(some, pad)) for some in ids.split(_AT_ONCE)])


def right(network: nn.Module, part: dict[str, Tensor], pad: int) -> float:
    """Return the share of a part on which the network is right."""
    hits = said(network, part["ids"], pad).argmax(1).eq(part["labels"])
    return float(hits.float().mean())


def optimizer_of(job: dict[str, Any], network: nn.Module) -> torch.optim.AdamW:
    """Return AdamW as this library sets it up."""
    return torch.optim.AdamW(network.parameters(), lr=job["rate"], weight_decay=job["weight_decay"])


def rate_at(job: dict[str, Any], step: int) -> float:
    """Return what of the highest rate a step has."""
    return job["rates"][min(step, len(job["rates"]) - 1)]


# TextBrewer ----------------------------------------------------------------------------------


class Inside(nn.Module):
    """A network that tells its hidden states and attention scores beside its decision."""

    def __init__(self, network: Any, pad: int, *, tells: bool) -> None:
        super().__init__()
        self.network, self.pad, self.tells = network, pad, tells
        self.hidden: list[Tensor] = []
        self.scores: list[Tensor] = []
        if tells:
            network.project.register_forward_hook(self._keep_state)
            for stage in network.stages:
                stage.register_forward_hook(self._keep_state)
                stage.qkv.register_forward_hook(self._scores_of(stage))

    def _keep_state(self, _module: nn.Module, _given: Any, state: Tensor) -> None:
        self.hidden.append(state)

    def _scores_of(self, stage: Any) -> Any:
        def keep(_module: nn.Module, _given: Any, qkv: Tensor) -> None:
            parts = qkv.unflatten(-1, (stage.heads, 3 * stage.size)).transpose(1, 2)
            query, key, _ = parts.split([stage.size] * 3, dim=-1)
            self.scores.append(query @ key.transpose(2, 3) * stage.size**-0.5)

        return keep

    def forward(self, ids: Tensor) -> dict[str, Any]:
        """Return what TextBrewer's adaptor reads."""
        self.hidden, self.scores = [], []
        told: dict[str, Any] = {"logits": (self.network(ids),)}
        if self.tells:
            told |= {"hidden": self.hidden, "attention": self.scores,
                     "inputs_mask": ids.ne(self.pad)}  # fmt: skip
        return told


def by_textbrewer(
    job: dict[str, Any], parts: dict[str, dict[str, Tensor]], teacher: Any, student: Any
) -> list[dict[str, float]]:
    """Teach in place; return a row an epoch."""
    from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig

    pad, losses = job["pad"], dict(job["losses"])
    of_decision = losses.pop("kd")
    matches = [m for name, given in losses.items() for m in _matches(name, given, teacher, student)]
    training = TrainingConfig(output_dir=str(Path(job["result"]).parent), device="cpu")
    wanted = DistillationConfig(
        **of_decision, intermediate_matches=matches or None, is_caching_logits=not matches
    )
    both = [Inside(n, pad, tells=bool(matches)) for n in (teacher.eval(), student)]
    adaptors = [lambda _batch, told: told] * 2
    distiller = (GeneralDistiller if matches else BasicDistiller)(
        training, wanted, *both, *adaptors
    )
    loader = DataLoader(
        TensorDataset(parts["train"]["ids"]), batch_size=job["batch"], shuffle=True, drop_last=True,
        collate_fn=lambda rows: {"ids": cut(torch.stack([ids for (ids,) in rows]), pad)},
    )  # fmt: skip
    rows: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    begun = time.process_time()

    def judge(model: Inside, step: int) -> None:
        nonlocal best, begun
        figure = right(model.network, parts["validation"], pad)
        if not rows or figure > max(row["validation"] for row in rows):
            best = {k: v.clone() for k, v in model.network.state_dict().items()}
        now = time.process_time()
        rows.append({"validation": figure, "whole_cpu_s": now - begun})
        begun = now

    with distiller:
        distiller.train(
            optimizer_of(job, both[1]), loader, num_epochs=job["epochs"],
            scheduler_class=torch.optim.lr_scheduler.LambdaLR,
            scheduler_args={"lr_lambda": lambda step: rate_at(job, step)},
            max_grad_norm=job["clip"], callback=judge,
        )  # fmt: skip
    student.load_state_dict(best)
    return rows


def _matches(name: str, given: dict[str, Any], teacher: Any, student: Any) -> list[dict[str, Any]]:
    """Return one match a layer of the student, of layers evenly spread over the teacher's."""
    mine, theirs = len(student.stages), len(teacher.stages)
    what = name.split("_")[0]
    found = []
    for i in range(mine + 1):
        match = {"layer_S": i, "layer_T": round(i * theirs / mine), "feature": what,
                 "loss": name, **given}  # fmt: skip
        if what == "hidden":
            found.append({**match, "proj": ["linear", student.spec.hidden, teacher.spec.hidden]})
        elif i:
            found.append({**match, "layer_S": i - 1, "layer_T": match["layer_T"] - 1})
    return found


# Sentence Transformers -----------------------------------------------------------------------


def by_sentence_transformers(
    job: dict[str, Any], parts: dict[str, dict[str, Tensor]], teacher: Any, student: Any
) -> list[dict[str, float]]:
    """Teach in place; return a row an epoch, the figure that of the end."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.sentence_transformer.losses import MSELoss
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from transformers import TrainerCallback

    pad, train = job["pad"], parts["train"]
    head, student.head, teacher.head = student.head, nn.Identity(), nn.Identity()

    class Pooled(InputModule):
        """The student, read from and embedding what stands as numbers in a text."""

        def __init__(self) -> None:
            super().__init__()
            self.network = student

        def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
            rows = [train["ids"][int(text)] for text in inputs]
            return {"input_ids": cut(torch.stack(rows), pad)}

        def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
            return {**features, "sentence_embedding": self.network(features["input_ids"])}

        def save(self, *_: Any, **__: Any) -> None:
            """Nothing is saved: the student is the caller's."""

    class Clock(TrainerCallback):
        """Notes the processor time at the end of every epoch."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.process_time())

    begun = time.process_time()
    wanted = said(teacher, train["ids"], pad).numpy()
    wanted = PCA(n_components=student.spec.hidden, random_state=job["seed"]).fit_transform(wanted)
    rows = {"sentence": [str(i) for i in range(len(wanted))], "label": wanted.tolist()}
    model, clock = SentenceTransformer(modules=[Pooled()], device="cpu"), Clock()
    optimizer = optimizer_of(job, student)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(job, step))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(Path(job["result"]).parent / "trainer"), num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch"], seed=job["seed"], max_grad_norm=job["clip"],
        dataloader_drop_last=True, use_cpu=True, save_strategy="no", report_to=[],
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=MSELoss(model),
        optimizers=(optimizer, schedule), callbacks=[clock],
    ).train()  # fmt: skip
    fit = LogisticRegression(max_iter=1_000)
    fit.fit(said(student, train["ids"], pad).numpy(), train["labels"].numpy())
    student.head = head
    both = [torch.from_numpy(x) for x in (fit.coef_, fit.intercept_)]
    if len(both[0]) == 1:  # of two classes there is one row, that of the second
        both = [torch.cat([-x, x]) / 2 for x in both]
    with torch.no_grad():
        head.weight.copy_(both[0])
        head.bias.copy_(both[1])
    figure = right(student, parts["validation"], pad)
    starts = [begun, *clock.ends]
    return [
        {"validation": figure, "whole_cpu_s": b - a}
        for a, b in zip(starts, clock.ends, strict=False)
    ]


if __name__ == "__main__":
    main()
