"""How closely the student follows the teacher: agreement, calibration, classes, examples."""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from tutelage.report.canvas import Chart
from tutelage.report.charts import Bin, reliability_chart
from tutelage.report.figures import Figure, label, made, points, quantity, read_figure
from tutelage.report.values import Point, value_chart

_IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=\s]+\Z")
_FIDELITY = (
    "Fidelity is not accuracy: a student can be right where the teacher is wrong, and the other "
    "way round."
)
_OF_VALUES = (
    "Fidelity is not error: a student can be nearer to the label than its teacher, and the other "
    "way round."
)
_UNLABELLED = "The test examples have no labels, so nothing here says how often either is right."
_OF_TOKENS = "Token by token on held-out text, of the file that ships."
_OF_BYTES = (
    "Teacher and student have tokenizers of their own, so there is no KL divergence a token and no "
    "share of equal likeliest tokens: the next token of the one is none of the other. Bits per "
    "byte say how well each foretells the same held-out text, less is better; the student is the "
    "file that ships. "
    "Perplexities count tokens, and those of two tokenizers do not compare."
)
_PNG = "data:image/png;base64,"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class; `level` from -4 (lost most) to 4 (gained most) colours the change."""

    name: str
    n: int
    teacher: Figure
    student: Figure
    change: Figure
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example on which teacher and student differ, shown as an image or as words.

    `image` is a data URI and `alt` its text; both are empty when `text` is shown. `wide` says that
    the image is a drawing broader than high, `label` and `right` are empty without a label. Values
    have no confidence.
    """

    image: str
    alt: str
    wide: bool
    text: str
    label: str
    teacher: str
    student: str
    teacher_confidence: Figure | None
    student_confidence: Figure | None
    right: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Named figures, the reliability chart, the table by class and the differing examples.

    `lead` says what the figures mean; `unseen` are classes without test examples. With `values`,
    decisions are values: the chart sets them against the labels, and there are no classes.
    """

    lead: str
    figures: tuple[tuple[str, Figure], ...]
    chart: Chart | None
    classes: tuple[ClassRow, ...]
    unseen: tuple[str, ...]
    examples: tuple[Example, ...]
    values: bool = False


def fidelity(proof: dict[str, Any]) -> Fidelity:
    """Return what the proof says of fidelity; parts that it lacks are empty."""
    if proof.get("decides") == "values":
        return _of_values(proof)
    given = proof.get("classes") or []
    of_tokens = _OF_BYTES if proof.get("metric") == "bits_per_byte" else _OF_TOKENS
    lead = of_tokens if proof.get("decides") == "tokens" else _UNLABELLED
    seen = [c for c in given if c["teacher"] is not None and c["student"] is not None]
    seen.sort(key=lambda c: c["student"] - c["teacher"])
    return Fidelity(
        lead=_FIDELITY if given else lead,
        figures=tuple((label(m["name"]), read_figure(m)) for m in proof.get("fidelity") or []),
        chart=_reliability(proof.get("reliability") or {}),
        classes=tuple(_class(c) for c in seen),
        unseen=tuple(str(c["name"]) for c in given if c not in seen),
        examples=tuple(_example(d) for d in proof.get("differences") or []),
    )


def _of_values(proof: dict[str, Any]) -> Fidelity:
    named = {"kept": "Teacher’s R² kept"}
    figures = proof.get("fidelity") or []
    return Fidelity(
        lead=_OF_VALUES,
        figures=tuple((named.get(m["name"]) or label(m["name"]), read_figure(m)) for m in figures),
        chart=_cloud(proof.get("points") or []),
        classes=(),
        unseen=(),
        examples=tuple(_valued(d) for d in proof.get("differences") or []),
        values=True,
    )


def _cloud(given: list[dict[str, Any]]) -> Chart | None:
    points = tuple(
        Point(who=who, label=float(p["label"]), value=float(p[who]))
        for who in ("teacher", "student")
        for p in given
    )
    return value_chart(points) if points else None


def _class(c: dict[str, Any]) -> ClassRow:
    n, change = int(c["n"]), c["student"] - c["teacher"]
    size = 0 if abs(change) < 0.0005 else 1 + sum(abs(change) > step for step in (0.01, 0.03, 0.06))
    return ClassRow(
        name=str(c["name"]),
        n=n,
        teacher=made("accuracy", c["teacher"], n=n),
        student=made("accuracy", c["student"], n=n),
        change=Figure(text=points(change), kind="measured", hint="measured: points"),
        level=size if change > 0 else -size,
    )


def _example(d: dict[str, Any]) -> Example:
    image, text = d.get("image"), d.get("text")
    if (image is None) == (text is None):
        raise ValueError("an example is to have either an image or a text")
    sure = made("confidence", d["teacher_confidence"]), made("confidence", d["student_confidence"])
    told = "without a label" if d["label"] is None else f"labelled {d['label']}"
    alt = (
        f"An image {told}: the teacher decides {d['teacher']} ({sure[0].text} sure), the student "
        f"{d['student']} ({sure[1].text} sure)"
    )
    return Example(
        image="" if image is None else _image(image),
        alt="" if image is None else alt,
        wide=image is not None and _wide(image),
        text="" if text is None else _words(text),
        label="" if d["label"] is None else str(d["label"]),
        teacher=str(d["teacher"]),
        student=str(d["student"]),
        teacher_confidence=sure[0],
        student_confidence=sure[1],
        right=_right(d),
    )


def _valued(d: dict[str, Any]) -> Example:
    """Return an example whose label and decisions are values."""
    image, text = d.get("image"), d.get("text")
    told = {who: quantity("value", d[who], "1") for who in ("label", "teacher", "student")}
    off = {who: abs(d[who] - d["label"]) for who in ("teacher", "student")}
    nearer = min(off, key=lambda who: off[who])
    return Example(
        image="" if image is None else _image(image),
        alt=f"A drawing labelled {told['label']}: the teacher says {told['teacher']}, the student "
        f"{told['student']}",
        wide=image is not None and _wide(image),
        text="" if text is None else _words(text),
        **told,
        teacher_confidence=None,
        student_confidence=None,
        right="equally near" if off["teacher"] == off["student"] else f"{nearer} nearer",
    )


def _right(d: dict[str, Any]) -> str:
    if d["label"] is None:
        return ""
    right = [who for who in ("teacher", "student") if d[who] == d["label"]]
    return f"{right[0]} right" if len(right) == 1 else "both right" if right else "both wrong"


def _image(image: str) -> str:
    if not _IMAGE.match(image):
        raise ValueError("an example image is not a data URI of a PNG, JPEG, WebP or GIF")
    return image


def _wide(image: str) -> bool:
    """Say whether a PNG is half as broad again as it is high, by its header."""
    if not image.startswith(_PNG):
        return False
    head = base64.b64decode("".join(image[len(_PNG) : len(_PNG) + 64].split())[:32])
    return int.from_bytes(head[16:20]) > 1.5 * int.from_bytes(head[20:24])


def _words(text: str) -> str:
    """Return a text on one line; what cannot be shown becomes the replacement character."""
    shown = (c if unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in _line(text))
    return "".join(shown) or "(an empty text)"


def _line(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"an example's text is a {type(text).__name__}")
    return " ".join(text.split())


def _reliability(given: dict[str, Any]) -> Chart | None:
    bins = [
        Bin(who=who, confidence=b["confidence"], accuracy=b["accuracy"], n=int(b["n"]))
        for who in ("student", "teacher")
        for b in given.get(who, [])
        if b["n"] and b["confidence"] is not None and b["accuracy"] is not None
    ]
    return reliability_chart(tuple(bins)) if bins else None
