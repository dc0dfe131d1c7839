"""Stable Cascade's reader of images: EfficientNetV2-S down to a thirty-second of their size, in sixteen channels.

Papers 2104.00298 (the network), 2306.00637 (its use); the default configuration has the parameter names of the public
`effnet_encoder.safetensors`, which are those of torchvision's `efficientnet_v2_s().features` below `backbone`.
Shapes: pixels (B, 3, H, W) in -1..1 to latents (B, 16, H / 32, W / 32), which a batch norm leaves near unit scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from safetensors.torch import load_file
from torch import Tensor, nn

# per stage: is it fused, by what channels widen inside, stride, channels, layers
STAGES = (
    (True, 1, 1, 24, 2),
    (True, 4, 2, 48, 4),
    (True, 4, 2, 64, 4),
    (False, 4, 2, 128, 6),
    (False, 6, 1, 160, 9),
    (False, 6, 2, 256, 15),
)
# what the images of ImageNet were like
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPS = 1e-3
FILE = "effnet_encoder.safetensors"


def build_convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, acts: bool = True
) -> nn.Module:
    """A convolution, its norm and, unless told otherwise, SiLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=EPS),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if acts else []))


class SqueezeExcitation(nn.Module):
    """Channels weighed by what there is of all of them in the whole image (1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.fc2(nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class Block(nn.Module):
    """An inverted bottleneck: widened, convolved, narrowed; fused, the first two are one convolution."""

    def __init__(self, fused: bool, expansion: int, stride: int, channels: int, out: int):
        super().__init__()
        inside = channels * expansion
        if fused and expansion == 1:
            layers = [build_convolution(channels, out, 3, stride)]
        elif fused:
            layers = [build_convolution(channels, inside, 3, stride), build_convolution(inside, out, 1, acts=False)]
        else:
            layers = [
                build_convolution(channels, inside, 1),
                build_convolution(inside, inside, 3, stride, groups=inside),
                SqueezeExcitation(inside, max(1, channels // 4)),
                build_convolution(inside, out, 1, acts=False),
            ]
        self.block = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        answer = self.block(x)
        return x + answer if self.adds else answer


def _public_file(source: Any) -> Path:
    """The file in a folder or of a hub id. Raises OSError."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return path / FILE
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(source), FILE))


class EfficientNetEncoder(ModelMixin, ConfigMixin):
    """In the VAE's place: it encodes, and what decodes are Stable Cascade's other two stages."""

    @register_to_config
    def __init__(
        self,
        stages: Sequence[Sequence[Any]] = STAGES,
        stem_channels: int = 24,
        last_channels: int = 1280,
        latent_channels: int = 16,
    ):
        super().__init__()
        layers: list[nn.Module] = [build_convolution(3, stem_channels, 3, 2)]
        channels = stem_channels
        for fused, expansion, stride, out, count in stages:
            first = Block(fused, expansion, stride, channels, out)
            layers.append(nn.Sequential(first, *(Block(fused, expansion, 1, out, out) for _ in range(count - 1))))
            channels = out
        layers.append(build_convolution(channels, last_channels, 1))
        self.backbone = nn.Sequential(*layers)
        self.mapper = nn.Sequential(
            nn.Conv2d(last_channels, latent_channels, 1, bias=False), nn.BatchNorm2d(latent_channels, affine=False)
        )

    @classmethod
    def from_pretrained(cls, source: Any, subfolder: str = "", **arguments: Any) -> EfficientNetEncoder:
        """From a folder that says how it was made, or from the public file: a file, or what a folder or hub id has."""
        folder = Path(source) / subfolder
        if (folder / "config.json").is_file():
            return super().from_pretrained(source, subfolder=subfolder, **arguments)
        encoder = cls()
        encoder.load_state_dict(load_file(_public_file(source)))
        return encoder.to(arguments.get("dtype") or torch.float32).eval()

    def encode(self, pixels: Tensor) -> Any:
        """`.latent` (B, 16, H / 32, W / 32) of pixels (B, 3, H, W) in -1..1."""
        mean, spread = (pixels.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, SPREAD))
        return SimpleNamespace(latent=self.mapper(self.backbone((pixels / 2 + 0.5 - mean) / spread)))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.encode(pixels).latent)


class StableCascadeVQModel(PaellaVQModel):
    """What makes pixels at the end, of a class that a saved index leads to: diffusers does not find its own by it."""
