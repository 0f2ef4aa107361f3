"""YAML from strangers: plain data or one line, and what is written is read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import DeviceError, RecipeError
from tutelage.plain_yaml import check_plain, dump_yaml, line_of, load_yaml

HOSTILE = {
    "x: !!python/object/apply:os.system [ls]": "tags",
    "x: !!int zz": "tags",
    "x: !!timestamp zz": "tags",
    "x: !!binary zz": "tags",
    "x: !!set {a}": "tags",
    "x: &a [1]\ny: *a": "aliases",
    "x: &a [*a]": "aliases",
    "seed: 1\nseed: 2": "the key 'seed' stands twice",
    "x: [{a: 1, a: 2}]": "the key 'a' stands twice",
    "1: 2": "the key '1' is no word",
    "null: 2": "the key 'null' is no word",
    "? [a]\n: 2": "the key is no word",
    "? {a: b}\n: 2": "the key is no word",
    'device: "a\\0b"': "cannot be printed",
    'device: "\\ud800"': "cannot be printed",
    '"\\x07": 1': "cannot be printed",
    "x: " + "[" * 40_000: "nested too deeply",
    "x: " + "{a: " * 200 + "1" + "}" * 200: "nested too deeply",
    "- " * 5_000: "",
    "x: '": "unexpected end",
    "a: b: c": "not allowed here",
    "--- a\n--- b": "document",
    "\tx: 1": "",
    "x: @y": "",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:24].encode("unicode_escape").decode())
def test_hostile_yaml_is_one_line(text):
    with pytest.raises(RecipeError) as caught:
        load_yaml(text, "recipe.yaml")
    message = str(caught.value)
    assert HOSTILE[text] in message and message.startswith("recipe.yaml")
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-3", -3), ("1.5", 1.5), ("1e-3", 0.001), ("2E5", 200_000.0), (".5", 0.5),
        ("true", True), ("No", False), ("~", None), ("null", None), ("", None),
        ("010", "010"), ("0x_", "0x_"), ("1_000", "1_000"), ("190:20:30", "190:20:30"),
        ("2020-13-45", "2020-13-45"), ("'1'", "1"), ("1" * 31, "1" * 31), ("[a, 1]", ["a", 1]),
    ],
)  # fmt: skip
def test_scalars(text, value):
    found = load_yaml(f"x: {text}", "x")["x"]
    assert found == value and type(found) is type(value)
    if text in ("", "~", "'1'"):
        return
    assert load_yaml(dump_yaml({"x": text}), "x") == {"x": text}  # as text it is quoted


def test_infinity_is_a_number_here_and_refused_later():
    assert load_yaml("x: [.inf, -.inf]", "x") == {"x": [math.inf, -math.inf]}
    assert math.isnan(load_yaml("x: .nan", "x")["x"])


@pytest.mark.parametrize(
    "data", [math.nan, [1, {"a": -math.inf}], {"a": (math.inf,)}, {1: 2}, [object()], b"x"]
)
def test_only_finite_plain_data_passes(data):
    with pytest.raises(ValueError, match=r"finite|no word|no text"):
        check_plain(data)


def test_plain_data_passes_as_it_is():
    data = {"a": [1, 2.5, None, True, "x", ("y",)]}
    assert check_plain(data) is data


def test_the_error_is_the_callers_own():
    with pytest.raises(DeviceError, match="board.yaml:1: YAML tags"):
        load_yaml("x: !y z", "board.yaml", DeviceError)


@pytest.mark.parametrize(
    "text", ["a\nb", "\u2028", " \u2029x", "\ufeff", "\u00e9t\u00e9", " a ", "\t"]
)
def test_odd_text_comes_back(text):
    assert load_yaml(dump_yaml({"x": [text]}), "x") == {"x": [text]}


def test_lines_are_found_in_lists_and_maps():
    text = "a:\n  - b: 1\n  - c:\n      d: 2\n"
    assert line_of(text, ("a", 1, "c", "d")) == 4
    assert line_of(text, ("a", 9)) == 1
    assert line_of(text, ("z",)) is None


plain = st.recursive(
    st.text(max_size=6)
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none()
    | st.from_regex(r"[-+]?[0-9.e_:]{1,6}", fullmatch=True),
    lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=6), i, max_size=3),
    max_leaves=5,
)


@given(plain)
@settings(max_examples=100, deadline=None)
def test_plain_data_survives_writing_and_reading(data):
    text = dump_yaml(data)
    try:
        assert load_yaml(text, "x") == data
    except RecipeError as error:
        assert "cannot be printed" in str(error)
