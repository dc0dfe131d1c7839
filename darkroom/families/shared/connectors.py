"""LTX-2's connectors, for prompts that they have read already."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass
class Connected:
    """In place of a pipeline's connectors: takes apart what they made before, and hands all else to them.

    own  width of the film's text, which stands first; the sound's follows
    """

    connectors: Any
    own: int

    def __call__(self, text: Tensor, mask: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """text (B, L, D) of every layer, or of both streams: text of the film and of the sound, and the mask."""
        if self.connectors is not None and text.shape[-1] == self._width_of_layers:
            return self.connectors(text, mask, **how)
        return text[..., : self.own], text[..., self.own :], mask

    @property
    def _width_of_layers(self) -> int:
        facts = self.connectors.config
        return facts.caption_channels * facts.text_proj_in_factor
