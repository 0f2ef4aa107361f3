"""The proof of a language model: what its GGUF file says of held-out text, beside the teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tutelage.audit.language import TokenScores, byte_metrics, joined, token_metrics
from tutelage.devices import HOST, Device
from tutelage.files import hash_json, read_json, write_json
from tutelage.losses.language_terms import capped
from tutelage.pipeline.language.answers import answer_side_by_side
from tutelage.pipeline.language.costs import figures_on, terms_of
from tutelage.pipeline.language.fitting import what_would_do
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.pace import here
from tutelage.pipeline.language.shipping import Shipped
from tutelage.pipeline.language.teaching import Taught, span_teacher
from tutelage.pipeline.proving import verdicts
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.students.decoders.sizes import parameters
from tutelage.tasks.causal_lm.packing import Tokens
from tutelage.teach.gguf_file import open_gguf
from tutelage.teach.token_signals import sequences
from tutelage.train.spans import SpanTeacher

_PARTINGS = 6  # places shown, one a sequence at most
_BEFORE = 24  # tokens shown before such a place


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What both say of the learned tokens of a split, and where each token stands."""

    scores: TokenScores
    sequence: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]


def prove(
    recipe: Recipe, material: LanguageMaterial, taught: Taught, shipped: Shipped, device: Device,
    limits: tuple[Limit, ...], run: Run, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Measure the file (once a run), write proof.json and return it; reads the test split."""
    path = run.file("proof.json")

    def work() -> tuple[Any, list[Path]]:
        write_json(path, _proof(recipe, material, taught, shipped, device, limits, run, progress))
        return None, [path]

    inputs = hash_json(
        [
            shipped.artifact.to_json(),
            [dataclasses.asdict(limit) for limit in limits],
            device.model_dump(mode="json"),
            material.content,
            recipe.language.model_dump(mode="json"),
        ]
    )
    run.stage("prove", inputs, work)
    return read_json(path)


def _proof(
    recipe: Recipe, material: LanguageMaterial, taught: Taught, shipped: Shipped, device: Device,
    limits: tuple[Limit, ...], run: Run, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    file = run.file(shipped.artifact.path)
    student, notes = decoder_of(open_gguf(file)[0]), []
    said = {
        name: _said(
            recipe, material, student, getattr(material.data, name), progress, name,
            where=f"{shipped.artifact.path} read back, {name} split",
        )
        for name in ("validation", "test")
    }  # fmt: skip
    figures, compared = _judged(recipe, said)
    compared += _before(recipe, material, progress)
    terms = terms_of(recipe, material)
    size = Measurement(
        name="storage_bytes", value=float(shipped.artifact.bytes), unit="B", kind="measured",
        where="file size",
    )  # fmt: skip
    own = [size, *_in_llama_cpp(recipe, file, device, material.length, notes)]
    known = {m.name for m in own}
    predicted = figures_on(student.spec, taught.form, terms, device)
    figures["student"] += [*own, *(f for f in predicted if f.name not in known)]
    alike = terms if material.theirs is None else replace(terms, header_bytes=0)
    figures["teacher"] += figures_on(material.decoder.spec, recipe.language.usual, alike, device)
    for who, spec in (("teacher", material.decoder.spec), ("student", student.spec)):
        figures[who].append(
            Measurement(name="parameters", value=float(parameters(spec)), unit="1",
                        kind="measured", where=f"{who} in torch")
        )  # fmt: skip
    judged = verdicts(limits, tuple(figures["student"]))
    missed = any(v.limit.hard and not v.met for v in judged)
    return {
        "status": "missed" if missed else "met",
        "task": recipe.task,
        "metric": _metric(said["test"]),
        "decides": "tokens",
        "device": {"name": device.name, "title": device.title},
        "chosen": shipped.artifact.path,
        "verdicts": [v.to_json() for v in judged],
        "would_do": what_would_do(
            student.spec, taught.form, terms, judged, limits, device
        ).to_json()
        if missed
        else None,
        "figures": {who: [f.to_json() for f in found] for who, found in figures.items()},
        "others": [],
        "fidelity": [m.to_json() for m in compared],
        "partings": []
        if material.theirs is not None
        else _partings(material, student, said["test"]),
        **answer_side_by_side(recipe, material, student, progress),
        "parity": [],
        "artifacts": [shipped.artifact.to_json()],
        "beside": [],
        "vocabulary": material.vocabulary,
        "recipe": recipe.to_yaml(),
        "notes": [*notes, *_unjudged(limits, judged)],
    }


def _metric(said: Spoken) -> str:
    return "perplexity" if said.scores.sizes is None else "bits_per_byte"


def _judged(
    recipe: Recipe, said: dict[str, Spoken]
) -> tuple[dict[str, list[Measurement]], list[Measurement]]:
    """Return the figures of each by split, and what compares them on the last one."""
    figures: dict[str, list[Measurement]] = {"teacher": [], "student": []}
    compared: list[Measurement] = []
    for split, found in said.items():
        name = _metric(found)
        metrics = token_metrics if name == "perplexity" else byte_metrics
        measured = {m.name: m for m in metrics(found.scores, seed=recipe.seed)}
        for who, own in (("student", name), ("teacher", f"{name}_teacher")):
            figures[who].append(replace(measured.pop(own), name=f"{name}_{split}"))
        compared = list(measured.values())
    return figures, compared


def _before(recipe: Recipe, material: LanguageMaterial, progress: Progress) -> list[Measurement]:
    """Return how well a student that the recipe names foretold the test split untaught."""
    if material.given is None:
        return []
    found = _said(
        recipe, material, material.given, material.data.test, progress, "test, untaught",
        where="the student as it was given, in torch, test split",
    )  # fmt: skip
    figures, _ = _judged(recipe, {"untaught": found})
    return figures["student"]


def _said(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, tokens: Tokens,
    progress: Progress, name: str, where: str,
) -> Spoken:  # fmt: skip
    """Ask both about a split, token by token, or where tokenizers differ span by span."""
    spans = span_teacher(recipe, material)
    if spans is None:
        return spoken(material.decoder, student, tokens, progress, name, where)
    return spoken_in_spans(spans, student, tokens, progress, name, where)


def spoken_in_spans(
    teacher: SpanTeacher, student: Decoder, tokens: Tokens, progress: Progress, name: str,
    where: str,
) -> Spoken:  # fmt: skip
    """Ask both about every span of a split that is learned whole and that both write.

    So both are asked about the same bytes.
    """
    parts: list[TokenScores] = []
    places: list[np.ndarray] = []
    progress.start(f"Proving the file ({name})", len(tokens))
    for i in range(len(tokens)):
        ids, learned = sequences(tokens, slice(i, i + 1))
        told = teacher.told(student, ids, learned[:, 1:])
        parts.append(
            TokenScores(
                student=told.student.double().numpy(),
                teacher=told.teacher.double().numpy(),
                sizes=told.sizes,
                document=tokens.owner[i, told.place],
                where=f"{where}, bytes that both write in spans",
            )
        )
        places.append(np.stack([np.full_like(told.place, i), told.place]))
        progress.advance()
    progress.finish()
    sequence, position = np.concatenate(places, axis=1)
    return Spoken(scores=joined(parts), sequence=sequence, position=position)


@torch.inference_mode()
def spoken(
    teacher: Decoder, student: Decoder, tokens: Tokens, progress: Progress, name: str,
    where: str = "",
) -> Spoken:  # fmt: skip
    """Ask both about every learned token of a split, sequence by sequence."""
    parts: list[TokenScores] = []
    places: list[np.ndarray] = []
    progress.start(f"Proving the file ({name})", len(tokens))
    for i in range(len(tokens)):
        ids, learned = sequences(tokens, slice(i, i + 1))
        at = learned[:, 1:]
        targets = ids[:, 1:][at][:, None]
        p, q = (_log_probs(network, ids, at) for network in (teacher, student))
        place = at[0].nonzero()[:, 0].numpy() + 1
        parts.append(
            TokenScores(
                student=q.gather(1, targets)[:, 0].double().numpy(),
                teacher=p.gather(1, targets)[:, 0].double().numpy(),
                kl=(p.exp() * (p - q)).sum(dim=1).double().numpy(),
                same=(p.argmax(dim=1) == q.argmax(dim=1)).numpy(),
                document=tokens.owner[i, place],
                where=where,
            )
        )
        places.append(np.stack([np.full_like(place, i), place]))
        progress.advance()
    progress.finish()
    sequence, position = np.concatenate(places, axis=1)
    return Spoken(scores=joined(parts), sequence=sequence, position=position)


def _log_probs(network: Decoder, ids: Tensor, at: Tensor) -> Tensor:
    states = network.states(ids[:, :-1])[at]
    return capped((states @ network.head.T).float(), network.cap).log_softmax(dim=1)


@torch.inference_mode()
def _partings(material: LanguageMaterial, student: Decoder, test: Spoken) -> list[dict[str, Any]]:
    """Return where the student departs most from the teacher, at most once a sequence."""
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    apart = np.asarray(test.scores.kl)
    for i in np.argsort(-apart, kind="stable"):
        number, place = int(test.sequence[i]), int(test.position[i])
        if number in seen:
            continue
        seen.add(number)
        before = torch.from_numpy(material.data.test.ids[number, :place]).long()
        likeliest = [
            int(network(before[None])[0, -1].argmax()) for network in (material.decoder, student)
        ]
        text = material.tokenizer.decode
        rows.append(
            {
                "before": text(before[-_BEFORE:].tolist()),
                "teacher": text(likeliest[:1]),
                "student": text(likeliest[1:]),
                "kl": float(apart[i]),
            }
        )
        if len(rows) == _PARTINGS:
            break
    return rows


def _in_llama_cpp(
    recipe: Recipe, file: Path, device: Device, length: int, notes: list[str]
) -> list[Measurement]:
    """Return tokens a second and memory in llama.cpp, where it is installed.

    On this machine they are what its limits are held against.
    """
    found, why = here(file, recipe.threads or 1, length)
    if found is None:
        notes.append(why)
        return []
    shown = [found.tokens_per_s, found.prompt_tokens_per_s, found.ram]
    if device.name != HOST:
        return shown
    judged = (replace(found.token_s, name="latency_s"), replace(found.ram, name="ram_bytes"))
    return [*judged, *shown[:2]]


def _unjudged(limits: tuple[Limit, ...], judged: Any) -> list[str]:
    known = {v.limit.metric for v in judged}
    return [
        f"{limit.metric} could not be judged: there is no figure for it"
        for limit in limits
        if limit.metric not in known
    ]
