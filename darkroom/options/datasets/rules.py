"""What must hold inside a dataset entry and between entries. Every rule notes a problem and goes on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import DataError
from darkroom.core.files import is_file, is_folder
from darkroom.core.units import THINNEST
from darkroom.options.datasets import keys as k
from darkroom.options.datasets.document import Values
from darkroom.options.datasets.entries import (
    LOSS_MASKS,
    Entry,
    ImageEmbeds,
    SampleDataset,
    TextEmbeds,
    VideoBlock,
    WrittenEntry,
)
from darkroom.options.datasets.locations import LocalFiles
from darkroom.options.datasets.notes import Notes, choose

if TYPE_CHECKING:
    from darkroom.options.config import Config


def has_name(entry: Mapping[str, object]) -> bool:
    """Whether an entry has an id that can be used."""
    name = entry.get("id")
    return isinstance(name, str) and bool(name.strip())


def validate_ids(entries: list[Values], notes: Notes) -> None:
    """Every entry has an id of its own that is safe as the name of a folder."""
    ids: set[str] = set()
    for number, entry in enumerate(entries, 1):
        name = entry.get("id")
        if not isinstance(name, str) or not name.strip():
            notes.problem(
                f"number {number}", "id", name, "Each dataset needs an id.", "Give it a short name of its own."
            )
        elif name.startswith("/") or ".." in name.split("/"):
            problem = "The id names a folder of the cache and would lead out of it."
            notes.problem(name, "id", name, problem, "Take '/' and '..' out.")
        elif name in ids:
            notes.problem(name, "id", name, "Two datasets have this id.", "Rename one of them.")
        else:
            ids.add(name)


# -- inside one entry -------------------------------------------------------------------------------------------------


def validate_sample(d: SampleDataset, family: str, environ: Mapping[str, str], notes: Notes) -> None:
    """The rules of one dataset of samples."""
    _validate_sizes(d, family, environ, notes)
    _validate_captions(d, notes)
    _validate_video(d, notes)
    _warn_of_idle_keys(d, notes)
    if d.crop and d.crop_aspect in ("closest", "random") and not d.crop_aspect_buckets:
        notes.problem(
            d.id,
            "crop_aspect",
            d.crop_aspect,
            "It chooses among listed aspects, and none is listed.",
            "Set crop_aspect_buckets, for example [0.75, 1.0, 1.33].",
        )
    if any(not 1 / THINNEST <= a <= THINNEST for a in d.crop_aspect_buckets):
        buckets, problem = (
            list(d.crop_aspect_buckets),
            f"An aspect is width / height, above 0: 1/{THINNEST} to {THINNEST}.",
        )
        notes.problem(d.id, "crop_aspect_buckets", buckets, problem, "Correct the list.")
    if d.dataset_type == "eval":
        notes.warn(d.id, "it is held out and encoded; measuring the loss on it comes with the evaluation release.")
    change = "Change one of them."
    if d.end_epoch is not None and d.end_epoch < d.start_epoch:
        notes.problem(d.id, "end_epoch", d.end_epoch, f"It lies before start_epoch = {d.start_epoch}.", change)
    if d.end_step is not None and d.start_step > 0 and d.end_step < d.start_step:
        notes.problem(d.id, "end_step", d.end_step, f"It lies before start_step = {d.start_step}.", change)
    low, high = d.minimum_aspect_ratio, d.maximum_aspect_ratio
    if low is not None and high is not None and high < low:
        notes.problem(d.id, "maximum_aspect_ratio", high, f"It is below minimum_aspect_ratio = {low}.", change)
    if d.location.type in ("csv", "huggingface"):
        for key in ("delete_unwanted_images", "delete_problematic_images"):
            if getattr(d, key):
                notes.warn(d.id, f"{key} has no effect: a list of samples that others keep is only read.")


def _validate_sizes(d: SampleDataset, family: str, environ: Mapping[str, str], notes: Notes) -> None:
    if d.resolution_type in ("pixel", "pixel_area") and not float(d.resolution).is_integer():
        notes.problem(
            d.id,
            "resolution",
            d.resolution,
            f"With resolution_type {d.resolution_type} it is an edge in whole pixels.",
            "Write for example 1024, or set resolution_type to area for megapixels.",
        )
    if d.maximum_image_size is not None and d.target_downsample_size is None:
        notes.problem(
            d.id,
            "maximum_image_size",
            d.maximum_image_size,
            "It needs the size to shrink to.",
            "Set target_downsample_size as well.",
        )
    limits = {
        "minimum_image_size": 5.0,
        "maximum_image_size": 20.0,
        "target_downsample_size": 20.0,
        "resolution": 100.0,
    }
    for key, limit in limits.items():
        value = getattr(d, key)
        if value is None:
            continue
        above = value >= limit if limit >= 20 else value > limit
        if d.resolution_type == "area" and above and not _allows_large_sizes(key, environ):
            notes.problem(
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
            and "deepfloyd" not in family
        ):
            notes.problem(
                d.id,
                key,
                value,
                "With resolution_type pixel this is an edge in pixels, and it is implausibly small.",
                "Write an edge of at least 512, or set resolution_type to area.",
            )


def _allows_large_sizes(key: str, environ: Mapping[str, str]) -> bool:
    names = ("SIMPLETUNER_MAXIMUM_IMAGE_SIZE_OVERRIDE", "DARKROOM_MAXIMUM_IMAGE_SIZE_OVERRIDE")
    return key != "minimum_image_size" and any(environ.get(name) for name in names)


def _validate_captions(d: SampleDataset, notes: Notes) -> None:
    asking = [key for key in ("prepend_instance_prompt", "only_instance_prompt") if getattr(d, key)]
    asking += ["caption_strategy"] if d.caption_strategy == "instanceprompt" else []
    if asking and not any(p.strip() for p in d.prompts):
        notes.problem(
            d.id,
            asking[0],
            getattr(d, asking[0]),
            "It needs an instance prompt, and none is given.",
            "Set instance_prompt.",
        )
    by_table = d.caption_strategy == "parquet" and not d.only_instance_prompt
    if (by_table or d.metadata_backend == "parquet") and d.parquet is None:
        key = "caption_strategy" if d.caption_strategy == "parquet" else "metadata_backend"
        change = 'Add a block: "parquet": {"path": "captions.parquet", ...}.'
        notes.problem(d.id, key, "parquet", "It needs to know the table.", change)
    elif by_table and d.metadata_backend != "parquet":
        notes.problem(
            d.id,
            "caption_strategy",
            "parquet",
            "Captions from a table need the sizes from the same table.",
            "Set metadata_backend to parquet, or write one text file beside each image and use textfile.",
        )


def _validate_video(d: SampleDataset, notes: Notes) -> None:
    v = d.video
    if v is None:
        return
    if v.num_frames and v.min_frames and v.min_frames < v.num_frames:
        notes.problem(
            d.id,
            "video.min_frames",
            v.min_frames,
            f"Clips that short cannot give num_frames = {v.num_frames} frames.",
            "Raise min_frames to num_frames, or lower num_frames.",
        )
    if v.fps and v.source_fps:
        notes.problem(
            d.id,
            "video.source_fps",
            v.source_fps,
            f"fps = {v.fps:g} already says at which rate frames are taken, by their time stamps.",
            "Leave one of them out.",
        )
    if v.max_frames is None and v.frame_extraction == "head" and not v.target_frames:
        notes.warn(d.id, "video.max_frames is not set, so clips of any length are used from their start.")
    if v.bucket_strategy == "resolution_frames" and v.num_frames and not v.frame_interval:
        notes.warn(d.id, "bucket_strategy resolution_frames with one num_frames makes a single bucket of lengths.")


def _warn_of_idle_keys(d: SampleDataset, notes: Notes) -> None:
    """Settings that do nothing beside the others."""
    by_list, v = d.crop and d.crop_aspect in ("closest", "random"), d.video or VideoBlock()
    has_sizes = d.metadata_backend == "parquet" or getattr(d.location, "width_column", None) is not None
    takes_parts = bool(v.target_frames) or v.frame_extraction != "head"
    idle = {
        "crop_aspect": not d.crop and d.crop_aspect in ("closest", "random") and "crop is false",
        "crop_aspect_buckets": bool(d.crop_aspect_buckets) and not by_list and "crop_aspect is not closest or random",
        "max_upscale_threshold": d.max_upscale_threshold is not None and not by_list and "no aspect is chosen",
        "maximum_image_size": d.maximum_image_size is not None and not d.crop and "crop is false",
        "target_downsample_size": d.target_downsample_size is not None
        and d.maximum_image_size is None
        and "maximum_image_size is not set",
        "crop_style": d.crop_style == "face" and has_sizes and "sizes come from columns, so no face is looked for",
        "parquet": d.parquet is not None
        and "parquet" not in (d.metadata_backend, d.caption_strategy)
        and "neither metadata_backend nor caption_strategy is parquet",
        "video.num_frames": v.num_frames is not None
        and (bool(v.target_frames) or v.frame_extraction == "full")
        and "target_frames or frame_extraction full decides",
        "video.min_frames": v.min_frames is not None and takes_parts and "parts of clips are taken",
        "video.max_frames": v.max_frames is not None
        and takes_parts
        and v.frame_extraction != "full"
        and "parts of clips are taken",
        "video.frame_interval": v.frame_interval is not None
        and v.bucket_strategy != "resolution_frames"
        and "bucket_strategy is not resolution_frames",
        "video.frame_stride": v.frame_stride != 1 and v.frame_extraction != "slide" and "frame_extraction is not slide",
        "video.frame_sample": v.frame_sample != 1
        and v.frame_extraction != "uniform"
        and "frame_extraction is not uniform",
    }
    for key, reason in idle.items():
        if reason:
            notes.warn(d.id, f"{key} has no effect: {reason}.")


def validate_discovery(e: Entry, notes: Notes) -> None:
    """Names of stages and kinds of lists."""
    for word in re.split(r"[,\s]+", e.skip_file_discovery):
        if word and not any(stage in word for stage in k.STAGES):
            problem = f"There is no stage '{word}'."
            notes.problem(e.id, "skip_file_discovery", e.skip_file_discovery, problem, choose(k.STAGES, word))


# -- sources and what goes with them ----------------------------------------------------------------------------------


def link_datasets(written: Sequence[WrittenEntry], notes: Notes) -> list[SampleDataset]:
    """The datasets with sources before their companions, each companion sized as its source asks."""
    by_id = {item.entry.id: item for item in written}
    names = {name: list(_dataset(item).conditioning_data) for name, item in by_id.items()}
    for name, item in by_id.items():
        source = _dataset(item).source_dataset_id
        if source is None:
            continue
        if source not in by_id:
            notes.problem(name, "source_dataset_id", source, "No enabled entry has this id.", _list_names(by_id))
        elif name not in names[source]:
            names[source].append(name)
    sources = {name: source for source, conditioning_names in names.items() for name in conditioning_names}
    behind = {name: {sources[name]} & set(by_id) if name in sources else set() for name in by_id}
    try:
        order = list(TopologicalSorter(behind).static_order())
    except CycleError as cause:
        first = cause.args[1][0]
        notes.problem(
            first, "conditioning_data", cause.args[1], "These datasets depend on each other in a circle.", "Break it."
        )
        return [_dataset(item) for item in written]
    linked: dict[str, SampleDataset] = {}
    for name in sorted(order, key=lambda n: (n in sources, list(by_id).index(n))):
        d = _dataset(by_id[name]).model_copy(update={"conditioning_data": tuple(names[name])})
        if d.dataset_type == "conditioning":
            d = _fit_to_source(d, by_id[name].written, linked.get(sources.get(name, "")), notes)
        _validate_conditioning(d, by_id, notes)
        linked[name] = d
    return list(linked.values())


def _dataset(item: WrittenEntry) -> SampleDataset:
    assert isinstance(item.entry, SampleDataset)
    return item.entry


def _list_names(names: Mapping[str, object] | Sequence[str]) -> str:
    return f"There are: {', '.join(names) or 'none'}."


def _fit_to_source(
    d: SampleDataset, written: frozenset[str], source: SampleDataset | None, notes: Notes
) -> SampleDataset:
    """A conditioning dataset with the sizes of its source, and with its crops when it is pixel-aligned."""
    if source is None:
        if d.is_aligned:
            notes.problem(
                d.id,
                "source_dataset_id",
                d.source_dataset_id,
                f"Images of conditioning_type {d.conditioning_type} belong to those of another dataset.",
                "Name that dataset here, or name this one in its conditioning_data.",
            )
        else:
            notes.warn(d.id, "no dataset names it in conditioning_data, so it is not used.")
        return d
    followed = k.FOLLOWS_SOURCE + (k.FOLLOWS_WHEN_ALIGNED if d.is_aligned else ())
    if d.kohya is not None and not d.is_aligned:  # control images with a size of their own
        return d.model_copy(update={"source_dataset_id": source.id, "minimum_image_size": None})
    for key in (key for key in followed if key in written):
        if getattr(d, key) != getattr(source, key):
            value = getattr(source, key)
            notes.warn(d.id, f"{key} follows its source dataset '{source.id}' ({value}), not what is written here.")
    values = {key: getattr(source, key) for key in followed}
    return d.model_copy(update=values | {"source_dataset_id": source.id, "minimum_image_size": None})


def _validate_conditioning(d: SampleDataset, by_id: Mapping[str, WrittenEntry], notes: Notes) -> None:
    names = [name for name, item in by_id.items() if _dataset(item).dataset_type == "conditioning"]
    for name in d.conditioning_data:
        if name not in names:
            problem = f"No enabled conditioning dataset is called '{name}'."
            notes.problem(d.id, "conditioning_data", list(d.conditioning_data), problem, _list_names(names))
    if d.dataset_type == "conditioning":
        if d.conditioning_type is None:
            notes.problem(
                d.id,
                "conditioning_type",
                None,
                "A conditioning dataset says what its images are.",
                "Set it to controlnet, mask, segmentation, reference_strict or reference_loose.",
            )
        if d.conditioning_data:
            notes.problem(
                d.id,
                "conditioning_data",
                list(d.conditioning_data),
                "A conditioning dataset cannot have conditioning data of its own.",
                "Name all of them in the dataset that is trained on.",
            )


# -- between entries --------------------------------------------------------------------------------------------------


def validate_together(
    samples: Sequence[SampleDataset],
    texts: Sequence[TextEmbeds],
    latents: Sequence[ImageEmbeds],
    notes: Notes,
    config: Config,
    complete: bool,
) -> None:
    """Rules that need every entry; those about what is absent only when no entry failed (`complete`)."""
    training = [d for d in samples if d.is_training]
    if not training and complete:
        raise DataError(
            f"The dataset file {notes.path} has no dataset of type image or video to train on.\n"
            "  Add one, or enable one of the disabled entries."
        )
    stores = [m.id for m in latents if m.dataset_type == "image_embeds"]
    features = [m.id for m in latents if m.dataset_type == "conditioning_image_embeds"]
    for d in samples if complete else []:
        _validate_reference(d.id, "text_embeds", d.text_embeds, [t.id for t in texts], notes)
        _validate_reference(d.id, "image_embeds", d.image_embeds, stores, notes)
        _validate_reference(d.id, "conditioning_image_embeds", d.conditioning_image_embeds, features, notes)
        if d.conditioning_image_embeds is not None:
            notes.warn(d.id, f"conditioning_image_embeds has no effect; {k.CACHED_WITH_LATENTS}.")
        if d.disable_after_epoch_step and getattr(config, "data_backend_sampling", None) == "uniform":
            notes.warn(d.id, "disable_after_epoch_step has no effect: data_backend_sampling is uniform.")
    _validate_sampling(samples, config, notes)
    _validate_cache_folders(samples, texts, notes)
    _validate_directories(samples, notes)
    if complete:
        _validate_schedule(training, config, notes)


def _validate_reference(entry: str, key: str, name: str | None, names: Sequence[str], notes: Notes) -> None:
    if name is not None and name not in names:
        notes.problem(entry, key, name, "No enabled entry has this id.", _list_names(names))


def _validate_sampling(samples: Sequence[SampleDataset], config: Config, notes: Notes) -> None:
    """References that are all attached at once must leave the caption to the sample."""
    if getattr(config, "conditioning_multidataset_sampling", "random") != "combined":
        return
    by_id = {d.id: d for d in samples}
    for d in samples:
        conditioning = [by_id[name] for name in d.conditioning_data if name in by_id]
        images = [c for c in conditioning if c.conditioning_type not in LOSS_MASKS]
        for c in images if len(images) > 1 else []:
            if c.caption_strategy is not None:
                notes.problem(
                    c.id,
                    "caption_strategy",
                    c.caption_strategy,
                    "With conditioning_multidataset_sampling combined, several images share one caption.",
                    "Set caption_strategy to null here; the caption of the sample is used.",
                )


def _validate_cache_folders(samples: Sequence[SampleDataset], texts: Sequence[TextEmbeds], notes: Notes) -> None:
    owners: dict[Path, str] = {}
    for d in samples:
        folder = d.cache_dir_vae.absolute()
        if folder in owners:
            notes.problem(
                d.id,
                "cache_dir_vae",
                str(d.cache_dir_vae),
                f"Dataset '{owners[folder]}' uses the same folder.",
                "Give each dataset a folder of its own, or leave the key out.",
            )
        owners.setdefault(folder, d.id)
    for t in texts:
        if t.cache_dir.absolute() in owners:
            notes.problem(
                t.id,
                "cache_dir",
                str(t.cache_dir),
                f"Dataset '{owners[t.cache_dir.absolute()]}' keeps latents there.",
                "Give the text cache a folder of its own.",
            )


def _validate_directories(samples: Sequence[SampleDataset], notes: Notes) -> None:
    """All missing folders at once, before anything is loaded. A generated folder is made when it is filled."""
    for d in samples:
        if d.generator is not None or not isinstance(d.location, LocalFiles) or is_folder(d.location.root):
            continue
        problem = "This is a file, not a folder" if is_file(d.location.root) else "The folder does not exist"
        notes.problem(
            d.id,
            "instance_data_dir",
            str(d.location.root),
            f"{problem} (seen from {Path.cwd()}).",
            "Correct the path, or set 'disabled' to true for this dataset.",
        )


def _validate_schedule(training: Sequence[SampleDataset], config: Config, notes: Notes) -> None:
    if not any(d.start_epoch <= 1 and d.start_step <= 1 and d.probability > 0 for d in training):
        d = training[0]
        idle = all(x.probability == 0 for x in training)
        key = "probability" if idle else "start_epoch" if d.start_epoch > 1 else "start_step"
        notes.problem(
            d.id,
            key,
            getattr(d, key),
            "No dataset can be drawn at the first step.",
            "Let at least one start at epoch 1 and step 0, with a probability above 0.",
        )
    epochs, steps = getattr(config, "num_train_epochs", None) or 0, getattr(config, "max_train_steps", None) or 0
    for d in training:
        if (epochs and not steps and d.start_epoch > epochs) or (steps and d.start_step > steps):
            notes.warn(d.id, "it starts after the end of the run and will never be drawn.")
