"""Two processes prepare data together: they end with the index and the caches that one alone would have made."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from darkroom.core.events import Bus
from darkroom.data.plan import scan_datasets
from darkroom.data.process_group import ProcessGroup
from tests.data.prepared import PreparedData

WRITE = 4


def plans(shop, folder: str, size: int) -> list[PreparedData]:
    """The plans of `size` processes over the same pictures, each in a thread, with full caches in `folder`."""
    shop.options |= {"output_dir": str(shop.folder / folder), "write_batch_size": WRITE, "vae_batch_size": 2}
    file = shop.read(shop.entry(conditioning_data="before"), before(shop))
    barrier = threading.Barrier(size)
    made: list[PreparedData | None] = [None] * size
    broken: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            team = ProcessGroup(rank, size, lambda: barrier.wait(30))
            plan = PreparedData(scan_datasets(shop.config, file, Bus(), shop.requirements, process_group=team))
            plan.fill_text(shop.encode_text, "text-1")
            plan.fill_latents(shop.encode_pixels, "vae-1")
            made[rank] = plan
        except BaseException as cause:
            broken.append(cause)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return [plan for plan in made if plan is not None]


def before(shop):
    return {"id": "before", "conditioning_type": "reference_strict", "instance_data_dir": str(shop.folder / "before")}


@pytest.fixture
def pictures(shop):
    """A hundred pictures of two shapes with references, some of them damaged or without caption."""
    from dataclasses import replace

    shop.requirements = replace(shop.requirements, references=True)
    shop.add(70, (32, 32))
    shop.add(30, (48, 32), prefix="wide")
    for path in sorted(shop.pictures.glob("*.png")):
        target = shop.folder / "before" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (shop.pictures / "p007.txt").unlink()
    torn = shop.pictures / "p050.png"
    torn.write_bytes(torn.read_bytes()[:900])
    (shop.folder / "before" / "p055.png").write_bytes(b"no picture")
    return shop


def index_of(plan: PreparedData) -> list[tuple[str, object]]:
    """Name and content of every index file."""
    return [(path.name, pq.read_table(path)) for path in sorted(plan.scanner.terms.folder.glob("*.parquet"))]


def entries_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    from darkroom.data.cache.shards import ShardCache

    cache = ShardCache(folder)
    return {key: cache.get(key) for key in sorted(cache.keys())}


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_make_what_one_makes(pictures, size) -> None:
    (alone,) = plans(pictures, "one", 1)
    together = plans(pictures, "many", size)
    assert [name for name, _ in index_of(alone)] == [name for name, _ in index_of(together[0])]
    for (_, one), (_, many) in zip(index_of(alone), index_of(together[0]), strict=True):
        assert one.equals(many)
    for name in ("vae/toy/pics", "vae/toy/before", "text/toy"):
        first = entries_of(pictures.folder / "one/cache" / name)
        second = entries_of(pictures.folder / "many/cache" / name)
        assert first.keys() == second.keys()
        assert len(first) > 80
        assert all(torch.equal(tensor, second[key][part]) for key, row in first.items() for part, tensor in row.items())
    assert not list((pictures.folder / "many").rglob("*.part-*"))
    for plan in together:
        assert plan.manifest_hash() == alone.manifest_hash()
        assert plan.datasets[0].drop_counts == alone.datasets[0].drop_counts
        assert plan.lengths == alone.lengths


def test_each_process_opens_its_share(pictures) -> None:
    together = plans(pictures, "shares", 2)
    opened = [plan.datasets[0].index.opened for plan in together]
    assert sum(opened) == 100
    assert min(opened) > 30


def test_batches_of_all_ranks_together_are_the_batches_of_one(pictures) -> None:
    together = plans(pictures, "ranks", 2)
    loaders = [plan.loader(rank=rank, ranks=2) for rank, plan in enumerate(together)]
    seen: list[str] = []
    for loader in loaders:
        seen += [path for batch in loader.epoch(1) for path in batch.paths]
    usable = {together[0].datasets[0].index.path(row) for row in together[0].datasets[0].index.usable}
    assert set(seen) == usable
