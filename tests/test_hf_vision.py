"""Hugging Face image classifiers from disk: what they say, their preprocessing, taps, refusals."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.errors import TeacherError, TutelageError
from tutelage.teach.hf_vision import HfClassifier, from_vision_folder, read_preprocessing
from tutelage.teach.torch_teacher import TorchTeacher

transformers: Any = pytest.importorskip("transformers")

TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 24, "image_size": 16, "patch_size": 4}  # fmt: skip
MAPS = {"hidden_sizes": [8, 12], "depths": [1, 2]}
# Family, its options, side of its images, how many taps, axes of a tap.
KINDS: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "vit": ("ViT", TOKENS, 16, 2, 2),
    "deit": ("DeiT", TOKENS, 16, 2, 2),
    "swin": ("Swin", {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2,
                      "image_size": 16, "patch_size": 2}, 16, 2, 2),
    "convnext": ("ConvNext", {**MAPS, "num_stages": 2}, 16, 2, 3),
    "resnet": ("ResNet", {**MAPS, "embedding_size": 8, "layer_type": "basic"}, 16, 2, 3),
    "mobilevit": ("MobileViT", {"hidden_sizes": [8, 8, 12], "num_attention_heads": 2,
                                "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 16], "image_size": 32},
                  32, 5, 3),
}  # fmt: skip
GIVEN = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True,
         "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3],
         "size": {"height": 16, "width": 16}}  # fmt: skip


def write(folder: Path, kind: str, given: dict[str, Any] | None = None, **options) -> Path:
    name, config, _, _, _ = KINDS[kind]
    torch.manual_seed(0)
    options = {"num_labels": 3, **config, **options}
    made = getattr(transformers, f"{name}Config")(**options)
    getattr(transformers, f"{name}ForImageClassification")(made).eval().save_pretrained(folder)
    if given is not None:
        preprocessing(folder, given)
    return folder


def preprocessing(folder: Path, given: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("vit") / "vit", "vit", GIVEN)


@pytest.fixture
def copied(vit, tmp_path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refused(what, call, *args, **options):
    with pytest.raises(TutelageError) as caught:
        call(*args, **options)
    assert what in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


# --- what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_what_its_model_says_and_its_taps_are_found(tmp_path, kind):
    _, _, side, taps, axes = KINDS[kind]
    folder = write(tmp_path, kind)
    network = from_vision_folder(folder, 3, (side, side))
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(4, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images).logits, rtol=0, atol=0)
    teacher = TorchTeacher(network, classes=3, image_shape=(3, side, side))
    assert [len(tap.shape) for tap in teacher.taps] == [axes] * taps
    found = teacher.read(images, features=True)
    assert len(found.features) == taps and found.features[0].ndim == 2


def test_the_fingerprint_follows_what_stands_in_config_alone(copied, vit):
    options = {"classes": 3, "image_shape": (3, 16, 16)}
    first = TorchTeacher(from_vision_folder(vit, 3, (16, 16)), **options)
    again = TorchTeacher(from_vision_folder(copied, 3, (16, 16)), **options)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    other = TorchTeacher(from_vision_folder(copied, 3, (16, 16)), **options)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_tokens_have_no_maps(vit):
    teacher = TorchTeacher(from_vision_folder(vit, 3, (16, 16)), classes=3, image_shape=(3, 16, 16))
    with pytest.raises(TeacherError, match="gives 17 x 16 an example: it has no height and width"):
        teacher.read(torch.rand(2, 3, 16, 16), maps=True)


def test_names_that_are_numbers_are_none(vit, tmp_path):
    assert from_vision_folder(vit, 3, (16, 16)).labels == ()
    named = write(tmp_path, "vit", GIVEN, id2label={0: "b", 1: "a", 2: "c"})
    assert from_vision_folder(named, 3, (16, 16)).labels == ("b", "a", "c")


# --- preprocessing ------------------------------------------------------------------------------

PROCESSORS = {
    "vit": ("ViT", {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3]}),
    "sums": ("ViT", {"size": {"height": 16, "width": 16}, "do_rescale": False,
                     "image_mean": [90.0, 100.0, 110.0], "image_std": [50.0, 60.0, 70.0]}),
    "signed": ("ViT", {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5,
                       "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}),
    "plain": ("ViT", {"size": {"height": 16, "width": 16}, "do_normalize": False}),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 16}, "crop_pct": 1.0}),
    "deit": ("DeiT", {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16},
                      "image_mean": [0.485, 0.456, 0.406]}),
    "bit": ("Bit", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
    "mobilevit": ("MobileViT", {"size": {"shortest_edge": 16},
                                "crop_size": {"height": 16, "width": 16}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_inputs_are_what_the_processor_of_transformers_makes(tmp_path, caplog, kind):
    name, options = PROCESSORS[kind]
    transformers.utils.logging.set_verbosity_error()
    processor = getattr(transformers, f"{name}ImageProcessor")(**options)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    want = processor(images=[pixels], return_tensors="pt", input_data_format="channels_last")
    found = read_preprocessing(tmp_path)
    assert found is not None and found.size == (16, 16)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (found.mean, found.std))
    mine = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    mine = mine.flip(0) if found.bgr else mine
    torch.testing.assert_close(mine, want["pixel_values"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"size": 24}, (24, 24)),
        ({"size": {"shortest_edge": 20}}, (20, 20)),
        ({"size": {"height": 8, "width": 12}}, (8, 12)),
        ({"crop_size": 18}, (18, 18)),
        ({"crop_size": {"height": 18, "width": 20}, "do_center_crop": False}, (16, 16)),
        ({"do_resize": False}, None),
    ],
)
def test_the_size_is_that_of_the_last_step(tmp_path, changes, size):
    found = read_preprocessing(preprocessing(tmp_path, {**GIVEN, **changes}))
    assert found is not None and found.size == size


def test_equal_channels_are_one_value_and_bgr_turns_them(vit, tmp_path):
    given = {**GIVEN, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    found = read_preprocessing(preprocessing(tmp_path, given))
    assert found is not None and (found.mean, found.std) == ((0.5,), (0.5,))
    turned = read_preprocessing(preprocessing(tmp_path, {**GIVEN, "do_flip_channel_order": True}))
    network = from_vision_folder(vit, 3, (16, 16))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        other = HfClassifier(network.body, turned)(images)
        torch.testing.assert_close(other, network(images[:, [2, 1, 0]]))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([1], "it holds no keys"),
        ({**GIVEN, "image_std": [0.2, 0.0, 0.2]}, "image_std holds 0.0"),
        ({**GIVEN, "image_mean": ["a"]}, "image_mean holds 'a'"),
        ({**GIVEN, "image_mean": None}, "image_mean holds None"),
        ({**GIVEN, "rescale_factor": -1}, "rescale_factor is -1"),
        ({**GIVEN, "size": {"longest_edge": 3}}, "names the size"),
        ({**GIVEN, "include_top": True}, "a way of its own (include_top)"),
    ],
)
def test_unusable_preprocessing_is_one_line(tmp_path, given, what):
    refused(what, read_preprocessing, preprocessing(tmp_path, given))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": ["ViTModel"]}, "is a 'ViTModel', and no classifier of images"),
        ({"architectures": None}, "without a head, and no classifier"),
        ({"problem_type": "regression"}, "was made for regression"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "pass --trust-code"),
        ({"model_type": "bert"}, "cannot be loaded"),
        ({"hidden_size": 24}, "do not fit its config.json"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "cannot be loaded: KeyError"),
    ],
)
def test_a_folder_that_is_no_such_classifier_is_one_line(copied, changes, what):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **changes}))
    refused(what, from_vision_folder, copied, 3, (16, 16))


def test_other_sizes_and_classes_are_refused_by_name(vit, copied):
    refused("decides among 3 classes and the data has 4", from_vision_folder, vit, 4, (16, 16))
    refused("Resize them: data.size: [16, 16]", from_vision_folder, vit, 3, (28, 28))
    (copied / "preprocessor_config.json").unlink()  # the config knows the size as well
    refused("Resize them: data.size: [16, 16]", from_vision_folder, copied, 3, (28, 28))


def test_missing_and_pickled_weights_are_refused(copied):
    weights = copied / "model.safetensors"
    weights.rename(copied / "pytorch_model.bin")
    refused("which is pickle", from_vision_folder, copied, 3, (16, 16))
    (copied / "pytorch_model.bin").unlink()
    refused("has no model.safetensors", from_vision_folder, copied, 3, (16, 16))
