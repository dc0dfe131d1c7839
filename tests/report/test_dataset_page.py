"""The dataset page: one file, harmless whatever a file is called, and the same bytes for the same facts."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from darkroom.report import dataset_page
from darkroom.report.dataset_facts import (
    BucketFacts,
    ConditioningFacts,
    DatasetReport,
    Encoder,
    Finding,
    Moment,
    Passage,
    Sheet,
    Strip,
    Tile,
    Words,
    as_dict,
    many,
    number,
)

EVIL = "<script>alert('x')</script>$body\"&"


def report_with(text: str, picture: bytes = b"\xff\xd8") -> DatasetReport:
    """A report in which every text is `text`."""
    tile = Tile(text, text, picture, (4, 3), (0.1, 0.0, 0.5, 1.0), text)
    finding = Finding("duplicate", "fix", text, text, 2, [text, text + "2"], [[tile]], [Passage(text, text, 3)])
    words = Words(text, 3, 2, "tokens", [(5, 2), (10, 1)], 5, [Encoder(text, 5, 9, 4, 1)], [(text, 2, 0.66)], text)
    sheet = Sheet(
        text, text, text, text, [(text, text)], 3, {text: 1}, 2, [tile, replace(tile, jpeg=b"")], [finding],
        [BucketFacts(text, (640, 480), 9, 3, 2, 1, False, [tile]), BucketFacts(text, (64, 640), 1, 1, 0, 0, True, [])],
        text, words, [Strip(text, text, text, text, [Moment(3, 0.125, picture), Moment(4, None, picture)])],
        [ConditioningFacts(text, text, 2, 3, text, [[tile, tile]])], text,
    )  # fmt: skip
    return DatasetReport(text, text, [(text, text)], [sheet], [finding], [text])


def test_nothing_from_outside_is_alive():
    html = dataset_page.render(report_with(EVIL))

    assert "<script" not in html
    assert "alert(&#x27;x&#x27;)" in html
    assert "default-src 'none'" in html
    assert 'on"&' not in html
    for attribute in re.findall(r"alt='([^']*)'", html):
        assert "<" not in attribute


def test_the_page_loads_nothing_from_elsewhere():
    html = dataset_page.render(report_with("plain"))

    assert not re.search(r"(?:src|href)='(?!data:|#)|url\(|@import|https?://", html)


def test_every_link_of_the_list_leads_to_a_finding():
    html = dataset_page.render(report_with("plain"))

    anchors = re.findall(r"href='#([^']+)'", html)
    assert anchors
    assert all(f"id='{anchor}'" in html for anchor in anchors)


def test_words_beyond_the_limit_are_marked():
    html = dataset_page.render(report_with("abcdef"))

    assert "abc<mark>def</mark>" in html


def test_a_page_without_findings_says_so():
    sheet = replace(report_with("plain").sheets[0], findings=[])
    html = dataset_page.render(DatasetReport("1 picture", "", [], [sheet], [], []))

    assert "Nothing to do" in html


def test_an_empty_report_has_a_page(tmp_path):
    path = dataset_page.write(tmp_path / "page.html", DatasetReport("nothing", "", [], [], [], []))

    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_facts_are_json_without_pictures():
    data = as_dict(report_with(EVIL))

    assert json.loads(json.dumps(data)) == data
    assert data["sheets"][0]["findings"][0]["files"] == [EVIL, EVIL + "2"]
    assert "jpeg" not in data["sheets"][0]["gallery"][0]


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(1, "picture", "1 picture"), (1240, "batch", "1\u202f240 batches"), (2, "sample", "2 samples")],
)
def test_counts_in_words(count, noun, words):
    assert many(count, noun) == words
    assert number(12) == "12"
