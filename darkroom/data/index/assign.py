"""From facts and settings to what becomes of each sample: its size, its crop, and whether it is used."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from darkroom.data.index.metadata import SampleTable
from darkroom.data.index.table import CODE, Index, unique_pairs
from darkroom.media.faces import crop_around
from darkroom.media.resize import Size, Sizes, Sizing, draw_stable_values, is_too_thin, measure, plan_sizes
from darkroom.options.datasets import SampleDataset


def assign_sizes(
    index: Index, rows: np.ndarray, dataset: SampleDataset, sizing: Sizing, draw: tuple[int, int], table: SampleTable
) -> None:
    """Target, crop and fitness of `rows`. `draw` is the seed and the epoch of random crops, 0 for one that stays."""
    at = index.numbers
    rows = rows[at["bad"][rows] == 0]
    if len(rows) == 0:
        return
    index.changed = True
    by_path = sizing.crop and sizing.crop_aspect == "random"
    original_sizes = np.stack([at["width"][rows], at["height"][rows]], 1)
    unique, inverse = unique_pairs(original_sizes[:, 0], original_sizes[:, 1])
    if by_path:
        names = index.paths.take(pa.array(rows)).to_pylist()
        decided = [
            _plan_sample(_pair(size), dataset, sizing, draw_values(draw, dataset.id, name)[2])
            for size, name in zip(original_sizes, names, strict=True)
        ]
        inverse = np.arange(len(rows))
    else:
        decided = [_plan_sample(_pair(size), dataset, sizing) for size in unique]
    plans = [plan for plan, _ in decided]
    unfit = np.array([CODE[reason] for _, reason in decided], np.int8)
    for name, values in _columns(plans).items():
        at[name][rows] = values[inverse]
    lasting = np.isin(at["unfit"][rows], [CODE["too_short"], CODE["too_long"]])
    at["unfit"][rows] = np.where(lasting, at["unfit"][rows], unfit[inverse])
    if "aspect" in table.numbers:
        _apply_table_aspects(index, rows, table)
    _assign_crops(index, rows, dataset, draw)


def draw_values(draw: tuple[int, int], dataset: str, path: str) -> tuple[float, ...]:
    """Numbers in 0..1 for one sample: top, left, aspect. Those of epoch 0 do not depend on epochs."""
    seed, epoch = draw
    return draw_stable_values(seed, f"{dataset}\0{epoch}" if epoch else dataset, path)


def _pair(size: np.ndarray) -> Size:
    return int(size[0]), int(size[1])


def _columns(plans: list[Sizes]) -> dict[str, np.ndarray]:
    target = np.array([p.target for p in plans], np.int32).reshape(-1, 2)
    inter = np.array([p.intermediary for p in plans], np.int32).reshape(-1, 2)
    return {
        "target_width": target[:, 0],
        "target_height": target[:, 1],
        "inter_width": inter[:, 0],
        "inter_height": inter[:, 1],
        "aspect": np.array([p.aspect for p in plans]),
    }


def _apply_table_aspects(index: Index, rows: np.ndarray, table: SampleTable) -> None:
    """Buckets named by the table instead of by arithmetic."""
    at = table.rows_of(index.paths.take(pa.array(rows)))
    aspects = np.where(at >= 0, table.numbers["aspect"][np.maximum(at, 0)], np.nan)
    index.numbers["aspect"][rows] = np.where(aspects > 0, aspects, index.numbers["aspect"][rows])


def _plan_sample(size: Size, dataset: SampleDataset, sizing: Sizing, draw: float = 0.0) -> tuple[Sizes, str]:
    """Sizes of an image, and the reason to leave it out by the dataset's own limits, if there is one.

    What can be told without sizes is asked first: an image that is too thin has none, and keeps its own.
    """
    reason = "resolution_filter" if _too_small(size, dataset, sizing) else ""
    if is_too_thin(size, sizing):
        ratio = size[0] / size[1]
        return Sizes(size, size, size, ratio), reason or _beyond(ratio, dataset) or "too thin"
    sizes = plan_sizes(size, sizing, draw)
    return sizes, reason or _beyond(sizes.aspect, dataset)


def _beyond(aspect: float, dataset: SampleDataset) -> str:
    """The limit that an aspect breaks."""
    if dataset.minimum_aspect_ratio is not None and aspect < dataset.minimum_aspect_ratio:
        return "below_min_aspect_ratio"
    if dataset.maximum_aspect_ratio is not None and aspect > dataset.maximum_aspect_ratio:
        return "above_max_aspect_ratio"
    return ""


def _too_small(original: Size, dataset: SampleDataset, sizing: Sizing) -> bool:
    minimum = dataset.in_unit(dataset.minimum_image_size)
    if minimum is None:
        return False
    square = dataset.crop and dataset.crop_aspect == "square" and sizing.kind == "area"
    return measure(original, sizing.kind) < minimum or (square and min(original) < int((minimum * 1e6) ** 0.5))


def _assign_crops(index: Index, rows: np.ndarray, dataset: SampleDataset, draw: tuple[int, int]) -> None:
    """Crop offsets, as `resize.crop_offset` gives them, for many rows at once. A face is put into the middle."""
    at = index.numbers
    spare_x = np.maximum(0, at["inter_width"][rows] - at["target_width"][rows])
    spare_y = np.maximum(0, at["inter_height"][rows] - at["target_height"][rows])
    at["top"][rows] = at["left"][rows] = 0
    if dataset.crop_style == "corner":
        return
    if dataset.crop_style in ("center", "centre"):
        at["top"][rows], at["left"][rows] = spare_y // 2, spare_x // 2
        return
    some = np.flatnonzero((spare_x > 0) | (spare_y > 0))  # the others have nothing to draw
    names = index.paths.take(pa.array(rows[some])).to_pylist()
    values = np.array([draw_values(draw, dataset.id, name) for name in names]).reshape(-1, 3)
    at["top"][rows[some]] = np.minimum(spare_y[some], (values[:, 0] * (spare_y[some] + 1)).astype(np.int32))
    at["left"][rows[some]] = np.minimum(spare_x[some], (values[:, 1] * (spare_x[some] + 1)).astype(np.int32))
    if dataset.crop_style == "face":
        for row in rows[at["focus_x"][rows] >= 0]:
            centre = float(at["focus_x"][row]), float(at["focus_y"][row])
            sizes = ((int(at[f"{which}_width"][row]), int(at[f"{which}_height"][row])) for which in ("inter", "target"))
            at["top"][row], at["left"][row] = crop_around(centre, *sizes)
