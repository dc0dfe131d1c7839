"""Key layouts in which published weights come, and how each is converted to the names of diffusers.

    LAYOUTS   class -> layouts other than its own names: key patterns, or the name of a converter of diffusers
    GUESSES   what a file seems to be, by one of its keys, for messages

Every mapping has a round-trip test. `single_file` uses both tables; nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from darkroom.pretrained.weight_files import State

if TYPE_CHECKING:
    from darkroom.families.shared.types import Settings


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to name and split the weights of a class. Patterns match at the start of a key.

    title    description of such a file, for messages
    marker   a pattern for keys that every such file has, and the class itself has not
    splits   a pattern, and what replaces it in the keys of the equal parts that the tensor's rows are cut into
    swaps    keys whose first half of rows, the shift, goes behind the second, the scale
    renames  patterns anywhere in a key, and what replaces each, one after another
    reader   diffusers' converter in `single_file_utils`, called with the renamed keys
    passthrough     keys that the converter would lose
    drops    keys that the class does not use
    implied_config  config values of the class that such a file implies
    """

    title: str
    marker: str
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    swaps: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    reader: str = ""
    passthrough: str = ""
    drops: str = ""
    implied_config: Settings = dataclasses.field(default_factory=dict)

    def convert(self, state: State, config: Mapping[str, object]) -> State:
        """The weights under the names of the class; consumes `state`. Raises what diffusers' converter raises."""
        state = {key: tensor for key, tensor in state.items() if not (self.drops and re.match(self.drops, key))}
        state = self._rename_keys(self._swap_halves(self._split(state)))
        if not self.reader:
            return state
        from diffusers.loaders import single_file_utils

        unread = {key: tensor for key, tensor in state.items() if self.passthrough and re.match(self.passthrough, key)}
        read = getattr(single_file_utils, self.reader)(checkpoint=state, config=dict(config))
        # AuraFlow's converter returns None for missing keys
        return {key: tensor for key, tensor in {**read, **unread}.items() if tensor is not None}

    def _split(self, state: State) -> State:
        for pattern, names in self.splits:
            for key in [key for key in state if re.match(pattern, key)]:
                parts = state.pop(key).chunk(len(names), dim=0)
                state |= {re.sub(pattern, name, key): part for name, part in zip(names, parts, strict=True)}
        return state

    def _swap_halves(self, state: State) -> State:
        for key in [key for key in state if self.swaps and re.match(self.swaps, key)]:
            shift, scale = state[key].chunk(2, dim=0)
            state[key] = torch.cat([scale, shift], dim=0)
        return state

    def _rename_keys(self, state: State) -> State:
        def new(key: str) -> str:
            for pattern, name in self.renames:
                key = re.sub(pattern, name, key)
            return key

        return {new(key): tensor for key, tensor in state.items()}


def diffusers_layout(title: str, marker: str, reader: str, **fields: Any) -> Layout:
    """A layout that diffusers converts."""
    return Layout(title, marker, reader=f"convert_{reader}", **fields)


_LDM_VAE = r"encoder\.down\.0\.block\.0\.conv1\.weight"
_LTX_VAE = {"renames": ((r"^", "vae."),)}  # diffusers' readers of LTX want the prefix that a whole checkpoint has

# the blocks of HunyuanVideo 1.5 as Tencent names them, as Comfy does where it fuses, and the refiner of its text
_HUNYUAN_15 = Layout(
    "HunyuanVideo 1.5 (original names)",
    r"byt5_in\.layernorm\.",
    splits=(
        (r"(.*)\bimg_attn_qkv\b", (r"\1img_attn_q", r"\1img_attn_k", r"\1img_attn_v")),
        (r"(.*)\btxt_attn_qkv\b", (r"\1txt_attn_q", r"\1txt_attn_k", r"\1txt_attn_v")),
        (r"(.*)\bself_attn_qkv\b", (r"\1attn.to_q", r"\1attn.to_k", r"\1attn.to_v")),
    ),
    swaps=r"final_layer\.adaLN_modulation\.1\.",
    renames=(
        (r"^time_in\.mlp\.0\.", "time_embed.timestep_embedder.linear_1."),
        (r"^time_in\.mlp\.2\.", "time_embed.timestep_embedder.linear_2."),
        (r"^txt_in\.t_embedder\.mlp\.0\.", "context_embedder.time_text_embed.timestep_embedder.linear_1."),
        (r"^txt_in\.t_embedder\.mlp\.2\.", "context_embedder.time_text_embed.timestep_embedder.linear_2."),
        (r"^txt_in\.c_embedder\.", "context_embedder.time_text_embed.text_embedder."),
        (r"^txt_in\.input_embedder\.", "context_embedder.proj_in."),
        (r"^txt_in\.individual_token_refiner\.blocks\.", "context_embedder.token_refiner.refiner_blocks."),
        (r"^(context_embedder\..*)\.self_attn_proj\.", r"\1.attn.to_out.0."),
        (r"^(context_embedder\..*)\.adaLN_modulation\.1\.", r"\1.norm_out.linear."),
        (r"^(context_embedder\..*)\.mlp\.", r"\1.ff."),
        (r"^byt5_in\.layernorm\.", "context_embedder_2.norm."),
        (r"^byt5_in\.fc", "context_embedder_2.linear_"),
        (r"^vision_in\.proj\.0\.", "image_embedder.norm_in."),
        (r"^vision_in\.proj\.1\.", "image_embedder.linear_1."),
        (r"^vision_in\.proj\.3\.", "image_embedder.linear_2."),
        (r"^vision_in\.proj\.4\.", "image_embedder.norm_out."),
        (r"^img_in\.", "x_embedder."),
        (r"^cond_type_embedding\.", "cond_type_embed."),
        (r"^double_blocks\.", "transformer_blocks."),
        (r"\.img_mod\.", ".norm1."),
        (r"\.txt_mod\.", ".norm1_context."),
        (r"\.img_attn_([qk])_norm\.", r".attn.norm_\1."),
        (r"\.txt_attn_([qk])_norm\.", r".attn.norm_added_\1."),
        (r"\.img_attn_([qkv])\.", r".attn.to_\1."),
        (r"\.txt_attn_([qkv])\.", r".attn.add_\1_proj."),
        (r"\.img_attn_proj\.", ".attn.to_out.0."),
        (r"\.txt_attn_proj\.", ".attn.to_add_out."),
        (r"\.img_mlp\.", ".ff."),
        (r"\.txt_mlp\.", ".ff_context."),
        (r"\.fc1\.", ".net.0.proj."),
        (r"\.fc2\.", ".net.2."),
        (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
        (r"^final_layer\.linear\.", "proj_out."),
    ),
)
_HUNYUAN_15_VAE = Layout(
    "the VAE of HunyuanVideo 1.5 (original names)",
    r"encoder\.down\.0\.block\.0\.conv1\.conv\.",
    renames=(
        (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
        (r"\.(down|up)\.(\d+)\.\1sample\.", r".\1_blocks.\2.\1samplers.0."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    ),
)
_WAN_T5 = Layout(
    "the text encoder of Wan (original names)",
    r"blocks\.0\.pos_embedding\.embedding\.",
    renames=(
        (r"^token_embedding\.", "shared."),
        (r"^norm\.", "encoder.final_layer_norm."),
        (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
        (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
        (
            r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
            r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
        ),
        (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
        (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
        (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
        (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
    ),
)

# the order of classes is the order in which `guess_content` tries them
LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "Flux2Transformer2DModel": (
        diffusers_layout(
            "FLUX.2 (original names)",
            r"single_stream_modulation\.lin\.",
            "flux2_transformer_checkpoint_to_diffusers",
        ),
    ),
    "ChromaTransformer2DModel": (
        diffusers_layout(
            "Chroma (original names)",
            r"distilled_guidance_layer\.norms\.0\.scale",
            "chroma_transformer_checkpoint_to_diffusers",
        ),
    ),
    "FluxTransformer2DModel": (
        diffusers_layout(
            "FLUX.1 (original names)",
            r"double_blocks\.0\.img_mod\.lin\.",
            "flux_transformer_checkpoint_to_diffusers",
        ),
    ),
    "HunyuanVideo15Transformer3DModel": (_HUNYUAN_15,),
    "HunyuanVideoTransformer3DModel": (
        diffusers_layout(
            "HunyuanVideo (original names)",
            r"single_blocks\.0\.modulation\.linear\.",
            "hunyuan_video_transformer_to_diffusers",
        ),
    ),
    "WanTransformer3DModel": (
        diffusers_layout(
            "Wan (original names)",
            r"head\.modulation$",
            "wan_transformer_to_diffusers",
            # what first and last frames add to image embeddings is unknown to diffusers' reader
            renames=((r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),),
        ),
    ),
    "QwenImageTransformer2DModel": (
        # the class's own names, and an empty tensor that says how references are timed
        Layout(
            "Qwen-Image-Edit 2511 (Comfy)",
            r"__index_timestep_zero__$",
            drops=r"__index_timestep_zero__$",
            implied_config={"zero_cond_t": True},
        ),
    ),
    "SD3Transformer2DModel": (
        diffusers_layout(
            "Stable Diffusion 3 (original names)", r"joint_blocks\.0\.", "sd3_transformer_checkpoint_to_diffusers"
        ),
    ),
    "AuraFlowTransformer2DModel": (
        diffusers_layout(
            "AuraFlow (original names)",
            r"double_layers\.0\.attn\.w2q\.",
            "auraflow_transformer_checkpoint_to_diffusers",
        ),
    ),
    "LTX2VideoTransformer3DModel": (
        diffusers_layout("LTX-2 (original names)", r"audio_patchify_proj\.", "ltx2_transformer_to_diffusers"),
    ),
    "LTXVideoTransformer3DModel": (
        diffusers_layout("LTX-Video (original names)", r"patchify_proj\.", "ltx_transformer_checkpoint_to_diffusers"),
    ),
    "Lumina2Transformer2DModel": (
        diffusers_layout("Lumina 2 (original names)", r"layers\.0\.adaLN_modulation\.1\.", "lumina2_to_diffusers"),
    ),
    "Ideogram4Transformer2DModel": (
        Layout(
            "Ideogram 4 (original names)",
            r"layers\.0\.attention\.qkv\.",
            splits=(
                (
                    r"(layers\.\d+\.attention)\.qkv\.",
                    (r"\1.to_q.", r"\1.to_k.", r"\1.to_v."),
                ),
            ),
            renames=((r"^(layers\.\d+\.attention)\.o\.", r"\1.to_out.0."),),
        ),
    ),
    "ZImageTransformer2DModel": (
        diffusers_layout(
            "Z-Image (Comfy)", r"layers\.0\.attention\.qkv\.", "z_image_transformer_checkpoint_to_diffusers"
        ),
    ),
    "SanaTransformer2DModel": (
        diffusers_layout("Sana (original names)", r"attention_y_norm\.", "sana_transformer_to_diffusers"),
    ),
    "CosmosTransformer3DModel": (
        diffusers_layout(
            "Cosmos-Predict2 (original names)",
            r"blocks\.0\.adaln_modulation_self_attn\.",
            "cosmos_transformer_checkpoint_to_diffusers",
        ),
    ),
    "Krea2Transformer2DModel": (
        diffusers_layout(
            "Krea 2 (original names)", r"txtfusion\.projector\.", "krea2_transformer_checkpoint_to_diffusers"
        ),
    ),
    "StableCascadeUNet": (
        diffusers_layout(
            "Stable Cascade (original names)",
            r"down_blocks\.\d+\.\d+\.attention\.attn\.in_proj_weight",
            "stable_cascade_unet_single_file_to_diffusers",
        ),
    ),
    "UNet2DConditionModel": (
        diffusers_layout(
            "a Stable Diffusion UNet (original names)",
            r"input_blocks\.0\.0\.",
            "ldm_unet_checkpoint",
            renames=((r"^", "model.diffusion_model."),),  # its reader looks below nothing else
        ),
    ),
    "AutoencoderKL": (
        diffusers_layout("a Stable Diffusion or FLUX.1 VAE (original names)", _LDM_VAE, "ldm_vae_checkpoint"),
        # diffusers' own names until 2023, in which several published VAEs still are
        Layout(
            "a VAE (diffusers' old names)",
            r"encoder\.mid_block\.attentions\.0\.query\.",
            renames=(
                (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
                (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
                (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
                (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
            ),
        ),
    ),
    "AutoencoderKLFlux2": (
        diffusers_layout(
            "the VAE of FLUX.2 (original names)",
            _LDM_VAE,
            "ldm_vae_checkpoint",
            renames=((r"^encoder\.quant_conv\.", "quant_conv."), (r"^decoder\.post_quant_conv\.", "post_quant_conv.")),
            passthrough=r"bn\.",
        ),
    ),
    "AutoencoderKLHunyuanVideo15": (_HUNYUAN_15_VAE,),
    "AutoencoderKLWan": (
        diffusers_layout(
            "the VAE of Wan 2.1 or Qwen-Image (original names)",
            r"decoder\.middle\.0\.residual\.0\.gamma",
            "wan_vae_to_diffusers",
        ),
    ),
    "AutoencoderKLQwenImage": (
        diffusers_layout(
            "the VAE of Qwen-Image (Comfy)", r"decoder\.middle\.0\.residual\.0\.gamma", "wan_vae_to_diffusers"
        ),
    ),
    "AutoencoderKLLTXVideo": (
        diffusers_layout(
            "the VAE of LTX-Video (original names)",
            r"per_channel_statistics\.",
            "ltx_vae_checkpoint_to_diffusers",
            **_LTX_VAE,
        ),
    ),
    "AutoencoderKLLTX2Video": (
        diffusers_layout(
            "the VAE of LTX-2 (original names)", r"per_channel_statistics\.", "ltx2_vae_to_diffusers", **_LTX_VAE
        ),
    ),
    "AutoencoderDC": (
        diffusers_layout(
            "the VAE of Sana (original names)", r"encoder\.stages\.", "autoencoder_dc_checkpoint_to_diffusers"
        ),
    ),
    "UMT5EncoderModel": (_WAN_T5,),
}

ADAPTER = r"lora_|.*\.lora|.*\.(hada_w|lokr_w|dora_scale|oft_)"
QUANTIZED = (
    r"scaled_fp8$|.*\.(scale_weight|scale_input|weight_scale|weight_scale_inv|comfy_quant|absmax|quant_map"
    r"|weight\.(absmax|quant_map|quant_state.*)|qweight)$"
)

# of files in no layout above; the first row that fits says it
_GUESSES_BEFORE = (
    (ADAPTER, "a LoRA or another adapter"),
    (QUANTIZED, "a quantized file"),
    (r"control_model\.|.*\bcontrolnet_(blocks|cond_embedding|x_embedder|down_blocks)", "a ControlNet"),
    (r"(.*\.)?label_emb\.0\.0\.", "Stable Diffusion XL (original names)"),
    (r"(.*\.)?encoder\.quant_conv\.", "the VAE of FLUX.2 (original names)"),
    (r"(.*\.)?encoder\.downsamples\.0\.downsamples\.", "the VAE of Wan 2.2 5B (original names, which nobody converts)"),
)
_GUESSES_AFTER = (
    (r"clean_x_embedder\.", "FramePack"),
    (r"byt5_in\.|context_embedder_2\.", "HunyuanVideo 1.5"),
    (r"context_embedder\.token_refiner\.", "HunyuanVideo"),
    (r"single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj\.", "FLUX.2"),
    (r"single_transformer_blocks\.0\.proj_mlp\.", "FLUX.1 or a relative of it"),
    (r"double_stream_blocks\.0\.block\.", "HiDream-I1"),
    (r"transformer_blocks\.0\.img_mod\.", "Qwen-Image"),
    (r"condition_embedder\.time_embedder\.", "Wan"),
    (r"visual_transformer_blocks\.", "Kandinsky 5"),
    (r"all_x_embedder\.", "Z-Image"),
    (r"text_fusion\.", "Krea 2"),
    (r"joint_transformer_blocks\.", "AuraFlow"),
    (r"audio_proj_in\.", "LTX-2"),
    (r"transformer_blocks\.0\.attn\.add_q_proj\.", "a transformer with joint attention, such as Stable Diffusion 3"),
    (r"down_blocks\.0\.resnets\.0\.", "a UNet"),
    (r"(vae\.|first_stage_model\.)?(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.", "a VAE"),
    (r"encoder\.block\.0\.layer\.0\.SelfAttention\.", "a T5 text encoder"),
    (r"(text_model\.)?(embeddings\.token_embedding|encoder\.layers\.0\.self_attn)\.", "a CLIP text encoder"),
    (r"(vision_model|visual)\.", "an image encoder"),
    (r"((model|language_model)\.)*layers\.0\.self_attn\.q_proj\.", "a language model"),
    (r"(transformer_)?blocks\.0\.", "the transformer of another model"),
)
GUESSES: tuple[tuple[str, str], ...] = (
    *_GUESSES_BEFORE,
    *((rf"(.*\.)?{layout.marker}", layout.title) for rows in LAYOUTS.values() for layout in rows),
    *_GUESSES_AFTER,
)


def guess_content(keys: Iterable[str]) -> str:
    """A description of what a file with these keys seems to hold; empty if unknown."""
    keys = list(keys)
    return next((title for pattern, title in GUESSES if any(re.match(pattern, key) for key in keys)), "")


def find_layout(cls: str, keys: Iterable[str]) -> Layout | None:
    """The layout of keys without a prefix; None if they have the names of the class."""
    keys = list(keys)
    rows = LAYOUTS.get(cls, ())
    return next((row for row in rows if any(re.match(row.marker, key) for key in keys)), None)
