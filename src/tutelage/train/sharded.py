"""Weights shared out among processes (FSDP2): each holds a part of every tensor.

A layer's weights are whole while it is computed; embedding, last norm and head, which the loss
reads, for all of a micro-batch. Averages and the optimizer's moments are shared out alike. Asked
for by Accelerate's configuration, and done by `fully_shard` itself: Accelerate leaves CPUs out, and
prepares a network for calls of `forward` alone. Does not cover FSDP1, weights offloaded to main
memory, DeepSpeed or Megatron.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.train import together

_OTHERS = ("DEEPSPEED", "MEGATRON_LM")


@runtime_checkable
class Divisible(Protocol):
    """A lesson whose network can be shared out: it calls these methods of it, and no others."""

    called: tuple[str, ...]

    def exchange(self, modules: tuple[nn.Module, ...]) -> None:
        """Teach these modules from now on; raises `TrainingError` where they must be whole."""
        ...


def plugin_of(accelerator: Any) -> Any | None:
    """Return Accelerate's FSDP plugin where its configuration asks for it, on several processes.

    Raises `TrainingError` for what is asked for and not covered.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in _OTHERS:
        raise TrainingError(
            f"{kind} is not covered: share weights out by FSDP (fsdp_version: 2), or launch the "
            "processes without it"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true" or together.place()[1] == 1:
        return None
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin = FullyShardedDataParallelPlugin()
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise TrainingError("FSDP1 is not covered: set fsdp_version: 2 in Accelerate's file")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise TrainingError("weights are not offloaded: set fsdp_offload_params: false")
    if plugin.activation_checkpointing:
        raise TrainingError(
            "set fsdp_activation_checkpointing: false, and language.recompute (from Python "
            "recompute=True) for the same"
        )
    return plugin


def share_out(lesson: Any, plugin: Any) -> list[nn.Module]:
    """Let a lesson teach a copy of its modules that is shared out; return another to average.

    The lesson's own modules stay whole where they are. Raises `TrainingError` where the lesson's
    networks must be whole.
    """
    if not isinstance(lesson, Divisible):
        raise TrainingError(
            "FSDP shares out language models alone; teach this student without it, in one process"
        )
    whole: tuple[nn.Module, ...] = lesson.modules  # type: ignore[attr-defined]
    lesson.exchange(tuple(_shared_out(module, lesson.called, plugin) for module in whole))
    return [_shared_out(module, lesson.called, plugin) for module in whole]


def _shared_out(module: nn.Module, called: Sequence[str], plugin: Any) -> nn.Module:
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    network = copy.deepcopy(module)
    for layer in longest_list(network) or ():
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(network, reshard_after_forward=False)
    for name in called:
        register_fsdp_forward_method(network, name)
    for part in network.modules():
        if isinstance(part, FSDPModule):
            # Each loss is a share of the step's, so gradients are summed. By gloo the mean that is
            # usual would be no mean (pytorch/pytorch#162338).
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return network


def longest_list(network: nn.Module) -> nn.ModuleList | None:
    """Return the layers of a network: its longest list of modules, if it has one."""
    lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len) if lists else None


def settle(modules: Sequence[nn.Module]) -> None:
    """Let go of weights that were made whole to be asked: the next time they may be others."""
    from torch.distributed.fsdp import FSDPModule

    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def is_part(tensor: Any) -> bool:
    """Say whether a tensor is this process's part of one that is shared out."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the numbers that this process holds of a tensor, in the same memory."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its numbers; all processes ask for the same one."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def parts(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's part of whole tensors, shared out as those of the same name."""
    return {name: part(tensor, like[name]) for name, tensor in state.items()}


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, shared out as `like`, if that is."""
    if not is_part(like) or is_part(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    found: Any = like
    mesh, places = found.device_mesh, found.placements
    return distribute_tensor(tensor.to(found.device), mesh, places, src_data_rank=None)


def gathered(value: Any, *, keep: bool) -> Any:
    """Return a nested state with whole tensors, in main memory; None where they are not kept.

    All processes call it with states that are alike.
    """
    if is_part(value):
        found = whole(value.detach())
        return found.cpu() if keep else None
    if isinstance(value, dict):
        return {name: gathered(item, keep=keep) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [gathered(item, keep=keep) for item in value]
    return value


def first_says(value: bool, device: torch.device) -> bool:
    """Return what the first process says: clocks of processes differ."""
    said = torch.tensor(int(value), device=device)
    torch.distributed.broadcast(said, src=0)
    return bool(said)
