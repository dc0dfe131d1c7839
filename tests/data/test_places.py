"""Where samples and caches live: each kind of place, from its entry in the file to batches."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from darkroom.core.errors import MissingPackage
from darkroom.data.requirements import DataRequirements
from darkroom.media.frames import FrameRule
from darkroom.media.video import write_mp4
from darkroom.storage import hub, open_store
from tests.data.test_clips import encode as encode_clips
from tests.storage.conftest import KEY, SECRET, TOKEN, Bucket, body, png
from tests.storage.conftest import web as web


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket("darkroom")
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def entry(kind: str, **keys: Any) -> dict[str, Any]:
    return {"id": "far", "type": kind, "resolution": 64, "train_batch_size": 1, **keys}


def in_bucket(bucket: Bucket, **keys: Any) -> dict[str, Any]:
    return {"aws_bucket_name": bucket.name, "aws_endpoint_url": bucket.url, "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET, **keys}  # fmt: skip


def captions(plan) -> list[str]:
    return sorted(batch.captions[0] for batch in plan.loader().epoch(1))


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_folder_may_be_a_url(shop, kind) -> None:
    import fsspec

    url = f"memory://{shop.folder.name}" if kind == "memory" else f"file://{shop.pictures}"
    fs, root = fsspec.core.url_to_fs(url)
    for i in range(2):
        fs.pipe_file(f"{root}/{i}.png", png((i, 0, 0), (64, 64)))
        fs.pipe_file(f"{root}/{i}.txt", f"picture {i}".encode())
    plan = shop.filled(entry("local", instance_data_dir=url, caption_strategy="textfile"))
    assert captions(plan) == ["picture 0", "picture 1"]


# -- object stores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["flat", "block", "block without prefixes", "instance_data_dir"])
def test_a_bucket_may_be_named_in_several_ways(shop, bucket, form) -> None:
    bucket.put("some/where/a.png", png((1, 2, 3), (64, 64)))
    bucket.put("else/b.png", png((1, 2, 3), (64, 64)))
    keys = in_bucket(bucket, aws_data_prefix="some/where")
    if form == "instance_data_dir":
        keys["instance_data_dir"] = keys.pop("aws_data_prefix")
    if form.startswith("block"):
        keys = {"aws": {key.removeprefix("aws_") if "without" in form else key: v for key, v in keys.items()}}
    plan = shop.plan(entry("aws", caption_strategy="filename", **keys))
    assert plan.datasets[0].index.paths.to_pylist() == ["a.png"]


def test_keys_of_a_bucket_reach_the_client(shop, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pyarrow.fs.S3FileSystem", lambda **keys: asked.update(keys))
    shop.options["aws_max_pool_connections"] = 9
    keys = {"aws_bucket_name": "b", "aws_endpoint_url": "https://objects.example.net", "aws_region_name": "eu-west-2",
            "aws_access_key_id": "{env:K}", "aws_secret_access_key": SECRET, "aws_session_token": TOKEN}  # fmt: skip
    made = shop.read(entry("aws", caption_strategy="filename", **keys), environ={"K": KEY}).samples[0]
    assert open_store(made.location).connections == 9
    assert (asked["access_key"], asked["secret_key"], asked["session_token"]) == (KEY, SECRET, TOKEN)
    assert (asked["endpoint_override"], asked["scheme"], asked["region"]) == (
        "objects.example.net",
        "https",
        "eu-west-2",
    )
    assert SECRET not in repr(made)
    few = entry("aws", caption_strategy="filename", aws_max_pool_connections=5, **keys)
    own = shop.read(few, environ={"K": KEY}).samples[0]
    assert open_store(own.location).connections == 5


def test_caches_in_a_bucket_are_found_by_another_machine(shop, bucket) -> None:
    shop.add(3)
    texts = {"id": "words", "dataset_type": "text_embeds", "type": "aws", "default": True, "cache_dir": "texts",
             "aws": in_bucket(bucket, aws_data_prefix="run")}  # fmt: skip
    latents = {
        "id": "latents",
        "dataset_type": "image_embeds",
        "type": "aws",
        **in_bucket(bucket, aws_data_prefix="vae"),
    }
    shop.options["output_dir"] = str(shop.folder / "first")
    shop.filled(shop.entry(image_embeds="latents"), texts, latents)
    names = [row["Key"] for row in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert any(name.startswith("run/texts/") for name in names)
    assert any(name.startswith("vae/") for name in names)
    shop.options["output_dir"] = str(shop.folder / "second")
    plan = shop.plan(shop.entry(image_embeds="latents"), texts, latents)
    assert plan.fill_text(shop.encode_text, "text-1").encoded == 0
    report = plan.fill_latents(shop.encode_pixels, "vae-1")
    assert (report.encoded, report.reused) == (0, 3)
    assert len(list(plan.loader().epoch(1))) == 2


def test_datasets_that_share_a_bucket_for_latents_fetch_only_their_own(shop, bucket) -> None:
    shop.add(2)
    for i in range(2):
        shop.picture(shop.folder / "more" / f"m{i}.png", (64, 64), 50 + i)
    latents = {"id": "latents", "dataset_type": "image_embeds", "type": "aws", **in_bucket(bucket)}
    both = (
        shop.entry(image_embeds="latents"),
        shop.entry(id="more", instance_data_dir=str(shop.folder / "more"), image_embeds="latents"),
    )
    shop.options["output_dir"] = str(shop.folder / "first")
    shop.filled(*both, latents)
    shop.options["output_dir"] = str(shop.folder / "second")
    shop.filled(*both, latents)
    assert len(list((shop.folder / "second/cache/vae/toy/pics").glob("*.safetensors"))) == 1


# -- lists of links ---------------------------------------------------------------------------------------------------


def links(shop, *lines: tuple[str, str]) -> dict[str, Any]:
    """The keys of a list of links and captions."""
    with (shop.folder / "list.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["link", "words"], *lines])
    return {"csv_file": str(shop.folder / "list.csv"), "csv_cache_dir": str(shop.folder / "kept"),
            "csv_url_column": "link", "csv_caption_column": "words"}  # fmt: skip


def test_a_list_of_files_brings_captions(shop) -> None:
    shop.picture(shop.folder / "here.png", (64, 64), caption=None)
    plan = shop.filled(entry("csv", **links(shop, ("here.png", "from here")), max_workers=3))
    assert captions(plan) == ["from here"]
    assert plan.datasets[0].index.store.connections == 3


def test_a_list_of_links_brings_pictures_and_captions(shop, web) -> None:
    there = web.add("/there.png", body(png((9, 9, 9), (64, 64))))
    keys = links(shop, (there, "from there"))
    assert captions(shop.filled(entry("csv", **keys))) == ["from there"]
    assert [path.name[:6] for path in (shop.folder / "kept").iterdir()] == ["there-"]
    shop.filled(entry("csv", **keys, caption_strategy="csv"))
    assert web.asked == {"/there.png": 1}


def test_a_changed_list_is_read_again(shop) -> None:
    shop.picture(shop.folder / "here.png", (64, 64), caption=None)
    assert captions(shop.filled(entry("csv", **links(shop, ("here.png", "before"))))) == ["before"]
    assert captions(shop.filled(entry("csv", **links(shop, ("here.png", "afterwards"))))) == ["afterwards"]


# -- hub datasets -----------------------------------------------------------------------------------------------------


def rows(shop, name: str = "train", **columns: list[Any]) -> dict[str, Any]:
    """A folder laid out like a hub dataset with three pictures, and the keys of its entry."""
    folder = shop.folder / "rows"
    folder.mkdir(exist_ok=True)
    media = [{"bytes": png((60 * i, 0, 0), (64, 64)), "path": None} for i in range(3)]
    table = {"image": media, "caption": [f"row {i}" for i in range(3)], **columns}
    pq.write_table(pa.table(table), folder / f"{name}-00000-of-00001.parquet")
    return {"dataset_name": str(folder), "cache_dir": str(shop.folder / "library")}


def pictures(size: tuple[int, int] = (64, 64), count: int = 3) -> list[dict[str, Any]]:
    return [{"bytes": png((60 * i, 0, 0), size), "path": None} for i in range(count)]


@pytest.mark.parametrize("place", ["top", "block"])
@pytest.mark.parametrize(
    ("columns", "keys", "wanted"),
    [
        ({}, {}, ["row 0", "row 1", "row 2"]),
        ({"say": ["x", "y", "z"]}, {"caption_column": "say"}, ["x", "y", "z"]),
        ({"say": ["", "y", "z"]}, {"caption_column": "say", "fallback_caption_column": "caption"}, ["row 0", "y", "z"]),
        ({"photo": pictures()}, {"image_column": "photo"}, ["row 0", "row 1", "row 2"]),
        ({}, {"streaming": True}, ["row 0", "row 1", "row 2"]),
        ({}, {"file_extension": "png"}, ["row 0", "row 1", "row 2"]),
        ({"width": [9, 99, 99]}, {"filter_func": {"min_width": 50}}, ["row 1", "row 2"]),
        ({"height": [9, 99, 99]}, {"filter_func": {"min_height": 50}}, ["row 1", "row 2"]),
        ({"collection": ["a", "b", "a"]}, {"filter_func": {"collection": "a"}}, ["row 0", "row 2"]),
        ({"marks": [{"sharp": s} for s in (0.1, 0.9, 0.9)]},
         {"filter_func": {"quality_thresholds": {"sharp": 0.5}}, "quality_column": "marks"}, ["row 1", "row 2"]),
        ({"marks": [{"sharp": s} for s in (0.1, 0.9, 0.9)]},
         {"filter_func": {"quality_thresholds": {"sharp": 0.5}, "quality_column": "marks"}}, ["row 1", "row 2"]),
    ],
)  # fmt: skip
def test_rows_of_a_hub_dataset(shop, place, columns, keys, wanted) -> None:
    given = rows(shop, **columns)
    given |= {"huggingface": keys} if place == "block" else keys
    plan = shop.filled(entry("huggingface", **given))
    assert captions(plan) == wanted
    index = plan.datasets[0].index
    assert index.path(0).endswith(".png" if "file_extension" in keys else ".jpg")
    assert index.store.remote == bool(keys.get("streaming"))
    assert (shop.folder / "library").is_dir()


def test_sizes_of_a_hub_dataset_may_stand_in_columns(shop) -> None:
    given = rows(shop, w=[640, 320, 320], h=[320, 320, 320])
    plan = shop.plan(entry("huggingface", **given, huggingface={"width_column": "w", "height_column": "h"}))
    assert plan.datasets[0].index.opened == 0
    assert [b.target for b in plan.datasets[0].buckets.buckets] == [(64, 64), (88, 48)]


def test_changed_rows_are_read_again(shop) -> None:
    assert captions(shop.filled(entry("huggingface", **rows(shop)))) == ["row 0", "row 1", "row 2"]
    again = shop.filled(entry("huggingface", **rows(shop, caption=["x", "y", "z"])))
    assert captions(again) == ["x", "y", "z"]


@pytest.mark.parametrize(
    "keys",
    [
        {"huggingface": {"composite_image_config": {"enabled": True, "image_count": 2, "select_index": 0}}},
        {"split_composite_images": True, "composite_image_column": "image"},
    ],
)
def test_panels_of_strips_are_cut_out(shop, keys) -> None:
    plan = shop.filled(entry("huggingface", **rows(shop, image=pictures((128, 64))), **keys))
    assert plan.datasets[0].index.sizes(0).original == (64, 64)


def test_another_split_and_revision_are_asked_for(shop, monkeypatch) -> None:
    rows(shop, "test")
    given = rows(shop)
    assert shop.read(entry("huggingface", **given, split="test")).samples[0].location.split == "test"
    assert len(shop.plan(entry("huggingface", **given, split="test[:2]")).datasets[0].index) == 2
    asked: list[Any] = []

    class Library:
        @staticmethod
        def load_dataset(**keys):
            asked.append(keys)
            raise MissingPackage("stop", "datasets", "hub")

    monkeypatch.setattr(hub, "_library", Library)
    with pytest.raises(MissingPackage):
        shop.plan(entry("huggingface", **given, revision="v2"))
    assert (asked[0]["revision"], asked[0]["split"]) == ("v2", "train")


def test_clips_of_a_hub_dataset(shop) -> None:
    shop.requirements = DataRequirements(
        "toy", media=frozenset({"video"}), frames=FrameRule(step=4), fps=16.0, temporal=4
    )
    shop.encode_pixels = encode_clips
    film = shop.folder / "film.mp4"
    write_mp4(film, torch.zeros(9, 64, 96, 3, dtype=torch.uint8).numpy(), 24.0)
    folder = Path(rows(shop)["dataset_name"])
    clips = [{"bytes": film.read_bytes(), "path": None}] * 2
    table = {"film": clips, "caption": ["one", "two"], "w": [96] * 2, "h": [64] * 2, "n": [9, 5], "rate": [24.0] * 2}
    pq.write_table(pa.table(table), folder / "train-00000-of-00001.parquet")
    block = {"num_frames_column": "n", "fps_column": "rate", "width_column": "w", "height_column": "h"}
    keys = {"dataset_name": str(folder), "video_column": "film", "dataset_type": "video", "huggingface": block}
    plan = shop.filled(entry("huggingface", **keys, video={"num_frames": 9, "max_frames": 90}))
    assert captions(plan) == ["one"]
    assert plan.datasets[0].drop_counts == {"too_short": 1}
    assert plan.datasets[0].index.opened == 0
    assert plan.datasets[0].index.numbers["fps"].tolist() == [24.0, 24.0]
