"""The labels of texts, numbers or names as they stand in a file, as class numbers with names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError
from tutelage.tasks.labels import as_labels
from tutelage.tasks.several import refuse_joined
from tutelage.tasks.text.files import TextSource, declared

_WHOLE = re.compile(r"-?\d{1,18}(\.0*)?")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def class_numbers(
    found: list[Any], codes: Int[np.ndarray, " n"], source: TextSource
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Return class numbers and names, where example `i` has the label `found[codes[i]]`.

    Whole numbers, also as words, are counted from 0 or 1; names are sorted. Names that a Parquet
    file declares for its numbers are used. Raises `DataError` for labels that are no classes.
    """
    words = [str(label).lower() if isinstance(label, bool) else str(label) for label in found]
    if all(map(_WHOLE.fullmatch, words)):
        numbers = np.array([int(word.split(".")[0]) for word in words], np.int64)
        return as_labels(numbers[codes], declared(source), source.name)
    if all(map(_NUMBER.fullmatch, words)):
        word = next(word for word in words if not _WHOLE.fullmatch(word))
        raise DataError(
            f"{source.name}: label {word} is a fraction and so no class: give whole numbers or "
            "names (data.label_column)"
        )
    refuse_joined(words, lambda i: f"{source.name}: text {int(np.argmax(codes == i))}")
    numbers, names = as_labels(np.array(words), None, source.name)
    return numbers[codes], names
