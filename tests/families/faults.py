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


MEANS_ONLY = "means only"
NORMALISERS[MEANS_ONLY] = (
    lambda z, config: z - z.new_tensor(config.latents_mean).view(1, -1, 1, 1, 1),
    lambda z, config: z + z.new_tensor(config.latents_mean).view(1, -1, 1, 1, 1),
)

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
