"""Which layers of each published network may be put into fewer bits: those that attend and those that feed forward."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from darkroom import families
from darkroom.core.narrow import find_narrowable_layers, find_sensitive_layers
from darkroom.families import tiny
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.pretrained import single_file
from darkroom.pretrained.components import Components
from tests.families import conformance
from tests.rows import each_row

# by the last parts of their names, numbers aside: looked at one by one
ATTENTION = {
    *("to_q", "to_k", "to_v", "to_out", "to_query", "to_key", "to_value", "to_gate", "to_qkv_mlp_proj", "out_layer"),
    *("to_q_t", "to_k_t", "to_v_t", "to_out_t", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("attn.qkv", "attn.proj", "cross_attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "kv_mapper"),
}
FEED_FORWARD = {
    *("net", "net.proj", "proj_mlp", "w1", "w2", "w3", "in_layer", "linear_in", "linear_out", "ff.up", "ff.gate"),
    *("ff.down", "gate_up_proj", "down_proj", "channelwise", "ff.linear_1", "ff.linear_2", "ff.out_projection"),
    *("ff_context.linear_1", "ff_context.linear_2", "ff_context.out_projection"),
    *("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
}
# the ways in and out of a UNet's attention, and of a single block
PASSAGES = {"attentions.proj_in", "attentions.proj_out", "single_transformer_blocks.proj_out"}
PUBLISHED = sorted(
    {
        (name, json.dumps(families.get(name, flavour).spec.denoiser_sizes)): (name, flavour)
        for name in families.names()
        for flavour in families.get(name).flavours
        if families.get(name, flavour).spec.denoiser_sizes is not None
    }.values()
)


@each_row("name, flavour", PUBLISHED)
def test_only_layers_of_blocks_that_attend_or_feed_forward_become_narrow(name, flavour):
    family = families.get(name, flavour)
    model = single_file.build_shapes(family.denoiser, family.spec.denoiser_sizes)

    plain = [re.sub(r"\.\d+", "", layer) for layer, _ in find_narrowable_layers(model, family.blocks)]

    assert plain
    for layer in set(plain):
        assert layer.startswith(family.blocks)
        assert any(layer.endswith(f".{end}") or layer == end for end in ATTENTION | FEED_FORWARD | PASSAGES), layer


def test_what_makes_chromas_modulation_and_its_last_projection_stay_wide():
    family = families.get("chroma")
    model = single_file.build_shapes(family.denoiser, resolve_flavour(family, "base").denoiser_sizes)

    wide = find_sensitive_layers(model, family.blocks)

    assert "proj_out" in wide
    approximator = [n for n, m in model.named_modules() if "distilled_guidance" in n and isinstance(m, nn.Linear)]
    assert len(approximator) == 12
    assert set(approximator) <= set(wide)
    assert not any(layer.startswith(family.blocks) for layer in wide)


@pytest.mark.parametrize("preset", ["int8-quanto", "int8-torchao"])
@pytest.mark.parametrize("name", ["chroma", "flux", "qwen_image"])
def test_what_diffusers_quantises_while_loading_keeps_them_wide_too(name, preset, tmp_path):
    family = families.get(name)
    tiny.build(family).save_pretrained(tmp_path)
    changes = {
        "quantize_via": "pipeline",
        "base_model_precision": preset,
        "pretrained_model_name_or_path": str(tmp_path),
    }
    settings = SimpleNamespace(**{**vars(conformance.options(name, "tiny")), **changes})
    model = Components(family, settings, torch.device("cpu"), torch.float32).denoiser()

    narrow = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and type(m.weight) is not nn.Parameter}

    assert narrow
    assert narrow <= {layer for layer, _ in find_narrowable_layers(tiny.build(family).transformer, family.blocks)}
