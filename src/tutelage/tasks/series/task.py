"""The `series` task: classes or values of series. Checks and splits the data, forms batches."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int

from tutelage.errors import DataError, RecipeError
from tutelage.recipe import LossPart
from tutelage.tasks import TASKS
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.parts import Parts
from tutelage.tasks.series.augment import (
    SeriesAugment,
    SeriesNormalisation,
    augment_series,
    fitted,
)
from tutelage.tasks.series.base import Series, SeriesOptions, content_keys, make_series
from tutelage.tasks.series.files import read_series
from tutelage.tasks.series.plot import plot
from tutelage.tasks.splits import check_learnable, check_share, matched, overlap, parted, set_aside
from tutelage.tasks.unlabelled import NO_LABELS, joined, no_labels, strata
from tutelage.tasks.values import check_varied
from tutelage.tasks.values import strata as like_values
from tutelage.types import Batch, Decides

_MANY_NUMBERS = 10  # so many classes that are numbers may be values
_MOST_OVERLAP = 0.05  # short series of coarse numbers may coincide by chance
_SALT = {"test": 1, "validation": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesData:
    """Three splits with the same classes and shape. `notes` are findings to print and report.

    `hop` is how many steps lie between two windows of a stream, `rate` how many steps a second has.
    """

    train: Series
    validation: Series
    test: Series
    notes: tuple[str, ...] = ()
    hop: int
    rate: float | None = None


def load(
    train: str | Path | tuple[Any, Any],
    test: str | Path | None = None,
    *,
    unlabelled: str | Path | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
    format: str = "auto",
    label_column: str | None = None,
    series_column: str | None = None,
    time_column: str | None = None,
    length: int | None = None,
    hop: int | None = None,
    rate: float | None = None,
    target: Literal["auto", "classes", "values"] = "auto",
) -> SeriesData:
    """Read, check and split series; paths as `read_series` takes them, or (series, labels).

    A `test` path wins over a test part inside `train`; with neither, a fifth is taken out first.
    What `unlabelled` holds (its train part, if it has parts) is read without labels. Raises
    `DataError` for data that cannot be learned from, `RecipeError` for a bad option.
    """
    options = SeriesOptions(
        label_column=label_column, series_column=series_column, time_column=time_column,
        bare=label_column == NO_LABELS, target=target,
    )  # fmt: skip
    if isinstance(train, tuple):
        decides: Decides = "values" if target == "values" else "classes"
        found = Parts(train=make_series(*train, decides=decides, source="the series given"))
    else:
        found = read_series(train, format=format, options=options)
    more = None
    if unlabelled is not None:
        more = read_series(unlabelled, options=replace(options, bare=True)).train
    if test is not None:
        options = replace(options, target=found.train.decides)
        alike = isinstance(train, tuple) or Path(test).suffix == Path(train).suffix
        other = read_series(test, format=format if alike else "auto", options=options)
        found = found.with_test(other)
    return arrange(
        found.train,
        test=found.test,
        validation=found.validation,
        unlabelled=more,
        validation_share=validation_share,
        seed=seed,
        length=length,
        hop=hop,
        rate=rate,
    )


def arrange(
    train: Series,
    *,
    test: Series | None = None,
    validation: Series | None = None,
    unlabelled: Series | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
    length: int | None = None,
    hop: int | None = None,
    rate: float | None = None,
) -> SeriesData:
    """Check series in memory, bring them to one length and take out the splits that are missing.

    The length is `length`, in steps, or that of the longest in `train`. The splits are stratified
    (by class, or by groups of like values), and a pure function of the seed and of the values:
    series may be reordered, and equal ones fall on the same side. Then `unlabelled` series join the
    training split, but for copies of validation or test series.
    """
    _check_options(validation_share, length, hop)
    steps = int(train.lengths.max()) if length is None else length
    if steps < 2:
        raise DataError(f"{train.source}: no series has more than one step: give longer ones")
    whole = {
        "training": train, "test": test, "validation": validation, "unlabelled": unlabelled
    }  # fmt: skip
    notes = _shape_notes(train, length)
    if train.labels is None:
        notes += (no_labels(train.source),)
    for name, part in whole.items():
        if part is not None:
            notes += _length_notes(part, name, steps, "data.length" if length else train.source)
            _check_channels(part, train)
            own = part is train or part is unlabelled  # their labels are not to be matched
            whole[name] = fitted(part if own else aligned(part, train), steps)
    train, test, validation = fitted(train, steps), whole["test"], whole["validation"]
    unlabelled = whole["unlabelled"]
    taken = 1 + (test is None) + (validation is None)
    _check_values(training=train)
    if train.decides == "classes":
        check_learnable(
            train.labels, train.classes, count=len(train), least=max(2, taken),
            source=train.source, noun="series", advice=_if_values(train),
        )  # fmt: skip
    train, validation, test, copies = parted(
        train, validation, test, share=validation_share, take_out=partial(take_out, seed=seed),
        compare=_overlap_notes,
    )  # fmt: skip
    notes += copies
    if unlabelled is not None:
        _check_classes(train)
        train, joining = joined(
            train, unlabelled, (validation, test), keys=content_keys,
            arrays=("values", "lengths"), noun="series",
        )  # fmt: skip
        notes += joining
    _check_values(training=train, validation=validation, test=test)
    return SeriesData(
        train=train, validation=validation, test=test, notes=notes, hop=hop or steps, rate=rate
    )  # fmt: skip


def _check_values(**parts: Series) -> None:
    """Raise `DataError` for a split of values that are all alike."""
    for name, part in parts.items():
        if part.labels is not None and part.decides == "values":
            check_varied(part.labels, part.source, name)


def _check_options(validation_share: float, length: int | None, hop: int | None) -> None:
    check_share(validation_share)
    if length is not None and length < 2:
        raise RecipeError(f"data.length is {length}: a series needs at least 2 steps")
    if hop is not None and hop < 1:
        raise RecipeError(f"data.hop is {hop}: it must be a whole number of steps from 1 on")


def _shape_notes(series: Series, length: int | None) -> tuple[str, ...]:
    channels, steps = series.shape
    low, high = np.nanmin(series.values, axis=(0, 2)), np.nanmax(series.values, axis=(0, 2))
    still = tuple(
        f"channel {i} of {channels} has the same value in all training series of {series.source}: "
        "it tells nothing, and may be left out"
        for i in np.flatnonzero(low == high)
    )
    if channels <= steps or length is not None:
        return still
    return (
        *still,
        f"series of {series.source} have {channels} channels of {steps} steps: if that is the "
        "wrong way round, save them as [n, channels, steps]",
    )


def _length_notes(series: Series, name: str, steps: int, by: str) -> tuple[str, ...]:
    cut = int((series.lengths > steps).sum())
    if not cut:
        return ()
    return (
        f"{cut} of {len(series)} {name} series of {series.source} are cut to the {steps} steps of "
        f"{by}",
    )


def _if_values(series: Series) -> str:
    """Advise for class names that are many numbers."""
    numbers = all(name.lstrip("+-").replace(".", "", 1).isdecimal() for name in series.classes)
    if len(series.classes) < _MANY_NUMBERS or not numbers:
        return ""
    return "; if the labels are values to predict, write data.target: values"


def aligned(series: Series, train: Series) -> Series:
    """Return `series` with the class numbers of `train`, matched by name; raises `DataError`."""
    if series.labels is not None and train.labels is not None and series.decides != train.decides:
        raise DataError(
            f"{train.source} has {train.decides} as labels and {series.source} {series.decides}: "
            "give both the same (data.target)"
        )
    if train.decides == "values":
        return series
    known = None if train.labels is None else train.classes
    labels = matched(series.labels, series.classes, series.source, known, train.source)
    return replace(series, labels=labels, classes=train.classes)


def _check_channels(series: Series, train: Series) -> None:
    if series.shape[0] != train.shape[0]:
        raise DataError(
            f"series of {train.source} have {train.shape[0]} channels and of {series.source} "
            f"{series.shape[0]}: give both the same channels"
        )


def _check_classes(train: Series) -> None:
    if train.decides == "values":
        raise DataError(
            f"data.unlabelled goes with classes, and the labels of {train.source} are values: "
            "remove the key"
        )


def take_out(
    series: Series, share: float, *, seed: int, split: Literal["test", "validation"]
) -> tuple[Series, Series]:
    """Return what stays and what is taken: `share` of each class, at least one, never all.

    Values are taken alike from groups of like values; equal series stay together.
    """
    ranks = hash_keys(content_keys(series)[:, 0], seed, _SALT[split])
    if series.labels is not None and series.decides == "values":
        taken = set_aside(ranks, like_values(series.labels, ranks, share), share, part_equal=False)
    else:
        taken = set_aside(ranks, strata(series.labels, len(series)), share)
    return series.take(np.flatnonzero(~taken)), series.take(np.flatnonzero(taken))


def _overlap_notes(series: Series, name: str, train: Series, other: str) -> tuple[str, ...]:
    known = set(map(tuple, content_keys(train).tolist()))
    # A sensor at rest repeats itself: series that never change say nothing about copies.
    high, low = (reduce(series.values, axis=2) for reduce in (np.fmax.reduce, np.fmin.reduce))
    moves = (high > low).any(axis=1)
    shared = sum(tuple(key) in known for key in content_keys(series)[moves].tolist())
    return overlap(
        shared, len(series), most=_MOST_OVERLAP, name=name, source=series.source, other=other,
        other_source=train.source, noun="series",
    )  # fmt: skip


class SeriesTask:
    """Classification and regression of series; see `tutelage.tasks.Task`."""

    name = "series"
    families: tuple[str, ...] = ("convnet1d", "gru")
    teachers: tuple[str, ...] = ("minirocket", "inception", "resnet1d")
    losses: Mapping[str, float | LossPart] = MappingProxyType({"kl": 1.0})
    batch_size: int = 128
    keys = frozenset(
        {"format", "label_column", "series_column", "time_column", "length", "hop", "rate",
         "target", "unlabelled"}
    )  # fmt: skip

    def load(self, train: Any, test: str | Path | None = None, **options: Any) -> SeriesData:
        """Read, check and split the data; options as in `load`."""
        return load(train, test, **options)

    def decides(self, data: SeriesData) -> Decides:
        """Return what a label is: a class, or a value."""
        return data.train.decides

    def input_shape(self, examples: Series) -> tuple[int, int]:
        """Return (channels, steps)."""
        return examples.shape

    def knobs(self, examples: Series) -> dict[str, Any]:
        """Return how many channels and steps a series has."""
        channels, steps = examples.shape
        return {"channels": channels, "length": steps}

    def normalisation(self, examples: Series) -> SeriesNormalisation:
        """Fit mean and standard deviation of each channel."""
        return SeriesNormalisation.fit(examples.values)

    def augment(self, examples: Series, wanted: Any) -> SeriesAugment:
        """Return the recipe's augmentation; a little noise and stretch where it names none.

        A value may hang on the height, so values get no stretch unless the recipe names one.
        """
        chosen = SeriesAugment.wanted(wanted, examples.shape[1])
        if examples.decides == "values" and getattr(wanted, "stretch", None) is None:
            chosen = replace(chosen, stretch=0.0)
        return chosen

    def show(self, examples: Series, index: int) -> str:
        """Return one series as a line plot, a PNG data URI of 192 x 96 pixels."""
        return "data:image/png;base64," + base64.b64encode(plot(examples, index)).decode()

    def tokens(self, examples: Series) -> None:
        """Return None: series have no tokens."""

    def decisions_an_hour(self, data: SeriesData) -> float | None:
        """Return how many windows a stream has an hour, where the rate is known."""
        return None if data.rate is None else 3600 * data.rate / data.hop

    def meta(self, data: SeriesData, normalisation: SeriesNormalisation) -> dict[str, Any]:
        """Return how a window of values becomes inputs."""
        channels, steps = data.train.shape
        return {
            "input": "series",
            "layout": "NCT",
            "mean": normalisation.mean,
            "std": normalisation.std,
            "scale": 1.0,
            "dtype": "float32",
            "details": {"length": steps, "channels": channels, "hop": data.hop, "rate": data.rate},
        }

    def beside(self, data: SeriesData) -> dict[str, bytes]:
        """Return nothing: the file says all there is to say."""
        return {}

    def batch(
        self,
        examples: Series,
        index: Int[np.ndarray, " batch"],
        *,
        view: int = 0,
        seed: int = 0,
        augment: SeriesAugment,
        normalisation: SeriesNormalisation,
    ) -> Batch:
        """Form one batch, inputs `[batch, c, t]`; missing values are 0, the channel's mean.

        Labels stay those of the series themselves, of which mixup leaves at least half.
        """
        index = np.asarray(index, np.int64)
        inputs = augment_series(
            examples.values[index],
            examples.lengths[index],
            index,
            all_values=examples.values,
            seed=seed,
            view=view,
            config=augment,
            normalisation=normalisation,
        )
        labels = None if examples.labels is None else torch.from_numpy(examples.labels[index])
        return Batch(inputs=inputs, labels=labels, index=torch.from_numpy(index), view=view)


TASKS.add("series", SeriesTask())
