"""Every option of musubi-tuner's scripts: its kind, and what becomes of it here, as data.

`translate.py` holds the few whose value decides what they become; they stand in `COMPUTED` with the sentence that
describes them. The page `docs/musubi.md` and `darkroom options NAME` are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from darkroom.options.imports.report import ForeignOption, Verdict


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


SWITCHES = frozenset(
    split_words(
        """
    flash3 flash_attn sage_attn sdpa split_attn use_32bit_attention xformers dino_loss_no_norm dino_loss_use_gram
    self_flow i2v keep_cache one_frame_no_2x one_frame_no_4x skip_existing validate_caption_structure
    warn_on_caption_issues compile compile_fullgraph cuda_allow_tf32 cuda_cudnn_benchmark disable_cudnn_backend
    dynamo_dynamic dynamo_fullgraph async_upload resume_from_huggingface save_state_to_huggingface append_original_name
    bell cpu_noise exclude_single_blocks interactive keep_original_aspect lycoris magcache_calibration no_resize_control
    one_frame_auto_resize rcm_debug_save rcm_relative_threshold resize_control_to_image_size
    resize_control_to_official_size split_uncond log_config log_loss_stats block_swap_h2d_only disable_numpy_memmap fp8
    fp8_base fp8_fast fp8_scaled img_in_txt_in_offloading lazy_loading offload_inactive_dit text_encoder_cpu
    use_pinned_memory_for_block_swap bulk_decode edit edit_plus f1 force_nabla_attention force_v2_1_time_embedding
    fp8_llm fp8_t5 fp8_te fp8_text_encoder fp8_vl nabla_add_sta nabla_resize no_nabla_add_sta no_vae_load one_frame
    quantized_qwen remove_first_image_from_target skip_t2i_visual_dummy vae_cache_cpu vae_enable_patch_conv
    vae_enable_tiling vae_tiling dim_from_weights no_metadata offload_dit_during_sampling sample_at_first
    turbo_dit_cache use_unconditional_dit_for_lora_sampling save_state save_state_on_train_end
    preserve_distribution_shape mem_eff_safe_open no_sort reverse block_swap_optimizer_patch_params
    ddp_gradient_as_bucket_view ddp_static_graph full_bf16 full_fp16 fused_backward_pass gradient_checkpointing
    gradient_checkpointing_cpu_offload mem_eff_save persistent_data_loader_workers
    """
    )
)
INTEGERS = frozenset(
    split_words(
        """
    dino_loss_every_n_steps dino_loss_layer dino_loss_resize self_flow_gamma_warmup_steps
    self_flow_teacher_coupling_decay_steps student_feature_layer teacher_feature_layer batch_size console_num_images
    console_width num_workers compile_cache_size_limit fps frames height infer_steps magcache_k num_images output_layers
    rcm_dilate_size rcm_kernel_size rope_scaling_timestep_threshold steps trim_tail_frames video_length video_sections
    width lr_scheduler_num_cycles lr_scheduler_timescale block_swap_ring_size blocks_to_swap clip_max_length
    dit_in_channels latent_window_size nabla_wH nabla_wT nabla_wW num_layers qwen_max_length vae_chunk_size
    vae_sample_size vae_spatial_tile_sample_min_size network_dim sample_every_n_epochs sample_every_n_steps
    save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps
    save_last_n_steps_state max_timestep min_timestep num_timestep_buckets dim lokr_rank max_new_tokens max_size
    ddp_timeout gradient_accumulation_steps max_data_loader_n_workers max_train_epochs max_train_steps seed
    """
    )
)
NUMBERS = frozenset(
    split_words(
        """
    dino_loss_weight ema_decay mask_ratio self_flow_gamma self_flow_teacher_coupling_prob
    self_flow_teacher_mismatch_ratio cfg_apply_ratio embedded_cfg_scale flow_shift guidance guidance_rescale
    guidance_scale_high_noise magcache_retention_ratio magcache_threshold mu rcm_threshold rope_scaling_factor slg_end
    slg_scale slg_start strength video_seconds y1 y2 lr_scheduler_min_lr_ratio lr_scheduler_power nabla_P network_alpha
    network_dropout scale_weight_norms learning_rate max_grad_norm initial_sigma scheduler_scale discrete_flow_shift
    guidance_scale ideogram4_timestep_mu ideogram4_timestep_std logit_mean logit_std mode_scale noise_clip_std
    noise_scale_end noise_scale_start sigmoid_scale beta beta2 clamp_quantile sigma_rel lr_decay_steps lr_warmup_steps
    timestep_boundary
    """
    )
)
LISTS = frozenset(
    split_words(
        """
    compile_args control_image_mask_path control_image_path exclude_patterns include_patterns latent_path lora_weight
    lora_weight_high_noise ref_images lr_scheduler_args base_weights network_args optimizer_args path trainable_modules
    image_size video_size lora_multiplier lora_multiplier_high_noise base_weights_multiplier
    """
    )
)

SAME = split_words(
    """
    learning_rate lr_scheduler lr_scheduler_timescale lr_scheduler_min_lr_ratio lr_scheduler_args
    max_grad_norm max_train_steps gradient_accumulation_steps seed gradient_checkpointing mixed_precision output_dir
    logging_dir logit_mean logit_std mode_scale min_timestep max_timestep preserve_distribution_shape
    num_timestep_buckets timestep_sampling weighting_scheme block_swap_ring_size use_pinned_memory_for_block_swap
    vae_enable_patch_conv magcache_k magcache_threshold magcache_retention_ratio
    """
)
"""Options of the same name, meaning and values."""

RENAMED: Mapping[str, str] = {
    "blocks_to_swap": "musubi_blocks_to_swap",
    "compile_cache_size_limit": "dynamo_cache_size_limit",
    "compile_fullgraph": "dynamo_fullgraph",
    "compile_mode": "dynamo_mode",
    "discrete_flow_shift": "flow_schedule_shift",
    "dit": "pretrained_transformer_model_name_or_path",
    "dynamo_fullgraph": "dynamo_fullgraph",
    "dynamo_mode": "dynamo_mode",
    "flow_shift": "flow_schedule_shift",
    "frames": "validation_num_video_frames",
    "guidance": "validation_guidance",
    "guidance_rescale": "validation_guidance_rescale",
    "infer_steps": "validation_num_inference_steps",
    "log_tracker_name": "tracker_project_name",
    "lr_scheduler_num_cycles": "lr_num_cycles",
    "lr_scheduler_power": "lr_power",
    "max_train_epochs": "num_train_epochs",
    "negative_prompt": "validation_negative_prompt",
    "network_dim": "lora_rank",
    "network_weights": "init_lora",
    "prompt": "validation_prompt",
    "qwen_max_length": "tokenizer_max_length",
    "sample_at_first": "validation_on_startup",
    "sample_every_n_epochs": "validation_epoch_interval",
    "sample_every_n_steps": "validation_step_interval",
    "save_every_n_epochs": "checkpoint_epoch_interval",
    "save_every_n_steps": "checkpoint_step_interval",
    "save_last_n_epochs": "checkpoints_total_limit",
    "sigmoid_scale": "flow_sigmoid_scale",
    "steps": "validation_num_inference_steps",
    "vae": "pretrained_vae_model_name_or_path",
    "video_length": "validation_num_video_frames",
    "wandb_run_name": "tracker_run_name",
}
"""Options of another name, with the same meaning and values."""

NEARLY: Mapping[str, tuple[str, str]] = {
    "batch_size": ("vae_batch_size", "it is how many images the VAE encodes at once; captions are encoded one by one"),
    "embedded_cfg_scale": ("validation_guidance", "validation images are rendered by diffusers' pipeline"),
    "fps": ("framerate", "it is the rate of clips that are trained as well"),
    "fused_backward_pass": ("optimizer_release_gradients", "each weight is updated as soon as its gradient is known"),
    "network_dropout": ("lora_dropout", "it drops inputs of the adapter, there values between its two matrices"),
    "num_workers": ("max_workers", "threads that read files"),
    "output_name": ("tracker_run_name", "the file is always called pytorch_lora_weights.safetensors"),
    "quantized_qwen": ("text_encoder_1_precision", "4 bits of bitsandbytes"),
    "timestep_boundary": ("timestep_boundary", "each expert is trained on its own side in every batch"),
    "vae_sample_size": ("vae_enable_tiling", "diffusers chooses the size of tiles"),
    "vae_spatial_tile_sample_min_size": ("vae_enable_tiling", "diffusers chooses the size of tiles"),
    "vae_tiling": ("vae_enable_tiling", "diffusers chooses the size of tiles"),
    "vae_enable_tiling": ("vae_enable_tiling", "diffusers chooses the size of tiles"),
}
"""Options with a nearest one here, and the difference."""

_IN_MEMORY = "it changes memory and speed, not what is trained"
_NO_CACHE = "Darkroom's caches name the content of every file and are filled by the run itself"
_PROCESSES = "it concerns how processes exchange gradients, not what they are"
_TASK = "it says which flavour is meant"
WITHOUT_EFFECT: Mapping[str, str] = {
    "append_original_name": "it names files",
    "bell": "no bell is rung",
    "block_swap_h2d_only": "frozen blocks are only ever sent to the device",
    "block_swap_optimizer_patch_params": _IN_MEMORY,
    "bulk_decode": _IN_MEMORY,
    "console_back": "`darkroom dataset report` shows what is trained",
    "console_num_images": "`darkroom dataset report` shows what is trained",
    "console_width": "`darkroom dataset report` shows what is trained",
    "cpu_noise": "noise is always drawn on the CPU",
    "cuda_cudnn_benchmark": "kernels chosen by their time differ from run to run, and so would the weights",
    "ddp_gradient_as_bucket_view": _PROCESSES,
    "ddp_static_graph": _PROCESSES,
    "ddp_timeout": _PROCESSES,
    "debug_mode": "`darkroom dataset report` shows what is trained",
    "device": "the accelerator is used where there is one",
    "disable_cudnn_backend": _IN_MEMORY,
    "disable_numpy_memmap": _IN_MEMORY,
    "edit": _TASK,
    "edit_plus": _TASK,
    "f1": _TASK,
    "fp8_fast": "musubi-tuner itself uses it for images only, not for training",
    "i2v": _TASK,
    "ideogram4_timestep_mu": "musubi-tuner itself keeps it for old commands only",
    "ideogram4_timestep_std": "musubi-tuner itself keeps it for old commands only",
    "img_in_txt_in_offloading": _IN_MEMORY,
    "interactive": "prompts are given with --prompt",
    "keep_cache": _NO_CACHE,
    "lazy_loading": _IN_MEMORY,
    "log_config": "run.lock.json in the output folder holds every setting",
    "log_loss_stats": "report.html and events.jsonl have the loss by noise level",
    "log_prefix": "a run logs into its own folder",
    "max_data_loader_n_workers": "batches are read ahead by threads",
    "mem_eff_safe_open": _IN_MEMORY,
    "mem_eff_save": _IN_MEMORY,
    "no_vae_load": "the VAE is loaded when something has to be encoded or rendered",
    "offload_dit_during_sampling": _IN_MEMORY,
    "offload_inactive_dit": _IN_MEMORY,
    "persistent_data_loader_workers": "batches are read ahead by threads",
    "save_state": "every checkpoint holds the state of the run",
    "save_state_on_train_end": "every checkpoint holds the state of the run",
    "sdpa": "attention_mechanism is diffusers, which is torch's attention",
    "skip_existing": _NO_CACHE,
    "skip_t2i_visual_dummy": _PROCESSES,
    "split_attn": "samples of a batch are told apart by masks, which gives the same answers",
    "split_uncond": _IN_MEMORY,
    "task": _TASK,
    "model_version": _TASK,
    "model_type": _TASK,
    "one_frame": _TASK,
    "text_encoder_cpu": _IN_MEMORY,
    "turbo_dit_cache": _IN_MEMORY,
    "vae_cache_cpu": _IN_MEMORY,
    "vae_chunk_size": _IN_MEMORY,
    "warn_on_caption_issues": "captions are trained as they are",
}
"""Options that need nothing here, with the reason."""

_SAMPLES = "it changes how sample images are made, and diffusers' pipeline has no such setting"
_UPLOAD = "uploading is not offered yet; the files stay in the output folder"
_METADATA = "this field of the file's metadata is not written"
_TOOL = "it belongs to a tool of musubi-tuner, not to training"
_ENCODER = "text and image encoders come from the repository of the flavour"
HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(
        split_words(
            """
    automatic_prompt_lang_for_layered cfg_apply_ratio cfg_skip_mode control_image_mask_path control_path
    custom_system_prompt editing_scheduler end_image_path exclude_single_blocks guidance_scale_high_noise image_last
    initial_sigma keep_original_aspect latent_paddings latent_path layout_bboxes magcache_calibration mask_path mu
    no_resize_control one_frame_auto_resize one_frame_inference output_layers output_type rcm_debug_save rcm_dilate_size
    rcm_kernel_size rcm_relative_threshold rcm_threshold resize_control_to_image_size resize_control_to_official_size
    rope_scaling_factor rope_scaling_timestep_threshold sampler_preset scheduler_scale slg_end slg_layers slg_mode
    slg_scale slg_start strength trim_tail_frames turbo_dit unconditional_dit use_unconditional_dit_for_lora_sampling
    video_path video_sections y1 y2 lora_multiplier_high_noise lora_weight_high_noise magcache_mag_ratios from_file
    include_patterns exclude_patterns lycoris save_merged_model
    """
        ),
        _SAMPLES,
    ),
    **dict.fromkeys(
        split_words(
            "async_upload huggingface_path_in_repo huggingface_repo_id huggingface_repo_type "
            "huggingface_repo_visibility huggingface_token resume_from_huggingface save_state_to_huggingface"
        ),
        _UPLOAD,
    ),
    **dict.fromkeys(
        split_words(
            "metadata_arch metadata_author metadata_description metadata_license metadata_reso metadata_tags "
            "metadata_title no_metadata"
        ),
        _METADATA,
    ),
    **dict.fromkeys(
        split_words(
            "beta beta2 clamp_quantile diffusers_prefix dim dst_path image_dir input lokr_rank max_new_tokens max_size "
            "model_org model_path model_tuned no_sort output_file output_format path reverse save_to sigma_rel "
            "src_path target"
        ),
        _TOOL,
    ),
    **dict.fromkeys(
        split_words(
            "text_encoder text_encoder1 text_encoder2 text_encoder_clip text_encoder_qwen clip image_encoder byt5"
        ),
        f"{_ENCODER}; give a folder that holds yours as pretrained_model_name_or_path",
    ),
    "ckpt_dir": _ENCODER,
    "i2v_mode": "the first frame always conditions a clip of this flavour",
    "log_tracker_config": "trackers are started with their own defaults",
    "save_last_n_epochs_state": "checkpoints hold both, and checkpoints_total_limit counts them",
    "save_last_n_steps_state": "checkpoints hold both, and checkpoints_total_limit counts them",
    "save_precision": "an adapter is saved in the dtype in which it is trained",
    "show_timesteps": "report.html shows how often each noise level was trained",
    "text_cache_dtype": "embeddings are kept in the dtype in which they are made",
    "text_encoder_dtype": "text encoders run in bfloat16, or as text_encoder_1_precision says",
    "dtype": "text encoders run in bfloat16, or as text_encoder_1_precision says",
    "validate_caption_structure": "captions are trained as they are",
    "wandb_api_key": "set WANDB_API_KEY or log in; a key does not belong into a config",
}
"""Options that are not offered and change nothing that is trained."""

_DINO = "there is no loss on DINOv3 features"
_SELF_FLOW = "there is no Self-Flow; musubi-tuner's own script for it cannot save"
_NABLA = "the attention of this flavour is the one that was published with it"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        split_words(
            "dino_loss_backend dino_loss_every_n_steps dino_loss_feature_mode dino_loss_layer dino_loss_model_type "
            "dino_loss_no_norm dino_loss_resize dino_loss_use_gram dino_loss_weight"
        ),
        _DINO,
    ),
    **dict.fromkeys(
        split_words(
            "mask_ratio network_weights_ema network_weights_proj self_flow self_flow_gamma "
            "self_flow_gamma_warmup_steps self_flow_teacher_coupling_decay self_flow_teacher_coupling_decay_steps "
            "self_flow_teacher_coupling_prob self_flow_teacher_mismatch_ratio student_feature_layer "
            "teacher_feature_layer"
        ),
        _SELF_FLOW,
    ),
    **dict.fromkeys(
        split_words(
            "force_nabla_attention nabla_P nabla_add_sta nabla_method nabla_resize nabla_wH nabla_wT nabla_wW "
            "no_nabla_add_sta"
        ),
        _NABLA,
    ),
    "base_weights": "nothing is merged into a base before training; merge it beforehand",
    "base_weights_multiplier": "nothing is merged into a base before training; merge it beforehand",
    "clip_max_length": "CLIP reads 77 tokens",
    "dim_from_weights": "it fails in musubi-tuner itself; write network_dim",
    "force_v2_1_time_embedding": "Wan 2.2 gets its own time embedding",
    "full_fp16": "weights are not trained in float16, whose range is too small for gradients",
    "noise_clip_std": "it belongs to HiDream-O1, which is not offered",
    "noise_scale_end": "it belongs to HiDream-O1, which is not offered",
    "noise_scale_start": "it belongs to HiDream-O1, which is not offered",
    "num_layers": "the number of blocks is read from the base",
    "one_frame_no_2x": "one-frame FramePack always has the 2x and 4x history",
    "one_frame_no_4x": "one-frame FramePack always has the 2x and 4x history",
    "override_dit": "the settings of the network are read from the base",
    "remove_first_image_from_target": "every layer is trained, the composite image included",
    "scale_weight_norms": "weights of an adapter are never rescaled",
    "use_32bit_attention": "attention is computed in the dtype of the run",
    "lr_scheduler_type": "schedules are functions of the step, so that a resume needs no saved one; use lr_scheduler",
}
"""Options that are not offered and would change what is trained."""

COMPUTED: Mapping[str, tuple[Verdict, str, str]] = {
    "compile": (Verdict.EXACT, "dynamo_backend", "inductor, or the compiler that compile_backend names"),
    "compile_args": (Verdict.EXACT, "dynamo_backend", "its four words are backend, mode, dynamic and fullgraph"),
    "compile_backend": (Verdict.EXACT, "dynamo_backend", "only beside compile"),
    "compile_dynamic": (Verdict.EXACT, "dynamo_dynamic", "auto leaves it out"),
    "config_file": (Verdict.EXACT, "", "its keys are read as the command line's are"),
    "control_image_path": (Verdict.APPROXIMATED, "", "give it to `darkroom generate` as --image"),
    "cuda_allow_tf32": (Verdict.EXACT, "disable_tf32", "the opposite"),
    "dataset_config": (Verdict.EXACT, "data_backend_config", "the file is read as it is"),
    "dit_dtype": (Verdict.APPROXIMATED, "base_model_default_dtype", "bf16 or fp32"),
    "dit_high_noise": (Verdict.APPROXIMATED, "model_flavour", "both experts are trained; it comes from the repository"),
    "dit_in_channels": (Verdict.EXACT, "model_flavour", "32 channels are SkyReels' image-to-video"),
    "dynamo_backend": (Verdict.EXACT, "dynamo_backend", "in lower case"),
    "dynamo_dynamic": (Verdict.EXACT, "dynamo_dynamic", ""),
    "ema_decay": (Verdict.NOT_OFFERED, "", _SELF_FLOW),
    "flash3": (Verdict.EXACT, "attention_mechanism", "flash-attn-3"),
    "flash_attn": (Verdict.EXACT, "attention_mechanism", "flash-attn"),
    "attn_mode": (Verdict.EXACT, "attention_mechanism", "torch, flash, flash3, sageattn or xformers"),
    "fp8": (Verdict.EXACT, "base_model_precision", "fp8-cast, beside fp8_scaled fp8-block"),
    "fp8_base": (Verdict.EXACT, "base_model_precision", "fp8-cast, beside fp8_scaled fp8-block"),
    "fp8_scaled": (Verdict.EXACT, "base_model_precision", "fp8-block"),
    "fp8_llm": (Verdict.EXACT, "text_encoder_1_precision", "fp8-cast"),
    "fp8_t5": (Verdict.EXACT, "text_encoder_1_precision", "fp8-cast; Kontext's T5 is text_encoder_2_precision"),
    "fp8_te": (Verdict.EXACT, "text_encoder_1_precision", "fp8-cast"),
    "fp8_text_encoder": (Verdict.EXACT, "text_encoder_1_precision", "fp8-cast"),
    "fp8_vl": (Verdict.EXACT, "text_encoder_1_precision", "fp8-cast"),
    "full_bf16": (Verdict.APPROXIMATED, "base_model_default_dtype", "weights are trained in bfloat16"),
    "gradient_checkpointing_cpu_offload": (
        Verdict.APPROXIMATED,
        "gradient_checkpointing_backend",
        "unsloth, which keeps the inputs of blocks in host memory",
    ),
    "guidance_scale": (Verdict.APPROXIMATED, "validation_guidance_real", "of sample images; trained is its default"),
    "height": (Verdict.EXACT, "validation_resolution", "width times height"),
    "i": (Verdict.APPROXIMATED, "", "give it to `darkroom generate` as --image"),
    "image_path": (Verdict.APPROXIMATED, "", "give it to `darkroom generate` as --image"),
    "image_size": (Verdict.EXACT, "validation_resolution", "width times height"),
    "latent_window_size": (Verdict.EXACT, "framepack_latent_window_size", "of FramePack"),
    "log_with": (Verdict.EXACT, "report_to", ""),
    "lora_multiplier": (Verdict.EXACT, "", "strengths of the adapters given to `darkroom generate`"),
    "lora_weight": (Verdict.EXACT, "", "given to `darkroom generate` as --adapter"),
    "lr_decay_steps": (Verdict.EXACT, "lr_decay_steps", "a number below 1 is lr_decay_ratio"),
    "lr_warmup_steps": (Verdict.EXACT, "lr_warmup_steps", "a number below 1 is lr_warmup_ratio"),
    "network_alpha": (Verdict.EXACT, "lora_alpha", "0 means the rank"),
    "network_args": (Verdict.NOT_OFFERED, "", "each argument has a line of its own in the report"),
    "network_module": (Verdict.EXACT, "model_type", "lora, on the layers that the module adapts there"),
    "num_images": (Verdict.EXACT, "num_validation_images", ""),
    "optimizer_args": (Verdict.EXACT, "optimizer_config", "name=value, values as Python writes them"),
    "optimizer_type": (Verdict.EXACT, "optimizer", "by the table of optimizers"),
    "output": (Verdict.EXACT, "", "the folder that `darkroom generate` writes into"),
    "ref_images": (Verdict.APPROXIMATED, "", "give them to `darkroom generate` as --image"),
    "resume": (Verdict.NOT_OFFERED, "", "a state folder of musubi-tuner has no data order and no step to go on from"),
    "sage_attn": (Verdict.APPROXIMATED, "attention_mechanism", "musubi-tuner refuses it in training"),
    "sample_prompts": (Verdict.EXACT, "user_prompt_library", "the file is read as it is"),
    "sample_solver": (Verdict.APPROXIMATED, "validation_noise_scheduler", "vanilla is euler"),
    "save_last_n_steps": (Verdict.APPROXIMATED, "checkpoints_total_limit", "as many as lie in that many steps"),
    "save_path": (Verdict.EXACT, "", "the folder that `darkroom generate` writes into"),
    "t5": (Verdict.APPROXIMATED, "pretrained_t5_model_name_or_path", "a folder of the encoder, not its single file"),
    "trainable_modules": (Verdict.NOT_OFFERED, "", "full training trains the whole denoiser"),
    "training_comment": (Verdict.APPROXIMATED, "modelspec_comment", "written as modelspec.comment"),
    "vae_dtype": (Verdict.EXACT, "vae_dtype", "fp32, fp16 or bf16"),
    "video_seconds": (Verdict.APPROXIMATED, "validation_num_video_frames", "30 frames a second"),
    "video_size": (Verdict.EXACT, "validation_resolution", "width times height"),
    "width": (Verdict.EXACT, "validation_resolution", "width times height"),
    "xformers": (Verdict.EXACT, "attention_mechanism", "xformers"),
}
"""Options whose value decides, with the verdict of a usual value, the option that they set, and how."""


def _kind(name: str) -> str:
    for kind, names in (("switch", SWITCHES), ("integer", INTEGERS), ("number", NUMBERS), ("list", LISTS)):
        if name in names:
            return kind
    return "text"


def _build() -> dict[str, ForeignOption]:
    rows: dict[str, ForeignOption] = {}

    def add(name: str, verdict: Verdict, to: str = "", remark: str = "", trains: bool = False) -> None:
        if name in rows:
            raise ValueError(f"musubi-tuner's {name} stands twice")
        rows[name] = ForeignOption(name, _kind(name), verdict, to, remark, trains)

    for name in SAME:
        add(name, Verdict.EXACT, name)
    for name, to in RENAMED.items():
        add(name, Verdict.EXACT, to)
    for name, (to, remark) in NEARLY.items():
        add(name, Verdict.APPROXIMATED, to, remark)
    for name, remark in WITHOUT_EFFECT.items():
        add(name, Verdict.EXACT, remark=remark)
    for name, remark in HARMLESS.items():
        add(name, Verdict.NOT_OFFERED, remark=remark)
    for name, remark in REFUSED.items():
        add(name, Verdict.NOT_OFFERED, remark=remark, trains=True)
    for name, (verdict, to, remark) in COMPUTED.items():
        add(name, verdict, to, remark, trains=verdict is Verdict.NOT_OFFERED)
    return dict(sorted(rows.items()))


OPTIONS: Mapping[str, ForeignOption] = _build()
"""All of them by name, dashes written as underscores."""

ALIASES: Mapping[str, str] = {"image": "i"}
"""Second names of options."""
