"""Processes that prepare data together: each does its share, and all go on with the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from darkroom.core import files


def _wait_for_nobody() -> None:
    """There is nobody to wait for."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among several. `wait` returns when all have called it."""

    rank: int = 0
    size: int = 1
    wait: Callable[[], None] = _wait_for_nobody

    @property
    def is_first(self) -> bool:
        """Whether this process does what must be done once."""
        return self.rank == 0

    def share(self, rows: np.ndarray, chunk: int) -> np.ndarray:
        """This process's part of `rows`: every `size`-th chunk, so that a chunk becomes the same shard whoever makes
        it."""
        if self.size == 1:
            return rows
        starts = range(self.rank * chunk, len(rows), self.size * chunk)
        return np.concatenate([rows[:0], *(rows[i : i + chunk] for i in starts)])

    def exchange_tables(self, path: Path, table: pa.Table) -> list[pa.Table]:
        """What every process found, in the order of ranks; `place` names the files that carry it."""
        if self.size == 1:
            return [table]
        names = [path.with_name(f"{path.name}.part-{rank}") for rank in range(self.size)]
        with files.write_atomically(names[self.rank]) as temporary:
            pq.write_table(table, temporary)
        self.wait()
        tables = [pq.read_table(name, memory_map=False) for name in names]
        self.wait()
        names[self.rank].unlink(missing_ok=True)
        return tables


SINGLE_PROCESS = ProcessGroup()
