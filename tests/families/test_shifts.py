"""Noise levels that follow the size of samples: by what is published, or refused, and near what pipelines draw at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator

from darkroom import families
from darkroom.core.errors import ConfigError
from darkroom.diffusion.shift import ShiftLine, find_shift_line, shift_time
from darkroom.objectives.denoise import build_flow_timesteps
from darkroom.options.sources import FAMILY_DEFAULT, resolve
from tests.families import conformance
from tests.rows import each_row

FLOW = [name for name in families.names() if families.get(name).prediction == "flow_matching"]
# settings as their repositories have them: nothing of shifts by size
STATIC = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}
# from what the pipelines of these are known to use
KNOWN = {
    "flux": ShiftLine(),
    "framepack": ShiftLine(),
    "framepack_one_frame": ShiftLine(),
    "krea2": ShiftLine(256, 6400),
    "longcat_image": ShiftLine(),
    "ltxvideo": ShiftLine(1024, 4096, 0.95, 2.05),
    "ltxvideo2": ShiftLine(1024, 4096, 0.95, 2.05),
    "qwen_image": ShiftLine(256, 8192, 0.5, 0.9),
}


@each_row("name", FLOW)
def test_a_scheduler_that_publishes_no_line_has_the_familys_or_is_refused_in_words(name):
    family = families.get(name)

    assert (
        find_shift_line(
            {"base_image_seq_len": 9, "max_image_seq_len": 99, "base_shift": 1, "max_shift": 2}, family.shift_line
        ).top
        == 2
    )
    if name in KNOWN:
        assert find_shift_line(STATIC, family.shift_line) == KNOWN[name]
    else:
        with pytest.raises(ConfigError, match="flow_schedule_auto_shift") as wrong:
            find_shift_line(STATIC, family.shift_line)
        assert "flow_schedule_shift, such as 3, which it has instead" in str(wrong.value)


def chosen(*argv: str):
    return resolve([*argv], {}, Path.cwd(), families.defaults, partial=True)


@pytest.mark.parametrize("name", ["ltxvideo", "ltxvideo2"])
def test_ltx_trains_much_of_the_noise_that_its_pipeline_draws_at(name):
    family = families.get(name)
    config = chosen(f"--model_family={name}").config
    width, height = map(int, config.validation_resolution.split("x"))
    shape = family.spec.latents.shape(height, width, config.validation_num_video_frames)
    scheduler = conformance.case(name, "tiny").pipe().scheduler
    tokens = family.spec.latents.tokens(*shape[2:], shape[1])
    line = ShiftLine.from_scheduler(dict(scheduler.config))

    trained = build_flow_timesteps(family, config, dict(scheduler.config)).draw(
        torch.zeros(4000, 1, 1, 1, 1).expand(4000, *shape), Generator().manual_seed(1)
    )
    sampled = shift_time(torch.linspace(1, 1 / 40, 40), line.shift(tokens))

    shares = [(levels > 0.9).float().mean().item() for levels in (trained, sampled)]
    assert shares[1] > 0.3
    assert shares[0] > 0.3


def test_a_shift_of_ones_own_takes_the_place_of_the_familys():
    usual, own = chosen("--model_family=ltxvideo2"), chosen("--model_family=ltxvideo2", "--flow_schedule_shift=2")

    assert usual.config.flow_schedule_auto_shift
    assert usual.sources["flow_schedule_auto_shift"] == FAMILY_DEFAULT
    assert not own.config.flow_schedule_auto_shift
    assert own.config.flow_schedule_shift == 2
