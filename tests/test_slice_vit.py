"""Vision transformers with fewer layers, heads and units: what stays is the network's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_vit import images, network_of, said
from torch import nn
from torch.nn import functional as F

from tutelage.errors import RecipeError
from tutelage.export.artifact import ArtifactMeta, OnnxModel, load_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import parity
from tutelage.export.quantize import quantize_int8
from tutelage.files import read_tensors
from tutelage.pipeline.inheriting import own_network
from tutelage.students.slices.layers import narrower, shallower
from tutelage.students.slices.vit import SLICING, is_part, slice_vit
from tutelage.students.spec import StudentSpec, load, save, sliced_from
from tutelage.teach.hf_vision import HfClassifier, Preprocessing
from tutelage.teach.torch_teacher import Renormalised, Reordered, TorchTeacher
from tutelage.teach.vits import as_vit

PATCH = {"stem": "patch", "patch": 7, "eps": 1e-6}
KINDS = [{}, {**PATCH, "pool": "class"}, {**PATCH, "pool": "mean_first"}, {"pool": "class"}]
HALF = {"layers": 2, "hidden": 32, "heads": 2, "inner": 20}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_of_its_spec_and_holds_the_networks_numbers(kind, tmp_path):
    whole, x = network_of(**kind), images(40)
    torch.testing.assert_close(said(slice_vit(whole, whole.spec, x), x), said(whole, x))
    spec = dataclasses.replace(whole.spec, **HALF)
    assert is_part(spec, whole.spec)
    small = slice_vit(whole, spec, x)
    known = {float(x) for parameter in whole.parameters() for x in parameter.detach().flatten()}
    assert all(float(x) in known for p in small.parameters() for x in p.detach().flatten())
    made = StudentSpec(family="vit", knobs=spec)
    save(tmp_path, StudentSpec.from_json(json.loads(json.dumps(made.to_json()))), small)
    assert torch.equal(said(load(tmp_path), x), said(small, x))
    fitted, own = said(sliced_from(whole, made, x), x), said(whole, x)
    assert (fitted - own).square().mean() < 0.8 * (said(small, x) - own).square().mean()


def test_what_says_nothing_goes_first():
    whole, x = network_of(), images(40)
    with torch.no_grad():
        whole.stem[3].weight[:, [*range(4), *range(12, 16)]] = 0.0  # channels that nobody reads
        for stage in whole.stages:
            stage.out.weight[:, 16:32] = 0.0  # head 1
            stage.mlp[2].weight[:, 10:] = 0.0
    units = slice_vit(whole, dataclasses.replace(whole.spec, inner=10), x)
    torch.testing.assert_close(said(units, x), said(whole, x))
    small = slice_vit(whole, dataclasses.replace(whole.spec, hidden=32, heads=2), x)
    assert torch.equal(small.stem[0].weight, whole.stem[0].weight[[*range(4, 12), *range(16, 24)]])
    for to, of in zip(small.stages, whole.stages, strict=True):
        assert torch.equal(to.qkv.bias, of.qkv.bias[[*range(48), *range(96, 144)]])


def test_numbers_of_the_stream_that_are_always_zero_go_first():
    whole, x = network_of(**KINDS[1]), images(40)
    gone = torch.arange(0, 48, 3)
    with torch.no_grad():
        for stage in whole.stages:
            for linear in (stage.out, stage.mlp[2]):
                linear.weight[gone] = 0.0
                linear.bias[gone] = 0.0
        whole.stem[0].weight[gone] = 0.0
        whole.stem[0].bias[gone] = 0.0
        whole.positions[:, gone] = 0.0
    small = slice_vit(whole, dataclasses.replace(whole.spec, hidden=32, heads=2), x)
    stay = [i for i in range(48) if i % 3]
    assert torch.equal(small.positions, whole.positions[:, stay])
    assert torch.equal(small.head.weight, whole.head.weight[:, stay])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, True),
        (HALF, True),
        ({"hidden": 32, "heads": 4}, False),  # heads of another size
        ({"layers": 4}, False),
        ({"inner": 97}, False),
        ({"classes": 4}, False),
        ({"patch": 2}, False),
        ({"pool": "mean_first"}, False),
        ({"stem": "patch"}, False),
    ],
)
def test_what_is_part_of_what(changes, part):
    whole = network_of().spec
    assert is_part(dataclasses.replace(whole, **changes), whole) is part


def test_narrower_and_shallower_specs_are_parts():
    whole = network_of().spec
    steps = SLICING.steps(whole)
    found = [narrower(spec, n / steps) for spec in shallower(whole) for n in range(1, steps + 1)]
    assert all(is_part(spec, whole) for spec in found)
    assert whole in found and len({spec.layers for spec in found}) == 3


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stem": "patch", "patch": 8}, "do not fill 28 x 28"),
        ({"pool": "max"}, "it is mean or mean_first or class"),
        ({"eps": 1}, "eps is 1"),
    ],
)
def test_a_wrong_knob_is_refused(changes, what):
    with pytest.raises(RecipeError, match=what):
        network_of(**changes)


def test_a_network_with_patches_and_a_class_token_is_exported(tmp_path):
    network, x = network_of(**KINDS[1]), images(32)
    meta = ArtifactMeta(
        task="vision", classes=tuple("abcdefghij"), shape=(1, 28, 28), mean=(0.5,), std=(0.5,),
        version="0",
    )  # fmt: skip
    path = export_onnx(network, x.shape[1:], tmp_path / "m.onnx", meta=meta)
    found = parity(path, said(network, x).numpy(), x.numpy())
    assert found.largest_error < 1e-5 and found.agreement == 1.0
    operators = {node.op_type for node in load_onnx(path).graph.node}
    assert not operators & {"Shape", "If", "Loop", "Where", "Expand", "Slice"}
    # By hand, 17 tokens of 48: a layer is qkv, out, mlp and twice scores (all heads together).
    layer = 17 * 48 * (3 * 48 + 48 + 2 * 96) + 2 * 17 * 17 * 48
    small = quantize_int8(path, tmp_path / "int8.onnx", x.numpy())
    for file in (path, small):
        assert graph_costs(file).macs == 3 * layer + 16 * 48 * 49 + 48 * 10
    assert small.stat().st_size < path.stat().st_size / 3
    want, got = (OnnxModel(file.read_bytes()).run(x.numpy()) for file in (path, small))
    assert abs(want - got).max() < 0.1 * abs(want).max()


# --- networks that others made ------------------------------------------------------------------


def shaken(network: nn.Module) -> nn.Module:
    """Return it with weights that all say something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def hf(kind: str = "ViT", **options: Any) -> HfClassifier:
    transformers: Any = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        num_labels=3, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, image_size=16, patch_size=4, **options,
    )  # fmt: skip
    body = shaken(getattr(transformers, f"{kind}ForImageClassification")(config))
    turned = Preprocessing(mean=(0.5,), std=(0.5,), size=None, bgr=True)
    return HfClassifier(body, turned).eval()


def test_a_classifier_of_transformers_is_a_network_of_our_own():
    teacher, x = hf(), images(6, (3, 16, 16))
    network = as_vit(teacher, (16, 16))
    assert network is not None and network.spec.pool == "class" and network.spec.eps == 1e-12
    torch.testing.assert_close(said(network, x), said(teacher, x), rtol=0, atol=1e-5)
    half = dataclasses.replace(network.spec, layers=1, hidden=8, heads=1, inner=10)
    assert is_part(half, network.spec)
    assert said(slice_vit(network, half, x), x).shape == (6, 3)


@pytest.mark.parametrize("grey", [False, True])
def test_the_datas_pixels_and_classes_are_the_teachers(grey):
    shape = (1 if grey else 3, 16, 16)
    channels = "repeat" if grey else "keep"
    asked = TorchTeacher(hf(), classes=3, image_shape=shape, channels=channels)
    own = SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    if grey:
        own = SimpleNamespace(mean=(0.1,) * 3, std=(0.5,) * 3)
    teacher = Reordered(Renormalised(asked, own, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), (2, 0, 1))
    x = images(6, shape)
    found = own_network(teacher, shape)
    assert found is not None and found[1].knobs.image == shape
    torch.testing.assert_close(said(found[0], x), teacher.read(x).decision, rtol=0, atol=1e-5)


def test_a_padded_stem_cannot_take_over_another_normalisation():
    asked = TorchTeacher(network_of(), classes=10, image_shape=(1, 28, 28))
    assert own_network(asked, (1, 28, 28)) is not None
    own = SimpleNamespace(mean=(0.1,), std=(0.5,))
    assert own_network(Renormalised(asked, own, (0.2,), (0.5,)), (1, 28, 28)) is None


def test_another_transformer_is_none():
    assert as_vit(hf("DeiT"), (16, 16)) is None  # a distillation token
    assert as_vit(hf(hidden_act="gelu_new"), (16, 16)) is None


TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "num_classes": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "pool"),
    [
        ({}, "class"),
        ({"global_pool": "avg", "class_token": False}, "mean_first"),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "mean"),
        ({"no_embed_class": True, "init_values": 0.1, "qkv_bias": False}, "class"),
        ({"reg_tokens": 2}, None),
        ({"qk_norm": True}, None),
        ({"global_pool": "avg"}, None),  # over all tokens but the class token
    ],
)
def test_a_network_of_timm_is_one_of_our_own_where_it_is_plain(options, pool):
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    teacher, x = shaken(VisionTransformer(**TIMM, **options)), images(6, (3, 16, 16))
    network = as_vit(teacher, (16, 16))
    assert (None if network is None else network.spec.pool) == pool
    if network is not None:
        torch.testing.assert_close(said(network, x), said(teacher, x), rtol=0, atol=1e-5)


# --- a whole run --------------------------------------------------------------------------------


def test_slices_of_a_vision_transformer_ship(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data.npz")
    spec = StudentSpec.from_json(
        {"family": "vit", "image": [1, 8, 8], "classes": 3, "layers": 2, "hidden": 16, "heads": 2,
         "inner": 32}
    )  # fmt: skip
    torch.manual_seed(0)
    network = spec.build()
    x, y = (torch.from_numpy(part) for part in tiny.images())
    x = (x.permute(0, 3, 1, 2).float() - x.float().mean()) / x.float().std()
    steps = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(20):
        steps.zero_grad()
        F.cross_entropy(network(x), y).backward()
        steps.step()
    save(tmp_path / "teacher", spec, network)
    recipe = tiny.write_recipe(
        tmp_path,
        {
            "teacher": {"source": str(tmp_path / "teacher")},
            "student": {"space": "sliced", "candidates": 2},
            "budget": {"storage": "14 kB"},
            "distill": {"epochs": 1, "batch": 32, "rate": 1e-6},  # next to no lesson
            "export": {"precision": "float32"},
        },
    )
    run = tmp_path / "run"
    done = tiny.cli("run", recipe, "--run", run, "--json")
    assert done.status == 0, done.err
    assert "student: starts with the weights of the teacher" in done.err
    plan = json.loads((run / "plan.json").read_text())
    assert [c["space"] for c in plan["candidates"]] == ["sliced"] * 2
    student = read_tensors(run / "student/model.safetensors")[0]
    whole, found = network.positions.T, student["positions"].T
    assert 0 < len(found) <= 16
    for column in found:
        assert (whole - column).abs().amax(1).min() < 1e-3
