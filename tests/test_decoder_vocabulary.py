"""A language model's tokenizer, pruned: texts of kept tokens stay as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoders import decoder, said
from text_samples import KINDS, RARE, WORDS, refused, some_texts

from tutelage.students.decoders.network import save_folder
from tutelage.students.decoders.sizes import with_sizes
from tutelage.students.decoders.slicing import slice_decoder
from tutelage.tasks.causal_lm.vocabulary import changed_texts, prune_tokenizer

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

SPECIALS = ["<|text|>", "<|start|>", "<|end|>"]
CHAT = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"


def fast(tokenizer, **options):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


@pytest.fixture(scope="module")
def whole():
    """Byte-level BPE as chats have it, trained on the spot; no padding token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*some_texts(300), *some_texts(40, words=RARE), "naïve café 漢字 " * 5],
        trainers.BpeTrainer(
            vocab_size=460, show_progress=False, special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    made = fast(tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>")
    made.chat_template, made.model_max_length = CHAT, 77
    return made


def ids_of(tokenizer, texts):
    return np.concatenate([np.array(x) for x in tokenizer(texts).input_ids])


def test_texts_of_kept_tokens_are_the_same_tokens(whole):
    texts = some_texts(200)
    pruned = prune_tokenizer(whole, ids_of(whole, texts))
    assert 256 + 3 < len(pruned) < len(whole)
    assert changed_texts(whole, pruned, texts) == []
    for text in texts[:20]:
        assert pruned.kept[pruned.tokenizer(text).input_ids].tolist() == whole(text).input_ids
    names = pruned.tokenizer.convert_ids_to_tokens(range(len(pruned)))
    assert names == whole.convert_ids_to_tokens(pruned.kept.tolist())
    assert (np.diff(pruned.kept) > 0).all() and len(pruned.tokenizer) == len(pruned)


def test_other_texts_become_smaller_pieces_and_stay_themselves(whole):
    pruned = prune_tokenizer(whole, ids_of(whole, some_texts(200)))
    texts = ["zebra", "a zebra 漢字 \x00\n\t", "good film", "<|start|>good<|end|>", "😀 naïve"]
    assert changed_texts(whole, pruned, texts) == [0, 1, 4]
    assert changed_texts(whole, pruned, []) == []
    for text in texts:
        ids = pruned.tokenizer(text).input_ids
        assert pruned.tokenizer.decode(ids) == text and whole.decode(pruned.kept[ids]) == text
        assert len(ids) >= len(whole(text).input_ids)


def test_special_tokens_and_the_chat_template_stay(whole):
    pruned = prune_tokenizer(whole, np.array([300])).tokenizer
    names = ("bos_token", "eos_token", "pad_token", "model_max_length", "padding_side")
    assert [getattr(pruned, x) for x in names] == [getattr(whole, x) for x in names]
    chat = [{"role": "user", "content": "good film"}]
    assert pruned.apply_chat_template(chat, tokenize=False) == whole.apply_chat_template(
        chat, tokenize=False
    )
    assert pruned.all_special_ids == [1, 2] and {"<|text|>"} <= pruned.get_vocab().keys()


def test_the_rarest_tokens_go_where_there_are_too_many(whole):
    ids = ids_of(whole, [*some_texts(200), "zebra"])
    every = prune_tokenizer(whole, ids)
    few = prune_tokenizer(whole, ids, most=len(every) - 20)
    assert len(every) - 25 < len(few) <= len(every) - 20
    assert set(few.kept) < set(every.kept)
    counts = np.bincount(ids)
    often = np.argsort(-counts, kind="stable")[:15].tolist()
    assert set(often) <= set(few.kept.tolist())
    gone = sorted(set(every.kept.tolist()) - set(few.kept.tolist()))
    assert max(counts[gone]) < min(counts[often])
    assert len(prune_tokenizer(whole, ids, most=len(every))) == len(every)
    assert len(prune_tokenizer(whole, ids, most=259)) == 259
    refused("of 258 tokens is too small: 259 stay", prune_tokenizer, whole, ids, most=258)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_says_the_same(kind, tmp_path):
    file = KINDS[kind](tmp_path / "model") / "tokenizer.json"
    pads = "[PAD]" if kind == "wordpiece" else "<pad>"
    whole = fast(Tokenizer.from_file(str(file)), pad_token=pads)
    texts = some_texts(100)
    pruned = prune_tokenizer(whole, ids_of(whole, texts))
    assert len(pruned) < len(whole) and changed_texts(whole, pruned, texts) == []
    assert len(pruned.tokenizer(" ".join(WORDS)).input_ids) > 9  # nothing is cut off or filled up


def test_network_and_tokenizer_are_pruned_together(whole, tmp_path):
    network = decoder("llama", vocab_size=len(whole) + 3, pad_token_id=2)  # three rows unused
    texts = some_texts(50)
    pruned = prune_tokenizer(whole, ids_of(whole, texts))
    kept = torch.from_numpy(pruned.kept)
    wanted = with_sizes(network.spec, vocabulary=len(pruned))
    small = slice_decoder(network, wanted, kept[None, :20], vocabulary=kept)
    save_folder(small, tmp_path, pruned.tokenizer)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (texts[0], "zebra 漢"):
        ids = torch.tensor([tokenizer(text).input_ids])
        torch.testing.assert_close(said(read, ids).logits, said(network, kept[ids])[..., kept])
        assert tokenizer.decode(ids[0]) == text
    assert read.config.eos_token_id == tokenizer.eos_token_id == read.generation_config.eos_token_id


def test_what_cannot_be_pruned_is_refused(whole):
    refused("hold token 999 and the tokenizer knows", prune_tokenizer, whole, np.array([999]))
    refused("is not one of the library tokenizers", prune_tokenizer, object(), np.array([1]))
