"""SimpleTuner: how its configs are recognized, its other defaults, and its options that are not here."""

from __future__ import annotations

from darkroom.options import compat, later
from darkroom.options.origins.base import ConfigTraits, ForeignOptions, Origin, first_of, words

_ONLY_WRITTEN_THERE = words(
    """
    hub_model_id push_to_hub push_checkpoints_to_hub push_to_hub_background lora_type lycoris_config disable_benchmark
    model_card_private model_card_safe_for_work model_card_note validation_prompt_library
    checkpointing_steps validation_steps save_total_limit
    """
)
"""Options that SimpleTuner's own forms write into every config, in their spellings there."""


def _all(text: str, value: object = None) -> dict[str, object]:
    """Names that do nothing at the same value."""
    return dict.fromkeys(text.split(), value)


FOREIGN: tuple[ForeignOptions, ...] = (
    # -- several devices
    ForeignOptions(
        {"num_machines": 1, "accelerate_config": None, "accelerate_extra_args": None, "context_parallel_size": 1},
        later.DISTRIBUTED,
        "Train on one device.",
    ),
    ForeignOptions(
        {"main_process_ip": "127.0.0.1", "main_process_port": 29500, "machine_rank": 0, "same_network": True},
        later.DISTRIBUTED,
        switch="num_machines",
    ),
    ForeignOptions({"context_parallel_comm_strategy": "allgather"}, later.DISTRIBUTED, switch="context_parallel_size"),
    ForeignOptions(
        {"fsdp_enable": False, "deepspeed_config": None},
        later.DISTRIBUTED,
        "For a model that is too large, quantize it (base_model_precision) or swap blocks (musubi_blocks_to_swap).",
    ),
    ForeignOptions(
        _all(
            """
            fsdp_version fsdp_reshard_after_forward fsdp_state_dict_type fsdp_cpu_ram_efficient_loading
            fsdp_auto_wrap_policy fsdp_limit_all_gathers fsdp_cpu_offload fsdp_activation_checkpointing
            fsdp_transformer_layer_cls_to_wrap
            """
        ),
        later.DISTRIBUTED,
        switch="fsdp_enable",
    ),
    ForeignOptions(
        _all("validation_multigpu find_unused_parameters ddp_find_unused_parameters ddp_bucket_mb ddp_static_graph"),
        "it acts between several devices, and this run has one",
        ignored=True,
    ),
    # -- methods
    ForeignOptions(
        {
            "mixflow_enabled": False,
            "irepa_enabled": False,
            "urepa_enabled": False,
            "internal_guidance_enabled": False,
            "nextlat_enabled": False,
            "diffusion_blocks_config": None,
            "xm_enabled": False,
            "twinflow_enabled": False,
            "flow_custom_timesteps": None,
            "flow_timesteps_mode": None,
            "ema_warmup_steps": 0,
        },
        later.METHODS,
        "Train without it, or wait for that release.",
    ),
    ForeignOptions({"mixflow_gamma": None}, later.METHODS, switch="mixflow_enabled"),
    ForeignOptions(_all("flow_cubic_schedule_weights"), later.METHODS, switch="flow_timesteps_mode"),
    ForeignOptions(_all("irepa_spatial_norm_alpha irepa_projector_kernel_size"), later.METHODS, switch="irepa_enabled"),
    ForeignOptions(
        _all(
            """
            urepa_manifold_weight urepa_lambda urepa_lambda_end urepa_model urepa_encoder urepa_encoder_image_size
            urepa_use_tae urepa_scheduler urepa_warmup_steps urepa_decay_steps urepa_power urepa_cutoff_step
            urepa_similarity_threshold urepa_similarity_ema_decay urepa_threshold_mode
            """
        ),
        later.METHODS,
        switch="urepa_enabled",
    ),
    ForeignOptions(
        _all(
            """
            crepa_encoder crepa_feature_source crepa_use_tae crepa_drop_vae_encoder crepa_self_flow
            crepa_self_flow_mask_ratio
            """
        ),
        later.REGULARISERS,
        switch="crepa_enabled",
    ),
    ForeignOptions(
        _all("internal_guidance_loss_weight internal_guidance_block_index validation_internal_guidance_scale"),
        later.METHODS,
        switch="internal_guidance_enabled",
    ),
    ForeignOptions(
        _all("nextlat_block_index nextlat_weight nextlat_state_loss nextlat_kl_weight"),
        later.METHODS,
        switch="nextlat_enabled",
    ),
    ForeignOptions(
        _all("xm_candidate_count xm_training_target xm_selection_scope xm_block_size"),
        later.METHODS,
        switch="xm_enabled",
    ),
    ForeignOptions(
        _all(
            """
            twinflow_allow_diff2flow twinflow_target_step_count twinflow_adversarial_enabled
            twinflow_allow_no_ema_teacher
            """
        ),
        later.METHODS,
        switch="twinflow_enabled",
    ),
    ForeignOptions(
        {"caption_shuffle": False},
        "Captions are not shuffled in a config; a dataset says so.",
        "Set caption_shuffle in the dataset file.",
    ),
    # -- what changes memory, time or files, and nothing that is trained
    ForeignOptions(
        _all(
            """
            gradient_checkpointing_segment_stride gradient_checkpointing_offload_attention
            gradient_checkpointing_offload_prefetch group_offload_text_encoder group_offload_vae
            vae_enable_temporal_roll text_encoder_batch_size text_cache_ondemand text_cache_disable
            offload_during_validation vae_cache_chunk_size num_workers dataloader_num_workers
            """
        ),
        "it changes memory and time in SimpleTuner, and not what is trained",
        ignored=True,
    ),
    ForeignOptions(
        _all(
            """
            sdnq_compile_mode sdnq_group_size sdnq_dequantize_fp32 sdnq_weights_dtype sdnq_quantized_matmul_dtype
            sdnq_use_quantized_matmul sdnq_use_static_quantization sdnq_use_stochastic_rounding sdnq_use_svd
            sdnq_svd_rank sdnq_svd_steps sdnq_use_hadamard sdnq_hadamard_group_size sdnq_modules_to_not_convert
            sdnq_modules_to_not_use_matmul sdnq_modules_dtype_dict sdnq_modules_quant_config
            """
        ),
        "weights are rounded with SDNQ's own defaults for the precision",
        ignored=True,
    ),
    ForeignOptions(
        _all("validation_image_format validation_image_quality validation_prompt_encoding validation_type"),
        "validation images are PNG files and clips are MP4 files, each with its recipe",
        ignored=True,
    ),
    ForeignOptions(
        _all("delete_invalid_checkpoints"),
        "a checkpoint that is not whole is never resumed from, and it is not deleted",
        ignored=True,
    ),
    ForeignOptions(
        _all("trust_remote_code"),
        "code of a repository is never run; what can be loaded without it is loaded",
        ignored=True,
    ),
    ForeignOptions(
        _all("strict_epoch_limit"),
        "the run ends where max_train_steps or num_train_epochs says",
        ignored=True,
    ),
    ForeignOptions(
        {"enable_nsfw_check": False},
        "Darkroom does not look at what images show.",
        "Leave such images out of the dataset.",
    ),
    ForeignOptions(
        _all(
            """
            nsfw_check_models nsfw_check_min_votes nsfw_check_backend_types nsfw_check_sample_types delete_nsfw_images
            nsfw_check_video_frame_count nsfw_check_video_frame_selection nsfw_check_video_min_flagged_frames
            """
        ),
        "Darkroom does not look at what images show.",
        switch="enable_nsfw_check",
    ),
    ForeignOptions(
        _all("text_embed_full_cache"),
        "the text encoder's outputs are cached as the network takes them",
        ignored=True,
    ),
    ForeignOptions(
        {"max_grounding_entities": 0, "pretrained_grounding_model_name_or_path": None},
        "Grounding by boxes arrives in a later release.",
        "Take it out.",
    ),
    # -- single families
    ForeignOptions(
        _all(
            """
            ideogram_auto_json ideogram_prompt_enhancer_head_id ideogram_prompt_upsample ideogram_validation
            ideogram_fp8_base_upcast ideogram_load_unconditional_transformer ideogram_uncond_ramtorch
            """
        ),
        "captions and prompts are used as they are; write them as Ideogram's JSON for the best result",
        families=("ideogram4",),
        ignored=True,
    ),
    ForeignOptions(
        {"ideogram_schedule_mu": 0.0, "ideogram_schedule_std": 1.5},
        "The distribution of noise levels is the family's own: logit-normal, by the size of the image.",
        "Set flow_sigmoid_scale for another spread.",
        families=("ideogram4",),
    ),
    ForeignOptions(
        _all(
            """
            stable_cascade_decoder_dtype stable_cascade_use_decoder_for_validation
            stable_cascade_decoder_model_name_or_path stable_cascade_decoder_subfolder
            stable_cascade_validation_prior_num_inference_steps stable_cascade_validation_prior_guidance_scale
            stable_cascade_validation_decoder_guidance_scale
            """
        ),
        "validation goes through the pipeline of diffusers with its own settings of the decoder",
        families=("stable_cascade",),
        ignored=True,
    ),
    ForeignOptions(
        _all("sanavideo_motion_score sana_motion_score", 30),
        "captions carry the motion score of the pipeline, 30",
        "Write another score into the captions.",
        families=("sanavideo",),
    ),
    ForeignOptions(
        {"wan_force_2_1_time_embedding": False},
        "The time embedding is the one of the published weights.",
        "Take it out.",
        families=("wan",),
    ),
    ForeignOptions(
        {
            "ltx2_intrinsic_conditioning": None,
            "ltx2_first_frame_conditioning_p": 0.0,
            "ltx2_first_frame_conditioning_probability": 0.0,
            "ltx2_prefix_conditioning_probability": 0.0,
            "ltx2_suffix_conditioning_probability": 0.0,
            "ltx2_mask_conditioning_probability": 0.0,
            "ltx2_reference_spatial_scale_factor": None,
            "ltx2_reference_temporal_scale_factor": 1,
        },
        later.METHODS,
        "Take it out to train from text alone.",
        families=("ltxvideo2",),
    ),
    ForeignOptions(
        _all(
            """
            ltx2_validation_pipeline_mode ltx2_validation_spatial_upsampler_model
            ltx2_validation_spatial_upsampler_filename validation_ltx2_video_conditioning
            deepfloyd_validation_pipeline_mode deepfloyd_validation_stage1_model deepfloyd_validation_stage2_model
            deepfloyd_validation_stage3_mode deepfloyd_validation_stage3_model
            deepfloyd_validation_stage1_num_inference_steps deepfloyd_validation_stage2_num_inference_steps
            deepfloyd_validation_stage1_guidance deepfloyd_validation_stage2_guidance
            deepfloyd_validation_stage3_guidance deepfloyd_validation_stage3_noise_level sdxl_validation_pipeline_mode
            sdxl_validation_stage1_model sdxl_validation_stage2_model pixart_validation_pipeline_mode
            pixart_validation_stage1_model pixart_validation_stage2_model
            """
        ),
        "validation images come from the model that is trained alone",
        families=("deepfloyd", "ltxvideo2", "pixart_sigma", "sdxl"),
        ignored=True,
    ),
    ForeignOptions(
        {"krea2_reference_latents": False},
        "Krea 2 is trained from text alone.",
        "Take it out.",
        families=("krea2",),
    ),
    ForeignOptions(
        {"ltx2_prefix_conditioning_frames": 1},
        later.METHODS,
        switch="ltx2_prefix_conditioning_probability",
    ),
    ForeignOptions(
        {"ltx2_suffix_conditioning_frames": 1},
        later.METHODS,
        switch="ltx2_suffix_conditioning_probability",
    ),
    ForeignOptions(
        {"disable_assistant_lora": True},
        "Darkroom attaches no adapter that the config does not name",
        "Name one in assistant_lora_path.",
        families=("z_image", "flux"),
        ignored=True,
    ),
    ForeignOptions(
        _all(
            """
            lyrics_embedder_train lyrics_embedder_optimizer lyrics_embedder_lr lyrics_embedder_lr_scheduler
            validation_lyrics validation_audio_duration acestep_lora_target cosmos3_generator_component
            cosmos3_reasoner_component minimax_h3_reference_mode minimax_h3_target_mode minimax_h3_sparse_attention
            minimax_h3_sparse_block_shape minimax_h3_sparse_video_kv_fraction minimax_h3_sparse_share_heads
            minimax_h3_sparse_start_layer minimax_music_train_component minimax_music_lm_max_frames
            """
        ),
        "no family that Darkroom trains has such a part",
        ignored=True,
    ),
    # -- the program itself
    ForeignOptions(
        _all("merge_environment_config webui_config dataloader_config_path job_id accelerate_visible_devices"),
        "only SimpleTuner's own server reads it",
        ignored=True,
    ),
)

FAMILIES = {
    "ideogram": "ideogram4",
    "pixart": "pixart_sigma",
    "sd15": "sd1x",
    "sd14": "sd1x",
    "sd20": "sd2x",
    "sd21": "sd2x",
    "cosmos": "cosmos2image",
    "cascade": "stable_cascade",
    "deepfloyd_if": "deepfloyd",
    "ltxv": "ltxvideo",
    "ltx_video": "ltxvideo",
    "ltx_video_2": "ltxvideo2",
    "hunyuan_video": "hunyuanvideo",
    "qwen": "qwen_image",
    "lumina": "lumina2",
}
"""Names by which SimpleTuner, or its documentation, calls a family."""

FLAVOURS = {
    "wan/flf2v-14b-2.1": "flf2v-14b-2.1-720p",
    "z_image/turbo-ostris-v2": "turbo",
}
"""Family and flavour of SimpleTuner to the flavour here."""

ATTENTION = dict.fromkeys(
    (
        "metal-flash-attention", "metal-flash-attention-int8", "metal-flash-attention-int4", "flash-attn-hub",
        "flash-attn-2-hub", "flash-attn-3-hub", "flash-attn-varlen", "flash-attn-varlen-hub", "flash-attn-3-varlen-hub",
        "sageattention-hub", "native",
    ),
    "diffusers",
)  # fmt: skip
"""Attention kernels that SimpleTuner fetches from the hub or has for Apple's GPUs: PyTorch's own is nearest, and takes
the fastest kernel that the device has."""

PRECISIONS = {
    "fp8wo-torchao": "fp8-torchao",
    "fp8-native": "fp8-torchao",
    "fp8-transformerengine": "fp8-torchao",
    "fp8-sdnq": "fp8-torchao",
    "int8dq-torchao": "int8-torchao",
    "int8dq-int4-torchao": "int4-torchao",
    "fp8-int4-torchao": "int4-torchao",
}
"""Precisions that only SimpleTuner has, and the one here that keeps weights in as many bits."""


def find_evidence(traits: ConfigTraits) -> str:
    """What shows that a config is SimpleTuner's: its way of writing keys, a key or a file that only it has."""
    if dashed := next((key for key in sorted(traits.keys) if key.startswith("--")), ""):
        return f"its keys are written as {dashed}"
    plain = {key.lower() if key.isupper() else key for key in traits.keys}
    if known := first_of(plain, (name for row in FOREIGN for name in row.keys)):
        return f"it has {known}, which only SimpleTuner has"
    if variable := first_of(traits.keys, compat.ENV_FILE_NAMES):
        return f"it has the variable {variable}"
    datasets = str(traits.values.get("data_backend_config", "")).replace("\\", "/")
    if "multidatabackend" in datasets or datasets.startswith("config/examples/"):
        return f"its dataset file is {datasets}"
    is_json = traits.path is not None and traits.path.suffix == ".json"
    if is_json and (known := first_of(plain, _ONLY_WRITTEN_THERE)):
        return f"it is a JSON file with {known}, as SimpleTuner writes them"
    return ""


_FLOW_SHIFT_AS_HERE = (
    "cosmos2image", "deepfloyd", "framepack", "framepack_one_frame", "hunyuan_image", "hunyuanvideo",
    "hunyuanvideo_original", "ideogram4", "kolors", "mochi", "omnigen", "sana", "sanavideo", "sd1x", "sd2x", "sdxl",
    "stable_cascade",
)  # fmt: skip
"""Families that match no flow, ignore the shift in SimpleTuner, take it from the flavour, or are not there."""

_NOT_THERE = ("framepack", "framepack_one_frame", "hunyuan_image", "hunyuanvideo_original", "mochi")
_ALIGNED_TO_16 = (
    "cosmos2image", "ernie", "flux2", "hunyuanvideo", "ideogram4", "kandinsky5_image", "kandinsky5_video", "krea2",
    "longcat_image", "sanavideo",
)  # fmt: skip
_ALIGNED_TO_32 = ("deepfloyd", "qwen_image", "stable_cascade", "wan")

_CAPTION_LENGTHS = {"auraflow": 120, "sd3": 154, "kandinsky5_image": 256, "kandinsky5_video": 256, "kolors": 77}


def _merge(*tables: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Tables of defaults by family as one."""
    merged: dict[str, dict[str, object]] = {}
    for table in tables:
        for family, defaults in table.items():
            merged[family] = {**merged.get(family, {}), **defaults}
    return merged


FAMILY_DEFAULTS = _merge(
    {family: {"flow_schedule_shift": None} for family in _FLOW_SHIFT_AS_HERE},
    {family: {"aspect_bucket_alignment": None} for family in _NOT_THERE},
    {family: {"aspect_bucket_alignment": 16} for family in _ALIGNED_TO_16},
    {family: {"aspect_bucket_alignment": 32} for family in _ALIGNED_TO_32},
    {family: {"tokenizer_max_length": length} for family, length in _CAPTION_LENGTHS.items()},
    {
        "auraflow/pony": {"tokenizer_max_length": 768},
        "longcat_video": {"flow_schedule_shift": 12.0},
        "pixart_sigma": {"max_grad_norm": 0.01},
        "sana": {"vae_dtype": "fp32"},
    },
)
"""What differs in single families; None takes the default of all families away again."""

ORIGIN = Origin(
    name="simpletuner",
    title="SimpleTuner",
    find_evidence=find_evidence,
    defaults={
        "learning_rate": 4e-7,
        "lr_end": 4e-7,
        "train_batch_size": 4,
        "lora_dropout": 0.1,
        "vae_dtype": "bf16",
        "vae_batch_size": 4,
        "aspect_bucket_alignment": 64,
        "max_grad_norm": 2.0,
        "adam_weight_decay": 0.01,
        "caption_dropout_probability": 0.1,
        "flow_schedule_shift": 3.0,
        "ema_device": "cpu",
        "validation_guidance": 7.5,
        "validation_num_inference_steps": 30,
        "validation_step_interval": 100,
        "validation_resolution": "256",
    },
    family_defaults=FAMILY_DEFAULTS,
    implied={"compat_lr_schedules": True},
    foreign=FOREIGN,
    values={
        "model_family": FAMILIES,
        "model_flavour": FLAVOURS,
        "attention_mechanism": ATTENTION,
        "base_model_precision": PRECISIONS,
        **{f"text_encoder_{number}_precision": PRECISIONS for number in range(1, 5)},
    },
)
