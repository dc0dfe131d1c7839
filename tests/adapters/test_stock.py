"""An adapter file read without a loader of diffusers counts as much as one read by it."""

from __future__ import annotations

import copy

import pytest
import torch

from darkroom.adapters import stock
from tests.adapters.conftest import answer


class WithoutLoader:
    """A stock pipeline to which diffusers gave no loader."""

    def __init__(self, pipe, part):
        setattr(self, part, copy.deepcopy(getattr(pipe, part)))


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_peft_reads_what_the_stock_loader_reads(family, strength, attach, tmp_path):
    bench = attach(family, lora_rank=4, lora_alpha=2)
    bench.train()
    bench.adapter.export(tmp_path, {})
    file, part = tmp_path / "pytorch_lora_weights.safetensors", bench.family.denoiser_component
    theirs = bench.stock()
    ours = WithoutLoader(theirs, part)

    for pipe in (theirs, ours):
        stock.load(pipe, part, file, "one")
        stock.set_strengths(pipe, [part], {"one": strength})

    with_loader, without, plain = (answer(bench.family, getattr(pipe, part)) for pipe in (theirs, ours, bench.stock()))
    assert torch.equal(with_loader, without)
    assert not torch.allclose(without, plain)


def test_a_file_without_peft_settings_is_refused(attach, tmp_path):
    from safetensors.torch import load_file, save_file

    bench = attach("flux", lora_rank=4)
    bench.adapter.export(tmp_path, {})
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "pytorch_lora_weights.safetensors"), bare)
    part = bench.family.denoiser_component

    with pytest.raises(ValueError, match="rank and scale"):
        stock.load(WithoutLoader(bench.stock(), part), part, bare, "one")
