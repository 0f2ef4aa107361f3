"""A Hugging Face folder on disk, whatever its task: its config, its weights, loading both.

Nothing is downloaded, and no code is run that stands beside the weights unless trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import MissingExtra, TeacherError
from tutelage.files import read_json
from tutelage.passes import reason

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LFS = b"version https://git-lfs"


def read_config(path: Path, trust_code: bool) -> dict[str, Any]:
    """Return what config.json says; raises `TeacherError` where it is missing or wants code."""
    if not path.is_dir():
        raise TeacherError(
            f"the teacher '{path}' is no folder. Name the one that holds config.json and {_WEIGHTS}"
        )
    if not (path / "config.json").is_file():
        raise TeacherError(
            f"the teacher's folder '{path}' has no config.json. Copy it there from where the "
            f"weights came from, beside {_WEIGHTS}"
        )
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or not config.get("model_type"):
        raise TeacherError(
            f"'{path / 'config.json'}' names no model_type, so it is not known how to build the "
            "teacher. Copy the file again from where the weights came from"
        )
    if "auto_map" in config and not trust_code:
        raise TeacherError(
            f"the teacher '{path}' means running Python code that came with it (auto_map in "
            "config.json). If you trust it, pass --trust-code (from Python: trust_code=True)"
        )
    return config


def check_weights(path: Path) -> None:
    """Raise `TeacherError` unless all the weights are there, as safetensors."""
    wanted = [_WEIGHTS]
    if not (path / _WEIGHTS).is_file() and (path / _INDEX).is_file():
        index = read_json(path / _INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not named:
            raise TeacherError(f"'{path / _INDEX}' names no weights. Copy it again from its source")
        wanted = sorted({str(name) for name in named.values()})
    missing = [name for name in wanted if not (path / name).is_file()]
    pickled = sorted(f.name for pattern in _PICKLED for f in path.glob(pattern))
    if missing and pickled:
        raise TeacherError(
            f"the teacher's folder '{path}' has its weights in '{pickled[0]}', which is pickle and "
            f"can run any code. Convert it to {_WEIGHTS} once, where you trust it"
        )
    if missing:
        raise TeacherError(
            f"the teacher's folder '{path}' has no {missing[0]}. Copy it there from where "
            "config.json came from"
        )
    for name in wanted:
        with (path / name).open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise TeacherError(
                    f"'{path / name}' only points to the weights. Fetch them: git lfs pull"
                )


def load_model(path: Path, kind: Any, config: Any, options: dict[str, Any]) -> Any:
    """Load with the auto class `kind`; raises `TeacherError` unless the weights fit `config`."""
    body, info = checked(
        path,
        lambda: kind.from_pretrained(
            path, config=config, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        ),
    )  # fmt: skip
    # Each may be a name, or a name and two shapes.
    wrong = sorted(k if isinstance(k, str) else str(k[0]) for k in info["mismatched_keys"])
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing or wrong:
        what = f"'{wrong[0]}' has another shape" if wrong else f"they lack '{missing[0]}'"
        raise TeacherError(
            f"the weights in '{path}' do not fit its config.json: {what}. Copy both again from the "
            "same place"
        )
    return body


def checked(path: Path, load: Callable[[], Any]) -> Any:
    """Return what `load` returns; whatever it raises becomes a `TeacherError` of one line."""
    try:
        return load()
    except Exception as cause:  # hundreds of models, some with code of their own
        raise TeacherError(
            f"the teacher '{path}' cannot be loaded: {reason(cause)}. Copy the folder again from "
            "where it came from, or try another model"
        ) from cause


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Silence the library's notes and bars on loading; what is missing is checked here."""
    said = transformers.utils.logging
    verbosity, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        if bars:
            said.enable_progress_bar()


def labels_of(config: Any) -> tuple[str, ...]:
    """Return the classes' names that came with the weights; none where they are mere numbers."""
    named = [str(config.id2label[i]) for i in range(config.num_labels)]
    return () if all(n == f"LABEL_{i}" for i, n in enumerate(named)) else tuple(named)


def open_transformers(path: Path) -> Any:
    """Return the library that reads the folder; raises `MissingExtra` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise MissingExtra(f"the teacher '{path}'", "hf") from None
    return transformers


def local_only(trust_code: bool) -> dict[str, Any]:
    """Return how it is asked: from disk alone, and with the folder's code only if trusted."""
    return {"local_files_only": True, "trust_remote_code": trust_code}
