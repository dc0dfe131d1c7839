"""Weight files: single files or sets of shards; their headers, and what is wrong with them."""

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
SAFETENSORS_ONLY = {"use_safetensors": True}
"""For every `from_pretrained`: pickled weights are refused, not opened."""

# transformers uses another file name for safetensors
_SAFETENSORS_NAMES = {"pytorch_model": "model"}
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SINGLE_FILE = (".safetensors", ".gguf", *PICKLES)
MAX_NAMES = 3


class Misfit(ModelError):
    """A file that cannot supply a component: `problem` says why, `change` what to do."""

    def __init__(self, path: Path, problem: str, change: str):
        self.problem, self.change = problem, change
        super().__init__(f"{path} cannot be used.\n  {problem}\n  {change}")


def is_single_file(source: str) -> bool:
    """Does `source` name one checkpoint file rather than a folder or a hub id?"""
    return Path(source).suffix in SINGLE_FILE and not Path(source).expanduser().is_dir()


def find_shards(path: Path) -> list[Path]:
    """All shards of the set `name-00001-of-00003.safetensors` that `path` is in, else `[path]`. Raises Misfit."""
    match = re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", path.name)
    if not match:
        return [path]
    name, number, count = match.groups()
    width = len(number)
    shards = [path.with_name(f"{name}-{n:0{width}d}-of-{count}.safetensors") for n in range(1, int(count) + 1)]
    if missing := [part.name for part in shards if not part.is_file()]:
        raise Misfit(
            path,
            f"It is one of {len(shards)} shards, and {join_names(missing)} {'is' if len(missing) == 1 else 'are'} "
            "missing.",
            "Copy or download the missing shard into the same folder.",
        )
    return shards


def describe_truncation(path: Path) -> str:
    """How a safetensors file is shorter than its header says, or why it is not one; empty if it is complete."""
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


def read_header(path: Path) -> State:
    """The tensors of a file, or of its set of shards, on the meta device. Raises Misfit."""
    refuse_pickle(path)
    tensors: State = {}
    for part in find_shards(path):
        if problem := describe_truncation(part):
            raise Misfit(part, f"The weights file is damaged: {problem}.", "Copy or download it again.")
        with open(part, "rb") as file:
            rows = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        rows.pop("__metadata__", None)
        tensors |= {key: torch.empty(row["shape"], device="meta") for key, row in rows.items()}
    return tensors


def refuse_pickle(path: Path) -> None:
    """Raises Misfit for pickles: opening one may run any code in it."""
    if path.suffix in PICKLES:
        raise Misfit(
            path,
            f"{path.name} is a pickle, which may run code when it is opened; Darkroom reads safetensors only.",
            f"Where you trust it, convert it once: python -c {shlex.quote(_conversion(path))}",
        )


def _conversion(path: Path) -> str:
    """A line of Python that converts a pickle, or its set of shards, to a safetensors file in the same folder."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.stem)
    files = sorted(path.parent.glob(f"{glob.escape(stem)}-*{path.suffix}")) if stem != path.stem else [path]
    target = path.with_name(_SAFETENSORS_NAMES.get(stem, stem) + ".safetensors")
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
    """Tensors of a file, or of its set of shards, by new name (`names`: key to name)."""
    from safetensors import safe_open

    tensors: State = {}
    for part in find_shards(path):
        with safe_open(part, "pt") as file:
            tensors |= {names[key]: file.get_tensor(key) for key in file.keys() if key in names}  # noqa: SIM118
    return tensors


def join_names(names: list[str]) -> str:
    """The first few of many names.

    >>> join_names(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join([*names[:MAX_NAMES], *(["..."] if len(names) > MAX_NAMES else [])])
