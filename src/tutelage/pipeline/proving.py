"""The stage `prove`: every figure of the artifact, held against the budget."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.audit.fidelity import (
    Decided,
    by_class,
    differences,
    fidelity,
    probabilities,
    reliability,
)
from tutelage.devices import HOST, Device
from tutelage.errors import DataError, DeviceError, TutelageError
from tutelage.export.onnx_float import export_onnx
from tutelage.files import hash_json, read_json, sha256_file, write_json
from tutelage.measure.costs import graph_figures
from tutelage.measure.energy import measure_energy
from tutelage.measure.latency import Call, measure_latency
from tutelage.measure.memory import measure_memory
from tutelage.pipeline.cost_of_precision import artifact_decisions
from tutelage.pipeline.judging import split_figures
from tutelage.pipeline.lessons import metric_inputs
from tutelage.pipeline.material import Material
from tutelage.pipeline.planning import meta_of
from tutelage.pipeline.proving_exits import Stopped, exit_part, named, timed, went_through
from tutelage.pipeline.proving_exits import on_device as means_on
from tutelage.pipeline.proving_values import compared_values
from tutelage.pipeline.shipping import Shipped
from tutelage.pipeline.teaching import Taught, signals_of_test
from tutelage.plan.refusal import what_would_do
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Artifact, Limit, Measurement, Verdict
from tutelage.run import Run
from tutelage.teach.onnx_teacher import OnnxTeacher
from tutelage.teach.torch_teacher import Renormalised, Reordered, Rescaled, TorchTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """One artifact with its figures and what they mean for the budget."""

    artifact: Artifact
    figures: tuple[Measurement, ...]
    verdicts: tuple[Verdict, ...]
    logits_test: np.ndarray
    stopped: Stopped | None = None

    @property
    def misses(self) -> int:
        """Hard limits that are missed."""
        return sum(v.limit.hard and not v.met for v in self.verdicts)

    def value(self, name: str) -> float:
        """Return the first figure of that name."""
        return next(f.value for f in self.figures if f.name == name)


def prove(
    recipe: Recipe, material: Material, taught: Taught, shipped: Shipped, device: Device,
    limits: tuple[Limit, ...], run: Run, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure each artifact, choose the one to ship, write proof.json (once a run) and return it.

    The test split is read here and nowhere else.
    """
    path, test = run.file("proof.json"), signals_of_test(material, taught, run)

    def work() -> tuple[Any, list[Path]]:
        files = test.fill(progress)
        said = test.read(torch.arange(material.test.count), 0).decision.numpy()
        proof = _proof(recipe, material, taught, shipped, device, limits, run, progress, said)
        write_json(path, proof)
        return None, [path, *files]

    inputs = hash_json(
        [
            [artifact.to_json() for artifact in shipped.artifacts],
            [dataclasses.asdict(limit) for limit in limits],
            device.model_dump(mode="json"),
            [taught.validation.key, test.key, material.content],
            recipe.export.precision,
            *metric_inputs(recipe),
            _meter_hash(recipe),
            *shipped.exits,
        ]
    )
    run.stage("prove", inputs, work)
    return read_json(path)


def _meter_hash(recipe: Recipe) -> list[Any]:
    csv = recipe.measure.power_csv
    if csv is None:
        return []
    if not Path(csv).is_file():
        raise DataError(f"measure.power_csv: there is no {csv}; record it, or remove the key")
    return [sha256_file(Path(csv)), recipe.measure.inferences]


def _proof(
    recipe: Recipe, material: Material, taught: Taught, shipped: Shipped, device: Device,
    limits: tuple[Limit, ...], run: Run, progress: Progress, teacher_test: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    said = {"validation": taught.validation_decision.numpy(), "test": teacher_test}
    progress.start("Proving the artifacts", len(shipped.artifacts) + 2)
    weighed = []
    for artifact in shipped.artifacts:
        weighed.append(_weigh(artifact, material, said, device, limits, run))
        progress.advance(1, artifact.precision)
    chosen = _metered(recipe, _choose(recipe, weighed, device), limits, run)
    where = f"{chosen.artifact.path} in onnxruntime, test split"
    progress.advance()
    teacher = _teacher_figures(recipe, material, taught, device, teacher_test)
    progress.advance()
    progress.finish()
    hard_misses = [v for v in chosen.verdicts if v.limit.hard and not v.met]
    return {
        "status": "missed" if hard_misses else "met",
        "task": recipe.task,
        "metric": material.metric,
        "decides": material.decides,
        "device": {"name": device.name, "title": device.title},
        "chosen": chosen.artifact.path,
        "verdicts": [v.to_json() for v in chosen.verdicts],
        "would_do": _would_do(chosen, material, limits, device, run) if hard_misses else None,
        "figures": {
            "teacher": [f.to_json() for f in teacher],
            "student": [
                f.to_json() for f in (*chosen.figures, _parameters(shipped.parameters, "student"))
            ],
        },
        "others": [
            {"artifact": w.artifact.path, "figures": [f.to_json() for f in w.figures]}
            for w in weighed
            if w.artifact is not chosen.artifact
        ],
        **_compared(material, chosen.logits_test, teacher_test, where, recipe.seed),
        **_exits(chosen, shipped, material, teacher_test),
        "parity": shipped.parity,
        "artifacts": [a.to_json() for a in shipped.artifacts],
        "beside": [dataclasses.asdict(file) for file in material.beside],
        "recipe": recipe.to_yaml(),
        "notes": [*shipped.notes, *_unjudged(limits, chosen)],
    }


def _exits(
    chosen: Weighed, shipped: Shipped, material: Material, teacher: np.ndarray
) -> dict[str, Any]:
    """Return the proof's part about exits, also where none was worth keeping."""
    for row in shipped.exits:
        if chosen.artifact.path.endswith(f"/{row['artifact']}"):
            if chosen.stopped is None:
                return {"exits": row}
            return {"exits": exit_part(chosen.stopped, row, material, teacher)}
    return {}


def _would_do(
    chosen: Weighed, material: Material, limits: tuple[Limit, ...], device: Device, run: Run
) -> dict[str, Any]:
    artifact = chosen.artifact
    path = run.file(artifact.path)
    found = what_would_do(
        [path], chosen.verdicts, limits, device, artifact.precision, beside=material.beside
    )
    return found.to_json()


def _compared(
    material: Material, student: np.ndarray, teacher: np.ndarray, where: str, seed: int
) -> dict[str, Any]:
    """Return the proof's parts that set student beside teacher on the test split."""
    if material.decides == "values":
        return compared_values(material, student, teacher, where, seed)
    labels = material.data.test.labels
    decided = Decided(student=student, teacher=teacher, labels=labels, where=where)
    return {
        "fidelity": [f.to_json() for f in fidelity(decided, seed=seed)],
        "reliability": _reliability(decided),
        "classes": by_class(decided, material.classes) if labels is not None else [],
        "differences": _differences(decided, material),
    }


def _metered(recipe: Recipe, chosen: Weighed, limits: tuple[Limit, ...], run: Run) -> Weighed:
    """Put the energy that a power meter recorded before the estimate, where the recipe has one."""
    part = recipe.measure
    if part.power_csv is None:
        return chosen
    path = run.file(chosen.artifact.path)
    energy = measure_energy(path, power_csv=part.power_csv, inferences=part.inferences)
    figures = (dataclasses.replace(energy, name="energy_j"), *chosen.figures)
    return dataclasses.replace(chosen, figures=figures, verdicts=verdicts(limits, figures))


def _weigh(
    artifact: Artifact, material: Material, said: dict[str, np.ndarray], device: Device,
    limits: tuple[Limit, ...], run: Run,
) -> Weighed:  # fmt: skip
    """Measure one artifact; `said` are the teacher's logits by split."""
    path = run.file(artifact.path)
    figures: list[Measurement] = []
    logits = {}
    stopped = went_through(path, material.test)
    for name in ("validation", "test"):
        examples = getattr(material, name)
        passed = stopped.logits if stopped is not None and name == "test" else None
        logits[name] = artifact_decisions(path, examples) if passed is None else passed
        where = f"{artifact.path}, {name} split"
        figures += split_figures(material, name, logits[name], where, teacher=said[name])
    on_device = list(graph_figures(path, device, beside=material.beside))
    if stopped is None:
        on_host = _host_figures(path)
    else:
        call, more = timed(stopped, material.test)
        on_host = [*more, *named(_host_figures(path, call))]
        on_device = means_on(on_device, stopped, device)
    # On the machine itself the measured figures are the ones that count, so they come first.
    figures += [*on_host, *on_device] if device.name == HOST else [*on_device, *on_host]
    figures += _stream_figures(figures, material)
    return Weighed(
        artifact=artifact,
        figures=tuple(figures),
        verdicts=verdicts(limits, tuple(figures)),
        logits_test=logits["test"],
        stopped=stopped,
    )


def _stream_figures(figures: list[Measurement], material: Material) -> list[Measurement]:
    """Return what an hour of a stream costs, from the cost of one decision."""
    hourly = material.task.decisions_an_hour(material.data)
    if hourly is None:
        return []
    found = {f.name: f for f in reversed(figures)}
    made = [
        Measurement(
            name="decisions_an_hour", value=hourly, unit="1", kind="estimated",
            where="data.rate and data.hop",
        )
    ]  # fmt: skip
    energy = found.get("energy_j")
    if energy is not None:
        made.append(
            Measurement(
                name="energy_an_hour_j", value=energy.value * hourly, unit="J", kind="estimated",
                where=f"{energy.kind} energy of one decision x {hourly:,.0f} an hour",
            )
        )  # fmt: skip
    return made


def _host_figures(path: Path, call: Call | None = None) -> list[Measurement]:
    """Measure a file here; by `call` where time and energy hang on the input."""
    latency = measure_latency(call or path, threads=1)
    figures = [
        dataclasses.replace(latency.p50, name="latency_p50_s"),
        dataclasses.replace(latency.p95, name="latency_p95_s"),
        latency.noise_floor,
        dataclasses.replace(measure_memory(path), name="ram_bytes"),
    ]
    try:
        figures.append(dataclasses.replace(measure_energy(call or path), name="energy_j"))
    except DeviceError:  # no counter here: the device's estimate, if it has one, stands alone
        pass
    return figures


_FIGURE_OF = {"accuracy": ("accuracy_validation",), "latency_s": ("latency_s", "latency_p50_s")}


def verdicts(limits: tuple[Limit, ...], figures: tuple[Measurement, ...]) -> tuple[Verdict, ...]:
    """Hold each limit against its figure; a limit without one is left to the notes."""
    found = []
    for limit in limits:
        names = _FIGURE_OF.get(limit.metric, (limit.metric,))
        figure = next((f for f in figures if f.name in names), None)
        if figure is not None:
            found.append(Verdict(limit=limit, figure=figure))
    return tuple(found)


def _unjudged(limits: tuple[Limit, ...], chosen: Weighed) -> list[str]:
    judged = {v.limit.metric for v in chosen.verdicts}
    return [
        f"{limit.metric} could not be judged: the profile has no figure for it"
        for limit in limits
        if limit.metric not in judged
    ]


def _choose(recipe: Recipe, weighed: list[Weighed], device: Device) -> Weighed:
    """Choose by the budget first; among equals by measured speed on the host, else by size.

    A microcontroller runs int8 several times faster and keeps it in less memory, so there the
    smaller file wins; on the machine itself the measured latency decides. float16 and float32 run
    the same operators, whatever a clock says: float32 is left only where it keeps more limits.
    """
    wanted = recipe.export.precision
    named = [w for w in weighed if w.artifact.precision == wanted]
    if named:
        return named[0]
    half = next((w for w in weighed if w.artifact.precision == "float16"), None)
    if half is not None:
        weighed = [
            w for w in weighed if w.artifact.precision != "float32" or w.misses < half.misses
        ]
    speed = "latency_p50_s" if device.name == HOST else "storage_bytes"
    return min(weighed, key=lambda w: (w.misses, w.value(speed)))


def _teacher_figures(
    recipe: Recipe, material: Material, taught: Taught, device: Device, test: np.ndarray
) -> list[Measurement]:
    figures: list[Measurement] = []
    held = taught.validation_decision.numpy()
    for name, logits in (("validation", held), ("test", test)):
        figures += split_figures(material, name, logits, f"teacher, {name} split")
    figures.append(_parameters(taught.teacher.parameters, "teacher"))
    with tempfile.TemporaryDirectory(prefix="tutelage-teacher-") as folder:
        path = Path(folder) / "teacher-float32.onnx"
        try:
            teacher = taught.teacher
            while isinstance(teacher, (Renormalised, Reordered, Rescaled)):
                teacher = teacher.teacher
            if isinstance(teacher, TorchTeacher):
                planes = (3,) if teacher.repeats else material.shape[:1]
                shape = (*planes, *material.shape[1:])
                export_onnx(teacher.module, shape, path, meta=meta_of(recipe, material))
            elif isinstance(teacher, OnnxTeacher):
                path = teacher.path
            counted = graph_figures(path, device, beside=material.beside)
            figures += [*counted, *_host_figures(path)]
        except TutelageError as error:
            beside = "".join(f" + {file.name}" for file in material.beside)
            value = 4.0 * taught.teacher.parameters + sum(file.bytes for file in material.beside)
            where = f"model{beside}: 4 bytes a parameter; not exported ({error})"
            figures.append(
                Measurement(
                    name="storage_bytes", value=value, unit="B", kind="estimated",
                    where=where[:200],
                )
            )  # fmt: skip
    return figures


def _parameters(count: int, who: str) -> Measurement:
    return Measurement(
        name="parameters", value=float(count), unit="1", kind="measured", where=f"{who} in torch"
    )


def _reliability(decided: Decided) -> dict[str, Any]:
    if decided.labels is None:
        return {}
    return {
        "student": reliability(probabilities(decided.student), decided.labels),
        "teacher": reliability(probabilities(decided.teacher), decided.labels),
    }


def _differences(decided: Decided, material: Material) -> list[dict[str, Any]]:
    rows = []
    p, q = probabilities(decided.teacher), probabilities(decided.student)
    labels = material.data.test.labels
    for i in differences(decided):
        shown = material.task.show(material.data.test, i)
        rows.append(
            {
                ("image" if shown.startswith("data:image/png;base64,") else "text"): shown,
                "label": None if labels is None else material.classes[int(labels[i])],
                "teacher": material.classes[int(p[i].argmax())],
                "student": material.classes[int(q[i].argmax())],
                "teacher_confidence": float(p[i].max()),
                "student_confidence": float(q[i].max()),
            }
        )
    return rows
