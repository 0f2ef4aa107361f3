"""What every teacher's answer must pass: shape, class count, finite values; what was done to it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.errors import TeacherError

Channels = Literal["keep", "repeat"]
ImageShape = tuple[int, ...]

REPEAT_NOTE = "1-channel images are repeated to 3 channels for the teacher (channels: repeat)"
PROBABILITY_NOTE = "the teacher says probabilities; their logarithm is taken as its decision"


def probe(image_shape: ImageShape) -> Float[Tensor, "2 channels height width"]:
    """Return two fixed noise images in [0, 1); the global random state stays as it was."""
    return torch.rand((2, *image_shape), generator=torch.Generator().manual_seed(0))


def repeats(channels: Channels, image_shape: ImageShape) -> bool:
    """Say whether images must be repeated to 3 channels; raises `TeacherError` when they cannot."""
    if channels not in ("keep", "repeat"):
        raise TeacherError(f"teacher.channels: '{channels}' is unknown. Known: keep, repeat")
    if channels == "repeat" and len(image_shape) != 3:
        raise TeacherError(
            "teacher.channels: repeat is for images, and these are none. Leave it out"
        )
    if channels == "repeat" and image_shape[0] not in (1, 3):
        raise TeacherError(
            f"teacher.channels: repeat is for 1-channel images; these have {image_shape[0]}. "
            "Leave it out"
        )
    return channels == "repeat" and image_shape[0] == 1


def channels_error() -> TeacherError:
    """Return the error for a 3-channel teacher asked about 1-channel images."""
    return TeacherError(
        "the teacher reads 3 channels and the images have 1. To show it each channel three times: "
        "teacher.channels: repeat"
    )


def as_decision(output: Tensor, count: int) -> Float[Tensor, "batch classes"]:
    """Return [batch, classes] from what was said of `count` examples, or raise `TeacherError`.

    Mends a batch of one that the network squeezed away, and trailing axes of size 1.
    """
    if output.ndim == 1 and count == 1:
        output = output[None]
    if output.ndim == 1 and len(output) == count:
        output = output[:, None]  # one value an example
    if output.ndim > 2 and all(size == 1 for size in output.shape[2:]):
        output = output.flatten(1)
    if output.ndim != 2 or output.shape[0] != count:
        said = " x ".join(map(str, output.shape)) or "one number"
        raise TeacherError(
            f"the teacher answered {count} examples with {said}; wanted is {count} x classes. "
            "Give a teacher that classifies whole inputs"
        )
    return output.float()


def check_classes(decision: Float[Tensor, "batch classes"], classes: int) -> None:
    """Raise `TeacherError` unless the teacher decides among the data's classes; 1: a value."""
    if decision.shape[1] != classes and classes == 1:
        raise TeacherError(
            f"the teacher answers with {decision.shape[1]} numbers and the data's label is one "
            "value. Use a teacher that answers with that value, or give classes"
        )
    if decision.shape[1] != classes:
        raise TeacherError(
            f"the teacher decides among {decision.shape[1]} classes and the data has {classes}. "
            "Use a teacher trained on these classes, or the data that it was trained on; without "
            "labels, teacher.classes names as many as it decides among"
        )


def check_finite(decision: Float[Tensor, "batch classes"], batch: int, advice: str = "") -> None:
    """Raise `TeacherError` naming batch and example where a decision is NaN or infinite."""
    bad = (~torch.isfinite(decision)).any(dim=1)
    if not bool(bad.any()):
        return
    first = int(bad.nonzero()[0, 0])
    what = "NaN" if bool(decision[first].isnan().any()) else "infinity"
    raise TeacherError(
        f"the teacher says {what} at batch {batch} (counted from 0), for {int(bad.sum())} of "
        f"{len(bad)} examples, first number {first}. Check its weights and the normalisation of "
        f"the inputs{advice}"
    )


def says_probabilities(decision: Float[Tensor, "batch classes"]) -> bool:
    """Say whether these are probabilities: several, none below 0, every row sums to 1."""
    if decision.shape[1] == 1:
        return False
    ones = torch.ones(len(decision), device=decision.device)
    return bool((decision >= 0).all()) and torch.allclose(decision.sum(1), ones, atol=1e-3)


def as_logits(decision: Tensor, probabilities: bool) -> Float[Tensor, "batch classes"]:
    """Return logits: softmax(log p) = p, so the logarithm of probabilities is one choice."""
    return decision.clamp_min(torch.finfo(torch.float32).tiny).log() if probabilities else decision


def notes(repeat: bool, probabilities: bool) -> tuple[str, ...]:
    """Return what the report must say of how the teacher was asked."""
    return (REPEAT_NOTE,) * repeat + (PROBABILITY_NOTE,) * probabilities
