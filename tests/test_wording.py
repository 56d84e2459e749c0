"""Numbers are written as a reader expects them."""

from __future__ import annotations

import math

import pytest

from residua.wording import count, counted, decimal, duration, percent, value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.400 ms"), (0.412, "412 ms"), (4.25, "4.2 s"), (42, "42 s"), (59.7, "1 min"), (754, "12 min 34 s"), (3600, "1 h"),
     (11_130, "3 h 5 min"), (187_200, "2 d 4 h"), (None, "–"), (math.inf, "–"), (-1, "–"), ("soon", "–")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: object, text: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_number_and_its_unit_do_not_part() -> None:
    assert percent(7.564) == "7.56\N{NO-BREAK SPACE}%"
    assert " " not in duration(42)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0.00"), (2.3104, "2.31"), (0.0123456, "0.0123"), (1234.5, "1,234"), (1.5e-7, "1.5e-07"), (math.nan, "–"), (True, "–")],
)
def test_decimals_have_three_significant_digits(number: object, text: str) -> None:
    assert decimal(number) == text


def test_counts_and_their_nouns() -> None:
    assert (count(45_000), count(None)) == ("45,000", "–")
    assert (counted(1, "image"), counted(2_000, "image")) == ("1 image", "2,000 images")
    assert counted(3, "class", "classes") == "3 classes"


def test_any_plain_value_has_a_text() -> None:
    assert [value(v) for v in (None, True, 128, 50_000, 5e-4, [1, 2], (), {"a": 1}, "pad")] == [
        "–", "yes", "128", "50,000", "0.0005", "1, 2", "–", "a 1", "pad",
    ]  # fmt: skip
