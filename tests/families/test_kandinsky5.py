"""What only Kandinsky 5 does: its long clips look at a part of themselves."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import Kandinsky5T2VPipeline

from darkroom import families
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
