"""LongCat-Video's network: self attention over video patches, cross attention to text, a modulation for every frame.

Paper 2510.22200; upstream: meituan-longcat/LongCat-Video, whose parameter names and configuration these are. Block
sparse attention, which only its refinement to 720p uses, is left out.
Shapes: B batch, C channels, F frames, H height, W width, N video tokens, L text tokens, D width, T time embedding,
A heads, E numbers of a head. Video (B, C, F, H, W) becomes tokens (B, N, D), frame by frame and row by row.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
FFN_MULTIPLE = 256


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer answers in float32, in any precision around it: bfloat16 would round noise levels together."""
    dtype = next(layer.parameters()).dtype
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(dtype) if dtype.is_floating_point else x).float()


def modulate(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) normalized, then scaled and shifted frame by frame by (B, F, 1, D); computed in float32."""
    frames = norm(x.float()).unflatten(1, (shift.shape[1], -1))
    return (frames * (1 + scale) + shift).flatten(1, 2)


def add_gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x (B, N, D) and a change of it, which counts in each frame as much as gate (B, F, 1, D) says."""
    frames = gate * change.unflatten(1, (gate.shape[1], -1))
    return (x + frames.flatten(1, 2)).to(x.dtype)


def rotary_table(frames: int, height: int, width: int, numbers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the tokens' positions, (N, E) each: a third of a head's numbers turns with each axis.

    Rows and columns get the even number below that; what is left over turns with time.
    """
    across = 2 * (numbers // 6)
    widths = (numbers - 2 * across, across, across)
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for axis, (count, turning) in enumerate(zip((frames, height, width), widths, strict=True)):
        places = torch.arange(count, device=device, dtype=torch.float32)
        shape = [count if i == axis else 1 for i in range(3)]
        for part, table in zip(halves, get_1d_rotary_pos_embed(turning, places, use_real=True), strict=True):
            part.append(table.view(*shape, turning).expand(frames, height, width, turning))
    cos, sin = (torch.cat(part, dim=-1).flatten(0, 2) for part in halves)
    return cos, sin


class PatchEmbedder(nn.Module):
    """Patches of a video as tokens."""

    def __init__(self, in_channels: int, width: int, patch_size: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class TimeEmbedder(nn.Module):
    """Noise levels 0..1000 of any shape as vectors (..., T)."""

    def __init__(self, frequencies: int, width: int):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        # cosines come first
        waves = get_timestep_embedding(t.flatten().float(), self.frequencies, True, downscale_freq_shift=0)
        return in_float32(self.mlp, waves).unflatten(0, t.shape)


class TextEmbedder(nn.Module):
    """Text embeddings in the network's width."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.y_proj = nn.Sequential(nn.Linear(in_channels, width), nn.GELU("tanh"), nn.Linear(width, width))

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class AttentionProcessor:
    """Computes attention by the kernel that diffusers' `set_attention_backend` chooses for the model."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q (B, N, A, E) to the same shape; k and v (B, L, A, E), mask (B, 1, 1, L)."""
        return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=self._attention_backend)


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Every token looks at all, but for those of given frames, which look at each other only."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads, eps=EPS)
        self.k_norm = RMSNorm(width // heads, eps=EPS)
        self.proj = nn.Linear(width, width)
        self.processor = AttentionProcessor()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], clean_tokens: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, N, A, E) each
        q, k = (apply_rotary_emb(heads, rotary, sequence_dim=1) for heads in (self.q_norm(q), self.k_norm(k)))
        attended = self.processor(q[:, clean_tokens:], k, v)
        if clean_tokens:
            clean = self.processor(q[:, :clean_tokens], k[:, :clean_tokens], v[:, :clean_tokens])
            attended = torch.cat([clean, attended], dim=1)
        return self.proj(attended.flatten(2))


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Every token looks at the text; a mask (B, 1, 1, L) says at which of it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width // heads, eps=EPS)
        self.k_norm = RMSNorm(width // heads, eps=EPS)
        self.proj = nn.Linear(width, width)
        self.processor = AttentionProcessor()

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q_linear(x).unflatten(-1, (self.heads, -1))  # (B, N, A, E)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).unbind(2)  # (B, L, A, E) each
        attended = self.processor(self.q_norm(q), self.k_norm(k), v, mask)
        return self.proj(attended.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU; two thirds of the hidden width, rounded up, make up for the third matrix."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        inner = -(-(2 * hidden // 3) // FFN_MULTIPLE) * FFN_MULTIPLE
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LongCatVideoBlock(nn.Module):
    """Self attention, cross attention and a feed-forward layer; the first and the last are modulated by the time."""

    def __init__(self, width: int, heads: int, hidden: int, time_width: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 6 * width))
        self.mod_norm_attn = FP32LayerNorm(width, EPS, elementwise_affine=False)
        self.mod_norm_ffn = FP32LayerNorm(width, EPS, elementwise_affine=False)
        self.pre_crs_attn_norm = FP32LayerNorm(width, EPS)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.ffn = FeedForward(width, hidden)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        time: Tensor,
        rotary: tuple[Tensor, Tensor],
        text_mask: Tensor | None = None,
        clean_tokens: int = 0,
    ) -> Tensor:
        """hidden_states (B, N, D), of which the first `clean_tokens` tokens are clean; time (B, F, T)."""
        x = hidden_states
        changes = in_float32(self.adaLN_modulation, time).unsqueeze(2).chunk(6, dim=-1)  # (B, F, 1, D) each
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = changes
        y = modulate(self.mod_norm_attn, x, shift_attn, scale_attn).to(x.dtype)
        x = add_gated(x, self.attn(y, rotary, clean_tokens), gate_attn)
        # what is given already is not told about the text
        attended = self.cross_attn(self.pre_crs_attn_norm(x[:, clean_tokens:]), encoder_hidden_states, text_mask)
        x = x + F.pad(attended, (0, 0, clean_tokens, 0)).to(x.dtype)
        y = modulate(self.mod_norm_ffn, x, shift_ffn, scale_ffn).to(x.dtype)
        return add_gated(x, self.ffn(y), gate_ffn)


class FinalLayer(nn.Module):
    """Tokens as the numbers of their patches, float32."""

    def __init__(self, width: int, numbers: int, time_width: int):
        super().__init__()
        self.norm_final = FP32LayerNorm(width, EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = in_float32(self.adaLN_modulation, time).unsqueeze(2).chunk(2, dim=-1)  # (B, F, 1, D) each
        return in_float32(self.linear, modulate(self.norm_final, x, shift, scale))


class LongCatVideoTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The whole network. Its answer points from the noise to the data.

    `text_tokens_zero_pad` makes the embedding of padding zero and lets it be seen; without, padding is not seen.
    `enable_flashattn2` and `3`, `enable_xformers` and `cp_split_hw` are upstream's and kept for it: attention runs by
    whatever backend diffusers is told. Raises ValueError for `enable_bsa`, and for patches of several frames.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LongCatVideoBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["LongCatVideoBlock"]
    _keep_in_fp32_modules: ClassVar[list[str]] = ["t_embedder", "adaLN_modulation", "final_layer"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["x_embedder", "norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        mlp_ratio: int = 4,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_tokens_zero_pad: bool = False,
        enable_bsa: bool = False,
        bsa_params: dict[str, Any] | None = None,
        enable_flashattn2: bool = False,
        enable_flashattn3: bool = False,
        enable_xformers: bool = False,
        cp_split_hw: list[int] | None = None,
    ):
        super().__init__()
        if enable_bsa:
            raise ValueError("block sparse attention (enable_bsa) is not supported: attention here is always whole")
        if patch_size[0] != 1:
            raise ValueError(f"patch_size {tuple(patch_size)}: a patch is of one frame, which has a time of its own")
        patch = (patch_size[0], patch_size[1], patch_size[2])
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch)
        self.t_embedder = TimeEmbedder(frequency_embedding_size, adaln_tembed_dim)
        self.y_embedder = TextEmbedder(caption_channels, hidden_size)
        self.blocks = nn.ModuleList(
            LongCatVideoBlock(hidden_size, num_heads, hidden_size * mlp_ratio, adaln_tembed_dim) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch[1] * patch[2] * out_channels, adaln_tembed_dim)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """hidden_states (B, C, F, H, W), of which the first `num_cond_latents` frames are given and stay as they are.

        timestep, 0..1000, is (B,) or (B, F); encoder_hidden_states (B, L, caption channels), encoder_attention_mask
        (B, L), 1 where there is text. The answer is float32, as hidden_states.
        """
        frames = hidden_states.shape[2]
        rows, columns = (n // p for n, p in zip(hidden_states.shape[3:], self.config.patch_size[1:], strict=True))
        times = timestep if timestep.ndim == 2 else timestep[:, None].expand(-1, frames)
        time = self.t_embedder(times)  # (B, F, T)
        x = self.x_embedder(hidden_states)  # (B, N, D)
        text, mask = self._text(encoder_hidden_states, encoder_attention_mask)
        numbers = self.config.hidden_size // self.config.num_heads
        rotary = rotary_table(frames, rows, columns, numbers, x.device)
        clean_tokens = num_cond_latents * rows * columns
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, text, time, rotary, mask, clean_tokens)
            else:
                x = block(x, text, time, rotary, mask, clean_tokens)
        video = self._video(self.final_layer(x, time), frames, rows, columns)
        return Transformer2DModelOutput(sample=video) if return_dict else (video,)

    def _text(self, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Text in the network's width (B, L, D), and which of it is seen (B, 1, 1, L); None: all of it."""
        text = self.y_embedder(text)
        if mask is None:
            return text, None
        if self.config.text_tokens_zero_pad:
            return text * mask[..., None].to(text.dtype), None
        return text, mask[:, None, None, :].bool()

    def _video(self, x: Tensor, frames: int, rows: int, columns: int) -> Tensor:
        """Patches (B, N, height * width * C), channel last inside each, as a video (B, C, F, H, W)."""
        height, width = self.config.patch_size[1:]
        grid = x.view(len(x), frames, rows, columns, height, width, self.config.out_channels)
        return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
