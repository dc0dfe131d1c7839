"""Logging: short lines on the terminal, everything in the run's file, no secrets in either."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

_NAMES = (
    r"(?:api|auth|access|secret|hf|hub|bearer)[_-]?(?:key|token)(?:_id)?|token|password|secret|authorization|bearer"
)
_SECRET = re.compile(rf"""(?i)(?<![a-z0-9])({_NAMES})(\\?["']?\s*[:=]\s*\\?["']?(?:bearer\s+)?)([^\s"',}}\\]{{6,}})""")
# without a sign between them only a word with a digit counts: "token abc123", but not "token embeddings"
_SPOKEN = re.compile(rf"""(?i)(?<![a-z0-9])({_NAMES})(\s+)((?=[^\s"',}}\\]*\d)[^\s"',}}\\]{{6,}})""")
_KEY = re.compile(rf"(?i)(?:.*_)?(?:{_NAMES})")
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9-]{8,}|AKIA[A-Z0-9]{12,})\b")


# it has a handler of its own, and what it says on being imported concerns its makers
_TALKATIVE = ("torch.utils._pytree",)
# libraries that print by handlers of their own, and the variables that keep them from it while they are imported
_VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
_OTHER_LIBRARIES = "others"
# user and password, and what signs a URL for whoever has it
_USER = re.compile(r"(\w+://)[^/\s@'\"]+@")
_SIGNED = re.compile(r"(?i)([?&](?:sig|signature|x-amz-[\w-]+|x-goog-[\w-]+|[\w-]*token|[\w-]*key)=)[^&\s\"']+")
# names of environment variables whose values are secrets
_SECRET_VARIABLE = re.compile(
    r"(?i).*(?:TOKEN|SECRET|PASSW|CREDENTIAL|APIKEY|SIGNATURE).*|(?:.*_)?(?:KEY|PASS|PWD|CRED|CREDS|AUTH|SAS|SIG|PAT)(?:_.*|\d*)"
)
# shorter ones would hide ordinary words, such as true and false
_SHORTEST = 6
_hidden: set[str] = set()
HIDDEN = "***"
"""What stands in the place of a secret."""


def is_secret_variable(name: str) -> bool:
    """Does an environment variable of this name hold a credential?"""
    return _SECRET_VARIABLE.fullmatch(name) is not None


def is_secret_key(name: str) -> bool:
    """Does a setting of this name hold a credential?"""
    return _KEY.fullmatch(name) is not None


def hide(value: object) -> None:
    """Never show this value again: `redact` replaces it wherever it stands."""
    text = str(value)
    if len(text) >= _SHORTEST:
        _hidden.add(text)


def redact(text: str) -> str:
    """`text` with hidden values, and anything that looks like a credential, replaced by `***`."""
    for value in sorted(_hidden, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _SIGNED.sub(rf"\1{HIDDEN}", text)
    for pattern in (_SECRET, _SPOKEN):
        text = pattern.sub(lambda m: f"{m[1]}{m[2]}***", text)
    return _TOKEN.sub("***", text)


def redact_values(value: object) -> object:
    """A JSON value with its texts redacted, and whatever stands under a secret's name replaced by `***`."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            k: "***" if v and isinstance(k, str) and _KEY.fullmatch(k) else redact_values(v) for k, v in value.items()
        }
    return [redact_values(v) for v in value] if isinstance(value, (list, tuple)) else value


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """A record that does not fit on the disk is lost; what is to be saved reports a full disk itself."""


def setup(main_process: bool = True) -> None:
    """Log to the terminal; `DARKROOM_LOG_LEVEL` says from which level on. Other ranks stay quiet.

    Of other people's libraries errors alone are for the terminal; their warnings go to the run's file.
    """
    level = os.environ.get("DARKROOM_LOG_LEVEL") or os.environ.get("SIMPLETUNER_LOG_LEVEL") or "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(message)s"))
    root = logging.getLogger("darkroom")
    root.handlers = [handler]
    root.setLevel(level.upper() if main_process else logging.ERROR)
    root.propagate = False
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _VERBOSITY:
        os.environ.setdefault(name, "error")
    other_handler, top = logging.StreamHandler(sys.stderr), logging.getLogger()
    other_handler.setFormatter(_RedactingFormatter("%(message)s"))
    other_handler.setLevel(logging.ERROR)
    other_handler.set_name(_OTHER_LIBRARIES)
    for earlier in [handler for handler in top.handlers if handler.get_name() == _OTHER_LIBRARIES]:
        top.removeHandler(earlier)
    top.addHandler(other_handler)


def to_file(path: Path) -> logging.Handler:
    """Also write every record to `path`, with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("darkroom", None):  # the latter for libraries
        logging.getLogger(name).addHandler(handler)
    return handler


def end(handler: logging.Handler) -> None:
    """Close what `to_file` has opened."""
    for name in ("darkroom", None):
        logging.getLogger(name).removeHandler(handler)
    handler.close()


def logger(name: str) -> logging.Logger:
    """The logger of one module: `log = logger(__name__)`."""
    return logging.getLogger(name)
