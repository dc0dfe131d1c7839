"""musubi-tuner's scripts, and the family, flavour and adapted layers of each architecture, as data.

Layers are those that its network module adapts, under the names that they have in diffusers (musubi.md, 9.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from darkroom.core.errors import missing_option
from darkroom.core.registry import find_nearest

Values = Mapping[str, object]

_ATTENTION = r"(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r"net\.(0\.proj|2)"
_DOUBLE_SINGLE = (
    rf"transformer_blocks\.\d+\.(attn\.{_ATTENTION}|(ff|ff_context)\.{_FEED_FORWARD})"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
)
_GATED = r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.(w1|w2|w3))"


class Flavour(NamedTuple):
    """A flavour, and what is not quite the same about it."""

    name: str
    remark: str = ""


@dataclass(frozen=True)
class Architecture:
    """One architecture of musubi-tuner.

    prefix     of its scripts; caches of HunyuanVideo have none
    family     Darkroom's, or empty where it has none, for the reason in `reason`
    module     last word of its network module
    tasks      values of `task`, `model_version` or `model_type` to flavours; "" is the default
    layers     a regular expression of the layers that its module adapts
    only       options that only its scripts have, by which a config of its own is recognized
    """

    prefix: str
    title: str
    family: str
    module: str
    tasks: Mapping[str, Flavour]
    layers: str = ""
    reason: str = ""
    only: tuple[str, ...] = ()
    families: Mapping[str, str] = field(default_factory=dict)

    def choose(self, values: Values) -> tuple[str, Flavour] | None:
        """Family and flavour; None for a task that is not offered, which raises nothing as the report says it."""
        task = str(values.get("task") or values.get("model_version") or values.get("model_type") or "").lower()
        if values.get("edit_plus"):
            task = "edit-2509"
        elif values.get("edit"):
            task = "edit"
        elif values.get("f1"):
            task = "f1"
        elif self.prefix == "hv_" and str(values.get("dit_in_channels", "")) == "32":
            task = "32"
        elif not task and (values.get("i2v") or values.get("image_encoder")) and "i2v" in self.tasks:
            task = "i2v"
        flavour = self.tasks.get(task)
        if flavour is None:
            return None
        if self.prefix == "fpack_" and values.get("one_frame"):
            return "framepack_one_frame", Flavour("i2v")
        if task in _PAIRS:
            flavour = _choose_expert(task, values)
        if self.prefix == "zimage_" and "turbo" in str(values.get("dit", "")).lower():
            flavour = Flavour("turbo")
        return self.families.get(task, self.family), flavour


_PAIRS = {"t2v-a14b": ("t2v-14b-2.2", 875), "i2v-a14b": ("i2v-14b-2.2", 900)}
"""Tasks of two experts: the flavour of both, and the timestep that divides them."""


def _choose_expert(task: str, values: Values) -> Flavour:
    """Both experts where both files are given, else the one whose timesteps are trained."""
    both, boundary = _PAIRS[task]
    if values.get("dit_high_noise"):
        return Flavour(both, "both experts are trained, each with an adapter of its own")
    try:
        is_high = int(str(values.get("min_timestep") or 0)) >= boundary - 100
    except (TypeError, ValueError):
        is_high = False
    side = "high" if is_high else "low"
    return Flavour(f"{both}-{side}", f"one --dit and its timesteps make it the {side}-noise expert")


def _same(**tasks: str) -> dict[str, Flavour]:
    return {key: Flavour(name) for key, name in tasks.items()}


_DISTILLED = "its distilled weights have no flavour of their own; give them with --dit"
_SAME_SHAPE = "no flavour of its own; the weights are those of --dit"

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "hv_1_5_",
        "HunyuanVideo 1.5",
        "hunyuanvideo",
        "lora_hv_1_5",
        {"": Flavour("t2v-480p"), "t2v": Flavour("t2v-480p"), "i2v": Flavour("i2v-480p")},
        rf"transformer_blocks\.\d+\.(attn\.{_ATTENTION}|(ff|ff_context)\.{_FEED_FORWARD}"
        r"|norm1\.linear|norm1_context\.linear)",
        only=("byt5", "vae_sample_size"),
    ),
    Architecture(
        "hv_",
        "HunyuanVideo",
        "hunyuanvideo_original",
        "lora",
        {"": Flavour("t2v"), "32": Flavour("skyreels-i2v")},
        _DOUBLE_SINGLE,
        only=("dit_in_channels",),
    ),
    Architecture(
        "wan_",
        "Wan 2.1 / 2.2",
        "wan",
        "lora_wan",
        {
            "": Flavour("t2v-480p-14b-2.1"),
            "t2v-14b": Flavour("t2v-480p-14b-2.1"),
            "t2v-1.3b": Flavour("t2v-480p-1.3b-2.1"),
            "t2i-14b": Flavour("t2v-480p-14b-2.1"),
            "i2v": Flavour("i2v-14b-2.1"),
            "i2v-14b": Flavour("i2v-14b-2.1"),
            "flf2v-14b": Flavour("flf2v-14b-2.1-720p"),
            "t2v-1.3b-fc": Flavour("fun-control-1.3b-2.1"),
            "t2v-14b-fc": Flavour("fun-control-14b-2.1"),
            "i2v-14b-fc": Flavour("fun-control-i2v-14b-2.1"),
            "t2v-a14b": Flavour("t2v-14b-2.2"),
            "i2v-a14b": Flavour("i2v-14b-2.2"),
        },
        r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)|ffn\.net\.(0\.proj|2))",
        only=("t5", "dit_high_noise", "force_v2_1_time_embedding", "vae_cache_cpu", "offload_inactive_dit"),
    ),
    Architecture(
        "fpack_",
        "FramePack",
        "framepack",
        "lora_framepack",
        _same(**{"": "i2v", "i2v": "i2v", "f1": "f1"}),
        _DOUBLE_SINGLE,
        only=("latent_window_size", "bulk_decode", "f1"),
    ),
    Architecture("flux_kontext_", "FLUX.1 Kontext", "flux", "lora_flux", {"": Flavour("kontext")}, _DOUBLE_SINGLE),
    Architecture(
        "flux_2_",
        "FLUX.2",
        "flux2",
        "lora_flux_2",
        {
            "": Flavour("dev"),
            "dev": Flavour("dev"),
            "klein-base-4b": Flavour("klein-4b"),
            "klein-base-9b": Flavour("klein-9b"),
            "klein-4b": Flavour("klein-4b", _DISTILLED),
            "klein-9b": Flavour("klein-9b", _DISTILLED),
        },
        r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|(ff|ff_context)\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    ),
    Architecture(
        "qwen_image_",
        "Qwen-Image",
        "qwen_image",
        "lora_qwen_image",
        {
            "": Flavour("v1.0"),
            "original": Flavour("v1.0"),
            "edit": Flavour("edit-v1"),
            "edit-2509": Flavour("edit-v2"),
            "edit-2511": Flavour("edit-v3"),
            "layered": Flavour("layered"),
        },
        rf"transformer_blocks\.\d+\.(attn\.{_ATTENTION}|(img|txt)_mlp\.{_FEED_FORWARD}|(img|txt)_mod\.1)",
        only=("edit", "edit_plus", "remove_first_image_from_target", "num_layers"),
    ),
    Architecture(
        "kandinsky5_",
        "Kandinsky 5",
        "kandinsky5_video",
        "lora_kandinsky",
        {
            "": Flavour("t2v-lite-sft-5s"),
            "k5-lite-t2i-hd": Flavour("t2i-lite-sft"),
            "k5-lite-t2v-5s-sd": Flavour("t2v-lite-sft-5s"),
            "k5-lite-t2v-10s-sd": Flavour("t2v-lite-sft-10s"),
            "k5-lite-t2v-5s-pretrain-sd": Flavour("t2v-lite-pretrain-5s"),
            "k5-lite-t2v-10s-pretrain-sd": Flavour("t2v-lite-pretrain-10s"),
            "k5-lite-t2v-5s-distil-sd": Flavour("t2v-lite-sft-5s", _SAME_SHAPE),
            "k5-lite-t2v-10s-distil-sd": Flavour("t2v-lite-sft-10s", _SAME_SHAPE),
            "k5-lite-t2v-5s-nocfg-sd": Flavour("t2v-lite-sft-5s", _SAME_SHAPE),
            "k5-lite-t2v-10s-nocfg-sd": Flavour("t2v-lite-sft-10s", _SAME_SHAPE),
            "k5-lite-i2v-5s-sd": Flavour("i2v-lite-5s"),
            "k5-pro-t2v-5s-hd": Flavour("t2v-pro-sft-5s-hd"),
            "k5-pro-t2v-10s-hd": Flavour("t2v-pro-sft-10s-hd"),
            "k5-pro-t2v-5s-sd": Flavour("t2v-pro-sft-5s-hd", "the SD weights have no flavour; give them with --dit"),
            "k5-pro-t2v-10s-sd": Flavour("t2v-pro-sft-10s-hd", "the SD weights have no flavour; give them with --dit"),
            "k5-pro-i2v-5s-sd": Flavour("i2v-pro-sft-5s"),
            "k5-pro-i2v-5s-hd": Flavour("i2v-pro-sft-5s", _SAME_SHAPE),
        },
        r"(text|visual)_transformer_blocks\.\d+\.((self|cross)_attention\.(to_query|to_key|to_value|out_layer)"
        r"|feed_forward\.(in_layer|out_layer))",
        families={"k5-lite-t2i-hd": "kandinsky5_image"},
        only=("text_encoder_qwen", "text_encoder_clip", "nabla_method", "override_dit", "scheduler_scale"),
    ),
    Architecture(
        "zimage_", "Z-Image", "z_image", "lora_zimage", {"": Flavour("base")}, _GATED, only=("use_32bit_attention",)
    ),
    Architecture(
        "hidream_o1_",
        "HiDream-O1",
        "",
        "lora_hidream_o1",
        {},
        reason="HiDream-O1 has no class in diffusers; the family hidream here is HiDream-I1, another model",
        only=("noise_scale_start", "noise_scale_end", "noise_clip_std", "dino_loss_weight"),
    ),
    Architecture(
        "ideogram4_",
        "Ideogram 4",
        "ideogram4",
        "lora_ideogram4",
        {"": Flavour("fp8")},
        _GATED,
        only=("unconditional_dit", "sampler_preset", "initial_sigma"),
    ),
    Architecture(
        "krea2_",
        "Krea 2",
        "krea2",
        "lora_krea2",
        {"": Flavour("raw")},
        "all-linear",
        only=("turbo_dit", "turbo_dit_cache"),
    ),
)

TRAIN, FINETUNE, CACHE, GENERATE, TOOL = "train", "finetune", "cache", "generate", "tool"
_ENDINGS = (
    (r"train_network", TRAIN),
    (r"train_network_self_flow", TRAIN),
    (r"train", FINETUNE),
    (r"cache_(latents|pixel|text_encoder_outputs)", CACHE),
    (r"generate_(image|video)", GENERATE),
)
_TOOLS = (
    "merge_lora",
    "convert_lora",
    "lora_post_hoc_ema",
    "qwen_extract_lora",
    "caption_images_by_qwen_vl",
    "convert_z_image_lora_to_comfy",
    "convert_hunyuan_video_1_5_lora_to_comfy",
)
SCRIPTS: tuple[str, ...] = (
    *(f"{a.prefix}train_network" for a in ARCHITECTURES),
    "flux_2_train_network_self_flow",
    *("hv_train", "qwen_image_train", "zimage_train", "hidream_o1_train", "ideogram4_train"),
    *(f"{a.prefix}cache_latents" for a in ARCHITECTURES if a.prefix not in ("hv_", "hidream_o1_")),
    *(f"{a.prefix}cache_text_encoder_outputs" for a in ARCHITECTURES if a.prefix != "hv_"),
    *("cache_latents", "cache_text_encoder_outputs", "hidream_o1_cache_pixel"),
    *(
        f"{a.prefix}generate_{'video' if a.prefix in ('hv_1_5_', 'hv_', 'wan_', 'fpack_', 'kandinsky5_') else 'image'}"
        for a in ARCHITECTURES
    ),
    *_TOOLS,
)
"""Every script, without `.py`."""


@dataclass(frozen=True)
class Script:
    """A script of musubi-tuner: what it is for, and of which architecture (None: a tool)."""

    name: str
    job: str
    architecture: Architecture | None


def find_script(name: str) -> Script:
    """The script called `name`, with or without `.py` and folders. Raises ConfigError with the nearest names."""
    stem = re.split(r"[/\\]", name.strip())[-1].removesuffix(".py")
    if stem not in SCRIPTS:
        hint = find_nearest(stem, SCRIPTS)
        change = f"Did you mean {' or '.join(hint)}?" if hint else "Name one such as wan_train_network."
        raise missing_option(name, "musubi-tuner has no script of this name.", change)
    if stem in _TOOLS:
        return Script(stem, TOOL, None)
    owner = next((a for a in ARCHITECTURES if stem.startswith(a.prefix)), None) or by_module("lora")
    ending = stem.removeprefix(owner.prefix)
    job = next(job for pattern, job in _ENDINGS if re.fullmatch(pattern, ending))
    return Script(stem, job, owner)


def by_module(module: str) -> Architecture:
    """The architecture of a network module."""
    return next(a for a in ARCHITECTURES if a.module == module)


def recognize(values: Values) -> Architecture | None:
    """The architecture of a config that does not name its script, by what only one of them has; None if nothing does.

    The network module counts first, then the task, then options of one architecture alone.
    """
    module = str(values.get("network_module") or "").rpartition(".")[2]
    task = str(values.get("task") or values.get("model_version") or "").lower()
    for architecture in ARCHITECTURES:
        if architecture.module == module:
            return architecture
    if task:
        for architecture in ARCHITECTURES:
            if task in architecture.tasks and (architecture.prefix != "fpack_"):
                return architecture
    return next((a for a in ARCHITECTURES if any(values.get(name) not in (None, "", False) for name in a.only)), None)


def by_family(family: str) -> Architecture | None:
    """The architecture that trains one of Darkroom's families."""
    names = {"framepack_one_frame": "framepack", "kandinsky5_image": "kandinsky5_video"}
    return next((a for a in ARCHITECTURES if a.family == names.get(family, family)), None)
