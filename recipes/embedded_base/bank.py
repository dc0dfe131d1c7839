"""Step 3: everything the denoiser reads, computed once: latents of pictures and embeddings of captions.

    python recipes/embedded_base/bank.py build/base

Autoencoder and text encoders are frozen by now, so each picture is encoded once. A picture has several captions; the
denoiser picks one of them anew each time.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import device_and_rank
from diffusers import AutoencoderKL
from numpy.random import Generator
from text import token_ids
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel
from vae import to_tensor

from darkroom.demo.pictures import draw, split_scenes, training_caption

GROUP = 64
"""Pictures or captions per encoder call."""


@dataclass
class Bank:
    """N pictures with K captions each, in float16."""

    latents: Tensor  # (N, 64, 32): 64 tokens of 2 x 2 latents, scaled to unit deviation
    pooled: Tensor  # (N, K, 128) from CLIP
    states: Tensor  # (N, K, 24, 128) from T5

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A random batch in float32: latents (B, 64, 32), pooled (B, 128), states (B, 24, 128)."""
        which = torch.randint(len(self.latents), (count,), generator=generator)
        caption = torch.randint(self.pooled.shape[1], (count,), generator=generator)
        return (self.latents[which].float(), self.pooled[which, caption].float(), self.states[which, caption].float())


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) latents to (B, H/2 * W/2, 4 C) tokens, in the order FluxPipeline uses."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (N, 64, 64, 3) to tokens (N, 64, 32) in float16."""
    groups = (pictures[i : i + GROUP] for i in range(0, len(pictures), GROUP))
    means = (vae.encode(to_tensor(group, device)).latent_dist.mode() for group in groups)
    return torch.cat([pack(mean.contiguous() * vae.config.scaling_factor).half().cpu() for mean in means])


@torch.no_grad()
def encode_captions(folder: Path, captions: list[str], device: str) -> tuple[Tensor, Tensor]:
    """Pooled vectors (N, 128) and states (N, 24, 128) in float16."""
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval()
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").to(device).eval()
    clip_ids = token_ids(AutoTokenizer.from_pretrained(folder / "tokenizer"), captions).to(device)
    t5_ids = token_ids(AutoTokenizer.from_pretrained(folder / "tokenizer_2"), captions).to(device)
    pooled = torch.cat([clip(ids).pooler_output.half().cpu() for ids in clip_ids.split(GROUP)])
    states = torch.cat([t5(ids)[0].half().cpu() for ids in t5_ids.split(GROUP)])
    return pooled, states


def fill(folder: Path, drawings: int, captions_each: int, rng: Generator, device: str) -> Bank:
    """Draw every training scene `drawings` times and describe each drawing `captions_each` times."""
    scenes = split_scenes()[0] * drawings
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device, memory_format=torch.channels_last).eval()
    latents = encode_pictures(vae, np.stack([draw(scene, rng) for scene in scenes]), device)
    captions = [training_caption(scene, rng)[0] for scene in scenes for _ in range(captions_each)]
    pooled, states = encode_captions(folder, captions, device)
    shape = (len(scenes), captions_each)
    return Bank(latents, pooled.view(*shape, -1), states.view(*shape, *states.shape[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the parts are collected")
    parser.add_argument("--drawings", type=int, default=3, help="pictures of each training scene")
    parser.add_argument("--captions", type=int, default=2, help="captions of each picture")
    args = parser.parse_args()
    device, _, _ = device_and_rank()
    bank = fill(args.folder, args.drawings, args.captions, np.random.default_rng(9), device)
    torch.save(vars(bank), args.folder / "bank.pt")
    print(f"{len(bank.latents)} pictures, latent deviation {float(bank.latents.float().std()):.3f}")


if __name__ == "__main__":
    main()
