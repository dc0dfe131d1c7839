"""In which number formats weights are kept and computed."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from darkroom.options.field import SET, Section, option

Quantized = Literal[
    "no_change",
    "int8-quanto",
    "int4-quanto",
    "int2-quanto",
    "int8-torchao",
    "nf4-bnb",
    "int4-torchao",
    "fp8-quanto",
    "fp8uz-quanto",
    "fp8-torchao",
    "uint8-sdnq",
    "uint16-sdnq",
    "int16-sdnq",
    "fp16-sdnq",
    "int8-sdnq",
    "int7-sdnq",
    "int6-sdnq",
    "int5-sdnq",
    "uint5-sdnq",
    "uint4-sdnq",
    "uint3-sdnq",
    "uint2-sdnq",
    "fp8-cast",
    "fp8-block",
    "fp8-channel",
    "fp8-tensor",
]
Attention = Literal[
    "diffusers",
    "xformers",
    "flash-attn",
    "flash-attn-2",
    "flash-attn-3",
    "flash-attn-3-varlen",
    "flex",
    "cudnn",
    "native-efficient",
    "native-flash",
    "native-math",
    "native-npu",
    "native-xla",
    "sla",
    "sageattention",
    "sageattention-int8-fp16-triton",
    "sageattention-int8-fp16-cuda",
    "sageattention-int8-fp8-cuda",
]
# the only ones that can also round what is between the layers
_QUANTO = tuple(name for name in get_args(Quantized) if name.endswith("-quanto"))
_FLOATS = ("fp8-cast", "fp8-block", "fp8-channel", "fp8-tensor")


class PrecisionOptions(Section):
    """Number formats of weights, gradients and computation, and the attention kernel."""

    page: ClassVar[str] = "precision"
    title: ClassVar[str] = "Precision"

    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = option(
        "bf16",
        "Number format of the computation; bf16 suits nearly everything, no means 32 bit, fp8 is bf16 with products of "
        "eight-bit floats.",
        resume="warn",
    )
    base_model_default_dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Number format in which frozen weights are kept when they are not quantised.",
        resume="warn",
        level="advanced",
    )
    base_model_precision: Quantized = option(
        "no_change", "Keep the frozen base in fewer bits to save memory.", resume="warn"
    )
    fp8_format: Literal["e4m3", "e5m2"] = option(
        "e4m3",
        "Of the fp8 choices of base_model_precision: e4m3 rounds finer, e5m2 reaches further.",
        resume="warn",
        level="expert",
        when={"base_model_precision": _FLOATS},
    )
    keep_quantised_weights: bool = option(
        True,
        "Keep a denoiser in an fp8 format on disk as well, so that the next start does not quantise it again.",
        resume="free",
        level="advanced",
        when={"base_model_precision": _FLOATS},
    )
    text_encoder_1_precision: Quantized = option(
        "no_change",
        "Keep the first text encoder in fewer bits to save memory.",
        resume="warn",
        level="advanced",
    )
    text_encoder_2_precision: Quantized = option(
        "no_change",
        "Keep the second text encoder in fewer bits to save memory.",
        resume="warn",
        level="advanced",
    )
    text_encoder_3_precision: Quantized = option(
        "no_change",
        "Keep the third text encoder in fewer bits to save memory.",
        resume="warn",
        level="advanced",
    )
    text_encoder_4_precision: Quantized = option(
        "no_change",
        "Keep the fourth text encoder in fewer bits to save memory.",
        resume="warn",
        level="advanced",
    )
    quantize_via: Literal["cpu", "accelerator", "pipeline"] = option(
        "cpu",
        "Where weights are quantised: on the CPU, on the accelerator, or by diffusers while loading.",
        resume="warn",
        level="advanced",
    )
    quantization_config: dict[str, object] | None = option(
        None,
        "By component or default, how diffusers quantises it while loading: its settings, or one of the precisions.",
        resume="warn",
        json=True,
        level="expert",
        when={"quantize_via": "pipeline"},
    )
    quantize_activations: bool = option(
        False,
        "Quantise activations as well as weights.",
        resume="warn",
        level="expert",
        when={"base_model_precision": _QUANTO},
    )
    gradient_precision: Literal["unmodified", "fp32"] = option(
        "unmodified",
        "Number format in which gradients are accumulated; fp32 helps with many accumulation steps.",
        resume="warn",
        level="expert",
    )
    vae_dtype: Literal["default", "fp32", "fp16", "bf16"] = option(
        "default",
        "Number format of the VAE; default takes what the family is known to need.",
        resume="warn",
        level="advanced",
    )
    disable_tf32: bool = option(
        False,
        "Compute 32-bit products in full precision instead of the faster TF32; what is cached is always encoded so.",
        resume="warn",
        level="expert",
    )
    attention_mechanism: Attention = option(
        "diffusers",
        "Which attention kernel computes; diffusers lets PyTorch choose.",
        resume="warn",
        level="advanced",
    )
    sageattention_usage: Literal["training", "inference", "training+inference"] = option(
        "inference",
        "Whether SageAttention is used for validation, for training, or for both.",
        resume="warn",
        level="expert",
        when={"attention_mechanism": tuple(name for name in get_args(Attention) if name.startswith("sage"))},
    )
    sla_config: dict[str, object] | None = option(
        None,
        "Settings of sparse-linear attention: topk (a share, 0.2), blkq, blkk (64), feature_map (softmax, elu, relu).",
        resume="warn",
        json=True,
        level="expert",
        when={"attention_mechanism": "sla"},
    )
    fuse_qkv_projections: bool = option(
        False,
        "Compute query, key and value of a layer in one product; a LoRA has one A for the three.",
        resume="warn",
        level="expert",
    )
    unet_attention_slice: bool = option(
        False,
        "Compute the attention of a UNet in slices, slower and with less memory.",
        resume="free",
        level="expert",
        families=("sd1x", "sd2x", "sdxl", "kolors"),
    )
    dynamo_backend: str = option(
        "no", "Compiler backend for torch.compile, such as inductor.", resume="warn", level="advanced"
    )
    dynamo_mode: str | None = option(
        None,
        "How hard the compiler tries, such as max-autotune.",
        resume="free",
        aliases=("compile_mode",),
        level="expert",
        when={"dynamo_backend": SET},
    )
    dynamo_fullgraph: bool = option(
        False,
        "Insist that the compiler makes one graph without breaks.",
        resume="free",
        aliases=("compile_fullgraph",),
        level="expert",
        when={"dynamo_backend": SET},
    )
    dynamo_dynamic: bool = option(
        False,
        "Compile for changing shapes, so that every bucket uses the same code.",
        resume="free",
        aliases=("compile_dynamic",),
        level="expert",
        when={"dynamo_backend": SET},
    )
    dynamo_cache_size_limit: int | None = option(
        None,
        "How often a part may be compiled again, for another shape, before it runs uncompiled; torch takes 8.",
        off=True,
        resume="free",
        aliases=("compile_cache_size_limit",),
        ge=1,
        level="expert",
        when={"dynamo_backend": SET},
    )
    dynamo_use_regional_compilation: bool = option(
        True,
        "Compile one block and use it for all, for a quicker start.",
        resume="free",
        level="expert",
        when={"dynamo_backend": SET},
    )
