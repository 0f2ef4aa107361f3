"""What is known of every slice of a language model that was compared in a run.

A row holds the slice's config, its file's form, the KL divergence of a token from what the teacher
says, untaught, and the validation perplexity after a short lesson and after a whole one, where
there was one. What a slice costs follows from config and form on any device (see
`costs.figures_on`), so another device or budget is answered from here without the teacher. Rows
hold for one lesson (see `lesson_of`): under another they are dropped.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import CorruptFileError
from tutelage.files import hash_json, read_json, write_json
from tutelage.pipeline.language.costs import Terms
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.recipe import Recipe
from tutelage.recipe_language import Quantization
from tutelage.records import Measurement
from tutelage.students.decoders.network import DecoderSpec

FILE = "slices.json"
_FORMAT = 2
_SIZES = ("layers", "hidden", "inner", "groups", "heads", "vocabulary")


@dataclass(slots=True, kw_only=True)
class SliceScore:
    """One slice; `trial` is after a short lesson, `taught` of the file after a whole one.

    `kl` is None of what was only sliced from a student that was taught.
    """

    spec: DecoderSpec
    form: Quantization
    kl: float | None
    trial: Measurement | None = None
    taught: Measurement | None = None

    @property
    def perplexity(self) -> Measurement | None:
        """The best founded figure of validation."""
        return self.taught or self.trial

    @property
    def untaught(self) -> Measurement | None:
        """The KL from the teacher before any lesson."""
        return None if self.kl is None else Measurement(
            name="kl_untaught", value=self.kl, unit="nat", kind="measured",
            where="of a token from what the teacher says, before any lesson",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        figures = {name: getattr(self, name) for name in ("trial", "taught")}
        said = {name: None if x is None else x.to_json() for name, x in figures.items()}
        return {"config": self.spec.config, "form": self.form, "kl": self.kl, **said}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SliceScore:
        """Rebuild from `to_json`; raises `ValueError` for a KL that is no number."""
        kl = data["kl"]
        if kl is not None and not math.isfinite(kl):
            raise ValueError(f"kl is {kl}")
        trial, taught = (
            None if data[name] is None else Measurement.from_json(data[name])
            for name in ("trial", "taught")
        )
        spec = DecoderSpec(config=data["config"])
        return cls(spec=spec, form=data["form"], kl=kl, trial=trial, taught=taught)


@dataclass(slots=True, kw_only=True)
class SliceScores:
    """The rows of one lesson, in the file at `path`, with the terms by which they are priced."""

    path: Path
    lesson: str
    terms: Terms
    rows: dict[tuple[int | str, ...], SliceScore] = field(default_factory=dict)

    @classmethod
    def open(
        cls, recipe: Recipe, material: LanguageMaterial, terms: Terms, folder: Path
    ) -> SliceScores:
        """Read the store of a run; empty where there is none, or one of another lesson.

        Raises `CorruptFileError` where the file is damaged.
        """
        found = cls(path=folder / FILE, lesson=lesson_of(recipe, material), terms=terms)
        if not found.path.exists():
            return found
        data = read_json(found.path)
        try:
            if data["format"] == _FORMAT and data["lesson"] == found.lesson:
                for row in map(SliceScore.from_json, data["rows"]):
                    found.rows[name_of(row.spec, row.form)] = row
        except Exception as error:  # damage takes any shape; what it says is what is wrong
            raise CorruptFileError(
                f"{found.path} was altered ({error!r}); delete it: the next run compares anew"
            ) from error
        return found

    def of(self, spec: DecoderSpec, form: Quantization) -> SliceScore | None:
        """Return the row of a slice of these sizes in a file of that form."""
        return self.rows.get(name_of(spec, form))

    def add(self, spec: DecoderSpec, form: Quantization, kl: float | None) -> None:
        """Note how far an untaught slice is from the teacher; one that is known stays as it is."""
        row = SliceScore(spec=spec, form=form, kl=kl)
        self.rows.setdefault(name_of(spec, form), row)

    def note(self, spec: DecoderSpec, form: Quantization, which: str, figure: Measurement) -> None:
        """Note a figure after a short lesson (`trial`) or a whole one (`taught`), and write all."""
        row = self.of(spec, form)
        if row is not None:
            setattr(row, which, figure)
            self.write()

    def write(self) -> None:
        """Write the file."""
        rows = [row.to_json() for row in self.rows.values()]
        said = {"format": _FORMAT, "lesson": self.lesson, "terms": asdict(self.terms)}
        write_json(self.path, {**said, "rows": rows})


def lesson_of(recipe: Recipe, material: LanguageMaterial) -> str:
    """Name what every slice is compared by: teacher, tokens, losses, seed, format asked for."""
    distill = recipe.distill.model_dump(mode="json", exclude={"checkpoint"})
    part = recipe.language.model_dump(mode="json", exclude={"prompts", "answer", "recompute"})
    data = [material.content, material.teacher, material.vocabulary, material.length]
    data += [material.student] if material.student else []
    return hash_json([*data, distill, part, recipe.seed])


def name_of(spec: DecoderSpec, form: Quantization) -> tuple[int | str, ...]:
    """Return what tells two slices of one network apart: their file's form, and sizes."""
    return (form, *(getattr(spec, name) for name in _SIZES))
