"""Names of the predecessors, as data: what `config.env` calls an option, and which known keys are not options here."""

from __future__ import annotations

import re
from collections.abc import Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENV_FILE_NAMES: Mapping[str, str] = {
    "TRAINING_NUM_PROCESSES": "num_processes",
    "TRAINING_DYNAMO_BACKEND": "dynamo_backend",
    "TRAINER_DYNAMO_BACKEND": "dynamo_backend",
    "RESUME_CHECKPOINT": "resume_from_checkpoint",
    "DATALOADER_CONFIG": "data_backend_config",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "TRAINING_SEED": "seed",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "LR_SCHEDULE": "lr_scheduler",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "PUSH_CHECKPOINTS": "push_checkpoints_to_hub",
    "HUB_MODEL_NAME": "hub_model_id",
    "MINIMUM_RESOLUTION": "minimum_image_size",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
}
"""Names in a `config.env` that differ from the upper-case option name."""

PROCESS_NAMES: Mapping[str, str] = {
    "TRAINING_NUM_PROCESSES": "num_processes",
    "TRAINING_DYNAMO_BACKEND": "dynamo_backend",
}
"""The few names without a prefix that are read from the process environment too."""

ENV_FILE_SWITCHES: Mapping[str, tuple[str, str, str | None]] = {
    "USE_BITFIT": ("layer_freeze_strategy", "bitfit", None),
    "USE_XFORMERS": ("attention_mechanism", "xformers", None),
    "ALLOW_TF32": ("disable_tf32", "false", "true"),
}
"""Switches in a `config.env`: option, its value when the switch is on, its value when off (None: leave it)."""

LAUNCHER_VARIABLES = _words(
    "ACCELERATE_EXTRA_ARGS ACCELERATE_CONFIG_PATH TRAINING_NUM_MACHINES VENV_PATH VALIDATION_INPUT"
)
"""Variables that only the predecessor's start script reads."""

PROTECTED_VARIABLES = re.compile(
    r"LD_.*|DYLD_.*|PATH|PYTHON.*|HOME|SHELL|IFS|ENV|BASH_ENV|USER|TMPDIR|TEMP|TMP|GIT_.*|SSH_.*|PIP_.*|VIRTUAL_ENV|"
    r"CC|CXX|.*_PROXY|.*_ENDPOINT|.*_ENDPOINT_.*|.*_BASE_URL|.*_CA_BUNDLE|SSL_.*|CUDA_HOME|CUDA_PATH"
)
"""What a `config.env` never changes: where programs, libraries and downloads come from."""

FOREIGN_VARIABLES = re.compile(
    r"HF_.*|HUGGINGFACE_.*|WANDB_.*|COMET_.*|MLFLOW_.*|TRANSFORMERS_.*|DIFFUSERS_.*|TOKENIZERS_.*|ACCELERATE_.*|AWS_.*|"
    r"CUDA_.*|NVIDIA_.*|NCCL_.*|GLOO_.*|TORCH_.*|PYTORCH_.*|TORCHINDUCTOR_.*|TRITON_.*|OMP_.*|MKL_.*|KMP_.*|OPENBLAS_.*|"
    r"NUMEXPR_.*|BITSANDBYTES_.*|XFORMERS_.*|SDNQ_.*|TQDM_.*|BNB_.*"
)
"""Variables of the libraries, and of Darkroom and SimpleTuner, that a `config.env` may set for its run."""

SETTINGS_FREE_VARIABLES = _words(
    """
    ENV ENVIRONMENT CONFIG_BACKEND CONFIG_TYPE CONFIG_PATH CONFIG_DIR STATE_DIR CACHE_DIR CRASH_LOG HOME HOST PORT
    LOG_LEVEL LOG_FILE LOG_FORMAT JOB_ID DISABLE_COLORS DISABLE_TQDM MAXIMUM_IMAGE_SIZE_OVERRIDE SSL_NO_VERIFY CA_BUNDLE
    """
)
"""`DARKROOM_<NAME>` variables that are no options but read by other parts."""

COMPILE, COMPILE_BACKEND = "compile", "compile_backend"
"""musubi-tuner's switch for torch.compile, and the compiler that it then takes: `dynamo_backend` here says both."""

DATASET_KEYS = _words(
    """
    id type dataset_type disabled default text_embeds image_embeds instance_data_dir instance_data_root crop crop_style
    crop_aspect crop_aspect_buckets repeats probability minimum_aspect_ratio maximum_aspect_ratio max_num_samples
    scan_for_errors vae_cache_clear_each_epoch hash_filenames metadata_backend parquet is_regularisation_data
    is_regularization_data conditioning_type conditioning_data source_dataset_id disable_multiline_split
    caption_filter_list cache_file_suffix
    """
)
"""Keys that belong into the dataset file; SimpleTuner drops them from a config."""

FORM_KEYS = _words(
    """
    configs_dir datasets_dir active_config active_environment theme event_polling_interval event_stream_enabled
    auto_preserve_defaults allow_dataset_paths_outside_dir accelerate_overrides sync_onboarding_defaults
    """
)
"""Keys that SimpleTuner's web form keeps for itself. Names with two leading underscores are treated alike."""

MUSUBI_SWITCHES: Mapping[str, tuple[str, str, str | None]] = {
    "fp8_scaled": ("base_model_precision", "fp8-block", None),
    "fp8_base": ("base_model_precision", "fp8-cast", None),  # beside fp8_scaled it only says so again
    "fp8_vl": ("text_encoder_1_precision", "fp8-cast", None),
    "cuda_allow_tf32": ("disable_tf32", "false", "true"),
}
"""musubi-tuner's switches that are values of options here, as in `ENV_FILE_SWITCHES`; the first one counts."""

MUSUBI_WITHOUT_EFFECT: Mapping[str, str] = {
    "split_attn": "samples of a batch are told apart by masks, which gives the same answers",
    "cuda_cudnn_benchmark": "kernels chosen by their time differ from run to run, and so would the weights",
    "fp8_fast": "musubi-tuner itself uses it for images only, not for training",
}
"""musubi-tuner's switches that are met in another way here, or not wanted, with the reason."""

MUSUBI_KEYS = _words(
    """
    append_original_name async_upload attn_mode automatic_prompt_lang_for_layered base_weights base_weights_multiplier
    batch_size bell beta beta2 block_swap_h2d_only block_swap_optimizer_patch_params
    bulk_decode byt5 cfg_apply_ratio cfg_skip_mode ckpt_dir clamp_quantile clip clip_max_length compile_args
    console_back console_num_images console_width control_image_mask_path control_image_path control_path cpu_noise
    custom_system_prompt ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout
    debug_mode device diffusers_prefix dim dim_from_weights dino_loss_backend dino_loss_every_n_steps
    dino_loss_feature_mode dino_loss_layer dino_loss_model_type dino_loss_no_norm dino_loss_resize dino_loss_use_gram
    dino_loss_weight disable_cudnn_backend disable_numpy_memmap discrete_flow_shift dit dit_dtype dit_high_noise
    dit_in_channels dst_path dtype edit edit_plus editing_scheduler embedded_cfg_scale end_image_path exclude_patterns
    exclude_single_blocks f1 flash3 flash_attn flow_shift force_nabla_attention force_v2_1_time_embedding fp8
    fp8_llm fp8_t5 fp8_te fp8_text_encoder fps frames from_file full_bf16 full_fp16
    fused_backward_pass gradient_checkpointing_cpu_offload guidance guidance_rescale guidance_scale
    guidance_scale_high_noise height huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
    huggingface_repo_visibility huggingface_token i i2v i2v_mode ideogram4_timestep_mu ideogram4_timestep_std image_dir
    image_encoder image_last image_path image_size img_in_txt_in_offloading include_patterns infer_steps initial_sigma
    input interactive keep_cache keep_original_aspect latent_paddings latent_path latent_window_size layout_bboxes
    lazy_loading log_config log_loss_stats log_prefix log_tracker_config log_tracker_name log_with logit_mean logit_std
    lokr_rank lora_multiplier lora_multiplier_high_noise lora_weight lora_weight_high_noise lr_decay_steps
    lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale
    lr_scheduler_type lycoris magcache_calibration mask_path mask_ratio max_data_loader_n_workers max_new_tokens
    max_size max_timestep
    max_train_epochs mem_eff_safe_open mem_eff_save metadata_arch metadata_author metadata_description metadata_license
    metadata_reso metadata_tags metadata_title min_timestep mode_scale model_org model_path model_tuned model_version mu
    nabla_P nabla_add_sta nabla_method nabla_resize nabla_wH nabla_wT nabla_wW negative_prompt network_alpha
    network_args network_dim network_dropout network_module network_weights network_weights_ema network_weights_proj
    no_metadata no_nabla_add_sta no_resize_control no_sort no_vae_load noise_clip_std noise_scale_end noise_scale_start
    num_images num_layers num_timestep_buckets num_workers offload_dit_during_sampling offload_inactive_dit one_frame
    one_frame_auto_resize one_frame_inference one_frame_no_2x one_frame_no_4x optimizer_args optimizer_type output
    output_file output_format output_layers output_name output_type override_dit path persistent_data_loader_workers
    preserve_distribution_shape prompt quantized_qwen qwen_max_length rcm_debug_save rcm_dilate_size rcm_kernel_size
    rcm_relative_threshold rcm_threshold ref_images remove_first_image_from_target resize_control_to_image_size
    resize_control_to_official_size resume resume_from_huggingface reverse rope_scaling_factor
    rope_scaling_timestep_threshold sage_attn sample_at_first sample_every_n_epochs sample_every_n_steps sample_prompts
    sample_solver sampler_preset save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state
    save_last_n_steps save_last_n_steps_state save_merged_model save_path save_precision save_state
    save_state_on_train_end save_state_to_huggingface save_to scale_weight_norms scheduler_scale sdpa self_flow
    self_flow_gamma self_flow_gamma_warmup_steps self_flow_teacher_coupling_decay self_flow_teacher_coupling_decay_steps
    self_flow_teacher_coupling_prob self_flow_teacher_mismatch_ratio show_timesteps sigma_rel sigmoid_scale
    skip_existing skip_t2i_visual_dummy slg_end slg_layers slg_mode slg_scale slg_start split_uncond src_path
    steps strength student_feature_layer t5 target task teacher_feature_layer text_cache_dtype text_encoder
    text_encoder1 text_encoder2 text_encoder_clip text_encoder_cpu text_encoder_dtype text_encoder_qwen
    timestep_sampling trainable_modules training_comment trim_tail_frames turbo_dit turbo_dit_cache
    unconditional_dit use_32bit_attention use_unconditional_dit_for_lora_sampling vae
    vae_cache_cpu vae_chunk_size vae_sample_size vae_spatial_tile_sample_min_size vae_tiling validate_caption_structure
    video_length video_path video_seconds video_sections video_size wandb_api_key wandb_run_name warn_on_caption_issues
    weighting_scheme width xformers y1 y2
    """
)
"""Options of musubi-tuner that Darkroom does not read under that name."""
