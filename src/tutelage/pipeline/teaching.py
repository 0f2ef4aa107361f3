"""The stage `teach`: the teacher is loaded or fitted, and asked for its signals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.files import hash_json
from tutelage.losses.objective import Term
from tutelage.passes import Forward, call, fastest_device
from tutelage.pipeline.class_order import class_order, order_by_name, refuse_other_order
from tutelage.pipeline.fitting import fit_teacher, fitted_as_one
from tutelage.pipeline.inheriting import refuse_unlike
from tutelage.pipeline.judging import split_figures
from tutelage.pipeline.lessons import inside, terms_of, wants
from tutelage.pipeline.material import Material, some_examples
from tutelage.pipeline.pruned import pruning_loss
from tutelage.pipeline.trimming import trimmed
from tutelage.progress import Progress
from tutelage.recipe import Recipe, TeacherPart
from tutelage.run import Run
from tutelage.students import spec as students
from tutelage.students.inside import look_inside
from tutelage.tasks.values import Target
from tutelage.teach.hf_teacher import HfEncoder
from tutelage.teach.hf_vision import HfClassifier
from tutelage.teach.inside import module_of
from tutelage.teach.lenses import fit_lenses
from tutelage.teach.signals import LiveSignals, SignalCache, Split
from tutelage.teach.teachers import Teacher, load_teacher
from tutelage.teach.torch_teacher import Renormalised, Reordered, Rescaled

_ABOVE_CHANCE = _LEAST_R2 = 0.1
_FIRST_LOOK = 16  # examples by which bfloat16 is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """The teacher and everything it said of the splits that are learned from and chosen by.

    What it says of training examples that never look the same twice is asked as they come.
    """

    teacher: Teacher
    train: SignalCache | LiveSignals
    validation: SignalCache

    @property
    def validation_decision(self) -> Tensor:
        """The teacher's logits for every validation example."""
        return self.validation.read(torch.arange(self.validation.split.count), 0).decision


def open_teacher(
    recipe: Recipe,
    material: Material,
    *,
    trust_code: bool,
    module: torch.nn.Module | None = None,
    forward: Forward = call,
) -> Teacher:
    """Load the recipe's teacher, or take `module` for it; raises `TeacherError`.

    Where the material has no classes yet, it is asked how many it decides among.
    """
    part = recipe.teacher
    teacher = load_teacher(
        module if module is not None else str(part.source),
        weights=None if part.weights is None else Path(part.weights),
        classes=material.outputs or len(part.classes or ()) or None,
        image_shape=material.shape,
        example=some_examples(material, _FIRST_LOOK),
        trust_code=trust_code,
        channels=part.channels,
        taps=part.taps,
        bf16=None if part.precision == "auto" else part.precision == "bf16",
        device=fastest_device(),
        open_folder=students.load,
        tokens=material.task.tokens(material.data.train),
        forward=forward,
    )
    order, known = None, material.labelled is not None  # else the classes are the teacher's own
    if part.classes is not None and known:
        order = class_order(part.classes, material.classes)
    mean, std = part.mean, part.std
    came = getattr(teacher, "module", None)
    if isinstance(came, HfClassifier):
        mean, std = _normalised_by(came, part)
        if order is None and known:
            order = order_by_name(came.labels, material.classes)
    if mean is not None and std is not None:
        own = material.normalisation
        if part.channels == "repeat" and len(own.mean) == 1 and len(mean) == 3:
            own = dataclasses.replace(own, mean=own.mean * 3, std=own.std * 3)
        teacher = Renormalised(teacher, own, mean, std)
    if material.target is not None and not part.fit:
        unit = None if module is not None else students.note(str(part.source)).get("target")
        teacher = Rescaled(teacher, material.target, Target(**unit) if unit else None)
    return teacher if order is None else Reordered(teacher, order)


def _normalised_by(
    classifier: HfClassifier, part: TeacherPart
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the recipe's mean and std, else those that came with the classifier."""
    if part.mean is not None and part.std is not None:
        return part.mean, part.std
    if classifier.preprocessing is None:
        raise TeacherError(
            f"the teacher's folder '{part.source}' has no preprocessor_config.json, so it is not "
            "known how it normalises images. Copy it there, or say teacher.mean and teacher.std "
            "(of pixels in [0, 1])"
        )
    return classifier.preprocessing.mean, classifier.preprocessing.std


def teach(
    recipe: Recipe,
    material: Material,
    run: Run,
    progress: Progress,
    *,
    trust_code: bool,
    module: torch.nn.Module | None = None,
    forward: Forward = call,
) -> Taught:
    """Load or fit the teacher, ask it about every example and view, fit its lenses.

    `module` is a teacher given from Python instead of the recipe's; `forward` is how it is called.
    Raises `TeacherError` when the teacher cannot be used and `DiskError` when its signals do not
    fit.
    """
    if recipe.teacher.fit and module is None:
        module = fit_teacher(recipe, material, run, progress)
    teacher = open_teacher(recipe, material, trust_code=trust_code, module=module, forward=forward)
    _refuse_losses(terms_of(recipe.distill), teacher)
    if recipe.student.start == "teacher" and "tokenizer" not in material.task.keys:
        refuse_unlike(teacher, material.shape)
    needed, features = wants(terms_of(recipe.distill)), bool(teacher.taps)
    caches = [
        SignalCache(
            run.file("signals"),
            split if maps else _trimmed(split, material, teacher),
            views=views,
            features=wanted,
            maps=maps,
            teacher=teacher,
        )
        for split, views, wanted, maps in (
            (material.train, material.views, features and "features" in needed, "maps" in needed),
            (material.validation, 1, features, False),
        )
    ]
    return _fill(recipe, material, run, progress, teacher, tuple(caches), trust_code=trust_code)


def signals_of_test(material: Material, taught: Taught, run: Run) -> SignalCache:
    """Return the cache for what the teacher says of the test split; it is filled to be read."""
    split = _trimmed(material.test, material, taught.teacher)
    return SignalCache(
        run.file("signals"), split, views=1, features=False, maps=False, teacher=taught.teacher
    )  # fmt: skip


def _trimmed(split: Split, material: Material, teacher: Teacher) -> Split:
    """Return a split in which a Hugging Face encoder is asked of no more pads than need be."""
    if not isinstance(module_of(teacher), HfEncoder):
        return split
    return trimmed(split, getattr(material.data, split.name))


def _refuse_losses(terms: tuple[Term, ...], teacher: Teacher) -> None:
    """Refuse losses that read a teacher's taps, when it has none, or tokens, where it has none."""
    module = module_of(teacher)
    for term in terms:
        reads = inside((term,))
        if reads and teacher.taps and module is not None:
            look_inside(module, teacher.taps, reads, who="teacher", error=TeacherError)
        elif not teacher.taps and not term.optional and (reads or wants((term,))):
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
    caches: tuple[SignalCache, ...],
    *,
    trust_code: bool,
) -> Taught:
    """Fill the caches (what is there is not asked again), fit lenses, record both stages."""
    train, validation = caches
    if material.live and not train.features:
        caches = caches[1:]  # views of the moment are worth keeping for fitting lenses alone
    for cache in caches:
        progress.say(cache.describe())
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
        decision, suspicions = held.decision.numpy(), [*teacher.notes, *fitted_as_one(recipe, run)]
        figures = split_figures(material, "validation", decision, "teacher on validation")
        labels, classes = material.data.validation.labels, material.classes
        # The data's names in the teacher's own order, where that is another.
        named = (
            dict(zip(teacher.order, classes, strict=True)) if isinstance(teacher, Reordered) else {}
        )
        if labels is not None and material.decides == "classes":
            own_order = [named[i] for i in sorted(named)] or None
            refuse_other_order(material.said(decision), labels, classes, own_order)
            suspicions += suspicion(float((material.said(decision) == labels).mean()), labels)
        elif figures and figures[0].value < _LEAST_R2:
            suspicions.append(_no_better(recipe, figures[0].value))
        lost = pruning_loss(
            recipe, material, teacher, held.decision, progress, trust_code=trust_code
        )
        if lost is not None:
            figures.append(lost[0])
            suspicions.append(lost[1])
        lenses = [
            {"tap": tap.path, "agreement": value}
            for tap, value in zip(teacher.taps, agreements, strict=False)
        ]
        return {
            "source": _source(recipe.teacher, run),
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
    live = LiveSignals(
        teacher, features=train.features, maps=train.maps, content=material.train.content
    )
    live.lenses = train.lenses
    return Taught(
        teacher=teacher, train=live if material.live else train, validation=validation
    )  # fmt: skip


def suspicion(right: float, labels: Int[np.ndarray, " n"]) -> list[str]:
    """Return the remark on a teacher that is right on the share `right` of `labels`, if any.

    Chance is the share of the commonest label. A teacher is remarked on below a tenth of the way
    from there to all right.
    """
    chance = float(np.bincount(labels).max() / len(labels))
    if right >= chance + _ABOVE_CHANCE * (1 - chance):
        return []
    return [
        f"it is right on {right:.0%} of validation, hardly better than guessing (the commonest "
        f"class is {chance:.0%} of it): its normalisation may differ (teacher.mean, teacher.std)"
    ]


def _source(part: TeacherPart, run: Run) -> str | None:
    if not part.fit:
        return part.source
    fitted = run.manifest["stages"].get("fit", {}).get("result", {})
    kind = f" ({fitted['network']})" if "network" in fitted else ""
    many = f"{part.members} networks " if part.members > 1 else ""
    return f"{many}fitted on the data{kind}"


def _no_better(recipe: Recipe, value: float) -> str:
    why = "give it more data or teacher.epochs" if recipe.teacher.fit else (
        "it must answer in the unit of the labels, and its normalisation may differ"
    )  # fmt: skip
    return f"its R2 on validation is {value:.2f}, hardly better than always saying the mean: {why}"
