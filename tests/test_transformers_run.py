"""Whole runs: a vision transformer teaches a convnet, and a convnet teaches a transformer."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from tutelage.errors import TeacherError
from tutelage.pipeline.class_order import order_by_name

NAMES = ("low", "middle", "top")
TURNED = (2, 0, 1)  # the transformer's class 0 is the data's class 2, and so on


def write_data(folder: Path) -> Path:
    pixels, labels = tiny.images()
    np.savez(folder / "data.npz", x=pixels, y=np.array(NAMES)[labels])
    return folder


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Path:
    """A tiny ViT, fitted here to images in [-1, 1]; its classes stand in another order."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("transformer")
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=48, num_labels=3, initializer_range=0.1,
            id2label={i: NAMES[name] for i, name in enumerate(TURNED)},
        )
    )  # fmt: skip
    pixels, labels = tiny.images(seed=1)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    y = torch.tensor([TURNED.index(label) for label in labels])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(40):
        batch = torch.arange(50 * step, 50 * step + 50) % len(x)
        optimizer.zero_grad()
        cross_entropy(network(x[batch]).logits, y[batch]).backward()
        optimizer.step()
    network.eval().save_pretrained(folder)
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                 "do_resize": True, "size": {"height": 8, "width": 8}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def run(folder: Path, source: Path, **changes) -> tuple[tiny.Said, Path]:
    recipe = tiny.write_recipe(folder, {"teacher": {"source": str(source)}, **changes})
    return tiny.cli("run", recipe, "--run", folder / "run", "--json"), folder / "run"


def stage(run: Path, name: str) -> dict:
    return json.loads((run / "run.json").read_text())["stages"][name]["result"]


def test_a_transformer_teaches_a_convnet(tmp_path, transformer, quick):
    distill = {"epochs": 8, "batch": 32, "losses": {"dist": 1.0, "trajectory": 0.5}}
    said, made = run(write_data(tmp_path), transformer, distill=distill)
    assert said.status == 0, said.err
    assert said.answer["teacher"]["value"] > 0.9 and said.answer["student"]["value"] > 0.9
    teacher = stage(made, "teacher")
    assert teacher["taps"] == ["body.vit.layers.0", "body.vit.layers.1"]
    assert any("its own mean [0.5]" in note for note in teacher["notes"])
    assert any("rearranged to the data's order" in note for note in teacher["notes"])
    pairs = stage(made, "distill")["pairing"]["pairs"]
    assert pairs and stage(made, "distill")["spec"]["family"] == "convnet"


def test_a_convnet_teaches_a_transformer_and_its_file_is_proven(job, tmp_path):
    spec = {"family": "vit", "patch": 2, "layers": 2, "hidden": 16, "heads": 2, "inner": 32}
    losses = {"dist": 1.0, "trajectory": 0.5}
    recipe = job(
        {
            "student": {"spec": spec},
            "distill": {"epochs": 12, "batch": 32, "losses": losses},
            "export": {"precision": "int8"},
        }
    )
    said = tiny.cli("run", recipe, "--run", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    assert said.answer["student"]["value"] > 0.9 and said.answer["chosen"].endswith("int8.onnx")
    spec = stage(tmp_path / "run", "distill")["spec"]
    assert spec["family"] == "vit" and spec["image"] == [1, 8, 8] and spec["classes"] == 3
    proof = json.loads((tmp_path / "run/proof.json").read_text())
    figures = {f["name"]: f["value"] for f in proof["figures"]["student"]}
    # By hand: 16 tokens of 16, two layers; the stem's two convolutions; the head.
    layer = 16 * 16 * (3 * 16 + 16 + 2 * 32) + 2 * 16 * 16 * 16
    assert figures["macs"] == 2 * layer + 4 * 4 * 16 * 9 + 16 * 16 * 16 + 16 * 3
    assert figures["storage_bytes"] < 100_000


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data": {"train": "data.npz", "size": [16, 16]}}, "data.size: [8, 8]"),
        ({"distill": {"losses": {"dist": 1, "attention": 1}}}, "no height and width"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, transformer, changes, what):
    said, _ = run(write_data(tmp_path), transformer, **changes)
    assert said.status == 2 and len(said.errors) == 1 and what in said.errors[0], said.err


@pytest.mark.parametrize("fit", ["head", "all"])
def test_a_new_head_is_for_texts(tmp_path, transformer, fit):
    recipe = {"teacher": {"source": str(transformer), "fit": fit}}
    path = tiny.write_recipe(write_data(tmp_path), recipe)
    said = tiny.cli("run", path, "--run", tmp_path / "run")
    assert said.status == 2 and len(said.errors) == 1
    assert f"teacher.fit: {fit} is for encoders of texts" in said.errors[0]


def test_a_folder_that_does_not_say_how_it_normalises_is_asked(tmp_path, transformer, quick):
    import shutil

    bare = Path(shutil.copytree(transformer, tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    said, _ = run(write_data(tmp_path), bare)
    assert said.status == 2 and "say teacher.mean and teacher.std" in said.errors[0]
    given = {"source": str(bare), "mean": [0.5], "std": [0.5]}
    recipe = tiny.write_recipe(tmp_path, {"teacher": given, "distill": {"epochs": 1}})
    assert tiny.cli("plan", recipe).status == 0


def test_grey_images_meet_a_normalisation_of_three_channels(tmp_path):
    """Against the same by hand: repeat the grey channel, then normalise each copy its own way."""
    transformers = pytest.importorskip("transformers")
    from tutelage.pipeline.material import read_material
    from tutelage.pipeline.teaching import open_teacher
    from tutelage.recipe import Recipe

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "resnet")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = {"do_normalize": True, "image_mean": mean, "image_std": std, "size": 8}
    (tmp_path / "resnet/preprocessor_config.json").write_text(json.dumps(processor))
    tiny.write_data(tmp_path / "data.npz")
    recipe = Recipe.parse(
        {
            "data": {"train": str(tmp_path / "data.npz")},
            "teacher": {
                "source": str(tmp_path / "resnet"), "channels": "repeat", "precision": "float32",
            },
        }
    )  # fmt: skip
    material = read_material(recipe)
    teacher = open_teacher(recipe, material, trust_code=False)
    index = torch.arange(5)
    got = teacher.read(material.validation.batch(index, 0).inputs).decision
    pixels = torch.from_numpy(material.data.validation.pixels[:5]).permute(0, 3, 1, 2) / 255
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))
    with torch.no_grad():
        want = network((pixels.repeat(1, 3, 1, 1) - shift) / scale).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("named", "order"),
    [
        (("top", "low", "middle"), [1, 2, 0]),
        (NAMES, None),
        ((), None),
        (("cat", "dog", "horse"), None),
    ],
)
def test_names_tell_the_order(named, order):
    assert order_by_name(named, NAMES) == order


@pytest.mark.parametrize("named", [("top", "low", "mid"), ("low", "low", "middle")])
def test_names_of_which_some_are_known_are_asked_for(named):
    with pytest.raises(TeacherError, match=r"its order|their order is not known.*teacher\.classes"):
        order_by_name(named, NAMES)
