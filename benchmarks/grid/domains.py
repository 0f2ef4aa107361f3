"""The domains of the grid: data, teacher, how examples are varied, and what a student is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tools import TOOLS

HERE = Path(__file__).parent.parent
WORK = HERE / ".work" / "grid"
_SERIES = HERE / ".work" / "series" / "data"
_TEXT = HERE / ".work" / "text"
_ROCKET = "minirocket"
_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domain:
    """One domain.

    `recipe` are the recipe's keys of task, data, teacher and augmentation; `epochs` those of plain
    KD, whose time is everyone's budget. `classes` keeps those alone, by number, of the data and of
    what a teacher that is given decides; `examples` so many training examples, `labels` that share
    of the labels (of validation as well). `files` must be there, else `setup` makes them.
    `structure`: which of the family's students is sized; None: the teacher, evenly narrowed.
    """

    recipe: dict[str, Any]
    epochs: int
    batch: int = 128
    rate: float = 1e-2
    classes: tuple[int, ...] | None = None
    examples: int | None = None
    labels: float | None = None
    structure: int | None = None
    leaves_out: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()
    setup: str = ""
    sizes: tuple[int, ...] = field(default=(10, 30, 100))

    def holds(self, asks: str, *, sliced: bool, mixed: bool, tool: str) -> bool:
        """Say whether a method can be used here; other tools read labelled data of one task."""
        if tool and (self.recipe["task"] != TOOLS[tool].task or self.labels is not None):
            return False
        wants = {asks, "slice" if sliced else "", "mixup" if mixed else ""}
        return not wants & self.leaves_out

    def definition(self) -> dict[str, Any]:
        """Return what decides figures, for hashes; paths count by what they are called here."""
        plain = {k: str(v).replace(str(HERE), ".") for k, v in self.recipe.items()}
        numbers = (self.epochs, self.batch, self.rate, self.examples, self.labels, self.structure)
        kept = {} if self.classes is None else {"classes": list(self.classes)}
        return {"recipe": plain, "numbers": list(numbers), **kept}


def _series(name: str, epochs: int, teacher: str = "inception") -> Domain:
    """Return a set of series; an inception teacher has an inside to teach, minirocket has none."""
    files = tuple(_SERIES / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
    return Domain(
        recipe={
            "task": "series",
            "data": {"train": str(files[0]), "test": str(files[1]), "validation": 0.2},
            "teacher": {"fit": True, "network": teacher},
            "augment": {"views": 8, "mixup": 0.0},
        },
        epochs=epochs,
        structure=0,
        leaves_out=frozenset({"maps", "slice"} | ({"features"} if teacher == _ROCKET else set())),
        files=files,
        setup="python benchmarks/series.py --unpack",
    )


def _fashion(examples: int = 20_000, epochs: int = 8, **kept: Any) -> Domain:
    return Domain(
        recipe={
            "task": "vision",
            "data": {"train": str(_FASHION)},
            "teacher": {"source": str(HERE / "teachers" / "fashion-mnist")},
            "augment": {"views": 4, "flip": True, "shift": 2},
        },
        epochs=epochs,
        examples=examples,
        files=(_FASHION,),
        setup=f"put Fashion-MNIST's four IDX files into {_FASHION}",
        **kept,
    )


def _text(name: str, folder: Path, examples: int | None = None) -> Domain:
    files = tuple(folder / f"{part}.jsonl" for part in ("train", "test"))
    return Domain(
        recipe={
            "task": "text",
            "data": {"train": str(files[0]), "test": str(files[1]), "length": 128},
            "teacher": {"source": str(_TEXT / "minilm"), "fit": "all", "epochs": 3},
        },
        epochs=10,
        batch=32,
        rate=7.5e-3,
        examples=examples,
        structure=0,
        leaves_out=frozenset({"maps", "mixup", "slice"}),
        files=(*files, _TEXT / "minilm" / "model.safetensors"),
        setup=f"python benchmarks/text.py --unpack --set {name}",
        sizes=(10, 30),
    )


DOMAINS: dict[str, Domain] = {
    "digits": Domain(
        recipe={
            "task": "vision",
            "data": {"train": "digits"},
            "teacher": {"fit": True},
            "augment": {"views": 4},
        },
        epochs=60,
    ),
    "fashion": _fashion(),
    "fashion-1%": _fashion(labels=0.01),
    "shirts": _fashion(classes=(0, 6), examples=3_000, epochs=15),  # T-shirts and shirts
    "ItalyPowerDemand": _series("ItalyPowerDemand", 40),
    "GunPoint": _series("GunPoint", 40),
    "BasicMotions": _series("BasicMotions", 50),
    "JapaneseVowels": _series("JapaneseVowels", 20),
    "ACSF1": _series("ACSF1", 60, _ROCKET),
    "OSULeaf": _series("OSULeaf", 60, _ROCKET),
    "PickupGesture": _series("PickupGestureWiimoteZ", 60, _ROCKET),
    "spam": _text("mails", _TEXT),
    "sections": _text("sections", _TEXT / "sections", examples=3_000),
}
