"""Stable Diffusion 2.x: the UNet of 1.x with a wider CLIP encoder, velocity prediction, pure noise at the last step.

Papers 2112.10752, 2202.00512 (velocity), 2305.08891 (zero terminal signal). Shapes as in `sd1x`. The 512 pixel bases
predict noise: what a checkpoint's scheduler says of itself goes before the family's word.
"""

from __future__ import annotations

from darkroom.families.sd1x import NO_CHECKER, ORACLE, SCHEDULE, UNET, SD1x
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour
from darkroom.families.sizes import CLIP_H, SD_VAE
from darkroom.families.tiny.components import clip, kl_vae


class SD2x(SD1x):
    name, title = "sd2x", "Stable Diffusion 2.x"
    prediction = "v_prediction"
    component_sizes = {"": {"text_encoder": CLIP_H, "vae": SD_VAE}}
    sizes = {"": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}}
    default_flavour = "2.1"
    flavours = {
        "2.1": Flavour("stabilityai/stable-diffusion-2-1"),
        "2.0": Flavour("stabilityai/stable-diffusion-2"),
        "pseudoflex-v2": Flavour("bghira/pseudo-flex-v2"),
        "pseudojourney": Flavour("bghira/pseudo-journey-v2"),
        "digitaldiffusion": Flavour("Junglerally/Digital-Diffusion"),
    }
    defaults = {
        **SD1x.defaults,
        "resolution": 768,
        "validation_resolution": "768",
        "rescale_betas_zero_snr": True,
        "inference_scheduler_timestep_spacing": "trailing",
        "validation_guidance_rescale": 0.7,
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "UNet2DConditionModel", {**UNET, "attention_head_dim": (2, 4), "use_linear_projection": True}
        ),
        vae=kl_vae(4, 0.18215),
        encoders={"text_encoder": clip(act="gelu")},
        tokenizers={"tokenizer": "clip"},
        scheduler=ComponentSpec(
            "DDIMScheduler",
            {
                **SCHEDULE,
                "clip_sample": False,
                "set_alpha_to_one": False,
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
        settings=NO_CHECKER,
        oracle={**ORACLE, "attention_head_dim": (2, 2)},
    )


FAMILY = SD2x
