"""FLUX.1: double and single stream blocks over packed 2x2 latents, flow matching, CLIP pooled text and T5 tokens.

Upstream: black-forest-labs/flux. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 16, H, W) become tokens (B, H/2 * W/2, 64), channel first inside a token. Kontext (2506.15742) sees
the tokens of reference images after those of the image, numbered in the first column of the positions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from darkroom.families.base import Family, read_config
from darkroom.families.shared.control_methods import ControlChannels, ControlNet
from darkroom.families.shared.model_spec import EMBEDDED
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.shared.text import count_tokens, stack_entries, stack_padded, zero_padding
from darkroom.families.sizes import CLIP_L, FLUX_VAE, T5_XXL
from darkroom.families.tiny.components import clip, kl_vae, t5

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
TEXT_ATTENTION = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
# the bare suffix proj_out also matches the final output projection, which the predecessor trains too
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 * W/2, 4C); inside a token the channel is outermost, then row, then column."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The way back to (B, C, height, width)."""
    b, _, d = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, d // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, height, width)


@functools.lru_cache(maxsize=64)
def image_ids(height: int, width: int, device: torch.device, dtype: torch.dtype, number: int = 0) -> Tensor:
    """Number, row and column of each token, (H/2 * W/2, 3): the image is 0, its references count from 1."""
    import torch

    sides = [torch.arange(side // 2, device=device) for side in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(-1, 3).to(dtype)


class Flux(Family):
    name, title = "flux", "FLUX.1"
    pipeline, denoiser = "FluxPipeline", "FluxTransformer2DModel"
    trainable_text = ("text_encoder",)
    prediction = "flow_matching"
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("transformer_blocks", "single_transformer_blocks")
    hidden_states = HiddenStates(output=1)
    text_components = {"pretrained_t5_model_name_or_path": "text_encoder_2"}
    guidance_input = True
    guidance_off = {}
    unlike_pipeline_text = {"t5_padding": "zero", "flux_attention_masked_training": True}
    shift_line = (256, 4096, 0.5, 1.15)
    controlnet = ControlNet(
        "FluxControlNetModel",
        "FluxControlNetPipeline",
        ("controlnet_block_samples", "controlnet_single_block_samples"),
        inherited=("attention_head_dim", "num_attention_heads"),
    )
    control_channels = ControlChannels(
        "FluxControlPipeline",
        axis=2,
        unsupported=frozenset(
            {
                "true_cfg_scale",
                "negative_prompt",
                "negative_prompt_embeds",
                "negative_pooled_prompt_embeds",
            }
        ),
    )
    inpainting = Inpainting("FluxInpaintPipeline")
    caches = True
    previews = "madebyollin/taef1"
    component_sizes = {"": {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": FLUX_VAE}}
    sizes = {"": {"guidance_embeds": True}, "schnell": {}}
    default_flavour = "krea"
    flavours = {
        "krea": Flavour("black-forest-labs/FLUX.1-Krea-dev"),
        "dev": Flavour("black-forest-labs/FLUX.1-dev"),
        "schnell": Flavour(
            "black-forest-labs/FLUX.1-schnell",
            {"tokenizer_max_length": 256, "validation_num_inference_steps": 4, "validation_guidance": 0.0},
            distilled="four steps without guidance",
            assistant="ostris/FLUX.1-schnell-training-adapter",
        ),
        "kontext": Flavour(
            "black-forest-labs/FLUX.1-Kontext-dev",
            {"validation_guidance": 2.5},
            note="edits images: train it with reference images",
            pipeline="FluxKontextPipeline",
            supports=frozenset({"references"}),
            image_input="optional",
            inpainting=Inpainting("FluxKontextInpaintPipeline", extra_arguments={"_auto_resize": False}),
        ),
        "fluxbooru": Flavour(
            "terminusresearch/fluxbooru-v0.3",
            # it was trained at this guidance, and is drawn at it
            {"validation_guidance_real": 6.0, "flux_guidance_value": 3.5, "validation_guidance": 3.5},
        ),
        "libreflux": Flavour(
            "jimmycarter/LibreFlux-SimpleTuner",
            {"validation_guidance_real": 6.0, "flux_attention_masked_training": True},
        ),
        "embedded": Flavour(
            EMBEDDED + "embedded_base",
            {
                "resolution": 64,
                "validation_resolution": "64",
                "aspect_bucket_alignment": 8,
                "mixed_precision": "no",
                "optimizer": "torch-adamw",
                "learning_rate": 2e-3,
                "flux_lora_target": "ai-toolkit",
                "tokenizer_max_length": 24,
                # a LoRA on 64 tokens learns outlines at high noise: sigmoid(1.2 z + 1.4)
                "flow_sigmoid_scale": 1.2,
                "flow_schedule_shift": 4.0,
                "validation_guidance_real": 3.0,
                "validation_num_inference_steps": 16,
                "gradient_checkpointing": False,
            },
            latents=Latents(channels=8, downscale=4, patch=2, normalizer="shift_scale"),
            note="ships with Darkroom: 64-pixel shapes, for trying everything without a GPU or a download",
        ),
    }
    tinies = {"tiny-kontext": "kontext"}
    defaults = {
        "tokenizer_max_length": 512,
        "validation_guidance": 3.0,
        "validation_guidance_real": 1.0,
        "validation_num_inference_steps": 28,
        "flux_lora_target": "all",
    }
    targets = {
        "default": ATTENTION,
        "all": (*ATTENTION, *TEXT_ATTENTION),
        "mmdit": ATTENTION,
        "context": TEXT_ATTENTION,
        "context+ffs": (*TEXT_ATTENTION, "ff_context.net.0.proj", "ff_context.net.2"),
        "all+ffs": (*ATTENTION, *TEXT_ATTENTION, *FEED_FORWARD),
        "all+ffs+embedder": ("x_embedder", *ATTENTION, *TEXT_ATTENTION, *FEED_FORWARD),
        "ai-toolkit": (*ATTENTION, *TEXT_ATTENTION, *FEED_FORWARD, *MODULATION),
        # with a control image as channels their embedder has to learn
        "controlnet": ("x_embedder", *ATTENTION),
        "all+ffs+embedder+controlnet": ("x_embedder", *ATTENTION, *TEXT_ATTENTION, *FEED_FORWARD),
        "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
        "nano": ("single_transformer_blocks.7.proj_out",),
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "FluxTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
                "guidance_embeds": True,
                "axes_dims_rope": (4, 4, 8),
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={"text_encoder": clip(), "text_encoder_2": t5()},
        tokenizers={"tokenizer": "clip", "tokenizer_2": "t5"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        oracle={"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)},
    )

    def masks_attention(self, options: Config) -> frozenset[str]:
        """Only where the padding of its text is hidden."""
        return frozenset({"training", "inference"} if options.flux_attention_masked_training else ())

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        text = options.tokenizer_max_length * configs["text_encoder_2"]["d_model"]
        return text + configs["text_encoder"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text (B, L, D) from T5, or B tensors (L, D) where padding is hidden; pooled (B, P) from CLIP.

        Text has no positions here and is not read out of the network, so that text without its padding is answered as
        text whose padding is masked.
        """
        length = options.tokenizer_max_length
        text, pooled, _ = pipe.encode_prompt(captions, max_sequence_length=length)
        if options.flux_attention_masked_training:
            counts = count_tokens(pipe.tokenizer_2, captions, length)
            return {"text": [rows[:count] for rows, count in zip(text, counts, strict=True)], "pooled": pooled}
        if options.t5_padding == "zero":
            text = zero_padding(text, pipe.tokenizer_2, captions, length)
        return {"text": text, "pooled": pooled}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {**stack_entries([{"pooled": entry["pooled"]} for entry in entries]), **stack_padded(entries)}

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """guidance (B,): constant, or drawn between the two bounds; references, a tuple of (B, C, h, w)."""
        import torch

        count = len(batch.latents)
        inputs: Cond = {"guidance": torch.full((count,), float(options.flux_guidance_value))}
        if options.flux_guidance_mode == "random-range":
            low, high = options.flux_guidance_min, options.flux_guidance_max
            inputs["guidance"] = low + (high - low) * torch.rand(count, generator=generator)
        if "references" in self.spec.supports:
            inputs["references"] = batch.references
        return inputs

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Velocity from data to noise, (B, C, H, W)."""
        import torch

        height, width = x_t.shape[-2:]
        text = cond["text"]
        # in this order, after the image; what the network answers for references is of no use
        images = [x_t, *(reference.to(x_t) for reference in cond.get("references", ()))]
        ids = [image_ids(*part.shape[-2:], x_t.device, x_t.dtype, number) for number, part in enumerate(images)]
        packed = torch.cat([pack(part) for part in images], dim=1) if len(images) > 1 else pack(x_t)
        attention = {}
        if "mask" in cond:
            mask = torch.cat([cond["mask"], cond["mask"].new_ones(packed.shape[:2])], dim=1)
            attention = {"joint_attention_kwargs": {"attention_mask": mask[:, None, None]}}
        tokens = model(
            hidden_states=packed,
            timestep=t.to(x_t.dtype),
            guidance=cond["guidance"].to(x_t.device) if read_config(model).guidance_embeds else None,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=torch.cat(ids) if len(ids) > 1 else ids[0],
            return_dict=False,
            **attention,
        )[0]
        return unpack(tokens[:, : self.latents.tokens(height, width)], height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
        }

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        size = super().size_kwargs(width, height, options)
        if "references" not in self.spec.supports:
            return size
        # Kontext's pipeline would make every image one of about a million pixels
        return {**size, "max_area": width * height}

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """The image in its own shape, with about as many pixels as the result; edges are multiples of 16."""
        from PIL import Image

        scale = (width * height / (image.width * image.height)) ** 0.5
        size = [max(16, round(edge * scale / 16) * 16) for edge in image.size]
        return {"image": image.convert("RGB").resize(size, Image.Resampling.LANCZOS), "_auto_resize": False}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        """Texts of one length, for which the pipeline asks: `prepare` takes away what is added to the shorter here."""
        both = stack_padded([{"text": entry["text"][0]} for entry in (text, negative)])["text"]
        return super().pipeline_kwargs_from_embeds({**text, "text": both[:1]}, {**negative, "text": both[1:]})

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        if not options.flux_attention_masked_training:
            return

        def encode_prompt(*prompt: object, prompt_embeds: Tensor | None = None, **arguments: object) -> object:
            real = None if prompt_embeds is None else prompt_embeds[:, prompt_embeds.any(dim=-1)[0]]
            return type(pipe).encode_prompt(pipe, *prompt, prompt_embeds=real, **arguments)

        pipe.encode_prompt = encode_prompt

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # the pipeline's real guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, height, width)


FAMILY = Flux
