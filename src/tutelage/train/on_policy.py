"""Batches that the student writes itself: GKD (Agarwal, 2306.13649, algorithm 1).

In its own words a student meets states that no text of the data leads to, and there the teacher is
asked live: its whole distribution at each token, under whatever divergence is chosen. Gradients run
through the divergence alone, never through the drawing, as in the paper.

What is written is a pure function of the seed, the step and the student's weights at that step, so
a training that resumes writes the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tutelage.errors import RecipeError
from tutelage.losses.language_terms import LANGUAGE_LOSSES, language_terms
from tutelage.losses.sparse import SparseDecision, dense_of
from tutelage.tasks.causal_lm.packing import Tokens
from tutelage.teach.generation import Sampling, write_tokens
from tutelage.teach.token_signals import Asked

_ANSWER_BYTES = 1 << 27  # of the teacher's answer about what passes the student together
_LEAST, _MOST = 1 / 8, 1 / 2  # where a text without a prompt is cut: shares of what is learned
_JUDGED = 16  # validation prompts that are gone on with at the end of an epoch
_NO_STEP = 2**31  # of a training: what is drawn for validation is no step's
_NO_OPTIONS: Mapping[str, Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginnings:
    """What the student is to go on from at a step: the ids of each prompt."""

    prompts: list[list[int]]
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """Which steps are the student's own: a `share` of those from `first` on, evenly spread."""

    share: float
    first: int = 0

    def takes(self, step: int) -> bool:
        """Say whether the student writes the batch of a step."""
        number = step - self.first
        if number < 0:
            return False
        return math.floor((number + 1) * self.share + 1e-9) > math.floor(number * self.share + 1e-9)


class OnPolicy:
    """Lets a student go on from prompts of `tokens`, and asks `teacher` about what it wrote.

    Prompts of `validation`, the same ones every time, judge how near it has come in its own words.
    `losses` are weights by name, each a divergence of teacher and student; `ends` the tokens that
    end an answer; `longest` the most tokens of a continuation, drawn at `temperature`. Raises
    `RecipeError` for a loss that reads texts, or a continuation longer than half a sequence.
    """

    def __init__(
        self, teacher: Asked, tokens: Tokens, validation: Tokens, *, mixing: Mixing,
        losses: Mapping[str, float],
        options: Mapping[str, Mapping[str, float]] = _NO_OPTIONS, ends: set[int],
        longest: int = 64, temperature: float = 1.0, seed: int,
    ) -> None:  # fmt: skip
        check_losses(losses, options)
        check_longest(longest, tokens.length)
        self.teacher, self.tokens, self.validation = teacher, tokens, validation
        self.mixing = mixing
        self.losses, self.options, self.ends = dict(losses), dict(options), ends
        self.sampling = Sampling(longest=longest, temperature=temperature, seed=seed)
        self.together = max(1, _ANSWER_BYTES // (4 * teacher.vocabulary * (longest + 1)))
        how = [mixing.share, mixing.first, self.losses, self.options, sorted(ends)]
        self.key: list[Any] = [*how, longest, temperature, seed]

    def beginnings(self, index: Int[np.ndarray, " b"], step: int) -> Beginnings:
        """Return one prompt of each of the sequences `index`."""
        return self._beginnings(self.tokens, index, step)

    def held_out(self, index: Int[np.ndarray, " n"]) -> Beginnings:
        """Return prompts of a few validation sequences among `index`: always the same."""
        return self._beginnings(self.validation, index[:_JUDGED], _NO_STEP)

    def written(
        self, student: nn.Module, given: Beginnings
    ) -> list[tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]]:
        """Return sequences with the student's continuations, which are learned, in parts."""
        count = len(given.prompts)
        network: Any = student.network
        with parametrize.cached():  # weights that feel rounding are rounded once, not each token
            said = write_tokens(
                network, given.prompts, self.ends, self.sampling,
                numbers=range(given.step * count, (given.step + 1) * count),
            )  # fmt: skip
        rows = [
            (prompt, [*tokens, *([min(self.ends)] if ended else [])])
            for prompt, (tokens, ended) in zip(given.prompts, said, strict=True)
        ]
        return [padded(rows[i : i + self.together]) for i in range(0, len(rows), self.together)]

    @torch.no_grad()
    def judged(self, ids: Int[Tensor, "b t"], learned: Bool[Tensor, "b t"]) -> SparseDecision:
        """Return what the teacher says at each learned position: of every token."""
        with torch.autocast(ids.device.type, enabled=False):
            return dense_of(torch.cat(list(self.teacher(ids, learned))))

    def _beginnings(self, tokens: Tokens, index: Int[np.ndarray, " b"], step: int) -> Beginnings:
        most, prompts = tokens.length - self.sampling.longest, []
        for number, row in enumerate(index):
            draw = np.random.default_rng([self.sampling.seed, 13, step, number])
            start, stop = cut(tokens.learned[row], tokens.owner[row], draw)
            prompts.append(tokens.ids[row, max(start, stop - most) : stop].tolist())
        return Beginnings(prompts=prompts, step=step)


def check_losses(
    losses: Mapping[str, float], options: Mapping[str, Mapping[str, float]] = _NO_OPTIONS
) -> None:
    """Refuse losses that compare nothing with the teacher; raises `RecipeError`."""
    language_terms(losses, options, 1.0)
    if reads := [name for name in losses if not LANGUAGE_LOSSES[name].tempered]:
        raise RecipeError(
            f"loss '{reads[0]}' would teach the student its own words; of language.on_policy "
            "give losses that compare it with the teacher, such as reverse_kl"
        )


def check_longest(longest: int, length: int) -> None:
    """Refuse continuations that leave a sequence no room for a prompt; raises `RecipeError`."""
    if longest > length // 2:
        raise RecipeError(
            f"language.on_policy.longest is {longest} and sequences have {length} tokens; give "
            f"{length // 2} or less, or raise data.length"
        )


def cut(
    learned: Bool[np.ndarray, " t"], owner: Int[np.ndarray, " t"], draw: np.random.Generator
) -> tuple[int, int]:
    """Return where a prompt of a sequence begins and ends, of a drawn document.

    It is all of the document that stands before an answer; of a text, where nothing does, a part.
    """
    targets = learned.copy()
    targets[:1] = False
    before = np.concatenate([[False], targets[:-1] & (owner[:-1] == owner[1:])])
    begins = np.flatnonzero(targets & ~before)
    begin = int(draw.choice(begins))
    start = begin
    while start > 0 and owner[start - 1] == owner[begin]:
        start -= 1
    if begin - start > 1:
        return start, begin
    stop = begin
    while stop < len(targets) and targets[stop] and owner[stop] == owner[begin]:
        stop += 1
    return start, begin + int((stop - begin) * draw.uniform(_LEAST, _MOST))


def padded(
    rows: Sequence[tuple[list[int], list[int]]],
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Return prompts with their continuations, filled up behind, and which tokens are learned."""
    longest = max(len(prompt) + len(rest) for prompt, rest in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    learned = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (prompt, rest) in enumerate(rows):
        whole = len(prompt) + len(rest)
        ids[i, :whole] = torch.tensor([*prompt, *rest])
        learned[i, len(prompt) : whole] = True
    return ids, learned
