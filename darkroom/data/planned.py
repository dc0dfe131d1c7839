"""One dataset of a plan: what was found of it, in which buckets, and what lies beside its samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from darkroom.data.index.buckets import Buckets
from darkroom.data.index.conditioning import ConditioningDataset
from darkroom.data.index.table import Index
from darkroom.media.images import Traits
from darkroom.options.datasets import SampleDataset


@dataclass(eq=False)
class PlannedDataset:
    """One dataset of the plan, after the scan."""

    entry: SampleDataset
    index: Index
    buckets: Buckets
    conditioning: list[ConditioningDataset] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.entry.id

    @property
    def drop_counts(self) -> dict[str, int]:
        """How many samples are not used, by reason."""
        counts = {**self.index.count_reasons(), **(self.index.problems or {}), **self.index.other_files}
        return counts | ({"max_num_samples": self.index.left_out} if self.index.left_out else {})

    def rows_with(self, trait: Traits) -> np.ndarray:
        """Rows of the samples in use whose header has a trait."""
        rows = self.index.usable
        return rows[self.index.numbers["traits"][rows] & trait != 0]

    @property
    def colors(self) -> dict[str, int]:
        """How many images have a color profile that matters, by what becomes of them."""
        used, odd = len(self.rows_with(Traits.PROFILE)), len(self.rows_with(Traits.ODD_PROFILE))
        outcome = "converted to sRGB" if self.index.convert else "taken as stored"
        return {outcome: used, "with a profile that cannot be used": odd}
