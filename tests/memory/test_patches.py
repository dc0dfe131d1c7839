"""Convolutions in pieces answer as whole ones do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from darkroom import families
from darkroom.families import tiny
from darkroom.memory import patches
from tests.rows import each_row


@each_row("limit", [1, 40, 500, 2000])
@each_row(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1, 5), "padding": (1, 0, 2), "stride": (2, 1, 2)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
@each_row("shape", [(2, 4, 11, 7, 5), (1, 4, 5, 13, 6), (1, 4, 5, 6, 12)], ids=str)
@torch.no_grad()
def test_pieces_are_the_whole(limit, settings, shape):
    torch.manual_seed(0)
    conv, x = nn.Conv3d(4, 6, **settings), torch.randn(shape)
    expected = conv(x)

    patches.patch(conv, limit)

    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("name", ["hunyuanvideo", "hunyuanvideo_original", "kandinsky5_video", "wan"])
@torch.no_grad()
def test_a_vae_in_pieces_is_the_same_vae(name, monkeypatch):
    vae = tiny.build(families.get(name)).vae.eval()
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = vae.encode(clip).latent_dist.mode()
    pixels = vae.decode(latents, return_dict=False)[0]
    calls = []
    plain = torch.nn.functional.conv3d
    monkeypatch.setattr(patches.F, "conv3d", lambda *given: calls.append(len(given[0])) or plain(*given))

    patches.patch(vae, 5000)

    torch.testing.assert_close(vae.encode(clip).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents, return_dict=False)[0], pixels, rtol=1e-4, atol=1e-5)
    assert len(calls) > len(patches.find_convolutions(vae))


def test_gradients_pass_through_pieces():
    torch.manual_seed(0)
    conv, x = nn.Conv3d(3, 3, 3, padding=1), torch.randn(1, 3, 9, 4, 4, requires_grad=True)
    conv(x).square().sum().backward()
    expected, x.grad = x.grad, None

    patches.patch(conv, 50)
    conv(x).square().sum().backward()

    torch.testing.assert_close(x.grad, expected)
