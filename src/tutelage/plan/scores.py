"""What is known of every student that was tried in a run: the store that answers new budgets.

A row holds what the exported graph counts (it does not hang on the device), the validation figure
after a short distillation and, once there was a full one, that of the artifact. Another device or
limit is answered from here without teacher, training or export. Rows hold for one lesson (data,
teacher, losses, views, seed): under another they are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import CorruptFileError
from tutelage.export.graph import GraphCosts
from tutelage.files import read_json, write_json
from tutelage.plan.candidate import Candidate
from tutelage.plan.costs import Costing, figures_on, missed_limits, needs_timing
from tutelage.records import Measurement
from tutelage.students.spec import StudentSpec

_FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Score:
    """One student: its costs, and how good it was found to be, after `steps` of a short lesson.

    A slice of the teacher starts from weights that only a new search finds again. `by_scores`: see
    `Candidate`.
    """

    spec: StudentSpec
    parameters: int
    precision: str
    counted: GraphCosts
    trial: Measurement | None = None
    taught: Measurement | None = None
    steps: int = 0
    space: str = "compact"
    by_scores: bool = False

    @property
    def figure(self) -> Measurement | None:
        """The best founded figure: of the artifact where it was taught in full, else the trial."""
        return self.taught or self.trial

    def candidate(self, costing: Costing) -> Candidate:
        """Return it with its figures on another device and under other limits."""
        figures = figures_on(self.counted, costing)
        return Candidate(
            spec=self.spec,
            parameters=self.parameters,
            figures=figures,
            missed=missed_limits(figures, costing.limits),
            counted=self.counted,
            by_scores=self.by_scores,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "spec": self.spec.to_json(),
            "parameters": self.parameters,
            "precision": self.precision,
            "counted": dataclasses.asdict(self.counted),
            "trial": None if self.trial is None else self.trial.to_json(),
            "taught": None if self.taught is None else self.taught.to_json(),
            "steps": self.steps,
            "space": self.space,
            "by_scores": self.by_scores,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        """Rebuild from `to_json`."""
        trial, taught = (
            None if data[name] is None else Measurement.from_json(data[name])
            for name in ("trial", "taught")
        )
        return cls(
            spec=StudentSpec.from_json(data["spec"]),
            parameters=int(data["parameters"]),
            precision=str(data["precision"]),
            counted=GraphCosts.from_json(data["counted"]),
            trial=trial,
            taught=taught,
            steps=int(data["steps"]),
            space=str(data["space"]),
            by_scores=bool(data.get("by_scores", False)),
        )


@dataclass(slots=True, kw_only=True)
class Scores:
    """Every score of one lesson, in the file at `path`."""

    path: Path
    lesson: str
    rows: dict[tuple[str, str, str], Score] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, lesson: str) -> Scores:
        """Read the store; empty where there is none, or one of another lesson.

        Raises `CorruptFileError` where the file is damaged.
        """
        found = cls(path=path, lesson=lesson)
        if not path.exists():
            return found
        data = read_json(path)
        try:
            if data["format"] == _FORMAT and data["lesson"] == lesson:
                for row in map(Score.from_json, data["rows"]):
                    found.rows[_key(row.spec, row.precision, row.space)] = row
        except Exception as error:  # damage takes any shape; what it says is what is wrong
            raise CorruptFileError(
                f"{path} was altered ({error!r}); delete it: the next run tries students anew"
            ) from error
        return found

    def add(self, candidate: Candidate, precision: str, trial: Measurement, steps: int) -> None:
        """Note what a short lesson of `steps` made of a candidate; a longer one stands."""
        assert candidate.counted is not None
        key = _key(candidate.spec, precision, candidate.space)
        known = self.rows.get(key)
        if known is not None and known.steps > steps:
            return
        self.rows[key] = Score(
            spec=candidate.spec,
            parameters=candidate.parameters,
            precision=precision,
            counted=candidate.counted,
            trial=trial,
            taught=None if known is None else known.taught,
            steps=steps,
            space=candidate.space,
            by_scores=candidate.by_scores,
        )
        self._write()

    def note_taught(
        self, spec: StudentSpec, precision: str, space: str, figure: Measurement
    ) -> None:
        """Note what a full distillation came to, measured on the artifact; if it was scored."""
        row = self.rows.get(_key(spec, precision, space))
        if row is not None:
            row.taught = figure
            self._write()

    def scored(self, costing: Costing, *, steps: int = 0) -> tuple[tuple[Score, Candidate], ...]:
        """Return what was tried for at least `steps`, with figures for this device and budget.

        Those that keep every hard limit come first, among them the best. None where a limit is on
        the latency of this machine: a clock must judge that.
        """
        if needs_timing(costing):
            return ()
        rows = [r for r in self.rows.values() if r.precision == costing.precision]
        rows = [r for r in rows if r.figure is not None and r.steps >= steps]
        found = [(r, r.candidate(costing)) for r in sorted(rows, key=_goodness, reverse=True)]
        return tuple(sorted(found, key=lambda pair: len(pair[1].missed)))

    def _write(self) -> None:
        rows: Iterable[Score] = self.rows.values()
        data = {"format": _FORMAT, "lesson": self.lesson, "rows": [r.to_json() for r in rows]}
        write_json(self.path, data)


def _goodness(row: Score) -> tuple[float, int]:
    figure = row.figure
    return (-1.0 if figure is None else figure.value), row.counted.macs


def _key(spec: StudentSpec, precision: str, space: str) -> tuple[str, str, str]:
    return str(sorted(spec.to_json().items())), precision, space
