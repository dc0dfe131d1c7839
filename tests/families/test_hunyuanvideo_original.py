"""What only HunyuanVideo does from a first frame: what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from darkroom import families
from darkroom.core.errors import ConfigError, DataError
from tests.families.conformance import options

NAME = "hunyuanvideo_original"


@pytest.mark.parametrize("flavour", families.load(NAME).tinies)
def test_a_sample_that_is_its_first_frame_alone_is_refused(flavour):
    still = SimpleNamespace(dataset="photos", latents=torch.zeros(1, 16, 1, 8, 8))

    with pytest.raises(DataError, match="'photos' has samples of a single frame"):
        families.get(NAME, flavour).slice_batch(still, options(NAME, flavour), torch.Generator())


def test_a_clip_of_which_the_pipeline_would_cut_off_everything_is_refused():
    settings = SimpleNamespace(**{**vars(options(NAME, "tiny-i2v-33ch")), "validation_num_video_frames": 4})

    with pytest.raises(ConfigError, match="cuts off the first 4 frames") as caught:
        families.get(NAME, "tiny-i2v-33ch").pipeline_kwargs(settings)

    assert caught.value.change == "Set it to 5 or more."
