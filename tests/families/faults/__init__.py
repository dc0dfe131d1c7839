"""Conventions broken on purpose, and the first check that notices. A check that misses these would miss ours.

One file per family, found by being here; `kit` has what they share.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.families.conformance import CHECKS
from tests.families.faults.kit import Fault

FILES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "kit"))
FAULTS: list[Fault] = [fault for name in FILES for fault in importlib.import_module(f"{__name__}.{name}").FAULTS]


def caught(fault: Fault) -> tuple[str, str] | None:
    """The first check that notices, in the order of their cost, and what it says."""
    broken = fault.broken()
    for name, check in CHECKS.items():
        if problem := check(broken):
            return name, problem
    return None
