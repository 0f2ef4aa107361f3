"""Short distillations of candidates, by successive halving; each is a stage of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.files import hash_json, write_tensors
from tutelage.losses import LOSSES
from tutelage.losses.objective import Term
from tutelage.pipeline.judging import validation_figure
from tutelage.pipeline.lessons import (
    batch_for,
    distill_inputs,
    epochs_for,
    rate_for,
    schedule_of,
    teacher_inputs,
    terms_of,
)
from tutelage.pipeline.material import Material
from tutelage.pipeline.starting import first_student, start_key
from tutelage.pipeline.taps import UNPAIRED, build_lesson, pair_taps
from tutelage.pipeline.teaching import Taught
from tutelage.plan import Candidate
from tutelage.plan.costs import Costing
from tutelage.plan.halving import FAR, rungs
from tutelage.plan.scores import Scores
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.run import Run
from tutelage.students.spec import StudentSpec
from tutelage.train.loop import Trainer
from tutelage.types import Decides

_TRIAL_STEPS = 900
_TRIAL_SHARE, _FEWEST_TRIAL_STEPS = 0.15, 100
_TRIAL_SHARE_BEGUN, _FEWEST_TRIAL_STEPS_BEGUN = 0.1, 60
_TRIAL_EXAMPLES = 20_000
_EARLIER = 4  # students tried for an earlier budget that compete again


def scores_of(recipe: Recipe, material: Material, folder: Path) -> Scores:
    """Open the run's store of scores; it holds for this teacher, data and lesson alone."""
    lesson = hash_json(
        [
            material.train.content,
            material.validation.content,
            teacher_inputs(recipe),
            *distill_inputs(recipe),
            material.views,
            recipe.seed,
            *start_key(recipe),
        ]
    )
    return Scores.open(folder / "scores.json", lesson)


def note_taught(scores: Scores, proof: dict[str, Any], spec: StudentSpec, space: str) -> None:
    """Note in the store what the shipped artifact of `spec` came to on validation."""
    name = f"{proof['metric']}_validation"
    rows = [row for row in proof["figures"]["student"] if row["name"] == name]
    shipped = next(a for a in proof["artifacts"] if a["path"] == proof["chosen"])
    if rows:
        scores.note_taught(spec, shipped["precision"], space, Measurement.from_json(rows[0]))


def trial_file(candidate: Candidate, steps: int) -> str:
    """Return where the weights after a trial of so many steps lie in the run directory."""
    return f"trials/{_key(candidate, steps)}.safetensors"


@dataclass(slots=True, kw_only=True)
class Search:
    """The trials of one budget: `trials` and `steps_taken` are by the candidate's number.

    `macs` are the most multiply-accumulates of a candidate, where they bound how long is taught.
    `begun`: some candidates begin with weights of the teacher. They are good after fewer steps than
    fresh ones, among which a few steps decide nothing (benchmarks/RESULTS.md).
    """

    recipe: Recipe
    material: Material
    taught: Taught
    costing: Costing
    run: Run
    progress: Progress
    macs: float | None = None
    begun: bool = False
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps_taken: dict[int, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of the last, longest trial: 15 % of a whole distillation, from 100 to 900.

        A tenth, from 60, where some have begun. Where operations bound the whole they may be a
        quarter of it, if that is less, and are rounded down to a power of two: near budgets then
        try for equally long.
        """
        count = self.material.train.count
        whole = epochs_for(self.recipe, count, self.macs) * (count // self._batch)
        share, least = _TRIAL_SHARE, _FEWEST_TRIAL_STEPS
        if self.begun:
            share, least = _TRIAL_SHARE_BEGUN, _FEWEST_TRIAL_STEPS_BEGUN
        if self.macs is None:
            return min(_TRIAL_STEPS, max(least, round(share * whole)))
        steps = max(1, min(least, whole // 4), min(_TRIAL_STEPS, round(share * whole)))
        return 1 << (steps.bit_length() - 1)

    @property
    def _batch(self) -> int:
        return batch_for(self.recipe, self.material.train.count)

    def earlier(self, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Return the best students of earlier budgets that fit this one and are not in `found`.

        Slices are left out: a new search finds those that fit, with their weights.
        """
        known = [candidate.spec for candidate in found if candidate.weights is None]
        scores = scores_of(self.recipe, self.material, self.run.path)
        stored = scores.scored(self.costing, steps=self.steps)
        fresh = [c for score, c in stored if score.space == "compact" and not c.missed]
        return tuple(c for c in fresh if c.spec not in known)[:_EARLIER]

    def halve(self, found: Sequence[Candidate], earlier: Sequence[Candidate]) -> None:
        """Try `found` rung by rung; `earlier`, numbered after them, join the last rung.

        Where some have begun, who is far behind after a rung is out, and where one is left that is
        the end.
        """
        ladder = rungs(len(found), self.steps, begun=self.begun)
        alive = sorted(range(len(found)), key=self._rank(found))
        both = [*found, *earlier]
        for number, rung in enumerate(ladder):
            if number == len(ladder) - 1:
                alive += range(len(found), len(both))
            if number and len(alive) == 1:
                break
            for place, i in enumerate(alive):
                label = f"{place + 1}/{len(alive)}"
                if len(ladder) > 1:
                    label = f"{label}, round {number + 1} of {len(ladder)}"
                self.trials[i] = self._trial(both[i], rung.steps, label)
                self.steps_taken[i] = rung.steps
            if number < len(ladder) - 1:
                alive = self._go_on(found, alive)[: ladder[number + 1].students]

    def best(self, found: Sequence[Candidate]) -> int:
        """Return the number of the best candidate among those that were tried longest.

        All of them fit, so of equals the one that computes most: it has most to learn with.
        """
        if not self.trials:
            return 0
        longest = max(self.steps_taken.values())
        last = [i for i, steps in self.steps_taken.items() if steps == longest]
        return max(last, key=lambda i: (self.trials[i]["value"], found[i].figure("macs")))

    def _go_on(self, found: Sequence[Candidate], tried: Sequence[int]) -> list[int]:
        """Return who goes on after a rung, the best first."""
        order = sorted(tried, key=self._rank(found))
        if not self.begun:
            return order
        best = Measurement.from_json(self.trials[order[0]])
        noise = 0.0 if best.spread is None else best.value - best.spread[0]
        return [i for i in order if self.trials[i]["value"] >= best.value - max(FAR, noise)]

    def _rank(self, found: Sequence[Candidate]) -> Any:
        def rank(i: int) -> tuple[float, float]:
            value = self.trials[i]["value"] if i in self.trials else 0.0
            return -value, -found[i].figure("macs")

        return rank

    def _trial(self, candidate: Candidate, steps: int, label: str) -> dict[str, Any]:
        """Distil one candidate briefly (see `trial_terms`); return its figure as JSON."""
        recipe, taught = self.recipe, self.taught
        inherits = candidate.weights is not None or recipe.student.start == "teacher"
        rate = rate_for(recipe, candidate.spec, inherits=inherits)
        inputs = hash_json(
            [taught.train.key, taught.validation.key, candidate.spec.to_json(),
             *distill_inputs(recipe),
             recipe.seed, recipe.threads, self.material.views,
             *start_key(recipe, candidate.weights),
             *([] if rate == recipe.distill.rate else [rate]),
             steps]
        )  # fmt: skip
        result = self.run.stage(
            f"trial-{_key(candidate, steps)}",
            inputs,
            lambda: self._distil(candidate, steps, label, rate),
        ).result
        scores = scores_of(recipe, self.material, self.run.path)
        scores.add(candidate, self.costing.precision, Measurement.from_json(result), steps)
        return result

    def _examples(self, steps: int, epochs: int) -> int:
        """Return of how many examples a trial is: no more than make the steps in these epochs."""
        return min(_TRIAL_EXAMPLES, max(1, steps // epochs) * self._batch)

    def _distil(
        self, candidate: Candidate, steps: int, label: str, rate: float
    ) -> tuple[Any, list[Path]]:
        recipe, material, taught = self.recipe, self.material, self.taught
        network, _ = first_student(recipe, candidate.spec, taught, candidate.weights)
        terms, paired = trial_terms(recipe, material.decides), UNPAIRED
        if any(LOSSES[term.name].reads == "features" for term in terms):
            paired = pair_taps(recipe, material, taught, network, start=network)
        least = 1 if steps < self.steps else 2  # validation is read after each: dear in a short one
        lesson = build_lesson(
            recipe, material, taught, network, paired, terms, examples=self._examples(steps, least)
        )
        epochs = max(least, round(steps / max(1, lesson.steps())))
        path = self.run.file(trial_file(candidate, steps))
        trainer = Trainer(
            lesson,
            schedule_of(recipe, epochs=epochs, seed=recipe.seed, rate=rate),
            checkpoint=self.run.file(f"checkpoints/trial-{path.stem}.safetensors"),
            progress=self.progress,
            label=f"Trying candidate {label}",
        )
        history = trainer.train()
        figure = validation_figure(material, max(history.figure), f"after {epochs} short epochs")
        write_tensors(path, network.state_dict())
        return figure.to_json(), [path]


def trial_terms(recipe: Recipe, decides: Decides) -> tuple[Term, ...]:
    """Return the recipe's losses that need no branches, tokens or maps: those of a short trial."""
    features = tuple(t for t in terms_of(recipe.distill) if LOSSES[t.name].reads == "features")
    return decision_terms(recipe, decides) + features


def decision_terms(recipe: Recipe, decides: Decides) -> tuple[Term, ...]:
    """Return the recipe's losses that need no taps; when all of them do, `dist` or the like."""
    simple = ("labels", "decision", "labelled_decision")
    kept = tuple(t for t in terms_of(recipe.distill) if LOSSES[t.name].reads in simple)
    usual = "dist" if decides == "classes" else "squared_error"
    return kept or (Term(name=usual, weight=1.0),)


def _key(candidate: Candidate, steps: int) -> str:
    spec = candidate.spec.to_json()
    name = hash_json(spec if candidate.weights is None else ["sliced", spec])[:12]
    return f"{name}-{steps}"
