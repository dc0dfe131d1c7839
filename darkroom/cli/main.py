"""`darkroom COMMAND ...`: the table of commands, and how errors leave the program."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from darkroom import __version__
from darkroom.core import log
from darkroom.core.errors import DarkroomError
from darkroom.core.files import disk_full_errno, disk_full_message
from darkroom.core.memory import is_memory_full, memory_full_message
from darkroom.core.registry import find_nearest, import_path


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: where its `run(argv) -> int` is, and its sentence in the help."""

    path: str
    sentence: str


COMMANDS = {
    "demo": Command("darkroom.cli.demo", "teach the built-in model something new, here and now; no GPU, no download"),
    "train": Command("darkroom.cli.train", "train a LoRA or a whole model from a config"),
    "plan": Command("darkroom.cli.plan", "show everything a run would do, without loading weights"),
    "dataset": Command(
        "darkroom.cli.dataset", "look at your data: a page of pictures, captions and what is wrong with them"
    ),
    "cache": Command("darkroom.cli.cache", "fill the caches of a run and stop"),
    "generate": Command("darkroom.cli.generate", "make pictures with a base and adapters"),
    "verify": Command("darkroom.cli.verify", "load what a run saved into the stock pipeline and compare"),
    "import": Command("darkroom.cli.imports", "another trainer's config into one of Darkroom's, with a report"),
    "selftest": Command("darkroom.cli.selftest", "prove on your own config that a killed run resumes exactly"),
    "options": Command("darkroom.cli.options", "describe options, and where each value of a config comes from"),
    "families": Command("darkroom.cli.families", "the model families, their flavours and defaults"),
    "doctor": Command("darkroom.cli.doctor", "what this machine has, and what that allows"),
    "dev": Command("darkroom.cli.dev", "for work on Darkroom itself: the skeleton of a new family"),
}

# a file or folder that is in the way, write-protected, or on a disk that fails
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO, errno.ESTALE,
)  # fmt: skip

USAGE = """darkroom {version}: teach a diffusion model your own pictures.

usage: darkroom COMMAND [...]

{commands}

`darkroom COMMAND --help` describes one. Start with: darkroom demo"""


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.sentence}" for name, command in COMMANDS.items())
    return USAGE.format(version=__version__, commands=lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 the user must change something, 1 a defect, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-v", "--version"):
        print(f"darkroom {__version__}")
        return 0
    name, *remaining = arguments
    if name not in COMMANDS:
        hint = find_nearest(name, COMMANDS)
        suggestion = f" Did you mean {' or '.join(hint)}?" if hint else ""
        print(f"There is no command '{name}'.{suggestion} `darkroom --help` lists them.", file=sys.stderr)
        return 2
    log.setup()
    return run_guarded(name, remaining)


def run_guarded(name: str, argv: list[str]) -> int:
    """Run one command; errors become messages and exit codes."""
    try:
        run = cast("Callable[[list[str]], int]", import_path(f"{COMMANDS[name].path}.run"))
        return run(argv)
    except DarkroomError as error:
        if str(error) and error.exit_code != 130:
            print(log.redact(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped. Files that were finished are kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        explained = explain_system_error(error)
        if explained is None:
            return defect(name, error)
        print(log.redact(explained), file=sys.stderr)
        return 2


def explain_system_error(error: Exception) -> str | None:
    """What to tell about an error of the user's machine that no closer place could explain, or None."""
    if is_memory_full(error):
        return memory_full_message(error)
    path = Path(os.fsdecode(error.filename)) if isinstance(error, OSError) and error.filename else Path.cwd()
    if (number := disk_full_errno(error)) is not None:
        return disk_full_message(path.parent, path.name, number)
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
        return f"{path}\n  The system refuses this file or folder: {error.strerror}.\n  Check its path and permissions."
    return None


def defect(name: str, error: Exception) -> int:
    """A short message; the traceback goes into a file beside the user's work."""
    path = Path(os.environ.get("DARKROOM_CRASH_LOG", "darkroom-crash.log"))
    try:
        path.write_text(log.redact(traceback.format_exc()), encoding="utf-8")
        traceback_note = f"The traceback is in {path.resolve()}."
    except OSError:
        traceback_note = log.redact(traceback.format_exc())
    print(
        f"Something went wrong inside Darkroom during '{name}' ({type(error).__name__}: {error}).\n"
        f"  This is a defect of ours; please report it. {traceback_note}",
        file=sys.stderr,
    )
    return 1
