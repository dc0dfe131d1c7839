"""Whatever stands in a file, every reader answers with an error that names it, or leaves the file out by a reason.

Each row of READERS makes inputs (right ones with odd values, then damaged bytes) and reads them. An exception that is
not ours is a failure, and hypothesis shows the smallest input that raises it. A row takes `FUZZ_SECONDS` (15):

    FUZZ_SECONDS=600 python -m pytest -n 0 -s -m slow tests/test_fuzz.py -k captions
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.core.errors import DarkroomError
from darkroom.data.index import captions, sizing
from darkroom.data.index import metadata as tables
from darkroom.data.index import table as index
from darkroom.data.index.captions import CaptionRequest
from darkroom.data.index.listing import endings_of, list_samples, text_paths
from darkroom.data.index.metadata import SampleTable
from darkroom.media import audio, video
from darkroom.media.images import BadImage, load_rgb, load_rgba, read_header
from darkroom.options.config import Config, every_option
from darkroom.options.datasets import SampleDataset, musubi, read_datasets
from darkroom.options.datasets import keys as k
from darkroom.options.datasets.entries import ImageEmbeds, TextEmbeds
from darkroom.options.datasets.locations import JsonLines, LinkList, LocalFiles
from darkroom.options.sources import resolve
from darkroom.storage.base import Missing, Refused
from darkroom.storage.jsonl import JsonlStore
from darkroom.storage.local import LocalStore
from darkroom.storage.urls import LinkStore
from tests.proofs import number_of_commits

SECONDS = float(os.environ.get("FUZZ_SECONDS", "15"))
BATCH = 100
"""Inputs between two looks at the clock."""

ANSWERS = (DarkroomError, BadImage, Missing, Refused)
"""What a reader may raise: an error for the user, or the reason why one file is left out and counted."""

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")]


# ---------------------------------------------------------------------- what is written

ODD_TEXTS = (
    "", " ", ".", "..", "/", "~", "~nobody/x", "0", "-1", "1e999", "05", "true", "None", "null", "49", "D:\\train\\new",
    "D:\train\new", "\0", "\ud800", "\udcff.png", "a\nb", "\u2028", "\x0c", "{env:HOME}", "{env:", "{id}", "a" * 300,
    "[" * 5000, "{" * 5000, "[1, 2]", '{"a": 1}', "../..", "file://", "http://[bad", "s3://x", "hf://x", "a,b",
    "x" * 5000,
)  # fmt: skip
texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=()), max_size=12)
numbers = st.sampled_from(
    [0, -1, 1, 2, 49, 10**6, 10**400, -(10**30), math.nan, math.inf, -math.inf, 0.5, 1e308, 5e-324]
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def deep(value: Any, levels: int) -> str:
    """A value inside so many brackets, as JSON."""
    return "[" * levels + as_json(value) + "]" * levels


def as_json(value: Any) -> str:
    """JSON, also with numbers of hundreds of digits."""
    return json.dumps(value)


def as_toml(value: Any) -> str:
    """A value as TOML writes it; None as an empty text, which TOML lacks."""
    if value is None:
        return '""'
    if isinstance(value, float):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan" if math.isnan(value) else repr(value))
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def objects(keys: tuple[str, ...], **known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these keys and odd values, or the values of `known`."""
    pairs = st.sampled_from(keys).flatmap(lambda key: st.tuples(st.just(key), known.get(key, values) | values))
    return st.lists(pairs | st.tuples(texts, values), max_size=5).map(dict)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 6) -> bytes:
    """Bytes with some of them changed, left out, doubled or put in, or cut off; in one of four cases as they are."""
    data = bytearray(whole)
    if draw(st.integers(0, 3)) == 0:
        return whole
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "double", "cut"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 16))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 32))]
            case _:
                del data[at:]
    return bytes(data)


@st.composite
def written(draw: st.DrawFn, documents: st.SearchStrategy[str]) -> bytes:
    """A document as bytes: as it is, in another encoding, nested deeply, or damaged."""
    text = draw(documents)
    match draw(
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "deep"])
    ):
        case "deep":
            return deep(text, draw(st.sampled_from([1, 500, 5000]))).encode()
        case encoding:
            errors = "replace" if encoding == "latin-1" else "surrogatepass"
            return draw(damaged(text.encode(encoding, errors)))


# ---------------------------------------------------------------------- the readers


@dataclass(frozen=True)
class Bench:
    """Where an input is written."""

    folder: Path

    def put(self, name: str, data: bytes) -> Path:
        """A file with this content."""
        path = self.folder / name
        path.write_bytes(data)
        return path


Read = Callable[[Bench, st.DataObject], object]
READERS: dict[str, Read] = {}


def reader(name: str) -> Callable[[Read], Read]:
    """Add a row."""

    def add(read: Read) -> Read:
        READERS[name] = read
        return read

    return add


OPTIONS = tuple(info.name for info in every_option())
OPTION_VALUES = {
    info.name: st.sampled_from([info.default, *(info.choices or ())])
    for info in every_option()
    if info.default is not ...
}
option_objects = objects(OPTIONS, **OPTION_VALUES).map(lambda made: {"model_family": "flux", **made})


@reader("config.json")
def config_json(bench: Bench, data: st.DataObject) -> None:
    path = bench.put("config.json", data.draw(written(option_objects.map(as_json))))
    resolve([str(path)], {}, bench.folder, partial=True)


@reader("config.toml")
def config_toml(bench: Bench, data: st.DataObject) -> None:
    def document(made: dict[str, Any]) -> str:
        return "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in made.items())

    path = bench.put("config.toml", data.draw(written(option_objects.map(document))))
    resolve([str(path)], {}, bench.folder, partial=True)


@reader("config.env")
def config_env(bench: Bench, data: st.DataObject) -> None:
    def document(made: dict[str, Any]) -> str:
        return "\n".join(f"{key.upper()}={value}" for key, value in made.items())

    more = st.sampled_from(
        ["", "\nexport X='a", '\nSEED="7', "\nTRAINER_EXTRA_ARGS='--seed", "\nSEED+=7", "\nUSE_DORA=x"]
    )
    text = st.tuples(option_objects.map(document), more).map("".join)
    path = bench.put("config.env", data.draw(written(text)))
    resolve([str(path)], {}, bench.folder, partial=True)


@reader("command line")
def command_line(bench: Bench, data: st.DataObject) -> None:
    words = (
        st.sampled_from([f"--{name}" for name in OPTIONS])
        | texts
        | st.tuples(st.sampled_from(OPTIONS), texts).map(lambda pair: f"--{pair[0]}={pair[1]}")
    )
    resolve(["--model_family=flux", *data.draw(st.lists(words, max_size=6))], {}, bench.folder, partial=True)


ENTRY_KEYS = tuple(
    sorted(
        {*SampleDataset.model_fields, *TextEmbeds.model_fields, *ImageEmbeds.model_fields, *k.ALIASES, *k.REFUSED_KEYS,
         *k.WITHOUT_EFFECT, *(key for group in k.STORAGE_KEYS.values() for key in group), "type", "conditioning", "aws",
         "huggingface", "disabled", "id"}
    )
)  # fmt: skip
ENTRY_VALUES = {
    "type": st.sampled_from(["local", "aws", "csv", "huggingface", "memory", 5]),
    "dataset_type": st.sampled_from(["image", "video", "conditioning", "eval", "text_embeds", "image_embeds", 5]),
    "conditioning_type": st.sampled_from(["mask", "controlnet", "reference_strict", ["mask"]]),
    "conditioning_data": st.sampled_from(["a", ["a", "b"], [5], 5]),
    "caption_strategy": st.sampled_from(["textfile", "parquet", "instanceprompt", "csv", 5]),
    "video": objects(("num_frames", "min_frames", "fps", "target_frames", "frame_extraction", "bucket_strategy")),
    "audio": objects(("auto_split", "allow_zero_audio", "lyrics_suffix")),
    "parquet": objects(("path", "filename_column", "caption_column", "width_column", "id_column")),
    "caption_shuffle": objects(("enable", "count", "seed", "split_on")),
    "aws": objects(("bucket_name", "endpoint_url", "access_key_id", "secret_access_key", "data_prefix")),
    "huggingface": objects(("caption_column", "filter_func", "composite_image_config", "streaming")),
    "conditioning": objects(("type", "params", "captions", "conditioning_type"), type=st.just("canny")),
    "crop_aspect_buckets": st.just([1.0]) | st.just([{"aspect": 1.0, "weight": 1.0}]),
}
KINDS: dict[str, dict[str, Any]] = {
    "image": {},
    "video": {"dataset_type": "video"},
    "eval": {"dataset_type": "eval"},
    "mask": {"dataset_type": "conditioning", "conditioning_type": "mask", "source_dataset_id": "a"},
    "texts": {"dataset_type": "text_embeds"},
    "latents": {"dataset_type": "image_embeds"},
    "s3": {
        "type": "aws",
        "aws": {"bucket_name": "b", "endpoint_url": "u", "access_key_id": "k", "secret_access_key": "s"},
    },
    "links": {"type": "csv", "csv_file": "a", "csv_cache_dir": "b", "csv_caption_column": "c"},
    "hub": {"type": "huggingface", "dataset_name": "x"},
    "table": {"caption_strategy": "parquet", "metadata_backend": "parquet", "parquet": {"path": "x"}},
}
"""Right entries of every kind, less id and folder."""
CONFIG = Config(model_family="flux", output_dir="out", seed=1)


@reader("dataset file of SimpleTuner")
def simpletuner_datasets(bench: Bench, data: st.DataObject) -> None:
    def whole(parts: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
        return {"id": parts[0], "instance_data_dir": str(bench.folder), **KINDS[parts[1]], **parts[2]}

    keys = objects(ENTRY_KEYS, **ENTRY_VALUES)
    entry = st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(sorted(KINDS)), keys).map(whole)
    document = st.lists(entry | values, min_size=1, max_size=3).map(as_json)
    path = bench.put("datasets.json", data.draw(written(document)))
    read_datasets(path, CONFIG, {})


@reader("dataset file of musubi-tuner")
def musubi_datasets(bench: Bench, data: st.DataObject) -> None:
    keys = (*musubi.COMMON, *musubi.IMAGE, *musubi.VIDEO)
    places = {
        f"{m}_{what}": st.just(str(bench.folder)) for m in ("image", "video") for what in ("directory", "jsonl_file")
    }
    row = objects(keys, **places, resolution=st.sampled_from([64, [64, 64], [0, 0]]))
    document = st.fixed_dictionaries({"general": row | values, "datasets": st.lists(row | values, max_size=2) | values})
    if data.draw(st.booleans()):
        path = bench.put("datasets.json", data.draw(written(document.map(as_json))))
    else:
        lines = document.map(lambda made: "\n".join(f"{key} = {as_toml(value)}" for key, value in made.items()))
        path = bench.put("datasets.toml", data.draw(written(lines)))
    read_datasets(path, CONFIG, {})


ENTRY = {"id": "a", "cache_dir_vae": Path("cache"), "caption_strategy": "textfile"}


def entry(folder: Path, **keys: Any) -> SampleDataset:
    """A checked entry over a folder."""
    return SampleDataset.model_validate(ENTRY | {"location": {"type": "local", "root": folder}} | keys)


@reader("captions")
def caption_files(bench: Bench, data: st.DataObject) -> None:
    lines = st.lists(texts, max_size=4).map("\n".join)
    bench.put("p.png", b"x")
    for old in bench.folder.glob("*.t*"):
        old.unlink()
    ending = data.draw(st.sampled_from(["txt", ".txt", ".TXT", ".Txt", "_tags.txt", "caption"]))
    dataset = entry(bench.folder, caption_extension=ending, disable_multiline_split=data.draw(st.booleans()))
    bench.put("p" + dataset.caption_extension.swapcase(), data.draw(written(lines)))
    store = LocalStore(LocalFiles(root=bench.folder))
    listing = list_samples(store, endings_of("image"), dataset.caption_extension)
    found = captions.from_text_file(CaptionRequest(dataset, store, SampleTable(), listing.paths, text_paths(listing)))
    found = captions.drop_nuls(found)
    for caption in found.captions.to_pylist():
        assert caption is None or all("\0" not in text and text.strip() for text in caption)
        captions.variants(caption or (), dataset, captions.compile_filters([data.draw(texts)])[0], 1)


def without_network(store: LinkStore) -> LinkStore:
    """A store that downloads nothing."""
    store._download = lambda *rest: None  # type: ignore[method-assign]
    return store


@reader("csv of links")
def csv_links(bench: Bench, data: st.DataObject) -> None:
    cell = texts | st.sampled_from(["http://a/b.png", "https://a/b?c=d", "p.png", "file:///x.png", "ftp://x"])
    rows = st.lists(st.lists(cell, min_size=1, max_size=3).map(",".join), max_size=4).map("\n".join)
    head = st.sampled_from(["url,caption\n", "caption,url\n", "url;caption\n", "", "url,url,caption\n"])
    path = bench.put("links.csv", data.draw(written(st.tuples(head, rows).map("".join))))
    where = LinkList(csv_file=path, csv_cache_dir=bench.folder / "kept", csv_caption_column="caption")
    store = without_network(LinkStore(where))
    found = store.find(endings_of("image"))
    tables.from_rows(store.rows())
    for name in found.paths:
        store.local(name)


LINE_KEYS = (
    "image_path",
    "caption",
    "image_path_1",
    "control_path",
    "control_path_0",
    "id",
    "description",
    "width",
    "height",
)


def json_lines(keys: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Lines of objects, and lines that are none."""
    line = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values)).map(as_json) | values.map(as_json) | texts
    return st.lists(line | line.map(lambda text: "[" * 5000 + text), max_size=4).map("\n".join)


@reader("jsonl of musubi-tuner")
def jsonl_lists(bench: Bench, data: st.DataObject) -> None:
    path = bench.put("list.jsonl", data.draw(written(json_lines(LINE_KEYS))))
    file = bench.put("m.toml", f"[[datasets]]\nimage_jsonl_file = '{path}'\nmultiple_target = true\n".encode())
    for dataset in read_datasets(file, CONFIG, {}).samples:
        assert isinstance(dataset.location, JsonLines)
        store = JsonlStore(dataset.location)
        store.find(endings_of("image"))
        tables.from_rows(store.rows())


BLOCK = {"path": "table", "caption_column": "description"}


def read_table(bench: Bench, path: Path, data: st.DataObject) -> None:
    """A table as a dataset's parquet block names it."""
    block = BLOCK | {"path": str(path), "identifier_includes_extension": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        block["fallback_caption_column"] = "id"
    block["aspect_ratio_column"] = data.draw(st.sampled_from([None, "height"]))
    dataset = entry(bench.folder, caption_strategy="parquet", metadata_backend="parquet", parquet=block)
    table = tables.read(dataset, LocalStore(LocalFiles(root=bench.folder)))
    paths = pa.array(["p.png"])
    found = captions.from_table(CaptionRequest(dataset, None, table, paths, pa.nulls(1, pa.string())))  # type: ignore[arg-type]
    captions.drop_nuls(found)


@reader("jsonl table")
def jsonl_tables(bench: Bench, data: st.DataObject) -> None:
    read_table(bench, bench.put("table.jsonl", data.draw(written(json_lines(LINE_KEYS)))), data)


COLUMNS: tuple[Any, ...] = (
    ["p", "q"], ["p", None], [["a"], ["b", "c"]], [[None], []], [[["a"]], []], [1, 2], [1.5, math.nan],
    [b"\xff\0", b"a"], [{"a": 1}, {"a": 2}], [True, None], [None, None], ["64", "x"], [[64], []], [["64"], None],
    [10**18, -1], [math.inf, 0], pa.array(["p", "q"]).dictionary_encode(), pa.array(["p", "q"], pa.large_string()),
    pa.array([1, 2], pa.timestamp("s")), pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
    pa.array([1, 2], pa.decimal128(5)), pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
    pa.array(["p", "q"], pa.string_view()), pa.array([["a"], ["b"]], pa.large_list(pa.large_string())),
    pa.array([b"p", b"q"], pa.binary(1)),
)  # fmt: skip


@reader("parquet table")
def parquet_tables(bench: Bench, data: st.DataObject) -> None:
    names = ("id", "description", "width", "height")
    sane = {"id": ["p", "q"], "description": ["a", "b"], "width": [64, 64], "height": [64, 64]}
    columns = {name: sane[name] if data.draw(st.booleans()) else data.draw(st.sampled_from(COLUMNS)) for name in names}
    if data.draw(st.integers(0, 5)) == 0:
        columns.pop(data.draw(st.sampled_from(names)))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    read_table(bench, bench.put("table.parquet", data.draw(damaged(buffer.getvalue()))), data)


@reader("index and resolution map")
def own_files(bench: Bench, data: st.DataObject) -> None:
    """What Darkroom writes itself: a damaged index is as good as none."""
    buffer = io.BytesIO()
    columns: dict[str, Any] = {name: np.zeros(2, kind) for name, kind in index.NUMBERS.items()}
    columns |= {"path": ["a.png", "b.png"], "captions": [["x"], None], "hash": pa.array([b"0" * 32] * 2, pa.binary(32))}
    if data.draw(st.booleans()):
        columns[data.draw(st.sampled_from(sorted(columns)))] = data.draw(st.sampled_from(COLUMNS))
    pq.write_table(pa.table(columns).replace_schema_metadata({"version": "3"}), buffer)
    path = bench.put("index.parquet", data.draw(damaged(buffer.getvalue())))
    found = index.load(path, LocalStore(LocalFiles(root=bench.folder)), "3")
    assert found is None or len(found) == len(found.hashes)
    sizes = st.dictionaries(texts | st.just("1.5"), values | st.just([64, 64]), max_size=2)
    bench.put("aspect_resolution_map-1.0.json", data.draw(written(sizes.map(as_json) | values.map(as_json))))
    sizing.read_sizes_table(bench.folder, entry(bench.folder, resolution=1.0, resolution_type="area"))


# ---------------------------------------------------------------------- media


@cache
def image_files() -> dict[str, bytes]:
    """A small image in every kind of file."""
    from tests.media.profiles import cmyk_profile, rgb_profile

    for module in ("pillow_heif", "pillow_jxl"):
        with contextlib.suppress(ImportError):
            __import__(module)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif.tobytes(), "icc_profile": rgb_profile()}
    made = {}
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "jpeg": (noise, more), "png": (noise, more), "webp": (noise, more), "tiff": (noise, more), "bmp": (noise, {}),
        "gif": (noise, {"save_all": True, "append_images": [noise.rotate(90)]}), "avif": (noise, more),
        "jpeg2000": (noise, {}), "tga": (noise, {}), "ppm": (noise, {}), "jxl": (noise, {}),
        "tiff ": (noise.convert("CMYK"), {"icc_profile": cmyk_profile()}), "png ": (noise.quantize(8), more),
        "tiff  ": (Image.fromarray(np.float32(np.eye(16))), {}), "png  ": (Image.fromarray(np.uint16(np.eye(16))), {}),
        "mpo": (noise, {"save_all": True, "append_images": [noise]}), "jpeg ": (noise.convert("CMYK"), {}),
    }  # fmt: skip
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        with contextlib.suppress(KeyError):  # a plug-in that is not installed
            image.save(buffer, name.strip(), **options)
            made[name] = buffer.getvalue()
    with contextlib.suppress(ImportError):
        import pillow_heif

        buffer = io.BytesIO()
        pillow_heif.from_pillow(noise).save(buffer)
        made["heif"] = buffer.getvalue()
    return made


@reader("images")
def images(bench: Bench, data: st.DataObject) -> None:
    files = image_files()
    content = data.draw(damaged(files[data.draw(st.sampled_from(sorted(files)))], most=12))
    for read in (
        lambda: read_header(io.BytesIO(content)),
        lambda: load_rgb(content),
        lambda: load_rgba(content, False),
    ):
        with contextlib.suppress(BadImage):
            read()


@cache
def clip_files(folder: Path) -> dict[str, bytes]:
    """A short clip in several containers, one with sound."""
    from tests.media.media_files import pattern, write, write_sound

    made = {}
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"),
                        ("a.mov", "mpeg4"), ("a.ts", "mpeg2video"), ("a.flv", "flv1")):  # fmt: skip
        made[name] = write(folder / name, codec, pattern(6, 32, 32)).read_bytes()
    tone = np.sin(np.arange(2000) / 9)[None].astype(np.float32)
    for name, codec in (("s.wav", "pcm_s16le"), ("s.flac", "flac"), ("s.mp3", "libmp3lame"), ("s.m4a", "aac")):
        with contextlib.suppress(Exception):  # a build of FFmpeg without this encoder
            made[name] = write_sound(folder / name, tone, 8000, codec).read_bytes()
    return made


def media(bench: Bench, data: st.DataObject, sounds: bool) -> bytes:
    files = {name: content for name, content in clip_files(bench.folder).items() if name.startswith("s") == sounds}
    return data.draw(damaged(files[data.draw(st.sampled_from(sorted(files)))], most=12))


@reader("clips")
def clips(bench: Bench, data: st.DataObject) -> None:
    content = media(bench, data, sounds=False)
    source = bench.put("clip.mp4", content) if data.draw(st.booleans()) else content
    clip = video.probe(source)
    assert clip.width > 0
    assert clip.height > 0
    video.times(source)
    video.read_frames(source, [0, max(0, min(clip.frames, 6) - 1)])


@reader("sound")
def sound(bench: Bench, data: st.DataObject) -> None:
    content = media(bench, data, sounds=data.draw(st.booleans()))
    audio.probe(content)
    audio.read_audio(content, 8000, 2, data.draw(st.sampled_from([0.0, 0.1, 99.0])), 0.2, shorter=True)


# ---------------------------------------------------------------------- what a run writes and reads again


@cache
def checkpoint_of(folder: Path) -> Path:
    """A whole checkpoint folder of a few small files."""
    from darkroom.train.checkpoint import write_manifest

    made = folder / "checkpoint-5"
    (made / "ema").mkdir(parents=True, exist_ok=True)
    for name in ("a.safetensors", "state.json", "ema/b.safetensors"):
        (made / name).write_bytes(b"{}")
    write_manifest(made, made.name, {"step": "5"})
    return made


@reader("manifests of checkpoints")
def manifests(bench: Bench, data: st.DataObject) -> None:
    from darkroom.train.checkpoint import MANIFEST, validate_checkpoint

    folder = checkpoint_of(bench.folder)
    whole = folder.parent / "whole.json"
    if not whole.exists():
        shutil.copy(folder / MANIFEST, whole)
    manifest = json.loads(whole.read_text())
    rows = objects(("path", "size", "sha256"), path=st.sampled_from(["a.safetensors", "ema", "../x", "/etc/passwd"]))
    if data.draw(st.booleans()):
        manifest |= data.draw(st.fixed_dictionaries({}, optional={
            "version": values, "checkpoint": values, "files": st.lists(rows | values, max_size=3) | values,
            "metadata": values}))  # fmt: skip
    (folder / MANIFEST).write_bytes(data.draw(written(st.just(as_json(manifest)))))
    problem = validate_checkpoint(folder)
    assert problem is None or isinstance(problem, str)


@reader("manifests of datasets")
def dataset_manifests(bench: Bench, data: st.DataObject) -> None:
    from darkroom.data import manifest

    columns: dict[str, Any] = {
        "dataset": ["a", "b"], "path": ["p", "q"], "part": np.zeros(2, np.int32), "content": [b"x", b""],
        "captions": [b"x", b"y"], **{name: np.zeros(2, np.int32) for name in manifest.PLACES},
    }  # fmt: skip
    right = manifest.Manifest({"a": {"repeats": 1}, "b": {}}, "order", pa.table(columns, schema=manifest.SCHEMA))
    rows = right.rows
    if data.draw(st.booleans()):
        columns[data.draw(st.sampled_from(sorted(columns)))] = data.draw(st.sampled_from(COLUMNS))
        rows = pa.table(columns)
    odd = data.draw(st.just(right.settings) | values | st.dictionaries(texts, values, max_size=2))
    content = manifest.Manifest(odd, data.draw(st.just("order") | st.text("abc")), rows).to_bytes()
    bench.put(manifest.FILE, data.draw(damaged(content)))
    found = manifest.read(bench.folder)
    if found is not None:
        manifest.compare(found, right)
        manifest.compare(right, found)


@cache
def adapter_on(name: str) -> tuple[Any, Any, dict[str, Any], bytes]:
    """A tiny pipeline of a family, a LoRA on its denoiser; the header and the tensors of a file that fits it."""
    import copy
    import tempfile

    import torch

    from darkroom import adapters, families
    from darkroom.families import tiny

    family = families.get(name)
    pipe = tiny.build(family)
    model = copy.deepcopy(getattr(pipe, family.denoiser_component))
    options = Config(model_family=name, lora_rank=2)
    adapter = adapters.attach(model, options, family.targets, family.denoiser_component, torch.float32, 0)
    with tempfile.TemporaryDirectory() as folder:
        adapter.export(Path(folder), {})
        content = next(Path(folder).glob("*.safetensors")).read_bytes()
    size = int.from_bytes(content[:8], "little")
    return pipe, adapter, json.loads(content[8 : 8 + size]), content[8 + size :]


def adapter_file(bench: Bench, data: st.DataObject, header: dict[str, Any], tensors: bytes) -> Path:
    """A file whose header, or any of whose bytes, are not right."""
    header = dict(header)
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        match data.draw(st.sampled_from(["rename", "drop", "value", "field", "alpha", "metadata"])):
            case "rename":
                words = st.sampled_from(
                    ["lora_unet_x.lora_down.weight", "transformer.x.lora_A.weight", "a.lora_magnitude_vector"]
                )
                header[data.draw(words | texts)] = header.pop(name)
            case "drop":
                del header[name]
            case "value":
                header[name] = data.draw(values)
            case "field" if isinstance(header[name], dict):
                header[name] = {**header[name], **data.draw(objects(("dtype", "shape", "data_offsets")))}
            case "alpha":
                header[name.removesuffix(".weight") + ".alpha"] = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
            case _:
                settings_of = objects(("transformer.r", "transformer.lora_alpha", "transformer.target_modules", "r"))
                header["__metadata__"] = data.draw(
                    st.fixed_dictionaries({"lora_adapter_metadata": (settings_of | values).map(as_json) | texts})
                    | values
                )
        if not header:
            break
    text = as_json(header).encode()
    content = len(text).to_bytes(8, "little") + text + tensors
    return bench.put("adapter.safetensors", data.draw(damaged(content)) if data.draw(st.booleans()) else content)


@reader("adapters to start from")
def adapters_to_start_from(bench: Bench, data: st.DataObject) -> None:
    from darkroom import families
    from darkroom.job.stages import start_from

    _, adapter, header, tensors = adapter_on("flux")
    path = adapter_file(bench, data, header, tensors)
    parts = SimpleNamespace(family=families.get("flux"), options=Config(model_family="flux"))
    start_from(adapter, parts, str(path), "here")  # type: ignore[arg-type]


@reader("adapters to draw with")
def adapters_to_draw_with(bench: Bench, data: st.DataObject) -> None:
    """By the pipeline's own loader, and by peft where it has none."""
    name = data.draw(st.sampled_from(["flux", "pixart_sigma"]))
    _, _, header, tensors = adapter_on(name)
    draw_with(name, adapter_file(bench, data, header, tensors))


def draw_with(name: str, path: Path) -> None:
    """Put an adapter file on a fresh tiny pipeline."""
    import copy

    from darkroom import families
    from darkroom.tools.generate import AdapterFile, load_adapters

    pipe, family = adapter_on(name)[0], families.get(name)
    part = family.denoiser_component
    fresh = type(pipe)(**{**pipe.components, part: copy.deepcopy(pipe.components[part])})
    load_adapters(fresh, family, [AdapterFile(path)], Config(model_family=name))


@reader("prompt library")
def prompt_library(bench: Bench, data: st.DataObject) -> None:
    from darkroom.validate.prompts import read_library

    bench.put("start.png", b"x")
    item = objects(("prompt", "caption", "adapter_strength", "image", "mask"), image=st.just("start.png"), prompt=texts)
    document = st.dictionaries(texts, item | values, max_size=3).map(as_json) | values.map(as_json)
    read_library(bench.put("prompts.json", data.draw(written(document))), "user_prompt_library")


def answer_of(read: Callable[[], object]) -> str:
    """What a reader said against an input; empty if it took it."""
    try:
        read()
    except ANSWERS as answer:
        return str(answer)
    return ""


PEFT_SETTINGS = (
    {"bad": 1}, {"r": "x"}, {"r": -1}, {"r": 0}, {"r": math.inf}, {"lora_alpha": "x"}, {"target_modules": 5},
    {"target_modules": "("}, {"target_modules": ["nothing"]}, {"rank_pattern": 5}, {"init_lora_weights": "zz"},
    {"megatron_config": 5}, {"loftq_config": [1]},
)  # fmt: skip


@pytest.mark.parametrize("name", ["flux", "pixart_sigma"])
def test_bad_peft_settings_in_an_adapters_header_are_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    _, _, header, tensors = adapter_on(name)
    right = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    texts = [as_json({**right, **{f"transformer.{key}": value for key, value in bad.items()}}) for bad in PEFT_SETTINGS]
    for text in [*texts, "[1]", "5", "null", "no json", "[" * 5000]:
        metadata = {**header["__metadata__"], "lora_adapter_metadata": text}
        head = as_json({**header, "__metadata__": metadata}).encode()
        path = tmp_path / "adapter.safetensors"
        path.write_bytes(len(head).to_bytes(8, "little") + head + tensors)
        said = answer_of(lambda path=path: draw_with(name, path))
        assert not said or str(path) in said


ONE_OF_EACH: tuple[Any, ...] = (None, True, 0, -1.5, 10**400, "49", [5], [[1]], {"": None}, {"a": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_dataset_takes_every_kind_of_value_or_says_no(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "datasets.json"
    for key in ENTRY_KEYS:
        for value in ONE_OF_EACH:
            entry = {"id": "a", "instance_data_dir": str(tmp_path), **KINDS[kind], key: value}
            file.write_text(as_json([entry, {"id": "b", "instance_data_dir": str(tmp_path)}]))
            with contextlib.suppress(DarkroomError):
                read_datasets(file, CONFIG, {})


def test_every_option_takes_every_kind_of_value_or_says_no(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for name in OPTIONS:
        for value in ONE_OF_EACH:
            file.write_text(as_json({"model_family": "flux", name: value}))
            with contextlib.suppress(DarkroomError):
                resolve([str(file)], {}, tmp_path, partial=True)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_every_input_with_an_error_of_ours_or_a_reason(name: str, tmp_path: Path, monkeypatch) -> None:
    read, bench, seen, answered = READERS[name], Bench(tmp_path), 0, 0
    monkeypatch.chdir(tmp_path)

    def one(data: st.DataObject) -> None:
        nonlocal seen, answered
        seen += 1
        try:
            read(bench, data)
        except ANSWERS as answer:
            answered += 1
            str(answer).encode("utf-8")  # it can be printed and stored

    # every commit tries other inputs, and the same ones each time
    first = number = (number_of_commits() or 0) * 10_000
    end = time.monotonic() + SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while time.monotonic() < end:
            run = settings(
                max_examples=BATCH,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )(seed(number)(given(st.data())(one)))
            run()
            number += 1
    print(f"\n{name}, seeds from {first}: {seen} inputs, {answered} answered with an error, 0 tracebacks")
