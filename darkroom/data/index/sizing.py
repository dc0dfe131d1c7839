"""The size arithmetic that a dataset entry asks for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from darkroom.core.errors import DataError
from darkroom.data.requirements import DataRequirements
from darkroom.media.kohya import KohyaSizing
from darkroom.media.resize import Size, Sizing
from darkroom.options.datasets import SampleDataset

MAX_EDGE = 65_536
"""Pixels of an edge beyond which a size that a person wrote is a slip."""


def sizing_of(
    dataset: SampleDataset,
    *,
    alignment: int,
    rounding: int,
    requirements: DataRequirements | None = None,
    table: dict[float, Size] | None = None,
) -> Sizing:
    """The size arithmetic that a dataset entry asks for."""
    value = dataset.in_unit(dataset.resolution)
    assert value is not None
    return Sizing(
        kind=dataset.size_kind,
        value=value,
        alignment=alignment,
        rounding=rounding,
        crop=dataset.crop,
        crop_aspect=dataset.crop_aspect,
        crop_style=dataset.crop_style,
        aspects=dataset.crop_aspect_buckets,
        weights=dataset.crop_aspect_weights,
        maximum=dataset.in_unit(dataset.maximum_image_size),
        downsample=dataset.in_unit(dataset.target_downsample_size),
        max_upscale=dataset.max_upscale_threshold,
        canvas=requirements.pixels if requirements else None,
        longest=requirements.edge if requirements else None,
        table=table or {},
        kohya=_kohya_sizing(dataset, requirements.step if requirements else 1) if dataset.kohya else None,
    )


def _kohya_sizing(dataset: SampleDataset, step: int) -> KohyaSizing:
    """The sizes of a musubi-tuner file, whose steps grow to those of the model."""
    assert dataset.kohya is not None
    sizing = KohyaSizing(**dataset.kohya.model_dump())
    return replace(sizing, step=math.lcm(sizing.step, step))


def read_sizes_table(output: Path, dataset: SampleDataset) -> dict[float, Size]:
    """Target sizes by aspect that a person (or SimpleTuner) wrote into the output folder for this resolution."""
    if dataset.size_kind != "area":
        return {}
    path = output / f"aspect_resolution_map-{dataset.in_unit(dataset.resolution)}.json"
    try:
        rows: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        table = {float(key): (int(size[0]), int(size[1])) for key, size in rows.items()}
        if wrong := [size for size in table.values() if not all(0 < edge <= MAX_EDGE for edge in size)]:
            raise ValueError(f"{wrong[0]} is no size in pixels")
        return table
    except FileNotFoundError:
        return {}
    except (
        OSError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as cause:
        raise DataError(
            f"The resolution map {path} cannot be read: {cause}\n"
            '  It holds one object such as {"1.75": [1344, 768]}; correct or remove it.'
        ) from cause
