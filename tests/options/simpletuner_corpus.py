"""Environments as SimpleTuner's users have them, written from the description of its options.

Each is a folder with a config in one of the forms that SimpleTuner reads and the files that it names. Every family
that SimpleTuner trains too is there with every kind of training that it has here, and every companion file with some.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE_FAMILIES = {
    "auraflow": "v0.3",
    "chroma": "base",
    "cosmos2image": "2b",
    "deepfloyd": "i-medium-400m",
    "ernie": "base",
    "flux": "dev",
    "flux2": "klein-4b",
    "hidream": "full",
    "ideogram": "fp8",
    "kandinsky5-image": "t2i-lite-sft",
    "kolors": "1.0",
    "krea2": "raw",
    "longcat_image": "final",
    "lumina2": "2.0",
    "omnigen": "v1",
    "pixart": "900M-1024-v0.6",
    "qwen_image": "v1.0",
    "sana": "sana1.5-1.6b-1024",
    "sd1x": "1.5",
    "sd2x": "2.1",
    "sd3": "medium",
    "sdxl": "base-1.0",
    "stable_cascade": "stage-c",
    "z_image": "turbo-ostris-v2",
}
VIDEO_FAMILIES = {
    "hunyuanvideo": "t2v-480p",
    "kandinsky5-video": "t2v-lite-sft-5s",
    "longcat_video": "final",
    "ltxvideo": "0.9.5",
    "ltxvideo2": "2.3-dev",
    "sanavideo": "2b-480p",
    "wan": "flf2v-14b-2.1",
}
CONTROLNETS = ("flux", "qwen_image", "sana", "sd1x", "sd2x", "sd3", "sdxl", "z_image")
TEXT_ENCODERS = ("sd1x", "sdxl")

FORMS = ("json", "dashes", "toml", "env")

COMMON: dict[str, Any] = {
    "resume_from_checkpoint": "latest",
    "data_backend_config": "config/{name}/multidatabackend.json",
    "aspect_bucket_rounding": 2,
    "seed": 42,
    "minimum_image_size": 0,
    "output_dir": "output/{name}",
    "hub_model_id": "my-{name}",
    "push_to_hub": False,
    "push_checkpoints_to_hub": "false",
    "tracker_project_name": "training",
    "tracker_run_name": "{name}",
    "report_to": "none",
    "max_train_steps": 100,
    "num_train_epochs": 0,
    "checkpointing_steps": 50,
    "checkpoints_total_limit": 3,
    "checkpoint_epoch_interval": 0,
    "disable_benchmark": True,
    "learning_rate": 1e-4,
    "lr_warmup_steps": 20,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "gradient_checkpointing_interval": 0,
    "accelerator_cache_clear_interval": 0,
    "caption_dropout_probability": 0.1,
    "resolution_type": "pixel_area",
    "resolution": 1024,
    "validation_seed": 42,
    "validation_steps": 50,
    "validation_guidance": 4.0,
    "validation_guidance_rescale": 0.0,
    "validation_num_inference_steps": 4,
    "validation_negative_prompt": "blurry",
    "validation_prompt": "a photo of a lamp",
    "validation_disable_unconditional": True,
    "mixed_precision": "bf16",
    "skip_file_discovery": False,
    "use_ema": False,
    "publishing_config": [],
    "tread_config": {},
    "model_card_private": False,
    "webhook_config": None,
    "strict_epoch_limit": False,
    "context_parallel_size": 1,
    "text_encoder_batch_size": 1,
    "eval_epoch_interval": 0,
    "validation_adapter_strength": 1.0,
    "num_eval_images": 4,
}
"""What almost every config has, much of it at rest."""

SCHEDULES = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial", "sine")
OPTIMIZERS = ("adamw_bf16", "optimi-lion", "optimi-adamw", "torch-adamw")


@dataclass(frozen=True)
class Environment:
    """One environment: its settings, its form, the entries of its dataset file, and further files."""

    name: str
    form: str
    settings: dict[str, Any]
    datasets: list[dict[str, Any]]
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path, images: Path, clips: Path) -> str:
        """Write the folder below `root`/config and return the name of the environment."""
        folder = root / "config" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {**row, "instance_data_dir": str({"images": images, "clips": clips}[row["instance_data_dir"]])}
            if "instance_data_dir" in row
            else row
            for row in self.datasets
        ]
        for name, content in {"multidatabackend.json": rows, **self.files}.items():
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        settings = {key: _fill(value, self.name) for key, value in self.settings.items()}
        suffix = {"dashes": "json"}.get(self.form, self.form)
        (folder / f"config.{suffix}").write_text(WRITERS[self.form](settings), encoding="utf-8")
        return self.name


def _fill(value: Any, name: str) -> Any:
    return value.replace("{name}", name) if isinstance(value, str) else value


def _as_toml(settings: dict[str, Any]) -> str:
    # TOML has no null, and SimpleTuner takes an object as text
    lines = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in settings.items() if v is not None}
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())


def _as_env(settings: dict[str, Any]) -> str:
    extra = " ".join(f"--{key}" for key, value in settings.items() if value is True)
    lines = [
        f"{key.upper()}='{json.dumps(value) if isinstance(value, list | dict) else value}'"
        for key, value in settings.items()
        if value is not None and not isinstance(value, bool)
    ]
    return "\n".join([*lines, f"TRAINER_EXTRA_ARGS='{extra}'"])


WRITERS = {
    "json": lambda settings: json.dumps(settings, indent=4),
    "dashes": lambda settings: json.dumps({f"--{key}": value for key, value in settings.items()}, indent=4),
    "toml": _as_toml,
    "env": _as_env,
}

TEXT_CACHE = {
    "id": "text-cache",
    "dataset_type": "text_embeds",
    "default": True,
    "type": "local",
    "cache_dir": "cache/text/{model_family}",
}
IMAGES = {
    "id": "photos",
    "type": "local",
    "crop": True,
    "crop_aspect": "square",
    "crop_style": "random",
    "minimum_image_size": 0,
    "maximum_image_size": 0,
    "target_downsample_size": 0,
    "resolution": 128,
    "resolution_type": "pixel",
    "metadata_backend": "discovery",
    "caption_strategy": "textfile",
    "instance_data_dir": "images",
    "cache_dir_vae": "cache/vae/{model_family}/photos",
    "repeats": 2,
}
CLIPS = {
    "id": "clips",
    "type": "local",
    "dataset_type": "video",
    "crop": False,
    "resolution": 64,
    "resolution_type": "pixel",
    "caption_strategy": "textfile",
    "instance_data_dir": "clips",
    "cache_dir_vae": "cache/vae/{model_family}/clips",
    "video": {"num_frames": 9, "min_frames": 9, "max_frames": 0, "frame_rate": 0},
    "repeats": 2,
}
CANNY = {"conditioning": {"type": "canny", "conditioning_type": "controlnet", "captions": ["a lamp"]}}

COMPANIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "user_prompt_library.json": (
        {"user_prompt_library": "config/{name}/user_prompt_library.json"}, {"lamp": "a lamp", "cup": "a cup"},
    ),
    "prompts.json": (
        {"validation_prompt_library": "config/{name}/prompts.json"}, {"boat": "a boat at night"},
    ),
    "lycoris_config.json": (
        {"lycoris_config": "config/{name}/lycoris_config.json", "validation_lycoris_strength": 1.0},
        {"algo": "lokr", "multiplier": 1.0, "linear_dim": 64, "linear_alpha": 32, "factor": 16},
    ),
    "distillation.json": ({"distillation_config": "config/{name}/distillation.json"}, {"lcm": {"w": 8.0}}),
    "peft_targets.json": (
        {"peft_lora_target_modules": "config/{name}/peft_targets.json"}, ["to_q", "to_k", "to_v", "to_out.0"],
    ),
}  # fmt: skip
"""A companion file: the settings that name it and what it holds."""


def environments() -> Iterator[Environment]:
    """All of them, in an order that does not change."""
    for number, (family, flavour) in enumerate({**IMAGE_FAMILIES, **VIDEO_FAMILIES}.items()):
        kinds = ["lora", "full"]
        kinds += ["controlnet", "controlnet-lora"] if family in CONTROLNETS else []
        kinds += ["text-encoder"] if family in TEXT_ENCODERS else []
        for offset, kind in enumerate(kinds):
            yield _environment(number + offset, family, flavour, kind)


def _environment(number: int, family: str, flavour: str, kind: str) -> Environment:
    is_video = family in VIDEO_FAMILIES
    settings = {
        **COMMON,
        "model_family": family,
        "model_flavour": flavour,
        "model_type": "full" if kind in ("full", "controlnet") else "lora",
        "lr_scheduler": SCHEDULES[number % len(SCHEDULES)],
        "optimizer": OPTIMIZERS[number % len(OPTIMIZERS)],
        "lr_end": 1e-6,
        "validation_resolution": "832x480" if is_video else "1024x1024",
    }
    if settings["model_type"] == "lora":
        settings |= {"lora_type": "standard", "lora_rank": 16, "lora_alpha": 16, "lora_dropout": 0.1}
    if kind == "lora":
        settings |= _memory_settings(number, is_video)
    if kind == "text-encoder":
        settings |= {"train_text_encoder": True, "text_encoder_lr": 0}
    if is_video:
        settings |= {
            "validation_num_video_frames": 9,
            "framerate": 0,
            "vae_enable_tiling": True,
            "vae_enable_slicing": True,
            "vae_enable_temporal_roll": True,
        }
    datasets = [dict(CLIPS if is_video else IMAGES), dict(TEXT_CACHE)]
    if kind.startswith("controlnet"):
        settings["controlnet"] = True
        datasets[0] |= CANNY
    if number % 5 == 4:  # as the newest SimpleTuner has them: without effect in a run that distills nothing
        datasets.append({"id": "words", "dataset_type": "caption", "type": "local", "instance_data_dir": "images"})
    files = {}
    companion = list(COMPANIONS)[number % len(COMPANIONS)]
    if companion != "peft_targets.json" or (kind == "lora" and family in ("flux", "sdxl", "sd3", "wan")):
        naming, content = COMPANIONS[companion]
        settings |= naming
        files[companion] = content
    form = FORMS[number % len(FORMS)]
    return Environment(f"{family}.{kind}", form, settings, datasets, files)


def _memory_settings(number: int, is_video: bool) -> dict[str, Any]:
    """How the weights fit: one way each."""
    ways: tuple[dict[str, Any], ...] = (
        {"base_model_precision": "no_change", "attention_mechanism": "flash-attn-3-hub"},
        {"base_model_precision": "no_change", "musubi_blocks_to_swap": 30 if is_video else 12},
        {"ramtorch": True, "ramtorch_target_modules": ["*"], "ramtorch_disable_extensions": True},
        {"attention_mechanism": "metal-flash-attention", "offload_during_startup": True},
        {"enable_group_offload": True, "group_offload_type": "block_level", "group_offload_blocks_per_group": 1},
    )
    return ways[number % len(ways)]
