"""The same from Python: whole pipeline, one's own student, and the single steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from tutelage import __version__
from tutelage.audit.fidelity import Decided, fidelity
from tutelage.devices import HOST, load_device
from tutelage.errors import DataError, RecipeError
from tutelage.export.artifact import ArtifactMeta
from tutelage.export.half import write_float16
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import quantize_int8
from tutelage.measure.costs import graph_figures
from tutelage.measure.latency import measure_latency
from tutelage.measure.memory import measure_memory
from tutelage.passes import Forward, call
from tutelage.pipeline import run_recipe
from tutelage.pipeline.checking import check_recipe
from tutelage.pipeline.class_names import with_classes
from tutelage.pipeline.feasible import plan_recipe
from tutelage.pipeline.given import is_loader, loader_material
from tutelage.pipeline.judging import validation_figure
from tutelage.pipeline.learning import distill as _distill
from tutelage.pipeline.lessons import with_usual
from tutelage.pipeline.material import Material, read_material
from tutelage.pipeline.opening import with_threads
from tutelage.pipeline.planning import Chosen
from tutelage.pipeline.result import Result
from tutelage.pipeline.teaching import teach
from tutelage.progress import Progress, Silent
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.run import Run
from tutelage.students.spec import load

Data = str | Path | tuple[np.ndarray | Sequence[str], Any]


def fit(
    teacher: str | Path | nn.Module,
    data: Data,
    /,
    *,
    device: str = HOST,
    budget: Mapping[str, Any] | None = None,
    run: str | Path = "runs/fit",
    progress: Progress | None = None,
    trust_code: bool = False,
    **parts: Any,
) -> Result:
    """Do the whole pipeline and return its result; call it again to go on where it stopped.

    `teacher` is `"fit"` (train one), a torch module, or a source as in the recipe. `data` is a path
    or, with labels `[n]`, `(images uint8 [n, h, w, c], labels)`; `(series float [n, c, t], labels)`
    with `task="series"`; `(texts, labels)` with `task="text"` and `data={"tokenizer": FOLDER}`.
    Where labels is None, figures are agreement with the teacher. `budget` has the recipe's keys,
    for instance `{"storage": "100 kB"}`; `parts` are other parts of the recipe
    (`distill={"epochs": 20}`, and `teacher` and `data` too: `data={"validation": 0.2}`).
    Raises a `TutelageError`; a missed limit is told by `Result.met`.
    """
    if is_loader(data):
        raise DataError(
            f"fit takes a path or (inputs, labels), and the data is a {type(data).__name__}: "
            "tutelage.distill teaches a student of your own on any loader"
        )
    module = teacher if isinstance(teacher, nn.Module) else None
    recipe = _recipe(teacher, data, device=device, budget=dict(budget or {}), **parts)
    return run_recipe(
        recipe,
        Path(run),
        progress=progress,
        trust_code=trust_code,
        material=_material(recipe, data) if isinstance(data, tuple) else None,
        teacher=module,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A taught student. `history` holds losses and validation figures, epoch by epoch.

    `validation` is the recipe's metric (`accuracy_validation`), or `agreement_validation` (with the
    teacher) for data without labels.
    """

    student: nn.Module
    validation: Measurement
    history: dict[str, Any]
    weights: dict[str, float]
    pairing: dict[str, Any] | None


def distill(
    teacher: str | Path | nn.Module,
    student: nn.Module,
    data: Data | Iterable[Any],
    /,
    *,
    validation: Iterable[Any] | None = None,
    forward: Forward | tuple[Forward | None, Forward | None] | None = None,
    losses: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    run: str | Path | None = None,
    progress: Progress | None = None,
    trust_code: bool = False,
    **parts: Any,
) -> Distilled:
    """Teach your own `student` (changed in place) from `teacher`; nothing is planned or exported.

    `data` is as in `fit`, or a torch DataLoader or data set, or any iterable of batches (read once,
    up to 1 GiB). Its items are (inputs, labels), inputs alone, or dicts with a label key; inputs
    are a tensor, or a dict or tuple of tensors, and reach both networks unchanged: a dict as
    keywords, a tuple as arguments. `validation` is a second loader; without it a share of the
    examples is set aside by their hashes. A data set that varies its examples has the teacher asked
    anew for every batch.

    `forward(network, inputs)` returns logits where a plain call does not: one for both networks, or
    a pair (teacher's, student's), either of them None. `losses` maps names to weights or options,
    as in the recipe. `run` keeps signals and checkpoints so that a stopped call goes on; without it
    they go to a temporary folder. `parts` as in `fit`. Raises a `TutelageError`.
    """
    module = teacher if isinstance(teacher, nn.Module) else None
    learn: dict[str, Any] = dict(parts.pop("distill", {}))
    if losses is not None:
        learn["losses"] = dict(losses)
    if epochs is not None:
        learn["epochs"] = epochs
    recipe = with_threads(_recipe(teacher, data, distill=learn, **parts))
    said, forwards = progress or Silent(), _forwards(forward)
    if validation is not None and not is_loader(data):
        raise RecipeError("validation= goes with a loader; else write data={'validation': 0.2}")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if run is None else run
        held = stack.enter_context(Run(Path(folder)))
        if is_loader(data):
            material = loader_material(
                recipe, data, validation, teacher=module, student=student, forwards=forwards,
                progress=said,
            )  # fmt: skip
        else:
            material = _material(recipe, data)
        for note in material.notes:
            said.say(f"data: {note}")
        material = with_classes(recipe, material, trust_code=trust_code, module=module)
        recipe = with_usual(
            recipe, material.decides, material.task, len(material.classes),
            labelled=material.well_labelled,
        )  # fmt: skip
        check_recipe(recipe, material)
        taught = teach(
            recipe, material, held, said, trust_code=trust_code, module=module, forward=forwards[0]
        )
        count = sum(p.numel() for p in student.parameters())
        chosen = Chosen(
            spec=None, network=student, parameters=count, warm=None, forward=forwards[1]
        )  # fmt: skip
        learned = _distill(recipe, material, taught, chosen, held, said)
    result = learned.result
    best = result["history"]["figure"][result["history"]["best_epoch"]]
    return Distilled(
        student=learned.network,
        validation=validation_figure(material, best, "the network in torch, validation split"),
        history=result["history"],
        weights=result["weights"],
        pairing=result["pairing"],
    )


def plan(recipe: Recipe, *, trust_code: bool = False) -> dict[str, Any]:
    """Return which students would fit the recipe's budget, before any is trained.

    The shape is that of `tutelage plan --json`.
    """
    return plan_recipe(recipe, Path("."), trust_code=trust_code)


def export(
    student: nn.Module,
    path: str | Path,
    *,
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    calibration: np.ndarray | None = None,
    float16: bool = False,
) -> Path:
    """Write a student as ONNX: float32, or int8 when `calibration` inputs are given.

    `shape` is (channels, height, width); `calibration` is float32 `[n, c, h, w]`, normalised. With
    `float16` weights are stored in half the bytes of float32, and computed with in float32.
    """
    if float16 and calibration is not None:
        raise RecipeError("float16= takes no calibration=, which is for int8: give one of them")
    path = Path(path)
    meta = ArtifactMeta(
        task="vision", classes=classes, shape=shape, mean=mean, std=std, version=__version__
    )
    if calibration is None:
        export_onnx(student, shape, path, meta=meta)
        if float16:
            write_float16(path, path)
        return path
    with tempfile.TemporaryDirectory() as folder:
        whole = export_onnx(student, shape, Path(folder) / "float.onnx", meta=meta)
        return quantize_int8(whole, path, calibration)


def measure(
    artifact: str | Path, *, device: str = HOST, threads: int = 1
) -> tuple[Measurement, ...]:
    """Measure an ONNX file: size, operations, latency, memory, and what `device` predicts."""
    path = Path(artifact)
    latency = measure_latency(path, threads=threads)
    return (
        *graph_figures(path, load_device(device)),
        latency.p50,
        latency.p95,
        latency.noise_floor,
        measure_memory(path, threads=threads),
    )


def audit(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray | None = None
) -> tuple[Measurement, ...]:
    """Compare logits `[n, classes]` of student and teacher: agreement, KL, calibration."""
    if student.shape != teacher.shape:
        raise DataError(
            f"student logits are {student.shape} and teacher logits {teacher.shape}; give both for "
            "the same examples and classes"
        )
    return fidelity(Decided(student=student, teacher=teacher, labels=labels))


def _forwards(given: Any) -> tuple[Forward, Forward]:
    pair = given if isinstance(given, (tuple, list)) else (given, given)
    if len(pair) != 2 or not all(f is None or isinstance(f, Callable) for f in pair):
        raise RecipeError("forward= is a function (network, inputs) -> logits, or a pair of them")
    return pair[0] or call, pair[1] or call


def _recipe(teacher: Any, data: Any, /, **parts: Any) -> Recipe:
    if isinstance(teacher, nn.Module):
        source: dict[str, Any] = {"source": "given from Python"}
    else:
        source = {"fit": True} if str(teacher) == "fit" else {"source": str(teacher)}
    source |= parts.pop("teacher", {})
    train = str(data) if isinstance(data, (str, Path)) else "given from Python"
    given = {"data": {"train": train, **parts.pop("data", {})}, "teacher": source, **parts}
    return Recipe.parse(given, where="arguments")


def _material(recipe: Recipe, data: Any) -> Material:
    """Make the material of a path, or of (inputs, labels)."""
    if not isinstance(data, tuple):
        return read_material(recipe)
    if len(data) != 2:
        raise DataError(f"the data is a tuple of {len(data)}: give (inputs, labels), or a loader")
    inputs, labels = (part.numpy() if isinstance(part, Tensor) else part for part in data)
    return read_material(recipe, given=(inputs, labels))


__all__ = ["audit", "distill", "export", "fit", "load", "measure", "plan"]
