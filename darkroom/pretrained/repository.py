"""Locate, validate and identify the files of a base model without loading weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from darkroom import families
from darkroom.core.device import has_bf16, is_host, run_device
from darkroom.core.errors import ConfigError, ModelError
from darkroom.core.files import digest
from darkroom.families import tiny
from darkroom.families.base import Family
from darkroom.families.shared.classes import find_class, is_network, short_class_name
from darkroom.families.shared.model_spec import EMBEDDED, TINY, ModelSpec, resolve_flavour
from darkroom.families.shared.spec import ComponentSpecs, Latents, Limits
from darkroom.pretrained import published, quantized, single_file
from darkroom.pretrained.single_file import ExpectedComponent
from darkroom.pretrained.weight_files import (
    SINGLE_FILE,
    Misfit,
    describe_truncation,
    find_shards,
    is_single_file,
    refuse_pickled_folder,
)

if TYPE_CHECKING:
    from torch.nn import Module

    from darkroom.families.shared.types import Kwargs, Settings
    from darkroom.options.config import Config

ASSETS = Path(__file__).parent.parent / "assets"
FULL_HASH_LIMIT = 64 * 2**20
SEPARATE_COMPONENTS = (
    "pretrained_transformer_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_gemma_model_name_or_path",
)
# option values with which a base is read that has all its components
COMPLETE_BASE: dict[str, None] = dict.fromkeys(
    (*SEPARATE_COMPONENTS, "pretrained_transformer_subfolder", "pretrained_unet_subfolder")
)
INDEX = "model_index.json"
HUB_SECONDS = 10.0
VAE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def find_cache_home() -> Path:
    """The folder for files that Darkroom can create again: `$DARKROOM_HOME`, else the user's cache folder."""
    if home := os.environ.get("DARKROOM_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "darkroom"


def locate_repository(repository: str, family: Family) -> str:
    """A repository as diffusers takes it: tiny and embedded models become local folders."""
    if repository.startswith(TINY):
        return str(tiny.folder(family, find_cache_home() / "tiny", repository.removeprefix(TINY)))
    if repository.startswith(EMBEDDED):
        return str(ASSETS / repository.removeprefix(EMBEDDED))
    return str(Path(repository).expanduser()) if repository.startswith("~") else repository


def find_text_image_encoders(spec: ModelSpec) -> list[str]:
    """Names of the image encoders that a text encoder needs for captions read with images."""
    extras = spec.components.extras if spec.flavour.text_images else {}
    return [name for name, component in extras.items() if is_network(component.cls)]


class PublishedSettings(NamedTuple):
    """A folder with a base's published configs, why it is used, and the components whose sizes are unknown."""

    folder: str
    reason: str
    unknown: list[str]


class Repository:
    """The files of a base model: a hub id, a diffusers folder or a single file; options may name other sources.

    base          the model's source; default_base: the published repository, for configs that a single file lacks
    settings      a folder with the configs of all components to use in place of the base's: see `published`
    """

    def __init__(
        self, family: Family, options: Config, device: torch.device, dtype: torch.dtype, settings: str | None = None
    ):
        self.settings = settings
        self.family, self.options, self.device, self.dtype = family, options, device, dtype
        self.flavour = family.spec.flavour
        self.base = locate_repository(options.pretrained_model_name_or_path or self.flavour.repository, family)
        self.default_base = locate_repository(self.flavour.repository, family)

    @property
    def is_single_file(self) -> bool:
        """Is the base one checkpoint file rather than a folder or a hub id?"""
        return is_single_file(self.base)

    @property
    def latents(self) -> Latents:
        """The latent space of this flavour."""
        return self.family.spec.latents

    @property
    def specs(self) -> ComponentSpecs:
        """The components of this flavour: their classes, and their configs in its tiny model."""
        return self.family.spec.components

    @property
    def pipeline(self) -> str:
        """diffusers' pipeline of this flavour."""
        return self.family.spec.pipeline

    @property
    def settings_base(self) -> str:
        """The folder or repository with the configs: for a single file, which has none, that of its flavour."""
        return self.settings or self._model_settings_base

    @property
    def _model_settings_base(self) -> str:
        return self.default_base if self.is_single_file else self.base

    @functools.cached_property
    def bundled_components(self) -> frozenset[str]:
        """What a single-file base holds besides a denoiser: "vae", "text"."""
        return single_file.find_bundled_components(Path(self.base)) if self.is_single_file else frozenset()

    def weights_source(self, component: str) -> str:
        """The source of a component's weights: the base, or `settings_base` if a single file lacks them."""
        if (
            not self.is_single_file
            or component in self.trainable_components
            or ("vae" if component == "vae" else "text") in self.bundled_components
        ):
            return self.base
        return self.settings_base

    @property
    def hub(self) -> Kwargs:
        """The `revision` argument, if the base is on a hub and the option is set."""
        revision = self.options.revision
        return {"revision": revision} if revision and not Path(self.base).exists() else {}

    @property
    def denoiser_components(self) -> tuple[str, ...]:
        """The denoisers of this flavour's base."""
        return self.family.spec.denoisers

    @property
    def trainable_components(self) -> tuple[str, ...]:
        """The denoisers that the run trains."""
        return self.family.spec.trained

    def denoiser_source(self, component: str) -> tuple[str, str]:
        """The source of a denoiser: a repository, folder or file, and the subfolder."""
        o = self.options
        if component == "unet":
            separate, subfolder = o.pretrained_unet_model_name_or_path, o.pretrained_unet_subfolder
        else:
            separate, subfolder = o.pretrained_transformer_model_name_or_path, o.pretrained_transformer_subfolder
        usual = subfolder in (None, "transformer", "unet") or (separate and is_single_file(separate))
        inside = component if usual or subfolder is None else subfolder
        return (str(Path(separate).expanduser()) if separate else self.base), inside

    @property
    def vae_dtype(self) -> torch.dtype:
        """float32 on a CPU and on a GPU without bfloat16, else bfloat16, unless `vae_dtype` says otherwise."""
        is_wide = is_host(self.device) or not has_bf16(self.device)
        usual = torch.float32 if is_wide else torch.bfloat16
        return VAE_DTYPES.get(self.options.vae_dtype, usual)

    @property
    def text_dtype(self) -> torch.dtype:
        """float32 on a CPU, else the base's."""
        return torch.float32 if is_host(self.device) else self.dtype

    def config_source(self, component: str) -> str:
        """The source of a component's config: `settings` if it is set, else its repository."""
        return self.settings or self.component_source(component)

    def component_source(self, component: str) -> str:
        """The source of a text component: the base, or the family's other repository if the base lacks it."""
        return (
            self.family.component_repositories[component]
            if component in find_missing_components(self.family, self.index)
            else self._model_settings_base
        )

    def find_published_settings(self) -> PublishedSettings | None:
        """Published configs to use where the base's own cannot be read; None if they can be read or if the base is not
        a published one: reading them then raises.
        """
        if Path(self._model_settings_base).exists() or self._model_settings_base != self.flavour.repository:
            return None
        networks = [*self.specs.encoders, *self.denoiser_components, *(["vae"] if self.specs.vae else [])]
        try:
            for component in networks if self.index else ():
                self.config(component)
        except (ConfigError, ModelError) as cause:
            reason = cause.problem if isinstance(cause, ConfigError) else str(cause).splitlines()[0]
            folder = published.make_folder(self.family, find_cache_home() / "published")
            return (
                PublishedSettings(str(folder), reason, published.find_unknown_networks(self.family)) if folder else None
            )
        return None

    # -- is it there? ----------------------------------------------------------------------------------------------

    def examine(self) -> None:
        """Check that the base is a complete model of this family. Reads headers, not weights.

        Raises ConfigError with the option to change. Asks the hub only for files that are not downloaded yet.
        """
        for option in SEPARATE_COMPONENTS:
            source = getattr(self.options, option)
            if source and is_local_path(source):
                self._validate_file(option, source)
        self.validate_separate_denoiser()
        if self.options.quantize_via == "pipeline":
            self._validate_quantization()
        if self.is_single_file:
            self._validate_file(self._option, self.base)
            self._validate_experts()
        else:
            self._validate_index(self.index)
            self._validate_weights()

    def _validate_quantization(self) -> None:
        """Raises ConfigError for components that cannot be quantized while they are loaded."""
        denoisers = dict.fromkeys(self.denoiser_components, find_class(self.specs.denoiser.cls))
        encoders = {name: find_class(spec.cls) for name, spec in self.specs.encoders.items()}
        quantized.validate_quantization_config(self.options, denoisers, encoders, run_device())
        files = {
            component: (self._denoiser_option(component), self.denoiser_source(component)[0])
            for component in self.denoiser_components
        }
        files |= {component: (self._option, self.base) for component in encoders if "text" in self.bundled_components}
        files |= {
            component: (o, source)
            for o, component in self.family.text_components.items()
            if (source := getattr(self.options, o))
        }
        for component, (option, source) in files.items():
            if is_single_file(source) and self.quantization_of(component):
                problem = f"{component} is quantised while diffusers loads it from a folder, but this is a single file."
                raise self._config_error(problem, "Set quantize_via to cpu, or give a folder or hub id.", option)

    def validate_separate_denoiser(self) -> None:
        """Raises ConfigError if the flavour's denoiser is a separate file and no option names it."""
        if (
            self.flavour.separate_denoiser
            and self.denoiser_source(self.trainable_components[0])[0] == self.default_base
        ):
            problem = (
                "This flavour's denoiser is published as a file alone; its other components are in another repository."
            )
            change = f"Set it to {self.flavour.separate_denoiser.file}."
            raise self._config_error(problem, change, self._separate_option(self.trainable_components[0]))

    @property
    def _option(self) -> str:
        """The option that names the base."""
        return "pretrained_model_name_or_path" if self.options.pretrained_model_name_or_path else "model_flavour"

    def _config_error(self, problem: str, change: str, option: str = "") -> ConfigError:
        option = option or self._option
        value = getattr(self.options, option) or self.flavour.repository
        return ConfigError(option, value, "", problem, change)

    def _validate_file(self, option: str, source: str) -> None:
        path = Path(source).expanduser()
        if not path.exists():
            problem = f"There is no such file or folder (seen from {Path.cwd()})."
            raise self._config_error(problem, "Correct the path.", option)
        if not is_single_file(source):
            for folder in (path, *(path / component for component in self._components_in(option))):
                self._refuse_pickles(folder, option)
            return
        try:
            for expected in self._expect_from(option):
                single_file.validate_file(expected, path)
        except Misfit as cause:
            raise self._config_error(cause.problem, cause.change, option) from cause

    def _refuse_pickles(self, folder: Path, option: str = "") -> None:
        """Raises ConfigError for a component folder that holds only pickles."""
        try:
            refuse_pickled_folder(folder)
        except Misfit as cause:
            raise self._config_error(cause.problem, cause.change, option) from cause

    def _components_in(self, option: str) -> list[str]:
        """The components that the folder named by an option may hold in subfolders."""
        if option == "pretrained_vae_model_name_or_path":
            return ["vae"]
        return [component for component in self.trainable_components if self._denoiser_option(component) == option]

    def _expect_from(self, option: str) -> list[ExpectedComponent]:
        """The components that the file named by an option must hold for this run."""
        denoisers = [component for component in self.trainable_components if self._denoiser_option(component) == option]
        expected = [self.expect("denoiser", self.denoiser_source(component)[1]) for component in denoisers]
        if option == "pretrained_vae_model_name_or_path" and self.specs.vae:
            expected.append(self.expect("vae", "vae"))
        if option in self.family.text_components:
            expected.append(self.expect("text", self.family.text_components[option]))
        return expected

    def _denoiser_option(self, component: str) -> str:
        """The option that names the source of a denoiser."""
        option = self._separate_option(component)
        return option if getattr(self.options, option) else self._option

    def _separate_option(self, component: str) -> str:
        """The option that names a separate source for a denoiser."""
        return f"pretrained_{'unet' if component == 'unet' else 'transformer'}_model_name_or_path"

    def _validate_experts(self) -> None:
        """Raises ConfigError if one file, which holds one denoiser, is to supply several."""
        if len(self.trainable_components) > 1 and all(
            self.denoiser_source(component)[0] == self.base for component in self.trainable_components
        ):
            several = [name for name in self.family.flavours if len(resolve_flavour(self.family, name).denoisers) > 1]
            single = [name for name in several if len(resolve_flavour(self.family, name).trained) == 1]
            raise self._config_error(
                f"It is one file with one denoiser, and this model_flavour trains {len(self.trainable_components)}.",
                f"Choose a model_flavour that trains one of them, such as {', '.join(single[:4])}; or give a folder.",
            )

    def expect(self, role: Literal["denoiser", "vae", "text"], component: str) -> ExpectedComponent:
        """What a single file must hold for a component; its config.json is read on first use."""
        vae = self.specs.vae.cls if self.specs.vae else ""
        classes = {"denoiser": self.specs.denoiser.cls, "vae": vae}
        cls = classes.get(role) or self.specs.encoders[component].cls
        titles = {"denoiser": "The denoiser", "vae": "The VAE"}
        title = f"{titles.get(role, f'The component {component}')} of {self.family.title}"
        return ExpectedComponent(title, role, cls, lambda: self.config(component))

    @functools.cached_property
    def index(self) -> Settings:
        """The model_index.json of the base. Raises ConfigError."""
        folder = Path(self.settings_base)
        if not folder.exists() and not is_local_path(self.settings_base):
            return self._hub_index(self.settings_base)
        if not folder.exists():
            problem = f"There is no such folder (seen from {Path.cwd()})."
            raise self._config_error(problem, "Correct the path, or give a hub id such as owner/name.")
        try:
            return json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            detail = f"Its {INDEX} cannot be read: {cause}" if (folder / INDEX).exists() else f"It has no {INDEX}"
            change = f"Give a folder in the diffusers layout that holds a {self.family.title} model."
            raise self._config_error(f"{detail}.", change) from cause

    def _hub_index(self, base: str) -> Settings:
        """model_index.json from the hub's cache, else from the hub, without the library's half minute of retries."""
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        try:
            revision = self.options.revision if base == self.base else None
            file = try_to_load_from_cache(base, INDEX, revision=revision)
            if not isinstance(file, str):
                HfApi().model_info(base, revision=revision, timeout=HUB_SECONDS)
                file = hf_hub_download(base, INDEX, revision=revision)
            return json.loads(Path(file).read_text(encoding="utf-8"))
        except Exception as cause:  # the client hands on the errors of whichever HTTP library it uses
            first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            problem = f"'{base}' is no local folder, and the hub has not given it: {first.strip()}"
            change = (
                "Check the name, the network, HF_TOKEN, and that the model's licence was accepted; or give a folder."
            )
            raise self._config_error(problem, change) from cause

    def _validate_index(self, index: Settings) -> None:
        """Raises ConfigError for a model of another family; text encoders tell families of one denoiser class apart."""
        family = self.family
        if not any(isinstance(row, list) for row in index.values()):
            index = {**index, **self._read_index_from_folders()}

        def class_of(component: str) -> str:
            row = index.get(component)
            return str(row[1] or "") if isinstance(row, list) and len(row) == 2 else ""

        pipeline = index.get("_class_name", "an unnamed pipeline")
        required = [
            name for name in (*self.specs.encoders, *self.specs.extras) if name not in family.component_repositories
        ]
        other_families = [n for n in families.names() if n != family.name and families.get(n).pipeline == pipeline]
        pipelines = {resolve_flavour(family, name).pipeline for name in family.flavours}
        is_other = any(not class_of(component) for component in required)
        if not is_other and all(
            self.denoiser_source(component)[0] != self.base for component in self.denoiser_components
        ):
            return  # whatever else it holds, its denoiser is not used
        is_other |= bool(other_families and pipeline not in pipelines)
        siblings = [name for name in family.flavours if resolve_flavour(family, name).pipeline == pipeline]
        if siblings and pipeline != self.pipeline:
            flavour = family.spec.name
            raise self._config_error(
                f"It holds a model for {pipeline}; model_flavour {flavour} needs one for {self.pipeline}.",
                f"Set model_flavour to {siblings[0]}, or give a model for {self.pipeline}.",
            )
        frozen, denoiser_class = (
            {*family.guidance_denoisers, *self.specs.extras},
            short_class_name(self.specs.denoiser.cls),
        )
        denoisers = [
            component for component in index if class_of(component) == denoiser_class and component not in frozen
        ]
        if denoisers and not is_other and len(denoisers) != len(self.denoiser_components):
            fitting = [
                name for name in family.flavours if len(resolve_flavour(family, name).denoisers) == len(denoisers)
            ]
            raise self._config_error(
                f"It holds {len(denoisers)} denoisers ({', '.join(denoisers)}), and model_flavour "
                f"{family.spec.name} has {len(self.denoiser_components)}.",
                f"Set model_flavour to {fitting[0]}, or give another model."
                if fitting
                else f"Give a {family.title} model with {len(self.denoiser_components)}.",
            )
        if denoisers == list(self.denoiser_components) and not is_other:
            return
        switch = f"Set model_family to {other_families[0]}, or give" if other_families else "Give"
        raise self._config_error(
            f"It holds a model for {pipeline}; model_family {family.name} needs one for {self.pipeline} "
            f"({denoiser_class} with {', '.join(required)}).",
            f"{switch} a {family.title} model.",
        )

    def _read_index_from_folders(self) -> dict[str, list[str]]:
        """Index rows for a base whose index names no components, from the configs in its folders.

        The library of each row is empty.
        """
        rows = {}
        for component in (*self.specs.encoders, *self.denoiser_components):
            with contextlib.suppress(ModelError):
                settings = self.config(component)
                rows[component] = [
                    "",
                    settings.get("_class_name") or next(iter(settings.get("architectures") or ()), ""),
                ]
        return rows

    def _validate_weights(self) -> None:
        """Raises ConfigError for local weights that are pickles, or shorter than their header says."""
        for component in (*self.specs.encoders, *self.specs.extras, "vae", *self.denoiser_components):
            self._refuse_pickles(Path(self.config_source(component)) / component)
            for path in sorted((Path(self.base) / component).glob("*.safetensors")):
                if problem := describe_truncation(path):
                    change = f"Copy or download {component}/{path.name} again."
                    raise self._config_error(f"The weights file {path} is damaged: {problem}.", change)

    # -- settings --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def text_configs(self) -> Mapping[str, Settings]:
        """config.json of everything that encodes captions, by component. Raises ModelError if one cannot be read."""
        looking = find_text_image_encoders(self.family.spec)
        return {name: self.config(name) for name in (*self.specs.encoders, *looking)}

    def config(self, component: str) -> Settings:
        """One component's config.json, from a folder or the hub. Raises ModelError."""
        base = self.config_source(component)
        path = Path(base) / component / "config.json"
        if self.settings and not path.exists():
            raise ModelError(
                f"How large the published '{component}' is, is not known here, and the hub has not said it."
            )
        try:
            if not Path(base).exists():
                from huggingface_hub import hf_hub_download

                hub = self.hub if base == self.settings_base else {}
                path = Path(hf_hub_download(base, f"{component}/config.json", **hub))
            override = (
                self.flavour.separate_denoiser.settings
                if self.flavour.separate_denoiser and component in self.denoiser_components
                else {}
            )
            return {**json.loads(path.read_text(encoding="utf-8")), **override}
        except (OSError, ValueError) as cause:
            raise ModelError(
                f"The config of '{component}' could not be read from '{base}'.\n  {str(cause).splitlines()[0]}\n"
                "  Check pretrained_model_name_or_path, and for a hub id the network and HF_TOKEN."
            ) from cause

    @property
    def find_denoiser_settings(self) -> Settings:
        """config.json of the denoiser if it is on this machine, else the known values of the published one."""
        from huggingface_hub import try_to_load_from_cache

        component = self.trainable_components[0]
        separate, _ = self.denoiser_source(component)
        source = separate if Path(separate).is_dir() else self.settings_base
        cached = (
            None if is_local_path(source) else try_to_load_from_cache(source, f"{component}/config.json", **self.hub)
        )
        path = Path(cached) if isinstance(cached, str) else Path(source) / component / "config.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self.family.spec.denoiser_sizes or {}

    @property
    def limits(self) -> Limits:
        """The largest inputs that the denoiser takes."""
        return self.family.limits(self.find_denoiser_settings)

    def empty_model(self, component: str) -> Module:
        """A denoiser on the meta device. Raises ModelError."""
        return single_file.build_empty(self.specs.denoiser.cls, self.config(component))

    def empty_vae(self) -> Module | None:
        """The VAE on the meta device; None for a family without one. Raises ModelError."""
        return single_file.build_empty(self.specs.vae.cls, self.config("vae")) if self.specs.vae else None

    def weight_bytes(self, component: str) -> int | None:
        """Bytes of a component's weight files on disk; None if they are not local."""
        folder = Path(self.base) / component
        if not folder.is_dir():
            return None
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    # -- identity --------------------------------------------------------------------------------------------------

    def text_precision(self, number: int) -> str:
        """The precision of a text encoder, counted from 1; empty if it is not quantized."""
        if self.options.quantize_via == "pipeline":
            settings = self.quantization_of([*self.specs.encoders][number - 1])
            return json.dumps(settings, sort_keys=True) if settings else ""
        precision = getattr(self.options, f"text_encoder_{number}_precision", "no_change")
        return "" if precision == "no_change" else precision

    def quantization_of(self, component: str) -> Settings | None:
        """Settings that quantize a denoiser or text encoder while it is loaded; None if it is not quantized."""
        encoders = [*self.specs.encoders]
        return quantized.find_quantization(
            self.options, component, encoders.index(component) + 1 if component in encoders else 0
        )

    def text_identity(self) -> str:
        """Identifies what text embeddings depend on: weights, precision and options."""
        names = [*self.specs.encoders, *self.specs.tokenizers]
        names += find_text_image_encoders(self.family.spec)
        if self.family.spec.flavour.text_images:
            names += [name for name in self.specs.extras if name not in names]
        places = {name: self.component_source(name) for name in find_missing_components(self.family, self.index)}
        weights = [self._identity(name, places.get(name) or self.weights_source(name)) for name in names]
        sources = (getattr(self.options, option) for option in self.family.text_components)
        weights += [self._identity("", source) for source in sources if source]
        # only quantized encoders: caches from before this was part of the identity stay valid
        precisions = enumerate((self.text_precision(number) for number in range(1, len(self.specs.encoders) + 1)), 1)
        weights += [f"{number} in {precision}" for number, precision in precisions if precision]
        return digest([self.family.name, weights, str(self.text_dtype), self.family.text_identity(self.options)])

    def vae_identity(self) -> str:
        """Identifies what latents depend on: weights, precision, normalization, tiling."""
        if self.specs.vae is None:
            return digest(["pixels"])
        source = self.options.pretrained_vae_model_name_or_path
        weights = self._identity("" if source else "vae", source or self.weights_source("vae"))
        return digest([weights, self.latents.normalizer, str(self.vae_dtype), self.options.vae_enable_tiling])

    def sample_identity(self) -> str:
        """Identifies what a cached sample depends on: its latents and the family's further entries."""
        extra_identity = self.family.sample_identity(self.options)
        if not extra_identity:
            return self.vae_identity()
        extras = [self._identity(name, self.component_source(name)) for name in self.specs.extras]
        return digest([self.vae_identity(), extra_identity, str(self.text_dtype), extras])

    def base_identity(self) -> dict[str, str]:
        """The lock file's entry for the base weights."""
        identities = [self.denoiser_identity(component) for component in self.trainable_components]
        return {"source": self.base, "denoiser": identities[0] if len(identities) == 1 else digest(identities)}

    def denoiser_identity(self, component: str) -> str:
        """Identifies a denoiser's weights."""
        source, subfolder = self.denoiser_source(component)
        return self._identity(subfolder, source)

    def _identity(self, subfolder: str, source: str) -> str:
        path = Path(source)
        if path.is_file():
            files = find_shards(path)
            return hash_weights(path) if len(files) == 1 else digest([hash_weights(component) for component in files])
        if path.is_dir():
            folder = path / subfolder if (path / subfolder).is_dir() else path
            files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
            return digest([[p.name, hash_weights(p)] for p in files])
        return f"{source}@{self.options.revision or 'main'}/{subfolder}"


def find_missing_components(family: Family, index: Settings) -> list[str]:
    """The components that a base, by its model_index.json, lacks and that are in another repository."""
    return [component for component in family.component_repositories if not (index.get(component) or [None])[0]]


def is_local_path(source: str) -> bool:
    """Is `source` a path? A hub id is `name` or `owner/name`."""
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith((".", "/"))
    return not is_id or Path(source).suffix in SINGLE_FILE or Path(source).expanduser().exists()


def hash_weights(path: Path) -> str:
    """A hash of a weights file: of all bytes up to 64 MiB, else of its size and 64 samples of 64 KiB spread over it.

    Sampling keeps start-up fast on files of many GB; two different trainings differ in every sample.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= FULL_HASH_LIMIT:
            return hashlib.file_digest(file, "sha256").hexdigest()
        parts = hashlib.sha256(str(size).encode())
        for i in range(64):
            file.seek(i * (size - 65536) // 63)
            parts.update(file.read(65536))
        return parts.hexdigest()
