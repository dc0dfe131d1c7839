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
