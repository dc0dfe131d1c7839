"""Record what runs leave, so that a change which must not change anything can be held to it.

    python benchmarks/same_bytes.py record FILE [--run flux ...]
    python benchmarks/same_bytes.py compare FILE

For each run: sha256 of the tensors of the result and of the last checkpoint (names and numbers, not metadata), and of
the pixels of one validation image. `compare` says what differs, and ends with code 1 if anything does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kills

Options = dict[str, Any]
Digests = dict[str, str]

VIDEO: Options = {"data": "video", "validation_num_video_frames": kills.FRAMES}
REFERENCES: Options = {"data": "references", "validation_using_datasets": True}
RUNS: dict[str, Options] = {
    "flux": {"model_family": "flux"},
    "flux, full": {"model_family": "flux", "model_type": "full"},
    "flux, accumulation": {"model_family": "flux", "gradient_accumulation_steps": 2, "train_batch_size": 2},
    "flux, blocks wait": {"model_family": "flux", "musubi_blocks_to_swap": 1, "gradient_checkpointing": True},
    "flux, quantized": {"model_family": "flux", "base_model_precision": "int8-quanto"},
    "flux, DoRA": {"model_family": "flux", "use_dora": True, "lora_dropout": 0.1},
    "flux, EMA": {"model_family": "flux", "use_ema": True, "optimizer": "adamw_bf16", "mixed_precision": "bf16"},
    "flux, references": {"model_family": "flux", "model_flavour": "tiny-kontext", **REFERENCES},
    "flux, regularization data": {"model_family": "flux", "data": "regularization", "max_train_steps": 8},
    "flux, resumed": {"model_family": "flux", "resumed": True},
    "flux2": {"model_family": "flux2"},
    "sdxl": {"model_family": "sdxl"},
    "sdxl, text encoder": {"model_family": "sdxl", "train_text_encoder": True},
    "sdxl, full": {"model_family": "sdxl", "model_type": "full", "use_ema": True},
    "sd1x": {"model_family": "sd1x"},
    "sd3": {"model_family": "sd3", "snr_gamma": None},
    "sd3, full, accumulation": {"model_family": "sd3", "model_type": "full", "gradient_accumulation_steps": 2},
    "pixart_sigma": {"model_family": "pixart_sigma"},
    "chroma": {"model_family": "chroma"},
    "hidream": {"model_family": "hidream"},
    "qwen_image": {"model_family": "qwen_image"},
    "z_image": {"model_family": "z_image"},
    "lumina2": {"model_family": "lumina2"},
    "wan": {"model_family": "wan", **VIDEO},
    "wan, two denoisers": {"model_family": "wan", "model_flavour": "tiny-pair", **VIDEO},
    "ltxvideo": {"model_family": "ltxvideo", **VIDEO},
    "hunyuanvideo": {"model_family": "hunyuanvideo", **VIDEO},
}  # fmt: skip
STEPS = 4


def tensors_digest(files: Iterable[Path]) -> str:
    """sha256 over the names and bytes of the tensors of safetensors files, in the order of their names."""
    import torch
    from safetensors import safe_open

    total = hashlib.sha256()
    for file in sorted(files):
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                tensor = opened.get_tensor(name).contiguous()
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def image_digest(folder: Path) -> str:
    """sha256 of the pixels of the last validation image, or of the file of a clip."""
    from PIL import Image

    files = sorted(file for file in folder.rglob("*") if file.suffix in (".png", ".mp4", ".webp") and file.is_file())
    if not files:
        return ""
    last = files[-1]
    return hashlib.sha256(Image.open(last).tobytes() if last.suffix == ".png" else last.read_bytes()).hexdigest()


def run(root: Path, name: str) -> Digests:
    """Train as the run of this name says. Raises RuntimeError if that fails."""
    from darkroom.cli.main import main

    options = dict(RUNS[name])
    resumed = options.pop("resumed", False)
    datasets = kills.write_datasets(root, options.pop("data", "photos"))
    output = root / hashlib.sha256(name.encode()).hexdigest()[:8]
    steps = options.setdefault("max_train_steps", STEPS)
    usual = {"model_flavour": "tiny", **kills.COMMON, "checkpoint_step_interval": 2}
    given = {**usual, **options, "data_backend_config": datasets, "output_dir": output}
    arguments = ["train", *(f"--{key}={value}" for key, value in given.items() if value is not None)]
    for _ in range(2 if resumed else 1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
        if code:
            raise RuntimeError(f"{name} ended with code {code}:\n{said.getvalue()[-2000:]}")
        if resumed and (output / f"checkpoint-{steps}").exists():
            for left in [*output.glob(f"checkpoint-{steps}"), *output.glob("finished.json")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            resumed = False
    return {
        "result": tensors_digest(
            file
            for file in output.rglob("*.safetensors")
            if not any(part.startswith(("checkpoint-", "cache")) for part in file.relative_to(output).parts)
        ),
        "checkpoint": tensors_digest((output / f"checkpoint-{steps}").rglob("*.safetensors")),
        "image": image_digest(output / "validation_images" / "originals"),
    }


def record(names: Iterable[str]) -> dict[str, Digests]:
    """The digests of all these runs."""
    import torch

    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as root:
        os.environ["DARKROOM_HOME"] = str(Path(root) / "home")
        kills.write_media(Path(root))
        for name in names:
            found[name] = run(Path(root), name)
            print(f"{name}: {found[name]['result'][:12]} {found[name]['checkpoint'][:12]}", flush=True)
    return found


def main() -> int:
    """Record, or compare with what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--run", choices=list(RUNS), action="append", help="left out, all of them")
    chosen = parser.parse_args()
    before = json.loads(chosen.file.read_text()) if chosen.what == "compare" else {}
    now = record(chosen.run or before or RUNS)
    if chosen.what == "record":
        chosen.file.write_text(json.dumps(now, indent=1) + "\n")
        print(f"{len(now)} runs recorded")
        return 0
    differing = [f"{name}: {part}" for name in now for part in now[name] if now[name][part] != before[name][part]]
    print("\n".join(differing) or f"{len(now)} runs left the same bytes")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
