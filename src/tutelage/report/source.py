"""Reading what the report is made from: run.json, plan.json, proof.json and scores.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import CorruptFileError, RecipeError
from tutelage.files import read_json

NAMES = ("run.json", "plan.json", "proof.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files as JSON data, each empty where the run has not written it yet.

    `scores` stays empty in a run whose student was given: nothing was tried there.
    """

    folder: Path
    run: dict[str, Any]
    plan: dict[str, Any]
    proof: dict[str, Any]
    scores: dict[str, Any]

    def stage(self, name: str) -> dict[str, Any]:
        """Return the result of a stage of run.json, empty when it is not done."""
        with reading(self.folder / "run.json"):
            record = self.run.get("stages", {}).get(name)
            return {} if record is None else _mapping(record["result"])

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the files that are not there yet."""
        return tuple(
            name
            for name, data in zip(NAMES, (self.run, self.plan, self.proof), strict=True)
            if not data
        )


def load(folder: Path) -> Sources:
    """Read the files of a run directory.

    Raises `RecipeError` when `folder` holds no run, `CorruptFileError` when a file is damaged.
    """
    found = {name: _load(folder / name) for name in NAMES}
    if not any(found.values()):
        raise RecipeError(
            f"{folder} holds no run (none of {', '.join(NAMES)}); name a run directory"
        )
    return Sources(
        folder=folder,
        run=found["run.json"],
        plan=found["plan.json"],
        proof=found["proof.json"],
        scores=_load(folder / "scores.json"),
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading the data of `path` into one `CorruptFileError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        lacks = isinstance(error, KeyError)
        what = f"it lacks {error}" if lacks else f"{type(error).__name__}: {error}"
        raise CorruptFileError(f"{path} is damaged ({what}); delete it and run again") from error


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_json(path)
    with reading(path):
        return _mapping(data)


def _mapping(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise TypeError(f"an object is expected, not {type(data).__name__}")
    return data
