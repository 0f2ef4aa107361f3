"""Examples on which teacher and student differ, as the report shows them: images and words."""

import base64
import html
import io
import re

import pytest
from sample_run import proof_json, sample_run
from test_report import HOSTILE, Page, read, write
from test_report_browser import CHROMIUM, chromium

from tutelage.errors import CorruptFileError
from tutelage.report import build_report

REVIEW = "The plot is thin, but the leads carry it."
TEXTS = (
    REVIEW,
    "<script>alert(1)</script></blockquote></ul><img src=x onerror=alert(2)> &amp; {{ 7 * 7 }}",
    "هذا الفيلم رائع جدا",
    "家族 👩‍👩‍👧‍👦 می‌خواهم \u202eover\u202c",
    "w" * 300,
)


def row(**shown):
    rest = {key: value for key, value in proof_json()["differences"][0].items() if key != "image"}
    return {**rest, **shown}


def shown(folder, *rows, **more):
    return Page(read(write(folder, proof={**proof_json(), "differences": list(rows), **more})))


def quotes(page):
    return [page.text(i) for i in page.tagged("blockquote")]


def drawing(width, height, format="PNG"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format=format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def test_words_are_shown_as_they_are(tmp_path):
    page = shown(tmp_path, *[row(text=text) for text in TEXTS])
    assert quotes(page) == list(TEXTS)
    assert not page.tagged("img")
    for i in page.tagged("blockquote"):
        assert page.elements[i][1] == {"dir": "auto"}
        card = page.elements[i][2][-1]
        assert page.elements[card][0] == "li" and page.elements[card][1]["class"] == "words"
        assert "Label1Teacher1, 91.0 %" in page.text(card)
        assert "Student2, 52.0 %" in page.text(card) and page.text(card).endswith("teacher right")


@pytest.mark.parametrize("text", [*HOSTILE, *TEXTS])
def test_words_bring_no_markup(tmp_path, text):
    page, plain = shown(tmp_path, row(text=text)), shown(tmp_path, row(text="plain"))
    assert [e[:2] for e in page.elements] == [e[:2] for e in plain.elements]
    assert "49" not in quotes(page)[0]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("two\n\n\tlines  and\u2028more\u3000", "two lines and more"),
        ("nul\0 bell\x07 half\ud800", "nul\ufffd bell\ufffd half\ufffd"),
        ("", "(an empty text)"),
        (" \n ", "(an empty text)"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_what_cannot_be_seen_in_words(tmp_path, text, want):
    assert quotes(shown(tmp_path, row(text=text))) == [want]


def test_images_and_words_stand_side_by_side(tmp_path):
    page = shown(tmp_path, row(image=drawing(8, 8)), row(text=REVIEW), row(image=drawing(8, 8)))
    assert len(page.tagged("img")) == 2 and quotes(page) == [REVIEW]
    cards = [i for i in page.tagged("li") if page.elements[page.elements[i][2][-1]][1].get("class")
             == "examples"]  # fmt: skip
    assert [page.elements[i][1].get("class") for i in cards] == [None, "words", None]


@pytest.mark.parametrize(
    ("image", "wide"),
    [
        (drawing(192, 96), True),
        (drawing(96, 192), False),
        (drawing(28, 28), False),
        (drawing(36, 24), False),
        (drawing(37, 24), True),
        (drawing(192, 96, "JPEG"), False),  # only a PNG tells its size at a fixed place
        ("data:image/png;base64,AAAA", False),
        (drawing(192, 96).replace("base64,", "base64,\n"), True),
    ],
)
def test_a_broad_drawing_has_the_width_of_its_card(tmp_path, image, wide):
    page = shown(tmp_path, row(image=image))
    card = page.elements[page.elements[page.tagged("img")[0]][2][-1]]
    assert card[1].get("class") == ("wide" if wide else None)


def test_without_a_label_nobody_is_right(tmp_path):
    page = shown(tmp_path, row(image=drawing(8, 8), label=None), row(text=REVIEW, label=None))
    words = page.text(next(i for i in page.having("examples")))
    assert "Label" not in words and "None" not in words and "right" not in words
    assert page.elements[page.tagged("img")[0]][1]["alt"].startswith("An image without a label: ")


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"image": None, "text": None},
        {"image": drawing(8, 8), "text": REVIEW},
        {"text": 7},
        {"image": 7},
        {"image": "https://example.org/a.png"},
        {"image": "data:image/png;base64,A"},
    ],
)
def test_a_damaged_example_is_told(tmp_path, bad):
    with pytest.raises(CorruptFileError, match=r"proof\.json is damaged") as caught:
        shown(tmp_path, row(**bad))
    assert "\n" not in str(caught.value)


def test_figures_by_class_are_printed_as_shares(tmp_path):
    share = {"unit": "1", "kind": "measured", "n": 360, "where": "test", "spread": [0.7, 0.8125]}
    figures = [
        {"name": "macro_f1", "value": 0.75, **share},
        {"name": "balanced_accuracy_test", "value": 1.0, **share},
    ]
    words = shown(tmp_path, row(text=REVIEW), fidelity=figures)
    table = next(words.text(i) for i in words.tagged("table") if "Macro F1" in words.text(i))
    assert "Macro F1 test75.0 %M (measured)70.0 to 81.2 %" in table
    assert "Balanced accuracy, test test100 %" in table


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_long_words_widen_no_phone(tmp_path):
    rows = [row(text=text) for text in TEXTS] + [row(image=drawing(192, 96))]
    folder = sample_run(tmp_path / "run")
    report = build_report(write(folder, proof={**proof_json(), "differences": rows}))
    wrapper = tmp_path / "phone.html"
    text = html.escape(report.read_text(encoding="utf-8"))
    wrapper.write_text(
        f'<iframe style="width:320px;height:800px;border:0" srcdoc="{text}"></iframe><p></p>'
        "<script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
        " const over = [...page.querySelectorAll('.examples :not(.sr)')].filter(e =>"
        " e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline');"
        " document.querySelector('p').textContent ="
        " `wide ${page.querySelector('.examples').scrollWidth} over ${over.length} of"
        " ${page.querySelectorAll('blockquote').length}`; };</script>",
        encoding="utf-8",
    )
    done = chromium(wrapper, tmp_path / "profile")
    found = re.search(r"wide (\d+) over (\d+) of\s+(\d+)<", done.stdout)
    assert found is not None
    assert 200 < int(found[1]) <= 288 and found[2] == "0" and found[3] == "5"
    assert "CONSOLE" not in done.stderr
