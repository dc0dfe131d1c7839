"""Kill runs of eight kinds with SIGKILL in every stage, let each go on to its end, and compare its last checkpoint.

    python benchmarks/kills.py [--kills 100] [--steps 12] [--run video ...] [--json]

Says for each run how many kills ended with the bytes of the uninterrupted run, and in which stage they fell. Exit code
1 if any did not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
FRAMES = 9
COMMON = {
    "train_batch_size": 1, "seed": 5, "resolution": 64, "validation_prompt": "a cup of coffee",
    "validation_step_interval": 4, "validation_num_inference_steps": 2, "validation_disable_unconditional": True,
    "caption_dropout_probability": 0.2, "torch_num_threads": 1, "checkpoints_total_limit": 3,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "video": {"model_family": "wan", "data": "video", "validation_num_video_frames": FRAMES},
    "text encoder, EMA, DoRA": {
        "model_family": "sdxl", "train_text_encoder": True, "use_ema": True, "use_dora": True, "lora_dropout": 0.1,
    },
    "quantized base": {"model_family": "flux", "base_model_precision": "int8-quanto", "lora_dropout": 0.1},
    "full, accumulation": {
        "model_family": "sd3", "model_type": "full", "gradient_accumulation_steps": 2, "use_ema": True,
    },
    "prodigy": {"model_family": "flux", "optimizer": "prodigy"},
    "soap": {"model_family": "flux", "optimizer": "soap"},
    "adamw_schedulefree": {"model_family": "flux", "optimizer": "adamw_schedulefree"},
    "bnb-ademamix8bit": {"model_family": "flux", "optimizer": "bnb-ademamix8bit"},
    "adamw_bf16": {"model_family": "flux", "optimizer": "adamw_bf16", "mixed_precision": "bf16"},
    "random crops, regularization data": {"model_family": "flux", "data": "regularization"},
    "two denoisers": {
        "model_family": "wan", "model_flavour": "tiny-pair", "data": "video", "validation_num_video_frames": FRAMES,
    },
    "conditioning": {
        "model_family": "flux", "model_flavour": "tiny-kontext", "data": "references",
        "validation_using_datasets": True,
    },
}  # fmt: skip


def write_media(folder: Path) -> None:
    """Photographs with captions, and clips of two of them that move."""
    import numpy as np
    from PIL import Image
    from skimage import data

    from darkroom.media.video import write_mp4

    for name in ("photos", "clips"):
        (folder / name).mkdir()
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(data, name)())
        image.resize((96, 96)).save(folder / "photos" / f"{name}.png")
        (folder / "photos" / f"{name}.txt").write_text(f"a photograph of {name}")
    for name in PHOTOGRAPHS[1:3]:
        whole = Image.fromarray(getattr(data, name)()).resize((128, 96))
        frames = [np.asarray(whole.crop((i, i // 2, i + 96, i // 2 + 72))) for i in range(FRAMES)]
        write_mp4(folder / "clips" / f"{name}.mp4", np.stack(frames), 24.0)
        (folder / "clips" / f"{name}.txt").write_text(f"a clip of {name}")


def write_datasets(folder: Path, kind: str) -> Path:
    """The dataset file of a kind of run."""
    photos = {"type": "local", "instance_data_dir": str(folder / "photos"), "caption_strategy": "textfile"}
    clips = {**photos, "instance_data_dir": str(folder / "clips"), "dataset_type": "video"}
    video = {"num_frames": FRAMES, "min_frames": FRAMES, "max_frames": 100}
    cropped = {"crop": True, "crop_style": "random", "crop_aspect": "square", "vae_cache_clear_each_epoch": True}
    references = {
        "id": "before", "dataset_type": "conditioning", "conditioning_type": "reference_strict",
        "source_dataset_id": "photos", **photos, "caption_strategy": None,
    }  # fmt: skip
    kinds: dict[str, list[dict[str, Any]]] = {
        "photos": [{"id": "photos", **photos}],
        "video": [{"id": "clips", **clips, "video": video, "repeats": 2}],
        "regularization": [
            {"id": "photos", **photos, **cropped},
            {"id": "others", **photos, "is_regularisation_data": True, "probability": 0.5},
        ],
        "references": [{"id": "photos", **photos}, references],
    }
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(kinds[kind]))
    return path


def arguments(folder: Path, name: str) -> list[str]:
    """The command line of one kind of run."""
    own = dict(RUNS[name])
    datasets = write_datasets(folder, own.pop("data", "photos"))
    options = {"model_flavour": "tiny", **COMMON, **own, "data_backend_config": datasets}
    return [f"--{key}={value}" for key, value in options.items()]


def main() -> int:
    """Run the trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="over all runs together")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", choices=list(RUNS), action="append", help="left out, all of them")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args()
    from darkroom.tools import selftest

    names = chosen.run or list(RUNS)
    fell: Counter[str] = Counter()
    held: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as root:
        write_media(Path(root))
        for number, name in enumerate(names):
            kills = (chosen.kills * (number + 1)) // len(names) - (chosen.kills * number) // len(names)
            argv = [*arguments(Path(root), name), f"--checkpoint_step_interval={max(1, chosen.steps // 4)}"]
            proof = selftest.resume(argv, Path(root) / f"run-{number}", chosen.steps, kills, chosen.seed + number)
            held[name] = [sum(trial.holds for trial in proof.trials), kills]
            fell += proof.fell
            print(f"{name}: {held[name][0]} of {kills} ended with the same bytes", flush=True)
    print(f"kills by stage: {', '.join(f'{stage} {count}' for stage, count in fell.items())}")
    if chosen.json:
        print(json.dumps({"held": held, "stages": fell}))
    return 0 if all(ended == kills for ended, kills in held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
