"""Which noise levels are trained, and how noise is added."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import SET, Section, option

_ROLLOUT = {"scheduled_sampling_max_step_offset": SET}
_REFLEX = {"scheduled_sampling_reflexflow": True}


class NoiseOptions(Section):
    """Noise levels, their distribution, and how noise is mixed in; flow options act in flow families only."""

    page: ClassVar[str] = "noise"
    title: ClassVar[str] = "Noise"

    flow_sigmoid_scale: float = option(
        1.0,
        "Spread of the bell-shaped draw of noise levels; larger trains the ends more often.",
        resume="warn",
        ge=0,
        level="advanced",
    )
    flow_use_uniform_schedule: bool = option(
        False, "Draw all noise levels equally often.", resume="warn", level="advanced"
    )
    flow_use_beta_schedule: bool = option(
        False, "Draw noise levels from a beta distribution.", resume="warn", level="advanced"
    )
    flow_beta_schedule_alpha: float = option(
        2.0,
        "First parameter of the beta distribution.",
        resume="warn",
        gt=0,
        level="expert",
        when={"flow_use_beta_schedule": True},
    )
    flow_beta_schedule_beta: float = option(
        2.0,
        "Second parameter of the beta distribution.",
        resume="warn",
        gt=0,
        level="expert",
        when={"flow_use_beta_schedule": True},
    )
    flow_schedule_shift: float = option(
        3.0,
        "Move the drawn noise levels towards more noise; 1 or 0 leaves them, and a family may bring its own.",
        resume="warn",
        ge=0,
        level="advanced",
    )
    flow_schedule_auto_shift: bool = option(
        False, "Choose the shift from the size of each image instead.", resume="warn", level="advanced"
    )
    timestep_sampling: (
        Literal[
            "sigma",
            "uniform",
            "sigmoid",
            "shift",
            "flux_shift",
            "flux2_shift",
            "qwen_shift",
            "krea2_shift",
            "ideogram4_shift",
            "logsnr",
            "qinglong_flux",
            "qinglong_qwen",
        ]
        | None
    ) = option(
        None,
        "Draw noise levels by a rule of musubi-tuner's, in place of the flow_* options; left out, those decide.",
        resume="warn",
        level="advanced",
    )
    weighting_scheme: Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"] = option(
        "none",
        "Density of the noise levels of timestep_sampling sigma (logit_normal, mode), or weight of the loss"
        " (sigma_sqrt, cosmap).",
        resume="warn",
        level="advanced",
    )
    logit_mean: float = option(
        0.0,
        "Mean of the normal distribution of weighting_scheme logit_normal and of timestep_sampling logsnr.",
        resume="warn",
        level="expert",
        when={"timestep_sampling": ("sigma", "logsnr", "qinglong_flux")},
    )
    logit_std: float = option(
        1.0,
        "Standard deviation of the same distribution.",
        resume="warn",
        gt=0,
        level="expert",
        when={"timestep_sampling": ("sigma", "logsnr", "qinglong_flux")},
    )
    mode_scale: float = option(
        1.29,
        "Scale of the density of weighting_scheme mode.",
        resume="warn",
        level="expert",
        when={"weighting_scheme": "mode"},
    )
    min_timestep: int | None = option(
        None,
        "Lowest noise level that timestep_sampling draws, out of 1000.",
        resume="warn",
        ge=0,
        le=999,
        level="advanced",
        when={"timestep_sampling": SET},
    )
    max_timestep: int | None = option(
        None,
        "Highest noise level that timestep_sampling draws, out of 1000.",
        resume="warn",
        ge=1,
        le=1000,
        level="advanced",
        when={"timestep_sampling": SET},
    )
    preserve_distribution_shape: bool = option(
        False,
        "Draw again what falls outside min_timestep and max_timestep, instead of squeezing all levels in between.",
        resume="warn",
        level="advanced",
        when={"timestep_sampling": SET},
    )
    num_timestep_buckets: int | None = option(
        None,
        "Divide the levels of an epoch evenly over this many intervals of the distribution.",
        resume="warn",
        ge=2,
        level="expert",
        when={"timestep_sampling": SET},
    )
    flux_fast_schedule: bool = option(
        False,
        "Train mostly pure noise and a few other levels, for quick trials.",
        resume="warn",
        level="expert",
        families=("flux",),
    )
    timestep_bias_strategy: Literal["earlier", "later", "range", "none"] = option(
        "none",
        "Train clean (earlier), noisy (later) or chosen (range) timesteps more often.",
        resume="warn",
        level="expert",
    )
    timestep_bias_portion: float = option(
        0.25,
        "Share of all timesteps that timestep_bias_strategy trains more often.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        when={"timestep_bias_strategy": ("earlier", "later")},
    )
    timestep_bias_begin: int = option(
        0,
        "First timestep that timestep_bias_strategy range trains more often.",
        resume="warn",
        ge=0,
        level="expert",
        when={"timestep_bias_strategy": "range"},
    )
    timestep_bias_end: int = option(
        1000,
        "Timestep at which that range ends; it is not part of it.",
        resume="warn",
        ge=1,
        le=1000,
        level="expert",
        when={"timestep_bias_strategy": "range"},
    )
    timestep_bias_multiplier: float = option(
        1.0,
        "How much more often the chosen timesteps are drawn.",
        resume="warn",
        gt=0,
        level="expert",
        when={"timestep_bias_strategy": SET},
    )
    disable_segmented_timestep_sampling: bool = option(
        False,
        "Draw each timestep of a batch independently instead of one from each segment of the range.",
        resume="warn",
        level="expert",
    )
    training_scheduler_timestep_spacing: Literal["leading", "linspace", "trailing"] = option(
        "trailing",
        "How timesteps are spaced when training needs a list of them.",
        resume="warn",
        level="expert",
        pending=later.METHODS,
    )
    inference_scheduler_timestep_spacing: Literal["leading", "linspace", "trailing"] | None = option(
        None,
        "How timesteps are spaced in validation; left out, as the model's own scheduler says.",
        resume="free",
        level="expert",
    )
    rescale_betas_zero_snr: bool = option(
        False,
        "Let the noisiest timestep be pure noise, so that very dark and bright images can be learnt.",
        resume="warn",
        level="expert",
    )
    offset_noise: bool = option(
        False, "Shift the noise of whole channels now and then.", resume="warn", level="advanced"
    )
    noise_offset: float = option(
        0.1,
        "Strength of the shift that offset_noise adds.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
        when={"offset_noise": True},
    )
    noise_offset_probability: float = option(
        0.25,
        "Share of batches that get the shift of offset_noise.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
        when={"offset_noise": True},
    )
    input_perturbation: float = option(
        0.0,
        "Extra noise that only the network's input gets; 0.1 counters overfitting.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
    )
    input_perturbation_steps: int = option(
        0,
        "Updates over which input_perturbation fades out; 0 keeps it for the whole run.",
        resume="warn",
        ge=0,
        level="expert",
        when={"input_perturbation": SET},
    )
    scheduled_sampling_max_step_offset: int = option(
        0,
        "Most steps that the model walks on its own before it is trained; 0 switches this off.",
        resume="warn",
        ge=0,
        level="expert",
        pending=later.METHODS,
    )
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = option(
        "uniform",
        "Whether short or long walks of scheduled sampling are more frequent.",
        resume="warn",
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_probability: float = option(
        0.0,
        "Share of samples that get a walk of scheduled sampling.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_prob_start: float = option(
        0.0,
        "Share of samples with a walk at the beginning of the ramp.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_prob_end: float = option(
        0.5,
        "Share of samples with a walk at the end of the ramp.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_ramp_steps: int = option(
        0,
        "Updates over which the share of samples with a walk changes; 0 means no ramp.",
        resume="warn",
        ge=0,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_start_step: int = option(
        0,
        "Update at which the share of samples with a walk begins to change.",
        resume="warn",
        ge=0,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = option(
        "linear",
        "Shape in which the share of samples with a walk changes.",
        resume="warn",
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm", "rk4"] = option(
        "unipc",
        "Solver that takes the steps of a walk in scheduled sampling.",
        resume="warn",
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_order: int = option(
        2,
        "Order of the solver that takes the steps of a walk.",
        resume="warn",
        ge=1,
        le=9,
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_reflexflow: bool | None = option(
        None,
        "On walks, also correct drift and weigh errors; left out, on for flow families.",
        resume="warn",
        level="expert",
        when=_ROLLOUT,
        pending=later.METHODS,
    )
    scheduled_sampling_reflexflow_alpha: float = option(
        1.0,
        "How strongly ReflexFlow weighs errors by their size.",
        resume="warn",
        ge=0,
        level="expert",
        when=_REFLEX,
        pending=later.METHODS,
    )
    scheduled_sampling_reflexflow_beta1: float = option(
        10.0,
        "Weight of ReflexFlow's correction of drift.",
        resume="warn",
        ge=0,
        level="expert",
        when=_REFLEX,
        pending=later.METHODS,
    )
    scheduled_sampling_reflexflow_beta2: float = option(
        1.0,
        "Weight of ReflexFlow's re-weighed loss.",
        resume="warn",
        ge=0,
        level="expert",
        when=_REFLEX,
        pending=later.METHODS,
    )
