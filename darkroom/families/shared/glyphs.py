"""Text of Tencent's Hunyuan families: Qwen2.5-VL reads a caption, and ByT5 the words in quotation marks.

Text (B, L, D) with its mask (B, L) is Qwen's last layer but two without the instruction before every caption; glyphs
(B, N, D) with their mask (B, N) are what ByT5 reads of the words that are to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from darkroom.families.base import Family

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config


class ReadsGlyphs(Family):
    """A family whose stock pipeline reads captions in this way, and is guided by a component of its own."""

    # the most tokens of the words in quotation marks
    glyph_tokens: ClassVar[int]
    guidance_off = {}
    prepared_options = ("validation_guidance", "tokenizer_max_length")

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        text = configs["text_encoder"]
        width = text.get("text_config", text)["hidden_size"]
        glyphs = min(self.glyph_tokens, options.tokenizer_max_length) * (configs["text_encoder_2"]["d_model"] + 1)
        return options.tokenizer_max_length * (width + 1) + glyphs

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) and mask (B, L), glyphs (B, N, D) and glyph_mask (B, N)."""
        self.limit_tokens(pipe, options)
        text, mask, glyphs, glyph_mask = pipe.encode_prompt(captions, batch_size=len(captions))
        return {"text": text, "mask": mask, "glyphs": glyphs, "glyph_mask": glyph_mask}

    def limit_tokens(self, pipe: DiffusionPipeline, options: Config) -> None:
        """How many tokens are read is an attribute of the pipelines, and not an argument of their call."""
        pipe.tokenizer_max_length = options.tokenizer_max_length
        pipe.tokenizer_2_max_length = min(self.glyph_tokens, options.tokenizer_max_length)

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {**_arguments(text, ""), **_arguments(negative, "negative_")}


def text_inputs(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """The condition as the networks' arguments."""
    return {
        "encoder_hidden_states": cond["text"],
        "encoder_attention_mask": cond["mask"],
        "encoder_hidden_states_2": cond["glyphs"],
        "encoder_attention_mask_2": cond["glyph_mask"],
    }


def _arguments(text: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One condition (1, ...) as arguments of the pipeline's call."""
    return {
        f"{prefix}prompt_embeds": text["text"],
        f"{prefix}prompt_embeds_mask": text["mask"],
        f"{prefix}prompt_embeds_2": text["glyphs"],
        f"{prefix}prompt_embeds_mask_2": text["glyph_mask"],
    }
