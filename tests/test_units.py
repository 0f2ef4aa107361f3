"""Quantities as people write them, to SI and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import RecipeError
from tutelage.units import format_quantity, parse_quantity, parse_rate

READ = [
    ("100 kB", "B", 100_000.0),
    ("100kB", "B", 100_000.0),
    ("100 KB", "B", 100_000.0),
    ("64 KiB", "B", 65_536.0),
    ("1.5 MiB", "B", 1_572_864.0),
    ("2 GiB", "B", 2.0**31),
    ("1e3 B", "B", 1_000.0),
    ("512", "B", 512.0),
    (512, "B", 512.0),
    ("2 ms", "s", 0.002),
    ("2.5 us", "s", 2.5e-6),
    ("2.5 \u00b5s", "s", 2.5e-6),  # micro sign
    ("2.5 \u03bcs", "s", 2.5e-6),  # Greek mu
    ("30 s", "s", 30.0),
    ("7 ns", "s", 7e-9),
    ("5 mJ", "J", 0.005),
    ("0.3 kJ", "J", 300.0),
    ("40 mW", "W", 0.04),
    (" 3 MW ", "W", 3e6),
    (".5 s", "s", 0.5),
    (1e-3, "s", 0.001),
]


@pytest.mark.parametrize(("text", "unit", "value"), READ)
def test_what_people_write(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-12)


REFUSED = [
    ("", "B", "not a quantity"),
    ("kB", "B", "not a quantity"),
    ("-5 kB", "B", "not a quantity"),
    ("1.2.3 kB", "B", "not a quantity"),
    (".", "B", "not a quantity"),
    ("1 k B", "B", "not a quantity"),
    ("1_000", "B", "not a quantity"),
    ("nan", "B", "not a quantity"),
    ("inf s", "s", "not a quantity"),
    ("0x10", "B", "not a quantity"),
    ("5 ms", "B", "not in B"),
    ("5 kB", "s", "not in s"),
    ("5 k", "B", "not in B"),
    ("5 xB", "B", "unknown prefix 'x'"),
    ("5 mib", "B", "not in B"),
    ("5 Kis", "s", "unknown prefix 'Ki'"),
    ("0", "B", "positive, finite"),
    ("0.0 kB", "B", "positive, finite"),
    ("1e999 B", "B", "positive, finite"),
    ("1e-999 s", "s", "positive, finite"),
    ("9" * 500, "B", "positive, finite"),
    (0, "B", "positive, finite"),
    (-1.0, "s", "positive, finite"),
    (math.nan, "s", "positive, finite"),
    (math.inf, "s", "positive, finite"),
    (10**400, "B", "positive, finite"),
    (10**5000, "B", "positive, finite"),
    (True, "B", "not a quantity"),
    (None, "B", "not a quantity"),
    ([1], "B", "not a quantity"),
    ("5 kB\nand more", "B", "not a quantity"),
]


@pytest.mark.parametrize(("text", "unit", "what"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_why_and_how_to_write_it(text, unit, what):
    with pytest.raises(RecipeError, match="write it like '") as caught:
        parse_quantity(text, unit)
    message = str(caught.value)
    assert what in message and "\n" not in message and len(message) < 160


SHOWN = [
    (100_000.0, "B", "100 kB"),
    (999.7, "B", "1 kB"),
    (999.0, "B", "999 B"),
    (1_234_567.0, "B", "1.23 MB"),
    (0.0, "B", "0 B"),
    (0.002, "s", "2 ms"),
    (2.5e-6, "s", "2.5 \u00b5s"),
    (1.25e-9, "s", "1.25 ns"),
    (3.0e-12, "s", "3e-12 s"),
    (90.0, "s", "90 s"),
    (0.9999, "J", "1 J"),
    (-0.002, "s", "-2 ms"),
    (0.98765, "1", "0.9877"),
    (math.nan, "s", "nan s"),
    (math.inf, "B", "inf B"),
]


@pytest.mark.parametrize(("value", "unit", "text"), SHOWN)
def test_what_is_shown(value, unit, text):
    assert format_quantity(value, unit) == text


@given(st.floats(1e-9, 1e12), st.sampled_from(["s", "J", "W"]))
def test_what_is_shown_can_be_read_back_to_three_digits(value, unit):
    assert parse_quantity(format_quantity(value, unit), unit) == pytest.approx(value, rel=5.1e-3)


@given(st.integers(1, 10**13))
def test_bytes_too(value):
    assert parse_quantity(format_quantity(value, "B"), "B") == pytest.approx(value, rel=5.1e-3)


@given(st.text(max_size=12), st.sampled_from(["B", "s", "J", "W"]))
def test_any_text_is_a_positive_number_or_refused(text, unit):
    try:
        value = parse_quantity(text, unit)
    except RecipeError as error:
        assert "\n" not in str(error)
    else:
        assert value > 0 and math.isfinite(value)


@pytest.mark.parametrize("text", ["20 token/s", "20 tokens/s", "20tokens / s", "20", 20, 20.0])
def test_a_rate_of_tokens(text):
    assert parse_rate(text) == 20.0


@pytest.mark.parametrize(
    "text", ["20 ms", "token/s", "-1 token/s", "nan", True, "20 token", 10**400]
)
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(RecipeError, match="write it like '20 token/s'"):
        parse_rate(text)
