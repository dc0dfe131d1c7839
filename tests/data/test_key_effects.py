"""Keys of a dataset entry do something: each test would fail if its key were read and forgotten."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from darkroom.core.errors import DataError
from darkroom.data.cache import latents
from darkroom.data.cache import shards as caches
from darkroom.data.index import probe
from tests.data.test_clips import NEEDS, encode, write_clip

TEXT = {"id": "words", "dataset_type": "text_embeds", "default": True}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def drawn(shop, epoch: int, *entries) -> list[str]:
    """The dataset of every batch of an epoch."""
    order = shop.plan(*entries).order()
    return [order.datasets[i].id for i in order.epoch(epoch).datasets]


# -- names ------------------------------------------------------------------------------------------------------------


def test_other_names_of_keys_mean_the_same(shop) -> None:
    entry = shop.entry(instance_data_root=str(shop.pictures), text_embed_cache="words", disable_vae_cache=True)
    del entry["instance_data_dir"]
    made = shop.read(entry, TEXT, shop.entry(id="off", disable=True))
    assert (made.samples[0].location.root, made.samples[0].text_embeds) == (shop.pictures, "words")
    assert made.samples[0].vae_cache_disable
    assert made.disabled == ("off",)


def test_a_suffix_gives_a_folder_a_second_index(shop) -> None:
    shop.add(3)
    first = shop.plan().datasets[0].index
    second = shop.plan(shop.entry(cache_file_suffix="other")).datasets[0].index
    assert first.file != second.file
    assert second.opened == 3


def test_a_companion_may_name_its_source_instead(shop) -> None:
    shop.requirements = replace(shop.requirements, references=True)
    shop.add(2)
    before = {"id": "before", "conditioning_type": "reference_strict", "instance_data_dir": str(shop.pictures)}
    assert shop.read(shop.entry(), {**before, "source_dataset_id": "pics"}).samples[0].conditioning_data == ("before",)
    plan = shop.filled(shop.entry(), {**before, "source_dataset_id": "pics"})
    assert len(next(iter(plan.loader().epoch(1))).references) == 1


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "target", "intermediary"),
    [
        ({}, (80, 56), (84, 56)),
        ({"resolution": 96}, (120, 80), (120, 80)),
        ({"resolution": 64, "resolution_type": "pixel"}, (96, 64), (96, 64)),
        ({"resolution": 0.01, "resolution_type": "area"}, (120, 80), (120, 80)),
        ({"crop": True}, (64, 64), (96, 64)),
        ({"crop": True, "crop_aspect": "preserve"}, (80, 56), (84, 56)),
        ({"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [0.5, 2.0]}, (88, 48), (88, 58)),
        ({"crop": True, "maximum_image_size": 200, "target_downsample_size": 100}, (64, 64), (122, 81)),
        ({"crop": True, "maximum_image_size": 300, "target_downsample_size": 100}, (64, 64), (96, 64)),
    ],
)  # fmt: skip
def test_sizes_follow_the_entry(shop, keys, target, intermediary) -> None:
    shop.add(2, (300, 200))
    shop.options["train_batch_size"] = 1
    sizes = shop.plan(shop.entry(**keys)).datasets[0].index.sizes(0)
    assert (sizes.target, sizes.intermediary) == (target, intermediary)


@pytest.mark.parametrize(
    ("option", "target"), [("aspect_bucket_alignment", (80, 48)), ("aspect_bucket_rounding", (80, 56))]
)
def test_global_options_shape_buckets(shop, option, target) -> None:
    shop.add(2, (300, 200))
    shop.options |= {"aspect_bucket_alignment": 16} if "alignment" in option else {"aspect_bucket_rounding": 4}
    bucket = shop.plan().datasets[0].buckets.buckets[0]
    assert bucket.target == target
    assert bucket.key == ("1.67" if "alignment" in option else "1.4286")


@pytest.mark.parametrize("where", ["entry", "option"])
def test_aspects_that_would_enlarge_too_much_are_not_chosen(shop, where) -> None:
    shop.add(2, (64, 64))
    keys = {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [1.3, 3.0], "train_batch_size": 1}
    assert shop.plan(shop.entry(**keys)).datasets[0].buckets.buckets[0].target == (72, 56)
    if where == "option":
        shop.options["max_upscale_threshold"] = 0.05
    plan = shop.plan(shop.entry(**keys, **({"max_upscale_threshold": 0.05} if where == "entry" else {})))
    assert plan.datasets[0].buckets.buckets[0].target == (64, 64)


@pytest.mark.parametrize("medium", ["picture", "clip"])
def test_a_face_is_put_into_the_middle_of_the_crop(shop, medium, monkeypatch) -> None:
    monkeypatch.setattr("darkroom.media.faces.locate_face", lambda picture: (0.75, 0.5))
    keys = {"crop": True, "crop_style": "face", "train_batch_size": 1}
    if medium == "picture":
        shop.add(1, (192, 64))
    else:
        shop.requirements = NEEDS
        write_clip(shop.pictures / "c.mp4", 9, (192, 64))
        keys |= {"dataset_type": "video", "video": {"num_frames": 9}}
    assert shop.plan(shop.entry(**keys)).datasets[0].index.crop(0) == (0, 112)


# -- captions ---------------------------------------------------------------------------------------------------------


def test_shuffled_tags_become_captions(shop) -> None:
    shop.picture(shop.pictures / "a.png", caption="a, b, c, d")
    shop.options["train_batch_size"] = 1
    plan = shop.plan(shop.entry(caption_shuffle={"enable": True, "count": 3, "position_start": 1}))
    assert len(plan.captions()) > 1
    assert all(sorted(text.split(", ")) == ["a", "b", "c", "d"] and text[0] == "a" for text in plan.captions())
    other = {"enable": True, "count": 1, "split_on": "space", "include_original": False, "seed": 3}
    made = shop.plan(shop.entry(caption_shuffle=other)).captions()
    assert len(made) == 1
    assert made[0] != "a, b, c, d"
    assert made[0].split().sort() == ["a,", "b,", "c,", "d"].sort()
    assert made != shop.plan(shop.entry(caption_shuffle={**other, "seed": 4})).captions()


def test_captions_may_have_another_ending(shop) -> None:
    shop.picture(shop.pictures / "a.png", caption="ignored")
    (shop.pictures / "a.caption").write_text("read")
    plan = shop.plan(shop.entry(caption_extension=".caption", train_batch_size=1))
    assert plan.captions() == ["read"]


def test_a_dataset_chooses_its_text_cache_and_the_default_one_holds_the_empty_caption(shop) -> None:
    shop.add(2)
    shop.options["caption_dropout_probability"] = 0.5
    second = {"id": "second", "dataset_type": "text_embeds", "cache_dir": str(shop.folder / "second")}
    first = {**TEXT, "cache_dir": str(shop.folder / "first")}
    plan = shop.plan(shop.entry(text_embeds="second"), second, first)
    assert plan.captions_by_cache() == {"second": ["caption p 0", "caption p 1"], "words": [""]}
    plan.fill_text(shop.encode_text, "text-1")
    assert shards(shop.folder / "second")
    assert shards(shop.folder / "first")


def test_the_first_text_cache_is_the_default_when_none_says_so(shop) -> None:
    made = shop.read(shop.entry(), {"id": "a", "dataset_type": "text_embeds"}, {**TEXT, "default": False})
    assert made.default_text.id == "a"


def test_captions_are_encoded_several_at_a_time(shop) -> None:
    shop.add(5)
    calls: list[int] = []
    plan = shop.plan(shop.entry(), {**TEXT, "text_encoder_batch_size": 2})
    plan.fill_text(lambda captions: (calls.append(len(captions)), shop.encode_text(captions))[1], "text-1")
    assert calls == [2, 2, 1]


def test_global_options_name_captions_and_columns(shop) -> None:
    shop.add(1)
    pq.write_table(pa.table({"name": ["p000"], "text": ["told"], "width": [64], "height": [64]}), shop.folder / "t.pq")
    shop.options |= {"parquet_filename_column": "name", "parquet_caption_column": "text", "train_batch_size": 1}
    table = {"metadata_backend": "parquet", "parquet": {"path": str(shop.folder / "t.pq")}}
    assert shop.plan(shop.entry(caption_strategy="parquet", **table)).captions() == ["told"]


def test_columns_of_a_table_are_chosen_by_name(shop) -> None:
    shop.add(2, (300, 200))
    shop.options["train_batch_size"] = 1
    rows = {"name": ["p000", "p001"], "text": ["told", ""], "else": ["x", "instead"], "w": [300, 300], "h": [200, 200],
            "aspect": [1.43, 7.0]}  # fmt: skip
    pq.write_table(pa.table(rows), shop.folder / "t.parquet")
    block = {"path": str(shop.folder / "t.parquet"), "filename_column": "name", "caption_column": "text",
             "fallback_caption_column": "else", "width_column": "w", "height_column": "h",
             "aspect_ratio_column": "aspect"}  # fmt: skip
    keys = {"metadata_backend": "parquet", "caption_strategy": "parquet", "parquet": block}
    plan = shop.plan(shop.entry(**keys))
    assert plan.captions() == ["instead", "told"]
    assert plan.datasets[0].index.opened == 0
    assert plan.datasets[0].index.numbers["aspect"].tolist() == [1.43, 7.0]


def test_a_table_knows_the_lengths_of_clips(shop) -> None:
    shop.requirements = NEEDS
    for i in range(2):
        write_clip(shop.pictures / f"c{i}.mp4", 9)
    rows = {"id": ["c0", "c1"], "width": [96] * 2, "height": [64] * 2, "frames": [9, 5], "rate": [24.0, 24.0]}
    pq.write_table(pa.table(rows), shop.folder / "t.parquet")
    block = {"path": str(shop.folder / "t.parquet"), "num_frames_column": "frames", "fps_column": "rate"}
    keys = {"metadata_backend": "parquet", "parquet": block, "dataset_type": "video", "train_batch_size": 1}
    plan = shop.plan(shop.entry(**keys, video={"num_frames": 9, "max_frames": 90}))
    index = plan.datasets[0].index
    assert (index.opened, plan.datasets[0].drop_counts) == (0, {"too_short": 1})
    assert index.numbers["fps"].tolist() == [24.0, 24.0]
    assert index.numbers["duration"].tolist() == [9 / 24, 5 / 24]


# -- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "epoch", "count"),
    [
        ({}, 1, 4),
        ({"repeats": 2}, 1, 12),
        ({"train_batch_size": 2}, 1, 2),
        ({"probability": 0}, 1, 0),
        ({"start_epoch": 2}, 1, 0),
        ({"start_epoch": 2}, 2, 4),
        ({"end_epoch": 1}, 1, 4),
        ({"end_epoch": 1}, 2, 0),
        ({"start_step": 9}, 1, 0),
        ({"end_step": 1}, 2, 0),
        ({"disable_after_epoch_step": 1}, 1, 0),
    ],
)  # fmt: skip
def test_the_schedule_of_an_entry_decides_what_is_drawn(shop, keys, epoch, count) -> None:
    shop.add(4)
    shop.options["train_batch_size"] = 1
    other = shop.entry(id="other", cache_dir_vae=str(shop.folder / "o"))
    assert drawn(shop, epoch, shop.entry(**keys), other).count("pics") == count


def test_the_share_of_a_dataset_follows_its_probability_and_the_way_of_sampling(shop) -> None:
    shop.add(40)
    shop.options |= {"train_batch_size": 1, "data_backend_sampling": "uniform"}
    few = shop.entry(id="few", max_num_samples=10, cache_dir_vae=str(shop.folder / "o"))

    def share(probability: float) -> float:
        first = drawn(shop, 1, shop.entry(probability=probability), few)[:12]
        return first.count("pics") / 12

    assert share(20.0) > 0.7 > 0.6 > share(1.0)
    shop.options["data_backend_sampling"] = "auto-weighting"
    assert share(1.0) > 0.6


# -- caches -----------------------------------------------------------------------------------------------------------


def test_caches_lie_where_the_entries_say(shop) -> None:
    shop.add(2)
    shop.filled(
        shop.entry(cache_dir_vae=str(shop.folder / "latents")), {**TEXT, "cache_dir": str(shop.folder / "texts")}
    )
    assert shards(shop.folder / "latents")
    assert shards(shop.folder / "texts")
    assert not shards(shop.folder / "out")


@pytest.mark.parametrize("by", ["entry", "option"])
def test_a_compressed_cache_is_smaller(shop, by) -> None:
    for i in range(2):
        Image.new("RGB", (256, 256), (i, 0, 0)).save(shop.pictures / f"{i}.png")

    def size(folder: str, wanted: bool) -> int:
        shop.options["compress_disk_cache"] = wanted and by == "option"
        keys = {"compress_cache": wanted} if by == "entry" else {}
        where = {"cache_dir_vae": str(shop.folder / folder), "caption_strategy": "filename", "resolution": 256}
        shop.filled(shop.entry(**where, **keys))
        return sum(path.stat().st_size for path in shards(shop.folder / folder))

    assert size("plain", False) > 4 * size("packed", True)


def test_entries_are_written_together(shop) -> None:
    shop.add(6)
    shop.filled(shop.entry(write_batch_size=2), {**TEXT, "write_batch_size": 3})
    assert len(shards(shop.folder / "out/cache/vae")) == 3
    assert len(shards(shop.folder / "out/cache/text")) == 2


def test_latents_of_a_skipped_stage_are_not_made(shop) -> None:
    shop.add(2)
    plan = shop.plan(shop.entry(skip_file_discovery="vae"))
    plan.fill_text(shop.encode_text, "text-1")
    assert plan.fill_latents(shop.encode_pixels, "vae-1").encoded == 0
    shop.filled()
    plan = shop.plan(shop.entry(skip_file_discovery="vae"))
    plan.fill_text(shop.encode_text, "text-1")
    assert plan.fill_latents(shop.encode_pixels, "vae-1").encoded == 0
    assert len(list(plan.loader().epoch(1))) == 1


def test_texts_of_a_skipped_stage_are_not_made(shop) -> None:
    shop.add(2)
    plan = shop.plan(shop.entry(), {**TEXT, "skip_file_discovery": "text"})
    assert plan.fill_text(shop.encode_text, "text-1").encoded == 0
    assert shop.plan(shop.entry(), TEXT).fill_text(shop.encode_text, "text-1").encoded == 2


def test_texts_of_a_dataset_that_skips_them_are_not_made(shop) -> None:
    shop.add(2)
    plan = shop.plan(shop.entry(skip_file_discovery="text"))
    assert plan.fill_text(shop.encode_text, "text-1").encoded == 0


@pytest.mark.parametrize("kept", [True, "image,vae"])
def test_a_kept_listing_may_name_its_kinds(shop, kept) -> None:
    shop.add(3)
    shop.plan()
    (shop.pictures / "p000.png").unlink()
    assert len(shop.plan(shop.entry(preserve_data_backend_cache=kept)).datasets[0].index) == 3
    assert len(shop.plan(shop.entry(preserve_data_backend_cache="vae")).datasets[0].index) == 2


@pytest.mark.parametrize(("wanted", "made"), [(False, 0), (True, 4)])
def test_a_scan_for_errors_reads_caches_that_are_too_large_for_the_usual_check(shop, wanted, made, monkeypatch) -> None:
    monkeypatch.setattr(caches, "CHECKED_AT_START", 0)
    shop.add(4)
    shop.filled()
    shard = shards(shop.folder / "out/cache/vae")[0]
    data = bytearray(shard.read_bytes())
    data[-8] ^= 1
    shard.write_bytes(data)
    plan = shop.plan(shop.entry(scan_for_errors=wanted))
    assert plan.fill_latents(shop.encode_pixels, "vae-1").encoded == made


def test_only_so_many_pictures_are_prepared_ahead(shop, monkeypatch) -> None:
    shop.add(12)
    read: list[str] = []
    real = latents.SampleCache._prepare
    monkeypatch.setattr(
        latents.SampleCache, "_prepare", lambda self, row, path: (read.append(path), real(self, row, path))[1]
    )

    def ahead(folder: str, count: int) -> int:
        read.clear()
        seen: list[int] = []

        def slow(pixels):
            if not seen:
                until = time.monotonic() + 5
                while len(read) < count and time.monotonic() < until:
                    time.sleep(0.01)
                time.sleep(0.05)
                seen.append(len(read))
            return shop.encode_pixels(pixels)

        keys = {"vae_batch_size": 1, "image_processing_batch_size": count}
        shop.plan(shop.entry(**keys, cache_dir_vae=str(shop.folder / folder))).fill_latents(slow, "vae-1")
        return seen[0]

    assert ahead("few", 4) == 4
    assert ahead("many", 10) == 10


def test_threads_are_as_many_as_asked_for(shop, monkeypatch) -> None:
    shop.add(3)
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, **keys):
            asked.append(workers)
            super().__init__(workers, **keys)

    monkeypatch.setattr(latents, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for count in (1, 3):
        shop.filled(shop.entry(max_workers=count, cache_dir_vae=str(shop.folder / f"v{count}")))
    assert asked == [1, 3]


@pytest.mark.parametrize("by", ["entry", "option"])
def test_sizes_are_read_by_as_many_threads_as_asked_for(shop, by, monkeypatch) -> None:
    shop.add(2)
    asked: list[int] = []
    real = probe.in_chunks

    def in_chunks(work, items, workers, remote=False):
        asked.append(workers)
        return real(work, items, workers, remote)

    monkeypatch.setattr(probe, "in_chunks", in_chunks)
    shop.options |= {"aspect_bucket_worker_count": 3} if by == "option" else {}
    shop.plan(shop.entry(**({"aspect_bucket_worker_count": 3} if by == "entry" else {})))
    assert asked == [3]


def test_a_long_scan_is_saved_at_the_interval(shop, monkeypatch) -> None:
    shop.add(3)
    saved: list[int] = []
    real = probe.Saver.__call__

    def call(self):
        before = self.last
        real(self)
        saved.append(self.last != before)

    monkeypatch.setattr(probe.Saver, "__call__", call)
    shop.plan()
    assert saved == [False]
    shop.options["metadata_update_interval"] = 1e-9
    shop.plan(shop.entry(id="other"))
    assert saved[1:] == [True]


def test_what_is_asked_for_is_told_in_the_log(shop, caplog) -> None:
    shop.add(2)
    shop.options |= {"print_sampler_statistics": True, "debug_aspect_buckets": True}
    with caplog.at_level(logging.INFO, logger="darkroom"):
        list(shop.filled().loader().epoch(1))
    assert "drawn so far 2 of pics" in caplog.text
    assert "p000.png is 64x64, resized to 64x64" in caplog.text


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_last_five_seconds_at_the_frame_rate_when_nothing_is_said(shop) -> None:
    shop.options["framerate"] = 2
    made = shop.read(shop.entry(dataset_type="video", video={"max_frames": 100}))
    assert made.samples[0].video.num_frames == 10
    assert any("five seconds at 2 frames" in warning for warning in made.warnings)


def test_a_clip_is_one_mask_for_all_frames_and_motion_for_each(shop) -> None:
    shop.requirements = replace(NEEDS, references=True)
    shop.encode_pixels = encode
    write_clip(shop.pictures / "c.mp4", 9)
    video = {"num_frames": 9, "max_frames": 90}
    blocks = [{"type": "random_masks", "conditioning_type": "mask"}, {"type": "optical_flow"}]
    entry = shop.entry(dataset_type="video", video=video, conditioning=blocks, train_batch_size=1)
    batch = next(iter(shop.filled(entry).loader().epoch(1)))
    assert (batch.mask[:, :, 1:] - batch.mask[:, :, :1]).abs().max() < 0.1
    assert batch.references[0].shape == batch.latents.shape


def test_motion_of_pictures_is_refused(shop) -> None:
    shop.requirements = replace(shop.requirements, references=True)
    shop.add(2)
    plan = shop.plan(shop.entry(conditioning={"type": "optical_flow"}))
    with pytest.raises(DataError, match="made from clips"):
        plan.generate()


# -- generated companions ---------------------------------------------------------------------------------------------


def test_generated_pictures_lie_where_the_block_says_and_are_named_by_it(shop) -> None:
    shop.requirements = replace(shop.requirements, references=True)
    shop.add(2)
    folder = shop.folder / "edges"
    block = {"type": "canny", "instance_data_dir": str(folder), "params": {"low_threshold": 9}}
    plan = shop.filled(shop.entry(conditioning=[block]))
    assert len(list(folder.glob("*.png"))) == 2
    assert plan.file.samples[1].generator.params == {"low_threshold": 9}
    other = {"type": "canny", "instance_data_dir": str(folder), "low_threshold": 1}
    assert shop.plan(shop.entry(conditioning=other)).count_missing_generated() == {"pics_conditioning_canny": 2}


@pytest.mark.parametrize(("key", "value"), [("captions", ["an outline"]), ("caption_strategy", "filename")])
def test_generated_pictures_may_have_captions_of_their_own(shop, key, value) -> None:
    shop.requirements = replace(shop.requirements, references=True)
    shop.add(2)
    entry = shop.entry(conditioning=[{"type": "canny", key: value}])
    shop.filled(entry)
    batch = next(iter(shop.filled(entry).loader().epoch(1)))
    assert sorted(batch.captions) == (["an outline"] * 2 if key == "captions" else ["p000.png", "p001.png"])


def test_captions_of_generated_pictures_are_encoded_at_the_first_start(shop) -> None:
    shop.requirements = replace(shop.requirements, references=True)
    shop.add(2)
    plan = shop.filled(shop.entry(conditioning=[{"type": "canny", "captions": ["an outline"]}]))
    assert next(iter(plan.loader().epoch(1))).captions == ["an outline"] * 2


@pytest.mark.parametrize("wanted", [None, "controlnet"])
def test_generated_pictures_are_references_unless_said_otherwise(shop, wanted) -> None:
    shop.requirements = replace(shop.requirements, references=True, control="pixels")
    shop.add(2)
    block = {"type": "canny"} | ({"conditioning_type": wanted} if wanted else {})
    batch = next(iter(shop.filled(shop.entry(conditioning=block)).loader().epoch(1)))
    assert (len(batch.references), len(batch.controls)) == ((0, 1) if wanted else (1, 0))
