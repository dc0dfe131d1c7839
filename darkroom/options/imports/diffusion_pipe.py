"""diffusion-pipe (tdrussell): a TOML file of a training and the TOML file of its dataset."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.core.errors import ConfigError, ConfigErrors, missing_option
from darkroom.core.files import expand_home, is_file
from darkroom.options.imports.report import Imported, ImportedKey, Verdict
from darkroom.options.imports.rules import (
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

TITLE = "diffusion-pipe"
USAGE = "darkroom import diffusion-pipe CONFIG.toml"

MODELS: Mapping[str, tuple[str, str | None]] = {
    "flux": ("flux", None),
    "flux2": ("flux2", None),
    "sdxl": ("sdxl", None),
    "sd3": ("sd3", None),
    "chroma": ("chroma", None),
    "lumina_2": ("lumina2", None),
    "hidream": ("hidream", None),
    "qwen_image": ("qwen_image", None),
    "z_image": ("z_image", None),
    "auraflow": ("auraflow", None),
    "omnigen2": ("", None),
    "hunyuan-video": ("hunyuanvideo_original", None),
    "hunyuan_video_15": ("hunyuanvideo", None),
    "hunyuan_image": ("hunyuan_image", None),
    "ltx-video": ("ltxvideo", None),
    "wan": ("wan", None),
    "cosmos_predict2": ("cosmos2image", None),
    "ltx2": ("ltxvideo2", None),
}
DEFAULTS: Settings = {
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 0,
    "max_grad_norm": 1.0,
    "grad_clip_method": "norm",
    "caption_dropout_probability": 0.0,
    "validation_disable": True,
}


def _find_timesteps(value: object, keys: Values) -> Settings | ImportedKey:
    kind = str(value)
    if kind == "uniform":
        return {"timestep_sampling": "uniform"}
    if kind == "logit_normal":
        return (
            {"timestep_sampling": "sigmoid"}
            if not keys.get("model.flux_shift")
            else {"timestep_sampling": "flux_shift"}
        )
    return ImportedKey("", value, Verdict.NOT_OFFERED, {}, "this density of noise levels is not offered", trains=True)


def _find_precision(value: object, keys: Values) -> Settings:
    kind = str(value).lower()
    return {"base_model_precision": "fp8-block"} if "float8" in kind else {}


def _find_ratio(value: object, keys: Values) -> ImportedKey:
    return ImportedKey("", value, Verdict.EXACT, {}, "every shape of an image has a bucket")


RULES: Mapping[str, Rule] = {
    "output_dir": same("output_dir"),
    "dataset": nothing("its folders are written as datasets"),
    "eval_datasets": missing("name datasets of dataset_type eval", trains=False),
    "epochs": same("num_train_epochs"),
    "max_steps": same("max_train_steps"),
    "micro_batch_size_per_gpu": compute(
        lambda v, g: {"train_batch_size": int(str(v[0][1] if isinstance(v, list) else v))}  # by resolution there
    ),
    "image_micro_batch_size_per_gpu": missing("say train_batch_size on the dataset"),
    "pipeline_stages": compute(
        lambda v, g: (
            {}
            if int(str(v)) == 1
            else ImportedKey("", v, Verdict.NOT_OFFERED, {}, "several GPUs share the data, not the model", trains=False)
        )
    ),
    "gradient_accumulation_steps": same("gradient_accumulation_steps"),
    "gradient_clipping": compute(lambda v, g: {"max_grad_norm": float(str(v)), "grad_clip_method": "norm"}),
    "warmup_steps": same("lr_warmup_steps", keeps=True),
    "lr_scheduler": choose("lr_scheduler", {**SCHEDULES, "constant": "constant_with_warmup"}),
    "force_constant_lr": number("learning_rate"),
    "pseudo_huber_c": compute(
        lambda v, g: {"loss_type": "huber", "huber_c": float(str(v)), "huber_schedule": "constant"}
    ),
    "blocks_to_swap": same("musubi_blocks_to_swap"),
    "eval_every_n_epochs": same("eval_epoch_interval"),
    "eval_every_n_steps": same("eval_steps_interval"),
    "eval_every_n_examples": missing("intervals are steps or epochs", trains=False),
    "eval_before_first_step": missing("evaluation begins with its first interval", trains=False),
    "eval_micro_batch_size_per_gpu": nothing("held-out samples are taken in training's batches"),
    "image_eval_micro_batch_size_per_gpu": nothing("held-out samples are taken in training's batches"),
    "eval_gradient_accumulation_steps": nothing("the loss of held-out samples is a mean over all"),
    "disable_block_swap_for_eval": nothing("blocks wait in evaluation as they do in training"),
    "save_every_n_epochs": same("checkpoint_epoch_interval"),
    "save_every_n_steps": same("checkpoint_step_interval"),
    "save_every_n_examples": missing("intervals are steps or epochs", trains=False),
    "checkpoint_every_n_epochs": same("checkpoint_epoch_interval"),
    "checkpoint_every_n_minutes": missing(
        "intervals are steps or epochs; a run that is stopped saves first", trains=False
    ),
    "activation_checkpointing": compute(lambda v, g: {"gradient_checkpointing": bool(v)}, keeps=True),
    "reentrant_activation_checkpointing": nothing("checkpoints are torch's, not reentrant"),
    "partition_method": nothing("the model is on one GPU"),
    "partition_split": nothing("the model is on one GPU"),
    "save_dtype": missing("a LoRA is saved in the precision in which it is trained", trains=False),
    "caching_batch_size": same("vae_batch_size"),
    "map_num_proc": nothing("images are read by threads: max_workers"),
    "steps_per_print": nothing("every step is in the event log"),
    "logging_steps": nothing("every step is in the event log"),
    "upload_hf_from_epoch": missing("every checkpoint is uploaded with push_checkpoints_to_hub", trains=False),
    "huggingface_repo": same("hub_model_id"),
    "x_axis_examples": nothing("figures are told by step"),
    "video_clip_mode": missing("say which parts of a clip are taken on the dataset: video.bucket_strategy"),
    "compile": fixed(dynamo_backend="inductor"),
    "resume_from_checkpoint": missing("checkpoints of diffusion-pipe are not read; a run goes on from its own"),
    "reset_dataloader": missing("a run goes on where its data stood"),
    "reset_optimizer_params": missing("a run goes on with its optimizer"),
    "uncond_ratio": number("caption_dropout_probability"),
    "model.type": nothing("it is the family"),
    "model.diffusers_path": same("pretrained_model_name_or_path"),
    "model.ckpt_path": same("pretrained_model_name_or_path"),
    "model.checkpoint_path": same("pretrained_model_name_or_path"),
    "model.transformer_path": same("pretrained_transformer_model_name_or_path"),
    "model.diffusion_model": same("pretrained_transformer_model_name_or_path"),
    "model.single_file_path": same("pretrained_transformer_model_name_or_path"),
    "model.vae_path": same("pretrained_vae_model_name_or_path"),
    "model.vae": same("pretrained_vae_model_name_or_path"),
    "model.llm_path": missing("text encoders are read from the base model", trains=False),
    "model.clip_path": missing("text encoders are read from the base model", trains=False),
    "model.t5_path": same("pretrained_t5_model_name_or_path"),
    "model.text_encoders": missing("text encoders are read from the base model", trains=False),
    "model.text_encoder_path": missing("text encoders are read from the base model", trains=False),
    "model.llama3_path": missing("text encoders are read from the base model", trains=False),
    "model.byt5_path": missing("text encoders are read from the base model", trains=False),
    "model.dtype": choose("mixed_precision", {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}),
    "model.transformer_dtype": compute(_find_precision),
    "model.diffusion_model_dtype": compute(_find_precision),
    "model.llama3_4bit": fixed(text_encoder_4_precision="nf4-bnb"),
    "model.llm_fp8": missing("say text_encoder_1_precision", trains=False),
    "model.timestep_sample_method": compute(_find_timesteps),
    "model.sigmoid_scale": number("flow_sigmoid_scale"),
    "model.shift": number("flow_schedule_shift"),
    "model.flux_shift": fixed(timestep_sampling="flux_shift"),
    "model.lumina_shift": fixed(timestep_sampling="flux_shift"),
    "model.bypass_guidance_embedding": missing("the guidance that is told is flux_guidance_value"),
    "model.guidance": number("flux_guidance_value"),
    "model.max_llama3_sequence_length": same("tokenizer_max_length"),
    "model.first_frame_conditioning_p": missing("say video.is_i2v on the dataset"),
    "model.unet_lr": number("learning_rate"),
    "model.text_encoder_1_lr": compute(lambda v, g: {"train_text_encoder": True, "text_encoder_lr": float(str(v))}),
    "model.text_encoder_2_lr": missing("both text encoders have one rate"),
    "model.min_snr_gamma": number("snr_gamma"),
    "model.v_pred": fixed(prediction_type="v_prediction"),
    "model.debiased_estimation_loss": missing("errors are weighted by snr_gamma or not at all"),
    "model.self_attn_lr": missing("all layers have one rate"),
    "model.min_t": compute(lambda v, g: {"min_timestep": round(float(str(v)) * 1000)}),
    "model.max_t": compute(lambda v, g: {} if float(str(v)) == 1 else {"max_timestep": round(float(str(v)) * 1000)}),
    "model.attention": missing("choose attention_mechanism", trains=False),
    "model.merge_adapters": missing("merge it into the base first"),
    "adapter.type": compute(
        lambda v, g: (
            {"model_type": "lora"}
            if v == "lora"
            else ImportedKey("", v, Verdict.NOT_OFFERED, {"model_type": "lora"}, "a plain LoRA is trained", trains=True)
        )
    ),
    "adapter.rank": compute(
        lambda v, g: {"lora_rank": int(str(v)), "lora_alpha": float(str(g.get("adapter.alpha", v)))}
    ),
    "adapter.alpha": nothing("it is lora_alpha"),
    "adapter.dropout": number("lora_dropout"),
    "adapter.dtype": nothing("an adapter is trained in float32"),
    "adapter.init_from_existing": same("init_lora"),
    "adapter.fuse_adapters": missing("merge it into the base first"),
    "adapter.decompose_factor": missing("it belongs to LoKr; give lycoris_config"),
    "adapter.exclude_linear_modules": missing("name the layers with peft_lora_target_modules"),
    "optimizer.type": compute(choose_optimizer),
    "optimizer.lr": number("learning_rate"),
    "optimizer.betas": compute(
        lambda v, g: {"optimizer_beta1": float(v[0]), "optimizer_beta2": float(v[1])}  # type: ignore[index]
    ),
    "optimizer.weight_decay": number("adam_weight_decay"),
    "optimizer.eps": number("adam_epsilon"),
    "optimizer.stabilize": nothing("it is how this optimizer steps"),
    "optimizer.gradient_release": near(
        "optimizer_release_gradients", "each weight is updated as its gradient is known"
    ),
    "monitoring.log_dir": same("logging_dir"),
    "monitoring.enable_wandb": fixed(report_to="wandb"),
    "monitoring.wandb_api_key": missing("put it into the variable WANDB_API_KEY", trains=False),
    "monitoring.wandb_tracker_name": same("tracker_project_name"),
    "monitoring.wandb_run_name": same("tracker_run_name"),
}
DIRECTORY: Mapping[str, Rule] = {
    "path": same("instance_data_dir"),
    "resolutions": nothing("each size is an entry of its own"),
    "num_repeats": compute(lambda v, g: {"repeats": max(0, round(float(str(v))) - 1)}),
    "enable_ar_bucket": compute(_find_ratio),
    "min_ar": compute(lambda v, g: {"minimum_aspect_ratio": float(str(v))}),
    "max_ar": compute(lambda v, g: {"maximum_aspect_ratio": float(str(v))}),
    "num_ar_buckets": missing("shapes are rounded by aspect_bucket_rounding"),
    "ar_buckets": missing("say crop_aspect_buckets on the dataset"),
    "size_buckets": missing("shapes follow from resolution"),
    "frame_buckets": nothing("the longest is the clip length of the entry"),
    "mask_path": nothing("it is a dataset of masks"),
    "default_mask_file": missing("give masks beside the images"),
    "control_path": nothing("it is a dataset of references"),
    "caption_prefix": same("instance_prompt"),
    "shuffle_tags": missing("captions are encoded once, as they are"),
    "shuffle_delimiter": missing("captions are encoded once, as they are"),
    "cache_shuffle_num": missing("captions are encoded once, as they are"),
    "cache_shuffle_delimiter": missing("captions are encoded once, as they are"),
    "caption_mode": missing("say caption_strategy on the dataset"),
    "skip_empty_caption": missing("samples without a caption are left out", trains=False),
    "framerate": missing("clips have the model's own rate, or framerate"),
}


def read(words: Sequence[str], cwd: Path) -> Imported:
    """A config and its dataset file. Raises ConfigErrors for what cannot be read."""
    if not words:
        raise missing_option("CONFIG", "No config is named.", f"Write: {USAGE}.")
    document = read_toml(words[0], cwd)
    if not isinstance(document.get("model"), Mapping):
        problem = "It is no config of diffusion-pipe: there is no table [model]."
        raise ConfigErrors([ConfigError("CONFIG", words[0], "", problem, "Give the file of a training.")])
    values = flatten(document)
    rows = [_find_model(values), *translate(RULES, values, TITLE)]
    if "adapter" not in document:
        rows.append(
            ImportedKey("adapter", None, Verdict.EXACT, {"model_type": "full"}, "without one the model is trained")
        )
    rows = write_defaults(rows, DEFAULTS, TITLE)
    entries: list[dict[str, object]] = []
    file, remarks = document.get("dataset"), []
    if file and is_file(cwd / expand_home(str(file))):
        common = read_toml(str(file), cwd)
        directories = common.pop("directory", [])
        for place, directory in enumerate(directories if isinstance(directories, list) else [], 1):
            result, more = _make_entries(place, {**common, **directory})
            entries += result
            rows += more
    elif file:
        remarks.append(f"The dataset file {file} is not here: set data_backend_config.")
    settings = {"defaults": "darkroom", **Translation(rows).settings}
    name = f"diffusion-pipe-{Path(words[0]).stem}"
    return Imported(TITLE, words[0], name, settings, rows, entries or None, remarks=remarks)


def read_toml(file: str, cwd: Path) -> dict[str, object]:
    """A TOML file. Raises ConfigErrors."""
    path = cwd / expand_home(file)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise ConfigErrors([ConfigError("CONFIG", file, "", f"It cannot be read: {reason}.", "Correct it.")]) from None


def _find_model(values: Values) -> ImportedKey:
    kind = str(values.get("model.type"))
    family, flavour = MODELS.get(kind, ("", None))
    if not family:
        reason = "this model is not offered; `darkroom families` lists those there are"
        return ImportedKey("model.type", kind, Verdict.NOT_OFFERED, {}, reason, trains=True)
    settings: dict[str, object] = {"model_family": family}
    return ImportedKey("model.type", kind, Verdict.EXACT, settings | ({"model_flavour": flavour} if flavour else {}))


def _make_entries(place: int, directory: Values) -> tuple[list[dict[str, object]], list[ImportedKey]]:
    """One entry for each size, then those beside it."""
    about = translate(DIRECTORY, directory, TITLE)
    settings = {"caption_strategy": "textfile", "resolution_type": "pixel_area", **Translation(about).settings}
    conditioning: list[dict[str, object]] = []
    for key, kind in (("mask_path", "mask"), ("control_path", "reference_loose")):
        if folder := directory.get(key):
            conditioning.append(
                {"id": f"directory-{place}-{kind}", "dataset_type": "conditioning", "conditioning_type": kind,
                 "instance_data_dir": folder}
            )  # fmt: skip
    frames = directory.get("frame_buckets")
    longest = max(frames) if isinstance(frames, list) and frames else 1
    entries = []
    sizes = directory.get("resolutions") or [512]
    for size in sizes if isinstance(sizes, list) else [sizes]:
        edge = round((size[0] * size[1]) ** 0.5) if isinstance(size, list) else int(str(size))
        entry: dict[str, object] = {"id": f"directory-{place}-{edge}", **settings, "resolution": edge}
        if longest > 1:
            entry |= {"dataset_type": "video", "video": {"num_frames": longest}}
        entries.append(entry | ({"conditioning_data": [e["id"] for e in conditioning]} if conditioning else {}))
    return [*entries, *conditioning], [about_dataset(f"directory {place}", row) for row in about]
