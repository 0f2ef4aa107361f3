"""Teachers by name: a Python function, a timm or torchvision name, an ONNX file, a module."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tutelage.errors import MissingExtra, TeacherError, TutelageError
from tutelage.passes import Forward, Inputs, call, reason
from tutelage.registry import near_matches
from tutelage.teach.checks import Channels, ImageShape
from tutelage.teach.onnx_teacher import OnnxTeacher
from tutelage.teach.torch_teacher import TorchTeacher
from tutelage.teach.weights import PICKLED, fill
from tutelage.types import Reading, Tap

_FUNCTION = re.compile(r"^(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)$")
_FORMS = (
    "Write file.py:function, timm:NAME, torchvision:NAME, a file.onnx, a Hugging Face folder, or "
    "the folder of a teacher or student made by tutelage"
)


class Teacher(Protocol):
    """Anything that can be asked for signals.

    `names` are those of its classes, if any came with it. `fingerprint` changes with whatever
    changes what it says; `notes` is what the report must say of how it was asked.
    """

    taps: tuple[Tap, ...]
    classes: int
    names: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]
    parameters: int

    def read(
        self, inputs: Inputs, *, features: bool = False, maps: bool = False,
        keep: Tensor | None = None,
    ) -> Reading:  # fmt: skip
        """Return what it says of a batch; raises `TeacherError` when that cannot be used."""
        ...


def load_teacher(
    source: str | nn.Module,
    *,
    weights: Path | None = None,
    classes: int | None,
    image_shape: ImageShape,
    trust_code: bool = False,
    taps: Sequence[str] | None = None,
    channels: Channels = "keep",
    bf16: bool | None = False,
    device: str | torch.device = "cpu",
    open_folder: Callable[[Path], nn.Module] | None = None,
    example: Inputs | None = None,
    tokens: tuple[Any, int] | None = None,
    forward: Forward = call,
) -> Teacher:
    """Load a teacher and look at it once, so that what cannot work is refused here.

    `source` is `file.py:function` (runs that file, only with `trust_code`; the function returns a
    module, and is given `classes` when it takes it), `timm:NAME`, `torchvision:NAME`, an ONNX file,
    a folder with `spec.json` (opened by `open_folder`), a Hugging Face folder of an encoder or an
    image classifier, or a module. `tokens` are the original ids of the tokens in use, and the pad.
    `weights` is a safetensors file, or a `.pt`/`.pth` state dict that needs no pickle. Nothing is
    downloaded. `classes` is how many the data has; None takes as many as the teacher has outputs.
    The rest is as in `TorchTeacher`; an ONNX file takes no bf16 and no device. Raises
    `TeacherError`, or `MissingExtra` for timm and torchvision.
    """
    if isinstance(source, str) and Path(source).suffix.lower() == ".onnx":
        path = _onnx_file(Path(source), weights, taps)
        if forward is not call or len(image_shape) != 3 or not isinstance(example, Tensor | None):
            raise TeacherError(
                f"'{path}' reads images (batch x channels x height x width), and no forward of "
                "yours calls it. Give the teacher as a torch module"
            )
        return OnnxTeacher(path, classes=classes, image_shape=image_shape, channels=channels)
    weights = None if weights is None else _existing(Path(weights), "the weights file")
    code = b""
    if isinstance(source, nn.Module):
        module = source
    elif match := _FUNCTION.match(source):
        module, code = from_function(Path(match["file"]), match["name"], classes, trust_code)
    elif source.startswith(("timm:", "torchvision:")):
        planes = 3 if channels == "repeat" else image_shape[0]
        module = _from_library(source, weights, _counted(source, classes), planes)
    else:
        module = _from_folder(source, open_folder, classes, image_shape, tokens, trust_code)
    if weights is not None:
        fill(module, weights)
    options: dict[str, Any] = {"channels": channels, "bf16": bf16, "device": device, "code": code}
    options |= {"example": example, "forward": forward}
    return TorchTeacher(module, classes=classes, image_shape=image_shape, taps=taps, **options)


def _onnx_file(path: Path, weights: Path | None, taps: Sequence[str] | None) -> Path:
    if weights is not None or taps:
        raise TeacherError(
            f"'{path}' holds its own weights and has no taps. Leave out teacher.weights and "
            "teacher.taps"
        )
    return _existing(path, "the ONNX teacher")


def _existing(path: Path, what: str) -> Path:
    """Return `path` if it is a file, else raise `TeacherError` with what the folder has near it."""
    if path.is_file():
        return path
    if path.is_dir():
        raise TeacherError(f"{what} '{path}' is a folder. Name the file in it")
    if not path.parent.is_dir():
        raise TeacherError(
            f"{what} '{path}' does not exist: there is no folder '{path.parent}'. Correct the path"
        )
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    alike = near or [n for n in names if Path(n).suffix == path.suffix][:5] or names[:5]
    hint = f"That folder has: {', '.join(alike)}." if alike else "That folder is empty."
    raise TeacherError(f"{what} '{path}' does not exist. {hint} Correct the path")


# A Python function ---------------------------------------------------------------------------


def from_function(
    path: Path,
    name: str,
    classes: int | None,
    trust_code: bool,
    *,
    who: str = "teacher",
    error: type[TutelageError] = TeacherError,
) -> tuple[nn.Module, bytes]:
    """Run the user's file and its function; return the module it makes and the file's bytes.

    Only with `trust_code`. The function is given `classes` when it takes it. Raises `error`, as one
    line that calls the network `who`.
    """
    path = _existing(path, f"the {who}'s file").resolve()
    if not trust_code:
        raise error(
            f"the {who} '{path.name}:{name}' means running the code in '{path}'. If you trust "
            "it, pass --trust-code (from Python: trust_code=True)"
        )
    code = path.read_bytes()
    with _one_line(path, who, error), _beside(path):
        module = _import(path, code)
        made = getattr(module, name, None)
        if made is not None and not isinstance(made, nn.Module):
            takes = _takes_classes(made)
            made = made(**({"classes": _counted(name, classes)} if takes else {}))
    if name not in vars(module):
        here = module.__name__
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == here]
        hint = near_matches(name, own) if own else "It defines no function."
        raise error(f"'{path}' has no function '{name}'. {hint}")
    if not isinstance(made, nn.Module):
        raise error(
            f"'{path.name}:{name}' returned a {type(made).__name__}. It must return an nn.Module"
        )
    return made, code


def _counted(name: str, classes: int | None) -> int:
    if classes is None:
        raise TeacherError(
            f"the data has no labels, so it is not known how many classes '{name}' is to be built "
            "for: name them in teacher.classes"
        )
    return classes


def _import(path: Path, code: bytes) -> Any:
    # The bytes that are hashed are the bytes that run; no .pyc is written beside or read.
    name = f"_tutelage_teacher_{hashlib.sha256(str(path).encode() + code).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise TeacherError(f"'{path}' cannot be imported as Python. Name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and inspect look their classes' module up here
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _takes_classes(function: Any) -> bool:
    try:
        found = inspect.signature(function).parameters.get("classes")
    except (TypeError, ValueError):
        return False
    return found is not None and found.kind is not inspect.Parameter.POSITIONAL_ONLY


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it could when run as a script."""
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))


@contextmanager
def _one_line(path: Path, who: str, error: type[TutelageError]) -> Iterator[None]:
    """Turn whatever the user's file raises (even an exit) into one line that names the place."""
    try:
        yield
    except TutelageError:
        raise
    except (Exception, SystemExit) as cause:
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename == str(path)]
        line = frames[-1].lineno if frames else None
        if isinstance(cause, SyntaxError) and cause.filename == str(path):
            line = cause.lineno
        raise error(
            f"the {who}'s file fails: {path}, line {line or 1}: {reason(cause)}. "
            "Mend the file, then run again"
        ) from cause


# Libraries and folders -----------------------------------------------------------------------


def _from_library(source: str, weights: Path | None, classes: int, channels: int) -> nn.Module:
    library, _, name = source.partition(":")
    build = _timm(name, classes, channels) if library == "timm" else _torchvision(name, classes)
    if weights is None:
        raise TeacherError(
            f"the teacher '{source}' needs its weights from disk, and nothing is downloaded. Say "
            "where they are: teacher.weights: FILE.safetensors"
        )
    try:
        return build()
    except Exception as cause:  # foreign code, and hundreds of models: it may raise anything
        raise TeacherError(
            f"the teacher '{source}' cannot be built: {reason(cause)}. Try another model"
        ) from cause


def _timm(name: str, classes: int, channels: int) -> Callable[[], nn.Module]:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(f"the teacher 'timm:{name}'", "timm") from None
    # Only models that timm defines itself: a hub name would reach for the network.
    if not timm.is_model(name):
        raise TeacherError(f"timm has no model '{name}'. {_few(name, timm.list_models())}")
    return lambda: timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


def _torchvision(name: str, classes: int) -> Callable[[], nn.Module]:
    try:
        from torchvision import models  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(f"the teacher 'torchvision:{name}'", "torchvision") from None
    known = models.list_models(module=models)  # classifiers; the others download a backbone
    if name not in known:
        raise TeacherError(f"torchvision has no classifier '{name}'. {_few(name, known)}")
    return lambda: models.get_model(name, weights=None, num_classes=classes)


def _few(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else "See the library's list"


def _from_folder(
    source: str, open_folder: Callable[[Path], nn.Module] | None, classes: int | None,
    image_shape: ImageShape, tokens: tuple[Any, int] | None, trust_code: bool,
) -> nn.Module:  # fmt: skip
    path = Path(source)
    if (path / "config.json").is_file() and tokens is not None:
        from tutelage.teach.hf_teacher import from_hf_folder

        return from_hf_folder(path, classes, kept=tokens[0], pad=tokens[1], trust_code=trust_code)
    if (path / "config.json").is_file() and len(image_shape) == 3:
        from tutelage.teach.hf_vision import from_vision_folder

        size = (image_shape[1], image_shape[2])
        return from_vision_folder(path, classes, size, trust_code=trust_code)
    if (path / "spec.json").is_file() and open_folder is not None:
        return open_folder(path)
    if path.is_dir():
        raise TeacherError(f"the teacher '{source}' is a folder without spec.json. {_FORMS}")
    if path.suffix in {".safetensors", *PICKLED}:
        raise TeacherError(
            f"'{source}' holds weights and no network. Name the network as the teacher "
            f"(file.py:function, timm:NAME) and this file as teacher.weights"
        )
    if path.suffix == ".py":
        _existing(path, "the teacher's file")
        raise TeacherError(f"'{source}' names no function. Write {source}:function")
    _existing(path, "the teacher")
    raise TeacherError(f"the teacher '{source}' is of no known kind. {_FORMS}")
