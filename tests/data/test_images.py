"""Images of unusual shapes, colors and kinds in a dataset: what is used, what is left out, and what is said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom.core.errors import ConfigError
from darkroom.core.events import Warn
from darkroom.data.requirements import DataRequirements
from darkroom.media import quality
from tests.data.prepared import PreparedData
from tests.media.profiles import rgb_profile


def warnings(shop) -> str:
    return "\n".join(event.message for event in shop.events if isinstance(event, Warn))


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (64, 20000), (500, 1), (1, 1), (66, 2)])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"crop": True},
        {"crop": True, "crop_aspect": "preserve"},
        {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [0.5, 2.0]},
        {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 2.0], "max_upscale_threshold": 0.1},
        {"resolution_type": "pixel"},
        {"resolution_type": "area", "resolution": 0.5},
        {"minimum_aspect_ratio": 0.5, "maximum_aspect_ratio": 2.0},
        {"minimum_image_size": 32},
    ],
)
def test_an_image_too_thin_for_a_size_is_left_out_and_named_under_every_way_of_sizing(shop, keys, size) -> None:
    shop.add(2)
    shop.picture(shop.pictures / "strip.png", size)
    plan = shop.plan(shop.entry(train_batch_size=1, **keys))
    d = plan.datasets[0]
    if size != (1, 1):
        assert d.buckets.count == 2
        reason = {"minimum_aspect_ratio": "max_aspect_ratio" if size[0] > size[1] else "min_aspect_ratio",
                  "minimum_image_size": "resolution_filter"}.get(next(iter(keys), ""), "too thin")  # fmt: skip
        assert [(name, reason in why) for name, why in d.index.iterate_dropped()] == [("strip.png", True)] or (
            size == (64, 20000) and d.drop_counts == {"too thin": 1}
        )
        assert "strip.png (" in warnings(shop)
    assert all(max(b.target) <= 8 * 1024 for b in d.buckets.buckets)


@pytest.mark.parametrize("rounding", [1, 2, 4])
def test_every_aspect_within_the_limit_has_a_size(shop, rounding) -> None:
    shop.options["aspect_bucket_rounding"] = rounding
    for size in ((2, 64), (64, 2), (2, 41), (100, 5)):
        shop.picture(shop.pictures / f"{size[0]}x{size[1]}.png", size)
    plan = shop.plan(shop.entry(train_batch_size=1))
    assert plan.datasets[0].buckets.count == 4
    assert all(b.target[0] * b.target[1] <= 2 * 64 * 64 for b in plan.datasets[0].buckets.buckets)


@pytest.mark.parametrize("mode", ["enable_bucket = true", "enable_bucket = true\nbucket_no_upscale = true", ""])
def test_musubi_buckets_leave_out_what_is_too_thin(shop, mode) -> None:
    shop.add(2)
    shop.picture(shop.pictures / "strip.png", (3, 400))
    file = shop.folder / "m.toml"
    file.write_text(f"[[datasets]]\nimage_directory = '{shop.pictures}'\nresolution = [64, 64]\n{mode}\n")
    from darkroom.core.events import Bus
    from darkroom.data.plan import scan_datasets
    from darkroom.options.datasets import read_datasets

    plan = PreparedData(scan_datasets(shop.config, read_datasets(file, shop.config), Bus(), shop.requirements))
    assert plan.datasets[0].drop_counts == {"too thin": 1}


def test_a_thin_companion_takes_its_sample_out_or_is_stretched_with_it(shop) -> None:
    shop.add(3)
    shop.requirements = DataRequirements("toy", references=True)
    for name, folder in (("loose", "loose"), ("mask", "masks")):
        for i in range(3):
            shop.picture(shop.folder / folder / f"p{i:03d}.png", (1, 300) if i == 0 else (64, 64), i, None)
        kind = "reference_loose" if name == "loose" else "mask"
        beside = {"id": name, "conditioning_type": kind, "instance_data_dir": str(shop.folder / folder)}
        plan = shop.plan(shop.entry(conditioning_data=[name], train_batch_size=1), beside)
        assert plan.datasets[0].buckets.count == (2 if name == "loose" else 3)


def test_aspects_that_nothing_has_a_size_for_are_refused(shop) -> None:
    shop.add(1)
    with pytest.raises(ConfigError, match="1/32 to 32"):
        shop.read(shop.entry(crop=True, crop_aspect="closest", crop_aspect_buckets=[0.001]))


def profiled(path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path, icc_profile=rgb_profile())
    path.with_suffix(".txt").write_text("wide colors")


def test_color_profiles_are_converted_unless_the_entry_ignores_them(shop) -> None:
    shop.add(1)
    profiled(shop.pictures / "wide.png")
    made = {}
    for way in ("convert", "ignore"):
        plan = shop.filled(shop.entry(train_batch_size=1, color_profiles=way))
        cache = plan.latent_cache(plan.datasets[0])
        made[way] = {plan.datasets[0].index.path(row): cache.get(row)["latents"] for row in range(2)}
        what = "converted to sRGB" if way == "convert" else "taken as stored"
        assert f"color profiles: 1 {what}" in plan.report()
    assert (made["convert"]["p000.png"] == made["ignore"]["p000.png"]).all()
    assert (made["convert"]["wide.png"] - made["ignore"]["wide.png"]).abs().max() > 0.02


def test_the_option_is_taken_by_datasets_that_do_not_say(shop) -> None:
    shop.add(1)
    shop.options["color_profiles"] = "ignore"
    file = shop.read(
        shop.entry(),
        {"id": "m", "source_dataset_id": "pics", "conditioning_type": "mask", "instance_data_dir": str(shop.pictures)},
    )
    assert [d.converts_colors for d in file.samples] == [False, False]
    assert shop.read(shop.entry(color_profiles="convert")).samples[0].converts_colors


def test_an_entry_of_the_cache_is_named_by_how_its_bytes_become_pixels(shop, monkeypatch) -> None:
    shop.add(1)
    plan = shop.filled(shop.entry(train_batch_size=1))
    cache = plan.latent_cache(plan.datasets[0])
    before = cache.key(0)
    monkeypatch.setattr("darkroom.data.cache.latents.DECODING", 99)
    assert cache.key(0) != before
    assert plan.latent_cache(plan.datasets[0]).is_cached(np.arange(1)).tolist() == [False]


def test_only_the_first_frame_of_an_animation_is_used_and_a_warning_says_so(shop) -> None:
    shop.add(2)
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    for name in ("a.gif", "b.webp", "c.tiff", "d.png"):
        frames[0].save(shop.pictures / name, save_all=True, append_images=frames[1:])
        (shop.pictures / name).with_suffix(".txt").write_text("moving")
    plan = shop.plan(shop.entry(train_batch_size=1))
    assert "4 of its images are animated or have several pages; only the first frame" in warnings(shop)
    assert "animated: 4, of which only the first frame is used" in plan.report()
    assert plan.as_dict()["datasets"][0]["animated"] == 4


def test_files_of_other_kinds_are_counted_and_texts_beside_samples_are_not(shop) -> None:
    shop.add(2)
    for name in ("a.pcx", "b.ico", "c.mts", "d.ts", "e.y4m", "f.PCX", "g.json", "h.pdf", "i.mp4"):
        (shop.pictures / name).write_bytes(b"x")
    plan = shop.plan()
    assert plan.datasets[0].drop_counts == {
        "not an image or video ending (.pcx, .ico, .mts, .ts, .y4m)": 6,
        "video in a dataset of type image (.mp4)": 1,
    }
    assert "left out: 6 not an image or video ending" in plan.report()


def test_a_heic_file_without_its_reader_is_left_out_with_the_package_and_read_once_it_is_there(shop, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    shop.add(2)
    Image.init()  # the plug-ins that it knows must not be added to a list that is thrown away
    heif.from_pillow(Image.new("RGB", (64, 64), "teal")).save(shop.pictures / "phone.heic")
    (shop.pictures / "phone.txt").write_text("from a phone")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
        patch.setitem(__import__("sys").modules, "pillow_heif", None)
        plan = shop.plan(shop.entry(train_batch_size=1))
    assert plan.datasets[0].drop_counts == {"pillow-heif is not installed": 1}
    assert "pip install 'darkroom-trainer[images]'" in warnings(shop)
    assert shop.plan(shop.entry(train_batch_size=1)).datasets[0].buckets.count == 3
    with monkeypatch.context() as patch:  # a start whose scan opens no file has not asked for the reader yet
        patch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
        assert not quality.is_see_through((shop.pictures / "phone.heic").read_bytes())


def mask(kind: str) -> Image.Image:
    """A mask whose left half should count, saved in one of the ways that people save masks."""
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    gray = Image.fromarray(half)
    match kind:
        case "gray" | "empty" | "full":
            return gray.point({"gray": lambda v: v, "empty": lambda v: 0, "full": lambda v: 255}[kind])
        case "labels":
            return Image.fromarray(half // 255)
        case "labels of 16 bits":
            return Image.fromarray((half // 255).astype(np.uint16))
        case "one bit":
            return gray.convert("1")
        case "alpha":
            made = Image.new("RGBA", (64, 64), "white")
            made.putalpha(gray)
            return made
        case "gray and alpha":
            return Image.merge("LA", [Image.new("L", (64, 64)), gray])
        case "green":
            return Image.merge("RGB", [Image.new("L", (64, 64)), gray, Image.new("L", (64, 64))])
        case "palette":
            made = Image.fromarray(half // 255, "P")
            made.putpalette([0, 0, 0, 255, 255, 255])
            return made
        case _:
            made = Image.fromarray(half // 255, "P")
            made.putpalette([0, 0, 0, 1, 1, 1])
            return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gray", ""),
        ("one bit", ""),
        ("palette", ""),
        ("labels", "2 of 2 masks looked at hold no value above 1 of 255"),
        ("palette of labels", "hold no value above 1 of 255"),
        ("labels of 16 bits", "are empty"),
        ("alpha", "their red channel, and something in another channel"),
        ("gray and alpha", "their red channel, and something in another channel"),
        ("green", "their red channel, and something in another channel"),
        ("empty", "are empty"),
        ("full", "are full, so they change nothing"),
    ],
)
def test_masks_that_do_nothing_are_told_by_the_scan(shop, kind, words) -> None:
    shop.add(2)
    (shop.folder / "masks").mkdir()
    for i in range(2):
        mask(kind).save(shop.folder / "masks" / f"p{i:03d}.png")
    beside = {"id": "masks", "conditioning_type": "mask", "instance_data_dir": str(shop.folder / "masks")}
    shop.plan(shop.entry(conditioning_data=["masks"]), beside)
    assert words in warnings(shop)
    assert bool(words) == ("masks looked at" in warnings(shop))


def test_a_segmentation_of_labels_counts_and_one_in_alpha_does_not(shop) -> None:
    shop.add(2)
    (shop.folder / "masks").mkdir()
    beside = {"id": "masks", "conditioning_type": "segmentation", "instance_data_dir": str(shop.folder / "masks")}
    for kind in ("labels", "green", "alpha"):
        shop.events.clear()
        for i in range(2):
            mask(kind).save(shop.folder / "masks" / f"p{i:03d}.png")
        shop.plan(shop.entry(conditioning_data=["masks"]), beside)
        assert ("their colors, and something in another channel" in warnings(shop)) == (kind == "alpha")


def test_links_that_leave_the_folder_are_followed_and_reported(shop) -> None:
    shop.add(2)
    outside = shop.picture(shop.folder / "else" / "far.png")
    (shop.pictures / "far.png").symlink_to(outside)
    (shop.pictures / "far.txt").write_text("far")
    (shop.pictures / "near.png").symlink_to(shop.pictures / "p000.png")
    (shop.pictures / "linked").symlink_to(shop.folder / "else", target_is_directory=True)
    plan = shop.plan(shop.entry(train_batch_size=1))
    leaving = [f"far.png -> {outside}", f"linked -> {shop.folder / 'else'}"]
    assert plan.datasets[0].index.leaving == leaving
    assert "2 symbolic links lead out of its folder" in warnings(shop)
    assert f"links out of the folder: 2, for example {leaving[0]}" in plan.report()


def test_a_mask_keeps_its_values_whatever_profile_it_carries(shop) -> None:
    shop.add(1)
    gray = Image.fromarray(np.full((64, 64, 3), 100, np.uint8))
    buffer = io.BytesIO()
    gray.save(buffer, "png", icc_profile=rgb_profile(1.0))
    (shop.folder / "masks").mkdir()
    (shop.folder / "masks" / "p000.png").write_bytes(buffer.getvalue())
    beside = {"id": "masks", "conditioning_type": "mask", "instance_data_dir": str(shop.folder / "masks")}
    plan = shop.plan(shop.entry(conditioning_data=["masks"], train_batch_size=1), beside)
    index = plan.datasets[0].conditioning[0].index
    assert not index.convert
