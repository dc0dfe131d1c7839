"""GGUF files: every layout of a denoiser in packed weights, and what is said of files that do not fit."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from darkroom import families
from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.pretrained import gguf, single_file
from darkroom.pretrained.layouts import LAYOUTS
from darkroom.pretrained.repository import Repository
from darkroom.pretrained.weight_files import Misfit
from tests.families import conformance
from tests.families.gguf_files import written
from tests.families.originals import ORIGINALS, WIDE
from tests.families.test_single_file import ROWS, built, model_of, wanted
from tests.rows import each_row

pytest.importorskip("gguf")
DENOISERS = [row for row in ROWS if row[0] not in WIDE and built()[row[0]][0] == "denoiser"]
# half a step of eight bits, as a share of a row's largest number, and of the four bits of Q4_0
ROUNDING = {"Q8_0": 1 / 254, "Q4_0": 1 / 8, "BF16": 2**-8}
FLOAT = torch.float32
PLAIN = "ZImageTransformer2DModel"


@each_row("cls, number", DENOISERS)
@each_row("kind", ROUNDING)
def test_a_packed_file_in_an_original_layout_becomes_the_same_model_but_for_rounding(cls, number, kind, tmp_path):
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    model, want = model_of(cls), wanted(cls, **LAYOUTS[cls][number].implied_config)
    path = written(tmp_path / "file.gguf", ORIGINALS[cls, number](model.state_dict()), kind)

    single_file.validate_file(want, path)
    made = single_file.load(want, path, torch.float32)

    assert any(isinstance(module, GGUFLinear) for module in made.modules()) == (kind != "BF16")
    found = made.state_dict()
    for key, tensor in model.state_dict().items():
        off = (dequantize_gguf_tensor(found[key]).float() - tensor).abs().max() / tensor.abs().max()
        assert off <= ROUNDING[kind] * 1.2, key


def test_names_of_diffusers_and_a_prefix_are_taken_too(tmp_path):
    state = model_of(PLAIN).state_dict()
    plain = written(tmp_path / "plain.gguf", state, "Q8_0")
    prefixed = written(tmp_path / "prefixed.gguf", {f"model.diffusion_model.{k}": t for k, t in state.items()}, "Q8_0")

    one, other = (single_file.load(wanted(PLAIN), path, torch.bfloat16).state_dict() for path in (plain, prefixed))

    assert one.keys() == other.keys() == state.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_packed_and_no_linear_layer_is_made_whole(tmp_path):
    model = model_of("WanTransformer3DModel")
    path = written(tmp_path / "file.gguf", model.state_dict(), "Q8_0")
    made = single_file.load(wanted("WanTransformer3DModel"), path, torch.bfloat16)

    assert made.scale_shift_table.is_floating_point()
    assert made.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32  # as diffusers keeps it


def test_no_wide_copy_of_a_packed_weight_is_kept_for_the_way_back(tmp_path):
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    made = single_file.load(wanted(PLAIN), written(tmp_path / "a.gguf", model_of(PLAIN).state_dict(), "Q8_0"), FLOAT)
    layer = next(module for module in made.modules() if isinstance(module, GGUFLinear) and module.bias is not None)
    kept, wide = [], dequantize_gguf_tensor(layer.weight).float()
    x = torch.randn(3, layer.in_features, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        answer = layer(x)
    answer.sum().backward()

    assert kept == [torch.uint8]
    torch.testing.assert_close(answer, x @ wide.T + layer.bias)
    torch.testing.assert_close(x.grad, wide.sum(0).expand_as(x))


# -- what does not fit -------------------------------------------------------------------------------------------------


def refused(path) -> str:
    file = {"pretrained_transformer_model_name_or_path": str(path)}
    settings = SimpleNamespace(**{**vars(conformance.options("z_image", "tiny")), **file})
    with pytest.raises(ConfigError) as wrong:
        Repository(families.get("z_image", "tiny"), settings, torch.device("cpu"), torch.float32).examine()
    return str(wrong.value)


@pytest.fixture
def whole(tmp_path):
    return written(tmp_path / "whole.gguf", model_of(PLAIN).state_dict(), "Q8_0")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_said_to_be(share, whole, tmp_path):
    part = tmp_path / "part.gguf"
    part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])

    assert "no GGUF file, or is not whole" in refused(part)


def test_another_kind_of_file_is_said_to_be_none(tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"safetensors" * 100)

    assert "GGUF magic invalid" in refused(other)


def test_a_file_of_another_model_is_told_by_its_names(tmp_path):
    other = written(tmp_path / "other.gguf", model_of("WanTransformer3DModel").state_dict(), "Q8_0")

    said = refused(other)
    assert "Its tensors differ: missing" in said
    assert "The denoiser of Z-Image needs" in said


def test_other_parts_than_denoisers_are_not_taken(tmp_path, whole):
    want = wanted("AutoencoderKL")

    with pytest.raises(Misfit, match="of which only denoisers are read"):
        single_file.validate_file(want, whole)


def test_a_kind_that_diffusers_cannot_unpack_is_said(whole, monkeypatch):
    monkeypatch.setattr("diffusers.quantizers.gguf.utils.SUPPORTED_GGUF_QUANT_TYPES", [])

    with pytest.raises(Misfit, match="diffusers cannot unpack it"):
        single_file.load(wanted(PLAIN), whole, torch.float32)


def test_without_the_package_its_extra_is_named(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)

    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[quant\]"):
        gguf.read_header(whole)
