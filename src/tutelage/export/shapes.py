"""Shapes and element types of an ONNX graph, onnxruntime's own operators included."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# fmt: off
# onnx infers no shapes for onnxruntime's own operators: each is read as the standard operator of
# the same shape, fed with these of its inputs.
_ONE, _BOTH, _PAIR = slice(0, 1), slice(0, 2), slice(0, 4, 3)
_STAND_IN: dict[str, tuple[str, slice]] = {
    "QLinearAdd": ("Add", _PAIR), "QLinearMul": ("Mul", _PAIR), "QGemm": ("Gemm", _PAIR),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _ONE),
    "QLinearAveragePool": ("AveragePool", _ONE), "QLinearSigmoid": ("Identity", _ONE),
    "QLinearLeakyRelu": ("Identity", _ONE), "QLinearSoftmax": ("Identity", _ONE),
    "Gelu": ("Identity", _ONE), "FastGelu": ("Identity", _ONE), "QuickGelu": ("Identity", _ONE),
    "FusedConv": ("Conv", slice(0, 3)), "FusedGemm": ("Gemm", slice(0, 3)),
    "DynamicQuantizeMatMul": ("MatMul", _BOTH), "MatMulIntegerToFloat": ("MatMul", _BOTH),
    "QuantizeLinear": ("QuantizeLinear", slice(0, 3)),
    "DequantizeLinear": ("DequantizeLinear", slice(0, 3)),
}
# fmt: on


def infer(model: ModelProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and element type of every tensor whose shape is known at batch 1.

    What onnx raises for a damaged graph comes through: it has no common base.
    """
    from onnx import ModelProto, TensorProto, shape_inference

    copy = ModelProto.FromString(model.SerializeToString())
    batches = set()
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            batches.add(dims[0].dim_param)
            dims[0].dim_value = 1
    for value in (*copy.graph.value_info, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in batches:
                dim.dim_value = 1
    floats = {_stand_in(node) for node in copy.graph.node}
    graph = shape_inference.infer_shapes(copy, data_prop=True).graph
    found = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            element = TensorProto.FLOAT if value.name in floats else kind.elem_type
            found[value.name] = (tuple(dim.dim_value for dim in kind.shape.dim), element)
    return found


def _stand_in(node: NodeProto) -> str | None:
    """Turn an operator of onnxruntime's own into its stand-in; name its output if it is float."""
    known = node.domain == "com.microsoft" and node.op_type in _STAND_IN
    if not known or any(a.name == "channels_last" and a.i for a in node.attribute):
        return None
    is_float = node.op_type in {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} or (
        node.op_type == "QGemm" and len([name for name in node.input if name]) < 8
    )
    kind, picked = _STAND_IN[node.op_type]
    node.domain, node.op_type, inputs = "", kind, list(node.input)[picked]
    del node.input[:]
    node.input.extend(inputs)
    return node.output[0] if is_float else None
