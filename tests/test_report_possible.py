"""What else is possible, in the report: charts, devices, hover texts, and runs without a store."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from sample_run import plan_json, proof_json, run_json, sample_run
from test_frontier import row
from test_report import HOSTILE, Page, read, write

from tutelage.devices import HOST, list_devices
from tutelage.errors import CorruptFileError
from tutelage.report import build_report
from tutelage.report.frontier_chart import Mark, Spot, _pixels, places


def scores() -> dict:
    """Return a store: small to huge, one beaten, one taught in full that is the run's student."""
    rows = [row(1, 0.9), row(4, 0.88), row(6, 0.95, 0.96), row(60, 0.97), row(4_000, 0.98)]
    rows[2]["spec"] = run_json()["stages"]["distill"]["result"]["spec"]
    return {"format": 1, "lesson": "x", "rows": rows}


def section(text: str) -> str:
    found = re.search(r'<section id="possible".*?</section>', text, re.S)
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> str:
    folder = sample_run(tmp_path_factory.mktemp("run"))
    return read(write(folder, scores=scores()))


def test_there_is_a_chart_for_each_cost_with_its_kinds(shown):
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", section(shown), re.S)
    words = [" ".join(re.sub(r"<[^>]*>", " ", title).split()) for title in titles]
    assert words == [
        "Accuracy M (measured) against storage P (predicted)",
        "Accuracy M (measured) against latency P (predicted)",
        "Accuracy M (measured) against energy per inference E (estimated)",
    ]
    page = Page(shown)
    for i in page.tagged("svg"):
        holder = page.elements[page.elements[i][2][-1]][1]
        assert holder["role"] == "img" and len(holder["aria-label"]) > 20


def test_every_student_can_be_hovered(shown):
    for drawing in re.findall(r"<svg.*?</svg>", section(shown), re.S):
        titles = re.findall(r"<title>(.*?)</title>", drawing)
        students = [t for t in titles if not t.startswith("fits ")]
        assert len(students) == 5
        assert sum(t.endswith("chosen") for t in students) == 1
        assert sum(t.endswith("beaten") for t in students) == 1
        assert all("(measured, " in t for t in students)
        assert sum("full distillation" in t for t in students) == 1
        assert drawing.count('opacity="0.45"') == 1


def test_every_known_device_is_named_once_by_its_student(shown):
    text = section(shown).replace("\u2011", "-")
    listed = re.findall(r"<dt>(.*?)</dt><dd>(.*?) <small>", text)
    devices = [name for _, names in listed for name in names.split(", ")]
    assert sorted(devices) == [n for n in list_devices() if n != HOST]
    letters = [letter for letter, _ in listed]
    assert letters == ["A", "B", "C"][: len(letters)] and len(letters) > 1
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        marks = re.findall(r"<title>fits (.*?)</title>", drawing)
        assert len(marks) == len(letters)
        assert "raspberry-pi-5" in "".join(marks)


def test_a_device_that_none_fits_is_told_with_the_reason(tmp_path):
    huge = {"format": 1, "rows": [row(4_000, 0.98)]}
    text = section(read(write(sample_run(tmp_path), scores=huge)))
    assert "nucleo-l4r5 <small>too little storage for each of them" in text


def test_a_device_that_is_not_shipped_takes_the_figures_of_the_plan(tmp_path):
    proof, store, plan = proof_json(), scores(), plan_json()
    proof["device"]["name"] = "my-board"
    text = section(read(write(tmp_path, run=run_json(), plan=plan, proof=proof, scores=store)))
    assert "4 are left out: the plan holds no figures for them on my-board" in text
    assert "24.3 kB" in text, "the plan's figure of the one that it lists"


def test_old_runs_and_empty_stores_have_no_such_section(tmp_path):
    assert "What else is possible" not in read(sample_run(tmp_path / "old"))
    empty = write(sample_run(tmp_path / "empty"), scores={"format": 1, "rows": [row(1, None)]})
    assert "What else is possible" not in read(empty)
    early = write(tmp_path / "early", run=run_json(), scores=scores())
    assert "What else is possible" not in read(early), "nothing is proven yet"


@pytest.mark.parametrize(
    "damage",
    ["{", "[1]", '{"format": 2, "rows": []}', '{"format": 1, "rows": [{"spec": {}}]}', "{}x"],
)
def test_a_damaged_store_is_told_and_leaves_the_earlier_report(tmp_path, damage):
    folder = sample_run(tmp_path)
    (folder / "report.html").write_text("earlier", encoding="utf-8")
    (folder / "scores.json").write_text(damage, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"scores\.json is damaged") as caught:
        build_report(folder)
    assert "\n" not in str(caught.value)
    assert (folder / "report.html").read_text(encoding="utf-8") == "earlier"


def test_figures_of_an_unknown_kind_are_damage(tmp_path):
    store = scores()
    store["rows"][0]["trial"]["kind"] = "guessed"
    with pytest.raises(CorruptFileError, match="guessed"):
        build_report(write(sample_run(tmp_path), scores=store))


def test_hostile_specs_are_escaped(tmp_path, shown):
    store = scores()
    for one, name in zip(store["rows"], HOSTILE[:-1], strict=False):
        one["spec"]["block"] = name
    text = read(write(sample_run(tmp_path), scores=store))
    for tag in ("script", "img", "b", "svg", "style"):
        assert len(Page(text).tagged(tag)) == len(Page(shown).tagged(tag)), tag


def test_charts_follow_the_theme(shown):
    from tutelage.report import build

    style = (Path(build.__file__).parent / "style.css").read_text(encoding="utf-8")
    rules = set(re.findall(r'svg \[(fill|stroke)="(#[0-9a-f]{6})"\]', style))
    used = set(re.findall(r'\b(fill|stroke)="(#[0-9a-f]{3,6}|black|white)"', section(shown)))
    assert used <= rules, used - rules


@pytest.mark.parametrize("apart", [0.0, 0.002, 0.02, 0.2])
def test_letters_never_touch(apart):
    ends = [(1.0, 0.5), (1000.0, 1.0)]
    near = [(30.0 * 10 ** (3 * apart * i), 0.8 + 0.3 * apart * i) for i in range(5)]
    spots = [Spot(x=x, y=y, state="beaten", frontier=False, text="") for x, y in [*ends, *near]]
    marks = [Mark(letter=x, at=s, text="") for x, s in zip("ABCDEFG", spots, strict=True)]
    pixels = _pixels(spots)
    at = [
        (pixels(m.at)[0] + dx, pixels(m.at)[1] + dy)
        for m, (dx, dy) in zip(marks, places(marks, spots), strict=True)
    ]
    assert min(math.dist(a, b) for i, a in enumerate(at) for b in at[:i]) >= 15
