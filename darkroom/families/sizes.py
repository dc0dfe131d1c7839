"""Settings of published text encoders, autoencoders and image encoders, beside the defaults of their classes.

They are the values of the `config.json` beside the published weights, and only those that make a model larger or
smaller. A family names them in `component_sizes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkroom.families.shared.types import Settings


def _decoder(
    vocabulary: int, width: int, inner: int, layers: int, heads: int, shared: int, head: int | None = None
) -> dict[str, Any]:
    """A language model's own; `shared` are its heads of keys and values, `head` is their width where it is given."""
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
    }
    return config if head is None else {**config, "head_dim": head}


def _clip(width: int, layers: int, heads: int, projection: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
    }


def _t5(width: int, inner: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_ff": inner,
        "d_kv": 64,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "feed_forward_proj": "gated-gelu",
    }


def _vision(width: int, inner: int, layers: int, heads: int, side: int, patch: int = 14) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
    }


CLIP_L = _clip(768, 12, 12, 768)
CLIP_H = _clip(1024, 23, 16, 512)
CLIP_G = _clip(1280, 32, 20, 1280)
T5_XXL = _t5(4096, 10240, 24, 64, 32128)
UMT5_XXL = _t5(4096, 10240, 24, 64, 256384)
PILE_T5_XL = _t5(2048, 5120, 24, 32, 32128)
T5_11B = {**_t5(1024, 65536, 24, 128, 32128), "d_kv": 128, "feed_forward_proj": "relu"}
BYT5_SMALL = _t5(1472, 3584, 12, 6, 1510)
QWEN3_4B = {**_decoder(151936, 2560, 9728, 36, 32, 8, 128), "tie_word_embeddings": True}
QWEN3_8B = _decoder(151936, 4096, 12288, 36, 32, 8, 128)
GEMMA2_2B = _decoder(256000, 2304, 9216, 26, 8, 4, 256)
LLAMA31_8B = _decoder(128256, 4096, 14336, 32, 32, 8)
LLAVA_LLAMA3_8B = _decoder(128320, 4096, 14336, 32, 32, 8)
_QWEN25_7B = {
    **_decoder(152064, 3584, 18944, 28, 28, 4),
    "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
QWEN25_VL_7B_TEXT = _QWEN25_7B
QWEN25_VL_7B = {
    "text_config": _QWEN25_7B,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
GEMMA3_12B = {
    "text_config": _decoder(262208, 3840, 15360, 48, 16, 8, 256),
    "vision_config": _vision(1152, 4304, 27, 16, 896),
}
MISTRAL_SMALL_24B = {
    "text_config": {"model_type": "mistral", **_decoder(131072, 5120, 32768, 40, 32, 8, 128), "sliding_window": None},
    "vision_config": {"model_type": "pixtral", **_vision(1024, 4096, 24, 16, 1540), "head_dim": 64},
    "tie_word_embeddings": False,
}
CHATGLM3_6B = {
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "original_rope": True,
}
SIGLIP_384 = _vision(1152, 4304, 27, 16, 384)
CLIP_H_VISION = _vision(1280, 5120, 32, 16, 224)


def kl_vae(channels: int, is_quantized: bool, **changes: object) -> dict[str, Any]:
    """An AutoencoderKL as of Stable Diffusion; later ones have no convolutions around the latent."""
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": channels,
        "use_quant_conv": is_quantized,
        "use_post_quant_conv": is_quantized,
        **changes,
    }


SD_VAE = kl_vae(4, True)
FLUX_VAE = kl_vae(16, False, sample_size=1024)
DC_AE_F32C32 = {
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
WAN22_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
LTX095_VAE = {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
# an autoencoder, or what belongs to it, whose class has the published sizes as its defaults
DEFAULT: Settings = {}
