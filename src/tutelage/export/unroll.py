"""A file that stops early (`export.exits`), read as the operators of one way through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto


def ways(model: ModelProto) -> int:
    """Return how many ways there are through a file: one more than it has exits."""
    count, graph = 1, model.graph
    while (stop := _stop(graph)) is not None:
        count, graph = count + 1, _branch(stop, "else_branch")
    return count


def way(model: ModelProto, at: int | None = None) -> ModelProto:
    """Return the operators that run where an input stops at exit `at`, as a file without If.

    None, or as many as there are exits, is the way to the end. A file without exits is its own.
    """
    from onnx import ModelProto

    if ways(model) == 1:
        return model
    flat = ModelProto.FromString(model.SerializeToString())
    graph, last = flat.graph, ways(model) - 1
    for number in range(last if at is None else min(at + 1, last)):
        stop = _stop(graph)
        assert stop is not None
        branch = _branch(stop, "then_branch" if number == at else "else_branch")
        names = {o.name: said for o, said in zip(branch.output, stop.output, strict=True)}
        graph.node.remove(stop)
        for node in branch.node:
            graph.node.append(node)
            for i, name in enumerate(graph.node[-1].output):
                graph.node[-1].output[i] = names.get(name, name)
        graph.initializer.extend(branch.initializer)
    return flat


def _stop(graph: GraphProto) -> NodeProto | None:
    """Return the If behind an exit: the last operator, which on one side repeats a decision."""
    last = graph.node[-1] if graph.node else None
    if last is None or last.op_type != "If":
        return None
    return last if {n.op_type for n in _branch(last, "then_branch").node} == {"Identity"} else None


def _branch(node: NodeProto, name: str) -> GraphProto:
    found: dict[str, AttributeProto] = {a.name: a for a in node.attribute}
    return found[name].g
