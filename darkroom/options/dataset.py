"""The dataset file: which pictures are trained on, how they are sized, captioned, repeated and cached.

The file is a JSON array of objects, as in SimpleTuner. `read_datasets` fills placeholders, takes over global options,
checks everything that can be checked without opening a picture, and reports every problem at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from darkroom.core.errors import ConfigError, ConfigErrors, DataError, missing_option
from darkroom.core.registry import nearest

LATER = "arrives in a later release"

PENDING_TYPES = {
    "video": f"training on video {LATER}",
    "audio": f"training on audio {LATER}",
    "caption": f"a dataset of captions without pictures {LATER}",
    "conditioning": f"conditioning pictures {LATER}",
    "conditioning_image_embeds": "conditioning pictures, and so their embeddings, {LATER.replace('arrives', 'arrive')}",
    "distillation_cache": f"the cache of distillation artefacts {LATER}",
    "grounding": f"grounding by boxes {LATER}",
}
PENDING_STORAGE = {
    "aws": f"reading from object stores {LATER}",
    "csv": f"reading lists of links {LATER}",
    "huggingface": f"reading datasets of the Hugging Face hub {LATER}",
    "memory": f"keeping a cache in memory {LATER}",
    "webshart": f"reading webshart shards {LATER}",
}
PENDING_KEYS = {
    **dict.fromkeys(
        (
            "conditioning",
            "conditioning_data",
            "conditioning_type",
            "source_dataset_id",
            "conditioning_image_embeds",
            "cache_dir_conditioning_image_embeds",
        ),
        f"conditioning pictures {LATER}",
    ),
    "conditioning_image_embed_batch_size": f"conditioning pictures {LATER}",
    "slider_strength": f"training of sliders {LATER}",
    "timestep_sampling_offset": f"noise levels of a dataset's own {LATER.replace('arrives', 'arrive')}",
    "s2v_datasets": f"sound-to-video training {LATER}",
    "grounding": f"grounding by boxes {LATER}",
    "video": f"training on video {LATER}",
    "audio": f"training on audio {LATER}",
    "delete_nsfw_images": f"the content classifier {LATER}",
    "vae_cache_ondemand": f"encoding during training {LATER}; latents are always encoded before it",
    "vae_cache_disable": f"training without a latent cache {LATER}",
    "text_cache_ondemand": f"encoding during training {LATER}; captions are always encoded before it",
    "text_cache_disable": f"training without a text cache {LATER}",
    "vae_cache_clear_each_epoch": f"rebuilding latents at every epoch {LATER}",
    "caption_file_extensions": f"a dataset of captions without pictures {LATER}",
    "shuffle": f"a dataset of captions without pictures {LATER}",
    **dict.fromkeys(
        (
            "dataset_name",
            "split",
            "revision",
            "image_column",
            "huggingface",
            "streaming",
            "num_proc",
            "auto_load",
            "split_composite_images",
            "composite_image_column",
        ),
        PENDING_STORAGE["huggingface"],
    ),
    **dict.fromkeys(("csv_file", "csv_cache_dir", "csv_caption_column", "csv_url_column"), PENDING_STORAGE["csv"]),
    **dict.fromkeys(
        (
            "aws",
            "aws_bucket_name",
            "aws_endpoint_url",
            "aws_region_name",
            "aws_access_key_id",
            "aws_secret_access_key",
            "aws_session_token",
            "aws_data_prefix",
            "aws_max_pool_connections",
        ),
        PENDING_STORAGE["aws"],
    ),
}
"""Keys that are known and do nothing yet. They are refused unless they ask for nothing (null, false, empty)."""

ALIASES = {
    "instance_data_root": "instance_data_dir",
    "text_embed_cache": "text_embeds",
    "disable": "disabled",
    "is_regularization_data": "is_regularisation_data",
}
WITHOUT_EFFECT = {
    "hash_filenames": "cache entries are always named by their content",
    "shorten_filenames": "cache entries are always named by their content",
    "ignore_epochs": "it is deprecated; use repeats",
    "read_batch_size": "files are read one by one, ahead of the encoder",
    "metadata_update_interval": "the index is written once, when the scan is done",
    "vae_cache_scan_behaviour": "a cache entry is named by what made it, so it cannot disagree with its bucket",
    "disable_validation": "validation does not take its prompts from datasets yet",
    "config_version": "Darkroom compares the settings themselves",
}
RENAMED = {"disable_vae_cache": "vae_cache_disable"}

GLOBALS: dict[str, tuple[str, Any]] = {
    "resolution": ("resolution", 1024),
    "resolution_type": ("resolution_type", "pixel_area"),
    "minimum_image_size": ("minimum_image_size", None),
    "maximum_image_size": ("maximum_image_size", None),
    "target_downsample_size": ("target_downsample_size", None),
    "delete_unwanted_images": ("delete_unwanted_images", False),
    "delete_problematic_images": ("delete_problematic_images", False),
    "caption_strategy": ("caption_strategy", "filename"),
    "instance_prompt": ("instance_prompt", None),
    "prepend_instance_prompt": ("prepend_instance_prompt", False),
    "only_instance_prompt": ("only_instance_prompt", False),
    "train_batch_size": ("train_batch_size", 4),
    "compress_cache": ("compress_disk_cache", True),
    "preserve_data_backend_cache": ("preserve_data_backend_cache", False),
    "skip_file_discovery": ("skip_file_discovery", ""),
    "write_batch_size": ("write_batch_size", 128),
    "vae_batch_size": ("vae_batch_size", 4),
    "image_processing_batch_size": ("image_processing_batch_size", 32),
    "max_workers": ("max_workers", 32),
    "text_encoder_batch_size": ("text_encoder_batch_size", 1),
    "aspect_bucket_worker_count": ("aspect_bucket_worker_count", 12),
}
"""Key of an entry: the global option it falls back to, and the value when that is not set either."""


def setting(config: Any, name: str, otherwise: Any = None) -> Any:
    """A global option, or `otherwise` when it is absent, none or an empty text."""
    value = getattr(config, name, None)
    return otherwise if value is None or value == "" else value


def _whole(value: Any) -> Any:
    """Accept 5, 5.0 and "5" as 5, and nothing looser: no booleans, no fractions, no "05"."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"-?(0|[1-9]\d*)", value)):
        raise ValueError("a whole number is needed")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("a whole number is needed")
    return int(value) if isinstance(value, (int, float, str)) else value


def _start(least: int) -> Callable[[Any], int]:
    """Starts that are missing, invalid or too early mean from the beginning."""

    def clean(value: Any) -> int:
        try:
            return max(least, int(value))
        except (TypeError, ValueError):
            return least

    return clean


def _end(value: Any) -> int | None:
    """Ends that are missing, invalid or not positive mean never."""
    try:
        return int(value) if int(value) >= 1 else None
    except (TypeError, ValueError):
        return None


def _off(value: Any) -> Any:
    """Zero and empty mean no limit."""
    return None if value in (0, "", None) else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Limit = Annotated[float | None, BeforeValidator(_off), Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ParquetTable(_Part):
    """Where captions, and with `metadata_backend: parquet` sizes, stand in a table."""

    path: Path
    filename_column: str = "id"
    caption_column: str | tuple[str, ...] = "description"
    fallback_caption_column: str | None = None
    width_column: str = "width"
    height_column: str = "height"
    identifier_includes_extension: bool = False
    aspect_ratio_column: str | None = None

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The caption columns, one or several."""
        return (self.caption_column,) if isinstance(self.caption_column, str) else self.caption_column


class CaptionShuffle(_Part):
    """Variants of a caption with its tags in another order."""

    enable: bool = False
    count: Count = 1
    seed: Whole | None = None
    split_on: Literal["comma", "space", "period"] = "comma"
    position_start: Annotated[int, BeforeValidator(_whole), Field(ge=0)] = 0
    include_original: bool = True


class _Entry(_Part):
    id: Name
    type: Annotated[Literal["local"], BeforeValidator(_lower)] = "local"
    compress_cache: bool = True
    preserve_data_backend_cache: bool | str = False
    skip_file_discovery: str = ""
    write_batch_size: Count = 128


class ImageDataset(_Entry):
    """A folder of pictures, to train on (`image`) or held out (`eval`)."""

    dataset_type: Annotated[Literal["image", "eval"], BeforeValidator(_lower)] = "image"
    instance_data_dir: Path
    cache_file_suffix: str | None = None
    text_embeds: str | None = None
    image_embeds: str | None = None
    metadata_backend: Literal["discovery", "parquet"] = "discovery"

    resolution: Annotated[float, Field(gt=0)] = 1024
    resolution_type: Annotated[Literal["pixel", "area", "pixel_area"], BeforeValidator(_lower)] = "pixel_area"
    minimum_image_size: Limit = None
    maximum_image_size: Limit = None
    target_downsample_size: Limit = None
    minimum_aspect_ratio: Limit = None
    maximum_aspect_ratio: Limit = None
    max_upscale_threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    max_num_samples: Count | None = None
    delete_unwanted_images: bool = False
    delete_problematic_images: bool = False
    scan_for_errors: bool = False

    crop: bool = False
    crop_style: Annotated[Literal["random", "center", "centre", "corner"], BeforeValidator(_lower)] = "random"
    crop_aspect: Annotated[Literal["square", "preserve", "closest", "random"], BeforeValidator(_lower)] = "square"
    crop_aspect_buckets: tuple[float, ...] = ()
    crop_aspect_weights: tuple[float, ...] = ()

    caption_strategy: Annotated[
        Literal["textfile", "filename", "instanceprompt", "parquet"], BeforeValidator(_lower)
    ] = "filename"
    instance_prompt: str | tuple[str, ...] | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False
    caption_shuffle: CaptionShuffle = CaptionShuffle()
    parquet: ParquetTable | None = None

    probability: Annotated[
        float, BeforeValidator(lambda v: 1.0 if v in (None, "") else v), Field(ge=0, allow_inf_nan=False)
    ] = 1.0
    repeats: Annotated[int, BeforeValidator(_whole), Field(ge=0)] = 0
    repeats_given: bool = False
    train_batch_size: Count = 4
    start_epoch: Annotated[int, BeforeValidator(_start(1))] = 1
    start_step: Annotated[int, BeforeValidator(_start(0))] = 0
    end_epoch: Annotated[int | None, BeforeValidator(_end)] = None
    end_step: Annotated[int | None, BeforeValidator(_end)] = None
    disable_after_epoch_step: Count | None = None
    is_regularisation_data: bool = False
    slider_strength: float | None = None
    timestep_sampling_offset: float = 0.0

    cache_dir_vae: Path
    vae_batch_size: Count = 4
    image_processing_batch_size: Count = 32
    max_workers: Count = 32
    aspect_bucket_worker_count: Count = 12

    @property
    def prompts(self) -> tuple[str, ...]:
        """The instance prompts: none, one or several."""
        given = self.instance_prompt
        return () if not given else (given,) if isinstance(given, str) else given

    def in_unit(self, value: float | None) -> float | None:
        """A size of this entry as megapixels (`area` and `pixel_area`) or as the shorter edge in pixels (`pixel`)."""
        return value * value / 1e6 if value is not None and self.resolution_type == "pixel_area" else value

    @property
    def size_kind(self) -> str:
        """`pixel` or `area`: the unit that `in_unit` gives."""
        return "pixel" if self.resolution_type == "pixel" else "area"


class TextEmbeds(_Entry):
    """Where the outputs of the text encoders are cached."""

    dataset_type: Annotated[Literal["text_embeds"], BeforeValidator(_lower)] = "text_embeds"
    default: bool = False
    cache_dir: Path
    caption_filter_list: tuple[str, ...] = ()
    text_encoder_batch_size: Count = 1


class ImageEmbeds(_Entry):
    """A name under which datasets may ask for their latents to be kept."""

    dataset_type: Annotated[Literal["image_embeds"], BeforeValidator(_lower)] = "image_embeds"
    cache_dir: Path | None = None


class DatasetFile(BaseModel):
    """Everything that the dataset file says, checked and complete."""

    model_config = ConfigDict(frozen=True)

    path: Path
    images: tuple[ImageDataset, ...]
    text_embeds: tuple[TextEmbeds, ...]
    image_embeds: tuple[ImageEmbeds, ...] = ()
    disabled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[ImageDataset, ...]:
        """The datasets that are trained on."""
        return tuple(d for d in self.images if d.dataset_type == "image")

    @property
    def evaluation(self) -> tuple[ImageDataset, ...]:
        """The datasets that are held out."""
        return tuple(d for d in self.images if d.dataset_type == "eval")

    @property
    def default_text(self) -> TextEmbeds:
        """The text cache that holds the empty caption."""
        return next(t for t in self.text_embeds if t.default)

    def text_of(self, dataset: ImageDataset) -> TextEmbeds:
        """The text cache of a dataset."""
        return next((t for t in self.text_embeds if t.id == dataset.text_embeds), self.default_text)


MODELS: dict[str, type[_Entry]] = {
    "image": ImageDataset,
    "eval": ImageDataset,
    "text_embeds": TextEmbeds,
    "image_embeds": ImageEmbeds,
}
_DERIVED = {"repeats_given", "crop_aspect_weights"}


def read_datasets(path: str | Path | None, config: Any, environ: Mapping[str, str] | None = None) -> DatasetFile:
    """Read and check a dataset file. Raises ConfigError, ConfigErrors (all problems at once) or DataError."""
    if path in (None, ""):
        raise missing_option(
            "data_backend_config",
            "A training run needs a dataset file.",
            "Point it to a JSON file that lists your folders of pictures; see docs/datasets.md.",
        )
    file = Path(str(path)).expanduser()
    return _Reader(file, config, environ or {}).read(_load(file))


def _load(path: Path) -> list[dict[str, Any]]:
    """The array of objects in the file."""
    remedy = "Point data_backend_config to a JSON file that holds an array of dataset entries; see docs/datasets.md."
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as cause:
        raise DataError(f"The dataset file {path} does not exist.\n  {remedy}") from cause
    except UnicodeDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not UTF-8 text (byte {cause.start}).\n  Save it as UTF-8."
        ) from cause
    except RecursionError as cause:
        raise DataError(f"The dataset file {path} is nested too deeply.\n  {remedy}") from cause
    except OSError as cause:
        raise DataError(f"The dataset file {path} cannot be read: {cause.strerror}.\n  {remedy}") from cause
    except json.JSONDecodeError as cause:
        raise DataError(
            f"The dataset file {path} is not valid JSON: {cause.msg} in line {cause.lineno}, column "
            f"{cause.colno}.\n  JSON allows neither comments nor a comma after the last item."
        ) from cause
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise DataError(f"The dataset file {path} holds {_kind(raw)}, not an array of objects.\n  {remedy}")
    if not raw:
        raise DataError(f"The dataset file {path} lists no dataset; at least one is needed.\n  See docs/datasets.md.")
    return raw


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "one object", list: "an array with something else than objects", str: "a text"}
    return names.get(type(value), "a single value")


class _Reader:
    """One reading of one file: collects problems and warnings while it goes."""

    def __init__(self, path: Path, config: Any, environ: Mapping[str, str]):
        self.path, self.config, self.environ = path, config, environ
        self.family = str(setting(config, "model_family", "model"))
        self.output = str(setting(config, "output_dir", "output"))
        self.cache = Path(str(setting(config, "cache_dir", Path(self.output) / "cache"))).expanduser()
        self.lenient = bool(setting(config, "ignore_unsupported", False))
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    # ------------------------------------------------------------------ the whole file

    def read(self, raw: list[dict[str, Any]]) -> DatasetFile:
        enabled = [entry for entry in raw if not _is_disabled(entry)]
        disabled = tuple(str(entry.get("id", "")) for entry in raw if _is_disabled(entry))
        if not enabled:
            raise DataError(f"Every entry of the dataset file {self.path} is disabled.\n  Enable at least one.")
        self.check_ids(enabled)
        entries = [made for entry in enabled if (made := self.entry(entry)) is not None]
        images = [e for e in entries if isinstance(e, ImageDataset)]
        texts = [e for e in entries if isinstance(e, TextEmbeds)]
        latents = [e for e in entries if isinstance(e, ImageEmbeds)]
        if images or not self.problems:
            texts = self.text_stores(texts, {e.id for e in entries})
            self.check_together(images, texts, latents, complete=not self.problems)
        if self.problems:
            raise self.problems[0] if len(self.problems) == 1 else ConfigErrors(self.problems)
        return DatasetFile(
            path=self.path,
            images=tuple(images),
            text_embeds=tuple(texts),
            image_embeds=tuple(latents),
            disabled=disabled,
            warnings=tuple(self.warnings),
        )

    def problem(self, entry: str, key: str, got: Any, problem: str, change: str) -> None:
        self.problems.append(ConfigError(key, got, f"{self.path}, dataset '{entry}'", problem, change))

    def check_ids(self, entries: list[dict[str, Any]]) -> None:
        seen: set[str] = set()
        for number, entry in enumerate(entries, 1):
            name = entry.get("id")
            if not isinstance(name, str) or not name.strip():
                self.problem(
                    f"number {number}", "id", name, "Each dataset needs an id.", "Give it a short name of its own."
                )
            elif name.startswith("/") or ".." in name.split("/"):
                self.problem(
                    name,
                    "id",
                    name,
                    "The id names a folder of the cache and would lead out of it.",
                    "Take '/' and '..' out.",
                )
            elif name in seen:
                self.problem(name, "id", name, "Two datasets have this id.", "Rename one of them.")
            else:
                seen.add(name)

    # ------------------------------------------------------------------ one entry

    def entry(self, raw: dict[str, Any]) -> _Entry | None:
        """One checked entry, or None after noting why not."""
        name = raw.get("id")
        if not isinstance(name, str) or not name.strip():
            return None
        raw = self.fill(raw, name)
        raw = {ALIASES.get(key, key): value for key, value in raw.items()}
        raw.pop("disabled", None)
        kind = self.kind_of(raw, name)
        if kind is None:
            return None
        values = self.known_keys(raw, name, kind)
        values = {**self.inherited(MODELS[kind], values), **values, "dataset_type": kind}
        (self.image_values if MODELS[kind] is ImageDataset else self.store_values)(values, name)
        try:
            made = MODELS[kind].model_validate(values)
        except ValidationError as cause:
            self.translate(cause, name)
            return None
        if isinstance(made, ImageDataset):
            self.check_image(made)
        return made

    def fill(self, value: Any, entry: str) -> Any:
        """Placeholders replaced in every text, also in nested lists and objects."""
        if isinstance(value, dict):
            return {key: self.fill(item, entry) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, entry) for item in value]
        if not isinstance(value, str):
            return value
        words = {"model_family": self.family, "output_dir": self.output, "id": entry}
        value = re.sub(r"\{env:([^{}]+)\}", lambda m: self.environ.get(m[1], ""), value)
        return re.sub(r"\{(model_family|output_dir|id)\}", lambda m: words[m[1]], value)

    def kind_of(self, raw: dict[str, Any], name: str) -> str | None:
        """The dataset type, or None when it or its storage cannot be used."""
        if raw.get("conditioning_type"):
            raw["dataset_type"] = "conditioning"
        kind = _lower(raw.get("dataset_type") or "image")
        storage = _lower(raw.get("type") or "local")
        if kind in PENDING_TYPES:
            self.refuse(name, "dataset_type", kind, PENDING_TYPES[kind])
            return None
        if kind not in MODELS:
            self.problem(
                name, "dataset_type", kind, "There is no such dataset type.", _choose([*MODELS, *PENDING_TYPES], kind)
            )
            return None
        if storage == "csv" and kind in ("text_embeds", "image_embeds"):
            self.problem(name, "type", storage, "A list of links cannot hold a cache.", "Use type local.")
            return None
        if storage in PENDING_STORAGE:
            self.refuse(name, "type", storage, PENDING_STORAGE[storage])
            return None
        if storage != "local":
            self.problem(
                name, "type", storage, "There is no such storage.", _choose(["local", *PENDING_STORAGE], storage)
            )
            return None
        raw["type"] = storage
        return kind

    def refuse(self, entry: str, key: str, got: Any, reason: str) -> None:
        """An entry that a later release will read: an error, or a warning when unsupported things are to be ignored."""
        if self.lenient:
            self.warnings.append(f"Dataset '{entry}' is left out: {reason}.")
        else:
            self.problem(
                entry,
                key,
                got,
                reason[0].upper() + reason[1:] + ".",
                "Remove the entry, set its 'disabled' to true, or set ignore_unsupported.",
            )

    def known_keys(self, raw: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
        """The keys that the model of `kind` reads; all others are explained."""
        model, kept = MODELS[kind], {}
        known = set(model.model_fields) - _DERIVED
        for key, value in raw.items():
            if key in known:
                kept[key] = value
            elif key == "caption_filter_list":
                self.problem(name, key, value, "A caption filter belongs to a text_embeds entry.", "Move it there.")
            elif key in RENAMED:
                self.problem(name, key, value, "This key has another name.", f"Write {RENAMED[key]}.")
            elif key in WITHOUT_EFFECT:
                self.warnings.append(f"Dataset '{name}': {key} has no effect; {WITHOUT_EFFECT[key]}.")
            elif key in PENDING_KEYS:
                self.pending_key(name, key, value)
            elif any(key in m.model_fields for m in MODELS.values()):
                self.warnings.append(f"Dataset '{name}': {key} has no effect on a {kind} entry.")
            else:
                self.unknown_key(name, key, value, sorted(known))
        return kept

    def pending_key(self, name: str, key: str, value: Any) -> None:
        if value in (None, False, "", [], {}):
            return
        reason = PENDING_KEYS[key]
        if self.lenient:
            self.warnings.append(f"Dataset '{name}': {key} is ignored; {reason}.")
        else:
            self.problem(
                name, key, value, reason[0].upper() + reason[1:] + ".", "Remove the key, or set ignore_unsupported."
            )

    def unknown_key(self, name: str, key: str, value: Any, known: list[str]) -> None:
        hint = nearest(key, [*known, *ALIASES])
        advice = f"Did you mean {' or '.join(hint)}?" if hint else "See docs/datasets.md for all keys."
        if self.lenient:
            self.warnings.append(f"Dataset '{name}': the unknown key {key} is ignored. {advice}")
        else:
            self.problem(name, key, value, "There is no such key.", advice)

    def inherited(self, model: type[_Entry], values: dict[str, Any]) -> dict[str, Any]:
        """Values of the global options for the keys that the entry leaves out or sets to null."""
        found = {}
        for key, (option, otherwise) in GLOBALS.items():
            if key in model.model_fields and values.get(key) is None:
                values.pop(key, None)
                found[key] = setting(self.config, option, otherwise)
        return found

    def store_values(self, values: dict[str, Any], name: str) -> None:
        """Folder and filter of a cache entry."""
        given = values.get("cache_dir")
        if given:
            values["cache_dir"] = _path(given)
        elif values["dataset_type"] == "text_embeds":
            values["cache_dir"] = self.text_folder()
        if values.get("caption_filter_list"):
            values["caption_filter_list"] = self.filters(values["caption_filter_list"], name)

    def text_folder(self) -> Path:
        """Where captions are cached when the entry does not say."""
        given = setting(self.config, "cache_dir_text")
        return self.cache / "text" / self.family if given in (None, "cache") else _path(given)

    def filters(self, given: Any, name: str) -> list[str]:
        """The caption filter: an array, or a file of lines or with an array."""
        if isinstance(given, list):
            return [str(item) for item in given]
        file = _path(given)
        try:
            text = file.read_text(encoding="utf-8")
            return [str(item) for item in json.loads(text)] if file.suffix == ".json" else text.splitlines()
        except (OSError, ValueError) as cause:
            self.problem(
                name,
                "caption_filter_list",
                given,
                f"The filter file cannot be read: {cause}",
                "Give an array, a .json file with an array, or a .txt file with one entry per line.",
            )
            return []

    def image_values(self, values: dict[str, Any], name: str) -> None:
        """Forms of values that people write, brought to the model's form."""
        values["repeats_given"] = values.get("repeats") not in (None, 0)
        for key in [k for k, v in values.items() if v is None and k != "instance_data_dir"]:
            del values[key]
        folder = values.get("instance_data_dir")
        if not folder:
            self.problem(
                name,
                "instance_data_dir",
                folder,
                "A local dataset needs the folder that holds its pictures.",
                "Set instance_data_dir.",
            )
        else:
            values["instance_data_dir"] = _path(folder)
        default = setting(self.config, "cache_dir_vae")
        base = _path(default) / name if default else self.cache / "vae" / self.family / name
        values["cache_dir_vae"] = _path(values["cache_dir_vae"]) if values.get("cache_dir_vae") else base
        self.metadata_backend(values, name)
        self.aspect_buckets(values, name)
        table = values.get("parquet")
        if isinstance(table, dict):
            values["parquet"] = self.table(table)
        if isinstance(values.get("skip_file_discovery"), (list, tuple)):
            values["skip_file_discovery"] = ",".join(map(str, values["skip_file_discovery"]))

    def metadata_backend(self, values: dict[str, Any], name: str) -> None:
        given = _lower(values.get("metadata_backend", "discovery"))
        if given == "filesystem":
            self.warnings.append(f"Dataset '{name}': metadata_backend filesystem is an old name of discovery.")
        if given in ("huggingface", "webshart"):
            self.refuse(name, "metadata_backend", given, PENDING_STORAGE[given])
        values["metadata_backend"] = "discovery" if given in ("json", "filesystem") else given
        strategy = _lower(values.get("caption_strategy"))
        if strategy in ("csv", "huggingface", "webshart"):
            self.problem(
                name,
                "caption_strategy",
                strategy,
                f"These captions exist only in datasets of type {strategy}; {PENDING_STORAGE[strategy]}.",
                "Use textfile, filename, instanceprompt or parquet.",
            )
        if _lower(values.get("crop_style")) == "face":
            self.problem(name, "crop_style", "face", f"Finding faces {LATER}.", "Use random, center or corner.")

    def table(self, table: dict[str, Any]) -> dict[str, Any]:
        """The parquet block with the global column names, without columns that only other media use."""
        others = {
            "num_frames_column",
            "fps_column",
            "audio_sample_rate_column",
            "audio_num_samples_column",
            "bbox_column",
            "audio_duration_column",
            "audio_channels_column",
            "lyrics_column",
            "id_column",
            "default_extension",
            "identifier_prefix",
            "engine",
        }
        made = {key: value for key, value in table.items() if key not in others and value is not None}
        made.setdefault("filename_column", setting(self.config, "parquet_filename_column", "id"))
        made.setdefault("caption_column", setting(self.config, "parquet_caption_column", "description"))
        return {**made, "path": _path(made["path"])} if made.get("path") else made

    def aspect_buckets(self, values: dict[str, Any], name: str) -> None:
        """`crop_aspect_buckets` as numbers, or as objects with weights, to two tuples."""
        given = values.get("crop_aspect_buckets")
        if not given:
            return
        rows = given if isinstance(given, list) else [given]
        objects = [row for row in rows if isinstance(row, dict)]
        if not objects:
            return
        aspects = [
            next((row[k] for k in ("aspect", "aspect_bucket", "aspect_ratio") if k in row), None) for row in objects
        ]
        weights = [row.get("weight") for row in objects]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (*aspects, *weights))
        if len(objects) != len(rows) or not numbers:
            self.problem(
                name,
                "crop_aspect_buckets",
                given,
                "Each weighted aspect is an object with numbers for aspect and weight.",
                'Write for example [{"aspect": 1.0, "weight": 0.7}, {"aspect": 1.5, "weight": 0.3}].',
            )
            return
        if abs(sum(weights) - 1.0) > 1e-6:  # type: ignore[arg-type]
            self.problem(
                name,
                "crop_aspect_buckets",
                given,
                f"The weights add up to {sum(weights):g}, not to 1.",  # type: ignore[arg-type]
                "Change them so that they do.",
            )
        values["crop_aspect_buckets"], values["crop_aspect_weights"] = aspects, weights

    def translate(self, cause: ValidationError, name: str) -> None:
        """pydantic's findings in our words."""
        told = {e.option for e in self.problems if e.source.endswith(f"dataset '{name}'")}
        for found in cause.errors():
            if str(found["loc"][0] if found["loc"] else "") in told:
                continue
            key = ".".join(str(part) for part in found["loc"] if not str(part).startswith("function-")) or "entry"
            choices = re.findall(r"'([^']*)'", str(found.get("ctx", {}).get("expected", "")))
            if found["type"] == "literal_error":
                self.problem(
                    name, key, found["input"], "This is not one of the choices.", _choose(choices, str(found["input"]))
                )
            elif found["type"] == "missing":
                self.problems.append(
                    missing_option(
                        f"{key} of dataset '{name}' in {self.path}",
                        "This key has to be given.",
                        "See docs/datasets.md.",
                    )
                )
            elif found["type"] == "extra_forbidden":
                self.unknown_key(
                    name, key, found["input"], sorted({*ParquetTable.model_fields, *CaptionShuffle.model_fields})
                )
            else:
                text = found["msg"].removeprefix("Value error, ")
                self.problem(
                    name,
                    key,
                    found["input"],
                    text[0].upper() + text[1:] + ".",
                    "Correct the value; see docs/datasets.md.",
                )

    # ------------------------------------------------------------------ rules inside one picture dataset

    def check_image(self, d: ImageDataset) -> None:
        self.check_sizes(d)
        self.check_captions(d)
        if d.crop and d.crop_aspect in ("closest", "random") and not d.crop_aspect_buckets:
            self.problem(
                d.id,
                "crop_aspect",
                d.crop_aspect,
                "It chooses among listed aspects, and none is listed.",
                "Set crop_aspect_buckets, for example [0.75, 1.0, 1.33].",
            )
        if any(not (a > 0 and math.isfinite(a)) for a in d.crop_aspect_buckets):
            self.problem(
                d.id,
                "crop_aspect_buckets",
                list(d.crop_aspect_buckets),
                "An aspect is width / height and above 0.",
                "Correct the list.",
            )
        if d.end_epoch is not None and d.end_epoch < d.start_epoch:
            self.problem(
                d.id, "end_epoch", d.end_epoch, f"It lies before start_epoch = {d.start_epoch}.", "Change one of them."
            )
        if d.end_step is not None and d.start_step > 0 and d.end_step < d.start_step:
            self.problem(
                d.id, "end_step", d.end_step, f"It lies before start_step = {d.start_step}.", "Change one of them."
            )
        low, high = d.minimum_aspect_ratio, d.maximum_aspect_ratio
        if low is not None and high is not None and high < low:
            self.problem(
                d.id, "maximum_aspect_ratio", high, f"It is below minimum_aspect_ratio = {low}.", "Change one of them."
            )

    def check_sizes(self, d: ImageDataset) -> None:
        if d.resolution_type in ("pixel", "pixel_area") and not float(d.resolution).is_integer():
            self.problem(
                d.id,
                "resolution",
                d.resolution,
                f"With resolution_type {d.resolution_type} it is an edge in whole pixels.",
                "Write for example 1024, or set resolution_type to area for megapixels.",
            )
        if d.maximum_image_size is not None and d.target_downsample_size is None:
            self.problem(
                d.id,
                "maximum_image_size",
                d.maximum_image_size,
                "It needs the size to shrink to.",
                "Set target_downsample_size as well.",
            )
        checks = {
            "minimum_image_size": 5.0,
            "maximum_image_size": 20.0,
            "target_downsample_size": 20.0,
            "resolution": 100.0,
        }
        for key, most in checks.items():
            value = getattr(d, key)
            if value is None:
                continue
            if (
                d.resolution_type == "area"
                and not self.large_sizes_wanted(key)
                and (value >= most if most >= 20 else value > most)
            ):
                self.problem(
                    d.id,
                    key,
                    value,
                    "With resolution_type area this is a number of megapixels, and it is implausibly large.",
                    "Write megapixels such as 1.0, or set resolution_type to pixel_area or pixel.",
                )
            elif (
                d.resolution_type == "pixel"
                and key in ("maximum_image_size", "target_downsample_size")
                and value < 512
                and value < d.resolution * 1.5
                and "deepfloyd" not in self.family
            ):
                self.problem(
                    d.id,
                    key,
                    value,
                    "With resolution_type pixel this is an edge in pixels, and it is implausibly small.",
                    "Write an edge of at least 512, or set resolution_type to area.",
                )

    def large_sizes_wanted(self, key: str) -> bool:
        names = ("SIMPLETUNER_MAXIMUM_IMAGE_SIZE_OVERRIDE", "DARKROOM_MAXIMUM_IMAGE_SIZE_OVERRIDE")
        return key != "minimum_image_size" and any(self.environ.get(name) for name in names)

    def check_captions(self, d: ImageDataset) -> None:
        asking = [key for key in ("prepend_instance_prompt", "only_instance_prompt") if getattr(d, key)]
        asking += ["caption_strategy"] if d.caption_strategy == "instanceprompt" else []
        if asking and not any(p.strip() for p in d.prompts):
            self.problem(
                d.id,
                asking[0],
                getattr(d, asking[0]),
                "It needs an instance prompt, and none is given.",
                "Set instance_prompt.",
            )
        by_table = d.caption_strategy == "parquet" and not d.only_instance_prompt
        if (by_table or d.metadata_backend == "parquet") and d.parquet is None:
            key = "caption_strategy" if d.caption_strategy == "parquet" else "metadata_backend"
            self.problem(
                d.id,
                key,
                "parquet",
                "It needs to know the table.",
                'Add a block: "parquet": {"path": "captions.parquet", ...}.',
            )
        elif by_table and d.metadata_backend != "parquet":
            self.problem(
                d.id,
                "caption_strategy",
                "parquet",
                "Captions from a table need the sizes from the same table.",
                "Set metadata_backend to parquet, or write one text file beside each picture and use textfile.",
            )

    # ------------------------------------------------------------------ rules between entries

    def text_stores(self, texts: list[TextEmbeds], taken: set[str]) -> list[TextEmbeds]:
        """The text caches with exactly one default; one is made up when the file has none."""
        defaults = [t.id for t in texts if t.default]
        if len(defaults) > 1:
            self.problem(
                defaults[1],
                "default",
                True,
                f"Two text caches are the default: {', '.join(defaults)}.",
                "Leave it on one of them.",
            )
        if texts and not defaults:
            texts = [texts[0].model_copy(update={"default": True}), *texts[1:]]
        if not texts:
            name = next(
                n for i in range(len(taken) + 1) if (n := f"text-embeds-{i}" if i else "text-embeds") not in taken
            )
            values = self.inherited(TextEmbeds, {})
            texts = [TextEmbeds(id=name, default=True, cache_dir=self.cache / "text" / self.family, **values)]
        return texts

    def check_together(
        self, images: list[ImageDataset], texts: list[TextEmbeds], latents: list[ImageEmbeds], complete: bool
    ) -> None:
        """Rules that need every entry; those about what is absent only when no entry failed (`complete`)."""
        training = [d for d in images if d.dataset_type == "image"]
        if not training and complete:
            raise DataError(
                f"The dataset file {self.path} has no dataset of type image to train on.\n"
                "  Add one, or enable one of the disabled entries."
            )
        for d in images if complete else []:
            self.check_reference(d.id, "text_embeds", d.text_embeds, [t.id for t in texts])
            self.check_reference(d.id, "image_embeds", d.image_embeds, [m.id for m in latents])
        self.check_folders(images, texts)
        self.check_directories(images)
        if complete:
            self.check_schedule(training)

    def check_reference(self, entry: str, key: str, given: str | None, known: list[str]) -> None:
        if given is not None and given not in known:
            self.problem(
                entry, key, given, "No enabled entry has this id.", f"There are: {', '.join(known) or 'none'}."
            )

    def check_folders(self, images: list[ImageDataset], texts: list[TextEmbeds]) -> None:
        owners: dict[Path, str] = {}
        for d in images:
            folder = d.cache_dir_vae.absolute()
            if folder in owners:
                self.problem(
                    d.id,
                    "cache_dir_vae",
                    str(d.cache_dir_vae),
                    f"Dataset '{owners[folder]}' uses the same folder.",
                    "Give each dataset a folder of its own, or leave the key out.",
                )
            owners.setdefault(folder, d.id)
        for t in texts:
            if t.cache_dir.absolute() in owners:
                self.problem(
                    t.id,
                    "cache_dir",
                    str(t.cache_dir),
                    f"Dataset '{owners[t.cache_dir.absolute()]}' keeps latents there.",
                    "Give the text cache a folder of its own.",
                )

    def check_directories(self, images: list[ImageDataset]) -> None:
        """All missing folders at once, before anything is loaded."""
        for d in images:
            if not d.instance_data_dir.is_dir():
                what = "This is a file, not a folder" if d.instance_data_dir.exists() else "The folder does not exist"
                self.problem(
                    d.id,
                    "instance_data_dir",
                    str(d.instance_data_dir),
                    f"{what} (seen from {Path.cwd()}).",
                    "Correct the path, or set 'disabled' to true for this dataset.",
                )

    def check_schedule(self, training: list[ImageDataset]) -> None:
        if not any(d.start_epoch <= 1 and d.start_step <= 1 and d.probability > 0 for d in training):
            d = training[0]
            key = (
                "probability"
                if all(x.probability == 0 for x in training)
                else "start_epoch"
                if d.start_epoch > 1
                else "start_step"
            )
            self.problem(
                d.id,
                key,
                getattr(d, key),
                "No dataset can be drawn at the first step.",
                "Let at least one start at epoch 1 and step 0, with a probability above 0.",
            )
        epochs, steps = setting(self.config, "num_train_epochs", 0), setting(self.config, "max_train_steps", 0)
        for d in training:
            if (epochs and not steps and d.start_epoch > epochs) or (steps and d.start_step > steps):
                self.warnings.append(f"Dataset '{d.id}' starts after the end of the run and will never be drawn.")
            if d.crop and d.crop_aspect == "random":
                self.warnings.append(
                    f"Dataset '{d.id}': random aspects are drawn once per picture and seed, and kept for the run."
                )


def _is_disabled(entry: Mapping[str, Any]) -> bool:
    return any(entry.get(key) in (True, "true", "True", 1) for key in ("disabled", "disable"))


def _choose(choices: Iterable[str], got: str) -> str:
    names = list(choices)
    hint = nearest(got, names, 1)
    return f"Choose one of {', '.join(names)}." + (f" Did you mean {hint[0]}?" if hint else "")


def _path(value: Any) -> Path:
    """A path as people write it: `~` means the home folder, a trailing slash nothing."""
    return Path(str(value).strip()).expanduser()
