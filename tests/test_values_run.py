"""A whole run over series whose label is a value, and its artifact in a stranger's hands."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
import yaml

RECIPE = {
    "task": "series",
    "data": {"train": "data.npz", "validation": 0.2, "target": "values"},
    "teacher": {"fit": True, "epochs": 16, "width": 8},
    "budget": {"storage": "32 kB"},
    "augment": {"views": 2},
    "student": {"spec": {"family": "convnet1d", "widths": [8, 16], "depths": [1, 1], "kernel": 5}},
    "distill": {"epochs": 16, "batch": 16, "losses": {"squared_error": 1, "value_error": 1}},
    "threads": 1,
}


def wear(count=200, steps=40, seed=0):
    """Return vibrations that grow with wear, and the hours that are left: 1000 to 3000."""
    random = np.random.default_rng(seed)
    share = random.random(count)
    swing = np.sin(np.arange(steps) * 0.9 + random.uniform(0, 6, (count, 1)))
    values = (1 + 3 * share[:, None]) * swing + random.normal(0, 0.1, (count, steps))
    return values[:, None].astype(np.float32), 3000 - 2000 * share


def write(folder, changes=None):
    values, hours = wear()
    np.savez(folder / "data.npz", x=values, y=hours)
    recipe = {**RECIPE, **(changes or {})}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wear")
    losses = {"squared_error": 1, "value_error": 1, "value_trajectory": "auto"}
    recipe = write(folder, {"distill": {**RECIPE["distill"], "losses": losses}})
    said = tiny.cli("run", recipe, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said.answer


def proof_of(folder):
    return json.loads((folder / "run/proof.json").read_text())


def test_a_run_ends_with_a_student_that_has_learned_the_values(finished):
    folder, answer = finished
    for who in ("teacher", "student"):
        assert answer[who]["metric"] == "r2"
        assert answer[who]["value"] > 0.7
        low, high = answer[who]["spread"]
        assert low <= answer[who]["value"] <= high
        assert 0 < answer[who]["mae"] < 400  # hours: the labels spread over 2000
    names = [f["name"] for f in proof_of(folder)["figures"]["student"]]
    wanted = [
        f"{name}_{split}" for split in ("validation", "test") for name in ("r2", "mae", "rmse")
    ]
    assert names[:6] == wanted
    assert not any(name.startswith(("accuracy", "macro")) for name in names)


def test_the_proof_is_in_the_users_unit_and_has_nothing_of_classes(finished):
    folder, answer = finished
    proof = proof_of(folder)
    assert proof["decides"] == "values"
    figures = {f["name"]: f for f in proof["fidelity"]}
    assert set(figures) == {"difference", "r2_to_teacher", "kept"}
    kept = answer["student"]["value"] / answer["teacher"]["value"]
    assert figures["kept"]["value"] == pytest.approx(kept)
    assert not {"classes", "reliability"} & set(proof)
    assert all(500 < point["label"] < 3500 for point in proof["points"])
    apart = [abs(d["student"] - d["teacher"]) for d in proof["differences"]]
    assert apart == sorted(apart, reverse=True) and len(apart) == 12
    assert figures["difference"]["value"] <= apart[0] < 2000
    assert all(row.keys() == {"artifact", "n", "largest_error"} for row in proof["parity"])


def test_lenses_of_values_are_fitted_and_the_report_speaks_of_values(finished):
    folder, _ = finished
    run = json.loads((folder / "run/run.json").read_text())
    lenses = run["stages"]["teacher"]["result"]["lenses"]
    assert len(lenses) > 1 and lenses[-1]["agreement"] > 0.9
    page = (folder / "run/report.html").read_text()
    shown = page.partition("</style>")[2].partition('id="provenance"')[0]
    assert "of the teacher’s R² on the test split" in shown
    assert "one value: mean" in shown
    assert "Values against labels" in shown
    assert 'meta["target"]["std"]' in shown.replace("&#34;", '"')
    for word in ("accuracy", "Accuracy", "classes", "Same decision", " sure", "Calibration"):
        assert word not in shown


STRANGER = """
import json, sys
import numpy as np, onnxruntime as ort

assert "torch" not in sys.modules
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
mean, std = (np.reshape(meta[key], (-1, 1)) for key in ("mean", "std"))
windows = np.nan_to_num((np.load(sys.argv[2]) - mean) / std).astype(np.float32)
said = [session.run(None, {meta["input"]: w[None]})[0] for w in windows]
target = meta["target"]
print(json.dumps([float(o[0, 0]) * target["std"] + target["mean"] for o in said]))
"""


def test_its_artifact_says_values_with_onnxruntime_and_numpy_alone(finished, tmp_path):
    folder, answer = finished
    values, hours = wear(60, seed=1)
    np.save(tmp_path / "new.npy", values)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, folder / "run" / answer["chosen"], tmp_path / "new.npy"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = np.array(json.loads(done.stdout))
    assert np.abs(said - hours).mean() < 0.5 * np.abs(hours - hours.mean()).mean()


def test_a_finished_run_is_not_done_again(finished):
    folder, _ = finished
    before = tiny.hashes(folder / "run", "student", "artifacts", "proof.json")
    said = tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run")
    assert said.status == 0
    assert "test R2: student 0." in said.out and "mean absolute error" in said.out
    assert tiny.hashes(folder / "run", "student", "artifacts", "proof.json") == before


def test_a_teacher_of_an_earlier_run_answers_in_its_own_unit(finished):
    """Its network speaks in spreads of its training labels; spec.json says which."""
    from tutelage.pipeline.material import read_material
    from tutelage.pipeline.teaching import open_teacher
    from tutelage.recipe import Recipe

    folder, _ = finished
    given = {**RECIPE, "teacher": {"source": str(folder / "run/teacher")}}
    data = {**RECIPE["data"], "train": str(folder / "data.npz"), "validation": 0.4}
    recipe = Recipe.parse({**given, "data": data})  # other training labels, so another spread
    material = read_material(recipe)
    batch = material.test.batch(torch.arange(20), 0)
    teacher = open_teacher(recipe, material, trust_code=False)
    wanted = material.said(batch.labels[:, None].numpy())
    said = material.said(teacher.read(batch.inputs).decision.numpy())
    assert np.abs(said - wanted).mean() < 150


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distill": {"losses": {"dist": 1}}}, "loss 'dist' is for classes, and the data's labels "
         "are values; use some of squared_error, value_error, value_trajectory"),
        ({"budget": {"accuracy": 0.9}}, "budget.accuracy: the labels of"),
        ({"teacher": {"fit": True, "classes": ["a"]}}, "teacher.classes: the labels of"),
        ({"data": {"train": "data.npz"}}, "write data.target: values"),
        ({"data": {"train": "data.npz", "target": "value"}}, "target"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_for_values_is_refused(changes, says, tmp_path):
    said = tiny.cli("run", write(tmp_path, changes), "--run", tmp_path / "run")
    assert said.status == 2
    assert len(said.errors) == 1 and says in said.errors[0]


def test_losses_of_values_are_refused_for_classes(tmp_path):
    tiny.write_data(tmp_path / "data.npz")
    recipe = tiny.write_recipe(tmp_path, {"distill": {"losses": {"value_error": 1}}})
    said = tiny.cli("run", recipe, "--run", tmp_path / "run")
    assert said.status == 2
    assert "loss 'value_error' is for values, and the data's labels are classes" in said.errors[0]
    assert "dist" in said.errors[0] and "squared_error" not in said.errors[0]


def test_init_and_plan_of_values(tmp_path):
    write(tmp_path)
    out = tmp_path / "first.yaml"
    given = ("init", "fit", tmp_path / "data.npz", "--task", "series", "--out", out)
    assert "write data.target: values" in tiny.cli(*given).errors[0]
    assert tiny.cli(*given, "--target", "values").status == 0
    text = out.read_text()
    assert "one value each: mean" in text and "accuracy" not in text and "dist:" not in text
    written = yaml.safe_load(text)
    assert written["data"]["target"] == "values"
    assert written["distill"]["losses"] == {"squared_error": 1.0, "value_error": 1.0}
    planned = tiny.cli("plan", out, "--json")
    assert planned.status == 0 and planned.answer["status"] == "feasible"
