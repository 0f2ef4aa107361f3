"""Taps: found in any torch module, and read as it runs. Serves teachers and students alike."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.errors import StudentError, TutelageError
from tutelage.passes import Forward, Inputs, call, count_of, first_tensor, run_once
from tutelage.students.ensemble import Ensemble
from tutelage.types import Reading, Tap, energy_map, pooled

_CHAINS = (nn.Sequential, nn.ModuleList)


class TapReader:
    """Reads the outputs of the modules at `paths` while a network runs; a context manager.

    `reduce` is applied inside the hook, so that what is kept is small, and safe from layers that
    overwrite their input. Gradients flow. Raises `error` for a path that does not exist (with near
    matches), that is never called, or whose output holds no tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        *,
        reduce: Callable[[Tensor], Any] | None = None,
        error: type[TutelageError] = StudentError,
        forward: Forward = call,
    ) -> None:
        self._modules = {path: _module_at(model, path, error) for path in paths}
        self._paths = tuple(paths)
        self._reduce, self._error, self._forward = reduce, error, forward
        self._seen: dict[str, Any] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> TapReader:
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(path)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def read(
        self, model: nn.Module, inputs: Inputs
    ) -> tuple[Float[Tensor, "batch classes"], tuple[Any, ...]]:
        """Run `model` (or a wrapper of it) and return its logits and each tap's output, in order.

        A module called more than once is read at its last call.
        """
        self._seen.clear()
        logits = first_tensor(self._forward(model, inputs))
        if logits is None:
            raise self._error(f"{type(model).__name__} returned no tensor. Return the logits")
        unread = next((path for path in self._paths if path not in self._seen), None)
        if unread is not None:
            raise self._error(_unread(unread, self._modules[unread]))
        outputs = tuple(self._seen[path] for path in self._paths)
        self._seen.clear()
        return logits, outputs

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        # A closure, not a bound method: a network copied inside the context stays copyable.
        seen, reduce = self._seen, self._reduce

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                seen[path] = tensor if reduce is None else reduce(tensor)

        return hook


def reading(
    model: nn.Module,
    inputs: Inputs,
    taps: Sequence[Tap | str],
    *,
    features: bool,
    maps: bool,
    keep: Tensor | None = None,
    error: type[TutelageError] = StudentError,
    forward: Forward = call,
) -> Reading:
    """Run `model` once and return its decision with pooled features and energy maps at `taps`.

    Features leave out what `keep` does; half precision becomes float32. Raises `error` as
    `TapReader` does, and where maps are asked of a tap that has no height and width.
    """
    paths = tuple(t.path if isinstance(t, Tap) else t for t in taps) if features or maps else ()

    def reduce(output: Tensor) -> tuple[Tensor | None, Tensor | None, tuple[int, ...]]:
        # A flat output pools to itself, and the next layer may overwrite it: keep a copy.
        kept = output if output.ndim in (3, 4) else output.clone()
        feature = _full(pooled(kept, keep)) if features else None
        return feature, energy_map(output) if maps else None, tuple(output.shape[1:])

    with TapReader(model, paths, reduce=reduce, error=error, forward=forward) as reader:
        logits, outputs = reader.read(model, inputs)
    for path, (_, energy, shape) in zip(paths, outputs, strict=True):
        if maps and energy is None:
            raise error(
                f"tap '{path}' gives {_shape(shape)} an example: it has no height and width, so "
                "no map can be read there. Choose another tap, or a loss that needs no maps"
            )
    return Reading(
        decision=_full(logits),
        features=tuple(feature for feature, _, _ in outputs) if features else (),
        maps=tuple(energy for _, energy, _ in outputs) if maps else (),
    )


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _module_at(model: nn.Module, path: str, error: type[TutelageError]) -> nn.Module:
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass  # said below, with what is near
    known = [name for name, _ in model.named_modules() if name]
    near = [repr(p) for p in difflib.get_close_matches(path, known, n=3, cutoff=0.5)]
    top = ", ".join([name for name, _ in model.named_children()][:10])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {top}."
    raise error(f"there is no tap '{path}' in {type(model).__name__}. {hint}")


def _unread(path: str, module: nn.Module) -> str:
    children = [f"{path}.{name}" for name, _ in module.named_children()]
    hint = f"Name one of its parts, such as '{children[-1]}'" if children else "Choose another"
    return f"tap '{path}' gave no tensor: the network does not call it as a module. {hint}"


def find_taps(
    model: nn.Module,
    example: Inputs,
    limit: int = 8,
    *,
    error: type[TutelageError] = StudentError,
    forward: Forward = call,
) -> tuple[Tap, ...]:
    """Find the ends of a network's stages, or else of its blocks, by running it once on `example`.

    Looked for in turn: chains (`Sequential`, `ModuleList`) of repeated blocks, whose ends are
    stages; the last layers before the resolution or the width changes; the ends of layers. In the
    order of execution, never the head, at most `limit` evenly spread. The network's modes stay as
    they were. Of an ensemble, those of its first member. Raises `error` when the network fails on
    the example.
    """
    if isinstance(model, Ensemble):
        first = find_taps(model.members[0], example, limit, error=error, forward=forward)
        return tuple(Tap(path=f"members.0.{tap.path}", shape=tap.shape) for tap in first)
    trace = _Trace.of(model, example, error, forward)
    best: list[str] = []
    for finder in (_stage_ends, _change_ends):
        found = finder(trace)
        best = found if len(found) > len(best) else best
        if len(best) >= 2:
            break
    if len(best) > limit:
        best = [best[(i + 1) * len(best) // limit - 1] for i in range(limit)]
    return tuple(Tap(path=path, shape=trace.shapes[path]) for path in best)


def describe_taps(
    model: nn.Module,
    example: Inputs,
    paths: Sequence[str],
    *,
    error: type[TutelageError] = StudentError,
    forward: Forward = call,
) -> tuple[Tap, ...]:
    """Return the taps at `paths` with their shapes, as `find_taps` would; raises as it does."""
    reader = TapReader(
        model, paths, reduce=lambda t: tuple(t.shape[1:]), error=error, forward=forward
    )
    with reader:
        _, shapes = run_once(lambda x: reader.read(model, x), model, example, error)
    return tuple(Tap(path=p, shape=shape) for p, shape in zip(paths, shapes, strict=True))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """What ran: output shapes for one example, in the order in which modules finished."""

    modules: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    order: dict[str, int]
    head: int  # finished at or after this: the head, and whatever holds or follows it

    @classmethod
    def of(
        cls, model: nn.Module, example: Inputs, error: type[TutelageError], forward: Forward
    ) -> _Trace:
        modules = dict(model.named_modules())
        shapes: dict[str, tuple[int, ...]] = {}
        batch = count_of(example)

        def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
            def record(module: nn.Module, inputs: Any, output: Any) -> None:
                tensor = first_tensor(output)
                shapes.pop(path, None)  # called again: its last call counts
                if tensor is not None and tensor.ndim > 1 and tensor.shape[0] == batch:
                    shapes[path] = tuple(tensor.shape[1:])

            return record

        handles = [m.register_forward_hook(hook(path)) for path, m in modules.items()]
        try:
            logits = first_tensor(run_once(lambda x: forward(model, x), model, example, error))
        finally:
            for handle in handles:
                handle.remove()
        order = {path: i for i, path in enumerate(shapes)}
        classes = logits.shape[-1] if logits is not None and logits.ndim else 0
        head = _head(modules, shapes, classes)
        return cls(modules=modules, shapes=shapes, order=order, head=order.get(head, len(order)))

    def before_head(self, paths: Sequence[str]) -> list[str]:
        kept = [path for path in paths if path and self.order[path] < self.head]
        return sorted(kept, key=self.order.__getitem__)

    def children(self, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in self.modules[path].named_children():
            full = f"{path}.{name}" if path else name
            if full in self.modules:  # a shared module goes by its first name
                yield full, child

    def is_composite(self, path: str) -> bool:
        return path in self.shapes and next(self.children(path), None) is not None


def _head(modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]], classes: int) -> str:
    """Return the last weighted layer if it speaks of classes, else '' (the network itself)."""
    leaves = [p for p in shapes if any(w.ndim >= 2 for w in modules[p].parameters(recurse=False))]
    if leaves and classes in (shapes[leaves[-1]][0], shapes[leaves[-1]][-1]):
        return leaves[-1]
    return ""


def _stage_ends(trace: _Trace) -> list[str]:
    """Return the ends of the chains that hold the most blocks, or one chain's blocks."""
    families = list(_families(trace, "", frozenset()))
    if not families:
        return []
    chains = max(families, key=lambda family: sum(len(blocks) for _, blocks in family))
    if len(chains) > 1:
        return trace.before_head([c if c in trace.order else blocks[-1] for c, blocks in chains])
    blocks = trace.before_head(chains[0][1])
    by_shape = _last_of_each(blocks, lambda p: trace.shapes[p])
    by_size = _last_of_each(blocks, lambda p: trace.shapes[p][1:])
    if not _spatial(trace, blocks) or len(by_shape) < 2:
        return blocks
    # Widths that grow at every block name no stages; the resolution then does.
    return by_size if len(by_shape) == len(blocks) and len(by_size) > 1 else by_shape


def _families(
    trace: _Trace, path: str, inside: frozenset[str]
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield, from the top down, sibling chains with their repeated blocks; blocks stay closed."""
    chains = [p for p, child in trace.children(path) if isinstance(child, _CHAINS)]
    if not path and isinstance(trace.modules[path], _CHAINS):
        chains.append(path)
    found = {chain: _blocks(trace, chain) for chain in chains if chain not in inside}
    kinds = [type(trace.modules[b]) for blocks in found.values() for b in blocks]
    repeated = {kind for kind in kinds if kinds.count(kind) > 1}
    family = [
        (chain, kept)
        for chain, blocks in found.items()
        if (kept := [b for b in blocks if type(trace.modules[b]) in repeated])
    ]
    if family:
        yield family
    closed = inside.union(*(blocks for _, blocks in family))
    for child, _ in trace.children(path):
        if child not in closed:
            yield from _families(trace, child, closed)


def _blocks(trace: _Trace, chain: str) -> list[str]:
    blocks = [
        path
        for path, child in trace.children(chain)
        if trace.is_composite(path) and not isinstance(child, _CHAINS)
    ]
    return sorted(blocks, key=trace.order.__getitem__)


def _change_ends(trace: _Trace) -> list[str]:
    """Return the last layers before resolution or width change, opening modules as needed."""
    sequence = _expand(trace, "")
    while True:
        ends = _pick(trace, trace.before_head(_units(trace, sequence)))
        composites = [path for path in sequence if trace.is_composite(path)]
        if len(ends) >= 2 or not composites:
            return ends
        widest = max(
            composites, key=lambda p: sum(w.numel() for w in trace.modules[p].parameters())
        )
        at = sequence.index(widest)
        sequence[at : at + 1] = _expand(trace, widest)


def _expand(trace: _Trace, path: str) -> list[str]:
    """Return the modules that ran inside `path`, with chains and mere containers opened."""
    inner: list[str] = []
    for child, module in trace.children(path):
        if isinstance(module, _CHAINS) or child not in trace.shapes:
            inner += _expand(trace, child)
        else:
            inner.append(child)
    return sorted(inner, key=trace.order.__getitem__)


def _units(trace: _Trace, sequence: list[str]) -> list[str]:
    """Return the end of each weighted layer with what follows it in the same shape."""
    ends: list[str] = []
    following = False
    for path in sequence:
        if any(w.ndim >= 2 for w in trace.modules[path].parameters()):
            ends.append(path)
            following = True
        elif following and trace.shapes[path] == trace.shapes[ends[-1]]:
            ends[-1] = path
        else:
            following = False
    return ends


def _pick(trace: _Trace, ends: list[str]) -> list[str]:
    images = _spatial(trace, ends)
    options = [
        _last_of_each(images, lambda p: trace.shapes[p][1:]),
        _last_of_each(images, lambda p: trace.shapes[p]),
        images,
        _last_of_each(ends, lambda p: trace.shapes[p]),
    ]
    return next((option for option in options if len(option) >= 2), ends)


def _spatial(trace: _Trace, paths: list[str]) -> list[str]:
    return [path for path in paths if len(trace.shapes[path]) == 3]


def _last_of_each(paths: list[str], key: Callable[[str], Any]) -> list[str]:
    """Return the last path of each run of equal keys."""
    after = [*paths[1:], None] if paths else []
    return [p for p, q in zip(paths, after, strict=True) if q is None or key(p) != key(q)]
