"""Where a base model's files are and what they are, without loading any of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from darkroom import families
from darkroom.core.device import has_bf16, is_host, run_device
from darkroom.core.errors import ConfigError, ModelError, missing_option
from darkroom.core.files import digest
from darkroom.families import tiny
from darkroom.families.base import EMBEDDED, TINY, Family
from darkroom.families.shared.classes import is_network, named, short
from darkroom.families.shared.spec import Latents, Limits, Tiny
from darkroom.pretrained import published, quantized, single_file
from darkroom.pretrained.single_file import Wanted
from darkroom.pretrained.weight_files import (
    SINGLE_FILE,
    Misfit,
    cut_short,
    is_single_file,
    refuse_pickled_folder,
    split_set,
)

if TYPE_CHECKING:
    from darkroom.options.config import Config

ASSETS = Path(__file__).parent.parent / "assets"
WHOLE_FILE = 64 * 2**20
SEPARATE_PARTS = (
    "pretrained_transformer_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_gemma_model_name_or_path",
)
# what a base that holds all its parts is read with
WHOLE: dict[str, None] = dict.fromkeys(
    (*SEPARATE_PARTS, "pretrained_transformer_subfolder", "pretrained_unet_subfolder")
)
INDEX = "model_index.json"
HUB_SECONDS = 10.0
VAE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cache_home() -> Path:
    """Where Darkroom keeps what it can make again: `$DARKROOM_HOME`, else the user's cache folder."""
    if home := os.environ.get("DARKROOM_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "darkroom"


def locate(repository: str, family: Family) -> str:
    """A repository as diffusers takes it: tiny and embedded models become local folders, the rest stays."""
    if repository.startswith(TINY):
        return str(tiny.folder(family, cache_home() / "tiny", repository.removeprefix(TINY)))
    if repository.startswith(EMBEDDED):
        return str(ASSETS / repository.removeprefix(EMBEDDED))
    return str(Path(repository).expanduser()) if repository.startswith("~") else repository


def eyes(family: Family, kinds: Tiny, flavour: str | None) -> list[str]:
    """The models that look at pictures for the reader of captions."""
    reads = family.flavour(flavour).reads
    return [name for name, part in kinds.extras.items() if reads and is_network(part.cls)]


class Published(NamedTuple):
    """A folder with the settings under which a base was published, why it is wanted, and whose are not known here."""

    folder: str
    why: str
    unknown: list[str]


class Repository:
    """A base model as files: a hub id, a diffusers folder or a single file, with separate parts where options say so.

    base          where the model is; default_base: where its flavour is published, for settings a single file lacks
    settings      a folder with the settings of all parts, if those of the base are not to be read: see `published`
    """

    def __init__(
        self, family: Family, options: Config, device: torch.device, dtype: torch.dtype, settings: str | None = None
    ):
        self.settings = settings
        self.family, self.options, self.device, self.dtype = family, options, device, dtype
        try:
            self.flavour = family.flavour(options.model_flavour)
        except KeyError:
            names = ", ".join(family.flavour_names())
            raise missing_option(
                "model_flavour", f"{family.title} has no flavour '{options.model_flavour}'.", f"Choose one of: {names}."
            ) from None
        self.base = locate(options.pretrained_model_name_or_path or self.flavour.repository, family)
        self.default_base = locate(self.flavour.repository, family)

    @property
    def is_single_file(self) -> bool:
        """Is the base one checkpoint file rather than a folder or a hub id?"""
        return is_single_file(self.base)

    @property
    def latents(self) -> Latents:
        """The latent space of this flavour."""
        return self.family.latents_for(self.options.model_flavour)

    @property
    def kinds(self) -> Tiny:
        """The classes of this flavour's parts, as its tiny model has them."""
        return self.family.tiny_for(self.options.model_flavour)

    @property
    def pipeline(self) -> str:
        """The stock pipeline of this flavour."""
        return self.family.pipeline_for(self.options.model_flavour)

    @property
    def settings_base(self) -> str:
        """Where the settings of the parts are: a single file has none, so its flavour's folder or repository."""
        return self.settings or self._own_settings

    @property
    def _own_settings(self) -> str:
        return self.default_base if self.is_single_file else self.base

    @functools.cached_property
    def inside(self) -> frozenset[str]:
        """What else than a denoiser a base that is one file holds: "vae", "text"."""
        return single_file.inside(Path(self.base)) if self.is_single_file else frozenset()

    def place(self, part: str) -> str:
        """Where the weights of a part are: with the base, unless that is one file and has them not."""
        if not self.is_single_file or part in self.trained or ("vae" if part == "vae" else "text") in self.inside:
            return self.base
        return self.settings_base

    @property
    def hub(self) -> dict[str, Any]:
        """`revision`, if the base is on a hub and one is asked for."""
        wanted = self.options.revision
        return {"revision": wanted} if wanted and not Path(self.base).exists() else {}

    @property
    def held(self) -> tuple[str, ...]:
        """The denoisers of this flavour's base."""
        return self.family.held_for(self.options.model_flavour)

    @property
    def trained(self) -> tuple[str, ...]:
        """Those of them that the run trains."""
        return self.family.trained_for(self.options.model_flavour)

    def denoiser_source(self, part: str) -> tuple[str, str]:
        """Where a denoiser is: a repository, folder or file, and the folder inside it."""
        o = self.options
        if part == "unet":
            separate, subfolder = o.pretrained_unet_model_name_or_path, o.pretrained_unet_subfolder
        else:
            separate, subfolder = o.pretrained_transformer_model_name_or_path, o.pretrained_transformer_subfolder
        usual = subfolder in (None, "transformer", "unet") or (separate and is_single_file(separate))
        inside = part if usual or subfolder is None else subfolder
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

    def home(self, part: str) -> str:
        """Where the settings and weights of a text part are: with the base, or elsewhere if that lacks it."""
        return self.settings or self.weights_home(part)

    def weights_home(self, part: str) -> str:
        """The same of the weights alone."""
        return self.family.elsewhere[part] if part in lacking(self.family, self.index) else self._own_settings

    def published_settings(self) -> Published | None:
        """What stands in for the base's own settings where those cannot be had; None where they can, or where the base
        is no published one: then whoever reads them is told.
        """
        if Path(self._own_settings).exists() or self._own_settings != self.flavour.repository:
            return None
        networks = [*self.kinds.encoders, *self.held, *(["vae"] if self.kinds.vae else [])]
        try:
            for part in networks if self.index else ():
                self.config(part)
        except (ConfigError, ModelError) as cause:
            why = cause.problem if isinstance(cause, ConfigError) else str(cause).splitlines()[0]
            flavour = self.options.model_flavour
            found = published.folder(self.family, flavour, cache_home() / "published")
            return Published(str(found), why, published.unknown(self.family, flavour)) if found else None
        return None

    # -- is it there? ----------------------------------------------------------------------------------------------

    def examine(self) -> None:
        """Is there a model of this family, whole as far as sizes tell? Reads a few headers, no weights.

        Raises ConfigError naming the option to change. The hub is asked only for what is not downloaded yet.
        """
        for option in SEPARATE_PARTS:
            source = getattr(self.options, option)
            if source and looks_local(source):
                self._examine_file(option, source)
        self.examine_apart()
        if self.options.quantize_via == "pipeline":
            self._examine_quantised()
        if self.is_single_file:
            self._examine_file(self._option, self.base)
            self._examine_experts()
        else:
            self._examine_kind(self.index)
            self._examine_weights()

    def _examine_quantised(self) -> None:
        """Raises ConfigError for what cannot be quantised while it is loaded."""
        denoisers = dict.fromkeys(self.held, named(self.kinds.denoiser.cls))
        encoders = {name: named(kind.cls) for name, kind in self.kinds.encoders.items()}
        quantized.check(self.options, denoisers, encoders, run_device())
        files = {part: (self._denoiser_option(part), self.denoiser_source(part)[0]) for part in self.held}
        files |= {part: (self._option, self.base) for part in encoders if "text" in self.inside}
        files |= {
            part: (o, source) for o, part in self.family.text_parts.items() if (source := getattr(self.options, o))
        }
        for part, (option, source) in files.items():
            if is_single_file(source) and self.quantised_as(part):
                problem = f"{part} is quantised while diffusers loads it from a folder, and this is one file."
                raise self._refused(problem, "Set quantize_via to cpu, or give a folder or hub id.", option)

    def examine_apart(self) -> None:
        """Raises ConfigError if the flavour's denoiser is a file of its own, and nobody says where that is."""
        if self.flavour.apart and self.denoiser_source(self.trained[0])[0] == self.default_base:
            problem = "This flavour's denoiser is published as a file alone, and where its other parts are is another."
            change = f"Set it to {self.flavour.apart.file}."
            raise self._refused(problem, change, self._separate_option(self.trained[0]))

    @property
    def _option(self) -> str:
        """The option that said where the base is."""
        return "pretrained_model_name_or_path" if self.options.pretrained_model_name_or_path else "model_flavour"

    def _refused(self, problem: str, change: str, option: str = "") -> ConfigError:
        option = option or self._option
        value = getattr(self.options, option) or self.flavour.repository
        return ConfigError(option, value, "", problem, change)

    def _examine_file(self, option: str, source: str) -> None:
        path = Path(source).expanduser()
        if not path.exists():
            problem = f"There is no such file or folder (seen from {Path.cwd()})."
            raise self._refused(problem, "Correct the path.", option)
        if not is_single_file(source):
            for folder in (path, *(path / part for part in self._parts_of(option))):
                self._refuse_pickles(folder, option)
            return
        try:
            for wanted in self._wanted_of(option):
                single_file.check(wanted, path)
        except Misfit as cause:
            raise self._refused(cause.problem, cause.change, option) from cause

    def _refuse_pickles(self, folder: Path, option: str = "") -> None:
        """Raises ConfigError for a component's folder that holds pickles only."""
        try:
            refuse_pickled_folder(folder)
        except Misfit as cause:
            raise self._refused(cause.problem, cause.change, option) from cause

    def _parts_of(self, option: str) -> list[str]:
        """The components that the folder behind an option may hold in folders of their own."""
        if option == "pretrained_vae_model_name_or_path":
            return ["vae"]
        return [part for part in self.trained if self._denoiser_option(part) == option]

    def _wanted_of(self, option: str) -> list[Wanted]:
        """What the file behind an option has to give in this run; nothing where the run does not use it."""
        denoisers = [part for part in self.trained if self._denoiser_option(part) == option]
        wanted = [self.wanted("denoiser", self.denoiser_source(part)[1]) for part in denoisers]
        if option == "pretrained_vae_model_name_or_path" and self.kinds.vae:
            wanted.append(self.wanted("vae", "vae"))
        if option in self.family.text_parts:
            wanted.append(self.wanted("text", self.family.text_parts[option]))
        return wanted

    def _denoiser_option(self, part: str) -> str:
        """The option that says where a denoiser is."""
        option = self._separate_option(part)
        return option if getattr(self.options, option) else self._option

    def _separate_option(self, part: str) -> str:
        """The option that names a place for a denoiser alone."""
        return f"pretrained_{'unet' if part == 'unet' else 'transformer'}_model_name_or_path"

    def _examine_experts(self) -> None:
        """One file has one denoiser, and cannot be all that a run trains."""
        if len(self.trained) > 1 and all(self.denoiser_source(part)[0] == self.base for part in self.trained):
            several = [name for name in self.family.flavours if len(self.family.held_for(name)) > 1]
            alone = [name for name in several if len(self.family.trained_for(name)) == 1]
            raise self._refused(
                f"It is one file with one denoiser, and this model_flavour trains {len(self.trained)}.",
                f"Choose a model_flavour that trains one of them, such as {', '.join(alone[:4])}; or give a folder.",
            )

    def wanted(self, kind: Literal["denoiser", "vae", "text"], part: str) -> Wanted:
        """What a single file has to give for a part, whose config.json is read when it is asked for."""
        vae = self.kinds.vae.cls if self.kinds.vae else ""
        classes = {"denoiser": self.kinds.denoiser.cls, "vae": vae}
        cls = classes.get(kind) or self.kinds.encoders[part].cls
        titles = {"denoiser": "The denoiser", "vae": "The VAE"}
        title = f"{titles.get(kind, f'The part {part}')} of {self.family.title}"
        return Wanted(title, kind, cls, lambda: self.config(part))

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """The model_index.json of the base. Raises ConfigError."""
        folder = Path(self.settings_base)
        if not folder.exists() and not looks_local(self.settings_base):
            return self._hub_index(self.settings_base)
        if not folder.exists():
            problem = f"There is no such folder (seen from {Path.cwd()})."
            raise self._refused(problem, "Correct the path, or give a hub id such as owner/name.")
        try:
            return json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            what = f"Its {INDEX} cannot be read: {cause}" if (folder / INDEX).exists() else f"It has no {INDEX}"
            change = f"Give a folder in the diffusers layout that holds a {self.family.title} model."
            raise self._refused(f"{what}.", change) from cause

    def _hub_index(self, base: str) -> dict[str, Any]:
        """model_index.json from the hub's cache, else from the hub, without the library's half minute of retries."""
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        try:
            revision = self.options.revision if base == self.base else None
            found = try_to_load_from_cache(base, INDEX, revision=revision)
            if not isinstance(found, str):
                HfApi().model_info(base, revision=revision, timeout=HUB_SECONDS)
                found = hf_hub_download(base, INDEX, revision=revision)
            return json.loads(Path(found).read_text(encoding="utf-8"))
        except Exception as cause:  # the client hands on the errors of whichever HTTP library it uses
            first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            problem = f"'{base}' is no local folder, and the hub has not given it: {first.strip()}"
            change = (
                "Check the name, the network, HF_TOKEN, and that the model's licence was accepted; or give a folder."
            )
            raise self._refused(problem, change) from cause

    def _examine_kind(self, index: Mapping[str, Any]) -> None:
        """Is it this family's kind of model? Tells families of one denoiser class apart by their text encoders."""
        family = self.family
        if not any(isinstance(row, list) for row in index.values()):
            index = {**index, **self._rows_by_folder()}

        def class_of(part: str) -> str:
            row = index.get(part)
            return str(row[1] or "") if isinstance(row, list) and len(row) == 2 else ""

        held = index.get("_class_name", "an unnamed pipeline")
        needed = [name for name in (*self.kinds.encoders, *self.kinds.extras) if name not in family.elsewhere]
        others = [n for n in families.names() if n != family.name and families.get(n).pipeline == held]
        mine = {family.pipeline_for(name) for name in family.flavours}
        is_other = any(not class_of(part) for part in needed)
        if not is_other and all(self.denoiser_source(part)[0] != self.base for part in self.held):
            return  # whatever else it holds, its denoiser is not used
        is_other |= bool(others and held not in mine)
        siblings = [name for name in family.flavours if family.pipeline_for(name) == held]
        if siblings and held != self.pipeline:
            flavour = self.options.model_flavour or family.default_flavour
            raise self._refused(
                f"It holds a model for {held}; model_flavour {flavour} needs one for {self.pipeline}.",
                f"Set model_flavour to {siblings[0]}, or give a model for {self.pipeline}.",
            )
        others_too, own_kind = {*family.guides, *self.kinds.extras}, short(self.kinds.denoiser.cls)
        denoisers = [part for part in index if class_of(part) == own_kind and part not in others_too]
        if denoisers and not is_other and len(denoisers) != len(self.held):
            fitting = [name for name in family.flavours if len(family.held_for(name)) == len(denoisers)]
            raise self._refused(
                f"It holds {len(denoisers)} denoisers ({', '.join(denoisers)}), and model_flavour "
                f"{self.options.model_flavour or family.default_flavour} has {len(self.held)}.",
                f"Set model_flavour to {fitting[0]}, or give another model."
                if fitting
                else f"Give a {family.title} model with {len(self.held)}.",
            )
        if denoisers == list(self.held) and not is_other:
            return
        switch = f"Set model_family to {others[0]}, or give" if others else "Give"
        raise self._refused(
            f"It holds a model for {held}; model_family {family.name} needs one for {self.pipeline} "
            f"({own_kind} with {', '.join(needed)}).",
            f"{switch} a {family.title} model.",
        )

    def _rows_by_folder(self) -> dict[str, list[str]]:
        """The rows of a base whose index names no parts, from the settings in its folders; nothing for those it lacks.

        Their library stays empty.
        """
        rows = {}
        for part in (*self.kinds.encoders, *self.held):
            with contextlib.suppress(ModelError):
                settings = self.config(part)
                rows[part] = ["", settings.get("_class_name") or next(iter(settings.get("architectures") or ()), "")]
        return rows

    def _examine_weights(self) -> None:
        """Every local weights file must be safetensors, and as long as its header says."""
        for part in (*self.kinds.encoders, *self.kinds.extras, "vae", *self.held):
            self._refuse_pickles(Path(self.home(part)) / part)
            for path in sorted((Path(self.base) / part).glob("*.safetensors")):
                if problem := cut_short(path):
                    change = f"Copy or download {part}/{path.name} again."
                    raise self._refused(f"The weights file {path} is damaged: {problem}.", change)

    # -- settings --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def text_configs(self) -> Mapping[str, Mapping[str, Any]]:
        """config.json of what reads captions, by component. Raises ModelError when they cannot be read."""
        looking = eyes(self.family, self.kinds, self.options.model_flavour)
        return {name: self.config(name) for name in (*self.kinds.encoders, *looking)}

    def config(self, part: str) -> dict[str, Any]:
        """One component's config.json, from a folder or the hub. Raises ModelError."""
        base = self.home(part)
        path = Path(base) / part / "config.json"
        if self.settings and not path.exists():
            raise ModelError(f"How large the published '{part}' is, is not known here, and the hub has not said it.")
        try:
            if not Path(base).exists():
                from huggingface_hub import hf_hub_download

                hub = self.hub if base == self.settings_base else {}
                path = Path(hf_hub_download(base, f"{part}/config.json", **hub))
            own = self.flavour.apart.settings if self.flavour.apart and part in self.held else {}
            return {**json.loads(path.read_text(encoding="utf-8")), **own}
        except (OSError, ValueError) as cause:
            raise ModelError(
                f"The settings of '{part}' could not be read from '{base}'.\n  {str(cause).splitlines()[0]}\n"
                "  Check pretrained_model_name_or_path, and for a hub id the network and HF_TOKEN."
            ) from cause

    @property
    def denoiser_settings(self) -> Mapping[str, Any]:
        """config.json of the denoiser where this machine has it, else what is known of the flavour's published one."""
        from huggingface_hub import try_to_load_from_cache

        part = self.trained[0]
        separate, _ = self.denoiser_source(part)
        place = separate if Path(separate).is_dir() else self.settings_base
        cached = None if looks_local(place) else try_to_load_from_cache(place, f"{part}/config.json", **self.hub)
        path = Path(cached) if isinstance(cached, str) else Path(place) / part / "config.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self.family.size_of(self.options.model_flavour) or {}

    @property
    def limits(self) -> Limits:
        """What the denoiser can be given."""
        return self.family.limits(self.denoiser_settings)

    def hollow(self, part: str) -> Any:
        """A denoiser or the VAE without data for its weights; None where pixels are denoised. Raises ModelError."""
        kind = self.kinds.vae if part == "vae" else self.kinds.denoiser
        return kind and single_file.empty(kind.cls, self.config(part))

    def weight_bytes(self, part: str) -> int | None:
        """Bytes of a component's weight files on disk; None where they are not local."""
        folder = Path(self.base) / part
        if not folder.is_dir():
            return None
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    # -- identity --------------------------------------------------------------------------------------------------

    def text_precision(self, number: int) -> str:
        """In which bits a text encoder is kept, the first one being number 1; empty for its own."""
        if self.options.quantize_via == "pipeline":
            own = self.quantised_as([*self.kinds.encoders][number - 1])
            return json.dumps(own, sort_keys=True) if own else ""
        chosen = getattr(self.options, f"text_encoder_{number}_precision", "no_change")
        return "" if chosen == "no_change" else chosen

    def quantised_as(self, part: str) -> Mapping[str, Any] | None:
        """How a denoiser or a text encoder is quantised while it is loaded; None if it is not."""
        encoders = [*self.kinds.encoders]
        return quantized.chosen(self.options, part, encoders.index(part) + 1 if part in encoders else 0)

    def text_identity(self) -> str:
        """What made a text embedding: weights, precision and the options that change it."""
        names = [*self.kinds.encoders, *self.kinds.tokenizers]
        names += eyes(self.family, self.kinds, self.options.model_flavour)
        if self.family.flavour(self.options.model_flavour).reads:
            names += [name for name in self.kinds.extras if name not in names]
        places = {name: self.weights_home(name) for name in lacking(self.family, self.index)}
        weights = [self._identity(name, places.get(name) or self.place(name)) for name in names]
        sources = (getattr(self.options, option) for option in self.family.text_parts)
        weights += [self._identity("", source) for source in sources if source]
        # only what is kept in fewer bits: without any, embeddings of before are still good
        precisions = enumerate((self.text_precision(number) for number in range(1, len(self.kinds.encoders) + 1)), 1)
        weights += [f"{number} in {precision}" for number, precision in precisions if precision]
        return digest([self.family.name, weights, str(self.text_dtype), self.family.text_identity(self.options)])

    def vae_identity(self) -> str:
        """What made a latent: weights, precision, normalisation, tiling."""
        if self.kinds.vae is None:
            return digest(["pixels"])
        source = self.options.pretrained_vae_model_name_or_path
        weights = self._identity("" if source else "vae", source or self.place("vae"))
        return digest([weights, self.latents.normaliser, str(self.vae_dtype), self.options.vae_enable_tiling])

    def sample_identity(self) -> str:
        """What made a training sample's latents and whatever the family keeps beside them."""
        beside = self.family.sample_identity(self.options)
        if not beside:
            return self.vae_identity()
        extras = [self._identity(name, self.weights_home(name)) for name in self.kinds.extras]
        return digest([self.vae_identity(), beside, str(self.text_dtype), extras])

    def base_identity(self) -> dict[str, str]:
        """What the lock file says of the base weights."""
        identities = [self.denoiser_identity(part) for part in self.trained]
        return {"source": self.base, "denoiser": identities[0] if len(identities) == 1 else digest(identities)}

    def denoiser_identity(self, part: str) -> str:
        """What a denoiser's weights are."""
        source, subfolder = self.denoiser_source(part)
        return self._identity(subfolder, source)

    def _identity(self, subfolder: str, source: str) -> str:
        path = Path(source)
        if path.is_file():
            files = split_set(path)
            return fingerprint(path) if len(files) == 1 else digest([fingerprint(part) for part in files])
        if path.is_dir():
            folder = path / subfolder if (path / subfolder).is_dir() else path
            files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
            return digest([[p.name, fingerprint(p)] for p in files])
        return f"{source}@{self.options.revision or 'main'}/{subfolder}"


def lacking(family: Family, index: Mapping[str, Any]) -> list[str]:
    """The text parts that a base, by its model_index.json, lacks and that are elsewhere."""
    return [part for part in family.elsewhere if not (index.get(part) or [None])[0]]


def looks_local(source: str) -> bool:
    """Is `source` meant as a path? A hub id is `name` or `owner/name`."""
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith((".", "/"))
    return not is_id or Path(source).suffix in SINGLE_FILE or Path(source).expanduser().exists()


def fingerprint(path: Path) -> str:
    """A hash of a weights file: all of it up to 64 MiB, else its size and 64 samples of 64 KiB spread over it.

    Sampling keeps start-up quick on files of many GB; two different trainings differ in every sample.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE_FILE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        parts = hashlib.sha256(str(size).encode())
        for i in range(64):
            file.seek(i * (size - 65536) // 63)
            parts.update(file.read(65536))
        return parts.hexdigest()
