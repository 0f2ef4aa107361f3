"""The domains of the grid: data, teacher, how examples are varied, and what a student is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
WORK = HERE / ".work" / "grid"
_SERIES = HERE / ".work" / "series" / "data"
_TEXT = HERE / ".work" / "text"
_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Domain:
    """One domain.

    `recipe` are the recipe's keys of task, data, teacher and augmentation; `epochs` those of plain
    KD, whose time is everyone's budget. `examples` keeps so many training examples, `labels` that
    share of the labels (of validation as well). `files` must be there, else `setup` makes them.
    `structure`: which of the family's students is sized; None: the teacher, evenly narrowed.
    """

    recipe: dict[str, Any]
    epochs: int
    batch: int = 128
    rate: float = 1e-2
    examples: int | None = None
    labels: float | None = None
    structure: int | None = None
    leaves_out: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()
    setup: str = ""
    sizes: tuple[int, ...] = field(default=(10, 30, 100))

    def holds(self, asks: str, *, sliced: bool, mixed: bool) -> bool:
        """Say whether a method can be used here."""
        wants = {asks, "slice" if sliced else "", "mixup" if mixed else ""}
        return not wants & self.leaves_out

    def definition(self) -> dict[str, Any]:
        """Return what decides figures, for hashes; paths count by what they are called here."""
        plain = {k: str(v).replace(str(HERE), ".") for k, v in self.recipe.items()}
        numbers = (self.epochs, self.batch, self.rate, self.examples, self.labels, self.structure)
        return {"recipe": plain, "numbers": list(numbers)}


def _series(name: str, epochs: int) -> Domain:
    """Return a set of series with a teacher that has an inside to teach; see also `series.py`."""
    files = tuple(_SERIES / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
    return Domain(
        recipe={
            "task": "series",
            "data": {"train": str(files[0]), "test": str(files[1]), "validation": 0.2},
            "teacher": {"fit": True, "network": "inception"},
            "augment": {"views": 8, "mixup": 0.0},
        },
        epochs=epochs,
        structure=0,
        leaves_out=frozenset({"maps", "slice"}),
        files=files,
        setup="python benchmarks/series.py --unpack",
    )


def _fashion(labels: float | None = None) -> Domain:
    return Domain(
        recipe={
            "task": "vision",
            "data": {"train": str(_FASHION)},
            "teacher": {"source": str(HERE / "teachers" / "fashion-mnist")},
            "augment": {"views": 4, "flip": True, "shift": 2},
        },
        epochs=8,
        examples=20_000,
        labels=labels,
        files=(_FASHION,),
        setup=f"put Fashion-MNIST's four IDX files into {_FASHION}",
    )


def _text(name: str, folder: Path) -> Domain:
    files = tuple(folder / f"{part}.jsonl" for part in ("train", "test"))
    return Domain(
        recipe={
            "task": "text",
            "data": {"train": str(files[0]), "test": str(files[1]), "length": 128},
            "teacher": {"source": str(_TEXT / "minilm"), "fit": "all", "epochs": 3},
        },
        epochs=6,
        batch=32,
        rate=1e-3,
        leaves_out=frozenset({"maps", "mixup"}),
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
        epochs=20,
    ),
    "fashion": _fashion(),
    "fashion-1%": _fashion(labels=0.01),
    "ItalyPowerDemand": _series("ItalyPowerDemand", 40),
    "GunPoint": _series("GunPoint", 40),
    "BasicMotions": _series("BasicMotions", 50),
    "ACSF1": _series("ACSF1", 30),
    "JapaneseVowels": _series("JapaneseVowels", 20),
    "spam": _text("mails", _TEXT),
    "sections": _text("sections", _TEXT / "sections"),
}
