"""`darkroom selftest resume`: prove on your own config that a killed run resumes exactly."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

HELP = "Train, kill with SIGKILL in every stage of a run, resume, and compare every byte with an uninterrupted run."


def run(argv: list[str]) -> int:
    """Run the proof; 0 if every trial ended with the same bytes."""
    parser = argparse.ArgumentParser("darkroom selftest", description=HELP)
    parser.add_argument("what", choices=["resume"])
    parser.add_argument("config", nargs="?", help="your config; left out, a small run on built-in pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--kills", type=int, default=6, help="spread over start, caches, loading, steps, saves, validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the instants at which runs are killed")
    parser.add_argument("--as_is", action="store_true", help="use the config's own weights instead of the tiny flavour")
    parser.add_argument("--folder", help="where to work; left out, a temporary folder")
    parsed, options = parser.parse_known_args(argv)
    from darkroom.tools.selftest import resume

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(parsed.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [parsed.config] if parsed.config else [str(example(folder))]
        if parsed.config and not parsed.as_is:
            arguments.append("--model_flavour=tiny")
        arguments.append(f"--checkpoint_step_interval={max(1, parsed.steps // 4)}")
        proof = resume([*arguments, *options], folder, parsed.steps, parsed.kills, parsed.seed)
    print("It holds: every killed run ended with the same bytes." if proof.holds else "It does not hold.")
    return 0 if proof.holds else 1


def example(folder: Path) -> Path:
    """A config with all that could be forgotten: two datasets, accumulation, EMA, dropout of captions and weights."""
    images = Path(__file__).parent.parent / "demo"
    datasets = [
        {
            "id": "concept",
            "type": "local",
            "instance_data_dir": str(images / "concept"),
            "caption_strategy": "textfile",
        },
        {"id": "keep", "type": "local", "instance_data_dir": str(images / "keep"), "caption_strategy": "textfile"},
    ]
    (folder / "datasets.json").write_text(json.dumps(datasets), encoding="utf-8")
    config = {
        "model_family": "flux",
        "model_flavour": "tiny",
        "data_backend_config": str(folder / "datasets.json"),
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lora_dropout": 0.1,
        "use_ema": True,
        "caption_dropout_probability": 0.2,
        "dataloader_prefetch": True,
        "validation_prompt": "a large grumbo on a blue background",
        "validation_step_interval": 10,
        "validation_num_inference_steps": 8,
        "ema_validation": "none",
        "seed": 1,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
