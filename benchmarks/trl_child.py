"""Teach a sliced language model with TRL for some minutes, in TRL's own environment.

language_lessons.py starts it: TRL_PYTHON benchmarks/trl_child.py JOB.json

`distillation` is TRL's DistillationTrainer: the student writes on from the first half of each
window, and the teacher judges it. `gkd` is its GKDTrainer on the texts themselves (lmbda 0, forward
KL), the teacher in the loop. The rate rises for 15 % of the time and falls as a cosine, by the
clock, so that either ends its schedule when the time is over.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """Sets the rate by the share of the time that is over, and stops at its end."""

    def __init__(self, minutes: float, rate: float) -> None:
        self.limit, self.rate, self.began, self.steps = 60 * minutes, rate, 0.0, 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Set the rate."""
        share = min(1.0, (time.monotonic() - self.began) / self.limit)
        rise = 0.15
        falls = 0.5 * (1 + math.cos(math.pi * max(0.0, share - rise) / (1 - rise)))
        for group in given["optimizer"].param_groups:
            group["lr"] = self.rate * min(max(share, 0.01) / rise, falls, 1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Stop when the time is over."""
        self.steps += 1
        control.should_training_stop = time.monotonic() - self.began > self.limit


def trainer_of(
    job: dict[str, Any], student: Any, teacher: Any, tokenizer: Any, clock: Clock
) -> Any:
    """Return TRL's trainer."""
    ids = load_file(job["texts"])["ids"]
    usual: dict[str, Any] = {
        "output_dir": job["out"] + "-work", "per_device_train_batch_size": 8, "use_cpu": True,
        "bf16": job["bf16"], "num_train_epochs": 100, "lr_scheduler_type": "constant",
        "learning_rate": job["rate"], "save_strategy": "no", "report_to": "none",
        "gradient_checkpointing": False, "seed": job["seed"], "logging_steps": 20,
        "weight_decay": 0.01, "max_grad_norm": 5.0, "temperature": 1.0, "beta": job["beta"],
    }  # fmt: skip
    if job["trainer"] == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            given = torch.tensor([row["ids"] for row in rows])
            return {"input_ids": given, "attention_mask": torch.ones_like(given), "labels": given}

        return GKDTrainer(
            model=student, teacher_model=teacher, processing_class=tokenizer,
            args=GKDConfig(lmbda=0.0, **usual), data_collator=collate, callbacks=[clock],
            train_dataset=Dataset.from_dict({"ids": ids.tolist()}),
        )  # fmt: skip
    from trl import DistillationConfig, DistillationTrainer

    half = ids.shape[1] // 2
    prompts = tokenizer.batch_decode(ids[:, :half].tolist())
    return DistillationTrainer(
        model=student, teacher_model=teacher, processing_class=tokenizer,
        args=DistillationConfig(max_completion_length=half, **usual), callbacks=[clock],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )  # fmt: skip


def main() -> None:
    """Teach, and save the student."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(job[who], dtype=torch.float32)
        for who in ("student", "teacher")
    )
    tokenizer = AutoTokenizer.from_pretrained(job["student"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    clock = Clock(job["minutes"], job["rate"])
    trainer_of(job, student, teacher, tokenizer, clock).train()
    student.save_pretrained(job["out"])
    Path(job["out"], "steps.json").write_text(json.dumps({"steps": clock.steps}))


if __name__ == "__main__":
    main()
