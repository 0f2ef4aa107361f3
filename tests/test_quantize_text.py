"""int8 of text students: tables of tokens and positions, products over tokens, and their costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tutelage.devices import load_device
from tutelage.export.artifact import ArtifactMeta, OnnxModel, load_onnx, read_meta, run_onnx
from tutelage.export.graph import graph_costs
from tutelage.export.onnx_float import export_onnx
from tutelage.export.quantize import Precision, layer_names, quantize_int8
from tutelage.plan.compact import weigh
from tutelage.plan.costs import Costing, cost_of
from tutelage.records import Limit, SideFile
from tutelage.students.families.encoder import Encoder, EncoderSpec
from tutelage.students.families.textconv import TextConv, TextConvSpec
from tutelage.students.spec import StudentSpec
from tutelage.train.qat import quantization_aware

LENGTH, VOCABULARY = 24, 500
META = ArtifactMeta(
    task="text", classes=("a", "b", "c"), shape=(LENGTH,), mean=(), std=(), version="0",
    input="ids", layout="NT", scale=1.0, dtype="int64",
)  # fmt: skip
GIVEN = {"vocabulary": VOCABULARY, "length": LENGTH, "classes": 3, "pad": 1}
FORMS = [Precision(), Precision(per_channel=False)]


def encoder() -> Encoder:
    torch.manual_seed(0)
    spec = EncoderSpec(layers=2, hidden=32, heads=2, inner=64, embedding=16, **GIVEN)
    return Encoder(spec).eval()


def textconv(depth) -> TextConv:
    torch.manual_seed(0)
    return TextConv(TextConvSpec(embedding=16, depth=depth, **GIVEN)).eval()


def some_ids(n=16, seed=1):
    ids = np.random.default_rng(seed).integers(2, VOCABULARY, (n, LENGTH))
    ids[::2, LENGTH // 2 :] = 1
    return ids


def files(network, folder, **options):
    real = export_onnx(network, (LENGTH,), folder / "f.onnx", meta=META)
    return real, quantize_int8(real, folder / "q.onnx", some_ids(), **options)


def stored(path):
    return {t.name: numpy_helper.to_array(t) for t in load_onnx(path).graph.initializer}


def kinds(path):
    return [node.op_type for node in load_onnx(path).graph.node]


@pytest.mark.parametrize("network", [encoder(), textconv(0), textconv(2)], ids="012")
@pytest.mark.parametrize("form", FORMS)
def test_a_text_student_is_int8_but_for_its_head_and_says_the_same(tmp_path, network, form):
    real, path = files(network, tmp_path, precision=form)
    big = [a.shape for a in stored(path).values() if a.dtype == np.float32 and a.size > 200]
    assert not big
    table = [a for a in stored(path).values() if a.shape == (VOCABULARY, 16)]
    assert [a.dtype for a in table] == [np.int8]
    parameters = sum(p.numel() for p in network.parameters())
    assert path.stat().st_size < parameters + 9_000 < real.stat().st_size
    ids = some_ids(64, seed=2)
    want, got = run_onnx(real, ids), run_onnx(path, ids)
    assert np.abs(got - want).mean() < 0.1 * want.std()
    assert read_meta(path) == META


def test_a_row_is_its_levels_times_the_scale_of_each_column(tmp_path):
    table = np.array([[1.27, -0.7], [0.634, 254.0], [-0.01, 100.0]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "ids"], ["x"], "t"),
         helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(table, "t"), numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString())
    assert layer_names(tmp_path / "f.onnx") == ("t",)
    path = quantize_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", np.array([[0, 1]]))
    (levels,) = [a for a in stored(path).values() if a.dtype == np.int8]
    # Scales 1.27 / 127 = 0.01 and 254 / 127 = 2: -0.7 / 2 rounds to 0.
    assert levels.tolist() == [[127, 0], [63, 127], [-1, 50]]
    said = [OnnxModel(path).run(np.array([pair]))[0] for pair in ([0, 1], [0, 2], [2, 2])]
    np.testing.assert_allclose(said, [[1.9, 254.0], [1.26, 100.0], [-0.02, 200.0]], rtol=1e-6)


class Product(nn.Module):
    """A product over tokens with numbers known by hand, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.map = nn.Embedding(3, 2), nn.Linear(2, 2, bias=False)
        self.table.weight.data = torch.tensor([[127.0, 0.0], [-64.0, 127.0], [191.0, 63.0]])
        self.map.weight.data = torch.tensor([[1.27, -0.003], [-0.5, 2.54]])

    def forward(self, ids):
        return self.map(self.table(ids)).mean(1)


def test_a_product_over_tokens_rounds_what_comes(tmp_path):
    real = export_onnx(Product(), (2,), tmp_path / "f.onnx", meta=META)
    path = quantize_int8(real, tmp_path / "q.onnx", np.array([[0, 1]]), keep_float=("table",))
    # Rows of the weight: scales 0.01 and 0.02, levels [127, 0] and [-25, 127].
    # Tokens 1 and 2: range -64 to 191 is 255 wide, so levels are whole: nothing of x is lost.
    # [-64, 127] gives [-81.28, 354.58]; [191, 63] gives [242.57, 64.52].
    (said,) = OnnxModel(path).run(np.array([[1, 2]]))
    np.testing.assert_allclose(said, [80.645, 209.55], rtol=1e-5)
    # Token 0 alone: 0 to 127 over 255 levels.
    (said,) = OnnxModel(path).run(np.array([[0, 0]]))
    np.testing.assert_allclose(said, [127 * 1.27, -0.5 * 127], rtol=1e-5)


def test_onnxruntime_runs_a_product_as_one_operator(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    _, path = files(encoder(), tmp_path)
    ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    found = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert found.count("DynamicQuantizeMatMul") == 9  # the projection, and four in each layer
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & set(found)


def test_tables_can_stay_in_float(tmp_path):
    real, path = files(encoder(), tmp_path, keep_float=("embedding", "positions"))
    assert layer_names(real)[:3] == ("embedding", "positions", "project")
    shapes = {a.shape for a in stored(path).values() if a.dtype == np.float32}
    assert {(VOCABULARY, 16), (LENGTH, 16)} <= shapes
    assert kinds(path).count("MatMulInteger") == 9


def test_a_dynamic_batch_survives(tmp_path):
    real = export_onnx(encoder(), (LENGTH,), tmp_path / "f.onnx", meta=META, dynamic_batch=True)
    path = quantize_int8(real, tmp_path / "q.onnx", some_ids())
    ids = some_ids(5, seed=3)
    assert np.abs(run_onnx(path, ids) - run_onnx(real, ids)).max() < 0.05
    assert graph_costs(path).macs == graph_costs(real).macs


def test_what_int8_costs_is_counted_by_hand(tmp_path):
    spec = TextConvSpec(embedding=16, depth=0, **GIVEN)
    real, path = files(TextConv(spec).eval(), tmp_path)
    look = next(op for op in graph_costs(real).ops if op.write_bytes == LENGTH * 16 * 4)
    assert look.weight_bytes == LENGTH * 16 * 4  # the rows that are read, not the table
    small = graph_costs(path).ops[0]
    assert (small.weight_bytes, small.write_bytes) == (LENGTH * 16, LENGTH * 16)
    assert graph_costs(path).macs == graph_costs(real).macs == 16 * 3


def test_products_over_tokens_count_as_int8(tmp_path):
    real, path = files(encoder(), tmp_path)
    costs, floats = graph_costs(path), graph_costs(real)
    # A layer: 32 x (96 + 32 + 64 + 64) a token, and twice 24 x 24 x 32 in float for the attention.
    stored_macs = LENGTH * (16 * 32 + 2 * 32 * 256)
    assert sum(op.macs for op in costs.ops if op.bits == 8) == stored_macs
    assert costs.macs == floats.macs == stored_macs + 4 * LENGTH * LENGTH * 32 + 32 * 3
    product = next(op for op in costs.ops if op.macs == LENGTH * 32 * 96)
    assert product.weight_bytes == 32 * 96
    assert product.read_bytes == LENGTH * 32 + 1  # levels, and the zero point
    assert product.write_bytes == LENGTH * 96 * 4
    # Sums, made float and scaled where they are: the peak is the float file's, or below.
    assert costs.peak_activation_bytes <= floats.peak_activation_bytes


def test_float_arithmetic_behind_a_table_needs_float_tensors(tmp_path):
    """What is made float to be added, moved or normalised is not held as int8."""
    for network in (encoder(), textconv(1)):
        _, path = files(network, tmp_path)
        costs = graph_costs(path)
        behind = next(op for op in costs.ops[1:] if op.output_elements == LENGTH * 16)
        assert (behind.bits, behind.write_bytes) == (32, LENGTH * 16 * 4)


@pytest.mark.parametrize("network", [encoder(), textconv(2)], ids=["encoder", "textconv"])
def test_the_planner_foretells_the_bytes(tmp_path, network):
    device = load_device("raspberry-pi-4")
    costing = Costing(device=device, limits=(), precision="int8", meta=META)
    foretold = {f.name: f.value for f in cost_of(network, costing)[1]}
    _, path = files(network, tmp_path)
    assert foretold["storage_bytes"] == pytest.approx(path.stat().st_size, rel=0.01)


def test_files_beside_the_model_count_in_its_storage():
    device = load_device("raspberry-pi-4")
    limits = (Limit(metric="storage_bytes", value=20_000.0),)
    spec = StudentSpec(family="textconv", knobs=TextConvSpec(embedding=8, **GIVEN))
    alone = Costing(device=device, limits=limits, precision="int8", meta=META)
    beside = replace(alone, beside=(SideFile(name="tokenizer.json", bytes=25_000),))
    one, other = weigh(spec, alone), weigh(spec, beside)
    assert other.figure("storage_bytes") == one.figure("storage_bytes") + 25_000
    assert (one.missed, other.missed) == ((), ("storage_bytes",))
    where = next(f.where for f in other.figures if f.name == "storage_bytes")
    assert where.startswith("model ") and where.endswith("+ tokenizer.json 25 kB")


def test_teaching_on_rounds_as_the_file_does(tmp_path):
    """In torch, with everything but positions rounded, the network says what the file says."""
    network, ids = encoder(), some_ids(8, seed=4)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    _, path = files(network, tmp_path, keep_float=("positions", "head"))
    with torch.no_grad(), quantization_aware(network):
        network.head.parametrizations["weight"][0] = nn.Identity()
        felt = network(torch.from_numpy(ids)).numpy()
    exact = network(torch.from_numpy(ids)).detach().numpy()
    # A level may fall on the other side where a sum differs in its last bit.
    assert np.abs(felt - run_onnx(path, ids)).max() < 0.2 * np.abs(felt - exact).max()
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_an_embedding_learns_under_rounding():
    network = textconv(0).train()
    with quantization_aware(network):
        network(torch.from_numpy(some_ids(4))).square().sum().backward()
        grad = network.embedding.parametrizations["weight"].original.grad
        assert grad is not None and grad.abs().sum() > 0
