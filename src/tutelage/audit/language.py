"""How well a language model foretells held-out texts, how near its teacher, how it writes.

Covers perplexity, divergence and agreement a token, bits per byte where tokenizers differ, and
signs of degenerate answers. Does not cover whether answers are right, harmless or in style, nor
perplexities across tokenizers: those count different tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from tutelage.errors import DataError
from tutelage.records import Measurement
from tutelage.tasks import wilson_interval
from tutelage.tasks.causal_lm.generated import Reply, repeated_share

_RESAMPLES = 1_000
_COLUMNS = ("student", "document", "teacher", "kl", "same", "sizes")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenScores:
    """What is known of each learned token, in nats; `document` says of which text it is part.

    `student` and `teacher` are their log-probabilities of the token itself, `kl` is
    KL(teacher || student) at its place, `same` whether both find the same token likeliest. Where
    tokenizers differ, rows are spans of text that both write, of `sizes` bytes.
    """

    student: Float[np.ndarray, " n"]
    document: Int[np.ndarray, " n"]
    teacher: Float[np.ndarray, " n"] | None = None
    kl: Float[np.ndarray, " n"] | None = None
    same: Bool[np.ndarray, " n"] | None = None
    sizes: Int[np.ndarray, " n"] | None = None
    where: str = ""


def scored(
    student: Float[np.ndarray, "n v"],
    teacher: Float[np.ndarray, "n v"],
    targets: Int[np.ndarray, " n"],
    document: Int[np.ndarray, " n"],
    *,
    where: str = "",
) -> TokenScores:
    """Return the scores of some tokens from whole logits; the plain way, in float64."""
    q, p = _log_softmax(student), _log_softmax(teacher)
    rows = np.arange(len(targets))
    shares = np.exp(p)
    apart = np.subtract(p, q, out=np.zeros_like(p), where=shares > 0)
    return TokenScores(
        student=q[rows, targets], teacher=p[rows, targets], document=document,
        kl=(shares * apart).sum(1), same=p.argmax(1) == q.argmax(1), where=where,
    )  # fmt: skip


def joined(parts: Sequence[TokenScores]) -> TokenScores:
    """Return the scores of several batches as one; a document may lie across them."""

    def whole(name: str) -> np.ndarray | None:
        found = [getattr(part, name) for part in parts]
        return None if any(f is None for f in found) else np.concatenate(found)

    if not parts:
        raise DataError("there are no tokens to measure; give at least one")
    columns = {name: whole(name) for name in _COLUMNS}
    return TokenScores(**columns, where=parts[0].where)  # pyright: ignore[reportArgumentType]


def token_metrics(scores: TokenScores, *, seed: int = 0) -> tuple[Measurement, ...]:
    """Measure `perplexity`, and against the teacher what is known of it.

    `perplexity` is exp(-sum log p / tokens), over all tokens of all documents. `perplexity_teacher`
    is the teacher's, `perplexity_ratio` the student's over it, `kl_a_token` in nats, and
    `agreement_greedy` the share of places where both find the same token likeliest. `n` counts
    documents; intervals are 95 % percentile bootstraps over them, paired for the ratio, since the
    tokens of a document are not independent. Raises `DataError` for no tokens, or scores that are
    not finite or not of one length.
    """
    measured, at = _measuring(scores, seed)
    found = [measured("perplexity", lambda m: np.exp(-m[:, at["student"]]))]
    if "teacher" in at:
        found += [
            measured("perplexity_teacher", lambda m: np.exp(-m[:, at["teacher"]])),
            measured(
                "perplexity_ratio", lambda m: np.exp(m[:, at["teacher"]] - m[:, at["student"]])
            ),
        ]
    for name, column in (("kl_a_token", "kl"), ("agreement_greedy", "same")):
        if column in at:
            found.append(measured(name, lambda m, i=at[column]: m[:, i]))
    return tuple(found)


def byte_metrics(scores: TokenScores, *, seed: int = 0) -> tuple[Measurement, ...]:
    """Measure `bits_per_byte` of the student, of the teacher, and their ratio, over spans.

    Bits per byte are -sum log2 p / bytes, of the same text for both, whatever their tokens. `n`
    and intervals are as those of `token_metrics`, and so are the errors.
    """
    measured, at = _measuring(scores, seed)
    q, p = at["student"], at["teacher"]
    return (
        measured("bits_per_byte", lambda m: -m[:, q] / np.log(2)),
        measured("bits_per_byte_teacher", lambda m: -m[:, p] / np.log(2)),
        measured("bits_per_byte_ratio", lambda m: m[:, q] / m[:, p]),
    )


def _measuring(
    scores: TokenScores, seed: int
) -> tuple[Callable[[str, Callable[[np.ndarray], np.ndarray]], Measurement], dict[str, int]]:
    """Return what makes a figure of means a token (a byte where sizes are known), and columns."""
    _check(scores)
    columns = {"student": scores.student, "teacher": scores.teacher, "kl": scores.kl,
               "same": scores.same}  # fmt: skip
    known = {name: np.asarray(c, np.float64) for name, c in columns.items() if c is not None}
    sums = _by_document(scores.document, known, scores.sizes)
    means = _resampled_means(sums, seed)

    def measured(name: str, of: Callable[[np.ndarray], np.ndarray]) -> Measurement:
        low, high = np.quantile(of(means[1:]), [0.025, 0.975])
        return Measurement(
            name=name, value=float(of(means[:1])[0]), unit="1", kind="measured", n=len(sums),
            spread=(float(low), float(high)), where=scores.where,
        )  # fmt: skip

    return measured, {name: i for i, name in enumerate(known)}


def degeneration(
    replies: Sequence[Reply], *, where: str = "", seed: int = 0
) -> tuple[Measurement, ...]:
    """Measure signs of degenerate answers, from their tokens.

    `repeated_4grams`: the mean share of an answer's 4-grams that came in it before (Welleck et al.
    2020). `distinct_2`: different pairs of tokens over all pairs, of all answers together (Li et
    al. 2016); without an interval, since drawing answers twice lowers it. `answer_tokens`: the mean
    length. `ended`: the share that ended by themselves, with Wilson's interval. The other intervals
    are 95 % percentile bootstraps over answers. Raises `DataError` for no answers.
    """
    if not replies:
        raise DataError("there are no answers to measure; give at least one")
    answers = [reply.tokens for reply in replies]
    repeated = np.array([repeated_share(answer) for answer in answers])
    pairs = [pair for answer in answers for pair in zip(answer, answer[1:], strict=False)]
    ended = sum(reply.ended for reply in replies) / len(replies)

    def figure(name: str, value: float, spread: tuple[float, float] | None) -> Measurement:
        return Measurement(
            name=name, value=value, unit="1", kind="measured", n=len(replies), spread=spread,
            where=where,
        )  # fmt: skip

    def mean(name: str, values: np.ndarray) -> Measurement:
        rows = np.stack([values, np.ones(len(values))], axis=1)
        low, high = np.quantile(_resampled_means(rows, seed)[1:, 0], [0.025, 0.975])
        return figure(name, float(values.mean()), (float(low), float(high)))

    return (
        mean("repeated_4grams", repeated),
        figure("distinct_2", len(set(pairs)) / len(pairs) if pairs else 1.0, None),
        mean("answer_tokens", np.array([len(answer) for answer in answers], np.float64)),
        figure("ended", ended, wilson_interval(ended, len(replies))),
    )


def _by_document(
    document: Int[np.ndarray, " n"], columns: dict[str, np.ndarray],
    sizes: Int[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "documents columns+1"]:  # fmt: skip
    """Return the sums of each document, and how many tokens it has, or bytes."""
    _, number = np.unique(document, return_inverse=True)
    sums = [np.bincount(number, weights=column) for column in columns.values()]
    return np.stack([*sums, np.bincount(number, weights=sizes)], axis=1)


def _resampled_means(
    sums: Float[np.ndarray, "n columns+1"], seed: int
) -> Float[np.ndarray, "resamples+1 columns"]:
    """Return means a token: first of what was measured, then of resampled documents.

    A mean is the sum of the drawn documents' sums over that of their tokens, the last column.
    """
    draw, n = np.random.default_rng(seed), len(sums)
    drawn = (np.bincount(draw.integers(0, n, n), minlength=n) @ sums for _ in range(_RESAMPLES))
    totals = np.array([sums.sum(0), *drawn])
    return totals[:, :-1] / totals[:, -1:]


def _log_softmax(logits: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n v"]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check(scores: TokenScores) -> None:
    at, n = (f" ({scores.where})" if scores.where else ""), len(scores.student)
    if not n:
        raise DataError(f"there are no tokens to measure{at}; give at least one")
    for name in _COLUMNS:
        values = getattr(scores, name)
        if values is None:
            continue
        if values.shape != (n,):
            raise DataError(
                f"the tokens' '{name}' has shape {values.shape}, not ({n},){at}; give one a token"
            )
        if not np.isfinite(values).all():
            raise DataError(
                f"{int((~np.isfinite(values)).sum())} of {n} tokens have a '{name}' that is not "
                f"finite{at}; check the model that made them"
            )
