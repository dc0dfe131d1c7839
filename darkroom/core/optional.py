"""Packages that are there only with an extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from darkroom.core.errors import MissingPackage


def import_optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra installs it. Raises MissingPackage."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingPackage(module, extra, purpose) from cause
