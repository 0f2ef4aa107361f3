"""Losses on the next token: pure functions of log-probabilities, one value a token.

They have a registry of their own: they read outcomes (every token, or the listed ones and all the
others as one), not the logits of a batch, and are called chunk by chunk (`losses/language.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.losses.base import Loss, Share
from tutelage.losses.sparse import NOTHING, SparseDecision, exact
from tutelage.registry import Registry

LANGUAGE_LOSSES: Registry[Loss] = Registry("loss of language models")
INSIDE = ("states", "relations")  # what losses inside the networks read (`language_inside`)


def _on_outcomes(function: Callable[..., Tensor]) -> Loss:
    """Register a loss that compares log-probabilities of student and teacher; T^2 applies to it."""
    name = getattr(function, "__name__", "")
    return LANGUAGE_LOSSES.add(
        name, Loss(name=name, function=function, reads="decision", tempered=True)
    )


def _on_targets(function: Callable[..., Tensor]) -> Loss:
    """Register a loss of the student's logits and the token that came."""
    name = getattr(function, "__name__", "")
    return LANGUAGE_LOSSES.add(name, Loss(name=name, function=function, reads="labels"))


@_on_outcomes
def forward_kl(
    student: Float[Tensor, "tokens outcomes"], teacher: Float[Tensor, "tokens outcomes"]
) -> Float[Tensor, " tokens"]:
    """Return KL(teacher || student) in nats (Hinton, 1503.02531): the student covers the teacher.

    Of drawn ids, where each counts 1/k, it is the unbiased estimate of the same.
    """
    return _divergence(teacher, student)


@_on_outcomes
def reverse_kl(
    student: Float[Tensor, "tokens outcomes"], teacher: Float[Tensor, "tokens outcomes"]
) -> Float[Tensor, " tokens"]:
    """Return KL(student || teacher) in nats (MiniLLM, 2306.08543): the student seeks the mode."""
    return _divergence(student, teacher)


@_on_outcomes
def skew_kl(
    student: Float[Tensor, "tokens outcomes"],
    teacher: Float[Tensor, "tokens outcomes"],
    *,
    alpha: Share = 0.1,
) -> Float[Tensor, " tokens"]:
    """Return KL(teacher || alpha teacher + (1 - alpha) student) (DistiLLM, 2402.03898, eq. 4)."""
    return _divergence(teacher, _mixture(teacher, student, alpha))


@_on_outcomes
def generalised_jsd(
    student: Float[Tensor, "tokens outcomes"],
    teacher: Float[Tensor, "tokens outcomes"],
    *,
    beta: Share = 0.5,
) -> Float[Tensor, " tokens"]:
    """Return beta KL(t || m) + (1 - beta) KL(s || m), m = beta t + (1 - beta) s (GKD, 2306.13649).

    It is 0 for every student at beta 0 and 1, which are refused.
    """
    if not 0 < beta < 1:
        raise RecipeError(
            f"loss 'generalised_jsd': beta {beta:g} teaches nothing; give one between 0 and 1, or "
            "take forward_kl or reverse_kl, its limits"
        )
    middle = _mixture(teacher, student, beta)
    return beta * _divergence(teacher, middle) + (1 - beta) * _divergence(student, middle)


@_on_targets
def token_cross_entropy(
    student: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return -log q(the token that came), in nats."""
    return F.cross_entropy(student, targets, reduction="none")


def outcomes(
    logits: Float[Tensor, "tokens vocabulary"], teacher: SparseDecision, temperature: float
) -> tuple[Float[Tensor, "tokens outcomes"], Float[Tensor, "tokens outcomes"]]:
    """Return tempered log-probabilities of student and teacher over the same outcomes.

    Outcomes are every token, or the k listed ones and all the others as one. These k + 1 are
    tempered as they stand, since what a tail would be at another temperature is not known: for k
    the vocabulary this is the dense decision. Both sides sum to 1 after rounding in the cache.
    """
    said = exact(teacher.log_probs).to(logits.dtype).clamp(min=NOTHING)
    if teacher.ids is not None:
        ids = teacher.ids.long()
        listed = logits.gather(1, ids)
        if teacher.drawn:
            return listed - logits.logsumexp(dim=1, keepdim=True), said
        if ids.shape[1] < logits.shape[1]:
            # log of the sum of exp over the others is what a softmax sees as their one logit.
            others = logits.scatter(1, ids, -torch.inf).logsumexp(dim=1, keepdim=True)
            tail = exact(teacher.tail).to(logits.dtype).clamp(min=NOTHING)
            listed = torch.cat([listed, others], dim=1)
            said = torch.cat([said, tail[:, None]], dim=1)
        logits = listed
    return (logits / temperature).log_softmax(dim=1), (said / temperature).log_softmax(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageTerms:
    """Losses with their weights and options, checked once: what one chunk of logits is worth.

    `cap`: logits are first pressed into (-cap, cap), as Gemma 2 does.
    """

    losses: tuple[Loss, ...]
    weights: tuple[float, ...]
    options: tuple[dict[str, Any], ...]
    temperature: float
    cap: float | None = None

    def value(
        self,
        logits: Float[Tensor, "tokens vocabulary"],
        teacher: SparseDecision | None,
        targets: Int[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, ""], list[Tensor]]:
        """Return the weighted sum over the tokens, and each loss's own; T^2 is in both."""
        compared: tuple[Tensor, Tensor] | None = None
        logits = capped(logits, self.cap)
        total, parts = logits.new_zeros(()), []
        for loss, weight, options in zip(self.losses, self.weights, self.options, strict=True):
            if loss.tempered:
                assert teacher is not None
                compared = compared or outcomes(logits, teacher, self.temperature)
                each = _drawn(*compared) if teacher.drawn else loss.function(*compared, **options)
                part = each.sum() * self.temperature**2
            else:
                part = loss.function(logits, targets).sum()
            total = total + weight * part
            parts.append(part.detach())
        return total, parts

    def of_few(
        self,
        listed: Float[Tensor, "tokens kept"],
        said: Float[Tensor, "tokens 1"],
        rest: Float[Tensor, "tokens 1"],
        teacher: SparseDecision | None,
    ) -> tuple[Float[Tensor, ""], list[Tensor]]:
        """Return what `value` does, of a few numbers a token in the place of all logits.

        `listed` are the logits that the teacher names, `said` that of the token that came, `rest`
        the log of the sum of exp over those not listed; of drawn tokens over all.
        """
        whole = rest
        if teacher is None or not teacher.drawn:
            whole = torch.cat([listed, rest], dim=1).logsumexp(dim=1, keepdim=True)
        compared: tuple[Tensor, Tensor] | None = None
        total, parts = listed.new_zeros(()), []
        for loss, weight, options in zip(self.losses, self.weights, self.options, strict=True):
            if loss.tempered:
                assert teacher is not None
                compared = compared or _among(listed, rest, teacher, self.temperature)
                each = _drawn(*compared) if teacher.drawn else loss.function(*compared, **options)
                part = each.sum() * self.temperature**2
            else:
                part = (whole - said).sum()
            total = total + weight * part
            parts.append(part.detach())
        return total, parts


def _among(
    listed: Tensor, rest: Tensor, teacher: SparseDecision, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return `outcomes` of the listed logits and of all the others as one."""
    told = exact(teacher.log_probs).to(listed.dtype).clamp(min=NOTHING)
    if teacher.drawn:
        return listed - rest, told
    if not bool(rest.isneginf().all()):  # else every token is listed
        tail = exact(teacher.tail).to(listed.dtype).clamp(min=NOTHING)
        listed, told = torch.cat([listed, rest], dim=1), torch.cat([told, tail[:, None]], dim=1)
    return (listed / temperature).log_softmax(dim=1), (told / temperature).log_softmax(dim=1)


def language_terms(
    losses: Mapping[str, float],
    options: Mapping[str, Mapping[str, float]],
    temperature: float,
    cap: float | None = None,
) -> LanguageTerms:
    """Look up losses by name; raises `RecipeError` on a wrong name, weight or option."""
    if not losses:
        raise RecipeError("no loss is given; give forward_kl and token_cross_entropy, for instance")
    if not (math.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"temperature is {temperature}; give a number greater than 0")
    if stray := [name for name in options if name not in losses]:
        raise RecipeError(f"options are given for '{stray[0]}', which is not among the losses")
    for name, weight in losses.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(f"the weight of loss '{name}' is {weight}; give a number, 0 or more")
    found = tuple(LANGUAGE_LOSSES[name] for name in losses)
    if spans := [loss.name for loss in found if loss.reads == "spans"]:
        raise RecipeError(
            f"loss '{spans[0]}' reads spans of text, not tokens: from Python give "
            "spans=SpanTeacher(...) in its place"
        )
    checked = tuple(loss.checked(options.get(loss.name, {})) for loss in found)
    return LanguageTerms(
        losses=found, weights=tuple(losses.values()), options=checked, temperature=temperature,
        cap=cap,
    )  # fmt: skip


def check_teacher(terms: LanguageTerms, teacher: SparseDecision | None) -> None:
    """Refuse losses that cannot be had from these signals; raises `RecipeError`."""
    for loss in terms.losses:
        if loss.reads in INSIDE:
            raise RecipeError(f"loss '{loss.name}' reads layers; teach by it with pairs of layers")
        if not loss.tempered:
            continue
        if teacher is None:
            raise RecipeError(
                f"loss '{loss.name}' reads what the teacher says of each token, which is not given;"
                " give the teacher's signals, or token_cross_entropy alone"
            )
        if teacher.drawn and loss.name != "forward_kl":
            raise RecipeError(
                f"loss '{loss.name}' cannot be had from drawn tokens: they estimate forward_kl "
                "alone; store dense or topk signals for it"
            )
        if teacher.drawn and terms.temperature != 1:
            raise RecipeError(
                f"tokens were drawn at temperature 1, so forward_kl at {terms.temperature:g} is "
                "not known; set temperature 1, or store dense or topk signals"
            )


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap tanh(logits / cap), or the logits as they are where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _drawn(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) from draws of p: the mean of log p - log q over them is unbiased."""
    return (log_p - log_q).mean(dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the outcomes; logarithms are finite, so 0 log 0 is 0."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q), finite where both are."""
    if share in (0.0, 1.0):
        return log_p if share else log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
