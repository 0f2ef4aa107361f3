"""Text students: knobs, sizes, pads that say nothing, taps, export, a teacher's embedding."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.errors import RecipeError, StudentError
from tutelage.export.artifact import ArtifactMeta, load_onnx
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import parity
from tutelage.students.families import encoder, textconv
from tutelage.students.families.convnet import ConvNet, ConvNetSpec
from tutelage.students.families.encoder import EncoderSpec, initialise_from
from tutelage.students.spec import FAMILIES, Family, StudentSpec, load, save
from tutelage.students.taps import find_taps

GIVEN = {"vocabulary": 200, "length": 24, "pad": 1, "classes": 3}
MODULES = {"encoder": (encoder, encoder.Encoder, encoder.EncoderSpec),
           "textconv": (textconv, textconv.TextConv, textconv.TextConvSpec)}  # fmt: skip
ALL = [(name, s) for name, (module, _, _) in MODULES.items() for s in module.STRUCTURES]
META = ArtifactMeta(
    task="text", classes=("a", "b", "c"), shape=(24,), mean=(), std=(), version="0", input="ids",
    layout="NT", scale=1.0, dtype="int64",
)  # fmt: skip


@pytest.fixture(autouse=True)
def families():
    for name, (module, build, spec) in MODULES.items():
        if name not in FAMILIES:
            FAMILIES.add(
                name,
                Family(spec=spec, build=build, structures=module.STRUCTURES, sized=module.sized),
            )


def spec_of(family, structure, width=8) -> StudentSpec:
    knobs = MODULES[family][0].sized(structure, width, GIVEN)
    return StudentSpec(family=family, knobs=knobs)


def network_of(family, structure, width=8) -> Any:
    torch.manual_seed(0)
    network: Any = spec_of(family, structure, width).build()
    with torch.no_grad():
        for module in network.modules():  # as after training: running statistics that differ
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(std=0.1)
                module.bias.normal_(std=0.3)
    return network.eval()


def some_ids(n=6, length=24, used=None):
    ids = torch.randint(2, 200, (n, length), generator=torch.Generator().manual_seed(1))
    for row, count in enumerate(used or []):
        ids[row, count:] = 1
    return ids


def said(network, ids):
    with torch.no_grad():
        return network(ids)


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_a_spec_comes_back_from_json_and_its_weights_from_disk(tmp_path, family, structure):
    made, network = spec_of(family, structure), network_of(family, structure)
    assert StudentSpec.from_json(json.loads(json.dumps(made.to_json()))) == made
    save(tmp_path, made, network)
    ids = some_ids(used=[24, 3, 10, 1])
    torch.testing.assert_close(said(load(tmp_path), ids), said(network, ids), rtol=0, atol=0)


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_pads_change_nothing(family, structure):
    network = network_of(family, structure)
    ids = some_ids(used=[5, 8, 1, 8, 3, 7])
    whole = said(network, ids)
    for length in (8, 9, 17):
        torch.testing.assert_close(said(network, ids[:, :length]), whole, rtol=0, atol=1e-6)
    with torch.no_grad():
        network.embedding.weight[1] = 7.0  # whatever stands at a pad
    torch.testing.assert_close(said(network, ids), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(said(network, ids[2:3]), whole[2:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_a_text_without_tokens_is_finite(family, structure):
    assert torch.isfinite(said(network_of(family, structure), some_ids(2, used=[0, 0]))).all()


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_every_parameter_learns(family, structure):
    network = network_of(family, structure).train()
    network(some_ids(used=[9, 4])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_taps_are_one_a_block(family, structure):
    network, knobs = network_of(family, structure), spec_of(family, structure).knobs
    taps = find_taps(network, some_ids(2))
    if len(network.stages) > 1:
        assert tuple(t.path for t in taps) == knobs.taps
        tokens = (24, knobs.hidden) if family == "encoder" else (8, 1, 24)
        assert {t.shape for t in taps} == {tokens}
    assert taps[-1].path == knobs.taps[-1]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("family", "structure"), ALL)
def test_the_exported_file_agrees(tmp_path, family, structure, dynamic):
    network, ids = network_of(family, structure), some_ids(used=[24, 5, 1, 0])
    path = export_onnx(network, (24,), tmp_path / "m.onnx", meta=META, dynamic_batch=dynamic)
    found = parity(path, said(network, ids).numpy(), ids.numpy())
    assert found.largest_error < 1e-5 and found.agreement == 1.0
    operators = {node.op_type for node in load_onnx(path).graph.node}
    assert not operators & {"Shape", "If", "Loop", "Range", "Where", "Expand", "BatchNormalization"}
    floats = 4 * sum(p.numel() for p in network.parameters())
    assert path.stat().st_size < floats + 15_000


def test_the_other_exporter_agrees(tmp_path):
    network, ids = network_of("encoder", encoder.STRUCTURES[0]), some_ids(2, used=[24, 5])
    path = export_onnx(network, (24,), tmp_path / "m.onnx", meta=META, exporter="dynamo")
    assert parity(path, said(network, ids).numpy(), ids.numpy()).largest_error < 1e-5


@pytest.mark.parametrize(("family", "structure"), ALL)
def test_cost_grows_with_the_width(family, structure):
    counts = []
    for width in (4, 5, 8, 15, 16, 17, 31, 48, 96):
        network = spec_of(family, structure, width).build()
        counts.append(sum(p.numel() for p in network.parameters()))
    assert all(a <= b for a, b in itertools.pairwise(counts)) and counts[0] < counts[-1] / 10


HEADS = [(4, 16, 1), (15, 60, 1), (16, 64, 2), (17, 64, 2), (24, 96, 3), (96, 384, 12)]


@pytest.mark.parametrize(("width", "hidden", "heads"), HEADS)
def test_an_encoder_has_heads_of_32(width, hidden, heads):
    knobs = encoder.sized(encoder.STRUCTURES[1], width, GIVEN)
    assert (knobs.hidden, knobs.heads, knobs.inner) == (hidden, heads, 4 * hidden)


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    layer = network_of("encoder", encoder.STRUCTURES[0], 16).stages[0]
    x, keep = torch.randn(2, 24, 64), torch.ones(2, 24)
    keep[1, 7:] = 0
    bias = ((1 - keep) * -1e4)[:, None, None]
    q, k, v = layer.qkv(x).view(2, 24, 2, 96).transpose(1, 2).chunk(3, -1)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, keep[:, None, None].bool())
    got = layer._attend(layer.qkv(x), bias)
    torch.testing.assert_close(got, want.transpose(1, 2).flatten(2))


def test_a_textconv_without_blocks_is_linear_in_the_mean():
    network = network_of("textconv", textconv.Structure(depth=0))
    ids = some_ids(1, used=[3])
    mean = network.embedding.weight[ids[0, :3]].mean(dim=0)
    torch.testing.assert_close(said(network, ids)[0], network.head(mean))


WRONG = [
    ("encoder", {"hidden": 65}, "hidden is 65; 2 heads do not divide it"),
    ("encoder", {"embedding": -1}, "embedding holds -1"),
    ("encoder", {"pad": 200}, "pad is 200; tokens go from 0 to 199"),
    ("encoder", {"pad": -1}, "pad is -1"),
    ("encoder", {"pad": True}, "pad holds True"),
    ("encoder", {"layers": 0}, "layers holds 0"),
    ("encoder", {"vocabulary": 1.5}, "vocabulary holds 1.5"),
    ("encoder", {"head": 2}, "no knob 'head'. Did you mean 'heads'?"),
    ("textconv", {"kernel": 4}, "kernel is 4; it must be odd"),
    ("textconv", {"depth": -1}, "depth holds -1"),
    ("textconv", {"depth": [1]}, "depth cannot be (1,)"),
    ("textconv", {"pad": "x"}, "pad holds 'x'"),
]


@pytest.mark.parametrize(("family", "changes", "what"), WRONG)
def test_a_wrong_knob_is_refused(family, changes, what):
    data = spec_of(family, MODULES[family][0].STRUCTURES[1], 16).to_json()
    with pytest.raises(RecipeError) as caught:
        StudentSpec.from_json({**data, **changes})
    assert what in str(caught.value) and "\n" not in str(caught.value)


def test_whole_embeddings_need_no_map():
    knobs = EncoderSpec(**GIVEN, layers=1, hidden=8, heads=2, inner=8, embedding=0)
    network = encoder.Encoder(knobs)
    assert network.embedding.embedding_dim == 8
    assert isinstance(network.project, torch.nn.Identity)


# --- a teacher's embedding --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["encoder", "textconv"])
def test_a_student_starts_from_the_directions_of_a_teacher(family):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 48)) + 3.0  # 4 directions, far from 0
    network = network_of(family, MODULES[family][0].STRUCTURES[0], 8)
    before = network.embedding.weight.detach().clone()
    initialise_from(network, torch.from_numpy(low).float())
    own = network.embedding.weight.detach()
    assert own.std(correction=0).item() == pytest.approx(before.std(correction=0).item(), rel=1e-3)
    distances = torch.cdist(own, own).numpy()
    wanted = np.sqrt(((low[:, None] - low[None]) ** 2).sum(-1))
    np.testing.assert_allclose(distances / distances.max(), wanted / wanted.max(), atol=1e-3)


def test_a_teachers_embedding_gives_the_same_start_twice():
    embedding = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    starts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = textconv.TextConv(textconv.sized(textconv.STRUCTURES[0], 12, GIVEN))
        initialise_from(network, embedding)
        starts.append(network.embedding.weight.detach())
    spreads = [s / s.std() for s in starts]
    torch.testing.assert_close(spreads[0], spreads[1])


def test_a_student_wider_than_the_teacher_keeps_its_own_rest():
    network = network_of("textconv", textconv.STRUCTURES[0], 16)
    before = network.embedding.weight.detach().clone()
    initialise_from(network, torch.randn(200, 6))
    after = network.embedding.weight.detach()
    assert torch.equal(after[:, 6:], before[:, 6:])
    assert not torch.isclose(after[:, :6], before[:, :6]).all()


def test_another_embedding_is_refused():
    network = network_of("textconv", textconv.STRUCTURES[0])
    with pytest.raises(StudentError, match=r"has 200 tokens and the teacher's embedding is 30 x 4"):
        initialise_from(network, torch.zeros(30, 4))
    image = ConvNet(ConvNetSpec(image=(1, 8, 8), classes=2, widths=(4,), depths=(1,)))
    with pytest.raises(StudentError, match="ConvNet has no token embedding"):
        initialise_from(image, torch.zeros(30, 4))
