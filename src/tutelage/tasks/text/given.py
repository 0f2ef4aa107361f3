"""Texts given from Python, read as the rows of a file are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.tasks.text.files import ABSENT, TextSource

_NAME = "the texts given"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTexts(TextSource):
    """Texts and labels in memory; `files` holds nothing but what messages call them."""

    texts: Sequence[str]
    labels: Sequence[Any]

    def cells(self, file: Path) -> Iterator[tuple[str, Any, Any]]:
        """Yield place, text and label of each."""
        for i, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            yield f"text {i}", text, label


def given_texts(texts: Any, labels: Any) -> GivenTexts:
    """Take texts and one label each; raises `DataError` where they do not belong together."""
    if labels is None:
        labels = [ABSENT] * len(texts)
    held = [value.tolist() if hasattr(value, "tolist") else value for value in (texts, labels)]
    for value, what in zip(held, ("texts", "labels"), strict=True):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise DataError(f"the {what} given are a {type(value).__name__}: give a list")
    if len(held[0]) != len(held[1]):
        raise DataError(f"{len(held[0])} texts have {len(held[1])} labels: give one label a text")
    return GivenTexts(
        files=(Path(_NAME),), form="given", name=_NAME, texts=held[0], labels=held[1]
    )  # fmt: skip
