"""musubi-tuner: how its configs are recognized, and the defaults that hold for them."""

from __future__ import annotations

from darkroom.options.imports.musubi.translate import MARKERS
from darkroom.options.origins.base import ConfigTraits, Origin, first_of


def find_evidence(traits: ConfigTraits) -> str:
    """What shows that a config is musubi-tuner's: an option that only its scripts have."""
    known = first_of({key.replace("-", "_") for key in traits.keys}, MARKERS)
    return f"it has {known}, which only musubi-tuner has" if known else ""


ORIGIN = Origin(
    name="musubi",
    title="musubi-tuner",
    find_evidence=find_evidence,
    defaults={
        "learning_rate": 2e-6,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "lr_power": 1.0,
        "lr_end": 1e-7,
        "optimizer": "torch-adamw",
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "lora_rank": 4,
        "lora_alpha": 1.0,
        "lora_dropout": 0.0,
        "max_train_steps": 1600,
        "gradient_checkpointing": False,
        "caption_dropout_probability": 0.0,
        "timestep_sampling": "sigma",
        "flow_schedule_shift": 1.0,
        "flow_sigmoid_scale": 1.0,
        "disable_tf32": True,
        "checkpoints_total_limit": 0,
        "conditioning_multidataset_sampling": "combined",
        "validation_disable": True,
        "validation_disable_unconditional": True,
    },
    family_defaults={"ideogram4": {"timestep_sampling": "ideogram4_shift"}},
    values={"vae_dtype": {"float32": "fp32", "float": "fp32", "float16": "fp16", "bfloat16": "bf16"}},
    holds=True,
)
