"""Texts that people write: their lines, and characters in them that can only be a slip."""

from __future__ import annotations

import re
from collections.abc import Iterator

ESCAPES = 'In double quotes a backslash starts an escape: write "D:\\\\train\\\\new" or "D:/train/new".'
"""What to do about a path of Windows whose backslashes were read as escapes."""

TOML_ESCAPES = f"{ESCAPES} Single quotes, 'D:\\train\\new', take it as it stands."

_NAMES = {"\t": "a tab (\\t)", "\n": "a line break (\\n)", "\r": "a carriage return (\\r)", "\b": "a backspace (\\b)",
          "\f": "a form feed (\\f)"}  # fmt: skip
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def split_lines(text: str) -> list[str]:
    """The lines of a text file. `str.splitlines` also splits at characters that people write inside a line: form feeds,
    vertical tabs, next lines (U+0085), and the separators U+2028 and U+2029."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def strip_last_commas(text: str) -> str:
    """JSON without the commas after last entries, which some configs of SimpleTuner have; texts stay as they are."""
    return re.sub(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', lambda match: match[1] or "", text)


def find_slip(text: str, single_line: bool = False) -> str:
    """What is in a text that cannot be meant: a NUL, half a character, and in `one_line` any control character.

    Empty if there is nothing; else a sentence.
    """
    for letter in text:
        if "\ud800" <= letter <= "\udfff":
            return f"It holds half a character (\\u{ord(letter):04x}), which no file can store."
        if letter == "\0":
            return "It holds a NUL character."
        if single_line and (letter < " " or letter == "\x7f"):
            return f"It holds {_NAMES.get(letter, f'the control character {ord(letter)}')}."
    return ""


def iterate_texts(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a JSON value, keys too, with the keys on the way to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, str(key)
            yield from iterate_texts(item, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iterate_texts(item, path)


def escape_unprintable(text: str, limit: int | None = None) -> str:
    """A text that every terminal and file takes: what cannot be shown as an escape, and at most `most` letters."""
    escaped = _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)
    return escaped if limit is None or len(escaped) <= limit else f"{escaped[: limit - 4]} ..."
