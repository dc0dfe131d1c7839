"""Lines, slips, and what can be shown."""

from __future__ import annotations

from darkroom.core.errors import ConfigError, DataError
from darkroom.core.text import escape_unprintable, find_slip, iterate_texts, split_lines
from tests.rows import each_row


def test_lines_end_at_line_breaks_and_at_nothing_else():
    assert split_lines("a\nb\r\nc\rd\u2028e\x0cf\x85g\n") == ["a", "b", "c", "d\u2028e\x0cf\x85g"]
    assert split_lines("") == []
    assert split_lines("\n\n") == ["", ""]


@each_row(
    "text, words",
    [
        ("D:\train", r"a tab (\t)"),
        ("D:\new", r"a line break (\n)"),
        ("D:\x08ase", r"a backspace (\b)"),
        ("a\0b", "a NUL character"),
        ("a\ud800", r"half a character (\ud800)"),
        ("D:\\train", ""),
        ("ünï 中文", ""),
    ],
)
def test_a_slip_is_named(text, words):
    assert words in find_slip(text, single_line=True)
    assert bool(words) == bool(find_slip(text, single_line=True))


def test_several_lines_are_no_slip_where_they_are_allowed():
    assert find_slip("one\ntwo\tthree") == ""
    assert find_slip("one\0") != ""


def test_texts_are_found_wherever_they_stand():
    assert list(iterate_texts({"a": ["x", {"b": "y"}], "c": 5})) == [
        ((), "a"), (("a",), "x"), (("a",), "b"), (("a", "b"), "y"), ((), "c")
    ]  # fmt: skip


@each_row("text", ["\ud800", "a\0", "\x1b[31m", "x" * 5000])
def test_a_message_can_be_printed_whatever_it_quotes(text):
    for error in (DataError(f"'{text}'"), ConfigError("o", text, text, text, text)):
        str(error).encode("utf-8")
        assert not {"\0", "\x1b"} & set(str(error))
    assert len(str(ConfigError("o", "x" * 5000, "", "p", "c"))) < 400
    assert escape_unprintable("a\nb\tc") == "a\nb\tc"
