"""OneTrainer (Nerogar): the JSON file of a training, with its concepts in it or beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.options.imports.report import Imported, ImportedKey, Verdict
from darkroom.options.imports.rules import (
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

TITLE = "OneTrainer"
USAGE = "darkroom import onetrainer CONFIG.json"

MODELS: Mapping[str, tuple[str, str | None]] = {
    "STABLE_DIFFUSION_15": ("sd1x", None),
    "STABLE_DIFFUSION_20": ("sd2x", None),
    "STABLE_DIFFUSION_21": ("sd2x", None),
    "STABLE_DIFFUSION_XL_10_BASE": ("sdxl", None),
    "STABLE_DIFFUSION_3": ("sd3", None),
    "STABLE_DIFFUSION_35": ("sd3", None),
    "STABLE_CASCADE_1": ("stable_cascade", None),
    "PIXART_SIGMA": ("pixart_sigma", None),
    "FLUX_DEV_1": ("flux", None),
    "FLUX_2": ("flux2", "dev"),
    "SANA": ("sana", None),
    "HUNYUAN_VIDEO": ("hunyuanvideo_original", None),
    "HI_DREAM_FULL": ("hidream", None),
    "CHROMA_1": ("chroma", None),
    "QWEN": ("qwen_image", None),
    "Z_IMAGE": ("z_image", None),
    "ERNIE": ("ernie", None),
    "KREA_2": ("krea2", None),
    "IDEOGRAM_4": ("ideogram4", None),
    "LTX_2": ("ltxvideo2", None),
}
DEFAULTS: Settings = {
    "learning_rate": 3e-6,
    "optimizer": "torch-adamw",
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 200,
    "num_train_epochs": 100,
    "max_grad_norm": 1.0,
    "grad_clip_method": "norm",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "caption_dropout_probability": 0.0,
    "validation_disable": True,
    "resolution": 512,
}
_PRECISIONS = {"FLOAT_32": "no", "FLOAT_16": "fp16", "BFLOAT_16": "bf16", "TFLOAT_32": "no", "NONE": None}
_QUANTIZED = {"FLOAT_8": "fp8-block", "NFLOAT_4": "nf4-bnb", "INT_8": "int8-torchao", "INT_W8A8": "int8-torchao",
              "FLOAT_W8A8": "fp8-torchao", "GGUF": None}  # fmt: skip
_PARTS = ("unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "vae",
          "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan")  # fmt: skip
_DENOISERS = ("unet", "transformer", "prior")


def _find_method(value: object, keys: Values) -> Settings | ImportedKey:
    method = str(value).upper()
    if method == "LORA":
        return {"model_type": "lora"}
    if method == "FINE_TUNE":
        return {"model_type": "full"}
    return ImportedKey("", value, Verdict.NOT_OFFERED, {}, "embeddings are not trained", trains=True)


def _find_adapter(value: object, keys: Values) -> Settings | ImportedKey:
    if str(value).upper() == "LORA":
        return {}
    return ImportedKey(
        "", value, Verdict.NOT_OFFERED, {}, "a plain LoRA is trained; for LyCORIS give lycoris_config", True
    )


def _find_resolution(value: object, keys: Values) -> Settings:
    """`1024`, or several: the first one counts, the others are datasets of their own."""
    first = str(value).split(",")[0].lower().split("x")
    sides = [float(side) for side in first]
    return {"resolution": round((sides[0] * sides[-1]) ** 0.5), "resolution_type": "pixel_area"}


def _find_ema(value: object, keys: Values) -> Settings:
    return (
        {} if str(value) == "OFF" else {"use_ema": True, "ema_device": "cpu" if str(value) == "CPU" else "accelerator"}
    )


def _find_checkpointing(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value).upper()
    if kind == "CPU_OFFLOADED":
        settings = {"gradient_checkpointing": True}
        return ImportedKey("", value, Verdict.APPROXIMATED, settings, "activations stay on the device")
    return {"gradient_checkpointing": kind in ("ON", "TRUE")}


def _find_weights(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value).upper()
    if kind in ("CONSTANT", "NONE"):
        return {}
    if kind == "MIN_SNR_GAMMA":
        return {"snr_gamma": float(str(keys.get("loss_weight_strength", 5)))}
    return ImportedKey(
        "", value, Verdict.NOT_OFFERED, {}, "errors are weighted by snr_gamma or not at all", trains=True
    )


def _find_timesteps(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value).upper()
    if kind == "UNIFORM":
        return {"timestep_sampling": "uniform"} if str(keys.get("model_type", "")).startswith("FLUX") else {}
    if kind in ("LOGIT_NORMAL", "SIGMOID"):
        return {"timestep_sampling": "sigmoid"}
    return ImportedKey("", value, Verdict.NOT_OFFERED, {}, "this density of noise levels is not offered", trains=True)


def _find_interval(name: str, keys: Values) -> str:
    unit = str(keys.get(f"{name}_unit") or keys.get(f"{name}_after_unit") or "NEVER").upper()
    return unit


def _make_interval(name: str, steps: str, epochs: str) -> Rule:
    def make(value: object, keys: Values) -> Settings | ImportedKey:
        unit = _find_interval(name, keys)
        if unit in ("STEP", "STEPS"):
            return {steps: int(float(str(value)))}
        if unit in ("EPOCH", "EPOCHS"):
            return {epochs: int(float(str(value)))}
        if unit in ("NEVER", "ALWAYS"):
            return {}
        return ImportedKey("", value, Verdict.NOT_OFFERED, {}, "intervals are steps or epochs", trains=False)

    return compute(make)


def _find_logger(value: object, keys: Values) -> Settings:
    return {"report_to": "tensorboard"}


RULES: Mapping[str, Rule] = {
    "training_method": compute(_find_method),
    "model_type": nothing("it is the family"),
    "base_model_name": same("pretrained_model_name_or_path"),
    "output_model_destination": nothing("results are in output_dir"),
    "output_model_format": nothing("a LoRA is saved as safetensors, a model as a folder of diffusers"),
    "output_dtype": missing("a LoRA is saved in the precision in which it is trained", trains=False),
    "workspace_dir": same("output_dir"),
    "cache_dir": same("cache_dir"),
    "debug_mode": nothing("see debug_dataset_loader"),
    "debug_dir": nothing("see debug_dataset_loader"),
    "tensorboard": compute(_find_logger),
    "tensorboard_expose": missing("start TensorBoard yourself", trains=False),
    "tensorboard_always_on": missing("start TensorBoard yourself", trains=False),
    "tensorboard_port": missing("start TensorBoard yourself", trains=False),
    "concept_file_name": nothing("its concepts are written as datasets"),
    "circular_mask_generation": missing("masks are images of a dataset"),
    "random_rotate_and_crop": missing("images are not turned"),
    "aspect_ratio_bucketing": nothing("images are always sorted into buckets"),
    "latent_caching": nothing("latents are always cached"),
    "clear_cache_before_training": nothing("caches are made anew where what they depend on has changed"),
    "learning_rate_scheduler": choose(
        "lr_scheduler",
        {
            "CONSTANT": "constant_with_warmup",
            "LINEAR": "linear",
            "COSINE": "cosine",
            "COSINE_WITH_RESTARTS": "cosine_with_restarts",
        },
    ),
    "custom_learning_rate_scheduler": missing("a class of your own is no schedule here"),
    "learning_rate": number("learning_rate"),
    "learning_rate_warmup_steps": compute(
        lambda v, g: (
            {"lr_warmup_steps": int(float(str(v)))} if float(str(v)) > 1 else {"lr_warmup_ratio": float(str(v))}
        ),
        keeps=True,
    ),
    "learning_rate_cycles": same("lr_num_cycles"),
    "learning_rate_min_factor": number("lr_scheduler_min_lr_ratio"),
    "learning_rate_scaler": compute(lambda v, g: {} if v == "NONE" else {"lr_scale": True}),
    "epochs": same("num_train_epochs"),
    "batch_size": same("train_batch_size"),
    "gradient_accumulation_steps": same("gradient_accumulation_steps"),
    "ema": compute(_find_ema),
    "ema_decay": number("ema_decay"),
    "ema_update_step_interval": same("ema_update_interval"),
    "dataloader_threads": nothing("images are read by threads: max_workers"),
    "train_device": nothing("the device is chosen when a run starts"),
    "temp_device": nothing("what waits is on the host"),
    "weight_dtype": nothing("it is that of each part"),
    "caching_threads": nothing("images are read by threads: max_workers"),
    "train_dtype": choose("mixed_precision", _PRECISIONS),
    "fallback_train_dtype": missing("mixed_precision is the one precision of a run", trains=False),
    "enable_autocast_cache": missing("autocast keeps what torch keeps", trains=False),
    "only_cache": nothing("`darkroom cache` does that"),
    "resolution": compute(_find_resolution),
    "frames": same("validation_num_video_frames"),
    "attention_mechanism": compute(
        lambda v, g: {"attention_mechanism": "xformers" if v == "XFORMERS" else "diffusers"}
    ),
    "compile": fixed(dynamo_backend="inductor"),
    "align_prop": missing("images are not judged by a reward"),
    "mse_strength": compute(
        lambda v, g: (
            {} if float(str(v)) == 1 else ImportedKey("", v, Verdict.NOT_OFFERED, {}, "one loss is used", trains=True)
        )
    ),
    "mae_strength": missing("choose loss_type"),
    "log_cosh_strength": missing("choose loss_type"),
    "huber_strength": fixed(loss_type="huber"),
    "huber_delta": number("huber_c"),
    "vb_loss_strength": missing("the variance of PixArt is not trained", trains=False),
    "loss_weight_fn": compute(_find_weights),
    "loss_weight_strength": nothing("it says how strong loss_weight_fn is"),
    "dropout_probability": number("lora_dropout"),
    "loss_scaler": compute(lambda v, g: {} if v == "NONE" else {"lr_scale": True}),
    "offset_noise_weight": compute(
        lambda v, g: {"offset_noise": True, "noise_offset": float(str(v)), "noise_offset_probability": 1.0}
    ),
    "generalized_offset_noise": missing("the offset does not follow the noise level"),
    "perturbation_noise_weight": number("input_perturbation"),
    "rescale_noise_scheduler_to_zero_terminal_snr": fixed(rescale_betas_zero_snr=True),
    "force_v_prediction": fixed(prediction_type="v_prediction"),
    "force_epsilon_prediction": fixed(prediction_type="epsilon"),
    "timestep_distribution": compute(_find_timesteps),
    "min_noising_strength": compute(lambda v, g: {"min_timestep": round(float(str(v)) * 1000)}),
    "max_noising_strength": compute(
        lambda v, g: {} if float(str(v)) == 1 else {"max_timestep": round(float(str(v)) * 1000)}
    ),
    "noising_weight": missing("the width of the density is flow_sigmoid_scale"),
    "noising_bias": missing("the mean of the density is that of timestep_sampling"),
    "timestep_shift": compute(lambda v, g: {} if float(str(v)) == 1 else {"flow_schedule_shift": float(str(v))}),
    "dynamic_timestep_shifting": fixed(flow_schedule_auto_shift=True),
    "force_circular_padding": missing("images do not tile"),
    "masked_training": nothing("give the masks as a dataset of conditioning_type mask"),
    "unmasked_probability": compute(lambda v, g: {"masked_loss_probability": 1 - float(str(v))}),
    "unmasked_weight": missing("what a mask leaves out does not count"),
    "normalize_masked_area_loss": missing("the loss is a mean over all places"),
    "masked_prior_preservation_weight": missing("use is_regularisation_data on a dataset"),
    "custom_conditioning_image": missing("give it as a dataset of conditioning_type controlnet"),
    "layer_filter": missing("name the layers with peft_lora_target_modules"),
    "layer_filter_preset": nothing("it is the name of layer_filter"),
    "layer_filter_regex": missing("name the layers with peft_lora_target_modules", trains=False),
    "lora_model_name": same("init_lora"),
    "peft_type": compute(_find_adapter),
    "lora_rank": same("lora_rank"),
    "lora_alpha": number("lora_alpha"),
    "lora_decompose": fixed(use_dora=True),
    "lora_decompose_norm_epsilon": nothing("a norm of zero is divided by as peft does it"),
    "lora_decompose_output_axis": missing("DoRA's norms are over outputs, as in peft", trains=False),
    "lora_weight_dtype": nothing("an adapter is trained in float32"),
    "bundle_additional_embeddings": nothing("embeddings are not trained"),
    "embedding_learning_rate": nothing("embeddings are not trained"),
    "preserve_embedding_norm": nothing("embeddings are not trained"),
    "optimizer.optimizer": compute(choose_optimizer),
    "optimizer.weight_decay": number("adam_weight_decay"),
    "optimizer.beta1": number("optimizer_beta1"),
    "optimizer.beta2": number("optimizer_beta2"),
    "optimizer.eps": number("adam_epsilon"),
    "optimizer.fused_back_pass": near("optimizer_release_gradients", "each weight is updated as its gradient is known"),
    "clip_grad_norm": compute(lambda v, g: {"max_grad_norm": float(str(v)), "grad_clip_method": "norm"}),
    "gradient_checkpointing": compute(_find_checkpointing, keeps=True),
    "enable_async_offloading": nothing("what waits on the host is fetched ahead"),
    "enable_activation_offloading": missing("activations stay on the device", trains=False),
    "layer_offload_fraction": compute(
        lambda v, g: {"ramtorch": True, "ramtorch_transformer_percent": round(float(str(v)) * 100)}
    ),
    "gradient_reduce_precision": missing("gradients are reduced in their own precision", trains=False),
    "seed": same("seed", keeps=True),
    "sample_definition_file_name": nothing("its prompts are written as a library beside the config"),
    "samples": nothing("their prompts are written as a library beside the config"),
    "sample_after": _make_interval("sample_after", "validation_step_interval", "validation_epoch_interval"),
    "sample_after_unit": nothing("it is in the interval"),
    "sample_skip_first": missing("validation begins with its first interval", trains=False),
    "sample_image_format": missing("images of validation are PNG", trains=False),
    "non_ema_sampling": fixed(ema_validation="comparison"),
    "backup_after": _make_interval("backup_after", "checkpoint_step_interval", "checkpoint_epoch_interval"),
    "backup_after_unit": nothing("it is in the interval"),
    "rolling_backup": nothing("checkpoints_total_limit says how many are kept"),
    "rolling_backup_count": same("checkpoints_total_limit"),
    "backup_before_save": nothing("every checkpoint holds the whole state"),
    "save_every": _make_interval("save_every", "checkpoint_step_interval", "checkpoint_epoch_interval"),
    "save_every_unit": nothing("it is in the interval"),
    "save_skip_first": missing("checkpoints begin with their first interval", trains=False),
    "save_filename_prefix": missing("checkpoints are called checkpoint-STEP", trains=False),
    "validation": nothing("name a dataset of dataset_type eval"),
    "validate_after": _make_interval("validate_after", "eval_steps_interval", "eval_epoch_interval"),
    "validate_after_unit": nothing("it is in the interval"),
    "continue_last_backup": nothing("the same command goes on from the last checkpoint"),
    "include_train_config": nothing("run.lock.json holds every setting"),
    "prevent_overwrites": nothing("nothing of another run is overwritten"),
    "__version": nothing("it is the version of the file"),
}


def _find_part_rule(part: str, key: str) -> Rule | None:
    """The rule of a key of a model's part, such as `text_encoder.train`."""
    text = part.startswith("text_encoder")
    if key == "train":
        if text:
            return same("train_text_encoder")
        return nothing("the denoiser is trained, and nothing of the autoencoder")
    if key == "learning_rate":
        return number("text_encoder_lr" if text else "learning_rate")
    if key == "weight_dtype" and part in _DENOISERS:
        return compute(_find_quantization)
    if key == "weight_dtype" and text:
        return missing("say text_encoder_1_precision and its like", trains=False)
    if key == "model_name":
        option = "pretrained_vae_model_name_or_path" if part == "vae" else "pretrained_transformer_model_name_or_path"
        return same(option) if not text else missing("text encoders are read from the base model")
    if key == "guidance_scale":
        return number("flux_guidance_value")
    if key == "attention_mask":
        return fixed(flux_attention_masked_training=True)
    return nothing("it needs no setting of its own")


def _find_quantization(value: object, keys: Values) -> Settings:
    preset = _QUANTIZED.get(str(value).upper())
    return {"base_model_precision": preset} if preset else {}


CONCEPT: Mapping[str, Rule] = {
    "path": same("instance_data_dir"),
    "name": nothing("it is the entry's id"),
    "enabled": nothing("a concept that is off is left out"),
    "type": compute(lambda v, g: {"is_regularisation_data": True} if str(v) == "PRIOR_PREDICTION" else {}),
    "seed": nothing("what is drawn of a dataset follows the run's seed"),
    "include_subdirectories": nothing("folders are searched with everything below them"),
    "image_variations": missing("images are encoded once"),
    "text_variations": missing("captions are encoded once"),
    "balancing": compute(lambda v, g: {"repeats": max(0, round(float(str(v))) - 1)}),
    "repeats": compute(lambda v, g: {"repeats": max(0, round(float(str(v))) - 1)}),
    "balancing_strategy": nothing("an entry has repeats"),
    "loss_weight": compute(
        lambda v, g: (
            {}
            if float(str(v)) == 1
            else ImportedKey("", v, Verdict.NOT_OFFERED, {}, "samples of all datasets count alike", trains=True)
        )
    ),
    "validation_concept": compute(lambda v, g: {"dataset_type": "eval"}),
    "text.prompt_source": nothing("it is the caption_strategy"),
    "text.prompt_path": nothing("give it as a caption_filter_list, or as captions beside the images"),
    "concept_stats": nothing("they are figures about the images"),
}


def read(words: Sequence[str], cwd: Path) -> Imported:
    """A config. Raises ConfigErrors for what cannot be read."""
    if not words:
        raise missing_option("CONFIG", "No config is named.", f"Write: {USAGE}.")
    document = read_json(words[0], cwd)
    if not isinstance(document, dict) or "model_type" not in document:
        raise ConfigErrors(
            [ConfigError("CONFIG", words[0], "", "It is no config of OneTrainer: there is no model_type.", "Give one.")]
        )
    concepts, samples = document.pop("concepts", None), document.pop("samples", None)
    values = flatten(document)
    rules = {**RULES, **{k: r for k in values if (r := _find_nested_rule(k))}}
    rows = write_defaults([_find_model(values), *translate(rules, values, TITLE)], DEFAULTS, TITLE)
    concepts = concepts or _read_list(values.get("concept_file_name"), cwd)
    entries: list[dict[str, object]] = []
    for place, concept in enumerate(concepts, 1):
        if isinstance(concept, dict) and concept.get("enabled", True):
            entry, more = _make_entry(place, concept)
            entries.append(entry)
            rows += more
    samples = samples or _read_list(values.get("sample_definition_file_name"), cwd)
    library = {
        f"sample-{n}": str(s["prompt"]) for n, s in enumerate(samples, 1) if isinstance(s, dict) and s.get("prompt")
    }
    settings = {"defaults": "darkroom", **Translation(rows).settings}
    if library:
        settings["validation_disable"] = False
    return Imported(TITLE, words[0], f"onetrainer-{Path(words[0]).stem}", settings, rows, entries or None, library)


def _find_nested_rule(key: str) -> Rule | None:
    part, _, name = key.partition(".")
    if part in _PARTS and name:
        return _find_part_rule(part, name)
    known = {"optimizer": "settings of other optimizers", "optimizer_defaults": "what its own pages remember",
             "embedding": "embeddings are not trained", "cloud": "runs are started where they run",
             "secrets": "secrets are read from the environment", "quantization": "see base_model_precision",
             "scheduler_params": "schedules have options of their own", "embeddings": "embeddings are not trained",
             "additional_embeddings": "embeddings are not trained"}  # fmt: skip
    return nothing(known[part]) if part in known and key not in RULES else None


def read_json(file: str, cwd: Path) -> object:
    """A JSON file. Raises ConfigErrors."""
    path = cwd / expand_home(file)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise ConfigErrors([ConfigError("CONFIG", file, "", f"It cannot be read: {reason}.", "Correct it.")]) from None


def _read_list(file: object, cwd: Path) -> list[object]:
    about = read_json(str(file), cwd) if file and is_file(cwd / expand_home(str(file))) else []
    return about if isinstance(about, list) else []


def _find_model(values: Values) -> ImportedKey:
    kind = str(values["model_type"])
    if kind not in MODELS:
        reason = "this model is not offered; `darkroom families` lists those there are"
        return ImportedKey("model", kind, Verdict.NOT_OFFERED, {}, reason, trains=True)
    family, flavour = MODELS[kind]
    return ImportedKey(
        "model", kind, Verdict.EXACT, {"model_family": family} | ({"model_flavour": flavour} if flavour else {})
    )


def _make_entry(place: int, concept: Mapping[str, object]) -> tuple[dict[str, object], list[ImportedKey]]:
    values = flatten(concept)
    others = (key for key in values if key.startswith(("image.", "text.")) and key not in CONCEPT)
    image = dict.fromkeys(others, missing("images and captions are not changed at random"))
    about = translate({**image, **CONCEPT}, values, TITLE)
    source = str(values.get("text.prompt_source") or "sample")
    strategy = {"sample": "textfile", "filename": "filename", "concept": "instanceprompt"}.get(source, "textfile")
    name = str(concept.get("name") or f"concept-{place}")
    entry = {"id": name, "caption_strategy": strategy, "repeats": 0, **Translation(about).settings}
    return entry, [about_dataset(f"concepts {place}", row) for row in about]
