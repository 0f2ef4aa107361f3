"""The stage `export`: ONNX float32, float16 and int8, checked, repaired or refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tutelage.devices import load_device
from tutelage.errors import ExportError
from tutelage.export.half import write_float16
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import Parity, parity
from tutelage.export.quantize import QuantizeOutcome, quantize_within
from tutelage.files import (
    hash_json,
    read_tensors,
    sha256_file,
    write_atomically,
    write_tensors,
)
from tutelage.pipeline.cost_of_precision import PrecisionCheck, artifact_decisions
from tutelage.pipeline.exiting import stop_early
from tutelage.pipeline.learning import Learned, distill_for_int8
from tutelage.pipeline.lessons import metric_inputs
from tutelage.pipeline.material import Material, spread_over
from tutelage.pipeline.planning import meta_of
from tutelage.pipeline.teaching import Taught
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Artifact, Limit
from tutelage.run import Run
from tutelage.students.exits import ExitingNetwork
from tutelage.teach.signals import Split
from tutelage.train.distill import decisions

_CALIBRATION_EXAMPLES = 512
_PARITY_EXAMPLES = 1_000
_LARGEST_FLOAT_ERROR = 1e-3
_BATCH = 256
_BESIDE = {p: f"artifacts/student-{p}.onnx" for p in ("float16", "int8")}
_HALF = "weights are stored in float16 and computed with in float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """The files, their parity with torch, and what had to be done."""

    artifacts: tuple[Artifact, ...]
    parameters: int
    parity: list[dict[str, Any]]
    notes: list[str]
    exits: tuple[dict[str, Any], ...] = ()


def ship(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress, limits: tuple[Limit, ...] = (),
) -> Shipped:  # fmt: skip
    """Export the student (once a run); raises `ExportError` when the precision asked for fails."""
    hard = [x.value for x in limits if x.metric == "storage_bytes" and x.hard]
    most = min(hard, default=math.inf) - sum(file.bytes for file in material.beside)
    others = beside_float32(recipe)

    def work() -> tuple[Any, list[Path]]:
        return _export_all(recipe, material, taught, learned, run, progress, most, others)

    inputs = hash_json(
        [
            sha256_file(run.file("student/model.safetensors")),
            meta_of(recipe, material).to_json(),
            recipe.export.model_dump(mode="json"),
            material.content,
            recipe.threads,
            str(most),
            *metric_inputs(recipe),
            *(["float16"] if "float16" in others else []),
            *_exits_key(recipe, run),
        ]
    )
    record = run.stage("export", inputs, work)
    return Shipped(
        artifacts=tuple(Artifact.from_json(row) for row in record.result["artifacts"]),
        parameters=learned.result["parameters"],
        parity=record.result["parity"],
        notes=record.result["notes"],
        exits=tuple(record.result.get("exits", ())),
    )


def _exits_key(recipe: Recipe, run: Run) -> list[Any]:
    if recipe.student.may_lose is None:
        return []
    weights = sha256_file(run.file("student/exits.safetensors"))
    return [weights, recipe.student.may_lose, load_device(recipe.device).model_dump(mode="json")]


def beside_float32(recipe: Recipe) -> tuple[str, ...]:
    """Return the precisions that are exported besides float32, which they are made from.

    With `auto` float16 is, where the device runs it: then it stands in for float32.
    """
    wanted = recipe.export.precision
    if wanted != "auto":
        return () if wanted == "float32" else (wanted,)
    return ("float16", "int8") if load_device(recipe.device).runs("float16") else ("int8",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the files beside float32 are made from; `most` is how many bytes may be stored."""

    recipe: Recipe
    material: Material
    taught: Taught
    learned: Learned
    run: Run
    progress: Progress
    float_path: Path
    check: PrecisionCheck
    most: float


def _export_all(
    recipe: Recipe, material: Material, taught: Taught, learned: Learned, run: Run,
    progress: Progress, most: float, others: tuple[str, ...],
) -> tuple[Any, list[Path]]:  # fmt: skip
    network, exits = with_decisions(learned), []
    examples = _parity_examples(material, network)
    float_path, close = _float32(recipe, material, network, run, progress, examples)
    rows = [_parity_row(material, float_path, close)]
    remarks: list[tuple[Path, str, tuple[str, ...]]] = [(float_path, "float32", ())]
    notes: list[str] = []
    for name in _BESIDE.values():  # an earlier student's must not lie beside this one
        run.file(name).unlink(missing_ok=True)
    if others:
        work = _Work(
            recipe=recipe, material=material, taught=taught, learned=learned, run=run,
            progress=progress, float_path=float_path, most=most,
            check=PrecisionCheck(recipe, material, taught, float_path),
        )  # fmt: skip
        for precision in others:
            made = _beside(work, precision, examples, notes)
            if made is not None:
                remarks.append(made[0])
                rows.append(made[1])
    if learned.exits is not None:
        for path, _, _ in remarks:
            said = artifact_decisions(path, material.validation)
            exits.append(stop_early(path, recipe, material, taught, learned.exits, said))
    artifacts = [_artifact(run, *remark) for remark in remarks]
    paths = [run.file(artifact.path) for artifact in artifacts]
    for name, content in material.task.beside(material.data).items():
        paths.append(run.file(f"artifacts/{name}"))
        write_atomically(paths[-1], content)
    result = {
        "artifacts": [artifact.to_json() for artifact in artifacts],
        "parity": rows,
        "notes": notes,
        **({"exits": exits} if exits else {}),
    }
    return result, paths


def with_decisions(learned: Learned) -> nn.Module:
    """Return the network to export: with all its decisions side by side, where it has exits."""
    if learned.exits is None:
        return learned.network
    return ExitingNetwork(learned.network, learned.exits).eval()


def _float32(
    recipe: Recipe, material: Material, network: nn.Module, run: Run, progress: Progress,
    examples: tuple[np.ndarray, np.ndarray],
) -> tuple[Path, Parity]:  # fmt: skip
    meta, (inputs, reference) = meta_of(recipe, material), examples
    path = run.file("artifacts/student-float32.onnx")
    progress.say("export: float32 ONNX")
    free = recipe.export.dynamic_batch
    export_onnx(network, material.shape, path, meta=meta, dynamic_batch=free)
    close = parity(path, reference, inputs)
    if close.largest_error > _LARGEST_FLOAT_ERROR * max(1.0, float(np.abs(reference).max())):
        raise ExportError(
            f"{path.name} departs from the network by {close.largest_error:.2g} in a logit; "
            "it computes something torch does not. Simplify the student's forward function"
        )
    return path, close


def _beside(
    work: _Work, precision: str, examples: tuple[np.ndarray, np.ndarray], notes: list[str]
) -> tuple[tuple[Path, str, tuple[str, ...]], dict[str, Any]] | None:
    """Make and check one more file; refused, it is noted where nobody asked for it by name."""
    path, (inputs, reference) = work.run.file(_BESIDE[precision]), examples
    work.progress.say(f"export: {precision} ONNX")
    try:
        remarks = _float16(work, path) if precision == "float16" else _int8(work, path)
        found = parity(path, reference, inputs)
    except ExportError as error:
        path.unlink(missing_ok=True)
        if work.recipe.export.precision == precision:
            raise
        work.progress.say(f"export: {error}")
        notes.append(f"{precision} was refused: {error}")
        return None
    notes += remarks
    if precision == "float16":
        remarks = [_HALF, *remarks]
    row = _parity_row(work.material, path, found)
    return (path, precision, tuple(remarks)), row


def _float16(work: _Work, path: Path) -> list[str]:
    """Store weights in float16; refuse where that loses too much, or saves nothing."""
    left = write_float16(work.float_path, path)
    if path.stat().st_size >= work.float_path.stat().st_size:
        raise ExportError(
            f"float16 makes {work.float_path.name} no smaller; set export.precision: float32"
        )
    loss, given = work.check.loss(path), work.recipe.export.largest_loss
    if not loss <= work.check.most:
        raise ExportError(
            f"float16 loses {loss:.3f} of the {work.check.what} on {work.check.where}, over "
            f"export.largest_loss ({given}); raise it, or set export.precision: float32"
        )
    return [f"left in float32, too large for float16: {', '.join(left)}"] if left else []


def _int8(work: _Work, path: Path) -> list[str]:
    """Quantize; repair by calibration, by layers left in float, by teaching on; or refuse."""
    material, check = work.material, work.check
    calibration = material.train.batch(spread_over(material.train, _CALIBRATION_EXAMPLES), 0).tensor

    def quantized(float_path: Path) -> QuantizeOutcome:
        return quantize_within(
            float_path, path, calibration.numpy(), check.loss, check.most, most_bytes=work.most
        )

    outcome = quantized(work.float_path)
    remarks = []
    if outcome.method != "minmax":
        remarks.append(f"int8 ranges were set by {outcome.method}, which lost least")
    if outcome.kept_float:
        remarks.append(f"left in float to keep {check.what}: {', '.join(outcome.kept_float)}")
    if outcome.loss <= check.most:
        return remarks
    work.progress.say(
        f"export: int8 loses {outcome.loss:.3f} of {check.what}; teaching on with rounding"
    )
    again = work.run.file("artifacts/.retaught-float32.onnx")
    network = with_decisions(dataclasses.replace(work.learned, network=_retaught(work)))
    export_onnx(network, material.shape, again, meta=meta_of(work.recipe, material))
    second = quantized(again)
    again.unlink()
    if second.loss > check.most:
        raise ExportError(
            f"int8 loses {second.loss:.3f} of the {check.what} on {check.where}, over "
            f"export.largest_loss ({work.recipe.export.largest_loss}), after every repair; raise "
            "it, or set export.precision: float16"
        )
    return ["int8 was repaired by quantization-aware distillation"]


def _retaught(work: _Work) -> nn.Module:
    recipe, run, network = work.recipe, work.run, copy.deepcopy(work.learned.network)
    path = run.file("student/int8.safetensors")

    def teach_on() -> tuple[Any, list[Path]]:
        figures = distill_for_int8(
            recipe, work.material, work.taught, network, run, work.progress,
            taught_for=work.learned.result["epochs"],
            rate=work.learned.result.get("rate"),  # older runs did not say it
        )  # fmt: skip
        write_tensors(path, network.state_dict())
        return {"figure": figures}, [path]

    inputs = hash_json([sha256_file(run.file("student/model.safetensors")), recipe.seed])
    run.stage("int8", inputs, teach_on)
    network.load_state_dict(read_tensors(path)[0])
    return network.eval()


def _parity_row(material: Material, path: Path, found: Parity) -> dict[str, Any]:
    """Return what the proof says of parity; of values, the largest error in their own unit."""
    if material.target is None:
        return {"artifact": path.name, **asdict(found)}
    error = found.largest_error * material.target.std
    return {"artifact": path.name, "n": found.n, "largest_error": error}


def _parity_examples(material: Material, network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return 1,000 inputs and the network's logits: training examples, and views of them.

    Views fill up where there are fewer examples; there are fewer inputs where nothing varies.
    """
    train, chosen = material.train, spread_over(material.train, _PARITY_EXAMPLES)
    few = chosen[:8]
    varies = not torch.equal(train.batch(few, 0).tensor, train.batch(few, 1).tensor)
    views = range(-(-_PARITY_EXAMPLES // len(chosen)) if varies else 1)

    def said(view: int) -> torch.Tensor:
        picked = Split(
            name="parity", count=len(chosen), content="",
            batch=lambda index, _: train.batch(chosen[index], view),
        )  # fmt: skip
        return decisions(network.cpu(), picked)

    inputs = torch.cat([train.batch(chosen, view).tensor for view in views])
    logits = torch.cat([said(view) for view in views])
    return inputs[:_PARITY_EXAMPLES].numpy(), logits[:_PARITY_EXAMPLES].numpy()


def _artifact(run: Run, path: Path, precision: str, notes: tuple[str, ...]) -> Artifact:
    return Artifact(
        path=path.relative_to(run.path).as_posix(),
        runtime="onnxruntime",
        precision=precision,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        notes=notes,
    )
