"""Which student tap learns from which teacher tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import RecipeError
from tutelage.registry import near_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Pairs of (student tap, teacher tap) by position, and the similarities they came from.

    `similarity[i][j]` compares student tap `i` with teacher tap `j`; `by` says how it was measured,
    or `hand` when the recipe gave the pairs.
    """

    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]
    similarity: tuple[tuple[float, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    by: str

    def to_json(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "student_taps": list(self.student_taps),
            "teacher_taps": list(self.teacher_taps),
            "similarity": [list(row) for row in self.similarity],
            "pairs": [list(pair) for pair in self.pairs],
            "by": self.by,
        }


def linear_cka(a: Float[Tensor, "n da"], b: Float[Tensor, "n db"]) -> float:
    """Return the linear centred kernel alignment of two feature sets, in [0, 1].

    Kornblith et al. 2019, equation 4, in the feature-space form.
    """
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    cross = (a.T @ b).square().sum()
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    return min(1.0, float(cross / scale)) if scale > 0 else 0.0


def similarity(
    student: Sequence[Float[Tensor, "n ds"]], teacher: Sequence[Float[Tensor, "n dt"]]
) -> tuple[tuple[float, ...], ...]:
    """Compare every student tap with every teacher tap by linear CKA."""
    return tuple(tuple(linear_cka(s, t) for t in teacher) for s in student)


def match(table: Sequence[Sequence[float]]) -> tuple[tuple[int, int], ...]:
    """Give each student tap one teacher tap, later taps later ones, with the largest total.

    The order is strict where the teacher has enough taps, else neighbours may share one. Dynamic
    programming over the rows of `table`.
    """
    rows = len(table)
    if rows == 0 or len(table[0]) == 0:
        return ()
    columns = len(table[0])
    strict = 1 if columns >= rows else 0
    best = [list(table[0])]
    back: list[list[int]] = [[-1] * columns]
    for i in range(1, rows):
        line, origin = [], []
        for j in range(columns):
            limit = j - strict
            if limit < 0:
                line.append(float("-inf"))
                origin.append(-1)
                continue
            k = max(range(limit + 1), key=lambda c: best[-1][c])
            line.append(best[-1][k] + table[i][j])
            origin.append(k)
        best.append(line)
        back.append(origin)
    j = max(range(columns), key=lambda c: best[-1][c])
    pairs = []
    for i in range(rows - 1, -1, -1):
        pairs.append((i, j))
        j = back[i][j]
    return tuple(reversed(pairs))


def by_hand(
    named: Sequence[tuple[str, str]], student_taps: Sequence[str], teacher_taps: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """Turn the recipe's pairs of names into positions; raises `RecipeError` on an unknown tap."""
    pairs = []
    for student, teacher in named:
        for name, known, who in (
            (student, student_taps, "student"),
            (teacher, teacher_taps, "teacher"),
        ):
            if name not in known:
                hint = near_matches(name, list(known)) if known else "It has none."
                raise RecipeError(f"distill.pairs: the {who} has no tap '{name}'. {hint}")
        pairs.append((list(student_taps).index(student), list(teacher_taps).index(teacher)))
    if len({student for student, _ in pairs}) != len(pairs):
        raise RecipeError("distill.pairs: a student tap stands twice; it can learn from one tap")
    return tuple(pairs)


def find_pairing(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_taps: tuple[str, ...],
    teacher_taps: tuple[str, ...],
    named: Sequence[tuple[str, str]] | None = None,
) -> Pairing:
    """Pair the taps by what they say about the same examples (`[n, d]` a tap), or by hand."""
    with torch.no_grad():
        table = similarity(student, teacher)
    pairs = match(table) if named is None else by_hand(named, student_taps, teacher_taps)
    return Pairing(
        student_taps=student_taps,
        teacher_taps=teacher_taps,
        similarity=table,
        pairs=pairs,
        by="linear CKA" if named is None else "hand",
    )
