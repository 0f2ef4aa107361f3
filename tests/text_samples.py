"""Small texts, tokenizers and files of them, for the tests of texts."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import csv
import json
import random
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tutelage.errors import TutelageError
from tutelage.tasks import find_task
from tutelage.tasks.text.files import Findings, find_texts, rows

LETTERS = "abcdefghijklmnopqrstuvwxyz"


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


WORDS = ["good", "bad", "film", "plot", "actor", "the", "was", "very", "quite", "rather", "fine",
         "dull", "great", "poor", "scene", "music", "slow", "long", "short", "funny"]  # fmt: skip


RARE = ["zebra", "quartz", "yodel"]  # in the tokenizer, not in the training texts


def finished(tokenizer, folder, pad="[PAD]"):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.enable_truncation(7)  # what a model's own file says must not matter
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad, length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def wordpiece(folder, more=()):
    pieces = SPECIALS + list(LETTERS) + ["##" + x for x in LETTERS] + WORDS + RARE + list(more)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return finished(tokenizer, folder)


def bpe(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = ["<s>", "</s>", "<unk>", *alphabet], []
    for word in ["Ġ" + w for w in WORDS + RARE]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    pieces += ["<pad>"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<pad>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return finished(tokenizer, folder, "<pad>")


def unigram(folder):
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("</s>", 0.0), ("▁", -4.0)]
    pieces += [(x, -6.0) for x in LETTERS]
    pieces += [("▁" + w, -2.0 - i / 7) for i, w in enumerate(RARE + WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<unk>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return finished(tokenizer, folder, "<pad>")


KINDS = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


def some_texts(n=200, seed=0, words=WORDS):
    draw = random.Random(seed)
    return [" ".join(draw.choice(words) for _ in range(draw.randint(4, 20))) for _ in range(n)]


def some_labels(n=200):
    return [("no", "yes")[i % 2] for i in range(n)]


def write_csv(path, texts, labels, names=("text", "label"), **how):
    with path.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **how)
        writer.writerow(names)
        writer.writerows(zip(texts, labels, strict=True))
    return path


def write_jsonl(path, texts, labels):
    lines = (json.dumps({"text": t, "label": y}) for t, y in zip(texts, labels, strict=True))
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def write_parquet(path, texts, labels):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts, "label": labels}), path)
    return path


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


def read(path, **columns):
    found = Findings()
    return list(rows(find_texts(path, **columns).train, found)), found


def refused(text, call, *args, **kwargs):
    with pytest.raises(TutelageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and text in message, message
    return message


def inputs(examples, view=0, seed=0, index=None, erase=0.0):
    index = np.arange(len(examples)) if index is None else np.asarray(index)
    task = find_task("text")
    return task.batch(
        examples, index, view=view, seed=seed, normalisation=task.normalisation(examples),
        augment=task.augment(examples, SimpleNamespace(erase=erase)),
    ).inputs.numpy()  # fmt: skip
