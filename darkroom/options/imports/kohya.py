"""kohya-ss sd-scripts: the flags of its training scripts, their `--config_file`, and its dataset file.

Names and defaults are those of its documentation (docs/train_README, docs/config_README-en, the scripts' `--help`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
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
    drop_launcher,
    fixed,
    missing,
    near,
    nothing,
    number,
    read_arguments,
    same,
    translate,
    write_defaults,
)

TITLE = "kohya-ss sd-scripts"
USAGE = "darkroom import kohya [SCRIPT.py] [CONFIG.toml] [FLAGS...]"

# script, the family that it trains, and whether it trains the whole model
SCRIPTS: Mapping[str, tuple[str, str]] = {
    "train_network": ("sd1x", "lora"),
    "train_db": ("sd1x", "full"),
    "fine_tune": ("sd1x", "full"),
    "sdxl_train_network": ("sdxl", "lora"),
    "sdxl_train": ("sdxl", "full"),
    "flux_train_network": ("flux", "lora"),
    "flux_train": ("flux", "full"),
    "chroma_train_network": ("chroma", "lora"),
    "chroma_train": ("chroma", "full"),
    "sd3_train_network": ("sd3", "lora"),
    "sd3_train": ("sd3", "full"),
    "lumina_train_network": ("lumina2", "lora"),
    "lumina_train": ("lumina2", "full"),
    "hunyuan_image_train_network": ("hunyuan_image", "lora"),
}
MODULES = {"lora_flux": "flux", "lora_sd3": "sd3", "lora_lumina": "lumina2", "lora_hunyuan_image": "hunyuan_image"}
DEFAULTS: Settings = {
    "learning_rate": 2e-6,
    "max_train_steps": 1600,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "optimizer": "torch-adamw",
    "max_grad_norm": 1.0,
    "grad_clip_method": "norm",
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "caption_dropout_probability": 0.0,
    "validation_disable": True,
}
LORA_DEFAULTS: Settings = {"lora_rank": 4, "lora_alpha": 1.0}
_RATE = "the denoiser and the text encoders have one rate or, with text_encoder_lr, two"
_SAMPLER = "images of validation are drawn by the model's own scheduler"
_FORMAT = "a LoRA is saved as safetensors; lora_format says whose names it has"


def _find_resolution(value: object, keys: Values) -> Settings:
    """`1024` or `1024,768`: buckets of the area of it."""
    sides = [float(side) for side in re.split(r"[,x ]+", str(value).strip("[]() ")) if side]
    return {"resolution": round((sides[0] * sides[-1]) ** 0.5), "resolution_type": "pixel_area"}


def _find_steps(value: object, keys: Values) -> Settings:
    if keys.get("max_train_epochs"):
        return {}
    return {"max_train_steps": int(str(value))}


def _find_warmup(value: object, keys: Values) -> Settings:
    amount = float(str(value))
    return {"lr_warmup_steps": int(amount)} if amount >= 1 else {"lr_warmup_ratio": amount}


def _find_module(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value).rpartition(".")[2]
    if kind == "kohya" or kind.startswith(("lycoris", "oft", "dylora")):
        return ImportedKey(
            "", value, Verdict.NOT_OFFERED, {}, "a plain LoRA is trained; for LyCORIS give lycoris_config"
        )
    return {"model_type": "lora"}


def _find_arguments(value: object, keys: Values) -> ImportedKey:
    pairs = dict(str(pair).partition("=")[::2] for pair in (value if isinstance(value, list) else [value]))
    left = {name: setting for name, setting in pairs.items() if name not in ("conv_dim", "conv_alpha")}
    reason = "arguments of an adapter have options of their own here"
    return ImportedKey(
        "", value, Verdict.NOT_OFFERED, {}, f"{reason}; {', '.join(left or pairs)} is left out", trains=True
    )


def _find_optimizer_arguments(value: object, keys: Values) -> Settings:
    pairs = (str(pair).partition("=")[::2] for pair in (value if isinstance(value, list) else [value]))
    return {"optimizer_config": ",".join(f"{name.strip()}={setting.strip()}" for name, setting in pairs)}


def _find_optimizer(value: object, keys: Values) -> ImportedKey:
    """Adafactor with a rate of its own is transformers' class, which takes its arguments."""
    arguments = keys.get("optimizer_args") or []
    words = [str(word).replace(" ", "") for word in (arguments if isinstance(arguments, list) else [arguments])]
    if str(value).lower() == "adafactor" and "relative_step=False" in words:
        return ImportedKey("", value, Verdict.EXACT, {"optimizer": "transformers.optimization.Adafactor"})
    return choose_optimizer(value, keys)


def _find_logger(value: object, keys: Values) -> Settings:
    return {"report_to": {"all": "all"}.get(str(value), str(value))}


def _find_saving(value: object, keys: Values) -> ImportedKey:
    remark = "a LoRA is saved as safetensors" if str(value) != "safetensors" else ""
    return ImportedKey("", value, Verdict.APPROXIMATED if remark else Verdict.EXACT, {}, remark)


def _find_noise_offset(value: object, keys: Values) -> Settings:
    return {"offset_noise": True, "noise_offset": float(str(value)), "noise_offset_probability": 1.0}


def _find_alpha(value: object, keys: Values) -> Settings:
    return {"lora_alpha": float(str(value)) or float(str(keys.get("network_dim") or 4))}


_PATH = same("pretrained_model_name_or_path")
RULES: Mapping[str, Rule] = {
    # model
    "pretrained_model_name_or_path": _PATH,
    "v2": nothing("the family is sd2x"),
    "v_parameterization": fixed(prediction_type="v_prediction"),
    "vae": same("pretrained_vae_model_name_or_path"),
    "tokenizer_cache_dir": nothing("tokenizers are kept in the cache of the hub"),
    "clip_l": missing("CLIP is read from the base model", trains=False),
    "clip_g": missing("CLIP is read from the base model", trains=False),
    "t5xxl": same("pretrained_t5_model_name_or_path"),
    "gemma2": same("pretrained_gemma_model_name_or_path"),
    "ae": same("pretrained_vae_model_name_or_path"),
    "model_type": nothing("the family says it"),
    "split_mode": near("musubi_blocks_to_swap", "blocks wait on the host"),
    "clip_skip": missing("captions are read from the layer that the model's own pipeline reads"),
    "max_token_length": missing("captions are read in one piece of the encoder's length"),
    "t5xxl_max_token_length": same("tokenizer_max_length"),
    "apply_t5_attn_mask": fixed(flux_attention_masked_training=True),
    "weighted_captions": missing("weights in captions are read as text"),
    # adapter
    "network_module": compute(_find_module),
    "network_dim": same("lora_rank"),
    "network_alpha": compute(_find_alpha, keeps=True),
    "network_dropout": near("lora_dropout", "it drops inputs of the adapter, and there outputs of its first matrix"),
    "network_args": compute(_find_arguments),
    "network_weights": same("init_lora"),
    "dim_from_weights": nothing("the rank is that of the file, or an error"),
    "base_weights": missing("merge it into the base first"),
    "base_weights_multiplier": missing("merge it into the base first"),
    "scale_weight_norms": missing("weights of an adapter are not scaled"),
    "network_train_unet_only": fixed(train_text_encoder=False),
    "network_train_text_encoder_only": missing("the denoiser is always trained"),
    "no_metadata": missing("what a LoRA was made with is always written", trains=False),
    "training_comment": same("modelspec_comment"),
    # learning
    "learning_rate": number("learning_rate"),
    "unet_lr": number("learning_rate"),
    "text_encoder_lr": compute(
        lambda value, keys: {
            "train_text_encoder": True,
            "text_encoder_lr": float(str(value[0] if isinstance(value, list) else value)),
        },
        remark="of several rates the first one",
    ),
    "learning_rate_te": number("text_encoder_lr"),
    "learning_rate_te1": number("text_encoder_lr"),
    "learning_rate_te2": missing(_RATE),
    "optimizer_type": compute(_find_optimizer),
    "use_8bit_adam": fixed(optimizer="bnb-adamw8bit"),
    "use_lion_optimizer": fixed(optimizer="optimi-lion"),
    "optimizer_args": compute(_find_optimizer_arguments),
    "lr_scheduler": choose("lr_scheduler", SCHEDULES),
    "lr_scheduler_type": missing("a class of your own is no schedule here"),
    "lr_scheduler_args": missing("schedules have options of their own"),
    "lr_warmup_steps": compute(_find_warmup),
    "lr_decay_steps": missing("use lr_scheduler warmup_stable_decay with lr_decay_steps"),
    "lr_scheduler_num_cycles": same("lr_num_cycles"),
    "lr_scheduler_power": number("lr_power"),
    "lr_scheduler_min_lr_ratio": number("lr_scheduler_min_lr_ratio"),
    "max_train_steps": compute(_find_steps),
    "max_train_epochs": same("num_train_epochs"),
    "train_batch_size": same("train_batch_size"),
    "gradient_accumulation_steps": same("gradient_accumulation_steps"),
    "max_grad_norm": compute(lambda v, g: {"max_grad_norm": float(str(v)), "grad_clip_method": "norm"}, keeps=True),
    "gradient_checkpointing": same("gradient_checkpointing"),
    "blockwise_fused_optimizers": near(
        "optimizer_release_gradients", "each weight is updated as its gradient is known"
    ),
    "fused_backward_pass": near("optimizer_release_gradients", "each weight is updated as its gradient is known"),
    "fused_optimizer_groups": near("optimizer_release_gradients", "each weight is updated as its gradient is known"),
    "seed": same("seed", keeps=True),
    "mixed_precision": choose("mixed_precision", PRECISIONS),
    "full_bf16": fixed("weights, gradients and state in bfloat16", Verdict.APPROXIMATED, optimizer="adamw_bf16"),
    "full_fp16": missing("half precision everywhere overflows; bfloat16 is what base_model_default_dtype has"),
    "fp8_base": fixed("fp8 by blocks", Verdict.APPROXIMATED, base_model_precision="fp8-block"),
    "fp8_base_unet": fixed("fp8 by blocks", Verdict.APPROXIMATED, base_model_precision="fp8-block"),
    "no_half_vae": fixed(vae_dtype="fp32"),
    "blocks_to_swap": same("musubi_blocks_to_swap"),
    "cpu_offload_checkpointing": near("gradient_checkpointing", "activations stay on the device"),
    "lowram": nothing("models are loaded one at a time"),
    "highvram": nothing("caches of the device are kept anyway"),
    "xformers": fixed(attention_mechanism="xformers"),
    "sdpa": fixed(attention_mechanism="diffusers"),
    "mem_eff_attn": fixed("by torch's kernel", Verdict.APPROXIMATED, attention_mechanism="native-efficient"),
    "flash_attn": fixed(attention_mechanism="flash-attn"),
    "torch_compile": fixed(dynamo_backend="inductor"),
    "dynamo_backend": same("dynamo_backend"),
    # loss and noise
    "noise_offset": compute(_find_noise_offset),
    "noise_offset_random_strength": missing("the strength of the offset is constant"),
    "adaptive_noise_scale": missing("the strength of the offset is constant"),
    "multires_noise_iterations": missing("noise of several resolutions is not drawn"),
    "multires_noise_discount": missing("noise of several resolutions is not drawn"),
    "ip_noise_gamma": number("input_perturbation"),
    "ip_noise_gamma_random_strength": missing("the strength is constant"),
    "min_snr_gamma": number("snr_gamma"),
    "debiased_estimation_loss": missing("errors are weighted by snr_gamma or not at all"),
    "scale_v_pred_loss_like_noise_pred": missing("errors are weighted by snr_gamma or not at all"),
    "v_pred_like_loss": missing("errors are weighted by snr_gamma or not at all"),
    "zero_terminal_snr": fixed(rescale_betas_zero_snr=True),
    "prior_loss_weight": compute(
        lambda value, keys: (
            {}
            if float(str(value)) == 1
            else ImportedKey(
                "", value, Verdict.NOT_OFFERED, {}, "regularization images count as the others do", trains=True
            )
        )
    ),
    "loss_type": choose("loss_type", {"l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}),
    "huber_c": number("huber_c"),
    "huber_schedule": choose("huber_schedule", {"snr": "snr", "exponential": "exponential", "constant": "constant"}),
    "masked_loss": nothing("give the masks as a dataset of conditioning_type mask"),
    "min_timestep": same("min_timestep"),
    "max_timestep": same("max_timestep"),
    "timestep_sampling": choose(
        "timestep_sampling",
        {name: name for name in ("sigma", "uniform", "sigmoid", "shift", "flux_shift")},
    ),
    "sigmoid_scale": number("flow_sigmoid_scale"),
    "discrete_flow_shift": number("flow_schedule_shift"),
    "training_shift": number("flow_schedule_shift"),
    "weighting_scheme": choose(
        "weighting_scheme",
        {name: name for name in ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap")} | {"uniform": "none"},
    ),
    "logit_mean": number("logit_mean"),
    "logit_std": number("logit_std"),
    "mode_scale": number("mode_scale"),
    "model_prediction_type": compute(
        lambda value, keys: (
            {}
            if value == "raw"
            else ImportedKey(
                "", value, Verdict.NOT_OFFERED, {}, "the network's own answer is compared (raw)", trains=True
            )
        )
    ),
    "guidance_scale": number("flux_guidance_value"),
    # data
    "dataset_config": nothing("its datasets are written as entries of their own"),
    "train_data_dir": nothing("each folder in it is a dataset"),
    "reg_data_dir": nothing("each folder in it is a dataset of regularization images"),
    "in_json": missing("give captions as text files beside the images"),
    "dataset_repeats": nothing("it is on each dataset"),
    "resolution": compute(_find_resolution),
    "enable_bucket": nothing("images are always sorted into buckets"),
    "min_bucket_reso": missing("buckets go as far as the images do", trains=False),
    "max_bucket_reso": missing("buckets go as far as the images do", trains=False),
    "bucket_reso_steps": same("aspect_bucket_alignment"),
    "bucket_no_upscale": fixed(
        "images that would be enlarged are left out", Verdict.APPROXIMATED, max_upscale_threshold=0.0
    ),
    "caption_extension": nothing("captions are the .txt files beside the images"),
    "caption_extention": nothing("captions are the .txt files beside the images"),
    "caption_prefix": missing("put it into the captions, or use prepend_instance_prompt"),
    "caption_suffix": missing("put it into the captions"),
    "shuffle_caption": missing("captions are encoded once, as they are"),
    "keep_tokens": missing("captions are encoded once, as they are"),
    "keep_tokens_separator": missing("captions are encoded once, as they are"),
    "caption_separator": missing("captions are encoded once, as they are"),
    "secondary_separator": missing("captions are encoded once, as they are"),
    "enable_wildcard": missing("captions are encoded once, as they are"),
    "caption_tag_dropout_rate": missing("captions are dropped whole, with caption_dropout_probability"),
    "caption_dropout_rate": number("caption_dropout_probability"),
    "caption_dropout_every_n_epochs": missing("captions are dropped by chance, with caption_dropout_probability"),
    "token_warmup_min": missing("captions are read whole from the start"),
    "token_warmup_step": missing("captions are read whole from the start"),
    "color_aug": missing("colors of images are not changed"),
    "flip_aug": missing("images are not flipped"),
    "face_crop_aug_range": missing("images are cropped by their shape alone"),
    "random_crop": missing('say "crop": true and "crop_style": "random" on the dataset'),
    "cache_latents": nothing("latents are always cached"),
    "cache_latents_to_disk": nothing("latents are always cached on disk"),
    "vae_batch_size": same("vae_batch_size"),
    "cache_text_encoder_outputs": nothing("captions are always encoded once"),
    "cache_text_encoder_outputs_to_disk": nothing("captions are always encoded once, to disk"),
    "text_encoder_batch_size": nothing("batches of captions have a size of their own"),
    "skip_cache_check": nothing("caches are checked by their keys"),
    "max_data_loader_n_workers": nothing("images are read by threads: max_workers"),
    "persistent_data_loader_workers": nothing("images are read by threads: max_workers"),
    "conditioning_data_dir": missing("give it as a dataset of conditioning_type controlnet"),
    # saving
    "output_dir": same("output_dir"),
    "output_name": near("tracker_run_name", "files are called pytorch_lora_weights.safetensors in output_dir"),
    "save_precision": missing(_FORMAT, trains=False),
    "save_model_as": compute(_find_saving),
    "save_every_n_steps": same("checkpoint_step_interval"),
    "save_every_n_epochs": same("checkpoint_epoch_interval"),
    "save_n_epoch_ratio": missing("say checkpoint_epoch_interval", trains=False),
    "save_last_n_epochs": near("checkpoints_total_limit", "so many checkpoints are kept"),
    "save_last_n_steps": missing("say checkpoints_total_limit", trains=False),
    "save_state": nothing("every checkpoint holds the whole state"),
    "save_state_on_train_end": nothing("every checkpoint holds the whole state"),
    "save_last_n_steps_state": nothing("checkpoints and their states are kept together"),
    "save_last_n_epochs_state": nothing("checkpoints and their states are kept together"),
    "resume": missing("states of sd-scripts are not read; a run here goes on from its own checkpoints"),
    "huggingface_repo_id": same("hub_model_id"),
    # samples and logs
    "sample_prompts": nothing("its prompts are written as a library beside the config"),
    "sample_every_n_steps": same("validation_step_interval"),
    "sample_every_n_epochs": same("validation_epoch_interval"),
    "sample_at_first": same("validation_on_startup"),
    "sample_sampler": missing(_SAMPLER, trains=False),
    "logging_dir": same("logging_dir"),
    "log_with": compute(_find_logger),
    "log_prefix": missing("name the run with tracker_run_name", trains=False),
    "log_tracker_name": same("tracker_project_name"),
    "wandb_run_name": same("tracker_run_name"),
    "log_tracker_config": missing("trackers read their own variables", trains=False),
    "wandb_api_key": missing("put it into the variable WANDB_API_KEY", trains=False),
    "log_config": nothing("run.lock.json holds every setting"),
    "console_log_level": missing("the log says what a run does", trains=False),
    "console_log_file": nothing("the log is in output_dir"),
    "console_log_simple": missing("the log says what a run does", trains=False),
    "metadata_title": missing("say modelspec_comment", trains=False),
    "metadata_author": missing("say modelspec_comment", trains=False),
    "metadata_description": same("modelspec_comment"),
    "metadata_license": missing("say modelspec_comment", trains=False),
    "metadata_tags": missing("say modelspec_comment", trains=False),
    "output_config": nothing("run.lock.json holds every setting"),
    "disable_mmap_load_safetensors": nothing("weights are read into memory that is theirs"),
    "deepspeed": missing("several GPUs share the data, not the model"),
    "ddp_timeout": missing("processes wait for one another without an end", trains=False),
    "ddp_gradient_as_bucket_view": nothing("gradients are reduced by torch's own settings"),
    "ddp_static_graph": nothing("gradients are reduced by torch's own settings"),
    "config_file": nothing("it is this config"),
}
_SWITCHES = (
    "v2 v_parameterization apply_t5_attn_mask weighted_captions dim_from_weights network_train_unet_only "
    "no_metadata network_train_text_encoder_only use_8bit_adam use_lion_optimizer gradient_checkpointing "
    "blockwise_fused_optimizers fused_backward_pass full_bf16 full_fp16 fp8_base fp8_base_unet no_half_vae "
    "cpu_offload_checkpointing lowram highvram xformers sdpa mem_eff_attn flash_attn torch_compile "
    "noise_offset_random_strength ip_noise_gamma_random_strength debiased_estimation_loss "
    "scale_v_pred_loss_like_noise_pred v_pred_like_loss zero_terminal_snr masked_loss enable_bucket "
    "bucket_no_upscale shuffle_caption enable_wildcard color_aug flip_aug random_crop cache_latents "
    "cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk skip_cache_check "
    "persistent_data_loader_workers save_state save_state_on_train_end sample_at_first log_config "
    "console_log_simple output_config disable_mmap_load_safetensors deepspeed ddp_gradient_as_bucket_view "
    "ddp_static_graph"
)
SWITCHES = frozenset(_SWITCHES.split())
SUBSET: Mapping[str, Rule] = {
    "image_dir": same("instance_data_dir"),
    "class_tokens": same("instance_prompt"),
    "is_reg": same("is_regularisation_data"),
    "num_repeats": compute(lambda value, keys: {"repeats": int(str(value)) - 1}),
    "batch_size": same("train_batch_size"),
    "metadata_file": missing("give captions as text files beside the images"),
    "conditioning_data_dir": missing("give it as a dataset of its own, conditioning_type controlnet"),
    "alpha_mask": missing("masks are datasets of their own, conditioning_type mask"),
    "cache_info": nothing("what is known of files is always kept"),
    "resize_interpolation": missing("images are resized by Lanczos's filter"),
    "validation_split": missing("name a dataset of dataset_type eval", trains=False),
    "bucket_reso_steps": missing("say aspect_bucket_alignment for the whole run", trains=False),
    "caption_dropout_rate": missing("say caption_dropout_probability for the whole run"),
    **{
        name: RULES[name]
        for name in (
            "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
            "bucket_no_upscale", "caption_extension", "caption_prefix", "caption_suffix", "shuffle_caption",
            "keep_tokens", "keep_tokens_separator", "caption_separator", "secondary_separator", "enable_wildcard",
            "caption_tag_dropout_rate", "caption_dropout_every_n_epochs", "token_warmup_min",
            "token_warmup_step", "color_aug", "flip_aug", "face_crop_aug_range", "random_crop",
        )
    },
}  # fmt: skip


def read(words: Sequence[str], cwd: Path) -> Imported:
    """The command, its config file and its datasets. Raises ConfigErrors for keys that sd-scripts has not."""
    if not words:
        raise missing_option("SCRIPT", "Neither a script nor a config is named.", f"Write: {USAGE}.")
    plain, values = read_arguments(drop_launcher(words), SWITCHES, "command line")
    script = next((Path(word).stem for word in plain if Path(word).stem in SCRIPTS), "")
    files = [word for word in plain if word.endswith(".toml")] + [
        str(values[n]) for n in ("config_file",) if n in values
    ]
    for file in files:
        values = {**_read_flat(file, cwd), **values}
    model = _find_model(script, values)
    rows = [model, *translate(RULES, values, TITLE)]
    kind = model.settings["model_type"]
    rows = write_defaults(rows, {**DEFAULTS, **(LORA_DEFAULTS if kind == "lora" else {})}, TITLE)
    if "num_train_epochs" in Translation(rows).settings:
        rows = [row for row in rows if row.key != "(max_train_steps)"]
    entries, more = read_datasets(values, cwd)
    settings = {"defaults": "darkroom", **Translation(rows).settings}
    if "resolution" not in settings:
        settings["resolution"] = 512
    prompts = _read_prompts(values, cwd)
    if prompts:
        settings["validation_disable"] = False
    name = str(values.get("output_name") or f"kohya-{script or settings['model_family']}")
    return Imported(TITLE, script or str(files[0]), name, settings, [*rows, *more], entries or None, prompts)


def _read_flat(file: str, cwd: Path) -> dict[str, object]:
    """A config file's keys; its tables are only there for the eye."""
    path = cwd / expand_home(file)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        problem = f"It cannot be read: {getattr(cause, 'strerror', None) or cause}."
        raise ConfigErrors([ConfigError("config_file", file, "", problem, "Correct the path or the file.")]) from None
    flat: dict[str, object] = {}
    for key, value in document.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _find_model(script: str, values: Values) -> ImportedKey:
    """Family and kind, from the script, else from the adapter's module and the files that are named."""
    module = str(values.get("network_module", "")).rpartition(".")[2]
    if values.get("model_type") == "chroma":
        script = {"flux_train_network": "chroma_train_network", "flux_train": "chroma_train"}.get(script, script)
    kind = SCRIPTS[script][1] if script else "lora" if module or "network_dim" in values else "full"
    family = (SCRIPTS[script][0] if script else "") or MODULES.get(module, "")
    if not family and "t5xxl" in values:
        family = "sd3" if "clip_g" in values else "flux"
    if not family and "xl" in str(values.get("pretrained_model_name_or_path", "")).lower():
        family = "sdxl"
    if family in ("", "sd1x"):
        family = "sd2x" if values.get("v2") else "sd1x"
    settings: dict[str, object] = {"model_family": family, "model_type": kind}
    remark = "" if script else "no script is named: the family is guessed; set model_family if it is another one"
    verdict = Verdict.EXACT if script else Verdict.APPROXIMATED
    return ImportedKey("model", script or family, verdict, settings, remark)


def read_datasets(values: Values, cwd: Path) -> tuple[list[dict[str, object]], list[ImportedKey]]:
    """Entries of a dataset file and rows about its keys: from `dataset_config`, else from the folders of images."""
    if keys := values.get("dataset_config"):
        if is_file(cwd / expand_home(str(keys))):
            return _read_dataset_file(str(keys), cwd)
        problem = "There is no such file."
        raise ConfigErrors([ConfigError("dataset_config", keys, "", problem, "Correct the path.")])
    entries = []
    for name, is_reg in (("train_data_dir", False), ("reg_data_dir", True)):
        if folder := values.get(name):
            entries += _list_folders(expand_home(str(folder)), is_reg, cwd)
    return entries, []


def _read_prompts(values: Values, cwd: Path) -> dict[str, str]:
    """The prompts of a file of samples, one a line; what stands behind ` --` are switches of sd-scripts."""
    path = cwd / expand_home(str(values.get("sample_prompts", "")))
    if "sample_prompts" not in values or not is_file(path):
        return {}
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    prompts = [line.partition(" --")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return {f"sample-{number}": prompt for number, prompt in enumerate(prompts, 1)}


def _list_folders(root: Path, is_reg: bool, cwd: Path) -> list[dict[str, object]]:
    """`10_name class` is a folder of ten repeats whose images without a caption are called so."""
    entries = []
    for folder in sorted(path for path in (cwd / root).glob("*") if path.is_dir()) or [cwd / root]:
        repeats, _, words = folder.name.partition("_")
        count = int(repeats) if repeats.isdigit() else 1
        entry: dict[str, object] = {
            "id": f"{'reg-' if is_reg else ''}{folder.name}",
            "instance_data_dir": str(root / folder.name if folder != cwd / root else root),
            "caption_strategy": "textfile" if any(folder.glob("*.txt")) or not words else "instanceprompt",
            "repeats": max(0, count - 1),
        }
        if words:
            entry["instance_prompt"] = words
        entries.append({**entry, "is_regularisation_data": True} if is_reg else entry)
    return entries


def _read_dataset_file(file: str, cwd: Path) -> tuple[list[dict[str, object]], list[ImportedKey]]:
    path = cwd / expand_home(file)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise ConfigErrors([ConfigError("dataset_config", file, "", f"{cause}.", "Correct the file.")]) from None
    general = document.get("general", {})
    entries, rows = [], []
    for place, dataset in enumerate(document.get("datasets", []), 1):
        common = {**general, **{key: value for key, value in dataset.items() if key != "subsets"}}
        for part, subset in enumerate(dataset.get("subsets", []), 1):
            about = translate(SUBSET, {**common, **subset}, TITLE)
            rows += [about_dataset(f"datasets {place}.{part}", row) for row in about]
            entries.append(_make_entry(f"{path.stem}-{place}-{part}", Translation(about).settings))
    return entries, rows


def _make_entry(name: str, settings: Settings) -> dict[str, object]:
    """An entry: captions are text files, or the class where there is one and it stands alone."""
    strategy = (
        "instanceprompt" if "instance_prompt" in settings and settings.get("is_regularisation_data") else "textfile"
    )
    return {"id": name, "caption_strategy": strategy, "repeats": 0, **settings}
