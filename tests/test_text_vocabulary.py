"""The pruned vocabulary says the same as the whole one."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json

import numpy as np
import pytest
from test_text_data import TASK, inputs, shipped
from text_samples import KINDS, RARE, WORDS, bpe, some_labels, some_texts, wordpiece, write_csv

from tutelage.tasks.text.task import load
from tutelage.tasks.text.vocabulary import cut, open_vocabulary, prune, shorten


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_tokenizer_says_the_same(tmp_path, kind):
    folder = KINDS[kind](tmp_path / "model")
    train = write_csv(tmp_path / "a.csv", some_texts(), some_labels())
    fresh = [f"{text} {RARE[i % 3]}" for i, text in enumerate(some_texts(60, seed=1))]
    test = write_csv(tmp_path / "b.csv", fresh, some_labels(60))
    pruned, whole = (load(train, test, tokenizer=folder, vocabulary=v) for v in ("pruned", "whole"))
    assert any("pruned from" in note for note in pruned.notes)
    few, all_ = len(pruned.train.vocabulary), len(whole.train.vocabulary)
    assert few < all_ and len(whole.train) == len(pruned.train)
    kept, pad = TASK.tokens(pruned.train)
    np.testing.assert_array_equal(kept[inputs(pruned.train)], inputs(whole.train))
    assert kept[pad] == whole.train.vocabulary.pad
    # Words that training lacks become known pieces, and say the same text, not unknown tokens.
    for i in range(3):
        text = TASK.show(pruned.test, i).strip()
        assert text.split()[-1] in RARE and text == TASK.show(whole.test, i).strip(), text
    rare = open_vocabulary(folder).tokenizer().token_to_id(("" , "Ġ", "▁")[list(KINDS).index(kind)]
                                                           + RARE[0])  # fmt: skip
    assert rare is not None and rare not in kept
    assert (inputs(whole.test) == rare).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", ["pruned", "whole"])
def test_the_shipped_tokenizer_gives_what_the_network_saw(tmp_path, kind, vocabulary):
    folder = KINDS[kind](tmp_path / "model")
    texts = [*some_texts(80), " ".join(WORDS * 9), "the é 漢 zebra [MASK] film"]
    path = write_csv(tmp_path / "a.csv", texts, some_labels(82))
    data = load(path, tokenizer=folder, vocabulary=vocabulary)
    wanted = sorted(encoding.ids for encoding in shipped(data).encode_batch(texts))
    splits = [inputs(part) for part in (data.train, data.validation, data.test)]
    assert sorted(np.concatenate(splits).tolist()) == wanted
    assert splits[0].dtype == np.int64 and splits[0].shape[1] == TASK.input_shape(data.train)[0]


def test_a_pruned_bpe_keeps_the_way_to_its_tokens(tmp_path):
    whole = open_vocabulary(bpe(tmp_path / "model"))
    tokenizer = whole.tokenizer()
    used = np.zeros(len(whole), np.bool_)
    used[tokenizer.token_to_id("Ġgood")] = True
    pruned = prune(whole, used)
    pieces = pruned.tokenizer().get_vocab()
    assert {"Ġgood", "Ġgoo", "Ġgo", "Ġg"} <= pieces.keys() and "Ġbad" not in pieces
    assert pruned.tokenizer().encode("good").tokens == ["<s>", "Ġgood", "</s>"]
    assert sorted(pieces.values()) == list(range(len(pruned)))
    assert [tokenizer.id_to_token(int(i)) for i in pruned.kept] == sorted(
        pieces, key=lambda piece: pieces[piece]
    )


def test_merges_are_not_left_out_by_chance(tmp_path):
    folder = bpe(tmp_path / "model")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert open_vocabulary(folder).tokenizer().encode("good").tokens == ["<s>", "Ġgood", "</s>"]


def test_more_tokens_than_16_bits_hold(tmp_path):
    folder = wordpiece(tmp_path / "big", more=[f"w{i}" for i in range(70_000)] + ["last"])
    texts = [text + " last" for text in some_texts()]
    path = write_csv(tmp_path / "x.csv", texts, some_labels())
    whole = load(path, tokenizer=folder, vocabulary="whole")
    assert whole.train.ids.dtype == np.int32 and whole.train.ids.max() > 70_000
    pruned = load(path, tokenizer=folder)
    assert pruned.train.ids.dtype == np.uint16
    kept, _ = TASK.tokens(pruned.train)
    np.testing.assert_array_equal(kept[inputs(pruned.train)], inputs(whole.train))


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_shortening_all_is_cutting_each(tail):
    sizes = [0, 3, 9, 5, 6, 1]
    flat, offsets = np.arange(24), np.concatenate([[0], np.cumsum(sizes)])
    ids, ends = shorten(flat, offsets, 5, tail)
    for i in range(6):
        wanted = cut(flat[offsets[i] : offsets[i + 1]], 5, tail)
        np.testing.assert_array_equal(ids[ends[i] : ends[i + 1]], wanted)
