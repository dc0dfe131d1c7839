"""How the difference between prediction and target becomes one number."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import Section, option

_HUBER = {"loss_type": ("huber", "smooth_l1")}


class LossOptions(Section):
    """How the difference between prediction and target becomes one number."""

    page: ClassVar[str] = "loss"
    title: ClassVar[str] = "Loss"

    loss_type: Literal["l2", "huber", "smooth_l1"] = option(
        "l2", "Shape of the error: squared (l2), or milder on outliers (huber, smooth_l1).", resume="warn"
    )
    huber_c: float = option(
        0.1,
        "Size of error at which huber and smooth_l1 become mild.",
        resume="warn",
        gt=0,
        level="advanced",
        when=_HUBER,
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr", "How huber_c changes with the noise level.", resume="warn", level="advanced", when=_HUBER
    )
    snr_gamma: float | None = option(
        None,
        "Cap on the weight of nearly clean steps; 5 suits epsilon and v models, 0 switches it off.",
        off=True,
        resume="warn",
        ge=0,
        level="advanced",
    )
    snr_weight: float = option(1.0, "Factor on the loss of epsilon and v models.", resume="warn", ge=0, level="expert")
    use_soft_min_snr: bool = option(
        False,
        "Fade the weight of nearly clean steps out smoothly instead of capping it.",
        resume="warn",
        level="advanced",
    )
    soft_min_snr_sigma_data: float | None = option(
        None,
        "Spread of the data that the smooth weight assumes, instead of snr_gamma.",
        off=True,
        resume="warn",
        gt=0,
        level="expert",
        when={"use_soft_min_snr": True},
    )
    masked_loss_probability: float = option(
        1.0,
        "Share of batches in which a mask dataset weighs the loss.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
    )
    diff2flow_enabled: bool = option(
        False, "Read an epsilon or v model as a flow model.", resume="warn", level="expert", pending=later.METHODS
    )
    diff2flow_loss: bool = option(
        False,
        "Take the loss against the flow target.",
        resume="warn",
        level="expert",
        when={"diff2flow_enabled": True},
        pending=later.METHODS,
    )
