"""Datasets of the hub: captions, columns, filters, panels, streaming, and what is said when it goes wrong."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from typing import Any

import pytest
from PIL import Image

from darkroom.core.errors import DataError, MissingPackage
from darkroom.options.datasets.locations import HubRows
from darkroom.storage import Refused, Unreachable, hub
from darkroom.storage.hub import HubStore
from tests.rows import each_row
from tests.storage.conftest import parquet, png, quick

ENDINGS = frozenset({".png"})
COUNT = 6
SCORES = [{"clear": 0.9}, {"clear": 0.2}, None, {"other": 1.0}, {"clear": 0.5}, {"clear": 0.7}]
COLUMNS: dict[str, list[Any]] = {
    "caption": ["one", "", None, " ", "five", "six"],
    "spare": [f"spare {n}" for n in range(COUNT)],
    "variants": [["a", "b"], [], None, ["", "d"], ["e"], ["f"]],
    "description": [{"text_0": f"nested {n}", "text_1": "more"} for n in range(COUNT)],
    "collection": ["cats", "dogs", "cats", None, "birds", "cats"],
    "quality_assessment": SCORES,
    "width": [100, 200, 300, 400, 500, 600],
    "height": ["10", "20", "x", None, "50", "60"],
    "frames": [[1], [2], [3], [4], [5], [6]],
    "fps": [24, 25.0, 30.0, None, 12.5, 8.0],
    "prompt": ["p"] * COUNT,
    "tags": ["t1", "", None, "t4", "t5", "t6"],
    "norm_lyrics": ["la", None, "", "la la", "x", "y"],
}


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def opened(request, tmp_path):
    """A function from keys to a store over a small local dataset of two files."""
    half = COUNT // 2
    for part, rows in enumerate((slice(0, half), slice(half, COUNT))):
        pictures = [png((n, 0, 0), (12, 6)) for n in range(COUNT)][rows]
        columns = {name: values[rows] for name, values in COLUMNS.items() if name != "quality_assessment"}
        parquet(tmp_path / "data", pictures, name=f"train-{part}.parquet", **columns, **_scores(rows))

    def make(**keys) -> HubStore:
        given = {
            "dataset_name": str(tmp_path / "data"),
            "file_extension": "png",
            "cache_dir": tmp_path / "cache",
            "streaming": request.param,
        }
        return HubStore(HubRows.model_validate(given | keys), quick())

    return make


def _scores(rows: slice):
    import pyarrow as pa

    kind = pa.struct([("clear", pa.float64()), ("other", pa.float64())])
    return {"quality_assessment": pa.array(SCORES[rows], kind)}


# ---------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("keys", "captions"),
    [
        ({}, [["one"], [], [], [], ["five"], ["six"]]),
        ({"fallback_caption_column": "spare"}, [["one"], ["spare 1"], ["spare 2"], ["spare 3"], ["five"], ["six"]]),
        ({"caption_column": "variants"}, [["a", "b"], [], [], ["d"], ["e"], ["f"]]),
        ({"caption_column": ["caption", "variants"]}, [["one", "a", "b"], [], [], ["d"], ["five", "e"], ["six", "f"]]),
        ({"caption_column": "description.text_0"}, [[f"nested {n}"] for n in range(COUNT)]),
        (
            {"caption_column": ["description.text_1", "description.text_0"]},
            [["more", f"nested {n}"] for n in range(COUNT)],
        ),
        ({"audio_caption_fields": ["prompt", "tags"]}, [["one"], ["p"], ["p"], ["p, t4"], ["five"], ["six"]]),
        ({"description_column": "spare"}, [["one"], ["spare 1"], ["spare 2"], ["spare 3"], ["five"], ["six"]]),
    ],
)
def test_captions_come_from_columns(opened, keys, captions) -> None:
    assert opened(**keys).rows().column("captions").to_pylist() == captions


def test_numbers_come_from_columns(opened) -> None:
    rows = opened(
        width_column="width",
        height_column="height",
        num_frames_column="frames",
        fps_column="fps",
        lyrics_column="lyrics",
    ).rows()

    assert rows.column("path").to_pylist() == [f"{n}.png" for n in range(COUNT)]
    assert rows.column("width").to_pylist() == COLUMNS["width"]
    assert rows.column("height").to_pylist() == [10, 20, None, None, 50, 60]
    assert rows.column("frames").to_pylist() == [1, 2, 3, 4, 5, 6]
    assert rows.column("fps").to_pylist() == [24.0, 25.0, 30.0, None, 12.5, 8.0]
    assert rows.column("lyrics").to_pylist() == ["la", None, None, "la la", "x", "y"]
    assert [str(rows.schema.field(name).type) for name in ("width", "fps")] == ["int32", "double"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"caption_column": "nowhere"}, "caption_column"),
        ({"fallback_caption_column": "nowhere"}, "fallback_caption_column"),
        ({"width_column": "nowhere"}, "width_column"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(opened, keys, told) -> None:
    with pytest.raises(DataError, match=r"has no column 'nowhere'; it has: .*spare") as caught:
        opened(**keys).rows()
    assert told in str(caught.value)


def test_a_media_column_that_is_not_there_is_named(opened) -> None:
    with pytest.raises(DataError, match="has no column 'picture'") as caught:
        opened(media_column="picture").find(ENDINGS)
    assert "image_column" in str(caught.value)


# ---------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"collection": "cats"}, [0, 2, 5]),
        ({"collection": ["dogs", "birds"]}, [1, 4]),
        ({"quality_thresholds": {"clear": 0.5}}, [0, 4, 5]),
        ({"quality_thresholds": {"clear": 0.0}}, [0, 1, 3, 4, 5]),
        ({"min_width": 300}, [2, 3, 4, 5]),
        ({"min_height": 20}, [1, 4, 5]),
        ({"collection": "cats", "quality_thresholds": {"clear": 0.6}, "min_width": 200}, [5]),
        ({}, list(range(COUNT))),
    ],
)
def test_rows_are_filtered_and_keep_their_numbers(opened, rule, kept) -> None:
    store = opened(filter_func=rule)
    found = store.find(ENDINGS)

    assert found.paths == [f"{n}.png" for n in kept]
    assert found.problems["filter_func"] == COUNT - len(kept)
    assert store.rows().column("path").to_pylist() == [f"{n}.png" for n in kept]
    for n in kept:
        assert store.read(f"{n}.png") == png((n, 0, 0), (12, 6))


def test_a_filter_on_a_column_that_is_not_there_is_an_error(opened) -> None:
    rule = {"quality_thresholds": {"clear": 1}, "quality_column": "nowhere"}
    with pytest.raises(DataError, match="has no column 'nowhere'"):
        opened(filter_func=rule).find(ENDINGS)


# ---------------------------------------------------------------------- panels


def strip(mode: str = "RGB", **save) -> bytes:
    """Three panels of 4 x 6: red, green, blue."""
    picture = Image.new("RGB", (12, 6))
    for n, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        picture.paste(colour, (4 * n, 0, 4 * n + 4, 6))
    out = io.BytesIO()
    picture.convert(mode).save(out, **({"format": "png"} | save))
    return out.getvalue()


@pytest.mark.parametrize(("select", "colour"), [(0, (255, 0, 0)), (1, (0, 255, 0)), (2, (0, 0, 255))])
def test_a_panel_is_cut_out(tmp_path, select, colour) -> None:
    parquet(tmp_path / "data", [strip(), strip("L"), b"no picture"], width=[12, 13, None], height=[6, 6, 6])
    where = {
        "dataset_name": str(tmp_path / "data"),
        "file_extension": "png",
        "cache_dir": tmp_path / "cache",
        "panels": {"image_count": 3, "select_index": select},
        "width_column": "width",
        "height_column": "height",
    }
    store = HubStore(HubRows.model_validate(where))

    with Image.open(store.open("0.png")) as picture:
        assert (picture.format, picture.size, picture.getpixel((1, 1))) == ("PNG", (4, 6), colour)
    assert store.read("2.png") == b"no picture"
    assert store.local("0.png") is None
    assert store.rows().column("width").to_pylist() == [4, 4, None]
    assert store.rows().column("height").to_pylist() == [6, 6, 6]


def test_a_panel_of_a_turned_or_printed_picture_is_upright_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.open(io.BytesIO(strip())).transpose(Image.Transpose.ROTATE_90).save(turned, "png", exif=exif)
    panels = hub.Panels(image_count=3, select_index=1)
    for data in (turned.getvalue(), strip("CMYK", format="jpeg")):
        with Image.open(io.BytesIO(hub.cut_panel(data, panels, "x"))) as picture:
            assert picture.size == (4, 6)
            assert not picture.getexif().get(0x0112)
            assert max(picture.getpixel((1, 3))) > 90


def test_a_damaged_strip_is_refused() -> None:
    with pytest.raises(Refused, match="damaged"):
        hub.cut_panel(strip()[:50], hub.Panels(image_count=3), "x")
    with pytest.raises(Refused, match="holds no panel"):
        hub.cut_panel(strip(), hub.Panels(image_count=3, select_index=3), "x")


# ---------------------------------------------------------------------- what cells can be


def test_cells_may_be_bytes_paths_or_nothing(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    (tmp_path / "x.png").write_bytes(png())
    paths = [str(tmp_path / "x.png"), str(tmp_path / "gone.png"), "https://host/x.png", None]
    table = {"a": pa.array([png(), b"", None, b"z"], pa.binary()), "b": paths, "image": [{"path": p} for p in paths]}
    pq.write_table(pa.table(table), tmp_path / "data/train.parquet")
    for column, read in (("a", [0, 1, 3]), ("b", [0]), ("image", [0])):
        where = HubRows(dataset_name=str(tmp_path / "data"), media_column=column, file_extension="png", streaming=True)
        store = HubStore(where)
        assert len(store.find(ENDINGS)) == 4
        for row in range(4):
            if row in read:
                assert isinstance(store.read(f"{row}.png"), bytes)
            else:
                with pytest.raises((hub.Missing, Refused)):
                    store.read(f"{row}.png")


def test_loose_files_are_opened_where_they_are(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(png())
    store = HubStore(HubRows(dataset_name=str(tmp_path / "data"), file_extension="png", cache_dir=tmp_path / "cache"))

    assert store.find(ENDINGS).sizes == [len(png())]
    assert store.local("0.png") == tmp_path / "data/a.png"
    (tmp_path / "data/a.png").unlink()
    for work in (store.read, store.open):
        with pytest.raises(hub.Missing):
            work("0.png")


# ---------------------------------------------------------------------- streaming


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A streamed dataset behind a URL, and the ranges that are read of it."""
    import fsspec

    fs = fsspec.filesystem("memory")
    pictures = [png((n, 0, 0), (40, 40)) + bytes(40_000) for n in range(40)]
    parquet(tmp_path, pictures, group=10, caption=[f"c{n}" for n in range(40)])
    root = f"/far-{tmp_path.name}"
    fs.pipe_file(f"{root}/train.parquet", (tmp_path / "train-0.parquet").read_bytes())
    monkeypatch.setattr(hub._StreamedRows, "_parquet_files", lambda self: [f"memory:/{root}/train.parquet"])
    read: list[int] = []
    real = type(fs).cat_file

    def cat_file(self, path, start=None, end=None, **keys):
        data = real(self, path, start, end, **keys)
        read.append(len(data))
        return data

    monkeypatch.setattr(type(fs), "cat_file", cat_file)
    return HubStore(HubRows(dataset_name="far", file_extension="png", streaming=True), quick()), pictures, read


def test_streaming_fetches_footers_then_columns_then_single_groups(far) -> None:
    store, pictures, read = far
    whole = sum(map(len, pictures))

    found = store.find(ENDINGS)
    assert store.rows().column("captions").to_pylist() == [[f"c{n}"] for n in range(40)]
    assert sum(read) < whole / 1.5
    assert all(30_000 < size < 60_000 for size in found.sizes)
    read.clear()
    assert store.read("25.png") == pictures[25]
    assert 0 < sum(read) < whole / 2
    read.clear()
    assert store.read("20.png") == pictures[20]
    assert read == []


def test_threads_that_want_the_same_group_share_it(far) -> None:
    store, pictures, read = far
    store.find(ENDINGS)
    read.clear()
    store.read("0.png")
    once = sum(read)
    read.clear()
    got: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: store.read(f"{n}.png")})) for n in range(10, 20)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {n: pictures[n] for n in range(10, 20)}
    assert sum(read) < 2 * once


def test_only_a_few_groups_stay_in_memory(far, monkeypatch) -> None:
    store, pictures, _ = far
    monkeypatch.setattr(hub, "CACHED_BYTES", 1)
    for n in range(0, 40, 7):
        assert store.read(f"{n}.png") == pictures[n]
    assert len(store.source._groups_cache) == 2


def test_streaming_without_parquet_files_is_refused_with_a_way_out(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(png())
    where = HubRows(dataset_name=str(tmp_path / "data"), streaming=True)
    with pytest.raises(DataError, match="not Parquet") as caught:
        HubStore(where).find(ENDINGS)
    assert "refs/convert/parquet" in str(caught.value)


# ---------------------------------------------------------------------- what can go wrong


def test_a_split_that_is_not_there_is_told_with_those_that_are(opened) -> None:
    with pytest.raises(DataError, match="train") as caught:
        opened(split="nope").find(ENDINGS)
    assert "nope" in str(caught.value)


def test_a_part_of_a_split_can_be_loaded(tmp_path) -> None:
    parquet(tmp_path / "data", [png((n, 0, 0)) for n in range(5)])
    where = HubRows(dataset_name=str(tmp_path / "data"), split="train[1:3]", file_extension="png", cache_dir=tmp_path)
    store = HubStore(where)
    assert store.find(ENDINGS).sizes == [len(png((1, 0, 0))), len(png((2, 0, 0)))]
    assert store.read("0.png") == png((1, 0, 0))


@each_row(
    "cause, kind, told",
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), Unreachable, "Check the network"),
        (FileNotFoundError("Dataset 'a/b' doesn't exist"), DataError, "There is no dataset 'a/b'"),
        (ValueError('Unknown split "x".'), DataError, "cannot be loaded: Unknown split"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "no longer supported"),
        (FileNotFoundError("Dataset 'a/b' is a gated dataset"), DataError, "accepted its terms"),
    ],
)
def test_errors_of_the_library_are_told_in_plain_words(monkeypatch, cause, kind, told) -> None:
    import datasets

    def fail(**keys):
        raise cause

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=told):
        HubStore(HubRows(dataset_name="a/b")).find(ENDINGS)


def test_offline_and_not_in_the_cache_is_said() -> None:
    code = (
        "from darkroom.options.datasets.locations import HubRows; from darkroom.storage import open_store\n"
        "try: open_store(HubRows(dataset_name='some/thing')).find(frozenset())\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    import os

    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("Unreachable"), done.stderr
    assert "Offline mode is on" in done.stdout


def test_without_the_library_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[hub\]"):
        HubStore(HubRows(dataset_name="a/b")).find(ENDINGS)


def test_a_full_disk_while_downloading_is_said(monkeypatch) -> None:
    import errno

    import datasets

    from darkroom.core.errors import DiskFullError

    def fail(**keys):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DiskFullError):
        HubStore(HubRows(dataset_name="a/b")).find(ENDINGS)
