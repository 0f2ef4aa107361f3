"""The report, built from a synthetic run and opened as its reader would."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_run import DIGITS, plan_json, proof_json, run_json, sample_run

from tutelage.errors import CorruptFileError
from tutelage.report import build, build_report
from tutelage.report.source import load

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }}",
    "</style><b>bold</b>",
    "nul\0 and \ud800 half",
)
STYLE = (Path(build.__file__).parent / "style.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements in order as (tag, attributes, ancestors), and the text under each."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[int, ...]]] = []
        self.texts: dict[int, str] = {}
        self._open: list[int] = []
        self.feed(text)
        assert not self._open, "an element is left open"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}, tuple(self._open)))
        if tag not in self.VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}, tuple(self._open)))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for i in self._open:
            self.texts[i] = self.texts.get(i, "") + data

    def having(self, name: str) -> list[int]:
        return [
            i for i, (_, a, _) in enumerate(self.elements) if name in a.get("class", "").split()
        ]

    def tagged(self, tag: str) -> list[int]:
        return [i for i, (found, _, _) in enumerate(self.elements) if found == tag]

    def text(self, i: int) -> str:
        return " ".join(self.texts.get(i, "").split())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    return build_report(sample_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(built) -> Page:
    return Page(built)


def write(folder: Path, **files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def read(folder: Path) -> str:
    return build_report(folder).read_text(encoding="utf-8")


def headline(text: str) -> str:
    shown = Page(text)
    return re.sub(
        r" ?[MPE] ?\((measured|predicted|estimated)\)", "", shown.text(shown.tagged("h1")[0])
    )


def test_headline_says_what_came_out_and_how_tight_it_is(built):
    assert headline(built) == (
        "A 24.3 kB int8 student keeps 98.9 % of the teacher’s test accuracy and fits the "
        "nucleo-l4r5 with 40.3 % of its memory, its tightest limit, to spare."
    )
    assert "Budget met" in built


def test_missed_limit_is_named(tmp_path):
    text = read(sample_run(tmp_path, met=False))
    assert headline(text).endswith(
        "but misses the budget of nucleo-l4r5: latency 61 ms where 40 ms is asked."
    )
    assert "Budget missed" in text
    first = text.index('class="stack budget"')
    row = text[first:].split("<tbody", 1)[1].split("</tr>")[0]
    assert "Latency" in row and "missed" in row and "52.5 %" in row and "over" in row


def test_soft_miss_keeps_the_verdict_but_says_so(tmp_path):
    proof = proof_json()
    proof["verdicts"][4].update(met=False, value=0.95)
    assert "Budget met, a soft limit missed" in read(write(tmp_path, proof=proof))


def test_sections_stand_in_order(page):
    shown = [page.elements[i][1].get("id") for i in page.tagged("section")]
    assert [name for name in shown if name] == [
        "budget",
        "comparison",
        "candidates",
        "fidelity",
        "classes",
        "differences",
        "training",
        "artifacts",
        "provenance",
    ]
    levels = [int(t[1]) for t, _, _ in page.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), "a level is skipped"


def test_every_figure_carries_its_kind(page):
    shown = page.having("fig")
    assert len(shown) > 100
    for i in shown:
        kind = page.elements[i][1]["data-kind"]
        assert kind in ("measured", "predicted", "estimated")
        assert f"({kind})" in page.text(i), f"no tag in words: {page.text(i)}"
        inner = [j for j in page.having("kind") if i in page.elements[j][2]]
        assert [page.elements[j][1]["class"] for j in inner] == [f"kind {kind}"]
        # where the tag is hidden for calm, the head of the column shows it
        tables = [a for a in page.elements[i][2] if page.elements[a][0] == "table"]
        if tables and "quiet" in page.elements[tables[-1]][1].get("class", ""):
            heads = [j for j in page.tagged("th") if tables[-1] in page.elements[j][2]]
            assert any(f"({kind})" in page.text(j) for j in heads)
    for i in page.having("num"):
        assert any(a in shown for a in page.elements[i][2])


@pytest.mark.parametrize("kind", ["measured", "predicted", "estimated"])
def test_kind_of_a_verdict_reaches_its_row(tmp_path, kind):
    proof = proof_json()
    proof["verdicts"] = [{**proof["verdicts"][2], "kind": kind}]
    shown = Page(read(write(tmp_path, proof=proof)))
    table = next(i for i in shown.having("budget"))
    kinds = [shown.elements[i][1]["data-kind"] for i in shown.having("fig")
             if table in shown.elements[i][2]]  # fmt: skip
    assert kinds == [kind, kind]


def test_bare_float_is_refused(tmp_path):
    whole = build.page(load(sample_run(tmp_path)))
    with pytest.raises(TypeError, match="Figure"):
        build.render(dataclasses.replace(whole, title=0.5))  # pyright: ignore[reportArgumentType]


def test_hostile_names_are_escaped(tmp_path, built):
    sample_run(tmp_path, classes=HOSTILE)
    for name in ("run", "plan"):
        path = tmp_path / f"{name}.json"
        text = path.read_text(encoding="utf-8").replace("stages.", "</svg><script>s.")
        path.write_text(text.replace('"convnet"', '"</title><i>"'), encoding="utf-8")
    text = read(tmp_path)
    shown, plain = Page(text), Page(built)
    for tag in ("script", "img", "b", "i", "svg", "style"):
        assert len(shown.tagged(tag)) == len(plain.tagged(tag)), tag
    assert not [a for _, a, _ in shown.elements if any(name.startswith("on") for name in a)]
    names = [shown.text(i) for i in shown.tagged("th")]
    assert names.count(HOSTILE[0]) == 1 and HOSTILE[2] in names
    assert "49" not in names


def test_nothing_is_fetched(built, page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    outside = [url for url in re.findall(r"https?://[^\s\"'<>]+", built)]
    assert {url for url in outside} <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", built)
    policy = next(a["content"] for t, a, _ in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_image_from_outside_is_refused(tmp_path):
    proof = proof_json()
    for bad in ("https://example.org/a.png", "data:image/svg+xml;base64,AAAA", "data:,x"):
        proof["differences"][0]["image"] = bad
        with pytest.raises(CorruptFileError, match=r"proof\.json"):
            build_report(write(tmp_path, proof=proof))


def test_every_image_has_words(page):
    images = page.tagged("img")
    assert len(images) == 6
    for i in images:
        alt = page.elements[i][1]["alt"]
        assert "labelled" in alt and "teacher decides" in alt and "student" in alt and "%" in alt
    drawings = page.tagged("svg")
    assert len(drawings) == 6
    for i in drawings:
        holder = page.elements[page.elements[i][2][-1]][1]
        assert holder["role"] == "img" and len(holder["aria-label"]) > 20


def test_charts_follow_the_theme_and_share_no_ids(built):
    rules = set(re.findall(r'svg \[(fill|stroke)="(#[0-9a-f]{6})"\]', STYLE))
    for drawing in re.findall(r"<svg.*?</svg>", built, re.S):
        used = set(re.findall(r'\b(fill|stroke)="(#[0-9a-f]{3,6}|black|white)"', drawing))
        assert used <= rules, used - rules
        assert "url(#" not in drawing and " id=" not in drawing
        assert "width" not in drawing[: drawing.index(">")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_at_least_aa(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.S)[:2]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))
    texts = [("ink", b) for b in ("page", "card", "open-soft")] + [
        (t, b) for t in ("muted", "student", "teacher", "limit") for b in ("page", "card")
    ]
    pairs = [*texts, ("good", "good-soft"), ("bad", "bad-soft")]
    for text, ground in pairs:
        found = contrast(colors[text], colors[ground])
        assert found >= 4.5, f"{text} on {ground}: {found:.2f}"
    for name in ("good", "bad"):  # the strongest cell of the table by class
        share = int(max(re.findall(rf"var\(--{name}\) (\d+)%", STYLE), key=int)) / 100
        assert contrast(colors["ink"], blend(colors[name], colors["page"], share)) >= 4.5
    assert contrast(colors["ink"], blend(colors["student"], colors["page"], 0.5)) >= 4.5


def contrast(a: str, b: str) -> float:
    """WCAG 2.1, relative luminance and contrast ratio."""

    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blend(over: str, under: str, share: float) -> str:
    parts = [(int(over[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in parts)


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("names", [("run",), ("plan",), ("proof",), ("run", "plan")])
def test_report_shows_what_there_is(tmp_path, names):
    data = {"run": run_json(), "plan": plan_json(), "proof": proof_json()}
    text = read(write(tmp_path, **{name: data[name] for name in names}))
    shown = Page(text)
    ids = {shown.elements[i][1].get("id") for i in shown.tagged("section")}
    assert ("budget" in ids) == ("proof" in names)
    assert ("candidates" in ids) == ("plan" in names)
    assert ("training" in ids) == ("run" in names)
    assert "Not there yet" in text
    if "proof" not in names:
        assert "Not proven yet" in text


@pytest.mark.parametrize("last", ["data", "teacher", "signals", "distill"])
def test_run_in_the_middle(tmp_path, last):
    run = run_json()
    names = list(run["stages"])
    for name in names[names.index(last) + 1 :]:
        del run["stages"][name]
    text = read(write(tmp_path, run=run))
    assert ("When does the teacher know?" in text) == (last != "data")
    assert ("Loss by epoch" in text) == (last == "distill")


def test_absent_parts_are_left_out(tmp_path):
    run, plan, proof = run_json(), plan_json(), proof_json()
    run["stages"]["teacher"]["result"].update(lenses=[], parameters=None, figures=[])
    run["stages"]["distill"]["result"].update(history=None, pairing=None, weights={})
    plan["candidates"] = []
    for name in ("reliability", "classes", "differences", "parity", "fidelity"):
        proof[name] = None
    proof["verdicts"], proof["figures"] = [], {"teacher": [], "student": []}
    text = read(write(tmp_path, run=run, plan=plan, proof=proof))
    assert "<svg" not in text
    assert "proven for nucleo-l4r5" in headline(text)


@pytest.mark.parametrize("reads", [True, False])
def test_taps_that_no_loss_reads_are_said_to_be_unread(tmp_path, reads):
    run = run_json()
    run["stages"]["distill"]["result"]["reads_pairs"] = reads
    assert ("No loss of this run reads taps" in read(write(tmp_path, run=run))) != reads


def test_class_without_examples_is_named_not_dropped(tmp_path):
    proof = proof_json()
    proof["classes"][3].update(n=0, teacher=None, student=None, name="rare")
    assert "No test examples: rare." in read(write(tmp_path, proof=proof))


def test_many_classes_fold_and_the_worst_stand_first(tmp_path):
    names = tuple(f"class {i:03}" for i in range(60))
    shown = Page(read(sample_run(tmp_path, classes=names)))
    rows = [i for i in shown.tagged("th") if shown.text(i).startswith("class ")]
    folded = [
        i for i in rows if any(shown.elements[a][0] == "details" for a in shown.elements[i][2])
    ]
    assert len(rows) == 60 and len(folded) == 40
    assert int(shown.text(rows[0])[6:]) % 5 == 3


def test_same_files_same_bytes_and_small(tmp_path, built):
    assert read(sample_run(tmp_path)).replace(tmp_path.name, "") == built
    assert len(built) < 250_000


def test_no_torch_is_loaded(tmp_path):
    sample_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tutelage.report import build_report; "
        f"build_report(Path({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_snippet_runs(tmp_path, page, monkeypatch, capsys):
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    flat = helper.make_node("Flatten", ["image"], ["flat"])
    head = helper.make_node("Gemm", ["flat", "w", "b"], ["logits"])
    bias = np.eye(10, dtype=np.float32)[7]
    graph = helper.make_graph(
        [flat, head],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [
            numpy_helper.from_array(np.zeros((64, 10), np.float32), "w"),
            numpy_helper.from_array(bias, "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    meta = {"classes": DIGITS, "shape": [1, 8, 8], "mean": [0.3], "std": [0.2]}
    helper.set_model_props(
        model, {k: json.dumps(v) for k, v in {**meta, "scale": 1 / 255, "input": "image"}.items()}
    )
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/student.int8.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    snippet = next(i for i in page.tagged("pre") if page.elements[i][1]["id"] == "snippet")
    exec(compile(page.texts[snippet], "snippet", "exec"), {})
    assert capsys.readouterr().out.strip() == "7"
