"""The files that ship: hashes, parity with torch, and how to use the chosen one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.records import Artifact
from tutelage.report.figures import Figure, made
from tutelage.report.snippets import snippet

_BY = {"causal_lm": "llama.cpp or Ollama"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One artifact against torch, example by example; values have no `agreement`."""

    artifact: str
    n: int
    largest_error: Figure
    agreement: Figure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    """One file with its exact size."""

    artifact: Artifact
    size: Figure
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRow:
    """A file that must lie beside every artifact."""

    name: str
    size: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """The files, their parity, and a program that runs the chosen one, `by` these means."""

    artifacts: tuple[ArtifactRow, ...]
    beside: tuple[SideRow, ...]
    parity: tuple[ParityRow, ...]
    snippet: str
    by: str


def shipped(proof: dict[str, Any]) -> Shipped | None:
    """Return the section, or None when nothing was exported."""
    found = [Artifact.from_json(data) for data in proof.get("artifacts") or []]
    if not found:
        return None
    chosen = proof.get("chosen") or found[0].path
    return Shipped(
        artifacts=tuple(
            ArtifactRow(
                artifact=a, size=made("storage_bytes", a.bytes, "B"), chosen=a.path == chosen
            )
            for a in found
        ),
        beside=tuple(
            SideRow(name=str(b["name"]), size=made("storage_bytes", b["bytes"], "B"))
            for b in (proof.get("beside") or [])
        ),
        parity=tuple(
            ParityRow(
                artifact=str(p["artifact"]),
                n=int(p["n"]),
                largest_error=made("largest_error", p["largest_error"], n=int(p["n"])),
                agreement=made("agreement", p["agreement"], n=int(p["n"]))
                if "agreement" in p
                else None,
            )
            for p in (proof.get("parity") or [])
        ),
        by=_BY.get(proof["task"], "onnxruntime and numpy alone"),
        snippet=snippet(proof["task"], chosen, decides=proof.get("decides", "classes")),
    )
