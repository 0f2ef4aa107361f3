"""Which operators of a float graph hold the weights that int8 applies to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_PRODUCTS = ("Conv", "Gemm", "MatMul")


def layers_of(graph: GraphProto) -> list[tuple[str, NodeProto]]:
    """Return the name and node of every layer, in graph order."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        node
        for node in graph.node
        if (node.op_type in _PRODUCTS and node.input[1] in constants) or table_of(node, constants)
    ]
    return [(node.name or f"{node.op_type}_{i}", node) for i, node in enumerate(nodes)]


def table_of(node: NodeProto, constants: dict[str, TensorProto]) -> str:
    """Return the float table that a node looks rows up in, or adds (positions); "" if none."""
    if node.op_type == "Gather" and not any(a.i for a in node.attribute):  # rows: axis 0
        names = node.input[:1]
    else:
        names = node.input if node.op_type == "Add" else ()
    return next((name for name in names if _is_table(constants.get(name))), "")


def _is_table(tensor: TensorProto | None) -> bool:
    if tensor is None or tensor.data_type != tensor.FLOAT:
        return False
    return len(tensor.dims) > 1 and min(tensor.dims[-2:]) > 1


def is_grouped(node: NodeProto) -> bool:
    """Say whether a convolution has several groups."""
    return any(a.name == "group" and a.i > 1 for a in node.attribute)
