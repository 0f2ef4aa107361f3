"""The embedded default: scikit-learn's digits to a Cortex-M4 board."""

from __future__ import annotations

from tutelage.recipe import Recipe


def demo_recipe(seed: int = 0) -> Recipe:
    """Return the recipe of `tutelage demo`."""
    return Recipe.parse(
        {
            "seed": seed,
            "data": {"train": "digits"},
            "teacher": {"fit": True, "epochs": 40},
            "device": "nucleo-l4r5",
            "budget": {"storage": "16 kB", "memory": "32 kB", "energy": "300 uJ"},
            "distill": {"epochs": 160},
            "threads": 1,  # 8 x 8 images: a second thread waits more than it works
        },
        where="demo",
    )
