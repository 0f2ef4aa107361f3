"""The frontier of the slices that were compared in a run, as `tutelage plan --frontier` answers.

A slice is worth as much as its validation perplexity where two of them were taught, else as its KL
from the teacher, untaught. Where one has only the one and the other only the other, neither beats
the other. Costs are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.devices import HOST, Device, device_limits, list_devices, load_device
from tutelage.errors import RecipeError
from tutelage.pipeline.language.costs import figures_on
from tutelage.pipeline.language.pace import Pace
from tutelage.pipeline.language.planning import name_of_slice, spec_json
from tutelage.pipeline.language.scores import SliceScore, SliceScores
from tutelage.records import Measurement
from tutelage.students.decoders.network import DecoderSpec
from tutelage.students.decoders.sizes import parameters

AXES = ("storage_bytes", "ram_bytes", "latency_s")
_WORDS = {"storage_bytes": "storage", "ram_bytes": "memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A slice with its figures on one device by name."""

    score: SliceScore
    costs: dict[str, Measurement]


def language_frontiers(
    scores: SliceScores, whole: DecoderSpec, device: Device, pace: Pace | None
) -> dict[str, Any]:
    """Return `frontier`, the slices of `whole` that none beats on the device, and `devices`.

    Of every known device, `devices` holds the slice that would do there, or the reason why none
    would. Raises `RecipeError` where nothing was compared.
    """
    rows = list(scores.rows.values())
    if not rows:
        raise RecipeError(
            f"no slice was compared yet for this recipe ({scores.path} holds none): call tutelage "
            f"plan RECIPE --try --run {scores.path.parent} first, or tutelage run"
        )
    placed = placed_on(scores, device, pace)
    kept = [(p, on) for p in placed if (on := beaten_nowhere(p, placed))]
    kept.sort(key=lambda pair: pair[0].costs["storage_bytes"].value)
    others = [load_device(name) for name in list_devices() if name != HOST]
    return {
        "frontier": {
            "metric": "perplexity" if any(r.perplexity for r in rows) else "kl_untaught",
            "tried": len(rows),
            "students": [{**_student(p, whole), "on": on} for p, on in kept],
        },
        "devices": {d.name: _device(placed_on(scores, d), whole, d) for d in others},
    }


def placed_on(scores: SliceScores, device: Device, pace: Pace | None = None) -> list[Placed]:
    """Return every slice with its figures on a device."""
    placed = []
    for row in scores.rows.values():
        figures = figures_on(row.spec, row.form, scores.terms, device, pace)
        placed.append(Placed(score=row, costs={f.name: f for f in figures}))
    return placed


def beaten_nowhere(own: Placed, others: Sequence[Placed]) -> list[str]:
    """Return the axes on which no other slice is as good for less, or better for as much."""
    known = [axis for axis in AXES if axis in own.costs]
    return [axis for axis in known if not any(_beats(other, own, axis) for other in others)]


def worse_by(one: SliceScore, other: SliceScore) -> float | None:
    """Return by how much `one` is worse than `other`; None where they cannot be compared."""
    if one.perplexity is not None and other.perplexity is not None:
        return one.perplexity.value - other.perplexity.value
    if one.kl is not None and other.kl is not None:
        return one.kl - other.kl
    return None


def _beats(one: Placed, other: Placed, axis: str) -> bool:
    by = worse_by(one.score, other.score)
    if by is None or axis not in one.costs:
        return False
    dearer = one.costs[axis].value - other.costs[axis].value
    return by <= 0 and dearer <= 0 and (by < 0 or dearer < 0)


def best_of(fitting: Sequence[Placed]) -> Placed:
    """Return the best slice: by perplexity where they were taught, else by KL."""
    taught = [p for p in fitting if p.score.perplexity is not None]
    if not taught:
        return min(fitting, key=lambda p: (p.score.kl or 0.0, parameters(p.score.spec)))
    best = min(taught, key=lambda p: p.score.perplexity.value if p.score.perplexity else 0.0)
    # A slice that was not taught is taken where it was nearer to the teacher before any lesson.
    nearer = [p for p in fitting if (worse_by(p.score, best.score) or 0.0) < 0]
    return best_of(nearer) if nearer else best


def _device(placed: Sequence[Placed], whole: DecoderSpec, device: Device) -> dict[str, Any]:
    limits = device_limits(device)
    fitting = [p for p in placed if all(x.met_by(p.costs[x.metric].value) for x in limits)]
    if fitting:
        best = _student(best_of(fitting), whole)
        return {"title": device.title, "student": best, "reason": ""}
    short = [x for x in limits if not any(x.met_by(p.costs[x.metric].value) for p in placed)]
    words = " and ".join(_WORDS[x.metric] for x in short)
    reason = f"too little {words} for each of them" if short else "none keeps both of its limits"
    return {"title": device.title, "student": None, "reason": reason}


def _student(placed: Placed, whole: DecoderSpec) -> dict[str, Any]:
    score, shown = placed.score, (*AXES, "tokens_per_s", "energy_j")
    figure = score.perplexity or score.untaught
    kind = "taught" if score.taught else "trial" if score.trial else "untaught"
    return {
        "name": f"{name_of_slice(score.spec, whole)}, {score.form}",
        "spec": spec_json(score.spec),
        "parameters": parameters(score.spec),
        "precision": score.form,
        "figure": None if figure is None else figure.to_json(),
        "untaught_kl": score.kl,
        "from": kind,
        "figures": [placed.costs[n].to_json() for n in shown if n in placed.costs],
    }
