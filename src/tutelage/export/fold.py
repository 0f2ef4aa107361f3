"""Integer arithmetic on constants, which an exporter left in a graph, is done here once.

Position ids and the shapes of expansions are such: while they are computed in the graph, no shape
behind them is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_INTEGERS = (6, 7, 9)  # int32, int64 and bool in onnx.TensorProto


def fold_integers(model: onnx.ModelProto) -> None:
    """Replace, in place, each node of constant inputs and integer (or boolean) outputs by these."""
    from onnx import numpy_helper

    graph = model.graph
    known = {
        t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type in _INTEGERS
    }
    kept = []
    for node in graph.node:
        found = _value(node, known, model)
        if found is None:
            kept.append(node)
            continue
        for name, value in zip(node.output, found, strict=True):
            known[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    if len(kept) == len(graph.node):
        return
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unread(graph)


def _value(
    node: onnx.NodeProto, known: dict[str, np.ndarray], model: onnx.ModelProto
) -> list[np.ndarray] | None:
    """Return what a node of known integers computes, or None where it is no such node."""
    import onnxruntime
    from onnx import helper, numpy_helper

    names = [name for name in node.input if name]
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        found = [numpy_helper.to_array(node.attribute[0].t)]
    elif names and not node.domain and all(name in known for name in names):
        given = [numpy_helper.from_array(known[name], name) for name in names]
        said = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", [], said, initializer=given)
        one = helper.make_model(
            graph, opset_imports=model.opset_import, ir_version=model.ir_version
        )
        session = onnxruntime.InferenceSession(one.SerializeToString())
        found = [np.asarray(value) for value in session.run(None, {})]
    else:
        return None
    return found if all(value.dtype in (np.int32, np.int64, np.bool_) for value in found) else None


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
