"""SimpleTuner: how its configs are recognized, and its defaults that train differently from Darkroom's."""

from __future__ import annotations

from darkroom.options import compat
from darkroom.options.origins.base import ConfigTraits, Origin, first_of, words

_ONLY_WRITTEN_THERE = words(
    """
    hub_model_id push_to_hub push_checkpoints_to_hub push_to_hub_background lora_type lycoris_config disable_benchmark
    model_card_private model_card_safe_for_work model_card_note validation_prompt_library
    checkpointing_steps validation_steps save_total_limit
    """
)
"""Options that SimpleTuner's own forms write into every config, in their spellings there."""


def find_evidence(traits: ConfigTraits) -> str:
    """What shows that a config is SimpleTuner's: its way of writing keys, a key or a file that only it has."""
    if dashed := next((key for key in sorted(traits.keys) if key.startswith("--")), ""):
        return f"its keys are written as {dashed}"
    plain = {key.lower() if key.isupper() else key for key in traits.keys}
    if known := first_of(plain, compat.SIMPLETUNER_KEYS):
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
        "validation_guidance": 7.5,
        "validation_num_inference_steps": 30,
        "validation_step_interval": 100,
    },
    family_defaults={},
    implied={"compat_lr_schedules": True},
)
