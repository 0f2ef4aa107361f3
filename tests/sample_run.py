"""A small synthetic run directory, for tests of whatever reads run.json, plan.json, proof.json."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.records import Artifact, Limit, Measurement, Verdict

DEVICE = "nucleo-l4r5, cost model"
HOST = "this host, onnxruntime 1.32, 1 thread"
DIGITS = tuple(str(i) for i in range(10))


def sample_run(
    folder: Path,
    *,
    classes: tuple[str, ...] = DIGITS,
    met: bool = True,
    storage_limit: float = 200_000.0,
) -> Path:
    """Write run.json, plan.json and proof.json into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        ("run", run_json(classes)),
        ("plan", plan_json(storage_limit)),
        ("proof", proof_json(classes, met, storage_limit)),
    ):
        text = json.dumps(data, indent=1, allow_nan=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def run_json(classes: tuple[str, ...] = DIGITS) -> dict[str, Any]:
    """Return the manifest of a finished demo."""
    results = {
        "data": {
            "source": "digits",
            "task": "vision",
            "classes": list(classes),
            "counts": {"train": 1293, "validation": 144, "test": 360},
            "shape": [1, 8, 8],
            "fingerprint": _hash("data"),
            "notes": ["2 images appear twice and were kept in one split"],
        },
        "teacher": {
            "source": "built-in, trained on the spot",
            "fingerprint": _hash("teacher"),
            "parameters": 696_554,
            "taps": ["stages.0", "stages.1", "stages.2", "stages.3"],
            "notes": [],
            "figures": [figure("accuracy_validation", 0.9931, n=144, spread=(0.9617, 0.9988))],
            "history": None,
            "lenses": [
                {"tap": f"stages.{i}", "agreement": a}
                for i, a in enumerate((0.612, 0.871, 0.978, 1.0))
            ],
        },
        "signals": {"views": 4, "bytes": 2_180_000, "bytes_per_example": 422, "files": 4},
        "distill": _distill_result(),
    }
    seconds = {"data": 0.412, "teacher": 21.38, "signals": 3.051, "distill": 18.2}
    return {
        "tutelage": "0.1.0",
        "command": "tutelage demo --run runs/demo",
        "created": "2026-03-02T10:04:11+0000",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "onnxruntime": "1.32.0"},
        "machine": {
            "system": "Linux x86_64",
            "processor": "Example CPU 2.10GHz",
            "cores": "2",
            "memory": "8.2 GB",
        },
        "notes": ["bf16 is not available on this machine: float32 was used instead"],
        "spent": {},
        "stages": {
            name: {
                "inputs": _hash(f"in {name}"),
                "result": result,
                "files": {f"{name}/part-0.safetensors": _hash(name)},
                "seconds": seconds[name],
            }
            for name, result in results.items()
        },
    }


def _distill_result() -> dict[str, Any]:
    epochs = 24
    loss = [2.2 * math.exp(-e / 5) + 0.09 for e in range(epochs)]
    parts = [
        {
            "dist": 0.9 * v,
            "trajectory": 0.2 * v + 0.01,
            "features": 0.06 * v + 0.004,
        }
        for v in loss
    ]
    shown = [min(0.9861, 0.9861 - 0.62 * math.exp(-e / 3.1)) for e in range(epochs)]
    grid = [
        [round(math.exp(-((1.45 * i - j) ** 2) / 3.0) * 0.93, 3) for j in range(4)]
        for i in range(3)
    ]
    return {
        "spec": _spec(8, 2),
        "parameters": 19_842,
        "history": {
            "loss": loss,
            "figure": shown,
            "parts": parts,
            "best_epoch": 22,
            "skipped": 0,
            "rolled_back": 0,
            "stopped_early": False,
            "precision": "float32",
        },
        "weights": {"dist": 1.0, "trajectory": 1.62, "features": 0.31},
        "pairing": {
            "student_taps": ["stages.0", "stages.1", "stages.2"],
            "teacher_taps": ["stages.0", "stages.1", "stages.2", "stages.3"],
            "similarity": grid,
            "pairs": [[0, 0], [1, 1], [2, 3]],
            "by": "linear CKA",
        },
        "epochs": epochs,
        "seed": 0,
    }


def plan_json(storage_limit: float = 200_000.0) -> dict[str, Any]:
    """Return a plan of five candidates, one chosen, one that did not fit."""
    rows = [
        (4, 1, 6_112, 9_900, 0.931, True),
        (6, 1, 11_020, 15_100, 0.958, True),
        (8, 2, 19_842, 24_300, 0.979, True),
        (12, 2, 44_210, 51_000, 0.972, True),
        (24, 3, 214_000, 231_000, None, False),
    ]
    candidates = []
    for width, depth, parameters, size, trial, fits in rows:
        macs = parameters * 61
        candidates.append(
            {
                "spec": _spec(width, depth),
                "parameters": parameters,
                "figures": [
                    figure("storage_bytes", size, "B", "predicted", where="exported graph"),
                    figure("ram_bytes", 900.0 * width, "B", "predicted", where="liveness"),
                    figure("latency_s", macs / 6e7, "s", "predicted", where=DEVICE),
                    figure("energy_j", macs / 6e7 * 0.042, "J", "estimated", where=DEVICE),
                    figure("macs", macs, "MAC"),
                ],
                "fits": fits,
                "missed": [] if fits else ["storage_bytes"],
                "trial": None
                if trial is None
                else figure("accuracy_validation", trial, n=144, where="after 6 epochs"),
                "chosen": width == 8,
            }
        )
    return {
        "device": "nucleo-l4r5",
        "limits": [
            {
                "metric": "storage_bytes",
                "value": storage_limit,
                "hard": True,
                "source": "nucleo-l4r5 profile",
            },
            {"metric": "energy_j", "value": 5e-3, "hard": True, "source": "recipe"},
        ],
        "space": "compact",
        "candidates": candidates,
        "why": "the best validation accuracy after 6 epochs among those that fit",
    }


def proof_json(
    classes: tuple[str, ...] = DIGITS, met: bool = True, storage_limit: float = 200_000.0
) -> dict[str, Any]:
    """Return the proof of the int8 artifact; `met=False` makes it miss the latency limit."""
    latency = 20.2e-3 if met else 61e-3
    storage = Measurement(name="storage_bytes", value=24_312.0, unit="B", kind="measured")
    verdicts = [
        _verdict("storage_bytes", storage_limit, storage, "nucleo-l4r5 profile"),
        _verdict("ram_bytes", 64_000.0, _own("ram_bytes", 38_200.0, "B", "predicted"), "recipe"),
        _verdict("latency_s", 40e-3, _own("latency_s", latency, "s", "predicted"), "recipe"),
        _verdict("energy_j", 5e-3, _own("energy_j", 0.85e-3, "J", "estimated"), "recipe"),
        _verdict("accuracy", 0.96, _own("accuracy", 0.9778, "1", "measured"), "recipe", hard=False),
    ]
    return {
        "task": "vision",
        "status": "met" if met else "missed",
        "device": {"name": "nucleo-l4r5", "title": "ST Nucleo-L4R5ZI, Cortex-M4 at 120 MHz"},
        "chosen": "artifacts/student.int8.onnx",
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "figures": {"teacher": _teacher_figures(), "student": _student_figures(latency)},
        "fidelity": [
            figure("agreement", 0.9833, n=360, spread=(0.9641, 0.9923), where="test"),
            figure("kl", 0.0412, n=360, where="test, nats"),
            figure("calibration_error_student", 0.0213, n=360, where="test"),
            figure("calibration_error_teacher", 0.0148, n=360, where="test"),
            figure("kept", 0.98878, n=360, spread=(0.975, 1.0), where="test"),
        ],
        "reliability": {"student": _bins(0.03), "teacher": _bins(0.012)},
        "classes": [
            {
                "name": name,
                "n": 30 + i % 7,
                "teacher": 1.0 - 0.004 * (i % 4),
                "student": 1.0 - 0.004 * (i % 4) - (0.055 if i % 5 == 3 else 0.0) + 0.002 * (i % 2),
            }
            for i, name in enumerate(classes)
        ],
        "differences": [
            {
                "image": _image(i),
                "label": classes[(i * 3 + 1) % len(classes)],
                "teacher": classes[(i * 3 + 1) % len(classes)],
                "student": classes[(i * 3 + 2) % len(classes)],
                "teacher_confidence": 0.91 - 0.03 * i,
                "student_confidence": 0.52 + 0.02 * i,
            }
            for i in range(6)
        ],
        "parity": [
            {
                "artifact": f"artifacts/student.{p}.onnx",
                "n": 1437,
                "largest_error": e,
                "agreement": a,
            }
            for p, e, a in (("int8", 0.184, 0.9979), ("float32", 3.1e-06, 1.0))
        ],
        "artifacts": [
            Artifact(
                path=f"artifacts/student.{precision}.onnx",
                runtime="onnxruntime",
                precision=precision,
                bytes=size,
                sha256=_hash(precision),
                notes=notes,
            ).to_json()
            for precision, size, notes in (
                ("int8", 24_312, ("calibrated by percentile after minmax lost 1.4 points",)),
                ("float32", 82_118, ()),
            )
        ],
        "recipe": "task: vision\nseed: 0\ndata:\n  train: digits\nteacher:\n  fit: true\n"
        "device: nucleo-l4r5\nbudget:\n  memory: 64 kB\n  latency: 40 ms\n",
        "notes": ["energy is active power x latency, not a power meter's reading"],
    }


def figure(
    name: str,
    value: float,
    unit: str = "1",
    kind: str = "measured",
    *,
    n: int = 1,
    spread: tuple[float, float] | None = None,
    where: str = "",
) -> dict[str, Any]:
    """Return a measurement as JSON."""
    data = {"name": name, "value": value, "unit": unit, "kind": kind, "n": n, "where": where}
    return Measurement.from_json({**data, "spread": spread}).to_json()


def _own(name: str, value: float, unit: str, kind: str) -> Measurement:
    where = HOST if kind == "measured" else DEVICE
    return Measurement.from_json(figure(name, value, unit, kind, where=where))


def _verdict(
    metric: Any, limit: float, held: Measurement, source: str, hard: bool = True
) -> Verdict:
    return Verdict(limit=Limit(metric=metric, value=limit, source=source, hard=hard), figure=held)


def _teacher_figures() -> list[dict[str, Any]]:
    return [
        figure("accuracy_validation", 0.9931, n=144, spread=(0.9617, 0.9988)),
        figure("accuracy_test", 0.9889, n=360, spread=(0.9718, 0.9957)),
        figure("storage_bytes", 2_792_000, "B", where="float32 weights"),
        figure("parameters", 696_554),
        figure("macs", 14_200_000, "MAC"),
        figure("latency_p50_s", 1.82e-3, "s", n=200, where=HOST),
        figure("latency_p95_s", 2.31e-3, "s", n=200, where=HOST),
        figure("peak_activation_bytes", 262_144, "B", "predicted", where="liveness"),
        figure("energy_j", 0.0273, "J", "estimated", where=HOST),
    ]


def _student_figures(latency: float) -> list[dict[str, Any]]:
    return [
        figure("accuracy_validation", 0.9861, n=144, spread=(0.9507, 0.9962)),
        figure("accuracy_test", 0.9778, n=360, spread=(0.9568, 0.9887)),
        figure("storage_bytes", 24_312, "B"),
        figure("parameters", 19_842),
        figure("macs", 1_210_362, "MAC"),
        figure("latency_p50_s", latency, "s", "predicted", spread=(0.0171, 0.0242), where=DEVICE),
        figure("latency_p50_s", 0.21e-3, "s", n=200, spread=(0.2e-3, 0.23e-3), where=HOST),
        figure("latency_p95_s", 0.29e-3, "s", n=200, where=HOST),
        figure("ram_bytes", 38_200, "B", "predicted", where=DEVICE),
        figure("peak_activation_bytes", 8_192, "B", "predicted", where="liveness"),
        figure("energy_j", 0.85e-3, "J", "estimated", where=DEVICE),
        figure("energy_j", 3.15e-3, "J", "estimated", where=HOST),
    ]


def _bins(gap: float) -> list[dict[str, Any]]:
    levels = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.97)
    return [
        {
            "confidence": c,
            "accuracy": min(1.0, max(0.0, c + gap * (3 if i % 2 else -2.5))),
            "n": 4 + i * i * 5,
        }
        for i, c in enumerate(levels)
    ]


def _spec(width: int, depth: int) -> dict[str, Any]:
    return {
        "family": "convnet",
        "image": [1, 8, 8],
        "classes": 10,
        "widths": [width, 2 * width, 4 * width],
        "depths": [depth] * 3,
        "block": "depthwise",
        "kernel": 3,
        "expand": 2,
        "stem_stride": 1,
    }


def _image(seed: int) -> str:
    from PIL import Image

    y, x = np.mgrid[0:8, 0:8]
    ring = np.exp(-((np.hypot(x - 3.5, y - 3.2 - 0.2 * seed) - 2.2) ** 2))
    noise = np.random.default_rng(seed).uniform(0, 0.15, (8, 8))
    pixels = np.clip(255 * (ring * (x > seed - 2) + noise), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
