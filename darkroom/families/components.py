"""Load one named part of a base model at a time: from a hub id, a local diffusers folder, or single files.

`Parts` loads nothing until asked. Text encoders and the VAE are opened late, used to fill their caches and let go.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from darkroom.core.errors import ModelError
from darkroom.core.files import disk_full_says
from darkroom.core.log import logger
from darkroom.core.memory import is_memory_full
from darkroom.families import control
from darkroom.families.base import Family
from darkroom.families.classes import named
from darkroom.families.control import WithChannels, WithControlNet
from darkroom.families.experts import Experts
from darkroom.families.facts import Tiny
from darkroom.families.pixels import PixelSpace
from darkroom.families.repository import SINGLE_FILE, Repository, eyes, is_model, lacking

log = logger(__name__)


@contextlib.contextmanager
def explained(what: str, source: str, remedy: str) -> Iterator[None]:
    """Turn a failure to find or read weights into a message that says what was looked for and where."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as cause:
        if is_memory_full(cause):
            raise
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ModelError(f"{what} could not be loaded from '{source}'.\n  {first}\n  {remedy}") from cause


class Parts(Repository):
    """The parts of one base model, each loaded when asked for.

    Raises ModelError, naming the part, the place and the remedy, when something is not there or does not fit.
    """

    def __init__(self, family: Family, options: Any, device: torch.device, dtype: torch.dtype):
        super().__init__(family, options, device, dtype)
        self._text: Any = None
        self._vae: Any = None
        self._extras: dict[str, Any] = {}
        quiet()

    @property
    def _folder_arguments(self) -> dict[str, Any]:
        variant = {"variant": self.options.variant} if self.options.variant else {}
        return {**variant, **self.hub}

    @property
    def _remedy(self) -> str:
        if Path(self.base).exists():
            return f"Check that the folder holds a {self.family.title} model in the diffusers layout."
        return (
            "Check pretrained_model_name_or_path; for a hub id check the network, HF_TOKEN and that its licence was "
            "accepted; for a local folder check the path."
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def text(self) -> Any:
        """The family's stock pipeline with its text encoders and tokenizers only, on the device."""
        if self._text is None:
            family = self.family
            reader = self.family.text_pipeline_for(self.options.model_flavour)
            models = [name for name, part in self.kinds.extras.items() if name in taken_by(reader) and is_model(part)]
            others = set(models) - set(eyes(family, self.kinds, self.options.model_flavour))
            absent = dict.fromkeys(["vae", *self.held, *others, *family.guides, *family.idle_parts])
            dtype = self.text_dtype
            with explained("The text encoders", self.base, self._remedy):
                extra = from_elsewhere(self.family, self.kinds, self.index, dtype) | self._separate_encoders(dtype)
                stand_ins = family.stand_ins(self.options.model_flavour)
                self._text = self._pipeline(reader, extra | absent | stand_ins, dtype)
            for part in self._text.components.values():
                if isinstance(part, torch.nn.Module):
                    part.requires_grad_(False).eval().to(self.device)
        return self._text

    def _separate_encoders(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            part: named(self.kinds.encoders[part].cls).from_pretrained(source, dtype=dtype)
            for option, part in self.family.text_parts.items()
            if (source := getattr(self.options, option))
        }

    def _pipeline(self, name: str, parts: dict[str, Any], dtype: torch.dtype) -> Any:
        cls = named(name)
        parts = parts | self.family.made_parts(self.options.model_flavour, renders=False)
        parts |= helpers(name, self.kinds, self.settings_base, dtype, self.hub, but=parts)
        if self.is_single_file:
            return cls.from_single_file(self.base, config=self.default_base, dtype=dtype, **parts)
        return cls.from_pretrained(self.base, dtype=dtype, **self._folder_arguments, **parts)

    def unload_text(self) -> None:
        """Let the text encoders go."""
        self._text = None
        self._release()

    def vae(self) -> Any:
        """The VAE, frozen, on the device, tiled or sliced if asked."""
        if self._vae is None:
            dtype = self.vae_dtype
            source = self.options.pretrained_vae_model_name_or_path
            with explained("The VAE", source or self.base, self._remedy):
                self._vae = self._load_vae(source, dtype)
            self._vae.requires_grad_(False).eval().to(self.device)
            if self.options.vae_enable_tiling and self.kinds.vae:
                self._vae.enable_tiling()
            if self.options.vae_enable_slicing and self.kinds.vae:
                self._vae.enable_slicing()
        return self._vae

    def _load_vae(self, source: str | None, dtype: torch.dtype) -> Any:
        if self.kinds.vae is None:
            return PixelSpace()
        cls = named(self.kinds.vae.cls)
        if source is None:
            if self.is_single_file:
                return cls.from_single_file(self.base, config=self.default_base, subfolder="vae", dtype=dtype)
            return cls.from_pretrained(self.base, subfolder="vae", dtype=dtype, **self._folder_arguments)
        if Path(source).suffix in SINGLE_FILE:
            return cls.from_single_file(source, config=self.default_base, subfolder="vae", dtype=dtype)
        if (Path(source) / "vae").is_dir():
            return cls.from_pretrained(source, subfolder="vae", dtype=dtype)
        return cls.from_pretrained(source, dtype=dtype)

    def extra(self, name: str) -> Any:
        """What else reads a sample's pixels: an image encoder, frozen and on the device, or a processor."""
        if name not in self._extras:
            kind, place = self.kinds.extras[name], self.home(name)
            arguments = {"dtype": self.text_dtype, **self._folder_arguments} if is_model(kind) else self.hub
            with explained(f"The part '{name}'", place, self._remedy):
                part = named(kind.cls).from_pretrained(
                    place, subfolder=name, **(arguments if place == self.settings_base else {})
                )
            self._extras[name] = part.requires_grad_(False).eval().to(self.device) if is_model(kind) else part
        return self._extras[name]

    def unload_vae(self) -> None:
        """Let the VAE, and what else reads pixels, go, unless `keep_vae_loaded`."""
        if not self.options.keep_vae_loaded:
            self._vae = None
            self._extras.clear()
            self._release()

    def denoiser(self, dtype: torch.dtype | None = None) -> Any:
        """What is trained, on the device, in the base's precision unless told otherwise: a denoiser, or experts."""
        loaded = {part: self._denoiser(part, dtype or self.dtype) for part in self.trained}
        if len(loaded) == 1:
            place = self.options.controlnet_model_name_or_path or self.base
            remedy = "Check controlnet_model_name_or_path and controlnet_custom_config."
            with explained("The ControlNet", place, remedy):
                return control.wrap(self.family, loaded[self.trained[0]], self.options)
        return Experts(loaded, self.options.timestep_boundary * 1000)

    def _denoiser(self, part: str, dtype: torch.dtype) -> Any:
        source, subfolder = self.denoiser_source(part)
        with explained("The denoiser", source, self._remedy):
            model = self._load_denoiser(source, subfolder, dtype)
        return model.to(self.device)

    def _load_denoiser(self, source: str, subfolder: str, dtype: torch.dtype) -> Any:
        cls = named(self.family.denoiser)
        if Path(source).suffix in SINGLE_FILE:
            config = self.base if source != self.base else self.default_base
            return cls.from_single_file(source, config=config, subfolder=subfolder, dtype=dtype)
        if Path(source).is_dir() and not (Path(source) / subfolder).is_dir():
            return cls.from_pretrained(source, dtype=dtype)
        return cls.from_pretrained(source, subfolder=subfolder, dtype=dtype, **self._folder_arguments)

    def separate(self, but: Collection[str]) -> dict[str, Any]:
        """The parts that options take from a place of their own, by component and in the base's precision."""
        held = {part: self.denoiser_source(part) for part in self.held if part not in but}
        found = {
            part: self._load_denoiser(*source, self.dtype) for part, source in held.items() if source[0] != self.base
        }
        if vae := self.options.pretrained_vae_model_name_or_path:
            found["vae"] = self._load_vae(vae, self.dtype)
        return found | self._separate_encoders(self.dtype)

    def bystander(self, name: str) -> Any:
        """A denoiser of the base that pictures are drawn with and nobody trains, frozen and on the device."""
        if name not in self._extras:
            with explained(f"The part '{name}'", self.base, self._remedy):
                model = self._load_denoiser(self.base, name, self.dtype)
            self._extras[name] = model.requires_grad_(False).eval().to(self.device)
        return self._extras[name]

    def scheduler(self) -> Any:
        """The base's own scheduler, as its pipeline would use it."""
        cls = named(self.kinds.scheduler.cls)
        with explained("The scheduler's settings", self.settings_base, self._remedy):
            config = cls.load_config(
                self.settings_base, subfolder="scheduler", **({} if self.is_single_file else self.hub)
            )
            # the class that the model names, not the family's usual one
            return named(config.get("_class_name", cls.__name__)).from_config(config)

    def assemble(self, denoiser: Any, vae: Any, scheduler: Any) -> Any:
        """The stock pipeline around live parts and without text encoders, for prompts that are encoded already.

        An expert that is trained apart answers at all noise levels, unless `wan_validation_load_other_stage`.
        """
        cls = named(self.family.drawn_by(self.options))
        known = inspect.signature(cls.__init__).parameters
        parts: dict[str, Any] = {
            name: None for name, p in known.items() if name != "self" and p.default is inspect.Parameter.empty
        }
        # a component is a row of library and class; the rest is what the pipeline is told
        parts |= {name: value for name, value in self.index.items() if name in known and not isinstance(value, list)}
        parts |= {name: self.extra(name) for name in self.kinds.extras if name in known}
        live = self._live(denoiser)
        others = set(self.held) - live.keys() if self.options.wan_validation_load_other_stage else ()
        parts |= self.family.made_parts(self.options.model_flavour, renders=True)
        parts |= {"scheduler": scheduler, **live}
        parts |= {name: self.bystander(name) for name in (*self.family.guides, *others)}
        parts |= {"vae": vae} if self.kinds.vae else {}
        pipe = cls(**parts)
        if len(self.trained) + len(others) < len(self.held):
            self.family.alone(pipe, self.trained[0])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _live(self, denoiser: Any) -> dict[str, Any]:
        """What the pipeline is given of a run's model, by component."""
        if isinstance(denoiser, WithControlNet):
            return {self.trained[0]: denoiser.denoiser, **denoiser.members}
        return denoiser.members if isinstance(denoiser, (Experts, WithChannels)) else {self.trained[0]: denoiser}

    def save_pipeline(self, denoiser: Any, folder: Path) -> None:
        """Write a complete pipeline with this denoiser in place of the base's, as diffusers lays it out.

        It appears by renaming, so that an earlier one stays until the new one is whole. Raises DiskFullError.
        """
        beside, old = folder.with_name(f"{folder.name}-tmp"), folder.with_name(f"{folder.name}-old-tmp")
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            with disk_full_says(folder.parent, folder.name):
                # diffusers asks for parts that a base says it does without
                parts = {name: None for name, row in self.index.items() if row == [None, None]}
                parts |= from_elsewhere(self.family, self.kinds, self.index, self.dtype) | self._live(denoiser)
                pipe = self._pipeline(self.family.drawn_by(self.options), parts, self.dtype)
                pipe.save_pretrained(beside)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(beside, folder)
        finally:
            for leftover in (beside, old):
                shutil.rmtree(leftover, ignore_errors=True)

    def _release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def from_elsewhere(family: Family, kinds: Tiny, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The parts for text and pictures that a base lacks, loaded from where they are."""
    from transformers import AutoTokenizer

    found: dict[str, Any] = {}
    readers = {**kinds.encoders, **kinds.extras}
    for part in lacking(family, index):
        place = family.elsewhere[part]
        if part in readers:
            precision = {"dtype": dtype} if is_model(readers[part]) else {}
            found[part] = named(readers[part].cls).from_pretrained(place, subfolder=part, **precision)
        else:
            found[part] = AutoTokenizer.from_pretrained(place, subfolder=part)
    return found


def helpers(
    name: str, kinds: Tiny, base: str, dtype: torch.dtype, hub: Mapping[str, Any], but: Collection[str]
) -> dict[str, Any]:
    """What a pipeline takes beside encoders and denoisers, but for some of it, of the classes that the family names.

    A model's index may name others, or classes that diffusers does not find.
    """
    wanted = {part: kind for part, kind in kinds.extras.items() if part in taken_by(name) and part not in but}
    precision = {part: {"dtype": dtype} if is_model(kind) else {} for part, kind in wanted.items()}
    return {
        part: named(kind.cls).from_pretrained(base, subfolder=part, **precision[part], **hub)
        for part, kind in wanted.items()
    }


def taken_by(pipeline: str) -> set[str]:
    """The components that a pipeline's constructor takes."""
    return set(inspect.signature(named(pipeline).__init__).parameters)


def scheduler_config(parts: Parts) -> dict[str, Any]:
    """The scheduler's settings as a plain dict."""
    return json.loads(json.dumps(dict(parts.scheduler().config), default=str))


def quiet() -> None:
    """Keep diffusers and transformers from printing bars and notices between ours; their errors still come through."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
