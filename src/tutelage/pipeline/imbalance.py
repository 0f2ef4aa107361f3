"""Classes of unequal frequency: the weights that make them count alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from tutelage.pipeline.material import Material
from tutelage.recipe import Recipe


def class_weights(recipe: Recipe, material: Material) -> tuple[float, ...] | None:
    """Return each class's weight in losses that read labels; None where all examples count 1."""
    labels = material.data.train.labels
    if not recipe.distill.balance_classes or labels is None:
        return None
    return inverse_frequency(np.bincount(labels[labels >= 0], minlength=len(material.classes)))


def inverse_frequency(counts: Int[np.ndarray, " classes"]) -> tuple[float, ...]:
    """Return w_c = n / (k n_c) for the k classes that have examples, 0 for one without.

    The mean of the weights over all n examples is 1.
    """
    seen = counts > 0
    weights = np.zeros(len(counts))
    weights[seen] = counts.sum() / (seen.sum() * counts[seen])
    return tuple(weights.tolist())
