"""What only HunyuanVideo 1.5 does: words in quotation marks are read letter by letter."""

from __future__ import annotations

from tests.families.conformance import case


def test_words_in_quotation_marks_are_read_as_glyphs():
    whole = case("hunyuanvideo", "tiny")
    told, plain = whole.texts(whole.pipe(), ['a sign that says "open"', "a sign"], None)

    assert told["glyph_mask"].sum() > 0
    assert told["glyphs"].abs().sum() > 0
    assert plain["glyph_mask"].sum() == plain["glyphs"].abs().sum() == 0
