"""Writing a first recipe from a look at the teacher and the data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.devices import load_device
from tutelage.devices.profile import device_limits
from tutelage.pipeline.class_names import with_classes
from tutelage.pipeline.fitting import encoder_to_fit
from tutelage.pipeline.inheriting import own_module
from tutelage.pipeline.language.initial import initial_language, writes_texts
from tutelage.pipeline.lessons import epochs_for, usual_losses
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.paths import full_path, path_from
from tutelage.pipeline.teaching import open_teacher
from tutelage.plan.refusal import amount, name_of
from tutelage.recipe import LossPart, Recipe
from tutelage.recipe_language import LANGUAGE
from tutelage.teach.hf_folder import read_config
from tutelage.teach.hf_teacher import is_classifier

_OWN_MEAN = [
    "  # mean: [0.5]          # the teacher's own normalisation, if it is not the data's",
    "  # std: [0.5]",
]
_VIEWS = "  # views: 4             # variants of each; the teacher is asked about each once\n"
_ACCURACY = "  # accuracy: {limit: 95 %, hard: false}\n"
_LOSSES_OF_VALUES = """    squared_error: 1.0   # the teacher's value
    value_error: 1.0     # the label
"""
_FIT_ALL = "  fit: all               # it has no classifier: a new head and all else are trained"
_AN_OPTION = {
    "classes": "{weight: 1, temperature: 4}",
    "values": "{weight: 1, delta: 2}",
}
_SLICED = (
    "  space: sliced          # parts of the teacher; compact: networks that begin from nothing\n"
)
_AUGMENT = {
    "vision": "augment:\n"
    + _VIEWS
    + "  flip: false            # true where left and right do not matter; never for letters\n",
    "series": "augment:\n"
    + _VIEWS
    + "  # mixup: 0.5           # largest share of another series; 0 where a loss reads labels\n"
    + "  jitter: 0.03           # noise, as a share of a channel's spread\n"
    + "  stretch: 0.1           # largest change of height\n",
}


def initial_recipe(
    teacher: str, data: str, *, folder: Path, device: str, weights: str | None, trust_code: bool,
    task: str | None = None, target: str = "auto", label_column: str | None = None,
) -> str:  # fmt: skip
    """Read the data, load the teacher once, and return a commented recipe for both.

    `folder` is where the recipe will lie; paths in it are written relative to that. Without a
    `task` a teacher that writes or reads texts is told from its files, series from a `.ts` file,
    and all else is vision.
    Raises the errors of reading either.
    """
    if task is None:
        seen = "series" if data.endswith(".ts") else "vision"
        reads = "text" if _reads_texts(teacher) else seen
        task = LANGUAGE if writes_texts(teacher) else reads
    if task == LANGUAGE:
        return initial_language(teacher, data, folder=folder, device=device)
    fit = teacher == "fit"
    part: dict[str, Any] = {"fit": True} if fit else {"source": full_path(teacher)}
    if weights is not None:
        part["weights"] = full_path(weights)
    if task == "text" and _reads_texts(teacher) and not _is_classifier(teacher, trust_code):
        part["fit"] = "all"
    named = {} if target == "auto" else {"target": target}
    named |= {} if label_column is None else {"label_column": label_column}
    read = {"train": full_path(data), **named}
    given = {"task": task, "data": read, "teacher": part, "device": device}
    recipe = Recipe.parse(given)
    profile = load_device(device)
    material = with_classes(recipe, read_material(recipe), trust_code=trust_code)
    advice = _advice(recipe, material, trust_code)
    lines = [
        f"# {_summary(material)}",
        "# Relative paths start at this file. Every key: tutelage schema",
        f"task: {task}",
        "seed: 0",
        "data:",
        f"  train: {path_from(data, folder)}",
        *(f"  {key}: {json.dumps(value)}" for key, value in named.items()),
        "  validation: 0.1        # share of the training examples to choose by",
        "  # test: path           # unset: a test part that the data has, else a fifth of it",
        "  # unlabelled: path     # more examples to teach on, without labels",
        f"teacher:                 # {advice.said}",
    ]
    lines += (
        ["  fit: true"] if fit else [f"  source: {path_from(teacher, folder)}"]
        + ([f"  weights: {path_from(weights, folder)}"] if weights else [])
        + (_OWN_MEAN if task == "vision" else [])
        + ([_FIT_ALL] if recipe.teacher.fit == "all" else [])
    )  # fmt: skip
    own = " and ".join(f"{name_of(x)} {amount(x, x.value)}" for x in device_limits(profile))
    lines += [f"device: {device}", f"budget:                  # the device's own limits: {own}"]
    headline = "R2" if material.metric == "r2" else material.metric
    tail = f"""  storage: {advice.storage:<14}# an example: what the file that ships may take
  # memory: 64 kB
  # latency: 2 ms
  # energy: 5 mJ
{_ACCURACY if material.metric == "accuracy" else ""}{_AUGMENT.get(task, "")}student:
{advice.student}  candidates: 4          # how many structures are compared by a short distillation
distill:
  losses:                # weight, or {_AN_OPTION[material.decides]}, or auto
{_losses(material)}  # epochs: {_epochs(recipe, material)}
export:
  largest_loss: 0.01     # {headline} that int8 or float16 may cost on validation
"""
    text = "\n".join(lines) + "\n" + tail
    return text


def _losses(material: Material) -> str:
    if material.decides == "values":
        return _LOSSES_OF_VALUES
    losses = usual_losses(
        material.decides, material.task, len(material.classes),
        labelled=material.well_labelled,
    )  # fmt: skip
    return "".join(f"    {name}: {_weight(part)}\n" for name, part in losses.items())


def _weight(given: float | LossPart) -> str:
    if not isinstance(given, LossPart):
        return str(given)
    keys = given.model_dump(exclude_unset=True)
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()) + "}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advice:
    """What was seen of the teacher, and what the recipe says because of it."""

    said: str
    storage: str = "100 kB"
    student: str = ""


def _advice(recipe: Recipe, material: Material, trust_code: bool) -> _Advice:
    fit = recipe.teacher.fit
    if fit is True:
        return _Advice(said="trained on the data before anything else")
    if fit == "all":
        network = encoder_to_fit(recipe, material)
        count = sum(p.numel() for p in network.parameters())
        sliced = own_module(network, material.shape) is not None
        return _Advice(
            said=f"{count:,} parameters",
            storage=f"{max(1, round(4 * count / 30e6))} MB",
            student=_SLICED * sliced,
        )  # fmt: skip
    loaded = open_teacher(recipe, material, trust_code=trust_code)
    taps = ", ".join(tap.path for tap in loaded.taps) or "none (decisions only)"
    return _Advice(said=f"{loaded.parameters:,} parameters; taps: {taps}")


def _reads_texts(teacher: str) -> bool:
    folder = Path(teacher).expanduser()
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def _is_classifier(teacher: str, trust_code: bool) -> bool:
    return is_classifier(read_config(Path(teacher).expanduser(), trust_code))


def _epochs(recipe: Recipe, material: Material) -> str:
    if material.task.tokens(material.data.train) is not None:
        return "10           # unset: as many as the student's operations allow"
    return f"{epochs_for(recipe, material.train.count)}          # what it is when unset"


def _summary(material: Material) -> str:
    splits = (material.train, material.validation, material.test)
    counts = ", ".join(f"{split.count:,} {split.name}" for split in splits)
    what = _KIND[material.task.name](material.shape)
    total = sum(split.count for split in splits)
    return f"{total:,} examples ({counts}) of {what}, {_labels(material)}"


def _labels(material: Material) -> str:
    if material.target is not None:
        return f"one value each: mean {material.target.mean:.4g}, spread {material.target.std:.3g}"
    names = ", ".join(material.classes[:6]) + (", …" if len(material.classes) > 6 else "")
    return f"{len(material.classes)} classes: {' '.join(names.split())}"


_KIND = {
    "vision": lambda shape: f"{shape[1]} x {shape[2]} x {shape[0]} pixels",
    "series": lambda shape: f"{shape[0]} channels x {shape[1]} steps",
    "text": lambda shape: f"up to {shape[0]} tokens",
}
