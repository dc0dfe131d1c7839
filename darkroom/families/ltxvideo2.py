"""LTX-2: a video and its audio, denoised side by side by one network that lets each look at the other.

Paper 2601.03233; upstream: Lightricks/LTX-2. Both streams have the same noise level, 0..1000 to the network, which
answers noise - x0 for each. Text is every layer of Gemma 3, made into two texts by small transformers (connectors).
Shapes: video as LTX-Video's; audio (B, T, 128), 25 latents a second, each eight channels of sixteen mel bands; text (B,
L, D) for the video and for the audio, with a mask (B, L).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from darkroom.families.base import LATENTS
from darkroom.families.ltxvideo import SINGLE_LAYER, SMALL_CHANNELS, LTXVideo
from darkroom.families.shared.audio_stream import AudioSpec, AudioStream
from darkroom.families.shared.first_frame import noise_fractions, token_times
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour
from darkroom.families.shared.text import encode_prompt
from darkroom.families.sizes import DEFAULT, GEMMA3_12B
from darkroom.families.tiny.components import gemma3

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline, ModelMixin
    from PIL.Image import Image as PILImage
    from torch import Generator, Tensor
    from torch.nn import Module

    from darkroom.data.batches.batch import Batch
    from darkroom.families.shared.audio_stream import VideoForm
    from darkroom.families.shared.encoders import SampleEncoders
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

IMAGE_TO_VIDEO_FIELDS: Settings = {"image_input": "optional", "image_pipeline": "LTX2ImageToVideoPipeline"}
# what a spectrogram frame looks at, and the least it says: as the network was trained
WINDOW, FLOOR = 1024, 1e-5
# the first published network, whose streams look at each other by their own times
SEPARATE_TIMES = frozenset({"dev"})

_CONNECTORS = {
    "caption_channels": 32,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 8,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": None,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 8,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": None,
    "connector_rope_base_seq_len": 32,
    "rope_double_precision": False,
}
_VOCODER = {
    "in_channels": 16,
    "hidden_channels": 32,
    "out_channels": 2,
    "upsample_kernel_sizes": [16, 20],
    "upsample_factors": [8, 20],
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3, 5]],
    "output_sampling_rate": 16000,
}


class LTX2Audio(AudioStream):
    """What is heard with a video: mel spectrograms, and latents of them for the network."""

    format = AudioSpec(rate=16000, channels=2)

    def encode(self, components: SampleEncoders, waveforms: Tensor, seconds: float) -> dict[str, Tensor]:
        """audio (B, T, D): normalized latents of the waveforms (B, channels, N)."""
        import torch

        vae = components.extra("audio_vae")
        facts = vae.config
        per_second = facts.sample_rate / facts.mel_hop_length / vae.temporal_compression_ratio
        count = round(seconds * per_second)
        mels = log_mels(waveforms, facts.sample_rate, facts.mel_hop_length, facts.mel_bins)
        mels = mels[:, :, : (count - 1) * vae.temporal_compression_ratio + 1]
        with torch.no_grad():
            latents = vae.encode(mels.to(vae.device, vae.dtype)).latent_dist.mode().float()  # (B, C, T, bands)
        return {"sound": self.normalize(vae, latents)}

    def normalize(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        packed = latents.transpose(1, 2).flatten(2)
        return (packed - vae.latents_mean.to(packed)) / vae.latents_std.to(packed)

    def predict(
        self, form: VideoForm, model: Module, x_t: Mapping[str, Tensor], t: Tensor, cond: Cond
    ) -> dict[str, Tensor]:
        """Velocity from data to noise: of the video (B, 128, F, H, W), and of the audio, "sound" (B, T, D)."""
        from darkroom.families.shared.classes import unwrap

        video, audio, time = x_t[LATENTS], x_t["sound"], t.float() * 1000
        frames, height, width = video.shape[2:]
        times: dict[str, Tensor] = {"timestep": time}
        if "noisy" in cond:
            tokens = token_times(time, cond["noisy"], form.latents.tokens(height, width))
            times = {"timestep": tokens, "audio_timestep": time}
        network, count = unwrap(model), len(video)
        video_answer, audio_answer = model(
            hidden_states=form.to_pipeline(video),
            audio_hidden_states=audio,
            encoder_hidden_states=cond["text"],
            audio_encoder_hidden_states=cond["sound_text"],
            sigma=time,
            encoder_attention_mask=cond["mask"],
            audio_encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            fps=cond["rate"],
            audio_num_frames=audio.shape[1],
            video_coords=network.rope.prepare_video_coords(
                count, frames, height, width, video.device, fps=cond["rate"]
            ),
            audio_coords=network.audio_rope.prepare_audio_coords(count, audio.shape[1], video.device),
            use_cross_timestep=not cond["own_times"],
            **times,
            return_dict=False,
        )
        return {LATENTS: form.from_pipeline(video_answer, height, width), "sound": audio_answer}

    def extract(self, pipe: DiffusionPipeline, output: Sequence[Tensor]) -> tuple[np.ndarray, int]:
        """The audio (channels, N) in -1..1 and its rate, of what the pipeline returned."""
        return output[1][0].float().cpu().numpy(), pipe.vocoder.config.output_sampling_rate


class LTXVideo2(LTXVideo):
    name, title = "ltxvideo2", "LTX-2"
    pipeline, denoiser = "LTX2Pipeline", "LTX2VideoTransformer3DModel"
    text_components = {"pretrained_gemma_model_name_or_path": "text_encoder"}
    pipeline_decodes = True
    guidance_off = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    extra_streams = {"sound": "audio_hidden_states"}
    audio = LTX2Audio()
    component_sizes = {
        "": {
            "text_encoder": GEMMA3_12B,
            "connectors": DEFAULT,
            "vae": DEFAULT,
            "audio_vae": DEFAULT,
            "vocoder": DEFAULT,
        }
    }
    sizes = {"dev": {}}
    default_flavour = "dev"
    flavours = {
        "dev": Flavour("Lightricks/LTX-2", **IMAGE_TO_VIDEO_FIELDS),
        "2.3-dev": Flavour("dg845/LTX-2.3-Diffusers", **IMAGE_TO_VIDEO_FIELDS),
        "2.3-distilled": Flavour(
            "dg845/LTX-2.3-Distilled-Diffusers",
            {"validation_guidance": 1.0, "validation_num_inference_steps": 8},
            distilled="eight steps without guidance",
            **IMAGE_TO_VIDEO_FIELDS,
        ),
    }
    defaults = {
        **LTXVideo.defaults,
        "resolution": 512,
        "validation_resolution": "768x512",
        "tokenizer_max_length": 1024,
        "validation_num_inference_steps": 40,
    }
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "LTX2VideoTransformer3DModel",
            {
                "in_channels": 128,
                "out_channels": 128,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
                "audio_in_channels": 16,
                "audio_out_channels": 16,
                "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 8,
                "audio_cross_attention_dim": 16,
                "num_layers": 2,
                "caption_channels": 32,
                "rope_double_precision": False,
                "use_prompt_embeddings": True,
            },
        ),
        vae=ComponentSpec(
            "AutoencoderKLLTX2Video",
            {
                "latent_channels": 128,
                "block_out_channels": SMALL_CHANNELS,
                "decoder_block_out_channels": (8, 16, 32),
                "layers_per_block": SINGLE_LAYER,
                "decoder_layers_per_block": (1, 1, 1, 1),
                "spatial_compression_ratio": 32,
                "temporal_compression_ratio": 8,
            },
        ),
        encoders={
            "text_encoder": gemma3(),
            "connectors": ComponentSpec("diffusers.pipelines.ltx2.connectors:LTX2TextConnectors", _CONNECTORS),
        },
        tokenizers={"tokenizer": "gemma"},
        scheduler=LTXVideo.tiny.scheduler,
        extras={
            "audio_vae": ComponentSpec(
                "AutoencoderKLLTX2Audio",
                {
                    "base_channels": 16,
                    "ch_mult": [1, 1, 1],
                    "num_res_blocks": 1,
                    "latent_channels": 8,
                    "mel_bins": 8,
                    "resolution": 8,
                },
            ),
            "vocoder": ComponentSpec("diffusers.pipelines.ltx2.vocoder:LTX2Vocoder", _VOCODER),
        },
        oracle={
            "num_attention_heads": 4,
            "attention_head_dim": 64,
            "cross_attention_dim": 256,
            "audio_num_attention_heads": 4,
            "audio_attention_head_dim": 16,
            "audio_cross_attention_dim": 64,
        },
        defaults={"aspect_bucket_alignment": 32},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        config = configs["connectors"]
        if config["per_modality_projections"]:
            width = config["video_hidden_dim"] + config["audio_hidden_dim"]
        else:
            width = 2 * config["caption_channels"]
        return options.tokenizer_max_length * (width + 1)

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text and sound_text (B, L, D) as the connectors make them, mask (B, L).

        They are kept rather than the layers of Gemma, which are 49 times as many numbers.
        """
        layers, mask, _, _ = encode_prompt(pipe, captions, options)
        text, audio_text, mask = pipe.connectors(layers, mask, padding_side=pipe.tokenizer.padding_side)
        return {"text": text, "sound_text": audio_text, "mask": mask}

    def sample_identity(self, options: Config) -> dict[str, object]:
        return {"sound": list(LTX2Audio.format), "frames_per_second": options.framerate or self.fps}

    # -- the step --------------------------------------------------------------------------------------------------

    def model_inputs(self, batch: Batch, options: Config, generator: Generator) -> Cond:
        """rate: frames per second; own_times: see OWN_TIMES; noisy, where clips start from their first frame."""
        inputs: Cond = {
            "rate": float(options.framerate or self.fps or 0),
            "own_times": self.spec.published in SEPARATE_TIMES,
        }
        if batch.is_i2v:
            inputs["noisy"] = noise_fractions(batch.latents, batch.latents.new_zeros(len(batch.latents)))
        return inputs

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        """Plain guidance: that by perturbed layers and by streams alone costs two more passes a step."""
        return {
            **super().pipeline_kwargs(options),
            "audio_guidance_scale": options.validation_guidance,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "modality_scale": 1.0,
            "audio_modality_scale": 1.0,
            "guidance_rescale": options.validation_guidance_rescale or 0.0,
            "audio_guidance_rescale": options.validation_guidance_rescale or 0.0,
            "spatio_temporal_guidance_blocks": None,
            "use_cross_timestep": self.spec.published not in SEPARATE_TIMES,
        }

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        """Both texts side by side, for `prepare` to take apart."""
        import torch

        return {
            "prompt_embeds": torch.cat([text["text"], text["sound_text"]], dim=-1),
            "prompt_attention_mask": text["mask"],
            "negative_prompt_embeds": torch.cat([negative["text"], negative["sound_text"]], dim=-1),
            "negative_prompt_attention_mask": negative["mask"],
        }

    def image_kwargs(self, image: PILImage, width: int, height: int, options: Config) -> Kwargs:
        """The image as it is, as clips are trained: the pipeline would compress it as H.264 first."""
        return {**super().image_kwargs(image, width, height, options), "image_crf": 0}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        from darkroom.families.shared.connectors import PrecomputedConnectors

        if not isinstance(pipe.connectors, PrecomputedConnectors):
            facts = pipe.transformer.config
            text_width = facts.caption_channels if facts.use_prompt_embeddings else facts.cross_attention_dim
            pipe.connectors = PrecomputedConnectors(pipe.connectors, text_width)


def log_mels(waveforms: Tensor, rate: int, hop: int, bands: int) -> Tensor:
    """Waveforms (B, channels, N) to logarithms of mel magnitudes, (B, channels, N / hop + 1, bands)."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(WINDOW // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    spectrum = torch.stft(
        waveforms.flatten(0, 1), WINDOW, hop, window=torch.hann_window(WINDOW), center=True, return_complex=True
    )  # (B * channels, bins, frames)
    mels = spectrum.abs().mT @ torch.from_numpy(filters).float()
    return mels.clamp(min=FLOOR).log().unflatten(0, waveforms.shape[:2])


FAMILY = LTXVideo2
