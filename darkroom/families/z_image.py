"""Z-Image: one stream of image and text tokens, flow matching, a Qwen3 language model that reads the caption.

Paper 2511.22699; upstream: Tongyi-MAI/Z-Image. The network takes the noise level as 1 - t, 0 for pure noise, and
answers x0 - noise: time and velocity both run the other way than here.
Shapes: latents (B, 16, H, W); text (L, D) of each caption, its own length, B of them padded to (B, L, D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

from darkroom.families.base import Family, find_on_host
from darkroom.families.shared.control_methods import ControlNet
from darkroom.families.shared.spec import (
    ComponentSpec,
    ComponentSpecs,
    Flavour,
    HiddenStates,
    Inpainting,
    Latents,
    Limits,
)
from darkroom.families.shared.text import stack_padded
from darkroom.families.sizes import FLUX_VAE, QWEN3_4B
from darkroom.families.tiny.components import kl_vae, qwen3

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from torch import Tensor
    from torch.nn import Module

    from darkroom.families.shared.types import Cond, Kwargs, Settings
    from darkroom.options.config import Config

# the network pads texts to multiples of so many tokens
TEXT_GROUP = 32
# channels of a control image alone
PLAIN = 16


class ZImageControlNet(ControlNet):
    """A ControlNet for which diffusers has no maker; some modules are the denoiser's own."""

    # the pipeline would count three quarters
    extra_arguments: ClassVar[Settings] = {"controlnet_conditioning_scale": 1.0}

    def network_input(self, control: Tensor, to_pipeline: Callable[[Tensor], Tensor]) -> Tensor:
        """A clip of one frame, (B, 16, 1, H, W)."""
        return control.unsqueeze(2)

    def build(self, cls: type[ModelMixin], denoiser: ModelMixin, custom: Settings) -> ModelMixin:
        """Every fifth layer of the transformer, and its way in."""
        import inspect

        parameters = inspect.signature(cls.__init__).parameters
        config = {name: value for name, value in denoiser.config.items() if name in parameters}
        config |= {"control_layers_places": list(range(0, len(denoiser.layers), 5)), "control_in_dim": PLAIN}
        net = cls(**{**config, **custom})
        state, weights = net.state_dict(), _rename_for_control(denoiser, net.config.control_layers_places)
        # a custom config may ask for further channels or fewer blocks
        fitting = {
            name: weight for name, weight in weights.items() if name in state and weight.shape == state[name].shape
        }
        net.load_state_dict(fitting, strict=False)
        return net

    def check(self, net: ModelMixin) -> None:
        if net.config.control_in_dim != PLAIN:
            raise ValueError(f"it takes {net.config.control_in_dim} channels, an image to fill in among them")

    def share_modules(self, denoiser: ModelMixin, net: ModelMixin) -> None:
        # diffusers 0.42 asks for it and nowhere sets it
        vars(net).setdefault("gradient_checkpointing", False)
        # as plain attributes: modules that are set in the usual way would be trained and saved with it
        vars(net).update(vars(type(net).from_transformer(SimpleNamespace(), denoiser)))


class ZImage(Family):
    name, title = "z_image", "Z-Image"
    pipeline, denoiser = "ZImagePipeline", "ZImageTransformer2DModel"
    prediction = "flow_matching"
    attention_masks = "batches"
    guidance_off = {"guidance_scale": 0.0}  # it counts from 0
    latents = Latents(channels=16, downscale=8, patch=2, normalizer="shift_scale")
    blocks = ("noise_refiner", "context_refiner", "layers")
    hidden_states = HiddenStates(("layers",))
    controlnet = ZImageControlNet(
        "ZImageControlNetModel", "ZImageControlNetPipeline", ("controlnet_block_samples",), input="control_context"
    )
    inpainting = Inpainting("ZImageInpaintPipeline")
    previews = "madebyollin/taef1"
    component_sizes = {"": {"text_encoder": QWEN3_4B, "vae": FLUX_VAE}}
    sizes = {"": {}}
    default_flavour = "base"
    flavours = {
        "base": Flavour("Tongyi-MAI/Z-Image", {"flow_schedule_shift": 6.0}),
        "turbo": Flavour(
            "Tongyi-MAI/Z-Image-Turbo",
            # its guidance counts from 0
            {"validation_guidance": 0.0, "validation_num_inference_steps": 9},
            distilled="eight steps without guidance",
            assistant="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
        ),
        "ostris-de-turbo": Flavour(
            "Tongyi-MAI/Z-Image-Turbo",
            {"pretrained_transformer_model_name_or_path": "ostris/Z-Image-De-Turbo"},
            note="Turbo with its distillation taken back, so that it can be trained",
        ),
    }
    defaults = {
        "tokenizer_max_length": 512,
        "flow_schedule_shift": 3.0,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 50,
    }
    targets = {"default": ("to_k", "to_q", "to_v", "to_out.0")}
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "ZImageTransformer2DModel",
            {
                "in_channels": 16,
                "dim": 32,
                "n_layers": 2,
                "n_refiner_layers": 1,
                "n_heads": 2,
                "n_kv_heads": 2,
                "cap_feat_dim": 32,
                "axes_dims": (8, 4, 4),
                "axes_lens": (256, 32, 32),
            },
        ),
        vae=kl_vae(16, 0.3611, 0.1159),
        encoders={"text_encoder": qwen3()},
        tokenizers={"tokenizer": "chat"},
        scheduler=ComponentSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        oracle={"dim": 128, "axes_dims": (16, 24, 24)},
    )

    def limits(self, settings: Settings) -> Limits:
        """Its rotations are tables: of the text, padded to whole groups and before the image, of rows and columns."""
        if not (tables := settings.get("axes_lens")):
            return Limits()
        edge = min(tables[1:]) * self.latents.patch * self.latents.downscale
        return Limits(edge=edge, tokens=(tables[0] - 2) // TEXT_GROUP * TEXT_GROUP)

    def count_text_values(self, configs: Mapping[str, Settings], options: Config) -> int:
        """At most: a caption is stored in its own length."""
        return options.tokenizer_max_length * configs["text_encoder"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> Cond:
        """text, B tensors (L, D), of the last layer but one; the chat template counts as text."""
        # the pipeline writes into the list that it is given
        text, _ = pipe.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=options.tokenizer_max_length
        )
        return {"text": text}

    def stack_text(self, entries: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return stack_padded(entries)

    def masks_attention(self, options: Config) -> frozenset[str]:
        """Its pipeline asks for the prompt and the negative one, which guidance adds, in one batch."""
        guided = options.validation_guidance > self.spec.guidance_off["guidance_scale"]
        return super().masks_attention(options) | frozenset({"inference"} if guided else ())

    def predict(self, model: Module, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Velocity from data to noise, (B, 16, H, W)."""
        import torch

        toward_data = model(
            list(x_t.unsqueeze(2)),  # B clips of one frame, (16, 1, H, W)
            1 - t.float(),
            _rows(cond["text"], find_on_host(cond, "mask")),
            return_dict=False,
        )[0]
        return -torch.stack(toward_data).squeeze(2)

    # -- the diffusers pipeline -----------------------------------------------------------------------------------

    def pipeline_kwargs(self, options: Config) -> Kwargs:
        return {"guidance_scale": options.validation_guidance, "max_sequence_length": options.tokenizer_max_length}

    def pipeline_kwargs_from_embeds(self, text: dict[str, Tensor], negative: dict[str, Tensor]) -> Kwargs:
        return {"prompt_embeds": list(text["text"]), "negative_prompt_embeds": list(negative["text"])}


def _rename_for_control(denoiser: ModelMixin, layer_indices: list[int]) -> dict[str, Tensor]:
    """The transformer's weights by the names that a ControlNet with blocks for these layers has for its own."""
    numbers = {str(index): number for number, index in enumerate(layer_indices)}
    weights = {}
    for name, weight in denoiser.state_dict().items():
        part, _, suffix = name.partition(".")
        layer, _, inner = suffix.partition(".")
        if part == "layers" and layer in numbers:
            weights[f"control_layers.{numbers[layer]}.{inner}"] = weight
        elif part in ("all_x_embedder", "noise_refiner"):
            weights[f"control_{name}"] = weight
    return weights


def _rows(text: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each caption's own rows of text (B, L, D)."""
    if mask is None:
        return list(text)
    return [rows[:length] for rows, length in zip(text, mask.sum(1).tolist(), strict=True)]


FAMILY = ZImage
