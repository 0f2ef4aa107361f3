"""The stage `distill`: taps are paired, the student is taught, its files are written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import RecipeError
from tutelage.files import hash_json, write_json, write_tensors
from tutelage.losses.objective import Term
from tutelage.pairing import Pairing, find_pairing
from tutelage.passes import Forward, call, mapped, source_of
from tutelage.pipeline.exiting import check_pads, check_taps, exits_of
from tutelage.pipeline.imbalance import class_weights
from tutelage.pipeline.inheriting import keep, restore
from tutelage.pipeline.lessons import (
    batch_for,
    bounded_by,
    distill_inputs,
    epochs_for,
    further_of,
    objective_of,
    rate_for,
    schedule_of,
    terms_of,
)
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import Chosen, warm_weights
from tutelage.pipeline.starting import first_student, refuse_start, start_key
from tutelage.pipeline.teaching import Taught
from tutelage.pipeline.tokens import TokenLesson, token_lesson
from tutelage.pipeline.trials import decision_terms, scores_of
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.exits import Exits, drop_exits, load_exits, save_exits
from tutelage.students.inside import Inside
from tutelage.students.taps import describe_taps, find_taps, reading
from tutelage.train.confidence import fit_scale, scale_logits
from tutelage.train.distill import Distillation, decisions
from tutelage.train.loop import History, Trainer
from tutelage.train.qat import quantization_aware
from tutelage.train.trackers import open_tracker
from tutelage.types import Tap, pooled

_PAIRING_EXAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The taught student, its exits where it has some, and what became of its lesson."""

    network: nn.Module
    result: dict[str, Any]
    exits: Exits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The student's taps and the pairing with the teacher's."""

    taps: tuple[Tap, ...]
    pairing: Pairing | None


def pair_taps(recipe: Recipe, material: Material, taught: Taught, chosen: Chosen) -> Paired:
    """Find the student's taps and pair them with the teacher's by what they say on validation."""
    network = warm_weights(chosen)
    index = torch.arange(min(_PAIRING_EXAMPLES, material.validation.count))
    batch = material.validation.batch(index, 0)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    examples = mapped(batch.inputs, lambda x: x.to(device))
    two = mapped(examples, lambda x: x[:2])
    keep = None if batch.keep is None else batch.keep.to(device)
    if recipe.student.taps is None:
        taps = find_taps(network, two, forward=chosen.forward)
    else:
        taps = describe_taps(network, two, recipe.student.taps, forward=chosen.forward)
    teacher_taps = tuple(tap.path for tap in taught.teacher.taps)
    if not taps or not teacher_taps:
        if recipe.distill.pairs:
            raise RecipeError("distill.pairs: this teacher has no taps to pair; remove the key")
        return Paired(taps=taps, pairing=None)
    with torch.inference_mode():
        mine = reading(
            network, examples, taps, features=True, maps=False, keep=keep, forward=chosen.forward
        ).features
    theirs = taught.validation.read(index, 0).features
    named = None if recipe.distill.pairs is None else list(recipe.distill.pairs)
    mine, paths = [x.cpu() for x in mine], tuple(t.path for t in taps)
    pairing = find_pairing(mine, theirs, paths, teacher_taps, named)
    return Paired(taps=taps, pairing=pairing)


def build_lesson(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, paired: Paired,
    terms: tuple[Term, ...] = (), tokens: TokenLesson | None = None, forward: Forward = call,
) -> Distillation:  # fmt: skip
    """Put student, signals, data and objective (`terms`, else the recipe's losses) together.

    `tokens` replaces the signals that were asked for before taps were paired.
    """
    objective = objective_of(
        terms or terms_of(recipe.distill),
        pairs=paired.pairing.pairs if paired.pairing else (),
        student_widths=tuple(_width(tap) for tap in paired.taps),
        teacher_widths=tuple(_width(tap) for tap in taught.teacher.taps),
        seed=recipe.seed,
        class_weights=class_weights(recipe, material),
    )
    return Distillation(
        network,
        objective,
        material.train,
        material.validation,
        signals=tokens.signals if tokens else taught.train,
        validation_decision=taught.validation_decision,
        taps=paired.taps,
        inside=tokens.student if tokens else Inside(),
        classes=material.outputs,
        decides=material.decides,
        views=material.views,
        batch=batch_for(recipe, material.train.count),
        seed=recipe.seed,
        metric=recipe.metric,
        forward=forward,
    )


def distill(
    recipe: Recipe, material: Material, taught: Taught, chosen: Chosen, run: Run,
    progress: Progress,
) -> Learned:  # fmt: skip
    """Teach the chosen student (once a run) and write `student/`."""
    usual = epochs_for(recipe, material.train.count, chosen.macs)
    epochs, changes = further_of(recipe, usual, chosen.stays)
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
        paired = pair_taps(recipe, material, taught, chosen)
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
        unpaired = Paired(taps=(), pairing=None)
        terms = decision_terms(recipe, material.decides)
        lesson = build_lesson(recipe, material, taught, network, unpaired, terms)
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


def _width(tap: Tap) -> int:
    return int(pooled(torch.zeros(1, *tap.shape)).shape[1])


def _save(folder: Path, chosen: Chosen, network: nn.Module, note: Any) -> list[Path]:
    if chosen.spec is not None:
        return students.save(folder, chosen.spec, network, note)
    paths = [folder / "spec.json", folder / "model.safetensors"]
    write_json(paths[0], _own(network))
    write_tensors(paths[1], network.state_dict())
    return paths


def _own(network: nn.Module) -> dict[str, str]:
    return {"family": "own", "name": type(network).__name__}
