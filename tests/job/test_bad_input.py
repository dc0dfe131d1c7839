"""What a person can get wrong, or a machine can do to a run: what is said, that nothing is lost, and the exit code."""

from __future__ import annotations

import dataclasses
import errno
import gc
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from darkroom import families
from darkroom.cli.main import main
from darkroom.pretrained.repository import locate_repository
from darkroom.report.eventlog import EventLog, read
from darkroom.train.checkpoint import validate_checkpoint
from darkroom.train.step import Stepper

DONE, DEFECT, MISTAKE, STOPPED = 0, 1, 2, 130
FULL = "The disk is full: "
KEPT = "Nothing that was saved before is damaged."


@pytest.fixture(autouse=True)
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of the test's own, where a crash log would be left."""
    monkeypatch.chdir(tmp_path)
    # a run collects garbage five times; what the libraries hold would make that half of its time
    gc.freeze()


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command, checks its exit code, and gives what it said to the person, which is never a traceback."""

    def run(code: int, command: str, *argv: Any) -> str:
        capsys.readouterr()
        try:
            found = main([command, *map(str, argv)])
        except SystemExit as left:  # argparse
            found = left.code
        said = "".join(capsys.readouterr())
        assert found == code, said
        assert "Traceback" not in said
        assert "defect of ours" not in said
        assert not (tmp_path / "darkroom-crash.log").exists()
        return said

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of distinct pictures p0.png, p1.png, ... with captions."""

    def write(count: int = 4, name: str = "pictures") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(count):
            picture(number).save(folder / f"p{number}.png")
            (folder / f"p{number}.txt").write_text(f"picture {number}", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def short(arguments: Callable[..., list[str]], dataset_file: Callable[..., str]) -> Callable[..., list[str]]:
    """Arguments of two steps without pictures, over a folder when one is given."""

    def build(folder: Path | None = None, **options: Any) -> list[str]:
        if folder is not None:
            options["data_backend_config"] = dataset_file(instance_data_dir=str(folder))
        return arguments(**{"max_train_steps": 2, "validation_disable": True, **options})

    return build


def picture(number: int = 0, size: tuple[int, int] = (96, 96)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99)) + chunk(b"IEND", b"")


def flip(path: Path) -> None:
    """Turn over one bit near the end of a file."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def warnings(out: Path) -> list[str]:
    return [row["message"] for row in read(out / "events.jsonl") if row["event"] == "warning"]


# -- pictures ---------------------------------------------------------------------------------------------------------


def write_odd_pictures(folder: Path) -> None:
    """Pictures of every unusual kind that can be used."""
    folder.mkdir()
    image = picture()
    alpha = image.convert("RGBA")
    alpha.putalpha(77)
    palette = image.convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("CMYK").save(folder / "cmyk.jpg")
    wide = (np.arange(96 * 96).reshape(96, 96) * 7).astype(np.uint16)
    Image.fromarray(wide).save(folder / "sixteen_bit.png")
    alpha.save(folder / "alpha.png")
    palette.save(folder / "palette.png", transparency=3)
    picture(1, (120, 80)).save(folder / "turned.jpg", exif=turned)
    for name in ("moving.gif", "moving.webp"):
        image.save(folder / name, save_all=True, append_images=[picture(2)], duration=100)
    for name in ("with space", "ünï 中文", "new\nline", "-dash", "--seed=9", "two.dots"):
        picture(len(name)).save(folder / f"{name}.png")


def test_unusual_pictures_and_names_are_trained_on_and_only_the_first_frame_and_upright(told, short, tmp_path):
    write_odd_pictures(tmp_path / "odd")
    datasets = [{"id": "odd", "type": "local", "instance_data_dir": str(tmp_path / "odd"), "instance_prompt": "a thing",
                 "caption_strategy": "instanceprompt"}]  # fmt: skip
    (tmp_path / "datasets.json").write_text(json.dumps(datasets))

    said = told(DONE, "train", *short(train_batch_size=1, data_backend_config=tmp_path / "datasets.json"))

    assert "odd: 13 pictures in 2 buckets" in said
    assert "0.6     48 x 80" in said  # the turned one stands upright
    assert "left out" not in said
    assert "samples: 13" in said


def test_bad_pictures_are_left_out_counted_and_named(told, short, pictures, tmp_path):
    folder = pictures()
    whole, jpeg = (folder / "p0.png").read_bytes(), io.BytesIO()
    picture().save(jpeg, "JPEG")
    bad = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg.getvalue()[:4000],
        "empty.png": b"",
        "text.png": b"hello",
        "bomb.png": png(40_000, 40_000),
        "liar.png": png(96, 96),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a thing")

    said = told(DONE, "train", *short(folder))

    assert "! Dataset 'set0': not used: 1 empty file, 1 not a picture, 1 too many pixels." in said
    assert "! Dataset 'set0': not used: 1 empty file, 1 not a picture, 1 too many pixels, 3 truncated." in said
    assert "bomb.png (too many pixels)" in said
    assert "samples: 4" in said
    assert {p.name for p in folder.iterdir()} >= bad.keys()  # nothing of the user's is deleted


def test_captions_that_cannot_be_used_are_left_out_and_long_ones_are_reported(told, short, pictures, tmp_path):
    folder = pictures()
    captions = {"empty": b"", "blank": b" \n\t\n", "latin": "é".encode("latin-1"), "long": b"word " * 5000}
    for name, text in captions.items():
        picture(7).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(text)
    picture(8).save(folder / "none.png")

    said = told(DONE, "train", *short(folder))

    counts = "1 caption is not UTF-8, 2 empty caption, 1 missing caption"
    assert f"! Dataset 'set0': not used: {counts}." in said
    assert "! 1 captions are longer than the text encoders read (tokenizer_max_length = 32)" in said
    assert "samples: 5" in said


def test_equal_names_in_other_folders_and_with_other_endings_do_not_collide(told, short, pictures, tmp_path):
    folder = pictures(2)
    (folder / "sub").mkdir()
    picture(9).save(folder / "sub" / "p0.png")
    (folder / "sub" / "p0.txt").write_text("another")
    picture(10).save(folder / "p1.webp", lossless=True)

    said = told(DONE, "cache", *short(folder))

    assert "set0: 4 pictures" in said
    shards = (tmp_path / "out" / "cache" / "vae").rglob("*.shard.safetensors")
    keys = {name.split("/")[0] for shard in shards for name in load_file(shard)}
    assert len(keys) == 4
    assert "encode text: 4 items" in said  # picture 0, picture 1, another, and the empty caption


def test_links_that_lead_nowhere_or_in_circles_and_pipes_are_counted(told, short, pictures):
    folder = pictures()
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "broken.png").symlink_to("/nowhere/at/all.png")
    os.mkfifo(folder / "pipe.png")
    Path(os.fsdecode(bytes(folder) + b"/\xff.png")).write_bytes(b"x")

    said = told(DONE, "plan", *short(folder))

    assert "left out: 1 broken link" in said
    assert "left out: 2 link loop" in said
    assert "left out: 1 not a file" in said
    assert "left out: 1 file name is not UTF-8" in said


def test_files_that_may_not_be_read_are_left_out_and_come_back_when_they_may(told, short, pictures, monkeypatch):
    folder = pictures(4)
    opened, texts = Image.open, open

    def refuse(path: Any, *rest: Any) -> Any:
        if str(path).endswith("p0.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest)

    def refuse_text(path: Any, *rest: Any) -> Any:
        if str(path).endswith("p1.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return texts(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        patch.setattr("darkroom.storage.local.open", refuse_text, raising=False)
        said = told(DONE, "plan", *short(folder))
    assert "left out: 1 unreadable" in said
    assert "left out: 1 unreadable caption" in said
    assert "set0: 4 pictures" in told(DONE, "plan", *short(folder))


@pytest.mark.parametrize("kind", ["empty", "only bad"])
def test_a_folder_without_a_usable_picture_is_refused_with_a_report(kind, told, short, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    if kind == "only bad":
        (folder / "a.png").write_text("x")
        (folder / "a.txt").write_text("x")
        (folder / "b.png").touch()

    said = told(MISTAKE, "train", *short(folder))

    assert "Dataset 'set0' (image) has no usable picture." in said
    assert f"Folder: {folder}" in said
    if kind == "empty":
        assert "Put pictures (.jpg, .png, .webp, ...) into the folder" in said
    else:
        assert "Pictures found: 2; left out: 1 empty file, 1 not a picture." in said


@pytest.mark.parametrize("kind", ["one", "too many", "all", "size"])
def test_a_file_that_changes_between_scan_and_encoding_is_left_out(kind, told, short, pictures, monkeypatch):
    from darkroom.job import train as job

    folder = pictures(4 if kind in ("one", "size") else 2)
    texts = job.fill_text_cache

    def meanwhile(*arguments: Any) -> None:
        if kind == "size":
            picture(3, (120, 50)).save(folder / "p1.png")
        for path in folder.glob("*.png" if kind == "all" else "nothing" if kind == "size" else "p1.png"):
            path.unlink()
        texts(*arguments)

    monkeypatch.setattr(job, "fill_text_cache", meanwhile)
    said = told(DONE if kind in ("one", "size") else MISTAKE, "train", *short(folder))
    assert {
        "one": "not used: 1 vanished. For example p1.png (vanished)",
        "size": "not used: 1 size differs. For example p1.png (size differs)",
        "too many": "left out: 1 vanished, 1 insufficient_for_batch",
        "all": "left out: 2 vanished",
    }[kind] in said


# -- settings ---------------------------------------------------------------------------------------------------------

CONFIGS = {
    "a.json": ('{"seed": 5,\n "max_train_steps": }', "Line 2, column 21: expecting value."),
    "empty.json": ("", "The file is empty."),
    "list.json": ("[1, 2]", "The file does not hold an object."),
    "deep.json": ('{"a":' * 5000, "The file is nested too deeply."),
    "bytes.json": (b'{"seed": "\xff"}', "The file is not UTF-8 text (byte 10)."),
    "a.toml": ("seed = 5\nx = = 3\n", "Line 2, column 5: invalid value."),
    "a.env": ("SEED=5\nthis is wrong\n", "Line 2: this is not NAME=value."),
    "quote.env": ("TRAINER_EXTRA_ARGS=--seed '5\n", "This cannot be taken apart into words: no closing quotation."),
    "empty.toml": ("", "model_family\n  A run needs it: the architecture to train"),
    "a.yaml": ("seed: 5", "a.yaml is none of the kinds of config that can be read."),
    "missing.json": (None, "There is no such config. These were tried:"),
    "folder": (None, "There is no such config. These were tried:"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_read_is_refused_with_line_and_column(name, told, tmp_path):
    text, problem = CONFIGS[name]
    if name == "folder":
        (tmp_path / name).mkdir()
    elif text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    said = told(MISTAKE, "train", name)

    assert problem in said
    assert name in said or name == "empty.toml"


OPTIONS = {
    "unknown": ({"learnin_rate": 1}, "did you mean learning_rate"),
    "wrong type": ({"learning_rate": "fast"}, "learning_rate = 'fast' (from command line)\n  This is not a number"),
    "out of range": ({"max_train_steps": -5}, "This is not a whole number (0 or more)."),
    "family": ({"model_family": "fluxx"}, "There is no such choice; did you mean flux"),
    "flavour": ({"model_flavour": "tinny"}, "model_flavour = 'tinny' (from command line)\n  FLUX.1 has no such"),
    "optimizer": ({"optimizer": "adamm"}, "There is no such choice; did you mean bnb-adam"),
    "scheduler": ({"lr_scheduler": "cosin"}, "There is no such choice; did you mean cosine"),
    "resolution": ({"validation_resolution": "12ab"}, "'12ab' is not a resolution; write 512, 768x512"),
    "sampler": ({"validation_noise_scheduler": "ddim"}, "validation_noise_scheduler = 'ddim' (from command line)"),
    "threshold": ({"disk_low_threshold": "much"}, "'much' is not a size; write for example 500M, 100G or 1.5T."),
    "two lengths": ({"num_train_epochs": 3}, "max_train_steps = 2 and num_train_epochs = 3 both say how long"),
    "offset noise": ({"offset_noise": True}, "FLUX.1 matches flows, and offset noise is defined for epsilon and v"),
    "dora": ({"use_dora": True, "lora_init_type": "pissa"}, "Set lora_init_type to default, or use_dora to false."),
    "betas": ({"optimizer_beta1": 0.9}, "The two betas are passed on together, and only one is set."),
    "script": ({"disk_low_action": "script"}, "disk_low_script does not say which program makes room."),
    "output is a file": ({"output_dir": "datasets.json"}, "This is a file, and a folder is needed."),
    "output": ({"output_dir": "/proc/nope/out"}, "output_dir = '/proc/nope/out' (from command line)\n  Nothing can be"),
    "cache is a file": ({"cache_dir": "datasets.json"}, "cache_dir = 'datasets.json' (from command line)\n  This is a"),
    "library": ({"user_prompt_library": "/nope.json"}, "user_prompt_library = '/nope.json' (from command line)"),
    "checkpoint": ({"resume_from_checkpoint": "checkpoint-9"}, "resume_from_checkpoint = 'checkpoint-9'\n  There is"),
    "targets": ({"peft_lora_target_modules": '["nope"]'}, "These targets match no layer that a LoRA can adapt."),
    "optimizer argument": ({"optimizer_config": "nope=1"}, "AdamW has no argument nope."),
    "dataset file": ({"data_backend_config": "/nope.json"}, "The dataset file /nope.json does not exist."),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_wrong_setting_is_refused_by_name_with_its_origin_and_a_remedy(kind, told, short):
    options, problem = OPTIONS[kind]

    assert problem in told(MISTAKE, "train", *short(**options))


LIBRARIES = {
    "cut": (b'{"a":', "This is not JSON: Expecting value: line 1 column 6"),
    "bytes": (b"\xff\xfe{}", "The file is not UTF-8 text."),
    "list": (b"[1]", "The entry '1' is neither a text nor an object with a 'prompt'."),
    "text": (b'"a fox"', "The file must hold one object."),
    "width": (b'[{"prompt": "a", "width": "wide"}]', "width is 'wide', which is no number."),
    "steps": (b'["a --s 1e999"]', "sample_steps is '1e999', which is no number."),
    "number": (b'{"a": 5}', "The entry 'a' is neither a text nor an object with a 'prompt'."),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_malformed_prompt_library_is_refused_before_anything_else(kind, told, short, tmp_path):
    data, problem = LIBRARIES[kind]
    (tmp_path / "prompts.json").write_bytes(data)

    said = told(MISTAKE, "train", *short(user_prompt_library=tmp_path / "prompts.json"))

    assert f"prompts.json' (from command line)\n  {problem}" in said


GOOD = {"id": "a", "type": "local", "instance_data_dir": ".", "caption_strategy": "textfile"}
DATASETS = {
    "cut": (
        '[{"id": "a",]',
        "is not valid JSON: Expecting property name enclosed in double quotes in line 1, column 13",
    ),
    "empty": ("", "is not valid JSON: Expecting value in line 1, column 1."),
    "object": ("{}", "holds one object, not an array of objects."),
    "nothing": ("[]", "lists no dataset; at least one is needed."),
    "deep": ("[" * 5000, "is nested too deeply."),
    "bytes": (b"[\xff]", "is not UTF-8 text (byte 1)."),
    "unknown key": ([{**GOOD, "repeat": 2}], "There is no such key.\n  Did you mean repeats?"),
    "two of one id": ([GOOD, GOOD], "Two datasets have this id."),
    "no id": ([{**GOOD, "id": None}], "Each dataset needs an id."),
    "id that leads out": ([{**GOOD, "id": "../../x"}], "The id names a folder of the cache and would lead out of it."),
    "missing folder": ([{**GOOD, "instance_data_dir": "/nope"}], "The folder does not exist (seen from"),
    "folder is a file": ([{**GOOD, "instance_data_dir": "d.json"}], "This is a file, not a folder"),
    "wrong type": ([{**GOOD, "repeats": "many"}], "repeats = 'many' (from d.json, dataset 'a')"),
    "wrong choice": ([{**GOOD, "caption_strategy": "textfiles"}], "Did you mean textfile?"),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_malformed_dataset_file_is_refused(kind, told, short):
    text, problem = DATASETS[kind]
    data = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    Path("d.json").write_bytes(data)

    assert problem in told(MISTAKE, "train", *short(data_backend_config="d.json"))


def test_a_dataset_file_that_is_a_folder_is_refused(told, short, tmp_path):
    said = told(MISTAKE, "train", *short(data_backend_config=tmp_path))
    assert f"The dataset file {tmp_path} cannot be read: Is a directory." in said


# -- the base model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's tiny model."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(locate_repository("tiny:tiny", families.get(family)), tmp_path / f"{family}_base"))

    return copy


def test_a_base_of_another_family_is_refused_by_what_it_is_and_what_was_expected(told, short, base):
    said = told(MISTAKE, "train", *short(pretrained_model_name_or_path=base("sdxl")))

    assert "It holds a model for StableDiffusionXLPipeline; model_family flux needs one for FluxPipeline" in said
    assert "Set model_family to sdxl, or give a FLUX.1 model." in said


@pytest.mark.parametrize("kind", ["path", "file", "no model", "hub"])
def test_a_base_that_is_not_there_is_refused_quickly(kind, told, short, tmp_path):
    (tmp_path / "plain").mkdir()
    given, problem = {
        "path": ("/nowhere/model", "There is no such folder"),
        "file": ("/nowhere/model.safetensors", "There is no such file or folder"),
        "no model": (tmp_path / "plain", "It has no model_index.json."),
        "hub": ("nobody/nothing", "'nobody/nothing' is no local folder, and the hub has not given it:"),
    }[kind]
    for command in ("train", "plan"):
        started = time.monotonic()
        said = told(MISTAKE, command, *short(pretrained_model_name_or_path=given))
        assert f"pretrained_model_name_or_path = '{given}' (from command line)\n  {problem}" in said
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_weights_that_were_cut_off_are_named_before_anything_is_loaded(part, told, short, base):
    folder = base("flux")
    (path,) = (folder / part).glob("*.safetensors")
    size = path.stat().st_size
    os.truncate(path, size - 100)

    said = told(MISTAKE, "train", *short(pretrained_model_name_or_path=folder))

    assert f"The weights file {path} is damaged: it has {size - 100} bytes of {size}." in said


def test_a_lora_given_as_the_base_is_named_without_asking_the_hub(told, short, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 2)}, path)

    said = told(MISTAKE, "plan", *short(pretrained_model_name_or_path=path, model_flavour="dev"))

    assert f"pretrained_model_name_or_path = '{path}' (from command line)\n  It is a LoRA" in said
    assert "The denoiser of FLUX.1 needs the weights of FluxTransformer2DModel" in said


def test_a_settings_file_of_the_base_that_is_no_json_is_named(told, short, base):
    folder = base("flux")
    (folder / "transformer" / "config.json").write_text("{")

    said = told(MISTAKE, "train", *short(pretrained_model_name_or_path=folder))

    assert "The denoiser could not be loaded" in said
    assert "transformer/config.json' is not a valid JSON file" in said


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """The output of a run that nothing happened to: two steps, a checkpoint each, pictures."""
    folder = tmp_path_factory.mktemp("undisturbed")
    entry = {"id": "set0", "type": "local", "instance_data_dir": str(photographs), "caption_strategy": "textfile"}
    (folder / "datasets.json").write_text(json.dumps([entry]))
    assert main(["train", *disturbed_arguments(folder / "datasets.json", folder / "out")]) == DONE
    return folder / "out"


def disturbed_arguments(datasets: Path | str, out: Path, **options: Any) -> list[str]:
    """Arguments of the runs that are compared with the undisturbed one."""
    values = {
        "model_family": "flux", "model_flavour": "tiny", "output_dir": out, "data_backend_config": datasets,
        "max_train_steps": 2, "train_batch_size": 2, "seed": 5, "checkpoint_step_interval": 1,
        "validation_prompt": "a cup", "validation_disable_unconditional": True, "validation_num_inference_steps": 1,
        "validation_step_interval": 1, "torch_num_threads": 1, **options,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def disturbed(tmp_path: Path, dataset_file: Callable[..., str]) -> Callable[..., list[str]]:
    """Arguments of the same run as the undisturbed one, in this test's folder."""
    return lambda **options: disturbed_arguments(dataset_file(), tmp_path / "out", **options)


def results(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on what happened on the way: the last checkpoint, the adapter, its pictures."""
    folders = [out / "checkpoint-2", out / "benchmarks"]
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file() and p.name != "checkpoint_manifest.json"]
    found += [out / "pytorch_lora_weights.safetensors", *out.glob("validation_images/**/step_2_*.png")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(found)}


def assert_same(out: Path, undisturbed: Path) -> None:
    found, expected = results(out), results(undisturbed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not [p for p in out.rglob("*") if p.name.endswith("tmp")]


BROKEN = {
    "missing": "there is no such file or folder",
    "cut": "the file is damaged: it has",
    "empty": "the file is damaged: it has",
    "other family": "it holds nothing for 'transformer', only for unet",
}
# an adapter that others can use, and this run cannot start from
UNFIT = {
    "rank": "it has rank 2, and lora_rank is 16",
    "nan": "holds NaN or infinity",
    "other layers": "of its layers are none of this model's",
}


@pytest.fixture
def adapter(tmp_path: Path, undisturbed: Path) -> Callable[[str], Path]:
    """An adapter file that cannot be used."""

    def write(kind: str) -> Path:
        path = tmp_path / "adapter.safetensors"
        whole = (undisturbed / "pytorch_lora_weights.safetensors").read_bytes()
        if kind == "other family":
            tensors = {f"unet.mid_block.attentions.0.to_q.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
            save_file(tensors, path, {"format": "pt"})
        elif kind != "missing":
            path.write_bytes(whole[:-50] if kind == "cut" else b"")
        return path

    return write


@pytest.mark.parametrize("kind", BROKEN)
def test_init_lora_from_a_file_that_cannot_be_used_is_refused(kind, told, short, adapter):
    path = adapter(kind)

    said = told(MISTAKE, "train", *short(init_lora=path))

    assert f"init_lora = '{path}' (from command line)\n  Its weights cannot be used: " in said
    assert BROKEN[kind] in said


@pytest.mark.parametrize("kind", UNFIT)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_encoded(kind, told, short, undisturbed, tmp_path):
    tensors = load_file(undisturbed / "pytorch_lora_weights.safetensors")
    first = min(tensors)
    if kind == "rank":
        tensors = {name: t[:2] if ".lora_A." in name else t[:, :2] for name, t in tensors.items()}
    elif kind == "nan":
        tensors[first] = torch.full_like(tensors[first], torch.nan)
    else:
        tensors = {name.replace("attn", "attention"): t for name, t in tensors.items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "unfit.safetensors")

    for command in ("plan", "train"):
        said = told(MISTAKE, command, *short(init_lora=tmp_path / "unfit.safetensors"))

        assert "init_lora = " in said
        assert UNFIT[kind] in said
        assert not (tmp_path / "out" / "cache").exists()
    if kind != "rank":  # an assistant has its own
        said = told(MISTAKE, "train", *short(assistant_lora_path=tmp_path / "unfit.safetensors"))
        assert "assistant_lora_path = " in said
        assert UNFIT[kind] in said
        assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize("kind", BROKEN)
def test_generate_and_verify_refuse_an_adapter_that_cannot_be_used(kind, told, adapter, undisturbed, tmp_path):
    path = adapter(kind)
    problem = {
        "missing": "There is no adapter at",
        "other family": "has nothing for the transformer of FLUX.1: it holds unet.",
    }.get(kind, "is damaged: it has")
    model = ("--model_family=flux", "--model_flavour=tiny", "--prompt=x", "--steps=1")

    assert problem in told(MISTAKE, "generate", f"--adapter={path}", *model)

    if path.exists():
        shutil.copy(undisturbed / "run.lock.json", tmp_path)
        assert problem in told(MISTAKE, "verify", path)
        (tmp_path / "run.lock.json").write_text("{")
        assert "run.lock.json cannot be read" in told(MISTAKE, "verify", path)
    else:
        assert f"There is nothing at {path}." in told(MISTAKE, "verify", path)


def test_a_file_in_the_way_of_a_result_is_named(told, tmp_path):
    (tmp_path / "taken").write_text("x")
    said = told(MISTAKE, "families", "flux", f"--make_tiny={tmp_path / 'taken'}")
    assert f"{tmp_path / 'taken'}" in said
    assert "The system refuses this file or folder: Not a directory." in said


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("--model_flavour=tinny", "model_flavour = 'tinny'\n  FLUX.1 has no such flavour"),
        ("--resolution=abc", "--resolution: 'abc' is not a resolution"),
        ("--steps=0", "'0' is not a whole number above 0"),
        ("--count=0", "'0' is not a whole number above 0"),
        ("--model=/nowhere/model", "There is no model at /nowhere/model."),
        ("--model_family=fluxx", "There is no family 'fluxx'."),
    ],
)
def test_generate_refuses_what_it_cannot_use(argument, problem, told):
    arguments = ("--model_family=flux", "--model_flavour=tiny", "--prompt=x", argument)
    assert problem in told(MISTAKE, "generate", *arguments)


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every rename to a path that holds a text (a slash stands for its end) fail, as on a full disk."""
    replace = os.replace

    def patch(text: str, number: int = errno.ENOSPC) -> None:
        def fail(source: Any, target: Any) -> None:
            if text in f"{target}/":
                raise OSError(number, os.strerror(number))
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)

    return patch


# where the disk is full, and how many checkpoints are whole by then
PLACES = {
    "cache/index": 0,
    "cache/text": 0,
    "cache/vae": 0,
    "benchmarks": 0,
    "run.lock.json": 0,
    "checkpoint-1-tmp/optimizer": 0,
    "checkpoint-2-tmp/training_state": 1,
    "out/checkpoint-2/": 1,
    "out/pytorch_lora_weights": 2,
}


@pytest.mark.parametrize("place", PLACES)
def test_after_a_full_disk_the_same_command_ends_with_the_same_bytes(
    place, told, disturbed, full_at, monkeypatch, undisturbed, tmp_path
):
    out = tmp_path / "out"
    full_at(place, errno.EFBIG if place == "cache/vae" else errno.ENOSPC)
    said = told(MISTAKE, "train", *disturbed())
    assert FULL in said
    assert KEPT in said
    assert not [p for p in out.rglob("*") if p.name.endswith("tmp")]
    assert [validate_checkpoint(path) for path in sorted(out.glob("checkpoint-*"))] == [None] * PLACES[place]

    monkeypatch.undo()
    told(DONE, "train", *disturbed())
    assert_same(out, undisturbed)


def test_a_full_disk_while_pictures_are_written_does_not_stop_training(
    told, disturbed, full_at, monkeypatch, undisturbed, tmp_path
):
    full_at("validation_images")
    said = told(MISTAKE, "train", *disturbed())
    assert f"! No validation pictures. {FULL}step_1_validation_0_64x64.png could not be written" in said
    assert validate_checkpoint(tmp_path / "out" / "checkpoint-2") is None
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()

    monkeypatch.undo()
    told(DONE, "train", *disturbed())
    assert_same(tmp_path / "out", undisturbed)


def test_a_full_disk_while_the_event_log_is_written_stops_with_a_message(
    told, disturbed, monkeypatch, undisturbed, tmp_path
):
    class Full(io.TextIOWrapper):
        def write(self, text: str) -> int:
            if '"event": "step"' in text:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    opening = EventLog.__init__

    def opened(log: EventLog, path: Path, clock: Any) -> None:
        opening(log, path, clock)
        log.close()
        log._file = Full(open(path, "ab", buffering=0))  # noqa: SIM115

    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "__init__", opened)
        assert f"{FULL}an event could not be written" in told(MISTAKE, "train", *disturbed())
    told(DONE, "train", *disturbed())
    assert_same(tmp_path / "out", undisturbed)


def test_a_full_disk_under_safetensors_own_writer_is_recognised(told, disturbed, monkeypatch, tmp_path):
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    assert "; the system says: File too large)" in told(MISTAKE, "train", *disturbed())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a child process")
def test_a_real_limit_on_file_size_is_a_full_disk(told, disturbed, undisturbed, tmp_path):
    child = os.fork()
    if child == 0:
        code = DEFECT
        try:
            said = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT)
            sys.stdout = sys.stderr = open(said, "w")  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))  # the optimizer's needs more
            code = main(["train", *disturbed()])
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (tmp_path / "said").read_text()
    assert (code, "Traceback" in said) == (MISTAKE, False), said
    assert FULL in said
    assert "File too large" in said

    told(DONE, "train", *disturbed())
    assert_same(tmp_path / "out", undisturbed)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))


def test_a_damaged_checkpoint_is_passed_over_or_refused_and_a_half_written_one_too(
    told, disturbed, finished, undisturbed
):
    flip(finished / "checkpoint-2" / "optimizer.safetensors")
    (finished / "checkpoint-9").mkdir()
    (finished / "checkpoint-9" / "optimizer.safetensors").write_bytes(b"half")

    for name, problem in {
        "checkpoint-2": "optimizer.safetensors was changed after it was written (its sha256 differs)",
        "checkpoint-9": "it has no manifest, so it was not finished",
    }.items():
        said = told(MISTAKE, "train", *disturbed(resume_from_checkpoint=name))
        assert f"resume_from_checkpoint = '{name}'" in said
        assert problem in said

    said = told(DONE, "train", *disturbed())
    assert "checkpoint-9 is passed over: it has no manifest, so it was not finished" in said
    assert "checkpoint-2 is passed over: optimizer.safetensors was changed" in said
    assert "Going on from checkpoint-1" in said
    assert "checkpoint-2, checkpoint-9 moved to abandoned-1" in said
    shutil.rmtree(finished / "abandoned-1")
    assert_same(finished, undisturbed)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"seed": 6}, "seed: 5 then, 6 now"),
        ({"model_family": "sd3"}, "model_family: flux then, sd3 now"),
        ({"lora_rank": 4}, "lora_rank: 16 then, 4 now"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, problem, told, disturbed, finished):
    before = results(finished)
    said = told(MISTAKE, "train", *disturbed(validation_disable=True, **options))
    assert problem in said
    assert "set resume_from_checkpoint to none" in said
    assert results(finished) == before


def test_a_damaged_cache_shard_is_made_again_and_reported(told, disturbed, finished, undisturbed):
    shards = list((finished / "cache").rglob("*.shard.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        flip(shard)
    for path in finished.glob("checkpoint-*"):
        shutil.rmtree(path)

    said = told(DONE, "train", *disturbed())

    for shard in shards:
        assert f"! The cache shard {shard} is damaged" in said
    assert said.count("it was set aside and its entries are made again.") == 2
    assert_same(finished, undisturbed)


# -- memory, numbers, signals -----------------------------------------------------------------------------------------


@pytest.fixture
def at_second_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Does something at the start of the second step."""
    stepping = Stepper.__call__

    def patch(happen: Callable[..., Any]) -> None:
        def step(stepper: Stepper, batches: Any, done: int) -> Any:
            if done == 1:
                happen(stepper)
            return stepping(stepper, batches, done)

        monkeypatch.setattr(Stepper, "__call__", step)

    return patch


def no_memory_on_gpu(stepper: Stepper) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory_on_cpu(stepper: Stepper) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


def no_number(stepper: Stepper) -> None:
    objective = stepper.objective

    def broken(*arguments: Any) -> Any:
        output = objective(*arguments)
        losses = {name: loss * float("nan") for name, loss in output.losses.items()}
        return dataclasses.replace(output, losses=losses)

    stepper.objective = broken


@pytest.mark.parametrize(
    ("happen", "problem", "advice"),
    [
        (no_memory_on_gpu, "Out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.", "lower train_batch_size"),
        (no_memory_on_cpu, "Out of memory: [enforce fail", "set gradient_checkpointing to true"),
        (no_number, "The loss is not a number ({'denoise': nan})", "Lower learning_rate"),
    ],
)
def test_a_step_that_fails_leaves_the_last_checkpoint_and_advice(
    happen, problem, advice, told, disturbed, at_second_step, monkeypatch, undisturbed, tmp_path
):
    at_second_step(happen)
    said = told(MISTAKE, "train", *disturbed())
    assert problem in said
    assert advice in said
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    end = read(tmp_path / "out" / "events.jsonl")[-1]
    assert end["status"] == "failed"
    assert problem in end["message"]

    monkeypatch.undo()
    told(DONE, "train", *disturbed())
    assert_same(tmp_path / "out", undisturbed)


def test_pictures_that_cannot_be_rendered_do_not_cost_the_run(told, disturbed, monkeypatch, tmp_path):
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("darkroom.validate.render.draw", fail)
    said = told(DONE, "train", *disturbed(disable_benchmark=True))
    assert said.count("! Validation failed: CUDA out of memory") == 3  # two steps, and once more at the end
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()


SIGNALS = {
    "caching texts": "darkroom.families.flux.Flux.encode_text",
    "caching latents": "darkroom.families.shared.latents.encode",
    "saving": "darkroom.train.checkpoint.write_manifest",
    "rendering": "darkroom.validate.render.draw",
    "the final save": "darkroom.job.train.export_result",
}


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sends SIGTERM at the first call of a function, before its work."""

    def patch(path: str) -> None:
        from darkroom.core.registry import import_path

        owner, _, name = path.rpartition(".")
        holder = import_path(owner) if owner.endswith("Flux") else sys.modules[owner]
        work, sent = getattr(holder, name), []

        def signalled(*arguments: Any, **named: Any) -> Any:
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            return work(*arguments, **named)

        monkeypatch.setattr(holder, name, signalled)

    before = signal.getsignal(signal.SIGTERM)
    yield patch
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("during", SIGNALS)
def test_after_a_sigterm_the_same_command_ends_with_the_same_bytes(
    during, told, disturbed, terminated, monkeypatch, undisturbed, tmp_path
):
    terminated(SIGNALS[during])
    told(STOPPED, "train", *disturbed(disable_benchmark=True))
    assert read(tmp_path / "out" / "events.jsonl")[-1]["status"] == "interrupted"
    assert [
        validate_checkpoint(path) for path in (tmp_path / "out").glob("checkpoint-*") if validate_checkpoint(path)
    ] == []

    monkeypatch.undo()
    told(DONE, "train", *disturbed())
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    ("family", "flavour", "options", "option", "problem"),
    [
        (
            "wan",
            "tiny",
            {"flow_schedule_auto_shift": True},
            "flow_schedule_auto_shift",
            "says nothing of shifts by size",
        ),
        ("flux", "tiny", {"mixed_precision": "fp16"}, "mixed_precision", "there is none here"),
        ("lumina2", "tiny", {"tokenizer_max_length": 600}, "tokenizer_max_length", "captions of up to 599 tokens"),
        ("kandinsky5_video", "tiny-nabla", {"aspect_bucket_alignment": 64}, "aspect_bucket_alignment", "of 128 pixels"),
    ],
)
def test_what_the_network_or_the_machine_cannot_do_is_said_before_anything_is_encoded(
    family, flavour, options, option, problem, told, arguments, tmp_path
):
    argv = arguments(family, model_flavour=flavour, validation_disable=True, **options)
    for command in ("plan", "train"):
        said = told(MISTAKE, command, *argv)

        assert f"{option} = " in said
        assert problem in said
        assert not (tmp_path / "out" / "cache").exists()
