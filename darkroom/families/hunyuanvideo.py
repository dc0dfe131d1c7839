"""HunyuanVideo 1.5: two streams of text and video, flow matching, Qwen2.5-VL and a reader of glyphs.

Paper 2511.18870; upstream: Tencent-Hunyuan/HunyuanVideo-1.5. The network takes the noise level as 0..1000 and answers
noise - x0. It sees, behind the latents (B, 32, F, H, W), the latents of a given first frame, zeros elsewhere, and which
frame is given: (B, 32 + 32 + 1, F, H, W). Text (B, L, D) with its mask (B, L) is Qwen's last layer but two without the
instruction before every caption; glyphs (B, 256, D) with their mask is what ByT5 reads of words in quotation marks.
An image's features (B, 729, D) are SigLIP's; where all of them are zero, the network takes no image to be given.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from darkroom.families.shared.classes import unwrap
from darkroom.families.shared.first_frame import IMAGE_TO_VIDEO, FirstFrameFamily, to_images
from darkroom.families.shared.glyphs import ReadsGlyphs, text_inputs
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.sizes import BYT5_SMALL, DEFAULT, QWEN25_VL_7B_TEXT, SIGLIP_384
from darkroom.families.tiny.components import qwen2_vl, siglip, t5

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.pipeline_call import Stage
    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

REPOSITORY = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-"
# tokens of an image that is not there: all are zero and unseen, so one does for the pipeline's 729
EMPTY_IMAGE_TOKENS = 1

TINY = ComponentSpecs(
    denoiser=ComponentSpec(
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 65,
            "out_channels": 32,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 32,
            "text_embed_2_dim": 32,
            "image_embed_dim": 32,
            "rope_axes_dim": (4, 6, 6),
            "target_size": 64,
        },
    ),
    vae=ComponentSpec(
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 32, "block_out_channels": (16, 16, 32, 32, 64), "layers_per_block": 1},
    ),
    encoders={
        "text_encoder": ComponentSpec(
            "Qwen2_5_VLTextModel", {**qwen2_vl(vocabulary=400).config["text_config"], "num_hidden_layers": 3}
        ),
        "text_encoder_2": t5(vocabulary=384),
    },
    tokenizers={"tokenizer": "hunyuanvideo", "tokenizer_2": "byt5"},
    scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
    oracle={"num_attention_heads": 4, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)},
    # the smallest size that the VAE makes several places of
    defaults={"aspect_bucket_alignment": 16},
)


def _image_to_video_flavour(name: str, shift: float, distilled: str = "", **defaults: object) -> Flavour:
    return Flavour(
        f"{REPOSITORY}{name}",
        {"flow_schedule_shift": shift, **defaults},
        distilled=distilled,
        pipeline="HunyuanVideo15ImageToVideoPipeline",
        tiny=dataclasses.replace(TINY, extras=siglip()),
        supports=frozenset({IMAGE_TO_VIDEO}),
        image_input="needed",
    )


LARGE: Settings = {"resolution": 720, "validation_resolution": "1280x720"}
DISTILLED: Settings = {"validation_guidance": 1.0}
UNGUIDED = "answers that need no guidance"


class HunyuanVideo(FirstFrameFamily, ReadsGlyphs):
    name, title = "hunyuanvideo", "HunyuanVideo 1.5"
    pipeline, denoiser = "HunyuanVideo15Pipeline", "HunyuanVideo15Transformer3DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=32, downscale=16, normalizer="scale", temporal=4, single_sample_vae=True)
    blocks = ("transformer_blocks",)
    fps = 24.0
    supports = ReadsGlyphs.supports | {"video"}
    glyph_tokens = 256
    component_sizes = {
        "": {
            "text_encoder": QWEN25_VL_7B_TEXT,
            "text_encoder_2": BYT5_SMALL,
            "image_encoder": SIGLIP_384,
            "vae": DEFAULT,
        }
    }
    sizes = {"": {}}
    default_flavour = "t2v-480p"
    flavours = {
        "t2v-480p": Flavour(f"{REPOSITORY}480p_t2v"),
        "t2v-720p": Flavour(f"{REPOSITORY}720p_t2v", {**LARGE, "flow_schedule_shift": 9.0}),
        "t2v-480p-distilled": Flavour(f"{REPOSITORY}480p_t2v_distilled", DISTILLED, distilled=UNGUIDED),
        "i2v-480p": _image_to_video_flavour("480p_i2v", 5.0),
        "i2v-720p": _image_to_video_flavour("720p_i2v", 7.0, **LARGE),
        "i2v-480p-distilled": _image_to_video_flavour("480p_i2v_distilled", 5.0, UNGUIDED, **DISTILLED),
        "i2v-720p-distilled": _image_to_video_flavour("720p_i2v_distilled", 7.0, UNGUIDED, **LARGE, **DISTILLED),
    }
    tinies = {"tiny-i2v": "i2v-480p"}
    defaults = {
        "resolution": 480,
        "validation_resolution": "832x480",
        "aspect_bucket_alignment": 16,
        "tokenizer_max_length": 1000,
        "flow_schedule_shift": 5.0,
        "validation_guidance": 6.0,
        "validation_num_inference_steps": 50,
        "validation_num_video_frames": 121,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")}
    tiny = TINY

    # -- the first frame -------------------------------------------------------------------------------------------

    def sample_entries(
        self, components: SampleEncoders, pixels: Tensor, latents: Tensor, options: Config
    ) -> dict[str, Tensor]:
        """Of the first frame: start (B, 32, 1, H, W), its latent by itself, and image (B, N, D), SigLIP's features."""
        import torch

        from darkroom.families.shared.latents import encode

        if not self.is_image_to_video:
            return {}
        first = pixels if pixels.ndim == 4 else pixels[:, :, 0]
        encoder = components.extra("image_encoder")
        read = components.extra("feature_extractor").preprocess(
            images=to_images(first), do_resize=True, return_tensors="pt"
        )
        with torch.no_grad():
            image = encoder(**read.to(device=encoder.device, dtype=encoder.dtype)).last_hidden_state
        return {"start": encode(components.vae(), first, components.latents), "image": image}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> dict[str, Tensor]:
        """given (B, 33, F, H, W), and image (B, N, D) of clips that start from an image."""
        import torch

        count, _, *grid = batch.latents.shape
        condition = batch.latents.new_zeros(count, self.latents.channels + 1, *grid)
        if not self.is_image_to_video:
            return {"given": condition}
        start = batch.extras["start"].to(condition)
        condition[:, :, :1] = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)
        return {"given": condition, "image": batch.extras["image"]}

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 32, F, H, W)."""
        import torch

        image = cond.get("image")
        if image is None:
            image = x_t.new_zeros(len(x_t), EMPTY_IMAGE_TOKENS, unwrap(model).config.image_embed_dim)
        return model(
            hidden_states=torch.cat([x_t, cond["given"].to(x_t)], dim=1),
            # float32 in any precision: bfloat16 has no more than 256 noise levels up to 1000
            timestep=t.float() * 1000,
            image_embeds=image.to(x_t),
            **text_inputs(cond),
            return_dict=False,
        )[0]

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def default_components(self, stage: Stage) -> dict[str, object]:
        """What guides; and for captions a small VAE, which the pipelines ask for its channels even then."""
        from diffusers.guiders import ClassifierFreeGuidance

        from darkroom.families.shared.classes import find_class

        guider = {"guider": ClassifierFreeGuidance()}
        if stage != "text":
            return guider
        assert TINY.vae is not None
        return {**guider, "vae": find_class(TINY.vae.cls)(**TINY.vae.config)}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        pipe.guider.guidance_scale = options.validation_guidance
        self.limit_tokens(pipe, options)
        pipe.vision_num_semantic_tokens = EMPTY_IMAGE_TOKENS
        # from an image the pipeline chooses a size of its own
        pipe.video_processor.calculate_default_height_width = lambda **_: (height, width)

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"num_frames": self.spec.clip_frames(options)}

    def size_kwargs(self, width: int, height: int, options: Config) -> Kwargs:
        return {} if self.is_image_to_video else super().size_kwargs(width, height, options)


FAMILY = HunyuanVideo
