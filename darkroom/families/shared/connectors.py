"""LTX-2's connectors for prompts that were encoded before."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass
class PrecomputedConnectors:
    """Replaces a pipeline's connectors: splits their cached outputs, and passes everything else on to them.

    text_width  width of the text for video, which comes first; the text for audio follows
    """

    connectors: Any
    text_width: int

    def __call__(self, text: Tensor, mask: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """text (B, L, D) of all layers, or of both streams, to text for video, text for audio, and the mask."""
        if self.connectors is not None and text.shape[-1] == self._width_of_layers:
            return self.connectors(text, mask, **how)
        return text[..., : self.text_width], text[..., self.text_width :], mask

    @property
    def _width_of_layers(self) -> int:
        facts = self.connectors.config
        return facts.caption_channels * facts.text_proj_in_factor
