"""The stage `distill`: taps are paired, the student is taught, its files are written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.files import hash_json, write_json, write_tensors
from tutelage.passes import Forward, call, mapped, source_of
from tutelage.pipeline.exiting import check_pads, check_taps, exits_of
from tutelage.pipeline.inheriting import keep, restore
from tutelage.pipeline.lessons import (
    bounded_by,
    distill_inputs,
    epochs_for,
    further_of,
    rate_for,
    schedule_of,
)
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import Chosen, warm_weights
from tutelage.pipeline.starting import first_student, refuse_start, start_key
from tutelage.pipeline.taps import UNPAIRED, build_lesson, pair_taps
from tutelage.pipeline.teaching import Taught
from tutelage.pipeline.tokens import token_lesson
from tutelage.pipeline.trials import decision_terms, scores_of
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.exits import Exits, drop_exits, load_exits, save_exits
from tutelage.train.confidence import fit_scale, scale_logits
from tutelage.train.distill import decisions
from tutelage.train.loop import History, Trainer
from tutelage.train.qat import quantization_aware
from tutelage.train.trackers import open_tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The taught student, its exits where it has some, and what became of its lesson."""

    network: nn.Module
    result: dict[str, Any]
    exits: Exits | None = None


def distill(
    recipe: Recipe, material: Material, taught: Taught, chosen: Chosen, run: Run,
    progress: Progress,
) -> Learned:  # fmt: skip
    """Teach the chosen student (once a run) and write `student/`."""
    usual = epochs_for(recipe, material.train.count, chosen.macs)
    bound = bounded_by(recipe, material.train.count, chosen.macs)
    torch.manual_seed(recipe.seed)
    network, started = chosen.network, ()
    if chosen.spec is None:
        refuse_start(recipe)
    else:
        network, started = first_student(
            recipe, chosen.spec, taught, chosen.weights, chosen.weights_of
        )
    for taken in started:
        progress.say(f"student: starts with {taken}")
    rate = rate_for(recipe, chosen.spec, inherits=bool(started))
    epochs, changes = further_of(recipe, usual, chosen.stays, rate)
    changes = {"rate": rate, **changes}
    if bound:
        progress.say(f"student: {bound}")
    check_pads(recipe, material, network)
    folder = run.file("student")

    def work() -> tuple[Any, list[Path]]:
        kept = restore(run, inputs)
        if kept is not None:
            progress.say("student: it was taught before in this run")
            return kept
        warm = warm_weights(chosen)
        paired = pair_taps(recipe, material, taught, warm, chosen.forward, start=network)
        check_taps(recipe, paired.taps)
        pairs = paired.pairing.pairs if paired.pairing else ()
        tokens = token_lesson(recipe, material, taught, network, paired.taps, pairs, run, progress)
        lesson = build_lesson(
            recipe, material, taught, network, paired, tokens=tokens, forward=chosen.forward
        )
        tracker = open_tracker(recipe.tracking, run.file("tracking"))
        trainer = Trainer(
            lesson,
            schedule_of(recipe, epochs=epochs, seed=recipe.seed, **changes),
            checkpoint=run.file("checkpoints/student.safetensors"),
            progress=progress,
            label="Teaching the student",
            tracker=tracker.log if tracker else None,
        )
        history = dataclasses.asdict(trainer.train() if epochs else History())
        if tracker:
            tracker.close()
        result = {
            "spec": _own(network) if chosen.spec is None else chosen.spec.to_json(),
            "parameters": chosen.parameters,
            "epochs": epochs,
            "rate": changes["rate"],
            **({"bound": bound} if bound else {}),
            "seed": recipe.seed,
            "metric": material.metric,
            "history": history,
            "weights": lesson.objective.weights(),
            "confidence_scale": _as_sure(network, material, taught, chosen.forward),
            "pairing": paired.pairing.to_json() if paired.pairing else None,
            "reads_pairs": lesson.objective.reads_pairs,
            **({"start": started} if started else {}),
        }
        unit = material.target and {"target": dataclasses.asdict(material.target)}
        paths = _save(folder, chosen, network, unit)
        drop_exits(folder)  # an earlier lesson's must not lie beside this student
        if recipe.student.exits is not None:
            paths += save_exits(folder, exits_of(lesson, taught), material.outputs)
        return result, paths

    own_pass = [] if chosen.forward is call else [source_of(chosen.forward)]
    inputs = hash_json(
        [
            taught.train.key,
            taught.validation.key,
            None if chosen.spec is None else chosen.spec.to_json(),
            students.weights_hash(network) if chosen.spec is None else None,
            *distill_inputs(recipe),
            recipe.student.taps,
            epochs,
            material.views,
            recipe.seed,
            recipe.threads,
            *start_key(recipe, chosen.weights),
            *([] if rate == recipe.distill.rate else [rate]),
            *own_pass,
        ]
    )
    record = run.stage("distill", inputs, work)
    if chosen.spec is not None:
        lesson = scores_of(recipe, material, run.path).lesson
        keep(run, lesson, inputs, chosen.spec, record.result)
        network = students.load(folder)
    else:
        from tutelage.files import read_tensors

        network.load_state_dict(read_tensors(folder / "model.safetensors")[0])
        network.eval()
    return Learned(network=network, result=record.result, exits=load_exits(folder))


def distill_for_int8(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, run: Run,
    progress: Progress, *, taught_for: int | None = None, rate: float | None = None,
) -> list[float]:  # fmt: skip
    """Teach the student on from the same signals while it feels int8 rounding; return the curve.

    By the decision alone: losses that read taps are left out. A tenth of the epochs (`taught_for`
    are those of its distillation) at a tenth of its `rate`. The network is changed in place.
    """
    epochs = max(3, (taught_for or epochs_for(recipe, material.train.count)) // 10)
    rate = (rate or recipe.distill.rate) / 10
    schedule = schedule_of(recipe, epochs=epochs, seed=recipe.seed, rate=rate, precision="float32")
    with quantization_aware(network):
        terms = decision_terms(recipe, material.decides)
        lesson = build_lesson(recipe, material, taught, network, UNPAIRED, terms)
        trainer = Trainer(
            lesson,
            schedule,
            checkpoint=run.file("checkpoints/int8.safetensors"),
            progress=progress,
            label="Teaching the student int8",
        )
        figures = trainer.train().figure
    _as_sure(network, material, taught)
    return figures


def _as_sure(
    network: nn.Module, material: Material, taught: Taught, forward: Forward = call
) -> float:
    """Scale the student's logits to the teacher's confidence on validation; return by what."""
    if material.decides == "values":
        return 1.0
    scale = fit_scale(decisions(network, material.validation, forward), taught.validation_decision)
    device = next(network.parameters()).device
    index = torch.arange(min(8, material.validation.count))
    inputs = material.validation.batch(index, 0).inputs
    example = mapped(inputs, lambda x: x.to(device))
    return scale if scale_logits(network, scale, example, forward) else 1.0


def _save(folder: Path, chosen: Chosen, network: nn.Module, note: Any) -> list[Path]:
    if chosen.spec is not None:
        return students.save(folder, chosen.spec, network, note)
    paths = [folder / "spec.json", folder / "model.safetensors"]
    write_json(paths[0], _own(network))
    write_tensors(paths[1], network.state_dict())
    return paths


def _own(network: nn.Module) -> dict[str, str]:
    return {"family": "own", "name": type(network).__name__}
