"""Keys of a dataset entry that need a word of their own: other names, fallbacks, and those that are refused."""

from __future__ import annotations

LATER = "arrives in a later release"
SOUND = "sound is taken from the clips of video datasets, and as long as its clip"

SOUND_WITHOUT_EFFECT = (
    "bucket_strategy",
    "duration_interval",
    "duration_interval_seconds",
    "bucket_interval",
    "truncation_mode",
    "channels",
    "sample_rate",
    "cache_dir",
    "source_from_video",
    "lyrics_filename_format",
    "lyrics_extension",
    "lyrics_suffix",
    "target_resolution",
)
SOUND_REFUSED = ("max_duration_seconds", "min_duration_seconds", "audio_only")
AUDIO_KEYS = ("auto_split", "allow_zero_audio", *SOUND_WITHOUT_EFFECT, *SOUND_REFUSED)
"""Keys of the block `audio`, which may also stand in the entry behind `audio_`."""

IDLE_TYPES = {
    "caption": "a dataset of captions without images serves only distillation, and this run distills nothing",
    "distillation_cache": "it serves only distillation, and this run distills nothing",
}
"""Types of entries that do nothing in a run without a distillation method."""

REFUSED_TYPES = {
    "audio": SOUND,
    "caption": f"a dataset of captions without images serves only distillation, which {LATER}",
    "distillation_cache": f"the cache of distillation artefacts {LATER}",
    "grounding": f"grounding by boxes {LATER}",
}
REFUSED_STORAGE = {
    "memory": "a cache in memory needs mount rights and is gone at exit; an operating system's own RAM disk does the "
    "same with type local",
    "webshart": "webshart shards need a package of that name that Darkroom does not know how to read",
}
REFUSED_KEYS = {
    "s2v_datasets": SOUND,
    **dict.fromkeys(("grounding", "bbox_column"), REFUSED_TYPES["grounding"]),
    "delete_nsfw_images": f"the content classifier {LATER}",
}
"""Keys that are known and refused, with the reason, unless they ask for nothing (null, false, empty)."""

WITHOUT_EFFECT_UNLESS = {
    **dict.fromkeys(("source", "metadata", "hf_token", "subfolder", "webshart"), "webshart"),
    **dict.fromkeys(("memory_filesystem_path", "memory_filesystem_size", "memory_filesystem_sudo"), "memory"),
}
"""Keys that SimpleTuner reads on entries of one type of storage only."""

VIDEO_ALIASES = {"frame_rate": "fps", "framerate": "fps"}
VIDEO_OFF = ("num_frames", "min_frames", "max_frames", "frame_interval", "fps", "source_fps")
"""Keys of the block `video` that 0 leaves out."""

ALIASES = {
    "instance_data_root": "instance_data_dir",
    "text_embed_cache": "text_embeds",
    "disable": "disabled",
    "is_regularization_data": "is_regularisation_data",
    "disable_vae_cache": "vae_cache_disable",
}
CACHED_WITH_LATENTS = "these features are kept beside the latents"
WITHOUT_EFFECT = {
    "hash_filenames": "cache entries are always named by their content",
    "shorten_filenames": "cache entries are always named by their content",
    "ignore_epochs": "it is deprecated; use repeats",
    "read_batch_size": "files are read one by one, ahead of the encoder",
    "metadata_update_interval": "the option of that name holds for all datasets",
    "vae_cache_scan_behaviour": "a cache entry is named by what made it, so it cannot disagree with its bucket",
    "config_version": "Darkroom compares the settings themselves",
    "conditioning_image_embed_batch_size": "these features are made together with the latents, vae_batch_size at once",
    "cache_dir_conditioning_image_embeds": CACHED_WITH_LATENTS,
    "auto_load": "rows are read when they are needed",
    "num_proc": "rows are filtered by their columns, without further processes",
    "distillation_type": "it serves only distillation",
    "caption_file_extensions": "it belongs to a dataset of captions without images",
    "shuffle": "the order of samples is drawn from the seed",
    "lyrics_column": "no family here reads lyrics",
    "audio_column": SOUND,
    "audio_caption_fields": "it belongs to a dataset of audio",
    "description_column": "it is not used for captions; name it as caption_column",
}

GLOBALS: dict[str, str] = {
    name: name
    for name in (
        "resolution",
        "resolution_type",
        "minimum_image_size",
        "maximum_image_size",
        "target_downsample_size",
        "max_upscale_threshold",
        "delete_unwanted_images",
        "delete_problematic_images",
        "color_profiles",
        "caption_strategy",
        "instance_prompt",
        "prepend_instance_prompt",
        "only_instance_prompt",
        "train_batch_size",
        "preserve_data_backend_cache",
        "skip_file_discovery",
        "vae_cache_ondemand",
        "vae_cache_disable",
        "write_batch_size",
        "vae_batch_size",
        "image_processing_batch_size",
        "max_workers",
        "aspect_bucket_worker_count",
    )
} | {"compress_cache": "compress_disk_cache"}
"""Key of an entry: the global option it falls back to, and the value when that is not set either."""

PROSE = ("instance_prompt", "captions", "caption_filter_list", "caption_column")
"""Keys whose texts may have several lines; a line break in any other is a slip, mostly of a path of Windows."""

ONE_FOR_VIDEO = ("vae_batch_size", "image_processing_batch_size")
"""Sizes of work that are 1 for clips unless the entry says otherwise: a clip is many images."""

S3_KEYS = (
    "aws_bucket_name",
    "aws_endpoint_url",
    "aws_region_name",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_data_prefix",
    "aws_max_pool_connections",
)
CSV_KEYS = ("csv_file", "csv_cache_dir", "csv_caption_column", "csv_url_column")
HUB_KEYS = (
    "dataset_name",
    "split",
    "revision",
    "image_column",
    "video_column",
    "cache_dir",
    "streaming",
    "caption_column",
    "fallback_caption_column",
    "width_column",
    "height_column",
    "num_frames_column",
    "fps_column",
    "quality_column",
    "file_extension",
    "composite_image_config",
    "split_composite_images",
    "composite_image_column",
    "filter_func",
)
STORAGE_KEYS = {"local": ("instance_data_dir",), "aws": S3_KEYS, "csv": CSV_KEYS, "huggingface": HUB_KEYS}
"""Keys that say where samples are, by type."""

READ_BY = {
    "local": STORAGE_KEYS["local"],
    "aws": (*S3_KEYS, "aws", "instance_data_dir"),
    "csv": CSV_KEYS,
    "huggingface": (*HUB_KEYS, "huggingface"),
}
"""The same with blocks and with keys that stand in for others: what an entry of a type makes use of."""

TRAINING_ONLY = (
    "probability",
    "repeats",
    "train_batch_size",
    "start_epoch",
    "start_step",
    "end_epoch",
    "end_step",
    "disable_after_epoch_step",
    "is_regularisation_data",
    "slider_strength",
    "timestep_sampling_offset",
)
IDLE = {
    "image": ("video", "audio", "source_dataset_id"),
    "video": ("source_dataset_id", "layers"),
    "eval": (*TRAINING_ONLY, "vae_cache_clear_each_epoch", "source_dataset_id"),
    "conditioning": (
        *TRAINING_ONLY,
        "audio",
        "layers",
        "disable_validation",
        "vae_cache_clear_each_epoch",
        "minimum_image_size",
        "delete_unwanted_images",
        "text_embeds",
    ),
    "text_embeds": ("preserve_data_backend_cache",),
    "image_embeds": ("compress_cache", "preserve_data_backend_cache", "skip_file_discovery", "write_batch_size"),
    "conditioning_image_embeds": (
        "compress_cache",
        "preserve_data_backend_cache",
        "skip_file_discovery",
        "write_batch_size",
        "cache_dir",
    ),
}
"""Keys that the model of an entry has and that do nothing on this kind of entry."""

STAGES = ("vae", "aspect", "metadata", "text", "caption")
"""What `skip_file_discovery` may name."""

TABLE_COLUMNS_OF_OTHERS = (
    "bbox_column",
    "id_column",
    "default_extension",
    "identifier_prefix",
    "engine",
    "audio_sample_rate_column",
    "audio_num_samples_column",
    "audio_duration_column",
    "audio_channels_column",
    "lyrics_column",
)
"""Keys of a parquet block that only other kinds of data use."""

FOLLOWS_SOURCE = ("resolution", "resolution_type", "maximum_image_size", "target_downsample_size", "kohya")
FOLLOWS_WHEN_ALIGNED = (
    "crop",
    "crop_style",
    "crop_aspect",
    "crop_aspect_buckets",
    "crop_aspect_weights",
    "max_upscale_threshold",
    "video",
)
"""What a conditioning dataset takes over from its source: always, and when it is pixel-aligned."""

GENERATED_TAKES = (
    "image_embeds",
    "vae_batch_size",
    "image_processing_batch_size",
    "max_workers",
    "compress_cache",
    "write_batch_size",
    "vae_cache_ondemand",
    "vae_cache_disable",
)
"""Keys that a generated conditioning dataset takes over from its source as they are written."""
