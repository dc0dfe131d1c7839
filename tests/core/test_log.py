"""Secrets stay out of logs."""

from __future__ import annotations

import logging

import pytest

from darkroom.core import log
from darkroom.core.log import redact, redact_values
from tests.rows import each_row


@each_row(
    "text",
    [
        "token=abcdef99",
        'hf_token: "abcdef99"',
        "--hub_token abcdef99",
        "webhook_token=abcdef99",
        "Authorization: Bearer abcdef99",
        "bearer abcdef99",
        '{"api_key": "abcdef99"}',
        'said token=\\"abcdef99\\" twice',
        "password = abcdef99",
    ],
)
def test_what_stands_behind_a_secrets_name_is_hidden(text):
    assert "abcdef99" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("secret", ["hf_abcdefghijkl", "sk-abcdefghijkl", "AKIAABCDEFGHIJKLMNOP"])
def test_keys_of_known_shape_are_hidden_anywhere(secret):
    assert redact(f"it said {secret} here") == "it said *** here"


@each_row(
    "text",
    [
        "tokenizer_max_length = 123456",
        "77 token embeddings",
        "a secret garden",
        "model_tokens=123456",
        "no password given",
    ],
)
def test_ordinary_words_stay(text):
    assert redact(text) == text


def test_values_are_hidden_under_a_secrets_name_whatever_their_type():
    value = {
        "hub_token": 123456789,
        "api_key": "x",
        "password": None,
        "tokens": 5,
        "deep": [{"text": "token=abcdef99"}],
    }

    assert redact_values(value) == {
        "hub_token": "***", "api_key": "***", "password": None, "tokens": 5, "deep": [{"text": "token=***"}],
    }  # fmt: skip


def test_the_log_file_holds_no_secrets(tmp_path):
    handler = log.to_file(tmp_path / "deep" / "debug.log")
    try:
        logging.getLogger("darkroom.test").error("token=%s", "abcdef99")
    finally:
        logging.getLogger("darkroom").removeHandler(handler)
        handler.close()

    text = (tmp_path / "deep" / "debug.log").read_text()
    assert "ERROR darkroom.test: token=***" in text


@pytest.mark.parametrize("level", ["warning", "error"])
def test_what_libraries_warn_of_is_in_the_file_and_not_on_the_terminal(level, tmp_path, capsys):
    log.setup()
    handler = log.to_file(tmp_path / "debug.log")
    try:
        getattr(logging.getLogger("bitsandbytes.somewhere"), level)("kernels were not found")
    finally:
        log.end(handler)

    assert "kernels were not found" in (tmp_path / "debug.log").read_text()
    assert ("kernels were not found" in capsys.readouterr().err) == (level == "error")
