"""What pruning a text teacher's vocabulary cost: its decisions before and after, on validation.

Covers the texts of the validation split that read otherwise in the pruned vocabulary; all others
are the same to the teacher. It does not cover the student, which never saw the whole one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.pipeline.material import Material
from tutelage.pipeline.trimming import needed
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Measurement
from tutelage.tasks import wilson_interval
from tutelage.tasks.text.vocabulary import Changed, Texts
from tutelage.teach.teachers import Teacher
from tutelage.teach.torch_teacher import Reordered, TorchTeacher

_BATCH = 64


def pruning_loss(
    recipe: Recipe, material: Material, teacher: Teacher, said: Float[Tensor, "n k"],
    progress: Progress, *, trust_code: bool,
) -> tuple[Measurement, str] | None:  # fmt: skip
    """Measure how often the teacher decides as with its whole vocabulary, and say it in words.

    `said` are its decisions on validation. None where no vocabulary was pruned, or the teacher is
    no Hugging Face encoder, whose whole vocabulary is not known.
    """
    texts = material.data.validation
    if not isinstance(texts, Texts) or texts.changed is None:
        return None
    whole = _before(recipe, teacher, texts, texts.changed, trust_code)
    if whole is None:
        return None
    changed, n = texts.changed, len(texts)
    mine = said[torch.from_numpy(changed.index)].argmax(1)
    theirs = _decisions(whole, changed.whole, progress)
    turned = int((mine != theirs).sum())
    sizes = f"{len(changed.whole.vocabulary):,} to {len(texts.vocabulary):,} tokens"
    words = (
        f"pruning the vocabulary from {sizes} changed {len(changed.index):,} of {n:,} validation "
        f"texts and {turned:,} decisions{_right(texts, changed, mine.numpy(), theirs.numpy())}"
    )
    share = 1 - turned / n
    figure = Measurement(
        name="vocabulary_agreement", value=share, unit="1", kind="measured", n=n,
        spread=wilson_interval(share, n), where=f"teacher on validation, {sizes}",
    )  # fmt: skip
    return figure, words


def _right(texts: Texts, changed: Changed, mine: np.ndarray, theirs: np.ndarray) -> str:
    """Say how many of the changed decisions were right before, and are now."""
    turned = mine != theirs
    if texts.labels is None or not turned.any():
        return ""
    wanted = texts.labels[changed.index]
    before, now = (int((d == wanted)[turned].sum()) for d in (theirs, mine))
    return f" ({before:,} of them were right before, {now:,} are now)"


def _before(
    recipe: Recipe, teacher: Teacher, texts: Texts, changed: Changed, trust_code: bool
) -> Teacher | None:
    """Return the teacher as it reads the whole vocabulary."""
    if isinstance(teacher, Reordered):
        inner = _before(recipe, teacher.teacher, texts, changed, trust_code)
        return None if inner is None else Reordered(inner, teacher.order)
    if not isinstance(teacher, TorchTeacher):
        return None
    from tutelage.teach.hf_teacher import HfEncoder, with_whole_vocabulary

    if not isinstance(teacher.module, HfEncoder):
        return None
    module = with_whole_vocabulary(
        teacher.module, Path(str(recipe.teacher.source)), kept=texts.vocabulary.kept,
        pad=changed.whole.vocabulary.pad, trust_code=trust_code,
    )  # fmt: skip
    return TorchTeacher(
        module, classes=teacher.classes, image_shape=texts.shape, taps=(), bf16=teacher.bf16,
        device=teacher.device,
        example=torch.full((2, texts.length), changed.whole.vocabulary.pad),
    )  # fmt: skip


def _decisions(teacher: Teacher, texts: Texts, progress: Progress) -> Tensor:
    """Return the teacher's decisions, asked from the shortest text to the longest."""
    found, sizes = torch.zeros(len(texts), dtype=torch.int64), np.diff(texts.offsets)
    order = np.argsort(sizes, kind="stable")
    progress.start("Asking the unpruned teacher", len(texts))
    for first in range(0, len(texts), _BATCH):
        index = order[first : first + _BATCH]
        ids = torch.from_numpy(texts.padded(index)[:, : needed(int(sizes[index].max()))])
        said = teacher.read(ids, features=False, maps=False).decision
        found[torch.from_numpy(index)] = said.argmax(1).cpu()
        progress.advance(len(index))
    progress.finish()
    return found
