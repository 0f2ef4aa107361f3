"""The stage `export`: ONNX float32 and int8, checked, repaired or refused."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.audit.metrics import class_score
from tutelage.errors import ExportError
from tutelage.export.artifact import OnnxModel
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import Parity, parity
from tutelage.export.quantize import quantize_within
from tutelage.files import (
    hash_json,
    read_tensors,
    sha256_file,
    write_atomically,
    write_tensors,
)
from tutelage.pipeline.learning import Learned, distill_for_int8
from tutelage.pipeline.lessons import metric_inputs
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import meta_of
from tutelage.pipeline.teaching import Taught
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Artifact, Limit
from tutelage.run import Run
from tutelage.tasks.values import score
from tutelage.teach.signals import Split
from tutelage.train.distill import decisions

_CALIBRATION_EXAMPLES = 512
_PARITY_EXAMPLES = 1_000
_LARGEST_FLOAT_ERROR = 1e-3
_BATCH = 256
_INT8 = "artifacts/student-int8.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """The files, their parity with torch, and what had to be done."""

    artifacts: tuple[Artifact, ...]
    parameters: int
    parity: list[dict[str, Any]]
    notes: list[str]


def ship(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress, limits: tuple[Limit, ...] = (),
) -> Shipped:  # fmt: skip
    """Export the student (once a run); raises `ExportError` when int8 cannot be repaired."""
    hard = [x.value for x in limits if x.metric == "storage_bytes" and x.hard]
    most = min(hard, default=math.inf) - sum(file.bytes for file in material.beside)

    def work() -> tuple[Any, list[Path]]:
        return _export_all(recipe, material, taught, learned, run, progress, most)

    inputs = hash_json(
        [
            sha256_file(run.file("student/model.safetensors")),
            meta_of(recipe, material).to_json(),
            recipe.export.model_dump(mode="json"),
            material.content,
            recipe.threads,
            str(most),
            *metric_inputs(recipe),
        ]
    )
    record = run.stage("export", inputs, work)
    return Shipped(
        artifacts=tuple(Artifact.from_json(row) for row in record.result["artifacts"]),
        parameters=learned.result["parameters"],
        parity=record.result["parity"],
        notes=record.result["notes"],
    )


def _export_all(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress, most: float,
) -> tuple[Any, list[Path]]:  # fmt: skip
    network = learned.network
    meta, shape = meta_of(recipe, material), material.shape
    inputs, reference = _parity_examples(material, network)
    float_path = run.file("artifacts/student-float32.onnx")
    progress.say("export: float32 ONNX")
    export_onnx(network, shape, float_path, meta=meta, dynamic_batch=recipe.export.dynamic_batch)
    close = parity(float_path, reference, inputs)
    if close.largest_error > _LARGEST_FLOAT_ERROR * max(1.0, float(np.abs(reference).max())):
        raise ExportError(
            f"{float_path.name} departs from the network by {close.largest_error:.2g} in a logit; "
            "it computes something torch does not. Simplify the student's forward function"
        )
    rows = [_parity_row(material, float_path, close)]
    artifacts = [_artifact(run, float_path, "float32", ())]
    notes: list[str] = []
    run.file(_INT8).unlink(missing_ok=True)  # an earlier student's must not lie beside this one
    if recipe.export.precision != "float32":
        try:
            int8, remarks = _int8(
                recipe, material, taught, learned, run, progress, float_path, most
            )
        except ExportError as error:
            if recipe.export.precision == "int8":
                raise
            progress.say(f"export: {error}")
            notes.append(f"int8 was refused and only float32 is left: {error}")
        else:
            notes += remarks
            rows.append(_parity_row(material, int8, parity(int8, reference, inputs)))
            artifacts.append(_artifact(run, int8, "int8", tuple(remarks)))
    paths = [run.file(artifact.path) for artifact in artifacts]
    for name, content in material.task.beside(material.data).items():
        paths.append(run.file(f"artifacts/{name}"))
        write_atomically(paths[-1], content)
    result = {
        "artifacts": [artifact.to_json() for artifact in artifacts],
        "parity": rows,
        "notes": notes,
    }
    return result, paths


def _int8(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress, float_path: Path, most: float,
) -> tuple[Path, list[str]]:  # fmt: skip
    """Quantize; repair by calibration, by layers left in float, by teaching on; or refuse."""
    path = run.file(_INT8)
    calibration = material.train.batch(_spread(material.train, _CALIBRATION_EXAMPLES), 0).tensor
    check = _Check(recipe, material, taught, float_path)
    progress.say("export: int8 ONNX")
    outcome = quantize_within(
        float_path,
        path,
        calibration.numpy(),
        check.loss,
        recipe.export.largest_loss,
        most_bytes=most,
    )
    remarks, what = [], "R2" if material.metric == "r2" else material.metric.replace("_", " ")
    if outcome.method != "minmax":
        remarks.append(f"int8 ranges were set by {outcome.method}, which lost least")
    if outcome.kept_float:
        remarks.append(f"left in float to keep {what}: {', '.join(outcome.kept_float)}")
    if outcome.loss <= recipe.export.largest_loss:
        return path, remarks
    progress.say(f"export: int8 loses {outcome.loss:.3f} of {what}; teaching on with rounding")
    retaught = _retaught(recipe, material, taught, learned, run, progress)
    again = run.file("artifacts/.retaught-float32.onnx")
    export_onnx(retaught, material.shape, again, meta=meta_of(recipe, material))
    second = quantize_within(
        again, path, calibration.numpy(), check.loss, recipe.export.largest_loss, most_bytes=most
    )
    again.unlink()
    if second.loss > recipe.export.largest_loss:
        path.unlink(missing_ok=True)
        raise ExportError(
            f"int8 loses {second.loss:.3f} of the {what} on validation, over "
            f"export.largest_loss ({recipe.export.largest_loss}), after every repair; raise it, or "
            "set export.precision: float32"
        )
    return path, ["int8 was repaired by quantization-aware distillation"]


def _retaught(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress,
) -> nn.Module:  # fmt: skip
    path, network = run.file("student/int8.safetensors"), copy.deepcopy(learned.network)
    epochs = learned.result["epochs"]

    def work() -> tuple[Any, list[Path]]:
        figures = distill_for_int8(
            recipe, material, taught, network, run, progress, taught_for=epochs
        )
        write_tensors(path, network.state_dict())
        return {"figure": figures}, [path]

    inputs = hash_json([sha256_file(run.file("student/model.safetensors")), recipe.seed])
    run.stage("int8", inputs, work)
    network.load_state_dict(read_tensors(path)[0])
    return network.eval()


def artifact_decisions(path: Path, split: Split) -> np.ndarray:
    """Return an artifact's logits for every untouched example of a split, batch by batch."""
    model = OnnxModel(path)
    return np.concatenate(
        [
            model.run(split.batch(torch.arange(i, min(i + _BATCH, split.count)), 0).tensor.numpy())
            for i in range(0, split.count, _BATCH)
        ]
    )


class _Check:
    """What an int8 file loses of the metric (or agreement) against float32, on validation."""

    def __init__(
        self, recipe: Recipe, material: Material, taught: Taught, float_path: Path
    ) -> None:
        self.material, self.split, self.metric = material, material.validation, recipe.metric
        wanted = material.data.validation.labels
        if wanted is None:
            wanted = material.said(taught.validation_decision.numpy())
            self.metric = "accuracy"  # of agreement with the teacher
        self.wanted = wanted
        self.base = self._score(float_path)

    def loss(self, path: Path) -> float:
        return self.base - self._score(path)

    def _score(self, path: Path) -> float:
        said = self.material.said(artifact_decisions(path, self.split))
        if self.material.decides == "values":
            return score(said, self.wanted, "values")
        return class_score(self.metric, said, self.wanted)


def _parity_row(material: Material, path: Path, found: Parity) -> dict[str, Any]:
    """Return what the proof says of parity; of values, the largest error in their own unit."""
    if material.target is None:
        return {"artifact": path.name, **asdict(found)}
    error = found.largest_error * material.target.std
    return {"artifact": path.name, "n": found.n, "largest_error": error}


def _parity_examples(material: Material, network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return at least 1,000 inputs (all there are, if fewer) and the network's logits."""
    chosen = _spread(material.train, _PARITY_EXAMPLES)
    inputs = material.train.batch(chosen, 0).tensor

    def batch(index: torch.Tensor, view: int) -> Any:
        return material.train.batch(chosen[index], 0)

    picked = Split(name="parity", count=len(chosen), content="", batch=batch)
    return inputs.numpy(), decisions(network.cpu(), picked).numpy()


def _spread(split: Split, most: int) -> torch.Tensor:
    """Return up to `most` positions spread evenly over a split."""
    return torch.linspace(0, split.count - 1, min(most, split.count)).round().long().unique()


def _artifact(run: Run, path: Path, precision: str, notes: tuple[str, ...]) -> Artifact:
    return Artifact(
        path=path.relative_to(run.path).as_posix(),
        runtime="onnxruntime",
        precision=precision,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        notes=notes,
    )
