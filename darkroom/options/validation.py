"""Images made during training, and scores of them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, field_validator

from darkroom.core.units import parse_resolutions
from darkroom.options import later
from darkroom.options.field import SET, FilledInt, Section, option

_SKIP = {"validation_guidance_skip_layers": SET}
_ADAPTER = {"validation_adapter_path": SET}
_EXTERNAL = {"validation_method": "external-script"}
_CLIP = {"evaluation_type": "clip"}


class ValidationOptions(Section):
    """Images made during training, with which prompts and settings, and scores of them."""

    page: ClassVar[str] = "validation"
    title: ClassVar[str] = "Validation"

    validation_prompt: str | None = option(None, "Prompt of the validation images.", resume="free")
    validation_negative_prompt: str | None = option(
        None,
        "What validation images should not show; left out, the family's own text or none.",
        resume="free",
        empty=True,
    )
    validation_prompt_library: bool = option(False, "Also image the built-in collection of prompts.", resume="free")
    user_prompt_library: str | None = option(None, "JSON file of named prompts to image.", resume="free")
    validation_step_interval: int = option(
        100,
        "Validate every this many updates; 0 only by epochs and at the end.",
        resume="free",
        aliases=("validation_steps",),
        ge=0,
    )
    validation_epoch_interval: int | None = option(
        None, "Validate at the end of every n-th epoch.", off=True, resume="free", ge=1
    )
    validation_on_startup: bool = option(False, "Validate before the first update, also when resuming.", resume="free")
    validation_disable: bool = option(False, "Make no validation images.", resume="free")
    validation_disable_unconditional: bool = option(False, "Leave out the image with an empty prompt.", resume="free")
    num_validation_images: int = option(1, "Images per prompt and size.", resume="free", ge=1)
    validation_resolution: str | None = option(
        None,
        "Sizes of the images, such as 1024 or 768x512, comma-separated; left out, the training resolution.",
        resume="free",
    )
    validation_num_inference_steps: FilledInt = option(
        None, "Denoising steps per image; left out, what suits the flavour.", resume="free", ge=1
    )
    validation_guidance: float | None = option(
        None, "How strictly images follow their prompt; left out, what suits the flavour.", resume="free", ge=0
    )
    validation_guidance_real: float | None = option(
        None,
        "True guidance with a negative prompt, for models whose guidance is distilled in; left out or 1, none.",
        resume="free",
        ge=0,
        level="advanced",
    )
    validation_guidance_rescale: float = option(
        0.0,
        "Soften the contrast that strong guidance brings; 0.7 suits zero-terminal-SNR models.",
        resume="free",
        ge=0,
        le=1,
        level="advanced",
    )
    validation_no_cfg_until_timestep: int | None = option(
        None,
        "Make the first this many steps without true guidance.",
        resume="free",
        ge=0,
        level="expert",
        when={"validation_guidance_real": SET},
        pending=later.VALIDATION,
    )
    validation_noise_scheduler: Literal["ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++", "perflow"] | None = (
        option(
            None,
            "Solver of the images; left out, the base model's own.",
            resume="free",
            level="advanced",
            pending_choices={"perflow": later.DISTILLATION},
        )
    )
    validation_seed: int | None = option(
        None,
        "Seed of the images, the same at every validation; left out, the run's seed.",
        off=True,
        resume="free",
        ge=0,
        when={"validation_randomize": False},
    )
    validation_seed_source: Literal["cpu", "gpu"] = option(
        "cpu",
        "Draw validation noise on the CPU, which is the same on every machine, or on the device.",
        resume="free",
        level="advanced",
    )
    validation_randomize: bool = option(False, "Use a new seed at every validation.", resume="free", level="advanced")
    validation_method: Literal["simpletuner-local", "external-script"] = option(
        "simpletuner-local",
        "Make the images in the run itself (simpletuner-local) or hand over to a program of yours.",
        resume="free",
        level="expert",
        pending=later.VALIDATION,
    )
    validation_external_script: str | None = option(
        None,
        "Program that validates instead, with placeholders such as {local_checkpoint_path}.",
        resume="free",
        level="expert",
        when=_EXTERNAL,
        pending=later.VALIDATION,
    )
    validation_external_background: bool = option(
        False,
        "Do not wait for validation_external_script to end.",
        resume="free",
        level="expert",
        when=_EXTERNAL,
        pending=later.VALIDATION,
    )
    validation_using_datasets: bool = option(
        False,
        "Take validation prompts and the images that they start from from the datasets.",
        resume="free",
        level="advanced",
    )
    validation_stitch_input_location: Literal["left", "right"] = option(
        "left",
        "Side of a validation image on which its input image is shown.",
        resume="free",
        level="expert",
    )
    validation_torch_compile: bool = option(False, "Compile the model for validation.", resume="free", level="expert")
    validation_cache: Literal["none", "magcache", "first-block", "taylorseer"] = option(
        "none",
        "Guess some of the denoiser's answers from those of earlier steps, so that images take fewer calls.",
        resume="free",
        level="advanced",
    )
    validation_cache_config: dict[str, object] | None = option(
        None,
        "Settings of first-block and taylorseer, as their configurations in diffusers name them.",
        resume="free",
        json=True,
        level="expert",
        when={"validation_cache": ("first-block", "taylorseer")},
    )
    magcache_threshold: float = option(
        0.24,
        "Error that may add up before MagCache computes again; higher is faster and further from the whole image.",
        resume="free",
        gt=0,
        level="advanced",
        when={"validation_cache": "magcache"},
    )
    magcache_k: int = option(
        6,
        "Steps that MagCache guesses in a row at most; take fewer where there are few steps.",
        resume="free",
        ge=1,
        level="expert",
        when={"validation_cache": "magcache"},
    )
    magcache_retention_ratio: float = option(
        0.2,
        "Share of the first steps that MagCache always computes.",
        resume="free",
        ge=0,
        le=1,
        level="expert",
        when={"validation_cache": "magcache"},
    )
    magcache_mag_ratios: list[PositiveFloat] | None = option(
        None,
        "How much the answer grows from step to step; left out, it is measured on the first image.",
        resume="free",
        json=True,
        level="expert",
        when={"validation_cache": "magcache"},
    )
    validation_num_video_frames: int | None = option(
        None, "Number of frames of validation videos.", off=True, resume="free", ge=1, level="advanced"
    )
    validation_audio_only: bool = option(
        False,
        "Make only the sound of models that make video with sound.",
        resume="free",
        level="expert",
        pending=later.VALIDATION,
    )
    validation_guidance_skip_layers: list[int] | None = option(
        None,
        "Layers left out in an additional pass of sampling that steers away from its result.",
        resume="free",
        json=True,
        level="expert",
        families=("sd3", "wan"),
        pending=later.VALIDATION,
    )
    validation_guidance_skip_layers_start: float = option(
        0.01,
        "Share of the denoising after which the pass with skipped layers begins.",
        resume="free",
        ge=0,
        le=1,
        level="expert",
        when=_SKIP,
        pending=later.VALIDATION,
    )
    validation_guidance_skip_layers_stop: float = option(
        0.2,
        "Share of the denoising after which the pass with skipped layers ends.",
        resume="free",
        ge=0,
        le=1,
        level="expert",
        when=_SKIP,
        pending=later.VALIDATION,
    )
    validation_guidance_skip_scale: float = option(
        2.8,
        "Strength of steering away from the pass with skipped layers.",
        resume="free",
        ge=0,
        level="expert",
        when=_SKIP,
        pending=later.VALIDATION,
    )
    validation_lycoris_strength: float = option(
        1.0,
        "Strength of a LyCORIS adapter in validation.",
        resume="free",
        ge=0,
        level="advanced",
        when={"lora_type": "lycoris"},
        pending=later.ADAPTERS,
    )
    validation_adapter_path: str | None = option(
        None,
        "Another adapter that is attached during validation only.",
        resume="free",
        level="advanced",
        pending=later.VALIDATION,
    )
    validation_adapter_name: str | None = option(
        None,
        "Label of the adapter in validation_adapter_path.",
        resume="free",
        level="expert",
        when=_ADAPTER,
        pending=later.VALIDATION,
    )
    validation_adapter_strength: float = option(
        1.0,
        "Strength of the adapter in validation_adapter_path.",
        resume="free",
        gt=0,
        level="expert",
        when=_ADAPTER,
        pending=later.VALIDATION,
    )
    validation_adapter_mode: Literal["adapter_only", "comparison", "none"] = option(
        "adapter_only",
        "Validate with validation_adapter_path, with and without it, or leave it aside.",
        resume="free",
        level="expert",
        when=_ADAPTER,
        pending=later.VALIDATION,
    )
    validation_adapter_config: list[object] | dict[str, object] | None = option(
        None,
        "Several adapters or combinations of them to validate with, one after another.",
        resume="free",
        json=True,
        level="expert",
        pending=later.VALIDATION,
    )
    validation_assistant_lora: bool = option(
        False,
        "Apply assistant_lora_path in validation images too.",
        resume="free",
        level="advanced",
        when={"assistant_lora_path": SET},
    )
    validation_preview: bool = option(
        False, "Show each validation image while it is made, through a tiny decoder.", resume="free", level="advanced"
    )
    validation_preview_decoder: str | None = option(
        None,
        "Repository or folder of the tiny decoder (AutoencoderTiny); left out, the family's usual one.",
        resume="free",
        level="expert",
        when={"validation_preview": True},
    )
    validation_preview_steps: int = option(
        1,
        "Denoising steps between two previews.",
        resume="free",
        ge=1,
        level="expert",
        when={"validation_preview": True},
    )
    enable_watermark: bool = option(
        False,
        "Put an invisible watermark into SDXL images.",
        resume="free",
        level="expert",
        families=("sdxl",),
        pending=later.VALIDATION,
    )
    evaluation_type: Literal["none", "clip"] = option(
        "none",
        "Score validation images by how well CLIP finds their prompt in them.",
        resume="free",
        level="advanced",
        pending=later.EVALUATION,
    )
    pretrained_evaluation_model_name_or_path: str = option(
        "openai/clip-vit-large-patch14-336",
        "The CLIP model that scores validation images.",
        resume="free",
        level="expert",
        when=_CLIP,
        pending=later.EVALUATION,
    )
    eval_loss_disable: bool = option(
        False,
        "Do not measure the loss on evaluation datasets.",
        resume="free",
        level="advanced",
        pending=later.EVALUATION,
    )
    eval_steps_interval: int | None = option(
        None,
        "Evaluate every this many updates.",
        off=True,
        resume="free",
        ge=1,
        level="advanced",
        pending=later.EVALUATION,
    )
    eval_epoch_interval: float | None = option(
        None,
        "Evaluate every this many epochs; 0.5 is twice per epoch.",
        off=True,
        resume="free",
        gt=0,
        level="advanced",
        pending=later.EVALUATION,
    )
    eval_timesteps: int = option(
        28, "Noise levels at which the loss is measured.", resume="free", ge=1, level="expert", pending=later.EVALUATION
    )
    eval_dataset_id: str | None = option(
        None,
        "Take validation prompts from this dataset only, where they come from datasets.",
        resume="free",
        level="advanced",
    )
    eval_dataset_pooling: bool = option(
        False,
        "Report one loss over all evaluation datasets instead of one for each.",
        resume="free",
        level="expert",
        pending=later.EVALUATION,
    )
    num_eval_images: int = option(
        4,
        "Samples of each dataset that become validation prompts, where these come from datasets.",
        resume="free",
        ge=1,
        level="advanced",
    )

    @field_validator("validation_resolution")
    @classmethod
    def _is_list_of_sizes(cls, value: str | None) -> str | None:
        if value is not None:
            parse_resolutions(value)
        return value
