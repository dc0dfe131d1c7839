"""From a class's own weights back to each original layout: the inverse of `families.layouts`, written a second time.

A layout without an entry in `ORIGINALS` fails the tests. `SIZES` are settings of a class that a reader of diffusers
insists on, where it has the published widths written into it (`WIDE`) or knows only the published blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

State = dict[str, torch.Tensor]
QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def back(
    *renames: tuple[str, str], joins: Any = (), swaps: str = "", flat: str = "", convs: str = "", adds: Any = ()
) -> Callable[[State], State]:
    """Parts are joined along their rows, halves swapped, keys renamed.

    joins   where (a pattern for what is before the parts), the parts in order, the name of what they become
    flat    keys of tensors that lose their shape; convs: of those that are convolutions of one position
    adds    keys that the original has besides
    """

    def original(state: State) -> State:
        state = dict(state)
        for where, parts, whole in joins:
            for key in list(state):
                found = re.fullmatch(rf"({where})\.{re.escape(parts[0])}\.(weight|bias)", key)
                if found:
                    before, kind = found.group(1), found.group(found.lastindex)
                    tensors = [state.pop(f"{before}.{part}.{kind}") for part in parts]
                    state[f"{before}.{whole}.{kind}"] = torch.cat(tensors)
        for key in [key for key in state if swaps and re.match(swaps, key)]:
            state[key] = torch.cat(state[key].chunk(2)[::-1])
        for key in [key for key in state if flat and re.match(flat, key)]:
            state[key] = state[key].flatten()
        for key in [key for key in state if convs and re.match(convs, key)]:
            state[key] = state[key][..., None, None]
        named = {}
        for key, tensor in state.items():
            for pattern, name in renames:
                key = re.sub(pattern, name, key)
            named[key] = tensor
        return named | {key: torch.zeros(1) for key in adds}

    return original


JOINT = r"(?:joint_)?transformer_blocks\.\d+\.attn"
EMBEDDERS = (
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"^context_embedder\.(weight|bias)", r"txt_in.\1"),
    (r"^x_embedder\.(weight|bias)", r"img_in.\1"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out\.", "final_layer.linear."),
)
DOUBLE = (
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear", ".img_mod.lin"),
    (r"\.norm1_context\.linear", ".txt_mod.lin"),
    (r"^(double.*)\.attn\.norm_q\.weight", r"\1.img_attn.norm.query_norm.scale"),
    (r"^(double.*)\.attn\.norm_k\.weight", r"\1.img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.qkv\.", ".img_attn.qkv."),
    (r"\.attn\.added_qkv\.", ".txt_attn.qkv."),
    (r"^(double.*)\.attn\.to_out\.0", r"\1.img_attn.proj"),
    (r"\.attn\.to_add_out", ".txt_attn.proj"),
    (r"\.ff\.net\.0\.proj|\.ff\.linear_in", ".img_mlp.0"),
    (r"\.ff\.net\.2|\.ff\.linear_out", ".img_mlp.2"),
    (r"\.ff_context\.net\.0\.proj|\.ff_context\.linear_in", ".txt_mlp.0"),
    (r"\.ff_context\.net\.2|\.ff_context\.linear_out", ".txt_mlp.2"),
)
SINGLE = (
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^(single.*)\.norm\.linear", r"\1.modulation.lin"),
    (r"^(single.*)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"^(single.*)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"^(single.*)\.attn\.to_qkv_mlp_proj", r"\1.linear1"),
    (r"^(single.*)\.attn\.to_out", r"\1.linear2"),
    (r"^(single.*)\.proj_out", r"\1.linear2"),
)
BLOCKS = (
    (JOINT, QKV, "qkv"),
    (JOINT, ADDED, "added_qkv"),
    (r"single_transformer_blocks\.\d+", (*(f"attn.{part}" for part in QKV), "proj_mlp"), "linear1"),
)
FLUX_2_TOP = (
    (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"^(\w+_stream_modulation\w*)\.linear", r"\1.lin"),
)
CHROMA_TOP = (
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_1", r"\1.in_layer"),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_2", r"\1.out_layer"),
    (r"^(distilled_guidance_layer\.norms\.\d+)\.weight", r"\1.scale"),
)
HUNYUAN_TEXT = (
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
    (r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
    (r"^context_embedder\.proj_in", "txt_in.input_embedder"),
    (r"^context_embedder\.token_refiner\.refiner_blocks\.", "txt_in.individual_token_refiner.blocks."),
    (r"^(txt_in.*)\.norm_out\.linear", r"\1.adaLN_modulation.1"),
    (r"^(txt_in.*)\.attn\.to_out\.0", r"\1.self_attn_proj"),
    (r"^(txt_in.*)\.attn\.qkv", r"\1.self_attn_qkv"),
    (r"^(txt_in.*)\.ff\.", r"\1.mlp."),
)
HUNYUAN_BLOCKS = (
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^(double.*)\.norm1\.linear", r"\1.img_mod.linear"),
    (r"\.norm1_context\.linear", ".txt_mod.linear"),
    (r"^(double.*)\.attn\.norm_([qk])\.", r"\1.img_attn_\2_norm."),
    (r"\.attn\.norm_added_([qk])\.", r".txt_attn_\1_norm."),
    (r"^(double.*)\.attn\.qkv", r"\1.img_attn_qkv"),
    (r"\.attn\.added_qkv", ".txt_attn_qkv"),
    (r"^(double.*)\.attn\.to_([qkv])\.", r"\1.img_attn_\2."),
    (r"\.attn\.add_([qkv])_proj\.", r".txt_attn_\1."),
    (r"^(double.*)\.attn\.to_out\.0", r"\1.img_attn_proj"),
    (r"\.attn\.to_add_out", ".txt_attn_proj"),
    (r"^(double.*)\.ff\.", r"\1.img_mlp."),
    (r"\.ff_context\.", ".txt_mlp."),
    (r"\.net\.0\.proj", ".fc1"),
    (r"\.net\.2", ".fc2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^x_embedder\.", "img_in."),
)
REFINER = (r"context_embedder\.token_refiner\.refiner_blocks\.\d+\.attn", QKV, "qkv")
HUNYUAN_15_TOP = (
    (r"^time_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"^time_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"^context_embedder_2\.norm", "byt5_in.layernorm"),
    (r"^context_embedder_2\.linear_", "byt5_in.fc"),
    (r"^image_embedder\.norm_in", "vision_in.proj.0"),
    (r"^image_embedder\.linear_1", "vision_in.proj.1"),
    (r"^image_embedder\.linear_2", "vision_in.proj.3"),
    (r"^image_embedder\.norm_out", "vision_in.proj.4"),
    (r"^cond_type_embed\.", "cond_type_embedding."),
)
HUNYUAN_TOP = (
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^(single.*)\.norm\.linear", r"\1.modulation.linear"),
    (r"^(single.*)\.attn\.norm_([qk])\.", r"\1.\2_norm."),
    (r"^(single.*)\.proj_out", r"\1.linear2"),
)
WAN = back(
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"),
    (r"\.ffn\.net\.2", ".ffn.2"),
)
SD3 = back(
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^transformer_blocks\.(\d+)\.(.*(?:_context|added|add_).*)", r"joint_blocks.\1.context_block.\2"),
    (r"^transformer_blocks\.(\d+)\.", r"joint_blocks.\1.x_block."),
    (r"\.norm1(_context)?\.linear", ".adaLN_modulation.1"),
    (r"\.added_qkv", ".qkv"),
    (r"\.norm_(?:added_)?([qk])\.", r".ln_\1."),
    (r"\.to_(?:add_)?out(\.0)?\.", ".proj."),
    (r"\.ff(_context)?\.net\.0\.proj", ".mlp.fc1"),
    (r"\.ff(_context)?\.net\.2", ".mlp.fc2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out\.", "final_layer.linear."),
    joins=((r"transformer_blocks\.\d+\.attn2?", QKV, "qkv"), (JOINT, ADDED, "added_qkv")),
    swaps=r"norm_out\.linear|transformer_blocks\.1\.norm1_context",  # the last block answers scale before shift
)
AURA = back(
    (r"^pos_embed\.pos_embed", "positional_encoding"),
    (r"^pos_embed\.proj", "init_x_linear"),
    (r"^context_embedder", "cond_seq_linear"),
    (r"^time_step_proj\.linear_1", "t_embedder.mlp.0"),
    (r"^time_step_proj\.linear_2", "t_embedder.mlp.2"),
    (r"^norm_out\.linear", "modF.1"),
    (r"^proj_out\.", "final_linear."),
    (r"^joint_transformer_blocks\.", "double_layers."),
    (r"^single_transformer_blocks\.", "single_layers."),
    (r"^(double.*)\.norm1\.linear", r"\1.modX.1"),
    (r"^(double.*)\.norm1_context\.linear", r"\1.modC.1"),
    (r"^(single.*)\.norm1\.linear", r"\1.modCX.1"),
    (r"^(double.*)\.ff\.", r"\1.mlpX."),
    (r"\.ff_context\.", ".mlpC."),
    (r"\.ff\.", ".mlp."),
    (r"\.linear_([12])\.", r".c_fc\1."),
    (r"\.out_projection\.", ".c_proj."),
    (r"^(double.*)\.attn\.to_([qkv])\.", r"\1.attn.w2\2."),
    (r"^(double.*)\.attn\.to_out\.0\.", r"\1.attn.w2o."),
    (r"\.attn\.add_([qkv])_proj\.", r".attn.w1\1."),
    (r"\.attn\.to_add_out\.", ".attn.w1o."),
    (r"\.attn\.to_([qkv])\.", r".attn.w1\1."),
    (r"\.attn\.to_out\.0\.", ".attn.w1o."),
    swaps=r"norm_out\.linear",
)
LTX = (
    (r"^proj_in", "patchify_proj"),
    (r"^time_embed\.", "adaln_single."),
    (r"\.norm_([qk])\.", r".\1_norm."),
)
LTX_2 = (
    (r"^audio_proj_in", "audio_patchify_proj"),
    (r"^audio_time_embed\.", "audio_adaln_single."),
    (r"^av_cross_attn_(video|audio)_scale_shift", r"av_ca_\1_scale_shift_adaln_single"),
    (r"^av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
    (r"^av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
    (r"\.(video|audio)_a2v_cross_attn_scale_shift_table", r".scale_shift_table_a2v_ca_\1"),
)
LUMINA = back(
    (r"^time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
    (r"^norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
    (r"^norm_out\.linear_2", "final_layer.linear"),
    (r"\.norm1\.linear", ".adaLN_modulation.1"),
    (r"\.norm1(\.norm)?\.weight", ".attention_norm1.weight"),
    (r"\.norm2\.weight", ".attention_norm2.weight"),
    (r"\.attn\.to_out\.0", ".attention.out"),
    (r"\.attn\.norm_([qk])", r".attention.\1_norm"),
    (r"\.attn\.", ".attention."),
    (r"\.feed_forward\.linear_", ".feed_forward.w"),
    joins=((r".*\.attn", QKV, "qkv"),),
    adds=("norm_final.weight",),
)
IDEOGRAM = back(
    (r"\.attention\.to_out\.0\.", ".attention.o."),
    joins=((r"layers\.\d+\.attention", QKV, "qkv"),),
)
Z_IMAGE = back(
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    joins=((r".*\.attention", QKV, "qkv"),),
    adds=("norm_final.weight",),
)
SANA = back(
    (r"^scale_shift_table", "final_layer.scale_shift_table"),
    (r"^proj_out", "final_layer.linear"),
    (r"^patch_embed\.proj", "x_embedder.proj"),
    (r"^time_embed\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_embed\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_embed\.linear", "t_block.1"),
    (r"^caption_projection\.linear_([12])", r"y_embedder.y_proj.fc\1"),
    (r"^caption_norm", "attention_y_norm"),
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_out\.0", ".attn.proj"),
    (r"\.attn1\.", ".attn."),
    (r"\.attn2\.to_q", ".cross_attn.q_linear"),
    (r"\.attn2\.to_out\.0", ".cross_attn.proj"),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.ff\.conv_(\w+)", r".mlp.\1_conv.conv"),
    joins=((r".*\.attn1", QKV, "qkv"), (r".*\.attn2", ("to_k", "to_v"), "kv_linear")),
    adds=("pos_embed", "y_embedder.y_embedding"),
)
COSMOS = back(
    (r"^patch_embed\.proj", "x_embedder.proj.1"),
    (r"^time_embed\.t_embedder", "t_embedder.1"),
    (r"^time_embed\.norm", "t_embedding_norm"),
    (r"^norm_out\.linear_([12])", r"final_layer.adaln_modulation.\1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.", "blocks."),
    (r"\.norm1\.linear_", ".adaln_modulation_self_attn."),
    (r"\.norm2\.linear_", ".adaln_modulation_cross_attn."),
    (r"\.norm3\.linear_", ".adaln_modulation_mlp."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1_proj."),
    (r"\.to_out\.0\.", ".output_proj."),
    (r"\.norm_([qk])\.", r".\1_norm."),
    (r"\.ff\.net\.0\.proj", ".mlp.layer1"),
    (r"\.ff\.net\.2", ".mlp.layer2"),
    adds=("pos_embedder.seq", "accum_iteration"),
)
KREA = back(
    (r"^img_in\.", "first."),
    (r"^time_embed\.linear_1", "tmlp.0"),
    (r"^time_embed\.linear_2", "tmlp.2"),
    (r"^time_mod_proj", "tproj.1"),
    (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
    (r"^txt_in\.linear_1", "txtmlp.1"),
    (r"^txt_in\.linear_2", "txtmlp.3"),
    (r"^final_layer\.norm\.weight", "last.norm.scale"),
    (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
    (r"^final_layer\.", "last."),
    (r"^text_fusion\.", "txtfusion."),
    (r"^transformer_blocks\.", "blocks."),
    (r"\.scale_shift_table", ".mod.lin"),
    (r"\.norm1\.weight", ".prenorm.scale"),
    (r"\.norm2\.weight", ".postnorm.scale"),
    (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
    (r"\.attn\.to_out\.0\.", ".attn.wo."),
    (r"\.attn\.to_gate\.", ".attn.gate."),
    (r"\.attn\.norm_([qk])\.weight", r".attn.qknorm.\1norm.scale"),
    (r"\.ff\.", ".mlp."),
    flat=r"transformer_blocks\.\d+\.scale_shift_table",
)
CASCADE = back(
    (r"\.attention\.qkv\.weight", ".attention.attn.in_proj_weight"),
    (r"\.attention\.qkv\.bias", ".attention.attn.in_proj_bias"),
    (r"\.attention\.to_out\.0\.", ".attention.attn.out_proj."),
    joins=((r".*\.attention", QKV, "qkv"),),
)
WAN_VAE_BLOCKS = (
    (r"\.norm1\.gamma", ".residual.0.gamma"),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.gamma", ".residual.3.gamma"),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
UMT5 = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias", r"blocks.\1.pos_embedding.embedding"),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention", r"blocks.\1.attn"),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm", r"blocks.\1.norm1"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm", r"blocks.\1.norm2"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0", r"blocks.\1.ffn.gate.0"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1", r"blocks.\1.ffn.fc1"),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo", r"blocks.\1.ffn.fc2"),
)


def umt5(state: State) -> State:
    """Wan's text encoder; its embedding is there once."""
    return back(*UMT5)({key: tensor for key, tensor in state.items() if key != "encoder.embed_tokens.weight"})


def wan_vae(state: State) -> State:
    """The VAE of Wan with two residual blocks in each of four stages."""

    def place(key: str) -> str:
        key = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", key))
        key = re.sub(r"\.conv_in\.", ".conv1.", key)
        key = re.sub(r"\.norm_out\.", ".head.0.", re.sub(r"\.conv_out\.", ".head.2.", key))
        key = re.sub(r"\.mid_block\.attentions\.0\.", ".middle.1.", key)
        key = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda m: f".middle.{2 * int(m[1])}.", key)
        key = re.sub(r"\.down_blocks\.", ".downsamples.", key)
        key = re.sub(r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}.", key)
        key = re.sub(r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}.", key)
        if re.search(r"\.(middle|downsamples|upsamples)\.", key):
            for pattern, name in WAN_VAE_BLOCKS:
                key = re.sub(pattern, name, key)
        return key

    return {place(key): tensor for key, tensor in state.items()}


def ldm_vae(state: State) -> State:
    """A VAE of four levels as latent diffusion names it, counting levels of the decoder from the finest."""
    return back(
        (r"\.down_blocks\.(\d)\.resnets\.(\d)\.", r".down.\1.block.\2."),
        (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.up_blocks\.0\.", ".up.3."),
        (r"\.up_blocks\.1\.", ".up.2."),
        (r"\.up_blocks\.2\.", ".up.1."),
        (r"\.up_blocks\.3\.", ".up.0."),
        (r"(\.up\.\d)\.resnets\.(\d)\.", r"\1.block.\2."),
        (r"(\.up\.\d)\.upsamplers\.0\.", r"\1.upsample."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.conv_norm_out\.", ".norm_out."),
        convs=r".*\.attentions\.0\.to_.*weight",
    )(state)


def old_vae(state: State) -> State:
    """A VAE as diffusers named it at first."""
    return back(
        (r"\.to_q\.", ".query."),
        (r"\.to_k\.", ".key."),
        (r"\.to_v\.", ".value."),
        (r"\.to_out\.0\.", ".proj_attn."),
    )(state)


def flux2_vae(state: State) -> State:
    """FLUX.2's: as latent diffusion's, its last and first convolutions inside."""
    names = back((r"^quant_conv\.", "encoder.quant_conv."), (r"^post_quant_conv\.", "decoder.post_quant_conv."))
    return names(ldm_vae(state))


def hunyuan_15_vae(state: State) -> State:
    """HunyuanVideo 1.5's."""
    return back(
        (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
        (r"\.(down|up)_blocks\.(\d+)\.\1samplers\.0\.", r".\1.\2.\1sample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    )(state)


def ltx_numbers(key: str, down: list[int], down_middle: int) -> str:
    """Blocks and what is between them, counted through: the encoder's begin at `down`, the decoder's at its middle."""
    key = re.sub(r"^encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{down[int(m[1])] + 1}", key)
    key = re.sub(r"^encoder\.down_blocks\.(\d)", lambda m: f"encoder.down.{down[int(m[1])]}", key)
    key = re.sub(r"^encoder\.mid_block", f"encoder.down.{down_middle}", key)
    key = re.sub(r"^decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{2 * int(m[1]) + 1}", key)
    key = re.sub(r"^decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{2 * int(m[1]) + 2}", key)
    key = re.sub(r"^decoder\.mid_block", "decoder.up.0", key)
    return re.sub(r"\.(up|down)\.", r".\1_blocks.", key).replace(".resnets.", ".res_blocks.")


def ltx_vae(state: State) -> State:
    """The VAE of LTX-Video 0.9.1, whose decoder is told a time."""
    names = back(
        (r"^latents_mean", "per_channel_statistics.mean-of-means"),
        (r"^latents_std", "per_channel_statistics.std-of-means"),
        (r"^decoder\.time_embedder", "decoder.last_time_embedder"),
        (r"^decoder\.scale_shift_table", "decoder.last_scale_shift_table"),
        adds=("per_channel_statistics.channel",),
    )
    return names({ltx_numbers(key, [0, 3, 6, 8], 9): tensor for key, tensor in state.items()})


def ltx2_vae(state: State) -> State:
    """The VAE of LTX-2's pictures."""
    names = back(
        (r"^latents_mean", "per_channel_statistics.mean-of-means"),
        (r"^latents_std", "per_channel_statistics.std-of-means"),
        adds=("per_channel_statistics.channel", "per_channel_statistics.mean-of-stds"),
    )
    return names({ltx_numbers(key, [0, 2, 4, 6], 8): tensor for key, tensor in state.items()})


def dc_vae(state: State) -> State:
    """The deep compression autoencoder."""
    return back(
        (r"^encoder\.conv_in", "encoder.project_in.conv"),
        (r"^encoder\.conv_out", "encoder.project_out.0.conv"),
        (r"^decoder\.conv_in", "decoder.project_in.conv"),
        (r"^decoder\.norm_out", "decoder.project_out.0"),
        (r"^decoder\.conv_out", "decoder.project_out.2.conv"),
        (r"\.(down|up)_blocks\.(\d)\.(\d)\.", r".stages.\2.op_list.\3."),
        (r"\.attn\.to_qkv_multiscale\.0\.proj_in", ".context_module.main.aggreg.0.0"),
        (r"\.attn\.to_qkv_multiscale\.0\.proj_out", ".context_module.main.aggreg.0.1"),
        (r"\.attn\.qkv\.", ".context_module.main.qkv.conv."),
        (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
        (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
        (r"\.conv_out\.conv_(\w+)\.", r".local_module.main.\1_conv.conv."),
        (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
        (r"(op_list\.\d)\.norm\.", r"\1.main.conv2.norm."),
        (r"(op_list\.\d)\.conv([12])\.", r"\1.main.conv\2.conv."),
        (r"(op_list\.\d)\.conv\.", r"\1.main.conv.conv."),
        joins=((r".*\.attn", QKV, "qkv"),),
        convs=r".*\.attn\.(qkv|to_out)\.weight",
    )(state)


def ldm_unet(state: State) -> State:
    """A UNet of one layer a level, whose blocks latent diffusion counts through."""
    crossed = {int(m[1]) for key in state if (m := re.match(r"up_blocks\.(\d)\.attentions", key))}
    layers = 1

    def place(key: str) -> str:
        found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
        if not found:
            return key
        side, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = 1 + level * (layers + 1) if side == "down" else level * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if level in crossed else 1}.{rest}"
        return f"{'input' if side == 'down' else 'output'}_blocks.{first + number}.{int(kind == 'attentions')}.{rest}"

    return back(
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^add_embedding\.linear_1", "label_emb.0.0"),
        (r"^add_embedding\.linear_2", "label_emb.0.2"),
        (r"^mid_block\.resnets\.0\.", "middle_block.0."),
        (r"^mid_block\.attentions\.0\.", "middle_block.1."),
        (r"^mid_block\.resnets\.1\.", "middle_block.2."),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.norm1\.(weight|bias)$", r"\1.in_layers.0.\2"),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.conv1\.", r"\1.in_layers.2."),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.time_emb_proj\.", r"\1.emb_layers.1."),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.norm2\.(weight|bias)$", r"\1.out_layers.0.\2"),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.conv2\.", r"\1.out_layers.3."),
        (r"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.conv_shortcut\.", r"\1.skip_connection."),
    )({place(key): tensor for key, tensor in state.items()})


# class, which of its layouts: the way back to it
ORIGINALS: dict[tuple[str, int], Callable[[State], State]] = {
    ("Flux2Transformer2DModel", 0): back(
        *FLUX_2_TOP, *EMBEDDERS, *DOUBLE, *SINGLE, joins=BLOCKS[:2], swaps=r"norm_out\."
    ),
    ("ChromaTransformer2DModel", 0): back(*CHROMA_TOP, *EMBEDDERS, *DOUBLE, *SINGLE, joins=BLOCKS),
    ("FluxTransformer2DModel", 0): back(*EMBEDDERS, *DOUBLE, *SINGLE, joins=BLOCKS, swaps=r"norm_out\."),
    ("HunyuanVideo15Transformer3DModel", 0): back(
        *HUNYUAN_15_TOP, *HUNYUAN_TEXT, *HUNYUAN_BLOCKS, joins=(REFINER,), swaps=r"norm_out\."
    ),
    ("HunyuanVideoTransformer3DModel", 0): back(
        *HUNYUAN_TOP, *HUNYUAN_TEXT, *HUNYUAN_BLOCKS, joins=(REFINER, *BLOCKS), swaps=r"norm_out\."
    ),
    ("WanTransformer3DModel", 0): WAN,
    ("QwenImageTransformer2DModel", 0): back(adds=("__index_timestep_zero__",)),
    ("SD3Transformer2DModel", 0): SD3,
    ("AuraFlowTransformer2DModel", 0): AURA,
    ("LTX2VideoTransformer3DModel", 0): back(
        *LTX, *LTX_2, adds=("video_embeddings_connector.a", "audio_embeddings_connector.a")
    ),
    ("LTXVideoTransformer3DModel", 0): back(*LTX),
    ("Lumina2Transformer2DModel", 0): LUMINA,
    ("Ideogram4Transformer2DModel", 0): IDEOGRAM,
    ("ZImageTransformer2DModel", 0): Z_IMAGE,
    ("SanaTransformer2DModel", 0): SANA,
    ("CosmosTransformer3DModel", 0): COSMOS,
    ("Krea2Transformer2DModel", 0): KREA,
    ("StableCascadeUNet", 0): CASCADE,
    ("UNet2DConditionModel", 0): ldm_unet,
    ("AutoencoderKLFlux2", 0): flux2_vae,
    ("AutoencoderKL", 0): ldm_vae,
    ("AutoencoderKL", 1): old_vae,
    ("AutoencoderKLHunyuanVideo15", 0): hunyuan_15_vae,
    ("AutoencoderKLWan", 0): wan_vae,
    ("AutoencoderKLQwenImage", 0): wan_vae,
    ("AutoencoderKLLTXVideo", 0): ltx_vae,
    ("AutoencoderKLLTX2Video", 0): ltx2_vae,
    ("AutoencoderDC", 0): dc_vae,
    ("UMT5EncoderModel", 0): umt5,
}
# Comfy's file of HunyuanVideo 1.5 is in the same layout with other joins
HUNYUAN_15_COMFY = back(
    *HUNYUAN_15_TOP, *HUNYUAN_TEXT, *HUNYUAN_BLOCKS, joins=(REFINER, *BLOCKS[:2]), swaps=r"norm_out\."
)
HEADS_OF_3072 = {"num_attention_heads": 24, "attention_head_dim": 128}
WIDE = {
    "FluxTransformer2DModel": HEADS_OF_3072,
    "ChromaTransformer2DModel": HEADS_OF_3072,
    "HunyuanVideoTransformer3DModel": HEADS_OF_3072,
    "Lumina2Transformer2DModel": {"hidden_size": 2304, "num_attention_heads": 24, "num_kv_heads": 8},
}
SIZES = {
    "AutoencoderKLWan": {"num_res_blocks": 2, "dim_mult": [1, 2, 4, 4]},
    "AutoencoderKLQwenImage": {"num_res_blocks": 2, "dim_mult": [1, 2, 4, 4]},
}
