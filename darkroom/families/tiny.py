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


def _decoder(vocabulary: int, layers: int, width: int) -> dict[str, int]:
    """What small language models have in common: four heads over two keys."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 37,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def qwen3(cls: str = "Qwen3Model", layers: int = 2, width: int = 32) -> Part:
    """A Qwen3 language model for the chat tokenizer."""
    return Part(
        cls,
        {
            **_decoder(300, layers, width),
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "pad_token_id": 256,
            "eos_token_id": 258,
            "bos_token_id": 256,
        },
    )


def gemma2(width: int = 32) -> Part:
    """A Gemma 2 language model of two layers for its tokenizer."""
    return Part(
        "Gemma2Model",
        {
            **_decoder(400, 2, width),
            "head_dim": 8,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "sliding_window": 32,
        },
    )


def mistral3(layers: int, width: int = 32) -> Part:
    """A Mistral 3 language model for the chat tokenizer, and the picture reader it comes with."""
    return Part(
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {
                "model_type": "mistral",
                **_decoder(300, layers, width),
                "head_dim": 8,
                "max_position_embeddings": 4096,
                "sliding_window": None,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_index": 262,
            "spatial_merge_size": 1,
        },
    )


def qwen2_vl(width: int = 32) -> Part:
    """A Qwen2.5-VL language model of two layers for the chat tokenizer, and the picture reader it comes with."""
    return Part(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                **_decoder(300, 2, width),
                "max_position_embeddings": 4096,
                "bos_token_id": 256,
                "eos_token_id": 258,
                "rope_scaling": {
                    "type": "default",
                    "rope_type": "default",
                    "mrope_section": [1, 1, 2],
                    "rope_theta": 1000000.0,
                },
                "rope_theta": 1000000.0,
                "use_sliding_window": False,
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": width,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "in_channels": 3,
            },
            "vision_start_token_id": 259,
            "vision_end_token_id": 260,
            "image_token_id": 262,
            "video_token_id": 263,
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


CHAT_MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# the real tokenizer has one token for each of these; pipelines drop a fixed number of tokens of their templates
CHAT_WORDS = (
    "system", "user", "assistant", "<think>", "</think>", "Describe", " the", " image", " by", " detailing",
    " color", " shape", " size", " texture", " quantity", " text", " spatial", " relationships", " of", " objects",
    " and", " background",
)  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if message.content is string else message.content | map(attribute='text') | join }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def _chat_tokenizer() -> Any:
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[], chat_template=CHAT)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in CHAT_MARKS], special_tokens=True)
    tokenizer.add_tokens(list(CHAT_WORDS))
    return tokenizer


def _gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], add_bos_token=True)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "clip": _clip_tokenizer,
    "clip_g": lambda: _clip_tokenizer(("!!",)),
    "t5": _t5_tokenizer,
    "chat": _chat_tokenizer,
    "gemma": _gemma_tokenizer,
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
        for module in parts["vae"].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # a fresh one knows mean 0 and spread 1, which hide whether anybody asks it
                mean, spread = module.running_mean, module.running_var
                assert mean is not None
                assert spread is not None
                mean.normal_(std=0.5)
                spread.uniform_(0.5, 2)
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
