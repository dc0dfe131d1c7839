"""The cache survives kills, full disks and damage, and never answers with a wrong entry."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from darkroom.core.errors import DiskFullError
from darkroom.data.cache import shards as caches
from darkroom.data.cache.shards import DamagedEntry, ShardCache, cache_key, crc32, fill, group_items, open_for_filling


def key(number: int) -> str:
    return cache_key(number=number)


def entry(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"latents": torch.randn(4, 8, 8, generator=generator), "mask": torch.tensor([number])}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def filled(folder: Path, count: int = 10, **keys) -> ShardCache:
    cache = ShardCache(folder, **{"write_batch": 4, **keys})
    for number in range(count):
        cache.put(key(number), entry(number))
    cache.flush()
    return cache


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_put_in_comes_out_at_once_and_after_reopening(tmp_path: Path, compress: bool) -> None:
    for cache in (filled(tmp_path, compress=compress), ShardCache(tmp_path, compress=not compress)):
        assert all(same(cache.get(key(n)), entry(n)) for n in range(10))
        assert cache.keys() == sorted(key(n) for n in range(10))
        assert cache.missing([key(3), key(99), key(99)]) == [key(99)]
        assert cache.bytes_of([key(0), key(99)]) > 0
    with pytest.raises(KeyError):
        cache.get(key(99))


def test_shards_of_earlier_versions_with_crc32_are_read_and_their_damage_is_found(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("darkroom.data.cache.shards.checksum", crc32)
        filled(tmp_path, count=2)
    assert all(same(ShardCache(tmp_path).get(key(n)), entry(n)) for n in range(2))

    (shard,) = tmp_path.glob("*.shard.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert ShardCache(tmp_path).verify() == sorted(key(n) for n in range(2))


def test_every_number_format_and_odd_layouts_come_back(tmp_path: Path) -> None:
    values = {
        "half": torch.ones(3, dtype=torch.bfloat16), "turned": torch.arange(6).reshape(2, 3).T,
        "none": torch.zeros(0, 4),
        "one": torch.tensor(5), "yes": torch.tensor([True]), "tiny": torch.ones(2, dtype=torch.float8_e4m3fn),
    }  # fmt: skip
    for compress in (False, True):
        cache = ShardCache(tmp_path / str(compress), compress=compress)
        cache.put(key(1), values)
        cache.flush()
        found = ShardCache(tmp_path / str(compress)).get(key(1))
        assert all(
            torch.equal(found[n].float(), values[n].float()) and found[n].dtype == values[n].dtype for n in values
        )


def test_a_key_depends_on_everything_that_made_it() -> None:
    assert (
        cache_key(caption="a", encoder="x")
        == cache_key(encoder="x", caption="a")
        != cache_key(caption="a", encoder="y")
    )


CHILD = """
import sys, torch
from pathlib import Path
from darkroom.data.cache.shards import ShardCache, crc32, cache_key, fill, group_items, open_for_filling
cache = ShardCache(Path(sys.argv[1]), write_batch=3)
open_for_filling(cache)
def encode(numbers):
    made = []
    for n in numbers:
        seeded = torch.Generator().manual_seed(n)
        made.append({"latents": torch.randn(4, 8, 8, generator=seeded), "mask": torch.tensor([n])})
    print(len(numbers), flush=True)
    return made
todo = [(cache_key(number=n), n) for n in range(400)]
fill(cache, group_items(((k, n) for k, n in todo if not cache.has(k)), 2), encode)
"""


def test_killed_at_any_moment_nothing_is_lost_doubled_or_wrong(tmp_path: Path) -> None:
    rng, kept = random.Random(0), 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.12))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        cache = ShardCache(tmp_path)
        assert len(cache.keys()) >= kept
        kept = len(cache.keys())
        assert cache.verify() == []
    assert kept > 0
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    cache = ShardCache(tmp_path)
    assert cache.keys() == sorted(key(n) for n in range(400))
    assert all(same(cache.get(key(n)), entry(n)) for n in range(400))
    entries = [k for shard in tmp_path.glob("*.safetensors") for k in caches.read_header(shard).entries]
    assert len(entries) == len(set(entries)) == 400
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_torn_temporary_file_is_ignored_and_swept_away(tmp_path: Path) -> None:
    filled(tmp_path)
    torn = tmp_path / ".abc.shard.safetensors.999999999.tmp"
    mine = tmp_path / f".abc.shard.safetensors.{os.getpid()}.tmp"
    torn.write_bytes(b"half")
    mine.write_bytes(b"being written")
    cache = ShardCache(tmp_path)
    assert len(cache.keys()) == 10
    open_for_filling(cache)
    assert not torn.exists()
    assert mine.exists()


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_byte_anywhere_is_found_and_made_again(tmp_path: Path, compress: bool) -> None:
    rng = random.Random(1)
    for attempt in range(8):
        folder, told = tmp_path / str(attempt), []
        filled(folder, 4, compress=compress)
        shard = next(folder.glob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        shard.write_bytes(data)
        cache = ShardCache(folder, write_batch=4, on_warn=told.append)
        open_for_filling(cache)
        lost = cache.missing([key(n) for n in range(4)])
        fill(
            cache,
            group_items(((key(n), n) for n in range(4) if key(n) in lost), 2),
            lambda numbers: [entry(n) for n in numbers],
        )
        assert all(same(ShardCache(folder).get(key(n)), entry(n)) for n in range(4))
        assert not lost or told


def test_damage_found_while_reading_is_an_error_that_heals_at_the_next_start(tmp_path: Path) -> None:
    cache = filled(tmp_path, 4)
    shard = next(tmp_path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-8] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedEntry, match="made anew"):
        [cache.get(key(n)) for n in range(4)]
    assert ShardCache(tmp_path).keys() == []
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_a_full_disk_keeps_what_was_there_and_says_so(tmp_path: Path, monkeypatch) -> None:
    cache = filled(tmp_path, 4)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        fill(cache, group_items(((key(n), n) for n in range(4, 12)), 2), lambda numbers: [entry(n) for n in numbers])
    monkeypatch.undo()
    assert ShardCache(tmp_path).keys() == sorted(key(n) for n in range(4))
    assert list(tmp_path.glob(".*.tmp")) == []


LIMITED = """
import resource, signal, sys
import torch
from pathlib import Path
from darkroom.data.cache.shards import ShardCache, cache_key
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
cache = ShardCache(Path(sys.argv[1]), write_batch=100)
cache.put(cache_key(n=1), {"x": torch.zeros(100000)})
try:
    cache.flush()
except Exception as cause:
    print(type(cause).__name__)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file size limits")
def test_a_write_that_is_cut_off_leaves_no_shard(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    told = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.strip()
    assert len(ShardCache(tmp_path).keys()) == 4
    assert list(tmp_path.glob(".*.tmp")) == []


def test_an_encoder_that_fails_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, write_batch=100)

    def encode(numbers):
        if 4 in numbers:
            raise RuntimeError("out of memory")
        return [entry(n) for n in numbers]

    with pytest.raises(RuntimeError):
        fill(cache, group_items(((key(n), n) for n in range(8)), 2), encode)
    assert len(ShardCache(tmp_path).keys()) == 4


def test_more_shards_than_handles_can_be_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(caches, "HANDLES", 2)
    filled(tmp_path, 12, write_batch=1)
    cache = ShardCache(tmp_path)
    assert all(same(cache.get(key(n)), entry(n)) for n in (0, 5, 11, 0, 7))
    assert len(cache._handles) == 2


def test_a_writer_with_many_entries_still_finds_them_all(tmp_path: Path) -> None:
    cache = filled(tmp_path, 60, write_batch=2)
    assert all(cache.has(key(n)) for n in range(60))
    assert same(cache.get(key(41)), entry(41))
