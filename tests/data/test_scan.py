"""Scanning: every file is counted, nothing crashes, and a second start opens no picture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from darkroom.core.errors import DataError
from darkroom.core.events import Progress, Warn
from darkroom.data.index import probe
from darkroom.data.index.listing import Listing, choose_samples, endings_of, list_samples
from darkroom.data.threads import in_chunks
from darkroom.options.datasets.locations import LocalFiles
from darkroom.storage import open_store


def list_pictures(root: Path) -> Listing:
    """The pictures in a folder."""
    return list_samples(open_store(LocalFiles(root=root)), endings_of("image"))


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the pictures whose headers were read."""
    names: list[str] = []
    real = probe.read_header
    monkeypatch.setattr(probe, "read_header", lambda path: (names.append(Path(path).name), real(path))[1])
    return names


def test_bad_files_are_counted_and_named_and_the_rest_is_used(shop) -> None:
    shop.add(4)
    (shop.pictures / "zero.png").write_bytes(b"")
    (shop.pictures / "words.jpg").write_text("not a picture")
    shop.picture(shop.pictures / "bare.png", caption=None)
    shop.picture(shop.pictures / "blank.png", caption=" \n ")
    shop.picture(shop.pictures / "latin.png").with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))
    whole = shop.picture(shop.pictures / "torn.png").read_bytes()
    (shop.pictures / "torn.png").write_bytes(whole[: len(whole) // 2])
    (shop.pictures / "notes.pdf").write_text("ignored")
    (shop.pictures / "dangling.png").symlink_to("nowhere.png")
    plan = shop.filled()
    assert plan.datasets[0].buckets.count == 4
    assert plan.datasets[0].drop_counts == {
        "empty file": 1, "not a picture": 1, "missing caption": 1, "empty caption": 1, "caption is not UTF-8": 1,
        "truncated": 1, "broken link": 1}  # fmt: skip
    told = " ".join(e.message for e in shop.events if isinstance(e, Warn))
    assert "torn.png (truncated)" in told
    assert any(isinstance(e, Progress) and e.phase == "scan pics" for e in shop.events)
    again = shop.plan()
    assert again.datasets[0].drop_counts == plan.datasets[0].drop_counts


def test_links_in_circles_end_and_are_counted(shop) -> None:
    shop.add(2, folder="a/b")
    (shop.pictures / "a/b/up").symlink_to(shop.pictures / "a", target_is_directory=True)
    (shop.pictures / "self").symlink_to("self")
    (shop.folder / "else").mkdir()
    shop.picture(shop.folder / "else/far.png")
    (shop.pictures / "far").symlink_to(shop.folder / "else", target_is_directory=True)
    listing = list_pictures(shop.pictures)
    assert listing.paths.to_pylist() == ["a/b/p000.png", "a/b/p001.png", "far/far.png"]
    assert sum(listing.problems.values()) == 2


def test_unreadable_folders_and_files_are_reported(shop, monkeypatch) -> None:
    shop.add(2)
    shop.add(1, folder="locked")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    plan = shop.plan()
    assert plan.datasets[0].drop_counts == {"unreadable folder": 1}
    assert plan.datasets[0].buckets.count == 2


def test_names_that_are_not_utf8_and_hidden_ones_are_left_out(shop) -> None:
    shop.add(2)
    (shop.pictures / ".thumbs").mkdir()
    shop.picture(shop.pictures / ".thumbs/x.png")
    try:
        (Path(os.fsdecode(os.fsencode(shop.pictures) + b"/\xff.png"))).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    listing = list_pictures(shop.pictures)
    assert len(listing) == 2
    assert listing.problems == {"file name is not UTF-8": 1}


def test_equal_names_in_other_folders_or_with_other_endings_stay_apart(shop) -> None:
    for name in ("a/x.png", "b/x.png", "a/x.jpg"):
        shop.picture(shop.pictures / name, seed=len(name) + ord(name[0]))
    plan = shop.filled()
    cache = plan.latent_cache(plan.datasets[0])
    assert len({cache.key(row) for row in range(3)}) == 3


def test_a_second_start_opens_no_picture_and_one_edit_opens_one(shop, opened) -> None:
    shop.add(6)
    assert shop.filled().datasets[0].index.opened == 6
    opened.clear()
    plan = shop.plan()
    assert plan.fill_latents(shop.encode_pixels, "vae-1").encoded == 0
    assert opened == []
    shop.picture(shop.pictures / "p002.png", seed=99, caption=None)
    os.utime(shop.pictures / "p002.png", ns=(1, 10**18))
    plan = shop.plan()
    report = plan.fill_latents(shop.encode_pixels, "vae-1")
    assert (opened, report.encoded, report.reused) == (["p002.png"], 1, 5)


def test_a_touched_or_moved_file_is_read_but_not_encoded_again(shop, opened) -> None:
    shop.add(3)
    shop.filled()
    os.utime(shop.pictures / "p000.png", ns=(5, 5))
    for ending in (".png", ".txt"):
        (shop.pictures / f"p001{ending}").rename(shop.pictures / f"new{ending}")
    opened.clear()
    report = shop.plan().fill_latents(shop.encode_pixels, "vae-1")
    assert sorted(opened) == ["new.png", "p000.png"]
    assert (report.encoded, report.reused) == (0, 3)


def test_another_resolution_opens_no_picture_but_sizes_change(shop, opened) -> None:
    shop.add(4, (96, 64))
    shop.plan()
    opened.clear()
    plan = shop.plan(shop.entry(resolution=32))
    assert opened == []
    assert plan.datasets[0].buckets.buckets[0].target == (40, 24)


def test_captions_are_read_again_only_where_they_changed(shop, monkeypatch) -> None:
    shop.add(4)
    shop.plan()
    (shop.pictures / "p001.txt").write_text("a new and longer caption")
    (shop.pictures / "p002.txt").unlink()
    plan = shop.plan()
    assert plan.captions() == ["a new and longer caption", "caption p 0", "caption p 3"]
    assert plan.datasets[0].drop_counts == {"missing caption": 1}
    (shop.pictures / "p002.txt").write_text("back")
    assert "back" in shop.plan().captions()


def test_new_and_removed_pictures_are_noticed(shop) -> None:
    shop.add(4)
    shop.plan()
    (shop.pictures / "p000.png").unlink()
    shop.picture(shop.pictures / "z.png", caption="last")
    plan = shop.plan()
    assert plan.captions() == ["caption p 1", "caption p 2", "caption p 3", "last"]
    assert plan.datasets[0].index.opened == 1


def test_a_damaged_index_is_only_a_lost_shortcut(shop) -> None:
    shop.add(3)
    file = shop.plan().datasets[0].index.file
    file.write_bytes(file.read_bytes()[:100])
    assert shop.plan().datasets[0].index.opened == 3


def test_listing_can_be_skipped(shop) -> None:
    shop.add(3)
    shop.plan()
    (shop.pictures / "p000.png").unlink()
    assert len(shop.plan(shop.entry(preserve_data_backend_cache=True)).datasets[0].index) == 3
    assert len(shop.plan(shop.entry(skip_file_discovery="aspect,vae")).datasets[0].index) == 3


def test_a_limited_number_of_samples_is_always_the_same(shop) -> None:
    shop.add(20)
    first, second = list_pictures(shop.pictures), list_pictures(shop.pictures)
    assert choose_samples(first, "pics", 5) == choose_samples(second, "pics", 5) == 15
    assert first.paths.equals(second.paths)
    plan = shop.plan(shop.entry(max_num_samples=5))
    assert plan.datasets[0].drop_counts == {"max_num_samples": 15}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"minimum_image_size": 80}, "resolution_filter"),
        ({"minimum_aspect_ratio": 1.1}, "below_min_aspect_ratio"),
        ({"maximum_aspect_ratio": 0.9}, "above_max_aspect_ratio"),
    ],
)
def test_limits_leave_pictures_out_with_their_reason(shop, keys, reason) -> None:
    shop.add(2, (128, 96) if "max" not in next(iter(keys)) else (60, 96), prefix="good")
    shop.add(2, (64, 64), prefix="bad")
    assert shop.plan(shop.entry(**keys)).datasets[0].drop_counts == {reason: 2}


def test_small_buckets_are_pruned_unless_told_otherwise(shop) -> None:
    shop.add(4)
    shop.add(1, (128, 64), prefix="wide")
    assert shop.plan().datasets[0].drop_counts == {"insufficient_for_batch": 1}
    assert shop.plan(shop.entry(repeats=1)).datasets[0].drop_counts == {}
    shop.options["disable_bucket_pruning"] = True
    assert len(shop.plan().datasets[0].buckets.buckets) == 2


def test_unwanted_and_problematic_pictures_are_deleted_only_on_request(shop) -> None:
    shop.add(2, (128, 128), prefix="good")
    shop.add(1, (64, 64), prefix="small")
    data = (shop.pictures / "good000.png").read_bytes()
    (shop.pictures / "good002.png").write_bytes(data[:-3000])
    (shop.pictures / "good002.txt").write_text("torn")
    shop.filled(shop.entry(minimum_image_size=100))
    assert (shop.pictures / "small000.png").exists()
    shop.picture(shop.pictures / "good003.png", (128, 128)).write_bytes(data[:-3000])
    wanted = shop.entry(minimum_image_size=100, delete_unwanted_images=True, delete_problematic_images=True)
    shop.plan(wanted)
    assert (shop.pictures / "small000.png").exists()
    shop.filled(wanted)
    assert not (shop.pictures / "small000.png").exists()
    assert not (shop.pictures / "good003.png").exists()


def test_an_empty_folder_is_an_error_with_the_report(shop) -> None:
    with pytest.raises(DataError) as caught:
        shop.plan()
    assert "'pics' (image) has no usable picture" in str(caught.value)
    assert "Pictures found: 0" in str(caught.value)
    shop.picture(shop.pictures / "a.png", caption=None)
    with pytest.raises(DataError, match="1 missing caption") as caught:
        shop.plan()
    assert "Write a .txt file" in str(caught.value)


def test_slow_storage_is_read_by_several_threads(monkeypatch) -> None:
    import threading
    import time

    seen = set()

    def work(item: int) -> int:
        time.sleep(0.001)
        seen.add(threading.get_ident())
        return item

    found = [x for chunk in in_chunks(work, range(400), 4) for x in chunk]
    assert found == list(range(400))
    assert len(seen) > 2


def test_crops_of_an_index_equal_the_single_rule(shop) -> None:
    from darkroom.media.resize import crop_offset, draw_stable_values

    shop.add(5, (150, 100))
    for style in ("random", "center", "corner"):
        index = shop.plan(shop.entry(crop=True, crop_style=style)).datasets[0].index
        for row in range(5):
            sizes, draws = index.sizes(row), draw_stable_values(7, "pics", index.path(row))
            assert index.crop(row) == crop_offset(style, sizes.intermediary, sizes.target, draws[:2])
