"""Logging: short lines on the terminal, everything in the run's file, no secrets in either."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

_SECRET = re.compile(
    r"""(?ix) ((?:api|auth|access|secret|hf|bearer)[_-]?(?:key|token)(?:_id)?|token|password|secret|authorization)
        (["']?\s*[:=]\s*["']?|\s+) ([^\s"',}]{6,})"""
)
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9-]{8,}|AKIA[A-Z0-9]{12,})\b")


def redact(text: str) -> str:
    """`text` with anything that looks like a credential replaced by `***`."""
    return _TOKEN.sub("***", _SECRET.sub(lambda m: f"{m[1]}{m[2]}***", text))


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def setup(main_process: bool = True) -> None:
    """Log warnings and above to the terminal; `DARKROOM_LOG_LEVEL` changes that. Other ranks stay quiet."""
    level = os.environ.get("DARKROOM_LOG_LEVEL") or os.environ.get("SIMPLETUNER_LOG_LEVEL") or "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(message)s"))
    root = logging.getLogger("darkroom")
    root.handlers = [handler]
    root.setLevel(level.upper() if main_process else logging.ERROR)
    root.propagate = False


def to_file(path: Path) -> logging.Handler:
    """Also write every record to `path`, with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("darkroom").addHandler(handler)
    return handler


def logger(name: str) -> logging.Logger:
    """The logger of one module: `log = logger(__name__)`."""
    return logging.getLogger(name)
