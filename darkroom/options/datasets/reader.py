"""The dataset file: which samples are trained on, how they are sized, captioned, repeated and cached.

The file is a JSON array of objects, as in SimpleTuner, or a musubi-tuner dataset file. `read_datasets` fills
placeholders, takes over global options, checks everything that can be checked without opening a sample, and reports
every problem at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from darkroom.core.errors import DataError, missing_option
from darkroom.core.files import expand_home
from darkroom.core.log import hide, is_secret_key, is_secret_variable
from darkroom.core.text import ESCAPES, find_slip, iterate_texts, split_lines
from darkroom.options.datasets import keys as k
from darkroom.options.datasets import musubi, rules, storage
from darkroom.options.datasets.document import REMEDY, Values, document
from darkroom.options.datasets.entries import (
    CaptionShuffle,
    DatasetFile,
    Entry,
    ImageEmbeds,
    MetadataTable,
    SampleDataset,
    TextEmbeds,
    VideoBlock,
    WrittenEntry,
)
from darkroom.options.datasets.locations import lower
from darkroom.options.datasets.notes import Notes, choose
from darkroom.options.origins import is_off

if TYPE_CHECKING:
    from darkroom.options.config import Config

MODELS: dict[str, type[Entry]] = {
    "image": SampleDataset,
    "video": SampleDataset,
    "conditioning": SampleDataset,
    "eval": SampleDataset,
    "text_embeds": TextEmbeds,
    "image_embeds": ImageEmbeds,
    "conditioning_image_embeds": ImageEmbeds,
}
_DERIVED = {"has_repeats", "crop_aspect_weights", "location"}
_SET_BY_READERS = {
    "generator",
    "kohya",
    "pairing",
    "number",
    "optional",
    "follows_model",
    "short_batches",
    "empty_captions",
}  # set by other readers, never written by people
_READ_HERE = {"conditioning", *(key for group in k.STORAGE_KEYS.values() for key in group), "aws", "huggingface"}


def local_path(value: object) -> Path:
    """A path as people write it: `~` means the home folder, a trailing slash nothing."""
    return expand_home(str(value).strip())


def read_datasets(
    path: str | Path | None,
    config: Config,
    environ: Mapping[str, str] | None = None,
    frame_rate: float | None = None,
) -> DatasetFile:
    """Read and check a dataset file. Raises ConfigError, ConfigErrors (all problems at once) or DataError.

    `frame_rate` is the family's own, for the length of clips where neither the file nor `framerate` says it.
    """
    if path in (None, ""):
        raise missing_option(
            "data_backend_config",
            "A training run needs a dataset file.",
            "Point it to a JSON file that lists your folders of images; see docs/datasets.md.",
        )
    file = local_path(path)
    return _DatasetReader(file, config, environ or {}, frame_rate).read()


def _array(path: Path, raw: object) -> list[Values]:
    """The array of objects that the document must be."""
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise DataError(f"The dataset file {path} holds {_kind(raw)}, not an array of objects.\n  {REMEDY}")
    if not raw:
        raise DataError(f"The dataset file {path} lists no dataset; at least one is needed.\n  See docs/datasets.md.")
    return raw


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "one object", list: "an array with something else than objects", str: "a text"}
    return names.get(type(value), "a single value")


class _DatasetReader:
    """One reading of one file."""

    def __init__(self, path: Path, config: Config, environ: Mapping[str, str], frame_rate: float | None):
        self.path, self.config, self.environ, self.frame_rate = path, config, environ, frame_rate
        self.family = config.model_family
        self.output = config.output_dir
        self.cache = local_path(config.cache_dir or Path(self.output) / "cache")
        self.notes = Notes(path, config.ignore_unsupported)

    # ------------------------------------------------------------------ the whole file

    def read(self) -> DatasetFile:
        raw = self.entries()
        if not raw:
            self.notes.raise_if_any()
        enabled = [entry for entry in raw if not _is_disabled(entry)]
        disabled = tuple(str(entry.get("id", "")) for entry in raw if _is_disabled(entry))
        if not enabled:
            raise DataError(f"Every entry of the dataset file {self.path} is disabled.\n  Enable at least one.")
        rules.validate_ids(enabled, self.notes)
        prepared = [self.prepare(entry) for entry in enabled if rules.has_name(entry)]
        prepared += [written for entry in prepared for written in self.expand_generated(entry)]
        written = [item for entry in prepared if (item := self.entry(entry)) is not None]
        samples = rules.link_datasets([item for item in written if isinstance(item.entry, SampleDataset)], self.notes)
        texts = [item.entry for item in written if isinstance(item.entry, TextEmbeds)]
        latents = [item.entry for item in written if isinstance(item.entry, ImageEmbeds)]
        if samples or not self.notes.problems:
            texts = self.text_stores(texts, {item.entry.id for item in written})
            rules.validate_together(samples, texts, latents, self.notes, self.config, complete=not self.notes.problems)
        self.notes.raise_if_any()
        return DatasetFile(
            path=self.path,
            samples=tuple(samples),
            text_embeds=tuple(texts),
            image_embeds=tuple(latents),
            disabled=disabled,
            warnings=tuple(self.notes.warnings),
        )

    def entries(self) -> list[Values]:
        """The entries as SimpleTuner writes them, whoever wrote the file."""
        raw = document(self.path)
        self.validate_texts(raw)
        if isinstance(raw, dict) and (self.path.suffix.lower() == ".toml" or "datasets" in raw):
            return musubi.entries(self.path, raw, self.family, self.config, self.notes)
        # what starts with an underscore is a comment here, and a word between our own readers elsewhere
        return [{key: v for key, v in e.items() if not key.startswith("_")} for e in _array(self.path, raw)]

    def validate_texts(self, raw: object) -> None:
        """Note the texts that cannot be meant: with NULs, halves of characters, or control characters in one line."""
        rows = raw.get("datasets", [raw]) if isinstance(raw, dict) else raw
        for number, row in enumerate(rows if isinstance(rows, list) else [], 1):
            name = str(row["id"]) if isinstance(row, dict) and row.get("id") else f"number {number}"
            for path, text in iterate_texts(row):
                if any(key.startswith("_") for key in path):
                    continue
                if slip := find_slip(text, single_line=not set(path) & set(k.PROSE)):
                    change = "Take it out." if "NUL" in slip or "half" in slip else ESCAPES
                    self.notes.problem(name, ".".join(path) or "entry", text, slip, change)

    def text_stores(self, texts: list[TextEmbeds], ids: set[str]) -> list[TextEmbeds]:
        """The text caches with exactly one default; one is made up when the file has none."""
        defaults = [t.id for t in texts if t.default]
        if len(defaults) > 1:
            self.notes.problem(
                defaults[1],
                "default",
                True,
                f"Two text caches are the default: {', '.join(defaults)}.",
                "Leave it on one of them.",
            )
        if texts and not defaults:
            texts = [texts[0].model_copy(update={"default": True}), *texts[1:]]
        if not texts:
            name = next(n for i in range(len(ids) + 1) if (n := f"text-embeds-{i}" if i else "text-embeds") not in ids)
            folder = self.cache / "text" / self.family
            values = self.inherit_defaults(TextEmbeds, {}) | {
                "location": {"type": "local", "root": folder},
                "cache_dir": folder,
            }
            texts = [TextEmbeds(id=name, default=True, **values)]
        return texts

    # ------------------------------------------------------------------ one entry

    def prepare(self, raw: Values) -> Values:
        """The entry with its placeholders filled and its keys under their first names."""
        filled = cast(Values, self.fill(raw, raw["id"]))
        flat = [key for key in filled if key.removeprefix("audio_") in k.AUDIO_KEYS and key.startswith("audio_")]
        if flat and isinstance(filled.get("audio") or {}, dict):
            block = {key.removeprefix("audio_"): filled.pop(key) for key in flat}
            filled["audio"] = {**block, **(filled.get("audio") or {})}
        words = {key: str(filled[key]) for key in ("type", "dataset_type") if filled.get(key)}
        named = {**filled, **words}
        return {k.ALIASES.get(key, key): value for key, value in named.items() if key not in ("disabled", "disable")}

    def fill(self, value: object, entry: str) -> object:
        """Placeholders replaced in every text, also in nested lists and objects."""
        if isinstance(value, dict):
            filled = {key: self.fill(item, entry) for key, item in value.items()}
            for key, item in filled.items():
                if is_secret_key(key) and isinstance(item, str):
                    hide(item)
            return filled
        if isinstance(value, list):
            return [self.fill(item, entry) for item in value]
        if not isinstance(value, str):
            return value
        words = {"model_family": self.family, "output_dir": self.output, "id": entry}
        value = re.sub(r"\{env:([^{}]+)\}", lambda m: self.variable(m[1]), value)
        return re.sub(r"\{(model_family|output_dir|id)\}", lambda m: words[m[1]], value)

    def variable(self, name: str) -> str:
        """The value of an environment variable, which is never shown if it is a secret."""
        value = self.environ.get(name, "")
        if is_secret_variable(name):
            hide(value)
        return value

    def expand_generated(self, raw: Values) -> list[Values]:
        """The conditioning datasets that an entry asks to be made from its own images; it is given their names."""
        blocks = raw.get("conditioning")
        if blocks in (None, False, [], {}):
            return []
        entries = []
        for block in blocks if isinstance(blocks, list) else [blocks]:
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                self.notes.problem(
                    raw["id"],
                    "conditioning",
                    block,
                    "Each block names the type of image to make.",
                    'Write for example {"type": "canny"}.',
                )
                continue
            if not isinstance(block.get("params") or {}, dict):
                problem = "The settings of a generated image are an object with keys."
                self.notes.problem(
                    raw["id"], "conditioning.params", block["params"], problem, "Write {} or leave it out."
                )
                continue
            entries.append(self.make_generated_entry(raw, block))
        conditioning = raw.get("conditioning_data") or []
        raw["conditioning_data"] = [
            *([conditioning] if isinstance(conditioning, str) else conditioning),
            *(row["id"] for row in entries),
        ]
        return entries

    def make_generated_entry(self, source: Values, block: Values) -> Values:
        """One generated conditioning dataset as an entry of its own."""
        name = f"{source['id']}_conditioning_{block['type']}"
        block_keys = ("type", "conditioning_type", "captions", "caption_strategy", "instance_data_dir", "params")
        params = {key: value for key, value in block.items() if key not in block_keys} | (block.get("params") or {})
        kind = block.get("conditioning_type")
        kind = kind or ("controlnet" if self.config.controlnet else "reference_strict")
        latents = source.get("cache_dir_vae")
        base = local_path(latents) / name if latents else self.cache / "vae" / name
        captions = block.get("captions")
        words = {"caption_strategy": block.get("caption_strategy")}
        if captions:
            words = {"caption_strategy": "instanceprompt", "instance_prompt": captions}
        return {
            **{key: source[key] for key in k.GENERATED_TAKES if key in source},
            **words,
            "id": name,
            "dataset_type": "conditioning",
            "conditioning_type": kind,
            "source_dataset_id": source["id"],
            "instance_data_dir": str(block.get("instance_data_dir") or self.cache / "conditioning_data" / name),
            "cache_dir_vae": str(base),
            "generator": {"type": block["type"], "params": params},
            "_made": True,
        }

    def entry(self, raw: Values) -> WrittenEntry | None:
        """One checked entry, or None after noting why not."""
        name, kind = raw["id"], self.kind_of(raw)
        if kind is None:
            return None
        written = frozenset(raw)
        model = MODELS[kind]
        values = self.filter_keys(raw, kind)
        location = storage.read_location(raw, kind, name, self.config, self.notes)
        for key in k.ONE_FOR_VIDEO if kind == "video" else ():
            values.setdefault(key, 1)
        values = {**self.inherit_defaults(model, values), **values, "dataset_type": kind}
        if location is not None:
            values["location"] = location
        (self.sample_values if model is SampleDataset else self.store_values)(values, raw)
        if "location" not in values:
            return None
        try:
            validated = model.model_validate(values)
        except ValidationError as cause:
            self.translate(cause, name)
            return None
        if isinstance(validated, SampleDataset):
            rules.validate_sample(validated, self.family, self.environ, self.notes)
        rules.validate_discovery(validated, self.notes)
        return WrittenEntry(validated, written)

    def kind_of(self, raw: Values) -> str | None:
        """The dataset type, or None when it cannot be used."""
        name = raw["id"]
        if raw.get("conditioning_type") and lower(raw.get("dataset_type") or "") != "conditioning":
            raw["dataset_type"] = "conditioning"
        kind = lower(raw.get("dataset_type") or "image")
        if kind in k.IDLE_TYPES and not self.config.distillation_method:
            self.notes.warn(name, f"the entry has no effect: {k.IDLE_TYPES[kind]}.")
            return None
        if kind in k.REFUSED_TYPES:
            self.notes.refuse_entry(name, "dataset_type", kind, k.REFUSED_TYPES[kind])
            return None
        if kind not in MODELS:
            offered = choose([*MODELS, *k.REFUSED_TYPES], kind)
            self.notes.problem(name, "dataset_type", kind, "There is no such dataset type.", offered)
            return None
        return kind

    def filter_keys(self, raw: Values, kind: str) -> Values:
        """The keys that the model of `kind` reads; all others are explained."""
        model, values, name, notes = MODELS[kind], {}, raw["id"], self.notes
        key_names = set(model.model_fields) - _DERIVED - (set() if raw.get("_made") else _SET_BY_READERS)
        storage_type = lower(raw.get("type") or "local")
        for key, value in raw.items():
            if key == "type" or key.startswith("_"):
                continue
            if key in k.IDLE.get(kind, ()):
                if value not in (None, False, ""):
                    notes.warn(name, f"{key} has no effect on entries of type {kind}.")
            elif key in key_names:
                values[key] = value
            elif key == "conditioning" and model is SampleDataset:
                continue  # `generated` takes it
            elif key in _READ_HERE and model is SampleDataset:  # `storage.read_location` takes those of its type
                if value not in (None, "") and key not in k.READ_BY.get(storage_type, _READ_HERE):
                    notes.warn(name, f"{key} has no effect on an entry of type {storage_type}.")
            elif key == "caption_filter_list":
                notes.problem(name, key, value, "A caption filter belongs to a text_embeds entry.", "Move it there.")
            elif key in k.WITHOUT_EFFECT:
                notes.warn(name, f"{key} has no effect; {k.WITHOUT_EFFECT[key]}.")
            elif key in k.WITHOUT_EFFECT_UNLESS:  # an entry of that type is refused as a whole
                notes.warn(name, f"{key} has no effect on an entry of type {storage_type}.")
            elif key in k.REFUSED_KEYS:
                notes.refuse_key(name, key, value, k.REFUSED_KEYS[key])
            elif key in k.READ_BY["aws"] and storage_type == "aws":
                continue
            elif key in _READ_HERE or (
                key not in _SET_BY_READERS and any(key in m.model_fields for m in MODELS.values())
            ):
                if value not in (None, ""):
                    notes.warn(name, f"{key} has no effect on entries of type {kind}.")
            else:
                notes.unknown_key(name, key, value, [*sorted(key_names), *sorted(_READ_HERE), *k.ALIASES])
        return values

    def inherit_defaults(self, model: type[Entry], values: Values) -> Values:
        """Values of the global options for the keys that the entry leaves out or sets to null."""
        defaults = {}
        for key, option in k.GLOBALS.items():
            if key not in model.model_fields or values.get(key) is not None:
                continue
            if key == "caption_strategy" and values.get("dataset_type") == "conditioning":
                continue
            values.pop(key, None)
            if (value := getattr(self.config, option)) not in (None, ""):
                defaults[key] = value
        return defaults

    def store_values(self, values: Values, raw: Values) -> None:
        """Folder and filter of a cache entry. The folder of a remote cache is where its local copy is kept."""
        name, folder = values["id"], raw.get("cache_dir")
        location = values.get("location")
        if location is not None and location["type"] != "local":
            values["cache_dir"] = self.cache / "mirror" / name
        elif folder:
            values["cache_dir"] = local_path(folder)
        elif values["dataset_type"] == "text_embeds":
            values["cache_dir"] = self.text_folder()
        if location is not None and location["type"] == "local":
            location["root"] = values.get("cache_dir") or self.cache
            if folder and values["dataset_type"] == "image_embeds":
                self.notes.warn(name, "cache_dir has no effect here; each dataset names its own cache_dir_vae.")
        if values["dataset_type"] == "conditioning_image_embeds":
            self.notes.warn(name, f"the entry has no effect; {k.CACHED_WITH_LATENTS}.")
        if values.get("caption_filter_list"):
            values["caption_filter_list"] = self.filters(values["caption_filter_list"], name)

    def text_folder(self) -> Path:
        """Where captions are cached when the entry does not say."""
        folder = self.config.cache_dir_text
        return self.cache / "text" / self.family if folder in (None, "", "cache") else local_path(folder)

    def filters(self, names: object, name: str) -> list[str]:
        """The caption filter: an array, or a file of lines or with an array."""
        if isinstance(names, list):
            return [str(item) for item in names]
        file = local_path(names)
        try:
            text = file.read_text(encoding="utf-8")
            return [str(item) for item in json.loads(text)] if file.suffix == ".json" else split_lines(text)
        except (OSError, ValueError) as cause:
            self.notes.problem(
                name,
                "caption_filter_list",
                names,
                f"The filter file cannot be read: {cause}",
                "Give an array, a .json file with an array, or a .txt file with one entry per line.",
            )
            return []

    def sample_values(self, values: Values, raw: Values) -> None:
        """Forms of values that people write, brought to the model's form."""
        name, kind = values["id"], values["dataset_type"]
        values["has_repeats"] = values.get("repeats") not in (None, 0)
        if kind == "conditioning":
            values.setdefault("caption_strategy", None)
            if self.config.controlnet and not values.get("conditioning_type"):
                values["conditioning_type"] = "controlnet"
                self.notes.warn(name, "conditioning_type is not set; it is controlnet, as a ControlNet is trained.")
        keeps = {"caption_strategy"} if kind == "conditioning" else set()
        for key in [key for key, value in values.items() if value is None and key not in keeps]:
            del values[key]
        default = self.config.cache_dir_vae
        base = local_path(default) / name if default else self.cache / "vae" / self.family / name
        values["cache_dir_vae"] = local_path(values["cache_dir_vae"]) if values.get("cache_dir_vae") else base
        if isinstance(values.get("conditioning_data"), str):
            values["conditioning_data"] = [values["conditioning_data"]]
        self.sources_of_facts(values, raw)
        self.aspect_buckets(values, name)
        block = values.get("video") or ({} if kind == "video" else None)
        if isinstance(block, dict):  # of another kind, the model says so
            values["video"] = self.video(block, name)
        if isinstance(values.get("audio"), dict):
            values["audio"] = self.audio(values["audio"], name)
        table = values.get("parquet")
        if isinstance(table, dict):
            values["parquet"] = self.table(table, name)
        if isinstance(values.get("skip_file_discovery"), (list, tuple)):
            values["skip_file_discovery"] = ",".join(map(str, values["skip_file_discovery"]))

    def video(self, block: Values, name: str) -> Values:
        """The video block with its counts filled in."""
        values = {k.VIDEO_ALIASES.get(key, key): value for key, value in block.items() if value is not None}
        values = {key: value for key, value in values.items() if key not in k.VIDEO_OFF or not is_off(value)}
        if (
            not values.get("num_frames")
            and not values.get("target_frames")
            and values.get("frame_extraction") != "full"
        ):
            rate = self.config.framerate or self.frame_rate or 30
            values["num_frames"] = max(1, int(5 * rate))
            self.notes.warn(name, f"video.num_frames is not set; five seconds at {rate:g} frames per second are used.")
        return values

    def audio(self, block: Values, name: str) -> Values:
        """The audio block without what does not act here."""
        for key in (key for key in k.SOUND_REFUSED if key in block):
            self.notes.refuse_key(name, f"audio.{key}", block[key], k.SOUND)
        for key in (key for key in k.SOUND_WITHOUT_EFFECT if not is_off(block.get(key))):
            self.notes.warn(name, f"audio.{key} has no effect; {k.SOUND}.")
        idle = (*k.SOUND_REFUSED, *k.SOUND_WITHOUT_EFFECT)
        return {key: value for key, value in block.items() if key not in idle and value is not None}

    def sources_of_facts(self, values: Values, raw: Values) -> None:
        """Where sizes and captions come from, which for links and hub rows is the list itself."""
        name, notes = values["id"], self.notes
        kind = lower(raw.get("type") or "local")
        backend = lower(values.get("metadata_backend", "huggingface" if kind == "huggingface" else "discovery"))
        if backend == "filesystem":
            notes.warn(name, "metadata_backend filesystem is an old name of discovery.")
        if backend == "webshart":
            notes.refuse_entry(name, "metadata_backend", backend, k.REFUSED_STORAGE["webshart"])
        values["metadata_backend"] = "discovery" if backend in ("json", "filesystem") else backend
        type_backend = {"csv": "csv", "huggingface": "huggingface"}.get(kind)
        if type_backend and "caption_strategy" not in raw and values["dataset_type"] != "conditioning":
            values["caption_strategy"] = type_backend
        strategy = lower(values.get("caption_strategy"))
        strategy = values["caption_strategy"] = "instanceprompt" if strategy == "instance_prompt" else strategy
        if strategy == "webshart":
            notes.refuse_entry(name, "caption_strategy", strategy, k.REFUSED_STORAGE["webshart"])
        if strategy in ("csv", "huggingface") and strategy != kind:
            notes.problem(
                name,
                "caption_strategy",
                strategy,
                f"These captions exist only in datasets of type {strategy}, and this one is of type {kind}.",
                "Use textfile, filename, instanceprompt or parquet.",
            )
        if kind == "csv" and strategy not in ("csv", None):
            notes.problem(
                name,
                "caption_strategy",
                strategy,
                "A list of links brings its own captions.",
                "Write csv, or leave it out.",
            )
        if kind == "huggingface" and strategy not in ("huggingface", "instanceprompt", None):
            notes.problem(
                name,
                "caption_strategy",
                strategy,
                "Rows of a hub dataset have captions in their columns.",
                "Write huggingface, or instanceprompt for one caption for all.",
            )
        if (kind == "huggingface") != (values["metadata_backend"] == "huggingface"):
            offered = "huggingface, or leave it out" if kind == "huggingface" else "discovery or parquet"
            notes.problem(
                name,
                "metadata_backend",
                values["metadata_backend"],
                f"It does not go with type {kind}.",
                f"Write {offered}.",
            )

    def table(self, table: Values, name: str) -> Values:
        """The parquet block with the global column names, without columns that only other media use."""
        for key in (key for key in k.TABLE_COLUMNS_OF_OTHERS if table.get(key) is not None):
            self.notes.warn(name, f"parquet.{key} has no effect; only sound, boxes and lists of captions use it.")
        columns = {key: v for key, v in table.items() if key not in k.TABLE_COLUMNS_OF_OTHERS and v is not None}
        columns.setdefault("filename_column", self.config.parquet_filename_column or "id")
        columns.setdefault("caption_column", self.config.parquet_caption_column or "description")
        return columns

    def aspect_buckets(self, values: Values, name: str) -> None:
        """`crop_aspect_buckets` as numbers, or as objects with weights, to two tuples."""
        written_aspects = values.get("crop_aspect_buckets")
        if not written_aspects:
            return
        rows = written_aspects if isinstance(written_aspects, list) else [written_aspects]
        objects = [row for row in rows if isinstance(row, dict)]
        if not objects:
            return
        aspects = [
            next((row[key] for key in ("aspect", "aspect_bucket", "aspect_ratio") if key in row), None)
            for row in objects
        ]
        weights = [row.get("weight") for row in objects]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (*aspects, *weights))
        if len(objects) != len(rows) or not numbers:
            self.notes.problem(
                name,
                "crop_aspect_buckets",
                written_aspects,
                "Each weighted aspect is an object with numbers for aspect and weight.",
                'Write for example [{"aspect": 1.0, "weight": 0.7}, {"aspect": 1.5, "weight": 0.3}].',
            )
            return
        total = sum(weights)  # type: ignore[arg-type]
        if abs(total - 1.0) > 1e-6:
            problem = f"The weights add up to {total:g}, not to 1."
            self.notes.problem(name, "crop_aspect_buckets", written_aspects, problem, "Change them so that they do.")
        values["crop_aspect_buckets"], values["crop_aspect_weights"] = aspects, weights

    def translate(self, cause: ValidationError, name: str) -> None:
        """pydantic's findings in our words."""
        reported = self.notes.list_problem_keys(name)
        for error in cause.errors():
            parts = [str(part) for part in error["loc"] if not re.match(r"function-|local$|url$|aws$", str(part))]
            key = ".".join(parts).removeprefix("location.") or "entry"
            if key.split(".")[0] in reported:
                continue
            choices = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
            if error["type"] == "literal_error":
                offered = choose(choices, str(error["input"]))
                self.notes.problem(name, key, error["input"], "This is not one of the choices.", offered)
            elif error["type"] == "missing":
                self.notes.problems.append(
                    missing_option(
                        f"{key} of dataset '{name}' in {self.path}",
                        "This key has to be given.",
                        "See docs/datasets.md.",
                    )
                )
            elif error["type"] == "extra_forbidden":
                block_keys = {*MetadataTable.model_fields, *CaptionShuffle.model_fields, *VideoBlock.model_fields}
                self.notes.unknown_key(name, key, error["input"], sorted(block_keys))
            else:
                text = error["msg"].removeprefix("Value error, ")
                problem = text[0].upper() + text[1:] + "."
                self.notes.problem(name, key, error["input"], problem, "Correct the value; see docs/datasets.md.")


def _is_disabled(entry: Mapping[str, object]) -> bool:
    return any(entry.get(key) in (True, "true", "True", 1) for key in ("disabled", "disable"))
