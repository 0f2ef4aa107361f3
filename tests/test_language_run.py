"""A language model through every stage: sliced, taught, shipped as GGUF, proven, talked to."""

# pyright: reportArgumentType=false

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import chat_samples
import pytest
import tiny
import yaml

import tutelage
from tutelage.files import read_json
from tutelage.train.block_rounding import block_rounded

pytest.importorskip("gguf")
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")


def write_teacher(folder):
    tokenizer = chat_samples.tokenizer(most=128)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True, initializer_range=0.2, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_job(folder, **changes):
    folder.mkdir(exist_ok=True)
    chats = [{"messages": chat} for chat in chat_samples.some_chats(50)]
    chat_samples.write_lines(folder / "chats.jsonl", chats)
    if not (folder / "teacher").exists():
        write_teacher(folder / "teacher")
    recipe = {
        "task": "causal_lm",
        "data": {"train": "chats.jsonl", "length": 64},
        "teacher": {"source": "teacher"},
        "device": "raspberry-pi-4",
        "budget": {"storage": "42 kB"},
        "distill": {"losses": {"forward_kl": 1.0, "token_cross_entropy": 0.05}, "rate": 0.003},
        "language": {"tokens": 3_000, "answer": 4},
        "threads": 1,
    }
    path = folder / "chat.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    path = write_job(folder)
    said = tiny.cli("run", path, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said


def test_a_run_ends_with_a_file_that_keeps_its_budget(done):
    folder, said = done
    answer = said.answer
    assert answer["status"] == "met" and answer["task"] == "causal_lm"
    (artifact,) = answer["artifacts"]
    path = folder / "run" / artifact["path"]
    assert path.suffix == ".gguf" and path.stat().st_size == artifact["bytes"] <= 42_000
    limits = {row["metric"]: row for row in answer["budget"]}
    assert limits["storage_bytes"]["kind"] == "measured"
    assert limits["ram_bytes"]["kind"] == "predicted" and limits["ram_bytes"]["met"]
    assert answer["student"]["metric"] == "perplexity" and answer["student"]["value"] > 1


def test_the_planned_bytes_are_the_file_s_but_for_the_header(done):
    plan = read_json(done[0] / "run" / "plan.json")
    (chosen,) = [c for c in plan["candidates"] if c["chosen"]]
    foretold = next(f["value"] for f in chosen["figures"] if f["name"] == "storage_bytes")
    assert len(plan["candidates"]) > 1
    assert all(c["untaught_kl"] >= chosen["untaught_kl"] for c in plan["candidates"])
    size = done[1].answer["artifacts"][0]["bytes"]
    assert size <= foretold <= size + 2_000


def test_the_student_learned_from_its_teacher(done):
    result = read_json(done[0] / "run" / "run.json")["stages"]["distill"]["result"]
    history = result["history"]
    words = read_json(done[0] / "run" / "proof.json")["vocabulary"]
    assert words["kept"] < words["whole"]
    assert 1 <= words["test_tokens_kept"] / words["test_tokens_whole"] < 1.2
    assert set(history["parts"][0]) == {"forward_kl", "token_cross_entropy"}
    assert len(result["tokens"]) == len(result["perplexity"]) == result["epochs"] > 1
    assert result["tokens"] == sorted(result["tokens"])
    assert history["parts"][-1]["forward_kl"] < 0.8 * history["parts"][0]["forward_kl"]
    assert result["parameters"] < read_json(done[0] / "run" / "run.json")["stages"]["teacher"][
        "result"]["parameters"]  # fmt: skip


def test_the_folder_opens_in_transformers_and_says_what_the_file_says(done):
    from tutelage.teach.gguf_file import open_gguf

    folder, said = done
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "run" / "student", local_files_only=True
    )
    stored, tokenizer = open_gguf(folder / "run" / said.answer["chosen"])
    ids = torch.tensor([tokenizer("good film the plot was funny")["input_ids"]])
    whole = transformers.AutoTokenizer.from_pretrained(folder / "run" / "student")
    assert whole("good film the plot was funny")["input_ids"] == ids[0].tolist()
    own = tutelage.load(folder / "run" / "student")  # by spec.json, without transformers' folder
    with torch.no_grad():
        a, b = network(ids).logits, stored(ids).logits
        assert torch.equal(own(ids), a)
        form = Path(said.answer["chosen"]).stem.removeprefix("student-")
        with block_rounded(own, form):  # as it was taught; the embedding has 8 bits
            assert (own(ids) - b).abs().mean() < 0.07 * a.std() < (a - b).abs().mean()
    assert whole.chat_template


def test_the_proof_and_the_page_show_answers_and_partings(done):
    run = done[0] / "run"
    proof, page = read_json(run / "proof.json"), (run / "report.html").read_text()
    names = {m["name"] for m in proof["fidelity"]}
    assert {"kl_a_token", "agreement_greedy", "perplexity_ratio"} <= names
    assert len(proof["answers"]) == 6 and proof["partings"]
    assert all(0 < p["kl"] for p in proof["partings"])
    for words in ("What each answers", "Where they part", "llama.cpp or Ollama", "Perplexity"):
        assert words in page


def test_a_second_call_does_nothing_again(done):
    folder, said = done
    before = tiny.hashes(folder / "run", "artifacts", "student", "signals", "proof.json")
    again = tiny.cli("run", folder / "chat.yaml", "--run", folder / "run", "--json")
    assert again.status == 0 and "Teaching" not in again.err
    assert tiny.hashes(folder / "run", "artifacts", "student", "signals", "proof.json") == before


def test_a_damaged_file_is_refused(done, tmp_path):
    folder, said = done
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / said.answer["chosen"]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    again = tiny.cli("run", folder / "chat.yaml", "--run", tmp_path / "run")
    assert again.status == 5 and path.name in again.err


def test_plan_says_what_would_fit(done):
    folder, _ = done
    said = tiny.cli("plan", folder / "chat.yaml", "--json")
    assert said.status == 0 and said.answer["status"] == "feasible"
    rows = said.answer["candidates"]
    assert len(rows) > 1 and all(row["fits"] for row in rows)
    assert tiny.cli("plan", folder / "chat.yaml").status == 0  # as a table


def test_talking(done, monkeypatch):
    folder, _ = done
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\n/new\nbad film\n/quit\n"))
    said = tiny.cli("chat", folder / "run", "--longest", "4")
    assert said.status == 0 and said.out.count("teacher") == said.out.count("student") == 2
    wrong = tiny.cli("chat", folder)
    assert wrong.status == 2 and "holds no finished run" in wrong.err


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"budget": {"storage": "10 kB"}}, 3, "no student fits raspberry-pi-4"),
        ({"budget": {"accuracy": 0.9}}, 2, "budget.accuracy is not for"),
        ({"distill": {"losses": {"dist": 1.0}}}, 2, "distill.losses"),
        ({"distill": {"losses": {"forward_kl": "auto"}}}, 2, "needs a number"),
        ({"teacher": {"fit": True}}, 2, "not trained on the spot"),
        ({"teacher": {"source": "nowhere"}}, 2, "no teacher at"),
        ({"teacher": {"source": "chats.jsonl"}}, 2, "GGUF"),
        ({"data": {"train": "chats.jsonl", "length": 500}}, 2, "data.length"),
        ({"data": {"train": "absent.jsonl"}}, 2, "absent.jsonl"),
    ],
    ids=["small", "accuracy", "loss", "auto", "fit", "nowhere", "other", "long", "absent"],
)
def test_bad_input_is_one_line(done, tmp_path, changes, status, words):
    shutil.copytree(done[0] / "teacher", tmp_path / "teacher")
    said = tiny.cli("run", write_job(tmp_path, **changes), "--run", tmp_path / "run")
    assert said.status == status, said.err
    line = [x for x in said.err.splitlines() if x.startswith("error")]
    assert len(line) == 1 and words in line[0], said.err


def test_an_encoder_does_not_write(tmp_path):
    folder = tmp_path / "teacher"
    chat_samples.tokenizer().save_pretrained(folder)
    config = {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"0" * 64)
    said = tiny.cli("run", write_job(tmp_path), "--run", tmp_path / "run")
    assert said.status == 2, said.err
    assert "bert" in said.err


def test_the_vocabulary_may_stay_whole(done, tmp_path):
    shutil.copytree(done[0] / "teacher", tmp_path / "teacher")
    data = {"train": "chats.jsonl", "length": 64, "vocabulary": "whole"}
    said = tiny.cli("plan", write_job(tmp_path, data=data, budget={"storage": "60 kB"}), "--json")
    assert said.status == 0, said.err
    (size,) = {row["spec"]["vocabulary"] for row in said.answer["candidates"]}
    assert size == len(transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher"))
