"""Conventions broken on purpose, and the first check that notices. A check that misses these would miss ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from darkroom import families
from darkroom.families import flux
from darkroom.families.base import Family
from darkroom.families.shared.latents import NORMALIZERS
from tests.families.conformance import Case


@dataclasses.dataclass(frozen=True)
class Fault:
    """A convention, how it is broken in a copy of the family, and the check that has to catch it."""

    convention: str
    family: str
    caught_by: str
    members: Callable[[type[Family]], dict[str, Any]]
    flavour: str = "tiny"
    started: bool = False

    def broken(self) -> Case:
        """The family with the fault."""
        cls = families.load(self.family)
        return Case(type(f"Broken{cls.__name__}", (cls,), self.members(cls))(self.flavour), self.flavour, self.started)


def predict(change: Callable[..., Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    """`change(plain predict, self, model, x_t, t, cond)` in place of predict."""

    def members(cls: type[Family]) -> dict[str, Any]:
        return {"predict": lambda self, model, x_t, t, cond: change(cls.predict, self, model, x_t, t, cond)}

    return members


def model_inputs(name: str, change: Callable[[Any], Any]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        def model_inputs(self, batch, options, generator):
            found = cls.model_inputs(self, batch, options, generator)
            return {**found, name: change(found[name])}

        return {"model_inputs": model_inputs}

    return members


def text(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        return {"encode_text": lambda self, *args: change(cls.encode_text(self, *args))}

    return members


def stacked(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[type[Family]], dict[str, Any]]:
    """`change(batch)` after captions are stacked."""

    def members(cls: type[Family]) -> dict[str, Any]:
        return {"stack_text": lambda self, entries: change(cls.stack_text(self, entries))}

    return members


def all_real(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Padding counts as text."""
    return {name: value for name, value in batch.items() if name != "mask"}


def mask_of_ones(text: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**text, "mask": torch.ones_like(text["mask"])}


def without_first(text: dict[str, Any]) -> dict[str, Any]:
    return {**text, "text": [rows[2:] for rows in text["text"]]}


def tokenizer(**changes: Callable[..., Any]) -> Callable[[type[Family]], dict[str, Any]]:
    """The text is read with methods of the tokenizer changed."""

    def members(cls: type[Family]) -> dict[str, Any]:
        def encode_text(self, pipe, captions, options):
            plain = {name: getattr(pipe.tokenizer, name) for name in changes}
            vars(pipe.tokenizer).update(changes)
            try:
                return cls.encode_text(self, pipe, captions, options)
            finally:
                vars(pipe.tokenizer).update(plain)

        return {"encode_text": encode_text}

    return members


def pipe(**changes: Any) -> Callable[[type[Family]], dict[str, Any]]:
    """The text is read with settings of the pipeline changed."""

    def members(cls: type[Family]) -> dict[str, Any]:
        def encode_text(self, pipe, captions, options):
            plain = {name: getattr(pipe, name) for name in changes}
            vars(pipe).update(changes)
            try:
                return cls.encode_text(self, pipe, captions, options)
            finally:
                vars(pipe).update(plain)

        return {"encode_text": encode_text}

    return members


def model_input(**changes: Callable[[Any], Any]) -> Callable[[type[Family]], dict[str, Any]]:
    """Arguments of the network changed on their way."""

    def changed(plain, self, model, x_t, t, cond):
        class Between:
            config = model.config

            def __call__(self, *args, **inputs):
                return model(*args, **{**inputs, **{name: change(inputs[name]) for name, change in changes.items()}})

        return plain(self, Between(), x_t, t, cond)

    return predict(changed)


def softened_attention(plain: Any, *args: Any) -> Tensor:
    """The network adds its masks to the attention, as numbers: nothing is hidden, in the stock pipeline either."""
    attend = functional.scaled_dot_product_attention

    def softly(*given: Any, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
        soft = None if attn_mask is None else (attn_mask == 0 if attn_mask.is_floating_point() else attn_mask).float()
        return attend(*given, attn_mask=soft, **how)

    functional.scaled_dot_product_attention = softly
    try:
        return plain(*args)
    finally:
        functional.scaled_dot_product_attention = attend


def taller(shapes: list[list[tuple[int, int, int]]]) -> list[list[tuple[int, int, int]]]:
    """The same number of tokens, two rows of them as one."""
    return [[(frames, height // 2, width * 2) for frames, height, width in row] for row in shapes]


def skipping_a_layer(cls: type[Family]) -> dict[str, Any]:
    """The last layer but one, as SDXL reads it."""

    def encode_text(self, pipe, captions, options):
        tokens = pipe.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return {"text": pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]}

    return {"encode_text": encode_text}


def without_instruction(cls: type[Family]) -> dict[str, Any]:
    def encode_text(self, pipe, captions, options):
        settings = type("Settings", (), {**vars(options), "sana_complex_human_instruction": ""})
        return cls.encode_text(self, pipe, captions, settings)

    return {"encode_text": encode_text}


def seeing_the_wrong_way_up(cls: type[Family]) -> dict[str, Any]:
    """Captions are read with their pictures upside down."""

    def encode_text_with_images(self, pipe, caption, pictures, options):
        return cls.encode_text_with_images(self, pipe, caption, [picture.rotate(180) for picture in pictures], options)

    return {"encode_text_with_images": encode_text_with_images}


def no_template(messages: list[dict[str, str]], **_: Any) -> str:
    return messages[-1]["content"]


def latents(**changes: Any) -> Callable[[type[Family]], dict[str, Any]]:
    return lambda cls: {"latents": dataclasses.replace(cls.latents, **changes)}


def entries(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        def sample_entries(self, *args):
            found = cls.sample_entries(self, *args)
            return {**found, name: change(found[name])}

        return {"sample_entries": sample_entries}

    return members


def pack_rows_first(latents: Tensor) -> Tensor:
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, c * 4)


def unpack_rows_first(tokens: Tensor, height: int, width: int) -> Tensor:
    b, _, d = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, 2, 2, d // 4)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, d // 4, height, width)


def other_packing(cls: type[Family]) -> dict[str, Any]:
    return {
        "to_pipeline": lambda self, latents: pack_rows_first(latents),
        "from_pipeline": lambda self, latents, height, width: unpack_rows_first(latents, height, width),
    }


def ids(change: Callable[[Tensor], Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    def changed(plain, self, model, x_t, t, cond):
        plain_ids, flux.image_ids = flux.image_ids, lambda *args: change(plain_ids(*args))
        try:
            return plain(self, model, x_t, t, cond)
        finally:
            flux.image_ids = plain_ids

    return predict(changed)


def unnumbered(ids: Tensor) -> Tensor:
    return ids * ids.new_tensor([0, 1, 1])


def mask_last(given: Tensor) -> Tensor:
    """The mask of the given frames, here the last one."""
    return torch.cat([given[:, :4].flip(2), given[:, 4:]], dim=1)


def opaque_pictures(cls: type[Family]) -> dict[str, Any]:
    """The pipeline is given its picture without alpha."""

    def image_kwargs(self, picture, *size):
        return cls.image_kwargs(self, picture.convert("RGB"), *size)

    return {"image_kwargs": image_kwargs}


def last_layer_first(plain: Any, self: Any, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    return plain(self, model, x_t.flip(2), t, cond).flip(2)


def means(z: Tensor, vae: Any) -> Tensor:
    return z.new_tensor(vae.config.latents_mean).view(1, -1, *[1] * (z.ndim - 2))


MEANS_ONLY = "means only"
NORMALIZERS[MEANS_ONLY] = (
    lambda z, vae: z - means(z, vae),
    lambda z, vae: z + means(z, vae),
)

UNSHUFFLED_ONLY = "unshuffled only"
NORMALIZERS[UNSHUFFLED_ONLY] = (
    lambda z, vae: torch.nn.functional.pixel_unshuffle(z, 2),
    lambda z, vae: torch.nn.functional.pixel_shuffle(z, 2),
)


def columns_first(cls: type[Family]) -> dict[str, Any]:
    """Tokens run down the columns."""
    return {
        "to_pipeline": lambda self, latents: cls.to_pipeline(self, latents.transpose(2, 3)),
        "from_pipeline": lambda self, latents, h, w: cls.from_pipeline(self, latents, w, h).transpose(2, 3),
    }


def other_layers(cls: type[Family]) -> dict[str, Any]:
    """A layer earlier in reading captions."""

    def encode_text(self, pipe, captions, options):
        class Earlier(cls):
            def text_layers(self, options):
                return tuple(layer - 1 for layer in cls.text_layers(self, options))

        return Earlier(self.spec.name).encode_text(pipe, captions, options)

    return {"encode_text": encode_text}


def mask(text: Tensor) -> Tensor:
    keep = text.new_ones(text.shape[1], 1)
    keep[-4:] = 0
    return keep
