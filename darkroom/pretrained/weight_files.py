"""The files that weights lie in: one, or a set that was split; their headers, and what is wrong with them."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from darkroom.core.errors import ModelError

State = dict[str, Tensor]
SAFE = {"use_safetensors": True}
"""For every `from_pretrained`: weights that only pickle reads are refused, not opened."""

# transformers looks for its weights under another name when they are safetensors
_SAFE_NAMES = {"pytorch_model": "model"}
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SINGLE_FILE = (".safetensors", ".gguf", *PICKLES)
FEW = 3


class Misfit(ModelError):
    """A file that does not give the part it was given for: `problem` says what it is, `change` what to do."""

    def __init__(self, path: Path, problem: str, change: str):
        self.problem, self.change = problem, change
        super().__init__(f"{path} cannot be used.\n  {problem}\n  {change}")


def is_single_file(source: str) -> bool:
    """Does `source` name one checkpoint file rather than a folder or a hub id?"""
    return Path(source).suffix in SINGLE_FILE and not Path(source).expanduser().is_dir()


def split_set(path: Path) -> list[Path]:
    """All parts of a set `name-00001-of-00003.safetensors` of which `path` is one; else `path` alone. Raises Misfit."""
    found = re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", path.name)
    if not found:
        return [path]
    name, number, count = found.groups()
    width = len(number)
    parts = [path.with_name(f"{name}-{n:0{width}d}-of-{count}.safetensors") for n in range(1, int(count) + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise Misfit(
            path,
            f"It is one of {len(parts)} parts, and beside it {some(missing)} {'is' if len(missing) == 1 else 'are'} "
            "missing.",
            "Copy or download the missing part into the same folder.",
        )
    return parts


def cut_short(path: Path) -> str:
    """What is wrong with the frame of a safetensors file, in words; empty if it is as long as its header says."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                return f"it has {size} bytes, fewer than its header needs"
            rows = json.loads(file.read(length))
        expected = 8 + length + max((r["data_offsets"][1] for n, r in rows.items() if n != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "it is no safetensors file"
    return "" if size >= expected else f"it has {size} bytes of {expected}"


def header(path: Path) -> State:
    """The tensors of a file, or of the set it belongs to, with their shapes and without data. Raises Misfit."""
    refuse_pickle(path)
    found: State = {}
    for part in split_set(path):
        if problem := cut_short(part):
            raise Misfit(part, f"The weights file is damaged: {problem}.", "Copy or download it again.")
        with open(part, "rb") as file:
            rows = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        rows.pop("__metadata__", None)
        found |= {key: torch.empty(row["shape"], device="meta") for key, row in rows.items()}
    return found


def refuse_pickle(path: Path) -> None:
    """Raises Misfit for files that only pickle reads: opening one may run whatever code is in it."""
    if path.suffix in PICKLES:
        raise Misfit(
            path,
            f"{path.name} is a pickle, which may run code when it is opened; Darkroom reads safetensors only.",
            f"Where you trust it, convert it once: python -c {shlex.quote(_conversion(path))}",
        )


def _conversion(path: Path) -> str:
    """A line of Python that writes a pickle's tensors, or those of the set it belongs to, as safetensors beside it."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.stem)
    files = sorted(path.parent.glob(f"{glob.escape(stem)}-*{path.suffix}")) if stem != path.stem else [path]
    target = path.with_name(_SAFE_NAMES.get(stem, stem) + ".safetensors")
    return (
        "import torch; from safetensors.torch import save_file; s = {}; "
        f"[s.update(torch.load(f, weights_only=True, map_location='cpu')) for f in {[str(f) for f in files]!r}]; "
        "s = s.get('state_dict', s.get('module', s)); "
        f"save_file({{k: v.contiguous().clone() for k, v in s.items()}}, {str(target)!r}, {{'format': 'pt'}})"
    )


def refuse_pickled_folder(folder: Path) -> None:
    """Raises Misfit for a folder whose weights are pickles only."""
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        refuse_pickle(pickles[0])


def read(path: Path, names: Mapping[str, str]) -> State:
    """The tensors of some keys of a file or of the set it belongs to, under other names."""
    from safetensors import safe_open

    found: State = {}
    for part in split_set(path):
        with safe_open(part, "pt") as file:
            found |= {names[key]: file.get_tensor(key) for key in file.keys() if key in names}  # noqa: SIM118
    return found


def some(names: list[str]) -> str:
    """The first few of many names.

    >>> some(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join([*names[:FEW], *(["..."] if len(names) > FEW else [])])
