"""The proof of a language model: what its GGUF file says of held-out text, beside the teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.audit.language import per_token, perplexity
from tutelage.devices import Device
from tutelage.errors import TutelageError
from tutelage.files import hash_json, read_json, write_json
from tutelage.losses.language_terms import capped
from tutelage.measure.llama_cpp import measure_llama_cpp
from tutelage.pipeline.language.answers import answer_side_by_side
from tutelage.pipeline.language.costs import figures_of
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.shipping import Shipped
from tutelage.pipeline.language.teaching import Taught
from tutelage.pipeline.proving import verdicts
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Limit, Measurement
from tutelage.run import Run
from tutelage.students.decoder import Decoder, decoder_of
from tutelage.students.decoder_sizes import parameters
from tutelage.tasks.causal_lm import Tokens
from tutelage.teach.gguf_file import open_gguf
from tutelage.teach.token_signals import sequences

_PARTINGS = 6  # places shown, one a sequence at most
_BEFORE = 24  # tokens shown before such a place


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What both say of every learned token of a split, in the order of its sequences.

    `teacher` and `student` are minus log-probabilities of the token that came, `kl` the divergence
    of the student from the teacher, all in nats; `same` where both think one token the likeliest.
    `sequence` numbers the sequence that each token is of, `position` its place there.
    """

    teacher: Float[np.ndarray, " n"]
    student: Float[np.ndarray, " n"]
    kl: Float[np.ndarray, " n"]
    same: Float[np.ndarray, " n"]
    sequence: Float[np.ndarray, " n"]
    position: Float[np.ndarray, " n"]


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
        name: spoken(material.decoder, student, getattr(material.data, name), progress, name)
        for name in ("validation", "test")
    }
    figures: dict[str, list[Measurement]] = {"teacher": [], "student": []}
    for name, found in said.items():
        for who in figures:
            where = f"{shipped.artifact.path if who == 'student' else 'teacher'}, {name} split"
            surprise = getattr(found, who)
            figure = perplexity(surprise, found.sequence, where=where, seed=recipe.seed)
            figures[who].append(dataclasses.replace(figure, name=f"perplexity_{name}"))
    predicted = figures_of(recipe, device, material, student.spec)
    size = Measurement(
        name="storage_bytes", value=float(shipped.artifact.bytes), unit="B", kind="measured",
        where="file size",
    )  # fmt: skip
    figures["student"] += [size, *(f for f in predicted if f.name != "storage_bytes")]
    figures["student"] += _in_llama_cpp(file, notes)
    figures["teacher"] += figures_of(recipe, device, material, material.decoder.spec)
    for who, spec in (("teacher", material.decoder.spec), ("student", student.spec)):
        figures[who].append(
            Measurement(name="parameters", value=float(parameters(spec)), unit="1",
                        kind="measured", where=f"{who} in torch")
        )  # fmt: skip
    test = said["test"]
    where = f"{shipped.artifact.path} read back, test split"
    judged = verdicts(limits, tuple(figures["student"]))
    missed = any(v.limit.hard and not v.met for v in judged)
    return {
        "status": "missed" if missed else "met",
        "task": recipe.task,
        "metric": "perplexity",
        "decides": "tokens",
        "device": {"name": device.name, "title": device.title},
        "chosen": shipped.artifact.path,
        "verdicts": [v.to_json() for v in judged],
        "would_do": {"device": None, "limit": {}} if missed else None,
        "figures": {who: [f.to_json() for f in found] for who, found in figures.items()},
        "others": [],
        "fidelity": [
            f.to_json()
            for f in (
                per_token("agreement_greedy", test.same, test.sequence, where=where),
                per_token("kl_a_token", test.kl, test.sequence, where=where),
            )
        ],
        "partings": _partings(material, student, test),
        **answer_side_by_side(recipe, material, student, progress),
        "parity": [],
        "artifacts": [shipped.artifact.to_json()],
        "beside": [],
        "vocabulary": material.vocabulary,
        "recipe": recipe.to_yaml(),
        "notes": [*notes, *_unjudged(limits, judged)],
    }


@torch.inference_mode()
def spoken(
    teacher: Decoder, student: Decoder, tokens: Tokens, progress: Progress, name: str
) -> Spoken:
    """Ask both about every learned token of a split, sequence by sequence."""
    parts: list[list[np.ndarray]] = []
    progress.start(f"Proving the file ({name})", len(tokens))
    for i in range(len(tokens)):
        ids, learned = sequences(tokens, slice(i, i + 1))
        at = learned[:, 1:]
        targets = ids[:, 1:][at]
        p, q = (_log_probs(network, ids, at) for network in (teacher, student))
        kl = (p.exp() * (p - q)).sum(dim=1)
        surprise = (-x.gather(1, targets[:, None])[:, 0] for x in (p, q))
        same = (p.argmax(dim=1) == q.argmax(dim=1)).double()
        place = at[0].nonzero()[:, 0] + 1
        found = (*surprise, kl, same, torch.full_like(kl, i), place)
        parts.append([x.double().numpy() for x in found])
        progress.advance()
    progress.finish()
    return Spoken(
        **{
            field.name: np.concatenate([part[i] for part in parts])
            for i, field in enumerate(dataclasses.fields(Spoken))
        }
    )


def _log_probs(network: Decoder, ids: Tensor, at: Tensor) -> Tensor:
    states = network.states(ids[:, :-1])[at]
    return capped((states @ network.head.T).float(), network.cap).log_softmax(dim=1)


@torch.inference_mode()
def _partings(material: LanguageMaterial, student: Decoder, test: Spoken) -> list[dict[str, Any]]:
    """Return where the student departs most from the teacher, at most once a sequence."""
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for i in np.argsort(-test.kl, kind="stable"):
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
                "kl": float(test.kl[i]),
            }
        )
        if len(rows) == _PARTINGS:
            break
    return rows


def _in_llama_cpp(file: Path, notes: list[str]) -> list[Measurement]:
    """Return tokens a second and memory in llama.cpp, where it is installed."""
    try:
        return list(measure_llama_cpp(file))
    except TutelageError as error:
        notes.append(f"not run in llama.cpp: {error}")
        return []


def _unjudged(limits: tuple[Limit, ...], judged: Any) -> list[str]:
    known = {v.limit.metric for v in judged}
    return [
        f"{limit.metric} could not be judged: there is no figure for it"
        for limit in limits
        if limit.metric not in known
    ]
