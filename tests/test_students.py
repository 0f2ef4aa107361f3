"""A student is JSON and safetensors: rebuilt bit for bit, refused by name, without pickle."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tutelage.errors import CorruptFileError, RecipeError, StudentError, TutelageError
from tutelage.students.branches import Branch, Branches
from tutelage.students.families.convnet import STRUCTURES, ConvNetSpec, stem_stride
from tutelage.students.spec import FAMILIES, StudentSpec, load, save
from tutelage.students.taps import find_taps

SMALL = {"family": "convnet", "image": [1, 8, 8], "classes": 3, "widths": [4, 6], "depths": [1, 2]}


def spec(**changes) -> StudentSpec:
    return StudentSpec.from_json({**SMALL, **changes})


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(3)
    network = spec().build()
    network(torch.randn(4, 1, 8, 8))  # moves the running statistics off their defaults
    save(tmp_path, spec(), network, note={"why": "test"})
    return tmp_path, network


@pytest.mark.parametrize("changes", [{}, {"block": "depthwise", "expand": 3}, {"kernel": 5}])
def test_a_spec_comes_back_from_json(changes):
    made = spec(**changes)
    again = StudentSpec.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made and again.build().state_dict().keys() == made.build().state_dict().keys()


WRONG = [
    ({"width": [4]}, "no knob 'width'. Did you mean 'widths'?"),
    ({"zzz": 1}, "no knob 'zzz'. Known: block, classes,"),
    ({"family": "convnets"}, "unknown student family 'convnets'. Did you mean 'convnet'?"),
    ({"block": "depthwize"}, "block is 'depthwize'"),
    ({"kernel": 4}, "kernel is 4; it must be odd"),
    ({"kernel": 3.0}, "kernel holds 3.0"),
    ({"classes": "ten"}, "classes holds 'ten'"),
    ({"classes": True}, "classes holds True"),
    ({"classes": 0}, "classes holds 0; it goes from 1"),
    ({"widths": 8}, "widths cannot be 8"),
    ({"widths": [4, -1]}, "widths holds -1; it goes from 1"),
    ({"widths": [4, 10**9]}, "widths holds 1000000000; it goes from 1 to"),
    ({"depths": [1, 10**9]}, "depths holds 1000000000; it goes from 1 to"),
    ({"widths": [4]}, "one number for each stage"),
    ({"widths": [], "depths": []}, "one number for each stage"),
    ({"image": [8, 8]}, "image is [channels, height, width]"),
    ({"image": [1, 0, 8]}, "image holds 0"),
    ({"expand": 0}, "expand holds 0"),
    ({"image": None}, "image cannot be None"),
    ({"widths": {"a": 1}}, "widths cannot be {'a': 1}"),
]


@pytest.mark.parametrize(("changes", "what"), WRONG)
def test_a_wrong_knob_is_refused(changes, what):
    with pytest.raises(RecipeError) as caught:
        spec(**changes)
    assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [{}, {"image": [1, 8, 8]}, [], "convnet", None])
def test_a_spec_needs_a_family(data):
    with pytest.raises(RecipeError, match="needs the key 'family'"):
        StudentSpec.from_json(data)


def test_a_missing_knob_is_named():
    with pytest.raises(RecipeError, match="'classes'"):
        StudentSpec.from_json({k: v for k, v in SMALL.items() if k != "classes"})


def test_knobs_that_clash_are_a_student_error(monkeypatch):
    def build(knobs):
        raise RuntimeError("sizes clash")

    family = dataclasses.replace(FAMILIES["convnet"], build=build)
    monkeypatch.setitem(FAMILIES._entries, "convnet", family)
    with pytest.raises(StudentError, match="'convnet' cannot be built: sizes clash"):
        spec().build()


def test_save_and_load_are_bitwise_the_same(folder):
    path, network = folder
    again = load(str(path))
    assert not again.training
    mine, theirs = network.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(network.eval()(images), again(images))
    assert json.loads((path / "spec.json").read_text())["note"] == {"why": "test"}


def test_nothing_that_is_saved_is_a_pickle(folder):
    path, _ = folder
    assert {p.name for p in path.iterdir()} == {"spec.json", "model.safetensors"}
    weights = (path / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert header.keys() - {"__metadata__"}
    assert weights[:2] != b"PK" and not weights.startswith(b"\x80")  # neither zip nor pickle


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    path, _ = folder
    (path / name).unlink()
    with pytest.raises(StudentError, match=name):
        load(path)


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"\x00" * 40, "half"])
def test_a_damaged_file_is_told_in_one_line(folder, name, damage):
    path, _ = folder
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with pytest.raises(CorruptFileError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"widths": [4, 8]}, {"depths": [1, 1]}, {"classes": 4}])
def test_weights_of_another_spec_are_told(folder, change):
    path, _ = folder
    (path / "spec.json").write_text(json.dumps({**SMALL, **change}))
    with pytest.raises(CorruptFileError, match="weights do not fit") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_hostile_spec_runs_nothing(folder):
    path, _ = folder
    for family in ("os.system", "__import__", "", "own"):
        (path / "spec.json").write_text(json.dumps({**SMALL, "family": family}))
        with pytest.raises(TutelageError, match="unknown student family"):
            load(path)


SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (2, 5, 9), (3, 32, 32), (4, 17, 40), (3, 96, 96)]


def family_specs(image):
    """Return specs of every family for one image shape."""
    stride = stem_stride(*image[1:])
    for structure in STRUCTURES:
        for stages in (1, 2, 3):
            yield ConvNetSpec(
                image=image, classes=5, widths=(4, 6, 8)[:stages],
                depths=(structure.depth,) * stages, block=structure.block,
                expand=structure.expand, stem_stride=stride,
            )  # fmt: skip


@pytest.mark.parametrize("image", SHAPES, ids=str)
def test_every_family_builds_for_any_image_and_its_taps_exist(image):
    for knobs in family_specs(image):
        network = StudentSpec(family="convnet", knobs=knobs).build().eval()
        images = torch.randn(2, *image)
        with torch.no_grad():
            logits = network(images)
        assert logits.shape == (2, 5) and logits.isfinite().all()
        known = dict(network.named_modules())
        assert set(knobs.taps) <= known.keys() and len(knobs.taps) == len(knobs.widths)
        if len(knobs.widths) > 1:
            assert tuple(tap.path for tap in find_taps(network, images)) == knobs.taps
        loss = network.train()(images).sum()
        loss.backward()
        assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (48, 1), (49, 2), (96, 2), (97, 4), (500, 4)])
def test_the_stem_brings_images_near_32(side, stride):
    assert stem_stride(side, 8) == stride == stem_stride(8, side)


@pytest.mark.parametrize(
    "shape", [(6, 4, 4), (3, 1, 1), (8, 7, 7), (5, 30, 9), (64, 2, 3), (7, 12), (9,)], ids=str
)
def test_a_branch_turns_any_tap_into_logits(shape):
    torch.manual_seed(0)
    branch = Branch(shape, 4)
    output = torch.randn(3, *shape, requires_grad=True)
    kept = output.detach().clone()
    logits = branch(output)
    assert logits.shape == (3, 4)
    logits.square().sum().backward()
    assert output.grad is not None and output.grad.abs().sum() > 0
    assert all(p.grad is not None for p in branch.parameters())
    assert torch.equal(output.detach(), kept)  # other taps read it too


def test_branches_keep_the_order_and_leave_out_taps_without_a_lesson():
    branches = Branches([(4, 5, 5), None, (6,)], 3)
    out = branches([torch.randn(2, 4, 5, 5), torch.randn(2, 9), torch.randn(2, 6)])
    assert [tuple(o.shape) for o in out] == [(2, 3), (0,), (2, 3)]
    assert not any(name.startswith("branches.1.") for name, _ in branches.named_parameters())
    with pytest.raises(ValueError, match="argument"):
        branches([torch.randn(2, 4, 5, 5)])
