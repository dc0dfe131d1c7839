"""How errors read."""

from __future__ import annotations

import pytest

from darkroom.core import errors
from darkroom.core.errors import ConfigError, ConfigErrors, MissingPackage, missing_option


def test_a_configuration_error_says_what_was_read_what_is_wrong_and_what_to_change():
    error = ConfigError(
        "train_batch_size",
        8,
        "config.toml",
        "Dataset 'cats' has 5 images in bucket 1024x1024, fewer than one batch of 8.",
        "Change one of: train_batch_size to 5 or less; repeats of 'cats' to 1.",
    )

    assert str(error) == (
        "train_batch_size = 8 (from config.toml)\n"
        "  Dataset 'cats' has 5 images in bucket 1024x1024, fewer than one batch of 8.\n"
        "  Change one of: train_batch_size to 5 or less; repeats of 'cats' to 1."
    )


@pytest.mark.parametrize(
    ("got", "source", "head"),
    [
        ("adam", "", "option = 'adam'"),
        (None, "", "option = None"),
        (0.5, "command line", "option = 0.5 (from command line)"),
    ],
)
def test_the_first_line_shows_value_and_source(got, source, head):
    assert str(ConfigError("option", got, source, "p", "c")).splitlines()[0] == head


def test_an_absent_option_shows_no_value():
    assert str(missing_option("model_family", "p", "c")).splitlines()[0] == "model_family"


def test_several_errors_are_shown_together():
    both = ConfigErrors([ConfigError("a", 1, "", "p", "c"), ConfigError("b", 2, "", "p", "c")])

    assert str(both).splitlines() == ["a = 1", "  p", "  c", "b = 2", "  p", "  c"]


def test_a_missing_package_shows_the_command_that_installs_it():
    assert "pip install 'darkroom-trainer[optim]'" in str(MissingPackage("optimi", "optim", "optimizer = optimi-lion"))


def test_exit_codes_tell_users_errors_from_defects():
    codes = {
        name: error.exit_code
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.DarkroomError)
    }

    assert codes.pop("DarkroomError") == 1
    assert codes.pop("Interrupted") == 130
    assert set(codes.values()) == {2}
