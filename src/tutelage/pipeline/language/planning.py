"""Which slice of a language model is taught: what fits, and what says most like the teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.devices import Device
from tutelage.devices.gguf_sizes import FINE, gguf_bytes
from tutelage.errors import InfeasibleError
from tutelage.files import hash_json, write_json
from tutelage.pipeline.language.costs import Figures, Terms, figures_on
from tutelage.pipeline.language.fitting import fitting_slices, fixed, no_slice
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.pace import Pace
from tutelage.pipeline.language.scores import SliceScores
from tutelage.pipeline.language.source import Source
from tutelage.pipeline.planning import budget_of
from tutelage.plan.costs import missed_limits
from tutelage.progress import Progress, track
from tutelage.recipe import Recipe
from tutelage.recipe_language import Quantization
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.decoders.choice import depths_by_kl
from tutelage.students.decoders.network import Decoder, DecoderSpec
from tutelage.students.decoders.sizes import parameters, shapes_of, with_sizes
from tutelage.students.decoders.slicing import slice_decoder
from tutelage.train.block_rounding import block_rounded
from tutelage.train.checkpoint import digest

_CHOOSING_TOKENS = 512  # choose layers and units: some hundred passes over them
_DEFAULT_SHARE = 0.6  # of the teacher's own file, where the recipe limits nothing
_WHY = {
    "trial": "least validation perplexity after a short lesson",
    "kl": "least KL divergence from the teacher before any lesson",
    "given": "the student that the recipe names, in the finest form that keeps the limits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One candidate: its spec, its file's form, costs, and distance from the teacher untaught."""

    spec: DecoderSpec
    form: Quantization
    figures: tuple[Measurement, ...]
    missed: tuple[str, ...]
    kept: tuple[int, ...] = ()
    kl: float | None = None


def limits_of(recipe: Recipe, device: Device, teacher: Source) -> tuple[Limit, ...]:
    """Return the recipe's limits and the device's; with none, 0.6 of the teacher's own bytes.

    Those are in the format asked for, else in q8_0. A student that the recipe names has its size.
    """
    spec = teacher.decoder.spec
    whole = gguf_bytes(shapes_of(spec), recipe.language.usual, tied=spec.tied)
    limits = budget_of(recipe, device, whole)
    return tuple(
        dataclasses.replace(x, value=_DEFAULT_SHARE * whole, source="default: 0.6 of the teacher")
        if x.source.startswith("default")
        else x
        for x in limits
        if teacher.student is None or not x.source.startswith("default")
    )


def candidates(
    material: LanguageMaterial, terms: Terms, limits: tuple[Limit, ...], device: Device,
    pace: Pace | None = None, *, forms: Sequence[Quantization], start: DecoderSpec | None = None,
) -> list[Slice]:  # fmt: skip
    """Return slices that keep every hard limit, deep and narrow, shallow and wide, other mixes.

    They are of the teacher, or of a network with the sizes `start`. `forms` are tried from the
    finest on: a file that rounds next to nothing is only taken whole where others may be, since the
    same bytes hold far more weights in those; and where the network fits whole, coarser ones lose
    more. A student that the recipe names is not sliced: it ships in the finest form that fits.
    Raises `InfeasibleError` where none fits.
    """
    whole, found = start or material.start.spec, list[Slice]()
    given = material.given is not None
    for form in forms:

        def price(spec: DecoderSpec, form: Quantization = form) -> Figures:
            return figures_on(spec, form, terms, device, pace)

        try:
            specs = (
                fixed(whole, price, limits)
                if given
                else fitting_slices(whole, price, limits, count=4)
            )
        except InfeasibleError:
            continue
        if form in FINE and len(forms) > 1 and specs != [whole]:
            continue
        for spec in specs:
            own = price(spec)
            missed = missed_limits(own, limits)
            found.append(Slice(spec=spec, form=form, figures=own, missed=missed))
        if specs == [whole]:
            return found
    if not found:
        raise no_slice(whole, forms[-1], terms, limits, device, pace, given=given)
    return found


def choose(
    found: Sequence[Slice], device: Device, material: LanguageMaterial, limits: tuple[Limit, ...],
    scores: SliceScores, run: Run, progress: Progress, *, start: Decoder | None = None,
    number: int = 0, threads: int | None = None,
) -> Slice:  # fmt: skip
    """Compare the candidates untaught (once a run), write plan.json and return the best.

    That is the nearest to the teacher, or where all had short lessons, the one that says validation
    best after them. `start` is the network they are slices of, where that is not the teacher, in
    the round of that `number`. A student that the recipe names has nothing to be compared with.
    """
    compared = found
    if material.given is None:
        compared = compare(found, material, scores, run, progress, start, number, threads)
    tried = [scores.of(c.spec, c.form) for c in compared]
    trials = [row.trial.value if row and row.trial else None for row in tried]
    by_trial = all(x is not None for x in trials)
    judged = [x or 0.0 for x in trials] if by_trial else [c.kl or 0.0 for c in compared]
    best = min(range(len(compared)), key=lambda i: judged[i])
    path = run.file("plan.json")
    why = _WHY["trial" if by_trial else "kl" if material.given is None else "given"]
    said = _plan_json(device, limits, compared, best, trials, why)

    def work() -> tuple[Any, list[Path]]:
        write_json(path, said)
        return {"chosen": best, "kept": list(compared[best].kept)}, [path]

    run.stage("plan", hash_json(said), work)
    return compared[best]


def compare(
    found: Sequence[Slice], material: LanguageMaterial, scores: SliceScores, run: Run,
    progress: Progress, start: Decoder | None = None, number: int = 0, threads: int | None = None,
) -> list[Slice]:  # fmt: skip
    """Return the candidates with the layers they keep and their KL from the teacher, untaught."""
    source = start or material.decoder

    def work() -> tuple[Any, list[Path]]:
        return _compared(found, material, source, progress), []

    weights = "" if start is None else digest(start.state_dict())
    sliced = [[c.spec.config, c.form] for c in found]
    inputs = [material.content, material.teacher, weights, sliced, threads]
    name = f"compare-{number}" if number else "compare"
    said = run.stage(name, hash_json(inputs), work).result
    compared = [
        dataclasses.replace(c, kept=tuple(row["kept"]), kl=row["kl"])
        for c, row in zip(found, said["slices"], strict=True)
    ]
    form = compared[0].form
    if start is None and form in FINE:  # each depth is a slice, too, whose KL is known
        for layers, kl in said["depths"]:
            scores.add(with_sizes(source.spec, layers=layers), form, kl)
    for c in compared:  # of a network that was taught, KL is no longer that of an untaught slice
        scores.add(c.spec, c.form, c.kl if start is None else None)
    scores.write()
    return compared


def choosing_tokens(material: LanguageMaterial) -> Tensor:
    """Return the training sequences by which layers and units are chosen."""
    count = max(1, _CHOOSING_TOKENS // material.length)
    return torch.from_numpy(material.data.train.ids[:count]).long()


def _compared(
    found: Sequence[Slice], material: LanguageMaterial, source: Decoder, progress: Progress
) -> dict[str, Any]:
    batches = choosing_tokens(material)
    least = min(c.spec.layers for c in found)
    depths = depths_by_kl(source, batches, least=least)
    label, count = "Choosing layers", source.spec.layers - least + 1
    by_count = {len(depth.kept): depth for depth in track(depths, count, label, progress)}
    rows = []
    for candidate in track(found, len(found), "Comparing slices", progress):
        depth = by_count[candidate.spec.layers]
        small = slice_decoder(source, candidate.spec, batches, kept=depth.kept)
        with block_rounded(small, candidate.form):
            kl = divergence(material.decoder, small, batches)
        rows.append({"kept": list(depth.kept), "kl": kl})
    return {"slices": rows, "depths": [[n, depth.kl] for n, depth in by_count.items()]}


@torch.inference_mode()
def divergence(teacher: Decoder, student: Decoder, batches: Tensor) -> float:
    """Return the mean KL divergence of a next token from what the teacher says, in nats."""
    total = 0.0
    for ids in batches.split(1):
        p, q = (network(ids).log_softmax(-1) for network in (teacher, student))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(batches)


def _plan_json(
    device: Device, limits: tuple[Limit, ...], compared: Sequence[Slice], best: int,
    trials: Sequence[float | None], why: str,
) -> dict[str, Any]:  # fmt: skip
    space = "given" if why == _WHY["given"] else "sliced"
    return {
        "device": device.name,
        "limits": [dataclasses.asdict(x) for x in limits],
        "space": space,
        "candidates": [
            {
                "spec": spec_json(c.spec),
                "space": space,
                "precision": c.form,
                "parameters": parameters(c.spec),
                "figures": [f.to_json() for f in c.figures],
                "fits": not c.missed,
                "missed": list(c.missed),
                "trial": None,
                "trial_perplexity": trials[i],
                "untaught_kl": c.kl,
                "chosen": i == best,
            }
            for i, c in enumerate(compared)
        ],
        "why": why,
    }


def spec_json(spec: DecoderSpec) -> dict[str, Any]:
    """Return the sizes that people compare; student/config.json holds the rest."""
    return {
        "family": "decoder", "kind": spec.kind, "layers": spec.layers, "hidden": spec.hidden,
        "inner": spec.inner, "groups": spec.groups, "vocabulary": spec.vocabulary,
    }  # fmt: skip


def name_of_slice(spec: DecoderSpec, whole: DecoderSpec) -> str:
    """Return what tables call a slice; groups and numbers a token where some of `whole` go."""
    words = [f"{spec.layers} layers, {spec.inner} units"]
    if spec.groups < whole.groups:
        words.append(f"{spec.groups} groups")
    if spec.hidden < whole.hidden:
        words.append(f"{spec.hidden} numbers a token")
    return ", ".join(words)
