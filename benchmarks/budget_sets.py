"""The sets of benchmarks/budgets.py: data, teacher and twelve budgets each, over five devices.

`fashion` is 10,000 images of Fashion-MNIST and benchmarks/teachers/fashion-mnist; `digits` the set
of the demo, `series` JapaneseVowels and `leaves` OSULeaf (`series.py --unpack`), `texts` a third of
the sections and `mails` of SpamAssassin (`text.py --unpack --set sections`, and without `--set`),
with teachers that are fitted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common import FASHION_MNIST, HERE, TEACHER, fashion_mnist

from tutelage.files import write_atomically
from tutelage.pipeline.material import Material, read_material
from tutelage.recipe import Recipe

_SERIES = HERE / ".work" / "series" / "data"
_TEXT = HERE / ".work" / "text"
_FEWER = {
    str(HERE / ".work" / "budgets" / f"{name}.jsonl"): folder / "train.jsonl"
    for name, folder in (("sections", _TEXT / "sections"), ("mails", _TEXT))
}
_SHARE = 3  # one text in so many


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSet:
    """One set: what its recipes have beside budget and student, and its budgets.

    Budgets go from loose to tight, as `nearest` needs; of a device several limits bind in turn.
    """

    recipe: Mapping[str, Any]
    budgets: tuple[tuple[str, dict[str, str]], ...]
    leaves_out: frozenset[str] = field(default=frozenset())

    def of(self, number: int, seed: int, student: Mapping[str, Any], times: float = 1) -> Recipe:
        """Return the recipe of one budget; `times` as many epochs, where the set says how many."""
        device, budget = self.budgets[number]
        given: dict[str, Any] = dict(self.recipe)
        if times > 1:
            given["distill"] = {"epochs": round(times * given["distill"]["epochs"])}
        return Recipe.parse(
            {
                "seed": seed, "threads": 1, "device": device, "budget": budget,
                "student": dict(student), **given,
            }
        )  # fmt: skip

    def material(self, seed: int) -> Material:
        """Read the data; of Fashion-MNIST and the texts, fewer than there are."""
        if self.recipe["data"]["train"] == FASHION_MNIST:
            return fashion_mnist(FASHION_MNIST, examples=10_000, flip=True, shift=2, views=4)
        few = Path(self.recipe["data"]["train"])
        if str(few) in _FEWER and not few.exists():
            lines = _FEWER[str(few)].read_text().splitlines(keepends=True)
            few.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(few, "".join(lines[_SHARE - 1 :: _SHARE]))
        return read_material(self.of(0, seed, {}))


_OF_IMAGES = (
    ("raspberry-pi-4", {"latency": "1 ms"}),
    ("nucleo-l4r5", {"storage": "48 kB"}),
    ("disco-f746", {"latency": "30 ms"}),
    ("esp32-s3", {"storage": "32 kB", "latency": "40 ms"}),
    ("raspberry-pi-4", {"storage": "24 kB"}),
    ("nucleo-l4r5", {"energy": "1.5 mJ"}),
    ("disco-f746", {"storage": "20 kB", "memory": "32 kB"}),
    ("esp32-s3", {"storage": "16 kB"}),
    ("nucleo-l4r5", {"memory": "24 kB"}),
    ("nucleo-g0b1", {"storage": "14 kB"}),
    ("nucleo-g0b1", {"latency": "150 ms"}),
    ("disco-f746", {"storage": "10 kB", "latency": "10 ms"}),
)
_OF_DIGITS = (
    ("raspberry-pi-4", {"latency": "0.1 ms"}),
    ("nucleo-l4r5", {"storage": "16 kB"}),
    ("disco-f746", {"latency": "2 ms"}),
    ("esp32-s3", {"storage": "14 kB", "latency": "3 ms"}),
    ("raspberry-pi-4", {"storage": "12 kB"}),
    ("nucleo-l4r5", {"energy": "130 uJ"}),
    ("disco-f746", {"storage": "11 kB", "memory": "11 kB"}),
    ("esp32-s3", {"storage": "10 kB"}),
    ("nucleo-l4r5", {"memory": "10 kB"}),
    ("nucleo-g0b1", {"storage": "9 kB"}),
    ("nucleo-g0b1", {"latency": "20 ms"}),
    ("disco-f746", {"storage": "8 kB", "latency": "1 ms"}),
)
_OF_SERIES = (
    ("raspberry-pi-4", {"latency": "0.2 ms"}),
    ("nucleo-l4r5", {"storage": "40 kB"}),
    ("disco-f746", {"latency": "4 ms"}),
    ("esp32-s3", {"storage": "32 kB", "latency": "5 ms"}),
    ("raspberry-pi-4", {"storage": "24 kB"}),
    ("nucleo-l4r5", {"energy": "200 uJ"}),
    ("disco-f746", {"storage": "20 kB", "memory": "12 kB"}),
    ("esp32-s3", {"storage": "16 kB"}),
    ("nucleo-l4r5", {"memory": "9 kB"}),
    ("nucleo-g0b1", {"storage": "14 kB"}),
    ("nucleo-g0b1", {"latency": "25 ms"}),
    ("disco-f746", {"storage": "10 kB", "latency": "1.5 ms"}),
)
_OF_LEAVES = (
    ("raspberry-pi-4", {"latency": "0.5 ms"}),
    ("nucleo-l4r5", {"storage": "40 kB"}),
    ("disco-f746", {"latency": "8 ms"}),
    ("esp32-s3", {"storage": "32 kB", "latency": "10 ms"}),
    ("raspberry-pi-4", {"storage": "24 kB"}),
    ("nucleo-l4r5", {"energy": "300 uJ"}),
    ("disco-f746", {"storage": "20 kB", "memory": "12 kB"}),
    ("esp32-s3", {"storage": "16 kB"}),
    ("nucleo-l4r5", {"memory": "9 kB"}),
    ("nucleo-g0b1", {"storage": "14 kB"}),
    ("nucleo-g0b1", {"latency": "60 ms"}),
    ("disco-f746", {"storage": "10 kB", "latency": "3 ms"}),
)
_OF_TEXTS = (
    ("raspberry-pi-4", {"latency": "10 ms"}),
    ("galaxy-s24", {"storage": "3 MB"}),
    ("raspberry-pi-5", {"energy": "40 mJ"}),
    ("raspberry-pi-zero-2w", {"storage": "2 MB", "latency": "15 ms"}),
    ("raspberry-pi-4", {"storage": "1.8 MB"}),
    ("browser", {"storage": "1.6 MB"}),
    ("raspberry-pi-zero-2w", {"latency": "8 ms"}),
    ("raspberry-pi-5", {"latency": "1 ms"}),
    ("raspberry-pi-4", {"memory": "36.5 MB"}),
    ("raspberry-pi-zero-2w", {"energy": "10 mJ"}),
    ("galaxy-s24", {"storage": "1.3 MB"}),
    ("browser", {"storage": "1 MB", "latency": "1 ms"}),
)


def _of_series(name: str, budgets: tuple[tuple[str, dict[str, str]], ...]) -> BudgetSet:
    folder = _SERIES / name
    return BudgetSet(
        recipe={
            "task": "series",
            "data": {
                "train": str(folder / f"{name}_TRAIN.ts"), "test": str(folder / f"{name}_TEST.ts")
            },
            "teacher": {"fit": True, "network": "resnet1d"},
        },
        budgets=budgets,
        leaves_out=frozenset({"width2", "magnitude2", "fitted2", "auto2"}),
    )  # fmt: skip


def _of_texts(number: int) -> BudgetSet:
    few, whole = list(_FEWER.items())[number]
    return BudgetSet(
        recipe={
            "task": "text",
            "data": {"train": few, "test": str(whole.with_name("test.jsonl")), "length": 64},
            "teacher": {"source": str(_TEXT / "minilm"), "fit": "all", "epochs": 3},
            "distill": {"epochs": 6},
        },
        budgets=_OF_TEXTS,
        leaves_out=frozenset({"magnitude", "magnitude2"}),
    )


SETS = MappingProxyType(
    {
        "fashion": BudgetSet(
            recipe={
                "data": {"train": FASHION_MNIST},
                "teacher": {"source": str(TEACHER), "precision": "bf16"},
                "augment": {"views": 4, "flip": True},
                "distill": {"epochs": 10},
            },
            budgets=_OF_IMAGES,
        ),
        "digits": BudgetSet(
            recipe={
                "data": {"train": "digits"},
                "teacher": {"fit": True, "epochs": 40},
                "distill": {"epochs": 60},
            },
            budgets=_OF_DIGITS,
        ),
        "series": _of_series("JapaneseVowels", _OF_SERIES),
        "leaves": _of_series("OSULeaf", _OF_LEAVES),
        "texts": _of_texts(0),
        "mails": _of_texts(1),
    }
)
