"""`darkroom doctor`: what this machine has, and what that allows."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from darkroom.cli.common import wants_help
from darkroom.core.units import show_size

HELP = "usage: darkroom doctor\n\nSay what this machine has: Python, torch, devices, memory, disk, optional packages."
OPTIONAL = {
    "optimi": "the optimi-* optimizers (extra: optim)",
    "pillow_heif": "HEIC and HEIF images (extra: images)",
    "pillow_jxl": "JPEG XL images (extra: images)",
    "prodigyplus": "the prodigy optimizer (extra: optim)",
    "tensorboard": "report_to tensorboard",
    "wandb": "report_to wandb (extra: trackers)",
    "comet_ml": "report_to comet_ml (extra: trackers)",
}


def run(argv: list[str]) -> int:
    """Print the findings."""
    if wants_help(argv, HELP):
        return 0
    print("\n".join([*machine(), *libraries(), *devices(), *extras()]))
    return 0


def machine() -> list[str]:
    """Python, processor, memory, disk."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    free = shutil.disk_usage(Path.cwd()).free
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return [
        f"Python {platform.python_version()}" + ("" if ok else "  <- Darkroom is tested on 3.11 to 3.13"),
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {show_size(pages)} of memory",
        f"{show_size(free)} free in {Path.cwd()}",
    ]


def libraries() -> list[str]:
    """Versions of what training stands on."""
    from darkroom.report.lock import versions

    return [", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")]


def devices() -> list[str]:
    """Accelerators, and what they or their absence allow."""
    import torch

    from darkroom.core.device import has_bf16

    if not torch.cuda.is_available():
        return [
            f"No GPU that this torch build ({torch.__version__}) can use.",
            "  The embedded base and every tiny flavour train here; real models want a GPU.",
        ]
    lines = []
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        bf16 = "bfloat16" if has_bf16(torch.device("cuda", i)) else "no bfloat16: set mixed_precision to fp16"
        lines.append(f"GPU {i}: {card.name}, {show_size(card.total_memory)}, compute {card.major}.{card.minor}, {bf16}")
    return lines


def extras() -> list[str]:
    """Optional packages."""
    lines = []
    for module, purpose in OPTIONAL.items():
        is_installed = importlib.util.find_spec(module) is not None
        lines.append(f"{'yes' if is_installed else 'no '}  {module}: {purpose}")
    return lines
