"""Costs of exported graphs against hand-worked figures and published ones."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tutelage.export.graph import graph_costs

FLOAT, INT8, INT32 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT32


class Net:
    """Writes small ONNX graphs, one call an operator."""

    def __init__(self, *shape: int | str) -> None:
        self.nodes, self.constants, self.shape = [], [], shape
        self.random = np.random.default_rng(0)

    def const(self, values) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const(self.random.standard_normal(shape).astype(np.float32))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], out, domain=domain, **attributes))
        return out

    def conv(self, x, cin, cout, kernel, stride=1, group=1, relu=True) -> str:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        weights = (self.weight(cout, cin // group, *kernel), self.weight(cout))
        step = [stride, stride]
        y = self.op("Conv", x, *weights, auto_pad="SAME_UPPER", strides=step, group=group)
        return self.op("Relu", y) if relu else y

    def dense(self, x, n_in, n_out) -> str:
        return self.op("Gemm", x, self.weight(n_in, n_out), self.weight(n_out))

    def classify(self, x, channels, classes) -> str:
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, classes)

    def scale(self) -> tuple[str, str]:
        return self.const(np.float32(0.05)), self.const(np.int8(0))

    def pair(self, x: str) -> str:
        scale = self.scale()
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *scale), *scale)

    def fixed(self, *shape: int, dtype: type = np.int8) -> str:
        values = self.const(np.ones(shape, dtype=dtype))
        return self.op("DequantizeLinear", values, self.const(np.float32(0.1)))

    def model(self, *outputs: str, kind: int = FLOAT, input_kind: int = FLOAT, shape=()):
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", input_kind, self.shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
            for dim in shape or _shape_of(model, value.name):
                value.type.tensor_type.shape.dim.add().dim_value = dim
        return model


def _shape_of(model, name):
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.output:
        if value.name == name and value.type.tensor_type.HasField("shape"):
            return [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return [1, 10]


def _small() -> tuple[Net, str]:
    net = Net(1, 3, 8, 8)
    x = net.op("MaxPool", net.conv("x", 3, 4, 3), kernel_shape=[2, 2], strides=[2, 2])
    return net, net.dense(net.op("Flatten", x), 64, 10)


def ds_cnn() -> onnx.ModelProto:
    net = Net(1, 1, 49, 10)
    x = net.conv("x", 1, 64, (10, 4), 2)
    for _ in range(4):
        x = net.conv(net.conv(x, 64, 64, 3, group=64), 64, 64, 1)
    return net.model(net.classify(x, 64, 12))


def mobilenet_quarter() -> onnx.ModelProto:
    net = Net(1, 3, 96, 96)
    x, width = net.conv("x", 3, 8, 3, 2), 8
    plan = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2)]
    plan += [(128, 1)] * 5 + [(256, 2), (256, 1)]
    for out, stride in plan:
        x = net.conv(net.conv(x, width, width, 3, stride, group=width), width, out, 1)
        width = out
    return net.model(net.classify(x, width, 2))


def resnet8() -> onnx.ModelProto:
    net = Net(1, 3, 32, 32)
    x, width = net.conv("x", 3, 16, 3), 16
    for out, stride in [(16, 1), (32, 2), (64, 2)]:
        y = net.conv(net.conv(x, width, out, 3, stride), out, out, 3, relu=False)
        side = x if stride == 1 else net.conv(x, width, out, 1, stride, relu=False)
        x, width = net.op("Relu", net.op("Add", y, side)), out
    return net.model(net.classify(x, 64, 10))


def autoencoder() -> onnx.ModelProto:
    net = Net(1, 640)
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    x = "x"
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        x = net.dense(x, n_in, n_out)
    return net.model(x)


@pytest.mark.parametrize(
    ("build", "macs"),
    [(ds_cnn, 2.66e6), (mobilenet_quarter, 7.49e6), (resnet8, 12.5e6), (autoencoder, 0.264e6)],
)
def test_mlperf_tiny_structures_have_their_published_macs(build, macs):
    assert graph_costs(build()).macs == pytest.approx(macs, rel=0.01)


def test_a_small_graph_costs_what_the_hand_says():
    net, out = _small()
    model = net.model(out)
    costs = graph_costs(model)
    conv, pool, gemm = costs.ops
    assert [op.op for op in costs.ops] == ["conv", "pool", "linear"]
    assert conv.macs == 8 * 8 * 4 * 3 * 9 and gemm.macs == 640 and pool.macs == 0
    assert costs.macs == 6912 + 640
    assert conv.weight_bytes == 4 * (4 * 3 * 9 + 4)
    assert (conv.read_bytes, conv.write_bytes) == (768, 1024)
    assert (pool.read_bytes, pool.write_bytes, pool.output_elements) == (1024, 256, 64)
    assert (gemm.read_bytes, gemm.write_bytes) == (256, 40)
    assert costs.peak_activation_bytes == 768 + 1024  # the Relu writes over its input
    assert costs.parameter_bytes == 4 * (108 + 4 + 640 + 10)
    assert costs.file_bytes == model.ByteSize()
    assert {op.bits for op in costs.ops} == {32}


def test_groups_and_depthwise():
    net = Net(1, 8, 5, 5)
    x = net.conv("x", 8, 12, 3, group=4)
    costs = graph_costs(net.model(net.conv(x, 12, 12, 3, group=12)))
    assert [(op.op, op.macs) for op in costs.ops] == [
        ("conv", 25 * 12 * 2 * 9),
        ("depthwise", 25 * 12 * 9),
    ]


def test_transposed_convolution_and_gemm_and_batched_matmul():
    net = Net(1, 2, 4, 4)
    up = net.op("ConvTranspose", "x", net.weight(2, 3, 2, 2), strides=[2, 2])  # 3 x 8 x 8
    square = net.op("MatMul", up, up)  # 3 products of 8x8 by 8x8
    flat = net.op("Reshape", square, net.const(np.array([64, 3])))
    out = net.op("Gemm", flat, net.weight(5, 64), transA=1, transB=1)  # [3, 64] x [64, 5]
    macs = {op.name: op.macs for op in graph_costs(net.model(out)).ops}
    assert list(macs.values()) == [2 * 16 * 3 * 4, 3 * 8**3, 3 * 64 * 5]


def test_a_skip_connection_keeps_its_tensor_alive():
    net = Net(1, 4, 8, 8)
    a = net.conv("x", 4, 4, 3)
    b = net.conv(a, 4, 8, 3)
    c = net.conv(b, 8, 4, 3, relu=False)
    costs = graph_costs(net.model(net.op("Add", c, a)))
    # a (1024) waits while b (2048) becomes c (1024)
    assert costs.peak_activation_bytes == 1024 + 2048 + 1024


def test_relu_is_not_in_place_when_its_input_is_read_again():
    net = Net(1, 4, 8, 8)
    a = net.conv("x", 4, 4, 3, relu=False)
    shared = graph_costs(net.model(net.op("Mul", net.op("Relu", a), a)))
    assert shared.peak_activation_bytes == 3 * 1024
    assert [op.op for op in shared.ops] == ["conv", "other", "other"]


def test_what_only_passes_on_what_another_wrote_is_counted_with_that():
    net = Net(1, 4, 8, 8)
    axis = net.const(np.array([1]))
    a = net.op("Sigmoid", net.op("Unsqueeze", "x", axis))
    flat = net.op("Flatten", net.op("Relu", net.op("Squeeze", a, axis)))
    costs = graph_costs(net.model(net.op("Relu", net.dense(flat, 256, 10))))
    assert [(op.kind, op.views) for op in costs.ops] == [("Sigmoid", 3), ("Gemm", 0)]
    assert costs.ops[0].output_elements == 256


def test_relu_is_not_in_place_behind_a_view_that_is_read_again():
    net = Net(1, 4, 8, 8)
    a = net.conv("x", 4, 4, 3, relu=False)
    flat = net.op("Flatten", a)
    hot = net.op("Relu", flat)
    back = net.op("Reshape", hot, net.const(np.array([1, 4, 8, 8])))
    assert graph_costs(net.model(net.op("Add", back, a))).peak_activation_bytes == 3 * 1024


def _qdq(classifier: bool = True) -> onnx.ModelProto:
    net = Net(1, 3, 8, 8)
    bias = net.fixed(4, dtype=np.int32)
    y = net.op("Conv", net.pair("x"), net.fixed(4, 3, 3, 3), bias, pads=[1, 1, 1, 1])
    x = net.op("MaxPool", net.pair(net.op("Relu", y)), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", net.pair(x))
    if classifier:
        x = net.pair(net.op("MatMul", x, net.fixed(64, 10)))
    return net.model(x)


def test_qdq_is_counted_as_the_int8_operators_it_fuses_to():
    costs = graph_costs(_qdq())
    conv, pool, linear = costs.ops
    assert [(op.op, op.bits) for op in costs.ops] == [("conv", 8), ("pool", 8), ("linear", 8)]
    assert (conv.macs, linear.macs) == (6912, 640)
    assert (conv.read_bytes, conv.write_bytes) == (192, 256)
    assert (pool.read_bytes, pool.write_bytes) == (256, 64)
    assert (linear.read_bytes, linear.write_bytes) == (64, 10)
    assert conv.weight_bytes == 108 + 4 + 4 * 4 + 4  # int8 weights, int32 bias, a scale each
    assert costs.peak_activation_bytes == 192 + 256


def test_a_layer_left_in_float_needs_float_tensors():
    net = Net(1, 4, 8, 8)
    a = net.pair(net.op("Conv", net.pair("x"), net.fixed(4, 4, 1, 1)))
    costs = graph_costs(net.model(net.op("Conv", a, net.weight(4, 4, 1, 1))))
    assert [op.bits for op in costs.ops] == [8, 32]
    assert (costs.ops[1].read_bytes, costs.ops[1].write_bytes) == (1024, 1024)
    assert costs.peak_activation_bytes == 1024 + 1024  # float in, float out


def test_what_a_float_layer_makes_is_held_twice_while_it_is_quantized():
    net = Net(1, 4, 8, 8)
    made = net.op("Conv", "x", net.weight(4, 4, 1, 1))
    (conv,) = graph_costs(net.model(net.pair(made))).ops
    assert (conv.bits, conv.write_bytes) == (32, 1024)  # the int8 copy is another buffer


def test_weights_alone_in_int8_do_not_make_the_arithmetic_int8():
    net = Net(1, 4, 8, 8)
    (conv,) = graph_costs(net.model(net.op("Conv", "x", net.fixed(4, 4, 1, 1)))).ops
    assert (conv.bits, conv.weight_bytes, conv.read_bytes) == (32, 16 + 4, 1024)


def test_integer_operators_count_like_their_float_forms():
    net = Net(1, 4, 8, 8)
    s = net.scale()
    w = (net.const(np.ones((6, 4, 3, 3), np.int8)), *s)
    x = net.op("QuantizeLinear", "x", *s)
    y = net.op("QLinearConv", x, *s, *w, *s)
    y = net.op("QLinearAdd", y, *s, y, *s, *s, domain="com.microsoft")
    y = net.op("QLinearGlobalAveragePool", y, *s, *s, domain="com.microsoft")
    y = net.op("Flatten", y)
    y = net.op("QGemm", y, *s, net.const(np.ones((6, 5), np.int8)), *s, "", *s,
               domain="com.microsoft", transB=0)  # fmt: skip
    y = net.op("QLinearMatMul", y, *s, net.const(np.ones((5, 7), np.int8)), *s, *s)
    y = net.op("MatMulInteger", y, net.const(np.ones((7, 3), np.int8)))
    costs = graph_costs(net.model(y, kind=INT32, shape=(1, 3)))
    assert {op.bits for op in costs.ops} == {8}
    assert [op.op for op in costs.ops] == ["conv", "add", "pool", "linear", "linear", "linear"]
    assert [op.macs for op in costs.ops] == [36 * 6 * 36, 0, 0, 30, 35, 21]
    assert [op.write_bytes for op in costs.ops] == [216, 216, 6, 5, 7, 12]


def test_conv_integer():
    net = Net(1, 4, 8, 8)
    y = net.op("ConvInteger", "x", net.const(np.ones((6, 4, 3, 3), np.int8)))
    (conv,) = graph_costs(net.model(y, kind=INT32, input_kind=INT8)).ops
    assert (conv.macs, conv.bits, conv.read_bytes) == (36 * 6 * 36, 8, 256)


def test_onnxruntime_quantizers_agree_with_the_float_graph(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    float_path = tmp_path / "float.onnx"
    onnx.save(resnet8(), float_path)
    plain = graph_costs(float_path)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            random = np.random.default_rng(0)
            self.batches = [random.random((1, 3, 32, 32), np.float32) for _ in range(2)]

        def get_next(self):
            return {"x": self.batches.pop()} if self.batches else None

    for style in (quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator):
        path = tmp_path / f"{style}.onnx"
        quantization.quantize_static(
            str(float_path), str(path), Reader(), quant_format=style, per_channel=True
        )
        costs = graph_costs(path)
        assert costs.macs == plain.macs
        assert {op.bits for op in costs.ops} == {8}
        assert costs.peak_activation_bytes == pytest.approx(
            plain.peak_activation_bytes / 4, rel=0.01
        )
        assert costs.parameter_bytes < plain.parameter_bytes / 3
        assert costs.file_bytes == path.stat().st_size


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter, of itself
def test_a_torch_export_with_dynamic_batch(tmp_path):
    import torch

    from tutelage.students.families.convnet import ConvNet, ConvNetSpec

    spec = ConvNetSpec(image=(1, 8, 8), classes=10, widths=(4, 8), depths=(1, 1))
    module, path = ConvNet(spec).eval(), tmp_path / "student.onnx"
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    program.save(str(path))
    macs = 64 * 4 * 9 + 2 * 64 * 4 * 36 + 16 * 8 * (36 + 72 + 4) + 80
    costs = graph_costs(path)
    assert costs.macs == macs
    # within block one: its input, which the shortcut keeps, one tensor read and one written
    assert costs.peak_activation_bytes == 3 * 4 * 64 * 4


def test_elements_and_bytes_are_consistent():
    for op in graph_costs(resnet8()).ops:
        assert op.write_bytes == 4 * op.output_elements
        assert math.isfinite(op.macs) and op.read_bytes > 0
