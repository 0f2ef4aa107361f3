"""The `vision` task: image classification. Checks and splits the data, and forms batches."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt64

from tutelage.errors import DataError
from tutelage.recipe import LossPart
from tutelage.tasks import TASKS
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.parts import Parts
from tutelage.tasks.splits import check_learnable, check_share, matched, overlap, parted, set_aside
from tutelage.tasks.unlabelled import NO_LABELS, joined, no_labels, strata
from tutelage.tasks.vision.augment import (
    Augment,
    Normalisation,
    default_augment,
)
from tutelage.tasks.vision.augment import (
    augment as augmented,
)
from tutelage.tasks.vision.base import make_images
from tutelage.tasks.vision.reading import Images, read_splits
from tutelage.types import Batch, Decides

_MOST_OVERLAP = 0.01
_SALT = {"test": 1, "validation": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionData:
    """Three splits with the same classes and shape. `notes` are findings to print and report."""

    train: Images
    validation: Images
    test: Images
    notes: tuple[str, ...] = ()


def load(
    train: str | Path | tuple[Any, Any],
    test: str | Path | None = None,
    *,
    unlabelled: str | Path | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
    format: str = "auto",
    train_labels: Path | None = None,
    test_labels: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    size: tuple[int, int] | None = None,
) -> VisionData:
    """Read, check and split images; paths as `read_splits` takes them, or (images, labels).

    A `test` path wins over a test part inside `train`; with neither, a fifth is taken out first.
    What `unlabelled` holds (its train part, if it has parts) is read without labels. Raises
    `DataError` for data that cannot be learned from, `RecipeError` for a bad share.
    """
    where: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    bare = label_column == NO_LABELS
    if isinstance(train, tuple):
        found = Parts(train=make_images(*train, source="the images given", size=size))
    else:
        found = read_splits(
            train, labels=train_labels, format=format, size=size, bare=bare, **where
        )
    if test is not None:
        other = read_splits(test, labels=test_labels, size=size, bare=bare, **where)
        found = found.with_test(other)
    more = None
    if unlabelled is not None:
        more = read_splits(unlabelled, size=size, bare=True, **where).train
    return arrange(
        found.train,
        test=found.test,
        validation=found.validation,
        unlabelled=more,
        validation_share=validation_share,
        seed=seed,
    )


def arrange(
    train: Images,
    *,
    test: Images | None = None,
    validation: Images | None = None,
    unlabelled: Images | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
) -> VisionData:
    """Check images in memory and take out the splits that are missing.

    The splits are stratified, and a pure function of the seed and of what each image shows: files
    may be renamed or reordered, and equal images fall on the same side. Then `unlabelled` images
    join the training split, but for copies of validation or test images.
    """
    check_share(validation_share)
    taken = 1 + (test is None) + (validation is None)
    check_learnable(
        train.labels, train.classes, count=len(train), least=max(2, taken), source=train.source,
        noun="images",
    )  # fmt: skip
    test = None if test is None else aligned(test, train)
    validation = None if validation is None else aligned(validation, train)
    notes = () if train.labels is not None else (no_labels(train.source),)
    train, validation, test, copies = parted(
        train, validation, test, share=validation_share, take_out=partial(take_out, seed=seed),
        compare=_overlap_notes,
    )  # fmt: skip
    notes += copies
    if unlabelled is not None:
        _check_shape(unlabelled, train)
        train, joining = joined(
            train, unlabelled, (validation, test), keys=content_keys, arrays=("pixels",),
            noun="images",
        )  # fmt: skip
        notes += joining
    return VisionData(train=train, validation=validation, test=test, notes=notes)


def aligned(images: Images, train: Images) -> Images:
    """Return `images` with the class numbers of `train`, matched by name; raises `DataError`."""
    _check_shape(images, train)
    known = None if train.labels is None else train.classes
    labels = matched(images.labels, images.classes, images.source, known, train.source)
    return replace(images, labels=labels, classes=train.classes)


def _check_shape(images: Images, train: Images) -> None:
    if images.shape != train.shape:
        raise DataError(
            f"images of {train.source} are {_by(train.shape)} and of {images.source} "
            f"{_by(images.shape)} (height x width x channels): make them alike, or write "
            "data.size: [H, W]"
        )


def take_out(
    images: Images, share: float, *, seed: int, split: Literal["test", "validation"]
) -> tuple[Images, Images]:
    """Return what stays and what is taken: `share` of each class, at least one, never all."""
    ranks = hash_keys(content_keys(images)[:, 0], seed, _SALT[split])
    taken = set_aside(ranks, strata(images.labels, len(images)), share)
    return images.take(np.flatnonzero(~taken)), images.take(np.flatnonzero(taken))


def content_keys(images: Images) -> UInt64[np.ndarray, "n 2"]:
    """Return a 128-bit hash of each image's pixels."""
    rows = np.ascontiguousarray(images.pixels).reshape(len(images), -1)
    digests = b"".join(blake2b(row.data, digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)


def _overlap_notes(images: Images, name: str, train: Images, other: str) -> tuple[str, ...]:
    known = set(map(tuple, content_keys(train).tolist()))
    shared = sum(tuple(key) in known for key in content_keys(images).tolist())
    return overlap(
        shared, len(images), most=_MOST_OVERLAP, name=name, source=images.source, other=other,
        other_source=train.source, noun="images",
    )  # fmt: skip


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


class VisionTask:
    """Image classification; see `tutelage.tasks.Task`."""

    name = "vision"
    families: tuple[str, ...] = ("convnet",)
    teachers: tuple[str, ...] = ("convnet",)
    losses: Mapping[str, float | LossPart] = MappingProxyType(
        {"dist": 1.0, "features": LossPart(weight=4.0, optional=True)}
    )
    batch_size: int = 128
    keys = frozenset(
        {"format", "labels", "test_labels", "image_column", "label_column", "size", "unlabelled"}
    )

    def load(self, train: Any, test: str | Path | None = None, **options: Any) -> VisionData:
        """Read, check and split the data; options as in `load`."""
        for key, argument in (("labels", "train_labels"), ("test_labels", "test_labels")):
            if options.get(key) is not None:
                options[argument] = Path(options.pop(key))
        return load(train, test, **options)

    def decides(self, data: VisionData) -> Decides:
        """Return `classes`: a label is one."""
        return "classes"

    def input_shape(self, examples: Images) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        height, width, channels = examples.shape
        return channels, height, width

    def knobs(self, examples: Images) -> dict[str, Any]:
        """Return the image's shape."""
        return {"image": self.input_shape(examples)}

    def normalisation(self, examples: Images) -> Normalisation:
        """Fit mean and standard deviation of each channel."""
        return Normalisation.fit(examples.pixels)

    def augment(self, examples: Images, wanted: Any) -> Augment:
        """Return the recipe's augmentation; a move by 7 % of the side where it names none."""
        height, width, _ = examples.shape
        shift = default_augment(height, width).shift if wanted.shift is None else wanted.shift
        return Augment(
            shift=shift, flip=wanted.flip, erase=wanted.erase, mixup=wanted.mixup or 0.0,
            scale=wanted.scale,
        )  # fmt: skip

    def show(self, examples: Images, index: int) -> str:
        """Return one image as a PNG data URI, at most 96 pixels a side."""
        from PIL import Image

        pixels = examples.pixels[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])
        image.thumbnail((96, 96))
        held = io.BytesIO()
        image.save(held, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()

    def tokens(self, examples: Images) -> None:
        """Return None: images have no tokens."""

    def decisions_an_hour(self, data: VisionData) -> None:
        """Return None: images do not stream."""

    def meta(self, data: VisionData, normalisation: Normalisation) -> dict[str, Any]:
        """Return how pixels become inputs."""
        return {
            "input": "image",
            "layout": "NCHW",
            "mean": tuple(round(x, 6) for x in normalisation.mean),
            "std": tuple(round(x, 6) for x in normalisation.std),
        }

    def beside(self, data: VisionData) -> dict[str, bytes]:
        """Return nothing: the file says all there is to say."""
        return {}

    def batch(
        self,
        examples: Images,
        index: Int[np.ndarray, " batch"],
        *,
        view: int = 0,
        seed: int = 0,
        augment: Augment,
        normalisation: Normalisation,
    ) -> Batch:
        """Form one batch, inputs `[batch, c, h, w]`; mixup draws its partners from `examples`.

        Labels stay those of the images themselves, of which mixup leaves at least half.
        """
        index = np.asarray(index, np.int64)
        inputs = augmented(
            examples.pixels[index],
            index,
            all_pixels=examples.pixels,
            seed=seed,
            view=view,
            config=augment,
            normalisation=normalisation,
        )
        labels = None if examples.labels is None else torch.from_numpy(examples.labels[index])
        return Batch(inputs=inputs, labels=labels, index=torch.from_numpy(index), view=view)


TASKS.add("vision", VisionTask())
