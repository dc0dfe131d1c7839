"""Fused projections answer as separate ones do, and are a plain LoRA to everybody else."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from darkroom import families
from darkroom.adapters import fused
from darkroom.core.errors import ConfigError
from darkroom.memory import fusing
from tests.memory.test_policy import answer, denoiser

FUSIBLE = (
    "auraflow", "chroma", "flux", "flux2", "kolors", "longcat_image", "pixart_sigma", "sd1x", "sd2x", "sdxl", "wan",
)  # fmt: skip


@pytest.mark.parametrize("name", families.names())
@torch.no_grad()
def test_a_family_is_fused_and_answers_the_same_or_says_why_not(name):
    _, model = denoiser(name)
    if name not in FUSIBLE:
        with pytest.raises(ConfigError, match="fuse_qkv_projections"):
            fusing.fuse(model)
        return
    expected, weights = answer(name, model), sum(p.numel() for p in model.parameters())
    fusing.fuse(model)
    fusing.fuse(model)

    torch.testing.assert_close(answer(name, model), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == weights
    assert fused.find_fused_layers(model)


@pytest.mark.parametrize(("norm", "dual", "fused_ones"), [(None, (), 2), ("rms_norm", (), 0), (None, (0,), 2)])
@torch.no_grad()
def test_only_what_diffusers_fuses_rightly_is_fused(norm, dual, fused_ones):
    import diffusers

    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        qk_norm=norm, dual_attention_layers=dual,
    ).eval()  # fmt: skip
    given = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16), torch.randn(1, 16), torch.tensor([5.0])
    expected = model(*given, return_dict=False)[0]
    if fused_ones:
        fusing.fuse(model)
    else:
        with pytest.raises(ConfigError, match="answers the same from one product"):
            fusing.fuse(model)

    torch.testing.assert_close(model(*given, return_dict=False)[0], expected, rtol=1e-4, atol=1e-5)
    assert sum(name.endswith("to_qkv") for name in fused.find_fused_layers(model)) == fused_ones


def test_a_part_of_a_fused_layer_says_so():
    _, model = denoiser("flux")
    fusing.fuse(model)
    with pytest.raises(RuntimeError, match="part of a fused one"):
        model.transformer_blocks[0].attn.to_q(torch.zeros(1))


def test_targets_become_fused_layers():
    _, model = denoiser("flux")
    fusing.fuse(model)
    usual = LoraConfig(target_modules=["to_q", "to_k", "to_v", "proj_out"])
    chosen = fused.select_targets(usual, model).target_modules
    assert "transformer_blocks.0.attn.to_qkv" in chosen
    assert "proj_out" in chosen
    assert not any(name.endswith(("to_q", "to_added_qkv")) for name in chosen)


def test_a_target_that_is_a_part_alone_is_refused():
    _, model = denoiser("flux")
    fusing.fuse(model)
    with pytest.raises(ConfigError, match="Add to_v to peft_lora_target_modules"):
        fused.select_targets(LoraConfig(target_modules=["to_q", "to_k"]), model)


def test_what_is_split_is_joined_again():
    layers = {"x.to_qkv": ["x.to_q", "x.to_k", "x.to_v"]}
    whole = {"x.to_qkv.lora_A.weight": torch.randn(2, 5), "x.to_qkv.lora_B.weight": torch.randn(12, 2)}
    whole |= {"x.to_qkv.lora_magnitude_vector": torch.randn(12), "y.lora_A.weight": torch.randn(2, 5)}
    apart = fused.split_fused(whole, layers)
    a, b = whole["x.to_qkv.lora_A.weight"], whole["x.to_qkv.lora_B.weight"]

    product = torch.cat([apart[f"{n}.lora_B.weight"] @ apart[f"{n}.lora_A.weight"] for n in layers["x.to_qkv"]])
    torch.testing.assert_close(product, b @ a)
    joined = fused.join_fused(apart, layers)
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


def test_inputs_of_their_own_cannot_be_joined():
    layers = {"x.to_kv": ["x.to_k", "x.to_v"]}
    apart = {f"x.{name}.lora_A.weight": torch.randn(2, 5) for name in ("to_k", "to_v")}
    with pytest.raises(ValueError, match="an A of their own"):
        fused.join_fused(apart, layers)
