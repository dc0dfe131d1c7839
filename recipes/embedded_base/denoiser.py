"""Step 4: the denoiser, a small Flux transformer trained by flow matching on the bank.

    python recipes/embedded_base/denoiser.py build/base --compile

It can be stopped and started again: it goes on from `denoiser.pt`. What is exported is the average of the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from assemble import pipeline
from bank import Bank
from common import Ema, cosine, device_and_rank, save_sheet
from diffusers import FluxPipeline, FluxTransformer2DModel
from evaluate import generate, score
from muon import Muon
from text import LENGTH, WIDTH
from torch import Tensor, nn

from darkroom.demo.pictures import full_caption, split_scenes

CHANNELS = 32
"""Values per image token: 8 latent channels, 2 x 2 latents."""


def build() -> FluxTransformer2DModel:
    """A new transformer of about 3.6 M parameters; every block starts as the identity and the output at zero."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),  # the first axis is unused for single images: leave it little
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (("norm" in name and name.endswith("linear")) or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in 0..1, (B,): mostly sigmoid(N(1.4, 1.2)), one seventh even.

    Far above the usual mean of 0: with these redundant pictures the shape is settled at 0.7 and more, where the
    caption alone decides, while everything below 0.3 is learned early.
    """
    bell = torch.sigmoid(torch.randn(count, generator=generator) * 1.2 + 1.4)
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 1 / 7, even, bell)


def flow_loss(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    generator: torch.Generator,
    ids: tuple[Tensor, Tensor],
    device: str,
) -> Tensor:
    """Mean squared error of the velocity from data to noise (flow matching, arXiv 2210.02747)."""
    x0, pooled, states = (part.to(device) for part in batch)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    t = draw_times(len(x0), generator).to(device)
    x_t = torch.lerp(x0, noise, t[:, None, None])
    text_ids, image_ids = ids
    pred = model(
        hidden_states=x_t,
        timestep=t,
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]
    return (pred - (noise - x0)).square().mean()


def optimizers_for(model: FluxTransformer2DModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else; biases and norms are not decayed."""
    blocks = [p for part in (model.transformer_blocks, model.single_transformer_blocks) for p in part.parameters()]
    inside = {id(p) for p in blocks if p.ndim == 2}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.02},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [Muon([p for p in blocks if id(p) in inside], lr), torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]


@torch.no_grad()
def judge(folder: Path, model: FluxTransformer2DModel, step: int) -> None:
    """Make 32 fixed held-out scenes through the stock pipeline, save the sheet, print how many are right."""
    scenes = split_scenes()[1][:32]
    pictures = generate(pipeline(folder, model), [full_caption(scene) for scene in scenes], seed=0)
    save_sheet(pictures, folder / "denoiser.png", zoom=2)
    print(f"  step {step} {score(pictures, scenes)}", flush=True)


def save(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], ema: Ema, step: int) -> None:
    """Write everything needed to go on from here."""
    torch.save(
        {
            "model": model.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "average": ema.average,
            "step": step,
        },
        path,
    )


def resume(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], ema: Ema, device: str) -> int:
    """Go on from a checkpoint if there is one; the number of steps done, 0 at a fresh start."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    ema.average, ema.steps = state["average"], state["step"]
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the parts are collected")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--flat", type=float, default=0.4, help="share of the steps before the rate decays")
    parser.add_argument("--save_every", type=int, default=300)
    parser.add_argument("--compile", action="store_true", help="worth it on long runs")
    args = parser.parse_args()

    device, _, _ = device_and_rank()
    torch.manual_seed(0)
    bank = Bank(**torch.load(args.folder / "bank.pt"))
    model = build().to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizers, ema = optimizers_for(model, args.lr), Ema(model, decay=0.998)
    first = resume(args.folder / "denoiser.pt", model, optimizers, ema, device)

    ids = (
        torch.zeros(LENGTH, 3, device=device),
        FluxPipeline._prepare_latent_image_ids(1, 8, 8, device, torch.float32),
    )
    run = torch.compile(model) if args.compile else model
    generator, began, smooth = torch.Generator().manual_seed(500 + first), time.monotonic(), None
    for step in range(first, args.steps):
        rate = args.lr * cosine(step, args.steps, warmup=100, flat=args.flat)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss = flow_loss(run, bank.draw(args.batch, generator), generator, ids, device)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.update()
        value = loss.item()
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {smooth:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save(args.folder / "denoiser.pt", model, optimizers, ema, step + 1)
            with ema.swapped_in():
                model.save_pretrained(args.folder / "transformer")
                judge(args.folder, model, step + 1)


if __name__ == "__main__":
    main()
