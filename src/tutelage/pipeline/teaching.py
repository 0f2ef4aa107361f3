"""The stage `teach`: the teacher is loaded or fitted, and asked for its signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import TeacherError
from tutelage.files import hash_json
from tutelage.losses.objective import Term
from tutelage.pipeline.class_order import class_order, refuse_other_order
from tutelage.pipeline.fitting import fit_teacher
from tutelage.pipeline.judging import split_figures
from tutelage.pipeline.lessons import terms_of, wants
from tutelage.pipeline.material import Material
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.tasks.values import Target
from tutelage.teach.lenses import fit_lenses
from tutelage.teach.signals import SignalCache
from tutelage.teach.teachers import Teacher, load_teacher
from tutelage.teach.torch_teacher import Renormalised, Reordered, Rescaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """The teacher and everything it said of the splits that are learned from and chosen by."""

    teacher: Teacher
    train: SignalCache
    validation: SignalCache


def open_teacher(
    recipe: Recipe,
    material: Material,
    *,
    trust_code: bool,
    module: torch.nn.Module | None = None,
) -> Teacher:
    """Load the recipe's teacher, or take `module` for it; raises `TeacherError`."""
    part = recipe.teacher
    teacher = load_teacher(
        module if module is not None else str(part.source),
        weights=None if part.weights is None else Path(part.weights),
        classes=material.outputs,
        image_shape=material.shape,
        example=material.train.batch(torch.arange(2), 0).inputs,
        trust_code=trust_code,
        channels=part.channels,
        taps=part.taps,
        bf16=part.precision == "bf16",
        open_folder=students.load,
        tokens=material.task.tokens(material.data.train),
    )
    if part.mean is not None and part.std is not None:
        teacher = Renormalised(teacher, material.normalisation, part.mean, part.std)
    if part.classes is not None:
        teacher = Reordered(teacher, class_order(part.classes, material.classes))
    if material.target is not None and not part.fit:
        own = None if module is not None else students.note(str(part.source)).get("target")
        teacher = Rescaled(teacher, material.target, Target(**own) if own else None)
    return teacher


def teach(
    recipe: Recipe,
    material: Material,
    run: Run,
    progress: Progress,
    *,
    trust_code: bool,
    module: torch.nn.Module | None = None,
) -> Taught:
    """Load or fit the teacher, ask it about every example and view, fit its lenses.

    `module` is a teacher given from Python instead of the recipe's. Raises `TeacherError` when the
    teacher cannot be used and `DiskError` when its signals do not fit.
    """
    if recipe.teacher.fit and module is None:
        module = fit_teacher(recipe, material, run, progress)
    teacher = open_teacher(recipe, material, trust_code=trust_code, module=module)
    if not teacher.taps:
        _refuse_taps(terms_of(recipe.distill))
    needed, features = wants(terms_of(recipe.distill)), bool(teacher.taps)
    caches = [
        SignalCache(
            run.file("signals"),
            split,
            views=views,
            features=wanted,
            maps="maps" in needed and split is material.train,
            teacher=teacher,
        )
        for split, views, wanted in (
            (material.train, material.views, features and "features" in needed),
            (material.validation, 1, features),
        )
    ]
    return _fill(recipe, material, run, progress, teacher, (caches[0], caches[1]))


def signals_of_test(material: Material, taught: Taught, run: Run) -> SignalCache:
    """Return the cache for what the teacher says of the test split; it is filled to be read."""
    return SignalCache(
        run.file("signals"), material.test, views=1, features=False, maps=False,
        teacher=taught.teacher,
    )  # fmt: skip


def _refuse_taps(terms: tuple[Term, ...]) -> None:
    """Refuse losses that read a teacher's taps, when it has none."""
    for term in terms:
        if wants((term,)):
            raise TeacherError(
                f"distill.losses: '{term.name}' reads the teacher's taps, and this teacher gives "
                "decisions only; use kl, dkd or dist, or give the teacher as a torch module"
            )


def _fill(
    recipe: Recipe,
    material: Material,
    run: Run,
    progress: Progress,
    teacher: Teacher,
    caches: tuple[SignalCache, SignalCache],
) -> Taught:
    """Fill the caches (what is there is not asked again), fit lenses, record both stages."""
    for cache in caches:
        progress.say(cache.describe())
    train, validation = caches
    keys = [cache.key for cache in caches]

    def signals() -> tuple[Any, list[Path]]:
        files = [path for cache in caches for path in cache.fill(progress)]
        result = {
            "views": material.views,
            "bytes": sum(cache.total_bytes for cache in caches),
            "bytes_per_example": train.bytes_per_example,
            "files": len(files),
            "keys": keys,
        }
        return result, files

    run.stage("signals", hash_json(keys), signals)
    held = validation.read(torch.arange(material.validation.count), 0)
    agreements: list[float] = []
    if train.features:
        seen = train.read(torch.arange(material.train.count), 0)
        lenses = fit_lenses(seen.features, seen.decision, held.features, held.decision)
        train.lenses = validation.lenses = lenses
        agreements = [lens.agreement for lens in lenses]

    def describe() -> tuple[Any, list[Path]]:
        decision, suspicions = held.decision.numpy(), list(teacher.notes)
        figures = split_figures(material, "validation", decision, "teacher on validation")
        if figures and material.decides == "classes":
            refuse_other_order(
                material.said(decision), material.data.validation.labels, material.classes,
                recipe.teacher.classes,
            )  # fmt: skip
        if figures and figures[0].value < _guessing(material):
            suspicions.append(_no_better(recipe, material, figures[0].value))
        lenses = [
            {"tap": tap.path, "agreement": value}
            for tap, value in zip(teacher.taps, agreements, strict=False)
        ]
        return {
            "source": "fitted on the data" if recipe.teacher.fit else recipe.teacher.source,
            "fingerprint": teacher.fingerprint,
            "parameters": teacher.parameters,
            "taps": [tap.path for tap in teacher.taps],
            "notes": suspicions,
            "figures": [figure.to_json() for figure in figures],
            "lenses": lenses,
            "history": run.manifest["stages"].get("fit", {}).get("result", {}).get("history"),
        }, []

    said = hash_json([teacher.fingerprint, keys, recipe.teacher.fit])
    for note in run.stage("teacher", said, describe).result["notes"]:
        progress.say(f"teacher: {note}")
    return Taught(teacher=teacher, train=train, validation=validation)


def _guessing(material: Material) -> float:
    """Return the figure below which the teacher is hardly better than guessing."""
    return 2 / len(material.classes) if material.decides == "classes" else 0.1


def _no_better(recipe: Recipe, material: Material, value: float) -> str:
    if material.decides == "values":
        why = "give it more data or teacher.epochs" if recipe.teacher.fit else (
            "it must answer in the unit of the labels, and its normalisation may differ"
        )  # fmt: skip
        return (
            f"its R2 on validation is {value:.2f}, hardly better than always saying the mean: {why}"
        )
    return (
        f"it is right on {value:.0%} of validation, hardly better than guessing: its normalisation "
        "may differ (teacher.mean, teacher.std)"
    )
