"""Sizes, durations and resolutions as people write them."""

from __future__ import annotations

import pytest

from darkroom.core.units import parse_resolutions, parse_size, show_duration, show_size
from tests.rows import each_row


@each_row(
    "text, count",
    [
        ("0", 0),
        ("512", 512),
        ("1K", 1024),
        ("1.5 kb", 1536),
        ("500M", 500 * 2**20),
        ("100G", 100 * 2**30),
        ("2TB", 2**41),
    ],
)
def test_sizes_are_powers_of_1024(text, count):
    assert parse_size(text) == count


@each_row("text", ["", "G", "-1G", "1.G", "1 GiB", "1P", "ten"])
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="100G"):
        parse_size(text)


@each_row("count, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes_are_shown_in_the_unit_that_fits(count, text):
    assert show_size(count) == text


@each_row(
    "seconds, text",
    [
        (1.25, "1.2 s"),
        (45, "45 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_shown_for_people(seconds, text):
    assert show_duration(seconds) == text


@each_row(
    "text, sizes",
    [
        ("512", [(512, 512)]),
        ("768x512", [(768, 512)]),
        ("512, 768X512", [(512, 512), (768, 512)]),
        ("1024.0", [(1024, 1024)]),
    ],
)
def test_resolutions_are_width_by_height(text, sizes):
    assert parse_resolutions(text) == sizes


def test_resolutions_are_rounded_to_what_the_model_takes():
    assert parse_resolutions("1001x70,3", 16) == [(1008, 64), (16, 16)]


@each_row("text", ["", "big", "512x", "512;768", "-512", "512.5"])
def test_what_is_no_resolution_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="768x512"):
        parse_resolutions(text)
