"""Samplers by name, made from the base model's own scheduler settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from darkroom.options.config import Config

DISCRETE = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
FLOW = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


def changes(options: Config, is_flow: bool) -> dict[str, object]:
    """What the options change in the base's scheduler: its class under `_class`, and settings. Empty: nothing.

    Raises ConfigError for a sampler that the kind of model cannot use.
    """
    name, changed = options.validation_noise_scheduler, dict[str, object]()
    table = FLOW if is_flow else DISCRETE
    if name:
        if name not in table:
            raise ConfigError(
                "validation_noise_scheduler",
                name,
                "",
                "A flow-matching model is sampled along its flow; this sampler works on noise predictions.",
                f"Choose one of {', '.join(table)}, or leave it out.",
            )
        changed["_class"] = table[name]
        if is_flow and name != "euler":
            changed |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if not is_flow:
        if options.inference_scheduler_timestep_spacing:
            changed["timestep_spacing"] = options.inference_scheduler_timestep_spacing
        if options.rescale_betas_zero_snr:
            changed["rescale_betas_zero_snr"] = True
        if options.prediction_type:
            changed["prediction_type"] = options.prediction_type
    return changed


def apply(scheduler: SchedulerMixin, changed: dict[str, object]) -> SchedulerMixin:
    """A fresh scheduler from `scheduler`'s settings and `changes`. A flow's shift goes along by each class's name."""
    import inspect

    import diffusers

    settings = dict(changed)
    cls = getattr(diffusers, str(settings.pop("_class", type(scheduler).__name__)))
    config = dict(scheduler.config)
    for current_config, other in (("shift", "flow_shift"), ("flow_shift", "shift")):
        if (
            current_config in inspect.signature(cls.__init__).parameters
            and current_config not in config
            and other in config
        ):
            settings.setdefault(current_config, config[other])
    return cls.from_config(config, **settings)
