"""Step 1: the autoencoder. 64 x 64 x 3 pixels become 16 x 16 latents of 8 channels.

Flux packs 2 x 2 latents into one token, so the denoiser sees 64 tokens of 32 values.

    python recipes/embedded_base/vae.py build/base
    python recipes/embedded_base/vae.py build/base --decoder_only

Under `torchrun --nproc-per-node 2` two one-thread processes share the work. The second command improves the decoder
alone; since the latents do not move, it can run beside the steps that follow.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from common import Ema, average_gradients, cosine, device_and_rank, save_sheet
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from wide import wide_pictures

from darkroom.demo.pictures import draw, grumbo_scene, random_scene

KL_WEIGHT = 3e-4
"""Small: just enough to keep the latents near a unit normal without blurring."""


def build() -> AutoencoderKL:
    """A new autoencoder of about 0.7 M parameters whose residual blocks start as the identity."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,  # pipelines other than Flux ignore the shift, so there is none
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
    with torch.no_grad():  # the second half of the channels is the log-variance: start nearly exact
        vae.encoder.conv_out.bias[8:] = -5.0
        vae.encoder.conv_out.weight[8:] *= 0.1
    return vae


def to_tensor(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (B, 64, 64, 3) to float (B, 3, 64, 64) in -1..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def loss_of(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error for the log. `pixels` is (B, 3, 64, 64) in -1..1.

    Differences between neighbours count extra: they are what makes edges sharp.
    """
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    squared = error.square().mean()
    return error.abs().mean() + squared + 0.5 * edges + KL_WEIGHT * kl, squared


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> tuple[float, np.ndarray]:
    """Mean peak signal-to-noise ratio in dB of the round trip, and the decoded pictures as uint8."""
    pixels = to_tensor(pictures, device)
    back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    squared = (back - pixels).square().mean((1, 2, 3))
    decoded = ((back.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return float((10 * torch.log10(4 / squared)).mean()), decoded


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> float:
    """One over the standard deviation of the latents of base pictures."""
    return float(1 / vae.encode(to_tensor(pictures, device)).latent_dist.mode().std())


def save(vae: AutoencoderKL, folder: Path, device: str) -> None:
    """Write the autoencoder with its scale, a sheet of originals over round trips, and print the figures."""
    rng = np.random.default_rng(77)
    base = np.stack([draw(random_scene(rng), rng) for _ in range(128)])
    groups = {
        "base": base,
        "wide": wide_pictures(64, rng),
        "grumbo": np.stack([draw(grumbo_scene(rng), rng) for _ in range(16)]),
    }
    rows = []
    for name, group in groups.items():
        decibel, decoded = psnr(vae, group, device)
        rows += [*group[:16], *decoded[:16]]
        print(f"  {name} {decibel:.1f} dB", end="")
    scale = measure_scale(vae, base, device)
    print(f"  scaling factor {scale:.3f}", flush=True)
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(folder / "vae")
    save_sheet(rows, folder / "vae.png", columns=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the parts are collected")
    parser.add_argument("--decoder_only", action="store_true", help="go on from the folder with a frozen encoder")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=8, help="pictures per step and process")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--pictures", type=int, default=8000, help="pictures drawn beforehand")
    parser.add_argument("--save_every", type=int, default=400)
    args = parser.parse_args()

    device, rank, world = device_and_rank()
    torch.manual_seed(0)
    rng = np.random.default_rng(rank)
    vae = AutoencoderKL.from_pretrained(args.folder / "vae") if args.decoder_only else build()
    vae.to(device, memory_format=torch.channels_last).encoder.requires_grad_(not args.decoder_only)
    learning = [p for p in vae.parameters() if p.requires_grad]
    pictures = wide_pictures(args.pictures, rng)
    optimizer = torch.optim.AdamW(learning, lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-4)
    ema = Ema(vae, decay=0.995)

    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps, warmup=50, flat=0.3)
        loss, squared = loss_of(vae, to_tensor(pictures[rng.integers(0, len(pictures), args.batch)], device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(vae, world)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        ema.update()
        if rank == 0 and step % 20 == 0:
            print(f"step {step} loss {loss.item():.4f} psnr {10 * math.log10(4 / squared.item()):.1f}", flush=True)
        if rank == 0 and ((step + 1) % args.save_every == 0 or step + 1 == args.steps):
            with ema.swapped_in():
                save(vae, args.folder, device)


if __name__ == "__main__":
    main()
