"""The first screen: one sentence, one verdict, what went in and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tutelage.records import Measurement
from tutelage.report.figures import (
    Figure,
    headline,
    label,
    made,
    measurement,
    quantity,
    ratio,
    read_figure,
    show,
)

State = Literal["good", "bad", "open"]
Words = tuple[str | Figure, ...]
Rows = tuple[tuple[str, Words], ...]
_SPARE = {
    "storage_bytes": "storage",
    "ram_bytes": "memory",
    "latency_s": "time",
    "energy_j": "energy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One large figure with its name and a line that puts it beside something."""

    name: str
    figure: Figure
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The headline in parts (text and figures), the badge, tiles, and the in and out lists."""

    sentence: Words
    badge: str
    state: State
    tiles: tuple[Tile, ...]
    went_in: Rows
    came_out: Rows


def overview(proof: dict[str, Any], begun: bool, went_in: Rows, came_out: Rows) -> Overview:
    """Summarise the proof, which may be empty, after the rows that the stages gave."""
    badge, state = _verdict(proof)
    return Overview(
        sentence=_sentence(proof, begun),
        badge=badge,
        state=state,
        tiles=_tiles(proof),
        went_in=(*went_in, *_device(proof)),
        came_out=(*came_out, *_shipped(proof)),
    )


def _verdict(proof: dict[str, Any]) -> tuple[str, State]:
    if not proof:
        return "Not proven yet", "open"
    if proof["status"] != "met":
        return "Budget missed", "bad"
    soft = any(not v["met"] and not v["hard"] for v in _verdicts(proof))
    return ("Budget met, a soft limit missed" if soft else "Budget met"), "good"


def _sentence(proof: dict[str, Any], distilled: bool) -> Words:
    if not proof:
        what = "A student is distilled" if distilled else "The run has begun"
        return (f"{what}; nothing is proven yet. Run the same command again to go on.",)
    return (*_who(proof), *_kept(proof), *_fits(proof))


def _who(proof: dict[str, Any]) -> Words:
    for artifact in proof.get("artifacts") or []:
        if artifact["path"] == proof.get("chosen"):
            stored = [f for f in proof["figures"]["student"] if f["name"] == "storage_bytes"]
            size = made("storage_bytes", artifact["bytes"], "B")
            size = read_figure(stored[0]) if stored else size
            return ("A ", size, f" {artifact['precision']} student")
    return ("The student",)


def _kept(proof: dict[str, Any]) -> Words:
    metric = proof.get("metric", "accuracy")
    if _valued(proof):
        return _kept_of_values(proof)
    if metric not in ("accuracy", "agreement"):
        return _kept_of(metric, proof)
    for data in proof.get("fidelity") or []:
        if data["name"] == "kept":
            return (" keeps ", show(measurement(data)), " of the teacher’s test accuracy")
    for data in (proof.get("figures") or {}).get("student") or []:
        if data["name"] == "agreement_test":
            same = show(measurement(data))
            return (" decides as its teacher on ", same, " of the test examples")
    return (" is measured",)


def _kept_of(metric: str, proof: dict[str, Any]) -> Words:
    """Say how the student compares by a metric whose ratio has no interval of its own."""
    found = {}
    for who in ("student", "teacher"):
        rows = [measurement(m) for m in proof["figures"][who]]
        found[who] = next((m for m in rows if m.name == f"{metric}_test"), None)
    student, teacher = found["student"], found["teacher"]
    if student is None or teacher is None:
        return (" is measured",)
    name = label(metric).lower().replace("f1", "F1")
    some = "" if metric == "bits_per_byte" else "a "
    return (f" has {some}test {name} of ", show(student), " where the teacher has ", show(teacher))


def _kept_of_values(proof: dict[str, Any]) -> Words:
    for data in proof.get("fidelity") or []:
        if data["name"] == "kept":
            share = show(measurement(data))
            return (" keeps ", share, " of the teacher’s R² on the test split")
    for data in (proof.get("figures") or {}).get("student") or []:
        if data["name"] == "r2_test":
            return (" has an R² of ", show(measurement(data)), " on the test split")
    return (" is measured",)


def _valued(proof: dict[str, Any]) -> bool:
    return proof.get("decides") == "values"


def _fits(proof: dict[str, Any]) -> Words:
    device = proof["device"]["name"]
    missed = [v for v in _verdicts(proof) if not v["met"]]
    hard = next((v for v in missed if v["hard"]), None)
    if hard is not None or proof["status"] != "met":
        if hard is None:
            return (f" but does not meet the budget of {device}.",)
        name, unit = label(hard["metric"]).lower(), unit_of(hard["metric"])
        value = made(hard["metric"], hard["value"], unit, hard["kind"], where=hard["where"])
        limit = quantity(hard["metric"], hard["limit"], unit)
        would_do = (proof.get("would_do") or {}).get("device")
        other = (f" The {would_do} would do.",) if would_do else ()
        return (
            f" but misses the budget of {device}: {name} ",
            value,
            f" where {limit} is asked.",
            *other,
        )
    kept = [v for v in _verdicts(proof) if v["met"] and v["metric"] in _SPARE]
    if not kept:
        return (f", proven for {device}.",)
    tight = min(kept, key=lambda v: v["margin"])
    spare = made("share", tight["margin"], kind=tight["kind"], where=tight["where"])
    rest = "" if len(kept) == 1 else ", its tightest limit,"
    return (
        f" and fits the {device} with ",
        spare,
        f" of its {_SPARE[tight['metric']]}{rest} to spare.",
    )


def _verdicts(proof: dict[str, Any]) -> list[dict[str, Any]]:
    return proof.get("verdicts") or []


def unit_of(metric: str) -> str:
    """Return the SI unit of a limit."""
    return {"s": "s", "bytes": "B", "j": "J"}.get(metric.rpartition("_")[2], "1")


def _tiles(proof: dict[str, Any]) -> tuple[Tile, ...]:
    if not proof:
        return ()
    figures = proof.get("figures") or {}
    students = [measurement(m) for m in figures.get("student") or []]
    teachers = [measurement(m) for m in figures.get("teacher") or []]
    tiles = []
    device = (proof.get("device") or {}).get("name", "")
    metric = proof.get("metric", "accuracy")
    for names, title in (
        ((f"{metric}_test",), _test_title(metric)),
        (("mae_test",), "Mean absolute error, test"),
        (("storage_bytes",), "Storage"),
        # The named device's own figure, where its profile has one, before that of this machine.
        (("latency_s", "latency_p50_s"), "Latency"),
        (("energy_j",), "Energy per inference"),
    ):
        own = next((m for name in names for m in students if m.name == name), None)
        if own is not None:
            title += f" on {device}" if own.name == "latency_s" and device else ""
            other = _beside(own, teachers)
            tiles.append(Tile(name=title, figure=show(own), note=_note(own, other)))
    return tuple(tiles)


def _test_title(metric: str) -> str:
    return "Agreement with the teacher" if metric == "agreement" else f"Test {headline(metric)}"


def _beside(own: Measurement, teachers: list[Measurement]) -> Measurement | None:
    """Find the teacher's figure that compares: speed and energy only on the same machine."""
    same = [m for m in teachers if m.name == own.name]
    if own.name in ("latency_s", "latency_p50_s", "energy_j"):
        same = [m for m in same if m.where == own.where]
    return same[0] if same else None


def _note(own: Measurement, other: Measurement | None) -> str:
    if other is None:
        return own.where
    theirs = quantity(other.name, other.value, other.unit)
    if own.name.endswith("_test"):
        return f"teacher {theirs}"
    if not own.value > 0 or not other.value > own.value:
        return f"teacher {theirs}"
    return f"{ratio(other.value, own.value)} less than the teacher’s {theirs}"


def went_in(
    data: dict[str, Any], teacher: dict[str, Any], rehearsal: dict[str, Any] | None = None
) -> Rows:
    """Say what the run was given, from the results of its stages of these names."""
    rows: list[tuple[str, Words]] = []
    if data:
        counts = ", ".join(f"{int(n):,} {split}" for split, n in data["counts"].items())
        rows.append(("Data", (str(data["source"]),)))
        if "sequences" in data:
            length = f"{int(data['length']):,}"
            rows.append(("Tokens", (f"{counts}; in sequences of {length}",)))
        else:
            shape = "\u00a0×\u00a0".join(str(int(side)) for side in data["shape"])
            rows.append(("Examples", (f"{counts}; each {shape}, {_labels(data)}",)))
        rows += [("Generated", (_generated(data["generated"]),))] if "generated" in data else []
    if rehearsal:
        rows.append(("Written freely", (_rehearsed(rehearsal),)))
    if teacher:
        rows.append(("Teacher", (str(teacher["source"]),)))
        if teacher.get("parameters") is not None:
            rows.append(("", (made("parameters", teacher["parameters"]), " parameters")))
        if "student" in teacher:
            rows.append(("Student given", (str(teacher["student"]["source"]),)))
    return tuple(rows)


def _generated(made: dict[str, Any]) -> str:
    """Say what became of the answers that the teacher was asked for, and of its prompts."""
    counts = [f"{int(n):,} {why}" for why, n in made["left_out"].items()]
    for key, words in (("doubled", "prompts given twice"), ("long", "prompts too long")):
        counts += [f"{words}: {int(made[key]):,}"] if made[key] else []
    kept = f"{int(made['kept']):,} of {int(made['answers']):,} answers to {int(made['prompts']):,}"
    return "; ".join([f"{kept} prompts are kept", *counts])


def _rehearsed(made: dict[str, Any]) -> str:
    """Say how much the teacher wrote to be learned beside the texts, and what that looks like."""
    counts = f"{int(made['tokens']):,} tokens in {int(made['sequences']):,} sequences"
    return f"{counts} by the teacher, such as \u2018{made['shown']}\u2026\u2019"


def _labels(data: dict[str, Any]) -> str:
    if "target" not in data:
        return f"{len(data['classes']):,} classes"
    mean, std = (quantity("value", data["target"][key], "1") for key in ("mean", "std"))
    return f"one value: mean {mean}, spread {std}"


def came_out(distilled: dict[str, Any]) -> Rows:
    """Say what the student is, from the result of the stage `distill`."""
    if not distilled:
        return ()
    size = made("parameters", distilled["parameters"])
    return ("Student", (describe(distilled["spec"]),)), ("", (size, " parameters"))


def _device(proof: dict[str, Any]) -> Rows:
    return (("Device", (str(proof["device"]["title"]),)),) if proof else ()


def _shipped(proof: dict[str, Any]) -> Rows:
    if not proof:
        return ()
    met = sum(bool(v["met"]) for v in _verdicts(proof))
    limits = f"{met} of {len(proof['verdicts'])} met"
    chosen = proof.get("chosen")
    rows: Rows = (("Artifact", (str(chosen),)),) if chosen else ()
    return (*rows, ("Limits", (limits,)))


def describe(spec: dict[str, Any]) -> str:
    """Write a student spec in a few words."""
    what, detail = structure(spec)
    return f"{what}; {detail}" if detail else what


def structure(spec: dict[str, Any]) -> tuple[str, str]:
    """Return a spec's size and its other knobs in words; an unknown family lists all of them."""
    if spec.get("family") == "graph":
        outs = [node["out"] for node in spec["nodes"] if "out" in node]
        # The sum tells slices apart whose narrowest and widest layers are given.
        detail = f"{len(outs)} layers, {sum(outs):,} channels in all"
        return f"widths\u00a0{min(outs)} to {max(outs)}", detail
    if spec.get("family") == "decoder" and "vocabulary" in spec:
        detail = f"{spec['groups']} groups, {spec['hidden']:,} numbers a token, knows "
        size = f"{spec['layers']}\u00a0layers, {spec['inner']:,}\u00a0units"
        return size, f"{spec['kind']}, {detail}{spec['vocabulary']:,} tokens"
    if "widths" not in spec or "depths" not in spec:
        return ", ".join(f"{k} {_plain(v)}" for k, v in spec.items()) or "unknown", ""
    kernel = f"kernel {spec['kernel']}" if "kernel" in spec else ""
    family = " ".join(str(spec[key]) for key in ("block", "family") if key in spec)
    size = f"widths\u00a0{_plain(spec['widths'])}, depths\u00a0{_plain(spec['depths'])}"
    small = f"pixels averaged {spec['shrink']} by {spec['shrink']}" if "shrink" in spec else ""
    return size, ", ".join(part for part in (family, kernel, small) if part)


def _plain(value: Any) -> str:
    # the hyphen that does not break a line
    return "\u2011".join(str(v) for v in value) if isinstance(value, list) else str(value)
