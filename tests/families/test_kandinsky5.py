"""What only Kandinsky 5 does: its long clips look at a part of themselves."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import Kandinsky5T2VPipeline

from darkroom import families
from darkroom.families.modules import nabla
from darkroom.families.shared.model_spec import resolve_flavour
from darkroom.families.tiny import build


def test_sparse_attention_is_the_stock_pipelines():
    family = families.get("kandinsky5_video", "tiny")
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


def heads(tokens: int = 5 * 64) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, (B, S, heads, D)."""
    return tuple(torch.randn(2, tokens, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))


def sparse() -> dict:
    pipe = build(families.get("kandinsky5_video", "tiny"), {}, "tiny-nabla")
    return families.get("kandinsky5_video", "tiny").sparse(pipe.transformer, torch.zeros(1, 5, 16, 16, 33))


def test_on_a_cpu_each_group_looks_at_the_groups_that_diffusers_names():
    q, k, _ = heads()
    asked = sparse()

    groups = nabla._mask(q, k, asked["sta_mask"], asked["P"])
    mask = nabla.mask_of(q, k, asked["sta_mask"], asked["P"])

    assert not mask.all()
    for each in range(5):
        named = groups.full_kv_indices[1, 0, each, : groups.full_kv_num_blocks[1, 0, each]]
        rows = mask[1, 0, each * 64 : each * 64 + 64].unflatten(1, (5, 64))
        assert rows.all(dim=0).all(dim=1).nonzero().flatten().tolist() == sorted(named.tolist())
        assert rows.any(dim=0).any(dim=1).sum() == len(named)


def test_every_sparse_flavour_chooses_its_kernel_and_its_sizes():
    family = families.get("kandinsky5_video", "tiny")
    sparse = [name for name in family.flavours if "10s" in name or "pro" in name]

    assert len(sparse) == 7
    for name in family.flavours:
        defaults = resolve_flavour(family, name).defaults
        assert (defaults.get("attention_mechanism") == "flex") == (name in sparse), name
        assert (defaults["aspect_bucket_alignment"] == 128) == (name in sparse), name
