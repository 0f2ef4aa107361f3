"""Batches of texts without pads that no text of the batch needs.

Covers networks that read any number of tokens and make nothing of pads: Hugging Face encoders and
the text families. It does not cover what is stored token by token, which has one length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from tutelage.tasks.text.vocabulary import Texts
from tutelage.teach.signals import Split
from tutelage.types import Batch

_STEP = 16  # lengths are multiples, so that few shapes come up


def trimmed(split: Split, examples: object) -> Split:
    """Return the split of texts with batches that end at their longest, drawn by like length.

    Other examples' split is returned as it is.
    """
    if not isinstance(examples, Texts):
        return split

    def batch(index: Tensor, view: int) -> Batch:
        made = split.batch(index, view)
        return made if made.keep is None else trim(made, made.keep)

    return replace(split, batch=batch, sizes=np.diff(examples.offsets))


def trim(batch: Batch, keep: Tensor) -> Batch:
    """Return a batch cut behind the last token that counts, to a multiple of 16."""
    length = needed(int(keep.any(dim=0).nonzero().max()) + 1) if bool(keep.any()) else _STEP
    return replace(batch, inputs=batch.tensor[:, :length], keep=keep[:, :length])


def needed(tokens: int) -> int:
    """Return the multiple of 16 that so many tokens fit in."""
    return -(-tokens // _STEP) * _STEP
