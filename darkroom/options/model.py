"""Which model is trained, and where its weights come from."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from darkroom.options.field import FilledInt, Section, option, plugin_names


@cache
def families_here() -> tuple[str, ...]:
    """The families in `darkroom/families` and those of installed packages; none is imported.

    A family's file (or its folder's `__init__.py`) ends in a line `FAMILY = ...`; the other files there are shared.
    """
    folder = Path(__file__).parent.parent / "families"
    files = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    files |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    here = {name for name, path in files.items() if re.search(r"^FAMILY\b", path.read_text(encoding="utf-8"), re.M)}
    return tuple(sorted(here | plugin_names("darkroom.families")))


class ModelOptions(Section):
    """Which model is trained, in which variant, and where its weights and companion models come from."""

    page: ClassVar[str] = "model"
    title: ClassVar[str] = "Model"

    model_family: str = option(
        ...,
        "The architecture to train; `darkroom families` lists them with what each supports.",
        resume="refuse",
        choices=families_here(),
        computed=True,
        required=True,
    )
    model_flavour: str | None = option(
        None,
        "The variant of the family, such as `dev`; left out, the family's first; `tiny` is for trying things out.",
        resume="refuse",
    )
    model_type: Literal["full", "lora"] = option(
        "lora", "Train a small adapter (lora) or the whole denoiser (full).", resume="refuse"
    )
    pretrained_model_name_or_path: str | None = option(
        None,
        "Hub name, diffusers folder or single file of the base model; left out, the flavour says which.",
        resume="free",
    )
    pretrained_transformer_model_name_or_path: str | None = option(
        None,
        "Take the denoising transformer from here instead of from the base model.",
        resume="free",
        level="advanced",
    )
    pretrained_transformer_subfolder: str | None = option(
        "transformer",
        "Folder of the transformer inside pretrained_transformer_model_name_or_path.",
        resume="free",
        level="expert",
    )
    pretrained_unet_model_name_or_path: str | None = option(
        None, "Take the UNet from here instead of from the base model.", resume="free", level="advanced"
    )
    pretrained_unet_subfolder: str | None = option(
        "unet", "Folder of the UNet inside pretrained_unet_model_name_or_path.", resume="free", level="expert"
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "Take the VAE from here; left out, the base model's own is used.", resume="free", level="advanced"
    )
    pretrained_t5_model_name_or_path: str | None = option(
        None,
        "Take the T5 text encoder from here, so that several base models can share one copy.",
        resume="free",
        level="advanced",
    )
    pretrained_gemma_model_name_or_path: str | None = option(
        None,
        "Take the Gemma text encoder from here.",
        resume="free",
        level="advanced",
        families=("lumina2", "sana", "sanavideo", "ltxvideo2"),
    )
    revision: str | None = option(
        None, "Branch, tag or commit of the base model on the Hub.", resume="free", level="advanced"
    )
    variant: str | None = option(
        None, "File variant of the base model on the Hub, such as fp16.", resume="free", level="advanced"
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_matching"] | None = option(
        None,
        "What the network answers; left out, the base model says so, and anything else re-trains it to a new answer.",
        resume="refuse",
        level="advanced",
    )
    tokenizer_max_length: FilledInt = option(
        None,
        "Number of text tokens kept per caption; left out, the family's own limit.",
        off=True,
        resume="warn",
        cached="text",
        level="advanced",
        ge=1,
    )
    t5_padding: Literal["zero", "unmodified"] = option(
        "unmodified",
        "Leave the T5 embedding of padding tokens as it is, or replace it by zeros.",
        resume="warn",
        cached="text",
        level="expert",
        families=("flux", "sd3", "pixart_sigma"),
    )
    cache_dir: str | None = option(
        None, "Folder for downloaded models; left out, the usual Hugging Face cache.", resume="free", level="advanced"
    )
    control: bool = option(
        False,
        "Give the network a control image as extra input channels.",
        resume="refuse",
        level="advanced",
    )
    controlnet: bool = option(False, "Train a ControlNet beside the frozen network.", resume="refuse", level="advanced")
    controlnet_custom_config: dict[str, object] | None = option(
        None,
        "Settings of a new ControlNet that differ from those copied from the base.",
        resume="refuse",
        json=True,
        level="expert",
        when={"controlnet": True},
    )
    controlnet_model_name_or_path: str | None = option(
        None,
        "Start the ControlNet from these weights.",
        resume="free",
        level="advanced",
        when={"controlnet": True},
    )

    @field_validator("model_family", mode="before")
    @classmethod
    def _with_underscores(cls, value: object) -> object:
        """`z-image` is accepted for `z_image`."""
        return value.replace("-", "_") if isinstance(value, str) else value
