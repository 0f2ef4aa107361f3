"""A whole run over sensor series, and its artifact in a stranger's hands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

RECIPE = {
    "task": "series",
    "data": {"train": "data.npz", "validation": 0.2},
    "teacher": {"fit": True, "epochs": 12, "width": 8},
    "budget": {"storage": "32 kB"},
    "augment": {"views": 2},
    "distill": {"epochs": 12, "batch": 16},
    "threads": 1,
}
FAMILIES = {
    "convnet1d": {"family": "convnet1d", "widths": [4, 8], "depths": [1, 1], "kernel": 5},
    "gru": {"family": "gru", "hidden": 8, "window": 4},
}


def windows(count=180, steps=40, seed=0):
    """Two channels; how fast the first swings tells the class, and some values are missing."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    time = np.arange(steps)
    phase = random.uniform(0, 6, (count, 1))
    swing = np.sin(time * (0.3 + 0.5 * labels[:, None]) + phase)
    values = np.stack([swing, random.normal(5, 1, (count, steps))], 1)
    values[random.random(values.shape) < 0.005] = np.nan
    return values.astype(np.float32), np.array(["slow", "middle", "fast"])[labels]


@pytest.fixture(scope="module", params=list(FAMILIES))
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    values, labels = windows()
    np.savez(folder / "data.npz", x=values, y=labels)
    recipe = {**RECIPE, "student": {"spec": FAMILIES[request.param]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said.answer


def test_a_series_run_ends_with_a_student_that_has_learned(finished):
    folder, answer = finished
    assert answer["task"] == "series"
    assert answer["student"]["value"] > 0.8
    assert {row["metric"] for row in answer["budget"]} >= {"storage_bytes"}
    proof = json.loads((folder / "run/proof.json").read_text())
    names = {f["name"] for f in proof["figures"]["student"]}
    assert {"accuracy_test", "macro_f1_test", "balanced_accuracy_test"} <= names


STRANGER = """
import json, sys
import numpy as np, onnxruntime as ort

assert "torch" not in sys.modules
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
assert (meta["task"], meta["layout"], meta["shape"]) == ("series", "NCT", [2, 40])
mean, std = (np.reshape(meta[key], (-1, 1)) for key in ("mean", "std"))
windows = np.nan_to_num((np.load(sys.argv[2]) - mean) / std).astype(np.float32)
says = [session.run(None, {meta["input"]: w[None]})[0][0].argmax() for w in windows]
print(json.dumps([meta["classes"][i] for i in says]))
"""


def test_its_artifact_decides_with_onnxruntime_and_numpy_alone(finished, tmp_path):
    folder, answer = finished
    values, labels = windows(60, seed=1)
    whole = ~np.isnan(values).any(axis=(1, 2))
    np.save(tmp_path / "new.npy", values[whole])
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, folder / "run" / answer["chosen"], tmp_path / "new.npy"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    right = np.mean(np.array(json.loads(done.stdout)) == labels[whole])
    assert right > 0.7


def test_a_finished_run_is_not_done_again(finished):
    folder, _ = finished
    before = tiny.hashes(folder / "run", "student", "artifacts", "proof.json")
    assert tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run").status == 0
    assert tiny.hashes(folder / "run", "student", "artifacts", "proof.json") == before


def test_a_key_of_another_task_is_refused(tmp_path):
    values, labels = windows()
    np.savez(tmp_path / "data.npz", x=values, y=labels)
    recipe = {**RECIPE, "data": {"train": "data.npz", "image_column": "x"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert said.status == 2
    assert "data.image_column" in said.errors[0]
    assert "series" in said.errors[0]
    assert not Path(tmp_path / "run/student").exists()
