"""Metrics of decisions by class, and of predicted values, each with its interval.

Covers macro F1 and balanced accuracy of decisions, and the errors of predicted values. Does not
cover ranking (ROC, average precision), calibration, or examples with several labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from tutelage.errors import DataError
from tutelage.records import Measurement

METRICS = ("accuracy", "macro_f1", "balanced_accuracy")
_RESAMPLES = 1_000
_BLOCK = 4_000_000  # counts held at a time
# one multinomial draw of a cell costs about as much as drawing this many examples
_CELL_COST = 20


def class_score(
    metric: str, decided: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """Return one of `METRICS` of decisions, as `class_metrics` defines it, without an interval.

    Raises `DataError` for no examples.
    """
    if len(labels) == 0:
        raise DataError("there are no examples to measure; give at least one")
    if metric == "accuracy":
        return float((decided == labels).mean())
    classes = int(max(decided.max(), labels.max())) + 1
    pairs = labels.astype(np.int64) * classes + decided
    cells, counts = np.unique(pairs, return_counts=True)
    return float(_by_class(counts[None], cells, classes)[0, METRICS.index(metric) - 1])


def class_metrics(
    logits: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    *,
    where: str = "",
    seed: int = 0,
) -> tuple[Measurement, ...]:
    """Measure `macro_f1` and `balanced_accuracy`, the means over classes of F1 and of recall.

    Both are shares of 1. Classes without examples are left out of both, so that two models are
    averaged over the same classes; where every class has examples this is scikit-learn's
    definition. Intervals are 95 % percentile bootstraps over the examples (Efron 1979). Raises
    `DataError` for no examples, logits that are not numbers, or labels outside the classes.
    """
    _check_classes(logits, labels, where)
    classes = logits.shape[1]
    pairs = labels.astype(np.int64) * classes + logits.argmax(1)
    cells, counts = np.unique(pairs, return_counts=True)
    value = _by_class(counts[None], cells, classes)
    blocks = [_by_class(block, cells, classes) for block in _resampled(counts, seed)]
    low, high = np.quantile(np.concatenate(blocks), [0.025, 0.975], axis=0)
    return tuple(
        _measured(name, value[0, i], low[i], high[i], len(labels), where)
        for i, name in enumerate(METRICS[1:])
    )


def value_metrics(
    predicted: Float[np.ndarray, " n"],
    wanted: Float[np.ndarray, " n"],
    *,
    where: str = "",
    seed: int = 0,
) -> tuple[Measurement, ...]:
    """Measure `mae` and `rmse`, in the unit of the values, and `r2`, the variance explained.

    `r2` is left out where the wanted values are all equal, since it is not defined there. Intervals
    are 95 % percentile bootstraps over the examples. Raises `DataError` for no examples, unequal
    lengths or values that are not finite.
    """
    _check_values(predicted, wanted, where)
    target = wanted.astype(np.float64)
    error = predicted.astype(np.float64) - target
    target -= target.mean()  # the same variance, and no cancellation far from zero
    columns = np.stack([np.abs(error), error**2, target, target**2], axis=1)
    n, draw = len(target), np.random.default_rng(seed)
    sums = (np.bincount(draw.integers(0, n, n), minlength=n) @ columns for _ in range(_RESAMPLES))
    resampled = _of_values(np.array(list(sums)) / n)
    value = _of_values(columns.mean(0, keepdims=True))[0]
    # a resample of equal values has no variance to explain
    low, high = np.nanquantile(resampled[:, : 2 + _varies(target)], [0.025, 0.975], axis=0)
    return tuple(
        _measured(name, value[i], low[i], high[i], n, where)
        for i, name in enumerate(("mae", "rmse", "r2")[: len(low)])
    )


def _by_class(
    counts: Int[np.ndarray, "resamples cells"], cells: Int[np.ndarray, " cells"], classes: int
) -> Float[np.ndarray, "resamples 2"]:
    """Return macro F1 and balanced accuracy; a cell is label * classes + decision."""
    label, decision = np.divmod(cells, classes)
    right = label == decision
    hits = _sums(counts[:, right], label[right], classes)
    held = _sums(counts, label, classes)
    decided = _sums(counts, decision, classes)
    seen = held > 0
    f1 = np.divide(2 * hits, held + decided, out=np.zeros(hits.shape), where=seen)
    recall = np.divide(hits, held, out=np.zeros(hits.shape), where=seen)
    return np.stack([f1.sum(1), recall.sum(1)], axis=1) / seen.sum(1, keepdims=True)


def _sums(
    counts: Int[np.ndarray, "resamples cells"], group: Int[np.ndarray, " cells"], groups: int
) -> Int[np.ndarray, "resamples groups"]:
    order = np.argsort(group, kind="stable")
    present, first = np.unique(group[order], return_index=True)
    sums = np.zeros((len(counts), groups), np.int64)
    if len(present):
        sums[:, present] = np.add.reduceat(counts[:, order], first, axis=1)
    return sums


def _resampled(
    counts: Int[np.ndarray, " cells"], seed: int
) -> Iterator[Int[np.ndarray, "resamples cells"]]:
    """Yield the counts of all resamples in blocks.

    How many of n examples drawn with replacement fall in each cell is multinomial. Where cells are
    many, drawing the examples themselves is the faster way to the same distribution.
    """
    draw, n, cells = np.random.default_rng(seed), int(counts.sum()), len(counts)
    block = max(1, min(_RESAMPLES, _BLOCK // cells))
    cell = np.repeat(np.arange(cells), counts)
    for start in range(0, _RESAMPLES, block):
        rows = min(block, _RESAMPLES - start)
        if cells * _CELL_COST <= n:
            yield draw.multinomial(n, counts / n, size=rows)
        else:
            picked = (cell[draw.integers(0, n, n)] for _ in range(rows))
            yield np.array([np.bincount(p, minlength=cells) for p in picked])


def _of_values(means: Float[np.ndarray, "resamples 4"]) -> Float[np.ndarray, "resamples 3"]:
    """Return mae, rmse and r2 from the means of |e|, e², y and y²; r2 is NaN without variance."""
    variance = means[:, 3] - means[:, 2] ** 2
    explained = np.full(len(means), np.nan)
    np.divide(means[:, 1], variance, out=explained, where=variance > 1e-12 * means[:, 3])
    return np.stack([means[:, 0], np.sqrt(means[:, 1]), 1 - explained], axis=1)


def _varies(centred: Float[np.ndarray, " n"]) -> bool:
    return bool((centred != centred[0]).any())


def _measured(
    name: str, value: float, low: float, high: float, n: int, where: str
) -> Measurement:  # fmt: skip
    return Measurement(
        name=name, value=float(value), unit="1", kind="measured", n=n,
        spread=(float(low), float(high)), where=where,
    )  # fmt: skip


def _check_classes(logits: np.ndarray, labels: np.ndarray, where: str) -> None:
    at = f" ({where})" if where else ""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape} do not belong "
            f"together{at}; give one row of logits and one label an example"
        )
    if not logits.size:
        raise DataError(f"there are no examples to measure{at}; give at least one")
    if np.isnan(logits).any():
        raise DataError(
            f"{int(np.isnan(logits).any(1).sum())} of {len(logits)} examples have logits that are "
            f"not numbers{at}; check the model that made them"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but the logits are of "
            f"{logits.shape[1]} classes{at}; labels count from 0 to {logits.shape[1] - 1}"
        )


def _check_values(predicted: np.ndarray, wanted: np.ndarray, where: str) -> None:
    at = f" ({where})" if where else ""
    if wanted.ndim != 1 or predicted.shape != wanted.shape:
        raise DataError(
            f"predicted values of shape {predicted.shape} and wanted ones of shape {wanted.shape} "
            f"do not belong together{at}; give one of each an example"
        )
    if not wanted.size:
        raise DataError(f"there are no examples to measure{at}; give at least one")
    for name, values in (("predicted", predicted), ("wanted", wanted)):
        if not np.isfinite(values).all():
            raise DataError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} {name} values are not "
                f"finite{at}; mend or leave out those examples"
            )
