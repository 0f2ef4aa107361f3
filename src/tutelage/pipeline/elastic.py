"""The elastic student: taught once a run for all widths, then cut to every budget that is asked.

Covers images and series. It starts from half of the teacher's channels where the teacher is a
built-in network without inception blocks, and fresh otherwise. It is taught by the losses of the
decision alone; those that read taps come in where a cut is taught further.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import RecipeError
from tutelage.files import hash_json
from tutelage.losses.objective import Objective
from tutelage.pipeline.imbalance import class_weights
from tutelage.pipeline.inheriting import own_network
from tutelage.pipeline.judging import validation_figure
from tutelage.pipeline.lessons import batch_for, distill_inputs, epochs_for, schedule_of
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.naming import name_spec
from tutelage.pipeline.teaching import Taught
from tutelage.pipeline.trials import decision_terms
from tutelage.plan import SPACES, Candidate
from tutelage.plan.costs import Costing
from tutelage.plan.elastic import fitting_cut
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.slices.elastic import cut_of, narrowed, ordered, smallest
from tutelage.students.slices.narrowing import Narrowed
from tutelage.students.spec import FAMILIES, StudentSpec, sliced_from
from tutelage.train.distill import Distillation
from tutelage.train.elastic import ElasticLesson
from tutelage.train.loop import Trainer

OF_TEACHER, LEAST = 1 / 2, 1 / 4  # of the teacher's channels, and of its own the fewest taught
_FRESH_WIDTHS = {"convnet": 16, "convnet1d": 32}
_NORMS, _JUDGED = 1_024, 512  # training examples that renew norms, and that stages are scored on


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """A network that holds many: its spec, that of the narrowest, what narrowing a stage does."""

    network: nn.Module
    whole: StudentSpec
    least: StudentSpec
    scores: Narrowed


def elastic_specs(
    material: Material, own: StudentSpec | None
) -> tuple[StudentSpec, StudentSpec, bool]:
    """Return the spec of the elastic student, its narrowest, and whether it starts of the teacher.

    `own` is the teacher's spec where it can be sliced. No budget has a say. Raises `RecipeError`
    where the task has no convolutional family.
    """
    family = next((name for name in material.task.families if name in _FRESH_WIDTHS), None)
    if family is None:
        raise RecipeError(
            f"student.space: elastic is for images and series, and the task is "
            f"{material.task.name}: choose compact or sliced"
        )
    same = own is not None and own.family == family and all(
        getattr(own.knobs, k) == v for k, v in material.knobs.items() if k != "classes"
    )  # fmt: skip
    kind = FAMILIES[family]
    if own is not None and same:
        knobs = smallest(own.knobs, OF_TEACHER)
    else:
        assert kind.sized is not None
        knobs = kind.sized(kind.structures[0], _FRESH_WIDTHS[family], material.knobs)
    whole, least = (
        StudentSpec(family=family, knobs=k) for k in (knobs, smallest(knobs, LEAST))
    )  # fmt: skip
    return whole, least, same


def elastic_student(
    recipe: Recipe, costing: Costing, material: Material, taught: Taught, run: Run,
    progress: Progress,
) -> Elastic:  # fmt: skip
    """Return the run's elastic student, taught where it was not yet; no budget is in its key.

    Raises `InfeasibleError` before it is taught where no cut of it would fit.
    """
    own = own_network(taught.teacher, material.shape)
    whole, least, sliced = elastic_specs(material, None if own is None else own[1])
    epochs = epochs_for(recipe, material.train.count)
    folder = run.file("elastic")

    def work() -> tuple[Any, list[Path]]:
        fitting_cut(whole, least, costing)
        how = "half of the teacher's channels" if sliced else "fresh weights"
        progress.say(f"elastic student: {name_spec(whole)} from {how}, for all later budgets")
        torch.manual_seed(recipe.seed)
        network = whole.build()
        if own is not None and sliced:
            examples = some_examples(material)
            network = ordered(sliced_from(own[0], whole, examples), examples)
        lesson = _lesson(recipe, material, taught, network, least)
        history = Trainer(
            lesson,
            schedule_of(recipe, epochs=epochs, seed=recipe.seed),
            checkpoint=run.file("checkpoints/elastic.safetensors"),
            progress=progress,
            label="Teaching the elastic student",
        ).train()
        judged = some_examples(material, _JUDGED)
        result = {
            "spec": whole.to_json(), "least": least.to_json(), "epochs": epochs, "start": how,
            "history": dataclasses.asdict(history),
            "scores": narrowed(network, least.knobs, lesson.norms, judged).to_json(),
        }  # fmt: skip
        return result, students.save(folder, whole, network)

    inputs = hash_json(
        [taught.train.key, taught.validation.key, whole.to_json(), least.to_json(),
         *distill_inputs(recipe), epochs, material.views, recipe.seed, recipe.threads]
    )  # fmt: skip
    record = run.stage("elastic", inputs, work)
    scores = Narrowed.from_json(record.result["scores"])
    return Elastic(network=students.load(folder), whole=whole, least=least, scores=scores)


def elastic_cuts(
    recipe: Recipe, costing: Costing, material: Material, taught: Taught, run: Run,
    progress: Progress,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return the cuts that fit, found once a run, with their weights; norms are renewed.

    Raises `InfeasibleError` where not even the narrowest fits.
    """
    elastic = elastic_student(recipe, costing, material, taught, run, progress)

    def search() -> tuple[Any, list[Path]]:
        progress.say(f"plan: cutting the elastic student to fit {costing.device.name}")
        found = SPACES["elastic"](
            costing, whole=elastic.whole, least=elastic.least, count=recipe.student.candidates,
            scores=elastic.scores,
        )  # fmt: skip
        return [candidate.to_json() for candidate in found], []

    inputs = hash_json(
        [
            *costing.key(),
            recipe.student.candidates,
            run.manifest["stages"]["elastic"]["inputs"],
        ]
    )
    found = map(Candidate.from_json, run.stage("cuts", inputs, search).result)
    norms = some_examples(material, _NORMS)
    return tuple(
        dataclasses.replace(
            candidate, elastic=True,
            weights=dict(cut_of(elastic.network, candidate.spec.knobs, norms).state_dict()),
        )
        for candidate in found
    )  # fmt: skip


def judged_cuts(
    recipe: Recipe, material: Material, taught: Taught, found: Sequence[Candidate]
) -> dict[int, dict[str, Any]]:
    """Return the validation figure of every cut as it is, by its number."""
    figures = {}
    for number, candidate in enumerate(found):
        network = candidate.spec.build()
        assert candidate.weights is not None
        network.load_state_dict(candidate.weights)
        lesson = _lesson(recipe, material, taught, network.eval(), candidate.spec)
        with torch.inference_mode():
            value = Distillation.evaluate(lesson, (network,))
        figures[number] = validation_figure(material, value, "as it was cut, untaught").to_json()
    return figures


def _lesson(
    recipe: Recipe, material: Material, taught: Taught, network: nn.Module, least: StudentSpec
) -> ElasticLesson:
    terms = decision_terms(recipe, material.decides)
    weights = class_weights(recipe, material)
    return ElasticLesson(
        network,
        Objective(terms, class_weights=weights),
        material.train,
        material.validation,
        smaller=Objective(terms, class_weights=weights),
        least=least.knobs,
        norms=some_examples(material, _NORMS),
        signals=taught.train,
        validation_decision=taught.validation_decision,
        classes=material.outputs,
        decides=material.decides,
        views=material.views,
        batch=batch_for(recipe, material.train.count),
        seed=recipe.seed,
        metric=recipe.metric,
    )
