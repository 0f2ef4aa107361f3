"""A sliced language model taught in other ways: perplexity after the same tokens, or the same time.

python benchmarks/language_lessons.py --teacher smollm2.gguf --speeches sotu/package/data \
    --novel moby/package/data --run RUN [--tokens 250000] [--seeds 0 1 2] [--trl PYTHON] [--only …]

RUN is a run directory of language.py: its planner's slice is what is taught, anew. Arms:

kd       forward KL to the teacher's stored answers, and cross entropy on the text (the default)
ce       the same slice, cross entropy alone
kl       as kd, without cross entropy
rehearse as kd, half of the tokens written freely by the teacher (language.rehearse: 0.5)
fast, small, small_slow  as kd, at the rate and batch of CHANGES (5e-4 and 8 else)
refit, refit_small  as kd and small, the slice's projections fitted first (`refitting.py`)
refit_hidden as refit, and each layer's states are to be those of the teacher's layer that it was
rehearse_kl  as rehearse, without cross entropy
uniform  as kd, but of the teacher's own layers evenly many, as few as make the slice's size
trl      the same slice, TRL's DistillationTrainer (on the student's own words, reverse KL: its
         default) for the seconds that asking and teaching took in kd
gkd      the same slice, TRL's GKDTrainer on the texts (forward KL, teacher in the loop), likewise

TRL's rate is --trl-rate. `--trl` is the python of an environment with trl==1.16.0. Perplexities are
of whole speeches that none learned from, and of the novel, in torch; the tokens are those of the
pruned vocabulary. Resumable; rows go to benchmarks/results/language_lessons.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HERE, add_row, machine, rows_of, run_or_table
from language import LOSSES, novel_of, perplexities, recipe_of, speeches
from scipy import stats
from torch import Tensor

from tutelage.files import read_json, write_json, write_tensors
from tutelage.passes import native_bf16
from tutelage.pipeline.language.material import LanguageMaterial, read_language
from tutelage.pipeline.language.planning import choosing_tokens
from tutelage.pipeline.language.portions import portions
from tutelage.pipeline.language.rehearsing import rehearsed
from tutelage.pipeline.language.source import open_source
from tutelage.pipeline.language.teaching import ask, lesson_for, with_language_defaults
from tutelage.pipeline.lessons import schedule_of
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder, decoder_of, library, save_folder
from tutelage.students.decoders.refitting import refit
from tutelage.students.decoders.sizes import parameters, with_sizes
from tutelage.students.decoders.slicing import slice_decoder, with_layers
from tutelage.train.inside import InsideLesson
from tutelage.train.loop import Trainer

RESULTS = HERE / "results" / "language_lessons.json"
WORK = HERE / ".work" / "language_lessons"
ARMS = (
    "kd", "ce", "kl", "fast", "small", "small_slow", "refit", "refit_small", "refit_hidden",
    "rehearse", "rehearse_kl", "uniform", "gkd", "trl",
)  # fmt: skip
CHANGES: dict[str, dict[str, float]] = {
    "fast": {"rate": 1e-3}, "small": {"batch": 2}, "small_slow": {"batch": 2, "rate": 2.5e-4},
    "refit_small": {"batch": 2},
}  # fmt: skip
REHEARSE, REHEARSING = 0.5, ("rehearse", "rehearse_kl")
REFIT = 128  # sequences that the slice is fitted on
HIDDEN = 4.0  # what the states inside weigh beside forward KL


def material_of(
    options: argparse.Namespace, seed: int, arm: str
) -> tuple[Recipe, LanguageMaterial, Path]:
    """Return the recipe, the texts and teacher, and a folder for a seed."""
    share = REHEARSE if arm in REHEARSING else 0.0
    folder = WORK / (f"{options.tokens}-{seed}" + (f"-{share:g}" if share else ""))
    train, test = speeches(options.speeches, folder / "data")
    given = {
        "seed": seed, "teacher": options.teacher, "threads": options.threads, "length": 256,
        "vocabulary": "pruned", "storage": "1 GB", "losses": "kd", "rate": options.rate,
        "tokens": options.tokens, "format": "f16",
        "rehearse": share,
    }  # fmt: skip
    recipe = with_language_defaults(recipe_of(argparse.Namespace(**given), train, test))
    return recipe, read_language(recipe, open_source(recipe), Silent()), folder


def chosen_slice(material: LanguageMaterial, run: Path) -> Decoder:
    """Return the slice that the planner of a run chose, untaught."""
    planned = read_json(run / "plan.json")["candidates"]
    number = next(i for i, c in enumerate(planned) if c["chosen"])
    found = read_json(run / "run.json")["stages"]["compare"]["result"]["slices"][number]
    sizes = {key: planned[number]["spec"][key] for key in ("layers", "hidden", "inner", "groups")}
    spec = with_sizes(material.decoder.spec, **sizes)
    return slice_decoder(
        material.decoder, spec, choosing_tokens(material), kept=tuple(found["kept"])
    )


def uniform(material: LanguageMaterial, most: int) -> Decoder:
    """Return the teacher with evenly many of its layers, as many as have at most these weights."""
    whole = material.decoder.spec
    count = max(
        n for n in range(1, whole.layers) if parameters(with_sizes(whole, layers=n)) <= most
    )
    kept = np.linspace(0, whole.layers - 1, count).round().astype(int).tolist()
    return with_layers(material.decoder, kept)


def taught(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, signals: Any, arm: str
) -> list[dict[str, float]]:
    """Teach in place; return the curve."""
    losses = LOSSES.get(arm.removeprefix("rehearse_"), LOSSES["kd"])
    changes = CHANGES.get(arm, {})
    part = recipe.distill.model_copy(update={"losses": losses, **changes})
    recipe = recipe.model_copy(update={"distill": part})
    (portion,) = portions(recipe, material, 1)
    inside = None
    if arm == "refit_hidden":
        inside = InsideLesson(student, material.decoder, losses={"hidden": HIDDEN}, options={})
    lesson = lesson_for(
        recipe, material, student, signals, seed=recipe.seed, portion=portion, inside=inside
    )
    schedule = schedule_of(recipe, epochs=portion.count, seed=recipe.seed)
    history = Trainer(lesson, schedule, progress=Silent()).train()
    tokens = accumulate(lesson.taught_in(epoch) for epoch in range(portion.count))
    return [
        {"tokens": count, "perplexity": float(np.exp(-x))}
        for count, x in zip(tokens, history.figure, strict=True)
    ]


def by_trl(
    options: argparse.Namespace, material: LanguageMaterial, student: Decoder, arm: str, seed: int,
    seconds: float,
) -> tuple[Decoder, int]:  # fmt: skip
    """Return the slice as TRL taught it in so many seconds, and in how many steps."""
    folder = WORK / f"trl-{arm}-{options.tokens}-{seed}"
    for name, network in (("student", student), ("teacher", material.decoder)):
        save_folder(network, folder / name, material.tokenizer)
    write_tensors(folder / "texts", {"ids": torch.from_numpy(material.data.train.ids).long()})
    job = {
        "student": str(folder / "student"), "teacher": str(folder / "teacher"),
        "texts": str(folder / "texts"), "out": str(folder / "taught"), "trainer": arm,
        "rate": options.trl_rate, "minutes": seconds / 60, "seed": seed,
        "beta": float(arm == "trl"), "threads": options.threads,
        "bf16": native_bf16(torch.device("cpu")),
    }  # fmt: skip
    write_json(folder / "job.json", job)
    command = [options.trl, str(HERE / "trl_child.py"), str(folder / "job.json")]
    subprocess.run(command, check=True)
    opened = library().AutoModelForCausalLM.from_pretrained(
        folder / "taught", dtype=torch.float32, local_files_only=True
    )
    return decoder_of(opened), read_json(folder / "taught" / "steps.json")["steps"]


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        missing = [arm for arm in options.only if _row(options, arm, seed) is None]
        if not missing:
            continue
        for arm in missing:
            recipe, material, folder = material_of(options, seed, arm)
            cut = chosen_slice(material, options.run)
            elsewhere = novel_of(options.novel, material, folder)
            material, signals, asked = _signals(recipe, material, folder)
            row = {"arm": arm, "seed": seed, "tokens": options.tokens, "size": _size(cut)}
            began = time.monotonic()
            student = slice_of(arm, material, cut, options, seed)
            if arm in ("trl", "gkd"):
                reference = _row(options, "kd", seed)
                assert reference is not None, "run the arm kd first: its time is what TRL gets"
                spent = reference["ask_s"] + reference["teach_s"]
                student, row["steps"] = by_trl(options, material, student, arm, seed, spent)
                row["rate"] = options.trl_rate
            else:
                row["curve"] = taught(recipe, material, student, signals, arm)
            row |= {"ask_s": asked, "teach_s": time.monotonic() - began}
            row["parameters"] = parameters(student.spec)
            row["test"] = perplexities(material.decoder, student, material.data.test)
            row["novel"] = perplexities(material.decoder, student, elsewhere)
            add_row(RESULTS, {**row, "machine": machine()})
            print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)


def _signals(
    recipe: Recipe, material: LanguageMaterial, folder: Path
) -> tuple[LanguageMaterial, Any, float]:
    """Return what the teacher writes and says, and the seconds that took when it was first done."""
    spent = folder / "asked.json"
    began = time.monotonic()
    with Run(folder / "run") as held:
        material = rehearsed(recipe, material, held, Silent())
        signals = ask(recipe, material, held, Silent())
    if not spent.exists():
        write_json(spent, {"seconds": time.monotonic() - began})
    return material, signals, read_json(spent)["seconds"]


def refit_text(options: argparse.Namespace, seed: int) -> Tensor:
    """Return sequences of the texts, and as many that the teacher wrote freely."""
    recipe, material, folder = material_of(options, seed, "rehearse")
    with Run(folder / "run") as held:
        material = rehearsed(recipe, material, held, Silent())
    assert material.rehearsal is not None
    both = [part.ids[: REFIT // 2] for part in (material.data.train, material.rehearsal)]
    return torch.from_numpy(np.concatenate(both)).long()


def slice_of(
    arm: str, material: LanguageMaterial, cut: Decoder, options: argparse.Namespace, seed: int
) -> Decoder:
    """Return what an arm teaches, a network of its own."""
    if arm == "uniform":
        return uniform(material, parameters(cut.spec))
    copy = Decoder(cut.spec)
    copy.load_state_dict(cut.state_dict())
    copy.origin = cut.origin
    if arm.startswith("refit"):
        refit(copy.eval(), material.decoder, refit_text(options, seed), ridge=0.1)
    return copy


def _size(cut: Decoder) -> str:
    spec = cut.spec
    return f"{spec.layers} layers of {spec.inner} units, {spec.groups} groups, {spec.hidden} wide"


def _row(options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any] | None:
    for row in rows_of(RESULTS):
        if (row["arm"], row["seed"], row["tokens"]) == (arm, seed, options.tokens):
            return row
    return None


def table() -> None:
    """Print a line an arm, and what it is behind or ahead of kd by, in nats a token."""
    rows = rows_of(RESULTS)
    print("| tokens | arm | seeds | parameters | test | to teacher | novel | nats behind kd | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for tokens in sorted({r["tokens"] for r in rows}):
        for arm in ARMS:
            mine = [r for r in rows if (r["arm"], r["tokens"]) == (arm, tokens)]
            if not mine:
                continue
            kd = {r["seed"]: r for r in rows if (r["arm"], r["tokens"]) == ("kd", tokens)}
            behind = [
                float(np.log(r["test"]["student"] / kd[r["seed"]]["test"]["student"]))
                for r in mine
                if r["seed"] in kd
            ]
            shares = [r["test"]["student"] / r["test"]["teacher"] for r in mine]
            novel = [r["novel"]["student"] / r["novel"]["teacher"] for r in mine]
            print(
                f"| {tokens:,} | {arm} | {len(mine)} | {mine[0]['parameters']:,} "
                f"| {statistics.mean(r['test']['student'] for r in mine):.1f} "
                f"| {statistics.mean(shares):.2f} | {statistics.mean(novel):.2f} "
                f"| {_with_interval(behind)} | {statistics.mean(r['teach_s'] for r in mine):.0f} |"
            )


def _with_interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else ""
    error = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):+.3f} ± {error:.3f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what is measured."""
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--speeches", type=Path)
    parser.add_argument("--novel", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--trl", help="python with trl==1.16.0")
    parser.add_argument("--trl-rate", type=float, default=5e-4)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])


if __name__ == "__main__":
    run_or_table(__doc__, add_arguments, run, table)
