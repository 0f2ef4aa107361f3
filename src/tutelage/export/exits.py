"""One ONNX file that stops early: operators behind an exit run only where it is not sure.

Covers files of a network that says its final decision and then each exit's side by side
(`students.exits.ExitingNetwork`), float32 or int8, at batch 1. What is left to do lies in the
`else` of an If, a standard operator; its constants lie there too, since onnxruntime packs only
those for its integer kernels. Does not cover free batches: each example has its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import ExportError
from tutelage.export.artifact import attach_meta, load_onnx, read_meta
from tutelage.export.graph import GraphCosts, graph_costs
from tutelage.files import write_atomically

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_SHARED_BYTES = 64  # constants up to here are copied where several parts read them


def write_exits(
    path: Path, target: Path, *, used: Sequence[int], thresholds: Sequence[float],
    after: Sequence[str], end: int | None = None,
) -> Path:  # fmt: skip
    """Write the file that stops early, made of one with all decisions side by side.

    Its outputs are `logits`, the decision of where the input stopped, and `exit`: which of the
    `used` exits that was, or as many as there are where it went to the end. An input stops where
    the largest probability reaches the exit's threshold. The metadata name the taps (`after`) and
    the thresholds. With no exit in use the final decision alone is left. `end` is the exit at
    which the file ends: its decision is the final one, and what lies behind it is left out.
    """
    model, meta = load_onnx(path), read_meta(path)
    decisions = decisions_of(model)
    last = decisions[0 if end is None else 1 + end]
    if used:
        order = [decisions[1 + e] for e in used]
        made = _Builder(model, [*order, last], thresholds).build()
        exits = {"after": list(after), "thresholds": [float(t) for t in thresholds]}
        meta = replace(meta, details={**meta.details, "exits": exits})
    else:
        made = part_of(model, [last])
        _rename_output(made, last)
    attach_meta(made, meta)
    write_atomically(target, made.SerializeToString())
    return target


def path_costs(
    path: Path, price: Callable[[GraphCosts], float]
) -> Callable[[tuple[int, ...]], tuple[float, ...]]:
    """Return what each way through a file with all its decisions costs, by the exits in use.

    The function's answer is one price for each exit in use, and one for going on to the end.
    """
    model = load_onnx(path)
    decisions = decisions_of(model)
    known: dict[tuple[int, ...], float] = {}

    def priced(outputs: tuple[int, ...]) -> float:
        if outputs not in known:
            known[outputs] = price(graph_costs(part_of(model, [decisions[i] for i in outputs])))
        return known[outputs]

    def costs(used: tuple[int, ...]) -> tuple[float, ...]:
        early = [tuple(1 + e for e in used[: i + 1]) for i in range(len(used))]
        return tuple(map(priced, [*early, (*(1 + e for e in used), 0)]))

    return costs


def decisions_of(model: ModelProto) -> list[str]:
    """Name the tensors of the final decision and of each exit's, which the file's output joins."""
    graph = model.graph
    last = next((n for n in graph.node if graph.output[0].name in n.output), None)
    if last is None or last.op_type != "Concat" or len(last.input) < 2:
        raise ExportError(
            "the exits' decisions are not side by side in the exported file; remove student.exits"
        )
    return list(last.input)


def part_of(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """Return the model with these tensors as outputs, and no operator that they do not need."""
    from onnx import ModelProto, TensorProto, helper

    part = ModelProto.FromString(model.SerializeToString())
    needed = _needed(part.graph, outputs)
    nodes = [node for i, node in enumerate(model.graph.node) if i in needed]
    read = {name for node in nodes for name in node.input}
    constants = [t for t in model.graph.initializer if t.name in read]
    del part.graph.node[:], part.graph.initializer[:], part.graph.output[:]
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(constants)
    classes = _classes(model)
    part.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, classes]) for name in outputs
    )
    return part


def _needed(graph: GraphProto, outputs: Sequence[str]) -> set[int]:
    """Return the operators (indices) that tensors depend on."""
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    waiting = [name for name in outputs if name in made_by]
    while waiting:
        at = made_by[waiting.pop()]
        if at not in found:
            found.add(at)
            waiting += [name for name in graph.node[at].input if name in made_by]
    return found


def _classes(model: ModelProto) -> int:
    shape = model.graph.output[0].type.tensor_type.shape
    return shape.dim[1].dim_value // len(decisions_of(model))


def _rename_output(model: ModelProto, name: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, found in enumerate(names):
                names[i] = "logits" if found == name else found
    model.graph.output[0].name = "logits"


class _Builder:
    """Nests what comes behind each exit in the `else` of its If.

    Names in the file are of letters alone (`export.shrink`), so those with digits are new ones.
    """

    def __init__(
        self, model: ModelProto, decisions: Sequence[str], thresholds: Sequence[float]
    ) -> None:
        self.model, self.decisions, self.thresholds = model, decisions, thresholds
        graph = model.graph
        self.classes = _classes(model)
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.parts: list[list[NodeProto]] = []
        done: set[int] = set()
        for name in decisions:
            found = _needed(graph, [name])
            self.parts.append([graph.node[i] for i in sorted(found - done)])
            done |= found

    def build(self) -> ModelProto:
        """Return the model with its branches nested."""
        from onnx import ModelProto, TensorProto, helper

        made = ModelProto.FromString(self.model.SerializeToString())
        nodes, constants = self._level(0, {t.name: t for t in self.model.graph.initializer})
        del made.graph.node[:], made.graph.initializer[:], made.graph.output[:]
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(constants)
        made.graph.output.extend(
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, self.classes]),
                helper.make_tensor_value_info("exit", TensorProto.INT64, [1]),
            ]
        )
        return made

    def _level(
        self, at: int, held: dict[str, TensorProto]
    ) -> tuple[list[NodeProto], list[TensorProto]]:
        """Return the operators and constants of part `at`, with all that comes behind it.

        `held` are the constants that no part before it holds.
        """
        import numpy as np
        from onnx import helper, numpy_helper

        nodes = self._own(at)
        constants, held = _constants(nodes, held, at)
        decision = self.decisions[at]
        said, place = ("logits", "exit") if at == 0 else (f"y{at}", f"e{at}")
        here = numpy_helper.from_array(np.array([at], np.int64), f"i{at}")
        if at == len(self.thresholds):
            nodes += [_same(decision, said), _same(here.name, place)]
            return nodes, [*constants, here]
        threshold = numpy_helper.from_array(np.array(self.thresholds[at], np.float32), f"t{at}")
        stop = self._graph(
            [_same(decision, f"s{at}"), _same(here.name, f"h{at}")], [here], f"s{at}", f"h{at}"
        )
        inner, theirs = self._level(at + 1, held)
        go_on = self._graph(inner, theirs, f"y{at + 1}", f"e{at + 1}")
        nodes += [
            helper.make_node("Softmax", [decision], [f"p{at}"]),
            helper.make_node("ReduceMax", [f"p{at}"], [f"m{at}"], keepdims=0),
            helper.make_node("GreaterOrEqual", [f"m{at}", threshold.name], [f"c{at}"]),
            helper.make_node("If", [f"c{at}"], [said, place], then_branch=stop, else_branch=go_on),
        ]
        return nodes, [*constants, threshold]

    def _own(self, at: int) -> list[NodeProto]:
        """Return part `at`, with its own copies of the DequantizeLinear that it reads.

        onnxruntime makes integer operators of DequantizeLinear, Add, QuantizeLinear in one graph.
        """
        made: list[NodeProto] = []
        copied: dict[str, str] = {}
        for node in self.parts[at]:
            if node.op_type == "DequantizeLinear":
                continue
            node = type(node).FromString(node.SerializeToString())
            for i, name in enumerate(node.input):
                maker = self.made_by.get(name)
                if maker is None or maker.op_type != "DequantizeLinear":
                    continue
                if name not in copied:
                    copied[name] = f"{name}_{at}"
                    made.append(type(maker).FromString(maker.SerializeToString()))
                    made[-1].output[0] = copied[name]
                node.input[i] = copied[name]
            made.append(node)
        return made

    def _graph(
        self, nodes: list[NodeProto], constants: list[TensorProto], said: str, place: str
    ) -> GraphProto:
        from onnx import TensorProto, helper

        outputs = [
            helper.make_tensor_value_info(said, TensorProto.FLOAT, [1, self.classes]),
            helper.make_tensor_value_info(place, TensorProto.INT64, [1]),
        ]
        return helper.make_graph(nodes, "g", [], outputs, initializer=constants)


def _same(source: str, target: str) -> NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [source], [target])


def _constants(
    nodes: list[NodeProto], held: dict[str, TensorProto], at: int
) -> tuple[list[TensorProto], dict[str, TensorProto]]:
    """Take the constants that operators read; small ones as copies, so that others find them too.

    Returns them and what is still held. The operators are made to read the copies.
    """
    taken: dict[str, TensorProto] = {}
    for node in nodes:
        for i, name in enumerate(node.input):
            if name not in held:
                continue
            if name not in taken:
                taken[name] = type(held[name]).FromString(held[name].SerializeToString())
                if len(held[name].raw_data) <= _SHARED_BYTES:
                    taken[name].name = f"{name}_{at}"
            node.input[i] = taken[name].name
    large = {name for name in taken if taken[name].name == name}
    return list(taken.values()), {k: v for k, v in held.items() if k not in large}
