"""Chats as tokens: which are learned. Packing, windows, splits, copies, hashes, refusals."""

import gc
import json
import os
import random

import numpy as np
import pytest
from chat_samples import (
    ASKING,
    BARE,
    CHATML,
    FORGETFUL,
    MARKED,
    MARKED_WIDE,
    THINKING,
    chat,
    some_chats,
    some_texts,
    tokenizer,
    write_lines,
)
from text_samples import refused

from tutelage.tasks.causal_lm import task as causal_lm
from tutelage.tasks.causal_lm.packing import FILLED, Written, best_fit, context, pack, windows
from tutelage.tasks.causal_lm.reading import Document, Message
from tutelage.tasks.causal_lm.task import load_language
from tutelage.tasks.causal_lm.tokens import Writer

TALK = chat("good film", "it was bad", "why", "dull plot")


def as_document(turns):
    return Document(messages=tuple(Message(**turn) for turn in turns))


def taught(template, turns=TALK, answers_only=True, **options):
    """Return the text of a chat, the runs of it that are learned, and the writer."""
    made = tokenizer(template, **options)
    writer = Writer(made, answers_only=answers_only)
    ((_, ids, learned),) = writer.write([as_document(turns)])
    edges = np.flatnonzero(np.diff([0, *learned.tolist(), 0]))
    runs = [made.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return made.decode(ids), runs, writer


# --- which tokens are learned ------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", [CHATML, MARKED, MARKED_WIDE], ids=["chatml", "marked", "wide"]
)
def test_answers_are_learned_with_the_token_that_ends_the_turn(template):
    text, runs, writer = taught(template)
    assert runs == ["it was bad<|im_end|>", "dull plot<|im_end|>"]
    assert text.endswith("dull plot<|im_end|>\n") and writer.unclear == 0  # has its end already
    text, runs, _ = taught(template, [{"role": "system", "content": "be kind"}, *TALK[:2]])
    assert runs == ["it was bad<|im_end|>"] and "be kind" in text


def test_a_template_that_writes_the_last_answer_otherwise():
    text, runs, writer = taught(THINKING)
    assert runs == ["it was bad<|im_end|>", "<think>\n\n</think>\n\ndull plot<|im_end|>"]
    assert "<think>\n\n</think>\n\nit was" not in text and writer.unclear == 0


def test_a_template_that_asks_for_more_than_it_writes():
    _, runs, writer = taught(ASKING)
    assert runs == ["it was bad<|im_end|>", "dull plot<|im_end|>"] and writer.unclear == 0
    _, runs, writer = taught(ASKING, chat("why", "<think>\nhm</think>so"))
    assert runs == ["hm</think>so<|im_end|>"]  # the rest is written for it


def test_where_it_is_unclear_all_is_learned_but_the_first_token():
    text, (run,), writer = taught(FORGETFUL)
    assert text == f"<|im_start|>{run}" and writer.unclear == 1
    _, runs, writer = taught(FORGETFUL, TALK[:2])
    assert runs == ["it was bad<|im_end|>"] and writer.unclear == 0


def test_marks_that_do_not_match_the_answers_are_not_believed():
    silly = "{% generation %}{% endgeneration %}" + CHATML
    assert taught(silly)[1] == taught(CHATML)[1]


def test_a_template_without_ends_gets_the_end_token_and_it_is_learned():
    text, runs, _ = taught(BARE, end="<|end|>")
    assert text.endswith("assistant:dull plot\n<|end|>")
    assert runs == ["it was bad\n", "dull plot\n<|end|>"]
    text, runs, _ = taught(BARE, TALK[:3], end="<|end|>")
    assert text.endswith("user:why\n<|end|>") and runs == ["it was bad\n"]


def test_an_end_token_that_only_parts_documents_is_not_learned():
    text, runs, writer = taught(CHATML, end="<|end|>")
    assert text.endswith("dull plot<|im_end|>\n<|end|>") and runs[-1] == "dull plot<|im_end|>"
    assert writer.ends() == {0, 2}  # both end what is generated


def test_everything_can_be_learned():
    text, (run,), writer = taught(CHATML, answers_only=False)
    assert text == f"<|im_start|>{run}" and writer.unclear == 0


def test_texts_learn_every_token_and_begin_as_the_tokenizer_wants():
    made = tokenizer(start="<|start|>")
    ((_, ids, learned),) = Writer(made).write([Document(text="good film")])
    assert made.decode(ids) == "<|start|>good film<|im_end|>"
    assert learned.tolist() == [False] + [True] * (len(ids) - 1) and ids.dtype == np.int32


def test_prompts_end_where_the_answer_begins():
    made = tokenizer(CHATML, start="<|start|>")
    writer = Writer(made)
    found = made.decode(writer.prompt(as_document(TALK[:1])))
    assert found == "<|im_start|>user\ngood film<|im_end|>\n<|im_start|>assistant\n"
    assert made.decode(writer.prompt(Document(text="good"))) == "<|start|>good"


def test_a_template_that_writes_the_date_writes_the_same_every_day():
    dated = "{{ strftime_now('%d %B %Y') }}" + CHATML
    text, runs, _ = taught(dated)
    assert text.startswith("26 Jul 2024<|im_start|>") and runs == taught(CHATML)[1]
    dated = "{% if date_string is not defined %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
    assert taught(dated)[0] == taught(CHATML)[0]


def test_many_documents_are_written_as_each_alone():
    writer = Writer(tokenizer(THINKING))
    mixed = [as_document(t) for t in some_chats(70, turns=1)] + [
        Document(text=t) for t in some_texts(70)
    ]
    random.Random(0).shuffle(mixed)
    for document, ids, learned in writer.write(mixed):
        ((_, own, targets),) = writer.write([document])
        np.testing.assert_array_equal(ids, own)
        np.testing.assert_array_equal(learned, targets)


# --- packing -----------------------------------------------------------------------------------


def written(sizes, seed=0):
    draw = np.random.default_rng(seed)
    total = sum(sizes)
    ids = np.arange(total, dtype=np.int32) + 100  # every token is another: none can be mistaken
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    learned = draw.random(total) < 0.6
    learned[offsets[:-1]] = False
    return Written(ids=ids, learned=learned, offsets=offsets)


def test_windows_by_hand():
    held = written([16, 17, 40])
    held.learned[:] = True
    held.learned[held.offsets[:-1]] = False
    assert context(16) == 2 and context(8) == 1 and context(4) == 1
    found = windows(held, np.array([2, 0, 1]), 16).tolist()
    assert found == [
        [33, 49, 0, 0], [47, 63, 2, 0], [61, 73, 2, 0],
        [0, 16, 0, 1],
        [16, 32, 0, 2], [30, 33, 2, 2],
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_each_target_is_learned_once_and_behind_its_own_past(seed):
    draw = np.random.default_rng(seed)
    length = int(draw.integers(8, 40))
    held = written(draw.integers(1, 90, 30).tolist(), seed)
    order = draw.permutation(30)[:25]
    packed = pack(held, order, length, end=7)
    wanted = [i for d in order for i in range(*held.offsets[d : d + 2]) if held.learned[i]]
    assert sorted(packed.ids[packed.learned] - 100) == sorted(wanted)
    assert not packed.learned[:, 0].any()
    rows, places = np.nonzero(packed.learned)
    for row, t in zip(rows, places, strict=True):
        token = packed.ids[row, t] - 100
        assert packed.ids[row, t - 1] - 100 == token - 1  # of its own document
        document = order[packed.owner[row, t]]
        assert held.offsets[document] <= token < held.offsets[document + 1]
        seen = min(token - held.offsets[document], context(length))
        assert (packed.ids[row, t - seen : t] - 100 == np.arange(token - seen, token)).all()
    filled = packed.owner == FILLED
    assert (packed.ids[filled] == 7).all() and not packed.learned[filled].any()
    assert packed.documents == len(set(packed.owner[~filled].tolist()))


def plain_best_fit(sizes, length):
    rooms, rows = [], {}
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = [r for r in range(len(rooms)) if rooms[r] >= sizes[i]]
        row = min(fitting, key=lambda r: rooms[r], default=None)
        if row is None:
            row = len(rooms)
            rooms.append(length)
        rooms[row] -= sizes[i]
        rows[i] = row
    return len(rooms), sum(rooms)


def test_best_fit_needs_as_many_rows_as_the_plain_one():
    for seed in range(5):
        sizes = np.random.default_rng(seed).integers(1, 65, 200)
        rows, starts = best_fit(sizes, 64)
        assert (int(rows.max()) + 1) == plain_best_fit(sizes.tolist(), 64)[0]
        for row in range(int(rows.max()) + 1):
            mine = np.flatnonzero(rows == row)
            mine = mine[np.argsort(starts[mine])]
            ends = np.cumsum(sizes[mine])
            np.testing.assert_array_equal(starts[mine], [0, *ends[:-1]])
            assert ends[-1] <= 64
    assert best_fit(np.array([6, 4, 5, 5, 3]), 10)[0].tolist() == [0, 0, 1, 1, 2]


def test_sequences_can_be_taken_and_only_so():
    packed = pack(written([5] * 12), np.arange(12), 10, end=0)
    some = packed.take(np.array([3, 0]))
    np.testing.assert_array_equal(some.ids, packed.ids[[3, 0]])
    assert (len(some), some.documents, some.length) == (2, 4, 10)
    assert some.fingerprint != packed.fingerprint
    assert packed.take(np.arange(len(packed))).fingerprint == packed.fingerprint
    with pytest.raises(ValueError, match=r"take\(\)"):
        type(packed)(ids=packed.ids[:2], learned=packed.learned[:2], owner=packed.owner,
                     fingerprint="", documents=0)  # fmt: skip


# --- splits ------------------------------------------------------------------------------------


@pytest.fixture
def made():
    return tokenizer()


def load(path, made, test=None, **options):
    return load_language(path, test, tokenizer=made, **{"length": 32, **options})


def texts_of(tokens, made):
    """Return the texts that a part holds; none of these is longer than a sequence."""
    found = {}
    for row in range(len(tokens)):
        for owner in np.unique(tokens.owner[row]):
            if owner != FILLED:
                assert owner not in found
                ids = tokens.ids[row][tokens.owner[row] == owner]
                found[owner] = made.decode(ids, skip_special_tokens=True)
    return set(found.values())


def test_splits_hold_each_document_once(tmp_path, made):
    texts = some_texts(100)
    data = load(write_lines(tmp_path / "a.jsonl", [{"text": t} for t in texts]), made)
    parts = [texts_of(part, made) for part in (data.train, data.validation, data.test)]
    assert set().union(*parts) == set(texts) and sum(map(len, parts)) == 100
    assert [len(p) for p in parts] == [72, 8, 20]
    assert [data.train.documents, data.validation.documents, data.test.documents] == [72, 8, 20]
    other = load(tmp_path / "a.jsonl", made, seed=1)
    assert texts_of(other.test, made) != parts[2]


def prints(data):
    return [part.fingerprint for part in (data.train, data.validation, data.test)]


def test_hashes_ignore_files_their_order_and_their_times(tmp_path, made):
    rows = [{"messages": c} for c in some_chats(40)] + [{"text": t} for t in some_texts(40)]
    rows.append({"text": rows[-1]["text"].upper()})  # a copy that differs in its tokens
    one = load(write_lines(tmp_path / "one.jsonl", rows), made)
    os.utime(tmp_path / "one.jsonl", (1, 1))
    assert prints(load(tmp_path / "one.jsonl", made)) == prints(one)
    random.Random(1).shuffle(rows)
    write_lines(tmp_path / "two" / "z.jsonl", rows[:30])
    write_lines(tmp_path / "two" / "b.jsonl", rows[30:])
    two = load(tmp_path / "two", made)
    assert prints(two) == prints(one) and two.prompts == one.prompts
    rows[0] = {"text": "another one"}
    assert prints(load(write_lines(tmp_path / "one.jsonl", rows), made)) != prints(one)
    assert prints(load(tmp_path / "two", made, answers_only=False)) != prints(one)


def test_copies_count_once_whatever_their_spelling(tmp_path, made):
    texts = some_texts(50)
    rows = [{"text": t} for t in texts + [f"  {t.upper()}\n" for t in texts]]
    data = load(write_lines(tmp_path / "a.jsonl", rows), made, length=256)
    parts = [
        {" ".join(t.lower().split()) for t in texts_of(part, made)}
        for part in (data.train, data.validation, data.test)
    ]
    assert set().union(*parts) == set(texts) and sum(map(len, parts)) == 50
    assert any("50 of 100 documents" in note and "copies" in note for note in data.notes)
    turn = {"messages": chat("why", "so")}
    other = {"messages": chat("why so", "so")}
    write_lines(tmp_path / "b.jsonl", [turn, turn, other, *rows[:50]])
    assert sum(p.documents for p in _parts(load(tmp_path / "b.jsonl", made))) == 52


def _parts(data):
    return data.train, data.validation, data.test


def test_a_test_path_keeps_its_documents_and_training_loses_them(tmp_path, made):
    texts = some_texts(60)
    path = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    test = write_lines(tmp_path / "t.jsonl", [{"text": t.upper()} for t in texts[:7]])
    data = load(path, made, test, length=256)
    assert texts_of(data.test, made) == {t.upper() for t in texts[:7]}
    kept = texts_of(data.train, made) | texts_of(data.validation, made)
    assert kept == set(texts[7:])
    assert any("7 of 60" in note and "also in" in note for note in data.notes)
    for name, part in (("train", texts[:40]), ("validation", texts[38:50]), ("test", texts[48:])):
        write_lines(tmp_path / "parts" / f"{name}.jsonl", [{"text": t} for t in part])
    data = load(tmp_path / "parts", made)
    assert [texts_of(p, made) for p in _parts(data)] == [
        set(texts[:38]), set(texts[38:48]), set(texts[48:])]  # fmt: skip


def test_large_sets_set_few_aside(tmp_path, made, monkeypatch):
    monkeypatch.setattr("tutelage.tasks.causal_lm.task._MOST_HELD_OUT", 5)
    path = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in some_texts(100)])
    assert [p.documents for p in _parts(load(path, made))] == [90, 5, 5]


def test_prompts_are_of_the_test_part_alone(tmp_path, made):
    rows = [{"messages": c} for c in some_chats(100)]
    data = load(write_lines(tmp_path / "a.jsonl", rows), made, length=128)
    held_out = texts_of(data.test, made)
    assert len(data.prompts) == 16
    for prompt in data.prompts:
        assert [m.role for m in prompt.messages] == ["user", "assistant", "user"]
        assert any(prompt.messages[-1].content in text for text in held_out)
    write_lines(tmp_path / "t.jsonl", [{"text": "good film " * 80 + str(i)} for i in range(3)])
    data = load(tmp_path / "a.jsonl", made, tmp_path / "t.jsonl", length=128)
    assert [p.text for p in data.prompts] == [data.prompts[0].text] * 3
    assert data.prompts[0].text == " ".join(["good film"] * 20)  # whole words of 200 characters


def test_long_documents_are_said_to_be_cut(tmp_path, made):
    rows = [{"text": t} for t in some_texts(20)] + [{"text": f"good film {i} " * 60}
                                                    for i in range(20)]  # fmt: skip
    notes = load(write_lines(tmp_path / "a.jsonl", rows), made).notes
    assert any("longer than 32 tokens" in n and "the 4 tokens before it" in n for n in notes)


def test_unclear_chats_are_said(tmp_path):
    rows = [{"messages": c} for c in some_chats(30)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    notes = load(path, tokenizer(FORGETFUL), length=64).notes
    assert any(n.startswith("in 30 of 30 chats it is unclear") for n in notes)
    assert not any("unclear" in n for n in load(path, tokenizer(), length=64).notes)


# --- refusals ----------------------------------------------------------------------------------


def test_bad_data_is_refused_in_one_line(tmp_path, made):
    chats = write_lines(tmp_path / "c.jsonl", [{"messages": c} for c in some_chats(20)])
    refused("has no chat template", load, chats, tokenizer(template=None))
    refused("names no end token", load, chats, tokenizer(end=None))
    angry = "{{ raise_exception('no system\nhere') }}"
    said = refused("refuses this conversation (no system here)", load, chats, tokenizer(angry))
    assert f"{chats}, line 1" in said
    few = write_lines(tmp_path / "few.jsonl", [{"text": "film"}, {"text": "plot"}])
    refused("has 2 different documents where 3 are needed", load, few, made)
    short = write_lines(tmp_path / "s.jsonl", [{"text": t} for t in some_texts(10)])
    refused("fewer than one sequence of 4096", load, short, made, length=4096)
    refused("is empty", load, write_lines(tmp_path / "e.jsonl", []), made)


def test_bad_options_are_refused(tmp_path, made):
    path = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in some_texts(20)])
    refused("above the 48 tokens", load, path, tokenizer(most=48), length=64)
    refused("above the 40 tokens", load, path, made, length=64, context_length=40)
    refused("data.length is 7", load, path, made, length=7)
    refused("validation is 1", load, path, made, validation=1.0)


def test_no_document_outlives_its_batch(tmp_path, made, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [{"text": t} for t in some_texts(1_500, most=5)])
    alive, read = [], causal_lm.documents

    def watched(files, findings):
        for number, document in enumerate(read(files, findings)):
            if number % 490 == 489:
                alive.append(sum(type(one) is Document for one in gc.get_objects()))
            yield document

    monkeypatch.setattr(causal_lm, "documents", watched)
    data = load(path, made)
    assert len(alive) == 3 and max(alive) <= 128 + 256 + 2 * 16
    held = data.train
    assert (held.ids.dtype, held.owner.dtype, held.learned.dtype) == (np.int32, np.int32, np.bool_)


def test_lines_are_json_as_others_write_it(tmp_path, made):
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": t, "id": 1}) for t in some_texts(30)))
    assert sum(p.documents for p in _parts(load(path, made))) == 30
