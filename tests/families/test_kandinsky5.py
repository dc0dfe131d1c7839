"""What only Kandinsky 5 does: its long clips look at a part of themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import Kandinsky5T2VPipeline
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from darkroom import families
from darkroom.families.modules import nabla
from darkroom.families.tiny import build


def test_sparse_attention_is_the_stock_pipelines():
    family = families.get("kandinsky5_video")
    pipe = build(family)
    nabla = {"attention_type": "nabla", "attention_P": 0.9, "attention_wT": 3, "attention_wW": 3, "attention_wH": 3}
    pipe.transformer.register_to_config(**nabla)
    seen = torch.zeros(1, 2, 16, 16, 33)

    mine = family.sparse(pipe.transformer, seen)

    theirs = Kandinsky5T2VPipeline.get_sparse_params(pipe, seen, seen.device)
    assert mine.keys() == theirs.keys()
    assert mine["P"] == 0.9
    assert torch.equal(mine["sta_mask"], theirs["sta_mask"])
    pipe.transformer.register_to_config(attention_type="regular")
    assert family.sparse(SimpleNamespace(config=pipe.transformer.config), seen) is None


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_that_a_cpu_is_given_is_that_of_flex_attention():
    pipe = build(families.get("kandinsky5_video"), {}, "tiny-nabla")
    sparse = families.get("kandinsky5_video").sparse(pipe.transformer, torch.zeros(1, 5, 16, 16, 33))
    tokens = 5 * 64
    q, k, v = (torch.randn(2, tokens, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))

    blocks = nabla._stock(q, k, sparse["sta_mask"], sparse["P"])
    mask = nabla.mask_of(q, k, sparse["sta_mask"], sparse["P"])

    assert mask.shape == (2, 2, tokens, tokens)
    assert not mask.all()
    theirs = flex_attention(*(each.transpose(1, 2) for each in (q, k, v)), block_mask=blocks)
    mine = scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), attn_mask=mask)
    assert torch.allclose(theirs, mine, atol=1e-6)


def test_every_sparse_flavour_chooses_its_kernel_and_its_sizes():
    family = families.get("kandinsky5_video")
    sparse = [name for name in family.flavours if "10s" in name or "pro" in name]

    assert len(sparse) == 7
    for name in family.flavours:
        defaults = family.option_defaults(name)
        assert (defaults.get("attention_mechanism") == "flex") == (name in sparse), name
        assert (defaults["aspect_bucket_alignment"] == 128) == (name in sparse), name
