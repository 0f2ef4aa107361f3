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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Working:
    """A stage that is being done; `since` is when it began, less the time of earlier sessions."""

    name: str
    inputs: str
    since: float


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
        self._opened = self._kept = 0.0  # when this session began, and when it last wrote
        self._earlier = 0.0  # seconds of the sessions before it
        self._working: list[_Working] = []  # stages that are being done, the outermost first

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
            self._opened = self._kept = time.monotonic()
            self._earlier = self.manifest.get("seconds", 0.0)
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
        done = self.done(name, inputs)
        if done is not None:
            return done
        if name in self.manifest["stages"]:  # its files are about to change: it is done no more
            del self.manifest["stages"][name]
            self.save()
        earlier = self._earlier_seconds(name, inputs)
        working = _Working(name=name, inputs=inputs, since=time.monotonic() - earlier)
        self._working.append(working)
        try:
            result, files = work()
        except BaseException:
            with suppress(DiskError):  # the first error is the one to tell
                self.save()
            raise
        finally:
            self._working.remove(working)
        hashes = {p.relative_to(self.path).as_posix(): sha256_file(p) for p in files}
        spent = time.monotonic() - working.since
        record = {"inputs": inputs, "result": result, "files": hashes, "seconds": round(spent, 3)}
        self.manifest["stages"][name] = record
        self.manifest["spent"].pop(name, None)
        self.save()
        self.log("stage", name=name, seconds=record["seconds"])
        return StageRecord(**record)

    def done(self, name: str, inputs: str) -> StageRecord | None:
        """Return the stage's record where it was done for these `inputs`.

        Raises `CorruptFileError` where one of its files changed since.
        """
        record = self.manifest["stages"].get(name)
        if record is None or record["inputs"] != inputs:
            return None
        self._check(name, record["files"])
        return StageRecord(**record)

    def keep_time(self, every_s: float) -> None:
        """Write run.json where that was last done `every_s` seconds ago, or longer."""
        if time.monotonic() - self._kept >= every_s:
            self.save()

    def save(self) -> None:
        """Write run.json: with the seconds spent so far, and a checksum over all of it."""
        self._kept = now = time.monotonic()
        self.manifest["seconds"] = round(self._earlier + now - self._opened, 2)
        for stage in self._working:
            seconds = round(now - stage.since, 3)
            self.manifest["spent"][stage.name] = {"inputs": stage.inputs, "seconds": seconds}
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

    def _earlier_seconds(self, name: str, inputs: str) -> float:
        """Return the time a stage took in sessions that did not finish it."""
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
