"""The float32 export: parity with torch, one lean file, metadata, failures without a mess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tutelage.errors import CorruptFileError, DataError, DiskError, ExportError
from tutelage.export.artifact import (
    ArtifactMeta,
    OnnxModel,
    load_onnx,
    read_meta,
    run_onnx,
)
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import parity
from tutelage.export.shrink import shrink
from tutelage.students.families.convnet import ConvNet, ConvNetSpec

SHAPE = (1, 12, 12)
META = ArtifactMeta(
    task="vision",
    classes=("cat", "Katze ä", 'quo"te'),
    shape=SHAPE,
    mean=(0.25,),
    std=(0.5,),
    version="0.1.0",
)


def network(block: str = "plain") -> ConvNet:
    """Return an untrained network whose BatchNorm is far from the identity."""
    torch.manual_seed(0)
    form: Any = block
    net = ConvNet(ConvNetSpec(image=SHAPE, classes=3, widths=(4, 8), depths=(1, 1), block=form))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net


def logits(net: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(torch.from_numpy(inputs)).numpy()


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_file_says_what_the_network_says(tmp_path, block, dynamic):
    net, inputs = network(block), images(70)
    net.train()
    path = export_onnx(net, SHAPE, tmp_path / "m.onnx", meta=META, dynamic_batch=dynamic)
    assert net.training, "exporting must not touch the network"
    result = parity(path, logits(net, inputs), inputs)
    assert result.n == 70 and result.agreement == 1.0
    assert result.largest_error < 1e-5 and result.mean_kl < 1e-9
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_param != "") if dynamic else (batch.dim_value == 1)


def test_one_file_of_opset_17_or_later_with_batchnorm_folded(tmp_path):
    net = network()
    path = export_onnx(net, SHAPE, tmp_path / "m.onnx", meta=META)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    model = onnx.load(path, load_external_data=False)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert [(o.domain, o.version >= 17) for o in model.opset_import] == [("", True)]
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == ["logits"]
    assert not model.graph.value_info and not model.producer_name
    weights = sum(4 * int(np.prod(t.dims)) for t in model.graph.initializer)
    assert path.stat().st_size - weights < 1900
    names = [n.name for n in model.graph.node if n.name]
    assert names[:2] == ["stem.0", "stages.0.0.first.0"] and names[-1] == "head"


def test_both_exporters_come_to_the_same_size_and_answers(tmp_path):
    net, inputs = network(), images(3)
    files = [
        export_onnx(net, SHAPE, tmp_path / f"{e}.onnx", meta=META, exporter=e)
        for e in ("torchscript", "dynamo")
    ]
    small, other = (f.stat().st_size for f in files)
    assert abs(small - other) < 64
    for file in files:
        np.testing.assert_allclose(run_onnx(file, inputs), logits(net, inputs), atol=1e-5)
    with pytest.raises(ExportError):  # proof that parity is not blind
        parity(files[0], logits(net, inputs)[:, :2], inputs)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    first = export_onnx(network(), SHAPE, tmp_path / "a.onnx", meta=META).read_bytes()
    assert first == export_onnx(network(), SHAPE, tmp_path / "b.onnx", meta=META).read_bytes()


def test_a_module_called_twice_keeps_its_weights_and_gets_two_names(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(144, 3)

        def forward(self, x):
            return self.h(self.c(self.c(x).relu()).flatten(1))

    net, inputs = Twice(), images(4)
    path = export_onnx(net, SHAPE, tmp_path / "m.onnx", meta=META)
    np.testing.assert_allclose(run_onnx(path, inputs), logits(net, inputs), atol=1e-5)
    assert [n.name for n in onnx.load(path).graph.node if n.name] == ["c", "c#2", "h"]


def test_parity_sees_a_different_network(tmp_path):
    net, inputs = network(), images(40)
    path = export_onnx(net, SHAPE, tmp_path / "m.onnx", meta=META)
    wrong = np.roll(logits(net, inputs), 1, axis=1)
    result = parity(path, wrong, inputs)
    assert result.agreement == 0.0 and result.mean_kl > 1e-4 and result.largest_error > 0.01
    with pytest.raises(DataError, match="one row for each"):
        parity(path, wrong[:3], inputs)


def test_parity_of_a_hand_worked_case(tmp_path):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(144, 2)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            return self.head(x.flatten(1))

    path = export_onnx(Constant(), SHAPE, tmp_path / "m.onnx", meta=META)
    reference = np.log(np.array([[0.75, 0.25]], dtype=np.float32))
    result = parity(path, reference, images(1))
    # KL(3/4, 1/4 || 1/2, 1/2) = ln 2 - H(1/4)
    assert result.mean_kl == pytest.approx(np.log(2) - 0.5623351446188083, abs=1e-6)
    assert result.largest_error == pytest.approx(np.log(4), abs=1e-6)


def test_metadata_comes_back_whole(tmp_path):
    path = export_onnx(network(), SHAPE, tmp_path / "m.onnx", meta=META)
    assert read_meta(path) == META
    shrink(path)
    assert read_meta(path) == META
    stored = OnnxModel(path).session.get_modelmeta().custom_metadata_map
    assert stored["classes"] == '["cat","Katze ä","quo\\"te"]'


def test_a_file_without_metadata_is_named(tmp_path):
    path = export_onnx(network(), SHAPE, tmp_path / "m.onnx", meta=META)
    model = onnx.load(path)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFileError, match="lacks task"):
        read_meta(path)


def test_shrink_changes_no_answer_and_merges_equal_constants(tmp_path):
    net, inputs, path = network(), images(5), tmp_path / "raw.onnx"
    model = onnx.load(export_onnx(net, SHAPE, path, meta=META))
    head = next(n for n in model.graph.node if n.op_type == "Gemm")
    bias = next(t for t in model.graph.initializer if t.name == head.input[2])
    twin = model.graph.initializer.add()
    twin.CopyFrom(bias)
    twin.name = "a_twin_with_a_long_name"
    output = head.output[0]
    head.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", twin.name], [output]))
    model.doc_string, model.producer_name = "noise", "noise"
    path.write_bytes(model.SerializeToString())
    before, want = path.stat().st_size, run_onnx(path, inputs)
    size = shrink(path)
    assert size == path.stat().st_size < before - 40
    assert len(onnx.load(path).graph.initializer) == len(model.graph.initializer) - 1
    np.testing.assert_array_equal(run_onnx(path, inputs), want)
    assert shrink(path) == size
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_corrupt_file_is_one_line_with_exit_code_5(tmp_path, damage):
    path = export_onnx(network(), SHAPE, tmp_path / "m.onnx", meta=META)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": data[:-500], "text": b"no model at all"}[damage])
    for use in (read_meta, OnnxModel, shrink):
        with pytest.raises(CorruptFileError) as caught:
            use(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert caught.value.exit_code == 5


def test_an_absent_file_and_a_wrong_shape(tmp_path):
    for use in (load_onnx, OnnxModel):
        with pytest.raises(ExportError, match="Check the path"):
            use(tmp_path / "none.onnx")
    path = export_onnx(network(), SHAPE, tmp_path / "m.onnx", meta=META)
    with pytest.raises(DataError, match="Resize"):
        run_onnx(path, np.zeros((2, 1, 11, 12), np.float32))
    with pytest.raises(DataError):
        run_onnx(path, np.zeros((0, *SHAPE), np.float32))


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        export_onnx(network(), SHAPE, path, meta=META)
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_equal_constants_leave_no_identity_nodes(tmp_path):
    spec = ConvNetSpec(image=SHAPE, classes=3, widths=(4, 8), depths=(1, 1))
    path = export_onnx(ConvNet(spec), SHAPE, tmp_path / "m.onnx", meta=META)
    assert "Identity" not in {node.op_type for node in onnx.load(path).graph.node}


def test_a_network_that_cannot_be_exported_is_refused(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x)

    with pytest.raises(ExportError, match="Odd cannot be exported") as caught:
        export_onnx(Odd(), SHAPE, Path(tmp_path) / "m.onnx", meta=META)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
