"""Options that only one family, or a few, read."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from pydantic import field_validator

from darkroom.options.field import SET, Section, option

_FRAMEPACK = ("framepack", "framepack_one_frame")
_LTX = ("ltxvideo",)
_LTX_I2V = {"ltx_train_mode": "i2v"}


class FamilyOptions(Section):
    """Options that only one family, or a few, read."""

    page: ClassVar[str] = "families"
    title: ClassVar[str] = "Families"

    flux_guidance_mode: Literal["constant", "random-range"] = option(
        "constant",
        "For models with a guidance input: train with one guidance value, or with one drawn per sample.",
        resume="warn",
        level="advanced",
    )
    flux_guidance_value: float = option(
        1.0,
        "The guidance value that is trained with; 1 suits Flux dev.",
        resume="warn",
        ge=0,
        level="advanced",
        when={"flux_guidance_mode": "constant"},
    )
    flux_guidance_min: float = option(
        0.0,
        "Lowest guidance value that is drawn.",
        resume="warn",
        ge=0,
        level="expert",
        when={"flux_guidance_mode": "random-range"},
    )
    flux_guidance_max: float = option(
        4.0,
        "Highest guidance value that is drawn.",
        resume="warn",
        ge=0,
        level="expert",
        when={"flux_guidance_mode": "random-range"},
    )
    flux_attention_masked_training: bool = option(
        False,
        "Hide padding tokens from Flux, as some checkpoints were trained.",
        resume="warn",
        cached="text",
        level="expert",
        families=("flux",),
    )
    custom_text_encoder_intermediary_layers: list[int] | None = option(
        None,
        "Layers of the FLUX.2 text encoder whose hidden states are used.",
        resume="warn",
        json=True,
        level="expert",
        families=("flux2",),
    )
    sd3_clip_uncond_behaviour: Literal["empty_string", "zero"] = option(
        "empty_string",
        "What SD3's CLIP encoders give for a dropped caption: the empty text's embedding, or zeros.",
        resume="warn",
        cached="text",
        level="expert",
        families=("sd3",),
    )
    sd3_t5_uncond_behaviour: Literal["empty_string", "zero"] | None = option(
        None,
        "What SD3's T5 encoder gives for a dropped caption; left out, as for CLIP.",
        resume="warn",
        cached="text",
        level="expert",
        families=("sd3",),
    )
    sdxl_refiner_uses_full_range: bool = option(
        False,
        "Train the SDXL refiner on all noise levels.",
        resume="refuse",
        level="expert",
        families=("sdxl",),
    )
    deepfloyd_noise_level: int | None = option(
        None,
        "Noise on what DeepFloyd's stage II enlarges; left out, training draws it and validation takes 250.",
        resume="warn",
        ge=0,
        le=999,
        level="expert",
        families=("deepfloyd",),
    )
    validation_num_layers: int = option(
        4,
        "Layers that validation has an image taken apart into, by models that do so.",
        resume="free",
        ge=1,
        level="advanced",
        families=("qwen_image",),
    )
    sana_complex_human_instruction: str | None = option(
        None,
        "Instruction that Sana's text encoder reads before each caption; left out, the published one.",
        resume="warn",
        cached="text",
        level="expert",
        families=("sana", "sanavideo"),
    )
    hidream_use_load_balancing_loss: bool = option(
        False,
        "Keep HiDream's experts equally busy.",
        resume="warn",
        level="expert",
        families=("hidream",),
    )
    hidream_load_balancing_loss_weight: float | None = option(
        None,
        "Weight of the loss that keeps HiDream's experts busy; left out, the model's own.",
        resume="warn",
        ge=0,
        level="expert",
        families=("hidream",),
        when={"hidream_use_load_balancing_loss": SET},
    )
    ltx_train_mode: Literal["t2v", "i2v"] = option(
        "i2v",
        "Train LTX from text alone, or also from a first frame.",
        resume="warn",
        level="advanced",
        families=_LTX,
    )
    ltx_i2v_prob: float = option(
        0.1,
        "Share of LTX samples that start from a first frame.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        families=_LTX,
        when=_LTX_I2V,
    )
    ltx_partial_noise_fraction: float = option(
        0.05,
        "Most noise that a given first frame gets in LTX training, as a share of the clip's.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        families=_LTX,
        when=_LTX_I2V,
    )
    ltx_protect_first_frame: bool = option(
        False,
        "Give every LTX sample its first frame free of noise.",
        resume="warn",
        level="expert",
        families=_LTX,
        when=_LTX_I2V,
    )
    framepack_latent_window_size: int = option(
        9,
        "Latent frames of one section that FramePack draws.",
        resume="warn",
        ge=1,
        level="expert",
        families=_FRAMEPACK,
    )
    framepack_clean_indices: list[int] | None = option(
        None,
        "Where on FramePack's time line the given images of a one-frame run stand; left out, one image at 0.",
        resume="warn",
        json=True,
        level="expert",
        families=("framepack_one_frame",),
    )
    framepack_target_index: int | None = option(
        None,
        "Where on FramePack's time line the frame of a one-frame run stands; left out, the window's size.",
        resume="warn",
        ge=0,
        level="expert",
        families=("framepack_one_frame",),
    )
    framepack_no_post: bool = option(
        False,
        "Put no blank frame behind the window of a one-frame run.",
        resume="warn",
        level="expert",
        families=("framepack_one_frame",),
    )
    timestep_boundary: float | None = option(
        None,
        "Noise level at which the denoiser for low noise takes over, 0 to 1 (or 0 to 1000); left out, the flavour's.",
        resume="warn",
        ge=0,
        le=1,
        level="expert",
        families=("wan",),
    )
    wan_validation_load_other_stage: bool = option(
        False,
        "Draw validation images with both denoisers of Wan 2.2 although only one is trained.",
        resume="free",
        level="advanced",
        families=("wan",),
    )

    @field_validator("timestep_boundary", mode="before")
    @classmethod
    def _as_a_share(cls, value: object) -> object:
        """musubi-tuner also counts it in steps of a thousand."""
        try:
            share = float(cast(str, value))
            return share / 1000 if share > 1 else value
        except (TypeError, ValueError, OverflowError):
            return value
