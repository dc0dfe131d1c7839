"""Writing that either happens completely or not at all, and names that stay inside their folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from darkroom.core.errors import DiskFullError
from darkroom.core.units import show_size

ASIDE = "-old-tmp"
LEFTOVERS = (".*.tmp", ".tmp??????")
"""Names of files that a process killed while writing leaves behind: ours, and those of safetensors."""

# the process's own, asked once, as asking means setting it
_UMASK = os.umask(0)
os.umask(_UMASK)
# no space, no quota, and a file beyond what the file system or the user's limit allows
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def explain_disk_full(path: Path, contents: str) -> Iterator[None]:
    """Turn 'no space left' (and an exceeded quota or file size) into a message that says what did not fit and where."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as cause:
        number = disk_full_errno(cause)
        if number is None:
            raise
        raise DiskFullError(disk_full_message(path, contents, number)) from cause


def disk_full_errno(cause: BaseException) -> int | None:
    """The system's error number if `cause` says that a write did not fit, else None."""
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno if cause.errno in FULL else None
    # safetensors reports a failed write as its own exception with the system's text inside
    return next((n for n in FULL if f"os error {n})" in str(cause) or os.strerror(n) in str(cause)), None)


def disk_full_message(path: Path, contents: str, number: int = errno.ENOSPC) -> str:
    """The words for a full disk at `path`."""
    reason = "" if number == errno.ENOSPC else f"; the system says: {os.strerror(number)}"
    return (
        f"The disk is full: {contents} could not be written to {path} ({show_size(free_bytes(path))} free{reason}).\n"
        "  Nothing that was saved before is damaged. Free some space, or point output_dir and the cache "
        "directories to another disk, and start again; with resume_from_checkpoint latest (the default) the run goes "
        "on from its last checkpoint."
    )


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Write beside `path`, then rename over it; a failure leaves the old file and no leftovers.

    >>> with atomic(target) as temporary:
    ...     save_file(tensors, temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_disk_full(path.parent, path.name):
            yield temporary
            follow_umask(temporary)
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(path: Path) -> None:
    """Give a file, or all files below a folder, the permissions that a new file has: some writers make them private."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~_UMASK)


def clear_folders(parent: Path, pattern: str) -> None:
    """Remove the half-written `NAME-tmp` of every folder NAME that `pattern` matches.

    A folder that stepped aside as `NAME-old-tmp` for a new one that never came gets its name back.
    """
    for aside in parent.glob(f"{pattern}{ASIDE}"):
        target = aside.with_name(aside.name.removesuffix(ASIDE))
        if not target.exists():
            os.replace(aside, target)
    for path in parent.glob(f"{pattern}-tmp"):
        shutil.rmtree(path, ignore_errors=True)


def fsync(path: Path) -> None:
    """Make sure that `path` (a file or a folder) survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Atomically write UTF-8 text."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically write bytes."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Atomically write JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Hex digest of a JSON-serialisable value; the same value always gives the same text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds `path` or its nearest existing parent."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that no file can have (too long, with a NUL, behind a locked folder) is
    none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def path_exists(path: Path) -> bool:
    """Whether there is anything of this path, in the same way."""
    return is_file(path) or is_folder(path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, in the same way."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def expand_home(path: str) -> Path:
    """A path as people write it, whose `~` means the home folder, where there is one of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def safe_name(text: str, limit: int = 80) -> str:
    """`text` as part of a file name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:limit] or "unnamed"


def join_inside(folder: Path, name: str) -> Path:
    """`folder / name`, refusing names that lead outside. Raises ValueError."""
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise ValueError(f"'{name}' leads outside {folder}")
    return path
