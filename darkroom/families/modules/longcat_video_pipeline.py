"""LongCat-Video's pipelines: clips from text, and from text and the frame they start with.

Paper 2510.22200; upstream: meituan-longcat/LongCat-Video. Guidance is CFG-Zero's (2503.18886): what the network answers
without text counts by its projection on what it answers with text. A given first frame is the latent of the image
itself, has time 0, and the sampler leaves it alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

MIN_NOISE = 0.001
PACKAGES = frozenset({"diffusers", "transformers", "darkroom"})
# the parts of a model's folder, and who reads them
FOLDERS = {
    "tokenizer": "transformers:AutoTokenizer",
    "text_encoder": "transformers:UMT5EncoderModel",
    "vae": "diffusers:AutoencoderKLWan",
    "scheduler": "diffusers:FlowMatchEulerDiscreteScheduler",
    "dit": "darkroom.families.modules.longcat_video:LongCatVideoTransformer3DModel",
}


class LongCatVideoLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' plainest loader. Files call the network `transformer`, as they do everywhere."""

    _lora_loadable_modules: ClassVar[list[str]] = ["dit"]

    @property
    def transformer(self) -> Any:
        """The network by the name that files have for it."""
        return self.dit

    def fuse_lora(self, components: Sequence[str] = ("dit",), **kwargs: Any) -> None:
        super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("dit",), **kwargs: Any) -> None:
        super().unfuse_lora(components=list(components), **kwargs)


class LongCatVideoPipeline(DiffusionPipeline, LongCatVideoLoraLoaderMixin):
    """Clips from text; its parts are called as the folders of the published model are."""

    model_cpu_offload_seq = "text_encoder->dit->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

    def __init__(self, tokenizer: Any, text_encoder: Any, vae: Any, scheduler: Any, dit: Any):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler, dit=dit)
        self.vae_scale_factor_temporal = self.vae.config.scale_factor_temporal if getattr(self, "vae", None) else 4
        self.vae_scale_factor_spatial = self.vae.config.scale_factor_spatial if getattr(self, "vae", None) else 8
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers does; where the index names no parts, or parts of other packages, by the names of the folders.

        The published model's index names none.
        """
        from darkroom.core.registry import import_path

        hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
        index = cls.load_config(pretrained_model_name_or_path, **hub)
        rows = [row for row in index.values() if isinstance(row, list) and row[0]]
        if rows and {row[0].partition(".")[0] for row in rows} <= PACKAGES:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        components = {name: kwargs[name] for name in FOLDERS if name in kwargs}
        weights = {k: kwargs[k] for k in ("dtype", "torch_dtype", "variant") if k in kwargs}
        for name, path in FOLDERS.items():
            if name not in components:
                reader: Any = import_path(path)
                arguments = weights if issubclass(reader, torch.nn.Module) else {}
                components[name] = reader.from_pretrained(
                    pretrained_model_name_or_path, subfolder=name, **hub, **arguments
                )
        return cls(**components)

    # -- text ------------------------------------------------------------------------------------------------------

    def _read(self, prompts: Sequence[str], length: int, device: Any) -> tuple[Tensor, Tensor]:
        """Prompts as embeddings (B, L, D), padding among them, and a mask (B, L), 1 where there is text."""
        tokens = self.tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        return self.text_encoder(ids, mask).last_hidden_state.to(self.text_encoder.dtype), mask

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int = 512,
        device: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings and mask of the prompts, then of the negative ones, which are None without guidance."""
        device = device or self._execution_device
        if prompt_embeds is None or prompt_attention_mask is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
            prompt_embeds, prompt_attention_mask = self._read(prompts, max_sequence_length, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            count = len(prompt_embeds)
            is_single = negative_prompt is None or isinstance(negative_prompt, str)
            negatives = [str(negative_prompt or "")] * count if is_single else list(negative_prompt or ())
            if len(negatives) != count:
                raise ValueError(f"there are {count} prompts and {len(negatives)} negative prompts")
            read = self._read(negatives, max_sequence_length, device)
            negative_prompt_embeds, negative_prompt_attention_mask = read
        results = (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)
        return tuple(t if t is None else t.repeat_interleave(num_videos_per_prompt, dim=0) for t in results)  # type: ignore[return-value]

    # -- latents ---------------------------------------------------------------------------------------------------

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the VAE's channels, (1, C, 1, 1, 1) each."""
        config = self.vae.config
        mean, spread = (latents.new_tensor(n).view(1, -1, 1, 1, 1) for n in (config.latents_mean, config.latents_std))
        return mean, spread

    def prepare_latents(self, shape: tuple[int, ...], device: Any, generator: Any, latents: Tensor | None) -> Tensor:
        """Noise (B, C, F, H, W), float32, or the latents that were given."""
        if latents is not None:
            return latents.to(device, torch.float32)
        return randn_tensor(shape, generator=generator, device=torch.device(device), dtype=torch.float32)

    def encode_image(self, image: Any, height: int, width: int, device: Any) -> Tensor:
        """An image, or several, as latents of one frame (B, C, 1, H, W): the mean of what the VAE knows of them."""
        pixels = self.video_processor.preprocess(image, height=height, width=width).unsqueeze(2)
        z = self.vae.encode(pixels.to(device, self.vae.dtype)).latent_dist.mode().float()
        mean, spread = self._statistics(z)
        return (z - mean) / spread

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        mean, spread = self._statistics(latents)
        z = (latents * spread + mean).to(self.vae.dtype)
        return self.video_processor.postprocess_video(self.vae.decode(z, return_dict=False)[0], output_type=output_type)

    # -- sampling --------------------------------------------------------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        """How strongly the text counts; 1 is without guidance."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Is the network also asked without the text?"""
        return self._guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of the sampling that runs."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set it in a callback to leave out the steps that are left."""
        return self._interrupt

    def check_inputs(self, prompt: Any, embedded: Sequence[Any], height: int, width: int, tensors: Any) -> None:
        """Raises ValueError, saying what is wrong."""
        multiple = self.vae_scale_factor_spatial * 2
        if height % multiple or width % multiple:
            raise ValueError(f"height and width must be multiples of {multiple}, and are {height} and {width}")
        embeds, mask, negative, negative_mask = embedded
        if (prompt is None) == (embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if (embeds is None) != (mask is None) or (negative is None) != (negative_mask is None):
            raise ValueError("embeddings and their attention mask belong together")
        if unknown := sorted(set(tensors) - set(self._callback_tensor_inputs)):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: {unknown} are none of {self._callback_tensor_inputs}"
            )

    def _apply_guidance(self, answer: Tensor) -> Tensor:
        """One answer of the negative ones and those with text, which come behind them."""
        without, conditional = answer.chunk(2)
        flat, other = conditional.flatten(1), without.flatten(1)
        share = (flat * other).sum(1) / (other.square().sum(1) + 1e-8)  # (B,)
        without = without * share.view(-1, 1, 1, 1, 1)
        return without + self.guidance_scale * (conditional - without)

    def _set_timesteps(self, steps: int, device: Any) -> Tensor:
        """Evenly spaced before the scheduler's shift, down to nearly no noise, where the scheduler takes that."""
        takes = inspect.signature(self.scheduler.set_timesteps).parameters
        spaced = {"sigmas": torch.linspace(1, MIN_NOISE, steps).tolist()} if "sigmas" in takes else {}
        self.scheduler.set_timesteps(steps, device=device, **spaced)
        return self.scheduler.timesteps

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int = 480,
        width: int = 832,
        num_frames: int = 93,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        *,
        start: Any = None,
    ) -> WanPipelineOutput | tuple[Any]:
        """Frames of clips from prompts or from their embeddings, as diffusers' video pipelines take and give them.

        `start` is the image that clips start with, a PIL one or (B, 3, H, W) in 0..1. Raises ValueError.
        """
        tensors = callback_on_step_end_tensor_inputs
        embedded = (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)
        self.check_inputs(prompt, embedded, height, width, tensors)
        self._guidance_scale, self._interrupt = guidance_scale, False
        device, dtype = self._execution_device, self.dit.dtype
        guided = self.do_classifier_free_guidance
        text, mask, negative, negative_mask = self.encode_prompt(
            prompt, negative_prompt, guided, num_videos_per_prompt, *embedded, max_sequence_length, device
        )
        count = len(text)
        if guided and negative is not None and negative_mask is not None:
            text, mask = torch.cat([negative, text]), torch.cat([negative_mask, mask])
        prompt_embeds = text.to(device, dtype)

        timesteps = self._set_timesteps(num_inference_steps, device)
        self._num_timesteps = len(timesteps)
        frames = (max(num_frames, 1) - 1) // self.vae_scale_factor_temporal + 1
        size = (n // self.vae_scale_factor_spatial for n in (height, width))
        shape = (count, self.dit.config.in_channels, frames, *size)
        latents = self.prepare_latents(shape, device, generator, latents)
        clean_frames = 0
        if start is not None:
            clean_frames = 1
            first = self.encode_image(start, height, width, device).to(latents)
            latents = torch.cat([first.expand(count, -1, -1, -1, -1), latents[:, :, clean_frames:]], dim=2)

        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                x = torch.cat([latents] * (len(prompt_embeds) // count)).to(dtype)
                times = t.expand(len(x))
                if clean_frames:
                    times = times[:, None].repeat(1, frames)
                    times[:, :clean_frames] = 0
                answer = self.dit(
                    hidden_states=x,
                    timestep=times,
                    encoder_hidden_states=prompt_embeds,
                    encoder_attention_mask=mask,
                    num_cond_latents=clean_frames,
                    return_dict=False,
                )[0]
                if guided:
                    answer = self._apply_guidance(answer)
                # the network points to the data, and the scheduler wants what points to the noise
                stepped = self.scheduler.step(
                    -answer[:, :, clean_frames:], t, latents[:, :, clean_frames:], return_dict=False
                )[0]
                latents = torch.cat([latents[:, :, :clean_frames], stepped], dim=2)
                if callback_on_step_end is not None:
                    callback_tensors = {"latents": latents, "prompt_embeds": prompt_embeds}
                    changed = callback_on_step_end(self, i, t, {name: callback_tensors[name] for name in tensors})
                    latents = changed.get("latents", latents)
                    prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                progress_bar.update()

        video = latents if output_type == "latent" else self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=video) if return_dict else (video,)


class LongCatVideoImageToVideoPipeline(LongCatVideoPipeline):
    """Clips that start with an image."""

    def __call__(self, image: Any, *args: Any, **call: Any) -> WanPipelineOutput | tuple[Any]:  # type: ignore[override]
        """`image` is the first frame, a PIL image or (B, 3, H, W) in 0..1; the rest as for clips from text."""
        return super().__call__(*args, start=image, **call)
