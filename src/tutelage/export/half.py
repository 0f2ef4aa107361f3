"""float16 storage for ONNX: half the bytes of a float32 file, and its arithmetic.

onnxruntime has hardly a float16 kernel for processors, so weights are stored in float16 and a Cast
to float32 stands before their readers. onnxruntime folds it when it loads the file: the operators
are then those of the float32 file. A table that tokens are looked up in stays float16, and only the
rows read become float32. While a file is loaded both forms of a weight lie in memory. Not covered:
arithmetic in float16, and runtimes that fold no constants.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tutelage.export.artifact import load_onnx
from tutelage.export.layers import table_of
from tutelage.export.shrink import shrunk
from tutelage.files import write_atomically

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_FEWEST = 32  # numbers of a weight; a Cast takes as many bytes as 13 numbers save
_LARGEST = 65_504.0  # of float16
_FLOAT = 1  # onnx.TensorProto.FLOAT


def write_float16(float_path: Path | str, path: Path | str) -> tuple[str, ...]:
    """Write `float_path` with its weights in float16; return the layers that were left in float32.

    These have a weight beyond 65,504 (or none that is a number), which float16 cannot hold.
    """
    model = load_onnx(float_path)
    graph = model.graph
    halved, beyond = _halved(graph)
    tables = {t.name: t for t in graph.initializer}
    rows = {id(n): n for n in graph.node if n.op_type == "Gather" and table_of(n, tables) in halved}
    left = [n.name or n.op_type for n in graph.node if not beyond.isdisjoint(n.input)]
    whole = {name for n in graph.node if id(n) not in rows for name in n.input} & halved.keys()
    nodes = [_cast(f"{name}.h", name) for name in sorted(whole)]
    for node in graph.node:
        nodes.append(node)
        if id(node) in rows:
            out = node.output[0]
            node.input[0], node.output[0] = f"{node.input[0]}.h", f"{out}.h"
            nodes.append(_cast(f"{out}.h", out))
    kept = [halved.get(t.name, t) for t in graph.initializer]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    tensors = [type(t).FromString(t.SerializeToString()) for t in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(tensors)
    write_atomically(Path(path), shrunk(model).SerializeToString())
    return tuple(left)


def _halved(graph: GraphProto) -> tuple[dict[str, TensorProto], set[str]]:
    """Return weights in float16 by their names, and the names of those that it cannot hold."""
    from onnx import numpy_helper

    halved: dict[str, TensorProto] = {}
    beyond: set[str] = set()
    outputs = {value.name for value in graph.output}
    for tensor in graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if tensor.data_type != _FLOAT or weight.size < _FEWEST or tensor.name in outputs:
            continue
        if not (np.abs(weight) <= _LARGEST).all():
            beyond.add(tensor.name)
        else:
            name = f"{tensor.name}.h"
            halved[tensor.name] = numpy_helper.from_array(weight.astype(np.float16), name)
    return halved, beyond


def _cast(source: str, target: str) -> NodeProto:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], to=_FLOAT)
