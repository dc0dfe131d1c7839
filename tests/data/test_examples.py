"""Whole dataset files, as people write them for SimpleTuner and musubi-tuner, run to batches."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from darkroom.core.events import Bus, Event
from darkroom.data.plan import scan_datasets
from darkroom.data.requirements import DataRequirements
from darkroom.media.area import resize_by_area
from darkroom.media.frames import FrameRule
from darkroom.options.datasets import read_datasets
from tests.data.conftest import write_picture
from tests.data.prepared import PreparedData
from tests.data.test_clips import encode as encode_clips
from tests.data.test_clips import write_clip
from tests.storage.conftest import KEY, SECRET, Bucket

EXAMPLES = Path(__file__).parent / "examples"
IMAGES = DataRequirements("toy", references=True)
CLIPS = DataRequirements(
    "toy", media=frozenset({"image", "video"}), frames=FrameRule(step=4), fps=16.0, temporal=4, references=True
)


@pytest.fixture
def project(shop, monkeypatch):
    """The project as the current folder, for files with relative paths."""
    monkeypatch.chdir(shop.folder)
    shop.options |= {"output_dir": "out", "train_batch_size": 1, "aspect_bucket_alignment": 8}
    return shop


def run(
    project, file: Path | str, needs: DataRequirements = IMAGES, environ: dict[str, str] | None = None
) -> PreparedData:
    """The plan of a dataset file with full caches."""
    bus = Bus()
    bus.on(Event, project.events.append)
    plan = PreparedData(scan_datasets(project.config, read_datasets(file, project.config, environ or {}), bus, needs))
    plan.fill_text(project.encode_text, "text-1")
    plan.fill_latents(encode_clips if needs.temporal else project.encode_pixels, "vae-1")
    return plan


def batches(plan: PreparedData) -> dict[str, list]:
    """Batches of the first epoch by dataset."""
    found: dict[str, list] = {}
    with plan.loader() as loader:
        for batch in loader.epoch(1):
            assert torch.isfinite(batch.latents).all()
            found.setdefault(batch.dataset, []).append(batch)
    return found


def smaller(name: str, **changes: dict[str, object]) -> str:
    """An example with values that a test can afford, changed by dataset id."""
    entries = json.loads((EXAMPLES / f"{name}.json").read_text())
    for entry in entries:
        entry.update(changes.get(entry["id"], {}))
        if entry.get("resolution", 0) > 64:
            entry["resolution"] = 64
    Path("datasets.json").write_text(json.dumps(entries))
    return "datasets.json"


def test_a_subject_with_regularisation_data(project) -> None:
    for i in range(3):
        write_picture(Path("datasets/teapot") / f"t{i}.png", (600, 560), i, f"a photo of a grey colour pot {i}")
        write_picture(Path("datasets/kitchenware") / f"blue_cup_{i}.png", (520, 640), i, None)
    found = batches(run(project, smaller("subject_with_regularisation", **{"teapot-subject": {"repeats": 2}})))
    assert len(found["teapot-subject"]) == 9
    assert {b.captions[0] for b in found["teapot-subject"]} == {f"tpt01 teapot a grey color pot {i}" for i in range(3)}
    assert found["teapot-subject"][0].latents.shape[-2:] == (8, 8)
    assert all(b.is_regularization for b in found["kitchenware-reg"])
    assert {b.captions[0] for b in found["kitchenware-reg"]} == {f"blue cup {i}" for i in range(3)}


def test_pictures_in_an_object_store_with_a_table(project) -> None:
    bucket = Bucket("darkroom-archive")
    try:
        rows = []
        for i, size in enumerate([(1400, 1000), (700, 1000), (1000, 1000), (200, 200), (2600, 1000)]):
            out = io.BytesIO()
            Image.new("RGB", size, (40 * i, 20, 90)).save(out, "jpeg")
            bucket.put(f"scans/v3/box {i}/scan{i}.jpg", out.getvalue())
            caption = None if i == 1 else f"scan {i}"
            name = f"box {i}/scan{i}.jpg"
            rows.append({"file": name, "long_caption": caption, "tags": f"tag {i}", "w": size[0], "h": size[1]})
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), table)
        bucket.put("scans/v3/index.parquet", table.getvalue())
        place = {"aws_endpoint_url": bucket.url, "minimum_image_size": 500, "maximum_image_size": 800,
                 "target_downsample_size": 96, "parquet": {**_parquet(), "path": "index.parquet"}}  # fmt: skip
        file = smaller("object_store_with_table", **{"archive-scans": place})
        plan = run(project, file, environ={"ARCHIVE_KEY": KEY, "ARCHIVE_SECRET": SECRET})
    finally:
        bucket.stop()
    found = batches(plan)["archive-scans"]
    assert {b.captions[0] for b in found} == {"scan 0", "tag 1", "scan 2", "scan 4"}
    assert plan.datasets[0].drop_counts == {"resolution_filter": 1}
    assert len(list(Path("cache/vae/archive-scans").glob("*.safetensors"))) == 1


def _parquet() -> dict[str, object]:
    entries = json.loads((EXAMPLES / "object_store_with_table.json").read_text())
    return entries[0]["parquet"]


def test_an_edit_model_with_references_and_masks(project) -> None:
    for i in range(3):
        write_picture(Path("datasets/retouch/after") / f"r{i}.png", (96, 64), i, f"first line\nsecond line {i}")
        write_picture(Path("datasets/retouch/before") / f"r{i}.png", (96, 64), 50 + i, None)
        write_picture(Path("datasets/retouch/masks") / f"r{i}.png", (96, 64), 90 + i, None)
        write_picture(Path("datasets/retouch/eval") / f"e{i}.png", (64, 64), 70 + i, "held out")
    plan = run(project, smaller("edit_with_references_and_mask"))
    for batch in batches(plan)["after"]:
        assert batch.references[0].shape == batch.latents.shape
        assert batch.mask.shape == (1, 1, *batch.latents.shape[-2:])
        assert "\n" in batch.captions[0]
    assert [b.captions for b in plan.eval_loader("held-out")] == [["held out"]] * 3


def test_video_with_generated_first_frames_and_stills(project) -> None:
    for i in range(2):
        write_clip(Path("datasets/harbour/clips") / f"c{i}.mp4", 12, caption=f"a harbour {i}")
        write_picture(Path("datasets/harbour/stills") / f"boat_{i}.png", (96, 64), i, None)
    video = {"num_frames": 9, "min_frames": 9, "max_frames": 300, "is_i2v": True, "bucket_strategy": "aspect_ratio"}
    plan = run(project, smaller("video_with_first_frames", **{"harbour-clips": {"video": video}}), CLIPS)
    found = batches(plan)
    assert len(found["harbour-clips"]) == 4
    for batch in found["harbour-clips"]:
        assert batch.latents.shape[2] == 3
        assert batch.references[0].shape[2] == 1
    assert {b.captions[0] for b in found["harbour-stills"]} == {"boat 0", "boat 1"}


def test_a_slider_with_rows_of_a_hub_dataset(project) -> None:
    rows = []
    for i, (width, sharpness) in enumerate([(600, 0.9), (600, 0.1), (200, 0.9), (640, 0.5)]):
        out = io.BytesIO()
        Image.new("RGB", (width, 600), (60 * i, 90, 20)).save(out, "jpeg")
        image = {"bytes": out.getvalue(), "path": None}
        facts = {"width": width, "height": 600, "quality_assessment": {"sharpness": sharpness}}
        rows.append({"image": image, "caption": f"face {i}", "tags": ["calm", f"t{i}"], **facts})
    folder = Path("portraits")
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    for kind in ("more", "less"):
        for i in range(2):
            write_picture(Path("datasets/smile") / kind / f"{kind}{i}.png", (64, 64), i, None)
    changes = {
        "faces-neutral": {"dataset_name": "./portraits"},
        "smile-more": {"repeats": 1},
        "smile-less": {"repeats": 1},
    }
    found = batches(run(project, smaller("slider_with_hub_rows", **changes)))
    assert {b.slider_strength for b in found["smile-more"]} == {0.6}
    assert {b.slider_strength for b in found["smile-less"]} == {-0.6}
    assert sorted(b.paths[0] for b in found["faces-neutral"]) == ["0.jpg", "3.jpg"]
    assert {b.captions[0] for b in found["faces-neutral"]} <= {"face 0", "face 3", "calm", "t0", "t3"}


# -- musubi-tuner -----------------------------------------------------------------------------------------------------

MUSUBI = """
[general]
resolution = [96, 64]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "pictures"
cache_directory = "cache-of-pictures"
num_repeats = 2

[[datasets]]
video_directory = "films"
target_frames = [1, 9]
frame_extraction = "uniform"
frame_sample = 2
source_fps = 32.0
"""


def test_a_musubi_file_with_pictures_and_films(project) -> None:
    for i in range(2):
        write_picture(Path("pictures") / f"p{i}.png", (96, 64), i, f"  picture {i}\nand more  ")
        write_clip(Path("films") / f"f{i}.mp4", 24, size=(120, 60), caption=f"film {i}")
    write_picture(Path("pictures/below") / "ignored.png", (96, 64), 9, "not searched deeply")
    Path("musubi.toml").write_text(MUSUBI)
    plan = run(project, "musubi.toml", CLIPS)
    found = batches(plan)
    assert len(found["dataset-1"]) == 4
    assert {b.captions[0] for b in found["dataset-1"]} == {f"picture {i}\nand more" for i in range(2)}
    films = plan.datasets[1].index.numbers
    assert sorted(zip(films["start"].tolist(), films["count"].tolist(), strict=True)) == [
        (0, 1), (0, 1), (0, 9), (0, 9), (3, 9), (3, 9), (11, 1), (11, 1)]  # fmt: skip
    assert {tuple(b.target_sizes[0].tolist()) for b in found["dataset-2"]} == {(64, 96)}
    assert Path("cache-of-pictures/darkroom/dataset-1").is_dir()


@pytest.mark.parametrize(
    ("extra", "size"),
    [
        ("", (8, 12)),
        ("no_resize_control = true", (10, 10)),
        ("no_resize_control = true\ncontrol_resolution = [64, 64]", (8, 8)),
        ("control_resolution = [32, 32]", (4, 4)),
    ],
)
def test_musubi_controls_by_name_and_number(project, extra, size) -> None:
    for i in range(3):
        write_picture(Path("pictures") / f"p{i}.png", (96, 64), i, f"picture {i}")
        for number in range(1 if i == 2 else 2):
            write_picture(Path("controls") / f"p{i}_{number}.png", (82, 82), 10 * i + number, None)
    Path("musubi.toml").write_text(
        "[[datasets]]\nimage_directory = 'pictures'\ncontrol_directory = 'controls'\nresolution = [96, 64]\n"
        f"caption_extension = '.txt'\n{extra}\n"
    )
    project.options["conditioning_multidataset_sampling"] = "combined"
    counts = {}
    for batch in batches(run(project, "musubi.toml"))["dataset-1"]:
        counts[batch.paths[0]] = len(batch.references)
        assert {tuple(r.shape[-2:]) for r in batch.references} == {size}
    assert counts == {"p0.png": 2, "p1.png": 2, "p2.png": 1}


def test_musubi_lists_of_lines(project) -> None:
    lines = []
    for i in range(3):
        write_picture(Path("anywhere") / f"{i}" / "same name.png", (96, 64), i, None)
        write_picture(Path("controls") / f"c{i}.png", (96, 64), 20 + i, None)
        controls = {f"control_path_{n}": f"controls/c{(i + n) % 3}.png" for n in range(2)}
        lines.append({"image_path": f"anywhere/{i}/same name.png", "caption": f"line {i}", **controls})
    Path("list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    Path("musubi.toml").write_text(
        "[[datasets]]\nimage_jsonl_file = 'list.jsonl'\ncache_directory = 'cache'\nresolution = [96, 64]\n"
    )
    project.options["conditioning_multidataset_sampling"] = "combined"
    found = batches(run(project, "musubi.toml"))["dataset-1"]
    assert {b.captions[0] for b in found} == {"line 0", "line 1", "line 2"}
    assert all(len(b.references) == 2 and not torch.equal(*b.references) for b in found)


def test_musubi_pixels_are_scaled_to_cover_and_cropped_in_the_middle(project) -> None:
    write_picture(Path("pictures") / "p.png", (200, 100), 1, "x")
    Path("musubi.toml").write_text(
        "[[datasets]]\nimage_directory = 'pictures'\nresolution = [64, 64]\ncaption_extension = '.txt'\n"
    )
    plan = run(project, "musubi.toml")
    index = plan.datasets[0].index
    assert index.sizes(0).intermediary == (128, 64)
    assert index.crop(0) == (0, 32)
    with Image.open("pictures/p.png") as image:
        pixels = resize_by_area(np.asarray(image), (128, 64))[:, 32:96]
    wanted = project.encode_pixels(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert torch.allclose(plan.latent_cache(plan.datasets[0]).get(0)["latents"], wanted[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[datasets]]\nimage_directory = 'p'\nresolutoin = 5", "Did you mean resolution"),
        ("[general]\nmultiple_target = true\n[[datasets]]\nimage_directory = 'p'", "There is no such key"),
        ("[[datasets]]\nresolution = 5", "Nothing says where the samples are"),
        ("[[datasets]]\nimage_directory = 'p'\nvideo_directory = 'q'", "There is no such key"),
        ("[[datasets]]\nimage_jsonl_file = 'nowhere.jsonl'", "no such file"),
        ("[[datasets]]\nvideo_directory = 'p'\nsource_fps = 30", "decimal point"),
        ("[general]\n", r"no \[\[datasets\]\]"),
        ("[[datasets]\n", "not valid TOML"),
    ],
)
def test_a_wrong_musubi_file_is_named(project, text, words) -> None:
    Path("p").mkdir()
    Path("musubi.toml").write_text(text)
    with pytest.raises(Exception, match=words):
        read_datasets("musubi.toml", project.config, {})


def test_the_same_tables_as_json(project) -> None:
    write_picture(Path("pictures") / "p.png", (96, 64), 1, "x")
    Path("musubi.json").write_text(
        json.dumps({"datasets": [{"image_directory": "pictures", "resolution": [96, 64], "caption_extension": ".txt"}]})
    )
    assert len(batches(run(project, "musubi.json"))["dataset-1"]) == 1
    shutil.rmtree("pictures")
