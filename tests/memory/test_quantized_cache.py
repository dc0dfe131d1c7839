"""A quantised denoiser out of its file is the one that was written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from darkroom import families
from darkroom.families import tiny
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.memory import quantize, quantized_cache
from darkroom.memory.policy import MemoryPolicy
from darkroom.memory.quantize import fp8

CPU = torch.device("cpu")
OPTIONS = SimpleNamespace(
    base_model_precision="fp8-block",
    fp8_format="e4m3",
    quantize_via="cpu",
    keep_quantised_weights=True,
    mixed_precision="no",
    fuse_qkv_projections=False,
)


def denoiser(name: str):
    family = families.get(name)
    pipe = tiny.build(family, resolve_flavour(family, "tiny").components.oracle)
    return family, getattr(pipe, family.denoiser_component).requires_grad_(False)


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan"])
@pytest.mark.parametrize("preset", sorted(fp8.PRESETS))
def test_what_is_read_is_what_was_written(name, preset, tmp_path):
    family, model = denoiser(name)
    options = SimpleNamespace(**{**vars(OPTIONS), "base_model_precision": preset})
    few, _ = quantize.quantize_model(model, preset, options, CPU, family.blocks)
    quantized_cache.save(model, tmp_path / "kept.safetensors")

    found, count = quantized_cache.load(tmp_path / "kept.safetensors", lambda: type(model).from_config(model.config))

    assert count == few > 0
    mine, theirs = model.state_dict(), found.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key].view(torch.uint8), theirs[key].view(torch.uint8)) for key in mine)
    assert [type(m) for m in model.modules()] == [type(m) for m in found.modules()]
    assert not any(p.is_meta for p in (*found.parameters(), *found.buffers()))


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path, caplog, monkeypatch):
    from darkroom.core.errors import DiskFullError

    def full(*_):
        raise DiskFullError("the disk is full")

    monkeypatch.setattr(quantized_cache, "save", full)
    family, model = denoiser("flux")
    place = MemoryPolicy(OPTIONS, CPU, family.blocks, quantized_cache_dir=tmp_path)
    place.load_or_quantize("transformer", "this", lambda: None, lambda: model)

    assert place.quantized_layers["transformer"][1] > 0
    assert "not kept: the disk is full" in caplog.text


def test_the_second_start_does_not_load(tmp_path, caplog):
    family, model = denoiser("flux")
    loaded = []

    def load():
        loaded.append(1)
        return denoiser("flux")[1]

    def start(identity: str = "this", **changes):
        options = SimpleNamespace(**{**vars(OPTIONS), **changes})
        place = MemoryPolicy(options, CPU, family.blocks, quantized_cache_dir=tmp_path)
        return place.load_or_quantize(
            "transformer", identity, lambda: type(model).from_config(model.config), load
        ), place

    first, _ = start()
    second, place = start()
    assert len(loaded) == 1
    assert place.quantized_layers["transformer"][1] > 0
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))

    start("another")
    start(fp8_format="e5m2")
    start(keep_quantised_weights=False)
    start(base_model_precision="no_change")
    assert len(loaded) == 5

    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    start()
    assert len(loaded) == 6
    assert "quantised again" in caplog.text
    start()
    assert len(loaded) == 6
