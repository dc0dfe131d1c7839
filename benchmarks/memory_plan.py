"""What a run takes against what `darkroom plan` says it will take, phase by phase.

Usage: python benchmarks/memory_plan.py [CASE ...]      without a case: all of them, about a quarter of an hour
       BENCH_LARGER=0 python benchmarks/memory_plan.py "flux plain"     with the tiny models themselves: does it run?

Models of some hundred megabytes are made from the families' tiny ones, with random weights: for them the process
itself is the smaller part of what is held.
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
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux plain": ("flux", {}),
    "flux checkpointing": ("flux", {"gradient_checkpointing": True}),
    "flux fp8-block": ("flux", {"gradient_checkpointing": True, "base_model_precision": "fp8-block"}),
    "flux int8-quanto": ("flux", {"base_model_precision": "int8-quanto"}),
    "flux swap": ("flux", {"gradient_checkpointing": True, "musubi_blocks_to_swap": 4}),
    "flux batch 1, 384 wide": ("flux", {"train_batch_size": 1, "resolution": 384}),
    "flux full": ("flux", {"model_type": "full", "learning_rate": 1e-6, "gradient_checkpointing": True}),
    "sdxl plain": ("sdxl", {}),
    "sdxl checkpointing, EMA": ("sdxl", {"gradient_checkpointing": True, "use_ema": True}),
    "sdxl rank 64, lion": ("sdxl", {"lora_rank": 64, "optimizer": "optimi-lion"}),
    "wan pictures": ("wan", {}),
    "wan checkpointing, accumulation": ("wan", {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
}


def base(family: str) -> Path:
    """A folder of the family with larger models, made once."""
    import torch

    from darkroom import families
    from darkroom.families import tiny
    from darkroom.families.classes import named

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
            made = named(cls.__name__).from_config({**part.config, **more})
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


def main(chosen: list[str]) -> None:
    """A table of phases."""
    datasets = pictures()
    worst: list[float] = []
    for case in chosen or CASES:
        family, options = CASES[case]
        with tempfile.TemporaryDirectory() as output:
            settings = {
                "model_family": family, "pretrained_model_name_or_path": str(base(family)), "model_type": "lora",
                "lora_rank": 16, "data_backend_config": str(datasets), "output_dir": output, "resolution": 256,
                "resolution_type": "pixel_area", "train_batch_size": 2, "max_train_steps": 2,
                "optimizer": "torch-adamw", "mixed_precision": "no", "gradient_checkpointing": False,
                "validation_prompt": "a photograph", "validation_resolution": "256x256",
                "validation_num_inference_steps": 2, "validation_num_video_frames": 1, "checkpoint_step_interval": 2,
                **options,
            }  # fmt: skip
            config = Path(output) / "config.json"
            config.write_text(json.dumps(settings), encoding="utf-8")
            plan = subprocess.run(
                [sys.executable, "-m", "darkroom", "plan", str(config), "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            said = json.loads(plan.stdout)["memory"]["phases"]
            subprocess.run(
                [sys.executable, "-m", "darkroom", "train", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            events = [json.loads(line) for line in (Path(output) / "events.jsonl").read_text().splitlines()]
        seen = {
            row["phase"].removeprefix("rehearsal: "): row["host_memory"] for row in events if row["event"] == "phase"
        }
        print(f"\n{case}")
        largest = {row["phase"]: row for row in reversed(said)}
        for name, row in reversed(largest.items()):
            if row["host"] is None:
                print(f"  {name:<14} unknown: {row['why']}")
                continue
            ratio = row["host"] / seen[name]
            worst.append(abs(ratio - 1))
            print(
                f"  {name:<14} said {row['host'] / 2**20:6.0f} MiB, was {seen[name] / 2**20:6.0f}: {ratio:5.3f}",
                flush=True,
            )
    print(f"\nfarthest from 1: {max(worst):.3f}, of {len(worst)} phases {sum(w <= 0.1 for w in worst)} within 0.1")


if __name__ == "__main__":
    main(sys.argv[1:])
