"""What else the students that were tried make possible: the frontier, and every known device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from tutelage.devices import HOST, list_devices, load_device
from tutelage.measure.frontier import (
    AXES,
    Choice,
    Placed,
    Tried,
    choose_all,
    place,
    read_tried,
    with_frontier,
)
from tutelage.records import Kind, Measurement, SideFile
from tutelage.report.canvas import Chart
from tutelage.report.figures import Figure, headline, label, measurement, show, weakest
from tutelage.report.frontier_chart import Mark, Spot, frontier_chart
from tutelage.report.overview import describe

Figures = dict[str, Measurement]
_Key = tuple[str, str]  # a spec and a precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Known devices that share a student, under the letter that stands for them in the charts."""

    letter: str
    devices: tuple[str, ...]
    what: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Possible:
    """The charts, the devices grouped by student, those that none fits with the reason, a lead."""

    lead: str
    charts: tuple[Chart, ...]
    groups: tuple[Group, ...]
    without: tuple[tuple[str, str], ...]


def planned_figures(plan: dict[str, Any]) -> dict[str, Figures]:
    """Return the figures of plan.json's candidates by their specs in words."""
    return {
        describe(c["spec"]): {m["name"]: measurement(m) for m in c["figures"]}
        for c in plan.get("candidates") or []
    }


def possible(
    scores: dict[str, Any], device: str, beside: Sequence[SideFile], planned: dict[str, Figures],
    chosen: dict[str, Any] | None,
) -> Possible | None:  # fmt: skip
    """Return the section, or None where no student was tried.

    Where the profile of `device` is not a shipped one, the figures are those that were `planned`,
    and the lead says how many students have none.
    """
    tried = read_tried(scores)
    if not tried:
        return None
    for row in tried:
        measurement(row.figure.to_json())  # its kind is one that there is
    placed, left = _placed(tried, device, beside, planned)
    choices = choose_all(tried, beside)
    groups = _grouped(choices)
    charts = [_chart(axis, placed, groups, chosen) for axis in AXES]
    return Possible(
        lead=_lead(tried, device, left),
        charts=tuple(chart for chart in charts if chart is not None),
        groups=tuple(_group(letter, own) for letter, own in groups.items()),
        without=tuple((c.device.name, c.reason) for c in choices if c.best is None),
    )


def _placed(
    tried: Sequence[Tried], device: str, beside: Sequence[SideFile], planned: dict[str, Figures]
) -> tuple[tuple[Placed, ...], int]:
    if device != HOST and device in list_devices():
        return place(tried, load_device(device), beside), 0
    known = [(t, planned[describe(t.spec)]) for t in tried if describe(t.spec) in planned]
    return with_frontier(known), len(tried) - len(known)


def _lead(tried: Sequence[Tried], device: str, left: int) -> str:
    metric = headline(_metric(tried[0]))
    taught = sum(t.taught for t in tried)
    full = f" or, for {taught:,} of them, a full distillation" if taught else ""
    words = (
        f"{len(tried):,} students were tried. The line joins those that no other beats on both "
        f"counts on {device}; {metric} is measured on validation, after a short trial{full}. A "
        "letter marks the best student within the memory and storage of the devices listed."
    )
    if left:
        words += f" {left:,} are left out: the plan holds no figures for them on {device}."
    return words


def _grouped(choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    """Return the devices that share a student under one letter each, the best student first."""
    found: dict[_Key, list[Choice]] = {}
    for choice in choices:
        if choice.best is not None:
            found.setdefault(_key(choice.best.tried), []).append(choice)
    ordered = sorted(found.values(), key=lambda own: -_best(own[0]).tried.figure.value)
    letters = (ascii_uppercase[i % 26] * (1 + i // 26) for i in range(len(ordered)))
    return dict(zip(letters, ordered, strict=True))


def _group(letter: str, own: Sequence[Choice]) -> Group:
    tried = _best(own[0]).tried
    return Group(
        letter=letter,
        devices=tuple(choice.device.name.replace("-", "\u2011") for choice in own),
        what=f"{describe(tried.spec)}, {tried.precision}",
        figure=show(tried.figure),
    )


def _chart(
    axis: str, placed: Sequence[Placed], groups: dict[str, list[Choice]],
    chosen: dict[str, Any] | None,
) -> Chart | None:  # fmt: skip
    known = [p for p in placed if axis in p.costs]
    if not known:
        return None
    spots = [_spot(p, axis, chosen) for p in known]
    at = {_key(p.tried): spot for p, spot in zip(known, spots, strict=True)}
    marks = [
        Mark(letter=letter, at=at[key], text=_devices_text(own, axis))
        for letter, own in groups.items()
        if (key := _key(_best(own[0]).tried)) in at
    ]
    kinds: list[Kind] = [p.costs[axis].kind for p in known]
    return frontier_chart(
        tuple(spots), tuple(marks), axis=label(axis), unit=known[0].costs[axis].unit,
        metric=_metric(known[0].tried), kind=weakest(kinds),
    )  # fmt: skip


def _spot(placed: Placed, axis: str, chosen: dict[str, Any] | None) -> Spot:
    tried, cost = placed.tried, placed.costs[axis]
    on = axis in placed.frontier
    own = chosen is not None and tried.spec == chosen
    state = "chosen" if own else "on the frontier" if on else "beaten"
    found = "full distillation" if tried.taught else "trial"
    shown, metric = show(cost), show(tried.figure)
    return Spot(
        x=cost.value,
        y=tried.figure.value,
        state=state,
        frontier=on,
        text=f"{describe(tried.spec)}, {tried.precision}: {metric.text} ({metric.kind}, {found}), "
        f"{shown.text} ({shown.kind}); {state}",
    )


def _devices_text(own: Sequence[Choice], axis: str) -> str:
    """Name the devices of a group, each with the student's cost on it."""
    parts = []
    for choice in own:
        cost = _best(choice).costs.get(axis)
        said = "no figure" if cost is None else f"{show(cost).text} ({cost.kind})"
        parts.append(f"{choice.device.name} {said}")
    return f"fits {', '.join(parts)}"


def _best(choice: Choice) -> Placed:
    assert choice.best is not None  # groups hold no other
    return choice.best


def _key(tried: Tried) -> _Key:
    return describe(tried.spec), tried.precision


def _metric(tried: Tried) -> str:
    return tried.figure.name.removesuffix("_validation")
