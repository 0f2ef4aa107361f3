"""A student that the recipe names: with its teacher's tokenizer, or one of its own."""

# pyright: reportArgumentType=false

from __future__ import annotations

import io
import shutil
import sys

import pytest
import tiny
from test_language_plan import llama_cpp
from test_language_run import write_job

from tutelage.files import read_json
from tutelage.pipeline import run_recipe
from tutelage.pipeline.language import pace, proving
from tutelage.recipe import Recipe
from tutelage.train.loop import Trainer

pytest.importorskip("gguf")
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

import chat_samples  # noqa: E402
import gguf_samples  # noqa: E402

APART = {"uld": 1.0, "token_cross_entropy": 0.5}
RESULT = ("artifacts", "student", "taught", "proof.json", "plan.json")


def write_student(folder, tokenizer):
    tokenizer.chat_template = chat_samples.CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=True, initializer_range=0.2, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_pair(folder, losses, **changes):
    """Write a teacher, a student with its tokenizer, one with its own, and a recipe for the latter.

    What the two tokenizers know of special tokens is nothing.
    """
    job = {
        "student": {"source": "own"}, "budget": {"storage": "60 kB"},
        "distill": {"losses": losses, "rate": 0.02, "checkpoint": "1 us"},
        "data": {"train": "chats.jsonl", "length": 96},
        "language": {"tokens": 1_500, "answer": 2}, **changes,
    }  # fmt: skip
    path = write_job(folder, **job)
    if not (folder / "own").exists():
        gguf_samples.fallback(folder / "own")
        write_student(folder / "own", gguf_samples.load(folder / "own"))
        write_student(folder / "same", gguf_samples.load(folder / "teacher"))
    return path


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    path = write_pair(folder, APART)
    said = tiny.cli("run", path, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said


def test_the_file_speaks_the_student_s_own_tokens(apart):
    from tutelage.teach.gguf_file import open_gguf

    folder, said = apart
    answer = said.answer
    assert answer["status"] == "met" and answer["chosen"].endswith("q8_0.gguf")
    network, tokenizer = open_gguf(folder / "run" / answer["chosen"])
    own = gguf_samples.load(folder / "own")
    texts = ["good film", "<|im_start|>user"]
    assert tokenizer(texts)["input_ids"] == own(texts)["input_ids"]
    assert tokenizer.chat_template == chat_samples.CHATML
    assert network.config.num_hidden_layers == 2 and network.config.hidden_size == 32
    plan = read_json(folder / "run" / "plan.json")
    (chosen,) = plan["candidates"]
    assert plan["space"] == "given" and chosen["precision"] == "q8_0"
    foretold = next(f["value"] for f in chosen["figures"] if f["name"] == "storage_bytes")
    size = answer["artifacts"][0]["bytes"]
    assert size <= foretold <= size + 2_000
    budget = {"storage": f"{foretold - 1:.0f} B"}
    less = tiny.cli("plan", write_pair(folder / "less", APART, budget=budget), "--json")
    (row,) = less.answer["candidates"]
    assert row["fits"] and row["precision"] == "q5_1"


def test_the_student_learned_from_text_and_teacher(apart):
    result = read_json(apart[0] / "run" / "run.json")["stages"]["distill"]["result"]
    parts = result["history"]["parts"]
    assert set(parts[0]) == {"uld", "token_cross_entropy"}
    assert parts[0]["uld"] > 0 and result["weights"] == APART
    shared = result["shared"]
    assert 0.7 < shared["span_bytes"] / shared["learned_bytes"] <= 1 and not shared["left_out"]


def test_the_proof_compares_bytes_and_says_why(apart):
    folder, said = apart
    proof, page = read_json(folder / "run" / "proof.json"), (folder / "run/report.html").read_text()
    compared = {m["name"]: m["value"] for m in proof["fidelity"]}
    assert set(compared) == {"bits_per_byte_ratio", "bits_per_byte_untaught"}
    figures = {who: {m["name"]: m for m in proof["figures"][who]} for who in ("teacher", "student")}
    for rows in figures.values():
        assert not any(name.startswith("perplexity") for name in rows)
        assert "bytes that both write" in rows["bits_per_byte_test"]["where"]
    assert said.answer["student"]["metric"] == "bits_per_byte"
    assert said.answer["student"]["value"] < compared["bits_per_byte_untaught"]
    assert proof["partings"] == [] and len(proof["answers"]) == 6
    for words in ("no KL divergence a token", "Bits per byte, test", "Student given",
                  "in spans that the teacher also writes"):  # fmt: skip
        assert words in page
    assert "Where they part" not in page


def test_a_killed_run_ends_with_the_same_bytes(apart, tmp_path, monkeypatch):
    recipe, saved = Recipe.read(apart[0] / "chat.yaml"), Trainer._save

    def killed(self, *given):
        saved(self, *given)
        if self.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run/taught").exists() and (tmp_path / "run/checkpoints").exists()
    run_recipe(recipe, tmp_path / "run")
    assert tiny.hashes(tmp_path / "run", *RESULT) == tiny.hashes(apart[0] / "run", *RESULT)


def test_talking_to_two_tokenizers(apart, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\n/quit\n"))
    said = tiny.cli("chat", apart[0] / "run", "--longest", "4")
    assert said.status == 0 and said.out.count("teacher") == said.out.count("student") == 1


def test_with_the_teacher_s_tokenizer_tokens_are_compared(apart, tmp_path):
    shutil.copytree(apart[0], tmp_path / "job", ignore=shutil.ignore_patterns("run"))
    losses = {"forward_kl": 1.0, "token_cross_entropy": 0.05}
    changes = {"student": {"source": "same"}, "language": {"tokens": 500, "answer": 2}}
    path = write_pair(tmp_path / "job", losses, **changes)
    said = tiny.cli("run", path, "--run", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    proof = read_json(tmp_path / "run/proof.json")
    names = {m["name"] for m in proof["fidelity"]}
    assert {"kl_a_token", "agreement_greedy", "perplexity_ratio"} <= names
    words = proof["vocabulary"]
    assert words["kept"] < words["whole"] and said.answer["student"]["metric"] == "perplexity"


@pytest.mark.parametrize(
    ("command", "changes", "status", "words"),
    [
        ("run", {"distill": {}}, 2, r"write distill: {losses: {uld: 1.0, token_cross_entropy"),
        ("plan", {"distill": {"losses": {"token_cross_entropy": 1.0}}}, 2, "tokenizers that"),
        ("plan", {"distill": {"losses": {"uld": 1.0}}}, 2, "name token_cross_entropy too"),
        ("plan", {"student": {}}, 2, "name a student of your own in student.source"),
        ("plan", {"student": {"source": "same"}}, 2, "write distill: {losses: {forward_kl"),
        ("plan", {"student": {"source": "nowhere"}}, 2, "student.source: there is no language"),
        ("plan", {"student": {"source": "chats.jsonl"}}, 2, "GGUF"),
        ("plan", {"distill": {"losses": {**APART, "relations": 1.0}}}, 2, "relations pairs"),
        ("plan", {"language": {"on_policy": 0.5}}, 2, "language.on_policy"),
        ("plan", {"language": {"rehearse": 0.5}}, 2, "language.rehearse: the teacher writes"),
        ("run", {"budget": {"storage": "9 kB"}}, 3, "the given student does not fit"),
        ("plan --frontier", {}, 2, "--frontier compares slices"),
        ("plan --try", {}, 2, "--try compares slices"),
    ],
)
def test_what_cannot_be_is_one_line(apart, tmp_path, command, changes, status, words):
    shutil.copytree(apart[0], tmp_path / "job", ignore=shutil.ignore_patterns("run"))
    name, *more = command.split()
    path = write_pair(tmp_path / "job", APART, **changes)
    said = tiny.cli(name, path, *more, "--run", tmp_path / "run")
    assert said.status == status, said.err
    line = [x for x in said.err.splitlines() if x.startswith("error")]
    assert len(line) == 1 and words in line[0], said.err


def test_where_the_file_misses_a_limit_a_coarser_one_is_taught_on(apart, tmp_path, monkeypatch):
    for module in (pace, proving):
        monkeypatch.setattr(module, "here", lambda path, *_: llama_cpp(path, 1.1))
    shutil.copytree(apart[0], tmp_path / "job", ignore=shutil.ignore_patterns("run", "less"))
    few = {"language": {"tokens": 300, "answer": 2}, "budget": {"speed": "24.5 token/s"}}
    path = write_pair(tmp_path / "job", APART, device="host", **few)
    result = run_recipe(Recipe.read(path), tmp_path / "run")
    stages = read_json(tmp_path / "run/run.json")["stages"]
    assert result.met, result.proof["verdicts"]
    assert result.artifact.name == "student-q5_1.gguf" and {"teach-2", "tighten-1"} <= set(stages)
    configs = [stages[f"teach-{n}"]["result"]["config"] for n in (1, 2)]
    assert configs[0] == configs[1]
