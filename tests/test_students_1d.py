"""Students for series: rebuilt from JSON, exported alike, close in int8, and counted by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tutelage.devices import load_device
from tutelage.errors import RecipeError
from tutelage.export.artifact import ArtifactMeta, OnnxModel, run_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import layer_names, quantize_int8
from tutelage.measure.costs import graph_figures
from tutelage.students.branches import Branch
from tutelage.students.families import convnet1d, gru
from tutelage.students.spec import FAMILIES, Family, StudentSpec, load, save
from tutelage.students.taps import find_taps
from tutelage.train.qat import quantization_aware

CLASSES = 5
SHAPES = [(1, 24), (6, 100), (3, 150), (1, 1460)]


@pytest.fixture(autouse=True)
def families(monkeypatch):
    ours = {
        "convnet1d": Family(
            spec=convnet1d.ConvNet1dSpec,
            build=convnet1d.ConvNet1d,
            structures=convnet1d.STRUCTURES,
            sized=convnet1d.sized,
        ),
        "gru": Family(spec=gru.GruSpec, build=gru.Gru, structures=gru.STRUCTURES, sized=gru.sized),
    }
    monkeypatch.setattr(FAMILIES, "_entries", {**FAMILIES._entries, **ours})


def given(shape: tuple[int, int]) -> dict[str, int]:
    return {"channels": shape[0], "length": shape[1], "classes": CLASSES}


def every(shape: tuple[int, int], width: int = 8) -> dict[str, nn.Module]:
    """Return one network of each structure, and the teacher."""
    made: dict[str, nn.Module] = {}
    for i, structure in enumerate(convnet1d.STRUCTURES):
        made[f"conv{i}"] = convnet1d.ConvNet1d(convnet1d.sized(structure, width, given(shape)))
    made["teacher"] = convnet1d.ConvNet1d(convnet1d.teacher(width, given(shape)))
    for i, structure in enumerate((*gru.STRUCTURES, gru.Structure(frames=24, state="last"))):
        made[f"gru{i}"] = gru.Gru(gru.sized(structure, width, given(shape)))
    return made


def shaken(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.normal_(network.get_submodule("head").weight, std=0.5)  # type: ignore[arg-type]
    return network.eval()


def series(n: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def logits(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(inputs)).numpy()


def exported(network: nn.Module, folder, shape: tuple[int, ...], dynamic: bool = False):
    meta = ArtifactMeta(
        task="series",
        classes=tuple("abcde"),
        shape=shape,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
        version="0.1.0",
        input="series",
        layout="NCT",
        scale=1.0,
    )
    path = folder / "f.onnx"
    return export_onnx(network, shape, path, meta=meta, dynamic_batch=dynamic)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_files_say_what_the_networks_say_and_int8_stays_close(tmp_path, shape):
    calibration, unseen = series(60, shape), series(60, shape, seed=1)
    for name, network in every(shape).items():
        source = exported(shaken(network), tmp_path, shape)
        want = logits(network, unseen)
        np.testing.assert_allclose(run_onnx(source, unseen), want, atol=1e-4, err_msg=name)
        path = quantize_int8(source, tmp_path / "q.onnx", calibration)
        got = run_onnx(path, unseen)
        assert (got.argmax(1) == want.argmax(1)).mean() >= 0.9, name
        assert path.stat().st_size < 32_000, name
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [o.domain for o in model.opset_import] == [""], "standard operators only"
        kinds = Counter(node.op_type for node in model.graph.node)
        assert not kinds["Conv"] and not kinds["Relu"] and kinds["QLinearConv"], name
        assert kinds["GRU"] == name.startswith("gru")
        assert graph_costs(path).macs == graph_costs(source).macs
        assert graph_costs(path).peak_activation_bytes <= graph_costs(source).peak_activation_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_taps_are_found_and_take_branches(shape):
    inputs = torch.from_numpy(series(2, shape))
    for name, network in every(shape).items():
        taps = find_taps(network, inputs)
        if isinstance(network, gru.Gru):
            wanted = gru.sized(gru.STRUCTURES[0], 8, given(shape)).taps
        else:
            wanted = convnet1d.sized(convnet1d.STRUCTURES[0], 8, given(shape)).taps
        assert tuple(tap.path for tap in taps) == wanted, name
        for tap in taps:
            assert Branch(tap.shape, CLASSES)(torch.randn(2, *tap.shape)).shape == (2, CLASSES)


def test_a_long_series_is_shortened_by_the_stem_and_a_short_one_is_not():
    assert [convnet1d.stem_stride(n) for n in (1, 24, 128, 129, 256, 257, 1460)] == [
        1, 1, 1, 2, 2, 4, 16
    ]  # fmt: skip
    for shape in SHAPES:
        made = every(shape)
        taps = find_taps(made["conv0"], torch.from_numpy(series(1, shape)))
        assert 12 <= taps[0].shape[-1] <= 128 and taps[-1].shape[-1] >= 12
        frames = find_taps(made["gru0"], torch.from_numpy(series(1, shape)))[-1].shape
        assert frames == (12, 8)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 131])
def test_every_length_can_be_read_down_to_one_step(length):
    for name, network in every((2, length), width=4).items():
        assert logits(network, series(2, (2, length))).shape == (2, CLASSES), name


@pytest.mark.parametrize("length", [7, 10, 12])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 7])
def test_every_step_of_a_series_lies_in_one_frame(length, window):
    spec = gru.GruSpec(channels=1, length=length, classes=2, hidden=3, window=window)
    network = gru.Gru(spec).eval()
    stem = network.stem[0]
    nn.init.ones_(stem.weight)  # type: ignore[arg-type]
    frames = stem(torch.ones(1, 1, 1, length))
    assert frames.shape[-1] == -(-length // window)
    assert frames[0, 0].sum().item() == pytest.approx(length)


@pytest.mark.parametrize(
    "data",
    [
        {"family": "convnet1d", "channels": 2, "length": 24, "widths": [4, 8], "depths": [1, 2]},
        {"family": "convnet1d", "channels": 2, "length": 24, "widths": [8], "depths": [2],
         "block": "inception", "kernel": 39},
        {"family": "gru", "channels": 2, "length": 24, "hidden": 6, "window": 5, "state": "last"},
    ],
)  # fmt: skip
def test_a_student_is_rebuilt_bit_for_bit(tmp_path, data):
    spec = StudentSpec.from_json({**data, "classes": 3})
    assert StudentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    network = spec.build()
    network(torch.randn(4, 2, 24))  # moves the running statistics off their defaults
    save(tmp_path, spec, network)
    inputs = series(3, (2, 24))
    np.testing.assert_array_equal(logits(load(tmp_path), inputs), logits(network, inputs))


CONV = {"family": "convnet1d", "channels": 2, "length": 24, "classes": 3, "widths": [4],
        "depths": [1]}  # fmt: skip
GRU = {"family": "gru", "channels": 2, "length": 24, "classes": 3, "hidden": 4}
WRONG = [
    ({**CONV, "kernel": 4}, "kernel is 4; it must be odd"),
    ({**CONV, "block": "separate"}, "block is 'separate'; it is 'separable'"),
    ({**CONV, "block": "inception", "widths": [6]}, r"widths are \[6\]; inception takes multiples"),
    ({**CONV, "widths": [4, 8]}, "one number for each stage"),
    ({**CONV, "widths": 4}, "widths cannot be 4; it is a list"),
    ({**CONV, "length": [24]}, "length cannot be .* it is one number"),
    ({**CONV, "length": 0}, "length holds 0; it goes from 1"),
    ({**CONV, "channels": True}, "channels holds True"),
    ({**CONV, "image": [1, 2, 3]}, "no knob 'image'"),
    ({**GRU, "window": 25}, "window is 25; the series has 24 steps"),
    ({**GRU, "state": "first"}, "state is 'first'; it is 'mean' or 'last'"),
    ({**GRU, "hidden": 1.5}, "hidden holds 1.5; write whole numbers"),
]


@pytest.mark.parametrize(("data", "words"), WRONG, ids=[words for _, words in WRONG])
def test_an_impossible_knob_is_named_in_one_line(data, words):
    with pytest.raises(RecipeError, match=words) as caught:
        StudentSpec.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 24), (3, 150)], ids=str)
def test_cost_grows_with_the_width(tmp_path, shape):
    for family in ("convnet1d", "gru"):
        for structure in FAMILIES[family].structures:
            macs = []
            for width in (4, 5, 6, 7, 8, 32, 96):
                sized = FAMILIES[family].sized
                assert sized is not None
                knobs = sized(structure, width, given(shape))
                network = StudentSpec(family=family, knobs=knobs).build()
                macs.append(sum(p.numel() for p in network.parameters()))
            assert macs == sorted(macs) and macs[0] < macs[4] < macs[5] < macs[6]


def figures(path) -> dict[str, float]:
    return {f.name: f.value for f in graph_figures(path, load_device("nucleo-l4r5"))}


def test_operations_of_a_separable_network_by_hand(tmp_path):
    spec = convnet1d.ConvNet1dSpec(
        channels=2, length=10, classes=5, widths=(4, 6), depths=(1, 1), kernel=3
    )
    source = exported(convnet1d.ConvNet1d(spec), tmp_path, (2, 10))
    stem = 10 * 4 * 2 * 3
    first = 10 * 4 * 3 + 10 * 4 * 4
    second = 5 * 4 * 3 + 5 * 6 * 4
    want = stem + first + second + 6 * 5
    assert figures(source)["macs"] == want
    path = quantize_int8(source, tmp_path / "q.onnx", series(8, (2, 10)))
    assert figures(path)["macs"] == want
    kinds = [op.op for op in graph_costs(path).ops]
    assert kinds.count("depthwise") == 2 and kinds.count("conv") == 3
    # The widest moment: block input, kept for the sum, and two maps of 4 x 10 bytes.
    assert figures(path)["peak_activation_bytes"] == 3 * 4 * 10


def test_operations_and_weights_of_a_gru_by_hand(tmp_path):
    spec = gru.GruSpec(channels=2, length=10, classes=5, hidden=4, window=3)
    source = exported(shaken(gru.Gru(spec)), tmp_path, (2, 10))
    frames = 4
    layer = frames * 3 * 4 * (4 + 4)
    want = frames * 4 * 2 * 3 + layer + 4 * 5
    assert figures(source)["macs"] == want
    path = quantize_int8(source, tmp_path / "q.onnx", series(8, (2, 10)))
    assert figures(path)["macs"] == want
    for file in (source, path):
        (op,) = [op for op in graph_costs(file).ops if op.macs == layer]
        assert op.op == "linear" and op.bits == 32
        assert op.weight_bytes == 4 * (2 * 3 * 4 * 4 + 2 * 3 * 4)


def test_an_lstm_of_a_foreign_network_is_counted_too(tmp_path):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(x.transpose(1, 2))[0].mean(1))

    network, inputs = Foreign(), series(4, (3, 7))
    source = exported(network, tmp_path, (3, 7))
    path = quantize_int8(source, tmp_path / "q.onnx", inputs)
    want = 7 * 2 * 4 * 4 * (3 + 4) + 8 * CLASSES
    assert graph_costs(source).macs == graph_costs(path).macs == want
    np.testing.assert_allclose(run_onnx(path, inputs), logits(network, inputs), atol=0.01)


def test_a_gru_keeps_its_float_weights_in_an_int8_file(tmp_path):
    shape = (3, 48)
    network = shaken(gru.Gru(gru.sized(gru.STRUCTURES[0], 8, given(shape))))
    source = exported(network, tmp_path, shape)
    assert layer_names(source) == ("stem.0", "head")
    inputs = series(30, shape)
    path = quantize_int8(source, tmp_path / "q.onnx", inputs)
    graph = onnx.load(path).graph
    (node,) = [node for node in graph.node if node.op_type == "GRU"]
    stored = {t.name: t.data_type for t in graph.initializer}
    assert {stored[name] for name in node.input[1:4]} == {onnx.TensorProto.FLOAT}
    kept = quantize_int8(source, tmp_path / "k.onnx", inputs, keep_float=("stem.0", "head"))
    np.testing.assert_allclose(run_onnx(kept, inputs), logits(network, inputs), atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_first_state_of_zeros_is_left_out_and_a_learned_one_is_not(tmp_path, dynamic, learned):
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(3, 4, batch_first=True)
            self.first = nn.Parameter(torch.full((1, 1, 4), 0.5 * learned))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            first = self.first.expand(1, x.shape[0], 4).contiguous()
            return self.head(self.gru(x.transpose(1, 2), first)[0].mean(1))

    torch.manual_seed(0)
    network, inputs = Remembering(), series(6, (3, 7))
    path = exported(network, tmp_path, (3, 7), dynamic)
    np.testing.assert_allclose(run_onnx(path, inputs), logits(network, inputs), atol=1e-5)
    graph = onnx.load(path).graph
    (node,) = [node for node in graph.node if node.op_type == "GRU"]
    assert (len(node.input) == 6) is learned
    assert ("Shape" in {node.op_type for node in graph.node}) is learned or not dynamic


@pytest.mark.parametrize("name", ["conv1", "teacher", "gru0", "gru3"])
def test_a_free_batch_gives_the_same_answers(tmp_path, name):
    shape, inputs = (2, 30), series(9, (2, 30))
    network = shaken(every(shape)[name])
    source = exported(network, tmp_path, shape, dynamic=True)
    np.testing.assert_allclose(run_onnx(source, inputs), logits(network, inputs), atol=1e-4)
    model = OnnxModel(quantize_int8(source, tmp_path / "q.onnx", inputs))
    assert isinstance(model.input.shape[0], str)
    one_by_one = np.concatenate([model.run(inputs[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(model.run(inputs), one_by_one, atol=1e-5)


def test_onnxruntime_concatenates_in_integers(tmp_path):
    import onnxruntime as ort

    shape = (2, 30)
    source = exported(shaken(every(shape)["teacher"]), tmp_path, shape)
    path = quantize_int8(source, tmp_path / "q.onnx", series(20, shape))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "QLinearConcat" in kinds and not kinds & {"Concat", "Add"}


@pytest.mark.parametrize("name", ["conv2", "conv3", "teacher", "gru0"])
def test_training_learns_a_rule_also_with_rounding_felt(name):
    torch.manual_seed(0)
    network = every((2, 24))[name]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.randn(64, 2, 24)
    labels = (inputs[:, 0, :12].mean(1) > inputs[:, 1, 12:].mean(1)).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.train()(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    for _ in range(25):
        step()
    with quantization_aware(network):
        assert step() < 0.5 * first
    assert torch.isfinite(network.eval()(inputs)).all()
