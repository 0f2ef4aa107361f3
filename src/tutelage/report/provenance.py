"""Where everything came from: versions, machine, seeds, hashes, command, recipe, time, notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.report.figures import Figure, made


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage: its time and the files that it wrote, as (path, SHA-256)."""

    name: str
    seconds: Figure
    inputs: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Facts as (name, text); `notes` and fallbacks in the order they were written."""

    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    stages: tuple[StageRow, ...]
    total: Figure | None
    signals: tuple[tuple[str, Figure], ...]
    notes: tuple[str, ...]
    recipe: str


def provenance(run: dict[str, Any], proof: dict[str, Any]) -> Provenance:
    """Return the section from the manifest and the proof; either may be empty."""
    stages = run.get("stages") or {}
    results = {name: record["result"] or {} for name, record in stages.items()}
    rows = tuple(
        StageRow(
            name=str(name),
            seconds=made("seconds", record["seconds"], "s"),
            inputs=str(record["inputs"]),
            files=tuple((str(p), str(h)) for p, h in record["files"].items()),
        )
        for name, record in stages.items()
    )
    whole = sum(record["seconds"] for record in stages.values())
    return Provenance(
        facts=_facts(run, results),
        versions=tuple((str(k), str(v)) for k, v in (run.get("versions") or {}).items()),
        stages=rows,
        total=made("seconds", whole, "s") if rows else None,
        signals=_signals(results.get("signals") or {}),
        notes=_notes(run, results, proof),
        recipe=str(proof.get("recipe", "")),
    )


def _facts(run: dict[str, Any], results: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    machine = run.get("machine") or {}
    facts = [
        ("Command", run.get("command")),
        ("Created", run.get("created")),
        ("tutelage", run.get("tutelage")),
        ("Seed", (results.get("distill") or {}).get("seed")),
        ("Data fingerprint", (results.get("data") or {}).get("fingerprint")),
        ("Teacher fingerprint", (results.get("teacher") or {}).get("fingerprint")),
        *((str(name).capitalize(), text) for name, text in machine.items()),
    ]
    return tuple((name, str(text)) for name, text in facts if text not in (None, ""))


def _signals(signals: dict[str, Any]) -> tuple[tuple[str, Figure], ...]:
    names = (("bytes", "Signal cache"), ("bytes_per_example", "Signal, each example"))
    return tuple((text, made(key, signals[key], "B")) for key, text in names if key in signals)


def _notes(run: dict[str, Any], results: dict[str, Any], proof: dict[str, Any]) -> tuple[str, ...]:
    given = [
        *(run.get("notes") or []),
        *((results.get("data") or {}).get("notes") or []),
        *((results.get("teacher") or {}).get("notes") or []),
        *(proof.get("notes") or []),
    ]
    return tuple(dict.fromkeys(str(note) for note in given))
