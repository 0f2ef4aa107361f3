"""What slices of all transformers share: which layers, heads, units and numbers a token stay.

Layers go first: one at a time the one without which the decision changes least. Then the parts of
the residual stream, whole attention heads, and inner units go by the Fisher information of their
gates (see `channels.importance`). What stays is copied as it is. The size of a head stays, so
numbers a token and heads shrink together. Networks are asked in bfloat16 where the processor has
it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.passes import in_half
from tutelage.students.families.encoder import Layer
from tutelage.students.slices.channels import (
    Slicing,
    drawn_decision,
    even_share,
    least_missed,
    remembered,
)
from tutelage.students.slices.fitting import Aim

SIZES = ("layers", "hidden", "heads", "inner")
_STEPS_A_HEAD = 2
_AT_ONCE = 32  # examples: all activations of a batch are kept for the gates
Network = TypeVar("Network", bound=Any)  # a network of ours with `spec` and layers as `stages`


def is_smaller(spec: Any, whole: Any) -> bool:
    """Say whether no size of `spec` is above that of `whole`, and heads are of the same size."""
    return (
        all(getattr(spec, name) <= getattr(whole, name) for name in SIZES)
        and spec.hidden // spec.heads == whole.hidden // whole.heads
    )


def layers_that_stay(network: Any, layers: int, inputs: Tensor) -> tuple[int, ...]:
    """Return which layers stay where so many do; see `channels.least_missed`."""
    order = remembered(network, "order", list)
    count = len(network.stages) - layers
    if len(order) < count:
        _go_on(order, count, copy.deepcopy(network).eval(), inputs)
    left = list(range(len(network.stages)))
    for gone in order[: max(0, count)]:
        del left[gone]
    return tuple(left)


def with_layers(network: Network, stay: Sequence[int]) -> Network:
    """Return a copy with these layers alone, in eval mode."""
    small: Any = copy.deepcopy(network).eval()
    small.stages = nn.ModuleList(small.stages[number] for number in stay)
    small.spec = dataclasses.replace(network.spec, layers=len(stay))
    return small


def _go_on(order: list[int], count: int, network: Any, inputs: Tensor) -> None:
    """Say which layers go next, until `count` do; each number counts those that are left then."""
    stages = network.stages
    with torch.no_grad(), in_half(network):
        own = torch.cat([network(part).float() for part in inputs.split(_AT_ONCE)])
        for gone in order:
            network.stages = _but(network.stages, gone)
        while len(order) < count:
            said = _without_each(network, inputs)
            order.append(least_missed(range(len(said)), said.__getitem__, own))
            network.stages = _but(network.stages, order[-1])
    network.stages = stages


def _but(stages: nn.ModuleList, gone: int) -> nn.ModuleList:
    return nn.ModuleList([*stages[:gone], *stages[gone + 1 :]])


def _without_each(network: Any, inputs: Tensor) -> list[Float[Tensor, "b k"]]:
    """Return the decisions without each of the layers; those before it are computed once."""
    stages, said = network.stages, [[] for _ in network.stages]
    for part in inputs.split(_AT_ONCE):
        for number, state in enumerate(_read_by(stages, network, part)):
            network.stages = nn.ModuleList([_Given(state), *stages[number + 1 :]])
            said[number].append(network(part).float())
        network.stages = stages
    return [torch.cat(parts) for parts in said]


def _read_by(stages: nn.ModuleList, network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return what each layer reads."""
    given: list[Tensor] = []
    with ExitStack() as hooks:
        for stage in stages:
            hook = stage.register_forward_pre_hook(lambda _, args: given.append(args[0]))
            hooks.callback(hook.remove)
        network(inputs)
    return given


class _Given(nn.Module):
    """Stands for the layers before one: gives what they gave."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state

    def forward(self, *_: Any) -> Tensor:
        """Return the state."""
        return self.state


class Gates(ExitStack):
    """Gates, all 1, behind or before modules of a network; they are gone when this is closed.

    Gates of one name are one gate: what is read is how all of them together move the decision.
    """

    def __init__(self) -> None:
        super().__init__()
        self._gates: dict[str, list[Tensor]] = {}

    def after(self, module: nn.Module, name: str) -> None:
        """Gate what a module gives: each number of a token, or each channel of a map."""
        gate = self._gate(name, 1)

        def hook(_: nn.Module, _given: Any, output: Any) -> Any:
            return gate(output)

        self._hold(module.register_forward_hook(hook))

    def before(self, module: nn.Module, name: str, group: int = 1) -> None:
        """Gate what a module reads, `group` numbers by one gate."""
        gate = self._gate(name, group)

        def hook(_: nn.Module, given: Any) -> Any:
            return gate(given[0]), *given[1:]

        self._hold(module.register_forward_pre_hook(hook))

    def of_layers(self, stages: nn.ModuleList) -> None:
        """Gate all that layers have: `heads.i`, `inner.i`, and what they write as `stream`.

        A number of the stream is gated wherever it is written: at the norms of a `post` layer, at
        what a `pre` one adds.
        """
        for number, stage in enumerate(stages):
            assert isinstance(stage, Layer)
            norms, added = (stage.attention_norm, stage.mlp_norm), (stage.out, stage.mlp[2])
            for module in norms if stage.post else added:
                self.after(module, "stream")
            self.before(stage.out, f"heads.{number}", stage.size)
            self.after(stage.mlp[1], f"inner.{number}")

    def information(self, network: nn.Module, inputs: Tensor) -> dict[str, Float[Tensor, " c"]]:
        """Return the Fisher information of each gate, the mean over `inputs`, by its name."""
        moved: dict[str, list[Tensor]] = {}
        for part in inputs.split(_AT_ONCE):
            self._gates = {}
            with torch.enable_grad(), in_half(network):
                total = drawn_decision(network(part).float())
                every = [gate for gates in self._gates.values() for gate in gates]
                found = iter(torch.autograd.grad(total, every))
            for name, gates in self._gates.items():
                together = torch.stack([next(found) for _ in gates]).sum(0)
                moved.setdefault(name, []).append(together.flatten(1))
        return {name: torch.cat(parts).square().mean(0) for name, parts in moved.items()}

    def _gate(self, name: str, group: int) -> Callable[[Tensor], Tensor]:
        def gate(output: Tensor) -> Tensor:
            count, axis = len(output), 1 if output.ndim == 4 else -1
            shape = [count, *[1] * (output.ndim - 1)]
            shape[axis] = output.shape[axis] // group
            made = torch.ones(shape, requires_grad=True)
            self._gates.setdefault(name, []).append(made)
            return output * made.repeat_interleave(group, dim=axis)

        return gate

    def _hold(self, handle: Any) -> None:
        self.callback(handle.remove)


def information(
    network: nn.Module, left: tuple[int, ...], fewer: nn.Module, inputs: Tensor,
    place: Callable[[Gates], None],
) -> dict[str, Float[Tensor, " c"]]:  # fmt: skip
    """Return what the gates that `place` sets in `fewer` say, the network with the layers `left`.

    Found once while that is remembered (`channels.remembered`).
    """

    def find() -> dict[str, Tensor]:
        with Gates() as gates:
            place(gates)
            return gates.information(fewer, inputs)

    return remembered(network, ("information", left), find)


def copy_layers(
    to: nn.ModuleList, of: nn.ModuleList, information: dict[str, Tensor], stay: Int[Tensor, " k"]
) -> dict[str, Int[Tensor, " k"]]:
    """Fill layers with those of a wider network, of whose stream the numbers `stay` stay.

    Return which of its outputs each linear layer keeps, by its name in the network.
    """
    kept: dict[str, Tensor] = {}
    for number, (small, whole) in enumerate(zip(to, of, strict=True)):
        assert isinstance(small, Layer) and isinstance(whole, Layer)
        heads = most(information[f"heads.{number}"], small.heads)
        inner: Any = small.mlp[0].out_features
        units = most(information[f"inner.{number}"], inner)
        asked = _spread(heads, 3 * whole.size)
        copy_linear(small.qkv, whole.qkv, asked, stay)
        copy_linear(small.out, whole.out, stay, _spread(heads, whole.size))
        copy_linear(small.mlp[0], whole.mlp[0], units, stay)
        copy_linear(small.mlp[2], whole.mlp[2], stay, units)
        copy_norm(small.attention_norm, whole.attention_norm, stay)
        copy_norm(small.mlp_norm, whole.mlp_norm, stay)
        outputs = {"qkv": asked, "out": stay, "mlp.0": units, "mlp.2": stay}
        kept |= {f"stages.{number}.{name}": rows for name, rows in outputs.items()}
    return kept


def aims_of_layers(
    of: nn.ModuleList, stay: Sequence[int], kept: dict[str, Int[Tensor, " k"]]
) -> dict[str, Aim]:
    """Return what the linear layers of those layers that stay are to say, as `copy_layers` kept.

    What writes to the stream aims at the whole's stream, behind the layers that went.
    """
    aims: dict[str, Aim] = {}
    ends = (*stay[1:], len(of))
    for place, (number, end) in enumerate(zip(stay, ends, strict=True)):
        here, there, last = f"stages.{place}", f"stages.{number}", f"stages.{end - 1}"
        whole: Any = of[number]
        for name in ("qkv", "mlp.0"):
            aims[f"{here}.{name}"] = Aim(outputs=kept[f"{here}.{name}"], of=f"{there}.{name}")
        read_first = f"{there}.attention_norm" if whole.post else f"{there}.mlp_norm"
        aims[f"{here}.out"] = Aim(
            outputs=kept[f"{here}.out"], of=read_first, reads=True, rest=here
        )  # fmt: skip
        aims[f"{here}.mlp.2"] = Aim(
            outputs=kept[f"{here}.mlp.2"],
            of=f"{last}.mlp_norm" if whole.post else last,
            reads=whole.post,
            rest=f"{here}.mlp" if whole.post else f"{here}.mlp_norm",
        )
    return aims


def most(information: Float[Tensor, " c"], count: int) -> Int[Tensor, " k"]:
    """Return the numbers of the `count` gates that say most, ascending."""
    return information.argsort(descending=True, stable=True)[:count].sort().values


def _spread(numbers: Int[Tensor, " k"], size: int) -> Int[Tensor, " n"]:
    return (numbers[:, None] * size + torch.arange(size)).flatten()


def copy_linear(to: Any, of: Any, rows: Tensor, columns: Tensor) -> None:
    """Fill a linear layer or convolution with these outputs and inputs of another."""
    to.weight.copy_(of.weight[rows][:, columns])
    if of.bias is not None:
        to.bias.copy_(of.bias[rows])


def copy_norm(to: Any, of: Any, kept: Tensor) -> None:
    """Fill a norm with these numbers or channels of another; statistics are copied too."""
    to.weight.copy_(of.weight[kept])
    to.bias.copy_(of.bias[kept])
    if hasattr(of, "running_mean"):
        to.running_mean.copy_(of.running_mean[kept])
        to.running_var.copy_(of.running_var[kept])
        to.num_batches_tracked.copy_(of.num_batches_tracked)


def narrower(spec: Any, share: float) -> Any:
    """Return the spec with about a share of its heads, numbers a token and inner units."""
    heads = max(1, round(share * spec.heads))
    return dataclasses.replace(
        spec, heads=heads, hidden=heads * (spec.hidden // spec.heads),
        inner=even_share(spec.inner, share),
    )  # fmt: skip


def shallower(spec: Any) -> tuple[Any, ...]:
    """Return the spec, then with one layer fewer at a time, down to one."""
    return tuple(dataclasses.replace(spec, layers=n) for n in range(spec.layers, 0, -1))


def steps(spec: Any) -> int:
    """Return in how many steps the share of `narrower` is looked for."""
    return _STEPS_A_HEAD * spec.heads


def slicing(
    cut: Callable[[Any, Any, Any], nn.Module], is_part: Callable[[Any, Any], bool],
    narrower: Callable[[Any, float], Any] = narrower,
) -> Slicing:  # fmt: skip
    """Return how a family of transformers is sliced: layers one by one, the rest by heads."""
    return Slicing(
        cut=cut, is_part=is_part, narrower=narrower, shallower=shallower, steps=steps
    )  # fmt: skip
