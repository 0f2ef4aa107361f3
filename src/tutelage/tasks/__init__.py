"""What an example is: one package a task, found by its name, and what all tasks share."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from tutelage.recipe import LossPart
from tutelage.records import Measurement
from tutelage.registry import Registry

if TYPE_CHECKING:
    from tutelage.types import Batch, Decides

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Examples(Protocol):
    """One split of a data set: the task alone knows what an example looks like."""

    @property
    def labels(self) -> Int[np.ndarray, " n"] | Float[np.ndarray, " n"] | None:
        """Class numbers (-1 where an example has none), values, or None where all have none."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by class number; none where labels are values."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content alone."""
        ...

    def __len__(self) -> int: ...


class TaskData(Protocol):
    """The three splits of a data set, and what the user should know about them."""

    @property
    def train(self) -> Any:
        """`Examples` to learn from."""
        ...

    @property
    def validation(self) -> Any:
        """`Examples` to choose by."""
        ...

    @property
    def test(self) -> Any:
        """`Examples` read once, at the end."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Findings that are no reason to refuse the data."""
        ...


class Task(Protocol):
    """What a task provides. `examples` is one split of what its own `load` returned.

    A new task is one package here, whose module `task` adds one instance to `TASKS` under its name.
    """

    name: str
    families: tuple[str, ...]
    teachers: tuple[str, ...]  # that can be fitted on the spot, the first where it suits
    losses: Mapping[str, float | LossPart]  # that teach classes where the recipe names none
    batch_size: int  # examples a step, where the recipe names none
    keys: frozenset[str]  # of the recipe's data part, beside train, test and validation

    def load(self, train: Any, test: Any = None, **options: Any) -> TaskData:
        """Read, check and split the data; raises `DataError`.

        `train` is a path, or (inputs, labels) given from Python.
        """
        ...

    def decides(self, data: Any) -> Decides:
        """Return what a decision about this data is: one of its classes, or one value."""
        ...

    def input_shape(self, examples: Any) -> tuple[int, ...]:
        """Return the shape of one example as the network sees it."""
        ...

    def knobs(self, examples: Any) -> dict[str, Any]:
        """Return what the data decides in a student's spec, but for the classes."""
        ...

    def normalisation(self, examples: Any) -> Any:
        """Fit what `batch` needs to scale inputs, on the training split."""
        ...

    def augment(self, examples: Any, wanted: Any) -> Any:
        """Return the augmentation that the recipe asks for, its gaps filled to suit the data.

        It is false where nothing varies: then one view is enough.
        """
        ...

    def show(self, examples: Any, index: int) -> str:
        """Return one example as the report shows it: a data URI of an image, or plain text."""
        ...

    def tokens(self, examples: Any) -> tuple[Int[np.ndarray, " v"], int] | None:
        """Return which of the tokenizer's ids are left, by their new id, and the pad's new id.

        None for a task without tokens.
        """
        ...

    def decisions_an_hour(self, data: Any) -> float | None:
        """Return how often a stream asks for a decision; None where nothing streams."""
        ...

    def meta(self, data: Any, normalisation: Any) -> dict[str, Any]:
        """Return what the artifact must say of its input: `input`, `layout`, `mean` and so on."""
        ...

    def beside(self, data: Any) -> dict[str, bytes]:
        """Return files, by name, that must ship beside the artifact."""
        ...

    def batch(
        self,
        examples: Any,
        index: Int[np.ndarray, " batch"],
        *,
        view: int,
        seed: int,
        augment: Any,
        normalisation: Any,
    ) -> Batch:
        """Form one batch: a pure function of its arguments; view 0 is the untouched example.

        Labels that are values stay in the user's unit.
        """
        ...


TASKS: Registry[Task] = Registry("task")


def find_task(name: str) -> Task:
    """Return the task called `name`; an unknown one raises `RecipeError` with near matches."""
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}.task")
    return TASKS[name]


def accuracy(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, where: str = ""
) -> Measurement:
    """Measure the share of right decisions (unit 1) with its 95 % interval.

    The interval is Wilson's (1927), which stays inside [0, 1] and holds for few examples. Raises
    `ValueError` when there are no examples or the lengths differ.
    """
    if len(predicted) != len(labels) or len(labels) == 0:
        raise ValueError(f"accuracy of {len(predicted)} decisions on {len(labels)} labels")
    n = len(labels)
    share = float((predicted == labels).mean())
    low, high = wilson_interval(share, n)
    return Measurement(
        name="accuracy", value=share, unit="1", kind="measured", n=n, spread=(low, high),
        where=where,
    )  # fmt: skip


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share seen in `n` trials.

    centre = (p + z^2/2n) / (1 + z^2/n), half = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    """
    z2 = _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
