"""The sound of samples, for families that make film and sound side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from darkroom.families.base import Family

if TYPE_CHECKING:
    from darkroom.options.config import Config


def heard(
    family: Family, components: Any, sounds: Sequence[np.ndarray | None], frames: int, options: Config
) -> dict[str, Tensor]:
    """What is cached of the sounds (channels, N) of samples of `frames` frames, and `sound_counts` (B,), 0 or 1.

    A sample without sound, such as a picture, has silence, which the loss leaves out. Nothing if the family has none.
    """
    if family.sound is None:
        return {}
    rate = options.framerate or family.fps_for(options.model_flavour)
    assert rate, "whoever has sound has frames a second"
    seconds = frames / rate
    count = round(seconds * family.sound.rate)
    waves = torch.zeros(len(sounds), family.sound.channels, count)
    for wave, sound in zip(waves, sounds, strict=True):
        if sound is not None:
            wave.copy_(torch.from_numpy(sound[:, :count]))
    there = torch.tensor([float(sound is not None) for sound in sounds])
    return {**family.sound_entries(components, waves, seconds), "sound_counts": there}
