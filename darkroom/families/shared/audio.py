"""Audio of samples, for families that generate video with audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from darkroom.families.base import Family

if TYPE_CHECKING:
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.options.config import Config


def encode_batch_audio(
    family: Family, components: SampleEncoders, waveforms: Sequence[np.ndarray | None], frames: int, options: Config
) -> dict[str, Tensor]:
    """Cache entries of waveforms (channels, N) of samples with `frames` frames, and `sound_counts` (B,), 0 or 1.

    A sample without audio, such as an image, gets silence, which the loss ignores. Empty for families without audio.
    """
    if family.audio is None:
        return {}
    rate = options.framerate or family.spec.fps
    assert rate, "a family with audio has a frame rate"
    seconds = frames / rate
    count = round(seconds * family.audio.format.rate)
    padded = torch.zeros(len(waveforms), family.audio.format.channels, count)
    for target, waveform in zip(padded, waveforms, strict=True):
        if waveform is not None:
            target.copy_(torch.from_numpy(waveform[:, :count]))
    has_audio = torch.tensor([float(waveform is not None) for waveform in waveforms])
    return {**family.audio.encode(components, padded, seconds), "sound_counts": has_audio}
