"""Sparse-linear attention: by its formula, as all of attention where it leaves nothing out, and in a model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from darkroom.core.errors import ConfigError
from darkroom.memory import sla
from tests.memory.test_policy import answer, denoiser, options

CPU = torch.device("cpu")


def drawn(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(3)]


def layer(width: int, **settings) -> sla.SparseLinear:
    return sla.SparseLinear(width, sla.Settings(**settings), torch.float32, CPU)


def learnt(made: sla.SparseLinear) -> sla.SparseLinear:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def by_hand(q, k, v, made, topk, blkq, blkk):
    """The paper's formula with loops: one head, (L, D) each."""
    length, width = q.shape
    blocks = [range(i, min(i + blkk, length)) for i in range(0, length, blkk)]
    plain = k - k.mean(dim=0)
    rows = []
    for first in range(0, length, blkq):
        mine = range(first, min(first + blkq, length))
        mean = torch.stack([q[i] for i in mine]).mean(dim=0)
        ranked = sorted(blocks, key=lambda b: -float(mean @ torch.stack([plain[i] for i in b]).mean(dim=0)))
        keys = sorted(i for b in ranked[: max(1, int(topk * len(blocks)))] for i in b)
        for i in mine:
            sparse = (q[i] @ k[keys].T / width**0.5).softmax(dim=0) @ v[keys]
            weights = torch.stack([q[i].softmax(dim=0) @ k[j].softmax(dim=0) for j in range(length)])
            rows.append(sparse + made.proj_l(weights @ v / (weights.sum() + sla.EPS)))
    return torch.stack(rows)


@pytest.mark.parametrize(("topk", "blkq", "blkk"), [(0.2, 4, 4), (0.5, 3, 5), (0.01, 8, 2), (1.0, 64, 64)])
@torch.no_grad()
def test_it_is_the_formula(topk, blkq, blkk):
    q, k, v = drawn(2, 3, 22, 8)
    made = learnt(layer(8, topk=topk, blkq=blkq, blkk=blkk))
    expected = [[by_hand(q[b, h], k[b, h], v[b, h], made, topk, blkq, blkk) for h in range(3)] for b in range(2)]
    torch.testing.assert_close(made(q, k, v), torch.stack([torch.stack(heads) for heads in expected]))


@torch.no_grad()
def test_with_all_blocks_and_before_it_learns_it_is_attention():
    q, k, v = drawn(1, 2, 70, 8)
    torch.testing.assert_close(layer(8, topk=1.0)(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert not torch.allclose(layer(8, topk=0.2, blkk=8)(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
def test_the_projection_learns_from_its_zeros(feature_map):
    q, k, v = drawn(1, 2, 20, 8)
    made = layer(8, feature_map=feature_map, blkq=4, blkk=4)
    (made(q, k, v) - F.scaled_dot_product_attention(q, k, v)).square().sum().backward()
    assert made.proj_l.weight.grad.abs().max() > 0


@torch.no_grad()
def test_scale_and_shared_keys_are_minded():
    q, k, v = drawn(1, 4, 20, 8)
    k, v = k[:, :2], v[:, :2]
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa=True)
    torch.testing.assert_close(layer(8, topk=1.0)(q, k, v, scale=0.7), expected)


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan", "qwen_image", "z_image"])
@torch.no_grad()
def test_in_a_model_it_takes_the_place_of_attention(name):
    _, model = denoiser(name)
    expected, files = answer(name, model), model.state_dict().keys()
    sla.add_sparse_linear(model, sla.Settings(topk=1.0), torch.float32, CPU)
    layers = [module for module in model.modules() if isinstance(module, sla.SparseLinear)]

    torch.testing.assert_close(answer(name, model), expected, rtol=1e-4, atol=1e-5)
    assert all(each.calls == 1 for each in layers)
    for each in layers:
        learnt(each)
    assert not torch.allclose(answer(name, model), expected, rtol=1e-4, atol=1e-5)
    for each in layers:
        each.enabled = False
    torch.testing.assert_close(answer(name, model), expected)
    assert model.state_dict().keys() == files


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lumina2", "leaves tokens out"),
        ("ltxvideo", "looks at something else"),
        ("sana", "never asks torch"),
        ("stable_cascade", "looks at something else"),
        ("krea2", "has no attention of diffusers' kind"),
    ],
)
@torch.no_grad()
def test_a_model_that_cannot_have_it_says_why(name, words):
    _, model = denoiser(name)

    def answered() -> torch.Tensor:
        sla.add_sparse_linear(model, sla.Settings(), torch.float32, CPU)
        return answer(name, model)

    with pytest.raises(ConfigError, match=words):
        answered()


@pytest.mark.parametrize(
    ("given", "words"),
    [({"topk": 0}, "topk"), ({"blkx": 3}, "It may hold: topk"), ({"feature_map": "hedgehog"}, "feature_map")],
)
def test_wrong_settings_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        sla.validate_sla(options(sla_config=given), CPU)


def test_a_gpu_needs_the_authors_package():
    with pytest.raises(ConfigError, match="pip install git"):
        sla.validate_sla(options(), torch.device("cuda"))
