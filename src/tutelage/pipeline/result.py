"""What a run ends with, and the shape in which every command answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.devices import load_device
from tutelage.errors import BudgetMissedError
from tutelage.plan.refusal import advice, amount, name_of
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement, Shortfall, WouldDo


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run ended with. `student` is the torch network, `proof` what proof.json holds."""

    run: Path
    proof: dict[str, Any]
    seconds: float
    student: nn.Module

    @property
    def met(self) -> bool:
        """Whether every hard limit is kept."""
        return self.proof["status"] == "met"

    def figure(self, who: str, name: str) -> Measurement:
        """Return one figure of `teacher` or `student`; raises `KeyError` when there is none."""
        for row in self.proof["figures"][who]:
            if row["name"] == name:
                return Measurement.from_json(row)
        raise KeyError(f"{who} has no figure '{name}'")

    @property
    def artifact(self) -> Path:
        """The file that ships."""
        return self.run / self.proof["chosen"]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return summary(self.run, self.proof, self.seconds)


VERDICT_KEYS = ("metric", "limit", "value", "kind", "met", "margin", "hard", "source")


def summary(run: Path, proof: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the shape in which every command answers under `--json`."""
    named = proof.get("metric", "accuracy")

    def metric(who: str) -> dict[str, Any]:
        rows = {row["name"]: row for row in proof["figures"][who]}
        names = (f"{named}_test", f"{named}_validation", "agreement_test")
        row = next((rows[name] for name in names if name in rows), None)
        if row is None:
            return {"metric": "agreement", "value": None}
        keys = ("value", "kind", "n", "spread", "where")
        mae = {"mae": rows["mae_test"]["value"]} if named == "r2" else {}
        return {"metric": row["name"].rpartition("_")[0], **{key: row[key] for key in keys}, **mae}

    return {
        "status": proof["status"],
        "run": str(run),
        "task": proof["task"],
        "device": proof["device"]["name"],
        "teacher": metric("teacher"),
        "student": metric("student"),
        "budget": [{key: row[key] for key in VERDICT_KEYS} for row in proof["verdicts"]],
        "would_do": proof.get("would_do"),
        "chosen": proof["chosen"],
        "artifacts": [
            {key: row[key] for key in ("path", "runtime", "precision", "bytes", "sha256")}
            for row in proof["artifacts"]
        ],
        "seconds": round(seconds, 2),
    }


def infeasible_summary(recipe: Recipe, run: Path, found: Shortfall, seconds: float) -> Any:
    """Return the same shape for a budget that no student can meet: nothing was made."""
    rows = [verdict.to_json() for verdict in found.verdicts]
    return {
        "status": "infeasible",
        "run": str(run),
        "task": recipe.task,
        "device": load_device(recipe.device).name,
        "teacher": None,
        "student": {"metric": "parameters", "value": found.parameters},
        "budget": [{key: row[key] for key in VERDICT_KEYS} for row in rows],
        "would_do": found.would_do.to_json(),
        "chosen": None,
        "artifacts": [],
        "seconds": round(seconds, 2),
    }


def raise_if_missed(result: Result) -> None:
    """Raise `BudgetMissedError` naming every hard limit that the artifact missed."""
    lines = []
    for row in result.proof["verdicts"]:
        if row["hard"] and not row["met"]:
            limit = Limit(metric=row["metric"], value=row["limit"])
            by = amount(limit, abs(row["value"] - row["limit"]))
            lines.append(
                f"{name_of(limit)} is {amount(limit, row['value'])} ({row['kind']}), {by} "
                f"({abs(row['margin']):.1%}) from its limit of {amount(limit, row['limit'])}"
            )
    if lines:
        found = WouldDo.from_json(result.proof["would_do"])
        raise BudgetMissedError(
            f"{result.proof['chosen']} missed its budget: {'; '.join(lines)}. {advice(found)}; or "
            f"train longer. See {result.run / 'report.html'}"
        )
