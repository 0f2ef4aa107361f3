"""The cache of token signals: asked once, of known size, equal however it came about, checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from language_samples import LENGTH, VOCABULARY, Rows, Speech, rows
from safetensors.torch import load_file

from tutelage.errors import CorruptFileError, DiskError, RecipeError, TeacherError
from tutelage.losses.language import language_loss
from tutelage.progress import Silent
from tutelage.teach import token_signals
from tutelage.teach.token_signals import (
    Speaker,
    TokenSignals,
    default_kind,
    sequences,
    token_bytes,
)

COUNT = 10
TOKENS = rows(COUNT, silent=(4,))
KINDS = ("dense", "topk", "sampled")
HERE = Path("signals")
every_kind = pytest.mark.parametrize("kind", KINDS)


class Asked(Speaker):
    """Counts the sequences it is asked about, and may be stopped or say nonsense."""

    def __init__(self, *, stop_after=None, change=lambda parts: parts, **options):
        super().__init__(Speech(seed=1), **options)
        self.asked, self.stop_after, self.change = 0, stop_after, change

    def __call__(self, ids, learned):
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(ids)
        yield from self.change(super().__call__(ids, learned))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Shards of three sequences, asked two at a time, three tokens of logits at a time."""
    monkeypatch.setattr(token_signals, "_SHARD_SEQUENCES", 3)
    monkeypatch.setattr(token_signals, "_ASK_TOKENS", 2 * LENGTH)
    monkeypatch.setattr(token_signals, "_CHUNK_BYTES", 3 * 4 * VOCABULARY)


def fill(folder, ask=None, kind="topk", tokens=TOKENS, kept=4, progress=None, **options):
    ask = ask or Asked()
    progress = progress or Silent()
    return TokenSignals.fill(
        folder, "teacher", ask, tokens, kind=kind, kept=kept, progress=progress, **options
    )


def hashes(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*/*"))}


def said(index):
    """Ask the plain way: all logits of all positions."""
    ids, learned = sequences(TOKENS, index)
    network = Speech(seed=1).eval()
    with torch.no_grad():
        return (network.states(ids) @ network.head.T)[:, :-1][learned[:, 1:]]


@pytest.mark.parametrize("order", [[0], [9, 2, 2, 4, 7], list(range(COUNT))[::-1]])
def test_dense_is_what_the_teacher_says_at_learned_positions(tmp_path, order):
    index = torch.tensor(order)
    found = fill(tmp_path, kind="dense").read(index)
    want = said(index).log_softmax(1)
    assert found.ids is None and found.log_probs.dtype == torch.float16
    assert len(found) == int(sequences(TOKENS, index)[1].sum()) == len(want)
    torch.testing.assert_close(found.log_probs.float(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [[1], [8, 3, 3, 4, 0]])
def test_topk_is_the_likeliest_and_the_mass_of_all_others(tmp_path, order):
    index = torch.tensor(order)
    found = fill(tmp_path).read(index)
    want = said(index).softmax(1)
    top = want.topk(4, dim=1)
    assert torch.equal(found.ids.long(), top.indices) and found.ids.dtype == torch.int32
    torch.testing.assert_close(found.log_probs.float(), top.values.log(), rtol=1e-3, atol=1e-3)
    rest = (1 - top.values.sum(1)).log()
    torch.testing.assert_close(found.tail.float(), rest, rtol=2e-3, atol=2e-3)


def test_draws_follow_the_teacher_and_differ_by_position_and_seed(tmp_path):
    kept, index = 256, torch.arange(COUNT)
    found = fill(tmp_path, kind="sampled", kept=kept).read(index)
    shares = torch.nn.functional.one_hot(found.ids.long(), VOCABULARY).double().mean(1)
    assert found.drawn and (shares - said(index).softmax(1)).abs().max() < 2 / kept
    want = said(index).log_softmax(1).gather(1, found.ids.long())
    torch.testing.assert_close(found.log_probs.float(), want, rtol=1e-3, atol=1e-3)
    other = fill(tmp_path, kind="sampled", kept=kept, seed=1).read(index)
    assert not torch.equal(found.ids, other.ids)


def test_a_draw_is_a_pure_function_of_seed_sequence_and_position(tmp_path):
    """Sequence 7 is alone to learn, and only from two positions: it draws what it drew."""
    whole = fill(tmp_path, kind="sampled", kept=5)
    learned = np.zeros_like(TOKENS.learned)
    positions = np.flatnonzero(TOKENS.learned[7, 1:])[[0, -1]] + 1
    learned[7, positions] = True
    alone = fill(tmp_path, kind="sampled", kept=5, tokens=Rows(ids=TOKENS.ids, learned=learned))
    index = torch.tensor([7])
    assert torch.equal(alone.read(index).ids, whole.read(index).ids[[0, -1]])


@every_kind
@pytest.mark.parametrize("after", [0, 2, 3, 5, 9])
def test_a_stopped_fill_goes_on_to_the_same_bytes(tmp_path, kind, after):
    whole = fill(tmp_path / "whole", kind=kind)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "parts", Asked(stop_after=after), kind=kind)
    again = Asked()
    fill(tmp_path / "parts", again, kind=kind)
    assert again.asked == COUNT - after // 3 * 3
    want = hashes(tmp_path / "whole")
    assert len(want) == 5 and hashes(tmp_path / "parts") == want
    assert whole.block == 3


@every_kind
def test_a_second_fill_asks_nothing(tmp_path, kind):
    first, again = fill(tmp_path, kind=kind), Asked()
    second = fill(tmp_path, again, kind=kind)
    assert again.asked == 0 and second.key == first.key
    index = torch.arange(COUNT)
    assert torch.equal(first.read(index).log_probs, second.read(index).log_probs)


@every_kind
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 1 << 16, (1 << 16) + 1])
def test_bytes_are_known_before(tmp_path, kind, vocabulary):
    wide = 2 if vocabulary <= 1 << 16 else 4
    want = {"dense": 2 * vocabulary, "topk": 4 * (wide + 2) + 2, "sampled": 4 * (wide + 2)}[kind]
    assert token_bytes(kind, vocabulary, 4) == want


@every_kind
def test_bytes_told_are_those_written(tmp_path, kind):
    held = fill(tmp_path, kind=kind)
    stored = [t for p in held.folder.glob("*.safetensors") for t in load_file(p).values()]
    assert sum(t.nbytes for t in stored) == held.total_bytes
    assert held.total_bytes == int(TOKENS.learned[:, 1:].sum()) * held.bytes_per_token
    assert f"x {held.bytes_per_token} B = " in held.describe()


def test_ids_of_a_large_vocabulary_are_kept_whole(tmp_path):
    class Large:
        vocabulary = 70_000

        def __call__(self, ids, learned):
            logits = torch.zeros(int(learned.sum()), self.vocabulary)
            logits[:, 69_999] = 5.0
            yield logits

    found = fill(tmp_path, Large(), kept=1).read(torch.arange(COUNT))
    assert set(found.ids[:, 0].tolist()) == {69_999}


def test_shards_are_small_in_bytes_where_tokens_are_large(monkeypatch):
    monkeypatch.setattr(token_signals, "_SHARD_SEQUENCES", 256)
    small = TokenSignals(HERE, "t", TOKENS, vocabulary=49_152, kind="topk")
    assert small.block == 256
    dense = TokenSignals(HERE, "t", rows(3000), vocabulary=1_000_000, kind="dense")
    a_sequence = dense.total_bytes / 3000
    assert dense.block == 64_000_000 // int(a_sequence) and 2 < dense.block < 256


def test_the_kind_by_default_is_dense_only_where_all_of_it_is_small():
    assert default_kind(500, 1_000_000) == "dense"
    assert default_kind(500, 1_000_001) == "topk"
    assert default_kind(49_152, 100_000) == "topk"


def test_the_key_follows_all_that_changes_the_content():
    def key(name="t", tokens=TOKENS, vocabulary=VOCABULARY, **options):
        given = {"kind": "topk", "kept": 4, **options}
        return TokenSignals(HERE, name, tokens, vocabulary=vocabulary, **given).key

    other = {
        key(), key("u"), key(tokens=rows(COUNT)), key(kept=5), key(kind="dense"),
        key(kind="sampled"), key(kind="sampled", seed=1),
    }  # fmt: skip
    assert len(other) == 7
    assert key(seed=1) == key() and key(kind="dense", kept=9) == key(kind="dense")
    assert key(kept=99) == key(kept=VOCABULARY)


def test_a_disk_too_small_is_refused_before_the_teacher_is_asked(tmp_path, monkeypatch):
    usage = type(
        "Usage",
        (),
        {
            "free": 10
            * TokenSignals(
                tmp_path, "teacher", TOKENS, vocabulary=VOCABULARY, kind="topk", kept=4
            ).total_bytes
            // 10
        },
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    asked = Asked()
    with pytest.raises(DiskError, match="keep fewer outcomes of each token"):
        fill(tmp_path, asked)
    assert asked.asked == 0 and not list(tmp_path.iterdir())
    usage.free *= 2
    fill(tmp_path, asked)
    usage.free = 0
    fill(tmp_path, asked)  # nothing is missing: nothing is needed


@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "manifest"])
def test_an_altered_cache_is_refused(tmp_path, how):
    held, asked = fill(tmp_path), Asked()
    path = held.folder / ("manifest.json" if how == "manifest" else "tokens-3.safetensors")
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "manifest":
        path.write_text(json.dumps({"key": "other", "shards": {}}))
    else:
        path.write_bytes(whole[:-1] + (b"" if how == "cut" else bytes([whole[-1] ^ 1])))
    with pytest.raises(CorruptFileError, match="delete the folder") as caught:
        fill(tmp_path, asked)
    assert asked.asked == 0 and caught.value.exit_code == 5


@every_kind
def test_a_teacher_that_says_nan_is_refused_where_it_does(tmp_path, kind):
    def poison(parts):
        for part in parts:
            yield torch.where(part == part.max(), torch.nan, part)

    with pytest.raises(TeacherError, match="not finite in sequences 0 to 1"):
        fill(tmp_path, Asked(change=poison), kind=kind)


@pytest.mark.parametrize("change", [lambda parts: list(parts)[1:], lambda parts: 2 * list(parts)])
def test_a_teacher_that_answers_other_positions_is_refused(tmp_path, change):
    with pytest.raises(TeacherError, match=r"answered \d+ tokens of \d+ in sequences 0 to 1"):
        fill(tmp_path, Asked(change=change))


@pytest.mark.parametrize(("options", "says"), [({"kind": "all"}, "one of 'dense', 'topk'"),
                                               ({"kept": 0}, "keep 1 or more")])  # fmt: skip
def test_a_wrong_kind_or_number_is_refused(tmp_path, options, says):
    with pytest.raises(RecipeError, match=says):
        fill(tmp_path, **options)


def test_a_teacher_of_a_larger_vocabulary_speaks_of_the_students_alone(tmp_path):
    """Student token i is the teacher's token `kept[i]`; what is left of its answer sums to 1."""
    kept = torch.tensor([12, 3, 4, 5, 0, 7])
    ids = np.arange(COUNT * LENGTH).reshape(COUNT, LENGTH) % 6
    mine = Rows(ids=ids.astype(np.int32), learned=TOKENS.learned)
    found = fill(tmp_path, Asked(vocabulary=kept), kind="dense", tokens=mine)
    network = Speech(seed=1).eval()
    _, learned = sequences(mine, slice(None))
    logits = (network.states(kept[ids]) @ network.head.T)[:, :-1][learned[:, 1:]]
    p = logits.softmax(1)[:, kept]
    want = (p / p.sum(1, keepdim=True)).log().detach()
    assert found.vocabulary == 6
    got = found.read(torch.arange(COUNT)).log_probs.float()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("kind", "near"), [("dense", 1e-5), ("topk", 1e-5), ("sampled", 1e-3)])
def test_the_teacher_learns_next_to_nothing_from_its_own_cache(tmp_path, kind, near):
    network, index = Speech(seed=1).eval(), torch.arange(COUNT)
    held = fill(tmp_path, kind=kind)
    ids, learned = sequences(TOKENS, index)
    states = network.states(ids)[:, :-1][learned[:, 1:]].detach()
    targets = ids[:, 1:][learned[:, 1:]]
    head = network.head.detach()
    total, _ = language_loss(states, head, held.read(index), targets, losses={"forward_kl": 1.0})
    assert abs(float(total)) < near


@pytest.mark.parametrize("likeness", [1.0, 0.0])
def test_bfloat16_is_taken_where_what_is_said_stays_alike(monkeypatch, likeness):
    monkeypatch.setattr(token_signals, "native_bf16", lambda device: True)
    monkeypatch.setattr(token_signals, "ALIKE", likeness)
    plain, ask = Speaker(Speech(seed=1)), Speaker(Speech(seed=1))
    moved = ask.take_bf16(TOKENS)
    given = sequences(TOKENS, slice(0, 4))  # of TOKENS, number 4 alone is silent
    with torch.no_grad():
        said, wanted = (torch.cat(list(each(*given))) for each in (ask, plain))
    assert said.dtype == torch.float32
    assert ask.bf16 == (likeness > 0)
    if likeness:
        share = float((said.log_softmax(-1) - wanted.log_softmax(-1)).square().mean().sqrt())
        assert moved == pytest.approx(share / float(wanted.log_softmax(-1).std()), rel=1e-5)
        assert 0 < moved < 0.05
    else:
        assert moved is None
        assert torch.equal(said, wanted)


def test_texts_that_teach_nothing_say_nothing_of_bfloat16(monkeypatch):
    monkeypatch.setattr(token_signals, "native_bf16", lambda device: True)
    ask = Speaker(Speech(seed=1))
    assert ask.take_bf16(rows(2, silent=(0, 1))) is None
    assert not ask.bf16


def test_without_native_bfloat16_it_is_not_tried(monkeypatch):
    monkeypatch.setattr(token_signals, "native_bf16", lambda device: False)
    ask = Speaker(Speech(seed=1))
    assert ask.take_bf16(TOKENS) is None
    assert not ask.bf16


def test_progress_ends_at_its_total(tmp_path):
    class Bar(Silent):
        total = done = 0

        def start(self, label, total, done=0):
            self.total, self.done = total, done

        def advance(self, steps=1, note=""):
            self.done += steps

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Asked(stop_after=5))
    bar = Bar()
    fill(tmp_path, progress=bar)
    assert bar.done == bar.total == COUNT
