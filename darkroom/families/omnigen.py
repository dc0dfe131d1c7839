"""OmniGen: one language model over text tokens, a time token and an image's patches, flow matching, no text encoder.

Paper 2409.11340; upstream: VectorSpaceLab/OmniGen. The network takes the noise level as 1 - t, 0 for pure noise, and
answers x0 - noise: time and velocity both run the other way than here.
Shapes: latents (B, 4, H, W); text (L,) token ids of each caption, its own length, B of them padded in front to (B, L).
Text sees what is before it, an image sees everything. Editing images is left out: this trains from text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family, find_on_host
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents, Limits
from darkroom.families.sizes import SD_VAE
from darkroom.families.tiny.components import kl_vae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

    from darkroom.families.shared.pipeline_call import Stage
    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

PADDING = 2
TEMPLATE = (
    "<|user|>\nGenerate an image according to the following instructions\n{}<|end|>\n<|assistant|>\n<|diffusion|>"
)
# what diffusers' pipeline is always guided away from
NEGATIVE = (
    "low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, extra fingers, mutated hands, "
    "poorly drawn hands, poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, "
    "extra limbs, cloned face, disfigured, gross proportions, malformed limbs, missing arms, missing legs, "
    "extra arms, extra legs, fused fingers, too many fingers."
)


class Encoded(str):
    """A prompt that is read already, for a pipeline that takes prompts as text only."""

    ids: list[int]
    negative: list[int]


class Instructions:
    """In the place of diffusers' pipeline's reader, which needs torchvision for its images: it reads text alone."""

    def __init__(self, text_tokenizer: Any, max_image_size: int = 1024, stock: Any = None):
        self.text_tokenizer, self.max_image_size, self.stock = text_tokenizer, max_image_size, stock

    def __call__(self, prompts: list[str], input_images: Any = None, **kwargs: Any) -> dict[str, Any]:
        """What the network is told of the prompts, then of what they are guided away from."""
        import torch

        encoded = [prompt for prompt in prompts if isinstance(prompt, Encoded)]
        if self.stock is not None and not encoded:
            return self.stock(prompts, input_images, **kwargs)
        read = [(prompt_tokens.ids, prompt_tokens.negative) for prompt_tokens in encoded] or [
            (token_ids(self.text_tokenizer, prompt), token_ids(self.text_tokenizer, NEGATIVE)) for prompt in prompts
        ]
        rows = [torch.tensor(ids) for ids in [*(ids for ids, _ in read), *(negative for _, negative in read)]]
        batch = pad(rows)
        mask, positions = layout(batch["length"], batch["text"].shape[1], kwargs["height"] * kwargs["width"] // 256)
        return {
            "input_ids": batch["text"],
            "attention_mask": mask,
            "position_ids": positions,
            "input_pixel_values": [],
            "input_image_sizes": {},
        }


class OmniGen(Family):
    name, title = "omnigen", "OmniGen"
    pipeline, denoiser = "OmniGenPipeline", "OmniGenTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "always"
    latents = Latents(channels=4, downscale=8, patch=2)
    blocks = ("layers",)
    negative_is_caption = False
    component_sizes = {"": {"vae": SD_VAE}}
    sizes = {"": {"rope_scaling": {"long_factor": (1.0,) * 48, "short_factor": (1.0,) * 48, "type": "su"}}}
    default_flavour = "v1"
    flavours = {"v1": Flavour("Shitao/OmniGen-v1-diffusers", note="trained from text only; its editing is not offered")}
    defaults = {
        "tokenizer_max_length": 1024,
        "flow_schedule_shift": 1.0,
        "validation_guidance": 2.5,
        "validation_num_inference_steps": 50,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "OmniGenTransformer2DModel",
            {
                "in_channels": 4,
                "patch_size": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "intermediate_size": 64,
                "num_layers": 2,
                "pad_token_id": 0,
                "vocab_size": 400,
                "max_position_embeddings": 1000,
                "original_max_position_embeddings": 512,
                "rope_scaling": {
                    "long_factor": (1.0, 1.1, 1.2, 1.3),
                    "short_factor": (1.0, 1.0, 1.0, 1.1),
                    "type": "su",
                },
                "pos_embed_max_size": 32,
                "time_step_dim": 32,
            },
        ),
        vae=kl_vae(4, 0.13025),
        encoders={},
        tokenizers={"tokenizer": "gemma"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True, "num_train_timesteps": 1}),
        oracle={
            "hidden_size": 64,
            "intermediate_size": 128,
            "rope_scaling": {"long_factor": (1.0,) * 8, "short_factor": (1.0,) * 8, "type": "su"},
        },
        # the template around every caption is long in letters, and so is what it is guided away from
        defaults={"tokenizer_max_length": 512},
    )

    # -- text ------------------------------------------------------------------------------------------------------

    def limits(self, settings: Settings) -> Limits:
        """Its table of positions has so many tokens along an edge."""
        table = settings.get("pos_embed_max_size")
        return Limits(edge=table and table * self.latents.patch * self.latents.downscale)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length."""
        return options.tokenizer_max_length

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L,) of token ids: the network itself embeds them."""
        import torch

        limit = options.tokenizer_max_length
        return {"text": [torch.tensor(token_ids(pipe.tokenizer, caption)[:limit]) for caption in captions]}

    def unconditional(self, pipe: DiffusionPipeline, entry: dict[str, Tensor], options: Config) -> dict[str, Tensor]:
        """The text that diffusers' pipeline is always guided away from."""
        return {"text": self.encode_text(pipe, [NEGATIVE], options)["text"][0]}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """text (B, L) with padding before each beginning, length (B,) without it."""
        return pad([entry["text"] for entry in entries])

    # -- the step --------------------------------------------------------------------------------------------------

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 4, H, W)."""
        import torch

        text = cond["text"]
        mask, positions = layout(cond["length"], text.shape[1], self.latents.tokens(*x_t.shape[-2:]))
        # diffusers 0.42 reads the first row's positions for all: rows of other lengths are asked one by one
        together = len(set(find_on_host(cond, "length").tolist())) == 1
        rows = [slice(None)] if together else [slice(i, i + 1) for i in range(len(text))]
        toward_data = [
            model(
                # token ids say nothing of the network's precision
                hidden_states=x_t[row].to(next(model.parameters()).dtype),
                timestep=1 - t[row].float(),
                input_ids=text[row],
                input_img_latents=[],
                input_image_sizes={},
                attention_mask=mask[row].to(x_t.device),
                position_ids=positions[row].to(x_t.device),
                return_dict=False,
            )[0]
            for row in rows
        ]
        return -torch.cat(toward_data)

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs_from_prompt(self, prompt: str, negative: str, options: Config) -> Kwargs:
        return {"prompt": prompt}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        prompt = Encoded()
        prompt.ids, prompt.negative = text["text"][0].tolist(), negative["text"][0].tolist()
        return {"prompt": prompt}

    def default_components(self, stage: Stage) -> dict[str, object]:
        """No part, but a name that diffusers 0.42 leaves out without torchvision and asks for all the same."""
        from diffusers.pipelines.omnigen import pipeline_omnigen

        vars(pipeline_omnigen).setdefault("OmniGenMultiModalProcessor", Instructions)
        return {}

    def prepare(self, pipe: DiffusionPipeline, width: int, height: int, options: Config) -> None:
        """It takes no embeddings: let its reader know the tokens that a prompt brings."""
        stock = pipe.multimodal_processor
        if not isinstance(stock, Instructions):
            pipe.multimodal_processor = Instructions(pipe.tokenizer, stock.max_image_size, stock)


def token_ids(tokenizer: PreTrainedTokenizerBase, caption: str) -> list[int]:
    """The tokens of a caption and its template."""
    return tokenizer(TEMPLATE.format(caption)).input_ids


def pad(texts: list[Tensor]) -> dict[str, Tensor]:
    """Token ids (L_i,) to text (B, L), each at the end of its row, and length (B,)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    text = pad_sequence(texts, batch_first=True, padding_value=PADDING, padding_side="left")
    return {"text": text, "length": torch.tensor([len(ids) for ids in texts], device=text.device)}


def layout(lengths: Tensor, longest: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Who sees whom, (B, S, S), and where each stands, (B, S), in rows of text, the time and `pixels` patches."""
    import torch

    text_length = longest + 1
    number = torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]  # (B, L), below 0 is padding
    mask = torch.zeros(len(lengths), text_length + pixels, text_length + pixels, device=lengths.device)
    mask[:, :text_length, :text_length] = torch.ones(text_length, text_length, device=lengths.device).tril()
    mask[:, text_length:] = 1
    mask[:, :, :longest] *= (number >= 0)[:, None]
    # a row that saw nothing would have nothing to share its attention among
    mask[:, :longest].masked_fill_((number < 0)[..., None], 1)
    behind = lengths[:, None] + torch.arange(pixels + 1, device=lengths.device)
    return mask, torch.cat([number.clamp(min=0), behind], dim=1)


FAMILY = OmniGen
