"""Lessons that go token by token, in whole runs over texts: stored, live, resumed, refused."""

import json
import shutil

import pytest
import tiny
import torch
import yaml
from test_text_run import encoder, mails
from torch import nn

import tutelage
from tutelage.errors import RecipeError
from tutelage.pipeline import tokens
from tutelage.pipeline.tokens import token_families
from tutelage.recipe import Recipe

pytest.importorskip("transformers")

STUDENT = {"family": "encoder", "layers": 2, "hidden": 16, "heads": 2, "inner": 16}
LOSSES = {
    "kl": 1, "cross_entropy": 1, "hidden": "auto", "attention_scores": "auto", "relations": "auto",
    "trajectory": "auto",
}  # fmt: skip
RECIPE = {
    "task": "text",
    "data": {"train": "train.jsonl", "test": "test.jsonl", "validation": 0.2},
    "teacher": {"source": "encoder", "fit": "all", "epochs": 10},
    "budget": {"storage": "100 kB"},
    "student": {"spec": STUDENT},
    "distill": {"epochs": 12, "batch": 16, "losses": LOSSES},
    "export": {"precision": "float32"},
    "threads": 1,
}


def run(folder, name, **changes):
    """Run the recipe with changed keys of its parts; the fitted teacher is taken over."""
    recipe = {**RECIPE}
    for part, keys in changes.items():
        recipe[part] = {**RECIPE[part], **keys}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return tiny.cli("run", folder / f"{name}.yaml", "--run", folder / name, "--json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    encoder(folder / "encoder")
    for name, seed in (("train", 0), ("test", 1)):
        lines = [json.dumps(mail) for mail in mails(seed=seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    said = run(folder, "run")
    assert said.status == 0, said.err
    return folder, said


def result(folder, name):
    return json.loads((folder / name / "run.json").read_text())["stages"]["distill"]["result"]


def test_a_student_learns_token_by_token(finished):
    folder, said = finished
    assert said.answer["student"]["value"] > 0.8
    parts = result(folder, "run")["history"]["parts"]
    assert set(parts[0]) == set(LOSSES)
    for name in ("hidden", "relations"):
        assert parts[-1][name] < 0.8 * parts[0][name], name
    # Said beforehand: the two paired taps, two score tables and the last layer, 2 B a number.
    line = next(line for line in said.err.splitlines() if line.startswith("token by token:"))
    length = json.loads((folder / "run/run.json").read_text())["stages"]["data"]["result"]["shape"][
        0
    ]
    size = 2 * 4 + 2 * (2 * 32 + 2 * length * 32 + 2 * length**2 + 3 * length * 32)
    assert f"x {size} B = " in line


def test_what_is_too_large_to_store_is_asked_live(finished, monkeypatch, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    copy = tmp_path / "copy"
    monkeypatch.setattr(tokens, "MOST_BYTES", 1_000)
    before = len(list((copy / "run/signals").iterdir()))
    said = run(copy, "run", distill={"epochs": 2})
    assert said.status == 0, said.err
    assert "the teacher is asked anew in every step" in said.err
    assert len(list((copy / "run/signals").iterdir())) == before
    live = result(copy, "run")["history"]["parts"]
    monkeypatch.undo()
    (copy / "run/checkpoints/student.safetensors").unlink()
    assert run(copy, "run", distill={"epochs": 2, "patience": 9}).status == 0
    stored = result(copy, "run")["history"]["parts"]
    for name in set(LOSSES) - {"trajectory"}:  # nearly 0 here, where rounding to halves shows
        for one, other in zip(live, stored, strict=True):
            assert one[name] == pytest.approx(other[name], rel=0.05), name
    assert live[0]["trajectory"] == pytest.approx(stored[0]["trajectory"], rel=0.2)


def test_a_textconv_is_refused_before_anything_is_trained(finished):
    folder, _ = finished
    said = run(folder, "conv", student={"spec": {"family": "textconv", "embedding": 8}})
    assert said.status == 2 and len(said.errors) == 1
    assert "' goes token by token" in said.errors[0] and "encoder" in said.errors[0]
    assert not (folder / "conv/teacher").exists()


@pytest.mark.parametrize("name", ["hidden", "attention_scores", "relations"])
def test_images_with_a_convolutional_teacher_are_refused(name, tmp_path):
    tiny.write_data(tmp_path / "data.npz", count=90)
    changes = {"teacher": {"fit": True, "epochs": 1, "width": 4}}
    losses = {"distill": {"epochs": 1, "losses": {name: 1}}, "student": {"candidates": 1}}
    tiny.write_recipe(tmp_path, {**changes, **losses})
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert said.status == 2 and len(said.errors) == 1
    assert f"'{name}'" in said.errors[0] and "use features or trajectory" in said.errors[0]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        cut = self.qkv(self.norm(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        said = nn.functional.scaled_dot_product_attention(*cut.unbind(0))
        return x + self.out(said.transpose(1, 2).flatten(2))


class Patches(nn.Module):
    """A vision transformer laid out like timm's: 16 patches of an 8 x 8 image."""

    def __init__(self, width, heads, layers):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, tiny.CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize("name", ["hidden", "attention_scores", "relations"])
def test_transformers_of_images_teach_one_another(name):
    torch.manual_seed(0)
    teacher, student = Patches(16, 4, 3), Patches(8, 2, 2)
    taught = tutelage.distill(
        teacher, student, tiny.images(90), losses={name: 1.0}, epochs=6, threads=1,
        distill={"batch": 16}, augment={"views": 2},
        teacher={"classes": ["0", "1", "2"]},  # untrained, so that its order looks wrong
    )  # fmt: skip
    values = [epoch[name] for epoch in taught.history["parts"]]
    assert values[-1] < 0.9 * values[0]
    assert taught.weights == {name: 1.0}


def test_only_families_with_tokens_are_planned_for():
    def families(*losses):
        given = {"task": "text", "data": {"train": "x"}, "teacher": {"source": "y"}}
        recipe = Recipe.parse({**given, "distill": {"losses": dict.fromkeys(losses, 1)}})
        return token_families(recipe, ("encoder", "textconv"), "text")

    assert families("kl", "features") == ("encoder", "textconv")
    assert families("kl", "relations") == ("encoder",)
    recipe = Recipe.parse({
        "data": {"train": "digits"}, "teacher": {"fit": True},
        "distill": {"losses": {"hidden": 1}},
    })  # fmt: skip
    with pytest.raises(RecipeError, match="no family of students for the task 'vision'"):
        token_families(recipe, ("convnet",), "vision")
