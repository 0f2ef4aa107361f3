"""Lessons inside a language model: layers of the student learn from layers of the teacher.

The teacher is asked in every step, beside the student: the states of all its layers are far larger
than what it says of next tokens, so they are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tutelage.errors import RecipeError
from tutelage.files import hash_json
from tutelage.losses.language_inside import relations_by_sequence
from tutelage.losses.language_terms import LANGUAGE_LOSSES
from tutelage.students.decoders.network import Decoder
from tutelage.students.decoders.sizes import parameters

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
Pairs = tuple[tuple[int, int], ...]


@dataclass(slots=True, kw_only=True)
class Heard:
    """What layers of one network gave for a batch: states, and queries, keys and values."""

    states: dict[int, Tensor] = field(default_factory=dict)
    relations: dict[tuple[int, str], Tensor] = field(default_factory=dict)


class InsideLesson:
    """Losses of `hidden` states and `relations` over `pairs` of (student, teacher) layers.

    Without pairs each layer of the student learns from the teacher's layer that it was (see
    `Decoder.origin`). Where the student has fewer numbers a token a linear projector of each pair
    comes first; it begins as the numbers' own places. `losses` are weights by name; each loss is
    the mean over the pairs. Raises `RecipeError` for layers that are not there.
    """

    def __init__(
        self, student: Decoder, teacher: Decoder, *, losses: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self.teacher = teacher
        self.pairs: Pairs = tuple(enumerate(student.origin.layers) if pairs is None else pairs)
        _check_pairs(self.pairs, student, teacher)
        self.losses = dict(losses)
        self.options = {n: LANGUAGE_LOSSES[n].checked(options.get(n, {})) for n in losses}
        narrow = "hidden" in losses and student.spec.hidden != teacher.spec.hidden
        self.projectors = nn.ModuleList(
            _projector(student, teacher) for _ in (self.pairs if narrow else ())
        )
        self.modules: tuple[nn.Module, ...] = (self.projectors,) if narrow else ()
        self.key = hash_json(["inside", self.losses, self.options, self.pairs])

    def describe(self, student: Decoder, tokens: int) -> str:
        """Say in one line that the teacher is asked live, and what that costs."""
        more = parameters(self.teacher.spec) / (3 * parameters(student.spec))
        size = tokens * self._numbers_a_token() * 2
        return (
            f"{', '.join(self.losses)}: {len(self.pairs)} pairs of layers; stored, what the "
            f"teacher says there would take {size / 1e9:.1f} GB, so it is asked in every step: "
            f"about {more:.0%} more computing"
        )

    def _numbers_a_token(self) -> int:
        spec, count = self.teacher.spec, 0
        if "hidden" in self.losses:
            count += spec.hidden
        if "relations" in self.losses:
            count += (spec.heads + 2 * spec.groups) * spec.head_size
        return count * len(self.pairs)

    @contextmanager
    def listening(self, network: Decoder, side: int = 0) -> Iterator[Heard]:
        """Note what the paired layers of the network (side 0 the student's) give meanwhile."""
        heard = Heard()
        with ExitStack() as hooks:
            for number in {pair[side] for pair in self.pairs}:
                layer: Any = network.layers[number]
                if "hidden" in self.losses:
                    hooks.enter_context(layer.register_forward_hook(_noting(heard.states, number)))
                for name in _PROJECTIONS if "relations" in self.losses else ():
                    note = _noting(heard.relations, (number, name))
                    hooks.enter_context(getattr(layer.self_attn, name).register_forward_hook(note))
            yield heard

    def value(
        self, heard: Heard, ids: Int[Tensor, "b t"], learned: Bool[Tensor, "b t"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted mean over learned tokens and pairs, and each loss's own, detached.

        `heard` is of the student; a token's state is the one that says it, before it came.
        """
        self.teacher.to(ids.device)
        with torch.no_grad(), self.listening(self.teacher, 1) as told:
            self.teacher.states(ids)
        total, parts = torch.zeros((), device=ids.device), {}
        with torch.autocast(ids.device.type, enabled=False):
            for name, weight in self.losses.items():
                each = self._hidden if name == "hidden" else self._relations
                part = each(heard, told, learned) / len(self.pairs) / learned.sum().clamp(min=1)
                total, parts[name] = total + weight * part, part.detach()
        return total, parts

    def _hidden(self, heard: Heard, told: Heard, learned: Tensor) -> Tensor:
        total, loss = torch.zeros((), device=learned.device), LANGUAGE_LOSSES["hidden"]
        for place, (mine, theirs) in enumerate(self.pairs):
            states = heard.states[mine][learned].float()
            if len(self.projectors):
                states = self.projectors[place](states)
            wanted = told.states[theirs][learned].float()
            total = total + loss(states, wanted, **self.options["hidden"]).sum()
        return total

    def _relations(self, heard: Heard, told: Heard, learned: Tensor) -> Tensor:
        total, counts = torch.zeros((), device=learned.device), learned.float()
        for mine, theirs in self.pairs:
            for name in _PROJECTIONS:
                said = heard.relations[mine, name].float()
                wanted = told.relations[theirs, name].float()
                total += relations_by_sequence(said, wanted, counts, **self.options["relations"])
        return total / len(_PROJECTIONS)


def _noting(place: dict[Any, Tensor], key: Any) -> Any:
    def note(_module: nn.Module, _given: Any, said: Any) -> None:
        place[key] = said[0] if isinstance(said, tuple) else said

    return note


def _projector(student: Decoder, teacher: Decoder) -> nn.Linear:
    """Return the linear map that puts each of the student's numbers where it was."""
    made: Any = nn.utils.skip_init(nn.Linear, student.spec.hidden, teacher.spec.hidden, bias=False)
    with torch.no_grad():
        made.weight.zero_()
        for number, place in enumerate(student.origin.numbers):
            made.weight[place, number] = 1.0
    return made


def _check_pairs(pairs: Pairs, student: Decoder, teacher: Decoder) -> None:
    counts = student.spec.layers, teacher.spec.layers
    for pair in pairs:
        for number, count, who in zip(pair, counts, ("student", "teacher"), strict=True):
            if not 0 <= number < count:
                raise RecipeError(
                    f"distill.pairs: the {who} has no layer {number}; name 0 to {count - 1}"
                )
