"""Tiny random models: complete diffusers folders of a family's own classes, made once from a fixed seed.

Tokenizers are built from the alphabet, so nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom.core.files import digest
from darkroom.families.facts import Part

if TYPE_CHECKING:
    from darkroom.families.base import Family

SEED = 20260101


def clip(width: int = 32, vocabulary: int = 514, act: str = "quick_gelu", cls: str = "CLIPTextModel") -> Part:
    """A CLIP text encoder of three layers for the alphabet tokenizer."""
    return Part(
        cls,
        {
            "hidden_size": width,
            "intermediate_size": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": vocabulary,
            "max_position_embeddings": 77,
            "projection_dim": width,
            "hidden_act": act,
            "bos_token_id": 512,
            "eos_token_id": 513,
            "pad_token_id": vocabulary - 1,
        },
    )


def t5(width: int = 32, cls: str = "T5EncoderModel") -> Part:
    """A T5 encoder of two layers for the piece tokenizer."""
    return Part(
        cls,
        {
            "d_model": width,
            "d_kv": 8,
            "d_ff": 37,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 152,
            "relative_attention_num_buckets": 8,
            "feed_forward_proj": "gated-gelu",
        },
    )


def kl_vae(channels: int, scaling: float, shift: float | None = None) -> Part:
    """An AutoencoderKL with the usual downscale of 8 and the family's own latent channels and scale."""
    return Part(
        "AutoencoderKL",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (8,) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": channels,
            "sample_size": 64,
            "scaling_factor": scaling,
            "shift_factor": shift,
            "use_quant_conv": shift is None,
            "use_post_quant_conv": shift is None,
        },
    )


def clip_vision(width: int = 32, side: int = 30) -> dict[str, Part]:
    """A CLIP image encoder of two layers that reads squares of `side` pixels, and its processor."""
    return {
        "image_encoder": Part(
            "CLIPVisionModel",
            {
                "hidden_size": width,
                "intermediate_size": 37,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": side,
                "patch_size": side // 2,
                "projection_dim": width,
            },
        ),
        "image_processor": Part(
            "CLIPImageProcessor",
            {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}},
        ),
    }


def _clip_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), "<|startoftext|>", "<|endoftext|>", *extra]
    pad = {"pad_token": extra[0]} if extra else {}
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77, **pad)


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(c), -3.0) for c in range(33, 127)] + [("\u2581" + chr(c), -2.5) for c in range(97, 123)]
    pieces += [(chr(c), -4.0) for c in range(192, 192 + 152 - len(pieces))]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "clip": _clip_tokenizer,
    "clip_g": lambda: _clip_tokenizer(("!!",)),
    "t5": _t5_tokenizer,
}


def _of_transformers(part: Part) -> Any:
    """A model from its config, or a processor, which has none."""
    import transformers

    cls = getattr(transformers, part.cls)
    if not hasattr(cls, "config_class"):
        return cls(**part.config)
    return cls(cls.config_class(**part.config)).eval()


def build(family: Family, denoiser: Mapping[str, Any] | None = None, flavour: str = "tiny") -> Any:
    """A tiny pipeline with random weights from the fixed seed; `denoiser` overrides its arguments."""
    import diffusers
    import torch

    spec = family.tiny_for(flavour)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        parts: dict[str, Any] = dict(spec.settings)
        for name, part in {**spec.encoders, **spec.extras}.items():
            parts[name] = _of_transformers(part)
        for name, kind in spec.tokenizers.items():
            parts[name] = TOKENIZERS[kind]()
        parts["vae"] = getattr(diffusers, spec.vae.cls)(**spec.vae.config).eval()
        model = getattr(diffusers, spec.denoiser.cls)(**{**spec.denoiser.config, **(denoiser or {})})
        parts[family.denoiser_part] = model.eval()
        parts["scheduler"] = getattr(diffusers, spec.scheduler.cls)(**spec.scheduler.config)
        pipe = getattr(diffusers, family.pipeline_for(flavour))(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder(family: Family, root: Path, flavour: str = "tiny") -> Path:
    """The folder of a tiny model below `root`, made on first use; its name holds a hash of the recipe."""
    recipe = digest([SEED, dataclasses.asdict(family.tiny_for(flavour)), family.pipeline_for(flavour)])[:12]
    target = Path(root) / f"{family.name}-{recipe}"
    if not target.exists():
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        build(family, flavour=flavour).save_pretrained(temporary)
        try:
            os.replace(temporary, target)
        except OSError:
            # another process was faster; the bytes are the same
            shutil.rmtree(temporary, ignore_errors=True)
    return target
