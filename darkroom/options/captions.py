"""Where captions come from and how they are changed."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options.field import Section, option


class CaptionOptions(Section):
    """The text beside each image. A dataset's own setting wins over these."""

    page: ClassVar[str] = "captions"
    title: ClassVar[str] = "Captions"

    caption_strategy: Literal[
        "textfile", "filename", "parquet", "instanceprompt", "instance_prompt", "csv", "huggingface"
    ] = option(
        "filename",
        "Where captions come from: a .txt beside the image, its file name, a parquet table, or one prompt for all.",
        resume="warn",
    )
    caption_dropout_probability: float = option(
        0.1,
        "Share of samples trained without caption, which guidance at inference needs; 0 harms it.",
        resume="warn",
        ge=0,
        le=1,
    )
    conditioning_dropout_probability: float = option(
        0.0,
        "Share of samples trained without the reference or control images beside them; captions are drawn apart.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
    )
    instance_prompt: str | None = option(None, "The one caption, or the words put before every caption.", resume="warn")
    prepend_instance_prompt: bool = option(False, "Put instance_prompt before every caption.", resume="warn")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.", resume="warn")
    parquet_caption_column: str | None = option(
        None, "Column of a parquet table that holds captions.", resume="warn", level="advanced"
    )
    parquet_filename_column: str | None = option(
        None, "Column of a parquet table that holds file names.", resume="warn", level="advanced"
    )
    data_aesthetic_score: float = option(
        7.0,
        "Aesthetic score told to the SDXL refiner for every image.",
        resume="warn",
        level="expert",
        families=("sdxl",),
    )
