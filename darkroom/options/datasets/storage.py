"""From the keys of an entry to where its samples are: one function per type of storage, each returning the values of
a model in `locations`, or None after noting what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.files import expand_home
from darkroom.core.registry import Table
from darkroom.options.datasets import keys as k
from darkroom.options.datasets.document import Values
from darkroom.options.datasets.locations import Panels, RowFilter, lower
from darkroom.options.datasets.notes import Notes, choose

if TYPE_CHECKING:
    from darkroom.options.config import Config


TYPES: Table[Callable[[Values, str, str, Config, Notes], Values | None]] = Table("storage type")

CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds")


def read_location(raw: Values, kind: str, name: str, config: Config, notes: Notes) -> Values | None:
    """Where the samples or the cache of an entry are, as values for a model of `locations`."""
    storage_type = lower(raw.get("type") or "local")
    if storage_type in k.REFUSED_STORAGE:
        notes.refuse_entry(name, "type", storage_type, k.REFUSED_STORAGE[storage_type])
        return None
    if storage_type not in TYPES:
        notes.problem(
            name, "type", storage_type, "There is no such storage.", choose([*TYPES, *k.REFUSED_STORAGE], storage_type)
        )
        return None
    if kind in CACHES and storage_type in ("csv", "huggingface"):
        problem = (
            "A list of links cannot hold a cache." if storage_type == "csv" else "A hub dataset cannot hold a cache."
        )
        notes.problem(name, "type", storage_type, problem, "Use type local or aws.")
        return None
    return TYPES[storage_type](raw, kind, name, config, notes)


def _local(raw: Values, kind: str, name: str, config: Config, notes: Notes) -> Values | None:
    """A folder, or any URL that fsspec knows."""
    if kind in CACHES:
        return {"type": "local", "root": Path()}  # the reader fills in the cache folder
    if isinstance(raw.get("_jsonl"), dict):
        return {"type": "jsonl", **raw["_jsonl"]}
    folder = raw.get("instance_data_dir")
    if not folder:
        notes.problem(
            name,
            "instance_data_dir",
            folder,
            "A local dataset needs the folder that holds its images.",
            "Set instance_data_dir.",
        )
        return None
    text = str(folder).strip()
    if "://" in text and not text.startswith("file://"):
        return {"type": "url", "url": text}
    return {
        "type": "local",
        "root": expand_home(text.removeprefix("file://")),
        "recursive": raw.get("_recursive", True),
    }


def _aws(raw: Values, kind: str, name: str, config: Config, notes: Notes) -> Values | None:
    """A bucket. The keys may also stand in a block `aws`, with or without their prefix."""
    block = raw.get("aws") if isinstance(raw.get("aws"), dict) else {}
    assert isinstance(block, dict)
    values = {key if key.startswith("aws_") else f"aws_{key}": value for key, value in block.items()}
    values |= {key: raw[key] for key in k.S3_KEYS if key in raw}
    if raw.get("instance_data_dir") and not values.get("aws_data_prefix"):
        values["aws_data_prefix"] = str(raw["instance_data_dir"])
    if kind in CACHES and raw.get("cache_dir"):
        parts = [values.get("aws_data_prefix") or "", str(raw["cache_dir"])]
        values["aws_data_prefix"] = "/".join(part.strip("/") for part in parts if part)
    required = ("aws_bucket_name", "aws_endpoint_url", "aws_access_key_id", "aws_secret_access_key")
    if not _has_required(values, required, "aws", name, notes):
        return None
    values.setdefault("aws_max_pool_connections", getattr(config, "aws_max_pool_connections", None))
    return {"type": "aws", **_drop_empty(values)}


def _csv(raw: Values, kind: str, name: str, config: Config, notes: Notes) -> Values | None:
    """A table of links."""
    values = {key: raw.get(key) for key in k.CSV_KEYS}
    if not _has_required(values, ("csv_file", "csv_cache_dir", "csv_caption_column"), "csv", name, notes):
        return None
    for key in ("csv_file", "csv_cache_dir"):
        values[key] = expand_home(str(values[key]))
    connections = raw.get("max_workers") or getattr(config, "max_workers", None)
    return {"type": "csv", **_drop_empty(values | {"connections": connections})}


def _huggingface(raw: Values, kind: str, name: str, config: Config, notes: Notes) -> Values | None:
    """Rows of a hub dataset. Keys may stand at top level or in a block `huggingface`."""
    hub_block = raw.get("huggingface")
    block = hub_block if isinstance(hub_block, dict) else {}
    if hub_block not in (None, {}) and not block:
        notes.problem(
            name, "huggingface", hub_block, "It is an object with keys.", 'Write for example {"streaming": true}.'
        )
    for key in (key for key in block if key not in k.HUB_KEYS):
        if key in k.WITHOUT_EFFECT:
            notes.warn(name, f"huggingface.{key} has no effect; {k.WITHOUT_EFFECT[key]}.")
        elif key in k.REFUSED_KEYS or key == "config":  # SimpleTuner's `config` holds the fields of sound
            notes.refuse_key(name, f"huggingface.{key}", block[key], k.REFUSED_KEYS.get(key, k.SOUND))
        else:
            notes.unknown_key(name, key, block[key], k.HUB_KEYS)
    first = ("dataset_name", "split", "revision", "image_column", "video_column")
    values = {key: raw.get(key, block.get(key)) if key in first else block.get(key, raw.get(key)) for key in k.HUB_KEYS}
    if not _has_required(values, ("dataset_name",), "huggingface", name, notes):
        return None
    medium = "video" if kind == "video" or raw.get("video") else "image"
    values["media_column"] = values.pop(f"{medium}_column") or values.pop("composite_image_column", None) or medium
    values["file_extension"] = str(values["file_extension"] or {"image": "jpg", "video": "mp4"}[medium]).lstrip(".")
    values["panels"] = _panels(values, name, notes)
    values["filter_func"] = _filter(values, name, notes)
    if values.get("cache_dir"):
        values["cache_dir"] = expand_home(str(values["cache_dir"]))
    location_keys = (
        "image_column",
        "video_column",
        "composite_image_config",
        "composite_image_column",
        "split_composite_images",
        "quality_column",
    )
    return {"type": "huggingface", **_drop_empty(values, *location_keys)}


def _panels(values: Values, name: str, notes: Notes) -> Values | None:
    block = values.get("composite_image_config")
    if values.get("split_composite_images") and not block:
        block = {"enabled": True, "image_count": 2, "select_index": 0}
    if not isinstance(block, dict) or not block.get("enabled", False):
        return None
    panel_values = {key: value for key, value in block.items() if key in Panels.model_fields}
    for key in set(block) - set(panel_values):
        notes.unknown_key(name, key, block[key], Panels.model_fields)
    if panel_values.get("select_index", 0) >= panel_values.get("image_count", 1):
        notes.problem(
            name,
            "composite_image_config",
            block,
            "select_index counts from 0 and must be below image_count.",
            "Correct one of them.",
        )
    return panel_values


def _filter(values: Values, name: str, notes: Notes) -> Values | None:
    block = values.get("filter_func")
    if not block:
        return None
    if not isinstance(block, dict) or set(block) - set(RowFilter.model_fields):
        names = ", ".join(RowFilter.model_fields)
        notes.problem(name, "filter_func", block, "These are not conditions on rows.", f"It may hold {names}.")
        return None
    rule = dict(block)
    if values.get("quality_column"):
        rule.setdefault("quality_column", values["quality_column"])
    return rule


def _has_required(values: Values, required: tuple[str, ...], kind: str, name: str, notes: Notes) -> bool:
    """Whether every needed key is there; all missing ones are named at once."""
    missing = [key for key in required if values.get(key) in (None, "")]
    if missing:
        notes.problem(
            name,
            missing[0],
            values.get(missing[0]),
            f"Storage of type {kind} needs {', '.join(missing)}.",
            "Set them" + (", for secrets as {env:NAME}." if kind == "aws" else "."),
        )
    return not missing


def _drop_empty(values: Values, *without: str) -> Values:
    return {key: value for key, value in values.items() if value is not None and key not in without}


TYPES.add("local", _local)
TYPES.add("aws", _aws)
TYPES.add("csv", _csv)
TYPES.add("huggingface", _huggingface)
