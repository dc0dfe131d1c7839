"""What can go wrong, and how it is said.

DarkroomError                 everything we raise on purpose
├── UserError                 the user must change something; exit code 2, no traceback
│   ├── ConfigError           an option is wrong: names the option, value, source, problem, change
│   │   └── ConfigErrors      several of them, reported together
│   ├── DataError             a dataset or file cannot be used
│   ├── ModelError            base weights cannot be found or do not fit the family
│   ├── CheckpointError       a checkpoint is missing, incomplete or belongs to another run
│   ├── DiskFullError         a write did not fit; nothing that existed was damaged
│   ├── MemoryFullError       the device or the machine ran out of memory
│   └── MissingPackage        an optional package is needed; names the extra that installs it
└── Interrupted               a signal asked us to stop and the state is saved; exit code 130
"""

from __future__ import annotations

from collections.abc import Sequence

from darkroom.core.text import escape_unprintable

MAX_VALUE_LENGTH = 300
"""Letters of a wrong value that a message shows."""


class DarkroomError(Exception):
    """Base of everything Darkroom raises on purpose. Its message can be shown wherever it is printed or stored."""

    exit_code = 1

    def __init__(self, *words: object):
        super().__init__(*(escape_unprintable(word) if isinstance(word, str) else word for word in words))


class UserError(DarkroomError):
    """Something the user can put right. Printed without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """An option that cannot be used as given.

    Rendered in three lines: `option = value (from source)`, what is wrong, what to change.
    """

    def __init__(self, option: str, got: object, source: str, problem: str, change: str):
        self.option, self.got, self.source, self.problem, self.change = option, got, source, problem, change
        shortened_value = escape_unprintable(repr(got) if isinstance(got, str) else str(got), MAX_VALUE_LENGTH)
        head = option if got is _ABSENT else f"{option} = {shortened_value}"
        origin = f" (from {source})" if source else ""
        super().__init__(f"{head}{origin}\n  {problem}\n  {change}")


_ABSENT = object()


def missing_option(option: str, problem: str, change: str) -> ConfigError:
    """The error for an option that had to be given and was not."""
    return ConfigError(option, _ABSENT, "", problem, change)


class ConfigErrors(UserError):
    """Several configuration errors, so that one run of `plan` shows them all."""

    def __init__(self, errors: Sequence[ConfigError]):
        self.errors = list(errors)
        super().__init__("\n".join(str(e) for e in self.errors))


class DataError(UserError):
    """A dataset or one of its files cannot be used."""


class ModelError(UserError):
    """Base weights cannot be found, read or matched to the family."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete, damaged or belongs to another run."""


class DiskFullError(UserError):
    """A write did not fit. Files that existed before are untouched."""


class MemoryFullError(UserError):
    """The device or the machine ran out of memory. Checkpoints and caches on disk are untouched."""


class MissingPackage(UserError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        requirement = f"darkroom-trainer[{extra}]" if extra else package
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.\n"
            f"  Install it with: pip install '{requirement}'"
        )


class Interrupted(DarkroomError):
    """A signal asked the run to stop; the current step was finished and saved."""

    exit_code = 130
