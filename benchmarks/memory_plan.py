"""What a run takes against what `darkroom plan` says it will take, phase by phase.

Usage: python benchmarks/memory_plan.py [CASE ...]      without a case: all of them, about a quarter of an hour
       python benchmarks/memory_plan.py --gpu [CASE ...]     the same of a GPU's memory: `plan --for` against a
                                                             pretended one, which needs a C++ compiler
       BENCH_LARGER=0 python benchmarks/memory_plan.py "flux plain"     with the tiny models themselves: does it run?

Models of some hundred megabytes are made from the families' tiny ones, with random weights: for them the process
itself is the smaller part of what is held. On a pretended GPU (`tests/pretend`) tensors take what they take on a real
one, beside which its libraries take some more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("BENCH_HOME", Path(tempfile.gettempdir()) / "darkroom_memory_plan"))
IS_LARGER = os.environ.get("BENCH_LARGER", "1") != "0"
ROOT = Path(__file__).parent.parent
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
LARGER: dict[str, dict[str, dict[str, Any]]] = {
    "flux": {
        "transformer": {
            "attention_head_dim": 64, "num_attention_heads": 12, "num_layers": 2, "num_single_layers": 4,
            "axes_dims_rope": [8, 28, 28], "joint_attention_dim": 512, "pooled_projection_dim": 256,
        },
        "vae": {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 8},
        "text_encoder": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6},
        "text_encoder_2": {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 12},
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [256, 512], "cross_attention_dim": 1024, "norm_num_groups": 32,
            "projection_class_embeddings_input_dim": 6 * 32 + 512, "addition_time_embed_dim": 32,
        },
        "vae": {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 8},
        "text_encoder": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6},
        "text_encoder_2": {
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "projection_dim": 512,
        },
    },
    "wan": {
        "transformer": {
            "attention_head_dim": 64, "num_attention_heads": 12, "num_layers": 6, "ffn_dim": 2048, "text_dim": 512,
        },
        "text_encoder": {"d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 8, "num_layers": 12},
    },
}  # fmt: skip
FULL = {"model_type": "full", "learning_rate": 1e-6}
SWAPPED = 4 if IS_LARGER else 1  # the tiny models have two blocks
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux plain": ("flux", {}),
    "flux checkpointing": ("flux", {"gradient_checkpointing": True}),
    "flux fp8-block": ("flux", {"gradient_checkpointing": True, "base_model_precision": "fp8-block"}),
    "flux int8-quanto": ("flux", {"base_model_precision": "int8-quanto"}),
    "flux swap": ("flux", {"gradient_checkpointing": True, "musubi_blocks_to_swap": SWAPPED}),
    "flux batch 1, 384 wide": ("flux", {"train_batch_size": 1, "resolution": 384}),
    "flux full": ("flux", {"model_type": "full", "learning_rate": 1e-6, "gradient_checkpointing": True}),
    "sdxl plain": ("sdxl", {}),
    "sdxl checkpointing, EMA": ("sdxl", {"gradient_checkpointing": True, "use_ema": True}),
    "sdxl rank 64, lion": ("sdxl", {"lora_rank": 64, "optimizer": "optimi-lion"}),
    "wan pictures": ("wan", {}),
    "wan checkpointing, accumulation": ("wan", {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
}


GPU_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux plain": ("flux", {}),
    "flux fp8-block": ("flux", {"gradient_checkpointing": True, "base_model_precision": "fp8-block"}),
    "flux int8-quanto": ("flux", {"gradient_checkpointing": True, "base_model_precision": "int8-quanto"}),
    "flux swap": ("flux", {"gradient_checkpointing": True, "musubi_blocks_to_swap": SWAPPED}),
    "flux full": ("flux", {**FULL, "gradient_checkpointing": True}),
    "flux full, swap, EMA on the GPU": (
        "flux", {**FULL, "gradient_checkpointing": True, "musubi_blocks_to_swap": SWAPPED, "use_ema": True,
                 "ema_device": "accelerator"},
    ),
    "sdxl full, optimizer on the host": (
        "sdxl", {**FULL, "gradient_checkpointing": True, "optimizer_cpu_offload_method": "cpu"}
    ),
    "sdxl checkpointing, EMA": ("sdxl", {"gradient_checkpointing": True, "use_ema": True}),
    "sdxl full, released gradients": (
        "sdxl", {**FULL, "gradient_checkpointing": True, "optimizer_release_gradients": True}
    ),
    "wan images": ("wan", {}),
    "wan checkpointing, accumulation": ("wan", {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
    "wan ramtorch": ("wan", {"gradient_checkpointing": True, "ramtorch": True}),
}  # fmt: skip
# plans and runs of configs, each of which has a folder of its own
PLAN = """
import contextlib, pathlib, sys
from darkroom.cli.main import main
for config in sys.argv[1:]:
    with pathlib.Path(config).with_name("plan.json").open("w") as file, contextlib.redirect_stdout(file):
        assert main(["plan", config, "--json"]) == 0
"""
TRAIN = """
import sys
from darkroom.cli.main import main
for config in sys.argv[1:]:
    assert main(["train", config]) == 0
"""
# the pretended GPU computes attention by the formula
PLAN_OF_GPU = """
import contextlib, pathlib, sys
from torch.nn.attention import SDPBackend, sdpa_kernel
from darkroom.cli.main import main
for config in sys.argv[1:]:
    with pathlib.Path(config).with_name("plan.json").open("w") as file, contextlib.redirect_stdout(file):
        with sdpa_kernel(SDPBackend.MATH):
            assert main(["plan", config, "--json", "--for", "64GiB"]) == 0
"""
TRAIN_ON_GPU = """
from tests.pretend import device
device.install(memory=64 << 30)
import gc, sys, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from darkroom.cli.main import main
for config in sys.argv[1:]:
    torch.cuda.synchronize()  # a copy ahead of its use may still be in the queue of a pretended stream
    gc.collect()
    with sdpa_kernel(SDPBackend.MATH):
        assert main(["train", config]) == 0
"""


def base(family: str) -> Path:
    """A folder of the family with larger models, made once."""
    import torch

    from darkroom import families
    from darkroom.families import tiny
    from darkroom.families.shared.classes import find_class

    folder = HOME / family
    if (folder / "whole").exists():
        return folder
    chosen = families.get(family)
    pipe = tiny.build(chosen)
    for name, more in (LARGER[family] if IS_LARGER else {}).items():
        part = getattr(pipe, name)
        cls = type(part)
        torch.manual_seed(0)
        if hasattr(part, "from_config"):
            made = find_class(cls.__name__).from_config({**part.config, **more})
        else:
            made = cls(cls.config_class(**{**part.config.to_dict(), **more}))
        pipe.register_modules(**{name: made})
    pipe.save_pretrained(folder)
    (folder / "whole").touch()
    return folder


def pictures() -> Path:
    """A dataset of photographs, and its file."""
    from PIL import Image
    from skimage import data

    folder = HOME / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        photograph = Image.fromarray((data.astronaut(), data.coffee(), data.chelsea(), data.rocket())[number % 4])
        photograph.convert("RGB").resize((640, 512)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a photograph, number {number}", encoding="utf-8")
    entry = {"id": "pictures", "type": "local", "instance_data_dir": str(folder), "caption_strategy": "textfile"}
    file = HOME / "datasets.json"
    file.write_text(json.dumps([entry]), encoding="utf-8")
    return file


def run(program: str, configs: list[Path]) -> None:
    """Run a program on configs, in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, configs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PATHS})
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def write(case: str, folder: Path, datasets: Path, on_gpu: bool) -> Path:
    """A case's config, in a folder of its own."""
    family, options = (GPU_CASES if on_gpu else CASES)[case]
    folder.mkdir(parents=True)
    edge = 128 if on_gpu else 256  # processors take long to pretend
    settings = {
        "model_family": family, "pretrained_model_name_or_path": str(base(family)), "model_type": "lora",
        "lora_rank": 16, "data_backend_config": str(datasets), "output_dir": str(folder), "resolution": edge,
        "resolution_type": "pixel_area", "train_batch_size": 2, "max_train_steps": 2, "optimizer": "torch-adamw",
        "mixed_precision": "bf16" if on_gpu else "no", "gradient_checkpointing": False,
        "validation_prompt": "a photograph", "validation_resolution": f"{edge}x{edge}",
        "validation_num_inference_steps": 2, "validation_num_video_frames": 1, "checkpoint_step_interval": 2,
        **options,
    }  # fmt: skip
    config = folder / "config.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return config


def compare(case: str, folder: Path, kind: str) -> list[float]:
    """A case's rows, printed; answers how far each is from what was said, as a share."""
    said = json.loads((folder / "plan.json").read_text())["memory"]["phases"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    rows = [row for row in events if row["event"] == "phase"]
    seen = {row["phase"].removeprefix("rehearsal: "): row[f"{kind}_memory"] for row in rows}
    print(f"\n{case}")
    far = []
    largest = {row["phase"]: row for row in reversed(said)}
    for name, row in reversed(largest.items()):
        if row[kind] is None:
            print(f"  {name:<14} unknown: {row['why']}")
            continue
        ratio = row[kind] / seen[name]
        far.append(abs(ratio - 1))
        told, was = row[kind] / 2**20, seen[name] / 2**20
        print(f"  {name:<14} said {told:7.1f} MiB, was {was:7.1f}: {ratio:5.3f}", flush=True)
    return far


def main(arguments: list[str]) -> None:
    """A table of phases."""
    on_gpu = "--gpu" in arguments
    chosen = [argument for argument in arguments if argument != "--gpu"] or list(GPU_CASES if on_gpu else CASES)
    datasets = pictures()
    far: list[float] = []
    with tempfile.TemporaryDirectory() as output:
        folders = [Path(output) / str(number) for number in range(len(chosen))]
        configs = [write(case, folder, datasets, on_gpu) for case, folder in zip(chosen, folders, strict=True)]
        plan, train = (PLAN_OF_GPU, TRAIN_ON_GPU) if on_gpu else (PLAN, TRAIN)
        # what a process has loaded counts on the host, and not on a GPU
        together = len(configs) if on_gpu else 1
        for first in range(0, len(configs), together):
            group = slice(first, first + together)
            run(plan, configs[group])
            run(train, configs[group])
            for case, folder in zip(chosen[group], folders[group], strict=True):
                far += compare(case, folder, "device" if on_gpu else "host")
    print(f"\nfarthest from 1: {max(far):.3f}, of {len(far)} phases {sum(w <= 0.1 for w in far)} within 0.1")


if __name__ == "__main__":
    main(sys.argv[1:])
