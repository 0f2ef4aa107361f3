"""Static int8: close to float, small, standard, and repaired in the right order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tutelage.errors import DataError, ExportError, RecipeError
from tutelage.export.artifact import ArtifactMeta, OnnxModel, read_meta, run_onnx
from tutelage.export.onnx_float import export_onnx
from tutelage.export.parity import parity
from tutelage.export.quantize import (
    METHODS,
    Precision,
    layer_names,
    quantize_int8,
    quantize_within,
)
from tutelage.students.families.convnet import ConvNet, ConvNetSpec

SHAPE = (1, 12, 12)


def meta(shape: tuple[int, ...] = SHAPE) -> ArtifactMeta:
    return ArtifactMeta(
        task="vision",
        classes=tuple("0123456789"),
        shape=shape,
        mean=(0.5,),
        std=(0.25,),
        version="0.1.0",
    )


def network(widths=(8, 16), block: Any = "plain", shape=SHAPE) -> ConvNet:
    torch.manual_seed(0)
    net = ConvNet(
        ConvNetSpec(image=shape, classes=10, widths=widths, depths=(1,) * len(widths), block=block)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.normal_(net.head.weight, std=0.5)
    return net.eval()


def images(n: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def exported(net: nn.Module, folder, dynamic=False, shape=SHAPE):
    path = folder / "f.onnx"
    return export_onnx(net, shape, path, meta=meta(shape), dynamic_batch=dynamic)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / (want.max() - want.min()))


@pytest.fixture
def float_file(tmp_path):
    return exported(network(), tmp_path)


@pytest.mark.parametrize("block", ["plain", "depthwise"])
@pytest.mark.parametrize(
    "form",
    [
        Precision(),
        Precision(activations="int8"),
        Precision(per_channel=False),
        Precision(float_stem=True),
    ],
    ids=["uint8", "int8", "per_tensor", "float_stem"],
)
def test_int8_stays_close_to_float_on_unseen_images(tmp_path, block, form):
    source, unseen = exported(network(block=block), tmp_path), images(100, seed=1)
    want = run_onnx(source, unseen)
    path = quantize_int8(source, tmp_path / "q.onnx", images(100), precision=form)
    assert relative_error(run_onnx(path, unseen), want) < 0.06
    assert parity(path, want, unseen).agreement > 0.9
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.domain for o in model.opset_import] == [""], "standard operators only"
    assert read_meta(path) == meta()


def test_every_layer_is_int8_and_relu_costs_no_operator(tmp_path, float_file):
    path = quantize_int8(float_file, tmp_path / "q.onnx", images(20))
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QLinearConv") == 6 and "Conv" not in kinds and "Relu" not in kinds
    assert kinds.count("QuantizeLinear") == 3  # the image and the two residual sums
    large = [t for t in graph.initializer if np.prod(t.dims) >= 64]
    assert large and all(t.data_type == onnx.TensorProto.INT8 for t in large)


def test_onnxruntime_fuses_the_residual_sums(tmp_path, float_file):
    import onnxruntime as ort

    path = quantize_int8(float_file, tmp_path / "q.onnx", images(20))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearAdd") == 2 and "Add" not in kinds


def test_a_network_of_20k_parameters_fits_24_kb(tmp_path):
    shape = (1, 28, 28)
    source = exported(network((8, 16, 32), shape=shape), tmp_path, shape=shape)
    path = quantize_int8(source, tmp_path / "q.onnx", images(8, shape))
    assert path.stat().st_size <= 23_200
    weights = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sum(int(np.prod(t.dims)) for t in weights) > 19_000


def test_a_dynamic_batch_survives(tmp_path):
    source, inputs = exported(network(), tmp_path, dynamic=True), images(9)
    path = quantize_int8(source, tmp_path / "q.onnx", inputs)
    model = OnnxModel(path)
    assert isinstance(model.input.shape[0], str)
    one_by_one = np.concatenate([model.run(inputs[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(model.run(inputs), one_by_one, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_the_same_twice_and_usable(tmp_path, float_file, method):
    paths = [
        quantize_int8(float_file, tmp_path / f"{i}.onnx", images(64), method=method)
        for i in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    unseen = images(100, seed=1)
    assert parity(paths[0], run_onnx(float_file, unseen), unseen).agreement > 0.85


def test_percentile_beats_minmax_when_one_pixel_is_wild(tmp_path, float_file):
    calibration, unseen = images(200), images(100, seed=1)
    calibration[0, 0, 0, 0] = 400.0
    want, errors = run_onnx(float_file, unseen), {}
    for method in ("minmax", "percentile"):
        path = quantize_int8(float_file, tmp_path / "q.onnx", calibration, method=method)
        errors[method] = parity(path, want, unseen).mean_kl
    assert errors["percentile"] < errors["minmax"] / 4


def test_a_dead_channel_keeps_its_bias(tmp_path):
    net = network()
    bn = net.stem[1]
    assert isinstance(bn, nn.BatchNorm2d)
    with torch.no_grad():
        bn.weight[0], bn.bias[0] = 0.0, 2.0
    source, inputs = exported(net, tmp_path), images(30)
    path = quantize_int8(source, tmp_path / "q.onnx", inputs)
    assert relative_error(run_onnx(path, inputs), run_onnx(source, inputs)) < 0.05


def test_layers_can_stay_in_float(tmp_path, float_file):
    names = layer_names(float_file)
    assert names[0] == "stem.0" and names[-1] == "head" and len(names) == 7
    path = quantize_int8(float_file, tmp_path / "q.onnx", images(20), keep_float=names)
    inputs = images(20, seed=1)
    np.testing.assert_allclose(run_onnx(path, inputs), run_onnx(float_file, inputs), atol=1e-5)
    with pytest.raises(RecipeError, match="Did you mean 'stem.0'"):
        quantize_int8(float_file, tmp_path / "q.onnx", images(2), keep_float=("stem.1",))


def test_a_foreign_network_runs_in_a_mixture(tmp_path):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.pool, self.bn = nn.MaxPool2d(2), nn.BatchNorm2d(16)
            self.c, self.one, self.two = nn.Conv2d(16, 4, 1), nn.Linear(144, 12), nn.Linear(12, 10)

        def forward(self, x):
            x = self.pool(nn.functional.relu6(self.a(x)))
            x = self.bn(torch.cat([x, self.b(x)], 1)).relu()
            return self.two(self.one(nn.functional.silu(self.c(x)).flatten(1)).relu())

    torch.manual_seed(0)
    source, inputs = exported(Mixture().eval(), tmp_path), images(50)
    path = quantize_int8(source, tmp_path / "q.onnx", inputs)
    assert relative_error(run_onnx(path, inputs), run_onnx(source, inputs)) < 0.05
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QLinearConv") == 3 and "Clip" not in kinds


def test_bad_calibration_and_methods_are_refused(tmp_path, float_file):
    target = tmp_path / "q.onnx"
    with pytest.raises(RecipeError, match="Did you mean 'minmax'"):
        quantize_int8(float_file, target, images(2), method="minmx")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="finite"):
        quantize_int8(float_file, target, np.full((1, *SHAPE), np.nan, np.float32))
    with pytest.raises(DataError, match="one example"):
        quantize_int8(float_file, target, images(0))
    with pytest.raises(DataError, match="does not fit"):
        quantize_int8(float_file, target, images(2, (1, 9, 12)))
    net = network()
    with torch.no_grad():
        net.head.bias[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        quantize_int8(exported(net, tmp_path), target, images(2))
    assert not target.exists()


def test_repair_goes_from_mild_to_strong_and_keeps_the_best(tmp_path, float_file):
    losses = iter([0.5, 0.3, float("nan"), 0.4, 0.2, 0.25])
    target = tmp_path / "q.onnx"
    seen: list[bytes] = []

    def check(path) -> float:
        assert not target.exists(), "a candidate must not be shipped before it has passed"
        seen.append(path.read_bytes())
        return next(losses)

    outcome = quantize_within(float_file, target, images(40), check, 0.1, most_float=3)
    assert [a.method for a in outcome.tried] == [*METHODS, *["percentile"] * 3]
    assert [len(a.kept_float) for a in outcome.tried] == [0, 0, 0, 1, 2, 3]
    assert outcome.tried[2].loss == float("inf")
    assert outcome.loss == 0.2 and outcome.kept_float == outcome.tried[4].kept_float
    assert outcome.tried[5].kept_float[:2] == outcome.kept_float
    assert outcome.path == target and target.read_bytes() == seen[4]


def test_repair_stops_at_the_first_that_passes(tmp_path, float_file):
    losses = iter([0.5, 0.1])
    outcome = quantize_within(
        float_file, tmp_path / "q.onnx", images(40), lambda _: next(losses), 0.1
    )
    assert outcome.method == "percentile" and outcome.loss == 0.1 and len(outcome.tried) == 2


def test_repair_in_float_may_not_grow_the_file_over_its_limit(tmp_path, float_file):
    whole = tmp_path / "whole.onnx"
    quantize_int8(float_file, whole, images(40))
    losses = iter([0.5, 0.4, 0.6, 0.0, 0.0, 0.0, 0.0])
    outcome = quantize_within(
        float_file, tmp_path / "q.onnx", images(40), lambda _: next(losses), 0.1, most_float=2,
        most_bytes=whole.stat().st_size + 20,
    )  # fmt: skip
    assert outcome.loss == 0.4 and not outcome.kept_float
    assert [a.loss for a in outcome.tried[3:]] == [float("inf")] * 2


def test_repair_leaves_the_layer_that_hurts_in_float(tmp_path):
    """Per-tensor scales ruin one layer whose channels differ by a factor of a thousand."""
    net = network()
    block: Any = net.stages[1]
    bn, after = block[0].first[1], block[0].second[0]
    with torch.no_grad():
        scale = torch.logspace(0, -3, 16)
        for part in (bn.weight, bn.bias):
            part.mul_(scale)
        after.weight.div_(scale[None, :, None, None])
    source, calibration = exported(net, tmp_path), images(60)
    want = run_onnx(source, calibration)

    def check(path) -> float:
        return relative_error(run_onnx(path, calibration), want)

    form = Precision(per_channel=False)
    outcome = quantize_within(source, tmp_path / "q.onnx", calibration, check, 0.01, precision=form)
    assert outcome.tried[0].loss > 0.01 >= outcome.loss
    kept = {"stages.1.0.first.0", "stages.1.0.second.0"}
    assert set(outcome.kept_float) == kept


def test_a_check_that_raises_leaves_nothing_behind(tmp_path, float_file):
    def check(_path) -> float:
        raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        quantize_within(float_file, tmp_path / "q.onnx", images(4), check, 0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["f.onnx"]
