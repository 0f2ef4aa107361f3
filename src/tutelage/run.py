"""The run directory: manifest, stages that are done, the lock, the log."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tutelage.errors import BusyError, CorruptFileError, DiskError, RecipeError
from tutelage.files import hash_json, read_json, remove_leftovers, sha256_file, write_json

_LIBRARIES = ("torch", "accelerate", "onnx", "onnxruntime", "onnxscript", "numpy", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One finished stage: what it depended on, what it found, which files it wrote."""

    inputs: str
    result: Any
    files: dict[str, str]
    seconds: float


class Run:
    """A run directory held by this process alone. Use as a context manager.

    Raises `BusyError` when another process holds it, `DiskError` when it cannot be written and
    `CorruptFileError` when its manifest is damaged.
    """

    def __init__(self, path: Path, *, command: str = "") -> None:
        self.path = path
        self._command = command
        self._lock: Any = None
        self.manifest: dict[str, Any] = {}

    def __enter__(self) -> Run:
        from filelock import FileLock, Timeout

        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path} is a file; name a folder with --run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"{self.path} is in use by another tutelage; wait for it, or name another --run"
            ) from None
        except OSError as error:
            raise DiskError(
                f"cannot write to {self.path}: {error.strerror}; choose --run"
            ) from None
        try:
            remove_leftovers(self.path)
            self.manifest = self._load()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def file(self, name: str) -> Path:
        """Return the path of `name` inside the run."""
        return self.path / name

    def stage(
        self, name: str, inputs: str, work: Callable[[], tuple[Any, Iterable[Path]]]
    ) -> StageRecord:
        """Return the stage's record, doing `work` only if it was not done for these `inputs`.

        `work` returns a JSON result and the files it wrote. A file whose bytes changed since raises
        `CorruptFileError`; other inputs than recorded make the stage run anew. The time of a
        session that stopped in `work` counts too.
        """
        done = self.manifest["stages"].get(name)
        if done is not None and done["inputs"] == inputs:
            self._check(name, done["files"])
            return StageRecord(**done)
        if done is not None:  # its files are about to change: it is done no more
            del self.manifest["stages"][name]
            self.save()
        started = time.monotonic()
        try:
            result, files = work()
        except BaseException:
            with suppress(DiskError):  # the first error is the one to tell
                self._spend(name, inputs, time.monotonic() - started)
            raise
        hashes = {p.relative_to(self.path).as_posix(): sha256_file(p) for p in files}
        spent = time.monotonic() - started + self._earlier_seconds(name, inputs)
        record = {"inputs": inputs, "result": result, "files": hashes, "seconds": round(spent, 3)}
        self.manifest["stages"][name] = record
        self.manifest["spent"].pop(name, None)
        self.save()
        self.log("stage", name=name, seconds=record["seconds"])
        return StageRecord(**record)

    def save(self) -> None:
        """Write run.json, with a checksum over all of it."""
        self.manifest["checksum"] = _checksum(self.manifest)
        write_json(self.file("run.json"), self.manifest)

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        try:
            with self.file("log.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise DiskError(f"cannot write {self.file('log.jsonl')}: {error.strerror}") from None

    def _spend(self, name: str, inputs: str, seconds: float) -> None:
        """Remember the time a stage took in a session that did not finish it."""
        earlier = self._earlier_seconds(name, inputs)
        self.manifest["spent"][name] = {"inputs": inputs, "seconds": round(earlier + seconds, 3)}
        self.save()

    def _earlier_seconds(self, name: str, inputs: str) -> float:
        spent = self.manifest["spent"].get(name)
        return spent["seconds"] if spent and spent["inputs"] == inputs else 0.0

    def _check(self, name: str, files: dict[str, str]) -> None:
        for relative, expected in files.items():
            path = self.file(relative)
            if not path.exists():
                raise CorruptFileError(
                    f"{path} is gone, though stage '{name}' is done; restore it, or delete "
                    f"{self.file('run.json')} to start again"
                )
            if sha256_file(path) != expected:
                raise CorruptFileError(
                    f"{path} was altered since stage '{name}' wrote it; restore it, or delete "
                    f"{self.file('run.json')} to start again"
                )

    def _load(self) -> dict[str, Any]:
        path = self.file("run.json")
        if path.exists():
            manifest = read_json(path)
            if not isinstance(manifest, dict) or "stages" not in manifest:
                raise CorruptFileError(f"{path} is not a run manifest; delete it and run again")
            if manifest.get("checksum") != _checksum(manifest):
                raise CorruptFileError(
                    f"{path} was altered since it was written; restore it, or delete it to start "
                    "again"
                )
            return manifest
        return {
            "tutelage": metadata.version("tutelage"),
            "command": self._command,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": versions(),
            "machine": machine(),
            "stages": {},
            "spent": {},
            "notes": [],
        }


def _checksum(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hash_json(json.loads(json.dumps(rest)))  # as it will be read back: no tuples, text keys


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape the result."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Return what this machine is: system, processor, cores."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(psutil.cpu_count(logical=True)),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
    }


def processor_name() -> str:
    """Return the processor's own name where the system tells it."""
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
