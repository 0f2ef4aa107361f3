"""A convolutional network with fewer channels, whose weights are the network's own.

torch-pruning's dependency graph says which channels go together (through residual sums, depthwise
convolutions, concatenations); which of them stay is decided here. Covers networks whose weights are
all in convolutions, batch norms and linear layers, and that autograd can trace. Of a convolution of
several groups each loses the same channels. It does not cover attention, other norms, or grouped
convolutions that say one channel a group and read several.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.errors import StudentError
from tutelage.losses.decision import kl
from tutelage.passes import reason
from tutelage.students.strided import sliced_strides

Kept = Callable[[str, int], int]
Rest = TypeVar("Rest")
Found = TypeVar("Found")
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_CHOOSING = 256
_FOUND: ContextVar[dict[Any, Any] | None] = ContextVar("found", default=None)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """How networks of a family are sliced to smaller ones of it; specs are its knobs.

    `cut(network, spec, inputs, fitted=False)` is a network of `spec` with this one's weights, some
    `inputs` choosing which, and where it says so its layers fitted to this one's (`fitting.fit`).
    `is_part(spec, whole)` says whether that can be. `narrower(spec, share)` has about a share of
    the channels or the like, in `steps(spec)` steps at most; `shallower(spec)` are the depths to
    consider, the spec's own first. Where stages can be narrowed alone, `sizes(spec)` are the widths
    that each may take, ascending to its own, and `resized(spec, widths)` is the spec with one of
    each.
    """

    cut: Callable[..., nn.Module]
    is_part: Callable[[Any, Any], bool]
    narrower: Callable[[Any, float], Any]
    shallower: Callable[[Any], Sequence[Any]]
    steps: Callable[[Any], int]
    sizes: Callable[[Any], tuple[tuple[int, ...], ...]] | None = None
    resized: Callable[[Any, tuple[int, ...]], Any] | None = None


def choosing(inputs: Tensor) -> Tensor:
    """Return some of the inputs, evenly spread, by which is chosen what stays."""
    return inputs[:: max(1, len(inputs) // _CHOOSING)]


def even_share(channels: int, share: float) -> int:
    """Return about `share` of some channels: an even number from 2 up, or all there are.

    Even, as in the compact families: kernels of int8 work on pairs at the least, and an odd channel
    costs as much as the next.
    """
    return channels if share == 1 else min(channels, max(2, 2 * round(share * channels / 2)))


@contextmanager
def remembering() -> Iterator[None]:
    """Within this, find once what `remembered` is asked.

    The examples that networks are asked about must stay.
    """
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def remembered(network: nn.Module, question: Hashable, find: Callable[[], Found]) -> Found:
    """Return what was found of a network, told by its weights, with that question; or find it."""
    known = _FOUND.get()
    if known is None:
        return find()
    digest = blake2b()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    key = digest.hexdigest(), question
    if key not in known:
        known[key] = find()
    return known[key]


def _importance(network: nn.Module, examples: Tensor) -> dict[nn.Module, Float[Tensor, "b c"]]:
    names = dict(network.named_modules())
    of = {module: name for name, module in names.items()}

    def find() -> dict[str, Tensor]:
        return {of[m]: gates for m, gates in importance(network, examples).items()}

    found = remembered(network, "importance", find)
    return {names[name]: gates for name, gates in found.items()}


def cut(
    network: nn.Module, examples: Float[Tensor, "b ..."], kept: Kept
) -> tuple[nn.Module, dict[str, Int[Tensor, " k"]]]:
    """Return a copy of which the layer `name` keeps `kept(name, channels)` of its outputs.

    Beside it which outputs those are, by the names of all layers. Of layers whose channels go
    together the first one's name counts. Raises `StudentError`.
    """
    why = _unlike(network)
    if why:
        raise StudentError(f"{type(network).__name__} cannot be sliced: {why}. {_INSTEAD}")
    small = copy.deepcopy(network).eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            wanted = small(examples[:2]).shape
            stayed = _cut_groups(small, examples, kept)
            found = small(examples[:2]).shape
    except _Untraced as cause:
        raise StudentError(
            f"{type(network).__name__} cannot be sliced: {cause}. {_INSTEAD}"
        ) from None
    except Exception as cause:  # a foreign network traced by a foreign library: anything may come
        raise StudentError(
            f"{type(network).__name__} cannot be sliced: {reason(cause)}. {_INSTEAD}"
        ) from cause
    if found != wanted:
        raise StudentError(
            f"{type(network).__name__} cannot be sliced: its outputs would go from "
            f"{tuple(wanted)} to {tuple(found)}. {_INSTEAD}"
        )
    return small, stayed


_INSTEAD = "Choose student.space: compact"


class _Untraced(Exception):
    """Why a network that was tried cannot be sliced."""


def _unlike(network: nn.Module) -> str:
    """Say what of the network is not covered; '' if it can be tried."""
    for name, module in network.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not isinstance(module, _LAYERS + _NORMS):
            return f"'{name}' is a {type(module).__name__}, not a convolution, batch norm or linear"
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            depthwise = module.groups == module.in_channels == module.out_channels
            if module.groups > 1 and module.groups == module.out_channels and not depthwise:
                return f"'{name}' is a convolution of {module.groups} groups"
    if not any(isinstance(m, nn.Conv1d | nn.Conv2d) for m in network.modules()):
        return "it has no convolution"
    return ""


def _cut_groups(network: nn.Module, examples: Tensor, kept: Kept) -> dict[str, Int[Tensor, " k"]]:
    """Cut in place; return which of its outputs each layer kept."""
    from torch_pruning import DependencyGraph

    gates = _importance(network, examples)
    head = _last_layer(network, examples[:2])
    graph = DependencyGraph().build_dependency(network, example_inputs=examples[:2])
    names = {module: name for name, module in network.named_modules()}
    stayed = {m: torch.arange(len(m.weight)) for m in names if isinstance(m, _LAYERS)}
    for group in graph.get_all_groups(ignored_layers=[head], root_module_types=list(_LAYERS)):
        members = [
            (item.dep.target.module, item.idxs, item.root_idxs)
            for item in group
            if graph.is_out_channel_pruning_fn(item.dep.handler)
        ]
        root, channels, _ = members[0]
        count = kept(names[root], len(channels))
        if count >= len(channels):
            continue
        groups = math.lcm(*(_groups(item.dep.target.module) for item in group))
        least = _least(_weigh(members, gates, len(channels)), len(channels) - count, groups)
        chosen = graph.get_pruning_group(root, group[0].dep.handler, least)
        gone = [(item.dep.target.module, item.idxs) for item in chosen
                if graph.is_out_channel_pruning_fn(item.dep.handler)]  # fmt: skip
        chosen.prune()
        for module, idxs in gone:  # another group may hold other channels of the same norm
            if module in gates:
                stay = torch.ones(gates[module].shape[1], dtype=torch.bool)
                stay[idxs] = False
                gates[module] = gates[module][:, stay]
                if module in stayed:
                    stayed[module] = stayed[module][stay]
    return {names[module]: outputs for module, outputs in stayed.items()}


def _groups(module: nn.Module) -> int:
    """Return the groups of a convolution that is not depthwise, and 1 of every other layer."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups == module.out_channels:
        return 1
    return module.groups


def _least(scores: Float[Tensor, " c"], count: int, groups: int) -> list[int]:
    """Return about `count` channels with the least scores, the same ones of each group."""
    each = scores.view(groups, -1).sum(0).argsort(stable=True)[: count // groups]
    size = len(scores) // groups
    return sorted(group * size + i for group in range(groups) for i in each.tolist())


def channel_groups(
    network: nn.Module, examples: Float[Tensor, "b ..."]
) -> Iterator[tuple[Float[Tensor, " c"], list[tuple[nn.Module, int]]]]:
    """Yield channels that go together: their importance, and the layers and norms they are of.

    Beside each member stands the axis of its tensors: 0 where they are its outputs, 1 inputs.
    Covers what `cut` does.
    """
    from torch_pruning import DependencyGraph

    gates = importance(network, examples)
    head = _last_layer(network, examples[:2])
    graph = DependencyGraph().build_dependency(network, example_inputs=examples[:2])
    for group in graph.get_all_groups(ignored_layers=[head], root_module_types=list(_LAYERS)):
        out, into = [], []
        for item in group:
            module = item.dep.target.module
            if graph.is_out_channel_pruning_fn(item.dep.handler):
                out.append((module, item.idxs, item.root_idxs))
            elif isinstance(module, _LAYERS):
                into.append((module, 1))
        scores = _weigh(out, gates, len(out[0][1]))
        yield scores, list(dict.fromkeys([*((module, 0) for module, *_ in out), *into]))


def importance(network: nn.Module, examples: Tensor) -> dict[nn.Module, Float[Tensor, "b c"]]:
    """Return for each layer and norm how its channels' gates, all 1, move the decision.

    Dropping a channel changes the decision by a KL divergence whose value and gradient at the
    network itself are zero, so that a first-order Taylor score says nothing; to second order it is
    half the Fisher information of the channel's gate m, the mean over examples of (d log p(y) /
    d m)^2 with y drawn from the network's own decision: no label is read. Entry [i, c] is that
    derivative for example i. A single output is taken as the mean of a Gaussian.
    Source: Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018), eq.
    6; for channels that go together Liu et al., Group Fisher pruning (ICML 2021), eq. 5.
    """
    gates: dict[nn.Module, Tensor] = {}

    def gate(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if output.dim() == 3 and isinstance(module, nn.Linear):
            raise _Untraced("a linear layer reads more than one vector an example")
        shape = (*output.shape[:2], *(1 for _ in output.shape[2:]))
        gates[module] = torch.ones(shape, device=output.device, requires_grad=True)
        return output * gates[module]

    found = [m for m in network.modules() if isinstance(m, _LAYERS + _NORMS)]
    hooks = [module.register_forward_hook(gate) for module in found]
    try:
        with sliced_strides([network]):
            decision = network(examples).float()
    finally:
        for hook in hooks:
            hook.remove()
    moved = torch.autograd.grad(drawn_decision(decision), list(gates.values()), allow_unused=True)
    lost = [module for module, grad in zip(gates, moved, strict=True) if grad is None]
    if lost:
        name = next(name for name, module in network.named_modules() if module is lost[0])
        raise _Untraced(f"the decision does not follow from '{name}' by operations of torch")
    return {m: grad.flatten(1) for m, grad in zip(gates, moved, strict=True) if grad is not None}


def drawn_decision(decision: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the sum over examples of log p(y), y drawn from p itself, always the same way.

    A single output is taken as the mean of a Gaussian.
    """
    if decision.shape[1] == 1:
        return decision.sum()
    draw = torch.Generator().manual_seed(0)
    own = torch.multinomial(decision.detach().softmax(1).cpu(), 1, generator=draw)
    return decision.log_softmax(1).gather(1, own.to(decision.device)).sum()


def least_missed(rests: Sequence[Rest], said: Callable[[Rest], Tensor], own: Tensor) -> Rest:
    """Return the rest with which the decision stays nearest to `own`; of equals the first."""
    changes = [moved(said(rest), own) for rest in rests]
    return rests[changes.index(min(changes))]


def moved(decision: Float[Tensor, "b k"], own: Float[Tensor, "b k"]) -> float:
    """Return how far a decision is from a network's `own`: the mean KL(own || decision), in nats.

    The mean square where it is a single value.
    """
    if own.shape[1] == 1:
        return float((decision - own).square().mean())
    return float(kl(decision, own, temperature=1.0).mean())


def recalibrated(network: nn.Module, examples: Float[Tensor, "b ..."]) -> nn.Module:
    """Return a copy whose batch norms hold the mean and variance of these examples, in eval mode.

    The statistics that a slice inherits are those of channels that read more than is left: of three
    quarters of the channels of a teacher at 94 % on Fashion-MNIST, 16 % were right as inherited and
    89 % with the statistics of 1,024 images. That counts where a slice is asked untaught,
    as for pairing taps; a lesson renews the statistics, and ends with the same network either way.
    """
    found = copy.deepcopy(network).train()
    norms = [m for m in found.modules() if isinstance(m, _NORMS)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the examples alone
    with torch.no_grad():
        found(examples)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return found.eval()


def _weigh(
    members: list[tuple[nn.Module, list[int], list[int]]], gates: dict[nn.Module, Tensor],
    channels: int,
) -> Float[Tensor, " c"]:  # fmt: skip
    """Return the Fisher information of each channel's gate, one gate for all that go together."""
    norms = [member for member in members if isinstance(member[0], _NORMS)]
    read = [m for m in norms or members if m[0] in gates]
    moved = torch.zeros(next(iter(gates.values())).shape[0], channels)
    for module, idxs, root_idxs in read:
        moved.index_add_(1, torch.tensor(root_idxs), gates[module].cpu()[:, idxs])
    return moved.square().mean(0)


def _last_layer(network: nn.Module, examples: Tensor) -> nn.Module:
    """Return the layer that is called last: its outputs are the decision."""
    called: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        called.append(module)

    found = [m for m in network.modules() if isinstance(m, _LAYERS)]
    hooks = [module.register_forward_hook(note) for module in found]
    try:
        with torch.no_grad():
            network(examples)
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1]
