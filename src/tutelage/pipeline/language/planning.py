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
from tutelage.devices.gguf_sizes import gguf_bytes
from tutelage.errors import InfeasibleError
from tutelage.files import hash_json, write_json
from tutelage.pipeline.language.costs import pricing
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.planning import budget_of
from tutelage.plan.costs import missed_limits
from tutelage.progress import Progress, track
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.decoder import Decoder, DecoderSpec
from tutelage.students.decoder_choice import depths_by_kl
from tutelage.students.decoder_mixes import plan_mixes
from tutelage.students.decoder_sizes import parameters, shapes_of
from tutelage.students.slice_decoder import slice_decoder

_CHOOSING_TOKENS = 512  # choose layers and units: some hundred passes over them
_DEFAULT_SHARE = 0.6  # of the teacher's own file, where the recipe limits nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One candidate: its spec, what it would cost, and how far it is from the teacher untaught."""

    spec: DecoderSpec
    figures: tuple[Measurement, ...]
    missed: tuple[str, ...]
    kept: tuple[int, ...] = ()
    kl: float | None = None


def limits_of(recipe: Recipe, device: Device, spec: DecoderSpec) -> tuple[Limit, ...]:
    """Return the recipe's limits and the device's; with none, 0.6 of the teacher's own bytes."""
    whole = gguf_bytes(shapes_of(spec), recipe.language.format, tied=spec.tied)
    limits = budget_of(recipe, device, whole)
    return tuple(
        dataclasses.replace(x, value=_DEFAULT_SHARE * whole, source="default: 0.6 of the teacher")
        if x.source.startswith("default")
        else x
        for x in limits
    )


def candidates(
    recipe: Recipe, device: Device, material: LanguageMaterial, limits: tuple[Limit, ...]
) -> list[Slice]:
    """Return slices inside the storage limit: deep and narrow, shallow and wide, other mixes.

    Raises `InfeasibleError` where none keeps every hard limit.
    """
    storage = [x.value for x in limits if x.metric == "storage_bytes" and x.hard]
    whole, price = material.decoder.spec, pricing(recipe, material, device)

    def bytes_of(spec: DecoderSpec) -> int:
        return int(_value(price(spec), "storage_bytes"))

    most = int(min(storage, default=bytes_of(whole)))
    found = []
    for spec in plan_mixes(whole, most_bytes=most, bytes_of=bytes_of):
        figures = price(spec)
        found.append(Slice(spec=spec, figures=figures, missed=missed_limits(figures, limits)))
    fitting = [c for c in found if not c.missed]
    if not fitting:
        metric = found[-1].missed[0]
        limit = next(x for x in limits if x.metric == metric)
        raise InfeasibleError(
            f"no slice of the language model keeps {metric} within {limit.value:g}: the nearest "
            f"needs {_value(found[-1].figures, metric):g}. Raise the limit, lower data.length, or "
            "choose a coarser language.format"
        )
    return fitting


def choose(
    recipe: Recipe, device: Device, material: LanguageMaterial, limits: tuple[Limit, ...],
    run: Run, progress: Progress,
) -> Slice:  # fmt: skip
    """Compare the candidates untaught (once a run), write plan.json and return the nearest."""
    found = candidates(recipe, device, material, limits)
    path = run.file("plan.json")

    def work() -> tuple[Any, list[Path]]:
        compared = _compared(found, material, progress)
        best = min(range(len(compared)), key=lambda i: compared[i].kl or 0.0)
        write_json(path, _plan_json(device, limits, compared, best))
        kept = list(compared[best].kept)
        return {"chosen": best, "kept": kept, "kl": [c.kl for c in compared]}, [path]

    inputs = hash_json(
        [
            material.content,
            [c.spec.config for c in found],
            [dataclasses.asdict(x) for x in limits],
            device.model_dump(mode="json"),
            recipe.threads,
        ]
    )
    said = run.stage("plan", inputs, work).result
    chosen = found[said["chosen"]]
    return dataclasses.replace(chosen, kept=tuple(said["kept"]), kl=said["kl"][said["chosen"]])


def choosing_tokens(material: LanguageMaterial) -> Tensor:
    """Return the training sequences by which layers and units are chosen."""
    count = max(1, _CHOOSING_TOKENS // material.length)
    return torch.from_numpy(material.data.train.ids[:count]).long()


def _compared(
    found: Sequence[Slice], material: LanguageMaterial, progress: Progress
) -> list[Slice]:
    batches, decoder = choosing_tokens(material), material.decoder
    least = min(c.spec.layers for c in found)
    depths = depths_by_kl(decoder, batches, least=least)
    label, count = "Choosing layers", decoder.spec.layers - least + 1
    by_count = {len(depth.kept): depth for depth in track(depths, count, label, progress)}
    compared = []
    for candidate in track(found, len(found), "Comparing slices", progress):
        depth = by_count[candidate.spec.layers]
        small = slice_decoder(decoder, candidate.spec, batches, kept=depth.kept)
        kl = _kl(decoder, small, batches)
        compared.append(dataclasses.replace(candidate, kept=depth.kept, kl=kl))
    return compared


@torch.inference_mode()
def _kl(teacher: Decoder, student: Decoder, batches: Tensor) -> float:
    """Return the mean KL divergence of a next token from what the teacher says, in nats."""
    total = 0.0
    for ids in batches.split(1):
        p, q = (network(ids).log_softmax(-1) for network in (teacher, student))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(batches)


def _plan_json(
    device: Device, limits: tuple[Limit, ...], compared: Sequence[Slice], best: int
) -> dict[str, Any]:
    return {
        "device": device.name,
        "limits": [dataclasses.asdict(x) for x in limits],
        "space": "sliced",
        "candidates": [
            {
                "spec": spec_json(c.spec),
                "space": "sliced",
                "parameters": parameters(c.spec),
                "figures": [f.to_json() for f in c.figures],
                "fits": not c.missed,
                "missed": list(c.missed),
                "trial": None,
                "untaught_kl": c.kl,
                "chosen": i == best,
            }
            for i, c in enumerate(compared)
        ],
        "why": "least KL divergence from the teacher before any lesson",
    }


def spec_json(spec: DecoderSpec) -> dict[str, Any]:
    """Return the sizes that people compare; student/config.json holds the rest."""
    return {
        "family": "decoder", "kind": spec.kind, "layers": spec.layers, "hidden": spec.hidden,
        "inner": spec.inner, "groups": spec.groups, "vocabulary": spec.vocabulary,
    }  # fmt: skip


def _value(figures: Sequence[Measurement], name: str) -> float:
    return next(f.value for f in figures if f.name == name)
