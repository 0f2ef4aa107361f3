"""A Hugging Face image classifier's folder on disk as a teacher of images.

Covers whatever `AutoModelForImageClassification` builds from config.json (ViT, DeiT, Swin,
ConvNeXt, ResNet, MobileViT and their like), with the normalisation that preprocessor_config.json
names. It does not cover resizing (student and teacher see the same pixels) or a new head. Nothing
is downloaded, and no code is run that stands beside the weights unless trusted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tutelage.errors import TeacherError
from tutelage.files import read_json
from tutelage.teach.hf_folder import (
    check_weights,
    checked,
    labels_of,
    load_model,
    local_only,
    open_transformers,
    quiet,
    read_config,
)

_PREPROCESSOR = "preprocessor_config.json"
_OF_ITS_OWN = ("include_top", "rescale_offset")
_AUTO = "AutoModelForImageClassification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What a classifier wants of its images.

    `mean` and `std` per channel are those of pixels in [0, 1], or one value for all of them. `size`
    is (height, width), None where any will do. `bgr`: channels stand in the order blue, green, red.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    bgr: bool


class HfClassifier(nn.Module):
    """A Hugging Face image classifier, asked with images normalised as `preprocessing` says.

    `labels` are the classes' names that came with the weights, if any did.
    """

    def __init__(self, body: nn.Module, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.body, self.preprocessing = body, preprocessing
        self.labels = labels_of(body.config)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        if self.preprocessing is not None and self.preprocessing.bgr:
            images = images.flip(1)
        return self.body(images, return_dict=True).logits

    def extra_repr(self) -> str:
        """Return what decides the logits and stands in no tensor."""
        config: Any = self.body.config
        said = {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
        return f"{self.preprocessing} {json.dumps(said, sort_keys=True, default=str)}"


def from_vision_folder(
    path: Path, classes: int | None, size: tuple[int, int], *, trust_code: bool = False
) -> HfClassifier:
    """Load a classifier of `classes` classes (any number when None) from `path` in evaluation mode.

    `size` is the (height, width) of the images it will be asked about. Raises `TeacherError` for a
    folder that is incomplete, needs pickle or foreign code (unless `trust_code`), is no classifier
    of images, has other classes, or reads images of another size; `MissingExtra` without
    transformers.
    """
    path = Path(path)
    config = read_config(path, trust_code)
    check_weights(path)
    preprocessing = read_preprocessing(path)
    transformers, options = open_transformers(path), local_only(trust_code)
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        known = checked(path, lambda: transformers.AutoConfig.from_pretrained(path, **options))
        _check_kind(path, config, known, classes)
        body = load_model(path, getattr(transformers, _AUTO), known, options)
    _check_size(path, _size_of(path, preprocessing, body), size)
    return checked(path, lambda: HfClassifier(body, preprocessing).eval())


def read_preprocessing(path: Path) -> Preprocessing | None:
    """Read preprocessor_config.json in `path`; None without one.

    Raises `TeacherError` where it holds no usable numbers, or normalises in a way of its own.
    """
    file = path / _PREPROCESSOR
    if not file.is_file():
        return None
    given = read_json(file)
    if not isinstance(given, dict):
        raise _damaged(file, "it holds no keys")
    odd = next((key for key in _OF_ITS_OWN if given.get(key)), None)
    if odd is not None:
        raise TeacherError(
            f"'{file}' normalises in a way of its own ({odd}). Delete the file and say what comes "
            "out: teacher.mean and teacher.std, of pixels in [0, 1]"
        )
    bgr = bool(given.get("do_flip_channel_order"))
    mean, std = (0.0,), (1.0,)
    # Files of processors that never normalise may hold a mean all the same; these turn channels.
    if _flag(given, "do_normalize", "image_mean" in given and not bgr):
        mean, std = (_numbers(file, given, key) for key in ("image_mean", "image_std"))
    # pixel * factor, then (x - mean) / std; ours are pixels / 255.
    factor = given.get("rescale_factor") or 1 / 255
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise _damaged(file, f"rescale_factor is {factor!r}")
    most = 255 * factor if _flag(given, "do_rescale", True) else 255.0
    return Preprocessing(
        mean=tuple(round(x / most, 9) for x in mean),
        std=tuple(round(x / most, 9) for x in std),
        size=_size(file, given),
        bgr=bgr,
    )


def _flag(given: dict[str, Any], key: str, unset: bool) -> bool:
    return unset if given.get(key) is None else bool(given[key])


def _numbers(file: Path, given: dict[str, Any], key: str) -> tuple[float, ...]:
    """Return one number a channel, or one where they are equal."""
    found: Any = given.get(key)
    numbers: list[Any] = found if isinstance(found, list) and found else [found]
    for x in numbers:
        plain = isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        if not plain or (key == "image_std" and x <= 0):
            raise _damaged(file, f"{key} holds {x!r}")
    return tuple(float(x) for x in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def _size(file: Path, given: dict[str, Any]) -> tuple[int, int] | None:
    """Return the size that images have at the end: cropped, or else resized."""
    named = None
    if _flag(given, "do_center_crop", "crop_size" in given):
        named = given.get("crop_size") or given.get("size")
    elif _flag(given, "do_resize", True):
        named = given.get("size")
    return None if named is None else _sides(file, named)


def _sides(file: Path, named: Any) -> tuple[int, int]:
    if isinstance(named, dict):
        side = named.get("shortest_edge")
        named = [named.get("height", side), named.get("width", side)]
    sides = [named, named] if isinstance(named, int) else named
    if isinstance(sides, list) and len(sides) == 2:
        if all(isinstance(side, int) and side > 0 for side in sides):
            return sides[0], sides[1]
    raise _damaged(file, f"it names the size {named!r}")


def _damaged(file: Path, what: str) -> TeacherError:
    return TeacherError(
        f"'{file}' cannot be used: {what}. Copy it again from where the weights came from"
    )


def _check_kind(path: Path, config: dict[str, Any], known: Any, classes: int | None) -> None:
    named = config.get("architectures")
    named = [str(name) for name in named] if isinstance(named, list) else []
    if not any("ForImageClassification" in name for name in named):
        what = f"a '{named[0]}'" if named else f"of type '{known.model_type}', without a head"
        raise TeacherError(
            f"the teacher '{path}' is {what}, and no classifier of images. Name a folder whose "
            "config.json says ...ForImageClassification"
        )
    if known.problem_type in ("regression", "multi_label_classification"):
        raise TeacherError(
            f"the teacher '{path}' was made for {known.problem_type}, and an image has one class "
            "here. Use a classifier of single labels"
        )
    if classes is not None and known.num_labels != classes:
        raise TeacherError(
            f"the teacher '{path}' decides among {known.num_labels} classes and the data has "
            f"{classes}. Use a teacher trained on these classes, or train this one on them first"
        )


def _size_of(path: Path, preprocessing: Preprocessing | None, body: Any) -> tuple[int, int] | None:
    """Return the size of images that goes with the weights; None where any will do."""
    if preprocessing is not None:
        return preprocessing.size
    fixed = any(name.endswith("position_embeddings") for name, _ in body.named_parameters())
    side = getattr(body.config, "image_size", None) if fixed else None
    return None if side is None else _sides(path / "config.json", side)


def _check_size(path: Path, wanted: tuple[int, int] | None, size: tuple[int, int]) -> None:
    if wanted is not None and wanted != size:
        raise TeacherError(
            f"the teacher '{path}' reads images of {wanted[0]} x {wanted[1]} and these are "
            f"{size[0]} x {size[1]} (height x width). Resize them: data.size: [{wanted[0]}, "
            f"{wanted[1]}]"
        )
