"""`init` of a language model: what it sees of teacher and data, and a recipe that plans."""

from __future__ import annotations

import json
import re
from array import array

import chat_samples
import pytest
import tiny
from test_language_run import write_teacher

from tutelage.pipeline.language.initial import (
    Looked,
    fitting_length,
    look,
    template_note,
    writes_texts,
)
from tutelage.recipe import Recipe

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    write_teacher(folder / "teacher")
    chats = [{"messages": chat} for chat in chat_samples.some_chats(50)]
    chats[0]["messages"] = [{"role": "system", "content": "be dull"}, *chats[0]["messages"]]
    chat_samples.write_lines(folder / "chats.jsonl", chats)
    lines = [{"text": text} for text in chat_samples.some_texts(200)]
    chat_samples.write_lines(folder / "texts.jsonl", lines)
    return folder


def test_init_writes_a_recipe_that_plans(job):
    out = job / "sub" / "recipe.yaml"
    said = tiny.cli(
        "init", job / "teacher", job / "chats.jsonl", "--out", out, "--device", "raspberry-pi-4"
    )
    assert said.status == 0, said.err
    recipe, text = Recipe.read(out), out.read_text()
    assert recipe.task == "causal_lm" and recipe.teacher.source == str(job / "teacher")
    assert "50 chats" in text and "1 of 50 chats begin with a system prompt (1 different)" in text
    assert recipe.data.length == 128 and recipe.language.answers_only
    planned = tiny.cli("plan", out, "--json")
    assert planned.status == 0, planned.err
    assert planned.answer["status"] == "feasible"


def test_what_init_comments_out_is_a_recipe_too(job):
    out = job / "commented.yaml"
    assert tiny.cli("init", job / "teacher", job / "chats.jsonl", "--out", out).status == 0
    text = re.sub(r"^  # (\w+: )", r"  \1", out.read_text(), flags=re.M)
    text = text.replace("test: path", "test: chats.jsonl")
    out.write_text(text)
    recipe = Recipe.read(out)
    assert recipe.budget.speed == "20 token/s" and recipe.language.recompute
    assert recipe.language.prompts == ["What can you do?"]


def test_of_texts_it_says_so(job):
    out = job / "texts.yaml"
    assert tiny.cli("init", job / "teacher", job / "texts.jsonl", "--out", out).status == 0
    text = out.read_text()
    assert "200 texts" in text and "holds no chats" in text and "answers_only" not in text


def test_looking_counts_tokens_by_hand(job, tmp_path):
    tokenizer = chat_samples.tokenizer(most=128)
    lines = [{"text": "good"}, {"text": " bad film"}]
    chat_samples.write_lines(tmp_path / "two.jsonl", lines)
    found = look(str(tmp_path / "two.jsonl"), tokenizer)
    assert list(found.lengths) == [2, 3]  # each with the end token
    assert found.tokens == 5 and found.learned == 3  # nothing stands before a first token
    assert len(found.used) == 4 and found.chats == 0


@pytest.mark.parametrize(
    ("lengths", "context", "length"),
    [
        ([60] * 100, 2048, 64),
        ([60] * 94 + [300] * 6, 2048, 512),
        ([60] * 96 + [300] * 4, 2048, 64),  # a few may be cut
        ([300] * 100, 128, 128),  # the teacher reads no more
        ([5000] * 100, 8192, 1024),
        ([100] * 9, 2048, 64),  # or there would be fewer than eight sequences
        ([5] * 3, 32, 32),
    ],
)
def test_the_length_holds_most_documents(lengths, context, length):
    assert fitting_length(Looked(lengths=array("q", lengths)), context) == length


def test_what_a_template_does_without_a_system_prompt():
    tokenizer = chat_samples.tokenizer()
    assert "none of its own" in template_note(tokenizer)
    own = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.\n' }}{% endif %}"
    tokenizer.chat_template = own + chat_samples.CHATML
    assert "one of its own" in template_note(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert "takes no system prompt" in template_note(tokenizer)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, True),
        ({"model_type": "llama"}, True),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, False),
        ([], False),
        ({"architectures": 5}, False),
    ],
)
def test_a_decoder_is_told_by_its_config(tmp_path, config, found):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert writes_texts(str(tmp_path)) is found


def test_other_files_are_no_decoder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    assert not writes_texts(str(tmp_path / "model.onnx")) and not writes_texts("fit")
    (tmp_path / "named-otherwise").write_bytes(b"GGUF\x03")
    assert writes_texts(str(tmp_path / "named-otherwise"))


@pytest.mark.parametrize(
    ("teacher", "data", "words"),
    [("nowhere.gguf", "chats.jsonl", "error"), ("teacher", "absent.jsonl", "absent.jsonl")],
)
def test_what_is_not_there_is_one_line(job, tmp_path, teacher, data, words):
    said = tiny.cli(
        "init", job / teacher, job / data, "--out", tmp_path / "r.yaml", "--task", "causal_lm"
    )
    assert said.status == 2 and not (tmp_path / "r.yaml").exists()
    (line,) = [x for x in said.err.splitlines() if x.startswith("error")]
    assert words in line
