"""A whole run over texts: a small encoder is fitted, a student taught, and run by a stranger."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from tokenizers import Tokenizer

from tutelage.pipeline.material import read_material
from tutelage.pipeline.pruned import pruning_loss
from tutelage.progress import Silent
from tutelage.recipe import Recipe
from tutelage.teach.hf_teacher import from_hf_folder, with_whole_vocabulary
from tutelage.teach.torch_teacher import Reordered, TorchTeacher

pytest.importorskip("transformers")

WORDS = {
    "ham": "meeting lunch report agenda tuesday minutes budget".split(),
    "spam": "winner prize claim urgent credit offer viagra".split(),
}
BOTH = "the a of and to we you for on with is this".split()


def mails(count=240, seed=0):
    """Half of a mail's words stand in both kinds, half tell the kind."""
    random = np.random.default_rng(seed)
    for i in range(count):
        kind = ("ham", "spam")[i % 2]
        words = [*random.choice(BOTH, 4), *random.choice(WORDS[kind], 4), *random.choice(BOTH, 3)]
        yield {"text": " ".join(words), "label": kind}


def encoder(folder):
    """Write a tiny BERT with fresh weights and a WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    names += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + BOTH[2:] + sum(WORDS.values(), [])
    names = list(dict.fromkeys([*names, "never", "seen"]))
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(names[:5])
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))


RECIPE = {
    "task": "text",
    "data": {"train": "train.jsonl", "test": "test.jsonl", "validation": 0.2},
    "teacher": {"source": "encoder", "fit": "all", "epochs": 12},
    "budget": {"storage": "60 kB"},
    "student": {"spec": {"family": "textconv", "embedding": 16, "depth": 1}},
    "distill": {"epochs": 20, "batch": 16},
    "threads": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    encoder(folder / "encoder")
    for name, seed in (("train", 0), ("test", 1)):
        lines = [json.dumps(mail) for mail in mails(seed=seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    said = tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said.answer


def test_a_text_run_ends_with_a_student_that_has_learned(finished):
    folder, answer = finished
    assert answer["task"] == "text"
    assert answer["teacher"]["value"] > 0.8
    assert answer["student"]["value"] > 0.8
    proof = json.loads((folder / "run/proof.json").read_text())
    assert all(set(row) & {"text", "image"} == {"text"} for row in proof["differences"])


def test_what_pruning_the_vocabulary_cost_is_measured(finished):
    """The teacher, fitted, is asked about each validation text in the whole vocabulary."""
    folder, _ = finished
    stages = json.loads((folder / "run/run.json").read_text())["stages"]
    taught = stages["teacher"]["result"]
    figure = next(f for f in taught["figures"] if f["name"] == "vocabulary_agreement")
    (note,) = [n for n in taught["notes"] if n.startswith("pruning the vocabulary from")]
    recipe = Recipe.parse(
        {**RECIPE, "data": {**RECIPE["data"], "train": str(folder / "train.jsonl"),
                            "test": str(folder / "test.jsonl")},
         "teacher": {**RECIPE["teacher"], "source": str(folder / "encoder")}}
    )  # fmt: skip
    validation = read_material(recipe).data.validation
    tokenizer = Tokenizer.from_file(str(folder / "encoder/tokenizer.json"))
    lines = (folder / "train.jsonl").read_text().splitlines()
    assert figure["n"] == len(validation) and figure["value"] == 1.0
    assert f"{tokenizer.get_vocab_size()} to {len(validation.vocabulary)} tokens" in note
    # Every word stands in some training mail: here pruning changes nothing.
    assert f"changed 0 of {len(validation)} validation texts and 0 decisions" in note
    assert len(lines) > len(validation)
    assert note in (folder / "run/report.html").read_text(encoding="utf-8")


def test_changed_texts_are_asked_about_in_the_whole_vocabulary(finished):
    """Against the teacher itself with the rows put back, on all of validation."""
    folder, _ = finished
    words = [*BOTH, *WORDS["ham"], *WORDS["spam"]]
    data = folder / "rare"
    data.mkdir()
    random = np.random.default_rng(5)
    mails = [" ".join(random.choice(words, 3)) for _ in range(300)]  # few words each: some unseen
    rare = [f"{mail} never" if i >= 200 else mail for i, mail in enumerate(mails)]
    for name, texts in (("train", rare[:200]), ("validation", rare[200:250]), ("test", rare[250:])):
        lines = [json.dumps({"text": t, "label": i % 2}) for i, t in enumerate(texts)]
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = Recipe.parse(
        {"task": "text", "data": {"train": str(data)},
         "teacher": {"source": str(folder / "encoder"), "fit": "head"}}
    )  # fmt: skip
    material = read_material(recipe)
    held = material.data.validation
    assert len(held.changed.index) == len(held)  # each holds a word that training lacks
    kept = held.vocabulary.kept
    torch.manual_seed(3)
    network = from_hf_folder(
        folder / "encoder", 2, kept=kept, pad=held.vocabulary.pad, fresh_head=True
    )
    with torch.no_grad():
        network.embedding[:] += 0.5 * torch.randn_like(network.embedding)  # as if fitted
        network.head[1].weight *= 50
    before = torch.get_rng_state()
    whole = with_whole_vocabulary(network, folder / "encoder", kept=kept, pad=0, trust_code=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(whole.embedding[kept], network.embedding, rtol=0, atol=0)
    inputs = material.validation.batch(torch.arange(len(held)), 0).inputs
    tokenizer = Tokenizer.from_file(str(folder / "encoder/tokenizer.json"))
    with torch.no_grad():
        said = network(inputs)
        alone = [whole(torch.tensor([tokenizer.encode(t).ids])) for t in rare[200:250]]
    turned = int((said.argmax(1) != torch.cat(alone).argmax(1)).sum())
    teacher = TorchTeacher(network, classes=2, image_shape=held.shape, example=inputs[:2])
    figure, words = pruning_loss(recipe, material, teacher, said, Silent(), trust_code=False)
    assert 0 < turned < 50
    assert figure.value == pytest.approx(1 - turned / 50)
    assert f"changed 50 of 50 validation texts and {turned} decisions" in words
    swapped = pruning_loss(
        recipe, material, Reordered(teacher, (1, 0)), said[:, [1, 0]], Silent(), trust_code=False
    )
    assert swapped[0].value == figure.value


def test_storage_counts_the_tokenizer_that_ships_beside(finished):
    folder, answer = finished
    artifacts = folder / "run/artifacts"
    beside = (artifacts / "tokenizer.json").stat().st_size
    proof = json.loads((folder / "run/proof.json").read_text())
    whole = (folder / "run" / answer["chosen"]).stat().st_size + beside
    verdict = next(row for row in answer["budget"] if row["metric"] == "storage_bytes")
    assert verdict["value"] == whole and beside > 1_000
    assert proof["beside"] == [{"name": "tokenizer.json", "bytes": beside}]
    for who in ("student", "teacher"):
        row = next(f for f in proof["figures"][who] if f["name"] == "storage_bytes")
        assert "model" in row["where"] and "tokenizer.json" in row["where"]
    foretold = json.loads((folder / "run/plan.json").read_text())["candidates"][0]["figures"]
    foretold = next(f["value"] for f in foretold if f["name"] == "storage_bytes")
    int8 = (artifacts / "student-int8.onnx").stat().st_size + beside
    assert foretold == pytest.approx(int8, rel=0.03)
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert "<code>tokenizer.json</code>" in page and "counts in storage" in page


STRANGER = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from tokenizers import Tokenizer

artifact = Path(sys.argv[1])
session = ort.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
meta = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
tokenizer = Tokenizer.from_file(str(artifact.parent / meta["details"]["tokenizer"]))
right = 0
mails = [json.loads(line) for line in open(sys.argv[2])]
for mail in mails:
    ids = np.array([tokenizer.encode(mail["text"]).ids], np.int64)
    (logits,) = session.run(None, {meta["input"]: ids})
    right += meta["classes"][int(logits[0].argmax())] == mail["label"]
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(right / len(mails))
"""


def test_its_artifact_decides_with_onnxruntime_and_tokenizers_alone(finished):
    folder, answer = finished
    arguments = [folder / "run" / answer["chosen"], folder / "test.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(answer["student"]["value"])


def test_the_readmes_example_decides(finished):
    folder, _ = finished
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    code = next(block for block in blocks if "Tokenizer" in block)
    mail = next(mails(seed=3))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("Your text", mail["text"])],
        capture_output=True, text=True, check=False, cwd=folder / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == mail["label"]


def test_a_finished_run_is_not_done_again(finished):
    folder, _ = finished
    before = tiny.hashes(folder / "run", "teacher", "student", "artifacts", "proof.json")
    assert "artifacts/tokenizer.json" in before
    assert tiny.cli("run", folder / "recipe.yaml", "--run", folder / "run").status == 0
    parts = ("teacher", "student", "artifacts", "proof.json")
    assert tiny.hashes(folder / "run", *parts) == before


def test_an_encoder_without_a_head_says_how_to_fit_one(finished, tmp_path):
    folder, _ = finished
    recipe = {**RECIPE, "teacher": {"source": str(folder / "encoder")}}
    recipe["data"] = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = tiny.cli("run", tmp_path / "recipe.yaml", "--run", tmp_path / "run")
    assert said.status == 2
    assert len(said.errors) == 1 and "fit: head" in said.errors[0]


def test_exits_of_texts_leave_pads_out(finished, tmp_path):
    folder, _ = finished
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    spec = {"family": "encoder", "layers": 3, "hidden": 16, "heads": 2, "inner": 32}
    recipe["student"] = {"spec": spec, "exits": "2 %"}
    recipe["distill"] = {"epochs": 4, "batch": 16, "rate": 3e-3}
    (folder / "exits.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(folder / "run", tmp_path / "run")
    said = tiny.cli("run", folder / "exits.yaml", "--run", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    proof = json.loads((tmp_path / "run/proof.json").read_text())
    part = proof["exits"]
    assert part["cost"] < part["whole"] and part["shares"][0] > 0.2
    assert [*part["after"], part["ends"]][0] == "stages.0"
    assert max(row["largest_error"] for row in proof["parity"][:1]) < 1e-3
