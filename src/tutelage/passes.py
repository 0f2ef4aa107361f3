"""A pass through any network: what it reads, how it is called, what its answer stands for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, device, nn, no_grad

from tutelage.errors import TutelageError

Inputs: TypeAlias = "Tensor | tuple[Inputs, ...] | dict[str, Inputs]"
Forward: TypeAlias = Callable[[nn.Module, Any], Any]
T = TypeVar("T")
ALIKE = 0.02  # of their spread: what bfloat16 may move decisions by, where it is not asked for


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Call a network: with a dict as keywords, a tuple as arguments, a tensor as it is."""
    if isinstance(inputs, dict):
        return network(**inputs)
    if isinstance(inputs, tuple):
        return network(*inputs)
    return network(inputs)


def fastest_device() -> device:
    """Return where networks run while they learn and are asked: a GPU if there is one.

    It is what Accelerate chooses; `ACCELERATE_USE_CPU=1` keeps everything on the processor.
    """
    from accelerate import PartialState

    found = PartialState().device
    assert found is not None
    return found


def native_bf16(on: device) -> bool:
    """Return whether a device multiplies in bfloat16 by itself, rather than by detours."""
    if on.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return on.type == "cpu" and bool(probe and probe())


def in_half(network: nn.Module, wanted: bool = True) -> torch.autocast:
    """Return what lets a network compute in bfloat16 where it lies on what does so by itself."""
    on = next(network.parameters()).device
    return torch.autocast(on.type, torch.bfloat16, enabled=wanted and native_bf16(on))


def share_moved(half: Tensor, plain: Tensor) -> float:
    """Return the root mean square of what decisions moved by, as a share of their spread."""
    moved = (half - plain).float().square().mean().sqrt()
    return float(moved / plain.float().std().clamp(min=1e-12))


def tensors(inputs: Inputs) -> Iterator[Tensor]:
    """Yield every tensor of the inputs, in their order."""
    if isinstance(inputs, Tensor):
        yield inputs
    else:
        for part in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from tensors(part)


def mapped(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the inputs with `function` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: mapped(part, function) for name, part in inputs.items()}
    return tuple(mapped(part, function) for part in inputs)


def count_of(inputs: Inputs) -> int:
    """Return how many examples the inputs hold: the first axis of every tensor."""
    return next(tensors(inputs)).shape[0]


def shown(inputs: Inputs) -> str:
    """Return in words what one example of the inputs is."""
    if isinstance(inputs, Tensor):
        return " x ".join(map(str, inputs.shape[1:])) or "one number"
    if isinstance(inputs, dict):
        return ", ".join(f"{name}: {shown(part)}" for name, part in inputs.items())
    return f"({', '.join(map(shown, inputs))})"


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor an output stands for: itself, its `.logits`, its first one, or None.

    Follows tuples, lists, mappings and dataclasses (Hugging Face outputs are both).
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts = [output.get("logits"), *output.values()]
    elif dataclasses.is_dataclass(output):
        fields = [field.name for field in dataclasses.fields(output)]
        parts = [getattr(output, name, None) for name in ("logits", *fields)]
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    else:
        return None
    return next((t for t in map(first_tensor, parts) if t is not None), None)


def run_once(
    run: Callable[[Inputs], T], network: nn.Module, inputs: Inputs, error: type[TutelageError]
) -> T:
    """Return `run(inputs)` with the network in evaluation mode; its modes stay as they were.

    Raises `error` in one line when the network, which is foreign code, fails.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # batch statistics must not learn from the example
    try:
        with no_grad():
            return run(inputs)
    except TutelageError:
        raise
    except Exception as cause:  # the network's code is foreign: it may raise anything
        raise error(
            f"{type(network).__name__} cannot read an input of {shown(inputs)}: {reason(cause)}. "
            "Give it inputs of the size and channels it was made for"
        ) from cause
    finally:
        for module, training in modes:
            module.training = training


def reason(error: BaseException) -> str:
    """Return an exception as one short line: its type and the first line of its message."""
    text = " ".join(str(error).strip().splitlines()[:1])
    kind = type(error).__name__
    return f"{kind}: {text[:200]}" if text else kind


def source_of(forward: Forward) -> str:
    """Return the source text of a pass, for hashes; '' for the plain `call`.

    What its function reads from around it is not followed.
    """
    if forward is call:
        return ""
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):  # made in a shell, or an object: its name is all there is
        return getattr(forward, "__qualname__", type(forward).__qualname__)
