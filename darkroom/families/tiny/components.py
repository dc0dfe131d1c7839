"""Small text encoders, autoencoders and image encoders, as classes of the libraries and constructor arguments."""

from __future__ import annotations

from darkroom.families.shared.spec import ComponentSpec

# the token that stands for an image in the tokenizer "llava"
LLAVA_IMAGE_TOKEN = 359


def clip(width: int = 32, vocabulary: int = 514, act: str = "quick_gelu", cls: str = "CLIPTextModel") -> ComponentSpec:
    """A CLIP text encoder of three layers for the alphabet tokenizer."""
    return ComponentSpec(
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


def t5(width: int = 32, cls: str = "T5EncoderModel", vocabulary: int = 152) -> ComponentSpec:
    """A T5 encoder of two layers for the piece tokenizer, or for that of bytes."""
    return ComponentSpec(
        cls,
        {
            "d_model": width,
            "d_kv": 8,
            "d_ff": 37,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": vocabulary,
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


def qwen3(cls: str = "Qwen3Model", layers: int = 2, width: int = 32) -> ComponentSpec:
    """A Qwen3 language model for the chat tokenizer."""
    return ComponentSpec(
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


def llama(
    layers: int,
    width: int = 32,
    cls: str = "LlamaForCausalLM",
    vocabulary: int = 300,
    marks: tuple[int, int, int] = (256, 256, 258),
) -> ComponentSpec:
    """A Llama language model; `marks` are its tokenizer's padding, start and end, as the chat tokenizer has them."""
    pad, start, end = marks
    return ComponentSpec(
        cls,
        {
            **_decoder(vocabulary, layers, width),
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "pad_token_id": pad,
            "bos_token_id": start,
            "eos_token_id": end,
        },
    )


def llava(layers: int, tokens: int = 576) -> ComponentSpec:
    """A Llama language model for the tokenizer of its name, and the image reader it comes with: `tokens` of each."""
    side = int(tokens**0.5)
    return ComponentSpec(
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **llama(layers, vocabulary=450, marks=(0, 1, 2)).config},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": side,
                "patch_size": 1,
            },
            "image_token_index": LLAVA_IMAGE_TOKEN,
            "pad_token_id": 0,
        },
    )


def gemma2(width: int = 32) -> ComponentSpec:
    """A Gemma 2 language model of two layers for its tokenizer."""
    return ComponentSpec(
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


def gemma3(width: int = 32) -> ComponentSpec:
    """A Gemma 3 model of two layers that could also see."""
    return ComponentSpec(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {
                **_decoder(400, 2, width),
                "head_dim": 8,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 2,
                "sliding_window": 32,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 1,
            "boi_token_index": 390,
            "eoi_token_index": 391,
            "image_token_index": 392,
        },
    )


def chatglm(width: int = 32) -> ComponentSpec:
    """A ChatGLM3 language model of two layers for its tokenizer; the class is one of diffusers."""
    return ComponentSpec(
        "diffusers.pipelines.kolors:ChatGLMModel",
        {
            "padded_vocab_size": 320,
            "hidden_size": width,
            "ffn_hidden_size": 37,
            "kv_channels": 8,
            "num_layers": 2,
            "num_attention_heads": 4,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "seq_length": 256,
            "original_rope": True,
            "add_qkv_bias": True,
        },
    )


def mistral3(layers: int, width: int = 32, cls: str = "Mistral3ForConditionalGeneration") -> ComponentSpec:
    """A Mistral 3 language model for the chat tokenizer, and the image reader it comes with."""
    return ComponentSpec(
        cls,
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


def qwen2_vl(width: int = 32, vocabulary: int = 300) -> ComponentSpec:
    """A Qwen2.5-VL language model of two layers for the chat tokenizer, and the image reader it comes with."""
    return ComponentSpec(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                **_decoder(vocabulary, 2, width),
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


def qwen3_vl(layers: int, width: int = 32, cls: str = "Qwen3VLModel") -> ComponentSpec:
    """A Qwen3-VL language model for the chat tokenizer, and the image reader it comes with."""
    return ComponentSpec(
        cls,
        {
            "text_config": {
                **_decoder(300, layers, width),
                "head_dim": 8,
                "max_position_embeddings": 4096,
                "rope_scaling": {
                    "rope_type": "default",
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                    "rope_theta": 5000000.0,
                },
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": width,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
            "vision_start_token_id": 259,
            "vision_end_token_id": 260,
            "image_token_id": 262,
            "video_token_id": 263,
        },
    )


def qwen_image_vae(**changes: object) -> ComponentSpec:
    """A video autoencoder of 16 channels with the published statistics."""
    return ComponentSpec(
        "AutoencoderKLQwenImage",
        {
            "base_dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            **changes,
        },
    )


def kl_vae(channels: int, scaling: float, shift: float | None = None) -> ComponentSpec:
    """An AutoencoderKL with the usual downscale of 8 and the family's own latent channels and scale."""
    return ComponentSpec(
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


def flux2_vae() -> ComponentSpec:
    """An AutoencoderKLFlux2 of 32 channels, whose statistics are those of 2x2 neighbors side by side."""
    return ComponentSpec(
        "AutoencoderKLFlux2",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (8,) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 32,
            "sample_size": 64,
        },
    )


def qwen2_vl_processor() -> ComponentSpec:
    """What hands images to a Qwen2-VL model, few pixels of each; it wants the tokenizer too."""
    limits = {"min_pixels": 56 * 56, "max_pixels": 56 * 112}
    return ComponentSpec(
        "darkroom.families.shared.image_text:Qwen2VLProcessor",
        {"image_processor": ComponentSpec("Qwen2VLImageProcessorPil", limits)},
    )


def siglip(width: int = 32, side: int = 28) -> dict[str, ComponentSpec]:
    """A SigLIP image encoder of two layers that reads squares of `side` pixels, and its processor."""
    return {
        "image_encoder": ComponentSpec(
            "SiglipVisionModel",
            {
                "hidden_size": width,
                "intermediate_size": 37,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": side,
                "patch_size": side // 2,
            },
        ),
        "feature_extractor": ComponentSpec("SiglipImageProcessorPil", {"size": {"height": side, "width": side}}),
    }


def clip_vision(width: int = 32, side: int = 30) -> dict[str, ComponentSpec]:
    """A CLIP image encoder of two layers that reads squares of `side` pixels, and its processor."""
    return {
        "image_encoder": ComponentSpec(
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
        "image_processor": clip_processor(side),
    }


def clip_processor(side: int = 24) -> ComponentSpec:
    """What cuts images to squares of `side` pixels for CLIP."""
    return ComponentSpec(
        "CLIPImageProcessor", {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    )
