"""No data: the teacher writes it, and the student learns from that and from its own words."""

# pyright: reportArgumentType=false

from __future__ import annotations

import shutil

import chat_samples
import pytest
import tiny
import yaml

from tutelage.errors import DataError
from tutelage.files import read_json
from tutelage.pipeline.language import generating
from tutelage.tasks.causal_lm.reading import read_documents
from tutelage.tasks.causal_lm.task import load_language

pytest.importorskip("gguf")
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

TOPICS = ["cats", "dogs", "rain", "bread", "music"]
ASKED = {"topics": TOPICS, "templates": ["What is {topic}?", "Praise {topic}."],
         "prompts": ["why", "WHY", "how so"], "examples": 56, "longest": 40}  # fmt: skip


def write_teacher(folder, template=chat_samples.CHATML):
    """A random network that ends its answers: the head's row of that token is long."""
    tokenizer = chat_samples.tokenizer(template, most=128)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, initializer_range=0.2, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight[end] *= 2
    network.save_pretrained(folder)


def write_job(folder, generate, **changes):
    folder.mkdir(exist_ok=True)
    if not (folder / "teacher").exists():
        write_teacher(folder / "teacher")
    recipe = {
        "task": "causal_lm",
        "data": {"generate": generate, "length": 64, **changes.pop("data", {})},
        "teacher": {"source": "teacher"},
        "device": "raspberry-pi-4",
        "distill": {"rate": 0.003},
        "language": {
            "tokens": 1_500, "answer": 4, "on_policy": {"share": 0.5, "longest": 8, "after": 0.25}
        },
        "threads": 1,
    }  # fmt: skip
    path = folder / "chat.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The second batch of answers is interrupted, and the run goes on."""
    folder = tmp_path_factory.mktemp("generating")
    path = write_job(folder, ASKED)
    with pytest.MonkeyPatch.context() as patch:
        asked = generating.answering

        def dying(*given, **named):
            answer, calls = asked(*given, **named), iter(range(1))

            def once(prompts, draw):
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return answer(prompts, draw)

            return once

        patch.setattr(generating, "answering", dying)
        assert tiny.cli("run", path, "--run", folder / "run").status == 130
    counted = []
    with pytest.MonkeyPatch.context() as patch:

        def counting(*given, **named):
            answer = asked(*given, **named)
            return lambda prompts, draw: counted.append(len(prompts)) or answer(prompts, draw)

        patch.setattr(generating, "answering", counting)
        said = tiny.cli("run", path, "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    return folder, said, counted


def chats(folder):
    (path,) = (folder / "run" / "generated").glob("*/chats.jsonl")
    return path, [tuple(m.content for m in d.messages) for d in read_documents(path)]


def test_a_run_without_data_ends_with_a_file_and_asks_no_batch_twice(done):
    folder, said, counted = done
    # 12 distinct prompts, so 56 answers are 4 batches of 12 and one of 8; the first was kept
    assert counted == [12, 12, 12, 8]
    assert said.answer["status"] == "met" and (folder / "run" / said.answer["chosen"]).exists()
    again = tiny.cli("run", folder / "chat.yaml", "--run", folder / "run", "--json")
    assert again.status == 0 and "Asking the teacher:" not in again.err


def test_what_went_in_is_counted_and_shown(done):
    folder, said, _ = done
    found = read_json(folder / "run" / "run.json")["stages"]["data"]["result"]
    made, (_, pairs) = found["generated"], chats(folder)
    assert (made["prompts"], made["answers"], made["doubled"], made["long"]) == (12, 56, 1, 0)
    assert made["kept"] == len(pairs) == 56 - sum(made["left_out"].values())
    assert made["left_out"]["were cut before their end"] > 0
    assert [(s["prompt"], s["answer"]) for s in made["shown"]] == pairs[:5]
    page = (folder / "run" / "report.html").read_text()
    assert f"{len(pairs)} of 56 answers to 12 prompts are kept" in page
    assert "What the teacher wrote to learn from" in page and "in its own words" in page


def test_draws_of_one_prompt_differ(done):
    _, pairs = chats(done[0])
    assert len(set(pairs)) == len(pairs) > len({prompt for prompt, _ in pairs})


def test_own_batches_are_taught_and_counted(done):
    result = read_json(done[0] / "run" / "run.json")["stages"]["distill"]["result"]
    own = result["own_batches"]
    assert own["own"] == pytest.approx(0.75 * 0.5 * own["all"], abs=1.5 * result["steps"])
    assert "own_forward_kl" in result["history"]["parts"][-1]
    assert not any("own_token_cross_entropy" in part for part in result["history"]["parts"])


def prompts_of(tokens, tokenizer):
    """Return the prompt of each document of a split."""
    found = set()
    for ids, owner in zip(tokens.ids, tokens.owner, strict=True):
        for number in set(owner.tolist()) - {-1}:
            text = tokenizer.decode(ids[owner == number])
            found.add(text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0])
    return found


def splits(**given):
    made = chat_samples.tokenizer()
    data = load_language(tokenizer=made, length=128, seed=3, validation=0.2, **given)
    return data, *(prompts_of(getattr(data, n), made) for n in ("train", "validation", "test"))


def test_no_prompt_is_in_two_splits(done):
    path, pairs = chats(done[0])
    data, train, validation, test = splits(train=None, generated=path)
    assert train and validation and test
    assert not (train & validation or train & test or validation & test)
    assert train | validation | test == {prompt for prompt, _ in pairs}
    asked = {d.messages[-1].content for d in data.prompts}
    assert asked == test


def written(folder, prompts, times=3):
    rows = [{"prompt": p, "response": f"good film {i} of {p}"} for p in prompts
            for i in range(times)]  # fmt: skip
    return chat_samples.write_lines(folder, rows)


def test_generated_chats_join_the_training_part_but_for_held_out_prompts(tmp_path):
    own = written(tmp_path / "own.jsonl", [f"own {i}" for i in range(9)], times=1)
    made = written(tmp_path / "made.jsonl", [f"own {i}" for i in range(9)] + ["new", "newer"])
    data, train, validation, test = splits(train=own, generated=made)
    _, before, held, tested = splits(train=own)
    assert (validation, test) == (held, tested) and train == before | {"new", "newer"}
    assert any("answer prompts that are held out" in note for note in data.notes)
    assert any("also in" in note for note in data.notes)  # what both hold counts once


def test_a_test_file_keeps_its_prompts_to_itself(tmp_path):
    made = written(tmp_path / "made.jsonl", ["a", "b", "c", "d"])
    held = written(tmp_path / "test.jsonl", ["a", "z"], times=1)
    _, train, validation, test = splits(train=None, test=held, generated=made)
    assert test == {"a", "z"} and "a" not in train | validation


def test_one_prompt_alone_cannot_be_split(tmp_path):
    made = written(tmp_path / "made.jsonl", ["a"], times=9)
    with pytest.raises(DataError, match="1 different prompts with answers where 3 are needed"):
        splits(train=None, generated=made)


def test_plan_asks_nothing_and_counts_what_a_run_has_written(done, tmp_path):
    folder = done[0]
    sizes = []
    for run in (tmp_path / "none", folder / "run"):
        said = tiny.cli("plan", folder / "chat.yaml", "--run", run, "--json")
        assert said.status == 0, said.err
        assert ("nothing is generated yet" in said.err) == (run.name == "none")
        sizes.append({row["spec"]["vocabulary"] for row in said.answer["candidates"]}.pop())
    assert sizes[0] > sizes[1] and not (tmp_path / "none").exists()


SHORT = {"prompts": ["a", "b", "c"], "longest": 1, "temperature": 0.0}
WRONG = {
    "nothing": ({}, {}, "data.generate: there is nothing to ask"),
    "templates": ({"prompts": ["a"], "templates": ["{topic}"]}, {}, "'templates' are filled"),
    "no templates": ({"topics": ["a"], "templates": []}, {}, "data.generate.templates"),
    "no topic": ({"topics": ["a"], "templates": ["Why?"]}, {}, "has no {topic}"),
    "empty file": ({"prompts": "empty.txt"}, {}, "empty.txt holds no prompts"),
    "no file": ({"prompts": "absent.txt"}, {}, "absent.txt does not exist"),
    "white": ({"prompts": [" "]}, {}, "nothing but white space"),
    "cut": (SHORT, {}, "were cut before their end and are left out: raise data.generate.longest"),
    "long": ({"prompts": ["a"], "longest": 128}, {}, "no prompt of data.generate leaves room"),
    "hot": ({"prompts": ["a"], "temperature": -1.0}, {}, "data.generate.temperature"),
    "task": ({"prompts": ["a"]}, {"task": "text"}, "'data.generate' is for 'task: causal_lm'"),
    "own": (SHORT, {"language": {"on_policy": 1.5}}, "language.on_policy"),
    "own text": (
        SHORT, {"language": {"on_policy": {"share": 0.5, "losses": {"token_cross_entropy": 1.0}}}},
        "would teach the student its own words",
    ),
    "own nothing": (
        SHORT,
        {"language": {"on_policy": 0.5}, "distill": {"losses": {"token_cross_entropy": 1.0}}},
        "needs a loss that compares with the teacher",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(done, tmp_path, name):
    generate, changes, words = WRONG[name]
    shutil.copytree(done[0] / "teacher", tmp_path / "teacher")
    (tmp_path / "empty.txt").write_text("\n \n")
    said = tiny.cli("run", write_job(tmp_path, generate, **changes), "--run", tmp_path / "run")
    assert said.status == 2, said.err
    assert len(said.errors) == 1 and words in said.errors[0], said.err


def test_too_long_a_continuation_is_refused_before_the_teacher_is_asked(done, tmp_path):
    shutil.copytree(done[0] / "teacher", tmp_path / "teacher")
    language = {"on_policy": {"share": 0.5, "longest": 33}}
    path = write_job(tmp_path, ASKED, language=language)
    said = tiny.cli("run", path, "--run", tmp_path / "run")
    assert said.status == 2 and "sequences have 64 tokens; give 32" in said.errors[0]
    assert not (tmp_path / "run" / "generated").exists()


def test_a_teacher_that_does_not_chat_is_refused(tmp_path):
    write_teacher(tmp_path / "teacher", template=None)
    said = tiny.cli("run", write_job(tmp_path, SHORT), "--run", tmp_path / "run")
    assert said.status == 2 and "has no chat template" in said.errors[0]
