"""ostris' ai-toolkit: one YAML file with a process that names the model, its adapter, the data and the training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home
from darkroom.options.imports.report import Imported, ImportedKey, Verdict
from darkroom.options.imports.rules import (
    PRECISIONS,
    SCHEDULES,
    Rule,
    Settings,
    Translation,
    Values,
    about_dataset,
    choose,
    choose_optimizer,
    compute,
    fixed,
    flatten,
    missing,
    near,
    nothing,
    number,
    same,
    translate,
    write_defaults,
)

TITLE = "ai-toolkit"
USAGE = "darkroom import ai-toolkit CONFIG.yaml"

# `arch`, or the switch `is_...`, and the family and flavour here; None for the family's own default
MODELS: Mapping[str, tuple[str, str | None]] = {
    "flux": ("flux", None),
    "flux_kontext": ("flux", "kontext"),
    "flex1": ("flux", None),
    "flux2": ("flux2", "dev"),
    "flux2_klein_4b": ("flux2", "klein-4b"),
    "flux2_klein_9b": ("flux2", "klein-9b"),
    "xl": ("sdxl", None),
    "sdxl": ("sdxl", None),
    "sd15": ("sd1x", None),
    "sd1": ("sd1x", None),
    "v2": ("sd2x", None),
    "v3": ("sd3", None),
    "sd3": ("sd3", None),
    "auraflow": ("auraflow", None),
    "lumina2": ("lumina2", None),
    "chroma": ("chroma", None),
    "hidream": ("hidream", None),
    "omnigen": ("omnigen", None),
    "pixart": ("pixart_sigma", None),
    "wan21": ("wan", None),
    "wan21:1b": ("wan", "t2v-480p-1.3b-2.1"),
    "wan21:14b": ("wan", "t2v-480p-14b-2.1"),
    "wan21_i2v:14b480p": ("wan", "i2v-14b-2.1"),
    "wan21_i2v:14b": ("wan", "i2v-14b-2.1-720p"),
    "wan22_5b": ("wan", "ti2v-5b-2.2"),
    "wan22_14b": ("wan", "t2v-14b-2.2"),
    "wan22_14b:i2v": ("wan", "i2v-14b-2.2"),
    "wan22_14b:t2v": ("wan", "t2v-14b-2.2"),
    "wan22_14b_i2v": ("wan", "i2v-14b-2.2"),
    "qwen_image": ("qwen_image", None),
    "qwen_image:2512": ("qwen_image", "v2.0"),
    "qwen_image_edit": ("qwen_image", "edit-v1"),
    "qwen_image_edit_plus": ("qwen_image", "edit-v2"),
    "qwen_image_edit_plus2509": ("qwen_image", "edit-v2"),
    "qwen_image_edit_plus:2511": ("qwen_image", "edit-v3"),
    "krea2": ("krea2", None),
    "ernie": ("ernie", None),
    "ideogram4": ("ideogram4", None),
    "zimage": ("z_image", None),
    "zimage:turbo": ("z_image", "turbo"),
    "zimage:deturbo": ("z_image", "ostris-de-turbo"),
    "ltx2": ("ltxvideo2", None),
}
DEFAULTS: Settings = {
    "lora_rank": 4,
    "learning_rate": 1e-6,
    "optimizer": "torch-adamw",
    "max_train_steps": 1000,
    "lr_scheduler": "constant",
    "gradient_checkpointing": True,
    "max_grad_norm": 1.0,
    "grad_clip_method": "norm",
    "caption_dropout_probability": 0.0,
    "validation_step_interval": 250,
}
QUANTIZED = {
    "qfloat8": "fp8-quanto",
    "float8": "fp8-torchao",
    "uint8": "uint8-sdnq",
    "qint8": "int8-quanto",
    "uint4": "int4-quanto",
    "qint4": "int4-quanto",
    "nf4": "nf4-bnb",
}
DATASET_DEFAULTS: Settings = {"caption_strategy": "textfile", "resolution": 512, "resolution_type": "pixel_area"}


def _find_kind(value: object, keys: Values) -> Settings | ImportedKey:
    if str(value).lower() in ("lora", "locon"):
        return {"model_type": "lora"}
    return ImportedKey("", value, Verdict.NOT_OFFERED, {"model_type": "lora"}, "a plain LoRA is trained", trains=True)


def _find_quantization(value: object, keys: Values) -> Settings:
    kind = str(keys.get("model.qtype") or "qfloat8").partition("|")[0]  # behind it stands an adapter for what is lost
    preset = QUANTIZED.get(kind.lower(), "fp8-block")
    return {"base_model_precision": preset}


def _find_ema(value: object, keys: Values) -> Settings:
    return {"use_ema": bool(value)}


def _find_timesteps(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value).lower()
    settings = {"sigmoid": {"timestep_sampling": "sigmoid"}, "linear": {"timestep_sampling": "uniform"},
                "shift": {"timestep_sampling": "flux_shift"}, "flux_shift": {"timestep_sampling": "flux_shift"},
                "lumina2_shift": {"timestep_sampling": "shift"}}.get(kind)  # fmt: skip
    if settings is None:
        remark = "these weights by noise level are not offered; levels are drawn uniformly"
        return ImportedKey("", value, Verdict.APPROXIMATED, {"timestep_sampling": "uniform"}, remark, trains=True)
    return settings


def _find_negative(value: object, keys: Values) -> Settings:
    return {"validation_negative_prompt": str(value)}


def _find_logger(value: object, keys: Values) -> Settings:
    return {"report_to": "wandb"}


RULES: Mapping[str, Rule] = {
    "type": nothing("it is the trainer itself"),
    "training_folder": same("output_dir"),
    "sqlite_db_path": nothing("its own web page keeps runs there"),
    "device": nothing("the device is chosen when a run starts"),
    "trigger_word": same("instance_prompt"),
    "performance_log_every": nothing("times are in the event log"),
    "log_dir": same("logging_dir"),
    "logging.log_every": nothing("every step is in the event log"),
    "logging.use_ui_logger": nothing("every step is in the event log"),
    "logging.use_wandb": compute(_find_logger),
    "logging.project_name": same("tracker_project_name"),
    "logging.run_name": same("tracker_run_name"),
    # adapter
    "network.type": compute(_find_kind),
    "network.linear": same("lora_rank"),
    "network.linear_alpha": number("lora_alpha"),
    "network.rank": same("lora_rank"),
    "network.alpha": number("lora_alpha"),
    "network.conv": missing("layers that convolve get no adapter"),
    "network.conv_alpha": missing("layers that convolve get no adapter"),
    "network.dropout": number("lora_dropout"),
    "network.lokr_full_rank": missing("it belongs to LoKr; give lycoris_config"),
    "network.lokr_factor": missing("it belongs to LoKr; give lycoris_config"),
    "network.pretrained_lora_path": same("init_lora"),
    "network.network_kwargs.only_if_contains": missing("name the layers with peft_lora_target_modules"),
    "network.network_kwargs.ignore_if_contains": missing("name the layers with peft_lora_target_modules"),
    # saving
    "save.dtype": missing("a LoRA is saved in the precision in which it is trained", trains=False),
    "save.save_every": same("checkpoint_step_interval"),
    "save.max_step_saves_to_keep": same("checkpoints_total_limit"),
    "save.save_format": nothing("a LoRA is saved as safetensors, a model as a folder of diffusers"),
    "save.push_to_hub": same("push_to_hub"),
    "save.hf_repo_id": same("hub_model_id"),
    "save.hf_private": same("model_card_private", keeps=True),
    # training
    "train.batch_size": same("train_batch_size"),
    "train.steps": same("max_train_steps"),
    "train.gradient_accumulation": same("gradient_accumulation_steps"),
    "train.gradient_accumulation_steps": same("gradient_accumulation_steps"),
    "train.train_unet": compute(
        lambda value, keys: (
            {}
            if value
            else ImportedKey("", value, Verdict.NOT_OFFERED, {}, "the denoiser is always trained", trains=True)
        ),
        keeps=True,
    ),
    "train.train_text_encoder": same("train_text_encoder"),
    "train.gradient_checkpointing": same("gradient_checkpointing", keeps=True),
    "train.noise_scheduler": nothing("noise is added as the base model says"),
    "train.optimizer": compute(choose_optimizer),
    "train.optimizer_params.weight_decay": number("adam_weight_decay"),
    "train.optimizer_params.betas": compute(
        lambda value, keys: {"optimizer_beta1": float(value[0]), "optimizer_beta2": float(value[1])}  # type: ignore[index]
    ),
    "train.optimizer_params.eps": number("adam_epsilon"),
    "train.lr": number("learning_rate"),
    "train.unet_lr": number("learning_rate"),
    "train.text_encoder_lr": number("text_encoder_lr"),
    "train.lr_scheduler": choose("lr_scheduler", SCHEDULES),
    "train.lr_scheduler_params.num_warmup_steps": same("lr_warmup_steps"),
    "train.max_grad_norm": compute(lambda v, g: {"max_grad_norm": float(str(v)), "grad_clip_method": "norm"}),
    "train.timestep_type": compute(_find_timesteps),
    "train.content_or_style": compute(
        lambda value, keys: (
            {}
            if str(value) == "balanced"
            else ImportedKey(
                "", value, Verdict.NOT_OFFERED, {}, "noise levels are drawn without a leaning", trains=True
            )
        )
    ),
    "train.linear_timesteps": fixed(timestep_sampling="uniform"),
    "train.linear_timesteps2": fixed(timestep_sampling="uniform"),
    "train.bypass_guidance_embedding": missing("the guidance that is told is flux_guidance_value"),
    "train.ema_config.use_ema": compute(_find_ema),
    "train.ema_config.ema_decay": number("ema_decay"),
    "train.dtype": choose("mixed_precision", PRECISIONS),
    "train.xformers": fixed(attention_mechanism="xformers"),
    "train.attention_backend": missing("choose attention_mechanism", trains=False),
    "train.skip_first_sample": nothing("nothing is drawn before the first step, unless validation_on_startup says so"),
    "train.force_first_sample": fixed(validation_on_startup=True),
    "train.disable_sampling": fixed(validation_disable=True),
    "train.unload_text_encoder": nothing("text encoders leave memory once captions are encoded"),
    "train.cache_text_embeddings": nothing("captions are always encoded once"),
    "train.noise_offset": compute(
        lambda v, g: {"offset_noise": True, "noise_offset": float(str(v)), "noise_offset_probability": 1.0}
    ),
    "train.min_snr_gamma": number("snr_gamma"),
    "train.snr_gamma": number("snr_gamma"),
    "train.loss_type": choose("loss_type", {"mse": "l2", "huber": "huber"}),
    "train.switch_boundary_every": missing("both denoisers are trained in every step whose levels they answer"),
    "train.diff_output_preservation": missing("use is_regularisation_data on a dataset"),
    "train.diff_output_preservation_multiplier": missing("use is_regularisation_data on a dataset"),
    "train.diff_output_preservation_class": missing("use is_regularisation_data on a dataset"),
    "train.do_paramiter_swapping": missing("all weights are trained in every step"),
    "train.seed": same("seed", keeps=True),
    # model
    "model.name_or_path": same("pretrained_model_name_or_path"),
    "model.arch": nothing("it is the family"),
    "model.quantize": compute(_find_quantization),
    "model.qtype": nothing("it says how `quantize` does it"),
    "model.quantize_te": compute(lambda value, keys: {"text_encoder_1_precision": "int8-quanto"}, "in eight bits"),
    "model.qtype_te": nothing("it says how `quantize_te` does it"),
    "model.low_vram": near("offload_during_startup", "blocks wait on the host with musubi_blocks_to_swap"),
    "model.assistant_lora_path": same("assistant_lora_path"),
    "model.vae_path": same("pretrained_vae_model_name_or_path"),
    "model.dtype": nothing("weights are read in base_model_default_dtype"),
    "model.layer_offloading": near("ramtorch", "layers wait on the host"),
    "model.layer_offloading_text_encoder_percent": missing("say ramtorch_text_encoder_percent", trains=False),
    "model.layer_offloading_transformer_percent": missing("say ramtorch_transformer_percent", trains=False),
    "model.model_kwargs": nothing("there is nothing in it"),
    "model.model_kwargs.match_target_res": nothing(
        "references keep their own sizes or follow their samples by dataset"
    ),
    "model.model_kwargs.train_high_noise": missing("choose the flavour t2v-14b-2.2-high"),
    "model.model_kwargs.train_low_noise": missing("choose the flavour t2v-14b-2.2-low"),
    **{f"model.is_{name}": nothing("it is the family") for name in MODELS if ":" not in name},
    # samples
    "sample.sampler": missing("images of validation are drawn by the model's own scheduler", trains=False),
    "sample.sample_every": same("validation_step_interval"),
    "sample.width": compute(lambda v, g: {"validation_resolution": f"{v}x{g.get('sample.height', v)}"}),
    "sample.height": nothing("it is in validation_resolution"),
    "sample.prompts": nothing("they are written as a library beside the config"),
    "sample.samples": nothing("their prompts are written as a library beside the config"),
    "sample.neg": compute(_find_negative),
    "sample.seed": same("validation_seed", keeps=True),
    "sample.walk_seed": fixed("each image has the next seed", Verdict.APPROXIMATED, validation_randomize=False),
    "sample.guidance_scale": number("validation_guidance"),
    "sample.sample_steps": same("validation_num_inference_steps"),
    "sample.num_frames": same("validation_num_video_frames"),
    "sample.fps": missing("images of validation have the model's own rate, or framerate", trains=False),
}
CONTROLS = ("control_path", *(f"control_path{gap}{number}" for gap in ("", "_") for number in (1, 2, 3)))
DATASET: Mapping[str, Rule] = {
    "folder_path": same("instance_data_dir"),
    "dataset_path": same("instance_data_dir"),
    "caption_ext": nothing("captions are the .txt files beside the images"),
    "default_caption": same("instance_prompt"),
    "caption_dropout_rate": nothing("the run's caption_dropout_probability is that of the first dataset"),
    "shuffle_tokens": missing("captions are encoded once, as they are"),
    "cache_latents_to_disk": nothing("latents are always cached on disk"),
    "cache_latents": nothing("latents are always cached"),
    "is_reg": same("is_regularisation_data"),
    "network_weight": missing("datasets are weighed by repeats and probability"),
    "num_repeats": compute(lambda value, keys: {"repeats": int(str(value)) - 1}),
    "resolution": nothing("each size is an entry of its own"),
    "buckets": nothing("images are always sorted into buckets"),
    "flip_x": missing("images are not flipped"),
    "flip_y": missing("images are not flipped"),
    "random_crop": fixed(crop=True, crop_style="random"),
    "random_scale": missing("images have the size of their bucket"),
    "num_frames": nothing("it is the clip length of the entry"),
    "shrink_video_to_frames": missing("clips are cut, not shrunk in time"),
    "fps": missing("clips have the model's own rate, or framerate"),
    "do_i2v": nothing("the flavour says what clips start from"),
    "mask_path": nothing("it is a dataset of masks"),
    "mask_min_value": missing("masks count as they are"),
    "alpha_mask": missing("masks are datasets of their own"),
    "control_path": nothing("it is a dataset of references"),
    "controls": missing("have them made: the key conditioning of a dataset"),
    **dict.fromkeys(CONTROLS, nothing("it is a dataset of references")),
    "clip_image_path": missing("no image encoder reads images beside captions"),
    "prior_reg": same("is_regularisation_data"),
    "loss_multiplier": missing("samples of all datasets count alike"),
    "trigger_word": same("instance_prompt"),
    "keep_tokens": missing("captions are encoded once, as they are"),
    "token_dropout_rate": missing("captions are dropped whole"),
}
CONDITIONS = {"mask_path": "mask", **dict.fromkeys(CONTROLS, "reference_loose")}


def read(words: Sequence[str], cwd: Path) -> Imported:
    """The first process of a YAML file. Raises ConfigErrors for what cannot be read."""
    if not words:
        raise missing_option("CONFIG", "No config is named.", f"Write: {USAGE}.")
    document = read_yaml(words[0], cwd)
    config = document.get("config")
    processes = config.get("process") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(processes, list) or not isinstance(processes[0], Mapping):
        problem = "It is no job of ai-toolkit: there is no config.process."
        raise ConfigErrors([ConfigError("CONFIG", words[0], "", problem, "Give the YAML file of a job.")])
    process = processes[0]
    values = flatten({key: value for key, value in process.items() if key != "datasets"})
    model = _find_model(values)
    rows = [model, *translate(RULES, values, TITLE)]
    if "network" not in process:
        rows.append(
            ImportedKey("network", None, Verdict.EXACT, {"model_type": "full"}, "without one the model is trained")
        )
    rows = write_defaults(rows, DEFAULTS, TITLE)
    entries: list[dict[str, object]] = []
    for place, dataset in enumerate(process.get("datasets") or [], 1):
        result, more = _make_entries(place, flatten(dataset))
        entries += result
        rows += more
    settings = {"defaults": "darkroom", **Translation(rows).settings}
    settings["output_dir"] = f"{settings.get('output_dir', 'output')}/{config.get('name', 'run')}"
    if rate := (process.get("datasets") or [{}])[0].get("caption_dropout_rate"):
        settings["caption_dropout_probability"] = float(rate)
    remarks = ["Of several processes the first one is read."] if len(processes) > 1 else []
    name = str(config.get("name") or Path(words[0]).stem)
    return Imported(TITLE, words[0], name, settings, rows, entries or None, _find_library(process), remarks=remarks)


def read_yaml(file: str, cwd: Path) -> dict[str, object]:
    """A YAML file with a table. Raises ConfigErrors."""
    path = cwd / expand_home(file)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise ConfigErrors([ConfigError("CONFIG", file, "", f"It cannot be read: {reason}.", "Correct it.")]) from None
    if not isinstance(document, dict):
        raise ConfigErrors([ConfigError("CONFIG", file, "", "It holds no table of settings.", "Give another file.")])
    return document


def _find_model(values: Values) -> ImportedKey:
    arch = str(values.get("model.arch") or "").lower()
    switches = [name for name in MODELS if values.get(f"model.is_{name}") is True]
    key = arch or (switches[0] if switches else "sd15")
    turbo = "turbo" in str(values.get("model.name_or_path", "")).lower() and key == "zimage"
    key = "zimage:turbo" if turbo else key
    if key not in MODELS:
        reason = "this architecture is not offered; `darkroom families` lists those there are"
        return ImportedKey("model.arch", key, Verdict.NOT_OFFERED, {}, reason, trains=True)
    family, flavour = MODELS[key]
    settings: dict[str, object] = {"model_family": family}
    return ImportedKey("model.arch", key, Verdict.EXACT, settings | ({"model_flavour": flavour} if flavour else {}))


def _make_entries(number: int, dataset: Values) -> tuple[list[dict[str, object]], list[ImportedKey]]:
    """One entry for each size, then those beside it."""
    about = translate(DATASET, dataset, TITLE)
    settings = {**DATASET_DEFAULTS, **Translation(about).settings}
    sizes = dataset.get("resolution") or [settings["resolution"]]
    frames = int(str(dataset.get("num_frames") or 1))
    entries: list[dict[str, object]] = []
    conditioning: list[dict[str, object]] = []
    for name, kind in CONDITIONS.items():
        for folder in _as_list(dataset.get(name)):
            entry = {"id": f"dataset-{number}-{name}", "dataset_type": "conditioning", "instance_data_dir": folder}
            conditioning.append(
                {**entry, "conditioning_type": kind, "id": _free(f"dataset-{number}-{name}", conditioning)}
            )
    for size in dict.fromkeys(_as_list(sizes)):
        entry = {"id": f"dataset-{number}-{size}", **settings, "resolution": int(str(size))}
        if frames > 1:
            entry |= {"dataset_type": "video", "video": {"num_frames": frames}}
        entries.append(entry | ({"conditioning_data": [e["id"] for e in conditioning]} if conditioning else {}))
    return [*entries, *conditioning], [about_dataset(f"datasets {number}", row) for row in about]


def _free(name: str, entries: Sequence[Mapping[str, object]]) -> str:
    taken = {entry["id"] for entry in entries}
    return next(n for n in (name, *(f"{name}-{number}" for number in range(2, 99))) if n not in taken)


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _find_library(process: Mapping[str, object]) -> dict[str, str]:
    """Prompts as a library; switches of a prompt, such as `--n`, are left out."""
    sample = process.get("sample")
    if not isinstance(sample, Mapping):
        return {}
    prompts = [*_as_list(sample.get("prompts")), *(s.get("prompt", "") for s in _as_list(sample.get("samples")))]  # type: ignore[attr-defined]
    trigger = str(process.get("trigger_word") or "")
    texts = [re.split(r" --[a-z]+\b", str(prompt))[0].replace("[trigger]", trigger).strip() for prompt in prompts]
    return {f"sample-{number}": text for number, text in enumerate(texts, 1) if text}
