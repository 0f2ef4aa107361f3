"""Tokenizers that differ: spans of equal text, their loss, and a lesson with such a teacher."""

# pyright: reportArgumentType=false

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from tutelage.errors import DataError, RecipeError, TeacherError
from tutelage.losses.language_spans import Voice, spans_loss, uld
from tutelage.losses.language_terms import language_terms
from tutelage.tasks.causal_lm.spans import aligned, bytes_of_tokens, readable

pytest.importorskip("transformers")

import chat_samples
import gguf_samples
from decoders import decoder
from text_samples import some_texts
from tokenizers import Tokenizer, decoders, models

from tutelage.export.gguf import write_gguf
from tutelage.students.decoders.network import save_folder
from tutelage.tasks.causal_lm.task import load_language
from tutelage.teach.gguf_file import open_gguf
from tutelage.teach.token_signals import sequences
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.schedule import Schedule
from tutelage.train.spans import SpanTeacher

TEXTS = ["the film was good", "naïve café — 你好 😊!", "a\n\n b\t1234", " led by a space"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One whose tokens are bytes, and one of pieces with bytes for what is not known."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = (gguf_samples.byte_level, gguf_samples.fallback)
    return [gguf_samples.load(make(folder / make.__name__)) for make in made]


def pieces(tokenizer, text):
    known = bytes_of_tokens(tokenizer)
    return [known[i] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_told_as_bytes(tokenizers, text):
    bytewise, fallback = (b"".join(pieces(each, text)) for each in tokenizers)
    assert bytewise == text.encode() and fallback == b" " + text.encode()
    assert all(bytes_of_tokens(each)[each.eos_token_id] is None for each in tokenizers)


@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_the_shortest_of_equal_text(tokenizers, text):
    one, other = (pieces(each, text) for each in tokenizers)
    spans = aligned(one, other).tolist()
    assert 0 < len(spans) < max(len(one), len(other))
    other[0] = other[0][1:]  # the space that is put before a text
    for a, b, c, d in spans:
        assert b"".join(one[a:b]) == b"".join(other[c:d])
        inner = [{len(b"".join(x[i:k])) for k in range(i, j)} for x, i, j in
                 ((one, a, b), (other, c, d))]  # fmt: skip
        assert inner[0] & inner[1] == {0}
    stops = [0, *(b for _, b, _, _ in spans)], [0, *(d for _, _, _, d in spans)]
    assert [a for a, *_ in spans] == stops[0][:-1] and stops[0][-1] == len(one)
    assert [c for _, _, c, _ in spans] == stops[1][:-1] and stops[1][-1] == len(other)


def test_spans_by_hand():
    smile = "😊".encode()
    one, other = [b"he", b"llo", smile[:1], smile[1:], b"!"], [b"hel", b"lo", smile, b"!"]
    assert aligned(one, other).tolist() == [[0, 2, 0, 2], [2, 4, 2, 3], [4, 5, 3, 4]]
    assert aligned([b"a"], [b"b"]).tolist() == []
    assert readable([smile[2:], b"a", b"b", smile[:2]]) == (1, 3, "ab")
    assert readable([b"\xff"]) is None


def test_a_tokenizer_that_loses_text_is_refused():
    made = gguf_samples.transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    )
    with pytest.raises(DataError, match="cannot be told as bytes"):
        bytes_of_tokens(made)


def test_ids_need_not_follow_one_another():
    made = Tokenizer(models.BPE({"a": 0, "b": 4}, []))
    made.decoder = decoders.ByteLevel()
    known = gguf_samples.transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    assert bytes_of_tokens(known) == [b"a", None, None, None, b"b"]


def voice(seed, lengths, vocabulary, cap=None):
    draw = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    states, head = (
        torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (count, vocabulary)
    )
    targets = torch.randint(0, vocabulary, (count,), generator=draw)
    return Voice(states=states, head=head, targets=targets, lengths=torch.tensor(lengths), cap=cap)


def plain(student, teacher):
    """The loss written out, span by span."""
    total, at = torch.zeros((), dtype=torch.float64), [0, 0]
    for span in range(len(student.lengths)):
        sorted_ = []
        for side, each in enumerate((student, teacher)):
            product = torch.ones((), dtype=torch.float64)
            for _ in range(int(each.lengths[span])):
                logits = each.states[at[side]] @ each.head.T
                p = (logits if each.cap is None else each.cap * (logits / each.cap).tanh()).softmax(
                    0
                )
                whole, product = product * p, product * p[each.targets[at[side]]]
                at[side] += 1
            sorted_.append(whole.sort(descending=True).values)
        few, most = sorted(map(len, sorted_))
        total = total + sum(abs(q - p) for q, p in zip(*(x[:few] for x in sorted_), strict=True))
        total = total + max(sorted_, key=len)[few:most].sum()
    return total


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_loss_and_its_gradient_are_those_of_the_plain_one(chunk, cap):
    student, teacher = voice(0, [1, 3, 1, 2], 7, cap), voice(1, [2, 1, 1, 2], 9)
    found = []
    for value in (lambda s, t: spans_loss(s, t, chunk), plain):
        for tensor in (student.states, student.head):
            tensor.requires_grad_().grad = None
        loss = value(student, teacher)
        (2 * loss).backward()
        found.append((loss.detach(), student.states.grad, student.head.grad))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))
    assert teacher.states.grad is None and teacher.head.grad is None


def test_the_loss_by_hand():
    q, p = torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    assert uld(q, p).item() == pytest.approx(0.2 + 0.1 + 0.0 + 0.1)
    assert uld(q, q.roll(1, 1)).item() == 0.0


def data(folder, tokenizer, texts):
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_language(folder / "texts.jsonl", tokenizer=tokenizer, length=32, validation=0.2)


def lesson(found, student, teacher, **more):
    """Teach by what the teacher says alone."""
    return LanguageLesson(
        student, found.train, found.validation, losses={"token_cross_entropy": 0.0}, batch=2,
        micro_batch=1, seed=0, spans=teacher, **more,
    )  # fmt: skip


def test_equal_models_with_equal_tokenizers_have_nothing_to_learn(tokenizers, tmp_path):
    tokenizer, network = tokenizers[0], decoder(vocab_size=gguf_samples.ROWS)
    found = data(tmp_path, tokenizer, some_texts(8) + TEXTS)
    teacher = SpanTeacher(network, tokenizer, tokenizer)
    made = lesson(found, network, teacher)
    parts = [made.loss(batch)[1]["uld"] for batch in made.batches(0, 0)]
    assert max(parts).item() < 1e-5 and not teacher.left_out
    other = SpanTeacher(decoder(seed=1, vocab_size=gguf_samples.ROWS), tokenizer, tokenizer)
    assert lesson(found, network, other).loss(next(made.batches(0, 0)))[1]["uld"] > 0.01


def test_a_student_in_bfloat16_is_compared_in_float32(tokenizers, tmp_path):
    tokenizer = tokenizers[0]
    teacher, student = (decoder(seed=n, vocab_size=gguf_samples.ROWS) for n in range(2))
    found = data(tmp_path, tokenizer, some_texts(8))
    values = []
    for network in (student, copy.deepcopy(student).bfloat16()):
        made = lesson(found, network, SpanTeacher(teacher, tokenizer, tokenizer))
        values.append(made.loss(next(made.batches(0, 0)))[1]["uld"].item())
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_the_key_names_all_that_the_teacher_says(tokenizers):
    tokenizer, changes = tokenizers[0], [{}, {"final_logit_softcapping": 20.0}]
    networks = [decoder("gemma2", vocab_size=gguf_samples.ROWS, **change) for change in changes]
    assert len({SpanTeacher(each, tokenizer, tokenizer).key for each in networks}) == 2
    ended = copy.deepcopy(tokenizer)
    ended.eos_token = next(t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token)
    asked = [SpanTeacher(networks[0], each, tokenizer) for each in (tokenizer, ended)]
    assert asked[0].key != asked[1].key


def test_rows_without_text_teach_nothing(tokenizers):
    tokenizer, network = tokenizers[0], decoder(vocab_size=gguf_samples.ROWS)
    teacher, end = SpanTeacher(network, tokenizer, tokenizer), tokenizer.eos_token_id
    for inner in (end, teacher.mine.index(b"\xff")):  # no text, and bytes that are none
        ids = torch.tensor([[end, inner, inner, end]])
        states = network.states(ids[:, :-1])
        value = teacher.value(network, states, ids, torch.ones(1, 3, dtype=torch.bool))
        value.backward()
        assert value.item() == 0.0


def test_what_both_say_of_spans_sums_up_to_what_they_say_of_tokens(tokenizers, tmp_path):
    tokenizer = tokenizers[0]
    found = data(tmp_path, tokenizer, some_texts(8) + TEXTS)
    student, network = (decoder(seed=s, vocab_size=gguf_samples.ROWS) for s in (0, 1))
    teacher = SpanTeacher(network, tokenizer, tokenizer)
    ids, learned = sequences(found.test, slice(None))
    told = teacher.told(student, ids, learned[:, 1:])
    text = learned & torch.tensor([[teacher.mine[i] is not None for i in row] for row in ids])
    for each, said in ((student, told.student), (network, told.teacher)):
        p = each(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        assert said.sum().item() == pytest.approx(p[text[:, 1:]].sum().item(), rel=1e-5)
    shared = teacher.survey(found.test)
    assert shared.span_bytes == shared.learned_bytes == told.sizes.sum()
    assert "100.0%" in shared.describe()
    teacher._most = 8
    with pytest.raises(TeacherError, match=r"lower data\.length"):
        teacher.survey(found.test)


def test_a_teacher_reads_a_chat_in_its_own_special_tokens(tokenizers):
    theirs, words = chat_samples.tokenizer(), chat_samples.chat("good film", "the plot was dull")
    said = theirs(theirs.apply_chat_template(words, tokenize=False))["input_ids"]
    for own in tokenizers:  # to one of them, the marks of a turn are text
        chat = theirs.apply_chat_template(words, tokenize=False)
        ids = np.array([own(chat, add_special_tokens=False)["input_ids"]])
        teacher = SpanTeacher(decoder(vocab_size=len(theirs)), theirs, own)
        (read,), here, _, sizes = teacher._aligned(ids, np.ones((1, ids.size - 1), bool))
        assert read == said and not teacher.left_out
        assert len(sizes) == len(here[2]) > 5 and sum(sizes) < len(chat)


def test_a_student_learns_how_sure_a_teacher_with_another_tokenizer_is(tokenizers, tmp_path):
    own, theirs = tokenizers[0], chat_samples.tokenizer()
    found = data(tmp_path, own, some_texts(16) + TEXTS)
    network = decoder(seed=1, vocab_size=len(theirs), hidden_size=48, head_dim=6)
    with torch.no_grad():
        network.body.norm.weight.mul_(3)
    teacher = SpanTeacher(network, theirs, own)
    made = lesson(found, decoder(vocab_size=len(own)), teacher, recompute=True)
    schedule = Schedule(epochs=4, rate=0.01, precision="float32", ema=0.0)
    history = Trainer(made, schedule).train()
    said = [part["uld"] for part in history.parts]
    assert said[-1] < 0.9 * said[0] and not teacher.left_out
    save_folder(made.student, tmp_path / "taught", own)
    state = {name.removeprefix("network."): x for name, x in made.student.state_dict().items()}
    path = tmp_path / "taught.gguf"
    write_gguf(path, made.student.spec.config, state, tmp_path / "taught", quantization="f16")
    assert open_gguf(path)[1](TEXTS)["input_ids"] == own(TEXTS)["input_ids"]


def test_losses_that_compare_the_same_tokens_are_refused(tokenizers, tmp_path):
    tokenizer, network = tokenizers[0], decoder(vocab_size=gguf_samples.ROWS)
    found = data(tmp_path, tokenizer, some_texts(8))
    teacher = SpanTeacher(network, tokenizer, tokenizer)
    with pytest.raises(RecipeError, match="only 'uld' compares them"):
        LanguageLesson(
            network, found.train, found.validation, losses={"forward_kl": 1.0}, batch=4, seed=0,
            spans=teacher,
        )  # fmt: skip
    with pytest.raises(RecipeError, match=r"from Python give spans=SpanTeacher"):
        language_terms({"uld": 1.0}, {}, 1.0)
