"""Conventions broken on purpose, and the first check that notices. A check that misses these would miss ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from darkroom import families
from darkroom.families import flux
from darkroom.families.base import Family
from darkroom.families.latents import NORMALISERS
from tests.families.conformance import CHECKS, Case


@dataclasses.dataclass(frozen=True)
class Fault:
    """A convention, how it is broken in a copy of the family, and the check that has to catch it."""

    convention: str
    family: str
    caught_by: str
    members: Callable[[type[Family]], dict[str, Any]]
    flavour: str = "tiny"

    def broken(self) -> Case:
        """The family with the fault."""
        cls = type(families.get(self.family))
        return Case(type(f"Broken{cls.__name__}", (cls,), self.members(cls))(), self.flavour)


def _predict(change: Callable[..., Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    """`change(plain predict, self, model, x_t, t, cond)` in place of predict."""

    def members(cls: type[Family]) -> dict[str, Any]:
        return {"predict": lambda self, model, x_t, t, cond: change(cls.predict, self, model, x_t, t, cond)}

    return members


def _conditions(name: str, change: Callable[[Any], Any]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        def conditions(self, batch, options, generator):
            found = cls.conditions(self, batch, options, generator)
            return {**found, name: change(found[name])}

        return {"conditions": conditions}

    return members


def _text(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        return {"encode_text": lambda self, *args: change(cls.encode_text(self, *args))}

    return members


def _stacked(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[type[Family]], dict[str, Any]]:
    """`change(batch)` after captions are stacked."""

    def members(cls: type[Family]) -> dict[str, Any]:
        return {"stack_text": lambda self, entries: change(cls.stack_text(self, entries))}

    return members


def _all_real(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Padding counts as text."""
    return {name: value for name, value in batch.items() if name != "mask"}


def _mask_of_ones(text: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**text, "mask": torch.ones_like(text["mask"])}


def _without_first(text: dict[str, Any]) -> dict[str, Any]:
    return {**text, "text": [rows[2:] for rows in text["text"]]}


def _tokenizer(**changes: Callable[..., Any]) -> Callable[[type[Family]], dict[str, Any]]:
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


def _pipe(**changes: Any) -> Callable[[type[Family]], dict[str, Any]]:
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


def _model_input(**changes: Callable[[Any], Any]) -> Callable[[type[Family]], dict[str, Any]]:
    """Arguments of the network changed on their way."""

    def changed(plain, self, model, x_t, t, cond):
        class Between:
            config = model.config

            def __call__(self, *args, **inputs):
                return model(*args, **{**inputs, **{name: change(inputs[name]) for name, change in changes.items()}})

        return plain(self, Between(), x_t, t, cond)

    return _predict(changed)


def _taller(shapes: list[list[tuple[int, int, int]]]) -> list[list[tuple[int, int, int]]]:
    """The same number of tokens, two rows of them as one."""
    return [[(frames, height // 2, width * 2) for frames, height, width in row] for row in shapes]


def _skipping_a_layer(cls: type[Family]) -> dict[str, Any]:
    """The last layer but one, as SDXL reads it."""

    def encode_text(self, pipe, captions, options):
        tokens = pipe.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return {"text": pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]}

    return {"encode_text": encode_text}


def _without_instruction(cls: type[Family]) -> dict[str, Any]:
    def encode_text(self, pipe, captions, options):
        settings = type("Settings", (), {**vars(options), "sana_complex_human_instruction": ""})
        return cls.encode_text(self, pipe, captions, settings)

    return {"encode_text": encode_text}


def _no_template(messages: list[dict[str, str]], **_: Any) -> str:
    return messages[-1]["content"]


def _latents(**changes: Any) -> Callable[[type[Family]], dict[str, Any]]:
    return lambda cls: {"latents": dataclasses.replace(cls.latents, **changes)}


def _entries(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    def members(cls: type[Family]) -> dict[str, Any]:
        def sample_entries(self, *args):
            found = cls.sample_entries(self, *args)
            return {**found, name: change(found[name])}

        return {"sample_entries": sample_entries}

    return members


def _pack_rows_first(latents: Tensor) -> Tensor:
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, c * 4)


def _unpack_rows_first(tokens: Tensor, height: int, width: int) -> Tensor:
    b, _, d = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, 2, 2, d // 4)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, d // 4, height, width)


def _other_packing(cls: type[Family]) -> dict[str, Any]:
    return {
        "to_pipeline": lambda self, latents: _pack_rows_first(latents),
        "from_pipeline": lambda self, latents, height, width: _unpack_rows_first(latents, height, width),
    }


def _ids(change: Callable[[Tensor], Tensor]) -> Callable[[type[Family]], dict[str, Any]]:
    def changed(plain, self, model, x_t, t, cond):
        plain_ids, flux.image_ids = flux.image_ids, lambda *args: change(plain_ids(*args))
        try:
            return plain(self, model, x_t, t, cond)
        finally:
            flux.image_ids = plain_ids

    return _predict(changed)


def _unnumbered(ids: Tensor) -> Tensor:
    return ids * ids.new_tensor([0, 1, 1])


def _mask_last(given: Tensor) -> Tensor:
    """The mask of the given frames, here the last one."""
    return torch.cat([given[:, :4].flip(2), given[:, 4:]], dim=1)


def _means(z: Tensor, vae: Any) -> Tensor:
    return z.new_tensor(vae.config.latents_mean).view(1, -1, *[1] * (z.ndim - 2))


MEANS_ONLY = "means only"
NORMALISERS[MEANS_ONLY] = (
    lambda z, vae: z - _means(z, vae),
    lambda z, vae: z + _means(z, vae),
)

UNSHUFFLED_ONLY = "unshuffled only"
NORMALISERS[UNSHUFFLED_ONLY] = (
    lambda z, vae: torch.nn.functional.pixel_unshuffle(z, 2),
    lambda z, vae: torch.nn.functional.pixel_shuffle(z, 2),
)


def _columns_first(cls: type[Family]) -> dict[str, Any]:
    """Tokens run down the columns."""
    return {
        "to_pipeline": lambda self, latents: cls.to_pipeline(self, latents.transpose(2, 3)),
        "from_pipeline": lambda self, latents, h, w: cls.from_pipeline(self, latents, w, h).transpose(2, 3),
    }


def _other_layers(cls: type[Family]) -> dict[str, Any]:
    """A layer earlier in reading captions."""

    def encode_text(self, pipe, captions, options):
        class Earlier(cls):
            def text_layers(self, options):
                return tuple(layer - 1 for layer in cls.text_layers(self, options))

        return Earlier().encode_text(pipe, captions, options)

    return {"encode_text": encode_text}


FAULTS = [
    Fault("sign of the answer", "sd3", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("sign of the answer", "flux", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "flux", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("time scale", "sd3", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("time direction", "flux", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time direction", "sdxl", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("packing order", "flux", "call parity", _other_packing),
    Fault("latent shift", "flux", "latent parity", _latents(normaliser="scale")),
    Fault("latent shift", "sd3", "latent parity", _latents(normaliser="scale")),
    Fault("latent scale", "sdxl", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("position ids", "flux", "call parity", _ids(lambda ids: ids[:, [0, 2, 1]])),
    Fault("guidance", "flux", "call parity", _conditions("guidance", lambda g: g * 1000)),
    Fault("mask of the padding", "flux", "call parity", _text(lambda c: {**c, "text": c["text"] * _mask(c["text"])})),
    Fault("mask of the padding", "sd3", "call parity", _text(lambda c: {**c, "text": c["text"] * _mask(c["text"])})),
    Fault("dropped leading tokens", "flux", "call parity", _text(lambda c: {**c, "text": c["text"][:, 2:]})),
    Fault("dropped leading tokens", "sdxl", "call parity", _text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("pooled vector", "sd3", "call parity", _text(lambda c: {**c, "pooled": c["pooled"].flip(-1)})),
    Fault("size conditions", "sdxl", "call parity", _conditions("time_ids", lambda ids: ids.flip(-1) + 1)),
    Fault("sign of the answer", "wan", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "wan", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("time direction", "wan", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("times of the tokens", "wan", "call parity", _conditions("noisy", lambda n: n.cumsum(1) - 1), "tiny-ti2v"),
    Fault("latent scale", "wan", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("channel statistics", "wan", "latent parity", _latents(normaliser=MEANS_ONLY)),
    Fault("text padding", "wan", "call parity", _text(lambda c: {**c, "text": c["text"] + (c["text"] == 0)})),
    Fault("dropped leading tokens", "wan", "call parity", _text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("given frames", "wan", "call parity", _conditions("given", _mask_last), "tiny-i2v"),
    Fault("order of the channels", "wan", "call parity", _conditions("given", lambda g: g.roll(4, 1)), "tiny-i2v"),
    Fault("first frame", "wan", "call parity", _entries("first_frame", lambda z: z * 1.1), "tiny-i2v"),
    Fault("picture's features", "wan", "call parity", _entries("image", lambda e: e[:, 1:]), "tiny-i2v"),
    Fault("number of a reference", "flux", "call parity", _ids(_unnumbered), "tiny-kontext"),
    Fault("no references", "flux", "call parity", _conditions("references", lambda r: ()), "tiny-kontext"),
    Fault("sign of the answer", "z_image", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "z_image", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "z_image", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 1000, c))),
    Fault("latent shift", "z_image", "latent parity", _latents(normaliser="scale")),
    Fault("dropped leading tokens", "z_image", "call parity", _text(_without_first)),
    Fault("chat template", "z_image", "call parity", _tokenizer(apply_chat_template=_no_template)),
    Fault("mask of the padding", "z_image", "call parity", _stacked(_all_real)),
    Fault("sign of the answer", "qwen_image", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "qwen_image", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "qwen_image", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "qwen_image", "call parity", _other_packing),
    Fault("channel statistics", "qwen_image", "latent parity", _latents(normaliser=MEANS_ONLY)),
    Fault("dropped leading tokens", "qwen_image", "call parity", _text(_without_first)),
    Fault("template tokens kept", "qwen_image", "call parity", _pipe(prompt_template_encode_start_idx=32)),
    Fault("mask of the padding", "qwen_image", "call parity", _stacked(_all_real)),
    Fault("shapes of the pictures", "qwen_image", "call parity", _model_input(img_shapes=_taller)),
    Fault("sign of the answer", "sd1x", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "sd1x", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("time scale", "sd1x", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "sd1x", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "sd1x", "call parity", _text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("mask of the padding", "sd1x", "call parity", _text(lambda c: {**c, "text": c["text"] * _mask(c["text"])})),
    Fault("layer of the text encoder", "sd1x", "call parity", _skipping_a_layer),
    Fault("time direction", "sd2x", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("sign of the answer", "flux2", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "flux2", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "flux2", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "flux2", "call parity", _columns_first),
    Fault("channel statistics", "flux2", "call parity", _latents(normaliser=UNSHUFFLED_ONLY)),
    Fault("position ids", "flux2", "call parity", _model_input(img_ids=lambda ids: ids[..., [0, 2, 1, 3]])),
    Fault("positions of the text", "flux2", "call parity", _model_input(txt_ids=lambda ids: ids * 0)),
    Fault("number of a reference", "flux2", "call parity", _model_input(img_ids=lambda ids: ids.clamp(max=9))),
    Fault("no references", "flux2", "call parity", _conditions("references", lambda r: ())),
    Fault("chat template", "flux2", "call parity", _tokenizer(apply_chat_template=_no_template)),
    Fault("layers of the text encoder", "flux2", "call parity", _other_layers),
    Fault("mask of the padding", "flux2", "call parity", _text(lambda c: {**c, "text": c["text"] * _mask(c["text"])})),
    Fault("guidance", "flux2", "call parity", _conditions("guidance", lambda g: g * 1000), "tiny-dev"),
    Fault("layers of the text encoder", "flux2", "call parity", _other_layers, "tiny-dev"),
    Fault("sign of the answer", "lumina2", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "lumina2", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "lumina2", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 1000, c))),
    Fault("latent shift", "lumina2", "latent parity", _latents(normaliser="scale")),
    Fault("mask of the padding", "lumina2", "call parity", _text(_mask_of_ones)),
    Fault("instruction before a caption", "lumina2", "call parity", _pipe(system_prompt="")),
    Fault("unconditional text", "lumina2", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
    Fault("sign of the answer", "sana", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "sana", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "sana", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "sana", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "sana", "call parity", _text(_mask_of_ones)),
    Fault("instruction before a caption", "sana", "call parity", _without_instruction),
    Fault("dropped leading tokens", "sana", "call parity", _text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("unconditional text", "sana", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
    Fault("sign of the answer", "auraflow", "oracle", _predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "auraflow", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "auraflow", "call parity", _predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("latent scale", "auraflow", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("text padding", "auraflow", "call parity", _text(lambda c: {**c, "text": c["text"] + (c["text"] == 0)})),
    Fault("dropped leading tokens", "auraflow", "call parity", _text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("unconditional text", "sdxl", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]


def _mask(text: Tensor) -> Tensor:
    keep = text.new_ones(text.shape[1], 1)
    keep[-4:] = 0
    return keep


def caught(fault: Fault) -> tuple[str, str] | None:
    """The first check that notices, in the order of their cost, and what it says."""
    broken = fault.broken()
    for name, check in CHECKS.items():
        if problem := check(broken):
            return name, problem
    return None
