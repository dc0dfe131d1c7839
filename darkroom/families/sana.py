"""Sana: linear attention over latents at 1/32, flow matching, a Gemma 2 language model for text.

Paper 2410.10629; upstream: NVlabs/Sana. The network takes the noise level as 0..1000, times a factor of its config, and
answers noise - x0. Shapes: latents (B, 32, H, W) of an autoencoder without a distribution; text (B, L, D) with a mask
(B, L) of its real tokens. An instruction stands before every caption but the empty one; its rows are dropped, but for
the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from darkroom.families.base import Family, read_config
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import DC_AE_F32C32, GEMMA2_2B
from darkroom.families.tiny.components import gemma2

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
WIDTHS = (8, 8, 16, 16, 32, 32)
SCALES = ((), (), (), (5,), (5,), (5,))


class SanaControlNet(ControlNet):
    """A ControlNet for which diffusers has no maker."""

    def build(self, cls: type[ModelMixin], denoiser: ModelMixin, custom: Settings) -> ModelMixin:
        """The first blocks of the transformer."""
        import inspect

        parameters = inspect.signature(cls.__init__).parameters
        config = {name: value for name, value in denoiser.config.items() if name in parameters}
        config["num_layers"] = min(config["num_layers"], parameters["num_layers"].default)
        net = cls(**{**config, **custom})
        state = net.state_dict()
        shared = {name: value for name, value in denoiser.state_dict().items() if name in state}
        net.load_state_dict(shared, strict=False)
        return net


class Sana(Family):
    name, title = "sana", "Sana"
    pipeline, denoiser = "SanaPipeline", "SanaTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=32, downscale=32)
    blocks = ("transformer_blocks",)
    negative_is_caption = False
    controlnet: ClassVar[ControlNet | None] = SanaControlNet(
        "SanaControlNetModel", "SanaControlNetPipeline", ("controlnet_block_samples",)
    )
    text_components = {"pretrained_gemma_model_name_or_path": "text_encoder"}
    component_sizes = {"": {"text_encoder": GEMMA2_2B, "vae": DC_AE_F32C32}}
    sizes = {
        "sana1.5-4.8b-1024": {"num_layers": 60},
        **{name: {} for name in ("sana1.5-1.6b-1024", "sana1.0-1.6b-2048", "sana1.0-1.6b-1024")},
        "": {
            "num_layers": 28,
            "num_attention_heads": 36,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 72,
            "cross_attention_dim": 1152,
        },
    }
    default_flavour = "sana1.5-4.8b-1024"
    flavours = {
        "sana1.5-4.8b-1024": Flavour("Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers"),
        "sana1.5-1.6b-1024": Flavour("Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers"),
        "sana1.0-1.6b-2048": Flavour(
            "Efficient-Large-Model/Sana_1600M_2Kpx_BF16_diffusers",
            {"resolution": 2048, "validation_resolution": "2048"},
        ),
        "sana1.0-1.6b-1024": Flavour("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"),
        "sana1.0-600m-1024": Flavour("Efficient-Large-Model/Sana_600M_1024px_diffusers"),
        "sana1.0-600m-512": Flavour(
            "Efficient-Large-Model/Sana_600M_512px_diffusers", {"resolution": 512, "validation_resolution": "512"}
        ),
    }
    defaults = {
        "tokenizer_max_length": 300,
        "flow_schedule_shift": 3.0,
        "vae_dtype": "fp32",
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 20,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "SanaTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 32,
                "out_channels": 32,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "num_cross_attention_heads": 4,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 32,
                "caption_channels": 32,
                "sample_size": 32,
            },
        ),
        vae=ComponentSpec(
            "AutoencoderDC",
            {
                "latent_channels": 32,
                "attention_head_dim": 8,
                "encoder_block_types": BLOCKS,
                "decoder_block_types": BLOCKS,
                "encoder_block_out_channels": WIDTHS,
                "decoder_block_out_channels": WIDTHS,
                "encoder_layers_per_block": (1,) * 6,
                "decoder_layers_per_block": (1,) * 6,
                "encoder_qkv_multiscales": SCALES,
                "decoder_qkv_multiscales": SCALES,
                "scaling_factor": 0.41407,
            },
        ),
        encoders={"text_encoder": gemma2()},
        tokenizers={"tokenizer": "gemma"},
        scheduler=ComponentSpec(
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        oracle={
            "attention_head_dim": 32,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 32,
            "cross_attention_dim": 128,
            "num_layers": 2,
        },
    )

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        return options.tokenizer_max_length * (configs["text_encoder"]["hidden_size"] + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) of the last layer, mask (B, L)."""
        published = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        text, mask, _, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=options.tokenizer_max_length,
            complex_human_instruction=_instruction(options).get("complex_human_instruction", published),
        )
        return {"text": text, "mask": mask}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        """The empty text without the instruction, as diffusers' pipeline reads a negative prompt."""
        text, mask, _, _ = pipe.encode_prompt(
            "", do_classifier_free_guidance=False, max_sequence_length=options.tokenizer_max_length
        )
        return {"text": text[0].detach().cpu(), "mask": mask[0].cpu()}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 32, H, W)."""
        return model(
            x_t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=t.float() * 1000 * read_config(model).timestep_scale,
            return_dict=False,
        )[0]

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {
            "guidance_scale": options.validation_guidance,
            "max_sequence_length": options.tokenizer_max_length,
            # it would paint another size and crop it
            "use_resolution_binning": False,
            **_instruction(options),
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            # the pipeline would read the default, an empty text, where it has no reader
            "negative_prompt": None,
            "prompt_embeds": text["text"],
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": negative["text"],
            "negative_prompt_attention_mask": negative["mask"],
        }

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        return {"prompt": prompt, "negative_prompt": negative}


def _instruction(options: Config) -> dict[str, list[str] | None]:
    """The user's own instruction as the pipeline takes it, None for an empty one; no entry leaves the published one."""
    text = options.sana_complex_human_instruction
    return {} if text is None else {"complex_human_instruction": [text] if text else None}


FAMILY = Sana
