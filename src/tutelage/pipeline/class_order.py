"""Whether teacher and data number their classes alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tutelage.errors import RecipeError, TeacherError

_GAIN, _FEWEST = 0.25, 0.5


def class_order(named: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the teacher's number of each of the data's classes; raises `RecipeError`."""
    if sorted(named) != sorted(classes):
        odd = sorted(set(named) ^ set(classes))[:3] or ["a name that stands twice"]
        raise RecipeError(
            f"teacher.classes must name the data's {len(classes)} classes once each; look at: "
            f"{', '.join(odd)}"
        )
    return [list(named).index(name) for name in classes]


def order_by_name(named: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return the teacher's number of each of the data's classes, as its own names tell it.

    None where both stand in the same order, or share no name: the order is then taken as it is.
    Raises `TeacherError` where only some names are shared.
    """
    if sorted(named) == sorted(classes):
        order = class_order(named, classes)
        return None if order == list(range(len(order))) else order
    shared = [name for name in classes if name in named]
    if not shared:
        return None
    odd = next((name for name in named if name not in classes), named[0])
    raise TeacherError(
        f"the teacher calls only {len(shared)} of its {len(named)} classes as the data does (not "
        f"'{odd}'), so their order is not known. Write the data's names in the teacher's order: "
        "teacher.classes"
    )


def refuse_other_order(
    decided: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    classes: Sequence[str],
    given: Sequence[str] | None = None,
) -> None:
    """Raise `TeacherError` where the teacher would be right if its classes were renumbered.

    The best renumbering is the assignment that agrees with most labels (scipy's Hungarian solver).
    It must be right on half of the examples and a quarter more often than the order as it stands.
    `given` is the recipe's `teacher.classes`, by which `decided` is rearranged already; where it
    is the data's own order, the user has answered, and nothing is refused.
    """
    if given is not None and list(given) == list(classes):
        return
    from scipy.optimize import linear_sum_assignment

    count = len(classes)
    table = np.zeros((count, count), np.int64)  # teacher's class by label
    np.add.at(table, (decided, labels), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    best, now = table[rows, columns].sum() / len(labels), np.trace(table) / len(labels)
    if best < _FEWEST or best < now + _GAIN:
        return
    own = class_order(given, classes) if given else range(count)
    named = dict(zip(own, (classes[column] for column in columns), strict=True))
    order = ", ".join(f'"{named[number]}"' for number in range(count))
    raise TeacherError(
        f"the teacher is right on {now:.0%} of validation, and would be on {best:.0%} if its "
        "classes stood in another order than the data's (folders are taken by name). If so, write "
        f"teacher.classes: [{order}]; if not, name them there in the data's order"
    )
