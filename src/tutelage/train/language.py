"""Teaching a language model as a lesson of the loop: sequences, signals, chunked losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.errors import DataError, RecipeError, StudentError, TeacherError, TrainingError
from tutelage.files import hash_json
from tutelage.losses.language import language_loss
from tutelage.losses.language_terms import language_terms
from tutelage.losses.sparse import SparseDecision
from tutelage.teach.token_signals import TokenRows, TokenSignals, learned_counts, sequences
from tutelage.train import sharded, together
from tutelage.train.block_rounding import forms_felt
from tutelage.train.inside import InsideLesson
from tutelage.train.on_policy import Beginnings, OnPolicy
from tutelage.train.spans import SpanTeacher

_NO_OPTIONS: Mapping[str, Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Sequences that pass through the student together, and what the teacher says of them."""

    ids: Int[Tensor, "b t"]
    learned: Bool[Tensor, "b t"]
    teacher: SparseDecision | None

    @property
    def count(self) -> int:
        """How many tokens are learned from."""
        return int(self.learned.sum())


class LanguageLesson:
    """Teaches `student`, which has `states(ids)` and `head` (and `cap`), on `train`.

    A step learns from `batch` sequences, `micro_batch` at a time, and its loss is the mean over all
    of their learned tokens. Epoch `e` takes the sequences in an order that hangs on `seed` and `e`
    alone; `examples` limits training to the first of a fixed random order. `recompute`: layers
    forget what they computed and do it again in the backward pass, for a third more time and far
    less memory. Where there are several processes (see `together`), each takes a share of the
    micro-batches, with the whole student or a part of it (`sharded`). Validation is minus its loss,
    over the same losses where signals are given for it, else the cross entropy of its tokens, in
    the precision of training. Epochs are `pieces` of a pass, from piece `first_piece` on.
    """

    def __init__(
        self,
        student: nn.Module,
        train: TokenRows,
        validation: TokenRows,
        *,
        losses: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]] = _NO_OPTIONS,
        temperature: float = 1.0,
        signals: TokenSignals | None = None,
        validation_signals: TokenSignals | None = None,
        batch: int,
        micro_batch: int | None = None,
        seed: int,
        examples: int | None = None,
        recompute: bool = False,
        chunk: int | None = None,
        inside: InsideLesson | None = None,
        spans: SpanTeacher | None = None,
        pieces: int = 1,
        first_piece: int = 0,
    ) -> None:
        self.student, self.train, self.validation = student, train, validation
        self.inside, self.spans = inside, spans
        self.modules: tuple[nn.Module, ...] = (student, *(inside.modules if inside else ()))
        self.losses, self.options, self.temperature = dict(losses), dict(options), temperature
        self.signals, self.validation_signals = signals, validation_signals
        self.seed, self.recompute, self.chunk = seed, recompute, chunk
        self.own: OnPolicy | None = None
        self.half: torch.dtype | None = None  # in which it was last taught under autocast
        self.called, self.shared_out = ("states",), False
        self._check()
        able = _with_targets(train, "training")
        self.validated = _with_targets(validation, "validation")
        drawn = np.random.default_rng([seed, 7]).permutation(able)
        self.chosen = np.sort(drawn[: examples or len(able)])
        self.batch = min(batch, len(self.chosen) // pieces or 1)
        self.pieces, self.first_piece = pieces, first_piece
        self.micro_batch = min(micro_batch or self.batch, self.batch)
        self.key = self._key()

    def write_own(self, own: OnPolicy | None) -> None:
        """Let the student write some batches itself, from prompts of the training texts."""
        if own is not None and together.place()[1] > 1:
            raise RecipeError(
                "language.on_policy lets the student write in one process alone; run in one, or "
                "remove the key"
            )
        self.own, self.key = own, self._key()
        if own is not None:
            self.key = hash_json([self.key, own.key])

    def exchange(self, modules: tuple[nn.Module, ...]) -> None:
        """Teach this student from now on, shared out or whole again."""
        if self.inside is not None:
            raise TrainingError(
                "losses inside the networks need student and teacher whole: teach by others under "
                "FSDP, or without it"
            )
        (self.student,) = self.modules = modules
        self.shared_out = not self.shared_out

    def steps(self) -> int:
        """Return the steps of one epoch; a last, smaller batch is left out."""
        return len(self.chosen) // self.pieces // self.batch

    def batches(self, epoch: int, first: int) -> Iterator[list[MicroBatch] | Beginnings]:
        """Yield the epoch's batches from step `first` on, each in micro-batches."""
        order = torch.from_numpy(self._order(epoch))
        for step in range(first, self.steps()):
            index = order[step * self.batch : (step + 1) * self.batch]
            overall = epoch * self.steps() + step
            if self.own is not None and self.own.mixing.takes(overall):
                yield self.own.beginnings(index.numpy(), overall)
                continue
            yield list(self._mine(self.train, self.signals, index))

    def taught_in(self, epoch: int) -> int:
        """Return how many tokens of the texts the batches of an epoch teach."""
        return int(learned_counts(self.train)[self._order(epoch)].sum())

    def _order(self, epoch: int) -> np.ndarray:
        """Return the sequences of an epoch's batches, one batch after another."""
        passes, piece = divmod(self.first_piece + epoch, self.pieces)
        order = np.random.default_rng([self.seed, passes]).permutation(self.chosen)
        first = piece * len(order) // self.pieces
        return order[first : first + self.steps() * self.batch]

    def _mine(
        self, tokens: TokenRows, signals: TokenSignals | None, index: Tensor
    ) -> Iterator[MicroBatch]:
        """Yield this process's share; of a student that is shared out, all pass as often."""
        parts = index.split(self.micro_batch)
        mine = together.share(parts)
        yield from (_micro(tokens, signals, part) for part in mine)
        if self.shared_out and len(mine) < together.rounds(len(parts)):
            yield _unlearned(_micro(tokens, signals, parts[0]))

    def loss(self, batch: list[MicroBatch] | Beginnings) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; gradients are found here, one micro-batch at a time.

        What the student's parameters held of gradients before is dropped.
        """
        kind = _device(self.student).type
        self.half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if not isinstance(batch, Beginnings):
            return self._learned(batch)
        assert self.own is not None
        parts = [
            MicroBatch(ids=ids, learned=learned, teacher=None)
            for ids, learned in self.own.written(self.student, batch)
        ]
        total, found = self._learned(parts, self.own)
        return total, {f"own_{name}": value for name, value in found.items()}

    def _learned(
        self, batch: list[MicroBatch], own: OnPolicy | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parameters = [p for m in self.modules for p in m.parameters() if p.requires_grad]
        self._forget()
        count = together.total(sum(part.count for part in batch), _device(self.student))
        total = torch.zeros((), device=_device(self.student))
        names = (*self.losses, *(self.inside.losses if self.inside is not None else ()))
        names = names if self.spans is None else (*names, "uld")
        parts: dict[str, Tensor] = {
            name: torch.zeros_like(total) for name in (own.losses if own is not None else names)
        }
        for part in batch:
            with _recomputing(self.student) if self.recompute else nullcontext():
                value, found = self._taught(part) if own is None else self._judged(part, own)
            weight = part.count / count
            with torch.autocast(value.device.type, enabled=False):
                (value * weight).backward()
            total = total + value.detach() * weight
            for name, each in found.items():
                parts[name] = parts[name] + each.detach() * weight
        grads = [p.grad for p in parameters]
        if together.place()[1] > 1:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            added = [g for g in grads if not sharded.is_part(g)]  # those of parts are
            together.add_up([total, *parts.values(), *added])
        self._forget()
        return _Handed.apply(total, grads, *parameters), parts

    def _judged(self, part: MicroBatch, own: OnPolicy) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of what the student wrote itself, by the teacher's live answer."""
        part = replace(part, teacher=own.judged(part.ids, part.learned))
        return self._value(self.student, part, own.losses, own.options)

    def _forget(self) -> None:
        for module in self.modules:
            module.zero_grad(set_to_none=True)

    def _taught(self, part: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch, its layers' lessons included, and its parts."""
        if self.spans is not None:
            return self._in_spans(part, self.spans)
        if self.inside is None:
            return self._value(self.student, part, self.losses, self.options)
        device, network = _device(self.student), cast(Any, self.student)
        with self.inside.listening(network) as heard:
            value, found = self._value(self.student, part, self.losses, self.options)
        ids, learned = part.ids[:, :-1].to(device), part.learned[:, 1:].to(device)
        more, others = self.inside.value(heard, ids, learned)
        return value + more, {**found, **others}

    def _in_spans(self, part: MicroBatch, spans: SpanTeacher) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch with what a teacher of another tokenizer says of it."""
        device = _device(self.student)
        ids, learned = part.ids.to(device), part.learned[:, 1:].to(device)
        states = cast(Any, self.student).states(ids[:, :-1])
        value, found = self._compared(self.student, states, part, self.losses, self.options)
        more = spans.value(self.student, states, ids, learned)
        return value + spans.weight * more, {**found, "uld": more.detach()}

    def evaluate(self, modules: tuple[nn.Module, ...]) -> float:
        """Return minus the mean loss over the learned tokens of validation.

        Where the student learns from its own words, they weigh as their share of the steps.
        """
        told = self.validation_signals
        losses = {"token_cross_entropy": 1.0} if told is None else self.losses
        total, count, device = 0.0, 0, _device(self.student)
        for part in self._mine(self.validation, told, torch.from_numpy(self.validated)):
            with torch.autocast(device.type, self.half, enabled=self.half is not None):
                value, _ = self._value(modules[0], part, losses, self.options)
            total += float(value.detach()) * part.count
            count += part.count
        mean = together.total(total, device) / together.total(count, device)
        if self.own is None:
            return -mean
        share = self.own.mixing.share
        return -(1 - share) * mean - share * self._in_own_words(self.own, modules[0])

    def doubt(self, figure: float) -> float:
        """Return 0: how sure a loss over tokens is, is not known."""
        return 0.0

    def _in_own_words(self, own: OnPolicy, student: nn.Module) -> float:
        """Return the mean loss over what the student writes to prompts of validation."""
        total, count = 0.0, 0
        for ids, learned in own.written(student, own.held_out(self.validated)):
            part = MicroBatch(ids=ids, learned=learned, teacher=own.judged(ids, learned))
            value, _ = self._value(student, part, own.losses, own.options)
            total, count = total + float(value.detach()) * part.count, count + part.count
        return total / count

    def _value(
        self, student: Any, part: MicroBatch, losses: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]],
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        states = student.states(part.ids[:, :-1].to(_device(student)))
        return self._compared(student, states, part, losses, options)

    def _compared(
        self, student: Any, states: Tensor, part: MicroBatch, losses: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]],
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        device = states.device
        ids, learned = part.ids.to(device), part.learned[:, 1:].to(device)
        return language_loss(
            states[learned],
            student.head,
            None if part.teacher is None else part.teacher.to(device),
            ids[:, 1:][learned],
            losses=losses,
            temperature=self.temperature,
            options={name: given for name, given in options.items() if name in losses},
            cap=getattr(student, "cap", None),
            chunk=self.chunk,
        )

    def _check(self) -> None:
        """Refuse what does not belong together, before anything is trained."""
        terms = language_terms(self.losses, self.options, self.temperature)
        asked = [loss.name for loss in terms.losses if loss.tempered]
        if self.spans is not None and (asked or self.inside is not None):
            raise RecipeError(
                "student and teacher have tokenizers of their own, so only 'uld' compares them: "
                "give token_cross_entropy beside it, and no other loss"
            )
        if asked and self.signals is None:
            raise RecipeError(
                f"loss '{asked[0]}' reads what the teacher says of each token, and no signals are "
                "given; fill them, or teach by token_cross_entropy alone"
            )
        known = len(self.student.head)  # type: ignore[arg-type]
        pairs = ((self.signals, self.train), (self.validation_signals, self.validation))
        for signals, tokens in pairs:
            largest = int(np.asarray(tokens.ids).max(initial=0))
            if largest >= known:
                raise DataError(
                    f"the texts hold token {largest:,} and the student knows {known:,} tokens; "
                    "read them with the student's tokenizer"
                )
            if signals is not None and signals.tokens.fingerprint != tokens.fingerprint:
                raise TeacherError(
                    "the teacher's signals are of other texts; fill them from those that teach"
                )
            if signals is not None and signals.vocabulary != known:
                raise TeacherError(
                    f"the teacher decides among {signals.vocabulary:,} tokens and the student among"
                    f" {known:,}; ask the teacher about the student's vocabulary, or give "
                    "spans=SpanTeacher(...) where the tokenizers are others"
                )

    def _key(self) -> str:
        """Name what is taught, by whom, on what, and how."""
        sources = [None if s is None else s.key for s in (self.signals, self.validation_signals)]
        data = [self.train.fingerprint, self.validation.fingerprint, len(self.chosen)]
        how = [self.losses, self.options, self.temperature, self.batch, self.micro_batch]
        said = ["language", sources, data, how, self.seed, self.recompute, self.chunk]
        said += [self.pieces, self.first_piece]
        more = [each.key for each in (self.inside, self.spans) if each is not None]
        return hash_json([*said, *more, *forms_felt(self.student)])


class _Handed(torch.autograd.Function):
    """A loss whose gradients were found before: the backward pass hands them out."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, total: Tensor, grads: list[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        """Keep the gradients."""
        ctx.grads = grads
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Hand them out, scaled in place."""
        grads, ctx.grads = ctx.grads, []
        return None, None, *(None if g is None else g.mul_(slopes[0]) for g in grads)


def _micro(tokens: TokenRows, signals: TokenSignals | None, index: Tensor) -> MicroBatch:
    ids, learned = sequences(tokens, index)
    teacher = None if signals is None else signals.read(index)
    return MicroBatch(ids=ids, learned=learned, teacher=teacher)


def _unlearned(part: MicroBatch) -> MicroBatch:
    """Return a micro-batch of which nothing is learned."""
    said = None if part.teacher is None else part.teacher.rows(0, 0)
    return replace(part, learned=torch.zeros_like(part.learned), teacher=said)


def _with_targets(tokens: TokenRows, what: str) -> np.ndarray:
    """Return the sequences that hold a learned token; raises `DataError` when there is none."""
    found = np.flatnonzero(learned_counts(tokens))
    if not len(found):
        raise DataError(
            f"no token of the {what} texts is learned from; give longer texts, or learn from all "
            "of a conversation (answers_only: false)"
        )
    return found


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextmanager
def _recomputing(network: nn.Module) -> Iterator[None]:
    """Let every layer of the network's longest list compute its inside again when it is needed."""
    layers = sharded.longest_list(network)
    if layers is None:
        raise StudentError(
            f"{type(network).__name__} has no list of layers (nn.ModuleList), so none can be "
            "computed again; leave recompute out"
        )
    for layer in layers:
        layer.forward = partial(_again, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _again(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    return checkpoint(forward, *given, use_reentrant=False, **named)
