"""Load one named part of a base model at a time: from a hub id, a local diffusers folder, or single files.

`Parts` loads nothing until asked. Text encoders and the VAE are opened late, used to fill their caches and let go.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from darkroom.core.errors import ConfigError, ModelError
from darkroom.core.files import ASIDE, clear_folders, explain_disk_full, follow_umask
from darkroom.core.log import logger
from darkroom.core.memory import is_memory_full
from darkroom.core.narrow import find_sensitive_layers
from darkroom.families.base import Family
from darkroom.families.shared import control
from darkroom.families.shared.classes import is_network, named
from darkroom.families.shared.control import WithChannels, WithControlNet
from darkroom.families.shared.experts import Experts
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.trained_text import WithText
from darkroom.pretrained import quantized, single_file
from darkroom.pretrained.repository import Repository, eyes, lacking
from darkroom.pretrained.weight_files import SAFE, is_single_file

if TYPE_CHECKING:
    from darkroom.options.config import Config

log = logger(__name__)

Keeper = Callable[[str, str, Callable[[], Any], Callable[[], Any]], Any]
# options that let a VAE take less memory, and the method of its that does so
SPARING = {"vae_enable_tiling": "enable_tiling", "vae_enable_slicing": "enable_slicing"}


UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RuntimeError, ImportError,
    re.error, SafetensorError,
)  # fmt: skip
"""What diffusers, peft and transformers raise, by experience, about files whose settings or tensors are not right."""


@contextlib.contextmanager
def explained(what: str, source: str, remedy: str) -> Iterator[None]:
    """Turn a failure to find or read weights into a message that says what was looked for and where."""
    try:
        yield
    except UNREADABLE as cause:
        if is_memory_full(cause):
            raise
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ModelError(f"{what} could not be loaded from '{source}'.\n  {first}\n  {remedy}") from cause


class Parts(Repository):
    """The parts of one base model, each loaded when asked for.

    `place_text` is given each text encoder, with its number from 1, `place_vae` the VAE; they send it to its place.
    Raises ModelError, naming the part, the place and the remedy, when something is not there or does not fit.
    """

    def __init__(
        self,
        family: Family,
        options: Config,
        device: torch.device,
        dtype: torch.dtype,
        place_text: Callable[[torch.nn.Module, int], None] | None = None,
        place_vae: Callable[[torch.nn.Module], None] | None = None,
        settings: str | None = None,
    ):
        super().__init__(family, options, device, dtype, settings)
        self._place_text = place_text or (lambda encoder, number: encoder.to(device))
        self._place_vae = place_vae or (lambda vae: vae.to(device))
        self._text: Any = None
        self._vae: Any = None
        self._extras: dict[str, Any] = {}
        quiet()

    @property
    def _folder_arguments(self) -> dict[str, Any]:
        variant = {"variant": self.options.variant} if self.options.variant else {}
        return {**variant, **self.hub, **SAFE}

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
            models = [
                name for name, part in self.kinds.extras.items() if name in taken_by(reader) and is_network(part.cls)
            ]
            others = set(models) - set(eyes(family, self.kinds, self.options.model_flavour))
            absent = dict.fromkeys(["vae", *self.held, *others, *family.guides, *family.idle_parts])
            dtype = self.text_dtype
            with explained("The text encoders", self.base, self._remedy):
                own = self._separate_encoders(dtype)
                stand_ins = family.stand_ins(self.options.model_flavour)
                self._text = self._pipeline(reader, own | absent | stand_ins, dtype)
            encoders = list(self.kinds.encoders)
            for name, part in self._text.components.items():
                if isinstance(part, torch.nn.Module):
                    part.requires_grad_(False).eval()
                    if name in encoders:
                        self._place_text(part, encoders.index(name) + 1)
                    else:
                        part.to(self.device)
        return self._text

    def _separate_encoders(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            part: self._from_file("text", part, source, dtype)
            if is_single_file(source)
            else (cls := named(self.kinds.encoders[part].cls)).from_pretrained(
                source, dtype=dtype, **SAFE, **self._quantising(part, cls, dtype)
            )
            for option, part in self.family.text_parts.items()
            if (source := getattr(self.options, option))
        }

    def _from_file(self, kind: Literal["denoiser", "vae", "text"], part: str, source: str, dtype: torch.dtype) -> Any:
        """A part out of one file, or a set that was split, with the settings of its flavour."""
        return single_file.load(self.wanted(kind, part), Path(source).expanduser(), dtype)

    def _pipeline(self, name: str, parts: dict[str, Any], dtype: torch.dtype) -> Any:
        cls = named(name)
        parts = parts | self.family.made_parts(self.options.model_flavour, renders=False)
        parts |= self.readers(name, dtype, but=parts)
        if "text" in self.inside:
            return cls.from_single_file(self.base, config=self.default_base, dtype=dtype, **parts)
        if "vae" in self.inside:
            parts = {"vae": self._load_vae(None, dtype), **parts}
        narrow = self._quantising_text(dtype, but=parts)
        return cls.from_pretrained(self.settings_base, dtype=dtype, **self._folder_arguments, **narrow, **parts)

    def readers(self, pipeline: str, dtype: torch.dtype, but: Collection[str]) -> dict[str, Any]:
        """What a pipeline takes that reads pictures or that the base lacks, but for some of it, from where it is.

        Its class is the one that the family names: a model's index may name others, or ones that diffusers lacks.
        """
        wanted = (self.kinds.extras.keys() | lacking(self.family, self.index)) & taken_by(pipeline)
        return {part: self._reader(part, dtype) for part in sorted(wanted - set(but))}

    def _reader(self, part: str, dtype: torch.dtype) -> Any:
        from transformers import AutoTokenizer

        kind = {**self.kinds.encoders, **self.kinds.extras}.get(part)
        has_weights = kind is not None and is_network(kind.cls)
        place = self.home(part)
        arguments: dict[str, Any] = {"dtype": dtype} if has_weights else {}
        if place == self.settings_base:
            arguments |= self._folder_arguments if has_weights else self.hub
        cls = named(kind.cls) if kind else AutoTokenizer
        if part in self.kinds.encoders:
            arguments |= self._quantising(part, cls, dtype)
        return cls.from_pretrained(place, subfolder=part, **arguments)

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
            self._place_vae(self._vae.requires_grad_(False).eval())
            for option, method in SPARING.items():
                if getattr(self.options, option):
                    self._spare(option, method)
        return self._vae

    def _spare(self, option: str, method: str) -> None:
        if not hasattr(self._vae, method):
            problem = f"What {self.family.title} reads pictures with cannot do that."
            raise ConfigError(option, True, "", problem, "Leave it out.")
        getattr(self._vae, method)()

    def _load_vae(self, source: str | None, dtype: torch.dtype) -> Any:
        if self.kinds.vae is None:
            return PixelSpace()
        cls = named(self.kinds.vae.cls)
        if source is None:
            if "vae" in self.inside:
                return self._from_file("vae", "vae", self.base, dtype)
            return cls.from_pretrained(self.settings_base, subfolder="vae", dtype=dtype, **self._folder_arguments)
        if is_single_file(source):
            return self._from_file("vae", "vae", source, dtype)
        if (Path(source) / "vae").is_dir():
            return cls.from_pretrained(source, subfolder="vae", dtype=dtype, **SAFE)
        return cls.from_pretrained(source, dtype=dtype, **SAFE)

    def extra(self, name: str) -> Any:
        """What else reads a sample's pixels: an image encoder, frozen and on the device, or a processor."""
        if name not in self._extras:
            with explained(f"The part '{name}'", self.home(name), self._remedy):
                part = self._reader(name, self.text_dtype)
            is_module = isinstance(part, torch.nn.Module)
            self._extras[name] = part.requires_grad_(False).eval().to(self.device) if is_module else part
        return self._extras[name]

    def preview_decoder(self) -> Any:
        """The tiny decoder of the family's latents, frozen and on the device."""
        from diffusers import AutoencoderTiny

        source = self.options.validation_preview_decoder or self.family.previews
        with explained(
            "The decoder of previews", str(source), "Check validation_preview_decoder, or leave previews out."
        ):
            decoder = AutoencoderTiny.from_pretrained(source, dtype=self.vae_dtype, **SAFE)
        if decoder.config.latent_channels != self.latents.channels:
            raise ConfigError(
                "validation_preview_decoder", source, "",
                f"It decodes {decoder.config.latent_channels} channels, and latents here have {self.latents.channels}.",
                "Give the decoder that was made for this family's VAE.",
            )  # fmt: skip
        return decoder.requires_grad_(False).eval().to(self.device)

    def unload_vae(self) -> None:
        """Let the VAE, and what else reads pixels, go, unless `keep_vae_loaded`."""
        if not self.options.keep_vae_loaded:
            self._vae = None
            self._extras.clear()
            self._release()

    @contextlib.contextmanager
    def vae_in_use(self) -> Iterator[None]:
        """Afterwards the VAE, and what else reads pixels, goes as `unload_vae` says, also after a failure."""
        try:
            yield
        finally:
            self.unload_vae()

    def denoiser(self, dtype: torch.dtype | None = None, keeper: Keeper | None = None) -> Any:
        """What is trained, on the CPU, in the base's precision unless told otherwise: a denoiser, or experts.

        A `keeper` may have a denoiser itself: it is given the component, what made it, a maker of one without weights
        (inside, the config is read) and its loader, and answers the denoiser.
        """
        loaded = {part: self._denoiser(part, dtype or self.dtype, keeper) for part in self.trained}
        if len(loaded) == 1:
            place = self.options.controlnet_model_name_or_path or self.base
            remedy = "Check controlnet_model_name_or_path and controlnet_custom_config."
            with explained("The ControlNet", place, remedy):
                made = control.wrap(self.family, loaded[self.trained[0]], self.options)
            return self._with_text(made) if self.options.train_text_encoder else made
        assert self.options.timestep_boundary is not None
        return Experts(loaded, self.options.timestep_boundary * 1000)

    def _with_text(self, denoiser: Any) -> WithText:
        names = self.family.trained_text_for(self.options.model_flavour)
        return WithText(self.trained[0], denoiser, self.family, self.text(), names, self.options)

    def _denoiser(self, part: str, dtype: torch.dtype, keeper: Keeper | None) -> Any:
        source, subfolder = self.denoiser_source(part)

        def load() -> Any:
            with explained("The denoiser", source, self._remedy):
                narrow = self._quantising(part, named(self.kinds.denoiser.cls), dtype)
                return self._load_denoiser(source, subfolder, dtype, **narrow)

        def empty() -> Any:
            return named(self.kinds.denoiser.cls).from_config(self.config(part))

        return keeper(part, f"{self.denoiser_identity(part)} {dtype}", empty, load) if keeper else load()

    def _load_denoiser(self, source: str, subfolder: str, dtype: torch.dtype, **narrow: Any) -> Any:
        cls = named(self.kinds.denoiser.cls)
        if is_single_file(source):
            return self._from_file("denoiser", subfolder, source, dtype)
        if Path(source).is_dir() and not (Path(source) / subfolder).is_dir():
            return cls.from_pretrained(source, dtype=dtype, **narrow, **SAFE)
        return cls.from_pretrained(source, subfolder=subfolder, dtype=dtype, **narrow, **self._folder_arguments)

    def _quantising(self, part: str, cls: Any, dtype: torch.dtype) -> dict[str, Any]:
        """How `from_pretrained` quantises a component on the way; nothing if it does not."""
        own = self.quantised_as(part)
        if own is None:
            return {}
        wide = find_sensitive_layers(self.hollow(part), self.family.blocks) if part in self.held else ()
        return {"quantization_config": quantized.settings(own, cls, dtype, wide)}

    def _quantising_text(self, dtype: torch.dtype, but: Collection[str]) -> dict[str, Any]:
        """The same for the text encoders that a pipeline loads."""
        from diffusers import PipelineQuantizationConfig

        encoders = {name: named(kind.cls) for name, kind in self.kinds.encoders.items() if name not in but}
        each = {name: narrow for name, cls in encoders.items() if (narrow := self._quantising(name, cls, dtype))}
        mapping = {name: narrow["quantization_config"] for name, narrow in each.items()}
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)} if mapping else {}

    def separate(self, but: Collection[str]) -> dict[str, Any]:
        """The parts that options take from a place of their own, by component and in the base's precision."""
        held = {part: self.denoiser_source(part) for part in self.held if part not in but}
        found = {
            part: self._load_denoiser(*source, self.dtype)
            for part, source in held.items()
            if source != (self.base, part)
        }
        if vae := self.options.pretrained_vae_model_name_or_path:
            found["vae"] = self._load_vae(vae, self.dtype)
        return found | self._separate_encoders(self.dtype)

    def from_base_file(self, but: Collection[str]) -> dict[str, Any]:
        """The denoiser and VAE of a base that is one file, by component; nothing of another base."""
        if not self.is_single_file:
            return {}
        places = {part: self.denoiser_source(part) for part in self.trained if part not in but}
        found = {part: self._load_denoiser(*place, self.dtype) for part, place in places.items()}
        if "vae" in self.inside and "vae" not in but:
            found["vae"] = self._load_vae(None, self.dtype)
        return found

    def bystander(self, name: str) -> Any:
        """A denoiser of the base that pictures are drawn with and nobody trains, frozen and on the device."""
        if name not in self._extras:
            with explained(f"The part '{name}'", self.base, self._remedy):
                model = self._load_denoiser(self.settings_base, name, self.dtype)
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
        # text is read before, also by encoders that are trained
        live = {name: part for name, part in self._live(denoiser).items() if name not in self.kinds.encoders}
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

    def denoisers_of(self, model: Any) -> dict[str, Any]:
        """The denoisers in a run's model, and its ControlNet, by component."""
        if isinstance(model, WithControlNet):
            return {self.trained[0]: model.denoiser, control.CONTROLNET: model.controlnet}
        return {name: part for name, part in self._live(model).items() if name in self.trained}

    def _live(self, denoiser: Any) -> dict[str, Any]:
        """What the pipeline is given of a run's model, by component."""
        if isinstance(denoiser, WithControlNet):
            return {self.trained[0]: denoiser.denoiser, control.CONTROLNET: denoiser.to_draw_with()}
        several = isinstance(denoiser, (Experts, WithChannels, WithText))
        return denoiser.members if several else {self.trained[0]: denoiser}

    def save_pipeline(self, denoiser: Any, folder: Path) -> None:
        """Write a complete pipeline with this denoiser in place of the base's, as diffusers lays it out.

        It appears by renaming, so that an earlier one stays until the new one is whole. Raises DiskFullError.
        """
        beside, old = folder.with_name(f"{folder.name}-tmp"), folder.with_name(f"{folder.name}{ASIDE}")
        clear_folders(folder.parent, folder.name)
        try:
            with explain_disk_full(folder.parent, folder.name):
                # diffusers asks for parts that a base says it does without
                parts = {name: None for name, row in self.index.items() if row == [None, None]}
                parts |= self._live(denoiser)
                pipe = self._pipeline(self.family.drawn_by(self.options), parts, self.dtype)
                pipe.save_pretrained(beside)
                follow_umask(beside)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(beside, folder)
        finally:
            clear_folders(folder.parent, folder.name)

    def _release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def taken_by(pipeline: str) -> set[str]:
    """The components that a pipeline's constructor takes."""
    return set(inspect.signature(named(pipeline).__init__).parameters)


def scheduler_config(parts: Parts) -> dict[str, Any]:
    """The scheduler's settings as a plain dict."""
    return json.loads(json.dumps(dict(parts.scheduler().config), default=str))


def quiet() -> None:
    """Keep diffusers and transformers from printing bars and notices between ours.

    Their errors still come through, and what they warn of is in the run's log file: see `core.log`.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()
        library.utils.logging.set_verbosity_warning()
        library.utils.logging.disable_progress_bar()
