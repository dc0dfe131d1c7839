"""Load the components of a base model one at a time: from a hub id, a local diffusers folder, or single files.

`Components` loads nothing until asked. Text encoders and the VAE are loaded late, fill their caches and are unloaded.
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
from darkroom.families.shared.classes import find_class, is_network
from darkroom.families.shared.control import ChannelControlDenoiser, ControlNetDenoiser
from darkroom.families.shared.experts import Experts, use_single_expert
from darkroom.families.shared.pipeline_call import Stage
from darkroom.families.shared.pixels import PixelSpace
from darkroom.families.shared.trainable_text import DenoiserWithText
from darkroom.pretrained import quantized, single_file
from darkroom.pretrained.repository import Repository, find_missing_components, find_text_image_encoders
from darkroom.pretrained.weight_files import SAFETENSORS_ONLY, is_single_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin
    from torch.nn import Module

    from darkroom.families.shared.types import Autoencoder, Kwargs
    from darkroom.options.config import Config

log = logger(__name__)

LoadOrQuantize = Callable[[str, str, Callable[[], torch.nn.Module], Callable[[], torch.nn.Module]], torch.nn.Module]
# options that reduce the memory of a VAE, and the method of diffusers that does it
VAE_MEMORY_OPTIONS = {"vae_enable_tiling": "enable_tiling", "vae_enable_slicing": "enable_slicing"}


UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RuntimeError, ImportError,
    re.error, SafetensorError,
)  # fmt: skip
"""What diffusers, peft and transformers raise for files whose settings or tensors are wrong."""


@contextlib.contextmanager
def explain_load_errors(component: str, source: str, remedy: str) -> Iterator[None]:
    """Turn a failure to find or read weights into a ModelError that names the component and its source."""
    try:
        yield
    except UNREADABLE as cause:
        if is_memory_full(cause):
            raise
        summary = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ModelError(f"{component} could not be loaded from '{source}'.\n  {summary}\n  {remedy}") from cause


class Components(Repository):
    """The components of one base model, each loaded on first use.

    `move_text` is called with each text encoder and its number (from 1), `move_vae` with the VAE: they move it to its
    device. Raises ModelError with the component, its source and the remedy if weights are missing or do not fit.
    """

    def __init__(
        self,
        family: Family,
        options: Config,
        device: torch.device,
        dtype: torch.dtype,
        move_text: Callable[[torch.nn.Module, int], None] | None = None,
        move_vae: Callable[[torch.nn.Module], None] | None = None,
        settings: str | None = None,
    ):
        super().__init__(family, options, device, dtype, settings)
        self._move_text = move_text or (lambda encoder, number: encoder.to(device))
        self._move_vae = move_vae or (lambda vae: vae.to(device))
        self._text: DiffusionPipeline | None = None
        self._vae: Any = None
        self._extras: dict[str, Any] = {}
        silence_libraries()

    @property
    def _folder_arguments(self) -> Kwargs:
        variant = {"variant": self.options.variant} if self.options.variant else {}
        return {**variant, **self.hub, **SAFETENSORS_ONLY}

    @property
    def _remedy(self) -> str:
        if Path(self.base).exists():
            return f"Check that the folder holds a {self.family.title} model in the diffusers layout."
        return (
            "Check pretrained_model_name_or_path; for a hub id check the network, HF_TOKEN and that its licence was "
            "accepted; for a local folder check the path."
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def text(self) -> DiffusionPipeline:
        """The family's diffusers pipeline with only its text encoders and tokenizers, on the device."""
        if self._text is None:
            family = self.family
            pipeline = self.family.spec.text_pipeline
            models = [
                name
                for name, component in self.specs.extras.items()
                if name in find_accepted_components(pipeline) and is_network(component.cls)
            ]
            unused = set(models) - set(find_text_image_encoders(family.spec))
            absent = dict.fromkeys(
                ["vae", *self.denoiser_components, *unused, *family.guidance_denoisers, *family.unused_components]
            )
            dtype = self.text_dtype
            with explain_load_errors("The text encoders", self.base, self._remedy):
                separate = self._load_separate_encoders(dtype)
                self._text = self._load_pipeline(pipeline, separate | absent, dtype, "text")
            encoders = list(self.specs.encoders)
            for name, component in self._text.components.items():
                if isinstance(component, torch.nn.Module):
                    component.requires_grad_(False).eval()
                    if name in encoders:
                        self._move_text(component, encoders.index(name) + 1)
                    else:
                        component.to(self.device)
        return self._text

    def _load_separate_encoders(self, dtype: torch.dtype) -> Kwargs:
        return {
            component: self._load_from_file("text", component, source, dtype)
            if is_single_file(source)
            else (cls := find_class(self.specs.encoders[component].cls)).from_pretrained(
                source, dtype=dtype, **SAFETENSORS_ONLY, **self._quantization_arguments(component, cls, dtype)
            )
            for option, component in self.family.text_components.items()
            if (source := getattr(self.options, option))
        }

    def _load_from_file(
        self, role: Literal["denoiser", "vae", "text"], component: str, source: str, dtype: torch.dtype
    ) -> Any:
        """A component from one file, or from a set of shards, with the config of its flavour."""
        return single_file.load(self.expect(role, component), Path(source).expanduser(), dtype)

    def _load_pipeline(
        self, name: str, components: dict[str, object], dtype: torch.dtype, stage: Stage
    ) -> DiffusionPipeline:
        cls = find_class(name)
        components = components | self.family.default_components(stage)
        components |= self.load_extra_components(name, dtype, but=components)
        if "text" in self.bundled_components:
            return cls.from_single_file(self.base, config=self.default_base, dtype=dtype, **components)
        if "vae" in self.bundled_components:
            components = {"vae": self._load_vae(None, dtype), **components}
        quantization = self._text_quantization_arguments(dtype, but=components)
        return cls.from_pretrained(
            self.settings_base, dtype=dtype, **self._folder_arguments, **quantization, **components
        )

    def load_extra_components(self, pipeline: str, dtype: torch.dtype, but: Collection[str]) -> Kwargs:
        """Components of a pipeline, except those in `but`, that read images or that the base itself does not have.

        Classes are those that the family names: a model's index may name others, or ones that diffusers lacks.
        """
        names = (
            self.specs.extras.keys() | find_missing_components(self.family, self.index)
        ) & find_accepted_components(pipeline)
        return {component: self._load_extra_component(component, dtype) for component in sorted(names - set(but))}

    def _load_extra_component(self, component: str, dtype: torch.dtype) -> Any:
        from transformers import AutoTokenizer

        spec = {**self.specs.encoders, **self.specs.extras}.get(component)
        has_weights = spec is not None and is_network(spec.cls)
        source = self.config_source(component)
        arguments: Kwargs = {"dtype": dtype} if has_weights else {}
        if source == self.settings_base:
            arguments |= self._folder_arguments if has_weights else self.hub
        cls = find_class(spec.cls) if spec else AutoTokenizer
        if component in self.specs.encoders:
            arguments |= self._quantization_arguments(component, cls, dtype)
        return cls.from_pretrained(source, subfolder=component, **arguments)

    def unload_text(self) -> None:
        """Free the text encoders."""
        if self._text is not None:
            self._text = None
            self._release()

    def vae(self) -> Autoencoder:
        """The VAE, frozen, on the device, with tiling or slicing if the options ask for it."""
        if self._vae is None:
            dtype = self.vae_dtype
            source = self.options.pretrained_vae_model_name_or_path
            with explain_load_errors("The VAE", source or self.base, self._remedy):
                self._vae = self._load_vae(source, dtype)
            self._move_vae(self._vae.requires_grad_(False).eval())
            for option, method in VAE_MEMORY_OPTIONS.items():
                if getattr(self.options, option):
                    self._enable_vae_option(option, method)
        return self._vae

    def _enable_vae_option(self, option: str, method: str) -> None:
        if not hasattr(self._vae, method):
            problem = f"The VAE of {self.family.title} does not support it."
            raise ConfigError(option, True, "", problem, "Leave it out.")
        getattr(self._vae, method)()

    def _load_vae(self, source: str | None, dtype: torch.dtype) -> Module:
        if self.specs.vae is None:
            return PixelSpace()
        cls = find_class(self.specs.vae.cls)
        if source is None:
            if "vae" in self.bundled_components:
                return self._load_from_file("vae", "vae", self.base, dtype)
            return cls.from_pretrained(self.settings_base, subfolder="vae", dtype=dtype, **self._folder_arguments)
        if is_single_file(source):
            return self._load_from_file("vae", "vae", source, dtype)
        if (Path(source) / "vae").is_dir():
            return cls.from_pretrained(source, subfolder="vae", dtype=dtype, **SAFETENSORS_ONLY)
        return cls.from_pretrained(source, dtype=dtype, **SAFETENSORS_ONLY)

    def extra(self, name: str) -> Any:
        """An image encoder (frozen, on the device) or an image processor, by component."""
        if name not in self._extras:
            with explain_load_errors(f"The component '{name}'", self.config_source(name), self._remedy):
                component = self._load_extra_component(name, self.text_dtype)
            is_module = isinstance(component, torch.nn.Module)
            self._extras[name] = component.requires_grad_(False).eval().to(self.device) if is_module else component
        return self._extras[name]

    def preview_decoder(self) -> Module | None:
        """The tiny decoder for previews of the family's latents, frozen and on the device."""
        from diffusers import AutoencoderTiny

        source = self.options.validation_preview_decoder or self.family.previews
        with explain_load_errors(
            "The preview decoder", str(source), "Check validation_preview_decoder, or leave previews out."
        ):
            decoder = AutoencoderTiny.from_pretrained(source, dtype=self.vae_dtype, **SAFETENSORS_ONLY)
        if decoder.config.latent_channels != self.latents.channels:
            raise ConfigError(
                "validation_preview_decoder", source, "",
                f"It decodes {decoder.config.latent_channels} channels, and latents here have {self.latents.channels}.",
                "Choose the decoder that was made for this family's VAE.",
            )  # fmt: skip
        return decoder.requires_grad_(False).eval().to(self.device)

    def unload_vae(self) -> None:
        """Free the VAE, image encoders and processors, unless `keep_vae_loaded` is set."""
        if not self.options.keep_vae_loaded and (self._vae is not None or self._extras):
            self._vae = None
            self._extras.clear()
            self._release()

    @contextlib.contextmanager
    def vae_in_use(self) -> Iterator[None]:
        """On exit call `unload_vae`, also after an exception."""
        try:
            yield
        finally:
            self.unload_vae()

    def denoiser(self, dtype: torch.dtype | None = None, load_or_quantize: LoadOrQuantize | None = None) -> Module:
        """The model that is trained, on the CPU, in `dtype` or else the base's precision: a denoiser, or experts.

        `load_or_quantize(component, identity, build_empty, load)` returns a denoiser, perhaps from a cache of quantized
        weights; `build_empty` reads the config and makes the model without weights.
        """
        loaded = {
            component: self._denoiser(component, dtype or self.dtype, load_or_quantize)
            for component in self.trainable_components
        }
        if len(loaded) == 1:
            source = self.options.controlnet_model_name_or_path or self.base
            remedy = "Check controlnet_model_name_or_path and controlnet_custom_config."
            with explain_load_errors("The ControlNet", source, remedy):
                denoiser = control.wrap_denoiser(self.family, loaded[self.trainable_components[0]], self.options)
            return self._with_text(denoiser) if self.options.train_text_encoder else denoiser
        assert self.options.timestep_boundary is not None
        return Experts(loaded, self.options.timestep_boundary * 1000)

    def _with_text(self, denoiser: Module) -> DenoiserWithText:
        names = self.family.spec.trainable_text
        return DenoiserWithText(self.trainable_components[0], denoiser, self.family, self.text(), names, self.options)

    def _denoiser(self, component: str, dtype: torch.dtype, load_or_quantize: LoadOrQuantize | None) -> Module:
        source, subfolder = self.denoiser_source(component)

        def load() -> Module:
            with explain_load_errors("The denoiser", source, self._remedy):
                quantization = self._quantization_arguments(component, find_class(self.specs.denoiser.cls), dtype)
                return self._load_denoiser(source, subfolder, dtype, **quantization)

        def empty() -> Module:
            return find_class(self.specs.denoiser.cls).from_config(self.config(component))

        return (
            load_or_quantize(component, f"{self.denoiser_identity(component)} {dtype}", empty, load)
            if load_or_quantize
            else load()
        )

    def _load_denoiser(self, source: str, subfolder: str, dtype: torch.dtype, **quantization: object) -> Module:
        cls = find_class(self.specs.denoiser.cls)
        if is_single_file(source):
            return self._load_from_file("denoiser", subfolder, source, dtype)
        if Path(source).is_dir() and not (Path(source) / subfolder).is_dir():
            return cls.from_pretrained(source, dtype=dtype, **quantization, **SAFETENSORS_ONLY)
        return cls.from_pretrained(source, subfolder=subfolder, dtype=dtype, **quantization, **self._folder_arguments)

    def _quantization_arguments(self, component: str, cls: type, dtype: torch.dtype) -> Kwargs:
        """Arguments of `from_pretrained` that quantize a component while it is loaded; empty if not quantized."""
        settings = self.quantization_of(component)
        if settings is None:
            return {}
        skip = (
            find_sensitive_layers(self.empty_model(component), self.family.blocks)
            if component in self.denoiser_components
            else ()
        )
        return {"quantization_config": quantized.build_config(settings, cls, dtype, skip)}

    def _text_quantization_arguments(self, dtype: torch.dtype, but: Collection[str]) -> Kwargs:
        """The same for the text encoders that a pipeline loads by itself."""
        from diffusers import PipelineQuantizationConfig

        encoders = {name: find_class(spec.cls) for name, spec in self.specs.encoders.items() if name not in but}
        arguments = {
            name: quantization
            for name, cls in encoders.items()
            if (quantization := self._quantization_arguments(name, cls, dtype))
        }
        mapping = {name: quantization["quantization_config"] for name, quantization in arguments.items()}
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)} if mapping else {}

    def load_separate_components(self, but: Collection[str]) -> Kwargs:
        """Components that options load from a source of their own, by name, in the base's precision."""
        sources = {
            component: self.denoiser_source(component) for component in self.denoiser_components if component not in but
        }
        loaded = {
            component: self._load_denoiser(*source, self.dtype)
            for component, source in sources.items()
            if source != (self.base, component)
        }
        if vae := self.options.pretrained_vae_model_name_or_path:
            loaded["vae"] = self._load_vae(vae, self.dtype)
        return loaded | self._load_separate_encoders(self.dtype)

    def load_bundled_components(self, but: Collection[str]) -> Kwargs:
        """The denoiser and VAE of a base that is a single file, by name; empty for other bases."""
        if not self.is_single_file:
            return {}
        sources = {
            component: self.denoiser_source(component)
            for component in self.trainable_components
            if component not in but
        }
        loaded = {component: self._load_denoiser(*source, self.dtype) for component, source in sources.items()}
        if "vae" in self.bundled_components and "vae" not in but:
            loaded["vae"] = self._load_vae(None, self.dtype)
        return loaded

    def load_frozen_denoiser(self, name: str) -> Module:
        """A denoiser that validation uses and nobody trains, frozen and on the device."""
        if name not in self._extras:
            with explain_load_errors(f"The component '{name}'", self.base, self._remedy):
                model = self._load_denoiser(self.settings_base, name, self.dtype)
            self._extras[name] = model.requires_grad_(False).eval().to(self.device)
        return self._extras[name]

    def scheduler(self) -> SchedulerMixin:
        """The base's own scheduler, as its pipeline would use it."""
        cls = find_class(self.specs.scheduler.cls)
        with explain_load_errors("The scheduler's settings", self.settings_base, self._remedy):
            config = cls.load_config(
                self.settings_base, subfolder="scheduler", **({} if self.is_single_file else self.hub)
            )
            # the class that the model names, not the family's usual one
            return find_class(config.get("_class_name", cls.__name__)).from_config(config)

    def assemble(self, denoiser: Module, vae: Autoencoder | None, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """The diffusers pipeline around loaded components, without text encoders: prompts are encoded already.

        If only one expert is trained, it is used at all noise levels, unless `wan_validation_load_other_stage`.
        """
        cls = find_class(self.family.spec.validation_pipeline(self.options))
        parameters = inspect.signature(cls.__init__).parameters
        components: dict[str, object] = {
            name: None for name, p in parameters.items() if name != "self" and p.default is inspect.Parameter.empty
        }
        # components are rows of library and class; everything else is a setting of the pipeline
        components |= {
            name: value for name, value in self.index.items() if name in parameters and not isinstance(value, list)
        }
        components |= {name: self.extra(name) for name in self.specs.extras if name in parameters}
        # text is encoded before, also by text encoders that are trained
        pipeline_components = {
            name: component
            for name, component in self._pipeline_components(denoiser).items()
            if name not in self.specs.encoders
        }
        frozen = (
            set(self.denoiser_components) - pipeline_components.keys()
            if self.options.wan_validation_load_other_stage
            else ()
        )
        components |= self.family.default_components("render")
        components |= {"scheduler": scheduler, **pipeline_components}
        components |= {name: self.load_frozen_denoiser(name) for name in (*self.family.guidance_denoisers, *frozen)}
        components |= {"vae": vae} if self.specs.vae else {}
        pipe = cls(**components)
        if len(self.trainable_components) + len(frozen) < len(self.denoiser_components):
            use_single_expert(pipe, self.denoiser_components, self.trainable_components[0])
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def denoisers_of(self, model: Module) -> dict[str, Module]:
        """The denoisers in a run's model, and its ControlNet, by component."""
        if isinstance(model, ControlNetDenoiser):
            return {self.trainable_components[0]: model.denoiser, control.CONTROLNET: model.controlnet}
        return {
            name: component
            for name, component in self._pipeline_components(model).items()
            if name in self.trainable_components
        }

    def _pipeline_components(self, denoiser: Module) -> Kwargs:
        """The components of a run's model for a diffusers pipeline, by name."""
        if isinstance(denoiser, ControlNetDenoiser):
            return {self.trainable_components[0]: denoiser.denoiser, control.CONTROLNET: denoiser.copy_for_rendering()}
        if isinstance(denoiser, (Experts, ChannelControlDenoiser, DenoiserWithText)):
            return denoiser.members
        return {self.trainable_components[0]: denoiser}

    def save_pipeline(self, denoiser: Module, folder: Path) -> None:
        """Write a complete diffusers pipeline with this denoiser in place of the base's.

        The folder is renamed when it is complete, so an earlier one stays until then. Raises DiskFullError.
        """
        temporary, old = folder.with_name(f"{folder.name}-tmp"), folder.with_name(f"{folder.name}{ASIDE}")
        clear_folders(folder.parent, folder.name)
        try:
            with explain_disk_full(folder.parent, folder.name):
                # diffusers asks for components that the base declares as absent
                components: dict[str, object] = {name: None for name, row in self.index.items() if row == [None, None]}
                components |= self._pipeline_components(denoiser)
                pipe = self._load_pipeline(
                    self.family.spec.validation_pipeline(self.options), components, self.dtype, "save"
                )
                pipe.save_pretrained(temporary)
                follow_umask(temporary)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(temporary, folder)
        finally:
            clear_folders(folder.parent, folder.name)

    def _release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def find_accepted_components(pipeline: str) -> set[str]:
    """The components that a pipeline's constructor takes."""
    return set(inspect.signature(find_class(pipeline).__init__).parameters)


def scheduler_config(components: Components) -> Kwargs:
    """The scheduler's config as a plain dict."""
    return json.loads(json.dumps(dict(components.scheduler().config), default=str))


def silence_libraries() -> None:
    """Stop diffusers and transformers from printing progress bars and notices.

    Errors still come through; warnings go to the run's log file: see `core.log`.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()
        library.utils.logging.set_verbosity_warning()
        library.utils.logging.disable_progress_bar()
