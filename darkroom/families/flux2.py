"""FLUX.2: double and single stream blocks over 128 channels at 1/16, flow matching, a language model for text.

Upstream: black-forest-labs/flux2. The network takes the noise level as 0..1 and answers noise - x0.
Shapes: latents (B, 128, H, W), the VAE's 2x2 neighbors side by side, become tokens (B, H * W, 128); text (B, L, 3D),
three hidden layers side by side. Positions have four columns: image, row, column, text token. Reference images
follow the image's tokens, numbered 10, 20 and so on. dev reads text with Mistral 3 and has a guidance input; klein
reads it with Qwen3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family, read_config
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, HiddenStates, Inpainting, Latents
from darkroom.families.sizes import DEFAULT, MISTRAL_SMALL_24B, QWEN3_4B, QWEN3_8B
from darkroom.families.tiny.components import flux2_vae, mistral3, qwen3

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
# attention and feed-forward of a single block are one layer; its attn.to_out would match a list in the double blocks
SINGLE = ("attn.to_qkv_mlp_proj",)
TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")

REFERENCE_STEP = 10
MIN_EDGE = 64
DEV_LAYERS, KLEIN_LAYERS = (10, 20, 30), (9, 18, 27)
DEV_PIPELINE = "Flux2Pipeline"
NO_NEGATIVE = "no_negative"

DENOISER = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
}


def _tiny(encoder: ComponentSpec, guided: bool, **changes: Any) -> ComponentSpecs:
    return ComponentSpecs(
        denoiser=ComponentSpec("Flux2Transformer2DModel", {**DENOISER, "guidance_embeds": guided}),
        vae=flux2_vae(),
        encoders={"text_encoder": encoder},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        oracle={"attention_head_dim": 64, "num_attention_heads": 4, "axes_dims_rope": (16, 16, 16, 16)},
        **changes,
    )


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H * W, C)."""
    return latents.flatten(2).transpose(1, 2)


def positions(latents: Tensor, number: int) -> Tensor:
    """Image number, row, column and 0 of each token of (B, C, H, W), as (B, H * W, 4)."""
    import torch

    height, width = latents.shape[-2:]
    sides = [torch.arange(side, device=latents.device) for side in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    ids = torch.stack([torch.full_like(rows, number), rows, columns, torch.zeros_like(rows)], -1).reshape(1, -1, 4)
    return ids.expand(len(latents), -1, -1)


def text_positions(text: Tensor) -> Tensor:
    """The number of each text token in the last of four columns, (B, L, 4)."""
    import torch

    ids = torch.zeros(*text.shape[:2], 4, dtype=torch.long, device=text.device)
    ids[..., 3] = torch.arange(text.shape[1], device=text.device)
    return ids


class Flux2(Family):
    name, title = "flux2", "FLUX.2"
    pipeline, denoiser = "Flux2KleinPipeline", "Flux2Transformer2DModel"
    prediction = "flow_matching"
    latents = Latents(channels=128, downscale=16, patch=1, normalizer="batch_norm")
    blocks = ("transformer_blocks", "single_transformer_blocks")
    hidden_states = HiddenStates(output=1)
    guidance_input = True
    negative_is_caption = False
    # dev and klein read text each in its own way
    flavours_encode_text = True
    supports = Family.supports | {"references"}
    inpainting = Inpainting("Flux2KleinInpaintPipeline")
    caches = True
    component_sizes = {
        "": {"vae": DEFAULT},
        "klein-9b": {"text_encoder": QWEN3_8B},
        "klein-4b": {"text_encoder": QWEN3_4B},
        "dev": {"text_encoder": MISTRAL_SMALL_24B},
    }
    sizes = {
        "dev": {},
        "klein-9b": {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
        "klein-4b": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    }
    default_flavour = "klein-9b"
    flavours = {
        "klein-9b": Flavour("black-forest-labs/FLUX.2-klein-base-9B", image_input="optional", multiple_images=True),
        "klein-4b": Flavour("black-forest-labs/FLUX.2-klein-base-4B", image_input="optional", multiple_images=True),
        "dev": Flavour(
            "black-forest-labs/FLUX.2-dev",
            pipeline=DEV_PIPELINE,
            guidance_off={},
            tiny=_tiny(
                mistral3(DEV_LAYERS[-1] + 1),
                guided=True,
                # the instruction before every caption is long in letters
                defaults={"tokenizer_max_length": 256},
            ),
            image_input="optional",
            multiple_images=True,
        ),
    }
    tinies = {"tiny-dev": "dev"}
    defaults = {
        "tokenizer_max_length": 512,
        "aspect_bucket_alignment": 16,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 50,
    }
    targets = {
        "default": ATTENTION + SINGLE,
        "all": ATTENTION + TEXT_ATTENTION + FEED_FORWARD + SINGLE,
        "attention": ATTENTION + TEXT_ATTENTION + SINGLE,
        "mlp": FEED_FORWARD,
        "context": TEXT_ATTENTION,
        "tiny": ATTENTION[:3],
    }
    tiny = _tiny(qwen3("Qwen3ForCausalLM", KLEIN_LAYERS[-1] + 1), guided=False)

    # -- text ------------------------------------------------------------------------------------------------------

    def text_layers(self, options: Config) -> tuple[int, ...]:
        """The three layers of the language model that make a text."""
        usual = DEV_LAYERS if self._is_dev else KLEIN_LAYERS
        return tuple(options.custom_text_encoder_intermediary_layers or usual)

    @property
    def _is_dev(self) -> bool:
        return self.spec.pipeline == DEV_PIPELINE

    def text_identity(self, options: Config) -> dict[str, object]:
        return {**super().text_identity(options), "layers": self.text_layers(options)}

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        config = configs["text_encoder"]
        width = config.get("text_config", config)["hidden_size"]
        return options.tokenizer_max_length * len(self.text_layers(options)) * width + self._is_dev

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, 3D), where padding counts as text; for dev also the mark that there is no negative one, (B,)."""
        text, _ = pipe.encode_prompt(
            captions,
            max_sequence_length=options.tokenizer_max_length,
            text_encoder_out_layers=self.text_layers(options),
        )
        return {"text": text, NO_NEGATIVE: text.new_ones(len(text))} if self._is_dev else {"text": text}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """guidance (B,) for a flavour with an input for it; references, a tuple of (B, 128, h, w)."""
        import torch

        count = len(batch.latents)
        inputs: Cond = {
            "guidance": torch.full((count,), float(options.flux_guidance_value)),
            "references": batch.references,
        }
        if options.flux_guidance_mode == "random-range":
            low, high = options.flux_guidance_min, options.flux_guidance_max
            inputs["guidance"] = low + (high - low) * torch.rand(count, generator=generator)
        return inputs

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Velocity from data to noise, (B, 128, H, W)."""
        import torch

        # in this order; what the network answers for references is of no use
        images = [x_t, *(reference.to(x_t) for reference in cond.get("references", ()))]
        ids = [positions(part, number * REFERENCE_STEP) for number, part in enumerate(images)]
        tokens = model(
            hidden_states=torch.cat([pack(part) for part in images], dim=1),
            timestep=t.to(x_t.dtype),
            guidance=cond["guidance"].to(x_t.device) if read_config(model).guidance_embeds else None,
            encoder_hidden_states=cond["text"],
            txt_ids=text_positions(cond["text"]),
            img_ids=torch.cat(ids, dim=1),
            return_dict=False,
        )[0]
        return self.from_pipeline(tokens[:, : x_t[0, 0].numel()], *x_t.shape[-2:])

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            "text_encoder_out_layers": self.text_layers(options),
        }

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """The image in its own shape, with about as many pixels as the result; edges are multiples of 16, from 64."""
        from PIL import Image

        scale = max((width * height / (image.width * image.height)) ** 0.5, MIN_EDGE / min(image.size))
        size = [round(edge * scale / 16) * 16 for edge in image.size]
        return {"image": image.convert("RGB").resize(size, Image.Resampling.LANCZOS)}

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # klein is guided away from the empty prompt and takes no other; dev from none
        return {"prompt": prompt}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        if NO_NEGATIVE in text:
            return {"prompt_embeds": text["text"]}
        return {"prompt_embeds": text["text"], "negative_prompt_embeds": negative["text"]}

    def to_pipeline(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_pipeline(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Tokens to (B, 128, height, width). A finished image comes as the VAE takes it, (B, 32, ...), and stays."""
        return latents.transpose(1, 2).unflatten(2, (height, width)) if latents.ndim == 3 else latents


FAMILY = Flux2
