"""Some examples stand for all of them, also where the data is sorted by class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.pipeline.material import some_examples


@pytest.mark.parametrize(
    ("there", "wanted", "got"), [(2_887, 1_024, 1_024), (1_500, 1_024, 1_024), (300, 1_024, 300)]
)
def test_they_reach_from_the_first_to_the_last(there: int, wanted: int, got: int) -> None:
    train = SimpleNamespace(count=there, batch=lambda at, _: SimpleNamespace(inputs=at))
    material: Any = SimpleNamespace(train=train)
    found = some_examples(material, wanted)
    gaps = found.diff()
    assert len(found) == got and found[0] == 0 and found[-1] == there - 1
    assert gaps.min() >= 1 and gaps.max() <= gaps.min() + 1
