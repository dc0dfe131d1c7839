"""One config of each trainer as its users have it, with ten photographs beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

KOHYA_DATASETS = """
[general]
shuffle_caption = false
caption_extension = ".txt"

[[datasets]]
resolution = 512
batch_size = 2
enable_bucket = true

  [[datasets.subsets]]
  image_dir = "photos"
  num_repeats = 4
  class_tokens = "tpt01 teapot"
"""
KOHYA = """
[model]
pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"

[network]
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_train_unet_only = true

[training]
output_dir = "out"
output_name = "teapot"
dataset_config = "datasets.toml"
max_train_steps = 1200
learning_rate = 1e-4
unet_lr = 1e-4
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1"]
lr_scheduler = "cosine"
lr_warmup_steps = 100
mixed_precision = "bf16"
gradient_checkpointing = true
sdpa = true
min_snr_gamma = 5
noise_offset = 0.05
cache_latents = true
save_every_n_epochs = 1
save_model_as = "safetensors"
clip_skip = 2
seed = 42
sample_prompts = "prompts.txt"
sample_every_n_steps = 200
"""
AI_TOOLKIT = """
job: extension
config:
  name: my_first_flux_lora
  process:
    - type: sd_trainer
      training_folder: out
      device: cuda:0
      trigger_word: tpt01
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4, push_to_hub: false}
      datasets:
        - folder_path: photos
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: false
          cache_latents_to_disk: true
          resolution: [512, 768]
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation_steps: 1
        train_unet: true
        train_text_encoder: false
        gradient_checkpointing: true
        noise_scheduler: flowmatch
        optimizer: adamw8bit
        lr: 1e-4
        timestep_type: sigmoid
        ema_config: {use_ema: true, ema_decay: 0.99}
        dtype: bf16
      model: {name_or_path: black-forest-labs/FLUX.1-dev, is_flux: true, quantize: true}
      sample:
        sampler: flowmatch
        sample_every: 250
        width: 1024
        height: 1024
        prompts: ["[trigger] on a table", "a red [trigger] --n blurred"]
        neg: ""
        seed: 42
        walk_seed: true
        guidance_scale: 4
        sample_steps: 20
meta: {name: "[name]", version: "1.0"}
"""
ONETRAINER = {
    "__version": 6,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "stabilityai/stable-diffusion-xl-base-1.0",
    "workspace_dir": "out",
    "cache_dir": "cache",
    "concept_file_name": "concepts.json",
    "aspect_ratio_bucketing": True,
    "latent_caching": True,
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 200.0,
    "epochs": 10,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "ema": "GPU",
    "ema_decay": 0.999,
    "train_dtype": "BFLOAT_16",
    "resolution": "1024",
    "unet": {"train": True, "weight_dtype": "NFLOAT_4"},
    "text_encoder": {"train": False, "weight_dtype": "BFLOAT_16"},
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-08},
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "gradient_checkpointing": "ON",
    "masked_training": False,
    "save_every": 1,
    "save_every_unit": "EPOCH",
    "sample_after": 10,
    "sample_after_unit": "MINUTE",
}
CONCEPTS = [
    {
        "path": "photos",
        "name": "teapot",
        "enabled": True,
        "balancing": 3.0,
        "loss_weight": 1.0,
        "text": {"prompt_source": "sample", "enable_tag_shuffling": False},
        "image": {"enable_crop_jitter": True, "enable_random_flip": False},
    }
]
DIFFUSION_PIPE = """
output_dir = "out"
dataset = "dataset.toml"
epochs = 100
micro_batch_size_per_gpu = 1
pipeline_stages = 1
gradient_accumulation_steps = 4
gradient_clipping = 1.0
warmup_steps = 10
save_every_n_epochs = 10
checkpoint_every_n_minutes = 120
activation_checkpointing = true
partition_method = "parameters"
save_dtype = "bfloat16"
caching_batch_size = 1
steps_per_print = 1
video_clip_mode = "single_beginning"

[model]
type = "flux"
diffusers_path = "black-forest-labs/FLUX.1-dev"
dtype = "bfloat16"
transformer_dtype = "float8"
flux_shift = true

[adapter]
type = "lora"
rank = 32
dtype = "bfloat16"

[optimizer]
type = "adamw_optimi"
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.01
eps = 1e-8
"""
DIFFUSION_PIPE_DATASET = """
resolutions = [512]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1]

[[directory]]
path = "photos"
num_repeats = 5
"""
DIFFUSERS = [
    "train_dreambooth_lora_flux.py",
    "--pretrained_model_name_or_path=black-forest-labs/FLUX.1-dev",
    *("--instance_data_dir=photos", "--output_dir=out", "--mixed_precision=bf16", "--train_batch_size=1"),
    *("--guidance_scale=1", "--gradient_accumulation_steps=4", "--optimizer=prodigy", "--learning_rate=1."),
    *("--report_to=wandb", "--lr_scheduler=constant", "--lr_warmup_steps=0", "--max_train_steps=500", "--rank=16"),
    *("--resolution=512", "--seed=0", "--gradient_checkpointing"),
]
SIMPLETUNER = {
    "--model_family": "flux",
    "--model_flavour": "dev",
    "--model_type": "lora",
    "--lora_rank": 8,
    "--data_backend_config": "multidatabackend.json",
    "--output_dir": "out",
    "--max_train_steps": 100,
    "--learning_rate": 1e-4,
    "--validation_disable": True,
    "--hub_model_id": "teapot",
}


def write_photos(folder: Path) -> None:
    """Ten photographs with captions."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    for number in range(10):
        Image.fromarray(data.astronaut()).rotate(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a photo of tpt01 teapot number {number}")


def write_kohya(folder: Path) -> list[str]:
    (folder / "lora.toml").write_text(KOHYA)
    (folder / "datasets.toml").write_text(KOHYA_DATASETS)
    (folder / "prompts.txt").write_text("a teapot --n blurred --w 512 --h 512 --s 20\n# not this\na red teapot\n")
    return ["sdxl_train_network.py", "--config_file", "lora.toml", "--bucket_reso_steps=64", "--xformers"]


def write_ai_toolkit(folder: Path) -> list[str]:
    (folder / "flux.yaml").write_text(AI_TOOLKIT)
    return ["flux.yaml"]


def write_onetrainer(folder: Path) -> list[str]:
    (folder / "sdxl.json").write_text(json.dumps(ONETRAINER))
    (folder / "concepts.json").write_text(json.dumps(CONCEPTS))
    return ["sdxl.json"]


def write_diffusion_pipe(folder: Path) -> list[str]:
    (folder / "flux.toml").write_text(DIFFUSION_PIPE)
    (folder / "dataset.toml").write_text(DIFFUSION_PIPE_DATASET)
    return ["flux.toml"]


def write_diffusers(folder: Path) -> list[str]:
    return list(DIFFUSERS)


def write_simpletuner(folder: Path) -> list[str]:
    (folder / "mine").mkdir()
    (folder / "mine/config.json").write_text(json.dumps(SIMPLETUNER))
    entries = [
        {"id": "photos", "type": "local", "instance_data_dir": "photos", "caption_strategy": "textfile",
         "resolution": 512, "cache_dir_vae": "cache/vae"},
        {"id": "text", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache/text"},
    ]  # fmt: skip
    (folder / "multidatabackend.json").write_text(json.dumps(entries))
    return ["mine"]


CONFIGS: Mapping[str, Callable[[Path], list[str]]] = {
    "kohya": write_kohya,
    "ai-toolkit": write_ai_toolkit,
    "onetrainer": write_onetrainer,
    "diffusion-pipe": write_diffusion_pipe,
    "diffusers": write_diffusers,
    "simpletuner": write_simpletuner,
}
