"""diffusers' example scripts: `train_dreambooth_lora_flux.py --instance_data_dir ...` and their siblings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.options.imports.report import Imported, ImportedKey, Verdict
from darkroom.options.imports.rules import (
    PRECISIONS,
    SCHEDULES,
    Rule,
    Settings,
    Translation,
    Values,
    choose,
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

TITLE = "diffusers' example scripts"
USAGE = "darkroom import diffusers SCRIPT.py FLAGS..."

# a part of the script's name and the family; the first that fits counts
FAMILIES: Mapping[str, tuple[str, str | None]] = {
    "flux_kontext": ("flux", "kontext"),
    "flux2_klein": ("flux2", "klein-9b"),
    "flux2": ("flux2", "dev"),
    "flux": ("flux", None),
    "sdxl": ("sdxl", None),
    "sd3": ("sd3", None),
    "sana": ("sana", None),
    "hidream": ("hidream", None),
    "lumina2": ("lumina2", None),
    "qwenimage": ("qwen_image", None),
    "qwen_image": ("qwen_image", None),
    "z_image": ("z_image", None),
    "pixart": ("pixart_sigma", None),
    "cogview": ("", None),
    "cogvideox": ("", None),
    "text_to_image": ("sd1x", None),
    "dreambooth": ("sd1x", None),
    "controlnet": ("sd1x", None),
}
DEFAULTS: Settings = {
    "learning_rate": 1e-4,
    "optimizer": "torch-adamw",
    "adam_weight_decay": 1e-2,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "max_grad_norm": 1.0,
    "grad_clip_method": "norm",
    "lora_rank": 4,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "caption_dropout_probability": 0.0,
    "resolution": 512,
}
_COLUMNS = "columns of a hub dataset are named on the dataset"


def _find_optimizer(value: object, keys: Values) -> Settings | ImportedKey:
    name = str(value).lower()
    if name == "adamw":
        return {"optimizer": "bnb-adamw8bit" if keys.get("use_8bit_adam") else "torch-adamw"}
    if name == "prodigy":
        settings = {"optimizer": "prodigy"}
        return ImportedKey("", value, Verdict.APPROXIMATED, settings, "by ProdigyPlus, which is schedule-free")
    return ImportedKey("", value, Verdict.NOT_OFFERED, {}, "diffusers' scripts know AdamW and prodigy", trains=True)


def _find_layers(value: object, keys: Values) -> Settings:
    return {"peft_lora_target_modules": [layer.strip() for layer in str(value).split(",")]}


def _find_prompt(value: object, keys: Values) -> Settings:
    return {"validation_prompt": str(value[0] if isinstance(value, list) else value)}


RULES: Mapping[str, Rule] = {
    "pretrained_model_name_or_path": same("pretrained_model_name_or_path"),
    "pretrained_vae_model_name_or_path": same("pretrained_vae_model_name_or_path"),
    "controlnet_model_name_or_path": same("controlnet_model_name_or_path"),
    "revision": same("revision"),
    "variant": same("variant"),
    "bnb_quantization_config_path": fixed("in four bits", Verdict.APPROXIMATED, base_model_precision="nf4-bnb"),
    "dataset_name": nothing("it is a dataset of type huggingface"),
    "dataset_config_name": missing(_COLUMNS),
    "cache_dir": same("cache_dir"),
    "image_column": nothing("it is on the dataset"),
    "caption_column": nothing("it is on the dataset"),
    "conditioning_image_column": missing("control images are a dataset of their own"),
    "cond_image_column": missing("references are a dataset of their own"),
    "repeats": nothing("it is on the dataset"),
    "instance_data_dir": nothing("it is a dataset"),
    "train_data_dir": nothing("it is a dataset"),
    "class_data_dir": nothing("it is a dataset of regularization images"),
    "instance_prompt": nothing("it is on the dataset"),
    "class_prompt": nothing("it is on the dataset of regularization images"),
    "with_prior_preservation": nothing("class_data_dir is a dataset of regularization images"),
    "prior_loss_weight": compute(
        lambda v, g: (
            {}
            if float(str(v)) == 1
            else ImportedKey(
                "", v, Verdict.NOT_OFFERED, {}, "regularization images count as the others do", trains=True
            )
        )
    ),
    "num_class_images": missing("images of the class are not made: put them into class_data_dir"),
    "prior_generation_precision": missing("images of the class are not made"),
    "sample_batch_size": nothing("images of the class are not made"),
    "max_sequence_length": same("tokenizer_max_length"),
    "tokenizer_max_length": same("tokenizer_max_length"),
    "text_encoder_use_attention_mask": missing("padding is hidden where the model's own pipeline hides it"),
    "complex_human_instruction": same("sana_complex_human_instruction"),
    "validation_prompt": compute(_find_prompt),
    "validation_prompts": compute(_find_prompt, "the first of them", Verdict.APPROXIMATED),
    "validation_image": missing("images of validation are in a prompt library"),
    "final_validation_prompt": compute(_find_prompt),
    "num_validation_images": same("num_validation_images"),
    "validation_epochs": same("validation_epoch_interval"),
    "validation_steps": same("validation_step_interval"),
    "skip_final_inference": missing("validation is drawn at the end too", trains=False),
    "rank": same("lora_rank"),
    "lora_alpha": number("lora_alpha"),
    "lora_dropout": number("lora_dropout"),
    "lora_layers": compute(_find_layers),
    "lora_blocks": missing("name the layers with peft_lora_target_modules"),
    "use_dora": same("use_dora"),
    "use_lora_bias": missing("biases of adapted layers stay as they are"),
    "output_dir": same("output_dir"),
    "seed": same("seed", keeps=True),
    "resolution": compute(lambda v, g: {"resolution": int(str(v)), "resolution_type": "pixel_area"}),
    "aspect_ratio_buckets": nothing("images are always sorted into buckets"),
    "center_crop": nothing("it is on the dataset"),
    "random_flip": missing("images are not flipped"),
    "image_interpolation_mode": missing("images are resized by Lanczos's filter"),
    "train_text_encoder": same("train_text_encoder"),
    "train_text_encoder_ti": missing("embeddings are not trained"),
    "text_encoder_lr": number("text_encoder_lr"),
    "train_batch_size": same("train_batch_size"),
    "num_train_epochs": compute(lambda v, g: {} if g.get("max_train_steps") else {"num_train_epochs": int(str(v))}),
    "max_train_steps": same("max_train_steps"),
    "max_train_samples": missing("say max_num_samples on the dataset"),
    "checkpointing_steps": same("checkpoint_step_interval"),
    "checkpoints_total_limit": same("checkpoints_total_limit"),
    "resume_from_checkpoint": missing("checkpoints of these scripts are not read; a run goes on from its own"),
    "gradient_accumulation_steps": same("gradient_accumulation_steps"),
    "gradient_checkpointing": same("gradient_checkpointing"),
    "learning_rate": number("learning_rate"),
    "scale_lr": same("lr_scale"),
    "lr_scheduler": choose("lr_scheduler", SCHEDULES),
    "lr_warmup_steps": same("lr_warmup_steps", keeps=True),
    "lr_num_cycles": same("lr_num_cycles"),
    "lr_power": number("lr_power"),
    "snr_gamma": number("snr_gamma"),
    "use_ema": same("use_ema"),
    "offload_ema": fixed(ema_device="cpu"),
    "foreach_ema": nothing("averages are taken over all weights at once"),
    "noise_offset": compute(
        lambda v, g: {"offset_noise": True, "noise_offset": float(str(v)), "noise_offset_probability": 1.0}
    ),
    "input_perturbation": number("input_perturbation"),
    "prediction_type": same("prediction_type"),
    "do_edm_style_training": missing("the base model says how noise is added"),
    "weighting_scheme": choose(
        "weighting_scheme", {name: name for name in ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none")}
    ),
    "logit_mean": number("logit_mean"),
    "logit_std": number("logit_std"),
    "mode_scale": number("mode_scale"),
    "precondition_outputs": missing("the network's own answer is compared"),
    "guidance_scale": number("flux_guidance_value"),
    "optimizer": compute(_find_optimizer),
    "use_8bit_adam": fixed(optimizer="bnb-adamw8bit"),
    "adam_beta1": number("optimizer_beta1"),
    "adam_beta2": number("optimizer_beta2"),
    "adam_weight_decay": number("adam_weight_decay"),
    "adam_weight_decay_text_encoder": missing("all weights have one decay"),
    "adam_epsilon": number("adam_epsilon"),
    "prodigy_beta3": missing("it belongs to another implementation of Prodigy"),
    "prodigy_decouple": nothing("decay is decoupled"),
    "prodigy_use_bias_correction": missing("it belongs to another implementation of Prodigy"),
    "prodigy_safeguard_warmup": missing("it belongs to another implementation of Prodigy"),
    "max_grad_norm": compute(lambda v, g: {"max_grad_norm": float(str(v)), "grad_clip_method": "norm"}),
    "mixed_precision": choose("mixed_precision", PRECISIONS),
    "upcast_before_saving": nothing("a LoRA is saved in the precision in which it is trained"),
    "allow_tf32": nothing("TensorFloat-32 is on unless disable_tf32 is"),
    "cache_latents": nothing("latents are always cached"),
    "offload": nothing("models that wait leave the device"),
    "vae_encode_mode": missing("latents are the means that the autoencoder gives", trains=False),
    "enable_xformers_memory_efficient_attention": fixed(attention_mechanism="xformers"),
    "enable_npu_flash_attention": fixed(attention_mechanism="native-npu"),
    "set_grads_to_none": nothing("gradients are always set to none"),
    "dataloader_num_workers": nothing("images are read by threads: max_workers"),
    "local_rank": nothing("the launcher says it"),
    "logging_dir": same("logging_dir"),
    "report_to": choose("report_to", {n: n for n in ("tensorboard", "wandb", "comet_ml", "all", "none")}),
    "tracker_project_name": same("tracker_project_name"),
    "push_to_hub": same("push_to_hub"),
    "hub_token": missing("put it into the variable HF_TOKEN", trains=False),
    "hub_model_id": same("hub_model_id"),
    "debug_loss": missing("losses of single files are not told", trains=False),
    "proportion_empty_prompts": number("caption_dropout_probability"),
    "output_kohya_format": near("lora_format", "say lora_format comfyui"),
    "fsdp_text_encoder": missing("several GPUs share the data, not the model", trains=False),
}
_SWITCHES = (
    "with_prior_preservation center_crop random_flip train_text_encoder train_text_encoder_ti "
    "gradient_checkpointing scale_lr use_8bit_adam prodigy_decouple prodigy_use_bias_correction "
    "prodigy_safeguard_warmup push_to_hub allow_tf32 enable_xformers_memory_efficient_attention "
    "enable_npu_flash_attention set_grads_to_none use_ema offload_ema foreach_ema cache_latents offload "
    "upcast_before_saving use_dora use_lora_bias do_edm_style_training debug_loss "
    "text_encoder_use_attention_mask skip_final_inference output_kohya_format fsdp_text_encoder"
)
SWITCHES = frozenset(_SWITCHES.split())


def read(words: Sequence[str], cwd: Path) -> Imported:
    """The command. Raises ConfigErrors for flags that these scripts do not have."""
    if not words:
        raise missing_option("SCRIPT", "No script is named.", f"Write: {USAGE}.")
    plain, values = read_arguments(drop_launcher(words), SWITCHES, "command line")
    script = next((Path(word).stem for word in plain if Path(word).stem.startswith("train_")), "")
    if not script:
        problem = "No script of diffusers is named, such as train_dreambooth_lora_flux.py."
        raise ConfigErrors([ConfigError("SCRIPT", " ".join(plain), "command line", problem, f"Write: {USAGE}.")])
    model = _find_model(script)
    rows = write_defaults([model, *translate(RULES, values, TITLE)], DEFAULTS, TITLE)
    settings = {"defaults": "darkroom", **Translation(rows).settings}
    if "validation_prompt" not in settings:
        settings["validation_disable"] = True
    return Imported(TITLE, script, f"diffusers-{script}", settings, rows, _make_entries(values) or None)


def _find_model(script: str) -> ImportedKey:
    family, flavour = next((model for part, model in FAMILIES.items() if part in script), ("", None))
    if not family:
        reason = "this model is not offered; `darkroom families` lists those there are"
        return ImportedKey("model", script, Verdict.NOT_OFFERED, {}, reason, trains=True)
    settings: dict[str, object] = {"model_family": family, "model_type": "lora" if "lora" in script else "full"}
    if "controlnet" in script:
        settings |= {"controlnet": True, "model_type": "lora"}
    if "lora_" not in script and script.endswith(("_sdxl_lora", "_lora")):
        settings["model_type"] = "lora"
    return ImportedKey("model", script, Verdict.EXACT, settings | ({"model_flavour": flavour} if flavour else {}))


def _make_entries(values: Values) -> list[dict[str, object]]:
    """The folders and hub datasets of the flags as entries."""
    entries: list[dict[str, object]] = []
    common: dict[str, object] = {"crop": True, "crop_style": "center"} if values.get("center_crop") else {}
    repeats = int(str(values.get("repeats") or 1)) - 1
    prompt = values.get("instance_prompt")
    if name := values.get("dataset_name"):
        entry: dict[str, object] = {"id": "train", "type": "huggingface", "dataset_name": name, "repeats": repeats}
        entry |= {"caption_strategy": "huggingface" if values.get("caption_column") else "instanceprompt"}
        block = {"image_column": values.get("image_column"), "caption_column": values.get("caption_column")}
        entry["huggingface"] = {key: value for key, value in block.items() if value}
        entries.append(entry | ({"instance_prompt": prompt} if prompt else {}) | common)
    for key in ("instance_data_dir", "train_data_dir"):
        if folder := values.get(key):
            strategy = {"caption_strategy": "instanceprompt", "instance_prompt": prompt} if prompt else {
                "caption_strategy": "textfile"
            }  # fmt: skip
            entries.append({"id": "train", "instance_data_dir": folder, "repeats": repeats, **strategy, **common})
    if folder := values.get("class_data_dir"):
        text = {"caption_strategy": "instanceprompt", "instance_prompt": values.get("class_prompt") or ""}
        entries.append({"id": "class", "instance_data_dir": folder, "is_regularisation_data": True, **text, **common})
    return entries
