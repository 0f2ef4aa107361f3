"""Making an ONNX file as small as its numbers: short names, no noise, no value stored twice.

Covers names, defaults, value shapes, documentation, exporter metadata and duplicate constants. It
never changes a number, an operator or the names of the graph's inputs and outputs.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import ExportError
from tutelage.export.artifact import META_KEYS, load_onnx
from tutelage.files import write_atomically

if TYPE_CHECKING:
    import onnx

# Attributes that say nothing more than the operator's own default, or than its weight's shape.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {"group": 1, "auto_pad": b"NOTSET", "kernel_shape": ..., "dilations": 1, "strides": 1,
             "pads": 0},
    "QLinearConv": {"group": 1, "auto_pad": b"NOTSET", "kernel_shape": ..., "dilations": 1,
                    "strides": 1, "pads": 0},
    "MaxPool": {"auto_pad": b"NOTSET", "ceil_mode": 0, "dilations": 1, "pads": 0, "strides": 1,
                "storage_order": 0},
    "AveragePool": {"auto_pad": b"NOTSET", "ceil_mode": 0, "dilations": 1, "pads": 0, "strides": 1,
                    "count_include_pad": 0},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "Flatten": {"axis": 1},
    "Reshape": {"allowzero": 0},
    "ReduceMean": {"keepdims": 1, "noop_with_empty_axes": 0},
    "DequantizeLinear": {"axis": 1},
    "QuantizeLinear": {"axis": 1, "saturate": 1},
}  # fmt: skip


def shrink(path: Path | str, *, keep_layer_names: bool = False) -> int:
    """Rewrite the ONNX file at `path` in its leanest form and return its bytes.

    `keep_layer_names` keeps node names, so that layers can be pointed at. Raises
    `CorruptFileError` when the file cannot be parsed and `DiskError` when it cannot be written.
    """
    data = shrunk(load_onnx(path), keep_layer_names=keep_layer_names).SerializeToString()
    write_atomically(Path(path), data)
    return len(data)


def shrunk(model: onnx.ModelProto, *, keep_layer_names: bool = False) -> onnx.ModelProto:
    """Return a lean copy of `model`."""
    import onnx

    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    graph = lean.graph
    _hoist_constants(graph)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        lean.ClearField(field)
    graph.ClearField("doc_string")
    graph.name = "g"
    del graph.value_info[:]
    for node in graph.node:
        _strip_node(node, keep_layer_names)
    _merge_initializers(graph)
    _rename(graph)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    del graph.metadata_props[:]
    _strip_model(lean)
    return lean


def _strip_model(model: onnx.ModelProto) -> None:
    kept = [(p.key, p.value) for p in model.metadata_props if p.key in META_KEYS]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    del model.functions[:]
    used = {node.domain for node in model.graph.node}
    imports = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    for domain, version in imports:
        entry = model.opset_import.add(version=version)
        if domain:
            entry.domain = domain


def _strip_node(node: onnx.NodeProto, keep_name: bool) -> None:
    import onnx

    for field in ("doc_string", "overload") if keep_name else ("doc_string", "overload", "name"):
        node.ClearField(field)
    if not node.domain:
        node.ClearField("domain")
    del node.metadata_props[:]
    defaults = _DEFAULTS.get(node.op_type, {}) if not node.domain else {}
    kept = [a for a in node.attribute if not _is_default(a, defaults, onnx)]
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    for attribute in kept:
        attribute.ClearField("doc_string")
        node.attribute.append(attribute)


def _is_default(attribute: onnx.AttributeProto, defaults: dict[str, Any], onnx: Any) -> bool:
    if attribute.name not in defaults:
        return False
    default, value = defaults[attribute.name], onnx.helper.get_attribute_value(attribute)
    if default is ...:
        return True
    return all(v == default for v in value) if isinstance(value, list) else value == default


def _hoist_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, which merge and need no operator."""
    from onnx import AttributeProto

    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise ExportError(
                f"operator {node.op_type} holds a graph of its own (a branch or loop in the "
                "network), which is not supported. Write the network without it."
            )
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.append(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    # Copies first: clearing the list would empty the messages it holds.
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _merge_initializers(graph: onnx.GraphProto) -> None:
    """Keep one copy of each constant, in raw form, and none that nobody reads."""
    from onnx import TensorProto, numpy_helper

    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    first: dict[tuple[Any, ...], str] = {}
    replaced: dict[str, str] = {}
    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name not in read:
            continue
        array = numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), array.tobytes())
        replaced[tensor.name] = first.setdefault(key, tensor.name)
        if replaced[tensor.name] == tensor.name:
            kept.append(numpy_helper.from_array(array, tensor.name))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = replaced.get(name, name)


def _rename(graph: onnx.GraphProto) -> None:
    """Give the most used tensors the shortest names; inputs and outputs keep theirs."""
    fixed = {v.name for v in (*graph.input, *graph.output)} | {""}
    uses = Counter(n for node in graph.node for n in (*node.input, *node.output))
    uses.update(t.name for t in graph.initializer)
    names = (name for name in _short_names() if name not in fixed)
    short = {name: next(names) for name, _ in uses.most_common() if name not in fixed}
    for node in graph.node:
        for names_of in (node.input, node.output):
            for i, name in enumerate(names_of):
                names_of[i] = short.get(name, name)
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)


def _short_names() -> Iterator[str]:
    """Yield C identifiers, as the ONNX standard asks of names, the shortest first."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)
