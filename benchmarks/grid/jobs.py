"""What has to be done for a grid, in which order, and what each piece hangs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tutelage
from benchmarks.grid.domains import DOMAINS, Domain
from benchmarks.grid.methods import METHODS, Method
from benchmarks.tools import TOOLS
from tutelage.files import hash_json, sha256_file

Kind = Literal["teacher", "student", "asking", "clock", "search", "cell"]
SEARCH_SEED = 1_000  # of searches and clocks; none of the seeds that are reported
SEEDS = (0, 1, 2, 3, 4)
BASE = "kd"  # the method whose time is everyone's budget
_FOLDERS = ("losses", "train", "students", "tasks", "teach", "pipeline")
_FILES = ("least_squares.py", "pairing.py", "passes.py")
_OF_LANGUAGE = ("language", "decoder", "gguf", "causal_lm", "generat")
_OF_SEARCH = ("trials", "planning", "feasible", "frontiers", "tightening", "slicing", "narrowing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work, done in a process of its own. `seed` counts searched settings, too."""

    kind: Kind
    domain: str
    size: int = 0
    method: str = ""
    seed: int = 0
    searched: bool = True

    @property
    def key(self) -> str:
        """The job's name, under which its row is kept."""
        parts = [self.kind, self.domain]
        if self.kind == "asking":
            return "/".join([*parts, self.method])
        if self.kind != "teacher":
            parts.append(f"{self.size}")
        if self.kind in ("clock", "search", "cell"):
            parts.append(self.method)
        if self.kind in ("search", "cell"):
            parts.append(f"{self.seed}")
        return "/".join(parts if self.searched else [*parts, "defaults"])

    def needs(self) -> tuple[Job, ...]:
        """Return what must be done before; an `asking` is named by what is asked."""
        teacher = Job(kind="teacher", domain=self.domain)
        if self.kind == "teacher":
            return ()
        if self.kind in ("student", "asking"):
            return (teacher,)
        place: dict[str, Any] = {"domain": self.domain, "size": self.size}
        student = Job(kind="student", **place)
        if self.kind == "clock":
            base = Job(kind="clock", method=BASE, **place)
            return (teacher, student) if self.method == BASE else (teacher, student, base)
        method = METHODS[self.method]
        asked = ()
        if method.asks not in ("", "decision"):
            asked = (Job(kind="asking", domain=self.domain, method=method.asks),)
        clocks = [Job(kind="clock", method=m, **place) for m in dict.fromkeys((BASE, self.method))]
        before = (teacher, student, *asked, *clocks)
        if self.kind == "cell" and self.searched:
            return (*before, *searches(self.domain, self.size, self.method))
        return before

    def definition(self) -> str:
        """Return the hash of what the grid says about this job; of slices and tools, the code."""
        method = METHODS.get(self.method)
        said = None if method is None else method.definition()
        timed = METHODS[BASE].definition() if self.kind in ("clock", "search", "cell") else None
        parts = [self.kind, DOMAINS[self.domain].definition(), self.size, said, timed, self.seed]
        sliced = method is not None and method.sliced and self.kind in ("search", "cell")
        apart = [_hash_of(_slices())] if sliced else []
        if method is not None and method.tool:
            apart.append(_hash_of(_of_tool(method.tool)))
        return hash_json([*parts, self.searched, *apart])[:12]


def searches(domain: str, size: int, method: str) -> tuple[Job, ...]:
    """Return the searches of a method; none where it has nothing to search."""
    count = len(METHODS[method].settings)
    return tuple(
        Job(kind="search", domain=domain, size=size, method=method, seed=i)
        for i in range(count if count > 1 else 0)
    )


def cells(
    domains: Sequence[str], sizes: Sequence[int], methods: Sequence[str], seeds: Sequence[int],
    *, searched: bool,
) -> tuple[Job, ...]:  # fmt: skip
    """Return the cells of a grid; a method that a domain leaves out has none there."""
    return tuple(
        Job(kind="cell", domain=domain, size=size, method=method, seed=seed, searched=searched)
        for size in sizes
        for seed in seeds
        for domain in domains
        if size in DOMAINS[domain].sizes
        for method in methods
        if fits(DOMAINS[domain], METHODS[method])
    )


def fits(domain: Domain, method: Method) -> bool:
    """Say whether a method can be used in a domain."""
    return domain.holds(method.asks, sliced=method.sliced, mixed=method.mixup > 0, tool=method.tool)


def with_needs(wanted: Sequence[Job]) -> tuple[Job, ...]:
    """Return the jobs and all that they need, each once, needs first."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.key not in found:
            for need in job.needs():
                add(need)
            found[job.key] = job

    for job in wanted:
        add(job)
    return tuple(found.values())


def code_hash() -> str:
    """Return the hash of the code that decides a row: of the library, and of teaching a cell.

    Files that only language models use are left out: no domain of the grid is one. So are those
    that look for a student, since a cell is told its own, and those of slices, which are part of
    the definition of the methods that begin with one.
    """
    root = _root()
    apart = {*_slices().values(), *(root / "pipeline" / f"{name}.py" for name in _OF_SEARCH)}
    files = [root / name for name in _FILES]
    files += [path for folder in _FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    named = {path.relative_to(root).as_posix(): path for path in files if path not in apart}
    kept = {n: p for n, p in named.items() if not any(word in n for word in _OF_LANGUAGE)}
    kept |= {f"grid/{n}.py": Path(__file__).parent / f"{n}.py" for n in ("material", "teach")}
    return _hash_of(kept)


def _root() -> Path:
    return Path(tutelage.__file__).parent


def _slices() -> dict[str, Path]:
    return {path.name: path for path in sorted((_root() / "students" / "slices").glob("*.py"))}


def _of_tool(name: str) -> dict[str, Path]:
    here = Path(__file__).parent.parent
    job = "torchdistill_job.py" if TOOLS[name].task == "vision" else "text_job.py"
    return {file: here / file for file in (job, TOOLS[name].child, "grid/others.py")}


def _hash_of(files: Mapping[str, Path]) -> str:
    return hash_json({name: sha256_file(path) for name, path in files.items()})[:12]
