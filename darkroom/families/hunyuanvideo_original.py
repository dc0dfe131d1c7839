"""HunyuanVideo: double and single stream blocks over video patches, flow matching, a Llama model for text.

Paper 2412.03603; upstream: Tencent/HunyuanVideo. The network takes the noise level as 0..1000, a guidance value times
1000, and answers noise - x0. Shapes: latents (B, 16, F, H, W), F = (frames - 1) / 4 + 1; text (B, L, D) of the third
layer from the end, with a mask (B, L) of its real tokens; pooled (B, P) from CLIP. An instruction stands before every
caption; its 95 rows are dropped.
From a first frame, of which the network is given the latent by itself: as the first latent frame, clean and with a time
of its own (token replacement); behind the channels, with a mask of what is given (B, 16 + 16 + 1, F, H, W); or there
without one (SkyReels). In the first two ways LLaVA looks at the frame too, and part of what it sees, up to 288 rows,
stands before the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom.core.errors import ConfigError, DataError
from darkroom.families.base import Family, read_config
from darkroom.families.shared.first_frame import IMAGE_TO_VIDEO, FirstFrameFamily, noise_fractions
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import stack_entries
from darkroom.families.sizes import CLIP_L, DEFAULT, LLAVA_LLAMA3_8B
from darkroom.families.tiny.components import clip, clip_processor, llama, llava

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

BASE = "hunyuanvideo-community/HunyuanVideo"
SKYREELS = "HunyuanSkyreelsImageToVideoPipeline"
# ways in which the network is given a first frame, as its config names them, and which share of LLaVA's rows it is told
REPLACED, BEHIND = "token_replace", "latent_concat"
EVERY = {REPLACED: 4, BEHIND: 2}
IMAGE_TOKENS = 576
# frames that diffusers' pipeline cuts off where the first one is given behind the channels
CUT = 4

TINY = ComponentSpecs(
    denoiser=ComponentSpec(
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 32,
            "pooled_projection_dim": 32,
            "rope_axes_dim": (2, 4, 4),
        },
    ),
    vae=ComponentSpec(
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 16},
    ),
    encoders={
        "text_encoder": llama(4, cls="LlamaModel", vocabulary=450, marks=(0, 1, 2)),
        "text_encoder_2": clip(),
    },
    tokenizers={"tokenizer": "llama", "tokenizer_2": "clip"},
    scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
    oracle={"num_attention_heads": 4, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)},
)


def _tiny(denoiser: Settings, **changes: Any) -> ComponentSpecs:
    config = {**TINY.denoiser.config, **denoiser}
    return dataclasses.replace(TINY, denoiser=ComponentSpec(TINY.denoiser.cls, config), **changes)


def _image_to_video_flavour(repository: str, note: str, defaults: Settings, **denoiser: object) -> Flavour:
    """From a first frame, which LLaVA looks at too."""
    return Flavour(
        repository,
        defaults,
        note=note,
        pipeline="HunyuanVideoImageToVideoPipeline",
        tiny=_tiny(
            denoiser,
            encoders={**TINY.encoders, "text_encoder": llava(4)},
            tokenizers={**TINY.tokenizers, "tokenizer": "llava"},
            extras={"image_processor": clip_processor()},
        ),
        supports=frozenset({IMAGE_TO_VIDEO}),
        image_input="needed",
        text_images="start",
        encodes_text=True,
        # it would be read with a black image
        negative_is_caption=False,
        # it decodes all frames and then cuts
        pipeline_decodes=denoiser["image_condition_type"] == BEHIND,
    )


def _skyreels(name: str, **changes: Any) -> Flavour:
    """Weights for 24 frames a second that are guided by a negative prompt, and not by a number."""
    defaults = {
        "pretrained_transformer_model_name_or_path": f"Skywork/SkyReels-V1-Hunyuan-{name}",
        "pretrained_transformer_subfolder": "",
        "resolution": 544,
        "validation_resolution": "960x544",
        "validation_guidance": 1.0,
        "validation_guidance_real": 6.0,
        "validation_num_video_frames": 97,
    }
    return Flavour(BASE, defaults, note="SkyReels V1", **changes)


class HunyuanVideoOriginal(FirstFrameFamily):
    name, title = "hunyuanvideo_original", "HunyuanVideo"
    pipeline, denoiser = "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=16, downscale=8, patch=2, temporal=4)
    blocks = ("transformer_blocks", "single_transformer_blocks")
    guidance_input = True
    guidance_off = {}
    fps: ClassVar[float | None] = 24.0
    supports = Family.supports | {"video"}
    caches = True
    component_sizes = {"": {"text_encoder": LLAVA_LLAMA3_8B, "text_encoder_2": CLIP_L, "vae": DEFAULT}}
    sizes = {"t2v": {}}
    default_flavour = "t2v"
    flavours: ClassVar[Mapping[str, Flavour]] = {
        "t2v": Flavour(BASE),
        "i2v": _image_to_video_flavour(
            "hunyuanvideo-community/HunyuanVideo-I2V",
            "keeps the first frame as it is",
            {},
            image_condition_type=REPLACED,
        ),
        "i2v-33ch": _image_to_video_flavour(
            "hunyuanvideo-community/HunyuanVideo-I2V-33ch",
            f"begins anew from the first frame; the stock pipeline cuts off the first {CUT} frames that it draws",
            {"validation_guidance": 1.0},
            in_channels=33,
            guidance_embeds=False,
            image_condition_type=BEHIND,
        ),
        "skyreels-t2v": _skyreels("T2V"),
        "skyreels-i2v": _skyreels(
            "I2V",
            pipeline=SKYREELS,
            tiny=_tiny(
                {"in_channels": 32},
                defaults={
                    "pretrained_transformer_model_name_or_path": None,
                    "pretrained_transformer_subfolder": "transformer",
                    "validation_guidance_real": 1.0,
                },
            ),
            supports=frozenset({IMAGE_TO_VIDEO}),
            image_input="needed",
        ),
    }
    tinies: ClassVar[Mapping[str, str]] = {
        "tiny-i2v": "i2v",
        "tiny-i2v-33ch": "i2v-33ch",
        "tiny-skyreels-i2v": "skyreels-i2v",
    }
    defaults = {
        "resolution": 720,
        "validation_resolution": "1280x720",
        "aspect_bucket_alignment": 16,
        "tokenizer_max_length": 256,
        "flow_schedule_shift": 7.0,
        "validation_guidance": 6.0,
        "validation_guidance_real": 1.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 129,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = TINY

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        reader = configs["text_encoder"]
        image_tokens = IMAGE_TOKENS // 2 if "text_config" in reader else 0
        # settings of a language model inside a larger one may leave out what is usual
        width = reader.get("text_config", reader).get("hidden_size", 4096)
        text = (options.tokenizer_max_length + image_tokens) * (width + 1)
        return int(text + configs["text_encoder_2"]["hidden_size"])

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D) from Llama with its mask (B, L), pooled (B, P) from CLIP."""
        text, pooled, mask = pipe.encode_prompt(captions, max_sequence_length=options.tokenizer_max_length)
        return {"text": text, "pooled": pooled, "mask": mask}

    def encode_text_with_images(
        self, pipe: DiffusionPipeline, caption: str, images: list[PILImage], options: Config
    ) -> Cond:
        """As `encode_text` of one caption, with rows of the image before the text.

        The empty caption is read as the pipeline reads it for guidance: with a black image, of which it keeps more.
        """
        from PIL import Image

        every = EVERY[self._image_condition_type]
        image = images[0] if caption else Image.new("RGB", images[0].size)
        text, pooled, mask = pipe.encode_prompt(
            image=image,
            prompt=[caption],
            max_sequence_length=options.tokenizer_max_length,
            **({"image_embed_interleave": every} if caption else {}),
        )
        return {"text": text, "pooled": pooled, "mask": mask}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Texts with unlike numbers of rows get zeros behind their ends, which the mask leaves out."""
        from torch.nn.functional import pad

        longest = max(len(entry["text"]) for entry in entries)

        def pad_entry(entry: dict[str, Tensor]) -> dict[str, Tensor]:
            missing = longest - len(entry["text"])
            return {**entry, "text": pad(entry["text"], (0, 0, 0, missing)), "mask": pad(entry["mask"], (0, missing))}

        return stack_entries([pad_entry(entry) for entry in entries])

    # -- the first frame -------------------------------------------------------------------------------------------

    @property
    def _image_condition_type(self) -> str:
        """How the network is given the first frame, if its config says so."""
        return str(self.spec.components.denoiser.config.get("image_condition_type"))

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """start (B, 16, 1, H, W): the latent of the first frame by itself.

        Inside a clip that latent is another one, as the VAE's norms look at all frames.
        """
        from darkroom.families.shared.latents import encode

        if not self.is_image_to_video:
            return {}
        first = pixels if pixels.ndim == 4 else pixels[:, :, 0]
        return {"start": encode(components.vae(), first, components.latents)}

    def slice_batch(self, batch: Batch, options: Config, generator: Generator) -> Batch:
        """The clips; with the first frame as the latent of an image, where it replaces their own."""
        import torch

        if not self.is_image_to_video:
            return batch
        if batch.latents.shape[2] < 2:
            raise DataError(
                f"Dataset '{batch.dataset}' has samples of a single frame, and {self.title} draws what comes after the "
                "first.\n  Train this flavour on clips of five frames or more, or choose model_flavour t2v."
            )
        if self._image_condition_type != REPLACED:
            return batch
        start = batch.extras["start"].to(batch.latents)
        return dataclasses.replace(batch, latents=torch.cat([start, batch.latents[:, :, 1:]], dim=2))

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """guidance (B,): constant, or drawn between the two bounds; of the first frame, `noisy` or `given`."""
        import torch

        count = len(batch.latents)
        if options.flux_guidance_mode == "random-range":
            low, high = options.flux_guidance_min, options.flux_guidance_max
            guidance = low + (high - low) * torch.rand(count, generator=generator)
        else:
            guidance = torch.full((count,), float(options.flux_guidance_value))
        if not self.is_image_to_video:
            return {"guidance": guidance}
        if self._image_condition_type == REPLACED:
            return {"guidance": guidance, "noisy": noise_fractions(batch.latents, torch.zeros(count))}
        return {"guidance": guidance, "given": self._build_condition(batch, options)}

    def _build_condition(self, batch: Batch, options: Config) -> Tensor:
        """What stands behind the latents: that of the first frame, zeros after it, (B, 16 or 16 + 1, F, H, W)."""
        import torch

        condition = torch.zeros_like(batch.latents)
        condition[:, :, :1] = batch.extras["start"].to(condition)
        if self._image_condition_type != BEHIND:
            return condition
        mask = torch.zeros_like(condition[:, :1])
        mask[:, :, 0] = 1
        return torch.cat([condition, mask], dim=1)

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, F, H, W)."""
        import torch

        guided = read_config(model).guidance_embeds
        return model(
            hidden_states=torch.cat([x_t, cond["given"].to(x_t)], dim=1) if "given" in cond else x_t,
            # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
            timestep=t.float() * 1000,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"].to(x_t.dtype),
            pooled_projections=cond["pooled"],
            guidance=cond["guidance"].to(x_t) * 1000 if guided else None,
            return_dict=False,
        )[0]

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        frames = self.spec.clip_frames(options)
        if self._image_condition_type == BEHIND and frames <= CUT:
            raise ConfigError(
                "validation_num_video_frames",
                options.validation_num_video_frames,
                "",
                f"The diffusers pipeline cuts off the first {CUT} frames that it draws from an image.",
                f"Set it to {CUT + 1} or more.",
            )
        return {
            "guidance_scale": options.validation_guidance,
            "true_cfg_scale": options.validation_guidance_real,
            "max_sequence_length": options.tokenizer_max_length,
            "num_frames": frames,
        }

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        # the pipeline's real guidance is off without a negative prompt, even an empty one
        return {"prompt": prompt, "negative_prompt": negative}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {
            **super().pipeline_kwargs_from_embeds(text, negative),
            "prompt_attention_mask": text["mask"],
            "negative_prompt_attention_mask": negative["mask"],
        }


FAMILY = HunyuanVideoOriginal
