"""Stable Cascade from text to image: diffusers' pipeline of its prior, and the stock one of its decoder behind it."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import StableCascadeDecoderPipeline
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade_prior import StableCascadePriorPipeline


class StableCascadePipeline(StableCascadePriorPipeline):
    """Both stages share the text encoder and the kind of scheduler; `vae` is what reads images in training."""

    _optional_components = ["feature_extractor", "image_encoder", "vae"]

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        prior: Any,
        scheduler: Any,
        decoder: Any,
        vqgan: Any,
        resolution_multiple: float = 42.67,
        latent_dim_scale: float = 10.67,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        vae: Any = None,
    ):
        image_components = (feature_extractor, image_encoder)
        super().__init__(tokenizer, text_encoder, prior, scheduler, resolution_multiple, *image_components)
        self.register_modules(decoder=decoder, vqgan=vqgan, vae=vae)
        self.register_to_config(latent_dim_scale=latent_dim_scale)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """As the prior's pipeline does, which wants a text encoder even for text that is encoded already."""
        if self.text_encoder is not None:
            return super().encode_prompt(*args, **kwargs)
        names = ("prompt_embeds", "prompt_embeds_pooled", "negative_prompt_embeds", "negative_prompt_embeds_pooled")
        return tuple(kwargs[name] for name in names)

    def __call__(
        self, decoder_steps: int = 10, decoder_guidance: float = 0.0, output_type: str = "pil",
        return_dict: bool = False, **call: Any,
    ) -> Any:  # fmt: skip
        """Images as `output_type` says, or for "latent" what the prior drew, in a tuple."""
        prior_output, text, pooled, negative, negative_pooled = super().__call__(
            **call, output_type="pt", return_dict=False
        )
        if output_type == "latent":
            return (prior_output,)
        decoder = StableCascadeDecoderPipeline(
            self.decoder, self.tokenizer, self.text_encoder, type(self.scheduler).from_config(self.scheduler.config),
            self.vqgan, self.config.latent_dim_scale,
        )  # fmt: skip
        decoder.set_progress_bar_config(disable=True)
        images = decoder(
            prior_output, prompt_embeds=text, prompt_embeds_pooled=pooled, negative_prompt_embeds=negative,
            negative_prompt_embeds_pooled=negative_pooled, num_inference_steps=decoder_steps,
            guidance_scale=decoder_guidance, generator=call.get("generator"), output_type=output_type,
            return_dict=False,
        )  # fmt: skip
        return (images,)
